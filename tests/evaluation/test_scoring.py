"""Scoring of other projects' weights, self-ensembles and inference forms; measures and reports."""

import base64
import io
import json
import logging
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from sr_lightning.checkpoints.interop import save_weights
from sr_lightning.data.sources import benchmark_set
from sr_lightning.degradations import Bicubic as Degradation
from sr_lightning.errors import InputError
from sr_lightning.evaluation.checks import check_request
from sr_lightning.evaluation.evaluate import evaluate, requested_models
from sr_lightning.evaluation.scoring import ScoredModel, Scorer
from sr_lightning.images.files import read_image
from sr_lightning.inference import SelfEnsemble
from sr_lightning.metrics.extra import consistency, spectrum
from sr_lightning.metrics.protocol import Protocol, score
from sr_lightning.networks import EDSR, FSRCNN, WDSR, Bicubic
from tests.helpers import compose, rows_of

SMALL = ["model=edsr_baseline", "model.network.num_features=8", "model.network.num_blocks=1", "name=edsr"]


@pytest.fixture
def root(tmp_path):
    """A data root with one image, HR without LR."""
    folder = tmp_path / "benchmark" / "Mine" / "HR"
    folder.mkdir(parents=True)
    coarse = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((42, 30), Image.Resampling.BICUBIC).save(folder / "a.png")
    return tmp_path


@pytest.fixture
def published(tmp_path):
    torch.manual_seed(0)
    network = EDSR(scale=2, num_features=8, num_blocks=1)
    save_weights(network, tmp_path / "edsr_x2.pt", "edsr-pytorch")
    return network.eval(), tmp_path / "edsr_x2.pt"


def config(root, *words):
    fixed = ["name=x", "benchmarks=[Mine]", f"data_root={root}", f"run_dir={root / 'run'}", "num_comparisons=0"]
    return compose(*fixed, *words, config="evaluate")


@pytest.mark.parametrize(("ensemble", "name"), [(False, "edsr"), (True, "edsr+")])
def test_published_weights_are_scored_in_the_given_model(root, published, ensemble, name):
    network, path = published
    returned = evaluate(config(root, *SMALL, "scale=x2", f"ckpt={path}", f"self_ensemble={ensemble}"))
    row = next(r for r in rows_of(root / "run" / "results.csv") if (r["model"], r["image"]) == (name, "a"))
    hr = torch.from_numpy(read_image(root / "benchmark" / "Mine" / "HR" / "a.png"))
    lr = Degradation()(hr, 2)[None].float() / 255
    with torch.inference_mode():
        sr = SelfEnsemble(network)(lr) if ensemble else network(lr)
    expected = score(sr, hr[None].float() / 255, 2, Protocol())["psnr"].item()
    assert float(row["psnr_y"]) == pytest.approx(expected, abs=1e-4)
    assert returned == pytest.approx(expected, abs=1e-4)


def test_a_flat_image_is_named_once_and_changes_no_score(root, published, caplog):
    alone = evaluate(config(root, *SMALL, "scale=x2", f"ckpt={published[1]}"))
    Image.new("RGB", (40, 40)).save(root / "benchmark" / "Mine" / "HR" / "flat.png")
    caplog.clear()
    words = ["scale=x2", "report_images=2", "num_comparisons=2"]
    assert evaluate(config(root, *SMALL, *words, f"ckpt={published[1]}")) == alone
    assert evaluate(config(root, *SMALL, *words, f"ckpt={published[1]}", "self_ensemble=true")) != alone
    assert {row["image"] for row in rows_of(root / "run" / "results.csv")} == {"a", "mean"}
    said = [record.getMessage() for record in caplog.records if "not scored" in record.getMessage()]
    assert len(said) == 1 and said[0].startswith("Mine: 1 of 2 images are not scored") and said[0].endswith("\n  flat")
    assert "not scored, since bicubic reproduces them" in (root / "run" / "report.html").read_text()


def test_a_set_of_flat_images_is_refused(root):
    Image.new("RGB", (40, 40)).save(root / "benchmark" / "Mine" / "HR" / "a.png")
    with pytest.raises(InputError, match="Mine: bicubic reproduces all 1 images, so nothing can be scored"):
        evaluate(config(root, "model=bicubic", "scale=x2"))


@pytest.mark.parametrize(("change", "place"), [
    (lambda value: value * float("nan"), "values in head.weight and"),
    (lambda value: value * float("inf"), "values in head.weight and"),
    (lambda value: value * 1e30, "values in the output for a:"),
])  # fmt: skip
def test_networks_that_are_not_finite_are_refused_with_file_and_tensor_or_image(root, change, place):
    network = EDSR(scale=2, num_features=8, num_blocks=1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(change(parameter))
    scorer = Scorer(Protocol(), Degradation(), {})
    sets = {"Mine": benchmark_set(root, "Mine", 2)}
    with pytest.raises(InputError, match=f"best.ckpt: NaN or infinite {place}"):
        scorer.score_sets([ScoredModel("edsr", network, root / "best.ckpt")], sets)


def test_a_measure_that_is_not_defined_is_refused_with_its_image(root):
    scorer = Scorer(Protocol(), Degradation(), {"ratio": lambda *_: torch.tensor([float("nan")])})
    with pytest.raises(InputError, match="ratio of bicubic on a is nan: leave it out of measures"):
        scorer.score_sets([ScoredModel("b", Bicubic(scale=2))], {"Mine": benchmark_set(root, "Mine", 2)})


def test_networks_and_measures_are_computed_without_tf32(root):
    seen = []

    def convolves(*_):
        seen.append((torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision))
        return torch.ones(1)

    network = EDSR(scale=2, num_features=8, num_blocks=1)
    network.register_forward_hook(lambda *_: convolves() and None)
    scorer = Scorer(Protocol(), Degradation(), {"one": convolves})
    try:
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        scorer.score_sets([ScoredModel("edsr", network)], {"Mine": benchmark_set(root, "Mine", 2)})
        assert torch.backends.cuda.matmul.fp32_precision == torch.backends.cudnn.conv.fp32_precision == "tf32"
    finally:
        torch.backends.cuda.matmul.fp32_precision = "none"
    assert seen == [("ieee", "ieee")] * 3  # the network, and the measure of bicubic and of the network


def test_several_published_files_are_named_by_file(root, published):
    path = published[1]
    other = shutil.copy(path, path.with_name("mine.pt"))
    cfg = config(root, *SMALL, "scale=x2")
    models = requested_models([path, other], cfg.model.network, cfg.name, cfg.scale)
    assert [model.name for model in models] == ["edsr edsr_x2", "edsr mine"]
    assert not any(model.network.training for model in models)


def test_published_weights_need_a_model_with_scale_where_they_do_not_show_all(root, published):
    path = published[1]
    with pytest.raises(InputError, match="model=edsr with ckpt needs the scale as well: add scale=x2"):
        requested_models([path], config(root, *SMALL).model.network, "edsr")
    with pytest.raises(InputError, match="holds EDSR, and its weights do not show residual_scale"):
        requested_models([path])


def test_fid_belongs_to_the_set_and_not_to_its_images(root, published, caplog, small_fid):
    folder = root / "benchmark" / "Mine" / "HR"
    coarse = np.random.default_rng(1).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((42, 30), Image.Resampling.BICUBIC).save(folder / "b.png")
    words = ["scale=x2", "measures=[consistency,fid]", "report_images=2", "num_comparisons=2"]
    with caplog.at_level(logging.INFO):
        evaluate(config(root, *SMALL, *words, f"ckpt={published[1]}"))
    rows = rows_of(root / "run" / "results.csv")
    assert [(row["model"], row["image"], row["fid"] != "") for row in rows] == [
        *(("bicubic", "a", False), ("bicubic", "b", False), ("bicubic", "mean", True)),
        *(("edsr", "a", False), ("edsr", "b", False), ("edsr", "mean", True)),
    ]
    fid = {row["model"]: float(row["fid"]) for row in rows if row["fid"]}
    assert fid["edsr"] > fid["bicubic"] > 0 and all(float(row["consistency"]) for row in rows)
    (line,) = (line for line in caplog.text.splitlines() if "| edsr" in line)
    assert f" {fid['edsr']:.2f} " in line
    page = (root / "run" / "report.html").read_text()
    (of_set,) = json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', page)[1])["sets"]
    column = of_set["scores"].index("fid")
    assert of_set["mean"][1][column] == pytest.approx(fid["edsr"])
    assert [scores[column] for image in of_set["images"] for scores in image["scores"]] == [None] * 4


def test_fid_of_a_single_image_is_refused_before_scoring(root, small_fid, monkeypatch):
    monkeypatch.setattr(Scorer, "samples_to_score", lambda *_: pytest.fail("scored"))
    with pytest.raises(InputError, match=r"^fid needs at least 2 images, Mine has 1: leave it out of measures, or "):
        evaluate(config(root, "model=bicubic", "name=bicubic", "scale=x2", "measures=[fid]"))


@pytest.mark.parametrize("cls", [WDSR, FSRCNN])
def test_inference_form_scores_the_same(cls, root, monkeypatch):
    torch.manual_seed(0)
    network = cls(scale=2).eval()
    for parameter in network.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    forms = []
    original = cls.for_inference

    def watched(self):
        forms.append(original(self))
        return forms[-1]

    scorer = Scorer.from_config(config(root))
    sets = {"Mine": benchmark_set(root, "Mine", 2)}
    monkeypatch.setattr(cls, "for_inference", watched)
    in_form = scorer.score_sets([ScoredModel("a", network)], sets)
    monkeypatch.delattr(cls, "for_inference")
    plain = scorer.score_sets([ScoredModel("a", network)], sets)
    assert len(forms) == 1
    assert in_form[-1]["psnr_y"] == pytest.approx(plain[-1]["psnr_y"], abs=1e-3)
    assert in_form[-1]["psnr_y"] != in_form[0]["psnr_y"]


def test_report_contains_the_output_of_the_network(root, published):
    network, path = published
    evaluate(config(root, *SMALL, "scale=x2", f"ckpt={path}"))
    page = (root / "run" / "report.html").read_text()
    data = json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', page)[1])
    (of_set,) = data["sets"]
    (image,) = of_set["images"]
    assert (of_set["models"], data["protocols"]) == (["bicubic", "edsr"], ["y_shave-scale_8bit_ssim-wang_lr-made"])
    hr = torch.from_numpy(read_image(root / "benchmark" / "Mine" / "HR" / "a.png"))
    lr = Degradation()(hr, 2)
    with torch.inference_mode():
        sr = network(lr[None].float() / 255)[0].clamp(0, 1).mul(255).numpy()
    pictures = []
    for url in image["files"]:
        with Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))) as picture:
            pictures.append(np.asarray(picture).transpose(2, 0, 1))
    assert len(pictures) == 4
    assert np.array_equal(pictures[0], lr.numpy()) and np.array_equal(pictures[3], hr.numpy())
    # Rounded; sums of the inference form have another order, so a value halfway may be rounded up or down
    assert np.abs(pictures[2] - sr).max() <= 0.5 + 1e-3


@pytest.mark.parametrize(("words", "shown"), [(["report_images=1"], [True, False]), (["report_images=0"], None)])
def test_report_contains_only_the_first_images(root, words, shown):
    folder = root / "benchmark" / "Mine" / "HR"
    shutil.copy(folder / "a.png", folder / "b.png")
    evaluate(config(root, "model=bicubic", "name=bicubic", "scale=x2", *words))
    page = root / "run" / "report.html"
    assert page.exists() == (shown is not None)
    if shown is not None:
        data = json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', page.read_text())[1])
        assert ["files" in image for image in data["sets"][0]["images"]] == shown


@pytest.mark.parametrize("value", ["true", "-1", "many", "0.5"])
def test_report_must_be_a_number_of_images(root, value):
    message = r"report_images=\S+ is not a number of images: give that of each data set in report.html, or 0 for none"
    with pytest.raises(InputError, match=message):
        check_request(config(root, "model=bicubic", "name=bicubic", "scale=x2", f"report_images={value}"))


def test_measures_are_columns_of_images_means_and_table(root, published, caplog):
    network, path = published
    folder = root / "benchmark" / "Mine" / "HR"
    Image.open(folder / "a.png").rotate(180).save(folder / "b.png")
    with caplog.at_level(logging.INFO):
        evaluate(config(root, *SMALL, "scale=x2", f"ckpt={path}", "measures=[consistency,spectrum]", "report_images=0"))
    rows = rows_of(root / "run" / "results.csv")
    assert list(rows[0])[4:] == ["psnr_y", "ssim_y", "consistency", "spectrum", "protocol"]
    hr = torch.from_numpy(read_image(folder / "b.png"))
    lr = Degradation()(hr, 2)[None].float() / 255
    with torch.inference_mode():
        images = (network(lr), lr, hr[None].float() / 255, 2, Protocol())
    a, b, mean = (row for row in rows if row["model"] == "edsr")
    for name, measure in {"consistency": consistency, "spectrum": spectrum}.items():
        assert float(b[name]) == pytest.approx(measure(*images).item(), rel=1e-4)
        assert float(mean[name]) == pytest.approx((float(a[name]) + float(b[name])) / 2, rel=1e-9)
    cells = f"| {float(mean['ssim_y']):.4f} | {float(mean['consistency']):.2f} "
    assert "| consistency | spectrum | gain" in caplog.text and cells in caplog.text


def test_unknown_measure_stops_before_anything_is_written(root):
    with pytest.raises(InputError, match="measures: unknown sharpness; give a list of spectrum"):
        evaluate(config(root, "model=bicubic", "name=bicubic", "scale=x2", "measures=[sharpness]"))
    assert not (root / "run").exists()
