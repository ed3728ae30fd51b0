"""The teacher of a run: found from any folder, and noticed if it changes before the run is resumed."""

import pytest
import torch
from omegaconf import OmegaConf

from sr_lightning.errors import InputError
from sr_lightning.networks import Compact
from sr_lightning.runs.fingerprint import cell_name, changed_settings
from sr_lightning.training.checks import digest_of, record_teacher, teacher_options
from sr_lightning.training.dry_run import build_on_meta
from tests.helpers import ROOT, compose, run

STUDENT = ["model=compact", "model.network.num_features=4", "model.network.num_blocks=1"]


def write_teacher(path, seed=0):
    torch.manual_seed(seed)
    torch.save(Compact(scale=2, num_features=8, num_blocks=1).state_dict(), path)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory with teacher.pth."""
    write_teacher(tmp_path / "teacher.pth")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def begun(**changes):
    cfg = compose("model.teacher=teacher.pth", "choices={data: demo}", "run_dir=run", "allow=mine")
    record_teacher(cfg)
    for key, value in changes.items():
        cfg.teacher_file[key] = value
    return cfg


def test_the_absolute_path_and_the_digest_are_recorded_and_change_no_setting(here):
    plain, cfg = (
        compose("model.teacher=teacher.pth", "choices={data: demo}", "name=x"),
        begun(),
    )
    assert cfg.teacher_file.path == str(here / "teacher.pth") and len(cfg.teacher_file.sha256) == 64
    assert teacher_options(cfg) == {"teacher": str(here / "teacher.pth"), "teacher_allow": ["mine"]}
    cfg.name = "x"
    assert cell_name(cfg) == cell_name(plain) and changed_settings(plain, cfg) == []


def test_a_run_without_a_teacher_records_nothing():
    cfg = compose()
    record_teacher(cfg)
    assert "teacher_file" not in cfg and teacher_options(cfg) == {}


def test_a_run_finds_its_teacher_from_another_folder(here, monkeypatch):
    cfg = begun()
    (here / "other").mkdir()
    monkeypatch.chdir(here / "other")
    before = OmegaConf.to_container(cfg.teacher_file)
    record_teacher(cfg)
    assert cfg.teacher_file == before


def test_a_teacher_that_moved_with_the_run_is_found_where_the_setting_says(here):
    cfg = begun(path="/absent/teacher.pth")
    record_teacher(cfg)
    assert cfg.teacher_file.path == str(here / "teacher.pth")


def test_a_teacher_that_changed_is_refused_in_one_line(here):
    cfg = begun()
    write_teacher(here / "teacher.pth", seed=1)
    with pytest.raises(InputError, match=r"^model.teacher=teacher.pth: .*teacher.pth has changed since the run began"):
        record_teacher(cfg)


def test_a_record_changed_by_hand_is_an_error(here):
    cfg = begun()
    cfg.teacher_file = "teacher.pth"
    with pytest.raises(InputError, match=r"config.yaml: teacher_file is not as train.py wrote it: teacher.pth"):
        record_teacher(cfg)


@pytest.mark.parametrize("name", ["net.param", "net.bin"])
def test_the_digest_of_an_ncnn_network_is_that_of_both_files(tmp_path, name):
    (tmp_path / "net.param").write_text("7767517")
    (tmp_path / "net.bin").write_bytes(b"1")
    digest = digest_of(tmp_path / name)
    (tmp_path / "net.bin").write_bytes(b"2")
    assert digest_of(tmp_path / name) != digest


def test_a_dry_run_uses_the_recorded_teacher(here):
    module, _ = build_on_meta(compose(*STUDENT, "model.teacher=teacher.pth", "data=demo", "run_dir=run"))
    assert module.teacher.network.scale == 2


@pytest.mark.slow
def test_a_run_is_resumed_from_another_folder_unless_its_teacher_has_changed(here, command):
    run(str(ROOT / command[0]), *command[1:], *STUDENT, "model.teacher=teacher.pth", "hydra.run.dir=run", cwd=here)
    again = ["train.py", f"resume={here / 'run'}", "extend=stretch"]
    run(*again, "max_steps=40")
    write_teacher(here / "teacher.pth", seed=1)
    done = run(*again, "max_steps=50", check=False)
    assert done.returncode == 1 and "teacher.pth has changed since the run began" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
