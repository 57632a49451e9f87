"""Chunks of a server's stream -> events, as the engine itself would tell them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from difflm.decode.events import (
    Committed,
    Completion,
    Denoised,
    DraftCounts,
    Drafted,
    Edited,
    Event,
    Finished,
    FinishReason,
    Forwards,
)
from difflm.decode.recorder import StepMap
from difflm.errors import RequestError


@dataclass(slots=True, kw_only=True)
class Chunks:
    """Takes in the chunks of one answer.

    What is shown and what is remembered differ in what is final: the text is told when no later token can change it,
    and by characters; the tokens, as soon as they are final.

    Attributes:
        model: name of the model and where it is.
        settings: what was asked for, to be read.
        clock: seconds.
        text: so far.
        ended: whether the answer is finished.
    """

    model: str
    settings: str
    clock: Callable[[], float] = time.perf_counter
    text: str = ""
    ended: bool = False
    _pieces: dict[int, str] = field(default_factory=dict[int, str], init=False)
    _parts: list[str] = field(default_factory=list[str], init=False)
    _events: list[Event] = field(default_factory=list[Event], init=False)
    _prompt: int = field(default=0, init=False)
    _block_size: int = field(default=1, init=False)
    _reason: FinishReason = field(default="stop", init=False)
    _stopped_by: int | str | None = field(default=None, init=False)
    _facts: Mapping[str, Any] = field(default_factory=dict[str, Any], init=False)
    _usage: Mapping[str, Any] = field(default_factory=dict[str, Any], init=False)
    _started: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self._started = self.clock()

    def take(self, chunk: Any) -> Iterator[Event]:
        """Yield what a chunk has to show.

        Args:
            chunk: the JSON value of one event of the stream.

        Raises:
            RequestError: it is an error, or no chunk.
        """
        try:
            yield from self._taken(chunk)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, RequestError):
                raise
            raise RequestError(
                f"server: it sent what is no chunk of an answer ({chunk!r:.80}); is it one for chat completions?"
            ) from None

    def _taken(self, chunk: Any) -> Iterator[Event]:
        if error := chunk.get("error"):
            message = error.get("message") if isinstance(error, dict) else error
            raise RequestError(f"server: the answer failed ({' '.join(str(message).split())}); ask again")
        self._usage = chunk.get("usage") or self._usage
        if (told := chunk.get("diffusion")) and told["index"] == 0:
            yield from self._told(told)
        for choice in chunk.get("choices") or ():
            if choice["index"] != 0:
                continue
            if part := (choice.get("delta") or {}).get("content"):
                self.text += part
                self._parts.append(part)
                yield Committed(request_id=0, block=0, tokens=(-len(self._parts),))
            if reason := choice.get("finish_reason"):
                self.ended, self._stopped_by = True, choice.get("stop_reason")
                self._facts = choice.get("diffusion") or {}
                self._reason = self._facts.get("end") or ("length" if reason == "length" else "stop")

    def _told(self, told: Mapping[str, Any]) -> Iterator[Event]:
        """Remember what a forward did, and yield it."""
        if "block_start" in told:
            self._block_size = told["block_stop"] - told["block_start"]
            self._prompt = told["block"] * self._block_size - told["block_start"]
        tokens = tuple(told["tokens"])
        self._pieces.update(zip(tokens, told["texts"], strict=True))
        if told["event"] == "committed":
            self._events.append(Committed(request_id=0, block=told["block"], tokens=tokens))
            yield Committed(request_id=0, block=told["block"], tokens=())  # its text comes when it is certain
            return
        decided: dict[str, Any] = {
            "request_id": 0,
            "positions": self._places(told["positions"]),
            "tokens": tokens,
            "confidences": tuple(told["confidences"]),
        }
        match told["event"]:
            case "denoised":
                left = self._places(told["open_positions"])
                masked = len(left) + len(tokens)
                event = Denoised(block=told["block"], open_positions=left, num_masked=masked, **decided)
            case "edited":
                self._pieces.update(zip(told["before"], told["before_texts"], strict=True))
                event = Edited(block=told["block"], before=tuple(told["before"]), **decided)
            case "drafted":
                event = Drafted(**decided)
            case _:
                return  # of a later version
        self._events.append(event)
        yield event

    def _places(self, positions: Sequence[int]) -> tuple[int, ...]:
        """Return positions counted from the start of the prompt."""
        return tuple(place + self._prompt for place in positions)

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of ids in events that `take` yielded."""
        return "".join(self._parts[-token - 1] if token < 0 else self._pieces[token] for token in tokens)

    def finished(self) -> Finished:
        """Return the end of the answer.

        Raises:
            RequestError: it has not come.
        """
        if not self.ended:
            raise RequestError("server: the connection ended before the answer did; ask again")
        own = self._usage.get("diffusion") or {}
        spent = self._facts.get("forwards") or {}
        forwards = Forwards(**{kind: spent.get(kind, 0) for kind in ("prefill", "denoise", "commit")})
        drafts = None
        if "cycles" in own:
            drafts = DraftCounts(
                cycles=own["cycles"], verified_at=(own["drafted_tokens"],), accepted_at=(own["accepted_tokens"],)
            )
        # The end mark is counted here, as by the engine, and by no server.
        num_tokens = self._usage.get("completion_tokens", 0) + isinstance(self._stopped_by, int)
        completion = Completion(
            tokens=[token for event in self._events if isinstance(event, Committed) for token in event.tokens],
            text=self.text,
            forwards=forwards,
            finish_reason=self._reason,
            num_tokens=num_tokens,
            seconds=self.clock() - self._started,
            stopped_by=self._stopped_by,
            reused_tokens=(self._usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0,
            drafts=drafts,
        )
        return Finished(request_id=0, completion=completion)

    def step_map(self) -> StepMap | None:
        """Return how the answer was decoded, ids of the prompt left out (-1); None where the server did not tell."""
        if not self._events:
            return None
        return StepMap(
            model=self.model,
            policy=self.settings,
            seed=self._facts.get("seed", 0),
            block_size=self._block_size,
            mask_id=None,
            prompt=(-1,) * self._prompt,
            events=(*self._events, self.finished()),
            pieces=self._pieces,
        )
