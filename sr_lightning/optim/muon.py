"""Muon for convolutions: the orthogonalised momentum for weight matrices, Adam for everything else."""

from collections import defaultdict
from collections.abc import Callable
from math import sqrt

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from sr_lightning.errors import InputError

# Quintic p(s) = a s + b s^3 + c s^5 of https://kellerjordan.github.io/posts/muon/: five times applied it takes singular
# values from 0.01 on to about 0.7 ... 1.2, rather than slowly to exactly 1.
A, B, C = 3.4445, -4.7750, 2.0315
# In float32 the rounding error of a Gram matrix grows by A^2 per step; after five it is still below 1e-2.
GRAM_STEPS = 5
# Weights of one shape are updated together up to this many elements: 1 MiB stays in cache and is not mapped anew each
# time by the allocator, a third less time for 33 convolutions of 64 features; a GPU takes them all at once.
CPU_ELEMENTS = 2**18
NOT_NEGATIVE = ("lr", "adam_lr_ratio", "adam_eps", "weight_decay")


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """Brings the singular values of each matrix near 1 by Newton-Schulz iterations; singular vectors stay.

    On the CPU in float32, on other devices in bfloat16. The CPU iterates on the small Gram matrix X X^T and applies the
    product of all steps to X once, which for a 3x3 convolution is up to 2.7 times as fast as iterating on X.

    Args:
        matrices: (N, rows, columns), floating point, any scale and strides.
        steps: Number of iterations.

    Returns:
        (N, rows, columns), same dtype; a zero matrix stays zero.
    """
    if matrices.shape[1] > matrices.shape[2]:  # the smaller of the two Gram matrices costs less
        return orthogonalise(matrices.mT, steps).mT
    x = matrices.float()
    x = x / torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True).clamp(min=1e-12)  # largest singular value <= 1
    if x.device.type == "cpu":
        for done in range(0, steps, GRAM_STEPS):
            x = _iterate_gram(x, min(GRAM_STEPS, steps - done))
    else:  # TF32 or bfloat16 products would make a Gram matrix indefinite and the iteration blow up
        x = _iterate(x.bfloat16(), steps)
    return x.to(matrices.dtype)


def _iterate(x: Tensor, steps: int) -> Tensor:
    for _ in range(steps):
        gram = x @ x.mT  # (N, rows, rows)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=B, alpha=C), x, beta=A)
    return x


def _iterate_gram(x: Tensor, steps: int) -> Tensor:
    """As `_iterate`: x <- p x with p = A + B gram + C gram^2 means gram <- p gram p, and all of them commute."""
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
    """Whether Muon orthogonalises it: seen as (out, -1), it has more than one row and more than one column."""
    return parameter.ndim >= 2 and parameter.shape[0] > 1 and parameter.numel() > parameter.shape[0]


def update_scale(shape: torch.Size) -> float:
    """0.2 sqrt(max(out, in)) sqrt(max(1, out/in)) of a weight seen as (out, in).

    The first factor gives the update Adam's usual root mean square (https://arxiv.org/abs/2502.16982, 2.2); the second
    is Keller Jordan's for weights with more outputs than inputs.
    """
    rows, columns = shape[0], shape[1:].numel()
    return 0.2 * sqrt(max(rows, columns)) * sqrt(max(1.0, rows / columns))


class Muon(Optimizer):
    """Muon (https://kellerjordan.github.io/posts/muon/) for whole convolutional networks.

    `torch.optim.Muon` takes 2-D weights only. This one takes every parameter: weights of convolutions and linear layers
    as matrices `weight.view(out, -1)`; biases, PReLU slopes, weight-norm gains and 1-output convolutions go to Adam at
    `adam_lr_ratio` times the learning rate. (A transposed convolution is seen as it is stored, (in, out*k*k).)

    Small networks like 3e-3; wider and deeper ones want less (8e-4 for 8 blocks of 32 features).

    Args:
        params: Tensors, named tensors, or group dicts; a group may carry its own value of each setting below.
        lr: Learning rate; an update has root mean square of about 0.2 lr in wide weights.
        momentum: Share of the old average of gradients.
        nesterov: Orthogonalise the average looked ahead by one gradient.
        ns_steps: Newton-Schulz iterations.
        adam_lr_ratio: Adam's learning rate as a share of `lr`.
        adam_betas: Adam's two averages.
        adam_eps: Adam's epsilon.
        weight_decay: Decoupled, as in AdamW: times the learning rate of the parameter.

    Raises:
        InputError: A setting out of range, a parameter or gradient that is not real and dense.
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
            raise InputError(f"Muon: parameters must be real floating point; these are not: {', '.join(wrong)}")

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """One update of every parameter that has a gradient.

        Args:
            closure: Evaluates the loss again, gradients included.

        Returns:
            The closure's loss.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            matrices, others = defaultdict(list), defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                if parameter.grad.layout != torch.strided:
                    raise InputError(
                        f"Muon: the gradient of a {tuple(parameter.shape)} parameter is {parameter.grad.layout}; "
                        "only dense gradients work (no sparse=True), or give that parameter its own optimizer"
                    )
                if is_matrix(parameter):  # equal shapes share one batched product
                    matrices[parameter.shape, parameter.dtype, parameter.device].append(parameter)
                else:
                    others[parameter.dtype, parameter.device].append(parameter)
            for (shape, _, device), parameters in matrices.items():
                at_once = max(1, CPU_ELEMENTS // shape.numel()) if device.type == "cpu" else len(parameters)
                for start in range(0, len(parameters), at_once):
                    self._step_muon(group, parameters[start : start + at_once])
            for parameters in others.values():
                self._step_adam(group, parameters)
        return loss

    def _step_muon(self, group: dict, parameters: list[Tensor]) -> None:
        """Parameters of one shape."""
        learning_rate, momentum, shape = group["lr"], group["momentum"], parameters[0].shape
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        averages = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
        torch._foreach_lerp_(averages, gradients, 1 - momentum)
        directions = torch._foreach_lerp(gradients, averages, momentum) if group["nesterov"] else averages

        matrices = torch.stack(directions).flatten(2)  # N x (out, in, k, k) -> (N, out, in*k*k)
        updates = orthogonalise(matrices, group["ns_steps"]).reshape(-1, *shape)
        if group["weight_decay"]:
            torch._foreach_mul_(parameters, 1 - learning_rate * group["weight_decay"])
        torch._foreach_add_(parameters, updates.unbind(), alpha=-learning_rate * update_scale(shape))

    def _step_adam(self, group: dict, parameters: list[Tensor]) -> None:
        """As `torch.optim.AdamW`, with the step count kept as an int."""
        learning_rate, (beta1, beta2) = group["lr"] * group["adam_lr_ratio"], group["adam_betas"]
        states = [self.state[parameter] for parameter in parameters]
        for parameter, state in zip(parameters, states, strict=True):
            if not state:
                state.update(step=0, exp_avg=torch.zeros_like(parameter), exp_avg_sq=torch.zeros_like(parameter))
            state["step"] += 1
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        averages, squares = [state["exp_avg"] for state in states], [state["exp_avg_sq"] for state in states]
        torch._foreach_lerp_(averages, gradients, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - beta2)

        denominators = torch._foreach_sqrt(squares)
        torch._foreach_div_(denominators, [sqrt(1 - beta2 ** state["step"]) for state in states])
        torch._foreach_add_(denominators, group["adam_eps"])
        if group["weight_decay"]:
            torch._foreach_mul_(parameters, 1 - learning_rate * group["weight_decay"])
        step_sizes = [-learning_rate / (1 - beta1 ** state["step"]) for state in states]
        torch._foreach_addcdiv_(parameters, averages, denominators, step_sizes)
