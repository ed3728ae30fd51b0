"""python -m sr_lightning.figure: the crops are the pixels, the numbers those of evaluate.py."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from sr_lightning.figure import Box, draw, figure, find_image, main, part_around
from sr_lightning.figure import Versions as Pictures
from tests.helpers import ROOT

RUN = next((ROOT / "tests" / "earlier_version" / "multirun" / "tiny").glob("*seed1*"))  # a SRCNN x2
OTHER = next((ROOT / "tests" / "earlier_version" / "multirun" / "tiny").glob("*seed2*"))
pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A data root with two test sets: a colour image with an odd size, and a gray one that both have."""
    root = tmp_path_factory.mktemp("root")
    rng = np.random.default_rng(1)
    for name, images in {"Mine": {"wing": (61, 47, 3), "gray": (50, 53)}, "Other": {"gray": (40, 40)}}.items():
        folder = root / "benchmark" / name / "HR"
        folder.mkdir(parents=True)
        for image, shape in images.items():
            Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(folder / f"{image}.png")
    return root


def noise(**sizes):
    rng = np.random.default_rng(2)
    return {name: rng.integers(0, 256, (*size, 3), dtype=np.uint8) for name, size in sizes.items()}


def contains(picture, part):
    """Return True if `part` is a rectangle of `picture`."""
    windows = np.lib.stride_tricks.sliding_window_view(picture[..., 0], part.shape[:2])
    corners = np.argwhere((windows[..., 0, :] == part[0, :, 0]).all(-1))
    return any((picture[y : y + len(part), x : x + part.shape[1]] == part).all() for y, x in corners)


@pytest.mark.parametrize(("box", "zoom"), [(Box(3, 5, 16, 12), 17), (Box(0, 0, 37, 41), 6), (Box(30, 2, 3, 39), 12)])
def test_crops_of_a_png_are_the_pixels_enlarged(tmp_path, box, zoom):
    pictures = noise(HR=(41, 37), LR=(41, 37), bicubic=(41, 37), net=(41, 37))
    versions = Pictures(pictures, {"bicubic": 20.0, "net": 21.0}, "y", "protocol", box)
    draw(tmp_path / "figure.png", versions, box, "title", "about")
    drawn = np.asarray(Image.open(tmp_path / "figure.png").convert("RGB"))
    for name, picture in pictures.items():
        assert contains(drawn, picture[box.pixels].repeat(zoom, 0).repeat(zoom, 1)), name


def test_letters_that_the_font_lacks_are_named_in_one_line(tmp_path, caplog, recwarn):
    versions = Pictures(noise(HR=(9, 9), LR=(9, 9), 蝶=(9, 9)), {"蝶": 21.0}, "y", "protocol", Box(0, 0, 9, 9))
    draw(tmp_path / "figure.png", versions, versions.chosen, "翅, Müller", "about")
    assert [record.getMessage() for record in caplog.records if "翅 蝶" in record.getMessage()] == caplog.messages
    assert len(caplog.messages) == 1 and not recwarn.list


def test_a_pdf_holds_the_pixels_without_loss_and_no_type_3_font(tmp_path, root):
    for name in ("a.pdf", "b.pdf"):
        figure([RUN], "wing", crop="4,4,20,20", output=tmp_path / name, data_root=root)
    text = (tmp_path / "a.pdf").read_bytes()
    assert text.startswith(b"%PDF") and b"DCTDecode" not in text and b"Type3" not in text
    assert text == (tmp_path / "b.pdf").read_bytes()


def test_numbers_are_those_of_evaluate(tmp_path, root):
    from sr_lightning.data.sources import benchmark_set
    from sr_lightning.degradations import Bicubic
    from sr_lightning.evaluation.evaluate import requested_models
    from sr_lightning.evaluation.scoring import Scorer
    from sr_lightning.metrics import Protocol
    from sr_lightning.runs.folder import find_checkpoint

    line = figure([f"Ours={RUN}", OTHER], "gray", "Mine", output=tmp_path / "f.png", data_root=root)
    models = requested_models([find_checkpoint(RUN), find_checkpoint(OTHER)])
    rows = Scorer(Protocol(), Bicubic(), {}).score_sets(models, {"Mine": benchmark_set(root, "Mine", 2)})
    expected = [f"{row['psnr_y']:.2f} dB" for row in rows if row["image"] == "gray"]
    names = ("bicubic", "Ours", models[1].name)
    assert line.endswith("; PSNR of the whole image by y_shave-scale_8bit_ssim-wang_lr-made: " + ", ".join(
        f"{name} {psnr}" for name, psnr in zip(names, expected, strict=True)
    ))  # fmt: skip
    assert Image.open(tmp_path / "f.png").text["Description"] in line


def test_a_checkpoint_and_a_file_are_enough(tmp_path, root, trained, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = root / "benchmark" / "Mine" / "HR" / "wing.png"
    assert "tiny" in figure([trained], str(file), data_root=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["wing_x2.png"]


def test_the_place_is_where_the_first_model_gains_most(tmp_path, root):
    lines = [figure([RUN], "wing", crop=crop, output=tmp_path / "f.png", data_root=root) for crop in (None, "0,0,9,9")]
    assert "crop 0,0,9,9;" in lines[1] and "crop 0,0,9,9;" not in lines[0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--image", "wng"], "--image wng: neither a file nor an image of test set Mine, Other; did you mean wing?"),
        (["--image", "gray"], "--image gray is in several test sets: add --set Mine or --set Other"),
        (["--image", "wing", "--set", "Nine"], "no test set Nine (available: Mine, Other)"),
        (["--image", "wing", "--crop=40,1,8,8"], "ends at x 48, y 9, but wing has 47x61 pixels (width x height)"),
        (["--image", "wing", "--crop=1,1,0,8"], "--crop 1,1,0,8: give left,top,width,height in HR pixels"),
        (["--image", "wing", "--crop=-1,1,2,8"], "--crop -1,1,2,8: give left,top,width,height in HR pixels"),
        (["--image", "wing", "-o", "a.jpg"], "-o a.jpg: the name must end in .png or .pdf"),
        (["--image", "wing", "-o", "."], "-o . is a directory: name a file, such as figure.pdf"),
        (["--image", "wing", "-o", f"{__file__}/new/a.png"], f"/new/a.png: {__file__} is a file; give a folder"),
        ([f"LR={RUN}", f"A={RUN}", f"A={RUN}", "--image", "wing"], "LR, A: the label of several crops; give each its"),
        (["--image", "wing", "-o", f"{'n' * 300}.png"], "nnn.png: File name too long"),
        (["nowhere", "--image", "wing"], "there is no file or folder nowhere"),
    ],
)
def test_wrong_input_is_one_line_before_torch_is_imported(root, words, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "sr_lightning.evaluation.evaluate", None)  # importing it fails
    assert main([str(RUN), *words, f"--data-root={root}"]) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not list(tmp_path.iterdir())


def test_runs_of_several_scales_are_one_line_before_torch_is_imported(root, tmp_path, capsys):
    other = tmp_path / "run"
    (other / "checkpoints").mkdir(parents=True)
    (other / "checkpoints" / "best.ckpt").touch()
    (other / "config.yaml").write_text("scale: 3")
    assert main([str(RUN), str(other), "--image", "wing", f"--data-root={root}"]) == 1
    assert f"a figure shows networks of one scale, but {RUN} is x2, {other} is x3" in capsys.readouterr().err


def test_a_crop_in_the_rows_that_the_scale_does_not_divide_is_refused(root, tmp_path):
    with pytest.raises(ValueError, match="but wing at x2 has 46x60 pixels"):
        figure([RUN], "wing", crop="40,50,7,11", output=tmp_path / "f.png", data_root=root)


def test_very_wide_images_are_shown_around_the_square():
    assert part_around(Box(900, 10, 40, 40), (100, 1000)) == Box(840, 0, 160, 100)
    assert part_around(Box(10, 10, 300, 40), (100, 1000)) == Box(10, 0, 300, 100)
    assert part_around(Box(10, 10, 40, 40), (100, 120)) == Box(0, 0, 120, 100)


def test_images_are_found_by_path_before_name(root, tmp_path, monkeypatch):
    monkeypatch.chdir(root / "benchmark" / "Other" / "HR")
    assert find_image(root, None, "gray.png")[0] is None
    assert find_image(root, "Mine", "gray")[1].hr.parent.parent.name == "Mine"


@pytest.mark.slow
def test_the_command_imports_no_torch_for_a_wrong_name(root):
    program = (
        "import sys; from sr_lightning.figure import main\n"
        f"main([{str(RUN)!r}, '--image', 'wng', '--data-root', {str(root)!r}]); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def test_a_missing_package_is_named_with_its_extra(root, capsys, monkeypatch):
    monkeypatch.setattr("sr_lightning.figure.find_spec", lambda name: None)
    assert main([str(RUN), "--image", "wing", f"--data-root={root}"]) == 1
    assert "figures need matplotlib: pip install 'sr_lightning[train]'" in capsys.readouterr().err
