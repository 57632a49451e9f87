"""A tiny random Ling goes the whole way: convert, train with block sizes up and down, merge, generate, export, load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import difflm
from difflm.checkpoints.fields import read_json
from difflm.training.state import checkpoint_folders
from tests.checkpoints.tiny import hf_folder, ling_folder, make_tokenizer, sarvam, tokens
from tests.decode.policies import transcriptions
from tests.standins import write_texts

WSD = ((1, 150), (4, 150), (16, 200), ("row", 200), (16, 150), (4, 300))
PROMPTS = ["the quick brown", "one two"]


def run_of(model: Path, folder: Path, curriculum: Any = WSD) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    return {
        "model": str(model),
        "output": str(folder / "run"),
        "data": {
            "paths": [str(write_texts(folder / "texts.jsonl"))],
            "row_length": 64,
            "validation_fraction": 0.2,
        },
        "curriculum": [{"block_size": size, "tokens": count} for size, count in curriculum],
        "optimizer": {"learning_rate": 5e-3},
        "checkpoint": {"every_tokens": 250},
        "validation": {"rows": 2, "block_sizes": [4]},
        "threads": 1,
    }


def completions(folder: Path) -> list[list[int]]:
    params = difflm.SamplingParams(max_new_tokens=7, threshold=0.4, temperature=0.8, seed=1)
    return [each.tokens for each in difflm.generate(difflm.load_model(folder), PROMPTS, params)]


def block_logits(folder: Path) -> torch.Tensor:
    return difflm.logits(difflm.load_model(folder), tokens(300), attention="block", block_size=4)


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Ling, converted, trained with block sizes up and down, its last checkpoints averaged."""
    folder, tokenizer = tmp_path_factory.mktemp("ling"), make_tokenizer()
    ids = {"eos_token_id": tokenizer.eos_token_id, "num_nextn_predict_layers": 1}
    ling_folder(folder / "parent", tokenizer=tokenizer, vocab_size=len(tokenizer), **ids)
    difflm.convert(folder / "parent", folder / "converted", block_size=4)
    difflm.train(run_of(folder / "converted", folder))
    difflm.merge(checkpoint_folders(folder / "run")[-2:], folder / "merged")
    before, after = (difflm.load_model(folder / name).model.stored_tensors() for name in ("converted", "merged"))
    assert not torch.equal(before["layers.1.mlp.experts.gate_up"], after["layers.1.mlp.experts.gate_up"])
    return folder / "merged"


@pytest.mark.parametrize("format", ["hf", "stacked"])
def test_the_exported_model_is_the_trained_one(format: str, merged: Path, tmp_path: Path) -> None:
    done = difflm.export(merged, tmp_path / "out", format=format, max_shard_bytes=100_000)
    assert (done.family == "llada2_moe") == (format == "hf")
    assert torch.equal(block_logits(merged), block_logits(tmp_path / "out"))
    assert completions(merged) == completions(tmp_path / "out")
    record = read_json(tmp_path / "out" / "config.json")["difflm"]
    assert record["parent"]["name"] == "parent"
    assert record["export"]["format"] == format


@pytest.mark.parametrize(
    ("engine", "settings", "rule"),
    [
        ("sglang", {"threshold": 0.3}, "sglang_low"),
        ("sglang", {"threshold": 0.3, "edit_threshold": 0.6, "max_post_edit_steps": 2}, "sglang_joint"),
        ("dinfer", {"threshold": 0.3, "early_stop": True}, "dinfer"),
    ],
)
def test_our_engine_decodes_an_export_as_its_engine_would(
    engine: str,
    settings: dict[str, Any],
    rule: str,
    merged: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Tokens and forwards of the engine's rule in plain loops, logits computed anew for each block."""
    difflm.export(merged, tmp_path / "out")
    loaded = difflm.load_model(tmp_path / "out", dtype="float64")
    monkeypatch.setattr(transcriptions, "MASK", loaded.config.mask_token_id)
    monkeypatch.setattr(transcriptions, "EOS", loaded.config.eos_token_ids[0])

    def block_rows(row: list[int], start: int) -> torch.Tensor:
        return difflm.logits(loaded, torch.tensor([row]), attention="block", block_size=4)[0, start:]

    names = {"edit_threshold": "edit", "max_post_edit_steps": "post_steps", "early_stop": "early"}
    extra = {"penalty": 0.0} if rule == "sglang_joint" else {}
    for text in (*PROMPTS, ""):
        prompt = loaded.encode(text)
        plain = {names.get(name, name): value for name, value in settings.items()}
        expected = getattr(transcriptions, rule)(prompt, block_rows, size=4, new=9, **plain, **extra)
        policy = difflm.policy(engine, **settings)
        params = difflm.SamplingParams(policy=policy, max_new_tokens=9)
        found = difflm.generate(loaded, [prompt], params)[0]
        assert (found.tokens, found.forwards.denoise) == (expected.tokens, expected.forwards)


def test_the_export_loads_in_transformers_with_equal_logits(merged: Path, tmp_path: Path) -> None:
    """By stacked experts and back, through the oracle that reads LLaDA2's names."""
    difflm.export(merged, tmp_path / "stacked", format="stacked")
    difflm.export(tmp_path / "stacked", tmp_path / "split")
    theirs, token_BL = sarvam(tmp_path / "split", tmp_path / "oracle"), tokens(300)
    ours = difflm.logits(difflm.load_model(merged), token_BL, attention="causal")
    with torch.no_grad():
        expected = theirs(token_BL).logits
    assert float((ours - expected).abs().max() / expected.abs().max()) < 1e-5


def test_an_exported_model_trains_on(merged: Path, tmp_path: Path) -> None:
    """The same steps from either layout of the experts end in the same weights."""
    ends = []
    for format in ("hf", "stacked"):
        difflm.export(merged, tmp_path / format, format=format)
        last = difflm.train(run_of(tmp_path / format, tmp_path / f"{format} run", ((4, 150),)))
        assert read_json(last / "config.json")["model_type"] == difflm.load_model(tmp_path / format).config.family
        ends.append(difflm.load_model(last).model.stored_tensors())
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_a_dense_model_goes_on_in_sdars_class(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    hf_folder(tmp_path / "parent", "qwen3", tokenizer=tokenizer, vocab_size=len(tokenizer), tie_word_embeddings=True)
    difflm.convert(tmp_path / "parent", tmp_path / "converted", block_size=4)
    difflm.export(tmp_path / "converted", tmp_path / "sdar", format="sdar")
    last = difflm.train(run_of(tmp_path / "sdar", tmp_path / "on", ((4, 150),)))
    assert read_json(last / "config.json")["model_type"] == "sdar"
    difflm.export(last, tmp_path / "again", format="sdar")
    assert torch.equal(block_logits(last), block_logits(tmp_path / "again"))
