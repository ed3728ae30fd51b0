import copy
import logging

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf, open_dict

from sr_lightning.checkpoints.checkpoint import read_checkpoint
from sr_lightning.errors import InputError
from sr_lightning.runs.fingerprint import fingerprint
from sr_lightning.training import choices
from sr_lightning.training.choices import Trial, choose
from sr_lightning.training.nodes import EARLIER, remember_earlier_config
from sr_lightning.utils import timings
from tests.fake_graph import FakeGraph
from tests.helpers import compose, run, use_times
from tests.training.own_data import EachStep

FASTER = {"32-true": 1.0, "bf16-mixed": 0.5, "1": 3.0, "2": 3.1, "4": 3.2, "8": 3.3, "eager": 1.0, "compiled": 0.5}


@pytest.fixture(autouse=True)
def no_bfloat16(monkeypatch):
    """A processor without instructions for bfloat16, whatever this one has."""
    monkeypatch.setattr(choices, "computes_in_bfloat16", lambda device: False)


@pytest.fixture
def bfloat16(monkeypatch):
    monkeypatch.setattr(choices, "computes_in_bfloat16", lambda device: True)


@pytest.fixture
def eight_threads(monkeypatch):
    """Torch with eight threads, whose number is only recorded when it is set."""
    used = [8]
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: used[-1])
    monkeypatch.setattr(torch, "set_num_threads", used.append)
    return used


def built(*words):
    cfg = compose("trainer=cpu", "data.batch_size=4", "data.patch_size=8", *words)
    return cfg, instantiate(cfg.model, _convert_="all")


@pytest.mark.usefixtures("bfloat16")
@pytest.mark.parametrize(("seconds", "expected"), [(0.5, "bf16-mixed"), (0.95, "32-true"), (3.0, "32-true")])
def test_the_faster_precision_is_chosen(seconds, expected, monkeypatch):
    use_times(monkeypatch, FASTER | {"bf16-mixed": seconds})
    assert choose(*built())["precision"] == expected
    assert choose(*built("trainer.precision=bf16-mixed"))["precision"] == "bf16-mixed"


def test_float32_needs_no_measurement_without_instructions_for_bfloat16(monkeypatch):
    monkeypatch.setattr(timings, "least_times", None)
    assert choose(*built("max_steps=10"))["precision"] == "32-true"


@pytest.mark.usefixtures("bfloat16")
def test_a_precision_with_wrong_gradients_is_refused(monkeypatch, caplog):
    use_times(monkeypatch, FASTER)
    right = choices.backward

    def wrong(module, batch, precision):
        right(module, batch, precision)
        if precision != "32-true":
            for parameter in module.parameters():
                parameter.grad *= -1

    monkeypatch.setattr(choices, "backward", wrong)
    assert choose(*built())["precision"] == "32-true"
    assert "the gradients in bf16-mixed are wrong on this machine" in caplog.text


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ({"1": 3.0, "4": 2.9, "8": 2.8}, 1),
        ({"1": 3.0, "4": 1.0, "8": 0.95}, 4),
        ({"1": 3.0, "4": 1.0, "8": 0.5}, 8),
        ({"1": 3.0, "4": 9.0, "8": 60.0}, 1),  # on a busy machine, threads wait for each other
    ],
)
def test_no_more_threads_than_are_useful(times, expected, eight_threads, monkeypatch):
    use_times(monkeypatch, times | {"eager": 1e-6})
    assert choose(*built())["threads"] == expected
    assert eight_threads[-1] == expected


def test_threads_set_by_the_user_are_used(eight_threads, monkeypatch):
    keys = use_times(monkeypatch, FASTER)
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    assert choose(*built("max_steps=10"))["threads"] == 8
    assert not keys


def test_processes_share_the_cores(eight_threads, monkeypatch):
    use_times(monkeypatch, FASTER)
    assert choose(*built("trainer.devices=2"))["threads"] == 4


def test_measuring_changes_neither_weights_nor_random_numbers(monkeypatch, tmp_path):
    cfg, module = built("max_steps=1000", f"cache_dir={tmp_path}")
    before = copy.deepcopy(module.state_dict())
    state = torch.random.get_rng_state()
    trial = Trial(cfg, module)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)  # which are not even initialised
    trial.timings.seconds = lambda key, names, build, budget: [build(name)() for name in names] and {"eager": 1e-9}
    trial.compiles("32-true")
    assert trial.is_accurate("32-true")
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    assert module.training
    assert module.running_means.state_dict(lambda values: values[None]) == {"count": 0, "sums": {}}


@pytest.mark.usefixtures("bfloat16")
def test_runs_with_other_learning_rates_and_seeds_share_the_measurement(monkeypatch):
    keys = use_times(monkeypatch, FASTER)
    for words in (["seed=1"], ["seed=2", "model.optimizer.lr=1e-5"], ["model.network.num_features=8"]):
        Trial(*built("model=edsr_baseline", *words)).fastest_precision()
    assert keys[0] == keys[1] != keys[2]


@pytest.mark.parametrize(
    ("seconds", "steps", "expected"),
    [
        ({"eager": 1.0, "compiled": 0.5}, 4500, True),
        ({"eager": 1.0, "compiled": 0.999}, 4500, False),  # saves less than it costs
        ({"eager": 1e-3, "compiled": 0.5e-3}, 4500, False),
        ({"eager": 1.0, "compiled": 0.5}, 500, False),  # a short run is not even measured
    ],
)
def test_compilation_must_save_more_than_it_costs(seconds, steps, expected, monkeypatch):
    use_times(monkeypatch, seconds)
    assert choose(*built(f"max_steps={steps}"))["compile"] == expected
    assert not choose(*built(f"max_steps={steps}", "compile=false"))["compile"]


def test_a_compiler_that_fails_is_named_if_it_was_requested(monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("No working C++ compiler found\nand more")

    monkeypatch.setattr(torch, "compile", fail)
    with pytest.raises(InputError, match=r"compile=true.*No working C\+\+ compiler found\. It needs"):
        choose(*built("compile=true"))
    cfg, module = built("max_steps=10")
    with open_dict(cfg):
        cfg.resume, cfg.chosen = (
            "outputs/run",
            {"precision": "32-true", "threads": 1, "compile": True, "processor": "x"},
        )
    with pytest.raises(InputError, match="resume=outputs/run: the run was compiled"):
        choose(cfg, module)


@pytest.mark.usefixtures("bfloat16")
def test_a_resumed_run_keeps_its_choices_and_tells_that_others_are_faster(monkeypatch, caplog, eight_threads):
    caplog.set_level(logging.INFO)
    use_times(monkeypatch, FASTER)
    cfg, module = built()
    saved = {"precision": "32-true", "threads": 16, "compile": False, "graph": False, "processor": "another"}
    with open_dict(cfg):  # of an earlier version, which had no graphs, on a larger machine
        cfg.resume, cfg.chosen = "outputs/run", {key: saved[key] for key in saved.keys() - {"graph"}}
    assert choose(cfg, module) == saved
    assert eight_threads[-1] == 16
    assert "goes on in 32-true, as it began; bf16-mixed is faster on this machine" in caplog.text
    assert "bits may differ" not in caplog.text
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    eight_threads.append(3)
    assert choose(cfg, module) == saved
    assert "goes on with 3 threads, by OMP_NUM_THREADS, instead of 16" in caplog.text


@pytest.mark.parametrize("chosen", [5, [], {}, {"precision": "32-true", "threads": "two", "compile": 1}])
def test_choices_changed_by_hand_are_an_error(chosen, tmp_path):
    cfg, module = built(f"run_dir={tmp_path}")
    with open_dict(cfg):
        cfg.resume, cfg.chosen = str(tmp_path), chosen
    with pytest.raises(InputError, match=f"{tmp_path}/config.yaml: chosen is not as train.py wrote it"):
        choose(cfg, module)


@pytest.fixture
def fake_graph(monkeypatch):
    """Steps can be recorded on this CPU."""
    monkeypatch.setattr(choices, "reason_against_graph", lambda *settings: "")
    monkeypatch.setattr(choices, "cuda_graph", FakeGraph)


@pytest.mark.usefixtures("fake_graph")
def test_graph_is_used_if_replayed_steps_do_what_others_do(monkeypatch, caplog):
    use_times(monkeypatch, {})
    words = ("max_steps=10", "trainer.precision=bf16-mixed")
    assert choose(*built("graph=true", *words))["graph"]
    assert not choose(*built(*words))["graph"] and not choose(*built("graph=false", *words))["graph"]
    assert "graph=true" not in caplog.text
    replay = FakeGraph.__call__
    monkeypatch.setattr(FakeGraph, "__call__", lambda graph: [replay(graph), replay(graph)])
    assert not choose(*built("graph=true", *words))["graph"]
    assert "graph=true: not used, replayed steps differ from others by" in caplog.text


@pytest.mark.usefixtures("fake_graph")
def test_recording_that_fails_leaves_the_run_without_a_graph(monkeypatch, caplog):
    def fail(program):
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    monkeypatch.setattr(choices, "cuda_graph", fail)
    cfg, module = built("graph=true", "max_steps=10")
    before = copy.deepcopy(module.state_dict())
    assert not choose(cfg, module)["graph"]
    assert "recording a step fails on this machine: RuntimeError: operation not permitted when" in caplog.text
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["trainer.accelerator=cpu"], "the CPU"),
        (["gan=pixel", "data.patch_size=16"], ""),
        (["gan=pixel", "data.patch_size=16", "model.accumulate=2"], "model.accumulate"),
        (["+trainer.accumulate_grad_batches=2"], "trainer.accumulate_grad_batches"),
        (["trainer.precision=16-mixed"], "trainer.precision=16-mixed, which scales the loss"),
        (["trainer=ddp", "trainer.devices=2", "model.max_skipped_batches=3"], ""),
        (["trainer=ddp", "trainer.strategy=fsdp"], "trainer.strategy=fsdp"),
        (["trainer.profiler=simple"], "trainer.profiler"),
        (["model.optimizer._target_=torch.optim.RMSprop"], "the optimizer RMSprop"),
        (
            ["+trainer.callbacks=[{_target_: tests.training.own_data.EachStep}]"],
            "EachStep.on_before_zero_grad, called within a step",
        ),
        ([], ""),
    ],
)
def test_reason_against_a_graph_is_named(words, reason, monkeypatch):
    if words != ["trainer.accelerator=cpu"]:
        monkeypatch.setattr(choices, "device_of", lambda cfg: torch.device("cuda"))
    cfg, module = built("model=edsr_baseline", *words)
    assert choices.reason_against_graph(cfg, module, str(cfg.trainer.precision)) == reason


def test_graph_that_is_requested_on_a_cpu_is_named_and_left_out(monkeypatch, caplog):
    use_times(monkeypatch, {})
    assert not choose(*built("graph=true", "max_steps=10"))["graph"]
    assert "graph=true: not used with the CPU" in caplog.text
    cfg, module = built("max_steps=10")
    saved = {"precision": "32-true", "threads": 1, "compile": False, "graph": True, "processor": "a machine with a GPU"}
    with open_dict(cfg):
        cfg.resume, cfg.chosen = "outputs/run", saved
    assert choose(cfg, module) == saved | {"graph": False}
    assert "goes on without the CUDA graph of its steps, which is not used with the CPU" in caplog.text


def test_hook_within_a_step_keeps_it_from_being_a_graph_and_the_choice_is_saved(monkeypatch, caplog):
    use_times(monkeypatch, {})
    monkeypatch.setattr(choices, "device_of", lambda cfg: torch.device("cuda"))
    cfg, module = built("graph=true", "max_steps=10")
    own, reason = EachStep("val/psnr", 3, 0.1), "not used with EachStep.on_before_zero_grad, called within a step"
    assert not choose(cfg, module, [own])["graph"]
    assert f"graph=true: {reason}" in caplog.text
    with open_dict(cfg):
        cfg.resume = "outputs/run"
        cfg.chosen = {"precision": "32-true", "threads": 1, "compile": False, "graph": True, "processor": "a GPU"}
        cfg.trainer.precision = "32-true"
    assert choose(cfg, module)["graph"]
    assert not choose(cfg, module, [own])["graph"]
    assert f"the run goes on without the CUDA graph of its steps, which is {reason}" in caplog.text
    monkeypatch.setattr(module, "configure_callbacks", lambda: own)
    assert not choose(cfg, module)["graph"]


def test_a_run_of_an_earlier_version_resumes_by_the_flags_of_the_processor(monkeypatch):
    use_times(monkeypatch, {})
    for flag, expected in [(True, "bf16-mixed"), (False, "32-true")]:
        monkeypatch.setattr(choices, "computes_in_bfloat16", lambda device, flag=flag: flag)
        cfg, module = built("resume=outputs/run")
        assert choose(cfg, module)["precision"] == expected
        assert choose(*built("resume=outputs/run", "trainer.precision=64-true"))["precision"] == "64-true"


def test_further_processes_take_the_choices_of_the_first(monkeypatch, tmp_path):
    use_times(monkeypatch, {})
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(choices, "PATIENCE", 0.2)
    cfg, module = built(f"run_dir={tmp_path}")
    with pytest.raises(InputError, match="process 0 has not written its choices"):
        choose(cfg, module)
    chosen = {"precision": "bf16-mixed", "threads": 1, "compile": False, "processor": "x"}
    OmegaConf.save(OmegaConf.create({"chosen": chosen}), tmp_path / "config.yaml")
    assert choose(cfg, module) == chosen


def test_further_processes_leave_the_choices_of_an_earlier_run_in_the_same_directory(monkeypatch, tmp_path):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv(EARLIER, "")
    monkeypatch.setattr(choices, "PATIENCE", 0.2)
    cfg, module = built(f"run_dir={tmp_path}")
    chosen = {"precision": "bf16-mixed", "threads": 1, "compile": False, "processor": "x"}
    OmegaConf.save(OmegaConf.create({"chosen": chosen}), tmp_path / "config.yaml")
    remember_earlier_config(tmp_path)
    with pytest.raises(InputError, match="process 0 has not written its choices"):
        choose(cfg, module)
    OmegaConf.save(OmegaConf.create({"chosen": chosen | {"precision": "32-true"}}), tmp_path / "config.yaml")
    assert choose(cfg, module)["precision"] == "32-true"


def test_choices_do_not_affect_the_name_of_a_run():
    cfg = compose()
    before = fingerprint(cfg)
    with open_dict(cfg):
        cfg.chosen = {"precision": "bf16-mixed", "threads": 8, "compile": True, "processor": "x"}
    assert fingerprint(cfg) == before
    assert fingerprint(compose("compile=true")) != before


@pytest.mark.slow
def test_choices_are_saved_with_the_run_and_kept_by_a_resume(command, tmp_path):
    own = ("early_stopping=psnr", "early_stopping._target_=tests.training.own_data.EachStep")
    words = ("trainer.precision=auto", "graph=true", *own, "max_steps=10", f"hydra.run.dir={tmp_path / 'run'}")
    done = run(*command, *words)
    assert "graph=true: not used with the CPU, EachStep.on_before_zero_grad, called within a step" in done.stdout
    config = OmegaConf.load(tmp_path / "run" / "config.yaml")
    assert config.trainer.precision == "auto"
    chosen = OmegaConf.to_container(config.chosen)
    assert chosen.keys() == choices.KINDS.keys() and not chosen["graph"]
    assert read_checkpoint(tmp_path / "run")["hyper_parameters"]["chosen"] == chosen
    config.chosen.processor = "another"
    OmegaConf.save(config, tmp_path / "run" / "config.yaml")
    run("train.py", f"resume={tmp_path / 'run'}", "allow=tests")
    assert OmegaConf.load(tmp_path / "run" / "config.yaml").chosen.processor == "another"
