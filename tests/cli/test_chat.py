"""`difflm chat`: what is remembered, what the commands do, and that nothing ends the conversation but the user."""

from __future__ import annotations

import builtins
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import difflm
from difflm.cli.chat import Conversation, answer
from difflm.cli.main import run
from difflm.decode.events import Completion, Forwards
from difflm.decode.policies.named import policy
from difflm.decode.request import SamplingParams
from difflm.errors import RequestError
from tests.drafters import sure_drafters
from tests.standins import write_parent

__all__ = ["sure_drafters"]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> difflm.LoadedModel:
    folder = tmp_path_factory.mktemp("chat")
    write_parent(folder / "parent")
    assert run(["convert", str(folder / "parent"), str(folder / "model"), "--block-size", "4"]) == 0
    return difflm.load_model(folder / "model")


@pytest.fixture
def conversation(loaded: difflm.LoadedModel) -> Conversation:
    asked: list[list[int]] = []

    def reply(prompt: list[int], params: SamplingParams) -> Completion:
        asked.append(prompt)
        text = f"answer {len(asked)} of seed {params.seed}"
        return Completion(
            tokens=[], text=text, forwards=Forwards(denoise=1), finish_reason="stop", num_tokens=1, seconds=1.0
        )

    return Conversation(loaded, SamplingParams(), reply)


def said(conversation: Conversation) -> list[str]:
    return [message["content"] for message in conversation.messages]


def test_the_whole_conversation_is_in_the_prompt(loaded: difflm.LoadedModel) -> None:
    prompts = []

    def reply(prompt: list[int], params: SamplingParams) -> Completion:
        prompts.append(loaded.decode(prompt))
        return Completion(
            tokens=[], text="A", forwards=Forwards(denoise=1), finish_reason="stop", num_tokens=0, seconds=1.0
        )

    conversation = Conversation(loaded, SamplingParams(), reply)
    answer(conversation, "/system Be brief.")
    answer(conversation, "one")
    answer(conversation, "two")
    assert prompts[-1] == "<|system|>Be brief.<|user|>one<|assistant|>A<|user|>two<|assistant|>"


def test_undo_forgets_and_retry_asks_again_with_another_seed(conversation: Conversation) -> None:
    answer(conversation, "one")
    answer(conversation, "two")
    answer(conversation, "/retry")
    assert said(conversation) == ["one", "answer 1 of seed 0", "two", "answer 3 of seed 1"]
    assert answer(conversation, "/undo") == "forgot: two"
    answer(conversation, "/undo")
    assert said(conversation) == []
    with pytest.raises(RequestError, match="nothing has been said yet"):
        answer(conversation, "/undo")


def test_an_interrupted_answer_leaves_the_conversation_as_it_was(conversation: Conversation) -> None:
    answer(conversation, "one")

    def interrupted(prompt: list[int], params: SamplingParams) -> Completion:
        raise KeyboardInterrupt

    conversation.reply = interrupted
    for line in ("two", "/retry"):
        with pytest.raises(KeyboardInterrupt):
            answer(conversation, line)
        assert said(conversation) == ["one", "answer 1 of seed 0"]


def test_set_changes_and_checks_parameters(conversation: Conversation) -> None:
    assert answer(conversation, "/set threshold 0.9") == "threshold 0.9"
    answer(conversation, "/set block_size 8")
    answer(conversation, "/set decoding next_token")
    assert conversation.params == SamplingParams(threshold=0.9, block_size=8, decoding="next_token")
    for line in ("/set temprature 1", "/set max_new_tokens none", "/set min_accept 0"):
        with pytest.raises(RequestError):
            answer(conversation, line)
    assert "threshold 0.9" in str(answer(conversation, "/set"))


def test_set_takes_a_policy_by_its_line(conversation: Conversation) -> None:
    answer(conversation, "/set policy hf21:threshold=0.7")
    assert conversation.params == SamplingParams(policy=policy("hf21", threshold=0.7))
    answer(conversation, "/set policy null")
    assert conversation.params == SamplingParams()


def test_save_appends_a_line(conversation: Conversation, tmp_path: Path) -> None:
    answer(conversation, "one")
    for _ in range(2):
        answer(conversation, f"/save {tmp_path / 'talk.jsonl'}")
    lines = (tmp_path / "talk.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"messages": conversation.messages}] * 2


@pytest.mark.parametrize("line", ["/absent", "/save", "/retry"])
def test_commands_that_cannot_be_served_are_refused(conversation: Conversation, line: str) -> None:
    with pytest.raises(RequestError):
        answer(conversation, line)
    assert said(conversation) == []


def test_blank_lines_say_nothing_and_quit_leaves(conversation: Conversation) -> None:
    assert answer(conversation, "   ") == ""
    assert "/retry" in str(answer(conversation, "/help"))
    assert answer(conversation, "/quit") is None


def test_a_session_outlives_errors_and_interruptions(
    loaded: difflm.LoadedModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines: Iterator[str | BaseException] = iter(
        ["/absent", KeyboardInterrupt(), "x" * 600, "hello", "/save /absent/folder/file", EOFError()]
    )

    def typed(prompt: str) -> str:
        line = next(lines)
        if isinstance(line, BaseException):
            raise line
        return line

    monkeypatch.setattr(builtins, "input", typed)
    assert run(["chat", str(loaded.path), "--max-new-tokens", "4", "--ignore-eos"]) == 0
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) >= 1, "one answer"
    for part in ("no such command", "stopped", "context", "4 tokens in", "No such file"):
        assert part in printed.err, part


def test_a_drafter_says_how_it_is_decoded_and_what_was_accepted(
    sure_drafters: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = iter(["hello", "again", "/set decoding next_token", "more"])

    def lines(prompt: str) -> str:
        if (line := next(typed, None)) is None:
            raise EOFError
        return line

    monkeypatch.setattr(builtins, "input", lines)
    assert run(["chat", str(sure_drafters / "drafter"), "--max-new-tokens", "12", "--no-show"]) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{'a' * 12}\n" * 3
    assert printed.err.count("decoding: verified, as the model's adapter drafts; the text is that of the base") == 1
    assert printed.err.count("drafts: 9 of 9 accepted in 2 cycles of 6.00 tokens") == 2


def test_without_a_chat_template_each_line_is_a_prompt(
    loaded: difflm.LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loaded.require_tokenizer(), "chat_template", None)
    prompts = []

    def reply(prompt: list[int], params: SamplingParams) -> Completion:
        prompts.append(loaded.decode(prompt))
        return Completion(
            tokens=[], text="A", forwards=Forwards(denoise=1), finish_reason="stop", num_tokens=0, seconds=1.0
        )

    conversation = Conversation(loaded, SamplingParams(), reply)
    answer(conversation, "one")
    answer(conversation, "two")
    assert prompts == ["one", "two"]
