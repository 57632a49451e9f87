"""Eqs. 7-8 against loops over their definition; step 0, swapped answers, packing, shared noise."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from difflm.diffusion.noise import RowNoise, content_key
from difflm.diffusion.preference import DirectPreference
from difflm.errors import ConfigError
from difflm.models.transformer import Transformer
from difflm.scoring import score_input
from difflm.types import PADDING, Batch, ModelInput, Parametrisation
from tests.decode.tiny import tiny
from tests.diffusion.test_objectives import table_scores
from tests.rows import MASK, batch_of

LENGTH = 32
Pair = tuple[int, int, int]
ROWS: list[list[Pair]] = [[(3, 6, 4)], [(2, 5, 5), (1, 4, 7)]]
"""Lengths of (prompt, chosen, rejected) of the pairs of two rows."""


def pairs_of(rows: list[list[Pair]], *, swap: bool = False) -> Batch:
    """Return packed pairs; a pair's ids follow from its lengths alone. `swap` prefers the other answer."""
    sizes, prompts = [], []
    for row in rows:
        turned = [(prompt, *((two, one) if swap else (one, two))) for prompt, one, two in row]
        sizes.append([prompt + size for prompt, *both in turned for size in both])
        prompts.append([prompt for prompt, *_ in turned for _ in range(2)])
    batch = batch_of(sizes, row_length=LENGTH, prompts=prompts)
    for index, row in enumerate(rows):
        place = 0
        for prompt, one, two in row:
            for side in (1, 0) if swap else (0, 1):
                seed = torch.Generator().manual_seed(100 * prompt + 10 * one + two)
                given = torch.randint(0, MASK, (prompt,), generator=seed)
                answers = [torch.randint(0, MASK, (size,), generator=seed) for size in (one, two)]
                ids = torch.cat([given, answers[side]])
                batch.token_BL[index, place : place + len(ids)] = ids
                place += len(ids)
    return replace(batch, paired=True)


def given(objective: DirectPreference, inputs: ModelInput, reference: Transformer) -> ModelInput:
    with torch.no_grad():
        return replace(inputs, reference_P2K=objective.elbos(score_input(reference, inputs), inputs))


def prepared(batch: Batch, seed: int = 3, **fields: Any) -> tuple[DirectPreference, ModelInput]:
    wanted: dict[str, Any] = {"block_size": 4, **fields}
    objective = DirectPreference(**wanted)
    return objective, objective.prepare(batch, mask_id=MASK, noise=RowNoise(seed))


@pytest.mark.parametrize("block_size", [1, 4, None])
@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("shift", [False, True])
def test_loss_equals_a_loop_over_eqs_7_and_8(block_size: int | None, normalised: bool, shift: bool) -> None:
    batch = pairs_of(ROWS)
    objective, inputs = prepared(
        batch,
        block_size=block_size,
        samples=3,
        beta=0.3,
        length_normalised=normalised,
        parametrisation=Parametrisation(logit_shift=shift, clean_attention="causal" if shift else "block"),
    )
    assert inputs.pairs is not None
    samples = 1 if block_size == 1 else 3
    assert inputs.pairs.samples == samples
    both = []
    for seed in (0, 1):  # policy, reference
        scores, _ = table_scores(inputs, seed=seed)
        term, bound = inputs.terms[0], torch.zeros(3, 2, samples)
        shared = inputs.layout.view_BW is not None
        rows = inputs.masked_BN.nonzero().tolist()
        assert len(rows) == len(term.row_M)
        at: dict[tuple[int, int, int], list[int]] = {}
        facts = []
        for index, (row, column) in enumerate(rows):
            if shared:
                assert inputs.layout.place_BW is not None
                assert inputs.layout.view_BW is not None
                place, sample, own = (
                    int(inputs.layout.place_BW[row, column]),
                    int(inputs.layout.view_BW[row, column]),
                    row,
                )
            else:
                place, sample, own = column, int(inputs.view_B[row]), int(inputs.row_B[row])
            document = int(batch.document_BL[own, place])
            block = int(batch.position_BL[own, place]) // (block_size or LENGTH)
            key = (own * 10 + document, sample, block)
            at.setdefault(key, []).append(index)
            facts.append((own, document, sample, key))
        for index, (own, document, sample, key) in enumerate(facts):
            members = [
                place
                for place in range(LENGTH)
                if batch.document_BL[own, place] == document
                and bool(batch.trainable_BL[own, place])
                and int(batch.position_BL[own, place]) // (block_size or LENGTH) == key[2]
            ]
            weight = len(members) / len(at[key])
            assert float(term.weight_M[index]) == pytest.approx(weight)
            pair = (0, 1, 2)[own + document // 2]
            bound[pair, document % 2, sample] -= weight * float(scores[0].nll_M[index])
        if normalised:
            bound /= torch.tensor([[[6.0], [4.0]], [[5.0], [5.0]], [[4.0], [7.0]]])
        assert torch.allclose(objective.elbos(scores, inputs), bound, rtol=1e-5)
        assert bool((bound <= 0).all())
        both.append((scores, bound))
    (scores, policy), (_, reference) = both
    gain = (policy - reference).mean(2)
    expected = sum(-math.log(1 / (1 + math.exp(-0.3 * float(chosen - rejected)))) for chosen, rejected in gain)
    inputs = replace(inputs, reference_P2K=reference)
    assert float(objective.loss(scores, inputs)[0]) == pytest.approx(expected, rel=1e-5)
    assert float(inputs.terms[0].count) == 3


def test_loss_at_step_0_is_exactly_log_2() -> None:
    objective, inputs = prepared(pairs_of(ROWS), samples=2)
    model = tiny(seed=1).model
    inputs = given(objective, inputs, model)
    (value,) = objective.loss(score_input(model, inputs), inputs)
    assert float(value.detach()) == 3 * math.log(2)


def gradients(batch: Batch, **fields: Any) -> tuple[float, list[torch.Tensor]]:
    objective, inputs = prepared(batch, **fields)
    model = tiny(seed=1).model
    inputs = given(objective, inputs, tiny(seed=fields.get("seed", 1)).model)
    (value,) = objective.loss(score_input(model, inputs), inputs)
    return float(value.detach()), list(torch.autograd.grad(value, list(model.parameters())))


def test_swapping_the_answers_flips_the_gradient() -> None:
    _, plain = gradients(pairs_of(ROWS), samples=2)
    _, swapped = gradients(pairs_of(ROWS, swap=True), samples=2)
    assert any(float(each.abs().max()) > 1e-3 for each in plain)
    for one, other in zip(plain, swapped, strict=True):
        assert torch.allclose(one, -other, rtol=1e-6, atol=1e-9)


def test_packed_equals_unpacked() -> None:
    """Loss and gradients away from step 0, with the noise that each pair has wherever it stands."""
    packed = gradients(pairs_of([[(3, 6, 4), (2, 5, 5)], [(1, 4, 7)]]), samples=2, seed=2)
    alone = gradients(pairs_of([[(1, 4, 7)], [(2, 5, 5)], [(3, 6, 4)]]), samples=2, seed=2)
    assert packed[0] == pytest.approx(alone[0], rel=1e-9)
    assert packed[0] != pytest.approx(3 * math.log(2), rel=1e-3)
    for one, other in zip(packed[1], alone[1], strict=True):
        assert torch.allclose(one, other, rtol=1e-6, atol=1e-9)


def test_one_step_raises_the_margin() -> None:
    objective, inputs = prepared(pairs_of(ROWS), samples=2)
    model = tiny(seed=1).model
    inputs = given(objective, inputs, tiny(seed=1).model)
    (value,) = objective.loss(score_input(model, inputs), inputs)
    value.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 1e-3 * parameter.grad  # type: ignore[operator]
        gain_P2 = objective.advantages(score_input(model, inputs), inputs).mean(2)
    assert float((gain_P2[:, 0] - gain_P2[:, 1]).mean()) > 0


def test_answers_share_noise_times_and_the_masks_of_what_they_have_in_common() -> None:
    batch = pairs_of([[(4, 8, 8)]])
    batch.token_BL[0, 16:18] = batch.token_BL[0, 4:6]
    for seed in range(5):
        objective = DirectPreference(block_size=4, samples=4)
        views = objective._drawn(batch, _answers(batch), batch.trainable_BL, RowNoise(seed))
        chosen, rejected = views.masked_RL[:, 4:12], views.masked_RL[:, 16:24]
        assert torch.equal(chosen, rejected), "blocks of one size: one time, one order"
        assert len({tuple(row) for row in chosen.tolist()}) > 1, "samples differ"
    uneven = pairs_of([[(4, 8, 6)]])
    views = DirectPreference(block_size=4, samples=4)._drawn(uneven, _answers(uneven), uneven.trainable_BL, RowNoise(0))
    assert torch.equal(views.masked_RL[:, 4:8], views.masked_RL[:, 16:20]), "the first blocks"
    count = views.masked_RL[:, 8:12].sum(1).double()
    other = views.masked_RL[:, 20:22].sum(1).double()
    assert torch.equal(other, (count / 2).ceil()), "4 or 2 tokens at the same time"


def _answers(batch: Batch) -> torch.Tensor:
    return batch.document_BL.where(batch.document_BL != PADDING, PADDING)


def test_noise_follows_from_the_pair_the_epoch_and_the_seed() -> None:
    def masked(batch: Batch, seed: int = 3) -> list[int]:
        _, inputs = prepared(batch, seed=seed)
        return sorted(inputs.terms[0].place_M.tolist())

    alone = pairs_of([[(3, 9, 8)]])
    assert masked(alone) == masked(replace(alone, row_B=torch.tensor([17])))
    assert masked(alone) != masked(replace(alone, epoch_B=torch.tensor([1])))
    assert masked(alone) != masked(alone, seed=4)
    assert content_key([1, 2]) != content_key([2, 1])


def test_samples_stand_before_one_clean_stream() -> None:
    batch = pairs_of([[(4, 12, 12)]])
    _, inputs = prepared(batch, samples=3)
    assert inputs.token_BN.shape == (1, 3 * 24 + LENGTH)


@pytest.mark.parametrize(("field", "value"), [("beta", 0.0), ("samples", 0)])
def test_what_is_not_defined_is_refused(field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"objective.{field}: {value} is"):
        DirectPreference(**({"block_size": 4, field: value}))  # type: ignore[arg-type]
