"""Checks a prompt and its parameters against a model: everything that can be refused is refused before a forward."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from difflm.checkpoints.constraints import Constraint
from difflm.decode.matching import Grammar
from difflm.decode.policies.base import Policy
from difflm.decode.policies.constrained import constrained_policy
from difflm.decode.policies.named import drafting_settings
from difflm.decode.policies.native import Native
from difflm.decode.policies.verified import Verified
from difflm.decode.request import DEFAULT_BLOCK_SIZE, Request, SamplingParams
from difflm.decode.stopping import StopStrings
from difflm.diffusion.acceptance import ThresholdAcceptance
from difflm.errors import RequestError
from difflm.types import Decoding

if TYPE_CHECKING:
    from difflm.checkpoints.config import CheckpointConfig
    from difflm.checkpoints.loading import LoadedModel

Prompt = str | Sequence[int]


def admit(loaded: LoadedModel, prompt: Prompt, params: SamplingParams, *, request_id: int, fused: bool) -> Request:
    """Return the request that decodes `prompt` on this model.

    Args:
        loaded: model, tokenizer and configuration.
        prompt: token ids, or text.
        params: how to decode.
        request_id: number of the request in its engine.
        fused: commit blocks inside the next denoising forward.

    Raises:
        RequestError: if the prompt or the parameters do not fit the model; one line that names the field, the
            value and the fix.
    """
    config = loaded.config
    tokens = _token_ids(loaded, prompt)
    native = _native(config, params)
    decoding = decoding_for(loaded, params)
    _check_editing(params, decoding)
    drafting = _drafting(loaded, params, native) if decoding == "verified" else None
    policy = _policy(params, native, decoding)
    mask_id = None if policy is None and drafting is None else _mask_id(loaded, policy, decoding)
    max_new_tokens = params.max_new_tokens if policy is None or policy.gen_length is None else policy.gen_length
    _check_tokens(config, tokens, config.mask_token_id if mask_id is None else mask_id, policy)
    _check_length(config, tokens, max_new_tokens)
    shifted = config.logit_shift or policy is None
    if not tokens and shifted:
        bos = "a BOS token (this model's config names none)" if config.bos_token_id is None else config.bos_token_id
        why = "reads each token at the row before it (logit_shift)" if policy is not None else "predicts left to right"
        raise RequestError(f"prompt: it is empty, but this model {why}; start the prompt with the BOS id {bos}")
    _check_ids(config, params)
    suppressed = config.suppressed_token_ids
    left_to_right = replace(native.rule(suppressed), keyed=True) if drafting is None else drafting.rule(suppressed)
    chosen = drafting or policy
    ends = _eos_ids(config, params, policy)
    min_tokens = chosen.min_tokens if isinstance(chosen, Native | Verified) else params.min_tokens
    return Request(
        id=request_id,
        prompt=tokens,
        max_new_tokens=max_new_tokens,
        block_size=_block_size(config, params, policy),
        policy=policy,
        rule=left_to_right if policy is None else policy.rule(suppressed),
        seed=params.seed,
        eos_ids=ends,
        mask_id=mask_id,
        logit_shift=shifted,
        clean_causal=config.clean_attention == "causal" or policy is None,
        noisy_causal=config.noisy_attention == "causal",
        noisy_shift=config.logit_shift,
        drafting=drafting,
        fused=fused,
        min_tokens=min_tokens,
        stops=_stops(loaded, params),
        logprobs=params.logprobs,
        guesses=params.guesses,
        grammar=_grammar(loaded, params, ends, min_tokens),
    )


def _policy(params: SamplingParams, native: Native, decoding: Decoding) -> Policy | None:
    """Return the policy of blocks; None left to right."""
    policy: Policy | None = native if decoding == "block" else None
    if params.policy is not None and not isinstance(params.policy, Verified):
        policy = params.policy
    return policy if policy is None or params.constraint is None else constrained_policy(policy)


def _grammar(loaded: LoadedModel, params: SamplingParams, ends: frozenset[int], min_tokens: int) -> Grammar | None:
    """Return the grammar of the answer, if any."""
    constraint = params.constraint
    if constraint is None:
        return None
    if min_tokens:
        raise RequestError(f"min_tokens: {min_tokens} cannot be used beside a constraint; leave one of them out")
    if not ends:
        raise RequestError(
            f"constraint: {loaded.path} names no EOS, by which an answer could end where its grammar does; "
            "give stop_token_ids"
        )
    return loaded.grammar(constraint) if isinstance(constraint, Constraint) else constraint


def decoding_for(loaded: LoadedModel, params: SamplingParams) -> Decoding:
    """Return how a request with these parameters is decoded: what they say, else what the model offers.

    Args:
        loaded: the model.
        params: of the request.

    Raises:
        RequestError: generation_config names none that there is.
    """
    if params.policy is not None:
        return "verified" if isinstance(params.policy, Verified) else "block"
    return params.decoding or loaded.default_decoding()


def _check_editing(params: SamplingParams, decoding: Decoding) -> None:
    """Refuse edits where the model, not the parameters, says that it is decoded left to right."""
    if params.editing_threshold is not None and decoding != "block":
        raise RequestError(
            f"editing_threshold: {params.editing_threshold!r} has no effect with decoding '{decoding}', which this "
            "model takes by itself; leave it out, or use decoding 'block'"
        )


def decodings_of(loaded: LoadedModel) -> tuple[Decoding, ...]:
    """Return what a model was made for: blocks, left to right, left to right with drafts that are verified.

    Args:
        loaded: the model.
    """
    config = loaded.config
    if config.mask_token_id is None:
        return ("next_token",)
    if loaded.model.adapter_gate == "noisy":
        return ("next_token", "verified")
    return ("block", "next_token", "verified") if config.clean_attention == "causal" else ("block",)


def _mask_id(loaded: LoadedModel, policy: Policy | None, decoding: Decoding) -> int:
    """Return the id of an undecided position."""
    mask_id = loaded.config.mask_token_id if policy is None or policy.mask_id is None else policy.mask_id
    if mask_id is None:
        raise RequestError(
            f"decoding: '{decoding}' needs a mask token and {loaded.path} has none (mask_token_id is absent); "
            "convert the checkpoint with difflm convert, or use decoding 'next_token'"
        )
    if policy is not None and loaded.model.adapter_gate == "noisy":
        raise RequestError(
            f"decoding: 'block', but the adapter on {loaded.path} only drafts (its gate is 'noisy'): that has "
            "to be verified; use decoding 'verified', which is the base's text, or the base alone"
        )
    return mask_id


def _drafting(loaded: LoadedModel, params: SamplingParams, native: Native) -> Verified:
    """Return how drafts are made and verified, with the model's window where none is given."""
    config = loaded.config
    if config.clean_attention != "causal":
        raise RequestError(
            f"decoding: 'verified' needs clean_attention 'causal', and {loaded.path} has '{config.clean_attention}': "
            "its clean rows see the tokens that they would have to verify; train from a checkpoint that was converted "
            "with --clean-attention causal, or use decoding 'block'"
        )
    if isinstance(params.policy, Verified):
        given = params.policy
    else:
        own = config.generation.get("verified")
        given = drafting_settings({} if own is None else own, where="generation_config.json: verified")
        given = replace(given, draw=native.rule(()), min_tokens=params.min_tokens)
    most = config.block_size or DEFAULT_BLOCK_SIZE
    if given.window is not None and given.window > most:
        raise RequestError(
            f"policy verified: window {given.window} is beyond the block of {most} tokens that {loaded.path} drafts; "
            f"give at most {most}"
        )
    return replace(given, window=min(given.window or most, config.model.max_positions))


def admit_gaps(
    loaded: LoadedModel, tokens: Sequence[int | None], params: SamplingParams, *, request_id: int, fused: bool
) -> Request:
    """Return the request that fills the gaps of a row.

    Args:
        loaded: model, tokenizer and configuration.
        tokens: ids, None where one is to be found.
        params: how to decode.
        request_id: number of the request in its engine.
        fused: commit blocks inside the next denoising forward.

    Raises:
        RequestError: as `admit`; and no gap, or parameters that mean nothing in a row of given length.
    """
    row = tuple(tokens)
    if None not in row:
        raise RequestError("tokens: there is no gap to fill; put None where a token is to be found")
    alone = {"policy": params.policy is not None, "stop": bool(params.stop), "n": params.n > 1}
    alone |= {"stop_token_ids": bool(params.stop_token_ids), "min_tokens": params.min_tokens > 0}
    alone |= {"editing_threshold": params.editing_threshold is not None}
    alone |= {"constraint": params.constraint is not None}
    alone |= {"decoding": params.decoding not in (None, "block")}
    for field, given in alone.items():
        if given:
            raise RequestError(f"{field}: it cannot be used for filling gaps; leave it out")
    first, config = row.index(None), loaded.config
    _check_tokens(config, tuple(token for token in row if token is not None), config.mask_token_id, None)
    inner = replace(params, max_new_tokens=len(row) - first, ignore_eos=True, decoding="block")
    prompt = [token for token in row[:first] if token is not None]
    request = admit(loaded, prompt, inner, request_id=request_id, fused=fused)
    assert request.policy is not None, "blocks have a policy"
    rule = request.policy.rule(tuple(sorted({*config.suppressed_token_ids, *config.eos_token_ids})))
    return replace(request, template=row[first:], rule=rule)


def _stops(loaded: LoadedModel, params: SamplingParams) -> StopStrings | None:
    """Return the stop strings, if any; they need a tokenizer."""
    if not params.stop:
        return None
    if loaded.tokenizer is None:
        raise RequestError(f"stop: it needs text, but {loaded.path} has no tokenizer; give stop_token_ids")
    return StopStrings(tuple(params.stop), lambda tokens: loaded.decode(list(tokens)))


def _check_ids(config: CheckpointConfig, params: SamplingParams) -> None:
    """Refuse ids of the parameters that are not in the vocabulary."""
    vocab_size = config.model.vocab_size
    policy, bias = params.policy, params.logit_bias
    own: dict[str, int | None] = {}
    if isinstance(policy, Verified):
        bias = dict(policy.draw.logit_bias)
    elif policy is not None:
        own = {"mask_id": policy.mask_id, "eos_id": policy.eos_id}
        bias = policy.logit_bias if isinstance(policy, Native) else bias
    for field, ids in (
        ("stop_token_ids", params.stop_token_ids),
        ("logit_bias", bias or {}),
        *((f"policy: {name}", () if token is None else (token,)) for name, token in own.items()),
    ):
        for token in ids:
            if not 0 <= token < vocab_size:
                raise RequestError(f"{field}: id {token} is not in the vocabulary (0..{vocab_size - 1})")


def _native(config: CheckpointConfig, params: SamplingParams) -> Native:
    """Return the native policy with a request's own parameters."""
    threshold = params.resolved_threshold(config.generation)
    return Native(
        block_length=params.resolved_block_size(config.generation, config.block_size),
        acceptance=ThresholdAcceptance(threshold, params.min_accept),
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
        min_p=params.min_p,
        repetition_penalty=params.repetition_penalty,
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        logit_bias=params.logit_bias,
        min_tokens=params.min_tokens,
        editing_threshold=params.editing_threshold,
        max_post_steps=params.max_post_steps,
    )


def _block_size(config: CheckpointConfig, params: SamplingParams, policy: Policy | None) -> int:
    """Return the tokens of a block: of the policy, or what the model says; 1 without a policy."""
    if policy is None:
        return 1
    block_size = policy.block_length or params.resolved_block_size(config.generation, config.block_size)
    if block_size > config.model.max_positions:
        raise RequestError(
            f"block_size: {block_size} tokens are more than the context of {config.model.max_positions}; "
            f"choose a smaller block (the checkpoint's is {config.block_size})"
        )
    return block_size


def _eos_ids(config: CheckpointConfig, params: SamplingParams, policy: Policy | None) -> frozenset[int]:
    """Return the ids that end a generation: those asked for, and the policy's own, or every one of the model.

    Never the mask's: no answer has one, and it stands at every undecided position. (Chat tokenizers of the parents end
    a turn with a token of that id.)
    """
    own = config.eos_token_ids if policy is None or policy.eos_id is None else (policy.eos_id,)
    ends = frozenset(params.stop_token_ids) | (frozenset[int]() if params.ignore_eos else frozenset(own))
    return ends - {config.mask_token_id if policy is None or policy.mask_id is None else policy.mask_id}


def _token_ids(loaded: LoadedModel, prompt: Prompt) -> tuple[int, ...]:
    if isinstance(prompt, str):
        if loaded.tokenizer is None:
            raise RequestError(f"prompt: it is text, but {loaded.path} has no tokenizer; give token ids")
        return tuple(loaded.encode(prompt))
    try:
        return tuple(operator.index(token) for token in prompt)
    except TypeError:
        raise RequestError(f"prompt: {prompt!r:.80} is neither text nor a list of token ids") from None


def _check_tokens(
    config: CheckpointConfig, tokens: tuple[int, ...], mask_id: int | None, policy: Policy | None
) -> None:
    vocab_size = config.model.vocab_size
    for place, token in enumerate(tokens):
        if not 0 <= token < vocab_size:
            raise RequestError(f"prompt: id {token} at position {place} is not in the vocabulary (0..{vocab_size - 1})")
        if token == mask_id and not (policy is not None and policy.mask_in_prompt):
            raise RequestError(
                f"prompt: id {token} at position {place} is the MASK token; remove it "
                "(text that spells the mask token is safe when given as a string)"
            )


def _check_length(config: CheckpointConfig, tokens: tuple[int, ...], max_new_tokens: int) -> None:
    total, most = len(tokens) + max_new_tokens, config.model.max_positions
    if total > most:
        raise RequestError(
            f"prompt: {len(tokens)} tokens + max_new_tokens {max_new_tokens} = {total} do not fit the "
            f"context of {most}; shorten the prompt by {total - most} tokens or lower max_new_tokens"
        )
