"""python -m sr_lightning.check: all findings about the images of a training in one table."""

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from PIL import Image

from sr_lightning.check import main
from sr_lightning.data.sources import bundled_photos
from sr_lightning.degradations import crop_to_multiple, downscale
from sr_lightning.images.files import read_image, write_image
from tests.helpers import compose

PHOTOS = ("chelsea", "coffee", "astronaut", "camera", "rocket")


@pytest.fixture(scope="module")
def photos():
    """Name -> part of a photo, uint8 (3, 200, 240)."""
    images = {name: read_image(bundled_photos(name)[0].hr) for name in PHOTOS}
    return {name: np.repeat(image, 4 - len(image), axis=0)[:3, 60:260, 60:300] for name, image in images.items()}


@pytest.fixture
def folders(tmp_path, photos):
    """Three pictures to train on with LR at x2, two to validate on."""
    for folder in ("hr", "lr", "val"):
        (tmp_path / folder).mkdir()
    for name in PHOTOS[:3]:
        write_image(tmp_path / "hr" / f"{name}.png", photos[name])
        write_image(tmp_path / "lr" / f"{name}x2.png", lr_of(photos[name]))
    for name in PHOTOS[3:]:
        write_image(tmp_path / "val" / f"{name}.png", photos[name])
    return tmp_path


def lr_of(image, scale=2):
    return downscale(torch.from_numpy(np.ascontiguousarray(crop_to_multiple(image, scale))), scale).numpy()


def check(capsys, folders, *overrides, lr=True):
    """Exit code and output of the command on the folders."""
    given = [f"data.lr={folders / 'lr'}"] if lr else []
    words = ["data=folder", f"data.hr={folders / 'hr'}", f"data.val_hr={folders / 'val'}", *given]
    code = main([*words, f"data_root={folders}", "data.patch_size=48", *overrides])
    return code, capsys.readouterr().out


def rows(output, *words):
    """The lines of the output that have all words."""
    return [line for line in output.splitlines() if all(word in line for word in words)]


def test_good_images_have_no_findings(capsys, folders):
    code, output = check(capsys, folders)
    assert code == 0 and "errors: 0, warnings: 0" in output
    assert rows(output, "training", "3", "200x240", "MATLAB's bicubic (3)")
    assert rows(output, "validation", "2", "none")


def test_damaged_pixels_in_the_cache_are_noticed_and_decoded_again(capsys, folders, tmp_path):
    cache = tmp_path / "cache"
    words = [f"data.hr={folders / 'hr'}", f"data.val_hr={folders / 'val'}", f"data.lr={folders / 'lr'}"]
    data = instantiate(compose("data=folder", "data.patch_size=48", f"cache_dir={cache}", *words).data)
    data.setup()
    with data.val_store.file.open("r+b") as file:
        file.seek(1000)
        file.write(b"wrong")
    code, output = check(capsys, folders, f"cache_dir={cache}")
    assert code == 0 and "errors: 0, warnings: 1" in output
    assert rows(output, "validation", "its decoded images in the cache are damaged")
    assert check(capsys, folders, f"cache_dir={cache}")[1].endswith("errors: 0, warnings: 0\n")
    assert not data.val_store.file.exists() and data.train_store.file.exists()


def test_all_findings_are_in_one_table(capsys, folders, photos):
    hr, lr = folders / "hr", folders / "lr"
    (hr / "cut.png").write_bytes((hr / "coffee.png").read_bytes()[:20000])
    write_image(hr / "black.png", np.zeros((3, 200, 240), np.uint8))
    write_image(hr / "small.png", photos["camera"][:, :60, :60])
    write_image(hr / "again.png", photos["coffee"])
    write_image(lr / "cutx2.png", lr_of(photos["coffee"]))
    write_image(lr / "blackx2.png", np.zeros((3, 100, 120), np.uint8))
    write_image(lr / "smallx2.png", lr_of(photos["camera"][:, :60, :60]))
    write_image(lr / "againx2.png", lr_of(photos["coffee"])[:, ::-1])
    write_image(hr / "alone.png", photos["rocket"])
    (hr / "notes.txt").touch()
    (hr / "list.TXT").touch()
    (hr / ".DS_Store").touch()
    code, output = check(capsys, folders)
    assert code == 1
    assert rows(output, "error", "training", "alone.png: HR without LR")
    assert rows(output, "error", "training", "cut.png", "cannot be decoded")
    assert rows(output, "warning", "training", "black.png", "all pixels are equal")
    assert rows(output, "error", "training", "small.png", "60x60 is smaller than a patch, 96x96")
    assert rows(output, "warning", "training", "again.png", "the same picture", "coffee.png", "every pixel is equal")
    assert rows(output, "error", "training", "againx2.png", "LR is HR flipped or rotated")
    assert rows(output, "warning", "training", "hr", "ignored: 2 .txt, 1 .DS_Store")
    assert "errors: 5, warnings: 3" in output


def test_small_images_are_no_error_if_they_are_left_out(capsys, folders, photos):
    write_image(folders / "hr" / "small.png", photos["camera"][:, :60, :60])
    assert check(capsys, folders, "data.skip_small=true", lr=False)[0] == 0


@pytest.mark.parametrize("set_name", ["validation", "Set1"])
def test_copy_of_a_training_image_in_a_held_out_set_is_an_error(capsys, folders, photos, set_name):
    place = folders / ("val" if set_name == "validation" else "benchmark/Set1/HR")
    place.mkdir(parents=True, exist_ok=True)
    part = Image.fromarray(photos["chelsea"].transpose(1, 2, 0)).crop((40, 40, 200, 180))
    part.transpose(Image.Transpose.ROTATE_90).resize((120, 140)).save(place / "copy.jpg", quality=60)
    code, output = check(capsys, folders)
    assert code == 1
    assert rows(output, "error", f"training, {set_name}", "chelsea.png", "copy.jpg", "flipped or rotated")
    assert "errors: 1, warnings: 0" in output


def test_lr_of_another_picture_or_size_is_an_error(capsys, folders, photos):
    lr = folders / "lr"
    write_image(lr / "chelseax2.png", lr_of(photos["camera"]))
    write_image(lr / "coffeex2.png", lr_of(photos["coffee"]).transpose(0, 2, 1))
    write_image(lr / "astronautx2.png", lr_of(np.roll(photos["astronaut"], 1, axis=2)))
    code, output = check(capsys, folders)
    assert code == 1
    assert rows(output, "error", "chelseax2.png", "LR shows another picture than HR")
    assert rows(output, "error", "coffeex2.png", "LR of 120x100, expected 100x120 (HR rotated?)")
    assert rows(output, "error", "astronautx2.png", "LR is displaced by 0 rows and 1.1 columns of HR")


def test_lr_that_is_not_matlabs_is_a_warning(capsys, folders, photos):
    for name in PHOTOS[:3]:
        image = Image.fromarray(photos[name].transpose(1, 2, 0))
        image.resize((120, 100), Image.Resampling.BICUBIC).save(folders / "lr" / f"{name}x2.png")
    code, output = check(capsys, folders)
    assert code == 0 and "errors: 0, warnings: 3" in output
    assert rows(output, "training", "200x240", "Pillow's bicubic (3)")
    assert rows(output, "warning", "coffeex2.png", "LR is not MATLAB's bicubic but Pillow's bicubic")


def test_folders_are_compared_with_the_first(capsys, folders, photos):
    write_image(folders / "val" / "part.png", photos["astronaut"][:, 20:160, 30:200])
    assert main([str(folders / "hr"), str(folders / "val")]) == 1
    output = capsys.readouterr().out
    assert rows(output, "error", f"training, {folders / 'val'}", "astronaut.png", "part.png", "100% of the smaller one")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["no_such_folder"], "no_such_folder: no such folder"),
        (["data=t91", "folder"], "give settings or folders, not both: folder has no `=`"),
        (["data=nothing"], "data=nothing is neither a folder nor one of"),
        (["foo=1"], "there is no setting foo"),
        (["data=folder"], "data=folder needs data.hr=DIR"),
        (["data=val_photos"], "these settings name no images"),
        (["data=demo", "benchmarks=[Set0]"], "no test set Set0"),
        (["data=demo", "benchmarks=Set5"], "give a list"),
        (["data=div2k", "data_root=nowhere"], "DIV2K images are missing"),
        (["data=demo", "data.patch_size=abc"], "data.patch_size=abc (must be a whole number of at least 1)"),
        (["data=demo", "data_root=???"], "Missing mandatory value: data_root"),
    ],
)
def test_wrong_settings_are_one_message(capsys, words, message):
    assert main(words) == 1
    printed = capsys.readouterr()
    assert message in printed.err and not printed.out


def test_many_equal_findings_are_counted(capsys, folders, photos):
    for number in range(25):
        write_image(folders / "hr" / f"black{number}.png", np.full((3, 100, 100), number, np.uint8))
    output = check(capsys, folders, lr=False)[1]
    assert len(rows(output, "all pixels are equal")) == 20 and rows(output, "and 5 more")
    assert "warnings: 25" in output
