"""The command line as a whole: fast help, documented options, one-line errors with exit code 2."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from difflm.cli import main
from difflm.cli.main import cli, run
from difflm.errors import ConfigError
from tests.standins import write_parent, write_texts

ROOT = Path(__file__).parents[2]
COMMANDS = ["convert", "export", "train", "recipes", "recipes show", "merge", "generate", "chat", "bench decode"]
HEAVY = ["torch", "transformers", "numpy", "pydantic", "yaml", "rich", "matplotlib", "safetensors"]


def test_help_of_everything_imports_nothing_heavy() -> None:
    script = (
        "import sys, contextlib, io\n"
        "from difflm.cli.main import run\n"
        "for words in [[]] + [each.split() for each in sys.argv[1:]]:\n"
        "    with contextlib.redirect_stdout(io.StringIO()) as out:\n"
        "        assert run([*words, '--help']) == 0\n"
        "    assert 'Usage: difflm' in out.getvalue()\n"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *COMMANDS, "bench"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_importing_the_package_imports_nothing_heavy_and_its_names_exist() -> None:
    script = (
        "import sys, difflm\n"
        f"assert not [name for name in {HEAVY} if name in sys.modules]\n"
        "assert all(difflm.__getattr__(name) for name in difflm.__all__ if not name.startswith('_'))\n"
        "assert 'torch' in sys.modules and not hasattr(difflm, 'absent')"
    )
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_says_what_it_is_and_its_default(name: str) -> None:
    command: click.Command = cli
    for word in name.split():
        assert isinstance(command, click.Group)
        found = command.get_command(click.Context(command), word)
        assert found is not None
        command = found
    context = click.Context(command)
    for option in command.params:
        if not isinstance(option, click.Option):
            continue
        record = option.get_help_record(context)
        assert option.help, option.name
        assert record is not None
        assert "default:" in record[1] or option.required, f"{command.name} {option.opts}: {record[1]}"
        if isinstance(option.type, click.types.IntParamType | click.IntRange):
            units = ("tokens", "threads", "checkpoints", "seconds", "items", "forwards", "prompts", "rows")
            number = option.name in ("seed", "mask_token_id", "stop_token_ids")
            assert number or any(unit in option.help.lower() for unit in units), f"{option.opts}: unit?"


def test_threads_wait_passively_unless_told_otherwise() -> None:
    script = (
        "import os, sys; sys.argv = ['difflm', '--version']\n"
        "from difflm.__main__ import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print(os.environ['OMP_WAIT_POLICY'], os.environ['GOMP_SPINCOUNT'])"
    )
    plain = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    for extra, expected in (({}, "passive 0"), ({"OMP_WAIT_POLICY": "active"}, "active 0")):
        done = subprocess.run(
            [sys.executable, "-c", script], cwd=ROOT, env=plain | extra, capture_output=True, text=True, check=True
        )
        assert done.stdout.splitlines()[-1] == expected


def test_python_dash_m_runs_the_source_tree(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "difflm", "generate", str(tmp_path / "absent"), "--prompt", "x"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"difflm: {tmp_path / 'absent'}: ")


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ConfigError("train.seed: 'x'\nis wrong"), 2, "difflm: train.seed: 'x' is wrong\n"),
        (PermissionError(13, "Permission denied", "/some/file"), 2, "difflm: /some/file: Permission denied\n"),
        (OSError(28, "No space left on device"), 2, "difflm: output: No space left on device\n"),
        (KeyboardInterrupt(), 130, "difflm: interrupted\n"),
    ],
)
def test_errors_are_one_line(
    error: BaseException,
    code: int,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setitem(vars(main)["cli"].homes, "fail", (f"{__name__}:FAIL", ""))
    monkeypatch.setattr(sys.modules[__name__], "FAIL", click.Command("fail", callback=fail), raising=False)
    assert run(["fail"]) == code
    assert capsys.readouterr().err.lstrip("\n") == line


def test_defects_of_ours_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise AssertionError("ours")

    monkeypatch.setitem(vars(main)["cli"].homes, "fail", (f"{__name__}:FAIL", ""))
    monkeypatch.setattr(sys.modules[__name__], "FAIL", click.Command("fail", callback=fail), raising=False)
    with pytest.raises(AssertionError, match="ours"):
        run(["fail"])


@pytest.mark.parametrize("words", [["absent"], ["convert"], ["train", "--absent"], ["generate", "m", "--threads", "0"]])
def test_wrong_usage_is_one_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(words) == 2
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1
    assert printed.out == ""


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("workshop")
    write_parent(folder / "parent")
    assert run(["convert", str(folder / "parent"), str(folder / "converted")]) == 0
    write_texts(folder / "text.jsonl")
    (folder / "empty.jsonl").write_text("")
    (folder / "binary.jsonl").write_bytes(b"\x00\xff\xfe\x81")
    (folder / "full").mkdir()
    (folder / "full" / "note").write_text("mine")
    damaged = write_parent(folder / "truncated") / "model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-100])
    config = json.loads((write_parent(folder / "unknown") / "config.json").read_text())
    (folder / "unknown" / "config.json").write_text(json.dumps(config | {"model_type": "mamba"}))
    (write_parent(folder / "mistyped") / "config.json").write_text(json.dumps(config | {"hidden_size": "32"}))
    (write_parent(folder / "unended") / "generation_config.json").write_text('{"eos_token_id": "x"}')
    return folder


TRAIN = ["train", "sft", "--model", "converted", "--output", "new", "data.row_length=64", "--data"]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ([*TRAIN, "empty.jsonl"], "empty.jsonl"),
        ([*TRAIN, "binary.jsonl"], "binary.jsonl"),
        ([*TRAIN, "absent.jsonl"], "absent.jsonl"),
        ([*TRAIN, ""], "--data"),
        ([*TRAIN, "text.jsonl", "data.row_length=100"], "row_length: 100 is not divisible by the block size 32"),
        ([*TRAIN, "text.jsonl", "data.row_length=4096"], "row_length: 4096"),
        ([*TRAIN, "text.jsonl", "--output", "full"], "full"),
        ([*TRAIN, "text.jsonl", "--model", "parent"], "parent"),
        ([*TRAIN, "text.jsonl", "objective.ar_weight=0.5"], "objective.ar_weight: 0.5"),
        ([*TRAIN, "text.jsonl", "optimizer.learning_ratee=1"], "did you mean 'learning_rate'?"),
        (["train", "papper-wsd"], "did you mean 'paper-wsd'?"),
        ([*TRAIN, "text.jsonl", "data=null"], "train.data is None"),
        ([*TRAIN, "text.jsonl", "device=tpu9"], "train.device: 'tpu9'"),
        ([*TRAIN, "text.jsonl", "--output", "text.jsonl"], "text.jsonl is a file"),
        ([*TRAIN, "text.jsonl", "--output", "text.jsonl/run"], "text.jsonl/run cannot be created"),
        (["convert", "absent", "new"], "absent"),
        (["convert", "mistyped", "new"], "mistyped/config.json: hidden_size is '32'"),
        (["convert", "unended", "new"], "unended/generation_config.json: eos_token_id is 'x'"),
        (["convert", "parent", "new", "--block-size", "513"], "block_size is 513"),
        (["convert", "full", "new"], "full"),
        (["convert", "parent", "full"], "full"),
        (["convert", "truncated", "new"], "model.safetensors"),
        (["convert", "unknown", "new"], "mamba"),
        (["convert", "converted", "new"], "mask_token_id"),
        (["convert", "parent", "new", "--mask-token", "<|absent|>"], "<|absent|>"),
        (["convert", "parent", "new", "--block-size", "0"], "block_size"),
        (["generate", "converted", "--prompt", "x" * 600], "600"),
        (["generate", "converted", "--prompt", "x", "--max-new-tokens", "0"], "max_new_tokens: 0"),
        (["generate", "converted", "--prompt", "x", "--device", "tpu9"], "--device"),
        (["generate", "converted", "--prompt", ""], "prompt"),
        (["generate", "converted", "--prompt", "caf\udce9"], "not UTF-8"),
        (["generate", "parent", "--prompt", "x"], "mask"),
        (["merge", "full", "--output", "new"], "config.yaml"),
        (["merge", "converted", "parent", "--output", "new"], "parent"),
        (["merge", "converted", "converted", "--output", "full"], "full"),
    ],
)
def test_bad_input_is_named_in_one_line_and_leaves_nothing_behind(
    words: list[str],
    named: str,
    workshop: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(workshop)
    before = files_below(workshop)
    assert run(words) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("difflm: ")
    assert printed.err.count("\n") == 1
    assert named in printed.err
    assert "Traceback" not in printed.err
    assert files_below(workshop) == before
