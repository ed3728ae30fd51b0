"""report.html without a browser: its data, the files beside it, and the choice of crops."""

import base64
import json
import os
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image
from skimage.color import rgb2ycbcr

from sr_lightning.errors import InputError
from sr_lightning.evaluation.evaluate import requested_models
from sr_lightning.evaluation.report import find_crops, save_versions, write_report
from sr_lightning.evaluation.subjects import subject, thinned
from tests.helpers import ROOT

PROTOCOL = "y_shave-scale_8bit_ssim-wang_lr-made"
ODD = ["</script><script>alert(1)</script>", "a/b\\c:*?", "..", "100 % \"é\" 'ü' & <b>", "{{data}}", ""]


def noise(seed, shape):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def row(model, image="a", psnr=30.0, dataset="Set", scale=2, **more):
    scores = {"psnr_y": psnr, "ssim_y": 0.9} | more
    return {"model": model, "scale": scale, "dataset": dataset, "image": image, **scores, "protocol": PROTOCOL}


def saved(folder, image="a", models=("bicubic", "net"), dataset="Set", scale=2):
    pictures = {model: noise(i, (3, 24, 20)) for i, model in enumerate(models)}
    lr, hr = noise(100, (3, 24 // scale, 20 // scale)), noise(101, (3, 24, 20))
    return save_versions(folder, dataset, image, scale, lr, pictures, hr)


def data_of(page):
    """The data embedded for the page's script."""
    found = re.search(r'<script id="data" type="application/json">(.*?)</script>', page.read_text(), flags=re.DOTALL)
    return json.loads(found[1])


@pytest.mark.parametrize("channels", [1, 3])
def test_saved_pictures_are_lossless(channels, tmp_path):
    lr, hr = noise(0, (channels, 10, 8)), noise(1, (channels, 20, 16))
    models = {"bicubic": noise(2, (channels, 20, 16)), "net": noise(3, (channels, 20, 16))}
    versions = save_versions(tmp_path, "Set", "a", 2, lr, models, hr)
    expected = {versions.lr: lr, versions.hr: hr} | {versions.models[name]: models[name] for name in models}
    assert len(expected) == 4
    for path, planes in expected.items():
        with Image.open(path) as image:
            read = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
        assert np.array_equal(read, np.broadcast_to(planes, read.shape))


def test_images_too_large_for_webp_are_png(tmp_path):
    hr = noise(0, (1, 2, 16384))
    versions = save_versions(tmp_path, "Set", "a", 2, hr[:, :1, ::2], {"bicubic": hr}, hr)
    assert {file.suffix for file in versions.files} == {".png"}
    with Image.open(versions.hr) as image:
        assert np.array_equal(np.asarray(image), hr[0])


def brute_force(hr, bicubic, model, border, size):
    """Mean squared luma error of bicubic less that of the model in every window, as {(top, left): value}."""
    truth, base, sr = (rgb2ycbcr(image.transpose(1, 2, 0))[..., 0] for image in (hr, bicubic, model))
    height, width = truth.shape
    gains = {}
    for top in range(border, height - border - size + 1):
        for left in range(border, width - border - size + 1):
            w = np.s_[top : top + size, left : left + size]
            gains[top, left] = ((base[w] - truth[w]) ** 2).mean() - ((sr[w] - truth[w]) ** 2).mean()
    return gains


@pytest.mark.parametrize(("border", "size"), [(0, 8), (3, 8), (2, 5)])
def test_crops_equal_an_exhaustive_search(border, size):
    hr, bicubic, model = (noise(seed, (3, 33, 29)) for seed in range(3))
    crops = find_crops({"bicubic": bicubic, "net": model}, hr, border, size, count=3)
    gains = brute_force(hr, bicubic, model, border, size)
    for sign, found in ((1, crops[:3]), (-1, crops[3:])):
        left_over = dict(gains)
        for crop in found:
            best = max(left_over, key=lambda place: sign * left_over[place])
            assert (crop.top, crop.left, crop.size) == (*best, size)
            assert crop.gain == pytest.approx(gains[best], rel=1e-9)
            left_over = {
                p: g for p, g in left_over.items() if abs(p[0] - best[0]) >= size or abs(p[1] - best[1]) >= size
            }
    assert [crop.gain > 0 for crop in crops] == [True] * 3 + [False] * 3
    top, left = crops[0].top, crops[0].left
    truth, sr = (rgb2ycbcr(image.transpose(1, 2, 0))[top : top + size, left : left + size, 0] for image in (hr, model))
    assert crops[0].psnr == pytest.approx(10 * np.log10(255**2 / ((sr - truth) ** 2).mean()), abs=1e-9)


def test_bicubic_model_has_no_crops():
    hr, bicubic = noise(0, (3, 60, 60)), noise(1, (3, 60, 60))
    assert find_crops({"bicubic": bicubic, "copy": bicubic.copy()}, hr) == ()


def test_perfect_model_has_only_gains():
    hr = noise(0, (3, 60, 60))
    crops = find_crops({"bicubic": noise(1, hr.shape), "perfect": hr.copy()}, hr)
    assert crops
    assert all(crop.gain > 0 and crop.psnr == float("inf") for crop in crops)


def test_no_crops_without_bicubic():
    hr = noise(0, (3, 60, 60))
    assert find_crops({"net": noise(1, hr.shape)}, hr) == ()


def test_small_image_is_one_crop():
    hr = noise(0, (1, 9, 12))
    crops = find_crops({"bicubic": noise(1, hr.shape), "perfect": hr.copy()}, hr, border=1)
    assert (crops[0].size, crops[0].top) == (7, 1)


def test_few_pictures_are_embedded_in_the_page(tmp_path):
    versions = [saved(tmp_path / "report_files")]
    pictures = {name: path.read_bytes() for name, path in versions[0].models.items()}
    size = write_report(tmp_path / "report.html", [row("bicubic"), row("net")], versions)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert size == (tmp_path / "report.html").stat().st_size
    files = data_of(tmp_path / "report.html")["sets"][0]["images"][0]["files"]
    assert len(files) == 4
    assert base64.b64decode(files[2].removeprefix("data:image/webp;base64,")) == pictures["net"]


def test_many_pictures_are_linked_from_the_page(tmp_path):
    versions = [saved(tmp_path / "report_files", name) for name in ("a", "b c")]
    rows = [row(model, image) for model in ("bicubic", "net") for image in ("a", "b c")]
    size = write_report(tmp_path / "report.html", rows, versions, embedded=1000)
    on_disk = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert size == sum(path.stat().st_size for path in on_disk)
    named = [
        tmp_path / unquote(file)
        for image in data_of(tmp_path / "report.html")["sets"][0]["images"]
        for file in image["files"]
    ]
    assert len(named) == 8
    assert set(named) == set(on_disk) - {tmp_path / "report.html"}


def test_page_states_its_own_size(tmp_path):
    write_report(tmp_path / "report.html", [row("bicubic"), row("net")], [saved(tmp_path / "report_files")])
    stated = int(re.search(r'data-bytes="(\d+)"', (tmp_path / "report.html").read_text())[1])
    assert stated == pytest.approx((tmp_path / "report.html").stat().st_size, rel=1e-2)


@pytest.mark.parametrize("name", ODD)
def test_odd_names_are_escaped(name, tmp_path):
    folder = tmp_path / "run" / "report_files"
    odd = saved(folder, name, ("bicubic", name), name)
    rows = [row("bicubic", name, dataset=name), row(name, name, dataset=name)]
    page = tmp_path / "run" / "report.html"
    write_report(page, rows, [odd], facts={name: name}, commands=[name], leaderboard=[{name: name}], embedded=0)
    data = data_of(page)
    assert data["sets"][0]["dataset"] == data["sets"][0]["models"][1] == data["sets"][0]["images"][0]["name"] == name
    assert (data["facts"], data["commands"], data["leaderboard"]) == ({name: name}, [name], [{name: name}])
    assert all(folder in file.resolve().parents for file in odd.files)
    named = [unquote(file) for file in data["sets"][0]["images"][0]["files"]]
    assert [page.parent / file for file in named] == odd.files

    tags = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: tags.append(tag)
    parser.feed(page.read_text())
    assert tags.count("script") == 2
    assert "b" not in tags


def test_different_names_have_different_files(tmp_path):
    names = ["a b", "a-b", "a/b", "a  b", "x" * 60, "x" * 61]
    files = {file for name in names for file in saved(tmp_path, name).files}
    assert len(files) == 4 * len(names)


def test_sets_and_scales_are_kept_apart(tmp_path):
    rows = [
        row(m, i, psnr, d, s)
        for s, d in ((2, "A"), (2, "B"), (3, "A"))
        for m, psnr in (("bicubic", 30.0 + s), ("net", 31.0 + s))
        for i in ("x", "mean")
    ]
    versions = [saved(tmp_path / "report_files", "x", dataset="B")]
    write_report(tmp_path / "report.html", rows, versions)
    sets = data_of(tmp_path / "report.html")["sets"]
    assert [(s["dataset"], s["scale"]) for s in sets] == [("A", 2), ("B", 2), ("A", 3)]
    assert [s["mean"] for s in sets] == [[[32.0, 0.9], [33.0, 0.9]]] * 2 + [[[33.0, 0.9], [34.0, 0.9]]]
    assert [["files" in image for image in s["images"]] for s in sets] == [[False], [True], [False]]


def test_each_set_states_its_protocol(tmp_path):
    rows = [row("net"), row("net", dataset="Other") | {"protocol": "another"}]
    write_report(tmp_path / "report.html", rows)
    data = data_of(tmp_path / "report.html")
    assert [s["protocol"] for s in data["sets"]] == [PROTOCOL, "another"]


def test_infinite_and_missing_scores_are_reported(tmp_path):
    rows = [
        row("bicubic", lpips=0.4),
        row("net", psnr=float("inf"), lpips=float("nan")),
        row("other", psnr=np.float64(1)),
    ]
    write_report(tmp_path / "report.html", rows)
    (entry,) = data_of(tmp_path / "report.html")["sets"]
    assert entry["scores"] == ["psnr_y", "ssim_y", "lpips"]
    assert entry["images"][0]["scores"] == [[30.0, 0.9, 0.4], [1e308, 0.9, None], [1.0, 0.9, None]]


def test_kill_while_writing_leaves_the_old_page(tmp_path, monkeypatch):
    page = tmp_path / "report.html"
    write_report(page, [row("old")])
    old = page.read_text()

    def killed(self, text, **_):
        self.write_bytes(text[: len(text) // 2].encode())
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", killed)
    versions = saved(tmp_path / "report_files")
    with pytest.raises(KeyboardInterrupt):
        write_report(page, [row("bicubic"), row("net")], [versions])
    assert page.read_text() == old
    assert os.listdir(tmp_path / "report_files")  # the pictures to embed still exist
    assert sorted(os.listdir(tmp_path)) == ["report.html", "report_files"]


def test_page_links_only_its_own_pictures(tmp_path):
    write_report(tmp_path / "report.html", [row("bicubic"), row("net")], [saved(tmp_path / "report_files")], embedded=0)
    text = (tmp_path / "report.html").read_text().replace("http://www.w3.org/2000/svg", "")
    assert not re.findall(r"""https?:|//[a-z0-9-]+\.|@import|url\((?!#)""", text)
    assert "default-src 'none'" in text


def test_missing_data_for_the_report_is_an_error(tmp_path):
    with pytest.raises(InputError, match="no scores to report"):
        write_report(tmp_path / "report.html", [])
    with pytest.raises(InputError, match="missing: image, scale"):
        write_report(tmp_path / "report.html", [{"model": "a", "dataset": "b", "protocol": "p", "psnr_y": 1.0}])
    hr, lr = noise(0, (3, 20, 20)), noise(0, (3, 5, 10))
    with pytest.raises(InputError, match="HR is 20x20, but LR enlarged 10x20, net 20x22"):
        save_versions(tmp_path, "Set", "a", 2, lr, {"bicubic": hr, "net": noise(0, (3, 20, 22))}, hr)
    assert not list(tmp_path.iterdir())


def test_long_curves_keep_their_best_and_last_points():
    curve = [(step, 30.0 + (step == 777)) for step in range(1000)]
    points = thinned(curve, 100)
    assert points[0] == (0, 30.0) and points[-1] == (999, 30.0) and (777, 31.0) in points
    assert len(points) == 102
    assert thinned(curve[:100], 100) == curve[:100]
    assert thinned([]) == []


def test_networks_are_described_by_their_runs(tmp_path, caplog):
    run = tmp_path / "a_run"
    shutil.copytree(next((ROOT / "tests" / "earlier_version" / "multirun" / "tiny").glob("*seed2*")), run)
    (run / "metrics.csv").write_text("step,val/psnr\n10,20.5\n20,\n30,nan\n")
    (model,) = requested_models([run / "checkpoints" / "best.ckpt"])
    described = subject(model)
    parameters = sum(p.numel() for p in model.network.parameters())
    expected = {
        "network": "SRCNN",
        "parameters": f"{parameters:,}",
        "weights": "best.ckpt",
        "run": "a_run",
        "seed": "2",
    }
    assert expected.items() <= described["facts"].items()
    assert described["facts"]["steps"] == f"{model.step} of {described['facts']['steps'].split()[-1]}"
    (ensemble,) = requested_models([run / "checkpoints" / "best.ckpt"], self_ensemble=True)
    assert subject(ensemble)["facts"] == described["facts"]
    write_report(tmp_path / "report.html", [row("net")], subjects=[described])
    assert data_of(tmp_path / "report.html")["subjects"][0]["curve"] == [[10, 20.5], [30, None]]

    (run / "metrics.csv").write_text("step,val/psnr\nten,20.5\n")
    assert subject(model)["curve"] == [] and "best.ckpt: the report lacks the facts on its run" in caplog.text
    moved = replace(model, source=tmp_path / "best.ckpt")
    assert "run" not in subject(moved)["facts"] and "weights" not in subject(replace(model, source=None))["facts"]
