"""Checkpoints as artifacts of Weights & Biases: uploaded by runs, and used as `wandb:ENTITY/PROJECT/NAME:ALIAS`."""

import json
import shutil
import subprocess

import pytest
import torch

from sr_lightning import load
from sr_lightning.errors import InputError
from sr_lightning.loggers.wandb import WandbRun
from sr_lightning.runs import wandb_artifact
from sr_lightning.runs.folder import find_checkpoint
from tests.loggers.wandb_server import KEY, WANDB


@pytest.fixture
def run_dir(trained, tmp_path):
    """The directory of a run of 30 steps, with its checkpoints."""
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    for name in ("best", "last"):
        shutil.copy(trained, folder / f"{name}.ckpt")
    (folder.parent / "metrics.csv").write_text("step,val/psnr\n20,30.5\n30,31.25\n")
    return folder.parent


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of downloaded checkpoints."""
    monkeypatch.setenv("SR_CACHE_DIR", str(tmp_path / "cache"))
    wandb_artifact.artifact_checkpoint.cache_clear()
    yield tmp_path / "cache"
    wandb_artifact.artifact_checkpoint.cache_clear()


def train_part(run_dir, **settings):
    """Record one part of a run."""
    part = WandbRun(run_dir, project="sr_lightning", **settings)
    part.log_metrics({"val/psnr": 31.25}, 30)
    part.close()
    return part.version


def train_on(path, steps):
    """Replace a checkpoint by one of later weights, as a run does."""
    checkpoint = torch.load(path)
    checkpoint["state_dict"] = {key: value + 1 for key, value in checkpoint["state_dict"].items()}
    checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["processed"] = steps
    torch.save(checkpoint, path.with_name("new"))
    path.with_name("new").replace(path)


def uploads(server):
    return [path.rpartition("/")[2] for path in server.received if path.endswith(".ckpt")]


def test_offline_run_keeps_the_content_of_its_checkpoint(private_wandb, run_dir, trained):
    run_id = train_part(run_dir, checkpoints=["best"])
    train_on(run_dir / "checkpoints" / "best.ckpt", 40)
    (file,) = run_dir.glob("wandb/offline-run-*/run-*.wandb")
    done = subprocess.run([WANDB, "leet", "inspect", "--json", file], capture_output=True, check=True)
    (artifact,) = [r["artifact"] for r in map(json.loads, done.stdout.splitlines()) if "artifact" in r]
    assert (artifact["name"], artifact["type"]) == (f"model-{run_id}", "model")
    assert {"best", "step_30"} <= set(artifact["aliases"])
    (content,) = artifact["manifest"]["contents"]
    with open(content["local_path"], "rb") as kept:
        assert kept.read() == trained.read_bytes()
    facts = json.loads(artifact["metadata"])
    assert (facts["name"], facts["scale"], facts["step"], facts["psnr"], facts["run"]) == ("tiny", 2, 30, 31.25, run_id)
    assert facts["network"]["num_features"] == [4]


def test_resumed_run_uploads_a_checkpoint_only_if_it_has_changed(wandb_server, run_dir):
    for _ in range(2):
        run_id = train_part(run_dir, offline=False, checkpoints=["best", "last"])
        assert uploads(wandb_server) == ["last.ckpt", "best.ckpt"]
    train_on(run_dir / "checkpoints" / "best.ckpt", 40)
    train_part(run_dir, offline=False, checkpoints=["best", "last"])
    assert uploads(wandb_server) == ["last.ckpt", "best.ckpt", "best.ckpt"]
    assert {f"{a.name}:v{a.version}": a.aliases for a in wandb_server.artifacts} == {
        f"model-{run_id}:v0": {"last", "step_30"},
        f"model-{run_id}:v1": set(),
        f"model-{run_id}:v2": {"best", "step_40", "latest"},
    }


def test_a_checkpoint_that_cannot_be_uploaded_does_not_lose_the_run(private_wandb, run_dir, caplog):
    (run_dir / "checkpoints" / "best.ckpt").write_bytes(b"damaged")
    train_part(run_dir)
    (warning,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert "best.ckpt" in warning and "To upload the rest later" in warning
    (file,) = run_dir.glob("wandb/offline-run-*/run-*.wandb")
    done = subprocess.run([WANDB, "leet", "inspect", "--json", file], capture_output=True, check=True)
    assert any("exit" in record for record in map(json.loads, done.stdout.splitlines()))


@pytest.mark.parametrize("checkpoints", ["best", ["best", "lst"]])
def test_names_of_other_checkpoints_are_refused(private_wandb, tmp_path, checkpoints):
    with pytest.raises(InputError, match=r"logger\.checkpoints=.*\[best,last\]"):
        WandbRun(tmp_path, project="a", checkpoints=checkpoints)


def test_artifact_is_used_as_a_checkpoint_and_again_without_a_network(wandb_server, run_dir, cache, trained, caplog):
    reference = f"wandb:me/sr_lightning/model-{train_part(run_dir, offline=False)}"
    path = find_checkpoint(f"{reference}:best")
    assert path.read_bytes() == trained.read_bytes() and path.is_relative_to(cache)
    assert load(reference).name == "tiny"
    assert find_checkpoint(f"{reference}:v0") == path
    with pytest.raises(InputError, match=r":other cannot be read: .*not found in 'me/sr_lightning'"):
        find_checkpoint(f"{reference}:other")

    wandb_server.close()
    wandb_artifact.artifact_checkpoint.cache_clear()
    caplog.clear()
    assert find_checkpoint(f"{reference}:v0") == path and not caplog.records
    assert find_checkpoint(f"{reference}:best") == path
    assert "Using the version downloaded before" in caplog.text
    with pytest.raises(InputError, match=r":step_30 cannot be read: http://.*/graphql cannot be reached"):
        find_checkpoint(f"{reference}:step_30")
    assert KEY not in caplog.text


def test_artifact_that_was_changed_on_its_way_is_not_cached(wandb_server, run_dir, cache):
    reference = f"wandb:me/sr_lightning/model-{train_part(run_dir, offline=False)}"
    (path,) = [path for path in wandb_server.files if path.endswith("best.ckpt")]
    whole = wandb_server.files[path]
    wandb_server.files[path] = whole[:-100]
    with pytest.raises(InputError, match=rf"{len(whole) - 100} of {len(whole)} bytes arrived"):
        find_checkpoint(reference)
    wandb_server.files[path] = whole
    assert find_checkpoint(reference).read_bytes() == whole


@pytest.mark.parametrize(
    "reference", ["wandb:", "wandb:me/model", "wandb:me/p/n:a:b", "wandb:me/p/n/m", "wandb://p/n", "wandb:a/b/\udcff"]
)
def test_malformed_references_are_refused_at_once(reference):
    with pytest.raises(InputError, match="give wandb:ENTITY/PROJECT/NAME or wandb:ENTITY/PROJECT/NAME:ALIAS"):
        find_checkpoint(reference)


def test_without_a_key_the_message_says_how_to_get_one(wandb_server, cache, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY")
    with pytest.raises(InputError, match=r"wandb:me/p/n cannot be read: no key for .*`wandb login`"):
        find_checkpoint("wandb:me/p/n")
