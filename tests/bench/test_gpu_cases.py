"""What the GPU check compares."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from difflm.bench import gpu_cases as cases
from difflm.models.attention import attention_for
from difflm.types import Layout

CPU = torch.device("cpu")


def test_layouts_cover_packing_padding_streams_and_options() -> None:
    for length, two_streams in cases.SHAPES:
        found = list(cases.parity_layouts(length, two_streams=two_streams))
        assert {each.two_streams for each in found} == {two_streams}
        assert any(each.causal_inside and each.clean_causal for each in found)
        assert any(each.lookahead == 5 for each in found)
        assert len({int(each.block_BL.max()) for each in found}) == 4
    document = cases.packed_documents(200)
    assert [int((document[1] == number).sum()) for number in (0, 1, 2, -1)] == [66, 34, 89, 11]
    assert any(length % 128 for length, _ in cases.SHAPES)


def test_the_difference_sees_a_wrong_mask_and_what_is_not_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    layout = next(cases.parity_layouts(40, two_streams=True))
    found = cases.attention_difference("split", layout, device=CPU, dtype=torch.float32, backward=True)
    assert found.forward < 1e-6
    assert found.backward is not None
    assert found.backward < 1e-6

    def other(layout: Layout, **options: object) -> object:
        return attention_for(replace(layout, block_BL=layout.block_BL // 2), **options)  # type: ignore[arg-type]

    monkeypatch.setattr(cases, "attention_for", other)
    found = cases.attention_difference("split", layout, device=CPU, dtype=torch.float32, backward=True)
    assert found.forward > 0.1
    assert cases.relative_difference(torch.tensor([float("nan")]), torch.tensor([1.0])) == float("inf")


def test_gradients_and_answers_are_compared() -> None:
    one = {"a": torch.tensor([3.0, 4.0])}
    assert cases.gradient_difference({"a": torch.tensor([3.0, 4.5])}, one) == pytest.approx(0.1)
    assert cases.agreement([[1, 2], [3]], [[1, 2], [4]]) == 0.5


def test_the_small_model_trains_and_answers() -> None:
    losses = cases.training_losses("split", device=CPU, steps=3)
    assert losses[0] > losses[-1]
    loaded = cases.small_loaded(device=CPU)
    answers = cases.decoded(loaded, new_tokens=3)
    assert [len(each) for each in answers] == [3] * 8
    assert len({tuple(each) for each in answers}) > 4  # the weights are large enough for varied answers
    loss, gradients = cases.loss_and_gradients(cases.small_step("dense", shift=True), device=CPU)
    assert loss > 0
    assert set(gradients) == {name for name, _ in loaded.model.named_parameters()}
