"""The health of routers in training: load of the experts, losses on the routers, the update of the experts' biases.

Everything is a sum over the tokens of all micro-batches of a step, both streams, padding left out, and is divided once.
Only the forwards of training carry a probe: validation, samples and the examination of a bad step count nothing.

Shape legend: see `difflm.types`; in this file N tokens of all rows and streams, E experts, K experts per token,
C streams (noisy, clean), Q sequences (one stream of one row each), A layers with a router.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from difflm.checkpoints.loading import LoadedModel
from difflm.errors import ConfigError
from difflm.models.config import MoEConfig
from difflm.models.moe import MoE
from difflm.models.transformer import Transformer
from difflm.training.config import TrainConfig
from difflm.training.config_router import RouterConfig
from difflm.types import PADDING, ModelInput

STREAMS = ("noisy", "clean")


def check_routers(config: TrainConfig, loaded: LoadedModel) -> None:
    """Refuse settings of routers that a model cannot have.

    Raises:
        ConfigError: a dense model, or an update of biases that its routers do not have.
    """
    settings, moe, family = config.router, loaded.config.model.moe, loaded.config.family
    wanted = ("freeze", "true") if settings.freeze else settings.first_wanted
    if wanted and moe is None:
        raise ConfigError(
            f"train.router.{wanted[0]}: {wanted[1]}, but {config.model} ({family}) is dense, it has no routers; "
            "leave train.router out"
        )
    if settings.bias_update_rate and moe is not None and not moe.expert_bias:
        raise ConfigError(
            f"train.router.bias_update_rate: {settings.bias_update_rate}, but the routers of {config.model} ({family}, "
            f"{moe.score}) have no expert bias; set it to 0, train.router.balance_loss balances them"
        )


class ForwardProbe:
    """`RouterProbe` of one micro-batch.

    Args:
        inputs: of the forward.
        moe: of the model.
        config: which losses are wanted.
        device: of the model.
        noisy_only: of two streams only the noisy one is measured.
    """

    def __init__(
        self,
        inputs: ModelInput,
        moe: MoEConfig,
        config: RouterConfig,
        *,
        device: torch.device | str,
        noisy_only: bool = False,
    ) -> None:
        self.moe, self.config = moe, config
        streams = {stream: real.to(device) for stream, real in _streams(inputs, noisy_only=noisy_only).items()}
        self.real_BN = torch.cat(list(streams.values()), dim=1)
        self.lengths = [real.shape[1] for real in streams.values()]
        # Padding goes to a stream of its own, which is cut off.
        numbers = [torch.where(real, stream, len(STREAMS)) for stream, real in streams.items()]
        self.stream_N = torch.cat(numbers, dim=1).flatten()
        self.found: dict[int, tuple[Tensor, ...]] = {}

    def measure(self, logit_NE: Tensor, expert_NK: Tensor) -> tuple[Tensor, ...]:
        """Return (load [C, E], summed entropy [C], sum of the z-loss, sum of the balance loss).

        Args:
            logit_NE: of the router.
            expert_NK: the experts that were chosen.
        """
        streams, experts = len(STREAMS), logit_NE.shape[1]
        load_CE = _counts(self.stream_N, expert_NK, streams + 1, experts)[:streams]
        share_NE = self._shares(logit_NE)
        entropy_N = torch.special.entr(share_NE.detach()).sum(-1, dtype=torch.float64)
        # Neither index_add, which adds in any order on CUDA, nor a choice of rows, which waits for their number.
        entropy_C = torch.stack([(entropy_N * (self.stream_N == stream)).sum() for stream in range(streams)])
        zero = logit_NE.new_zeros(())
        squared = self._squared(logit_NE) if self.config.z_loss else zero
        balance = self._balance(share_NE) if self.config.balance_loss else zero
        return load_CE, entropy_C, squared, balance

    def record(self, layer: int, measured: tuple[Tensor, ...]) -> None:
        """Keep what was measured on a layer."""
        assert layer not in self.found, "a layer counts once in a forward"
        self.found[layer] = measured

    def _shares(self, logit_NE: Tensor) -> Tensor:
        """Return the scores of a token as shares of their sum."""
        if self.moe.score == "softmax":
            return logit_NE.softmax(-1)
        score_NE = logit_NE.sigmoid()
        return score_NE / score_NE.sum(-1, keepdim=True)

    def _squared(self, logit_NE: Tensor) -> Tensor:
        """Return the z-loss summed over tokens (ST-MoE, arXiv:2202.08906, Eq. 5)."""
        return (logit_NE.logsumexp(-1).square() * self.real_BN.flatten()).sum()

    def _balance(self, share_NE: Tensor) -> Tensor:
        """Return the balance loss of each sequence times its tokens, summed.

        Source: DeepSeek-V3 (arXiv:2412.19437) Eqs. 17-20. As printed there, the fraction of tokens counts the highest
        scores themselves: without bias and without groups. A short sequence weighs by its tokens.
        """
        rows, lengths = len(self.real_BN), self.lengths
        count_Q = torch.cat([part.sum(1) for part in self.real_BN.split(lengths, dim=1)]).clamp(min=1)
        ids_CB1 = torch.arange(len(count_Q), device=share_NE.device).view(len(lengths), rows, 1)
        ids = torch.cat([each.expand(-1, length) for each, length in zip(ids_CB1, lengths, strict=True)], dim=1)
        sequence_N = torch.where(self.real_BN, ids, len(count_Q)).flatten()
        top_NK = share_NE.detach().topk(self.moe.experts_per_token, dim=-1).indices
        load_QE = _counts(sequence_N, top_NK, len(count_Q) + 1, share_NE.shape[1])[:-1]
        fraction_QE = load_QE.to(share_NE.dtype) * share_NE.shape[1] / (self.moe.experts_per_token * count_Q[:, None])
        share_BNE = share_NE.unflatten(0, self.real_BN.shape) * self.real_BN[..., None]
        total_QE = torch.cat([part.sum(1) for part in share_BNE.split(lengths, dim=1)])
        return (fraction_QE * total_QE).sum()


def _streams(inputs: ModelInput, *, noisy_only: bool) -> dict[int, Tensor]:
    """Return which rows of each stream of a forward are no padding, bool [B, rows], in the order of the rows."""
    layout = inputs.layout
    clean_BL = layout.document_BL != PADDING
    if not layout.two_streams:
        return {0 if inputs.maskable_BW is not None else 1: clean_BL}
    noisy = clean_BL if layout.stand_BW is None else layout.stand_BW != PADDING
    return {0: noisy} if noisy_only else {0: noisy, 1: clean_BL}


def _counts(group_N: Tensor, expert_NK: Tensor, groups: int, experts: int) -> Tensor:
    """Return how often each expert was chosen in each group of tokens, int64 [groups, E]; exact in any order."""
    index_P = (group_N[:, None] * experts + expert_NK).flatten()
    return (
        torch.zeros(groups * experts, dtype=torch.int64, device=index_P.device)
        .scatter_add_(0, index_P, torch.ones_like(index_P))
        .unflatten(0, (groups, experts))
    )


class RouterStep:
    """The routers in the micro-batches of one optimiser step; of a dense model, nothing.

    Args:
        config: what is wanted of the routers.
        moe: of the model; None is dense.
        device: of the model.
        noisy_only: of two streams only the noisy one is measured (the clean one is the base's, and constant).
    """

    def __init__(
        self, config: RouterConfig, moe: MoEConfig | None, *, device: torch.device | str, noisy_only: bool = False
    ) -> None:
        self.config, self.moe, self.device, self.noisy_only = config, moe, device, noisy_only
        self.tokens = 0
        self.load: dict[int, Tensor] = {}
        self.entropy: dict[int, Tensor] = {}
        self.penalties: dict[int, Tensor] = {}

    def expect(self, inputs: ModelInput) -> None:
        """Count the tokens of a micro-batch, before any forward: losses are divided by those of the whole step."""
        self.tokens += sum(int(real.sum()) for real in _streams(inputs, noisy_only=self.noisy_only).values())

    def probe(self, inputs: ModelInput) -> ForwardProbe | None:
        """Return what measures the forward of a micro-batch."""
        if self.moe is None:
            return None
        return ForwardProbe(inputs, self.moe, self.config, device=self.device, noisy_only=self.noisy_only)

    def add(self, probe: ForwardProbe | None) -> list[Tensor]:
        """Take in a forward; return its part of the step's loss on routers, scalars in the graph of the forward."""
        if probe is None:
            return []
        count = max(self.tokens, 1)
        parts = list[Tensor]()
        for layer, (load_CE, entropy_C, squared, balance) in probe.found.items():
            penalty = torch.stack([squared, balance]) / count
            for sums, value in ((self.load, load_CE), (self.entropy, entropy_C), (self.penalties, penalty.detach())):
                sums[layer] = sums[layer] + value if layer in sums else value
            if penalty.requires_grad:
                parts.append(self.config.z_loss * penalty[0] + self.config.balance_loss * penalty[1])
        return parts

    def losses(self) -> dict[str, float]:
        """Return the losses on routers that are wanted: mean over tokens and layers, before the coefficient."""
        if not self.penalties:
            return {}
        squared, balance = torch.stack(list(self.penalties.values())).double().mean(0).tolist()
        wanted = {"z_loss": (self.config.z_loss, squared), "balance_loss": (self.config.balance_loss, balance)}
        return {name: value for name, (coefficient, value) in wanted.items() if coefficient}

    @torch.no_grad()
    def update_biases(self, model: Transformer) -> None:
        """Raise the bias of every expert with less than the mean load, lower that of those with more.

        Source: DeepSeek-V3 (arXiv:2412.19437), section 2.1.2: bias += rate * sign(mean load - load), once a step.

        Args:
            model: the float32 masters.
        """
        if not self.config.bias_update_rate:
            return
        for number, load_CE in self.load.items():
            branch = model.layers[number].mlp
            assert isinstance(branch, MoE)
            bias_E = branch.router.expert_bias
            assert bias_E is not None, "checked before the run"
            load_E = load_CE.sum(0)
            # In whole numbers: an expert at the mean stays, whatever the mean is in binary.
            bias_E += self.config.bias_update_rate * (load_E.sum() - len(load_E) * load_E).sign().to(bias_E)

    def row(self) -> dict[str, Any]:
        """Return the figures of the step under the names of metrics.jsonl; nothing of a dense model."""
        if not self.load:
            return {}
        load_ACE = torch.stack(list(self.load.values())).cpu().double()
        entropy_AC = torch.stack(list(self.entropy.values())).cpu()
        found: dict[str, Any] = {}
        for stream, name in enumerate(STREAMS):
            load_AE = load_ACE[:, stream]
            mean_A = load_AE.mean(1)
            if not bool(mean_A.any()):
                continue
            tokens_A = load_AE.sum(1) / self._per_token
            found[name] = {
                "max_violation": self._by_layer(load_AE.amax(1) / mean_A - 1),
                "dead_experts": self._by_layer((load_AE == 0).double().mean(1)),
                "entropy": self._by_layer(entropy_AC[:, stream] / tokens_A),
            }
        return {"router": found | self.losses()}

    @property
    def _per_token(self) -> int:
        assert self.moe is not None
        return self.moe.experts_per_token

    def _by_layer(self, value_A: Tensor) -> dict[str, float]:
        layers = (f"layer_{layer}" for layer in self.load)
        return {"mean": float(value_A.mean()), **dict(zip(layers, value_A.tolist(), strict=True))}
