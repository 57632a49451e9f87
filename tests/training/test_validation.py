"""Validation: perplexities equal a direct computation, do not depend on the batch, and use no embedding noise."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from difflm.data.packing import pack
from difflm.data.tokens import TokenDocument
from difflm.scoring import logits, score
from difflm.training.validation import validate
from tests.decode.tiny import MASK, tiny


def rows_of(seed: int = 0):  # noqa: ANN201
    """Return four packed rows of two or three documents."""
    generator = torch.Generator().manual_seed(seed)
    documents = [
        TokenDocument(token=torch.randint(0, MASK, (size,), generator=generator).tolist())
        for size in (9, 11, 20, 5, 7, 6, 18, 4)
    ]
    return pack(documents, row_length=24, pad_id=0, eos_id=0)


def test_block_size_one_and_ar_are_exact() -> None:
    loaded = tiny()
    loaded.model.float()
    rows = rows_of()
    found = validate(
        loaded.model,
        rows,
        block_sizes=[1, 4],
        parametrisation=loaded.config.parametrisation,
        mask_id=MASK,
        seed=0,
    )
    batch = rows.batch(range(len(rows)))
    real = batch.document_BL >= 0
    masked = torch.where(real, MASK, batch.token_BL)
    chain = score(loaded, batch.token_BL, masked, block_size=1, document_BL=batch.document_BL)
    assert found.nelbo[1] == pytest.approx(math.exp(float(chain.nll_BL.sum()) / int(real.sum())), rel=1e-4)
    causal = logits(loaded, batch.token_BL, attention="causal", document_BL=batch.document_BL).log_softmax(-1)
    total, count = 0.0, 0
    for row in range(len(rows)):
        for place in range(1, 24):
            if real[row, place] and batch.document_BL[row, place] == batch.document_BL[row, place - 1]:
                total -= float(causal[row, place - 1, batch.token_BL[row, place]])
                count += 1
    assert found.autoregressive == pytest.approx(math.exp(total / count), rel=1e-4)


def test_figures_do_not_depend_on_the_batch_and_settle_with_draws() -> None:
    loaded = tiny()
    loaded.model.float()
    rows = rows_of()

    def at(rows_per_batch: int, draws: int, seed: int = 0) -> float:
        return validate(
            loaded.model,
            rows,
            block_sizes=[4],
            parametrisation=loaded.config.parametrisation,
            mask_id=MASK,
            seed=seed,
            rows_per_batch=rows_per_batch,
            draws=draws,
            autoregressive=False,
        ).nelbo[4]

    for rows_per_batch in (2, 3, len(rows)):
        assert at(1, 2) == pytest.approx(at(rows_per_batch, 2), rel=1e-5)
    spread = [abs(math.log(at(4, draws, 0)) - math.log(at(4, draws, 1))) for draws in (1, 100)]
    assert spread[1] < 0.1
    assert at(4, 1, 0) != at(4, 1, 1)


def test_an_ar_model_has_no_nelbo() -> None:
    loaded = tiny(mask_id=None)
    loaded.model.float()
    found = validate(
        loaded.model,
        rows_of(),
        block_sizes=[1, 4],
        parametrisation=loaded.config.parametrisation,
        mask_id=None,
        seed=0,
    )
    assert found.nelbo == {}
    assert found.as_metrics()["perplexity"] == {}


def test_of_pairs_the_chosen_answer_is_measured() -> None:
    loaded = tiny()
    generator = torch.Generator().manual_seed(0)
    documents = [
        TokenDocument(
            token=torch.randint(0, MASK, (size,), generator=generator).tolist(),
            num_prompt=2,
            is_answer=True,
            side="chosen" if number % 2 == 0 else "rejected",
        )
        for number, size in enumerate((9, 11, 7, 5, 6, 12))
    ]
    chosen = [dataclasses.replace(each, side=None) for each in documents[::2]]
    found, expected = (
        validate(
            loaded.model,
            pack(given, row_length=24, pad_id=0, eos_id=0),
            block_sizes=[1],
            parametrisation=loaded.config.parametrisation,
            mask_id=MASK,
            seed=0,
        )
        for given in (documents, chosen)
    )
    assert found.nelbo == pytest.approx(expected.nelbo)
    assert found.autoregressive == pytest.approx(expected.autoregressive)
