"""Answers of a model in this process."""

from __future__ import annotations

import signal
import threading
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any

from difflm.chat.session import Asked, Message
from difflm.chat.settings import Settings
from difflm.decode.engine import Engine
from difflm.decode.events import Event
from difflm.decode.recorder import recorder_of
from difflm.errors import RequestError

if TYPE_CHECKING:
    from difflm.checkpoints.loading import LoadedModel


class LocalBackend:
    """A model; what a conversation begins with is read once.

    Args:
        loaded: the model.

    Raises:
        CheckpointError: it has no tokenizer.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self.templated = bool(loaded.require_tokenizer().chat_template)
        self.loaded, self.engine = loaded, Engine(loaded, prefix_caching=True)

    @property
    def unset(self) -> None:
        """Our own defaults hold."""
        return None

    def ask(self, messages: Sequence[Message], settings: Settings) -> Asked:
        """Return an answer that is about to come; see `Backend`. Without a chat template the last message is a prompt.

        Raises:
            RequestError: the conversation no longer fits into the model's context, or settings that do not fit it.
        """
        params, text = settings.params(), messages[-1]["content"]
        if not text:
            raise RequestError("message: it is empty; write something")
        prompt = self.loaded.encode_chat(messages) if self.templated else self.loaded.encode(text)
        recorder = recorder_of(self.loaded, prompt, params)
        events = self.engine.stream(prompt, params)

        def watched() -> Generator[Event, None, None]:
            yield from recorder.watching(between_events(events))

        return Asked(
            events=watched(),
            decode=lambda tokens: self.loaded.decode(tokens),
            decode_all=lambda tokens: self.loaded.decode(tokens, skip_special_tokens=False),
            step_map=lambda: recorder.map,
        )


def between_events(events: Generator[Event, None, None]) -> Generator[Event, None, None]:
    """Yield events; Ctrl-C takes effect between two of them, so that no forward is torn, and then they are closed.

    A second one takes effect at once.

    Args:
        events: of a request.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed.
    """
    pressed = threading.Event()

    def note(number: int, frame: Any) -> None:
        if pressed.is_set():
            raise KeyboardInterrupt
        pressed.set()

    mine = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, note) if mine else None
    try:
        for event in events:
            if pressed.is_set():
                raise KeyboardInterrupt
            yield event
    finally:
        if mine:
            signal.signal(signal.SIGINT, before or signal.default_int_handler)
        events.close()
