"""Conversion: the folder loads as it is, the parent's weights are kept bit for bit, provenance is recorded."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import difflm
from difflm.checkpoints.convert import convert
from difflm.checkpoints.fields import read_json, write_json
from difflm.checkpoints.loading import load_model
from difflm.checkpoints.tokens import vocabulary
from difflm.errors import CheckpointError, ConfigError
from tests.checkpoints.tiny import CHAT_TEMPLATE, SPECIAL, hf_folder, hf_model, make_tokenizer
from tests.checkpoints.tiny_gguf import write_gguf

EMBEDDING = "model.embed_tokens.weight"


def weights(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for file in folder.glob("*.safetensors"):
        found |= load_file(file)
    return found


def same_bits(left: Tensor, right: Tensor) -> bool:
    return left.dtype == right.dtype and torch.equal(
        left.contiguous().view(torch.uint8), right.contiguous().view(torch.uint8)
    )


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("padding", [0, 5], ids=["full", "padded"])
@pytest.mark.parametrize("name", [None, "<spare_1>"], ids=["appended", "named"])
def test_weights_are_kept_bit_for_bit(family: str, tied: bool, padding: int, name: str | None, tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    known = len(tokenizer)
    hf_folder(
        tmp_path / "a",
        family,
        tokenizer=tokenizer,
        vocab_size=known + padding,
        tie_word_embeddings=tied,
        dtype=torch.bfloat16,
        max_shard_size="30KB",
    )
    done = convert(tmp_path / "a", tmp_path / "b", mask_token=name, max_shard_bytes=25_000)
    mask_id = vocabulary(tokenizer)[name] if name else known
    grows = name is None and padding == 0
    assert (done.mask_token_id, done.adds_row, done.vocab_size) == (mask_id, grows, known + padding + grows)
    before, after = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert set(before) == set(after)
    for key, value in before.items():
        kept = after[key]
        if key == EMBEDDING or (key == "lm_head.weight" and grows):
            mean = value[:known].double().mean(0).to(value.dtype)
            assert same_bits(kept[mask_id], mean), key
            rows = [row for row in range(len(value)) if row != mask_id]
            assert len(kept) == len(value) + grows
            kept, value = kept[rows], value[rows]
        assert same_bits(kept, value), key
    loaded = load_model(tmp_path / "b")
    assert loaded.config.mask_token_id == mask_id
    assert mask_id in loaded.config.suppressed_token_ids
    assert set(range(loaded.config.tokenizer_length or 0, loaded.config.model.vocab_size)) <= set(
        loaded.config.suppressed_token_ids
    )


def test_keep_leaves_every_weight(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    hf_folder(tmp_path / "a", "llama", tokenizer=tokenizer, vocab_size=len(tokenizer))
    convert(tmp_path / "a", tmp_path / "b", mask_token="<spare_0>", mask_init="keep")
    before, after = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert all(same_bits(after[name], value) for name, value in before.items())
    with pytest.raises(CheckpointError, match=r'mask_init is "keep" but .* has no row yet; use "mean"'):
        convert(tmp_path / "a", tmp_path / "c", mask_init="keep")
    assert not (tmp_path / "c").exists()


def test_everything_is_carried_and_recorded(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    source = tmp_path / "parent-model"
    hf_folder(source, "qwen2", tokenizer=tokenizer, vocab_size=len(tokenizer))
    write_json(source / "generation_config.json", {"eos_token_id": [2, 0], "temperature": 0.7, "note": "kept"})
    (source / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    convert(
        source,
        tmp_path / "b",
        block_size=4,
        logit_shift=True,
        clean_attention="causal",
        noisy_attention="causal",
        recipe={"name": "wsd", "tokens": 5},
    )
    raw = read_json(tmp_path / "b" / "config.json")
    digest = hashlib.sha256((source / "model.safetensors").read_bytes()).hexdigest()
    mask_id = len(tokenizer)
    expected = {
        "block_size": 4,
        "mask_token_id": mask_id,
        "mask_token": "<|mask|>",
        "logit_shift": True,
        "clean_attention": "causal",
        "noisy_attention": "causal",
        "vocab_size": mask_id + 1,
        "difflm": {
            "version": difflm.__version__,
            "parent": {"name": "parent-model", "sha256": {"model.safetensors": digest}},
            "recipe": {"name": "wsd", "tokens": 5},
            "license": "apache-2.0",
            "mask_init": "mean",
        },
    }
    assert {name: raw[name] for name in expected} == expected
    parent = read_json(source / "config.json")
    assert {name: raw[name] for name in parent if name not in expected} == {
        name: value for name, value in parent.items() if name not in expected
    }, "every other field is the parent's"
    assert read_json(tmp_path / "b" / "generation_config.json") == read_json(source / "generation_config.json")
    card = (tmp_path / "b" / "README.md").read_text()
    assert card.startswith("---\nlicense: apache-2.0\nbase_model: parent-model\n")
    for part in (digest, "Left to right this is an autoregressive model", "wsd", "`causal`", f"`{mask_id}`"):
        assert part.replace("`causal`", '`"causal"`') in card
    loaded = load_model(tmp_path / "b")
    assert loaded.config.eos_token_ids == (tokenizer.eos_token_id, 0)
    assert loaded.require_tokenizer().chat_template == CHAT_TEMPLATE
    assert loaded.config.parametrisation.logit_shift


def test_the_tokenizer_is_carried_file_by_file(tmp_path: Path) -> None:
    """A transformers-4 tokenizer_config.json stays one: it is edited, not rewritten by the installed transformers."""
    tokenizer = make_tokenizer()
    hf_folder(tmp_path / "a", "llama", tokenizer=tokenizer, vocab_size=len(tokenizer))
    path = tmp_path / "a" / "tokenizer_config.json"
    write_json(path, read_json(path) | {"tokenizer_class": "PreTrainedTokenizerFast", "added_by_hand": 1})
    convert(tmp_path / "a", tmp_path / "b")
    carried = read_json(tmp_path / "b" / "tokenizer_config.json")
    assert carried == read_json(path) | {"mask_token": "<|mask|>"}
    text = "the quick <spare_0> fox<|im_end|>"
    assert load_model(tmp_path / "b").encode(text) == load_model(tmp_path / "a").encode(text)


def test_transformers_loads_the_result(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = make_tokenizer()
    hf_folder(tmp_path / "a", "qwen3", tokenizer=tokenizer, vocab_size=len(tokenizer))
    convert(tmp_path / "a", tmp_path / "b")
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "b")
    assert (
        model.get_input_embeddings().weight.shape[0]
        == len(tokenizer) + 1
        == len(AutoTokenizer.from_pretrained(tmp_path / "b"))
    )


@pytest.mark.parametrize("options", [{}, {"mask_token_id": 66}, {"mask_token_id": 40, "mask_init": "keep"}])
def test_without_tokenizer(options: dict[str, Any], tmp_path: Path) -> None:
    hf_folder(tmp_path / "a", "llama")
    done = convert(tmp_path / "a", tmp_path / "b", **options)
    assert done.mask_token_id == options.get("mask_token_id", 67)
    assert done.adds_row == (not options)
    loaded = load_model(tmp_path / "b")
    assert loaded.tokenizer is None
    assert loaded.config.mask_token_id == done.mask_token_id
    assert loaded.config.suppressed_token_ids == (done.mask_token_id,)
    assert loaded.model.embedding.weight.shape[0] == done.vocab_size
    assert read_json(tmp_path / "b" / "config.json")["mask_token"] is None
    kept = weights(tmp_path / "a")[EMBEDDING]
    assert torch.equal(loaded.model.embedding.weight[:40], kept[:40])


def test_dtype_is_changed_on_request(tmp_path: Path) -> None:
    hf_folder(tmp_path / "a", "llama")
    convert(tmp_path / "a", tmp_path / "b", dtype="bfloat16")
    before, after = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert all(value.dtype == torch.bfloat16 for value in after.values())
    assert torch.equal(after["model.norm.weight"], before["model.norm.weight"].bfloat16())
    assert read_json(tmp_path / "b" / "config.json")["dtype"] == "bfloat16"


def test_from_gguf(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    model = hf_model("llama", hidden_size=32, intermediate_size=64, vocab_size=len(tokenizer))
    write_gguf(tmp_path / "m.gguf", model, tokenizer=tokenizer)
    done = convert(tmp_path / "m.gguf", tmp_path / "b", mask_token="<spare_0>")
    assert set(done.parent_sha256) == {"m.gguf"}
    loaded = load_model(tmp_path / "b")
    assert loaded.config.raw["difflm"]["license"] == "mit"
    assert loaded.config.generation["eos_token_id"] == tokenizer.eos_token_id
    after, before = weights(tmp_path / "b"), model.state_dict()
    assert all(same_bits(after[name], value) for name, value in before.items() if name != EMBEDDING)
    text = "the fox<|im_end|> 12"
    assert loaded.encode(text) == tokenizer.encode(text)
    assert loaded.require_tokenizer().mask_token == "<spare_0>"


@pytest.mark.parametrize("token", ["<|im_end|>", "<|im_start|>", "<|endoftext|>", "<bos>", "<pad>", "<unk>", "<more>"])
def test_tokens_with_a_meaning_are_refused(token: str, tmp_path: Path) -> None:
    tokenizer = make_tokenizer((*SPECIAL, "<bos>", "<pad>", "<unk>", "<more>"))
    tokenizer.bos_token, tokenizer.pad_token, tokenizer.unk_token = "<bos>", "<pad>", "<unk>"
    ids = vocabulary(tokenizer)
    hf_folder(tmp_path / "a", "llama", tokenizer=tokenizer, vocab_size=len(ids), bos_token_id=None, eos_token_id=None)
    write_json(tmp_path / "a" / "generation_config.json", {"eos_token_id": [ids["<|im_end|>"], ids["<more>"]]})
    with pytest.raises(CheckpointError, match=r"has id \d+, which is (a|an|the) .*; name a spare token"):
        convert(tmp_path / "a", tmp_path / "b", mask_token=token)
    assert not (tmp_path / "b").exists()


def test_the_configs_padding_is_refused_beside_the_tokenizers(tmp_path: Path) -> None:
    tokenizer = make_tokenizer((*SPECIAL, "<pad>"))
    tokenizer.pad_token = "<pad>"
    spare = vocabulary(tokenizer)["<spare_0>"]
    hf_folder(tmp_path / "a", "llama", tokenizer=tokenizer, vocab_size=len(tokenizer), pad_token_id=spare)
    with pytest.raises(CheckpointError, match=r"has id \d+, which is the pad_token_id; name a spare token"):
        convert(tmp_path / "a", tmp_path / "b", mask_token="<spare_0>")


def test_a_tokenizer_without_eos(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(eos=None)
    hf_folder(tmp_path / "a", "llama", tokenizer=tokenizer, vocab_size=len(tokenizer))
    with pytest.raises(CheckpointError, match=r"the tokenizer has no eos_token; set it in tokenizer_config\.json"):
        convert(tmp_path / "a", tmp_path / "b")


def test_a_diffusion_model_is_not_converted_again(tmp_path: Path) -> None:
    hf_folder(tmp_path / "a", "llama")
    convert(tmp_path / "a", tmp_path / "b")
    with pytest.raises(CheckpointError, match="mask_token_id is 67; this is a diffusion model already"):
        convert(tmp_path / "b", tmp_path / "c")


def test_a_taken_target_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "mine").touch()
    with pytest.raises(CheckpointError, match="b: output folder is not empty; choose another path"):
        convert(tmp_path / "nonexistent", tmp_path / "b")


@pytest.mark.parametrize(
    "options",
    [
        {"block_size": 0},
        {"block_size": 4.0},
        {"mask_init": "zero"},
        {"clean_attention": "full"},
        {"noisy_attention": "block"},
        {"logit_shift": "no"},
        {"dtype": "int8"},
    ],
)
def test_options_are_checked_before_any_work(options: dict[str, Any], tmp_path: Path) -> None:
    name, value = next(iter(options.items()))
    with pytest.raises(ConfigError, match=f"{name} is {value!r}; expected"):
        convert(tmp_path / "nonexistent", tmp_path / "b", **options)


@pytest.mark.parametrize("damage", ["truncated", "missing shard"])
def test_damaged_parents_leave_nothing(damage: str, tmp_path: Path) -> None:
    hf_folder(tmp_path / "a", "llama", max_shard_size="20KB")
    shard = sorted((tmp_path / "a").glob("*.safetensors"))[1]
    if damage == "truncated":
        shard.write_bytes(shard.read_bytes()[:-8])
    else:
        shard.unlink()
    with pytest.raises(CheckpointError, match=shard.name):
        convert(tmp_path / "a", tmp_path / "b")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
