"""`difflm chat`: a session at a terminal or behind a pipe, over a model or a server; nothing but the user ends it."""

from __future__ import annotations

import builtins
import io
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import difflm
from difflm.cli.main import run
from tests.checkpoints import templates
from tests.drafters import sure_drafters
from tests.serving.servers import Running, serving
from tests.standins import write_parent

__all__ = ["sure_drafters"]

FOUR = ["--max-new-tokens", "4", "--ignore-eos"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chat")
    write_parent(folder / "parent")
    assert run(["convert", str(folder / "parent"), str(folder / "model"), "--block-size", "4"]) == 0
    return folder / "model"


@pytest.fixture(scope="module")
def server(model: Path) -> Iterator[Running]:
    with serving(difflm.load_model(model)) as running:
        yield running


class Piped(io.StringIO):
    """Standard input that is no terminal."""


def piped(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    monkeypatch.setattr(sys, "stdin", Piped("".join(f"{line}\n" for line in lines)))


def with_template(model: Path, folder: Path, template: str | None) -> Path:
    """Return a copy of a model with another chat template, or none."""
    shutil.copytree(model, folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    path = folder / "tokenizer_config.json"
    facts = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**facts, "chat_template": template}), encoding="utf-8")
    return folder


def test_a_session_outlives_errors_and_interruptions(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines: Iterator[str | BaseException] = iter(
        ["/absent", KeyboardInterrupt(), "x" * 600, "hello", "/save /absent/folder/file", "/sett", EOFError()]
    )

    def typed(prompt: str) -> str:
        line = next(lines)
        if isinstance(line, BaseException):
            raise line
        return line

    monkeypatch.setattr(builtins, "input", typed)
    assert run(["chat", str(model), *FOUR]) == 0
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) >= 1, "one answer"
    for part in ("no such command", "stopped", "context", "4 tokens in", "No such file", "did you mean /set?"):
        assert part in printed.err, part


def test_piped_input_is_answered_alike_by_a_model_and_by_a_server(
    model: Path,
    server: Running,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = []
    for number, where in enumerate(([str(model)], ["--server", server.address])):
        path = tmp_path / f"{number}.jsonl"
        script = (
            "/set threshold 0.5",
            "hello \\",
            "you",
            '"""',
            "a",
            "b",
            '"""',
            "/trace",
            f"/save {path}",
            "/set seed 4",
        )
        for show in ("--show", "--no-show"):
            piped(monkeypatch, *script, "/exit", "not said")
            assert run(["chat", *where, "--system", "be brief", "--block-size", "2", show, *FOUR]) == 0
            found.append(capsys.readouterr())
        first, second = path.read_text(encoding="utf-8").splitlines()
        assert first == second
    assert len({each.out for each in found}) == 1
    lines = [json.loads((tmp_path / f"{number}.jsonl").read_text(encoding="utf-8").split("\n")[0]) for number in (0, 1)]
    assert lines[0] == lines[1]
    assert [each["content"] for each in lines[0]["messages"] if each["role"] != "assistant"] == [
        "be brief",
        "hello \nyou",
        "a\nb",
    ]
    traces = [each.err[each.err.index("forward of the block") :].splitlines()[1:10] for each in found]
    assert [line for line in traces[0] if line.startswith(" ")] == [line for line in traces[2] if line.startswith(" ")]
    for each in found:
        assert "> " not in each.out, "nothing is written for a terminal"
        assert each.err.count("4 tokens in ") == 2
        assert "threshold 0.5" in each.err
    assert "tiny at http://127.0.0.1:" in found[2].err


def test_what_is_saved_is_training_data(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "talk.jsonl"
    piped(monkeypatch, "one", "two", f"/save {path}", "/clear", f"/load {path}", "three", f"/save {path}")
    assert run(["chat", str(model), *FOUR]) == 0
    learning = with_template(model, tmp_path / "model", templates.CHATML)
    arguments = ["prepare", str(path), "--model", str(learning), "--output", str(tmp_path / "data")]
    assert run(arguments) == 0


def test_a_drafter_says_how_it_is_decoded_and_what_was_accepted(
    sure_drafters: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    piped(monkeypatch, "hello", "again", "/set decoding next_token", "more")
    assert run(["chat", str(sure_drafters / "drafter"), "--max-new-tokens", "12", "--no-show"]) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{'a' * 12}\n" * 3
    assert printed.err.count("decoding: verified, as the model's adapter drafts; the text is that of the base") == 1
    assert printed.err.count("drafts: 9 of 9 accepted in 2 cycles of 6.00 tokens") == 2


def test_a_server_that_drafts_tells_what_was_accepted(
    sure_drafters: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(difflm.load_model(sure_drafters / "drafter")) as running:
        piped(monkeypatch, "hello", "/trace")
        assert run(["chat", "--server", running.address, "--max-new-tokens", "12"]) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{'a' * 12}\n"
    assert "drafts: 9 of 9 accepted in 2 cycles, ended by length" in printed.err
    assert "9 of 9 drafts accepted in 2 cycles" in printed.err


def test_without_a_chat_template_each_line_is_a_prompt(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    piped(monkeypatch, "one")
    assert run(["chat", str(with_template(model, tmp_path / "bare", None)), *FOUR]) == 0
    assert "no chat template: each line is a prompt of its own" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--server", "127.0.0.1:1", "--device", "cpu"], "--device: a server runs the model itself"),
        (["--server", "127.0.0.1:1", "--threads", "1"], "--threads: a server runs the model itself"),
        (["--server", "ftp://x"], "--server: 'ftp://x' is no address"),
        (["--server", "127.0.0.1:1", "--n", "2"], "--n: it means nothing in a conversation; leave it out"),
        (["--server", "127.0.0.1:1", "--threshold", "-1"], "threshold"),
    ],
    ids=str,
)
def test_what_cannot_be_used_is_refused(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["chat", *arguments]) == 2
    assert message in capsys.readouterr().err
