import shutil
import sys
import types

import pytest
import torch

import sr_lightning
from sr_lightning.api.scores import Scores
from sr_lightning.checkpoints.identify import load_any
from sr_lightning.errors import InputError
from sr_lightning.networks import ESPCN, VDSR, Bicubic
from tests.helpers import rows_of, run


@pytest.fixture(scope="module")
def root(pictures, tmp_path_factory):
    """A data root with one benchmark, "Tiny"."""
    folder = tmp_path_factory.mktemp("root")
    (folder / "benchmark" / "Tiny" / "HR").mkdir(parents=True)
    for name in ("0.png", "1.png"):
        shutil.copy(pictures / name, folder / "benchmark" / "Tiny" / "HR")
    return folder


def test_scores_are_those_of_the_command_to_the_digit(trained, root, tmp_path):
    scores = sr_lightning.evaluate(trained, "Tiny", data_root=root, num_comparisons=1)
    words = (f"ckpt={trained}", "benchmarks=[Tiny]", f"data_root={root}", f"hydra.run.dir={tmp_path}")
    run("evaluate.py", *words, "num_comparisons=0", "report_images=0")
    assert [{key: str(value) for key, value in row.items()} for row in scores] == rows_of(tmp_path / "results.csv")
    assert len(scores.pictures) == 1


def test_every_kind_of_network_gets_the_same_scores(trained, root):
    network = load_any(trained).network
    table = {"file": trained, "loaded": sr_lightning.load(trained), "module": network.train()}
    scores = sr_lightning.evaluate(table, ["Tiny"], data_root=root, num_comparisons=0)
    rows = {name: [row["psnr_y"] for row in scores if row["model"] == name] for name in table}
    assert rows["file"] == rows["loaded"] == rows["module"]
    assert network.training


def test_self_ensemble_of_what_was_loaded_is_scored(trained, root):
    nets = {"one": sr_lightning.load(trained), "eight": sr_lightning.load(trained, self_ensemble=True)}
    one, eight = (
        row["psnr_y"] for row in sr_lightning.evaluate(nets, "Tiny", data_root=root).means() if row["model"] in nets
    )
    assert one != eight


def test_settings_given_to_load_are_kept(tmp_path, root):
    vdsr = VDSR(scale=2, num_features=4, num_layers=3)
    torch.save(vdsr.state_dict(), tmp_path / "vdsr.pth")  # does not show the scale
    net = sr_lightning.load(tmp_path / "vdsr.pth", network={"scale": 2})
    of_file, of_module = sr_lightning.evaluate([net, vdsr], "Tiny", data_root=root).means()[1:]
    assert of_file["psnr_y"] == of_module["psnr_y"]


def test_module_in_memory_is_named_by_its_class(root):
    torch.manual_seed(0)
    scores = sr_lightning.evaluate(ESPCN(scale=2), "Tiny", data_root=root, num_comparisons=0)
    assert {row["model"] for row in scores} == {"bicubic", "ESPCN"}


def test_tables_show_means_and_pictures_in_a_notebook(trained, root):
    scores = sr_lightning.evaluate({"<b>": trained}, "Tiny", data_root=root, num_comparisons=1)
    page = scores._repr_html_()
    assert page.count("<tr>") == 3 and "&lt;b&gt;" in page and page.count("<img ") == 1
    assert "Tiny" in repr(scores) and scores.means()[0]["protocol"] in repr(scores)
    assert scores[:2] == scores.rows[:2] and len(scores) == 6


def test_frame_needs_pandas_and_has_a_row_per_image(monkeypatch):
    scores = Scores([{"model": "a", "psnr_y": 30.0}])
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(InputError, match="pip install pandas"):
        scores.to_frame()
    monkeypatch.setitem(sys.modules, "pandas", types.SimpleNamespace(DataFrame=lambda rows: ("frame", rows)))
    assert scores.to_frame() == ("frame", scores.rows)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([],), "evaluate() needs a network"),
        ((3,), "not a int"),
        (("no/file",), "there is no file or folder no/file"),
        ((Bicubic(scale=2), None), "benchmarks=null: give a list"),
        ((Bicubic(scale=2), "Tiny", "protocol.lr_source=x"), "protocol: lr_source='x': choose"),
        ((Bicubic(scale=2), "Small"), "no test set Small (available: Tiny)"),
        ((Bicubic(scale=2), "Tiny", "ckpt=a"), "ckpt=a: networks are the first argument"),
        ((Bicubic(scale=2), "Tiny", "protokol=daala"), "there is no setting protokol; did you mean protocol?"),
    ],
)
def test_wrong_arguments_are_one_error(arguments, message, root):
    with pytest.raises(InputError) as caught:
        sr_lightning.evaluate(*arguments, data_root=root)
    assert message in str(caught.value)
