"""`difflm export` at the command line: one line for each mistake; its results are tested with the function's."""

from __future__ import annotations

from pathlib import Path

import pytest

import difflm
from difflm.cli.main import run
from tests.checkpoints.tiny import hf_folder, make_tokenizer
from tests.drafters import write_drafters


@pytest.fixture
def converted(tmp_path: Path) -> Path:
    tokenizer = make_tokenizer()
    hf_folder(tmp_path / "parent", "qwen3", tokenizer=tokenizer, vocab_size=len(tokenizer))
    difflm.convert(tmp_path / "parent", tmp_path / "converted", block_size=4)
    return tmp_path / "converted"


def test_every_engine_has_a_line(converted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert run(["export", str(converted), str(tmp_path / "out"), "--format", "sdar", "--dtype", "bfloat16"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{tmp_path / 'out'}: sdar, format sdar"
    assert lines[1:3] == [
        f"{engine}: no, mask_token_id is 320; it has 151669 built in for SDARForCausalLM"
        for engine in ("sglang", "lmdeploy")
    ]
    assert [line.split(":")[0] for line in lines[3:]] == ["dinfer", "vllm"]


def test_a_token_causal_model_says_what_its_export_is_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_drafters(tmp_path)
    assert run(["export", str(tmp_path / "base"), str(tmp_path / "out")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [
        f"{tmp_path / 'out'}: llama, format hf",
        "for left-to-right use: LlamaForCausalLM writes the text of decoding next_token and verified; drafts and "
        "blocks are for difflm, with the source",
    ]
    assert run(["export", str(tmp_path / "drafter"), str(tmp_path / "no")]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "its adapter acts on noisy rows alone (difflm_adapter_rows in adapter_config.json)" in said
    assert said.endswith(f"for left-to-right use take the base, difflm export {tmp_path / 'base'} TARGET")
    assert not (tmp_path / "no").exists()


def test_a_refusal_is_one_line_and_writes_nothing(
    converted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert run(["export", str(converted), str(tmp_path / "out"), "--engine", "lmdeploy"]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith(f"difflm: {converted}/config.json: LMDeploy 0.16.0: it has no block diffusion for Qwen3For")
    assert not (tmp_path / "out").exists()
