"""Saving: bit-exact, everything carried, whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from difflm.checkpoints.convert import convert
from difflm.checkpoints.fields import read_json, write_json
from difflm.checkpoints.loading import load_model
from difflm.checkpoints.saving import merged, save_model, without_remote_code
from difflm.errors import CheckpointError
from tests.checkpoints.tiny import hf_folder, hf_model, make_tokenizer
from tests.checkpoints.tiny_gguf import write_gguf


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saving")
    tokenizer = make_tokenizer()
    hf_folder(folder / "a", "qwen3", tokenizer=tokenizer, vocab_size=len(tokenizer), tie_word_embeddings=True)
    convert(folder / "a", folder / "b", block_size=4)
    return folder / "b"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_models_own_dtype_is_written_bit_for_bit(dtype: str, converted: Path, tmp_path: Path) -> None:
    loaded = load_model(converted, dtype=dtype)
    with torch.no_grad():
        loaded.model.layers[0].mlp.up.weight.mul_(1.5)  # type: ignore[union-attr]
    save_model(loaded, tmp_path / "c")
    again = dict(load_model(tmp_path / "c", dtype=dtype).model.named_parameters())
    assert all(torch.equal(parameter, again[name]) for name, parameter in loaded.model.named_parameters())
    assert {tensor.dtype for tensor in load_file(tmp_path / "c" / "model.safetensors").values()} == {
        next(loaded.model.parameters()).dtype
    }
    assert read_json(tmp_path / "c" / "config.json")["dtype"] == dtype


def test_saving_what_was_loaded_changes_no_file(converted: Path, tmp_path: Path) -> None:
    save_model(load_model(converted), tmp_path / "b")
    names = sorted(path.name for path in converted.iterdir())
    assert names == sorted(path.name for path in (tmp_path / "b").iterdir())
    for name in names:
        assert (tmp_path / "b" / name).read_bytes() == (converted / name).read_bytes(), name


def test_dtype_updates_card_and_shards(converted: Path, tmp_path: Path) -> None:
    save_model(
        load_model(converted),
        tmp_path / "c",
        dtype="bfloat16",
        config_updates={"block_size": 8, "difflm": {"recipe": "demo"}},
        card="# mine\n",
        max_shard_bytes=20_000,
    )
    raw = read_json(tmp_path / "c" / "config.json")
    assert (raw["block_size"], raw["dtype"], raw["difflm"]["recipe"]) == (8, "bfloat16", "demo")
    assert raw["difflm"]["parent"]["name"] == "a"
    assert (tmp_path / "c" / "README.md").read_text() == "# mine\n"
    assert len(list((tmp_path / "c").glob("*.safetensors"))) > 1
    assert load_model(tmp_path / "c").config.block_size == 8


def test_an_ar_model_is_saved_without_card(tmp_path: Path) -> None:
    hf_folder(tmp_path / "a", "llama")
    save_model(load_model(tmp_path / "a"), tmp_path / "b")
    assert not (tmp_path / "b" / "README.md").exists()
    assert read_json(tmp_path / "b" / "config.json") == read_json(tmp_path / "a" / "config.json")


def test_from_gguf(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    write_gguf(
        tmp_path / "m.gguf",
        hf_model("llama", hidden_size=32, intermediate_size=64, vocab_size=len(tokenizer)),
        tokenizer=tokenizer,
    )
    loaded = load_model(tmp_path / "m.gguf")
    save_model(loaded, tmp_path / "b")
    again = load_model(tmp_path / "b")
    assert again.encode("the quick fox<|im_end|>") == tokenizer.encode("the quick fox<|im_end|>")
    assert again.require_tokenizer().chat_template == tokenizer.chat_template
    assert again.config.model == loaded.config.model
    config = read_json(tmp_path / "b" / "tokenizer_config.json")
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert "is_local" not in config


def test_transformers_4_spelling_is_kept(tmp_path: Path) -> None:
    hf_folder(tmp_path / "a", "llama")
    raw = read_json(tmp_path / "a" / "config.json")
    raw["torch_dtype"] = raw.pop("dtype")
    write_json(tmp_path / "a" / "config.json", raw)
    save_model(load_model(tmp_path / "a"), tmp_path / "b", dtype="float16")
    raw = read_json(tmp_path / "b" / "config.json")
    assert (raw["torch_dtype"], "dtype" in raw) == ("float16", False)


def test_a_failure_leaves_nothing(converted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("difflm.checkpoints.shards._write_at", full)
    with pytest.raises(CheckpointError, match="c: cannot be written"):
        save_model(load_model(converted), tmp_path / "c")
    assert list(tmp_path.iterdir()) == []


def test_a_taken_target_is_refused(converted: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    with pytest.raises(CheckpointError, match="output folder is not empty"):
        save_model(load_model(converted), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_merging_objects() -> None:
    base = {"a": {"b": 1, "c": 2}, "d": 1}
    assert merged(base, {"a": {"b": 3}, "d": {"e": 1}}) == {"a": {"b": 3, "c": 2}, "d": {"e": 1}}
    assert base == {"a": {"b": 1, "c": 2}, "d": 1}
    assert without_remote_code({"auto_map": {}, "x": 1}) == {"x": 1}
