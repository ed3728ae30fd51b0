"""The command evaluate.py: its output, files and errors."""

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers import rows_of, run, slow_except


@pytest.fixture(scope="module")
def checkpoint(command, tmp_path_factory):
    """A x2 checkpoint."""
    run_dir = tmp_path_factory.mktemp("trained") / "a"
    run(*command, "max_steps=10", "num_comparisons=0", f"hydra.run.dir={run_dir}")
    return run_dir / "checkpoints" / "best.ckpt"


@pytest.fixture(scope="module")
def benchmarks(tmp_path_factory):
    """A data root with one benchmark: a gray and a colour image with odd sizes, no LR files."""
    folder = tmp_path_factory.mktemp("root") / "benchmark" / "Mine" / "HR"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(1)
    for name, shape in {"colour": (61, 47, 3), "gray": (50, 53)}.items():
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).resize((shape[1], shape[0])).save(
            folder / f"{name}.png"
        )
    return folder.parents[2]


def evaluate(*words, check=True):
    return run("evaluate.py", *words, check=check)


def test_checkpoint_alone_is_enough(checkpoint, benchmarks, tmp_path):
    done = evaluate(f"ckpt={checkpoint}", "benchmarks=[Mine]", f"data_root={benchmarks}", f"hydra.run.dir={tmp_path}")
    rows = rows_of(tmp_path / "results.csv")
    assert [(row["model"], row["image"]) for row in rows] == [
        (model, image) for model in ("bicubic", "espcn") for image in ("colour", "gray", "mean")
    ]
    assert {row["scale"] for row in rows} == {"2"}
    assert {row["protocol"] for row in rows} == {"y_shave-scale_8bit_ssim-wang_lr-made"}
    assert f"{float(rows[-1]['psnr_y']):.2f}" in done.stdout
    assert {path.name for path in (tmp_path / "pictures").iterdir()} == {"Mine_x2_colour.png", "Mine_x2_gray.png"}


@pytest.mark.slow
def test_images_of_any_name_have_rows_and_pictures_of_their_own(tmp_path):
    folder = tmp_path / "benchmark" / "Odd" / "HR"
    folder.mkdir(parents=True)
    long = "n" * 251
    rng = np.random.default_rng(2)
    for name in ("a.png", "a.bmp", "mean.png", f"{long}.png", "\udcff.png"):
        content = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (20, 20), dtype=np.uint8)).save(content, Path(name).suffix[1:])
        (folder / name).write_bytes(content.getvalue())
    evaluate(
        *("model=bicubic", "scale=x2", "benchmarks=[Odd]", f"data_root={tmp_path}", f"hydra.run.dir={tmp_path / 'out'}")
    )
    names = [row["image"] for row in rows_of(tmp_path / "out" / "results.csv")]
    assert names == ["a.bmp", "a.png", "mean.png", long, r"\udcff", "mean"]
    pictures = {path.name for path in (tmp_path / "out" / "pictures").iterdir()}
    assert len(pictures) == 5
    assert {"Odd_x2_a.bmp.png", "Odd_x2_a.png.png", "Odd_x2_\udcff.png"} < pictures


@pytest.mark.slow
def test_several_checkpoints_share_a_table_under_their_own_names(checkpoint, benchmarks, tmp_path):
    other = tmp_path / "b" / "checkpoints" / "best.ckpt"
    other.parent.mkdir(parents=True)
    shutil.copy(checkpoint, other)
    words = ("benchmarks=[Mine]", f"data_root={benchmarks}", f"hydra.run.dir={tmp_path / 'out'}")
    evaluate(f"ckpt=[{checkpoint},{other}]", *words)
    means = [row for row in rows_of(tmp_path / "out" / "results.csv") if row["image"] == "mean"]
    assert [row["model"] for row in means] == ["bicubic", "espcn a", "espcn b"]
    assert means[1]["psnr_y"] == means[2]["psnr_y"]


@pytest.mark.slow
def test_checkpoints_of_one_run_have_different_names(checkpoint, benchmarks, tmp_path):
    last = checkpoint.with_name("last.ckpt")
    words = ("benchmarks=[Mine]", f"data_root={benchmarks}", f"hydra.run.dir={tmp_path}")
    evaluate(f"ckpt=[{checkpoint},{last}]", *words)
    means = [row for row in rows_of(tmp_path / "results.csv") if row["image"] == "mean"]
    assert [row["model"] for row in means] == ["bicubic", "espcn best", "espcn last"]


def test_rgb_protocol_scores_a_luma_network_with_bicubic_chroma(checkpoint, benchmarks, tmp_path):
    words = ("benchmarks=[Mine]", f"data_root={benchmarks}", "protocol=rgb", f"hydra.run.dir={tmp_path}")
    evaluate(f"ckpt={checkpoint}", *words)
    rows = rows_of(tmp_path / "results.csv")
    assert "psnr_rgb" in rows[0]
    assert rows[0]["protocol"].startswith("rgb_")


def test_bicubic_is_scored_without_a_checkpoint(benchmarks, tmp_path):
    words = ("benchmarks=[Mine]", f"data_root={benchmarks}", f"hydra.run.dir={tmp_path}")
    evaluate("model=bicubic", "scale=x3", *words)
    assert [row["image"] for row in rows_of(tmp_path / "results.csv")] == ["colour", "gray", "mean"]


WRONG_INPUT = [
    (["ckpt=nowhere.ckpt"], "there is no file or folder nowhere.ckpt"),
    (["ckpt={checkpoint}", "scale=x3"], "{checkpoint} holds ESPCN with scale=2, not 3: leave it out"),
    (
        ["ckpt={checkpoint}", "model=bicubic"],
        "leave model=bicubic out: a checkpoint of this project describes its network: {checkpoint}",
    ),
    (["ckpt={checkpoint}", "benchmarks=[Yours]"], "no test set Yours (available: Mine)"),
    (["model=espcn", "scale=x2"], "give its checkpoint"),
    (["model=bicubic"], "nothing to score: give ckpt=FILE (or a list), or model=bicubic scale=x3"),
    (["ckpt={text}"], "text.ckpt is no file of weights: it begins with b'not a checkpoint'"),
    (["ckpt=5"], "there is no file or folder 5"),
    (["ckpt={checkpoint}", "benchmarks=Mine"], "benchmarks=Mine: give a list, such as benchmarks=[Set5]"),
    (["ckpt={checkpoint}", "benchmarks=[]"], "benchmarks=[]: name at least one"),
    (["ckpt={checkpoint}", "num_comparisons=abc", "self_ensemble=maybe"], "self_ensemble=maybe: choose true or false"),
    (["runs=nowhere"], "runs: there is no folder nowhere"),
    (["ckpt={folder}"], "is a folder without a checkpoint"),
    (["ckpt={checkpoints}"], "is a folder; name the file: {checkpoint}"),
    (["model=bicubic", "scale=x5"], "Could not find 'scale/x5'"),
    (["model=bicubic", "scale=x2", "protocol.border=wide"], "choose from scale"),
    (["benchmark=[Mine]"], "there is no setting benchmark; did you mean benchmarks?"),
]


@pytest.mark.parametrize(("words", "message"), slow_except(WRONG_INPUT, WRONG_INPUT[0], WRONG_INPUT[-1]))
def test_wrong_input_is_one_clear_error(words, message, checkpoint, benchmarks, tmp_path):
    text = tmp_path / "text.ckpt"
    text.write_text("not a checkpoint")
    names = {"checkpoint": checkpoint, "text": text, "folder": tmp_path, "checkpoints": checkpoint.parent}
    words = [word.format(**names) for word in words]
    if not any(word.startswith("benchmark") for word in words):
        words.append("benchmarks=[Mine]")
    done = evaluate(*words, f"data_root={benchmarks}", f"hydra.run.dir={tmp_path / 'out'}", check=False)
    assert done.returncode == 1
    assert message.format(**names) in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_bicubic_of_set5_matches_the_published_score(data_root, tmp_path):
    words = ("benchmarks=[Set5]", "num_comparisons=0", f"data_root={data_root}", f"hydra.run.dir={tmp_path}")
    evaluate("model=bicubic", "scale=x3", "protocol=srcnn_paper", *words)
    mean = rows_of(tmp_path / "results.csv")[-1]
    assert float(mean["psnr_y"]) == pytest.approx(30.392, abs=0.005)
    assert float(mean["ssim_y"]) == pytest.approx(0.8682, abs=1e-4)
