"""Saved configs that are damaged or odd, and the checkpoint that a run resumes from."""

import shutil

import pytest
import yaml

from sr_lightning.errors import InputError
from sr_lightning.runs.folder import RunFolder
from sr_lightning.runs.saved_config import config_to_resume, copy_for_extension, misfits, read_config
from tests.checkpoints.fuzz import RUN, run_to_resume
from tests.checkpoints.test_checkpoint import flip_bit_of

ODD_FILES = {
    "empty": b"",
    "only a comment": b"# nothing\n",
    "a list": b"- 1\n- 2\n",
    "a number": b"3\n",
    "no settings": b"{}",
    "binary": b"\x00\xff\xfe\x80",
    "control characters": b"a: \x01\n",
    "torn": b"model: {network: [",
    "a key twice": b"a: 1\na: 2\n",
    "a key that is a list": b"? [1]\n: 2\n",
    "deep": b"[" * 5000,
    "an alias": b"a: &x [1, 2]\nb: [*x, *x]\n",
    "a tag that runs code": b"a: !!python/object/apply:os.system [ls]\n",
    "a reference to the environment": b"a: {b: ['${oc.env:HOME}']}\n",
    "a missing value": b"a: ???\n",
    "two documents": b"a: 1\n---\nb: 2\n",
    "a date that is none": b"a: !!timestamp x\n",
}


@pytest.mark.parametrize("odd", ODD_FILES)
def test_odd_config_is_one_clear_line(odd, tmp_path):
    (tmp_path / "config.yaml").write_bytes(ODD_FILES[odd])
    with pytest.raises(InputError, match=r"config\.yaml cannot be read as the config of a run: .*\S") as error:
        read_config(tmp_path / "config.yaml")
    assert "\n" not in str(error.value)


def test_huge_or_missing_config_is_refused(tmp_path):
    (tmp_path / "config.yaml").write_bytes(b"#" * 2**21)
    for path in (tmp_path / "config.yaml", tmp_path / "none.yaml", tmp_path):
        with pytest.raises(InputError, match="cannot be read as the config of a run"):
            read_config(path)


@pytest.mark.parametrize(
    ("saved", "messages"),
    [
        ({}, ["it has no a", "it has no b.c", "it has no b.d"]),
        ({"a": 2.5, "b": {"c": None, "d": [3, 4.5]}, "new": 1}, []),
        ({"a": 2, "b": {"c": "x", "d": []}}, []),
        ({"a": True, "b": {"c": "x", "d": [1]}}, ["a is True, there 1"]),
        ({"a": "1", "b": {"c": 3, "d": 1}}, ["a is '1', there 1", "b.c is 3, there 'y'", "b.d is 1, there [1]"]),
        ({"a": 1, "b": {"c": "x", "d": ["1"]}}, ["b.d is ['1'], there [1]"]),
        ({"a": 1, "b": 3}, ["it has no b.c", "it has no b.d"]),
    ],
)
def test_saved_config_must_have_the_keys_and_kinds_of_values_of_the_checkpoint(saved, messages):
    assert list(misfits(saved, {"a": 1, "b": {"c": "y", "d": [1]}, "e": {}})) == messages


@pytest.fixture
def run(tmp_path):
    """A copy of a run: its folder."""
    return shutil.copytree(RUN, tmp_path / "run")


def resumed(run, *overrides):
    return config_to_resume(run_to_resume(run / "config.yaml"), [f"resume={run}", *overrides])


def test_whole_run_resumes_with_its_own_settings(run):
    cfg = resumed(run)
    assert (cfg.name, cfg.seed, cfg.run_dir, cfg.allow) == ("srcnn", 1, str(run), None)


@pytest.mark.parametrize(
    "change", [lambda text: "", lambda text: text[:-200], lambda text: text.replace("seed: 1", "")]
)
def test_damaged_config_is_named(change, run):
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(change(text))
    with pytest.raises(InputError, match=rf"resume={run}: {run}/config\.yaml .*start the run again"):
        resumed(run)


def test_config_does_not_allow_its_own_classes(run):
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["model"]["loss"]["_target_"], config["allow"] = "collections.Counter", ["collections"]
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(InputError, match=r"model\.loss\._target_: 'collections\.Counter'"):
        resumed(run)
    cfg = run_to_resume(run / "config.yaml")
    cfg.allow = ["collections"]
    assert config_to_resume(cfg, [f"resume={run}", "allow=[collections]"]).allow == ["collections"]


@pytest.mark.parametrize("last", ["flipped", "cut", "of another project", "empty"])
def test_damaged_last_checkpoint_names_the_best_one_if_that_is_whole(last, run):
    path = run / "checkpoints" / "last.ckpt"
    if last == "flipped":
        flip_bit_of(path, "data/0")
    else:
        path.write_bytes({"cut": path.read_bytes()[:9000], "of another project": b"x" * 9000, "empty": b""}[last])
    with pytest.raises(InputError, match=rf"{path} .*\n.*best\.ckpt is whole: copy it to {path} and resume again"):
        resumed(run)
    flip_bit_of(run / "checkpoints" / "best.ckpt", "data/2")
    with pytest.raises(InputError, match="there is no other whole checkpoint: start the run again"):
        resumed(run)


def test_run_with_an_empty_best_checkpoint_is_not_extended(run):
    (run / "checkpoints" / "best.ckpt").write_bytes(b"")
    cfg = run_to_resume(run / "config.yaml")
    cfg.max_steps, cfg.extend = 10**6, "stretch"
    with pytest.raises(InputError, match=r"best\.ckpt is not a checkpoint of this project's train\.py"):
        config_to_resume(cfg, [f"resume={run}", "max_steps=1000000", "extend=stretch"])


def test_interrupted_copy_of_a_cell_is_made_again(tmp_path, monkeypatch):
    def interrupt(*paths):
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shutil, "copy", interrupt)
        copy_for_extension(RunFolder(RUN), 50)
    folder = copy_for_extension(RunFolder(RUN), 50)
    assert {path.name for path in folder.iterdir()} == {"checkpoints", "config.yaml", "metrics.csv"}
    with pytest.raises(InputError, match="the cell was extended before"):
        copy_for_extension(RunFolder(RUN), 50)
