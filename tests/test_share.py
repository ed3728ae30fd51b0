"""A shared network: complete or not at all, without a trace of the machine, read back from a folder and from a hub."""

import csv
import hashlib
import json
import logging
import platform
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from sr_lightning import load
from sr_lightning.checkpoints.checkpoint import load_best
from sr_lightning.errors import InputError
from sr_lightning.runs.folder import RunFolder, find_checkpoint
from sr_lightning.share.__main__ import main, share
from sr_lightning.share.card import card, card_metadata
from sr_lightning.share.files import facts_of, recipe, without_places
from tests.helpers import ROOT, run, run_in_new_interpreter

DATA = ROOT / "tests" / "earlier_version" / "data"
EARLIER = next((ROOT / "tests" / "earlier_version").glob("multirun/tiny/*seed1*"))


@pytest.fixture(scope="module")
def shared_run(tmp_path_factory, command, pictures) -> Path:
    """A run on the user's own images with private names, that scored a public test set as well."""
    home = tmp_path_factory.mktemp("private")
    for path in pictures.iterdir():
        shutil.copyfile(path, home / f"aunt_mary_{path.name}")
    folder = home / "run of mary"
    small = ["model=espcn", "model.network.num_features=[4]", "model.network.kernel_sizes=[3,3]", "name=small+net"]
    place = [f"run_dir='{folder}'", f"hydra.run.dir='{folder}'", f"data.hr={home}", "benchmarks=[Tiny]"]
    run(*command, *small, *place, "max_steps=4", "val_every=2", f"data_root={DATA}", "num_comparisons=4")
    return folder


@pytest.fixture
def put(shared_run, tmp_path):
    """Share the run into a folder, with further options."""
    return lambda *options, to="net", source=shared_run: main(
        [str(source), "--to", str(tmp_path / to), "--licence", "MIT", *options]
    )


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_shared_folder_has_all_and_computes_the_same(put, shared_run, tmp_path):
    assert put() == 0
    folder = tmp_path / "net"
    names = {"README.md", "config.yaml", "scores.csv", "metrics.csv", "manifest.json", "small_net.safetensors"}
    assert {path.name for path in folder.iterdir()} == names | {"Tiny_x2_5.png", "Tiny_x2_6.png"}
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest == {
        name: hashlib.sha256(content).hexdigest() for name, content in files_of(folder).items() if name in manifest
    }
    assert manifest.keys() == {path.name for path in folder.iterdir()} - {"manifest.json"}
    one, other = load_best(shared_run / "checkpoints" / "best.ckpt").network, load(folder).network
    lr = torch.rand(1, 1, 9, 8)
    with torch.inference_mode():
        torch.testing.assert_close(other(lr), one(lr), rtol=1e-5, atol=1e-6)


def test_no_file_has_a_trace_of_the_machine_or_of_private_images(put, shared_run, tmp_path):
    assert put() == 0
    text = {name: content.decode(errors="replace") for name, content in files_of(tmp_path / "net").items()}
    traces = [str(Path.home()), str(ROOT), str(DATA), str(shared_run), str(shared_run.parent), str(tmp_path), "mary"]
    traces += ["/tmp", "cache_dir", "data_root", "run_dir", "processor", "\\tmp"]
    text_files = {name: content for name, content in text.items() if not name.endswith(".png")}
    found = [(name, trace) for name, content in text_files.items() for trace in traces if trace in content]
    found += [(name, trace) for name, content in text.items() for trace in traces[:6] if trace in content]
    words = platform.node().lower()
    found += [
        (name, words) for name, content in text_files.items() if words in content.lower().replace("sha", " ").split()
    ]
    assert not found
    rows = list(csv.DictReader((tmp_path / "net" / "scores.csv").open()))
    assert {row["image"] for row in rows} == {"5", "6", "mean"}
    assert {row["dataset"] for row in rows if row["image"] == "mean"} == {"Tiny", "held-out"}


def test_card_is_one_of_the_hub_with_the_scores_of_the_run(put, shared_run, tmp_path):
    put()
    _, front, text = (tmp_path / "net" / "README.md").read_text().split("---\n", 2)
    data = yaml.safe_load(front)
    assert (data["license"], data["library_name"], data["pipeline_tag"]) == ("mit", "sr_lightning", "image-to-image")
    assert "super-resolution" in data["tags"] and data["metrics"] == ["psnr", "ssim"] and "datasets" not in data
    rows = list(csv.DictReader((shared_run / "results.csv").open()))
    mean = next(r for r in rows if (r["dataset"], r["image"], r["model"]) == ("Tiny", "mean", "small+net"))
    first = data["model-index"][0]["results"][0]
    assert first["dataset"]["name"] == "Tiny" and [m["type"] for m in first["metrics"]] == ["psnr", "ssim"]
    assert first["metrics"][0]["value"] == round(float(mean["psnr_y"]), 2)
    assert f"{float(mean['psnr_y']):.2f}" in text and mean["protocol"] in text and mean["protocol"] in front
    assert "python train.py data.patch_size=8 " in text and " model=espcn " in text
    assert 'load("net")' in text and "sr-upscale photo.jpg -c net" in text
    assert "JPEG" in text and "Not for evidence" in text and "commit " in text


def test_card_names_public_sets_and_unknown_licences(shared_run, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(shared_run, copy)
    config = yaml.safe_load((copy / "config.yaml").read_text())
    config["data_root"], config["choices"]["data"] = "/data", "t91_bsds"
    config["data"] = {"train": {"hr": ["/data/T91", "/data/BSDS500/train"]}, "val": {"hr": "/data/Mine"}}
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    facts = facts_of(RunFolder(copy), "My-Licence", "hf:me/net")
    front = card_metadata(facts)
    assert front["datasets"] == ["BSDS500", "T91"]
    assert (front["license"], front["license_name"]) == ("other", "my-licence")
    assert [path.name for path in facts.pictures] == [
        "Tiny_x2_5.png",
        "Tiny_x2_6.png",
        "held-out_x2_aunt_mary_0.png",
    ] or (len(facts.pictures) == 3 and facts.pictures[2].name.startswith("held-out"))
    assert facts.config["data"]["train"]["hr"] == ["T91", "BSDS500/train"]


def test_places_are_cut_to_their_names():
    private = {
        "hr": "/home/me/my photos/",
        "warm_start": "https://user:secret@host/x.pth?token=1#sha256=00",
        "teacher": "hf:me/net",
        "loss": {"weights": r"C:\Users\me\vgg.pth", "_target_": "torch.nn.L1Loss"},
        "sets": ["/data/T91", "~/x", "../a/b", "wandb:me/p/n:best", "/"],
        "cache_dir": "/home/me",
        "steps": None,
    }
    assert without_places(private, "/data") == {
        "hr": "my photos",
        "warm_start": "x.pth",
        "teacher": "hf:me/net",
        "loss": {"weights": "vgg.pth", "_target_": "torch.nn.L1Loss"},
        "sets": ["T91", "x", "b", "n:best", ""],
        "steps": None,
    }


def test_recipe_has_the_settings_that_are_shared():
    private = "logger=wandb logger.key=1 run_dir=/y data.cache_dir=/z"
    command = f"/x/train.py -m model=edsr +gan=srgan 'data.hr=[/home/me/a b,/d/T91]' {private} seed=3"
    assert recipe(command, "/d") == "python train.py model=edsr +gan=srgan 'data.hr=[a b,T91]' seed=3"
    assert recipe(None, "/d") is None and recipe("train.py 'a", "/d") == "python train.py"


def test_folder_is_replaced_only_if_it_was_shared(put, tmp_path, capsys):
    assert put() == 0 and put() == 1
    assert "net exists: add --overwrite" in capsys.readouterr().err
    before = files_of(tmp_path / "net")
    (tmp_path / "net" / "config.yaml").write_text("changed")
    assert put("--overwrite") == 0 and files_of(tmp_path / "net") == before
    (tmp_path / "net" / "notes.txt").write_text("mine")
    assert put("--overwrite") == 1
    assert "holds what this command did not write, such as notes.txt" in capsys.readouterr().err
    (tmp_path / "file").write_text("mine")
    assert put("--overwrite", to="file") == 1
    for content in ("", "[]", '{"notes.txt": "mine"}', '{"notes.txt": 3}'):
        (tmp_path / "app").mkdir(exist_ok=True)
        (tmp_path / "app" / "manifest.json").write_text(content)
        assert put("--overwrite", to="app") == 1
    (tmp_path / "empty").mkdir()
    assert put(to="empty") == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["app", "empty", "file", "net"]


def test_failure_leaves_the_earlier_folder(put, tmp_path, monkeypatch, capsys):
    assert put() == 0
    before = files_of(tmp_path / "net")

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr("sr_lightning.share.destination.shutil.copyfile", full)
        assert put("--overwrite") == 1 and put(to="other") == 1
    assert "No space left on device" in capsys.readouterr().err
    assert files_of(tmp_path / "net") == before and [path.name for path in tmp_path.iterdir()] == ["net"]


def test_folder_that_cannot_be_replaced_is_put_back(put, tmp_path, monkeypatch, capsys):
    assert put() == 0
    before, replace = files_of(tmp_path / "net"), Path.replace

    def refuse(path, target):
        if path.name == "new":
            raise OSError(13, "Permission denied")
        return replace(path, target)

    with monkeypatch.context() as broken:
        broken.setattr(Path, "replace", refuse)
        assert put("--overwrite") == 1
    assert "net cannot be written: Permission denied" in capsys.readouterr().err
    assert files_of(tmp_path / "net") == before and [path.name for path in tmp_path.iterdir()] == ["net"]


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda folder: (folder / "config.yaml").unlink(), "is not the directory of a run: it has no config.yaml"),
        (lambda folder: (folder / "result.json").unlink(), "has not finished: python train.py resume="),
        (lambda folder: (folder / "results.csv").unlink(), "the run has not been scored"),
        (lambda folder: (folder / "checkpoints" / "best.ckpt").write_bytes(b"x"), "best.ckpt"),
        (lambda folder: shutil.rmtree(folder), "is not the directory of a run"),
    ],
)
def test_run_that_is_not_whole_is_one_sentence(put, shared_run, tmp_path, capsys, break_it, message):
    copy = tmp_path / "copy"
    shutil.copytree(shared_run, copy)
    break_it(copy)
    assert put(source=copy) == 1
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1 and not (tmp_path / "net").exists()


def test_what_is_no_run_is_named_before_torch_is_imported(tmp_path):
    code = f"""
import sys
from sr_lightning.share.__main__ import main
assert main([{str(tmp_path)!r}, "--to", "net", "--licence", "MIT"]) == 1
assert "torch" not in sys.modules
"""
    assert "it has no config.yaml" in run_in_new_interpreter("-c", code).stderr


def test_licence_has_a_name_and_the_place_a_folder(put):
    with pytest.raises(InputError, match="give the name of a licence"):
        share("run", "net", " ")
    with pytest.raises(InputError, match=f"--to {__file__}/net: {__file__} is a file; give a folder"):
        share("run", f"{__file__}/net", "mit")
    with pytest.raises(SystemExit):
        main(["run", "--to", "net"])


def test_run_of_an_earlier_version_is_shared(put, tmp_path, capsys):
    assert put(source=EARLIER) == 0
    assert load(tmp_path / "net").scale == 2
    assert "has no pictures" in capsys.readouterr().out


def test_upload_without_the_package_names_the_extra(put, shared_run, monkeypatch):
    monkeypatch.setattr("sr_lightning.share.destination.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs huggingface_hub: pip install 'sr_lightning\[hub\]'"):
        share(shared_run, "hf:me/net", "mit")
    for reference in ("hf:me", "hf:me/net@v2"):
        with pytest.raises(InputError, match=r"hf:USER/NAME|leave @v2 out"):
            share(shared_run, reference, "mit")


@pytest.fixture
def uploads(hub, monkeypatch):
    """The stand-in of a hub, used by the package huggingface_hub."""
    constants = pytest.importorskip("huggingface_hub.constants", reason="not installed: huggingface_hub")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # the stand-in has the protocol before it
    monkeypatch.setenv("HF_TOKEN", hub.token)
    return hub


def test_upload_is_one_commit_that_is_read_back(uploads, shared_run, tmp_path, caplog, capsys):
    caplog.set_level(logging.DEBUG)
    assert main([str(shared_run), "--to", "hf:me/net", "--licence", "MIT"]) == 0
    commit = uploads.repositories["me/net"]["main"]
    shown = capsys.readouterr()
    assert f"hf:me/net, commit {commit} (sr-upscale photo.jpg -c hf:me/net)" in shown.out
    assert uploads.messages == ["Share with sr_lightning"]
    share(shared_run, str(tmp_path / "net"), "mit")
    assert uploads.commits[commit].keys() == files_of(tmp_path / "net").keys()
    assert b'load("hf:me/net")' in uploads.commits[commit]["README.md"]
    assert load("hf:me/net").name == "small_net"
    assert find_checkpoint("hf:me/net").read_bytes() == files_of(tmp_path / "net")["small_net.safetensors"]
    assert uploads.token not in caplog.text + shown.out + shown.err
    assert not [where for _, where, token in uploads.asked if where.startswith(uploads.store_url) and token]


def test_repository_with_files_is_replaced_only_on_request(uploads, shared_run):
    uploads.add("me/net", {"old.safetensors": b"x", "notes.txt": b"mine"})
    with pytest.raises(InputError, match="hf:me/net has files: add --overwrite"):
        share(shared_run, "hf:me/net", "mit")
    share(shared_run, "hf:me/net", "mit", overwrite=True)
    files = uploads.commits[uploads.repositories["me/net"]["main"]]
    assert "notes.txt" in files and "old.safetensors" not in files
    assert load("hf:me/net").name == "small_net"


def test_refused_upload_is_one_sentence_without_the_token(uploads, shared_run, monkeypatch, caplog, capsys):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert main([str(shared_run), "--to", "hf:me/net", "--licence", "MIT"]) == 1
    error = capsys.readouterr().err
    assert f"hf:me/net: nothing was written to the hub at {uploads.url}: " in error and len(error.splitlines()) == 1
    assert "hf_wrong" not in error + caplog.text and uploads.messages == []


def test_token_in_an_error_of_the_package_is_not_shown(uploads, shared_run, monkeypatch):
    import huggingface_hub

    def fail(api, *_, **__):
        raise ValueError(f"bad header {api.token}")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", fail)
    with pytest.raises(InputError, match=r"bad header HF_TOKEN$"):
        share(shared_run, "hf:me/net", "mit")


def test_metadata_is_what_the_hub_reads(shared_run):
    package = pytest.importorskip("huggingface_hub", reason="not installed: huggingface_hub")
    text = card(facts_of(RunFolder(shared_run), "mit", "hf:me/net"))
    read = package.ModelCard(text).data
    assert read.license == "mit" and read.pipeline_tag == "image-to-image" and read.model_name == "small_net"
    results = {(result.dataset_name, result.metric_type): result.metric_value for result in read.eval_results}
    assert results.keys() == {("Tiny", "psnr"), ("Tiny", "ssim"), ("held-out", "psnr"), ("held-out", "ssim")}
