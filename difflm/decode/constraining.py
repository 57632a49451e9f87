"""Proposals under a grammar: which token may stand at a place depends on the tokens before it, so rows go one by one.

The rows behind known tokens (the first of a block; left to right every row that verifies) go through the rule at once.
The others are gone through from the left, each behind what the one before it proposes: in a block as far as its policy
keeps them, left to right as far as the window of drafts reaches. All requests of a call advance by a place at a time.
Rows that are not reached propose nothing.

Shape legend: see `difflm.types`; here M counts the predicted rows of all requests of a call, K those of one place.
"""

# Tensor.tolist() is partly untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from difflm.decode.chaining import best_candidates, corrected
from difflm.decode.drawing import Draw
from difflm.decode.matching import Matcher, allowed_ids
from difflm.decode.policies.constrained import Constrained
from difflm.decode.ratio import Ratio
from difflm.decode.sampling import Candidates, Proposed, Rows
from difflm.decode.work import Work
from difflm.models.transformer import Transformer

NOT_REACHED = -1
"""Token of a row that proposes nothing."""


@dataclass(slots=True)
class _Walk:
    """The rows of one request on their way.

    Attributes:
        work: its forward.
        rows: what belongs to them.
        first: number of its first row in the call.
        matcher: behind the tokens that were gone through.
        rule: of the call.
        vocab_size: V.
        done: rows gone through.
        token: what the last of them proposes.
        confidences, entropies: of the rows, in a block.
    """

    work: Work
    rows: Rows
    first: int
    matcher: Matcher
    rule: Draw | Ratio
    vocab_size: int
    done: int = 0
    token: int = NOT_REACHED
    confidences: list[float] = field(default_factory=list[float])
    entropies: list[float] = field(default_factory=list[float])

    @property
    def _before(self) -> int:
        """Tokens of the answer before its rows."""
        return self.work.places[0] - len(self.work.request.prompt)

    @property
    def drafts(self) -> bool:
        """Whether rows behind the known ones draft."""
        return self.work.request.drafting is not None

    def allowed(self) -> Tensor | None:
        """Return which ids may come next, bool [V]; None where there is none."""
        ends = tuple(self.work.request.eos_ids)
        return allowed_ids(self.matcher, ends, self.rule.suppressed, self.vocab_size)

    def known(self) -> list[Tensor]:
        """Return what is allowed in each row behind known tokens, up to a draft that the grammar does not take."""
        self.matcher.back_to(self._before)
        allowed = self.allowed()
        masks = [] if allowed is None else [allowed]
        for draft in self.work.drafts if masks else ():
            if not self.matcher.take(draft) or (allowed := self.allowed()) is None:
                break
            masks.append(allowed)
        return masks

    def goes_on_behind(self, tokens: Sequence[int], values: Sequence[Sequence[float]]) -> bool:
        """Take in what the known rows propose; return whether the next row is to be gone through.

        Args:
            tokens: of these rows.
            values: confidence, and entropy if there is one, of each.
        """
        drafts = self.work.drafts
        wrong = next((i for i, pair in enumerate(zip(drafts, tokens, strict=False)) if pair[0] != pair[1]), None)
        self.done = len(tokens) if wrong is None else wrong + 1
        if wrong is not None:
            self.matcher.back_to(self._before + wrong)
        elif len(tokens) <= len(drafts):
            return False
        return self.goes_on(tokens[self.done - 1], values[self.done - 1]) and wrong is None

    def goes_on(self, token: int, values: Sequence[float]) -> bool:
        """Take in what the last row proposes; return whether the next row is to be gone through."""
        self.token = token
        # What is written has to be taken, also where this forward goes no further.
        taken = token not in self.work.request.eos_ids and self.matcher.take(token)
        policy = self.work.request.policy
        if isinstance(policy, Constrained):
            self.confidences.append(values[0])
            self.entropies.extend(values[1:])
            if not policy.keeps(self.confidences, self.entropies):
                return False
        return taken and self.done < len(self.work.places)


def constrained(
    model: Transformer,
    works: Sequence[Work],
    matchers: Sequence[Matcher],
    rows: Sequence[Rows],
    hidden_MD: Tensor,
    logits_MV: Tensor,
) -> Tensor:
    """Return what `Proposed.columns` does, [2 or 3, M], the token `NOT_REACHED` in rows that propose nothing.

    Args:
        model: its draft head is used where it has one.
        works: of requests with equal rules.
        matchers: of their answers.
        rows: of the works.
        hidden_MD: final hidden states of the rows.
        logits_MV: of the same rows.
    """
    rule = works[0].request.rule
    assert isinstance(rule, Draw | Ratio), "admission lets no other rule be constrained"
    firsts = [sum(len(each.places) for each in rows[:number]) for number in range(len(rows))]
    walks = [
        _Walk(work, each, first, matcher, rule, logits_MV.shape[-1])
        for work, each, first, matcher in zip(works, rows, firsts, matchers, strict=True)
    ]
    answer_CM = torch.zeros(2 + rule.entropy, len(logits_MV), dtype=torch.float64, device=logits_MV.device)
    answer_CM[0] = NOT_REACHED
    active = _known(walks, logits_MV, answer_CM)
    while active:
        active = _step(model, active, hidden_MD, logits_MV, answer_CM)
    return answer_CM


def _known(walks: Sequence[_Walk], logits_MV: Tensor, answer_CM: Tensor) -> list[_Walk]:
    """Fill in the rows behind known tokens; return the walks that go on behind them."""
    masks = [(walk, found) for walk in walks if (found := walk.known())]
    if not masks:
        return []
    index = [walk.first + number for walk, found in masks for number in range(len(found))]
    allowed = [each for _, found in masks for each in found]
    parts = [_known_part(walk.rows, len(found)) for walk, found in masks]
    proposed = masks[0][0].rule(_masked(logits_MV[index], allowed), parts)
    columns_CM = proposed.columns()
    values = columns_CM.T.tolist()
    going: list[_Walk] = []
    begin = 0
    for walk, found in masks:
        told = values[begin : begin + len(found)]
        if walk.goes_on_behind([int(each[0]) for each in told], [each[1:] for each in told]):
            going.append(walk)
        answer_CM[:, walk.first : walk.first + walk.done] = columns_CM[:, begin : begin + walk.done]
        begin += len(found)
    return going


def _known_part(rows: Rows, count: int) -> Rows:
    """Return the first rows, the last of them behind all drafts that are left."""
    return replace(rows.part(0, count), drafts=rows.drafts[: count - 1])


def _step(
    model: Transformer, walks: Sequence[_Walk], hidden_MD: Tensor, logits_MV: Tensor, answer_CM: Tensor
) -> list[_Walk]:
    """Go through the next row of each walk; return the walks that go on."""
    masks = [(walk, found) for walk in walks if (found := walk.allowed()) is not None]
    going: list[_Walk] = []
    # A rule belongs to drafting or to blocks, but one that draws alike may be both.
    for drafts in (False, True):
        group = [(walk, found) for walk, found in masks if walk.drafts == drafts]
        if not group:
            continue
        index = [walk.first + walk.done for walk, _ in group]
        parts = [walk.rows.part(walk.done, walk.done + 1) for walk, _ in group]
        logits_KV = _masked(logits_MV[index], [found for _, found in group])
        rule = group[0][0].rule
        if drafts:
            before = [walk.token for walk, _ in group]
            proposed = _drafted(model, rule, parts, before, hidden_MD[index], logits_KV)
        else:
            proposed = rule(logits_KV, parts)
        columns_CK = proposed.columns()
        answer_CM[:, index] = columns_CK
        for (walk, _), (token, *values) in zip(group, columns_CK.T.tolist(), strict=True):
            walk.done += 1
            if walk.goes_on(int(token), values):
                going.append(walk)
    return going


def _drafted(
    model: Transformer,
    rule: Draw | Ratio,
    rows: Sequence[Rows],
    before: Sequence[int],
    hidden_KD: Tensor,
    logits_KV: Tensor,
) -> Proposed:
    """Return a draft for each row; where the model has a draft head, corrected by the token before."""
    processed_KV = rule.processed(logits_KV, rows)
    if model.draft_head is not None:
        id_KC, never_KC = best_candidates(processed_KV)
        before_K = torch.tensor(before, device=logits_KV.device)
        return rule.draft(corrected(model, hidden_KD, before_K, id_KC, never_KC), rows)
    vocab_size = logits_KV.shape[-1]
    candidates = Candidates(
        id_MC=torch.arange(vocab_size, device=logits_KV.device).expand(len(logits_KV), vocab_size),
        logit_MC=logits_KV,
        never_MC=processed_KV == -torch.inf,
        vocab_size=vocab_size,
    )
    return rule.draft(candidates, rows)


def _masked(logits_MV: Tensor, allowed: Sequence[Tensor]) -> Tensor:
    """Return the logits with -inf where an id is not allowed."""
    return logits_MV.masked_fill(~torch.stack(list(allowed)).to(logits_MV.device), -torch.inf)
