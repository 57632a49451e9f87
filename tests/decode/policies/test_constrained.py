"""The native policy under a grammar: beginnings of a block."""

from __future__ import annotations

import pytest

from difflm.decode.policies.base import Draft, Proposal
from difflm.decode.policies.constrained import Constrained, constrained_policy
from difflm.decode.policies.named import policy
from difflm.decode.policies.native import Native
from difflm.diffusion.acceptance import Acceptance, EntropyAcceptance, FixedAcceptance, ThresholdAcceptance
from difflm.errors import RequestError


def draft() -> Draft:
    return Draft(
        tokens=[1, *[12] * 7],
        decided=[True, *[False] * 7],
        num_prompt=1,
        limit=8,
        mask_id=12,
        eos_ids=frozenset({3}),
        stop=8,
    )


@pytest.mark.parametrize(
    ("acceptance", "confidences", "entropies", "count", "selected_by"),
    [
        (ThresholdAcceptance(0.5), [0.9, 0.6, 0.4, 0.9], [], 2, "threshold"),
        (ThresholdAcceptance(0.5), [0.1, 0.9, 0.9, 0.9], [], 1, "top_k"),
        (ThresholdAcceptance(0.5, 3), [0.9, 0.1, 0.2, 0.9], [], 3, "top_k"),
        (ThresholdAcceptance(0.5, 2), [0.9, 0.9, 0.9, 0.3], [], 3, "threshold"),
        (FixedAcceptance(3), [0.1, 0.2, 0.3, 0.4], [], 3, "top_k"),
        (FixedAcceptance(9), [0.1, 0.2], [], 2, "top_k"),
        (EntropyAcceptance(0.5), [0.5] * 4, [0.3, 0.1, 0.2, 0.9], 3, "threshold"),
        (EntropyAcceptance(0.0), [0.5] * 4, [2.0, 0.0, 0.0, 0.1], 3, "threshold"),
    ],
)
def test_the_longest_beginning_that_the_acceptance_takes_whole(
    acceptance: Acceptance, confidences: list[float], entropies: list[float], count: int, selected_by: str
) -> None:
    chosen = constrained_policy(Native(acceptance=acceptance))
    proposal = Proposal(tokens=[5] * len(confidences), confidences=confidences, entropies=entropies)
    decision = chosen.decide(draft(), range(1, 8), proposal)
    assert decision.filled == tuple(range(1, 1 + count))
    assert decision.selected_by == selected_by
    kept = [chosen.keeps(confidences[:n], entropies[:n]) for n in range(1, len(confidences) + 1)]
    assert kept == [number < count for number in range(len(kept))], "a walk that stops early decides the same"


def test_settings_are_the_native_ones() -> None:
    native = Native(block_length=4, temperature=0.7, top_k=3, logit_bias={2: 1.0}, eos_id=3)
    chosen = constrained_policy(native)
    assert isinstance(chosen, Constrained)
    assert chosen.rule((1,)) == native.rule((1,))
    assert (chosen.block_length, chosen.eos_id) == (4, 3)


def test_an_answer_without_a_token_to_go_on_with_is_what_is_decided() -> None:
    state = draft()
    state.tokens[1:3], state.decided[1:3] = [4, 5], [True, True]
    result = constrained_policy(Native()).result(state, "early")
    assert (result.tokens, result.num_tokens, result.stopped_by) == ([4, 5], 2, None)


@pytest.mark.parametrize("name", ["hf20", "hf20-greedy", "hf21", "sglang", "dinfer"])
def test_policies_of_other_systems_are_refused(name: str) -> None:
    with pytest.raises(
        RequestError, match=r"policy \w+: it cannot be constrained, .* use the native policy, or decoding"
    ):
        constrained_policy(policy(name))  # type: ignore[arg-type]


def test_editing_is_refused() -> None:
    with pytest.raises(RequestError, match=r"editing_threshold: 0\.9 cannot be used beside a constraint"):
        constrained_policy(Native(editing_threshold=0.9))
