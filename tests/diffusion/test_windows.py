"""Windows: which ones are drawn, what of them is scored and how it sums, against loops over the definition."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from difflm.diffusion.noise import RowNoise
from difflm.diffusion.objectives import NextToken
from difflm.diffusion.windows import Drafting, draft_offsets
from difflm.errors import ConfigError
from difflm.types import ModelInput, Parametrisation
from tests.diffusion.test_objectives import table_scores
from tests.rows import MASK, batch_of

SHIFT = Parametrisation(logit_shift=True, clean_attention="causal")
PLAIN = Parametrisation(clean_attention="causal")


def rows_of(inputs: ModelInput) -> dict[tuple[int, int], list[int]]:
    """Return the noisy rows of each window: (row, anchor) -> columns."""
    assert inputs.layout.anchor_BW is not None
    found: dict[tuple[int, int], list[int]] = {}
    for row, anchors in enumerate(inputs.layout.anchor_BW.tolist()):
        for column, anchor in enumerate(anchors):
            if anchor >= 0:
                found.setdefault((row, anchor), []).append(column)
    return found


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.lists(st.integers(1, 14), min_size=1, max_size=3), min_size=1, max_size=2),
    window=st.integers(2, 9),
    budget=st.integers(1, 60),
    noise=st.sampled_from(["masked", "uniform", "draft"]),
    shift=st.booleans(),
    seed=st.integers(0, 99),
)
def test_windows_stay_inside_their_document_and_their_budget(
    sizes: list[list[int]], window: int, budget: int, noise: Any, shift: bool, seed: int
) -> None:
    prompts = [[min(2, size - 1) for size in row] for row in sizes]
    batch = batch_of(sizes, row_length=max(map(sum, sizes)) + 2, prompts=prompts)
    objective = Drafting(
        window=window, noise=noise, noisy_rows=budget, ar_weight=0.0, parametrisation=SHIFT if shift else PLAIN
    )
    inputs = objective.prepare(batch, mask_id=MASK, noise=RowNoise(seed))
    length, total = batch.token_BL.shape[1], inputs.token_BN.shape[1]
    width = inputs.layout.noisy_length
    assert width <= budget
    assert torch.equal(inputs.token_BN[:, width:], batch.token_BL)
    first = 2 if shift else 1
    windows = rows_of(inputs)
    for (row, anchor), columns in windows.items():
        document = batch.document_BL[row]
        assert columns == list(range(columns[0], columns[0] + len(columns)))
        assert len(columns) <= window - first + 1
        assert bool(batch.trainable_BL[row, anchor + 1]), "decoding drafts where it writes"
        for number, column in enumerate(columns, start=1):
            assert int(inputs.position_BN[row, column]) == int(batch.position_BL[row, anchor]) + number
            assert document[anchor + number + first - 1] == document[anchor]
            token = int(inputs.token_BN[row, column])
            masked = bool(inputs.masked_BN[row, column])
            assert token == (MASK if masked else int(batch.token_BL[row, anchor + number]))
            assert masked or noise == "uniform"
    (term,) = inputs.terms
    for flat, target, place, offset in zip(
        term.row_M.tolist(), term.target_M.tolist(), term.place_M.tolist(), draft_offsets(inputs).tolist(), strict=True
    ):
        row, column = divmod(flat, total)
        anchor = next(a for (r, a), columns in windows.items() if r == row and column in columns)
        number = column - windows[row, anchor][0] + 1
        assert place == row * length + anchor + number + first - 1
        assert offset == number + first - 1
        assert target == int(batch.token_BL.flatten()[place])
        assert bool(batch.trainable_BL.flatten()[place])

    def drafts_from(row: int, anchor: int) -> bool:
        inside = set(batch.document_BL[row, anchor : anchor + first + 1].tolist())
        return bool(batch.trainable_BL[row, anchor + 1]) and len(inside) == 1

    eligible = [[a for a in range(length - first) if drafts_from(row, a)] for row in range(len(sizes))]
    for row, anchors in enumerate(eligible):
        used = sum(len(columns) for (r, _), columns in windows.items() if r == row)
        drawn = {anchor for (r, anchor) in windows if r == row}
        assert drawn <= set(anchors)
        assert used == budget or drawn == set(anchors), "the budget is used while there are anchors"


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("noise", ["masked", "uniform", "draft"])
def test_loss_equals_a_loop_over_windows_and_rows(noise: Any, shift: bool) -> None:
    batch = batch_of([[9, 6], [13]], row_length=16, prompts=[[3, 0], [5]])
    objective = Drafting(window=4, noise=noise, noisy_rows=20, parametrisation=SHIFT if shift else PLAIN)
    inputs = objective.prepare(batch, mask_id=MASK, noise=RowNoise(3))
    scores, table = table_scores(inputs)
    drafted, next_token = objective.loss(scores, inputs)
    assert [(term.name, term.scale) for term in inputs.terms] == [("diffusion", 0.3), ("ar", 1.0)]
    width, first = inputs.layout.noisy_length, 2 if shift else 1
    before_M = inputs.terms[0].before_M
    assert before_M is not None
    assert torch.equal(before_M, batch.token_BL.flatten()[inputs.terms[0].place_M - 1]), "the token before each place"
    assert inputs.terms[1].before_M is None
    total, places = 0.0, 0
    weights = dict(zip(inputs.terms[0].row_M.tolist(), inputs.terms[0].weight_M.tolist(), strict=True))
    for (row, anchor), columns in rows_of(inputs).items():
        for number, column in enumerate(columns, start=1):
            place = anchor + number + first - 1
            if not batch.trainable_BL[row, place]:
                continue
            places += 1
            weight = weights.get(row * inputs.token_BN.shape[1] + column, 0.0)
            if noise != "uniform":
                assert weight == 1.0
            total -= weight * float(table[row, column, batch.token_BL[row, place]])
    assert float(drafted) == pytest.approx(total, rel=1e-5)
    assert float(inputs.terms[0].count) == places
    expected, count = 0.0, 0
    for row, place in itertools.product(range(2), range(1, 16)):
        same = batch.document_BL[row, place] == batch.document_BL[row, place - 1]
        if batch.trainable_BL[row, place] and same:
            expected -= float(table[row, width + place - 1, batch.token_BL[row, place]])
            count += 1
    assert float(next_token) == pytest.approx(expected, rel=1e-5)
    assert float(inputs.terms[1].count) == count


@pytest.mark.parametrize("shift", [False, True])
def test_uniform_masks_k_of_a_window_and_weighs_n_over_k(shift: bool) -> None:
    batch = batch_of([[60]], row_length=60)
    objective = Drafting(
        window=5, noise="uniform", noisy_rows=200, ar_weight=0.0, parametrisation=SHIFT if shift else PLAIN
    )
    counts = set[int]()
    for seed in range(20):
        inputs = objective.prepare(batch, mask_id=MASK, noise=RowNoise(seed))
        weights = dict(zip(inputs.terms[0].row_M.tolist(), inputs.terms[0].weight_M.tolist(), strict=True))
        for columns in rows_of(inputs).values():
            places = len(columns) + shift
            shown = [bool(inputs.masked_BN[0, column]) for column in columns]
            scored = [column for column in columns if column in weights]
            # A row predicts the place behind it with a shift, which is masked or not in its own row.
            if shift:
                assert [column in weights for column in columns[:-1]] == shown[1:]
                masked = shown[0] + len(scored)
            else:
                assert [column in weights for column in columns] == shown
                masked = len(scored)
            assert all(weights[column] == pytest.approx(places / masked) for column in scored)
            counts.add(masked)
    assert counts == {1, 2, 3, 4, 5}


def test_draft_states_are_windows_of_every_length() -> None:
    batch = batch_of([[200]], row_length=200)
    objective = Drafting(window=5, noise="draft", noisy_rows=300, ar_weight=0.0, parametrisation=SHIFT)
    inputs = objective.prepare(batch, mask_id=MASK, noise=RowNoise(0))
    lengths = [len(columns) for columns in rows_of(inputs).values()]
    assert set(lengths) == {1, 2, 3, 4}
    assert min(lengths.count(each) for each in (1, 2, 3, 4)) > 0.12 * len(lengths)
    masked = replace(objective, noise="masked").prepare(batch, mask_id=MASK, noise=RowNoise(0))
    assert {len(columns) for columns in rows_of(masked).values()} <= {4, 3, 2, 1}
    assert [len(each) for each in rows_of(masked).values()].count(4) > 70


def test_noise_is_of_the_row_and_the_epoch() -> None:
    batch = batch_of([[40], [40]], row_length=40)
    objective = Drafting(window=4, noise="draft", noisy_rows=30, parametrisation=SHIFT)
    both = objective.prepare(batch, mask_id=MASK, noise=RowNoise(1))
    alone = objective.prepare(batch.take(torch.tensor([1])), mask_id=MASK, noise=RowNoise(1))
    assert both.layout.anchor_BW is not None
    assert alone.layout.anchor_BW is not None
    assert torch.equal(both.layout.anchor_BW[1:], alone.layout.anchor_BW)
    later = replace(batch, epoch_B=batch.epoch_B + 1)
    other = objective.prepare(later, mask_id=MASK, noise=RowNoise(1))
    assert not torch.equal(other.position_BN, both.position_BN)


def test_few_shapes_and_no_windows() -> None:
    objective = Drafting(window=8, noisy_rows=1000, parametrisation=SHIFT)
    for size in (50, 51):  # 49 and 50 anchors: 300 and some rows
        inputs = objective.prepare(batch_of([[size]], row_length=60), mask_id=MASK, noise=RowNoise(0))
        assert inputs.layout.noisy_length == 384
    inputs = objective.prepare(batch_of([[1, 1, 2]], row_length=60), mask_id=MASK, noise=RowNoise(0))
    assert inputs.layout.noisy_length == 1
    assert inputs.terms[0].row_M.numel() == 0
    assert float(inputs.terms[0].count) == 0


def test_teachers_are_the_clean_rows_that_predict_the_same_token() -> None:
    batch = batch_of([[9, 6]], row_length=16)
    for draft_loss, shift in itertools.product(("ce", "kl", "tv"), (False, True)):
        objective = Drafting(
            window=4,
            draft_loss=draft_loss,  # type: ignore[arg-type]
            noisy_rows=20,
            parametrisation=SHIFT if shift else PLAIN,
        )
        inputs = objective.prepare(batch, mask_id=MASK, noise=RowNoise(3))
        term, causal = inputs.terms
        if draft_loss == "ce":
            assert term.teacher_M is None
            continue
        assert term.divergence == draft_loss
        assert term.teacher_M is not None
        by_place = dict(zip(causal.place_M.tolist(), causal.row_M.tolist(), strict=True))
        assert term.teacher_M.tolist() == [by_place[place] for place in term.place_M.tolist()]


def test_the_next_token_term_is_that_of_the_objective_for_it() -> None:
    batch = batch_of([[9, 6], [13]], row_length=16, prompts=[[3, 0], [5]])
    inputs = Drafting(window=4, parametrisation=SHIFT).prepare(batch, mask_id=MASK, noise=RowNoise(3))
    mine, theirs = inputs.terms[1], NextToken().prepare(batch, mask_id=None, noise=RowNoise(3)).terms[0]
    assert torch.equal(mine.place_M, theirs.place_M)
    assert torch.equal(mine.count, theirs.count)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parametrisation": Parametrisation()}, "needs clean_attention 'causal', the model has 'block'"),
        ({"window": 0}, "objective.window: 0 leaves nothing to learn; give at least 1"),
        ({"window": 1, "parametrisation": SHIFT}, "give at least 2 tokens"),
        ({"noisy_rows": 0}, "objective.noisy_rows: 0 is below 1"),
        ({"ar_weight": -1.0}, "objective.ar_weight: -1.0 is negative"),
        ({"diffusion_weight": -0.1}, "objective.diffusion_weight: -0.1 is negative"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"window": 4}
    with pytest.raises(ConfigError, match=re.escape(message)):
        Drafting(**(given | changes))
