"""Executes forwards: tensors, cache and sampling, no decision about what runs when.

The rows of all requests go through the model one behind another, without padding; only attention looks at each
sequence by itself.

Shape legend: see `difflm.types`; here N counts the rows of one forward.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from difflm.decode.forwards import Execution, forward_for
from difflm.decode.packing import packed
from difflm.decode.policies.base import Proposal
from difflm.decode.predicting import Slot, predict
from difflm.decode.request import Request
from difflm.decode.work import Reuse, Work
from difflm.models.cache import CachePool
from difflm.models.stacking import stack_maps
from difflm.models.transformer import Transformer


class Runner:
    """Runs the forwards of one model.

    Args:
        model: the transformer; its device and dtype are used.
        max_tokens: entries that the cache may grow to.
        execution: see `difflm.decode.forwards`.

    Raises:
        RequestError: an execution that is not possible on the model's device.
    """

    def __init__(self, model: Transformer, *, max_tokens: int, execution: Execution = "plain") -> None:
        self.model = model
        stack_maps(model)
        self.device = model.embedding.weight.device
        self.max_tokens = max_tokens
        self.pool = CachePool(model.config, device=self.device, dtype=model.embedding.weight.dtype)
        self.forward = forward_for(execution, model, self.pool, max_tokens=max_tokens)
        self.slots: dict[int, Slot] = {}

    def _slot(self, request: Request) -> Slot:
        if request.id not in self.slots:
            self.slots[request.id] = Slot(torch.Generator().manual_seed(request.seed))
        return self.slots[request.id]

    @torch.inference_mode()
    def reuse(self, reuse: Reuse) -> None:
        """Copy keys and values of finished blocks to a request that begins with the same ones."""
        self.pool.ensure(reuse.target + reuse.count, most=self.max_tokens)
        self.pool.copy(reuse.source, reuse.target, reuse.count)
        self._slot(reuse.request).length = reuse.count

    def release(self, request_id: int) -> None:
        """Forget a request, if there is one."""
        self.slots.pop(request_id, None)

    @torch.inference_mode()
    def run(self, works: Sequence[Work]) -> list[Proposal]:
        """Execute one forward for all works, commit their clean rows, and return their proposals, empty without places.

        Raises:
            CheckpointError: the model gave NaN.
        """
        slots = [self._slot(work.request) for work in works]
        for work, slot in zip(works, slots, strict=True):
            # Entries of drafts that were not accepted are behind the start, and are written over.
            assert work.start <= slot.length + work.settled, "the cache and the scheduler disagree"
            if work.fresh:
                slot.memory.clear()
        self.pool.ensure(max(w.base + w.request.capacity for w in works), most=self.max_tokens)
        rows = packed(works)
        hidden_ND = self.forward(works, rows)
        proposals = predict(self.model, works, slots, rows.firsts, hidden_ND)
        for work, slot, first in zip(works, slots, rows.firsts, strict=True):
            slot.length = work.start + work.num_clean
            if work.num_clean and work.request.logit_shift:
                slot.last_hidden_D = hidden_ND[first + work.num_clean - 1].clone()
        return proposals
