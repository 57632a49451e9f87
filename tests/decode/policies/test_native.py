"""The native policy's decisions; what it does with a model is in tests/decode/test_engine.py."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from difflm.decode.policies.native import Native
from difflm.diffusion.acceptance import Acceptance, EntropyAcceptance, FixedAcceptance, ThresholdAcceptance
from tests.decode.policies import transcriptions as plain

STRATEGIES: list[Acceptance] = [ThresholdAcceptance(0.6, 2), FixedAcceptance(3), ThresholdAcceptance(1.0)]


@settings(max_examples=80, deadline=None)
@given(
    prompt=st.lists(st.integers(0, plain.MASK - 1), max_size=9),
    seed=st.integers(0, 10**6),
    size=st.sampled_from((1, 3, 4)),
    new=st.integers(1, 10),
    acceptance=st.sampled_from(STRATEGIES),
    temperature=st.sampled_from((0.0, 1.0)),
)
def test_bounded_and_without_masks(
    prompt: list[int], seed: int, size: int, new: int, acceptance: Acceptance, temperature: float
) -> None:
    logits = plain.random_logits(seed, sharpness=2.0, mask_bonus=3.0)
    found = plain.drive(Native(acceptance=acceptance, temperature=temperature), prompt, logits, size=size, new=new)
    assert found.outcome is not None
    assert not {plain.MASK, plain.EOS} & set(found.tokens)
    assert len(found.tokens) == new or found.outcome.finish_reason == "stop"
    assert found.forwards <= new
    assert all(filled and not edited for filled, edited in found.trace)


def test_a_fixed_number_is_a_schedule() -> None:
    logits = plain.random_logits(3, sharpness=0.5, mask_bonus=0.0)
    no_eos = lambda row, start: logits(row, start).index_fill(1, plain.torch.tensor([plain.EOS]), -99.0)  # noqa: E731
    found = plain.drive(Native(acceptance=FixedAcceptance(3)), [1], no_eos, size=8, new=15)
    assert [len(filled) for filled, _ in found.trace] == [3, 3, 1, 3, 3, 2]


def test_an_entropy_rule_asks_for_entropies() -> None:
    assert Native(acceptance=EntropyAcceptance(0.5)).acceptance.needs_entropy
