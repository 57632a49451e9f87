"""Checks a prompt and its parameters against a model: everything that can be refused is refused before a forward."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING

from difflm.decode.request import Request, SamplingParams
from difflm.errors import RequestError

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
    block = params.decoding == "block"
    if block and config.mask_token_id is None:
        raise RequestError(
            f"decoding: 'block' needs a mask token and {loaded.path} has none (mask_token_id is absent); "
            "convert the checkpoint with difflm convert, or use decoding 'next_token'"
        )
    _check_tokens(config, tokens)
    _check_length(config, tokens, params)
    if not tokens and (config.logit_shift or not block):
        bos = "a BOS token (this model's config names none)" if config.bos_token_id is None else config.bos_token_id
        why = "reads each token at the row before it (logit_shift)" if block else "predicts left to right"
        raise RequestError(f"prompt: it is empty, but this model {why}; start the prompt with the BOS id {bos}")
    block_size = params.resolved_block_size(config.generation, config.block_size) if block else 1
    if block_size > config.model.max_positions:
        raise RequestError(
            f"block_size: {block_size} tokens are more than the context of {config.model.max_positions}; "
            f"choose a smaller block (the checkpoint's is {config.block_size})"
        )
    return Request(
        id=request_id,
        prompt=tokens,
        max_new_tokens=params.max_new_tokens,
        block_size=block_size,
        threshold=params.resolved_threshold(config.generation),
        min_accept=params.min_accept,
        temperature=params.temperature,
        seed=params.seed,
        eos_ids=frozenset() if params.ignore_eos else frozenset(config.eos_token_ids),
        mask_id=config.mask_token_id if block else None,
        logit_shift=config.logit_shift or not block,
        clean_causal=config.clean_attention == "causal" or not block,
        noisy_causal=config.noisy_attention == "causal",
        fused=fused,
    )


def _token_ids(loaded: LoadedModel, prompt: Prompt) -> tuple[int, ...]:
    if isinstance(prompt, str):
        if loaded.tokenizer is None:
            raise RequestError(f"prompt: it is text, but {loaded.path} has no tokenizer; give token ids")
        return tuple(loaded.encode(prompt))
    try:
        return tuple(operator.index(token) for token in prompt)
    except TypeError:
        raise RequestError(f"prompt: {prompt!r:.80} is neither text nor a list of token ids") from None


def _check_tokens(config: CheckpointConfig, tokens: tuple[int, ...]) -> None:
    vocab_size = config.model.vocab_size
    for place, token in enumerate(tokens):
        if not 0 <= token < vocab_size:
            raise RequestError(f"prompt: id {token} at position {place} is not in the vocabulary (0..{vocab_size - 1})")
        if token == config.mask_token_id:
            raise RequestError(
                f"prompt: id {token} at position {place} is the MASK token; remove it "
                "(text that spells the mask token is safe when given as a string)"
            )


def _check_length(config: CheckpointConfig, tokens: tuple[int, ...], params: SamplingParams) -> None:
    total, most = len(tokens) + params.max_new_tokens, config.model.max_positions
    if total > most:
        raise RequestError(
            f"prompt: {len(tokens)} tokens + max_new_tokens {params.max_new_tokens} = {total} do not fit the "
            f"context of {most}; shorten the prompt by {total - most} tokens or lower max_new_tokens"
        )
