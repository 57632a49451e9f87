"""Eq. 6 against a loop over its definition, and which tokens and gradients its second term knows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from difflm.diffusion.confidence import ConfidenceAware
from difflm.diffusion.noise import Bernoulli, RowNoise
from difflm.diffusion.objectives import BlockDiffusion
from difflm.errors import ConfigError
from difflm.scoring import forward_hidden, score_input
from difflm.types import ModelInput
from tests.decode.tiny import tiny
from tests.rows import MASK, VOCAB, batch_of

BASE = BlockDiffusion(block_size=4, weighting="uniform", noise=Bernoulli(bandwidth=(0.3, 0.8)), shared=True)
BATCH = batch_of([[9, 7], [14]], row_length=16, prompts=[[2, 5], [5]])


def prepared(**fields: Any) -> tuple[ConfidenceAware, ModelInput]:
    objective = ConfidenceAware(base=BASE, **fields)
    return objective, objective.prepare(BATCH, mask_id=MASK, noise=RowNoise(3))


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_loss_equals_a_loop_over_eq_6(temperature: float) -> None:
    model = tiny(seed=3).model
    objective, inputs = prepared(temperature=temperature)
    scores = score_input(model, inputs)
    sft, confidence = objective.loss(scores, inputs)
    hidden_RD = forward_hidden(model, inputs.token_BN, inputs.position_BN, inputs.layout).flatten(0, 1)
    total, right, plain = 0.0, 0, 0.0
    for row, target in zip(inputs.terms[0].row_M.tolist(), inputs.terms[0].target_M.tolist(), strict=True):
        logits = model.head(hidden_RD[row])
        plain -= float(logits.log_softmax(-1)[target].detach())
        if int(logits.argmax()) == target:
            chance = (logits / temperature).softmax(-1)
            total -= float((chance * chance.log()).sum().detach())
            right += 1
    assert 0 < right < inputs.terms[0].row_M.numel()
    assert float(sft.detach()) == pytest.approx(plain)
    assert float(confidence.detach()) == pytest.approx(total)
    assert float(confidence.detach()) > 0
    assert int(scores[1].correct_M.sum()) == right, "the count that the tally adds up"


def test_rows_pass_the_head_once_and_the_count_is_known_when_it_can_be() -> None:
    _, inputs = prepared(weight=0.7)
    first, second = inputs.terms
    assert (second.name, second.scale, second.scores_of, second.counts_correct) == ("confidence", 0.7, 0, True)
    assert float(second.count) == 0
    scores = score_input(tiny().model, inputs)
    assert scores[1] is scores[0]
    _, masked = prepared(normaliser="masked")
    assert not masked.terms[1].counts_correct
    assert float(masked.terms[1].count) == first.row_M.numel()


def test_only_predictions_that_are_right_are_sharpened() -> None:
    model = tiny(seed=3).model
    objective, inputs = prepared()
    hidden_BND = forward_hidden(model, inputs.token_BN, inputs.position_BN, inputs.layout)
    best_M = model.head(hidden_BND.flatten(0, 1)[inputs.terms[0].row_M]).argmax(-1)
    terms = tuple(replace(term, target_M=(best_M + 1) % VOCAB) for term in inputs.terms)
    inputs = replace(inputs, terms=terms)
    scores = score_input(model, inputs)
    assert not bool(scores[0].correct_M.any())
    _, confidence = objective.loss(scores, inputs)
    assert float(confidence.detach()) == 0
    grads = torch.autograd.grad(confidence, list(model.parameters()))
    assert all(float(each.abs().sum()) == 0 for each in grads)


def test_one_step_lowers_the_entropy_of_what_is_right() -> None:
    model = tiny(seed=3).model
    objective, inputs = prepared()

    def entropy() -> torch.Tensor:
        return objective.loss(score_input(model, inputs), inputs)[1]

    before = entropy()
    before.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= 1e-4 * parameter.grad
    right = score_input(model, inputs)[0].correct_M
    assert bool(right.any())
    assert float(entropy().detach()) < float(before.detach())


@pytest.mark.parametrize("field", ["weight", "temperature"])
def test_what_is_not_defined_is_refused(field: str) -> None:
    with pytest.raises(ConfigError, match=rf"objective.confidence.{field}: 0.0 is not above 0"):
        prepared(**{field: 0.0})
