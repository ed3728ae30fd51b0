"""LSDIR's folders as its archives unpack, in several places."""

import pytest

from sr_lightning.data import lsdir as module
from sr_lightning.data.lsdir import lsdir
from sr_lightning.errors import InputError


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Create three training and two validation images, with LR files and a test set in the way."""
    monkeypatch.setattr(module, "NUM_IMAGES", {"train": 3, "val": 2})
    files = ["shard-00/0001000/0000001.png", "shard-00/0001000/0000002.png", "HR/train/0002000/0000003.png"]
    files += ["X2/train/0001000/0000001x2.png", "X2/train/0001000/notes.txt", "test/HR/0000001.png"]
    files += [f"val1/{folder}/val/000000{i}{tail}.png" for folder, tail in (("HR", ""), ("X2", "x2")) for i in (1, 2)]
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    return tmp_path


def test_images_are_found_by_number_wherever_their_folders_are(small):
    assert [pair.hr.relative_to(small).as_posix() for pair in lsdir(small)] == [
        "shard-00/0001000/0000001.png",
        "shard-00/0001000/0000002.png",
        "HR/train/0002000/0000003.png",
    ]
    assert [pair.hr.relative_to(small).parts[:2] for pair in lsdir(small, "val")] == [("val1", "HR")] * 2
    assert [pair.name for pair in lsdir(small, limit=2)] == ["0000001", "0000002"]
    assert all(pair.lr is None for pair in lsdir(small))


def test_missing_images_are_named_with_the_way_out(small):
    (small / "shard-00/0001000/0000002.png").unlink()
    with pytest.raises(InputError, match=r"LSDIR: 1 of 3 train images are missing .*limit.*\n  0000002\.png"):
        lsdir(small)
    assert len(lsdir(small, limit=1)) == 1
    with pytest.raises(InputError, match=r"3 of 3 train images are missing below .*shard-00"):
        lsdir(small / "absent")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"split": "valid"}, "split=valid: choose train or val"), ({"limit": 0}, "limit=0"), ({"limit": True}, "limit=")],
)
def test_wrong_choices_are_refused(small, arguments, message):
    with pytest.raises(InputError, match=message):
        lsdir(small, **arguments)
