"""Texts and ids as the server itself turns them into each other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from difflm.serving.errors import ApiError, of_field
from difflm.serving.planning import Planner, parsed
from difflm.serving.prompts import conversation_ids, encoded
from difflm.serving.schema import DetokenizeRequest, TokenizeRequest
from difflm.serving.tools import shown

if TYPE_CHECKING:
    from difflm.checkpoints.loading import LoadedModel


def tokenized(planner: Planner, body: bytes) -> dict[str, Any]:
    """Return the ids of a text or of a conversation: those with which it would be answered.

    Args:
        planner: of the model.
        body: JSON.

    Raises:
        ApiError: neither or both, or one that is not to be encoded.
    """
    asked = parsed(TokenizeRequest, body)
    planner.check_model(asked.model)
    if (asked.prompt is None) == (asked.messages is None):
        raise of_field("prompt", "give either a text here, or a conversation as messages")
    if asked.tools and asked.messages is None:
        raise of_field("tools", "they need messages")
    if asked.add_special_tokens and asked.prompt is not None:
        raise of_field("add_special_tokens", "true is not served: none are added to prompts here; leave it out")
    if asked.messages is not None:
        tools = shown(asked.tools or (), planner.template).tools
        tokens = conversation_ids(planner.loaded, asked.messages, planner.limits, tools=tools)
    else:
        tokens = encoded(planner.loaded, asked.prompt or "", where="prompt")
    return {"tokens": tokens, "count": len(tokens), "max_model_len": planner.loaded.config.model.max_positions}


def detokenized(planner: Planner, body: bytes) -> dict[str, Any]:
    """Return the text of ids, special tokens included.

    Args:
        planner: of the model.
        body: JSON.

    Raises:
        ApiError: no tokenizer, or an id that it does not have.
    """
    asked = parsed(DetokenizeRequest, body)
    planner.check_model(asked.model)
    tokenizer(planner.loaded)
    known = planner.loaded.config.model.vocab_size
    for place, token in enumerate(asked.tokens):
        if token >= known:
            raise of_field("tokens", f"id {token} at position {place} is not in the vocabulary (0..{known - 1})")
    return {"prompt": planner.loaded.decode(asked.tokens, skip_special_tokens=False)}


def tokenizer(loaded: LoadedModel) -> Any:
    """Return the tokenizer of a model.

    Raises:
        ApiError: it has none.
    """
    if loaded.tokenizer is None:
        raise ApiError(status=404, message="this model has no tokenizer; send token ids", code="no_tokenizer")
    return loaded.tokenizer


def tokenizer_info(loaded: LoadedModel) -> dict[str, Any]:
    """Return what programs ask that render conversations themselves.

    Args:
        loaded: the model.

    Raises:
        ApiError: it has no tokenizer.
    """
    own = tokenizer(loaded)
    return {
        "tokenizer_class": type(own).__name__,
        "bos_token": own.bos_token,
        "eos_token": own.eos_token,
        "pad_token": own.pad_token,
        "unk_token": own.unk_token,
        "mask_token": loaded.config.mask_token,
        "chat_template": own.chat_template,
        "vocab_size": loaded.config.model.vocab_size,
        "model_max_length": loaded.config.model.max_positions,
        "add_bos_token": False,
        "add_eos_token": False,
    }
