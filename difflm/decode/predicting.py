"""From hidden states to proposals: head, rule and log-probabilities of the rows that are asked for.

Shape legend: see `difflm.types`; here N counts the rows of one forward and M the positions it predicts.
"""

# Tensor.tolist() is partly untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from difflm.decode.chaining import chained
from difflm.decode.constraining import NOT_REACHED, constrained
from difflm.decode.drawing import Draw
from difflm.decode.events import TokenLogprob
from difflm.decode.matching import Matcher
from difflm.decode.policies.base import Proposal
from difflm.decode.ratio import Ratio
from difflm.decode.sampling import Rows, Rule, logprob_columns
from difflm.decode.work import Work
from difflm.errors import CheckpointError
from difflm.models.transformer import Transformer

LOGITS_BYTES = 1 << 29
"""Logits in float32 that are held at once; more rows are predicted in several calls."""


@dataclass(slots=True)
class Slot:
    """What is kept of a request between its forwards.

    Attributes:
        generator: random numbers.
        length: committed entries of its span.
        last_hidden_D: hidden state of the last committed row; kept for models that read a token at the row before it.
        memory: what the rule keeps of the current block.
        matcher: of the answer so far, where a grammar constrains it.
    """

    generator: torch.Generator
    length: int = 0
    last_hidden_D: Tensor | None = None
    memory: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    matcher: Matcher | None = None


def predict(
    model: Transformer, works: Sequence[Work], slots: Sequence[Slot], firsts: Sequence[int], hidden_ND: Tensor
) -> list[Proposal]:
    """Return the works' proposals, empty without places.

    Works with equal rules share a call of head and rule, and all share one gathering of rows and one transfer.

    Args:
        model: its head is applied.
        works: one forward.
        slots: of their requests.
        firsts: first row of each work.
        hidden_ND: the rows' final hidden states.

    Raises:
        CheckpointError: the model gave NaN.
    """
    proposals = [Proposal() for _ in works]
    calls = _calls(works, most=max(1, LOGITS_BYTES // (4 * model.config.vocab_size)))
    if not calls:
        return proposals
    rows_MD = _gathered([number for call in calls for number in call], works, slots, firsts, hidden_ND)
    answers: list[Tensor] = []
    for call in calls:
        count = sum(len(works[number].places) for number in call)
        answers.append(_answer(model, [works[i] for i in call], [slots[i] for i in call], rows_MD[:count]))
        rows_MD = rows_MD[count:]
    values: list[float] = torch.cat([answer_CM.flatten() for answer_CM in answers]).tolist()
    for call, answer_CM in zip(calls, answers, strict=True):
        count = answer_CM.shape[1]
        columns = [values[c * count : (c + 1) * count] for c in range(len(answer_CM))]
        values = values[answer_CM.numel() :]
        first = 0
        for number in call:
            stop = first + len(works[number].places)
            proposals[number] = _proposal(works[number], [column[first:stop] for column in columns])
            if any(map(math.isnan, proposals[number].confidences)):
                raise CheckpointError(
                    f"logits: NaN at position {works[number].places[0]} or after; the weights or the dtype "
                    f"{hidden_ND.dtype} cannot be used: load the model in float32, or check its file"
                )
            first = stop
    return proposals


def _calls(works: Sequence[Work], *, most: int) -> list[list[int]]:
    """Return which works are predicted together: equal rules, and at most `most` rows where one work has not more.

    Constrained ones go together, too: they take their rows one by one.
    """
    calls: dict[tuple[Rule, bool], list[list[int]]] = {}
    rows: dict[tuple[Rule, bool], int] = {}
    for number, work in enumerate(works):
        if not work.places:
            continue
        key, count = (work.request.rule, work.request.grammar is not None), len(work.places)
        if key not in calls or rows[key] + count > most:
            calls.setdefault(key, []).append([])
            rows[key] = 0
        calls[key][-1].append(number)
        rows[key] += count
    return [call for each in calls.values() for call in each]


def _gathered(
    numbers: Sequence[int], works: Sequence[Work], slots: Sequence[Slot], firsts: Sequence[int], hidden_ND: Tensor
) -> Tensor:
    """Return the rows that predict the places of the given works, [M, D]."""
    index: list[int] = []
    before: list[tuple[int, Tensor]] = []
    for number in numbers:
        work, first, last_D = works[number], firsts[number], slots[number].last_hidden_D
        if work.row_of(work.places[0]) < 0 < work.start:  # places ascend: only the first can be read from the prefix
            assert last_D is not None, "no committed row to read the first position from"
            before.append((len(index), last_D))
        # Nothing is before position 0. It is given; policies that draw for all of a block draw there for nothing.
        index.extend(first + max(work.row_of(place), 0) for place in work.places)
    hidden_MD = hidden_ND.index_select(0, torch.tensor(index, device=hidden_ND.device))
    for row, last_D in before:
        hidden_MD[row] = last_D
    return hidden_MD


def _answer(model: Transformer, works: Sequence[Work], slots: Sequence[Slot], hidden_MD: Tensor) -> Tensor:
    """Return what the works' common rule proposes, and the log-probabilities if one wants them, float64 [C, M].

    Log-probabilities are those of the uncorrected rows: only those of clean places are read.
    """
    rule = works[0].request.rule
    logits_MV = model.head(hidden_MD)
    rows, counts = [_rows_of(work, slot) for work, slot in zip(works, slots, strict=True)], [w.drafted for w in works]
    if works[0].request.grammar is not None:
        matchers = [_matcher(work, slot) for work, slot in zip(works, slots, strict=True)]
        answer_CM = constrained(model, works, matchers, rows, hidden_MD, logits_MV)
    elif model.draft_head is not None and any(counts):
        assert isinstance(rule, Draw | Ratio), "what drafts has one of them"
        answer_CM = chained(model, rule, rows, counts, hidden_MD, logits_MV)
    else:
        answer_CM = rule(logits_MV, rows).columns()
    asked = [count for work in works if (count := work.request.logprobs) is not None]
    if not asked:
        return answer_CM
    token_M = answer_CM[0].long().clamp(min=0)
    return torch.cat([answer_CM, logprob_columns(logits_MV, token_M, max(asked), rule.suppressed)])


def _matcher(work: Work, slot: Slot) -> Matcher:
    """Return the matcher of a request's answer; made at its first forward."""
    if slot.matcher is None:
        assert work.request.grammar is not None, "it is constrained"
        slot.matcher = work.request.grammar.matcher()
    return slot.matcher


def _proposal(work: Work, columns: Sequence[Sequence[float]]) -> Proposal:
    reached = next((i for i, token in enumerate(columns[0]) if token == NOT_REACHED), len(columns[0]))
    tokens, confidences, *more = (column[:reached] for column in columns)
    wanted = work.request.logprobs
    scores: list[TokenLogprob] = []
    if wanted is not None:
        values = more[work.request.rule.entropy :]  # see `logprob_columns`
        for number, token in enumerate(tokens):
            row = [column[number] for column in values]
            pairs = zip(row[1::2], row[2::2], strict=True)
            top = tuple((int(best), logprob) for best, logprob in list(pairs)[:wanted])
            scores.append(TokenLogprob(token=int(token), logprob=row[0], top=top))
    return Proposal(
        tokens=list(map(int, tokens)),
        confidences=confidences,
        entropies=more[0] if work.request.rule.entropy else (),
        scores=scores,
    )


def _rows_of(work: Work, slot: Slot) -> Rows:
    request, size = work.request, work.request.block_size
    free = len(request.prompt) + request.min_tokens
    return Rows(
        places=[place % size for place in work.places],
        block_length=size,
        left=[work.left_of(place) for place in work.places],
        generator=slot.generator,
        prompt=request.given if request.rule.needs_history else (),
        generated=work.generated,
        barred=[number for number, place in enumerate(work.places) if place < free],
        ends=sorted(request.eos_ids) if request.min_tokens else (),
        memory=slot.memory,
        seed=request.seed,
        positions=work.places,
        drafts=work.drafts,
    )
