"""Adapters with their base: loaded beside it, merged into its files, averaged; never with another base."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import difflm
from difflm.checkpoints.adapter import AdapterMean, adapter_of, config_changes, digest_of
from difflm.checkpoints.adapter_config import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from difflm.checkpoints.adapter_saving import save_adapter
from difflm.checkpoints.fields import read_json, write_json
from difflm.checkpoints.loading import load_model, load_without_weights
from difflm.checkpoints.saving import save_model
from difflm.checkpoints.source import open_checkpoint
from difflm.errors import CheckpointError, ConfigError
from difflm.models.adapters import merged_tensors
from difflm.scoring import logits
from tests.checkpoints.adapters import BASES, adapted, base_folder
from tests.checkpoints.test_adapter_peft import TOKENS, distance
from tests.checkpoints.tiny import causal, hf_folder, make_tokenizer
from tests.checkpoints.tiny_gguf import write_gguf


def refused(call: object, *given: object, **named: object) -> str:
    assert callable(call)
    with pytest.raises((CheckpointError, ConfigError)) as caught:
        call(*given, **named)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", BASES)
def test_merged_files_compute_what_the_adapter_beside_its_base_computes(name: str, tmp_path: Path) -> None:
    base = base_folder(tmp_path / "base", name)
    save_adapter(adapted(base), tmp_path / "adapter")
    difflm.merge([tmp_path / "adapter"], tmp_path / "merged")
    apart, merged = (load_model(tmp_path / each, dtype="float64") for each in ("adapter", "merged"))
    assert (apart.path, merged.adapter) == (base, None)
    ours, theirs = (logits(each, TOKENS, attention="causal") for each in (apart, merged))
    # The merged weights were rounded once to the float32 of the files; in float64 nothing else differs.
    assert distance(ours, theirs) < 1e-5
    save_model(load_model(tmp_path / "adapter"), tmp_path / "saved")
    one, two = (load_file(tmp_path / each / "model.safetensors") for each in ("saved", "merged"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one), "merged in memory or file by file: the same bits"
    assert read_json(tmp_path / "merged" / "config.json")["difflm"]["merged"][0]["name"] == "adapter"


def test_float64_merged_and_apart_agree_to_rounding(tmp_path: Path) -> None:
    loaded = load_model(base_folder(tmp_path / "base", "llada2_moe"), dtype="float64")
    save_adapter(adapted(tmp_path / "base"), tmp_path / "adapter")
    apart = load_model(tmp_path / "adapter", dtype="float64")
    loaded.model.load_state_dict(merged_tensors(apart.model))
    ours, theirs = (logits(each, TOKENS, attention="block", block_size=4) for each in (apart, loaded))
    assert distance(ours, theirs) < 1e-6
    with torch.no_grad():
        position_BL = torch.arange(TOKENS.shape[1]).expand_as(TOKENS)
        one, two = (each.model(TOKENS, position_BL, causal) for each in (apart, loaded))
    assert float((one - two).abs().max()) < 1e-12


def test_the_mean_of_adapters_is_the_mean_of_their_merged_weights(tmp_path: Path) -> None:
    """Not the mean of A times the mean of B."""
    base = base_folder(tmp_path / "base", "llada2_moe")
    for seed in (1, 2):
        save_adapter(adapted(base, seed=seed, token_ids=(seed, 9)), tmp_path / f"a{seed}")
        difflm.merge([tmp_path / f"a{seed}"], tmp_path / f"m{seed}")
    weights = [3.0, 1.0]
    difflm.merge([tmp_path / "a1", tmp_path / "a2"], tmp_path / "mean", weights=weights)
    difflm.merge([tmp_path / "m1", tmp_path / "m2"], tmp_path / "expected", weights=weights)
    found, expected = (load_file(tmp_path / each / "model.safetensors") for each in ("mean", "expected"))
    for name, tensor in expected.items():
        assert torch.allclose(found[name], tensor, rtol=1e-6, atol=1e-7), name
    record = read_json(tmp_path / "mean" / "config.json")["difflm"]["merged"]
    assert [(each["name"], each["weight"]) for each in record] == [("a1", 0.75), ("a2", 0.25)]
    assert all(len(each["sha256"][ADAPTER_WEIGHTS]) == 64 for each in record)


def test_a_bfloat16_base_is_rounded_once_and_float32_keeps_small_deltas(tmp_path: Path) -> None:
    base = base_folder(tmp_path / "half", "llama")
    save_model(load_model(base), tmp_path / "base", dtype="bfloat16")
    loaded = adapted(tmp_path / "base", alpha=1e-3)
    save_adapter(loaded, tmp_path / "adapter")
    difflm.merge([tmp_path / "adapter"], tmp_path / "narrow")
    difflm.merge([tmp_path / "adapter"], tmp_path / "wide", dtype="float32")
    before, narrow, wide = (load_file(tmp_path / each / "model.safetensors") for each in ("base", "narrow", "wide"))
    name = "model.layers.0.mlp.up_proj.weight"
    assert (narrow[name].dtype, wide[name].dtype) == (torch.bfloat16, torch.float32)
    assert torch.equal(narrow[name], wide[name].bfloat16())
    assert float((narrow[name] == before[name]).float().mean()) > 0.9, "the delta is below the spacing of bfloat16"
    assert torch.allclose(
        wide[name] - before[name].float(), merged_tensors(loaded.model)["layers.0.mlp.up.weight"] - before[name].float()
    )
    assert not torch.equal(wide[name], before[name].float())


def test_wide_biases_of_experts_stay_wide_in_a_narrow_merge(tmp_path: Path) -> None:
    save_adapter(adapted(base_folder(tmp_path / "base", "llada2_moe")), tmp_path / "adapter")
    difflm.merge([tmp_path / "adapter"], tmp_path / "merged", dtype="bfloat16")
    tensors = load_file(tmp_path / "merged" / "model.safetensors")
    assert {each.dtype for name, each in tensors.items() if name.endswith("expert_bias")} == {torch.float32}
    assert {each.dtype for name, each in tensors.items() if not name.endswith("expert_bias")} == {torch.bfloat16}


def test_an_adapter_knows_its_base_by_hash(tmp_path: Path) -> None:
    base = base_folder(tmp_path / "base", "llama")
    loaded = adapted(base)
    assert loaded.adapter is not None
    digest = open_checkpoint(base).digest()
    save_adapter(replace(loaded, adapter=replace(loaded.adapter, base_sha256=digest)), tmp_path / "adapter")
    assert load_model(tmp_path / "adapter").adapter == replace(loaded.adapter, base_sha256=digest)
    other = base_folder(tmp_path / "other", "llama")
    weights = load_file(other / "model.safetensors")
    weights["model.norm.weight"][0] += 1
    save_file(weights, other / "model.safetensors")
    for call in (load_model, lambda path, adapter: difflm.merge([adapter], tmp_path / "x", base=path)):
        message = refused(call, other, adapter=tmp_path / "adapter")
        assert message.startswith(f"{other}: config.json or weights are not those that the adapter was trained on")
    assert load_without_weights(tmp_path / "adapter").path == base


def test_a_base_that_is_not_there_or_does_not_fit(tmp_path: Path) -> None:
    base = base_folder(tmp_path / "base", "llama")
    save_adapter(adapted(base), tmp_path / "adapter")
    base.rename(tmp_path / "moved")
    message = refused(load_model, tmp_path / "adapter")
    assert f"base_model_name_or_path is '{base}', which is not here; mend it there" in message
    assert f"load_model(BASE, adapter='{tmp_path / 'adapter'}')" in message
    assert load_model(tmp_path / "moved", adapter=tmp_path / "adapter").path == tmp_path / "moved"
    difflm.merge([tmp_path / "adapter"], tmp_path / "merged", base=tmp_path / "moved")
    raw = read_json(tmp_path / "adapter" / ADAPTER_CONFIG)
    write_json(tmp_path / "adapter" / ADAPTER_CONFIG, raw | {"base_model_name_or_path": None})
    assert "base_model_name_or_path is missing; write it there" in refused(load_model, tmp_path / "adapter")
    other = base_folder(tmp_path / "qwen", "qwen3")
    assert "do not fit the base's [48, 32]" in refused(load_model, other, adapter=tmp_path / "adapter")


def test_an_adapter_on_an_adapter_is_refused(tmp_path: Path) -> None:
    save_adapter(adapted(base_folder(tmp_path / "base", "llama")), tmp_path / "adapter")
    message = refused(load_model, tmp_path / "adapter", adapter=tmp_path / "adapter")
    assert "the base of an adapter is an adapter itself; merge that into its base first" in message


def test_files_that_are_missing_or_damaged(tmp_path: Path) -> None:
    base = base_folder(tmp_path / "base", "llama")
    save_adapter(adapted(base), tmp_path / "adapter")
    path = tmp_path / "adapter" / ADAPTER_WEIGHTS
    path.write_bytes(path.read_bytes()[:-10])
    assert f"{path}: damaged or truncated" in refused(load_model, tmp_path / "adapter")
    path.rename(path.with_name("adapter_model.bin"))
    assert f"{path}: only adapter_model.bin, which is never opened" in refused(load_model, tmp_path / "adapter")
    path.with_name("adapter_model.bin").unlink()
    assert f"{path}: it is missing; save the adapter as safetensors" in refused(load_model, tmp_path / "adapter")
    assert f"{base}: no adapter; expected a folder with adapter_config.json" in refused(load_model, base, adapter=base)


def test_what_cannot_be_averaged(tmp_path: Path) -> None:
    base = base_folder(tmp_path / "base", "llama")
    other = base_folder(tmp_path / "other", "llama")
    loaded = adapted(base)
    save_adapter(loaded, tmp_path / "a")
    save_adapter(adapted(other), tmp_path / "b")
    assert loaded.adapter is not None
    wider = replace(loaded.adapter, updates={"block_size": 8})
    save_adapter(replace(loaded, adapter=wider), tmp_path / "c")
    a, b, c, target = (tmp_path / each for each in ("a", "b", "c", "target"))
    assert f"{base}: is no adapter, others are" in refused(difflm.merge, [a, base], target)
    assert f"{b}: its base is {other}, that of {a} is {base}" in refused(difflm.merge, [a, b], target)
    assert f"{c}: block_size differ from {a}" in refused(difflm.merge, [a, c], target)
    assert f"base: {base} is the base of adapters, but {other} is none" in refused(
        difflm.merge, [other], target, base=base
    )
    difflm.merge([a, b], target, base=base)
    assert "weights: 2 for 1" in refused(difflm.merge, [a], tmp_path / "t", weights=[1.0, 2.0])


def test_fields_that_a_run_changed_are_those_of_the_merged_model(tmp_path: Path) -> None:
    loaded = adapted(base_folder(tmp_path / "base", "llama"))
    assert loaded.adapter is not None
    changed = replace(loaded.adapter, updates={"block_size": 8, "rope_theta": 7.0, "difflm": {"recipe": "r"}})
    save_adapter(replace(loaded, adapter=changed), tmp_path / "adapter")
    assert load_model(tmp_path / "adapter").config.block_size == 8
    difflm.merge([tmp_path / "adapter"], tmp_path / "merged")
    raw = read_json(tmp_path / "merged" / "config.json")
    assert (raw["block_size"], raw["difflm"]["recipe"]) == (8, "r")
    assert config_changes({"a": 1, "b": 2}, {"a": 1, "c": 3}) == {"b": None, "c": 3}


def test_defaults_of_decoding_beside_an_adapter_are_before_the_base_s(tmp_path: Path) -> None:
    base = base_folder(tmp_path / "base", "llama")
    write_json(base / "generation_config.json", {"threshold": 0.5, "verified": {"start": 4, "window": 2}})
    save_adapter(adapted(base), tmp_path / "adapter")
    assert load_model(tmp_path / "adapter").config.generation == load_model(base).config.generation
    write_json(tmp_path / "adapter" / "generation_config.json", {"decoding": "verified", "verified": {"window": 8}})
    assert load_model(tmp_path / "adapter").config.generation == {
        "threshold": 0.5, "decoding": "verified", "verified": {"start": 4, "window": 8},
    }  # fmt: skip
    assert "decoding" not in load_model(base).config.generation


def test_one_adapter_alone_keeps_its_row_to_the_bit(tmp_path: Path) -> None:
    loaded = adapted(base_folder(tmp_path / "base", "tied"))
    assert loaded.adapter is not None
    mean = AdapterMean((adapter_of(loaded.model, loaded.adapter),))
    weight = loaded.model.embedding.weight.detach()
    merged = mean.merged("embedding.weight", weight)
    assert loaded.model.token_rows is not None
    assert torch.equal(merged[5], loaded.model.token_rows.weight[0])
    assert torch.equal(merged[:5], weight[:5])
    norm = loaded.model.norm.weight.detach()
    assert mean.merged("norm.weight", norm) is norm


def test_the_digest_is_that_of_names_and_contents(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    files = [tmp_path / "a", tmp_path / "b"]
    before = digest_of(files)
    assert digest_of(reversed(files)) == before
    (tmp_path / "b").write_text("c")
    assert digest_of(files) != before


def test_a_gguf_base_carries_an_adapter_and_takes_it_in(tmp_path: Path) -> None:
    """Its query and key rows lie in another order in the file; the adapter's are those of safetensors."""
    pytest.importorskip("gguf")
    model = hf_folder(tmp_path / "base", "llama", tokenizer=make_tokenizer(), vocab_size=320)
    write_gguf(tmp_path / "base.gguf", model, tokenizer=make_tokenizer())
    save_adapter(adapted(tmp_path / "base"), tmp_path / "adapter")
    expected = logits(load_model(tmp_path / "adapter"), TOKENS, attention="causal")
    apart = load_model(tmp_path / "base.gguf", adapter=tmp_path / "adapter")
    assert distance(logits(apart, TOKENS, attention="causal"), expected) < 1e-5
    difflm.merge([tmp_path / "adapter"], tmp_path / "merged", base=tmp_path / "base.gguf")
    assert distance(logits(load_model(tmp_path / "merged"), TOKENS, attention="causal"), expected) < 1e-5


def test_export_merges_as_it_reads(tmp_path: Path) -> None:
    """An adapter is a checkpoint wherever one is read."""
    base = base_folder(tmp_path / "base", "llada2_moe")
    save_adapter(adapted(base), tmp_path / "adapter")
    difflm.export(tmp_path / "adapter", tmp_path / "exported")
    difflm.merge([tmp_path / "adapter"], tmp_path / "merged")
    [file] = (tmp_path / "exported").glob("*.safetensors")
    one, two = load_file(file), load_file(tmp_path / "merged" / "model.safetensors")
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
