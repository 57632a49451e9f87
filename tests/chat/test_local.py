"""A model as backend: prompts of the chat template, and Ctrl-C between two forwards."""

from __future__ import annotations

import signal
from collections.abc import Generator

import pytest

from difflm.chat.local import LocalBackend, between_events
from difflm.chat.session import Asked, Session
from difflm.chat.settings import Settings
from difflm.checkpoints.loading import LoadedModel
from difflm.decode.events import Committed, Completion, Event
from difflm.errors import RequestError
from tests.chat.fakes import shown


def test_the_whole_conversation_is_the_prompt(loaded: LoadedModel) -> None:
    talk = Session(LocalBackend(loaded), shown, Settings({"max_new_tokens": 4}))
    talk.say("in")
    talk.say("the")
    assert talk.last is not None
    assert list(talk.last.prompt) == loaded.encode_chat(talk.messages[:3])


def test_without_a_chat_template_each_message_is_a_prompt(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaded.require_tokenizer(), "chat_template", None)
    talk = Session(LocalBackend(loaded), shown, Settings({"max_new_tokens": 4}))
    for text in ("in", "the"):
        talk.say(text)
        assert talk.last is not None
        assert list(talk.last.prompt) == loaded.encode(text)
    with pytest.raises(RequestError, match="message: it is empty; write something"):
        talk.say("")


def test_an_answer_that_is_given_up_leaves_the_engine(loaded: LoadedModel) -> None:
    backend = LocalBackend(loaded)

    def some(asked: Asked) -> Completion:
        next(asked.events)
        signal.raise_signal(signal.SIGINT)
        next(asked.events)
        raise AssertionError("it goes on")

    talk = Session(backend, some, Settings({"max_new_tokens": 40, "ignore_eos": True}))
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        talk.say("in the")
    assert signal.getsignal(signal.SIGINT) is before
    assert talk.messages == []
    talk.show = shown
    expected = Session(LocalBackend(loaded), shown, talk.settings).say("in the")
    assert talk.say("in the").tokens == expected.tokens


def test_a_second_interruption_does_not_wait() -> None:
    closed = []

    def events() -> Generator[Event, None, None]:
        try:
            signal.raise_signal(signal.SIGINT)
            yield Committed(request_id=0, block=0, tokens=(1,))
            raise AssertionError("it goes on")
        finally:
            closed.append(True)

    with pytest.raises(KeyboardInterrupt) as caught:
        next(between_events(events()))
    assert closed == [True], f"not only when nothing holds {caught} any more"

    def twice() -> Generator[Event, None, None]:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("it goes on")
        yield

    with pytest.raises(KeyboardInterrupt):
        next(between_events(twice()))
