"""Sessions: what is remembered after answers, failures, and everything that can be done to a conversation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from difflm.errors import DataError, RequestError
from tests.chat.fakes import Scripted, session

SYSTEM = {"role": "system", "content": "be brief"}


def contents(messages: list[dict[str, str]]) -> list[str]:
    return [message["content"] for message in messages]


def test_the_whole_conversation_is_asked() -> None:
    backend = Scripted()
    talk = session(backend)
    talk.system("be brief")
    talk.say("one")
    talk.say("two")
    assert contents(backend.asked[1]) == ["be brief", "one", "answer 1", "two"]
    assert [message["role"] for message in talk.messages] == ["system", "user", "assistant", "user", "assistant"]


def test_undo_forgets_and_retry_asks_again_with_the_next_seed() -> None:
    backend = Scripted()
    talk = session(backend)
    talk.say("one")
    talk.say("two")
    talk.retry()
    assert contents(talk.messages) == ["one", "answer 1", "two", "answer 3"]
    assert contents(backend.asked[2]) == ["one", "answer 1", "two"]
    assert backend.seeds == [0, 0, 1]
    assert talk.undo() == "two"
    assert talk.undo() == "one"
    assert talk.messages == []
    with pytest.raises(RequestError, match="nothing has been said yet"):
        talk.undo()


def test_the_seed_of_a_server_is_its_own_until_one_is_chosen() -> None:
    backend = Scripted(unset="the server's")
    talk = session(backend)
    talk.say("one")
    talk.retry()
    assert "seed" not in talk.settings.given
    talk.set("seed 9223372036854775807")
    talk.retry()
    assert talk.settings.given["seed"] == 0, "it stays below 2**63"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RequestError("full")])
def test_without_an_answer_all_is_as_it_was(error: BaseException) -> None:
    backend = Scripted()
    talk = session(backend)
    talk.say("one")
    before = (list(talk.messages), talk.settings, talk.last)
    backend.fails = error
    for ask in (lambda: talk.say("two"), talk.retry):
        with pytest.raises(type(error)):
            ask()
        assert (talk.messages, talk.settings, talk.last) == before
    backend.fails = None
    talk.say("three")
    assert contents(talk.messages) == ["one", "answer 1", "three", "answer 4"]


def test_clear_keeps_instructions_and_system_replaces_them() -> None:
    talk = session()
    talk.system("be brief")
    talk.say("one")
    talk.clear()
    assert talk.messages == [SYSTEM]
    assert talk.last is None
    talk.system("")
    assert talk.messages == []


def test_set_changes_one_setting_and_lists_all() -> None:
    talk = session(Scripted(unset="the server's"), temperature=0.5)
    assert talk.set("threshold 0.9") == "threshold 0.9"
    assert talk.set("threshold") == "threshold 0.9"
    assert talk.set("threshold  default ") == "threshold the server's"
    lines = talk.set("").splitlines()
    assert "temperature 0.5" in lines
    assert "seed the server's" in lines
    with pytest.raises(RequestError):
        talk.set("threshold -1")
    assert talk.settings.given == {"temperature": 0.5}


def test_a_conversation_is_saved_and_loaded(tmp_path: Path) -> None:
    talk, path = session(), tmp_path / "talk.jsonl"
    with pytest.raises(RequestError, match="nothing has been answered yet"):
        talk.save(path)
    assert not path.exists()
    talk.system("be brief")
    talk.say("na\u00efve \u2028 \U0001f600\n")
    assert talk.save(path) == f"saved 3 messages to {path}"
    talk.say("more")
    talk.save(path)
    lines = path.read_text(encoding="utf-8").split("\n")
    assert [len(json.loads(line)["messages"]) for line in lines[:-1]] == [3, 5]
    assert lines[-1] == ""
    again = session()
    assert again.load(path) == f"loaded 5 messages from {path}"
    assert again.messages == talk.messages
    again.undo()
    again.say("another")
    assert contents(again.messages)[-2:] == ["another", "answer 1"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no messages"),
        ("{", "is no JSON"),
        ("[1]", "no messages"),
        ('{"messages": []}', "no messages"),
        ('{"messages": [5]}', r"messages\[0\] is no object"),
        ('{"messages": [{"role": "user", "content": [1]}]}', r"messages\[0\] is no object"),
        ('{"messages": [{"role": "user", "content": "a"}]}', "the roles are user; after a system message"),
        ('{"messages": [{"role": "user", "content": "a", "name": "x"}]}', r"messages\[0\] has 'name'"),
        ('{"messages": [{"role": "system", "content": "a"}]}', "the roles are system;"),
    ],
)
def test_what_is_no_conversation_is_not_loaded(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text(text)
    talk = session()
    talk.say("one")
    before = list(talk.messages)
    with pytest.raises(DataError, match=message):
        talk.load(tmp_path / "file")
    assert talk.messages == before
