"""Muon for convolutional networks: orthogonalised momentum for weight matrices, Adam for all other parameters."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from math import sqrt
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from sr_lightning.errors import InputError

# Quintic p(s) = A s + B s^3 + C s^5 of https://kellerjordan.github.io/posts/muon/: applied five times, it maps singular
# values above 0.01 to about 0.7 ... 1.2. Coefficients that converge to exactly 1 would need more steps.
A, B, C = 3.4445, -4.7750, 2.0315
# In float32 the rounding error of a Gram matrix grows by A^2 per step; after five steps it is still below 1e-2.
GRAM_STEPS = 5
# Weights of one shape are updated together, on a CPU at most this many elements: 1 MiB stays in cache and is not mapped
# again by the allocator each time. It saves a third of the time for 33 convolutions of 64 features.
CPU_ELEMENTS = 2**18
NOT_NEGATIVE = ("lr", "adam_lr_ratio", "adam_eps", "weight_decay")


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """Move the singular values of each matrix close to 1 by Newton-Schulz iterations, keeping singular vectors.

    Computed in float32 on a CPU, in bfloat16 on other devices. The CPU iterates on the small Gram matrix X X^T and
    applies the product of all steps to X once; for a 3x3 convolution this is up to 2.7 times faster than iterating on
    X.

    Args:
        matrices: (N, rows, columns), floating point, any scale and strides.
        steps: Number of Newton-Schulz iterations.

    Returns:
        (N, rows, columns), same dtype; zero matrices stay zero.
    """
    if matrices.shape[1] > matrices.shape[2]:  # use the smaller of the two Gram matrices
        return orthogonalise(matrices.mT, steps).mT
    x = matrices.float()
    x = x / torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True).clamp(min=1e-12)  # largest singular value <= 1
    if x.device.type == "cpu":
        for done in range(0, steps, GRAM_STEPS):
            x = _iterate_gram(x, min(GRAM_STEPS, steps - done))
    else:  # not on the Gram matrix: in TF32 or bfloat16 it becomes indefinite and the iteration diverges
        x = _iterate(x.bfloat16(), steps)
    return x.to(matrices.dtype)


def _iterate(x: Tensor, steps: int) -> Tensor:
    for _ in range(steps):
        gram = x @ x.mT  # (N, rows, rows)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=B, alpha=C), x, beta=A)
    return x


def _iterate_gram(x: Tensor, steps: int) -> Tensor:
    """Equivalent to `_iterate`: x <- p x with p = A + B gram + C gram² gives gram <- p gram p, and all commute."""
    gram = x @ x.mT  # (N, rows, rows)
    rest = torch.baddbmm(gram, gram, gram, beta=B, alpha=C)  # p - A
    product = rest + A * torch.eye(gram.shape[-1])
    for _ in range(steps - 1):
        half = torch.baddbmm(gram, rest, gram, beta=A)
        gram = torch.baddbmm(half, half, rest, beta=A)
        rest = torch.baddbmm(gram, gram, gram, beta=B, alpha=C)
        product = torch.baddbmm(product, rest, product, beta=A)
    return product @ x


def is_matrix(parameter: Tensor) -> bool:
    """Return True if Muon orthogonalises the parameter: as (out, -1) it has several rows and several columns."""
    return parameter.ndim >= 2 and parameter.shape[0] > 1 and parameter.numel() > parameter.shape[0]


def update_scale(shape: torch.Size) -> float:
    """Factor of the update, 0.2 sqrt(max(out, in)) sqrt(max(1, out/in)), of a weight viewed as (out, in).

    The first square root gives the update the usual root mean square of Adam's (https://arxiv.org/abs/2502.16982, 2.2);
    the second is Keller Jordan's factor for weights with more outputs than inputs.
    """
    rows, columns = shape[0], shape[1:].numel()
    return 0.2 * sqrt(max(rows, columns)) * sqrt(max(1.0, rows / columns))


class Part(NamedTuple):
    """Parameters that one step updates together: of one shape as matrices, or by Adam.

    Attributes:
        group: The parameter group, with its settings.
        is_matrices: Muon orthogonalises them.
        parameters: All have a gradient.
    """

    group: dict[str, Any]
    is_matrices: bool
    parameters: list[Tensor]


class Muon(Optimizer):
    """Muon (https://kellerjordan.github.io/posts/muon/) for whole convolutional networks.

    `torch.optim.Muon` accepts only 2-D weights. This class accepts every parameter. Weights of convolutions and linear
    layers are updated as matrices `weight.view(out, -1)`; biases, PReLU slopes, weight-norm gains and convolutions with
    one output are updated by Adam at `adam_lr_ratio` times the learning rate. (Transposed convolutions are viewed in
    their stored layout, as (in, out*k*k).)

    3e-3 is a good learning rate for small networks; wider and deeper ones need less (8e-4 for 8 blocks of 32 features).

    Args:
        params: Tensors, named tensors, or group dicts; a group may have its own value of each setting below.
        lr: Learning rate; the root mean square of an update is about 0.2 lr for wide weights.
        momentum: Decay of the moving average of gradients.
        nesterov: Use Nesterov momentum.
        ns_steps: Number of Newton-Schulz iterations.
        adam_lr_ratio: Adam's learning rate relative to `lr`.
        adam_betas: Adam's decay rates.
        adam_eps: Adam's epsilon.
        weight_decay: Decoupled weight decay, as in AdamW, multiplied by the learning rate of the parameter.

    Raises:
        InputError: A setting is out of range, or a parameter or gradient is not real and dense.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 3e-3,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_steps: int = 5,
        adam_lr_ratio: float = 0.1,
        adam_betas: tuple[float, float] = (0.9, 0.99),
        adam_eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "momentum": momentum,
                "nesterov": nesterov,
                "ns_steps": ns_steps,
                "adam_lr_ratio": adam_lr_ratio,
                "adam_betas": tuple(adam_betas),
                "adam_eps": adam_eps,
                "weight_decay": weight_decay,
            },
        )

    def add_param_group(self, param_group: dict) -> None:
        settings = {**self.defaults, **param_group}
        wrong = [f"{key}={settings[key]} (0 or more)" for key in NOT_NEGATIVE if not settings[key] >= 0]
        wrong += [
            f"{key}={value} (0 or more, below 1)"
            for key, value in (("momentum", settings["momentum"]), *(("adam_betas", b) for b in settings["adam_betas"]))
            if not 0 <= value < 1
        ]
        if settings["ns_steps"] < 1:
            wrong.append(f"ns_steps={settings['ns_steps']} (1 or more)")
        if wrong:
            raise InputError(f"Muon: out of range: {', '.join(wrong)}")
        super().add_param_group(param_group)
        wrong = [f"{tuple(p.shape)} {p.dtype}" for p in self.param_groups[-1]["params"] if not p.is_floating_point()]
        if wrong:
            raise InputError(f"Muon: parameters must be real floating point, got {', '.join(wrong)}")

    @torch.no_grad()
    def step(  # pyright: ignore[reportIncompatibleMethodOverride] - typed with overloads in torch
        self, closure: Callable[[], Tensor] | None = None
    ) -> Tensor | None:
        """Update every parameter that has a gradient.

        Args:
            closure: Computes the loss and the gradients again, and returns the loss.

        Returns:
            The loss of the closure, or None.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        plan = self.plan()
        self.advance(plan)
        self.update(plan, torch.tensor(self.numbers(plan), dtype=torch.float64))
        return loss

    def plan(self) -> list[Part]:
        """Group the parameters that have a gradient into parts of one step, and create their state.

        Raises:
            InputError: A gradient is not dense.
        """
        parts = []
        for group in self.param_groups:
            matrices, others = defaultdict(list), defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                if parameter.grad.layout != torch.strided:
                    raise InputError(
                        f"Muon: the gradient of a {tuple(parameter.shape)} parameter is {parameter.grad.layout}; "
                        "only dense gradients are supported: do not use sparse=True, or use another optimizer for it"
                    )
                state, names = self.state[parameter], ("exp_avg", "exp_avg_sq")
                if is_matrix(parameter):  # equal shapes share one batched matrix product
                    matrices[parameter.shape, parameter.dtype, parameter.device].append(parameter)
                    names = ("momentum_buffer",)
                else:
                    others[parameter.dtype, parameter.device].append(parameter)
                    state.setdefault("step", 0)
                for name in names:
                    if name not in state:
                        state[name] = torch.zeros_like(parameter)
            for (shape, _, device), parameters in matrices.items():
                at_once = max(1, CPU_ELEMENTS // shape.numel()) if device.type == "cpu" else len(parameters)
                starts = range(0, len(parameters), at_once)
                parts += [Part(group, True, parameters[start : start + at_once]) for start in starts]
            parts += [Part(group, False, parameters) for parameters in others.values()]
        return parts

    def advance(self, plan: Sequence[Part], steps: int = 1) -> None:
        """Count steps before they are taken, or less than 0 that were not."""
        for state in (self.state[parameter] for part in plan if not part.is_matrices for parameter in part.parameters):
            state["step"] += steps

    def numbers(self, plan: Sequence[Part], untaken: int = 0) -> list[float]:
        """Return the numbers that `update` needs of a step: all that the host computes.

        They are tensors there, so that an update can be recorded once and replayed with other numbers.

        Args:
            plan: Of `plan`.
            untaken: Steps that were counted but not taken.
        """
        numbers = []
        for part in plan:
            group = part.group
            if part.is_matrices:
                rate, shape = group["lr"], part.parameters[0].shape
                numbers += [1 - rate * group["weight_decay"], -rate * update_scale(shape)]
                continue
            rate, (beta1, beta2) = group["lr"] * group["adam_lr_ratio"], group["adam_betas"]
            numbers.append(1 - rate * group["weight_decay"])
            for parameter in part.parameters:
                step = max(1, self.state[parameter]["step"] - untaken)  # 1: of numbers that nobody uses
                numbers += [sqrt(1 - beta2**step), -rate / (1 - beta1**step)]
        return numbers

    @torch.no_grad()
    def update(self, plan: Sequence[Part], numbers: Tensor) -> None:
        """Update the parameters of a plan from their gradients.

        Args:
            plan: Of `plan`.
            numbers: (K,) float64, of `numbers`.
        """
        start, converted = 0, {}
        for part in plan:
            count, form = 2 if part.is_matrices else 1 + 2 * len(part.parameters), part.parameters[0]
            key = form.dtype, form.device
            if key not in converted:
                converted[key] = numbers.to(form, non_blocking=True).unbind()
            first, *others = converted[key][start : start + count]
            start += count
            if part.is_matrices:
                self._update_matrices(part, first, others[0])
            else:
                self._update_by_adam(part, first, others[::2], others[1::2])

    def _update_matrices(self, part: Part, kept: Tensor, step_size: Tensor) -> None:
        """Update parameters of one shape by Muon; all numbers are 0-dimensional tensors."""
        group, parameters = part.group, part.parameters
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        averages = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
        torch._foreach_lerp_(averages, gradients, 1 - group["momentum"])
        directions = torch._foreach_lerp(gradients, averages, group["momentum"]) if group["nesterov"] else averages

        matrices = torch.stack(directions).flatten(2)  # N x (out, in, k, k) -> (N, out, in*k*k)
        updates = orthogonalise(matrices, group["ns_steps"]).reshape(-1, *parameters[0].shape)
        if group["weight_decay"]:
            torch._foreach_mul_(parameters, kept)
        # One multiply-add, as with alpha=, and the same bits; a product and a sum round twice
        torch._foreach_addcmul_(parameters, updates.unbind(), [step_size] * len(parameters))

    def _update_by_adam(self, part: Part, kept: Tensor, roots: list[Tensor], step_sizes: list[Tensor]) -> None:
        """Update parameters like `torch.optim.AdamW`; all numbers are 0-dimensional tensors."""
        group, parameters, (beta1, beta2) = part.group, part.parameters, part.group["adam_betas"]
        states = [self.state[parameter] for parameter in parameters]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        averages, squares = [state["exp_avg"] for state in states], [state["exp_avg_sq"] for state in states]
        torch._foreach_lerp_(averages, gradients, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - beta2)

        denominators = torch._foreach_sqrt(squares)
        torch._foreach_div_(denominators, roots)
        torch._foreach_add_(denominators, group["adam_eps"])
        if group["weight_decay"]:
            torch._foreach_mul_(parameters, kept)
        steps = torch._foreach_mul(averages, step_sizes)  # noqa: SLF001
        torch._foreach_div_(steps, denominators)
        torch._foreach_add_(parameters, steps)
