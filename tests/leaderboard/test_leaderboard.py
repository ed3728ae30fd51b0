"""evaluate.py runs=…: the leaderboard's rows, and the scores it stores."""

import csv
import itertools
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from matplotlib.figure import Figure
from matplotlib.text import Text
from omegaconf import OmegaConf
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio

from sr_lightning.cli import leaderboard_dir
from sr_lightning.degradations import Bicubic as Degradation
from sr_lightning.errors import InputError
from sr_lightning.evaluation.checks import check_request
from sr_lightning.images.files import read_image
from sr_lightning.leaderboard import evaluate, plots
from sr_lightning.leaderboard.published import FOLDER, published_score
from sr_lightning.leaderboard.runs import mean_and_deviation
from sr_lightning.leaderboard.table import markdown
from sr_lightning.network_costs import count
from sr_lightning.networks import SRCNN
from tests.helpers import compose, rows_of, run

SMALL = {"_target_": "sr_lightning.networks.SRCNN", "scale": 2, "num_features": [3, 2], "kernel_sizes": [3, 1, 3]}
SMALL |= {"global_skip": True}
PAPER = SMALL | {"num_features": [64, 32], "kernel_sizes": [9, 1, 5], "global_skip": False}
STANDARD = "y_shave-scale_8bit_ssim-wang_lr-files"


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """One thread; plots and cost measurements only in the test of the command."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr("sr_lightning.leaderboard.costs.measure", lambda *_, **__: None)
    monkeypatch.setattr("sr_lightning.leaderboard.ranking.plot", lambda *_: None)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A data root with the benchmarks Set5 and Mine, of two and one small images without LR files."""
    folder = tmp_path_factory.mktemp("root")
    # With this seed no output of make_run's networks is so near to the middle of two grey levels (4e-4) that a
    # processor's order of summation decides.
    rng = np.random.default_rng(69)
    for path in ("Set5/HR/a", "Set5/HR/b", "Mine/HR/c"):
        file = folder / "benchmark" / f"{path}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (7, 6, 3), dtype=np.uint8))
        coarse.resize((36, 42), Image.Resampling.BICUBIC).save(file)
    return folder


def make_run(directory, seed=0, network=SMALL, name="srcnn", status="finished", **settings):
    """Write a run's directory in the format of train.py, its network untrained."""
    torch.manual_seed(seed)
    built = instantiate(network)
    for parameter in built.parameters():
        torch.nn.init.normal_(parameter, std=0.03)
    config = {
        "name": name,
        "seed": seed,
        "scale": network["scale"],
        "max_steps": 10,
        "data_root": "data",
        "choices": {"model": "srcnn", "data": "t91", "experiment": None},
        "model": {"_target_": "sr_lightning.modules.SRModule", "network": network, "optimizer": {"lr": 1e-3}},
        "data": {"seed": seed},
    }
    config = OmegaConf.to_container(OmegaConf.merge(config, settings))
    checkpoint = {
        "hyper_parameters": config,
        "state_dict": {f"network.{key}": value for key, value in built.state_dict().items()},
        "loops": {"fit_loop": {"epoch_loop.batch_progress": {"total": {"processed": 10}}}},
    }
    (directory / "checkpoints").mkdir(parents=True)
    torch.save(checkpoint, directory / "checkpoints" / "best.ckpt")
    OmegaConf.save(config, directory / "config.yaml")
    (directory / "metrics.csv").write_text(f"step,train/loss,val/psnr\n5,0.1,\n10,0.1,{20 + seed}\n")
    if status is not None:
        result = {"status": status, "seconds": 60.0 + 60 * seed} | ({"error": "boom"} if status == "failed" else {})
        (directory / "result.json").write_text(json.dumps(result))
    return directory


def config(root, out, runs, *words):
    return compose("name=x", f"data_root={root}", f"run_dir={out}", f"runs={runs}", *words, config="evaluate")


def board_of(root, out, runs, *words):
    """The rows of leaderboard.csv."""
    evaluate(config(root, out, runs, *words))
    return rows_of(out / "leaderboard.csv")


def spoil(directory):
    """Make a checkpoint unreadable without changing its size and time."""
    path = directory / "checkpoints" / "best.ckpt"
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    path.write_bytes(b"x" * path.stat().st_size)
    os.utime(path, ns=times)


def luma(image):
    """BT.601 of (3, H, W) in 0..255."""
    return 16 + np.tensordot([65.481, 128.553, 24.966], image / 255, axes=1)


def independent_psnr(directory, root):
    """Mean over Set5 of scikit-image's PSNR of 8-bit luma, two pixels shaved."""
    weights = torch.load(directory / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    network = SRCNN(**{key: value for key, value in SMALL.items() if key != "_target_"}).eval()
    network.load_state_dict({key.removeprefix("network."): value for key, value in weights.items()})
    psnrs = []
    for file in sorted((root / "benchmark" / "Set5" / "HR").iterdir()):
        hr = torch.from_numpy(read_image(file))
        lr = torch.from_numpy(luma(Degradation()(hr, 2).numpy()) / 255)[None, None].float()
        with torch.inference_mode():
            sr = network(lr)[0, 0].double().clamp(0, 1).mul(255).round().numpy()
        inside = np.s_[2:-2, 2:-2]
        psnrs.append(peak_signal_noise_ratio(luma(hr.numpy())[inside], sr[inside], data_range=255))
    return np.mean(psnrs)


def test_seeds_share_a_row_with_mean_and_deviation(root, tmp_path):
    folders = [make_run(tmp_path / "runs" / "deep" / str(seed), seed) for seed in (0, 1, 2)]
    make_run(tmp_path / "runs" / "other", seed=5, name="other")
    expected = [independent_psnr(folder, root) for folder in folders]
    rows = {row["model"]: row for row in board_of(root, tmp_path / "out", tmp_path / "runs")}
    assert set(rows) == {"srcnn", "other", "bicubic"}
    assert float(rows["srcnn"]["psnr_y"]) == pytest.approx(np.mean(expected), abs=1e-4)
    assert float(rows["srcnn"]["psnr_y_deviation"]) == pytest.approx(np.std(expected, ddof=1), abs=1e-4)
    gain = float(rows["srcnn"]["psnr_y"]) - float(rows["bicubic"]["psnr_y"])
    assert float(rows["srcnn"]["gain"]) == pytest.approx(gain)
    assert (rows["srcnn"]["seeds"], rows["srcnn"]["seconds"], rows["srcnn"]["data"]) == ("3", "120.0", "t91")
    assert (rows["other"]["seeds"], rows["other"]["psnr_y_deviation"]) == ("1", "")
    assert (rows["bicubic"]["seeds"], rows["bicubic"]["parameters"]) == ("", "0")
    text = (tmp_path / "out" / "leaderboard.md").read_text()
    assert f"{np.mean(expected):.2f} ± {np.std(expected, ddof=1):.2f}" in text
    assert STANDARD.replace("files", "made") in text
    means = [r for r in rows_of(tmp_path / "out" / "results.csv") if r["image"] == "mean" and "seed" in r["model"]]
    assert [float(row["psnr_y"]) for row in means] == pytest.approx(expected, abs=1e-4)


def test_rows_are_sorted_by_benchmark_scale_and_psnr(root, tmp_path):
    for seed, scale in itertools.product((0, 1), (3, 2)):
        make_run(tmp_path / "runs" / f"{seed}{scale}", seed, SMALL | {"scale": scale}, name=f"net{seed}")
    rows = board_of(root, tmp_path / "out", tmp_path / "runs", "benchmarks=[Set5,Mine]")
    places = [(row["benchmark"], row["scale"]) for row in rows]
    assert list(dict.fromkeys(places)) == [("Set5", "2"), ("Set5", "3"), ("Mine", "2"), ("Mine", "3")]
    for _, group in itertools.groupby(rows, key=lambda row: (row["benchmark"], row["scale"])):
        psnrs = [float(row["psnr_y"]) for row in group]
        assert len(psnrs) == 3
        assert psnrs == sorted(psnrs, reverse=True)
    content = json.loads((tmp_path / "out" / "leaderboard.json").read_text())
    assert [row["psnr_y"] for row in content["rows"]] == [float(row["psnr_y"]) for row in rows]
    only = board_of(root, tmp_path / "only", tmp_path / "runs", "scale=x3")
    assert {row["scale"] for row in only} == {"3"}


def test_costs_are_those_of_the_network(root, tmp_path):
    make_run(tmp_path / "runs" / "a", network=PAPER)
    row = next(row for row in board_of(root, tmp_path / "out", tmp_path / "runs") if row["model"] == "srcnn")
    assert int(row["parameters"]) == 8129  # the paper's 8,032 weights and 97 biases
    assert int(row["multiply_adds"]) == pytest.approx(8032 * 1280 * 720, rel=0.004)  # and the bicubic enlargement


def test_stored_scores_are_not_recomputed(root, tmp_path, monkeypatch):
    folders = [make_run(tmp_path / "runs" / str(seed), seed) for seed in (0, 1)]
    first = board_of(root, tmp_path / "out", tmp_path / "runs")
    for folder in folders:
        spoil(folder)

    def only_bicubic(description, *size):
        assert description["_target_"] == "sr_lightning.networks.Bicubic"
        return count(description, *size)

    monkeypatch.setattr("sr_lightning.leaderboard.costs.count", only_bicubic)
    assert board_of(root, tmp_path / "again", tmp_path / "runs") == first


@pytest.mark.slow
def test_other_settings_add_to_stored_scores(root, tmp_path):
    folder = make_run(tmp_path / "runs" / "a")
    board_of(root, tmp_path / "out", tmp_path / "runs")
    kept = json.loads((folder / "scores.json").read_text())["entries"]
    assert [entry["key"]["benchmark"] for entry in kept if entry["key"]["kind"] == "scores"] == ["Set5"]
    more = [
        "benchmarks=[Set5,Mine]",
        "benchmarks=[Mine]",
        "protocol=rgb",
        "self_ensemble=true",
        "measures=[consistency]",
    ]
    for i, words in enumerate(more):
        assert len(board_of(root, tmp_path / f"more{i}", tmp_path / "runs", words)) == 2 + 2 * (i == 0)
    kept = json.loads((folder / "scores.json").read_text())["entries"]
    assert sum(entry["key"]["kind"] == "scores" for entry in kept) == 1 + len(more) - 1
    assert rows_of(tmp_path / "more2" / "leaderboard.csv")[0]["psnr_rgb"]
    assert {row["model"] for row in rows_of(tmp_path / "more3" / "leaderboard.csv")} == {"bicubic", "srcnn+"}
    assert float(rows_of(tmp_path / "more4" / "leaderboard.csv")[0]["consistency"]) > 20
    spoil(folder)
    for i, words in enumerate(more):
        board_of(root, tmp_path / "again", tmp_path / "runs", words)
        again, before = (rows_of(tmp_path / name / "leaderboard.csv") for name in ("again", f"more{i}"))
        assert again == before


def test_fid_of_a_set_is_ranked_and_cached(root, tmp_path, small_fid, monkeypatch):
    folder = make_run(tmp_path / "runs" / "a")
    words = ["benchmarks=[Set5]", "measures=[fid]"]
    rows = board_of(root, tmp_path / "out", tmp_path / "runs", *words)
    assert all(float(row["fid"]) > 0 for row in rows)
    assert "| fid " in (tmp_path / "out" / "leaderboard.md").read_text()
    assert [row["fid"] == "" for row in rows_of(tmp_path / "out" / "results.csv")] == [True, True, False] * 2
    spoil(folder)
    assert board_of(root, tmp_path / "again", tmp_path / "runs", *words) == rows
    with pytest.raises(InputError, match=r"^fid needs at least 2 images, Mine has 1"):
        board_of(root, tmp_path / "again", tmp_path / "runs", "benchmarks=[Mine]", "measures=[fid]")


def test_scores_of_other_checkpoints_or_images_are_not_used(root, tmp_path):
    folder = make_run(tmp_path / "runs" / "a")
    images = tmp_path / "images"
    shutil.copytree(root, images)
    board_of(images, tmp_path / "out", tmp_path / "runs")
    spoil(folder)
    shutil.copy(images / "benchmark" / "Mine" / "HR" / "c.png", images / "benchmark" / "Set5" / "HR" / "c.png")
    with pytest.raises(InputError, match="is no file of weights: it begins with"):
        board_of(images, tmp_path / "out", tmp_path / "runs")
    board_of(root, tmp_path / "out", tmp_path / "runs")  # the same images in another place
    os.utime(folder / "checkpoints" / "best.ckpt")
    with pytest.raises(InputError, match="is no file of weights: it begins with"):
        board_of(root, tmp_path / "out", tmp_path / "runs")


def test_damaged_score_file_is_rebuilt(root, tmp_path):
    folder = make_run(tmp_path / "runs" / "a")
    first = board_of(root, tmp_path / "out", tmp_path / "runs")
    file, whole = folder / "scores.json", json.loads((folder / "scores.json").read_text())
    for damaged in (
        '{"checkpoint": ',
        *(json.dumps(whole | {"entries": entries}) for entries in ([1], [{}], {"a": 1})),
    ):
        file.write_text(damaged)
        assert board_of(root, tmp_path / "out", tmp_path / "runs") == first
        assert json.loads(file.read_text())["entries"] == whole["entries"]


def test_unscorable_runs_are_listed_and_stop_no_other(root, tmp_path):
    runs = tmp_path / "runs"
    make_run(runs / "good")
    make_run(runs / "again")  # comes first, so it is the one in the table
    make_run(runs / "going_on", name="going_on", status=None)
    make_run(runs / "boom", name="boom", status="failed")
    make_run(runs / "pruned", name="pruned", status="pruned")
    make_run(runs / "spoilt", name="spoilt")
    spoil(runs / "spoilt")
    checkpoint = make_run(runs / "misfit", name="misfit") / "checkpoints" / "best.ckpt"
    content = torch.load(checkpoint, weights_only=True)
    content["state_dict"].popitem()
    torch.save(content, checkpoint)
    (make_run(runs / "gone", name="gone") / "checkpoints" / "best.ckpt").unlink()
    (make_run(runs / "rubbish", name="rubbish") / "result.json").write_text("{")
    (make_run(runs / "yaml", name="yaml") / "config.yaml").write_text("scale: [")
    (runs / "foreign" / "checkpoints").mkdir(parents=True)
    (runs / "foreign" / "metrics.csv").write_text("epoch,loss\n1,0.5\n")
    rows = board_of(root, tmp_path / "out", runs)
    assert [row["model"] for row in rows if row["model"] != "bicubic"] == ["srcnn"]
    left_out = json.loads((tmp_path / "out" / "leaderboard.json").read_text())["not_in_the_table"]
    found = {Path(one["run"]).name: (one["status"], one["reason"]) for one in left_out}
    assert found.keys() == {path.name for path in runs.iterdir()} - {"again"}
    assert found["good"] == ("repeated", f"the settings and seed of {runs / 'again'}")
    assert found["foreign"] == ("unfinished", "before its first step")
    assert found["going_on"] == ("unfinished", "10 of 10 steps trained")
    assert found["boom"] == ("failed", "boom")
    assert found["pruned"][0] == "pruned"
    assert found["spoilt"][0] == "not scored" and "is no file of weights" in found["spoilt"][1]
    assert "do not fit its network" in found["misfit"][1]
    assert found["gone"] == ("finished", "there is no checkpoints/best.ckpt")
    assert (found["rubbish"][0], found["yaml"][0]) == ("unreadable", "unreadable")
    listed = (tmp_path / "out" / "leaderboard.md").read_text().partition("| not in the table")[2].split("\n\n")[0]
    assert len(listed.splitlines()) == 2 + len(found)  # a line each, whatever the message
    assert all(f"{runs / name} " in listed for name in found)


def test_diverged_runs_are_listed_beside_the_table_and_end_the_command_with_an_error(root, tmp_path):
    runs = tmp_path / "runs"
    make_run(runs / "good")
    checkpoint = make_run(runs / "nan", name="nan") / "checkpoints" / "best.ckpt"
    content = torch.load(checkpoint, weights_only=True)
    content["state_dict"] = {key: value * float("nan") for key, value in content["state_dict"].items()}
    torch.save(content, checkpoint)
    with pytest.raises(InputError, match=r"1 runs are not in the table:\n.*nan/checkpoints/best.ckpt: NaN or infinite"):
        board_of(root, tmp_path / "out", runs)
    rows = rows_of(tmp_path / "out" / "leaderboard.csv")
    assert [row["model"] for row in rows if row["model"] != "bicubic"] == ["srcnn"]
    assert "| diverged |" in (tmp_path / "out" / "leaderboard.md").read_text()


def test_a_run_with_outputs_of_nan_leaves_the_pictures_of_the_others(root, tmp_path):
    runs = tmp_path / "runs"
    make_run(runs / "good")
    checkpoint = make_run(runs / "nan", name="nan") / "checkpoints" / "best.ckpt"
    content = torch.load(checkpoint, weights_only=True)
    content["state_dict"] = {key: value.sign() * 3e38 for key, value in content["state_dict"].items()}
    torch.save(content, checkpoint)
    with pytest.raises(InputError, match=r"nan/checkpoints/best.ckpt: NaN or infinite values in the output for"):
        board_of(root, tmp_path / "out", runs, "num_comparisons=1")
    alone = board_of(root, tmp_path / "alone", runs / "good", "num_comparisons=1")
    assert rows_of(tmp_path / "out" / "leaderboard.csv") == rows_of(tmp_path / "alone" / "leaderboard.csv")
    for path in (tmp_path / "alone" / "pictures").rglob("*.png"):
        assert path.read_bytes() == (tmp_path / "out" / path.relative_to(tmp_path / "alone")).read_bytes()
    assert len(alone) > 0


@pytest.mark.parametrize("part", ["bicubic", "model"])
@pytest.mark.parametrize("psnr", [float("inf"), float("nan")])
def test_stored_scores_of_an_earlier_version_that_are_not_finite_are_computed_again(root, tmp_path, part, psnr):
    folder = make_run(tmp_path / "runs" / "a")
    first = board_of(root, tmp_path / "out", tmp_path / "runs")
    stored = json.loads((folder / "scores.json").read_text())
    for entry in stored["entries"]:
        if entry["key"]["kind"] == "scores":
            del entry["value"]["left_out"]
            entry["value"][part][-1]["psnr_y"] = psnr
    (folder / "scores.json").write_text(json.dumps(stored))
    assert board_of(root, tmp_path / "out", tmp_path / "runs") == first
    json.loads((folder / "scores.json").read_text(), parse_constant=pytest.fail)


def test_stored_scores_remember_which_images_are_not_scored(root, tmp_path):
    make_run(tmp_path / "runs" / "a")
    images = shutil.copytree(root, tmp_path / "images")
    Image.new("RGB", (40, 40)).save(images / "benchmark" / "Set5" / "HR" / "flat.png")
    boards = [board_of(images, tmp_path / str(i), tmp_path / "runs") for i in range(2)]
    assert boards[0] == boards[1] == board_of(root, tmp_path / "out", tmp_path / "runs")
    for i in range(2):
        notes = json.loads((tmp_path / str(i) / "leaderboard.json").read_text())["notes"]
        assert "not scored, since bicubic reproduces them: Set5 x2: flat" in notes


def test_narrow_table_names_the_columns_that_it_leaves_out(root, tmp_path):
    for seed in (0, 1):
        make_run(tmp_path / "runs" / str(seed), seed, name=f"srcnn{seed}")
    rows = board_of(root, tmp_path / "out", tmp_path / "runs")
    assert sorted(row["rank"] for row in rows) == ["", "1", "2"]
    board = json.loads((tmp_path / "out" / "leaderboard.json").read_text())["rows"]
    whole, narrow = (markdown(board, [], ["a note " * 20], width).splitlines() for width in (None, 60))
    assert len(whole[0]) > 150
    assert max(map(len, narrow)) <= 60
    assert "not shown: compared with, published," in "\n".join(narrow)
    assert narrow[0].startswith("| rank | benchmark | scale | model")


def test_leaderboard_of_one_sweep_lies_in_its_folder(tmp_path):
    sweep, other = tmp_path / "sweep", tmp_path / "other"
    (sweep / ".sweep").mkdir(parents=True)
    other.mkdir()
    assert leaderboard_dir(str(sweep)) == str(sweep / "leaderboard")
    assert leaderboard_dir(OmegaConf.create([str(sweep)])) == str(sweep / "leaderboard")
    for runs in (None, str(other), OmegaConf.create([]), OmegaConf.create([str(sweep), str(other)])):
        assert leaderboard_dir(runs) is None


def test_deviation_of_nan_or_infinity_is_nan():
    assert mean_and_deviation([1.0, 2.0, 4.0]) == pytest.approx((7 / 3, np.std([1, 2, 4], ddof=1)))
    assert mean_and_deviation([5.0]) == (5.0, None)
    for values in ([np.inf, np.inf], [np.nan, 1.0]):
        assert np.isnan(mean_and_deviation(values)[1])


def test_labels_distinguish_runs_of_one_name(root, tmp_path):
    runs = tmp_path / "runs"
    for i, rate in enumerate((1e-3, 3e-3)):
        make_run(runs / f"rate{i}", model={"optimizer": {"lr": rate}}, max_steps=10)
    make_run(runs / "bsds", choices={"data": "bsds"}, data={"hr": "BSDS500"})
    make_run(runs / "class0", name="sgd", model={"optimizer": {"_target_": "torch.optim.SGD"}})
    make_run(runs / "class1", name="sgd", model={"optimizer": {"_target_": "torch.optim.Adam"}})
    make_run(runs / "seed1", seed=1, name="sgd", model={"optimizer": {"_target_": "torch.optim.Adam"}})
    many = {"model": {"a": 1, "b": 2, "c": 3, "d": 4}}
    make_run(runs / "many", name="many", **many)
    make_run(runs / "more", name="many", **OmegaConf.to_container(OmegaConf.merge(many, {"model": {"a": 2, "b": 3}})))
    make_run(runs / "most", name="many", model={"a": 3, "b": 1, "c": 9, "d": 9})
    make_run(runs / "named", name="bicubic")
    names = {row["model"] for row in board_of(root, tmp_path / "out", runs)}
    assert names == {
        *("bicubic", "bicubic named", "srcnn bsds", "srcnn t91 lr=0.001", "srcnn t91 lr=0.003"),
        *("sgd optimizer=SGD", "sgd optimizer=Adam"),
        *("many many", "many more", "many most"),
    }


@pytest.mark.parametrize(
    ("words", "scale", "system", "psnr", "differs"),
    [
        ("model=edsr_baseline", 2, "EDSR-baseline", 37.98, ()),
        ("model=edsr", 4, "EDSR", 32.46, ()),
        ("model=rcan", 3, "RCAN", 34.74, ()),
        ("model=wdsr_a", 2, "WDSR-A-16x32", 38.08, ()),
        ("experiment=vdsr_paper", 2, "VDSR", 37.53, ()),
        ("experiment=srcnn_paper", 3, "SRCNN-915", 32.39, ()),
        ("experiment=srcnn_fast", 3, "SRCNN-915", 32.39, ("global_skip",)),
        ("model=srcnn model.network.kernel_sizes=[9,5,5]", 3, "SRCNN-955", 32.75, ("global_skip",)),
        ("experiment=espcn_paper", 3, "ESPCN-T91", 32.55, ()),
        ("experiment=espcn_paper data=bsds", 3, "ESPCN", 33.13, ()),
        ("experiment=espcn_fast", 3, "ESPCN-T91", 32.55, ("num_features", "kernel_sizes", "activation", "global_skip")),
        ("experiment=fsrcnn_paper", 2, "FSRCNN", 37.00, ()),
        ("experiment=srresnet_paper", 4, "SRResNet", 32.05, ()),
        ("experiment=srresnet_fast", 4, "SRResNet", 32.05, ("num_features", "num_blocks")),
        ("experiment=srgan_paper", 4, "SRGAN-VGG54", 29.40, ()),
        (
            "experiment=edsr_fast",
            2,
            "EDSR-baseline",
            37.98,
            ("num_features", "num_blocks", "num_channels", "global_skip"),
        ),
        ("model=espcn", 3, None, None, ()),
        ("model=srresnet model.network.num_blocks=4", 4, None, None, ()),
        ("model=msrresnet", 4, None, None, ()),
        ("model=edsr_baseline", 8, None, None, ()),
    ],
)
def test_run_is_compared_with_its_published_system(words, scale, system, psnr, differs):
    chosen = dict(word.split("=", 1) for word in words.split())
    choices = {"data": "t91"} | {key: chosen[key] for key in ("experiment", "data") if key in chosen}
    fixed = ["data_root=x", "choices.model=x", *(f"choices.{k}={v}" for k, v in choices.items())]
    fixed += [] if "experiment" in choices else ["choices.experiment=null"]
    cfg = OmegaConf.to_container(compose(*words.split(), f"scale=x{scale}", *fixed), resolve=True)
    found = published_score(cfg, scale, "Set5", STANDARD)
    assert (found and found.system, found and found.psnr) == (system, psnr)
    assert tuple(one.split(" ")[0] for one in found.differs) == differs if found else not differs


def test_scores_are_not_compared_across_protocols():
    edsr = {"model": {"network": {"_target_": "sr_lightning.networks.EDSR", "num_features": 64, "num_blocks": 16}}}
    edsr["model"]["network"]["num_channels"] = 3
    assert published_score(edsr, 2, "Set5", STANDARD).psnr == 37.98
    assert published_score(edsr, 2, "Set5", "rgb_shave-scale_8bit_ssim-wang_lr-files").psnr == 35.7768
    for other in ("rgb_shave-scale+6_8bit", "y_shave-0_8bit", "y_shave-scale_float"):
        assert published_score(edsr, 2, "Set5", f"{other}_ssim-wang_lr-files") is None
    assert published_score(edsr, 2, "Set5", "y_shave-scale_8bit_ssim-wang_lr-blurred") is None


def test_published_tables_list_the_same_systems():
    with (FOLDER / "published.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["system"] for row in rows} == {entry["system"] for entry in OmegaConf.load(FOLDER / "systems.yaml")}
    keys = [tuple(row[key] for key in ("system", "scale", "dataset", "protocol")) for row in rows]
    assert len(set(keys)) == len(keys)
    assert all(20 < float(row["psnr"]) < 40 and row["source"] for row in rows)
    assert all(0.5 < float(row["ssim"]) < 1 for row in rows if row["ssim"])


def test_distance_is_to_the_published_score(root, tmp_path):
    make_run(tmp_path / "runs" / "paper", network=PAPER, name="paper")
    make_run(tmp_path / "runs" / "skip", network=PAPER | {"global_skip": True}, name="skip")
    make_run(tmp_path / "runs" / "small", name="small")
    rows = {row["model"]: row for row in board_of(root, tmp_path / "out", tmp_path / "runs", "report_images=1")}
    for name in ("paper", "skip"):
        assert (rows[name]["compared_with"], float(rows[name]["published"])) == ("SRCNN-915", 36.34)
        assert float(rows[name]["distance"]) == pytest.approx(float(rows[name]["psnr_y"]) - 36.34)
    assert (rows["paper"]["differs"], rows["skip"]["differs"]) == ("", "global_skip True (published: False)")
    assert (rows["small"]["published"], rows["small"]["distance"], rows["small"]["compared_with"]) == ("", "", "")
    assert rows["bicubic"]["published"] == "33.66"
    text = (tmp_path / "out" / "leaderboard.md").read_text()
    assert re.search(r"\| skip .* SRCNN-915\* ", text) and re.search(r"\| paper .* SRCNN-915 ", text)
    assert "* skip differs from SRCNN-915: global_skip True (published: False)" in text
    page = (tmp_path / "out" / "report.html").read_text()
    assert '"*":"skip differs from SRCNN-915: global_skip True (published: False)"' in page
    ensembles = board_of(root, tmp_path / "out", tmp_path / "runs", "self_ensemble=true")
    assert {row["published"] for row in ensembles if row["model"] != "bicubic"} == {""}


def test_report_opens_with_the_table_and_shows_every_row(root, tmp_path):
    runs = tmp_path / "runs"
    folders = [make_run(runs / str(seed), seed) for seed in (1, 0)] + [make_run(runs / "x", name="other")]
    make_run(runs / "spoilt", name="spoilt")
    spoil(runs / "spoilt")
    rows = board_of(root, tmp_path / "out", runs, "report_images=1", "num_comparisons=1")
    page = (tmp_path / "out" / "report.html").read_text()
    data = json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', page)[1])
    assert data["sets"][0]["models"] == ["bicubic", "srcnn seed 0", "other"]
    assert ["files" in image for image in data["sets"][0]["images"]] == [True, False]
    assert [row["model"] for row in data["leaderboard"]] == [row["model"] for row in rows]
    assert [row["psnr_y"] for row in data["leaderboard"]] == [float(row["psnr_y"]) for row in rows]
    assert data["facts"]["not in the table"] == f"{runs / 'spoilt'} (not scored)"
    described = {one["model"]: (one["facts"]["run"], one["curve"]) for one in data["subjects"]}
    assert described == {"srcnn seed 0": ("0", [[10, 20]]), "other": ("x", [[10, 20]])}
    assert [one["facts"]["steps"] for one in data["subjects"]] == ["10 of 10"] * 2
    table = (tmp_path / "out" / "leaderboard.html").read_text()
    data = json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', table)[1])
    assert [{k: "" if v is None else str(v) for k, v in row.items()} for row in data["rows"]] == rows
    assert "report.html" in data["files"]
    assert (tmp_path / "out" / "pictures" / "Set5_x2_a.png").is_file()
    for folder in folders:
        spoil(folder)
    assert board_of(root, tmp_path / "again", runs) == rows
    assert not (tmp_path / "again" / "report.html").exists()


@pytest.mark.slow
def test_plots_have_a_panel_per_scale_and_no_overlapping_labels(root, tmp_path, monkeypatch):
    figures = {}
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda f, path, **how: figures.update({Path(path).name: f}) or save(f, path, **how)
    )
    names = [f"a network called {i}" for i in range(9)]
    looks = plots.styles(names)
    assert len(set(looks.values())) == 9
    base = {"benchmark": "Set5", "psnr_y_deviation": 0.01}
    rows = [
        base | {"scale": scale, "model": name, "psnr_y": 36 - 2 * scale + i // 3 / 10, "cost": 1000 * 4**i}
        for scale in (2, 3)
        for i, name in enumerate(names)
    ]
    rows += [base | {"scale": scale, "model": "bicubic", "psnr_y": 35 - 2 * scale, "cost": 0} for scale in (2, 3)]
    plots.plot_costs(tmp_path / "costs.png", rows, "cost", "what it costs", looks)
    (figure,) = figures.values()
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["Set5 ×2", "Set5 ×3"]
    for axes in figure.axes:
        assert axes.get_xscale() == "log"
        boxes = [Text.get_window_extent(text) for text in axes.texts]  # without the lines to their points
        assert [text.get_text() for text in axes.texts[1:]] == names
        assert not [(a, b) for a, b in itertools.combinations(boxes[1:], 2) if a.overlaps(b)]
    figures.clear()
    curves = [
        (scale, name, [[(10, 30.0), (20, 31.0)], [(10, 30.1), (20, 31.2)]]) for scale in (2, 4) for name in names[:3]
    ]
    plots.plot_validation(tmp_path / "curves.png", curves, looks)
    (figure,) = figures.values()
    assert [len(axes.lines) for axes in figure.axes] == [6, 6]
    assert {line.get_color() for line in figure.axes[0].lines} == {looks[name][0] for name in names[:3]}
    for picture in ("costs.png", "curves.png"):
        with Image.open(tmp_path / picture) as image:
            assert image.width > 1000


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["runs={empty}"], "there is no run in {empty}"),
        (["runs=[{empty},{empty}/nowhere]"], "there is no folder {empty}/nowhere"),
        (["runs=[]"], "name a folder of runs"),
        (["ckpt=a.ckpt"], "leave ckpt out"),
        (["model=espcn", "ckpt=a.ckpt"], "leave ckpt and model out"),
        (["benchmarks=[Set5,Yours,Theirs]"], "no test set Theirs (available: Mine, Set5)"),
        (["benchmarks=[]"], "name at least one"),
        (["scale=x4"], "scale=x4 was requested, but the runs are of x2"),
        (["measures=[beauty]"], "measures: unknown beauty; give a list of"),
    ],
)
def test_wrong_arguments_are_refused(words, message, root, tmp_path):
    make_run(tmp_path / "runs" / "a")
    (tmp_path / "empty").mkdir()
    words = [word.format(empty=tmp_path / "empty") for word in words]
    cfg = config(root, tmp_path / "out", tmp_path / "runs", *words)
    with pytest.raises(InputError, match=re.escape(message.format(empty=tmp_path / "empty"))):
        check_request(cfg), evaluate(cfg)  # as evaluate.py does


def test_negative_number_of_report_images_is_refused(root, tmp_path):
    message = r"report_images=-1 is not a number of images: give that of each data set in report\.html, or 0 for none"
    with pytest.raises(InputError, match=message):
        check_request(config(root, tmp_path / "out", tmp_path / "runs", "report_images=-1"))


def test_nothing_to_score_is_an_error_listing_the_runs(root, tmp_path):
    make_run(tmp_path / "runs" / "a", status="failed")
    with pytest.raises(InputError, match=r"no run can be scored:\n  .*a: failed: boom"):
        evaluate(config(root, tmp_path / "out", tmp_path / "runs"))


def test_description_of_no_network_runs_nothing(root, tmp_path):
    folder = make_run(tmp_path / "runs" / "a")
    board_of(root, tmp_path / "out", tmp_path / "runs")
    kept = json.loads((folder / "scores.json").read_text())
    kept["entries"] = [entry for entry in kept["entries"] if entry["key"]["kind"] == "scores"]
    (folder / "scores.json").write_text(json.dumps(kept))
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(text.replace("sr_lightning.networks.SRCNN", "os.getcwd"))
    with pytest.raises(InputError, match=r"not one of this project.s: .os\.getcwd"):
        board_of(root, tmp_path / "out", tmp_path / "runs")


@pytest.mark.slow
def test_trained_run_is_ranked_by_one_command(command, root, tmp_path):
    run_dir = tmp_path / "runs" / "a"
    small = ("model.network.num_features=[2,2,2]", "max_steps=2", "val_every=2", "num_comparisons=0")
    benchmark = ("benchmarks=[Mine]", f"data_root={root}")
    run(*command, *small, *benchmark, f"hydra.run.dir={run_dir}")
    spoil(run_dir)
    done = run("evaluate.py", f"runs={tmp_path}/runs", *benchmark, f"hydra.run.dir={tmp_path}/out")
    assert "scoring" not in done.stdout
    rows = {row["model"]: row for row in rows_of(tmp_path / "out" / "leaderboard.csv")}
    assert rows.keys() == {"espcn", "bicubic"}
    weights = 2 * 25 + 2 + 2 * (2 * 2 * 9 + 2) + 4 * 2 * 9 + 4
    assert (rows["espcn"]["seeds"], rows["espcn"]["data"], rows["espcn"]["parameters"]) == ("1", "folder", str(weights))
    result = json.loads((run_dir / "result.json").read_text())
    assert float(rows["espcn"]["seconds"]) == result["seconds"]
    assert float(rows["espcn"]["milliseconds"]) > 0
    table = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert table[0].startswith("| rank | benchmark | scale | model")
    assert max(map(len, table)) <= 80
    for picture in ("psnr_parameters.png", "psnr_milliseconds.png", "validation.png"):
        assert (tmp_path / "out" / picture).stat().st_size > 10_000
