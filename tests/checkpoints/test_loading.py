"""Loading: dtypes, rope override, text in and out, and no code of a checkpoint is run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from difflm.checkpoints.convert import convert
from difflm.checkpoints.fields import read_json, read_optional_json, write_json
from difflm.checkpoints.loading import load_model, load_without_weights, resolve_dtype
from difflm.errors import CheckpointError, ConfigError, DataError
from difflm.models.config import RopeConfig
from tests.checkpoints.tiny import LLAMA3_SCALING, hf_folder, make_tokenizer
from tests.standins import write_parent


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", torch.float64])
@pytest.mark.parametrize("tied", [False, True])
def test_parameters_are_those_of_the_file(dtype: str | torch.dtype, tied: bool, tmp_path: Path) -> None:
    theirs = hf_folder(tmp_path / "a", "qwen3", tie_word_embeddings=tied)
    loaded = load_model(tmp_path / "a", dtype=dtype)
    wanted = resolve_dtype(dtype)
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {wanted}
    assert torch.equal(loaded.model.embedding.weight, theirs.model.embed_tokens.weight.to(wanted))
    assert torch.equal(loaded.model.head.weight, theirs.lm_head.weight.to(wanted))
    assert (loaded.model.head.weight is loaded.model.embedding.weight) == tied
    assert all(parameter.requires_grad for parameter in loaded.model.parameters())
    assert not loaded.model.training
    assert loaded.model.frequency_F.dtype == torch.float32


def test_the_model_outlives_its_files(tmp_path: Path) -> None:
    hf_folder(tmp_path / "a", "llama")
    loaded = load_model(tmp_path / "a")
    before = loaded.model.norm.weight.clone()
    path = tmp_path / "a" / "model.safetensors"
    with path.open("r+b") as file:
        file.write(b"\0" * path.stat().st_size)
    assert torch.equal(loaded.model.norm.weight, before)


def test_rope_override(tmp_path: Path) -> None:
    hf_folder(tmp_path / "a", "llama", rope_parameters={"rope_theta": 321.0})
    plain = load_model(tmp_path / "a").config.model
    assert plain.rope == RopeConfig(theta=321.0)
    linear = load_model(tmp_path / "a", rope_scaling={"rope_type": "linear", "factor": 2.0}).config.model
    assert linear.rope == RopeConfig(theta=321.0, kind="linear", factor=2.0)
    assert linear.max_positions == 2 * plain.max_positions
    llama3 = load_model(tmp_path / "a", rope_scaling=LLAMA3_SCALING | {"factor": 16.0}).config.model
    assert (llama3.rope.kind, llama3.max_positions) == ("llama3", 16 * 16)
    yarn = load_model(tmp_path / "a", rope_scaling={"rope_type": "yarn", "factor": 4.0}).config.model
    assert (yarn.rope.original_max_positions, yarn.max_positions) == (plain.max_positions, 4 * plain.max_positions)
    with pytest.raises(CheckpointError, match=r"rope_scaling argument: rope_parameters\.rope_type is 'dynamic'"):
        load_model(tmp_path / "a", rope_scaling={"rope_type": "dynamic", "factor": 4.0})


def test_a_window_that_scaling_makes_felt_is_refused(tmp_path: Path) -> None:
    hf_folder(tmp_path / "a", "mistral", sliding_window=128)
    assert load_model(tmp_path / "a").config.model.max_positions == 128
    with pytest.raises(CheckpointError, match=r"config\.json: sliding_window is 128; expected null, or the longest"):
        load_model(tmp_path / "a", rope_scaling={"rope_type": "linear", "factor": 2.0})


def test_unknown_dtype() -> None:
    for bad in ("int8", torch.int64):
        with pytest.raises(ConfigError, match=r"dtype is .*; expected one of float32, bfloat16"):
            resolve_dtype(bad)


def test_text_in_and_out(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    hf_folder(tmp_path / "a", "llama", tokenizer=tokenizer, vocab_size=len(tokenizer))
    convert(tmp_path / "a", tmp_path / "b", mask_token="<spare_0>")
    loaded = load_model(tmp_path / "b")
    mask_id = loaded.config.mask_token_id
    assert mask_id == tokenizer.get_vocab()["<spare_0>"]
    text = "say <spare_0> to the fox"
    assert mask_id not in loaded.encode(text)
    assert loaded.decode(loaded.encode(text)) == text
    ids = loaded.encode_chat([{"role": "user", "content": text}])
    assert mask_id not in ids
    assert (
        loaded.decode(ids, skip_special_tokens=False) == f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
    )
    assert loaded.decode(ids) == f"user\n{text}\nassistant\n"
    assert tokenizer.get_vocab()["<|im_start|>"] == ids[0]


def test_without_tokenizer_or_template(tmp_path: Path) -> None:
    hf_folder(tmp_path / "a", "llama")
    loaded = load_model(tmp_path / "a")
    assert loaded.tokenizer is None
    for call in (lambda: loaded.encode("a"), lambda: loaded.decode([1]), lambda: loaded.encode_chat([])):
        with pytest.raises(CheckpointError, match="has no tokenizer; pass token ids"):
            call()
    tokenizer = make_tokenizer(template=None)
    hf_folder(tmp_path / "b", "llama", tokenizer=tokenizer, vocab_size=len(tokenizer))
    with pytest.raises(CheckpointError, match="no chat template"):
        load_model(tmp_path / "b").encode_chat([{"role": "user", "content": "a"}])


@pytest.mark.parametrize("template", ["{{ raise_exception('no system role') }}", "{{ a.b.c }}", "{% for"])
def test_a_template_that_refuses_is_one_line(template: str, tmp_path: Path) -> None:
    tokenizer = make_tokenizer(template=template)
    hf_folder(tmp_path / "a", "llama", tokenizer=tokenizer, vocab_size=len(tokenizer))
    with pytest.raises(CheckpointError, match="the chat template refuses a conversation of system, user") as caught:
        load_model(tmp_path / "a").encode_chat([{"role": "system", "content": "a"}, {"role": "user", "content": "b"}])
    assert "\n" not in str(caught.value)


def test_a_device_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="device: 'tpu9' cannot be used here"):
        load_model(tmp_path, device="tpu9")


def test_text_that_is_not_unicode(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    hf_folder(tmp_path / "a", "llama", tokenizer=tokenizer, vocab_size=len(tokenizer))
    with pytest.raises(DataError, match="not UTF-8"):
        load_model(tmp_path / "a").encode("caf\udce9")


def test_a_tokenizer_longer_than_the_embedding(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    hf_folder(tmp_path / "a", "llama", tokenizer=tokenizer, vocab_size=len(tokenizer) - 1)
    for call in (lambda: load_model(tmp_path / "a"), lambda: convert(tmp_path / "a", tmp_path / "b")):
        with pytest.raises(CheckpointError, match=r"vocab_size is \d+ but the tokenizer has ids up to \d+"):
            call()
    assert not (tmp_path / "b").exists()


CODE = "import pathlib\npathlib.Path({!r}).touch()\nclass Evil: pass\n"


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "generation_config.json"])
def test_auto_map_is_never_followed_nor_carried(name: str, tmp_path: Path) -> None:
    canary, folder = tmp_path / "canary", tmp_path / "a"
    tokenizer = make_tokenizer()
    hf_folder(folder, "llama", tokenizer=tokenizer, vocab_size=len(tokenizer))
    for file in ("modeling_evil.py", "configuration_evil.py", "tokenization_evil.py"):
        (folder / file).write_text(CODE.format(str(canary)))
    write_json(folder / "processor_config.json", {"auto_map": {"AutoProcessor": "modeling_evil.Evil"}})
    remote: dict[str, Any] = {
        "AutoConfig": "configuration_evil.Evil",
        "AutoModelForCausalLM": "modeling_evil.Evil",
        "AutoTokenizer": ["tokenization_evil.Evil", "tokenization_evil.Evil"],
    }
    write_json(folder / name, read_optional_json(folder / name) | {"auto_map": remote, "custom_generate": "evil"})
    assert load_model(folder).encode("the fox")
    convert(folder, tmp_path / "b")
    assert load_model(tmp_path / "b").encode("the fox")
    assert not canary.exists()
    assert not list((tmp_path / "b").glob("*.py"))
    assert "auto_map" not in read_json(tmp_path / "b" / name)


def test_a_checkpoint_opens_without_its_weights(tmp_path: Path) -> None:
    folder = write_parent(tmp_path / "parent")
    whole, bare = load_model(folder), load_without_weights(folder)
    assert bare.config == whole.config
    assert bare.encode("text") == whole.encode("text")
    assert all(parameter.is_meta for parameter in bare.model.parameters())
