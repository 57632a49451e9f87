"""Executes forwards: tensors, cache and sampling, no decision about what runs when.

The rows of all requests go through the model one behind another, without padding; only attention looks at each
sequence by itself.

Shape legend: see `difflm.types`; here N counts the rows of one forward and M the positions it predicts.
"""

# Tensor.tolist() is partly untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from difflm.decode.events import TokenLogprob
from difflm.decode.policies.base import Proposal
from difflm.decode.request import Request
from difflm.decode.sampling import Rows, Rule, logprob_columns
from difflm.decode.work import Work
from difflm.errors import CheckpointError
from difflm.models.cache import CachePool, PackedAttention, Part
from difflm.models.transformer import Transformer

TILE = 128
"""Clean rows that share an attention call, tokens: a longer prompt is cut, so that no mask is wider than needed."""
LOGITS_BYTES = 1 << 29
"""Logits in float32 that are held at once; more rows are predicted in several calls."""


def parts_of(work: Work) -> Iterator[Part]:
    """Yield the rows of one request's forward in parts that see the same, counted from its own first row.

    Clean rows see clean rows: all of the same and earlier blocks (block-causal), or of the same and earlier
    positions (token-causal). Noisy rows see every clean row, and their own block: all of it, or the same and
    earlier rows. Clean rows never see noisy ones. Everything sees the cached prefix.

    Source: LLaDA2.0 Eq. 3, the rows of one block at a time.
    """
    request, count, clean = work.request, len(work.tokens), work.num_clean
    if request.clean_causal and work.start == 0 and clean:
        # A prompt: the kernel skips what no row sees.
        yield Part(first=0, count=clean, base=work.base, stop=clean, causal=True)
    else:
        tile = max(request.block_size, TILE // request.block_size * request.block_size)
        for first in range(0, clean, tile):
            rows = min(tile, clean - first)
            position_N = torch.arange(work.start + first, work.start + first + rows)
            order_N = position_N if request.clean_causal else position_N // request.block_size
            mask_NN = order_N[:, None] >= order_N[None, :]
            stop = work.start + first + rows
            yield Part(first=first, count=rows, base=work.base, stop=stop, mask_NN=_unless_full(mask_NN))
    if count > clean:
        rows, mask_NN = count - clean, None
        if request.noisy_causal and rows > 1:
            mask_NN = torch.ones(rows, rows, dtype=torch.bool).tril()
        yield Part(first=clean, count=rows, base=work.base, stop=work.start + count, mask_NN=mask_NN)


def _unless_full(mask_NN: Tensor) -> Tensor | None:
    return None if bool(mask_NN.all()) else mask_NN


@dataclass(slots=True)
class Slot:
    """What the runner keeps of a request.

    Attributes:
        generator: random numbers.
        length: committed entries of its span.
        last_hidden_D: hidden state of the last committed row.
        memory: what the rule keeps of the current block.
    """

    generator: torch.Generator
    length: int = 0
    last_hidden_D: Tensor | None = None
    memory: dict[str, Tensor] = field(default_factory=dict[str, Tensor])


class Runner:
    """Runs the forwards of one model.

    Args:
        model: the transformer; its device and dtype are used.
        max_tokens: entries that the cache may grow to.
    """

    def __init__(self, model: Transformer, *, max_tokens: int) -> None:
        self.model = model
        self.device = model.embedding.weight.device
        self.max_tokens = max_tokens
        self.pool = CachePool(model.config, device=self.device, dtype=model.embedding.weight.dtype)
        self.slots: dict[int, Slot] = {}

    def _slot(self, request: Request) -> Slot:
        if request.id not in self.slots:
            self.slots[request.id] = Slot(torch.Generator().manual_seed(request.seed))
        return self.slots[request.id]

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
            slot.length += work.settled
            assert slot.length == work.start, "the cache and the scheduler disagree"
            if work.fresh:
                slot.memory.clear()
        self.pool.ensure(max(w.base + w.request.capacity for w in works), most=self.max_tokens)
        token_BN = torch.tensor([[token for work in works for token in work.tokens]], device=self.device)
        hidden_ND = self.model(token_BN, *self._places_and_attention(works))[0]
        firsts = _offsets(works)
        proposals = self._predict(works, slots, firsts, hidden_ND)
        for work, slot, first in zip(works, slots, firsts, strict=True):
            if work.num_clean:
                slot.length += work.num_clean
                slot.last_hidden_D = hidden_ND[first + work.num_clean - 1].clone()
        return proposals

    def _places_and_attention(self, works: Sequence[Work]) -> tuple[Tensor, PackedAttention]:
        positions: list[int] = []
        entries: list[int] = []
        parts: list[Part] = []
        for work, first in zip(works, _offsets(works), strict=True):
            positions.extend(range(work.start, work.start + len(work.tokens)))
            entries.extend(range(work.base + work.start, work.base + work.start + len(work.tokens)))
            for part in parts_of(work):
                mask_NN = None if part.mask_NN is None else part.mask_NN.to(self.device)
                parts.append(replace(part, first=first + part.first, mask_NN=mask_NN))
        entry_N = torch.tensor(entries, device=self.device)
        return torch.tensor([positions], device=self.device), PackedAttention(self.pool, entry_N, parts)

    def _predict(
        self, works: Sequence[Work], slots: Sequence[Slot], firsts: Sequence[int], hidden_ND: Tensor
    ) -> list[Proposal]:
        """Return the proposals; works with equal rules share a call of head and rule, and all share one transfer."""
        proposals = [Proposal() for _ in works]
        calls = self._calls(works)
        if not calls:
            return proposals
        answers: list[Tensor] = []
        for call in calls:
            hidden_MD = torch.cat([self._rows(works[i], slots[i], firsts[i], hidden_ND) for i in call])
            rows = [_rows_of(works[i], slots[i]) for i in call]
            logits_MV = self.model.head(hidden_MD)
            answer_CM = works[call[0]].request.rule(logits_MV, rows).columns()
            asked = [works[i].request.logprobs for i in call]
            top = max((count for count in asked if count is not None), default=None)
            if top is not None:
                suppressed = works[call[0]].request.rule.suppressed
                scored_CM = logprob_columns(logits_MV, answer_CM[0].long(), top, suppressed)
                answer_CM = torch.cat([answer_CM, scored_CM])
            answers.append(answer_CM)
        values: list[float] = torch.cat([answer_CM.flatten() for answer_CM in answers]).tolist()
        for call, answer_CM in zip(calls, answers, strict=True):
            count = answer_CM.shape[1]
            columns = [values[c * count : (c + 1) * count] for c in range(len(answer_CM))]
            values = values[answer_CM.numel() :]
            first = 0
            for number in call:
                stop = first + len(works[number].places)
                proposals[number] = self._proposal(works[number], [column[first:stop] for column in columns])
                first = stop
        return proposals

    def _calls(self, works: Sequence[Work]) -> list[list[int]]:
        """Return which works are predicted together: equal rules, and no more logits than are held at once."""
        most = max(1, LOGITS_BYTES // (4 * self.model.config.vocab_size))
        calls: dict[Rule, list[list[int]]] = {}
        rows: dict[Rule, int] = {}
        for number, work in enumerate(works):
            if not work.places:
                continue
            rule, count = work.request.rule, len(work.places)
            if rule not in calls or rows[rule] + count > most:
                calls.setdefault(rule, []).append([])
                rows[rule] = 0
            calls[rule][-1].append(number)
            rows[rule] += count
        return [call for each in calls.values() for call in each]

    def _rows(self, work: Work, slot: Slot, first: int, hidden_ND: Tensor) -> Tensor:
        row_M = [work.row_of(place) for place in work.places]
        hidden_MD = hidden_ND[[first + max(row, 0) for row in row_M]]
        if row_M[0] < 0:  # places ascend, so only the first can be read from the cached prefix
            assert slot.last_hidden_D is not None, "no committed row to read the first position from"
            hidden_MD[0] = slot.last_hidden_D
        return hidden_MD

    def _proposal(self, work: Work, columns: Sequence[Sequence[float]]) -> Proposal:
        tokens, confidences, *more = columns
        wanted = work.request.logprobs
        scores: list[TokenLogprob] = []
        if wanted is not None:
            values = more[work.request.rule.entropy :]  # see `logprob_columns`
            for number, token in enumerate(tokens):
                row = [column[number] for column in values]
                pairs = zip(row[1::2], row[2::2], strict=True)
                top = tuple((int(best), logprob) for best, logprob in list(pairs)[:wanted])
                scores.append(TokenLogprob(token=int(token), logprob=row[0], top=top))
        if any(math.isnan(value) for value in confidences):
            raise CheckpointError(
                f"logits: NaN at position {work.places[0]} or after; the weights or the dtype "
                f"{self.model.embedding.weight.dtype} cannot be used: load the model in float32, or check its file"
            )
        return Proposal(
            tokens=[int(token) for token in tokens],
            confidences=confidences,
            entropies=more[0] if work.request.rule.entropy else (),
            scores=scores,
        )


def _offsets(works: Sequence[Work]) -> list[int]:
    """Return the first row of each work in the forward."""
    firsts = [0]
    for work in works[:-1]:
        firsts.append(firsts[-1] + len(work.tokens))
    return firsts


def _rows_of(work: Work, slot: Slot) -> Rows:
    request, size = work.request, work.request.block_size
    free = len(request.prompt) + request.min_tokens
    return Rows(
        places=[place % size for place in work.places],
        block_length=size,
        left=[work.left_of(place) for place in work.places],
        generator=slot.generator,
        prompt=request.prompt if request.rule.needs_history else (),
        generated=work.generated,
        barred=[number for number, place in enumerate(work.places) if place < free],
        ends=sorted(request.eos_ids) if request.min_tokens else (),
        memory=slot.memory,
    )
