"""Judgement of classes that a saved config names, without an import."""

import sys

import pytest

from sr_lightning.errors import InputError
from sr_lightning.runs.targets import check_targets, definition, foreign_packages, missing_part
from tests.test_dotted_paths import LISTED


@pytest.mark.parametrize(
    ("target", "place"),
    [
        ("sr_lightning.networks.EDSR", "sr_lightning.networks.edsr.EDSR"),
        ("sr_lightning.networks.edsr.EDSR", "sr_lightning.networks.edsr.EDSR"),
        ("sr_lightning.data.FolderDataModule", "sr_lightning.data.datamodule.FolderDataModule"),
        ("torch.nn.L1Loss", "torch.nn.modules.loss.L1Loss"),
        ("torch.optim.lr_scheduler.StepLR", "torch.optim.lr_scheduler.StepLR"),
        ("torch.optim.lr_scheduler.Counter", "collections.Counter"),
        ("pytorch_lightning.Trainer", "pytorch_lightning.trainer.trainer.Trainer"),
        ("sr_lightning.networks.edsr.torch.nn.Sequential", None),
        ("sr_lightning.networks.edsr.nn", None),
        ("sr_lightning.networks.Missing", None),
        ("os.system", None),
        ("__main__.Net", None),
        ("Net", None),
        ("", None),
        ("..", None),
        ("torch.nn..L1Loss", None),
        ("../../tmp.Net", None),
        (None, None),
        (["os.system"], None),
    ],
)
def test_definition_is_found_in_the_sources(target, place):
    assert definition(target) == place


def test_nothing_is_imported(tmp_path, monkeypatch):
    (tmp_path / "planted_target.py").write_text("class Net: pass\nraise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert definition("planted_target.Net") == "planted_target.Net"
    definition("antigravity.Net")
    assert not {"planted_target", "antigravity"} & set(sys.modules)


@pytest.mark.parametrize("target", [path for path in LISTED if not path.startswith("sr_lightning.sweeps")])
def test_a_resumed_run_may_name_every_listed_path(target):
    check_targets({"_target_": target}, "config.yaml")


@pytest.mark.parametrize(
    "target",
    [
        *("torch.nn.MSELoss", "torch.optim.AdamW", "torch.optim.adam.Adam", "torch.optim.lr_scheduler.LambdaLR"),
        *("pytorch_lightning.Trainer", "pytorch_lightning.strategies.DDPStrategy"),
        *("pytorch_lightning.loggers.CSVLogger", "pytorch_lightning.callbacks.LearningRateMonitor"),
    ],
)
def test_a_resumed_run_may_name_losses_optimizers_and_parts_of_the_trainer(target):
    check_targets({"_target_": target}, "config.yaml")


@pytest.mark.parametrize(
    "target",
    [
        *("os.system", "builtins.eval", "subprocess.Popen", "antigravity.Net", "hydra.utils.get_method"),
        *("hydra.utils.get_class", "hydra.utils.instantiate", "torch.load", "torch.hub.load", "torch.nn.Linear"),
        *(
            "sr_lightning.utils.download.download",
            "sr_lightning.export.command.main",
            "sr_lightning.data.store.np.save",
        ),
        *("sr_lightning.upscale.__main__.main", "torch.optim.lr_scheduler.Counter", "sr_lightning.losses.vgg.download"),
        *(3, None, "", {"_target_": "torch.nn.L1Loss"}, ["torch.nn.L1Loss"]),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "place",
    [
        lambda target: {"_target_": target},
        lambda target: {"model": {"loss": {"_target_": target, "_partial_": True}}},
        lambda target: {"model": {"_target_": "torch.nn.L1Loss", "_args_": [[{"x": {"_target_": target}}]]}},
    ],
    ids=["top", "nested", "argument"],
)
def test_a_resumed_run_may_name_nothing_else(target, place):
    with pytest.raises(
        InputError, match=r"config\.yaml names classes that a run of this project does not have:\n  .*_ta"
    ):
        check_targets(place(target), "config.yaml")


def test_all_offenders_are_named_with_the_way_out():
    config = {"model": {"_target_": "collections.Counter"}, "data": {"_target_": "json.JSONDecoder"}}
    with pytest.raises(InputError) as error:
        check_targets(config, "config.yaml")
    assert str(error.value).splitlines()[1:3] == [
        "  model._target_: 'collections.Counter'",
        "  data._target_: 'json.JSONDecoder', defined as json.decoder.JSONDecoder",
    ]
    assert "allow=collections,json" in str(error.value)


@pytest.mark.parametrize("allow", [["collections"], ["json", "collections"], ["collections.Counter"]])
def test_allowed_package_may_be_named(allow):
    check_targets({"_target_": "torch.optim.lr_scheduler.Counter"}, "config.yaml", allow)


@pytest.mark.parametrize(
    ("target", "missing"),
    [
        ("nowhere_to_be_found.Net", "there is no package nowhere_to_be_found; install it, or add the folder"),
        ("own_parts.loss.Hubber", "own_parts.loss has no Hubber"),
        ("own_parts.losses.Huber", "own_parts has no losses"),
        ("own_parts.late", "own_parts.late is a module; name a class in it"),
        ("torch.nn.L2Loss", "torch.nn has no L2Loss"),  # of other modules, torch.nn imports all names
        ("own_parts.latin.Hubber", "own_parts.latin has no Hubber"),
        ("own_parts.broken.Huber", None),
        ("own_parts.made.Huber", None),
        *[(name, None) for name in ("own_parts.loss.Huber", "own_parts.loss.made_at_import", "own_parts.Huber")],
        *[(name, None) for name in ("own_parts.late.Anything", "torch.nn.L1Loss", "torch._C.Generator", *LISTED)],
    ],
)
def test_class_that_does_not_exist_is_seen_without_importing_it(target, missing, tmp_path, monkeypatch):
    (tmp_path / "own_parts").mkdir()
    (tmp_path / "own_parts" / "__init__.py").write_text("from own_parts.loss import *\nraise SystemExit('imported')\n")
    (tmp_path / "own_parts" / "loss.py").write_text("class Huber: pass\nmade_at_import = Huber()\n")
    (tmp_path / "own_parts" / "late.py").write_text("def __getattr__(name): return Huber\n")
    (tmp_path / "own_parts" / "latin.py").write_text("# coding: latin-1\nauthor = 'René'\n", encoding="latin-1")
    (tmp_path / "own_parts" / "broken.py").write_text("from own_parts.late import *\nclass\n")
    (tmp_path / "own_parts" / "made.py").write_text("exec('class Hub' 'er: pass')\n")
    monkeypatch.syspath_prepend(tmp_path)
    found = missing_part(target)
    assert found is None if missing is None else found.startswith(missing)


def test_packages_of_own_parts_are_listed_once():
    mine = {
        "_target_": "collections.Counter",
        "callbacks": [{"_target_": "json.JSONDecoder"}, {"_target_": "json.dump"}, {"_target_": "math.Callback"}],
        "network": {"_target_": "${network}"},
    }
    names = foreign_packages({"model": {"_target_": "torch.nn.L1Loss"}, "trainer": mine})
    assert names == ["collections", "json", "math.Callback"]
    check_targets(mine | {"network": None}, "config.yaml", names)
