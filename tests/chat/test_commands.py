"""Commands: what each does, and that a mistyped one is neither said nor obeyed."""

from __future__ import annotations

from pathlib import Path

import pytest

from difflm.chat.commands import COMMANDS, HELP, answer
from difflm.errors import RequestError
from tests.chat.fakes import REPLAYED, VIEWS, Scripted, session


def test_lines_are_said_and_commands_obeyed(tmp_path: Path) -> None:
    talk = session()
    assert answer(talk, "one", VIEWS) == "1 tokens"
    assert answer(talk, " /retry ", VIEWS) == "1 tokens"
    assert answer(talk, "/set seed 5", VIEWS) == "seed 5"
    assert answer(talk, f"/save {tmp_path / 'a b.jsonl'}", VIEWS) == f"saved 2 messages to {tmp_path / 'a b.jsonl'}"
    assert answer(talk, "/undo", VIEWS) == "forgot: one"
    assert answer(talk, f"/load {tmp_path / 'a b.jsonl'}", VIEWS) == f"loaded 2 messages from {tmp_path / 'a b.jsonl'}"
    assert answer(talk, "/system be brief", VIEWS) == "a new conversation"
    assert talk.messages == [{"role": "system", "content": "be brief"}]
    assert answer(talk, "/clear", VIEWS) == "forgot all of it"
    assert answer(talk, "   \n", VIEWS) == ""
    assert answer(talk, "/exit", VIEWS) is None
    assert answer(talk, "/quit", VIEWS) is None


def test_questions_that_suit_the_model_are_asked_in_turn() -> None:
    backend = Scripted()
    talk = session(backend)
    with pytest.raises(RequestError, match=r"^/try: no questions are known that suit this model; type one$"):
        answer(talk, "/try", VIEWS)
    talk.questions = ("one?", "two?")
    REPLAYED.clear()
    assert [answer(talk, "/try", VIEWS) for _ in range(3)] == ["1 tokens"] * 3
    assert [each[-1]["content"] for each in backend.asked] == ["one?", "two?", "one?"] == REPLAYED


def test_help_names_every_command() -> None:
    assert answer(session(), "/help", VIEWS) == HELP
    assert all(command in HELP for command in COMMANDS)


def test_messages_keep_their_space_and_may_begin_with_a_slash() -> None:
    backend = Scripted()
    talk = session(backend)
    answer(talk, "  def f():\n    pass", VIEWS)
    answer(talk, "//etc/hosts?", VIEWS)
    assert [each[-1]["content"] for each in backend.asked] == ["  def f():\n    pass", "/etc/hosts?"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/sett threshold 1", r"^/sett: no such command; did you mean /set\?$"),
        ("/absent", "^/absent: no such command; /help lists them$"),
        ("/save", "^/save: name a file$"),
        ("/load", "^/load: name a file$"),
        ("/retry", "nothing has been said yet"),
        ("/trace", "^/trace: nothing has been said yet$"),
        ("/trace twice", "^/trace: 'twice' is not known; give nothing, or replay$"),
    ],
)
def test_commands_that_cannot_be_served_are_refused(line: str, message: str) -> None:
    talk = session()
    with pytest.raises(RequestError, match=message):
        answer(talk, line, VIEWS)
    assert talk.messages == []


def test_the_trace_is_of_the_last_answer() -> None:
    talk = session()
    answer(talk, "one", VIEWS)
    answer(talk, "two", VIEWS)
    assert answer(talk, "/trace", VIEWS) == "trace of\nanswer 2"
    REPLAYED.clear()
    assert answer(talk, "/trace replay", VIEWS) == ""
    assert REPLAYED == ["answer 2"]
    answer(talk, "/undo", VIEWS)
    with pytest.raises(RequestError, match="how this answer was decoded is not known here"):
        answer(talk, "/trace", VIEWS)


def test_a_server_may_not_tell_how_it_decodes() -> None:
    talk = session(Scripted(traced=False))
    answer(talk, "one", VIEWS)
    with pytest.raises(RequestError, match="how this answer was decoded is not known here"):
        answer(talk, "/trace", VIEWS)
