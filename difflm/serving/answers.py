"""Events of the engine -> what a client is told of an answer, the same for streams and for whole answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from difflm.decode.events import (
    Committed,
    Completion,
    Denoised,
    DraftCounts,
    Drafted,
    Edited,
    Event,
    Finished,
    Forwards,
    TokenLogprob,
)
from difflm.serving.calls import Call, GrowingCalls, Told
from difflm.serving.texts import GrowingText

if TYPE_CHECKING:
    from difflm.checkpoints.loading import LoadedModel

Provisional = Denoised | Edited | Drafted


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """What an event adds to an answer.

    Attributes:
        index: of the answer.
        text: new text that is certain.
        calls: new calls of functions, whole.
        tokens: new tokens that are final.
        logprobs: of these, if asked for.
        finished: the whole answer, at its end.
        provisional: what may still change, where it was asked for.
        block: number of the block that `tokens` are of, counted from the start of the prompt.
    """

    index: int
    text: str = ""
    calls: tuple[Call, ...] = ()
    tokens: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] | None = None
    finished: Completion | None = None
    provisional: Provisional | None = None
    block: int = 0


@dataclass(slots=True, kw_only=True)
class Answer:
    """An answer as far as it has come.

    Attributes:
        loaded: the model.
        index: of the answer in its request.
        prompt: ids.
        seed: of its draws.
        growing: its text.
        logprobs: of its tokens, if asked for.
        completion: at its end.
        block_size: tokens of a block; 1 left to right.
        forward: denoising forwards so far, where they are told.
        reading: of the calls in its text; None where no function is offered.
        named: whether the request names the function that is called.
    """

    loaded: LoadedModel
    index: int
    prompt: tuple[int, ...]
    seed: int
    growing: GrowingText
    logprobs: list[TokenLogprob] = field(default_factory=list[TokenLogprob])
    completion: Completion | None = None
    block_size: int = 1
    forward: int = 0
    reading: GrowingCalls | None = None
    named: bool = False

    @property
    def tokens(self) -> list[int]:
        """Final tokens so far."""
        return self.growing.tokens

    @property
    def text(self) -> str:
        """Certain text so far, without calls."""
        return self.growing.told if self.reading is None else self.reading.content

    @property
    def calls(self) -> list[Call]:
        """Calls of functions so far."""
        return [] if self.reading is None else self.reading.calls

    def take(self, event: Event) -> Delta:
        """Take in an event and return what it adds."""
        match event:
            case Committed():
                self.logprobs += event.logprobs or ()
                text = self.growing.add(event.tokens)
                told = Told(text) if self.reading is None else self.reading.add(text)
                return Delta(
                    index=self.index,
                    text=told.text,
                    calls=told.calls,
                    tokens=event.tokens,
                    logprobs=event.logprobs,
                    block=event.block,
                )
            case Finished():
                self.completion = event.completion
                text = self.growing.end(self._whole())
                told = Told(text) if self.reading is None else self.reading.end(text)
                return Delta(index=self.index, text=told.text, calls=told.calls, finished=event.completion)
            case _:
                self.forward += isinstance(event, Denoised)
                return Delta(index=self.index, provisional=event)

    def _whole(self) -> str:
        """Return the whole text: the engine's own, where its tokens are those that were told."""
        assert self.completion is not None, "asked for at the end"
        # A policy may return the prompt with the answer.
        if self.completion.text is not None and self.completion.tokens == self.tokens:
            return self.completion.text
        return self.growing.decode(self.tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a request cost.

    Attributes:
        prompt_tokens: of its prompts, each counted once.
        completion_tokens: of its answers, those that are told.
        counted: tokens that rates are counted in (`Completion.num_tokens`).
        reused: prompt tokens that were not read again.
        forwards: of its answers.
        drafts: of its answers; None without.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    counted: int = 0
    reused: int = 0
    forwards: Forwards = field(default_factory=Forwards)
    drafts: DraftCounts | None = None


def usage_of(prompts: Sequence[Sequence[int]], answers: Sequence[Answer]) -> Usage:
    """Return what answers cost so far; forwards count from their end.

    Args:
        prompts: of the request.
        answers: to them.
    """
    done = [each.completion for each in answers if each.completion is not None]
    drafts = [each.drafts for each in done if each.drafts is not None]
    return Usage(
        prompt_tokens=sum(map(len, prompts)),
        completion_tokens=sum(len(each.tokens) for each in answers),
        counted=sum(each.num_tokens for each in done),
        reused=sum(each.reused_tokens for each in done),
        forwards=Forwards(
            prefill=sum(each.forwards.prefill for each in done),
            denoise=sum(each.forwards.denoise for each in done),
            commit=sum(each.forwards.commit for each in done),
        ),
        drafts=sum(drafts, DraftCounts()) if drafts else None,
    )
