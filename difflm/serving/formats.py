"""Answers as JSON objects: whole, or in chunks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from difflm.decode.events import Completion, TokenLogprob
from difflm.serving.answers import Answer, Usage
from difflm.serving.calls import Call
from difflm.serving.pieces import Pieces

LEAST_LOGPROB = -9999.0
"""What stands for -inf, which JSON does not have."""

Kind = Literal["chat", "text"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """How the answers of one request are written.

    Attributes:
        kind: a conversation or a text.
        id: of the response.
        created: when, seconds since 1970.
        model: name under which it is served.
        pieces: text of single tokens; None without a tokenizer.
        top: how many of the most probable tokens are told; None: no log-probabilities.
    """

    kind: Kind
    id: str
    created: int
    model: str
    pieces: Pieces | None
    top: int | None = None

    def _head(self, object_: str) -> dict[str, Any]:
        return {"id": self.id, "object": object_, "created": self.created, "model": self.model}

    def whole(self, answers: Sequence[Answer], usage: Usage, before: Sequence[Echo] = ()) -> dict[str, Any]:
        """Return the response.

        Args:
            answers: finished.
            usage: of all.
            before: what is repeated of the prompt before each answer; empty for nothing.
        """
        choices: list[dict[str, Any]] = []
        for number, answer in enumerate(answers):
            assert answer.completion is not None, "it is finished"
            echo = before[number] if before else None
            end = self._end(answer, answer.completion)
            if self.kind == "chat":
                message: dict[str, Any] = {"role": "assistant", "content": answer.text, "refusal": None}
                if answer.calls:
                    message |= {"content": answer.text or None, "tool_calls": [_call(each) for each in answer.calls]}
                choices.append({"index": answer.index, "message": message, "logprobs": self._scores(answer), **end})
            else:
                text = (echo.text if echo else "") + answer.text
                scores = self._scores(answer, echo)
                choices.append({"index": answer.index, "text": text, "logprobs": scores, **end})
        object_ = "chat.completion" if self.kind == "chat" else "text_completion"
        return {**self._head(object_), "choices": choices, "usage": usage_object(usage)}

    def _scores(self, answer: Answer, echo: Echo | None = None) -> dict[str, Any] | None:
        if self.top is None:
            return None
        if self.kind == "chat":
            return self.chat_logprobs(answer.logprobs)
        if echo is None:
            return self.text_logprobs(answer.logprobs)
        return self.text_logprobs([*echo.logprobs, *answer.logprobs])

    def chunk(self, choices: Sequence[dict[str, Any]], **more: Any) -> dict[str, Any]:
        """Return a chunk of a stream."""
        object_ = "chat.completion.chunk" if self.kind == "chat" else "text_completion"
        return {**self._head(object_), "choices": list(choices), **more}

    def opening(self, index: int) -> dict[str, Any]:
        """Return the choice that opens an answer of a conversation: its role."""
        delta = {"role": "assistant", "content": ""}
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def part(self, index: int, text: str, scores: dict[str, Any] | None) -> dict[str, Any]:
        """Return a choice with a part of an answer."""
        content = {"delta": {"content": text}} if self.kind == "chat" else {"text": text}
        return {"index": index, **content, "logprobs": scores, "finish_reason": None}

    def calling(self, answer: Answer, calls: Sequence[Call]) -> list[dict[str, Any]]:
        """Return choices with the last calls of an answer: of each its name, and then its arguments."""
        found: list[dict[str, Any]] = []
        for number, call in enumerate(calls, start=len(answer.calls) - len(calls)):
            named = {"index": number, **_call(call)}
            named["function"] = {"name": call.name, "arguments": ""}
            for part in (named, {"index": number, "function": {"arguments": call.arguments}}):
                delta = {"tool_calls": [part]}
                found.append({"index": answer.index, "delta": delta, "logprobs": None, "finish_reason": None})
        return found

    def closing(self, answer: Answer) -> dict[str, Any]:
        """Return the choice that ends an answer; it has no content, as some clients would drop it."""
        assert answer.completion is not None, "it is finished"
        content: dict[str, Any] = {"delta": {}} if self.kind == "chat" else {"text": ""}
        return {"index": answer.index, **content, "logprobs": None, **self._end(answer, answer.completion)}

    def _end(self, answer: Answer, completion: Completion) -> dict[str, Any]:
        reason = "tool_calls" if answer.calls and not answer.named else "stop"
        return {
            "finish_reason": reason if completion.finish_reason == "stop" else "length",
            "stop_reason": completion.stopped_by,
            "diffusion": {
                "seed": answer.seed,
                "end": completion.finish_reason,
                "forwards": forwards_object(completion),
                "tokens_per_forward": completion.tokens_per_forward,
            },
        }

    # Log-probabilities.

    def _text(self, token: int) -> str:
        return "" if self.pieces is None else self.pieces.text_of(token)

    def _bytes(self, token: int) -> list[int]:
        return [] if self.pieces is None else list(self.pieces.bytes_of(token))

    def chat_logprobs(self, scores: Sequence[TokenLogprob]) -> dict[str, Any]:
        """Return log-probabilities in the form of conversations."""

        def entry(token: int, logprob: float) -> dict[str, Any]:
            return {"token": self._text(token), "logprob": finite(logprob), "bytes": self._bytes(token)}

        content = [
            {**entry(each.token, each.logprob), "top_logprobs": [entry(*pair) for pair in each.top[: self.top]]}
            for each in scores
        ]
        return {"content": content, "refusal": None}

    def text_logprobs(
        self, scores: Sequence[TokenLogprob | int], before: Sequence[int] = (), start: int = 0
    ) -> dict[str, Any]:
        """Return log-probabilities in the form of texts.

        Args:
            scores: of tokens; the id alone for one that has none.
            before: tokens before them in the same text.
            start: of the first of all in the text that is returned, characters.
        """
        tokens = [each if isinstance(each, int) else each.token for each in scores]
        offsets = [0] * len(tokens)
        if self.pieces is not None:
            offsets = self.pieces.offsets([*before, *tokens])[len(before) :]
        return {
            "tokens": [self._text(token) for token in tokens],
            "token_logprobs": [None if isinstance(each, int) else finite(each.logprob) for each in scores],
            "top_logprobs": [None if isinstance(each, int) else self._top(each) for each in scores],
            "text_offset": [start + each for each in offsets],
        }

    def _top(self, score: TokenLogprob) -> dict[str, float]:
        """Return the best tokens and, where it is none of them, the token itself."""
        pairs = [*score.top[: self.top], (score.token, score.logprob)]
        found: dict[str, float] = {}
        for token, logprob in pairs:
            found.setdefault(self._text(token), finite(logprob))
        return found


def _call(call: Call) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Echo:
    """A prompt that is repeated before its answer.

    Attributes:
        text: of the prompt.
        logprobs: of its tokens, if asked for; the id alone of one that has none.
    """

    text: str
    logprobs: tuple[TokenLogprob | int, ...] = ()


def finite(logprob: float) -> float:
    """Return a log-probability that JSON can hold."""
    return max(logprob, LEAST_LOGPROB) if math.isfinite(logprob) else LEAST_LOGPROB


def forwards_object(completion: Completion) -> dict[str, int]:
    """Return the forwards of an answer by kind."""
    forwards = completion.forwards
    return {"prefill": forwards.prefill, "denoise": forwards.denoise, "commit": forwards.commit}


def usage_object(usage: Usage) -> dict[str, Any]:
    """Return a usage: the fields that clients know, and ours under `diffusion`."""
    forwards = usage.forwards
    spent = forwards.denoise + forwards.commit
    own: dict[str, Any] = {
        "forwards": {"prefill": forwards.prefill, "denoise": forwards.denoise, "commit": forwards.commit},
        "tokens_per_forward": usage.counted / spent if spent else 0.0,
    }
    if usage.drafts is not None:
        own |= {
            "drafted_tokens": usage.drafts.drafted,
            "accepted_tokens": usage.drafts.accepted,
            "cycles": usage.drafts.cycles,
        }
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.reused},
        "diffusion": own,
    }
