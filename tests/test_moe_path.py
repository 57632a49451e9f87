"""A tiny random mixture of experts goes the whole way: convert, train, resume, merge, generate, save, load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import difflm
from difflm.checkpoints.fields import read_json
from difflm.decode.engine import Engine
from difflm.decode.request import SamplingParams
from difflm.training.config_io import config_from_tree
from difflm.training.state import checkpoint_folders
from tests.checkpoints.tiny import hf_folder, ling_folder, make_tokenizer, sarvam, tokens
from tests.decode import reference
from tests.standins import write_texts
from tests.training.test_resume import result_of, rows_of, run_with_stops

FAMILIES = ("llada2_moe", "qwen3_moe")


@pytest.fixture(scope="module", params=FAMILIES)
def converted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    tokenizer = make_tokenizer()
    if request.param == "llada2_moe":
        ids = tokenizer.eos_token_id
        ling_folder(
            folder / "parent",
            tokenizer=tokenizer,
            vocab_size=len(tokenizer),
            eos_token_id=ids,
            num_nextn_predict_layers=1,
            max_position_embeddings=256,
        )
    else:
        hf_folder(folder / "parent", "qwen3_moe", tokenizer=tokenizer, vocab_size=len(tokenizer))
    done = difflm.convert(folder / "parent", folder / "converted", block_size=4)
    assert done.family == request.param
    return folder / "converted"


def tree(converted: Path, folder: Path, **changes: Any) -> dict[str, Any]:
    texts = write_texts(folder / "texts.jsonl")
    return {
        "model": str(converted),
        "output": str(folder / "run"),
        "data": {"paths": [str(texts)], "row_length": 64, "validation_fraction": 0.2},
        "curriculum": [{"block_size": 4, "tokens": 700}],
        "optimizer": {"learning_rate": 5e-3},
        "checkpoint": {"every_tokens": 200},
        "validation": {"rows": 3, "block_sizes": [4]},
        "threads": 1,
        **changes,
    }


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_train_and_everything_after(converted: Path, dtype: str, tmp_path: Path) -> None:
    before = difflm.load_model(converted)
    last = difflm.train(tree(converted, tmp_path, dtype=dtype, activation_checkpointing=dtype == "float32"))
    trained = difflm.load_model(last)
    moved = {
        name
        for name, tensor in trained.model.stored_tensors().items()
        if not torch.equal(tensor, before.model.stored_tensors()[name])
    }
    every = set(trained.model.stored_tensors())
    assert every - moved == {name for name in every if name.endswith("expert_bias")}, "the bias has no gradient"
    assert any(name.endswith("experts.gate_up") for name in moved)
    assert any(name.endswith("router.weight") for name in moved)
    folders = checkpoint_folders(tmp_path / "run")[-2:]
    difflm.merge(folders, tmp_path / "merged")
    merged = difflm.load_model(tmp_path / "merged")
    first, second = (difflm.load_model(folder).model.stored_tensors() for folder in folders)
    for name, tensor in merged.model.stored_tensors().items():
        assert torch.allclose(tensor, (first[name] + second[name]) / 2, atol=1e-6), name
    completion = difflm.generate(merged, ["the fox"], difflm.SamplingParams(max_new_tokens=6, threshold=0.5))[0]
    assert completion.num_tokens > 0


def test_resume_is_exact(converted: Path, tmp_path: Path) -> None:
    """Weights, updated biases of experts, moments, counters and loads, bit for bit, after a SIGINT; in bfloat16."""
    before, rate = dict(difflm.load_model(converted).model.named_buffers()), 3e-3
    router = {"bias_update_rate": rate if before else 0.0, "z_loss": 1e-3, "balance_loss": 1e-2}
    options: dict[str, Any] = {"curriculum": [{"block_size": 4, "tokens": 600}], "dtype": "bfloat16", "router": router}
    results = []
    for name, stops in (("whole", ()), ("stopped", (2,))):
        (tmp_path / name).mkdir()
        config = config_from_tree(tree(converted, tmp_path / name, **options))
        run_with_stops(config, stops)
        last = checkpoint_folders(config.output)[-1]
        results.append((*result_of(last)[:2], rows_of(config.output)))
    assert results[0] == results[1]
    assert "max_violation" in results[0][2][-2]["router"]["noisy"]
    for name, buffer in difflm.load_model(last).model.named_buffers():
        steps = (buffer - before[name]).abs() / rate
        assert torch.allclose(steps, steps.round(), atol=1e-3), "whole steps of the rate: never rounded to bfloat16"
        assert float(steps.max()) > 2


def test_cached_decoding_equals_recomputing_everything(converted: Path) -> None:
    loaded = difflm.load_model(converted, dtype="float64")
    prompt = loaded.encode("the quick brown fox")
    for threshold in (0.0, 0.2, 1.0):
        params = SamplingParams(max_new_tokens=11, block_size=4, threshold=threshold, ignore_eos=True)
        expected = reference.decode_blocks(
            loaded,
            prompt,
            max_new_tokens=params.max_new_tokens,
            size=4,
            threshold=threshold,
            min_accept=params.min_accept,
            temperature=0.0,
            seed=0,
            ignore_eos=True,
        )
        assert expected.margin > 1e-9
        assert Engine(loaded).generate([prompt], params)[0].tokens == expected.tokens


def test_the_trained_model_loads_in_transformers(converted: Path, tmp_path: Path) -> None:
    """Through the oracle that reads these names, with equal logits."""
    from transformers import AutoModelForCausalLM

    last = difflm.train(tree(converted, tmp_path, curriculum=[{"block_size": 4, "tokens": 100}]))
    token_BL = tokens(60)
    ours = difflm.logits(difflm.load_model(last), token_BL, attention="causal")
    family = read_json(last / "config.json")["model_type"]
    if family == "llada2_moe":
        theirs: Any = sarvam(last, tmp_path / "oracle")
    else:
        theirs = AutoModelForCausalLM.from_pretrained(last, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = theirs(token_BL).logits
    assert float((ours - expected).abs().max() / expected.abs().max()) < 1e-5
