"""Drafts that are chosen one after another: each MASK row is corrected by the token drafted just before its place.

The rows of a forward are computed together, so a MASK row does not know the token before the one that it predicts.
Where the model has a draft head, that token corrects the row, and what is drafted there corrects the next one. All
requests of a call advance by a place at a time. Rows of clean places are not touched.

Shape legend: see `difflm.types`; here M counts the predicted rows of all requests of a call, K those of one place of
their windows, C candidates.
"""

# Tensor.split() is partly untyped.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from difflm.decode.drawing import Draw
from difflm.decode.ratio import Ratio
from difflm.decode.sampling import Candidates, Rows
from difflm.models.quantised import QuantisedLinear
from difflm.models.transformer import Transformer

CANDIDATES = 32
"""Tokens of a place that are scored anew, the best by the uncorrected row: a product with the whole vocabulary costs as
much for a row as several percent of a forward, and accepted as many drafts on chats."""


@dataclass(frozen=True, slots=True)
class _Order:
    """How the rows of a call are gone through: the clean ones, then the first place of every window, the second, ...

    Attributes:
        clean: numbers of the clean rows in the call.
        clean_rows: the same by request.
        said: numbers among the clean ones: the last of each request that drafts, the longest windows first.
        places: for each place, numbers of the rows in the call, in the order of `said`; shorter windows have ended.
        place_rows: the same, a row each.
    """

    clean: list[int]
    clean_rows: list[Rows]
    said: list[int]
    places: list[list[int]]
    place_rows: list[list[Rows]]


def _ordered(rows: Sequence[Rows], counts: Sequence[int]) -> _Order:
    clean: list[int] = []
    clean_rows: list[Rows] = []
    windows: list[tuple[int, int, int, Rows]] = []
    first = 0
    for each, count in zip(rows, counts, strict=True):
        known = len(each.places) - count
        clean.extend(range(first, first + known))
        clean_rows.append(each.part(0, known))
        if count:
            windows.append((count, len(clean) - 1, first + known, each))
        first += len(each.places)
    windows.sort(key=lambda window: -window[0])
    steps = [[window for window in windows if window[0] > place] for place in range(windows[0][0])]
    return _Order(
        clean=clean,
        clean_rows=clean_rows,
        said=[said for _, said, _, _ in windows],
        places=[[begin + place for _, _, begin, _ in step] for place, step in enumerate(steps)],
        place_rows=[
            [each.part(number := len(each.places) - count + place, number + 1) for count, _, _, each in step]
            for place, step in enumerate(steps)
        ],
    )


def chained(
    model: Transformer,
    rule: Draw | Ratio,
    rows: Sequence[Rows],
    counts: Sequence[int],
    hidden_MD: Tensor,
    logits_MV: Tensor,
) -> Tensor:
    """Return what `Proposed.columns` does, [2 or 3, M]: clean rows by the rule, drafts one after another.

    The token before the first draft of a request is what its last clean row says.

    Args:
        model: has a draft head.
        rule: of all requests of the call.
        rows: of the requests.
        counts: how many last rows of each are drafts, at least one of them not 0.
        hidden_MD: final hidden states.
        logits_MV: of the same rows, uncorrected.
    """
    order, device = _ordered(rows, counts), hidden_MD.device
    sizes = [len(place) for place in order.places]
    numbers = [*order.clean, *(number for place in order.places for number in place)]
    # One transfer for all of them.
    index = torch.tensor([*numbers, *order.said], device=device)
    clean, drafted, said = torch.split(index, [len(order.clean), sum(sizes), len(order.said)])
    proposed = rule(logits_MV[clean], order.clean_rows)
    answers, token_K = [proposed.columns()], proposed.token_M[said]
    processed_MV = rule.processed(logits_MV[drafted], [each for place in order.place_rows for each in place])
    id_MC, never_MC = best_candidates(processed_MV)
    hidden, ids, never = (list(torch.split(each, sizes)) for each in (hidden_MD[drafted], id_MC, never_MC))
    for each, hidden_KD, id_KC, never_KC in zip(order.place_rows, hidden, ids, never, strict=True):
        proposed = rule.draft(corrected(model, hidden_KD, token_K[: len(each)], id_KC, never_KC), each)
        answers.append(proposed.columns())
        token_K = proposed.token_M
    answer = torch.cat(answers, dim=1)
    return torch.empty_like(answer).index_copy_(1, index[: len(numbers)], answer)


def best_candidates(processed_MV: Tensor) -> tuple[Tensor, Tensor]:
    """Return the best ids of each row, ascending, and which of them must not be proposed, both [M, C].

    Args:
        processed_MV: logits as the rule sees them.
    """
    best = processed_MV.topk(min(CANDIDATES, processed_MV.shape[-1]), dim=-1)
    # Ascending ids: among equals the lowest is taken, as of a whole row.
    id_MC, by_id_MC = best.indices.sort(dim=-1)
    return id_MC, best.values.gather(-1, by_id_MC) == -torch.inf


def corrected(model: Transformer, hidden_KD: Tensor, before_K: Tensor, id_KC: Tensor, never_KC: Tensor) -> Candidates:
    """Return the candidates of rows with the logits that the draft head gives them.

    Args:
        model: has a draft head.
        hidden_KD: final hidden states of the rows.
        before_K: token before the one that each row predicts.
        id_KC: candidates.
        never_KC: those that must not be proposed.
    """
    assert model.draft_head is not None
    corrected_KD = model.draft_head(hidden_KD, model.embedding.weight[before_K])
    logit_KC = (_weights(model.head, id_KC) @ corrected_KD[..., None])[..., 0]
    return Candidates(id_MC=id_KC, logit_MC=logit_KC, never_MC=never_KC, vocab_size=model.config.vocab_size)


def _weights(head: nn.Module, id_KC: Tensor) -> Tensor:
    """Return the head's rows of some tokens, [K, C, D]; of one held in int8 what its codes stand for."""
    if isinstance(head, QuantisedLinear):
        return (head.code_OI[id_KC] * head.scale_O[id_KC][..., None]).to(head.dtype)
    assert isinstance(head, nn.Linear)
    return head.weight[id_KC]
