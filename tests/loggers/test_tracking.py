"""A failed and resumed run in Weights & Biases, TensorBoard and metrics.csv, read by their own readers."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sr_lightning import networks
from sr_lightning.checkpoints.checkpoint import load_network
from sr_lightning.degradations import Bicubic
from sr_lightning.evaluation.comparison import to_pil
from sr_lightning.inference import super_resolve
from tests.helpers import rows_of, run
from tests.loggers.wandb_server import KEY, WandbServer

pytestmark = pytest.mark.slow
WANDB = Path(sys.executable).with_name("wandb")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Give Weights & Biases a key, folders of its own, and a server that does not exist."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("WANDB_MODE", "WANDB_DATA_DIR", "WANDB_PROJECT", "WANDB_ENTITY"):
            patch.delenv(name, raising=False)
        for name in ("TMPDIR", "XDG_DATA_HOME", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_ARTIFACT_DIR"):
            (home / name).mkdir()
            patch.setenv(name, str(home / name))
        patch.setenv("WANDB_BASE_URL", "http://127.0.0.1:1")
        patch.setenv("WANDB_API_KEY", KEY)
        yield home


@pytest.fixture(scope="module")
def resumed_run(command, home, tmp_path_factory):
    """A run's directory and the output of its two processes: one that failed at step 16, one that resumed it."""
    run_dir = tmp_path_factory.mktemp("runs") / "a"
    words = ["logger=both", "logger.wandb.offline=false", "logger.wandb.tags=[x]", "sweep=mine", "comparisons_every=10"]
    words += ["logger.wandb.notes=a first try", "logger.wandb.job_type=baseline"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SR_FAIL", "0:17")  # the first call is the preflight's
        words += ["model.loss._target_=tests.training.failing.FailingLoss", f"hydra.run.dir={run_dir}"]
        failed = run(*command, *words, check=False)
    resumed = run("train.py", f"resume={run_dir}", "allow=tests")
    return run_dir, failed, resumed


@pytest.fixture(scope="module")
def parts(resumed_run):
    """The records of each part of the run, read by W&B's own reader."""
    files = sorted(resumed_run[0].glob("wandb/offline-run-*/run-*.wandb"))
    words = [WANDB, "leet", "inspect", "--json"]
    lines = [subprocess.run([*words, file], capture_output=True, check=True).stdout.splitlines() for file in files]
    return [[json.loads(line) for line in part] for part in lines]


def curve(parts, key):
    """Steps and values in the order of logging."""
    rows = [record["history"]["item"] for part in parts for record in part if "history" in record]
    return [(row["step"], row[key]) for row in rows if key in row]


def summary(part):
    values = {}
    for record in part:
        values |= record.get("summary", {}).get("update", {})
    return values


def recorded(run_dir, key):
    return [(int(row["step"]), float(row[key])) for row in rows_of(run_dir / "metrics.csv") if row[key]]


def artifact(parts, name):
    """Path inside a table's artifact -> file that waits for its upload."""
    (found,) = [r["artifact"] for r in parts[-1] if "artifact" in r and r["artifact"]["name"].endswith(f"-{name}")]
    return {content["path"]: Path(content["local_path"]) for content in found["manifest"]["contents"]}


def test_offline_parts_are_written_with_one_line_each(resumed_run):
    run_dir, *processes = resumed_run
    assert [process.returncode for process in processes] == [1, 0]
    assert "made to fail" in processes[0].stdout + processes[0].stderr
    messages = [[line for line in p.stdout.splitlines() if "Weights & Biases: " in line] for p in processes]
    assert [len(lines) for lines in messages] == [1, 1]
    assert "http://127.0.0.1:1/graphql cannot be reached" in messages[0][0]
    assert "earlier parts of this run are not uploaded yet" in messages[1][0]
    assert all(line.endswith(f"wandb sync {run_dir}/wandb/offline-run-*") for (line,) in messages)


@pytest.mark.parametrize("key", ["train/loss", "train/learning_rate", "val/psnr", "val/ssim"])
def test_metrics_file_wandb_and_tensorboard_agree(resumed_run, parts, key):
    record = recorded(resumed_run[0], key)
    assert [step for step, _ in record] == list(range(5, 31, 5) if key.startswith("train") else range(10, 31, 10))

    pairs = curve(parts, key)
    again = 15 if key.startswith("train") else None  # logged, lost by the failure and logged again with the same bits
    assert [step for step, _ in pairs] == sorted([step for step, _ in record] + [again] * (again is not None))
    assert dict(pairs) == {step: pytest.approx(value, rel=1e-8) for step, value in record}

    events = EventAccumulator(str(resumed_run[0] / "tensorboard")).Reload()
    shown = [(event.step, event.value) for event in events.Scalars(key)]
    assert shown == [(step, pytest.approx(value, rel=1e-6)) for step, value in record]


def test_resumed_run_is_one_run_with_sweep_settings_and_exit_code(resumed_run, parts):
    run_dir = resumed_run[0]
    runs = [next(record["run"] for record in part if "run" in record) for part in parts]
    assert {r["run_id"] for r in runs} == {(run_dir / "wandb_id").read_text().strip()}
    assert {(r["run_group"], r["project"], tuple(r["tags"])) for r in runs} == {("mine", "sr_lightning", ("x",))}
    assert {(r["notes"], r["job_type"]) for r in runs} == {("a first try", "baseline")}
    assert len({r["display_name"] for r in runs}) == 1 and runs[0]["display_name"].startswith("espcn_folder_x2_seed0_")
    assert [next(r["exit"].get("exit_code", 0) for r in part if "exit" in r) for part in parts] == [1, 0]

    done = subprocess.run(
        [WANDB, "leet", "inspect", "--json", "--summary", next(run_dir.glob("wandb/offline-run-*/*.wandb"))],
        capture_output=True,
        check=True,
    )
    config = json.loads(done.stdout)["config"]
    assert config["model"]["network"]["num_features"] == [64, 64, 32]
    assert (config["seed"], config["max_steps"], config["choices"]["model"]) == (0, 30, "espcn")


def test_summary_equals_the_result(resumed_run, parts):
    values, result = summary(parts[-1]), json.loads((resumed_run[0] / "result.json").read_text())
    for key in ("status", "psnr", "best_step", "steps", "seconds", "protocol"):
        assert values[key] == result[key]
    mean = next(r for r in rows_of(resumed_run[0] / "results.csv") if (r["model"], r["image"]) == ("espcn", "mean"))
    assert values["test/held-out/psnr_y"] == pytest.approx(float(mean["psnr_y"]))
    assert values["test/held-out/ssim_y"] == pytest.approx(float(mean["ssim_y"]))
    assert values["gain"] == pytest.approx(float(mean["psnr_y"]) - result["bicubic"])
    assert (values["parameters"], values["multiply_adds"]) == (
        58_212,
        (58_048 + 100) * 640 * 360,
    )  # weights, bicubic skip


def test_the_best_scores_are_in_the_summary(resumed_run, parts):
    metrics = [
        next((record["metric"] for record in part if record.get("metric", {}).get("name") == "val/psnr"), None)
        for part in parts
    ]
    assert all(metric["summary"]["max"] for metric in metrics)


def test_speed_and_memory_are_curves_of_wandb_and_no_columns_of_the_metrics_file(resumed_run, parts):
    columns = rows_of(resumed_run[0] / "metrics.csv")[0].keys()
    for key in ("time/patches_per_second", "memory/host"):
        values = curve(parts, key)
        assert sorted({step for step, _ in values}) == list(range(5, 31, 5))
        assert all(value > 0 for _, value in values) and key not in columns


def test_sr_is_shown_alone_beside_the_strips_over_the_steps(resumed_run, parts):
    (folder,) = (resumed_run[0] / "pictures" / "validation").iterdir()
    shown = dict(curve(parts, f"sr/{folder.name}.filenames"))
    assert shown.keys() == {10, 20, 30}
    for step, (file,) in shown.items():
        digest = hashlib.sha256((folder / f"sr_00000{step}.png").read_bytes()).hexdigest()
        assert file.endswith(f"_{digest[:20]}.png")
    size = Image.open(folder / "sr_0000030.png").size
    assert size == (80, 80) and Image.open(folder / "step_0000030.png").width > 4 * size[0]


def test_shares_of_the_time_are_in_the_summary_and_in_tensorboard(resumed_run, parts):
    values = {key: value for key, value in summary(parts[-1]).items() if key.startswith("time/")}
    assert values.pop("time/patches_per_second") > 0
    assert sum(values.values()) == pytest.approx(1) and all(share > 0 for share in values.values())
    assert values.keys() == {f"time/{p}" for p in ("data", "forward_and_backward", "optimizer", "validation", "other")}
    events = EventAccumulator(str(resumed_run[0] / "tensorboard")).Reload()
    assert {key: events.Scalars(key)[-1].value for key in values} == pytest.approx(values)


def test_results_and_comparisons_are_uploaded(resumed_run, parts):
    table = json.loads(artifact(parts, "results")["results.table.json"].read_text())
    rows = rows_of(resumed_run[0] / "results.csv")
    assert table["columns"] == list(rows[0])
    assert [[str(value) for value in row] for row in table["data"]] == [list(row.values()) for row in rows]
    assert summary(parts[-1])["pictures.count"] == len(list((resumed_run[0] / "pictures").glob("*.png"))) == 1


def test_crops_show_the_largest_error_of_bicubic(resumed_run, parts, pictures):
    files = artifact(parts, "crops")
    table = json.loads(files["crops.table.json"].read_text())
    (row,) = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    results = {(r["image"], r["model"]): r for r in rows_of(resumed_run[0] / "results.csv")}
    name = row["image"].split()[1]
    assert (row["image"], row["model"]) == (f"held-out {name} x2", "espcn")
    for key in ("psnr_y", "ssim_y"):
        assert row[key] == pytest.approx(float(results[name, "espcn"][key]))
        assert row[f"bicubic {key}"] == pytest.approx(float(results[name, "bicubic"][key]))

    hr = torch.from_numpy(np.asarray(Image.open(pictures / f"{name}.png")).transpose(2, 0, 1).copy())
    lr = Bicubic()(hr, 2)[None] / 255
    trained = load_network(resumed_run[0] / "checkpoints" / "best.ckpt").network
    whole = {"lr": lr.repeat_interleave(2, 2).repeat_interleave(2, 3), "hr": hr[None] / 255}
    with torch.inference_mode():
        whole |= {"bicubic": networks.Bicubic(scale=2)(lr), "sr": super_resolve(trained, lr)}
    crops = {key: np.asarray(Image.open(files[row[key]["path"]])) for key in whole}
    whole = {key: np.asarray(to_pil(image[0])) for key, image in whole.items()}

    size = 80  # of 96 x 80 pixels
    (top,) = [y for y in range(17) if (whole["hr"][y : y + size] == crops["hr"]).all()]
    for key, crop in crops.items():
        np.testing.assert_array_equal(crop, whole[key][top : top + size], err_msg=key)
    error = (whole["bicubic"].astype(int) - whole["hr"]) ** 2
    errors = [error[y : y + size].sum() for y in range(17)]
    assert errors[top] == max(errors[::10])  # places are tried an eighth of their size apart


def test_uploads_are_inside_the_run_directory(resumed_run, parts, home):
    for name in ("results", "crops"):
        assert all(file.is_relative_to(resumed_run[0]) for file in artifact(parts, name).values())
    assert not [path for path in home.rglob("*") if path.is_file() and path.suffix != ".log"]


def test_wandb_sync_merges_both_parts(resumed_run, home):
    run_dir, server = resumed_run[0], WandbServer()
    try:
        folders = sorted(run_dir.glob("wandb/offline-run-*"))
        words = {"cwd": home, "env": os.environ | {"WANDB_BASE_URL": server.url}, "timeout": 120}
        done = subprocess.run([WANDB, "sync", *folders], capture_output=True, text=True, **words)
        assert done.returncode == 0, done.stdout + done.stderr
    finally:
        server.close()
    ((run_id, uploaded),) = server.runs.items()
    assert {a.name for a in server.artifacts} == {f"run-{run_id}-results", f"run-{run_id}-crops", f"model-{run_id}"}
    assert uploaded.exit_code == 0 and uploaded.group == "mine"
    assert uploaded.config["max_steps"]["value"] == 30
    rows = [row for _, row in sorted(uploaded.history.items())]
    for key in ("train/loss", "val/psnr"):
        pairs = {row["step"]: row[key] for row in rows if key in row}
        assert pairs == {step: pytest.approx(value, rel=1e-8) for step, value in recorded(run_dir, key)}
    assert json.loads(uploaded.summary)["steps"] == 30
