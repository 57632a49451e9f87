"""A backend that answers from a list, and what belongs to it."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

from difflm.chat.commands import Views
from difflm.chat.session import Asked, Message, Session
from difflm.chat.settings import Settings
from difflm.decode.events import Committed, Completion, Event, Finished, Forwards
from difflm.decode.recorder import StepMap


class Scripted:
    """Answers with "answer N", or raises what it is told to.

    Attributes:
        asked: conversations so far.
        seeds: with which they were answered.
        fails: raised instead of the next answers.
    """

    def __init__(self, *, unset: str | None = None, traced: bool = True) -> None:
        self.unset, self.traced = unset, traced
        self.asked: list[list[Message]] = []
        self.seeds: list[int] = []
        self.fails: BaseException | None = None

    def ask(self, messages: Sequence[Message], settings: Settings) -> Asked:
        self.asked.append(list(messages))
        self.seeds.append(settings.params().seed)
        text = f"answer {len(self.asked)}"
        events: list[Event] = [
            Committed(request_id=0, block=0, tokens=(1,)),
            Finished(
                request_id=0,
                completion=Completion(
                    tokens=[1], text=text, forwards=Forwards(denoise=1), finish_reason="stop", num_tokens=1, seconds=1.0
                ),
            ),
        ]

        def told() -> Generator[Event, None, None]:
            for event in events:
                if self.fails is not None:
                    raise self.fails
                yield event

        step_map = StepMap(
            model=text, policy="", seed=0, block_size=1, mask_id=None, prompt=(), events=tuple(events), pieces={}
        )
        return Asked(events=told(), decode=str, decode_all=str, step_map=lambda: step_map if self.traced else None)


def shown(asked: Asked) -> Completion:
    """Take the events of an answer."""
    *_, last = asked.events
    assert isinstance(last, Finished)
    return last.completion


def session(backend: Any = None, **settings: Any) -> Session:
    """Return a session over a scripted backend."""
    return Session(backend or Scripted(), shown, Settings(settings))


REPLAYED: list[str] = []
VIEWS = Views(
    cost=lambda completion: f"{completion.num_tokens} tokens",
    trace=lambda step_map: ["trace of", step_map.model],
    replay=lambda step_map: REPLAYED.append(step_map.model),
    ask=REPLAYED.append,
)
