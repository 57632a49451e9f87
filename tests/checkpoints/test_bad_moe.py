"""Folders of mixtures of experts that cannot be used: each is refused in one line that names file and field."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from difflm.checkpoints.convert import convert
from difflm.checkpoints.export import export
from difflm.checkpoints.fields import read_json, write_json
from difflm.checkpoints.loading import load_model
from difflm.checkpoints.source import open_checkpoint
from difflm.errors import CheckpointError
from tests.checkpoints.tiny import LING, ling_folder, make_tokenizer

EXPERT = "model.layers.1.mlp.experts.3.up_proj.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return ling_folder(tmp_path / "model", model_type="llada2_moe", mask_token_id=66)


def refused(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)
    return str(caught.value)


def changed(folder: Path, **fields: Any) -> None:
    write_json(folder / "config.json", read_json(folder / "config.json") | fields)


def rewritten(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"score_function": "softmax"}, "score_function is 'softmax'; expected sigmoid"),
        ({"score_function": None}, "score_function is missing; expected sigmoid"),
        ({"num_experts": 9}, "n_group is 4; expected a divisor of num_experts (9)"),
        ({"n_group": 0}, "n_group is 0; expected 1, with topk_group 1, where experts have no groups"),
        (
            {"quantization_config": {"quant_method": "fp8"}},
            "quantization_config is set (fp8); quantised safetensors",
        ),
        ({"compression_config": {}}, "compression_config is set; quantised safetensors are not supported"),
        ({"use_rmsnorm": False}, "use_rmsnorm is False; expected true (no other norm is implemented)"),
        ({"use_bias": None}, "use_bias is missing; expected a value (its class default is that of no released model)"),
        ({"rms_norm_eps": None}, "rms_norm_eps is missing; expected a value (its class default"),
        ({"rope_theta": None}, "rope_theta is missing; expected a positive number"),
        ({"mask_token_id": 67}, "mask_token_id is 67; expected an id below vocab_size (67)"),
        ({"mask_token_id": 2}, "mask_token_id is 2; expected an id that does not end a text"),
    ],
)
def test_fields(fields: dict[str, Any], message: str, folder: Path) -> None:
    changed(folder, **fields)
    assert f"{folder}/config.json: {message}" in refused(folder)


def test_a_missing_expert_is_named(folder: Path) -> None:
    rewritten(folder, lambda tensors: tensors.pop(EXPERT))
    assert f"tensors do not fit the configuration; missing: {EXPERT}" in refused(folder)


def test_a_missing_shard_of_experts_is_named(folder: Path, tmp_path: Path) -> None:
    export(folder, tmp_path / "shards", max_shard_bytes=20_000)
    index = read_json(tmp_path / "shards" / "model.safetensors.index.json")["weight_map"]
    (tmp_path / "shards" / index[EXPERT]).unlink()
    message = refused(tmp_path / "shards")
    assert f"model.safetensors.index.json: names {index[EXPERT]}, not in the folder; copy the missing shard" in message


def test_tensors_of_eight_bits_are_refused_without_a_field(folder: Path) -> None:
    rewritten(folder, lambda tensors: tensors.update({EXPERT: tensors[EXPERT].to(torch.float8_e4m3fn)}))
    message = refused(folder)
    assert f"tensor {EXPERT} has dtype F8_E4M3; only F64, F32, F16, BF16 are supported, quantised weights" in message


def test_the_field_is_named_before_the_tensors(folder: Path) -> None:
    rewritten(folder, lambda tensors: tensors.update({EXPERT: tensors[EXPERT].to(torch.float8_e4m3fn)}))
    changed(folder, quantization_config={"quant_method": "fp8", "weight_block_size": [128, 128]})
    with pytest.raises(CheckpointError, match=r"quantization_config is set \(fp8\)"):
        open_checkpoint(folder)


def test_experts_both_split_and_stacked_are_refused(folder: Path) -> None:
    rewritten(folder, lambda tensors: tensors.update({"model.layers.1.mlp.experts.up_proj": torch.zeros(8, 20, 32)}))
    assert "unexpected: model.layers.1.mlp.experts.up_proj" in refused(folder)


def test_a_stack_of_another_number_of_experts_is_refused(folder: Path, tmp_path: Path) -> None:
    stacked = tmp_path / "stacked"
    export(folder, stacked, format="stacked")
    file = next(stacked.glob("*.safetensors"))
    tensors = load_file(file)
    tensors["model.layers.1.mlp.experts.up_proj"] = torch.zeros(7, 20, 32)
    save_file(tensors, file, metadata={"format": "pt"})
    assert "model.layers.1.mlp.experts.up_proj is [7, 20, 32], config.json says [8, 20, 32]" in refused(stacked)


def with_header(file: Path, change: Callable[[str], str]) -> None:
    """Rewrite the header of a safetensors file, its data untouched."""
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = change(content[8 : 8 + length].decode()).encode()
    file.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + length :])


def _overlap(header: str) -> str:
    """Let a tensor begin where the one before it begins."""
    entries = json.loads(header)
    entries[EXPERT]["data_offsets"] = entries["model.layers.1.mlp.experts.2.up_proj.weight"]["data_offsets"]
    return json.dumps(entries)


def _hole(header: str) -> str:
    """Leave the bytes of a tensor to no one."""
    entries = json.loads(header)
    del entries[EXPERT]
    return json.dumps(entries)


def _twice(header: str) -> str:
    """Name a tensor twice, at two places."""
    other = json.loads(header)["model.layers.1.mlp.experts.2.up_proj.weight"]
    return header.rstrip()[:-1] + f', "{EXPERT}": {json.dumps(other)}' + "}"


@pytest.mark.parametrize("change", [_overlap, _hole, _twice])
def test_headers_whose_ranges_do_not_fit_are_refused(change: Callable[[str], str], folder: Path) -> None:
    with_header(folder / "model.safetensors", change)
    message = refused(folder)
    assert f"{folder}/model.safetensors: damaged or truncated safetensors file (" in message


def test_a_mask_that_marks_turns_is_refused(tmp_path: Path) -> None:
    """LLaDA2's configuration beside Ling's chat tokenizer, where the mask's id is a turn token but ends no text."""
    tokenizer = make_tokenizer(("<|endoftext|>", "<|role_end|>"), eos="<|endoftext|>", template=None)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}<|role_end|>{% endfor %}"
    ids: dict[str, Any] = {"vocab_size": len(tokenizer), "eos_token_id": 0, "bos_token_id": 0, "mask_token_id": 1}
    folder = ling_folder(tmp_path / "a", tokenizer=tokenizer, model_type="llada2_moe", **ids)
    message = refused(folder)
    assert "mask_token_id is 1; expected an id that the chat template does not use (this one marks a turn)" in message
    changed(folder, mask_token_id=None, model_type="bailing_moe")
    with pytest.raises(CheckpointError, match=r"'<\|role_end\|>' has id 1, which is a turn token of the chat template"):
        convert(folder, tmp_path / "b", mask_token="<|role_end|>")
    assert convert(folder, tmp_path / "b").mask_token_id == len(tokenizer)


def test_a_mask_that_text_is_made_of_is_refused(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(("<|endoftext|>", "<|mask|>"), eos="<|endoftext|>", template=None)
    ids: dict[str, Any] = {"vocab_size": len(tokenizer), "eos_token_id": 0, "bos_token_id": 0}
    word = tokenizer.get_vocab()["the"]
    folder = ling_folder(tmp_path, tokenizer=tokenizer, model_type="llada2_moe", mask_token_id=word, **ids)
    message = refused(folder)
    assert f"mask_token_id is {word}; expected the id of a spare token (text is made of this one, 'the')" in message
    changed(folder, mask_token_id=1)
    assert load_model(folder).config.mask_token == "<|mask|>"


def test_a_parent_with_the_tokenizer_of_a_release_takes_its_mask(tmp_path: Path) -> None:
    """The mask's id is the one that engines have built in only if the tokenizer has it there."""
    tokenizer = make_tokenizer(("<|endoftext|>", "<|role_end|>", "<|mask|>"), eos="<|endoftext|>", template=None)
    tokenizer.mask_token = "<|mask|>"
    folder = ling_folder(tmp_path / "a", tokenizer=tokenizer, vocab_size=len(tokenizer), eos_token_id=0, bos_token_id=0)
    with pytest.raises(CheckpointError, match=r"already has '<\|mask\|>' \(id 2\); name it: mask_token='<\|mask\|>'"):
        convert(folder, tmp_path / "b")
    done = convert(folder, tmp_path / "b", mask_token="<|mask|>", mask_init="keep")
    assert (done.mask_token_id, done.adds_row) == (2, False)
    assert load_model(tmp_path / "b").config.mask_token_id == 2


@pytest.mark.parametrize("alias", ["bailing_moe_v2", "bailing_moe"])
def test_a_parent_by_any_name_is_converted(alias: str, tmp_path: Path) -> None:
    folder = ling_folder(tmp_path / "a", model_type=alias, num_nextn_predict_layers=2)
    done = convert(folder, tmp_path / "b")
    raw = read_json(tmp_path / "b" / "config.json")
    assert (done.family, raw["model_type"]) == ("llada2_moe", "llada2_moe")
    assert {name.split(".")[2] for name in done.left_out} == {"3", "4"}
    assert set(LING) - {"bos_token_id"} <= set(raw)
