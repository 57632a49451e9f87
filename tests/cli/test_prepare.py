"""`difflm prepare`, and training on what it wrote."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from difflm.chat.local import LocalBackend
from difflm.chat.session import Asked, Session
from difflm.checkpoints.convert import convert
from difflm.checkpoints.loading import load_model
from difflm.cli.main import run
from difflm.decode.events import Completion, Forwards
from tests.standins import write_parent, write_texts


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli-prepare")
    convert(write_parent(folder / "parent"), folder / "model", block_size=4)
    return folder / "model"


def test_it_prints_the_format_the_table_and_trains(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_texts(tmp_path / "texts.jsonl")
    output = tmp_path / "prepared"
    arguments = ["prepare", str(path), "--model", str(model), "--output", str(output), "--validation-fraction", "0.1"]
    assert run([*arguments, "--row-length", "64", "--show", "1"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("legend: ")
    assert f"format: {path}: jsonl (the first line is an object)\n" in printed
    assert "near duplicates (>= 0.8)" in printed
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        json.dumps(
            {
                "data": {"paths": [str(output)], "row_length": 64},
                "curriculum": [{"block_size": 4, "tokens": 300}],
                "validation": {"rows": 2, "block_sizes": [4]},
                "threads": 1,
            }
        )
    )
    assert run(["train", str(recipe), "--model", str(model), "--output", str(tmp_path / "run")]) == 0
    printed = capsys.readouterr()
    assert f"{output}: prepared from {path} (text)" in printed.out + printed.err


def test_show_alone_writes_nothing(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"prompt": "ab", "completion": "cd"}\n')
    arguments = ["prepare", str(path), "--model", str(model), "--show", "1", "--row-length", "16", "--mask-rate", "1"]
    assert run([*arguments, "--block-size", "8"]) == 0
    printed = capsys.readouterr().out
    assert "  {a|b}|[c|d]|[<EOS>]|[<fill>|<fill>|<fill>]|\n" in printed
    assert sorted(file.name for file in tmp_path.iterdir()) == ["pairs.jsonl"]


def test_weights_belong_to_paths_in_order(model: Path, tmp_path: Path) -> None:
    paths = [write_texts(tmp_path / f"{name}.jsonl", documents=4) for name in "ab"]
    arguments = ["prepare", *map(str, paths), "--model", str(model), "--output", str(tmp_path / "p")]
    assert run([*arguments, "--weight", "0.25", "--weight", "0.75"]) == 0
    manifest = json.loads((tmp_path / "p" / "manifest.json").read_text())
    assert [(source["path"], source["weight"]) for source in manifest["sources"]] == [
        (str(paths[0]), 0.25),
        (str(paths[1]), 0.75),
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "--output: missing; name the folder to write, or give --show N"),
        (["--output", "p", "--weight", "1", "--weight", "2"], "weights: 2 weights for 1 paths"),
        (["--output", "p", "--format", "json"], "a.jsonl:1: not a JSON array"),
        (["--output", "p", "--model", "absent"], "absent: no such file or folder"),
        (["--show", "1", "--mask-rate", "2"], "mask_rate: 2.0 is out of range"),
    ],
)
def test_mistakes_are_one_line(
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_texts(tmp_path / "a.jsonl", documents=3)
    assert run(["prepare", "a.jsonl", "--model", str(model), *options]) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert message in printed
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.jsonl"]


TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% if m.role == 'assistant' %}<|endoftext|>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


def test_a_saved_chat_is_data(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What /save writes is shown, prepared and trained on; the template that comes with the model is asked."""
    chatting = tmp_path / "model"
    shutil.copytree(model, chatting)
    facts = json.loads((chatting / "tokenizer_config.json").read_text()) | {"chat_template": TEMPLATE}
    (chatting / "tokenizer_config.json").write_text(json.dumps(facts))
    (chatting / "chat_template.jinja").unlink(missing_ok=True)

    def said(asked: Asked) -> Completion:
        asked.events.close()
        return Completion(tokens=[], text="ab", forwards=Forwards(), finish_reason="stop", num_tokens=0, seconds=0.0)

    talk = Session(LocalBackend(load_model(chatting)), said)
    talk.say("q")
    talk.say("r")
    talk.save(tmp_path / "talk.jsonl")
    common = ["prepare", str(tmp_path / "talk.jsonl"), "--model", str(chatting), "--row-length", "64"]
    assert run([*common, "--show", "1", "--mask-rate", "0", "--records", "messages"]) == 0
    printed = capsys.readouterr().out
    assert "talk.jsonl: jsonl of messages (the first line is an object)\n" in printed
    assert "  {<|u|s|e|r|>|q|<|a|s|s|i|s|t|a|n|t|>}|a|b|<EOS>|<fill>|<fill>|<fill>|\n" in printed
    assert run([*common, "--output", str(tmp_path / "prepared"), "--near-threshold", "0"]) == 0
    printed = capsys.readouterr().out
    assert f"documents: {tmp_path / 'talk.jsonl'}: messages\n" in printed
    tree = {
        "data": {"paths": [str(tmp_path / "prepared")], "row_length": 64},
        "curriculum": [{"block_size": 4, "tokens": 100}],
        "threads": 1,
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(tree))
    arguments = ["train", str(tmp_path / "recipe.yaml"), "--model", str(chatting), "--output", str(tmp_path / "run")]
    assert run(arguments) == 0
    printed = capsys.readouterr()
    assert "2 documents, 68 tokens (" in printed.out + printed.err
