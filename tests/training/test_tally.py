"""Figures of a step and of a validation pass against loops over single tokens; sums over counts, whatever the batch."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from difflm.data.packing import pack
from difflm.data.tokens import TokenDocument
from difflm.diffusion.noise import Bernoulli, Noise, RowNoise
from difflm.diffusion.objectives import BlockDiffusion, ExactCount, NextToken, Objective
from difflm.scoring import score_input
from difflm.training.tally import NelboTally, StepTally, bucket_name, rate_buckets
from difflm.types import ModelInput, Parametrisation, TokenScores
from tests.decode.tiny import MASK, tiny

SHIFT = Parametrisation(logit_shift=True, clean_attention="causal")


def rows_of(seed: int = 0):  # noqa: ANN201
    """Return packed rows: plain text, and prompts with completions (whose prompts are never masked)."""
    generator = torch.Generator().manual_seed(seed)

    def draw(size: int) -> list[int]:
        return torch.randint(0, MASK, (size,), generator=generator).tolist()

    sizes = ((9, 0), (13, 6), (20, 0), (7, 3))
    documents = [TokenDocument(token=draw(size), num_prompt=prompt) for size, prompt in sizes]
    return pack(documents, row_length=24, pad_id=0, eos_id=0)


def random_scores(inputs: ModelInput, seed: int) -> tuple[TokenScores, ...]:
    generator = torch.Generator().manual_seed(seed)
    found = []
    for term in inputs.terms:
        size = term.row_M.numel()
        nll = torch.rand(size, generator=generator) * 5
        found.append(TokenScores(nll_M=nll, entropy_M=torch.zeros(size), correct_M=nll < 1.5))
    return tuple(found)


def reference(inputs: ModelInput, scores: TokenScores) -> dict[str, dict[str, list[float]]]:
    """Return by bucket: plain nats of masked tokens, weighted nats, and the tokens of blocks, one entry a token."""
    assert inputs.maskable_BW is not None
    rows, length = inputs.maskable_BW.shape
    blocks: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for row in range(rows):
        run = 0
        for place in range(length):
            document, block = (x[row].tolist() for x in (inputs.layout.document_BL, inputs.layout.block_BL))
            if place and (document[place] != document[place - 1] or block[place] != block[place - 1]):
                run += 1
            blocks.setdefault((row, run), []).append((row, place))
    at = {int(place): index for index, place in enumerate(inputs.terms[0].place_M)}
    found: dict[str, dict[str, list[float]]] = {"plain": {}, "weighted": {}, "tokens": {}}
    for members in blocks.values():
        maskable = [each for each in members if inputs.maskable_BW[each]]
        masked = [each for each in members if inputs.masked_BN[each]]
        for number in range(10):
            inside = maskable and (number * len(maskable) <= 10 * len(masked) < (number + 1) * len(maskable))
            if inside or (number == 9 and maskable and len(masked) == len(maskable)):
                name = f"{number / 10:.1f}-{number / 10 + 0.1:.1f}"
                found["tokens"].setdefault(name, []).extend([1.0] * len(maskable))
                for row, place in masked:
                    index = at[row * length + place]
                    nll = float(scores.nll_M[index])
                    found["plain"].setdefault(name, []).append(nll)
                    found["weighted"].setdefault(name, []).append(nll * float(inputs.terms[0].weight_M[index]))
    return found


OBJECTIVES: list[dict[str, Any]] = [
    {"block_size": 4},
    {"block_size": 1},
    {"block_size": None},
    {"block_size": 8, "complementary": True},
    {"block_size": 8, "time_per": "sequence", "weighting": "uniform"},
    {"block_size": 4, "ar_weight": 0.5, "parametrisation": SHIFT},
    {"block_size": 12, "block_origin": "row"},
]


@settings(max_examples=25, deadline=None)
@given(which=st.integers(0, len(OBJECTIVES) - 1), bernoulli=st.booleans(), seed=st.integers(0, 1000))
def test_figures_by_mask_rate_equal_a_loop_over_tokens(which: int, bernoulli: bool, seed: int) -> None:
    noise: Noise = Bernoulli() if bernoulli else ExactCount()
    objective = BlockDiffusion(**{**OBJECTIVES[which], "noise": noise})
    rows = rows_of(seed)
    inputs = objective.prepare(rows.batch(range(len(rows))), mask_id=MASK, noise=RowNoise(seed))
    scores = random_scores(inputs, seed)
    step, nelbo = StepTally(), NelboTally()
    for term in inputs.terms:
        step.expect(term)
    step.add(inputs, scores, objective.loss(scores, inputs))
    nelbo.add(inputs, scores[0])
    expected = reference(inputs, scores[0])
    row = step.row(block_size=objective.block_size)
    if not expected["plain"]:
        assert row.get("loss_by_mask_rate", {}) == {}
        return
    assert row["loss_by_mask_rate"] == pytest.approx(
        {name: sum(values) / len(values) for name, values in expected["plain"].items()}
    )
    assert row["tokens_by_mask_rate"] == {name: len(values) for name, values in expected["plain"].items()}
    by_rate = nelbo.rates.means()
    assert by_rate == pytest.approx(
        {name: sum(expected["weighted"].get(name, [])) / len(count) for name, count in expected["tokens"].items()}
    )
    masked = sum(len(values) for values in expected["plain"].values())
    assert row["mask_ratio"] == pytest.approx(masked / sum(len(values) for values in expected["tokens"].values()))
    assert row["masked_accuracy"] == pytest.approx(float((scores[0].nll_M < 1.5).double().mean()))
    # The buckets put together again are the objective's own loss.
    if objective.weighting == "elbo":
        counts = {name: len(values) for name, values in expected["tokens"].items()}
        whole = sum(by_rate[name] * count for name, count in counts.items()) / sum(counts.values())
        assert whole == pytest.approx(row["loss_by_term"]["diffusion"], rel=1e-5)


def test_micro_batches_add_up_to_the_whole_batch() -> None:
    """Sums and counts: micro-batches of unequal size give the figures of the whole, and not the mean of theirs."""
    loaded = tiny()
    loaded.model.float()
    rows = rows_of()
    objective = BlockDiffusion(block_size=4, ar_weight=0.5, parametrisation=SHIFT)

    def tally(parts: list[list[int]]) -> dict[str, Any]:
        found = StepTally()
        inputs = [objective.prepare(rows.batch(part), mask_id=MASK, noise=RowNoise(0)) for part in parts]
        for each in inputs:
            for term in each.terms:
                found.expect(term)
        for each in inputs:
            scores = score_input(loaded.model, each)
            found.add(each, scores, objective.loss(scores, each))
        return found.row(block_size=4)

    whole, parts = tally([[0, 1, 2]]), tally([[0], [1, 2]])
    for name in ("loss_by_mask_rate", "loss_by_term", "accuracy_by_term", "tokens_by_mask_rate"):
        assert parts[name] == pytest.approx(whole[name], rel=1e-5), name
    for name in ("loss", "mask_ratio", "masked_accuracy"):
        assert parts[name] == pytest.approx(whole[name], rel=1e-5), name
    assert whole["loss"] == pytest.approx(whole["loss_by_term"]["diffusion"] + 0.5 * whole["loss_by_term"]["ar"])
    assert whole["loss_by_block_size"] == {"4": whole["loss_by_term"]["diffusion"]}


def test_next_token_steps_have_no_figures_of_masks() -> None:
    objective: Objective = NextToken()
    rows = rows_of()
    inputs = objective.prepare(rows.batch([0, 1]), mask_id=None, noise=RowNoise(0))
    scores = random_scores(inputs, 0)
    tally = StepTally()
    tally.expect(inputs.terms[0])
    tally.add(inputs, scores, objective.loss(scores, inputs))
    row = tally.row(block_size=None)
    assert set(row) == {"loss", "loss_by_term", "accuracy_by_term"}
    assert row["loss"] == pytest.approx(float(scores[0].nll_M.mean()))
    assert math.isfinite(row["accuracy_by_term"]["ar"])


def test_buckets_are_closed_below_and_the_last_one_holds_everything_masked() -> None:
    assert [bucket_name(each) for each in (0, 2, 9)] == ["0.0-0.1", "0.2-0.3", "0.9-1.0"]
    objective = BlockDiffusion(block_size=1)
    inputs = objective.prepare(rows_of().batch([0]), mask_id=MASK, noise=RowNoise(0))
    assert inputs.maskable_BW is not None
    bucket = rate_buckets(inputs)
    assert set(bucket[inputs.maskable_BW.flatten()].tolist()) == {9}
    assert set(bucket[~inputs.maskable_BW.flatten()].tolist()) <= {-1}
