"""result.json: whole and finite, or refused."""

import pytest
from omegaconf import OmegaConf

from sr_lightning.errors import InputError
from sr_lightning.runs.result import FAILED, FINISHED, read_result, write_result


def test_a_result_is_read_as_written(tmp_path):
    assert read_result(tmp_path) is None
    write_result(tmp_path, FINISHED, OmegaConf.create({"name": "a"}), psnr=30.5, steps=10, seconds=None)
    result = read_result(tmp_path)
    assert (result["status"], result["name"], result["psnr"], result["seconds"]) == (FINISHED, "a", 30.5, None)
    write_result(tmp_path, FAILED, OmegaConf.create({}), error="no images")
    assert read_result(tmp_path)["error"] == "no images"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"", "Expecting value"),
        (b"[]", "it has no status"),
        (b"\xff\xfe", "codec can't decode"),
        (b'{"status": "finished", "psnr": 30.0, "steps"', "Expecting"),
        (b'{"status": "finished", "psnr": null}', "must be real number"),
        (b'{"status": "finished", "psnr": Infinity, "steps": 1, "seconds": 1}', "psnr is inf"),
        (b"{}", "it has no status"),
    ],
)
def test_a_damaged_result_is_refused(tmp_path, text, problem):
    (tmp_path / "result.json").write_bytes(text)
    with pytest.raises(InputError, match=f"result.json cannot be read as the result of a run: .*{problem}"):
        read_result(tmp_path)
