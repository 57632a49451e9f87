"""Muon: momentum, then the nearest orthogonal matrix of the update, for the matrices inside the layers.

`torch.optim.Muon` takes 2-D parameters only; the stacked experts of a mixture are [E, A, B]. Here a stack is a batch of
matrices, each made orthogonal by itself; a 2-D parameter gets the very update of `torch.optim.Muon` with
`adjust_lr_fn="match_rms_adamw"`, so that one learning rate serves both kinds of parameters.

Source: Jordan et al. 2024 (Muon); Liu et al., arXiv:2502.16982, section 2.2 (the factor 0.2 sqrt(max(A, B))).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_STEPS = 5
_SMALLEST_NORM = 1e-7


def orthogonal(update_AB: Tensor) -> Tensor:
    """Return about U V^T of each matrix U S V^T, bfloat16: every singular value comes near 1 (0.68 to 1.14).

    Five Newton-Schulz steps in bfloat16; a matrix of zeros stays zero.

    Args:
        update_AB: [A, B], or a stack [E, A, B] of matrices that know nothing of each other.
    """
    first, second, third = _COEFFICIENTS
    product = torch.addmm if update_AB.dim() == 2 else torch.baddbmm
    tall = update_AB.shape[-2] > update_AB.shape[-1]
    wide = update_AB.bfloat16()
    wide = wide.mT if tall else wide
    wide = wide / torch.linalg.vector_norm(wide, dim=(-2, -1), keepdim=True).clamp(min=_SMALLEST_NORM)
    for _ in range(_STEPS):
        gram = wide @ wide.mT
        gram = product(gram, gram, gram, beta=second, alpha=third)
        wide = product(wide, gram, wide, beta=first)
    return wide.mT if tall else wide


class Muon(torch.optim.Optimizer):
    """Nesterov momentum made orthogonal, decoupled weight decay; for parameters of two or three dimensions.

    Args:
        params: parameter groups; `lr` and `weight_decay` of a group as in AdamW; "parts": how many matrices stand one
            below the other in each matrix of its parameters (2 where gate and up projection share a tensor), default 1.
        lr: learning rate, on the scale of AdamW's.
        momentum: decay of the running mean of gradients, in [0, 1).
        weight_decay: decoupled.
    """

    def __init__(
        self, params: Iterable[dict[str, Any]], *, lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "parts": 1})
        for group in self.param_groups:
            assert all(parameter.dim() in (2, 3) for parameter in group["params"])

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient; `closure`, if any, computes the gradients first."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)
        return loss

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        mean = state["momentum_buffer"].lerp_(gradient, 1 - group["momentum"])
        update = gradient.lerp(mean, group["momentum"])
        if group["parts"] > 1:
            update = update.unflatten(-2, (group["parts"], -1)).flatten(end_dim=-3)
        scale = 0.2 * math.sqrt(max(update.shape[-2:]))
        update = orthogonal(update).reshape(parameter.shape)
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(update, alpha=-group["lr"] * scale)
