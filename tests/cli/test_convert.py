"""`difflm convert`: every option reaches the checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from difflm.checkpoints.loading import load_model
from difflm.checkpoints.resume import Stage
from difflm.cli.main import run
from tests.standins import write_parent


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_parent(tmp_path_factory.mktemp("convert") / "parent")


def test_without_options_the_checkpoint_is_the_papers(
    parent: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["convert", str(parent), str(tmp_path / "out")]) == 0
    config = load_model(tmp_path / "out").config
    assert (config.block_size, config.mask_token_id) == (32, 257)
    assert not config.parametrisation.logit_shift
    assert config.parametrisation.clean_attention == "block"
    assert config.parametrisation.noisy_attention == "bidirectional"
    assert capsys.readouterr().out == f"{tmp_path / 'out'}: llama, mask token <|mask|> id 257 (new embedding row)\n"


def test_every_option_is_recorded(parent: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["--block-size", "8", "--logit-shift", "--clean-attention", "causal", "--noisy-attention", "causal"]
    words += ["--dtype", "bfloat16", "--licence", "MIT", "--recipe", "laptop-wsd"]
    assert run(["convert", str(parent), str(out), *words]) == 0
    raw = json.loads((out / "config.json").read_text())
    assert (raw["block_size"], raw["logit_shift"]) == (8, True)
    assert (raw["clean_attention"], raw["noisy_attention"]) == ("causal", "causal")
    assert (raw["difflm"]["license"], raw["difflm"]["recipe"]) == ("MIT", "laptop-wsd")
    header = (out / "model.safetensors").read_bytes()[:200]
    assert b'"BF16"' in header


def test_an_interrupted_conversion_goes_on_and_says_so(
    parent: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, whole = tmp_path / "out", tmp_path / "whole"
    assert run(["convert", str(parent), str(whole)]) == 0
    publish = Stage.publish

    def interrupt(stage: Stage) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Stage, "publish", interrupt)
    assert run(["convert", str(parent), str(out)]) == 130
    kept = f"finished weight files kept in {tmp_path / '.out.partial'}: 1, the same command continues"
    assert capsys.readouterr().err.split("\n") == [kept, "", "difflm: interrupted", ""]
    monkeypatch.setattr(Stage, "publish", publish)
    assert run(["convert", str(parent), str(out), "--block-size", "8"]) == 2
    error = capsys.readouterr().err
    assert "block_size was 32, is 8; repeat what it was, or start anew with --fresh" in error
    assert run(["convert", str(parent), str(out)]) == 0
    assert capsys.readouterr().err.splitlines() == [
        f"{out}: continuing an interrupted attempt, 1 of 1 weight files are finished and intact"
    ]
    assert {path.name: path.read_bytes() for path in out.iterdir()} == {
        path.name: path.read_bytes() for path in whole.iterdir()
    }


@pytest.mark.parametrize("command", ["convert", "export", "merge"])
def test_fresh_throws_an_interrupted_attempt_away(
    command: str, parent: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "model.safetensors").touch()
    words = [command, str(parent), *(["--output"] if command == "merge" else []), str(out)]
    assert run(words) == 2
    assert "its manifest .difflm-progress.json is missing; start anew with --fresh" in capsys.readouterr().err
    assert run([*words, "--fresh"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
