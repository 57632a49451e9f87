"""Views before one clean stream: who sees whom, and loss and gradients of each view by itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from difflm.diffusion.confidence import ConfidenceAware
from difflm.diffusion.masks import layout_mask, materialise
from difflm.diffusion.noise import Bernoulli, ExactCount, RowNoise, embedding_noise
from difflm.diffusion.objectives import BlockDiffusion, Objective
from difflm.diffusion.shared import RowViews
from difflm.errors import ConfigError
from difflm.scoring import score_input
from difflm.types import PADDING, Batch, ModelInput, Parametrisation
from tests.decode.tiny import tiny
from tests.rows import MASK, batch_of

CAUSAL = Parametrisation(clean_attention="causal", logit_shift=True)


def both(**fields: Any) -> tuple[BlockDiffusion, BlockDiffusion]:
    """Return an objective with one clean stream, and with one for each view."""
    apart = BlockDiffusion(**fields)
    return replace(apart, shared=True), apart


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.lists(st.lists(st.integers(1, 11), min_size=1, max_size=3), min_size=1, max_size=2),
    block_size=st.integers(1, 6),
    views=st.integers(1, 3),
    complementary=st.booleans(),
    lookahead=st.none() | st.integers(0, 4),
    causal=st.booleans(),
    seed=st.integers(0, 99),
)
def test_rows_see_what_they_see_in_noisy_and_clean(
    sizes: list[list[int]],
    block_size: int,
    views: int,
    complementary: bool,
    lookahead: int | None,
    causal: bool,
    seed: int,
) -> None:
    length = max(map(sum, sizes)) + 2
    batch = batch_of(sizes, row_length=length, prompts=[[size // 2 for size in row] for row in sizes], seed=seed)
    shared, _ = both(
        block_size=block_size,
        views=views,
        complementary=complementary,
        lookahead=lookahead,
        parametrisation=Parametrisation(noisy_attention="causal" if causal else "bidirectional"),
    )
    layout = shared.prepare(batch, mask_id=MASK, noise=RowNoise(seed)).layout
    if layout.place_BW is None or layout.view_BW is None:
        return
    rows, width = layout.place_BW.shape
    found = materialise(layout_mask(layout), rows, width + length)[:, 0]
    plain = materialise(layout_mask(replace(layout, place_BW=None, view_BW=None)), rows, 2 * length)[:, 0]
    for row in range(rows):
        real = torch.cat([layout.place_BW[row], batch.document_BL[row]]) != PADDING
        place = torch.cat([layout.place_BW[row].clamp(min=0), torch.arange(length, 2 * length)])
        view = torch.cat([layout.view_BW[row], torch.full((length,), -1)])
        expected = plain[row][place[:, None], place[None]]
        expected &= (view[:, None] == view[None]) | (view[None] == -1)
        assert torch.equal(found[row][real][:, real], expected[real][:, real])
        assert not bool(found[row][real][:, ~real].any())
    assert bool(found.any(-1).all())


def gradients(objective: Objective, inputs: ModelInput, **model: Any) -> tuple[list[float], list[torch.Tensor]]:
    loaded = tiny(seed=3, **model)
    sums = objective.loss(score_input(loaded.model, inputs), inputs)
    counts = [float(term.count) or 1.0 for term in inputs.terms]
    loss = torch.stack([value / count for value, count in zip(sums, counts, strict=True)]).sum()
    parameters = list(loaded.model.parameters())
    return [*counts, *(float(value.detach()) for value in sums)], list(torch.autograd.grad(loss, parameters))


@pytest.mark.parametrize("weighting", ["elbo", "uniform", "cart"])
@pytest.mark.parametrize("block_size", [1, 3, 4])
@pytest.mark.parametrize("causal", [False, True])
def test_one_clean_stream_equals_a_pass_for_each_view(weighting: str, block_size: int, causal: bool) -> None:
    batch = batch_of([[9, 7], [14], [3, 3]], row_length=16, prompts=[[2, 5], [5], [0, 1]])
    shared, apart = both(
        block_size=block_size,
        weighting=weighting,
        complementary=True,
        views=2,
        ar_weight=0.5 if causal else 0.0,
        parametrisation=CAUSAL if causal else Parametrisation(),
    )
    ours, theirs = (each.prepare(batch, mask_id=MASK, noise=RowNoise(5)) for each in (shared, apart))
    assert len(ours.row_B) == 3
    assert ours.layout.place_BW is not None
    model = {"logit_shift": causal, "clean": "causal" if causal else "block"}
    found, expected = gradients(shared, ours, **model), gradients(apart, theirs, **model)
    assert found[0] == pytest.approx(expected[0], rel=1e-9)
    for one, other in zip(found[1], expected[1], strict=True):
        assert torch.allclose(one, other, rtol=1e-7, atol=1e-9)


def test_a_pair_costs_three_rows_and_blocks_without_anything_to_learn_cost_none() -> None:
    whole = batch_of([[64]], row_length=64)
    shared, apart = both(block_size=8, complementary=True)
    noise = Bernoulli(bandwidth=(0.4, 0.6))
    assert apart.prepare(whole, mask_id=MASK, noise=RowNoise(0)).token_BN.numel() == 4 * 64
    pair = replace(shared, noise=noise).prepare(whole, mask_id=MASK, noise=RowNoise(0))
    assert pair.token_BN.numel() == 3 * 64
    answer = batch_of([[64]], row_length=64, prompts=[[50]])
    inputs = replace(shared, complementary=False).prepare(answer, mask_id=MASK, noise=RowNoise(0))
    place_BW = inputs.layout.place_BW
    assert place_BW is not None
    assert place_BW[place_BW >= 0].tolist() == list(range(48, 64))  # the block of the prompt's tail, and the last
    assert inputs.token_BN.numel() == 16 + 64
    assert not bool((inputs.token_BN[0, :2] == MASK).any()), "the tail of the prompt stays clean"
    # One view of everything is laid out as ever.
    assert replace(shared, complementary=False).prepare(whole, mask_id=MASK, noise=RowNoise(0)).layout.place_BW is None


def test_rows_without_anything_to_learn_are_an_empty_loss() -> None:
    nothing = batch_of([[8]], row_length=8, prompts=[[8]])
    shared, _ = both(block_size=4)
    inputs = shared.prepare(nothing, mask_id=MASK, noise=RowNoise(0))
    assert inputs.token_BN.shape == (1, 9)
    counted, grads = gradients(shared, replace(inputs, terms=(replace(inputs.terms[0], count=torch.tensor(1.0)),)))
    assert counted[1] == 0
    assert all(float(each.abs().sum()) == 0 for each in grads)


def test_views_are_independent_draws_and_their_loss_is_a_mean() -> None:
    batch = batch_of([[12]], row_length=12)
    one, three = (BlockDiffusion(block_size=4, views=views, shared=True) for views in (1, 3))
    first, all_views = (each.drawn(batch, RowNoise(3)) for each in (one, three))
    assert torch.equal(first.masked_RL[0], all_views.masked_RL[0])
    assert not torch.equal(all_views.masked_RL[0], all_views.masked_RL[1])
    assert not torch.equal(all_views.masked_RL[1], all_views.masked_RL[2])
    assert float(three.prepare(batch, mask_id=MASK, noise=RowNoise(3)).terms[0].count) == 3 * 12
    with pytest.raises(ConfigError, match=r"objective.views: 0 is below 1"):
        BlockDiffusion(block_size=4, views=0)


def test_embedding_noise_is_that_of_each_view() -> None:
    batch = batch_of([[9], [12]], row_length=12, prompts=[[1], [0]])
    shared, apart = both(block_size=4, complementary=True, views=2)
    ours, theirs = (each.prepare(batch, mask_id=MASK, noise=RowNoise(5)) for each in (shared, apart))
    found, expected = (embedding_noise(each, RowNoise(1), hidden_size=3, deviation=0.1) for each in (ours, theirs))
    place_BW, view_BW = ours.layout.place_BW, ours.layout.view_BW
    assert place_BW is not None
    assert view_BW is not None
    at = {
        (int(row), int(view)): index for index, (row, view) in enumerate(zip(theirs.row_B, theirs.view_B, strict=True))
    }
    for row in range(2):
        for column, place in enumerate(place_BW[row].tolist()):
            if place != PADDING:
                other = at[row, int(view_BW[row, column])]
                assert torch.equal(found[row, column], expected[other, place])
    assert float(found.abs().sum()) == pytest.approx(float(expected.abs().sum()))


def alone(batch: Batch, views: RowViews) -> tuple[Batch, RowViews]:
    """Return each document of a batch in a row of its own, under the masks that it has in the batch."""
    places = [
        (row, (batch.document_BL[row] == document).nonzero()[:, 0])
        for row in range(len(batch.row_B))
        for document in batch.document_BL[row].unique().tolist()
        if document != PADDING
    ]

    def cut(value_BL: torch.Tensor, empty: float) -> torch.Tensor:
        out = torch.full((len(places), value_BL.shape[1]), empty, dtype=value_BL.dtype)
        for index, (row, place) in enumerate(places):
            out[index, : len(place)] = value_BL[row, place]
        return out

    rows = Batch(
        token_BL=cut(batch.token_BL, 0),
        document_BL=torch.where(cut(batch.document_BL, PADDING) == PADDING, PADDING, 0),
        position_BL=cut(batch.position_BL, 0),
        trainable_BL=cut(batch.trainable_BL, False),
        row_B=torch.arange(len(places)),
        epoch_B=torch.zeros(len(places), dtype=torch.int64),
    )
    parts = []
    for view in views.view_R.unique().tolist():
        own = views.view_R == view
        assert torch.equal(views.index_R[own], torch.arange(len(batch.row_B)))
        parts.append((view, [cut(each[own], 0) for each in (views.masked_RL, views.weight_RL, views.counted_RL)]))
    masked, weight, counted = (torch.stack([part[each] for _, part in parts], dim=1).flatten(0, 1) for each in range(3))
    index = torch.arange(len(places)).repeat_interleave(len(parts))
    return rows, RowViews(index, views.view_R.unique().repeat(len(places)), masked, weight, counted)


@pytest.mark.parametrize("confident", [False, True])
@pytest.mark.parametrize("complementary", [False, True])
@pytest.mark.parametrize("weighting", ["elbo", "uniform"])
def test_packed_equals_unpacked(confident: bool, complementary: bool, weighting: str) -> None:
    """Loss and gradients: no document, no turn and no view learns from another."""
    batch = batch_of([[9, 6], [7, 5, 4]], row_length=16, prompts=[[2, 3], [0, 4, 1]])
    objective = BlockDiffusion(
        block_size=4,
        weighting=weighting,  # type: ignore[arg-type]
        noise=ExactCount(),
        complementary=complementary,
        shared=True,
    )
    views = objective.drawn(batch, RowNoise(2))
    packed = objective.laid_out(batch, views, mask_id=MASK)
    rows, own = alone(batch, views)
    unpacked = objective.laid_out(rows, own, mask_id=MASK)
    assert len(unpacked.row_B) == 5
    asked: Objective = objective
    if confident:
        asked = ConfidenceAware(base=objective)
        packed, unpacked = asked.extended(packed), asked.extended(unpacked)
        assert int(score_input(tiny(seed=3).model, packed)[0].correct_M.sum()) > 0
    found, expected = gradients(asked, packed), gradients(asked, unpacked)
    assert found[0] == pytest.approx(expected[0], rel=1e-9)
    for one, other in zip(found[1], expected[1], strict=True):
        assert torch.allclose(one, other, rtol=1e-7, atol=1e-9)
