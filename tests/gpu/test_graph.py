"""On a GPU: steps replayed by a CUDA graph are those computed directly, and a run resumes in the same bits."""

import copy

import pytest
import torch

from sr_lightning.modules.recorded_step import RecordedStep, cuda_graph
from sr_lightning.training.choices import autocast
from tests.helpers import Command, differences, run
from tests.modules.test_recorded_step import OPTIMIZERS, batches, built, directly
from tests.networks.test_every_network import CHOICES, small

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")


def trained(record, network, optimizer, precision="32-true", **options):
    """Take steps with falling learning rates, without waiting for the device; return all state on the CPU."""
    module, optimizer = built(network.to("cuda"), optimizer, ema=0.9, **options)
    module.setup("fit")
    module.average_weight = lambda: 0.1
    first, *others = [{name: image.cuda() for name, image in b.items()} for b in batches(4, scale=network.scale)]
    with autocast(precision, torch.device("cuda")):
        step = RecordedStep(module, [optimizer], first, record=record)
        torch.cuda.set_sync_debug_mode("error")
        try:
            for batch in others:
                for group in optimizer.param_groups:
                    group["lr"] *= 0.5
                step(batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    weights = {key: value.cpu() for key, value in module.state_dict().items()}
    return weights, copy.deepcopy(optimizer.state_dict()), {name: norm.cpu() for name, norm in step.gradients.items()}


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("name", CHOICES)
def test_replay_of_every_network_is_its_direct_step(name, precision):
    network = small(name, 2)
    if next(network.parameters(), None) is None:
        return
    runs = [trained(record, copy.deepcopy(network), OPTIMIZERS["Muon"], precision) for record in (directly, cuda_graph)]
    assert not list(differences(*runs, name))


def test_steps_without_a_graph_do_not_wait_for_the_device():
    module, optimizer = built(small("espcn", 2).to("cuda"), OPTIMIZERS["Muon"], ema=0.9)
    module.setup("fit")
    batch = {name: image.cuda() for name, image in batches(1)[0].items()}
    for number in range(3):
        torch.cuda.set_sync_debug_mode("error" if number == 2 else "default")
        try:
            optimizer.zero_grad()
            module.loss_of(batch).backward()
            optimizer.step()
            module.update_average(torch.tensor(0.1))
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_replay_of_every_optimizer_is_its_direct_step(optimizer):
    runs = [trained(record, small("espcn", 2), optimizer) for record in (directly, cuda_graph)]
    assert not list(differences(*runs, "state"))


def test_skipping_batches_does_not_wait_for_the_device():
    runs = [
        trained(record, small("srresnet", 2), OPTIMIZERS["Muon"], max_skipped_batches=2)
        for record in (directly, cuda_graph)
    ]
    assert not list(differences(*runs, "state"))


def test_sum_over_processes_can_be_recorded(tmp_path):
    torch.distributed.init_process_group("nccl", f"file://{tmp_path / 'meeting'}", rank=0, world_size=1)
    try:
        of_processes = trained(cuda_graph, small("espcn", 2), OPTIMIZERS["Muon"])
    finally:
        torch.distributed.destroy_process_group()
    assert not list(differences(of_processes, trained(cuda_graph, small("espcn", 2), OPTIMIZERS["Muon"]), "state"))


def test_run_that_is_killed_and_resumed_equals_another(command, tmp_path):
    words = [word for word in command if not word.startswith("trainer")]
    words += ["trainer=gpu", "graph=true", "model.ema=0.9", "max_steps=3000", "val_every=500", "save_every=100"]
    done = run(*words, f"hydra.run.dir={tmp_path / 'whole'}")
    assert "as a CUDA graph" in done.stdout + done.stderr
    killed = Command(*words, f"hydra.run.dir={tmp_path / 'killed'}")
    killed.wait_for_output("step 500")
    killed.kill()
    killed.wait()
    run("train.py", f"resume={tmp_path / 'killed'}")
    states = [
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True, map_location="cpu")
        for name in ("whole", "killed")
    ]
    for key in ("state_dict", "optimizer_states", "lr_schedulers"):
        assert not list(differences(*(state[key] for state in states), key))
