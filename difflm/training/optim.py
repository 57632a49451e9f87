"""Optimisers over float32 master weights, gradient sums, and the learning rate over tokens."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from difflm.checkpoints.hf import listed
from difflm.errors import CheckpointError
from difflm.models.transformer import Transformer
from difflm.training.config import LearningRateConfig, OptimizerConfig
from difflm.training.muon import Muon
from difflm.training.parameters import ParameterPlan, plan_parameters


def learning_rate_ratio(config: LearningRateConfig, tokens: int, total: int) -> float:
    """Return the learning rate of the step that brings the run to `tokens` tokens, as a share of the peak.

    Args:
        config: shape of the schedule; it knows nothing of the block-size curriculum.
        tokens: tokens seen, those of the step included (so that the first step of a warm-up already learns).
        total: tokens of the run.
    """
    warmup = config.warmup_tokens or config.warmup_fraction * total
    if tokens < warmup:
        return tokens / warmup
    if config.kind == "constant":
        return 1.0
    begin = total * (1.0 - config.decay_fraction) if config.kind == "wsd" else warmup
    if tokens <= begin or total <= begin:
        return 1.0
    done = min((tokens - begin) / (total - begin), 1.0)
    fall = 0.5 - 0.5 * math.cos(math.pi * done) if config.kind == "cosine" else done
    return 1.0 - (1.0 - config.final_ratio) * fall


class MasterWeights:
    """Float32 weights that the optimiser updates, beside the working copy that computes.

    With a float32 working copy both are the same module and nothing is copied. Otherwise gradients of each
    micro-batch are added up in float32, so accumulation does not lose what bfloat16 sums would.

    Args:
        master: float32 model; holds the truth, is saved.
        working: model of the computation's dtype, or `master` itself.
    """

    def __init__(self, master: Transformer, working: Transformer) -> None:
        self.shared = master is working
        pairs = zip(master.parameters(), working.parameters(), strict=True)
        self.pairs = [(mine, theirs) for mine, theirs in pairs if mine is not theirs]
        self.buffers = list(zip(master.buffers(), working.buffers(), strict=True))
        self.publish()

    def collect(self) -> None:
        """Add the working copy's gradients to the masters' and clear them."""
        if self.shared:
            return
        for master, working in self.pairs:
            if working.grad is None:
                continue
            if master.grad is None:
                master.grad = working.grad.float()
            else:
                master.grad += working.grad
            working.grad = None

    @torch.no_grad()
    def publish(self) -> None:
        """Copy the masters into the working copy, biases of experts included."""
        if not self.shared:
            for master, working in [*self.pairs, *self.buffers]:
                working.copy_(master)


def working_copy(master: Transformer, dtype: torch.dtype) -> Transformer:
    """Return what computes in a dtype: the masters themselves in float32, otherwise a copy.

    Frozen weights that have the dtype already (the base of an adapter) are shared, not copied.

    Args:
        master: after `Optimizer` has frozen what does not learn.
        dtype: of the run.
    """
    if dtype == torch.float32:
        return master
    shared = {id(each): each for each in master.parameters() if each.dtype == dtype and not each.requires_grad}
    return copy.deepcopy(master, shared).to(dtype)


class Optimizer:
    """AdamW, or Muon for the matrices inside the layers and AdamW for the rest; clipping by the global norm.

    Frozen parameters get no gradient, no moments and no part in the norm. All moments exist from the start, as zeros,
    so that the state is complete before the first step.

    Args:
        model: the float32 masters; `freeze` takes their gradients away, so copy the model after this.
        config: hyper-parameters.
        mask_id: row of the embedding whose update is scaled by `mask_row_lr_scale`; None: no such row.

    Raises:
        ConfigError: see `plan_parameters`.
    """

    def __init__(self, model: Transformer, config: OptimizerConfig, *, mask_id: int | None) -> None:
        self.config, self.model, self.mask_id = config, model, mask_id
        self.plans = plan_parameters(model, config, mask_id=mask_id)
        for plan in self.plans:
            plan.parameter.requires_grad_(not plan.frozen)
        self.trained = [plan for plan in self.plans if not plan.frozen]
        self.by_muon = [plan for plan in self.trained if config.kind == "muon" and plan.matrix]
        self.by_adam = [plan for plan in self.trained if not (config.kind == "muon" and plan.matrix)]
        self.parts: list[torch.optim.Optimizer] = []
        if self.by_adam:
            self.parts.append(_adamw(_groups(self.by_adam, config.learning_rate), config))
        if self.by_muon:
            peak = config.learning_rate if config.muon_learning_rate is None else config.muon_learning_rate
            self.parts.append(Muon(_groups(self.by_muon, peak), lr=peak, momentum=config.muon_momentum))
        for part in self.parts:
            _allocate(part)

    def clip(self) -> Tensor:
        """Scale the gradient to at most `max_grad_norm` and return its L2 norm before that.

        A gradient whose norm is not finite stays as it is: scaled, it would no longer tell where it went wrong.
        """
        parameters = [each.parameter for each in self.trained if each.parameter.grad is not None]
        norm = nn.utils.get_total_norm([each.grad for each in parameters if each.grad is not None])
        if bool(torch.isfinite(norm)):
            nn.utils.clip_grads_with_norm_(parameters, self.config.max_grad_norm or math.inf, norm)
        return norm

    @torch.no_grad()
    def step(self, ratio: float) -> float:
        """Update the weights with `ratio` of the peak learning rate, clear the gradients; return the rate used."""
        whole = self.model.embedding.weight.requires_grad  # the row of an adapter has its scale in its rate
        scaled = whole and self.mask_id is not None and self.config.mask_row_lr_scale != 1.0
        row = self.model.embedding.weight[self.mask_id] if scaled else None
        before = row.clone() if row is not None else None
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = group["peak"] * ratio
            part.step()
            part.zero_grad(set_to_none=True)
        if row is not None and before is not None:
            row.copy_(before + self.config.mask_row_lr_scale * (row - before))
        return self.config.learning_rate * ratio

    def named_state(self) -> dict[str, Tensor]:
        """Return the optimiser's tensors by "<parameter>.<moment>", for a checkpoint without pickle."""
        state: dict[str, Tensor] = {}
        for plan in self.trained:
            for part in self.parts:
                entry = part.state.get(plan.parameter, {})
                state |= {f"{plan.names[0]}.{key}": value for key, value in entry.items()}
        return state

    def load_named_state(self, state: Mapping[str, Tensor], *, where: str = "optimizer state") -> None:
        """Copy in what `named_state` returned, from any device.

        Args:
            state: exactly the tensors of this optimiser.
            where: file of the state, for errors.

        Raises:
            CheckpointError: missing or unknown tensors, or one of another shape; nothing was changed.
        """
        mine = self.named_state()
        advice = "this is the state of another optimizer or model; resume with the run's own config.yaml"
        for what, names in (("missing", mine.keys() - state.keys()), ("unknown", state.keys() - mine.keys())):
            if names:
                raise CheckpointError(f"{where}: {what} {listed(sorted(names), 3)}; {advice}")
        for name, value in mine.items():
            given = state[name]
            if (given.shape, given.dtype) != (value.shape, value.dtype):
                raise CheckpointError(
                    f"{where}: {name} is {given.dtype} {list(given.shape)}, expected {value.dtype} "
                    f"{list(value.shape)}; {advice}"
                )
        for name, value in mine.items():
            value.copy_(state[name])

    def describe(self) -> str:
        """Return one line on what updates how many parameters, what is frozen, and which names are one tensor."""
        frozen = [plan for plan in self.plans if plan.frozen]
        counted = [("Muon on", self.by_muon), ("AdamW on", self.by_adam), ("frozen:", frozen)]
        parts = [
            f"{word} {len(plans)} tensor{'s' * (len(plans) > 1)} "
            f"({sum(plan.parameter.numel() for plan in plans)} parameters)"
            for word, plans in counted
            if plans
        ]
        tied = [" and ".join(plan.names) for plan in frozen if len(plan.names) > 1]
        return ", ".join(parts) + "".join(f"; {names} are one tensor, both are frozen" for names in tied)


def _groups(plans: Iterable[ParameterPlan], peak: float) -> list[dict[str, Any]]:
    """Return parameter groups of equal learning rate and decay; "peak" is the group's rate at ratio 1."""
    groups: dict[tuple[float, float, int], list[nn.Parameter]] = {}
    for plan in plans:
        groups.setdefault((plan.lr_scale, plan.weight_decay, plan.parts), []).append(plan.parameter)
    return [
        {"params": parameters, "lr": peak * scale, "peak": peak * scale, "weight_decay": decay, "parts": parts}
        for (scale, decay, parts), parameters in groups.items()
    ]


def _adamw(groups: list[dict[str, Any]], config: OptimizerConfig) -> torch.optim.AdamW:
    first: nn.Parameter = groups[0]["params"][0]
    fused = fused_adamw_works(first.device, first.dtype)
    return torch.optim.AdamW(groups, betas=config.betas, eps=config.eps, fused=fused, foreach=not fused)


@functools.cache
def fused_adamw_works(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether the fused kernel of AdamW exists for a device and dtype, by one step on one number."""
    probe = nn.Parameter(torch.zeros(1, device=device, dtype=dtype))
    probe.grad = torch.zeros_like(probe)
    try:
        torch.optim.AdamW([probe], fused=True).step()
    except RuntimeError:
        return False
    return True


def _allocate(part: torch.optim.Optimizer) -> None:
    """Create all moments as the zeros with which they start."""
    for group in part.param_groups:
        for parameter in group["params"]:
            if isinstance(part, Muon):
                part.state[parameter] = {"momentum_buffer": torch.zeros_like(parameter)}
                continue
            # Unfused AdamW reads the step on the host.
            place = parameter.device if group["fused"] else "cpu"
            part.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=place),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
