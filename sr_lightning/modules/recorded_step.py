"""Training step as one program of the device: a CUDA graph, recorded once and replayed for each batch.

Launching the hundreds of kernels of a step takes the host longer than a GPU computes them; a graph is launched at once.
What it computes is fixed when it is recorded, down to the addresses of its tensors. Hence all that the host computes
for each batch (learning rates, bias corrections, the weight of the average) arrives in a small tensor. And the host
does not wait for a step: it is the device that leaves out a batch whose gradients are not finite.
"""

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, distributed, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from sr_lightning.modules.running_means import RunningMeans
from sr_lightning.optim import Muon
from sr_lightning.utils.cuda_graphs import Recorder, cuda_graph
from sr_lightning.utils.devices import fork_rng, to_device

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
        finish: Averages the gradients of an optimizer, which its parameters hold, over processes, and clips them;
            returns their norms before that, (K,).
        record: `cuda_graph`, or what computes the same.

    Attributes:
        losses: Losses and their terms of the latest batch by logged name, 0-dimensional; 0 if the batch is skipped.
        gradients: Norms of the gradients of the latest batch by logged name, in the same form.
        counted: 0 for a skipped batch, else 1; a tensor () if batches may be skipped.
    """

    def __init__(
        self,
        module: "SRModule",
        optimizers: Sequence[Optimizer],
        batch: Mapping[str, Tensor],
        finish: Callable[[Optimizer], Tensor] | None = None,
        record: Recorder = cuda_graph,
    ) -> None:
        self.module, self.optimizers, self.finish = module, optimizers, finish or module.noted_norms_of
        reader = weakref.ref(self)  # which the optimizers, that the step refers to, do not keep alive
        for optimizer in optimizers:
            optimizer._opt_called = True  # noqa: SLF001  schedules of torch warn if there was no step before theirs
            optimizer.register_state_dict_pre_hook(lambda _: (step := reader()) and step.bad_batches())
        self.rules = [each if isinstance(each, Muon) else FusedRule(each) for each in optimizers]
        self.plans: list[Any] = [None] * len(optimizers)
        self.images = {name: image.clone() for name, image in batch.items()}
        self.done = torch.zeros((), dtype=torch.float64, device=module.device)  # batches before
        self.losses_of = module.losses_of(self.images, self.done)
        self.losses: dict[str, Tensor] = {}
        self.gradients: dict[str, Tensor] = {}
        self.counted: Tensor | int = 1
        self._may_skip, skipped = module.max_skipped_batches > 0, module.skipped_batches
        free = max(0, module.max_skipped_batches - len(skipped)) + 1
        self.bad = torch.tensor([*skipped, *[0] * free], dtype=torch.float64, device=module.device)
        self.places = torch.arange(len(self.bad), device=module.device)
        self.num_bad = torch.tensor(len(skipped), device=module.device)  # also more than there are places
        self.untaken = torch.zeros(len(optimizers), dtype=torch.int64, device=module.device)  # steps of each optimizer
        self.read = self.untaken.clone()  # of these, those that the host has read
        self.unread = 0  # batches since
        with _side_stream(module.device):
            with _kept(module, optimizers):
                for _ in range(WARM_UP):
                    self._compute()
            self.untaken.zero_()
            self.sizes = [len(rule.numbers(plan)) for rule, plan in zip(self.rules, self.plans, strict=True)]
            self.numbers = self._on_device([self._numbers_of_the_host(0)] * free)
            self.replay = record(partial(self._compute, replayed=True))

    def __call__(self, batch: Mapping[str, Tensor], done: int = 0) -> None:
        """Take the step of the batch after `done` others."""
        for name, image in self.images.items():
            if batch[name].shape != image.shape:
                raise ValueError(f"{name} {tuple(batch[name].shape)}: the step was recorded for {tuple(image.shape)}")
            image.copy_(batch[name])
        for rule, plan in zip(self.rules, self.plans, strict=True):
            rule.advance(plan)
        # Only the device knows how many steps were not taken since the host has read it: a row for each possible number
        rows = [self._numbers_of_the_host(done, count) for count in range(min(len(self.numbers), self.unread + 1))]
        self.numbers[: len(rows)].copy_(self._on_device(rows), non_blocking=True)
        self.replay()
        self.unread += 1

    def bad_batches(self) -> list[int]:
        """Wait for the device, and return the numbers of the batches whose gradients were NaN or infinite.

        Those of earlier parts of the run included; at most one more than may be skipped.
        """
        for rule, plan, untaken in zip(self.rules, self.plans, (self.untaken - self.read).tolist(), strict=True):
            rule.advance(plan, -untaken)
        self.read.copy_(self.untaken)
        self.unread = 0
        return self.bad[: int(self.num_bad)].long().tolist()

    def _numbers_of_the_host(self, done: int, untaken: int = 0) -> list[float]:
        """Return what the host computes for the step after `done` batches, if some counted steps were not taken."""
        average = 0.0 if self.module.averaged is None else self.module.average_weight()
        rules = zip(self.rules, self.plans, strict=True)
        return [done, average, *(number for rule, plan in rules for number in rule.numbers(plan, untaken))]

    def _on_device(self, numbers: list[list[float]]) -> Tensor:
        """Return numbers of the host on the device, float64."""
        return to_device(torch.tensor(numbers, dtype=torch.float64), self.module.device)

    def _compute(self, replayed: bool = False) -> None:
        """Take a step; before it is recorded, find out which parameters have gradients, and what the updates need."""
        module, ok = self.module, None
        means = module.running_means, module.gradient_norms
        module.running_means, module.gradient_norms = RunningMeans(), RunningMeans()
        try:
            done, weight, *numbers = self._selected() if replayed else torch.zeros(2, 1, device=module.device)
            self.done.copy_(done[0])
            buffers = self._copies(module.buffers())
            for i, (optimizer, loss_of) in enumerate(zip(self.optimizers, self.losses_of, strict=True)):
                optimizer.zero_grad()
                loss = loss_of()  # in the precision around it
                with torch.autocast(module.device.type, enabled=False):
                    loss.backward()
                    total = self.finish(optimizer).sum()
                    is_finite = total - total == 0  # fewer operations than `isfinite`
                    ok = is_finite if ok is None else ok & is_finite
                    self._update(i, numbers[i] if replayed else self._first_numbers(i), ok)
            self._undo_unless(ok, buffers)
            if module.averaged is not None:
                before = self._copies(module.averaged.parameters())
                module.update_average(weight[0])
                self._undo_unless(ok, before)
            if replayed:
                self._note(ok)
                self.counted = ok if self._may_skip else 1
            self.losses = self._masked(module.running_means.sums, ok)
            self.gradients = self._masked(module.gradient_norms.sums, ok)
        finally:
            module.running_means, module.gradient_norms = means

    def _first_numbers(self, i: int) -> Tensor:
        """Plan the updates of an optimizer, whose parameters hold gradients, and return the numbers of its next one."""
        self.plans[i] = self.rules[i].plan()
        self.rules[i].advance(self.plans[i])
        return self._on_device([self.rules[i].numbers(self.plans[i])])[0]

    def _update(self, i: int, numbers: Tensor, ok: Tensor) -> None:
        """Update the parameters of an optimizer, if the gradients are finite."""
        before = self._copies(state_of(self.optimizers[i]))
        self.rules[i].update(self.plans[i], numbers)
        self._undo_unless(ok, before)
        if before:
            self.untaken[i] += ~ok

    def _selected(self) -> list[Tensor]:
        """Return the number of batches before, the weight of the average, and the numbers of each rule, each (K,)."""
        columns = self.numbers.split([1, 1, *self.sizes], dim=1)
        if len(self.numbers) == 1:  # no batch may be skipped
            return [column[0] for column in columns]
        rows = (self.untaken - self.read).clamp(max=len(self.numbers) - 1)
        of_rules = [each.index_select(0, row)[0] for each, row in zip(columns[2:], rows.split(1), strict=True)]
        return [columns[0][0], columns[1][0], *of_rules]

    def _note(self, ok: Tensor) -> None:
        """Note the number of a bad batch, from 1, if there is a place for it."""
        is_bad = ~ok
        torch.where((self.places == self.num_bad) & is_bad, self.done + 1, self.bad, out=self.bad)
        self.num_bad += is_bad

    def _copies(self, tensors: Iterable[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Pair tensors with copies of them, if batches may be skipped."""
        if not self._may_skip or not (tensors := [tensor.detach() for tensor in tensors]):
            return []
        copies = [torch.empty_like(tensor) for tensor in tensors]
        torch._foreach_copy_(copies, tensors)
        return list(zip(tensors, copies, strict=True))

    def _undo_unless(self, ok: Tensor, pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Restore tensors from copies, unless the gradients are finite."""
        for tensor, before in pairs:
            torch.where(ok, tensor, before, out=tensor)

    def _masked(self, values: Mapping[str, Tensor], ok: Tensor) -> dict[str, Tensor]:
        """Return 0 instead of the values of a skipped batch."""
        return {name: torch.where(ok, value, 0.0) if self._may_skip else value for name, value in values.items()}


def average_over_processes(optimizer: Optimizer) -> None:
    """Replace gradients by their means over all processes: one sum of all, rounded as by DistributedDataParallel."""
    if not distributed.is_initialized():
        return
    gradients = [parameter.grad for parameter in parameters_of(optimizer) if parameter.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    flat.mul_(1 / distributed.get_world_size())
    distributed.all_reduce(flat)
    parts = flat.split([gradient.numel() for gradient in gradients])
    torch._foreach_copy_(gradients, [part.view(g.shape) for part, g in zip(parts, gradients, strict=True)])


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

    def advance(self, plan: None, steps: int = 1) -> None:
        """Do nothing: the steps are counted on the device."""

    def numbers(self, plan: None, untaken: int = 0) -> list[float]:
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
    with fork_rng(module.device):
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


def state_of(optimizer: Optimizer) -> list[Tensor]:
    """List the tensors that a step of an optimizer changes: parameters and state."""
    states = (value for state in optimizer.state.values() for value in state.values())
    return [*parameters_of(optimizer), *(value for value in states if isinstance(value, Tensor))]


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
