"""Executes forwards: tensors, cache and sampling, no decision about what runs when.

Shape legend: see `difflm.types`; here N counts the rows of one forward and M the positions it predicts.
"""

# Tensor.tolist() is partly untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from difflm.decode.request import Request
from difflm.decode.sequences import Proposal, Work
from difflm.diffusion.acceptance import ThresholdAcceptance, propose
from difflm.errors import CheckpointError
from difflm.models.cache import BlockCache, CachedAttention
from difflm.models.transformer import Transformer


def visibility(work: Work) -> Tensor | None:
    """Return bool [N, N], which row of the forward sees which; None where every row sees every other.

    Clean rows see clean rows: all of the same and earlier blocks (block-causal), or of the same and earlier
    positions (token-causal). Noisy rows see every clean row, and their own block: all of it, or the same and
    earlier rows. Clean rows never see noisy ones. (Everything sees the cached prefix.)

    Source: LLaDA2.0 Eq. 3, the rows of one block at a time.
    """
    request, count, clean = work.request, len(work.tokens), work.num_clean
    position_N = torch.arange(work.start, work.start + count)
    row_N = torch.arange(count)
    noisy_N = row_N >= clean
    order_N = position_N if request.clean_causal else position_N // request.block_size
    clean_NN = order_N[:, None] >= order_N[None, :]
    own_NN = noisy_N[:, None] & noisy_N[None, :]
    if request.noisy_causal:
        own_NN = own_NN & (row_N[:, None] >= row_N[None, :])
    mask_NN = torch.where(noisy_N[None, :], own_NN, clean_NN | noisy_N[:, None])
    return None if bool(mask_NN.all()) else mask_NN


@dataclass(slots=True)
class _Slot:
    """Device state of one request: cache, random numbers, and the last committed row's hidden state."""

    cache: BlockCache
    generator: torch.Generator
    last_hidden_D: Tensor | None = None


class Runner:
    """Runs the forwards of one model.

    Args:
        model: the transformer; its device and dtype are used.
        suppressed_ids: token ids that must never be proposed (MASK, ids without a token).
    """

    def __init__(self, model: Transformer, suppressed_ids: tuple[int, ...]) -> None:
        self.model = model
        self.device = model.embedding.weight.device
        self.suppressed = torch.tensor(suppressed_ids, dtype=torch.int64, device=self.device)
        self.slots: dict[int, _Slot] = {}

    def _slot(self, request: Request) -> _Slot:
        if request.id not in self.slots:
            dtype = self.model.embedding.weight.dtype
            self.slots[request.id] = _Slot(
                cache=BlockCache(self.model.config, request.capacity, device=self.device, dtype=dtype),
                generator=torch.Generator().manual_seed(request.seed),
            )
        return self.slots[request.id]

    def release(self, request_id: int) -> None:
        """Free a request's cache, if it has one."""
        self.slots.pop(request_id, None)

    @torch.inference_mode()
    def run(self, work: Work) -> Proposal:
        """Execute one forward, commit its clean rows, and return proposals for its places (if any)."""
        slot = self._slot(work.request)
        assert slot.cache.length == work.start, "the cache and the scheduler disagree"
        token_BN = torch.tensor([work.tokens], dtype=torch.int64, device=self.device)
        position_BN = torch.arange(work.start, work.start + len(work.tokens), device=self.device)[None]
        hidden_ND = self.model(token_BN, position_BN, self._attend(work, slot))[0]
        proposal = self._predict(work, slot, hidden_ND) if work.places else Proposal()
        if work.num_clean:
            slot.cache.commit(work.num_clean)
            slot.last_hidden_D = hidden_ND[work.num_clean - 1].clone()
        return proposal

    def _attend(self, work: Work, slot: _Slot) -> CachedAttention:
        if work.request.clean_causal and work.start == 0 and work.num_clean == len(work.tokens):
            return CachedAttention(slot.cache, causal=True)  # a prompt: the kernel skips what no row sees
        mask_NN = visibility(work)
        return CachedAttention(slot.cache, None if mask_NN is None else mask_NN.to(self.device))

    def _predict(self, work: Work, slot: _Slot, hidden_ND: Tensor) -> Proposal:
        row_M = [work.row_of(place) for place in work.places]
        hidden_MD = hidden_ND[[max(row, 0) for row in row_M]]
        if row_M[0] < 0:  # places ascend, so only the first can be read from the cached prefix
            assert slot.last_hidden_D is not None, "no committed row to read the first position from"
            hidden_MD[0] = slot.last_hidden_D
        request = work.request
        token_M, confidence_M = propose(
            self.model.head(hidden_MD),
            suppressed_ids=self.suppressed,
            temperature=request.temperature,
            generator=slot.generator,
        )
        acceptance = ThresholdAcceptance(request.threshold, request.min_accept)
        taken_M = acceptance(confidence_M[None], torch.ones_like(token_M, dtype=torch.bool)[None])[0]
        tokens: list[int] = token_M.tolist()
        confidences: list[float] = confidence_M.tolist()
        accepted: list[bool] = taken_M.tolist()
        if any(math.isnan(value) for value in confidences):
            raise CheckpointError(
                f"logits: NaN at position {work.places[0]} or after; the weights or the dtype "
                f"{self.model.embedding.weight.dtype} cannot be used: load the model in float32, or check its file"
            )
        return Proposal(tokens=tokens, confidences=confidences, accepted=accepted)
