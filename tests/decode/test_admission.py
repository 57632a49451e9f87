"""What is refused before the first forward, and how it is said."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from difflm.checkpoints.loading import LoadedModel
from difflm.decode.admission import admit, decoding_for, decodings_of
from difflm.decode.drawing import Draw
from difflm.decode.policies.named import policy
from difflm.decode.policies.native import Native
from difflm.decode.policies.verified import Verified
from difflm.decode.request import Request, SamplingParams
from difflm.diffusion.acceptance import ThresholdAcceptance
from difflm.errors import RequestError
from tests.decode.tiny import MASK, VOCAB, tiny


def admitted(loaded: LoadedModel, prompt: Any, **params: Any) -> Request:
    params.setdefault("max_new_tokens", 4)
    return admit(loaded, prompt, SamplingParams(**params), request_id=0, fused=True)


def refusal(loaded: LoadedModel, prompt: Any, **params: Any) -> str:
    with pytest.raises(RequestError) as refused:
        admitted(loaded, prompt, **params)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize("decoding", ["block", "next_token"])
def test_a_mask_id_in_the_prompt_is_refused_with_its_place(decoding: str) -> None:
    message = refusal(tiny(), [1, 2, MASK, 3], decoding=decoding)
    assert f"id {MASK} at position 2 is the MASK token" in message


@pytest.mark.parametrize("token", [-1, VOCAB, 10**12])
def test_ids_outside_the_vocabulary_are_refused(token: int) -> None:
    assert f"id {token} at position 1" in refusal(tiny(), [1, token])


def test_the_context_is_a_limit_and_the_message_names_the_numbers() -> None:
    loaded = tiny()  # 96 positions
    assert admitted(loaded, [1] * 90, max_new_tokens=6).limit == 96
    message = refusal(loaded, [1] * 90, max_new_tokens=9)
    assert "90 tokens + max_new_tokens 9 = 99" in message
    assert "96" in message
    assert "3 tokens" in message


def test_a_block_beyond_the_context_is_refused() -> None:
    assert admitted(tiny(), [1], block_size=96).block_size == 96
    assert "block_size: 97 tokens" in refusal(tiny(), [1], block_size=97)
    assert admitted(tiny(), [1], block_size=97, decoding="next_token").block_size == 1


def test_block_decoding_needs_a_mask_token() -> None:
    loaded = tiny(mask_id=None)
    assert "difflm convert" in refusal(loaded, [1])
    assert admitted(loaded, [1], decoding="next_token").mask_id is None


def test_text_needs_a_tokenizer() -> None:
    assert "has no tokenizer" in refusal(tiny(), "hello")


@pytest.mark.parametrize("prompt", [[1.5], [[1, 2]], ["a"], 7, None])
def test_other_types_are_refused(prompt: Any) -> None:
    assert "neither text nor a list of token ids" in refusal(tiny(), prompt)


def test_tensors_and_tuples_of_ids_are_prompts() -> None:
    assert admitted(tiny(), torch.tensor([1, 2, 3])).prompt == (1, 2, 3)
    assert admitted(tiny(), (1, 2)).prompt == (1, 2)


def test_an_empty_prompt_needs_a_bos_where_rows_are_shifted() -> None:
    assert admitted(tiny(), []).prompt == ()
    assert "BOS id 1" in refusal(tiny(logit_shift=True, bos=1), [])
    assert "BOS" in refusal(tiny(logit_shift=True), [])
    assert "BOS id 1" in refusal(tiny(bos=1), [], decoding="next_token")


def test_the_request_carries_the_models_parametrisation() -> None:
    request = admitted(tiny(logit_shift=True, clean="causal", noisy="causal", eos=(3, 5), block_size=6), [1])
    assert request.logit_shift
    assert request.clean_causal
    assert request.noisy_causal
    assert request.eos_ids == {3, 5}
    assert request.block_size == 6
    assert request.mask_id == MASK
    request = admitted(tiny(eos=(3,), generation={"block_size": 2, "threshold": 0.5}), [1], ignore_eos=True)
    assert (request.logit_shift, request.clean_causal, request.noisy_causal) == (False, False, False)
    assert not request.eos_ids
    assert request.block_size == 2
    assert isinstance(request.policy, Native)
    assert request.policy.acceptance == ThresholdAcceptance(0.5)


def test_next_token_decoding_is_shifted_and_causal_whatever_the_model_says() -> None:
    request = admitted(tiny(), [1], decoding="next_token", block_size=8)
    assert request.logit_shift
    assert request.clean_causal
    assert request.block_size == 1


def test_what_a_model_was_made_for() -> None:
    assert decodings_of(tiny()) == ("block",)
    assert decodings_of(tiny(mask_id=None)) == ("next_token",)
    causal = tiny(clean="causal")
    assert decodings_of(causal) == ("block", "next_token", "verified")
    causal.model.adapter_gate = "noisy"
    assert decodings_of(causal) == ("next_token", "verified")


def test_a_verified_request_is_left_to_right_and_drafts_as_the_model_does() -> None:
    loaded = tiny(clean="causal", noisy="causal", eos=(3,), block_size=6)
    request = admitted(loaded, [1], decoding="verified", temperature=0.5, min_tokens=2)
    assert (request.policy, request.block_size, request.mask_id) == (None, 1, MASK)
    assert (request.logit_shift, request.noisy_shift, request.clean_causal, request.noisy_causal) == (
        True,
        False,
        True,
        True,
    )
    assert request.drafting == Verified(window=6, min_tokens=2, draw=Draw(temperature=0.5))
    assert request.rule == Draw(temperature=0.5, suppressed=(MASK,), keyed=True)
    assert (request.min_tokens, request.eos_ids) == (2, {3})
    assert admitted(tiny(clean="causal", logit_shift=True), [1], decoding="verified").noisy_shift
    plain = admitted(loaded, [1], decoding="next_token", temperature=0.5)
    assert (plain.rule, plain.drafting) == (request.rule, None)
    by_policy = admitted(loaded, [1], policy=policy("verified", window=3, min_tokens=4, check="ratio", temperature=1))
    assert (by_policy.min_tokens, by_policy.policy) == (4, None)
    assert by_policy.drafting is not None
    assert (by_policy.drafting.window, by_policy.rule.random) == (3, True)


def test_the_window_is_at_most_a_block_and_by_itself_as_long() -> None:
    loaded = tiny(clean="causal", block_size=4)
    window = [
        admitted(each, [1], policy=policy("verified")).drafting
        for each in (loaded, tiny(clean="causal", block_size=None), tiny(clean="causal", block_size=500))
    ]
    assert [each.window for each in window if each] == [4, 32, 96], "the block, what a block is, the whole context"
    assert admitted(loaded, [1], policy=policy("verified", window=4, start=9)).drafting == Verified(window=4, start=9)
    message = refusal(loaded, [1], policy=policy("verified", window=5))
    assert "policy verified: window 5 is beyond the block of 4 tokens that tiny drafts; give at most 4" in message


def test_verified_needs_causal_clean_rows_and_a_mask() -> None:
    for params in ({"decoding": "verified"}, {"policy": policy("verified", window=2)}):
        message = refusal(tiny(), [1], **params)
        assert "decoding: 'verified' needs clean_attention 'causal', and tiny has 'block'" in message
        assert "--clean-attention causal" in message
        message = refusal(tiny(clean="causal", mask_id=None), [1], **params)
        assert "decoding: 'verified' needs a mask token and tiny has none" in message
        assert "or use decoding 'next_token'" in message
        assert "is the MASK token" in refusal(tiny(clean="causal"), [1, MASK], **params)
        assert "predicts left to right" in refusal(tiny(clean="causal"), [], **params)
    bad = policy("verified", logit_bias={VOCAB: 1.0})
    assert f"logit_bias: id {VOCAB} is not in the vocabulary" in refusal(tiny(clean="causal"), [1], policy=bad)


def test_what_a_model_says_of_its_decoding_holds_where_a_request_says_nothing() -> None:
    loaded = tiny(clean="causal", block_size=4, generation={"decoding": "verified", "verified": {"window": 3}})
    drafting = admitted(loaded, [1], top_k=2).drafting
    assert drafting == Verified(window=3, draw=Draw(top_k=2))
    assert admitted(loaded, [1], decoding="block").policy is not None
    assert admitted(loaded, [1], policy=policy("native")).policy == Native()
    assert admitted(loaded, [1], policy=policy("verified")).drafting == Verified(window=4), "with settings of its own"
    said = {None: "verified", "block": "block", "next_token": "next_token", "verified": "verified"}
    assert {each: decoding_for(loaded, SamplingParams(decoding=each)) for each in said} == said  # type: ignore[arg-type]
    assert decoding_for(tiny(), SamplingParams()) == "block"
    left_to_right = tiny(clean="causal", generation={"decoding": "next_token"})
    assert admitted(left_to_right, [1]).drafting is None
    for each, decoding in ((loaded, "verified"), (left_to_right, "next_token")):
        message = refusal(each, [1], editing_threshold=0.5)
        assert f"editing_threshold: 0.5 has no effect with decoding '{decoding}', which this model takes by" in message


@pytest.mark.parametrize(
    ("generation", "said"),
    [
        ({"decoding": "fast"}, "decoding: 'fast' is unknown; write one of 'block', 'next_token', 'verified'"),
        ({"decoding": ["verified"]}, "decoding: ['verified'] is unknown"),
        ({"decoding": "verified", "verified": 3}, "verified: 3 cannot be used; write an object of settings"),
        ({"decoding": "verified", "verified": []}, "verified: [] cannot be used"),
        ({"decoding": "verified", "verified": {"windows": 3}}, "verified: it has no setting 'windows'"),
        ({"decoding": "verified", "verified": {"temperature": 1}}, "verified: it has no setting 'temperature'"),
        ({"decoding": "verified", "verified": {"window": "3"}}, "verified: window '3' cannot be used"),
    ],
)
def test_what_a_model_says_wrongly_is_refused_by_its_file(generation: dict[str, Any], said: str) -> None:
    message = refusal(tiny(clean="causal", generation=generation), [1])
    assert message.startswith(f"generation_config.json: {said}")


def test_edits_have_no_place_in_drafts() -> None:
    for decoding in ("verified", "next_token"):
        with pytest.raises(RequestError, match=f"editing_threshold: 0.5 has no effect with decoding '{decoding}'"):
            SamplingParams(decoding=decoding, editing_threshold=0.5)
