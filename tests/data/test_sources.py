"""Lists of image files, from folders of empty files: sources look at names only."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from hydra.utils import instantiate
from omegaconf import OmegaConf

import sr_lightning.data
from sr_lightning.data import sources
from sr_lightning.data.sources import (
    HELD_OUT_PHOTOS,
    PHOTOS,
    TRAIN_PHOTOS,
    Pair,
    UnpairedError,
    benchmark_set,
    bundled_photos,
    folder_pairs,
    image_folder,
    joined,
    split_folder,
)
from sr_lightning.errors import InputError
from sr_lightning.images.files import read_image
from sr_lightning.training.checks import check_data
from tests.helpers import compose, run_in_new_interpreter


def touch(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()
    return folder


def names(pairs):
    return [pair.name for pair in pairs]


def test_folder_lists_its_images_by_name(tmp_path):
    hr = touch(tmp_path / "hr", "b.png", "a.jpg")
    assert image_folder(hr) == [Pair("a", hr / "a.jpg"), Pair("b", hr / "b.png")]


def test_several_folders_may_share_names(tmp_path):
    first, second = touch(tmp_path / "1", "b.png", "c.png"), touch(tmp_path / "2", "a.png", "b.png")
    folders = OmegaConf.create([str(first), str(second)])  # as yaml hands them over
    files = [pair.hr for pair in image_folder(folders)]
    assert files == [first / "b.png", first / "c.png", second / "a.png", second / "b.png"]


@pytest.mark.parametrize("ending", ["", "x4", "x4m"])
def test_lr_is_matched_to_hr_by_stem(tmp_path, ending):
    hr, lr = touch(tmp_path / "hr", "0001.png", "0002.jpg"), touch(tmp_path / "lr", f"0001{ending}.png")
    touch(lr, f"0002{ending}.png")
    expected = [
        Pair("0001", hr / "0001.png", lr / f"0001{ending}.png"),
        Pair("0002", hr / "0002.jpg", lr / f"0002{ending}.png"),
    ]
    assert image_folder(hr, lr, scale=4) == image_folder(hr, lr) == expected


@pytest.mark.parametrize(
    ("hr_name", "lr_name"),
    [
        ("baby", "baby_LRBI_x3"),  # RCAN
        ("baby_HR_x3", "baby_LRBI_x3"),
        ("img_001_SRF_3_HR", "img_001_SRF_3_LR"),  # SelfExSR
        ("baby", "baby_x3"),
        ("baby", "babyX3"),
        ("baby", "baby-x3"),
        ("baby_GT", "baby_LR"),
        ("baby", "baby_bicubic_x3"),
    ],
)
def test_lr_named_as_other_projects_do_is_matched(tmp_path, hr_name, lr_name):
    hr, lr = (
        touch(tmp_path / "hr", f"{hr_name}.png", "bird.png"),
        touch(tmp_path / "lr", f"{lr_name}.png", "birdx3.png"),
    )
    assert [(pair.name, pair.lr.name) for pair in image_folder(hr, lr, scale=3)] == [
        *sorted([("bird", "birdx3.png"), (hr_name, f"{lr_name}.png")], key=lambda pair: f"{pair[0]}.png")
    ]


def test_the_nearest_name_is_matched(tmp_path):
    hr, lr = touch(tmp_path / "hr", "a.png", "a_LR.png", "ax3.png"), touch(tmp_path / "lr", "a_x3.png", "a_LRx3.png")
    touch(lr, "ax3x3.png")
    assert [pair.lr.name for pair in image_folder(hr, lr, scale=3)] == ["a_x3.png", "a_LRx3.png", "ax3x3.png"]
    touch(hr, "b_GT.png", "b_HR.png")
    touch(lr, "b_LR.png")
    with pytest.raises(InputError, match=r"b_LR\.png: LR without HR"):  # of which, is not known
        image_folder(hr, lr, scale=3)


def test_lr_folder_may_have_subfolders_of_scales(tmp_path):
    hr, lr = touch(tmp_path / "hr", "0801.png"), touch(tmp_path / "LR_bicubic" / "X3", "0801x3.png")
    touch(tmp_path / "LR_bicubic" / "X2", "0801x2.png")
    assert image_folder(hr, lr.parent, scale=3) == [Pair("0801", hr / "0801.png", lr / "0801x3.png")]
    with pytest.raises(InputError, match=r"LR_bicubic: no image in this folder"):
        image_folder(hr, lr.parent, scale=4)


def test_unpaired_files_leave_the_complete_pairs(tmp_path):
    hr, lr = touch(tmp_path / "hr", "a.png", "b.png"), touch(tmp_path / "lr", "ax2.png")
    with pytest.raises(UnpairedError) as caught:
        image_folder(hr, lr, scale=2)
    assert caught.value.pairs == [Pair("a", hr / "a.png", lr / "ax2.png")]


def test_lr_folder_without_the_scale_says_which_it_has(tmp_path):
    hr = touch(tmp_path / "hr", "a.png")
    touch(tmp_path / "lr" / "X2", "ax2.png")
    with pytest.raises(InputError, match=r"lr: no image in this folder for scale 8, only X2; set lr to null"):
        image_folder(hr, tmp_path / "lr", scale=8)


def test_joined_sets_keep_their_order_and_get_distinct_names(tmp_path):
    first, second = touch(tmp_path / "1", "b.png", "c.png"), touch(tmp_path / "2", "a.png", "b.png")
    pairs = joined(one=image_folder(first), two=image_folder(second))
    assert names(pairs) == ["one_b", "c", "a", "two_b"]
    assert [pair.hr for pair in pairs] == [first / "b.png", first / "c.png", second / "a.png", second / "b.png"]


@pytest.mark.parametrize("sets", [{}, {"one": []}, {"one": {"hr": "photos"}}, {"one": None}])
def test_joining_nothing_is_refused(sets):
    with pytest.raises(InputError, match="joined sets: "):
        joined(**sets)


def test_df2k_is_div2k_and_flickr2k_with_their_lr(tmp_path):
    numbers = [f"{number:04}" for number in range(1, 811)]
    for split, part in (("train", numbers[:800]), ("valid", numbers[800:])):
        touch(tmp_path / f"DIV2K_{split}_HR", *(f"{name}.png" for name in part))
        touch(tmp_path / f"DIV2K_{split}_LR_bicubic" / "X2", *(f"{name}x2.png" for name in part))
    touch(tmp_path / "Flickr2K" / "Flickr2K_HR", "000001.png", "000002.png")
    touch(tmp_path / "Flickr2K" / "Flickr2K_LR_bicubic" / "X2", "000001x2.png", "000002x2.png")
    cfg = compose("data=df2k", "scale=x2", f"data_root={tmp_path}")
    train, val = instantiate(cfg.data.train), instantiate(cfg.data.val)
    assert names(train) == [*numbers[:800], "000001", "000002"] and names(val) == numbers[800:]
    assert all(pair.lr.name == f"{pair.name}x2.png" for pair in train)


def test_missing_sets_of_a_join_are_all_named_also_beside_one_that_is_downloaded(tmp_path):
    words = ("data=df2k", "scale=x2", f"data_root={tmp_path}")
    with pytest.raises(InputError, match=r"(?s)DIV2K images are missing.*Flickr2K_HR: no such folder.*fetch flickr2k"):
        check_data(compose(*words).data)
    with pytest.raises(InputError, match=r"^\S*Flickr2K_HR: no such folder"):
        check_data(compose(*words, "data.train.div2k.download=true").data)


@pytest.mark.parametrize(
    ("values", "shown"), [("[on]", "true"), ("[1, 1e3]", r"1000\.0"), ("1e3", r"1000\.0"), ("[no, '~']", "false")]
)
def test_values_that_yaml_has_changed_are_refused(tmp_path, values, shown):
    hr = touch(tmp_path / "hr", "a.png")
    changed = yaml.safe_load(values.replace("1e3", "1.0e+3"))  # Hydra also reads 1e3 as a number
    with pytest.raises(InputError, match=rf"exclude: {shown} is not a name: .* in quotes"):
        image_folder(hr, exclude=changed)
    with pytest.raises(InputError, match=r"lr: true is not a name"):
        image_folder(hr, True)


def test_number_in_place_of_a_name_with_zeros_is_refused(tmp_path):
    hr = touch(tmp_path / "hr", "0701.png", "0801.png", "302003.png", "b.png")
    with pytest.raises(InputError, match=r'there is no image 801; for 0801, write it in quotes: "0801"'):
        image_folder(hr, exclude=[801])
    (octal,) = yaml.safe_load("[0701]")
    with pytest.raises(InputError, match=r"there is no image 449; for 0701"):
        image_folder(hr, exclude=[octal])
    assert len(image_folder(hr, exclude=[302003, 12, "0801"])) == 2


def test_hr_name_ending_like_a_scale_keeps_its_lr(tmp_path):
    hr, lr = touch(tmp_path / "hr", "a.png", "ax2.png"), touch(tmp_path / "lr", "a.png", "ax2.png")
    assert [pair.lr.name for pair in image_folder(hr, lr, scale=2)] == ["a.png", "ax2.png"]


def test_unpaired_files_are_all_named(tmp_path):
    hr, lr = touch(tmp_path / "hr", "a.png", "b.png", "c.png"), touch(tmp_path / "lr", "ax4.png", "d.png", "cx2.png")
    with pytest.raises(InputError) as caught:
        image_folder(hr, lr, scale=4)
    message = str(caught.value)
    assert "<stem> or <stem>x4" in message
    for line in ("lr/cx2.png: LR without HR", "lr/d.png: LR without HR", "hr/b.png: HR without LR"):
        assert f"{tmp_path}/{line}" in message
    assert "hr/c.png: HR without LR" in message and "a.png" not in message


def test_two_files_for_one_place_are_named(tmp_path):
    hr, lr = touch(tmp_path / "hr", "a.png"), touch(tmp_path / "lr", "a.png", "ax4.png")
    with pytest.raises(InputError, match=r"ax4\.png: matches a, as does .*a\.png"):
        image_folder(hr, lr, scale=4)
    other = touch(tmp_path / "other", "a.jpg")
    with pytest.raises(InputError, match=r"a\.png: the same name as .*a\.jpg"):
        image_folder([str(hr), str(other)], lr, scale=4)


def test_excluded_images_take_their_lr_along_and_may_be_absent(tmp_path):
    hr, lr = touch(tmp_path / "hr", "302003.jpg", "1.jpg"), touch(tmp_path / "lr", "302003x2.png", "1x2.png")
    assert names(image_folder(hr, exclude=["302003", "absent"])) == ["1"]
    assert names(image_folder(hr, exclude=[302003])) == names(image_folder(hr, exclude="302003")) == ["1"]
    assert names(image_folder(hr, lr, exclude=["302003"], scale=2)) == ["1"]
    with pytest.raises(InputError, match="no image left"):
        image_folder(hr, exclude=["302003", "1"])


def test_split_has_every_image_once_in_the_given_share(tmp_path):
    hr = touch(tmp_path / "hr", *(f"{i}.png" for i in range(50)))
    train, val = split_folder(hr, part="train", fraction=0.2), split_folder(hr, part="val", fraction=0.2)
    assert len(val) == 10 and sorted([*train, *val], key=lambda pair: pair.hr) == image_folder(hr)
    assert val == split_folder(hr, part="val", fraction=0.2)


def test_images_of_one_stem_have_different_names(tmp_path):
    one, other = touch(tmp_path / "one", "a.png", "a.jpg", "b.png", "mean.png"), touch(tmp_path / "other", "a.png")
    assert [pair.name for pair in image_folder(one)] == ["a.jpg", "a.png", "b", "mean.png"]
    names = [pair.name for pair in image_folder([str(one), str(other)])]
    assert names == ["a.jpg", "one_a.png", "b", "mean.png", "other_a.png"]


def test_names_of_any_bytes_are_listed_and_split(tmp_path):
    touch(tmp_path, "\udcff.png", "a\nb.png", "ä.png", "n" * 251 + ".png")
    train, val = (split_folder(tmp_path, part=part, fraction=0.5) for part in ("train", "val"))
    assert {pair.name for pair in (*train, *val)} == {"\udcff", "a\nb", "ä", "n" * 251}


def test_split_depends_on_stems_and_survives_additions(tmp_path):
    stems = [f"image{i}" for i in range(40)]
    png, jpg = touch(tmp_path / "a", *(f"{s}.png" for s in stems)), touch(tmp_path / "b", *(f"{s}.jpg" for s in stems))
    held_out = names(split_folder(png, part="val"))
    assert held_out == names(split_folder(jpg, part="val")) == ["image0", "image34", "image36", "image6"]
    touch(png, "more1.png", "more2.png")
    assert len(set(held_out) - set(names(split_folder(png, part="val")))) <= 2


def test_each_part_of_a_split_has_an_image(tmp_path):
    hr = touch(tmp_path / "hr", "a.png", "b.png")
    for fraction in (0.01, 0.99):
        assert [len(split_folder(hr, part=part, fraction=fraction)) for part in ("train", "val")] == [1, 1]
    (hr / "b.png").unlink()
    with pytest.raises(InputError, match="1 image cannot be split"):
        split_folder(hr)


def test_split_takes_lr_along_and_refuses_unknown_parts(tmp_path):
    hr, lr = touch(tmp_path / "hr", "a.png", "b.png"), touch(tmp_path / "lr", "ax3.png", "bx3.png")
    (pair,) = split_folder(hr, lr, part="val", scale=3)
    assert pair.lr == lr / f"{pair.name}x3.png"
    with pytest.raises(InputError, match="part=test: choose train or val"):
        split_folder(hr, part="test")
    with pytest.raises(InputError, match="fraction=1"):
        split_folder(hr, fraction=1)


def test_bundled_photos_exist_and_held_out_ones_are_different():
    pairs = bundled_photos(PHOTOS)
    assert names(pairs) == [*TRAIN_PHOTOS, *HELD_OUT_PHOTOS] and len(pairs) == 15
    assert not TRAIN_PHOTOS.keys() & HELD_OUT_PHOTOS.keys()
    assert read_image(bundled_photos("coffee")[0].hr).shape == (3, 400, 600)


def test_bundled_photos_do_not_import_scikit_image():
    code = (
        "import sys; from sr_lightning.data.sources import bundled_photos; "
        "bundled_photos(['coffee']); sys.exit('skimage' in sys.modules)"
    )
    run_in_new_interpreter("-c", code)


def test_unknown_photo_or_missing_package_is_an_error(monkeypatch):
    with pytest.raises(InputError, match=r"lena, 7; choose from rocket, .* coffee"):
        bundled_photos(["lena", "camera", 7])
    monkeypatch.setattr(sources, "PHOTOS", {"camera": "removed.png"})
    with pytest.raises(InputError, match=r"lacks removed\.png.*pip install"):
        bundled_photos(["camera"])
    monkeypatch.setattr(sources, "find_spec", lambda name: find_spec("no_such_package_as_this"))
    with pytest.raises(InputError, match=r'pip install "scikit-image>=0\.25'):
        bundled_photos(["camera"])


def test_benchmark_set_has_the_lr_files_of_its_archive(tmp_path):
    hr = touch(tmp_path / "benchmark" / "Set2" / "HR", "a.png", "b.png")
    lr = touch(tmp_path / "benchmark" / "Set2" / "LR_bicubic" / "X3", "ax3.png", "bx3.png")
    assert benchmark_set(tmp_path, "Set2", 3) == [Pair(s, hr / f"{s}.png", lr / f"{s}x3.png") for s in "ab"]
    assert benchmark_set(tmp_path, "Set2", 8) == [Pair(s, hr / f"{s}.png") for s in "ab"]
    (lr / "bx3.png").unlink()
    with pytest.raises(InputError, match=r"b\.png: HR without LR"):
        benchmark_set(tmp_path, "Set2", 3)


def test_unknown_benchmark_set_lists_the_available_ones(tmp_path):
    with pytest.raises(InputError, match=r"no test set Set5 \(it has no <name>/HR at all\)"):
        benchmark_set(tmp_path, "Set5", 4)
    for name in ("Set14", "B100"):
        touch(tmp_path / "benchmark" / name / "HR", "a.png")
    with pytest.raises(InputError, match=r"no test set Set5 \(available: B100, Set14"):
        benchmark_set(tmp_path, "Set5", 4)


def test_real_sets_are_paired(data_root):
    assert len(benchmark_set(data_root, "Set5", 4)) == 5
    bsd100 = benchmark_set(data_root, "BSD100", 3)
    assert len(bsd100) == 100 and all(pair.lr.stem == f"{pair.name}x3" for pair in bsd100)
    folders = [str(data_root / "BSDS500" / part) for part in ("train", "test")]
    assert len(image_folder(folders, exclude=["302003"])) == 399


def test_lists_of_files_need_no_torch_and_no_lightning():
    code = """
import sys
from sr_lightning.data import benchmark_set, bundled_photos, image_folder
from sr_lightning.data.celeba import celeba
from sr_lightning.data.div2k import div2k
from sr_lightning.data.sources import folder_pairs
from sr_lightning.images.folder import image_files
from sr_lightning.images.formats import IMAGE_SUFFIXES
bundled_photos(["coffee"])
slow = {"torch", "pytorch_lightning", "lightning", "PIL", "numpy"} & sys.modules.keys()
assert not slow, slow
"""
    run_in_new_interpreter("-c", code)
    assert issubclass(sr_lightning.data.FolderDataModule, sr_lightning.data.SRDataModule)


def test_the_package_has_no_other_names():
    with pytest.raises(AttributeError, match=r"module 'sr_lightning\.data' has no attribute 'NoDataModule'"):
        sr_lightning.data.NoDataModule  # noqa: B018


def test_folder_pairs_holds_images_out_or_takes_another_folder(tmp_path):
    hr = str(touch(tmp_path / "hr", *(f"{name}.png" for name in "abcdefghij")))
    other = str(touch(tmp_path / "other", "x.png", "y.png"))
    train, val = folder_pairs(hr, val_fraction=0.3)
    assert (len(train), len(val)) == (7, 3)
    assert sorted(pair.name for pair in train + val) == list("abcdefghij")
    assert [pair.name for pair in folder_pairs(hr, val_hr=other)[1]] == ["x", "y"]
    with pytest.raises(InputError, match=r"data\.val_lr=lr needs data\.val_hr, the folder of its HR images"):
        folder_pairs(hr, val_lr="lr")
