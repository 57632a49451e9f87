"""What is refused before the first forward, and how it is said."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from difflm.checkpoints.loading import LoadedModel
from difflm.decode.admission import admit, decodings_of
from difflm.decode.policies.native import Native
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
