"""AdamW over float32 master weights, gradient sums, and the learning rate over tokens."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from difflm.models.transformer import Transformer
from difflm.training.config import LearningRateConfig, OptimizerConfig


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
        self.pairs = list(zip(master.parameters(), working.parameters(), strict=True))
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
        """Copy the masters into the working copy."""
        if not self.shared:
            for master, working in self.pairs:
                working.copy_(master)


class Optimizer:
    """AdamW with decoupled decay on matrices only, global-norm clipping and an optional factor for the mask row.

    Args:
        model: the float32 masters.
        config: hyper-parameters.
        mask_id: row of the embedding whose update is scaled by `mask_row_lr_scale`; None: no such row.
    """

    def __init__(self, model: Transformer, config: OptimizerConfig, *, mask_id: int | None) -> None:
        self.config, self.model, self.mask_id = config, model, mask_id
        embeddings = {id(model.embedding.weight), id(model.head.weight)}
        decayed, kept = [], []
        for parameter in model.parameters():
            (decayed if parameter.dim() > 1 and id(parameter) not in embeddings else kept).append(parameter)
        groups = [
            {"params": decayed, "weight_decay": config.weight_decay},
            {"params": kept, "weight_decay": 0.0},
        ]
        self.adam = torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, eps=config.eps, fused=True)

    def clip(self) -> Tensor:
        """Scale the gradient to at most `max_grad_norm` and return its L2 norm before that."""
        parameters = [each for each in self.model.parameters() if each.grad is not None]
        limit = self.config.max_grad_norm or math.inf
        return nn.utils.clip_grad_norm_(parameters, limit)

    @torch.no_grad()
    def step(self, ratio: float) -> float:
        """Update the weights with `ratio` of the peak learning rate, clear the gradients; return the rate used."""
        rate = self.config.learning_rate * ratio
        for group in self.adam.param_groups:
            group["lr"] = rate
        scaled = self.mask_id is not None and self.config.mask_row_lr_scale != 1.0
        row = self.model.embedding.weight[self.mask_id] if scaled else None
        before = row.clone() if row is not None else None
        self.adam.step()
        if row is not None and before is not None:
            row.copy_(before + self.config.mask_row_lr_scale * (row - before))
        self.adam.zero_grad(set_to_none=True)
        return rate

    def named_state(self) -> dict[str, Tensor]:
        """Return the optimiser's tensors by "<parameter>.<moment>", for a checkpoint without pickle."""
        state: dict[str, Tensor] = {}
        for name, parameter in self.model.named_parameters():
            for key, value in self.adam.state.get(parameter, {}).items():
                state[f"{name}.{key}"] = value
        return state

    def load_named_state(self, state: dict[str, Tensor]) -> None:
        """Restore what `named_state` returned; every parameter must have its tensors."""
        for name, parameter in self.model.named_parameters():
            entry = {key: state[f"{name}.{key}"] for key in ("step", "exp_avg", "exp_avg_sq")}
            self.adam.state[parameter] = entry
