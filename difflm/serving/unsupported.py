"""Fields that clients know and this server does not serve: refused by name, as without them the answer is another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from difflm.errors import RequestError

_MISPLACED = ("block_size", "threshold", "min_accept", "policy", "editing", "decoding")

# Field -> values that ask for nothing.
_HARMLESS: Mapping[str, tuple[Any, ...]] = {
    "add_generation_prompt": (True,),
    "add_special_tokens": (False,),
    "allowed_token_ids": (),
    "audio": (),
    "bad_words": ([],),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "continue_final_message": (False,),
    "documents": ([],),
    "ebnf": (),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "guided_whitespace_pattern": (),
    "include_stop_str_in_output": (False,),
    "length_penalty": (1, 1.0),
    "modalities": (["text"],),
    "prediction": (),
    "prompt_embeds": (),
    "prompt_logprobs": (),
    "reasoning_effort": ("none",),
    "return_tokens_as_token_ids": (False,),
    "skip_special_tokens": (True,),
    "store": (False,),
    "structural_tag": (),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "truncate_prompt_tokens": (),
    "use_beam_search": (False,),
    "web_search_options": (),
}


def check_extra(extra: Mapping[str, Any], *, n: int, chat: bool) -> None:
    """Refuse fields whose meaning is known and not served.

    Args:
        extra: fields that the body's schema does not name, without nulls.
        n: answers per prompt.
        chat: whether it is a conversation.

    Raises:
        RequestError: naming the first such field.
    """
    for name, value in extra.items():
        if name in _MISPLACED:
            raise RequestError(f'{name}: it belongs in "diffusion": {{"{name}": ...}}')
        if name == "best_of" and value not in (1, n):
            raise RequestError(f"best_of: {value!r:.40} is not supported; leave it out, or give it the value of n")
        if chat and name == "echo" and value is not False:
            raise RequestError("echo: it is not supported for conversations; use /v1/completions")
        if name in _HARMLESS and not any(type(each) is type(value) and each == value for each in _HARMLESS[name]):
            raise RequestError(f"{name}: {value!r:.40} is not supported by this server; leave it out")
