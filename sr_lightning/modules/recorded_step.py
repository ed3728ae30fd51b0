"""Training step as one program of the device: a CUDA graph, recorded once and replayed for each batch.

Launching the hundreds of kernels of a step takes the host longer than a GPU computes them; a graph is launched at once.
What it computes is fixed when it is recorded, down to the addresses of its tensors. Hence all that the host computes
for each batch (learning rates, bias corrections, the weight of the average) arrives in small tensors.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from sr_lightning.modules.running_means import RunningMeans
from sr_lightning.optim import Muon
from sr_lightning.utils.cuda_graphs import Recorder, cuda_graph

if TYPE_CHECKING:
    from sr_lightning.modules.sr import SRModule


WARM_UP = 3  # steps before recording, in which libraries choose algorithms and allocate
FUSED = (Adam, AdamW, SGD)  # the classes themselves; a subclass may have numbers of its own


class RecordedStep:
    """The step of a module on a batch: gradients, clipping and update of each optimizer in turn, moving average.

    Building one leaves the module, the optimizers and the random state as they were; each replay is a step.

    Args:
        module: In training mode.
        optimizers: Those of the losses in `module.losses_of`: Muon, or one of FUSED, whose fused form is used.
        batch: lr and hr (N, 3, h, w) in [0, 1] on the module's device. Later batches have the same shapes.
        finish: Clips the gradients of an optimizer, which its parameters hold; returns their norms before that, (K,).
        record: `cuda_graph`, or what computes the same.

    Attributes:
        terms: Losses and their terms of the latest batch by logged name, 0-dimensional.
        norms: What `finish` has returned for each optimizer.
    """

    def __init__(
        self,
        module: "SRModule",
        optimizers: Sequence[Optimizer],
        batch: Mapping[str, Tensor],
        finish: Callable[[Optimizer], Tensor] | None = None,
        record: Recorder = cuda_graph,
    ) -> None:
        self.module, self.optimizers, self.finish = module, optimizers, finish or module.gradient_norms_of
        for optimizer in optimizers:
            optimizer._opt_called = True  # noqa: SLF001  schedules of torch warn if there was no step before theirs
        self.rules = [each if isinstance(each, Muon) else FusedRule(each) for each in optimizers]
        self.plans: list[Any] = [None] * len(optimizers)
        self.images = {name: image.clone() for name, image in batch.items()}
        self.losses = module.losses_of(self.images)
        self.terms: dict[str, Tensor] = {}
        self.norms = [torch.empty(0)] * len(optimizers)
        self.numbers = [torch.empty(0)] * len(optimizers)
        self.weight = self._number(0.0)
        with _kept(module, optimizers), _side_stream(module.device):
            for _ in range(WARM_UP):
                self._compute(plan=True)
        self.replay = record(self._compute)

    def __call__(self, batch: Mapping[str, Tensor]) -> None:
        """Take the step of a batch."""
        for name, image in self.images.items():
            image.copy_(batch[name])
        for numbers, rule, plan in zip(self.numbers, self.rules, self.plans, strict=True):
            numbers.copy_(self._number(rule.advance(plan)), non_blocking=True)
        if self.module.averaged is not None:
            self.weight.copy_(self._number(self.module.average_weight()), non_blocking=True)
        self.replay()

    def _number(self, value: float | list[float]) -> Tensor:
        """Return numbers of the host on the device, float64."""
        on_gpu = self.module.device.type == "cuda"  # pinned: the copy does not wait for the device
        return torch.tensor(value, dtype=torch.float64, pin_memory=on_gpu).to(self.module.device, non_blocking=True)

    def _compute(self, plan: bool = False) -> None:
        """Take a step; `plan`: find out the parameters and the numbers of the updates, which needs gradients."""
        module = self.module
        means, module.running_means = module.running_means, RunningMeans()
        try:
            for i, (optimizer, rule, loss_of) in enumerate(zip(self.optimizers, self.rules, self.losses, strict=True)):
                optimizer.zero_grad()
                loss = loss_of()  # in the precision around it
                with torch.autocast(module.device.type, enabled=False):
                    loss.backward()
                    self.norms[i] = self.finish(optimizer)
                    if plan:
                        self.plans[i] = rule.plan()
                        self.numbers[i] = self._number(rule.advance(self.plans[i]))
                    rule.update(self.plans[i], self.numbers[i])
            self.terms = dict(module.running_means.sums)
        finally:
            module.running_means = means
        if module.averaged is not None:
            module.update_average(self.weight)


class FusedRule:
    """Update of torch's Adam, AdamW or SGD with learning rates from a tensor, by its fused kernels.

    The number of steps, which Adam needs, is a tensor of its state on the device.

    Args:
        optimizer: One of FUSED. Its groups are changed during an update only.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        optimizer._warned_capturable_if_run_uncaptured = True  # noqa: SLF001  in the steps before recording
        for parameter, state in optimizer.state.items():
            if isinstance(state.get("step"), Tensor):  # on the host, of steps that were not fused
                state["step"] = state["step"].to(parameter.device, torch.float32)

    def plan(self) -> None:
        """Return nothing: torch's optimizers group their parameters at each step."""

    def advance(self, plan: None) -> list[float]:
        """Return the learning rate of each group."""
        return [group["lr"] for group in self.optimizer.param_groups]

    def update(self, plan: None, numbers: Tensor) -> None:
        """Take a step with the learning rates (K,)."""
        groups = self.optimizer.param_groups
        before = [dict(group) for group in groups]
        for group, rate in zip(groups, numbers.float().unbind(), strict=True):
            forced = {"lr": rate, "fused": True, "foreach": False, "capturable": True}
            group.update({key: value for key, value in forced.items() if key in group})
        try:
            self.optimizer.step()
        finally:
            for group, settings in zip(groups, before, strict=True):
                group.update(settings)


@contextmanager
def _kept(module: "SRModule", optimizers: Sequence[Optimizer]) -> Iterator[None]:
    """Restore weights, average, buffers, optimizer state and random state after the block, in the same memory."""
    weights = [parameter for optimizer in optimizers for parameter in parameters_of(optimizer)]
    averaged = [] if module.averaged is None else [*module.averaged.parameters()]
    tensors = [*weights, *averaged, *module.buffers()]
    clones = [tensor.detach().clone() for tensor in tensors]
    states = [
        {parameter: {key: _copy(value) for key, value in state.items()} for parameter, state in each.state.items()}
        for each in optimizers
    ]
    gpus = [module.device] if module.device.type == "cuda" else []
    with torch.random.fork_rng(gpus):
        yield
    with torch.no_grad():
        for tensor, clone in zip(tensors, clones, strict=True):
            tensor.copy_(clone)
        for optimizer, earlier in zip(optimizers, states, strict=True):
            for parameter, state in optimizer.state.items():
                before = earlier.get(parameter, {})
                for key, value in state.items():
                    if isinstance(value, Tensor):
                        value.copy_(before[key]) if key in before else value.zero_()
                    else:
                        state[key] = before.get(key, 0)


def parameters_of(optimizer: Optimizer) -> list[nn.Parameter]:
    """List the parameters of an optimizer."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


@contextmanager
def _side_stream(device: torch.device) -> Iterator[None]:
    """Run the block on another stream than the default one, on which nothing can be recorded."""
    if device.type != "cuda":
        yield
        return
    stream, current = torch.cuda.Stream(device), torch.cuda.current_stream(device)
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        yield
    current.wait_stream(stream)
