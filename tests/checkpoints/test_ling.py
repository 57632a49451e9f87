"""A Ling 2.0 checkpoint becomes LLaDA2: same weights, other fields, no multi-token prediction, a mask of its own."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from difflm.checkpoints.convert import convert
from difflm.checkpoints.engines import Engine
from difflm.checkpoints.fields import read_json, write_json
from difflm.checkpoints.loading import load_model
from difflm.checkpoints.saving import save_model
from difflm.cli.main import run
from difflm.errors import CheckpointError
from difflm.scoring import logits
from tests.checkpoints.tiny import LING, ling_folder, make_tokenizer, sarvam, tokens
from tests.golden import golden

BASE = ("<|startoftext|>", "<|endoftext|>", "[CLS]", "[gMASK]")
CHAT = (*BASE, "<|role_end|>")
TEMPLATE = (
    "{% for m in messages %}<role>{{ m['role'] }}</role>{{ m['content'] }}<|role_end|>{% endfor %}"
    "{% if add_generation_prompt %}<role>ASSISTANT</role>{% endif %}"
)


def ling(folder: Path, *, chat: bool = False, **changes: Any) -> Path:
    """Write a tiny Ling with its base or its chat tokenizer."""
    tokenizer = make_tokenizer(CHAT if chat else BASE, eos="<|endoftext|>", template=TEMPLATE if chat else None)
    tokenizer.bos_token = "<|startoftext|>"
    ids = tokenizer.get_vocab()
    raw = {"vocab_size": len(tokenizer) + 8, "eos_token_id": ids["<|endoftext|>"], "pad_token_id": ids["<|endoftext|>"]}
    ling_folder(folder, tokenizer=tokenizer, **(raw | {"bos_token_id": ids["<|startoftext|>"]} | changes))
    if chat:
        write_json(folder / "generation_config.json", {"eos_token_id": [ids["<|endoftext|>"], ids["<|role_end|>"]]})
    return folder


def test_weights_stay_and_fields_change(tmp_path: Path) -> None:
    parent = ling(tmp_path / "a", num_nextn_predict_layers=1, mtp_loss_scaling_factor=0.1, dtype=torch.bfloat16)
    done = convert(parent, tmp_path / "b", max_shard_bytes=40_000)
    before, after = load_file(parent / "model.safetensors"), {}
    for file in (tmp_path / "b").glob("*.safetensors"):
        after |= load_file(file)
    assert set(before) - set(after) == set(done.left_out) == {name for name in before if "layers.3." in name}
    assert not set(after) - set(before)
    assert after["model.layers.1.mlp.gate.expert_bias"].dtype == torch.float32
    assert after["model.layers.1.mlp.gate.weight"].dtype == torch.bfloat16
    for name, value in after.items():
        same = value.dtype == before[name].dtype and torch.equal(value, before[name])
        assert same == (name != "model.word_embeddings.weight"), name
    changed = (after["model.word_embeddings.weight"] != before["model.word_embeddings.weight"]).any(-1).nonzero()
    assert changed.flatten().tolist() == [done.mask_token_id]
    raw = read_json(tmp_path / "b" / "config.json")
    assert (raw["model_type"], raw["architectures"]) == ("llada2_moe", ["LLaDA2MoeModelLM"])
    assert not {"num_nextn_predict_layers", "mtp_loss_scaling_factor", "auto_map"} & set(raw)
    assert (raw["use_cache"], raw["mask_token_id"], raw["dtype"]) == (False, done.mask_token_id, "bfloat16")
    kept = set(LING) - {"architectures", "model_type", "vocab_size", "bos_token_id", "eos_token_id"}
    assert {name: raw[name] for name in kept} == {name: LING[name] for name in kept}
    assert raw["difflm"]["left_out"] == sorted(done.left_out)
    card = (tmp_path / "b" / "README.md").read_text(encoding="utf-8")
    assert "Its `model_type` is `llada2_moe`" in card
    assert "| left out | `" in card


def test_every_field_is_written_even_where_the_parent_is_silent(tmp_path: Path) -> None:
    """The class defaults (dropout 0.1, another padding id, ...) are those of no model."""
    parent = ling(tmp_path / "a")
    raw = read_json(parent / "config.json")
    for name in ("use_qk_norm", "pad_token_id", "eos_token_id", "bos_token_id", "tie_word_embeddings", "rotary_dim"):
        del raw[name]
    write_json(parent / "config.json", raw)
    convert(parent, tmp_path / "b")
    written, eos = read_json(tmp_path / "b" / "config.json"), make_tokenizer(BASE).get_vocab()["<|endoftext|>"]
    expected = {
        "use_qk_norm": True,
        "pad_token_id": eos,
        "eos_token_id": eos,
        "tie_word_embeddings": False,
        "rotary_dim": 6,
        "embedding_dropout": 0.0,
        "attention_dropout": 0.0,
        "output_dropout": 0.0,
        "initializer_range": 0.02,
        "norm_head": False,
        "use_sliding_window": False,
        "moe_shared_expert_intermediate_size": 20,
    }
    assert written == written | expected


def test_the_mask_is_found_by_its_string(tmp_path: Path) -> None:
    """With the base tokenizer it is the next id; with the chat tokenizer that id is `<|role_end|>`, and it is kept."""
    base, chat = ling(tmp_path / "base"), ling(tmp_path / "chat", chat=True)
    ids = make_tokenizer(CHAT).get_vocab()
    done = [convert(folder, tmp_path / f"{folder.name} out") for folder in (base, chat)]
    assert done[0].mask_token == done[1].mask_token == "<|mask|>"
    assert done[1].mask_token_id == len(ids)
    loaded = load_model(tmp_path / "chat out")
    assert loaded.config.eos_token_ids == (ids["<|endoftext|>"], ids["<|role_end|>"])
    assert loaded.encode_chat([{"role": "HUMAN", "content": "a"}]).count(ids["<|role_end|>"]) == 1
    with pytest.raises(CheckpointError, match=r"'<\|role_end\|>' has id \d+, which is an end-of-text \(EOS\) token"):
        convert(chat, tmp_path / "c", mask_token="<|role_end|>")
    with pytest.raises(CheckpointError, match="mask_token_id is 4 but there is a tokenizer; name mask_token instead"):
        convert(chat, tmp_path / "c", mask_token_id=ids["<|role_end|>"])
    assert not (tmp_path / "c").exists()


def test_a_token_in_the_place_of_the_engines_mask_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As 156895 of Ling's chat tokenizer; in the base tokenizer that id is free."""
    role_end = len(BASE)
    mask_ids = {"LLaDA2MoeModelLM": role_end}
    monkeypatch.setattr("difflm.checkpoints.convert.ENGINES", {"one": Engine(title="", mask_ids=mask_ids, command="")})
    with pytest.warns(UserWarning, match=rf"LLaDA2MoeModelLM, {role_end}, which is '<\|role_end\|>' here; the mask is"):
        convert(ling(tmp_path / "chat", chat=True), tmp_path / "b")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        mask_ids["LLaDA2MoeModelLM"] = len(make_tokenizer(BASE))
        convert(ling(tmp_path / "base"), tmp_path / "c")


def test_a_published_llada2_leaves_its_mask_to_the_tokenizer(tmp_path: Path) -> None:
    convert(ling(tmp_path / "a"), tmp_path / "b")
    mask_id = load_model(tmp_path / "b").config.mask_token_id
    raw = read_json(tmp_path / "b" / "config.json")
    for name in ("mask_token_id", "mask_token", "block_size", "logit_shift", "difflm"):
        del raw[name]
    write_json(tmp_path / "b" / "config.json", raw)
    loaded = load_model(tmp_path / "b")
    assert (loaded.config.mask_token_id, loaded.config.mask_token) == (mask_id, "<|mask|>")
    write_json(tmp_path / "b" / "config.json", raw | {"model_type": "bailing_moe"})
    assert load_model(tmp_path / "b").config.mask_token_id is None, "an AR model has none, whatever its tokenizer says"
    write_json(tmp_path / "b" / "config.json", raw | {"eos_token_id": mask_id})
    with pytest.raises(CheckpointError, match=r"mask_token_id is .*; expected an id that does not end a text"):
        load_model(tmp_path / "b")


def test_the_golden_parent_becomes_the_golden_model(tmp_path: Path) -> None:
    """Same logits under every visibility as the published diffusion model, whose weights are the parent's."""
    convert(golden.checkpoint("bailing", tmp_path / "a"), tmp_path / "b", mask_token_id=300, mask_init="keep")
    ours, theirs = load_model(tmp_path / "b"), load_model(golden.checkpoint("llada2", tmp_path / "c"))
    assert ours.config.model == theirs.config.model
    assert ours.config.mask_token_id == theirs.config.mask_token_id == 300
    token_BL = tokens(300, length=40)
    assert torch.equal(
        logits(ours, token_BL, attention="block", block_size=8),
        logits(theirs, token_BL, attention="block", block_size=8),
    )


def test_the_converted_model_still_loads_in_transformers(tmp_path: Path) -> None:
    convert(ling(tmp_path / "a", num_nextn_predict_layers=1), tmp_path / "b")
    loaded, reference = load_model(tmp_path / "b"), sarvam(tmp_path / "b", tmp_path / "oracle")
    token_BL = tokens(60)
    with torch.no_grad():
        expected = reference(token_BL).logits
    assert float((logits(loaded, token_BL, attention="causal") - expected).abs().max()) < 1e-4


def test_saving_the_parent_keeps_its_family(tmp_path: Path) -> None:
    parent = ling(tmp_path / "a", num_nextn_predict_layers=1)
    save_model(load_model(parent), tmp_path / "b")
    raw = read_json(tmp_path / "b" / "config.json")
    assert (raw["model_type"], raw["num_nextn_predict_layers"]) == ("bailing_moe", 0)
    assert torch.equal(load_model(tmp_path / "b").model.head.weight, load_model(parent).model.head.weight)


def test_the_command_says_what_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parent = ling(tmp_path / "a", num_nextn_predict_layers=1)
    assert run(["convert", str(parent), str(tmp_path / "b")]) == 0
    said = capsys.readouterr().out
    assert "left out: 39 tensors of model.layers.3 (multi-token prediction" in said
    assert "llada2_moe, mask token <|mask|>" in said


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_biases_of_experts_survive_any_dtype(dtype: str, tmp_path: Path) -> None:
    """Loading, saving and converting in bfloat16 leave the float32 bias as it is."""
    parent = ling(tmp_path / "a")
    name = "model.layers.2.mlp.gate.expert_bias"
    expected = load_file(parent / "model.safetensors")[name]
    assert not torch.equal(expected, expected.bfloat16().float())
    convert(parent, tmp_path / "b", dtype=dtype)
    loaded = load_model(tmp_path / "b", dtype=dtype)
    save_model(loaded, tmp_path / "c")
    save_model(loaded, tmp_path / "d", dtype="bfloat16")
    for folder in ("b", "c", "d"):
        stored = load_file(tmp_path / folder / "model.safetensors")
        assert torch.equal(stored[name], expected), folder
    assert stored["model.layers.2.mlp.gate.weight"].dtype == torch.bfloat16
    assert read_json(tmp_path / "d" / "config.json")["dtype"] == "bfloat16"
