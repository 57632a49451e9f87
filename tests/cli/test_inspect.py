"""`difflm inspect`: a mask, a row, a key map."""

from __future__ import annotations

from pathlib import Path

import pytest

from difflm.checkpoints.convert import convert
from difflm.cli.main import run
from tests.standins import write_parent


@pytest.fixture
def model(tmp_path: Path) -> str:
    parent = write_parent(tmp_path / "parent")
    convert(parent, tmp_path / "model", block_size=8, logit_shift=True, clean_attention="causal")
    (tmp_path / "data.jsonl").write_text(
        '{"prompt": "ab", "completion": "cdefg"}\n{"prompt": "x", "completion": "yz"}\n'
    )
    return str(tmp_path / "model")


def out(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    assert run(["inspect", *words]) == 0
    return capsys.readouterr().out.splitlines()


def test_a_made_up_mask(capsys: pytest.CaptureFixture[str]) -> None:
    lines = out(capsys, "mask", "--documents", "3,2", "--row-length", "6", "--block-size", "2", "--ascii")
    assert lines[4] == "noisy d0   b1    p2    .. n .. . | cc . .. ."
    assert "\u2592" in "".join(out(capsys, "mask"))
    one = out(capsys, "mask", "--documents", "3", "--row-length", "3", "--one-block", "--streams", "one", "--ascii")
    assert one[2] == "token d0   b0    p0    nnn"
    narrow = out(capsys, "mask", "--documents", "3", "--row-length", "3", "--lookahead", "1", "--ascii")
    assert narrow[2] == "noisy d0   b0    p0    nn. | ..."


def test_a_mask_of_data_takes_the_model_s_block_size_and_attention(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = out(capsys, "mask", str(tmp_path / "data.jsonl"), "--model", model, "--row-length", "16", "--ascii")
    assert lines[0].split("document")[1].split("|")[0].strip() == "00000000 11111111"
    assert lines[18] == "clean d0   b0    p0    ........ ........ | #....... ........"
    block = out(
        capsys, "mask", str(tmp_path / "data.jsonl"), "--model", model, "--row-length", "16", "--ascii",
        "--clean-attention", "block",
    )  # fmt: skip
    assert block[18] == "clean d0   b0    p0    ........ ........ | ######## ........"


def test_a_row(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", model, "--row-length", "24", "--mask-rate", "1.0"]
    lines = out(capsys, "row", str(tmp_path / "data.jsonl"), *words)
    assert lines[0].endswith("row 0, 24 tokens, blocks of 8")
    assert lines[-1] == "3 prompt, 7 trainable, 2 eos, 4 fill, 8 padding; 13 masked"


def test_a_key_map(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "embedding.weight [258, 32]" in "\n".join(out(capsys, "keys", model))
    assert len(out(capsys, "keys", model, "--every-layer")) == 22


def test_mistakes_are_one_line(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = str(tmp_path / "data.jsonl")
    for words, said in (
        (["mask", data], "--model: missing; name the checkpoint whose tokenizer reads"),
        (["mask", data, "--model", model, "--documents", "3"], "--documents: stands beside a data file"),
        (["mask", "--documents", "3,x"], "--documents: '3,x' is no list of numbers"),
        (["mask", "--documents", "9", "--row-length", "8"], "do not fill a row of 8 tokens"),
        (["row", data, "--model", model, "--row", "7"], "--row: 7;"),
        (["keys", str(tmp_path / "absent")], "absent"),
    ):
        assert run(["inspect", *words]) == 2
        assert said in capsys.readouterr().err


def test_steps_of_recorded_answers(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, words = tmp_path / "steps.jsonl", ["--max-new-tokens", "6", "--ignore-eos", "--threshold", "0.001"]
    assert run(["generate", model, "-p", "a", "-p", "bc", *words, "--no-stats"]) == 0
    plain = capsys.readouterr().out
    assert run(["generate", model, "-p", "a", "-p", "bc", *words, "--no-stats", "--step-map", str(path)]) == 0
    assert capsys.readouterr().out == plain
    assert run(["generate", model, "-p", "d", *words, "--no-stats", "--show", "--step-map", str(path)]) == 0
    capsys.readouterr()
    assert "prompt 2 tokens, answer 6 in" in out(capsys, "steps", str(path), "--request", "1")[1]
    assert out(capsys, "steps", str(path), "--request", "2")[3] == "     0  .111111_"
    (line,) = out(capsys, "steps", str(path), "--replay", "--plot", str(tmp_path / "steps.png"))
    assert line.startswith("   1  ")
    assert (tmp_path / "steps.png").is_file()
    assert run(["inspect", "steps", str(path), "--request", "3"]) == 2
    assert "--request: 3;" in capsys.readouterr().err


def test_a_step_map_that_cannot_be_written_is_said_before_the_work(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["generate", model, "-p", "a", "--step-map", str(tmp_path / "absent" / "steps.jsonl")]) == 2
    assert "absent/steps.jsonl: No such file" in capsys.readouterr().err
