"""The folder of an adapter: its files, its card."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import difflm
from difflm.checkpoints.adapter_saving import finish_adapter, save_adapter
from difflm.checkpoints.convert import convert
from difflm.checkpoints.fields import read_json, write_json
from difflm.checkpoints.loading import load_model
from difflm.checkpoints.manifest import seal_folder
from difflm.checkpoints.merge import average_checkpoints, mean_parameters
from difflm.checkpoints.saving import save_model
from difflm.checkpoints.source import open_checkpoint
from difflm.errors import CheckpointError, ConfigError
from difflm.scoring import logits
from tests.checkpoints.adapters import BASES, adapted, base_folder, same_adapter
from tests.checkpoints.tiny import tokens
from tests.standins import write_parent


def test_the_folder_of_an_adapter_and_its_card(tmp_path: Path) -> None:
    parent = write_parent(tmp_path / "parent")
    (parent / "README.md").write_text("---\nlicense: apache-2.0\n---\n", encoding="utf-8")
    convert(parent, tmp_path / "base", block_size=8)
    save_adapter(adapted(tmp_path / "base", token_ids=(257,)), tmp_path / "adapter")
    files = {path.name for path in (tmp_path / "adapter").iterdir()}
    assert files == {"adapter_config.json", "adapter_model.safetensors", "difflm.json", "README.md"}
    card = (tmp_path / "adapter" / "README.md").read_text(encoding="utf-8")
    assert card.startswith(f"---\nbase_model: {tmp_path / 'base'}\nlibrary_name: peft\nlicense: apache-2.0\ntags:")
    assert "do not decode this model left to right" in card
    assert read_json(tmp_path / "adapter" / "adapter_config.json")["base_model_name_or_path"] == str(tmp_path / "base")


def test_a_model_without_adapter_and_a_folder_in_use(tmp_path: Path) -> None:
    loaded = load_model(write_parent(tmp_path / "parent"))
    with pytest.raises(CheckpointError, match="carries no adapter; write it with save_model"):
        save_adapter(loaded, tmp_path / "x")
    with pytest.raises(CheckpointError, match="output folder is not empty"):
        save_adapter(adapted(tmp_path / "parent"), tmp_path / "parent")
    assert "left to right" not in _card(tmp_path)


@pytest.mark.parametrize("name", BASES)
def test_the_gate_is_saved_loaded_and_never_lost(name: str, tmp_path: Path) -> None:
    base = base_folder(tmp_path / "base", name)
    gated = adapted(base, gate="noisy")
    save_adapter(gated, tmp_path / "adapter")
    assert read_json(tmp_path / "adapter" / "adapter_config.json")["difflm_adapter_rows"] == "noisy"
    card = (tmp_path / "adapter" / "README.md").read_text(encoding="utf-8")
    assert "for masked rows alone" in card
    assert "difflm merge" not in card
    again = load_model(tmp_path / "adapter")
    assert again.adapter is not None
    assert again.adapter.gate == again.model.adapter_gate == "noisy"
    assert same_adapter(gated, again)
    token_BL = tokens(again.config.model.vocab_size)
    off, on = (logits(each, token_BL, attention="causal") for each in (load_model(base), again))
    assert torch.equal(off, on)
    noisy = torch.cat([token_BL, token_BL], dim=1)
    without, with_it = (
        logits(again, noisy, attention="noisy_clean", block_size=4, adapter=each) for each in (False, True)
    )
    assert not torch.allclose(without, with_it)
    with pytest.raises(CheckpointError, match="its adapter acts on noisy rows alone"):
        save_model(again, tmp_path / "merged")
    with pytest.raises(CheckpointError, match=r"its adapter acts on noisy rows alone .*for left-to-right use take"):
        average_checkpoints([tmp_path / "adapter"], tmp_path / "merged")
    with pytest.raises(CheckpointError, match="its adapter acts on noisy rows alone"):
        mean_parameters([tmp_path / "adapter"])
    with pytest.raises(CheckpointError, match="its adapter acts on noisy rows alone"):
        difflm.export(tmp_path / "adapter", tmp_path / "exported")
    assert not (tmp_path / "merged").exists()
    assert not (tmp_path / "exported").exists()


@pytest.mark.parametrize("name", BASES)
def test_a_draft_head_is_saved_and_loaded(name: str, tmp_path: Path) -> None:
    base = base_folder(tmp_path / "base", name)
    gated = adapted(base, gate="noisy", draft_rank=5)
    save_adapter(gated, tmp_path / "adapter")
    assert read_json(tmp_path / "adapter" / "adapter_config.json")["difflm_draft_head"] == 5
    again = load_model(tmp_path / "adapter")
    assert again.adapter is not None
    assert again.model.draft_head is not None
    assert again.adapter.draft_rank == again.model.draft_head.rank == 5
    assert same_adapter(gated, again)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"difflm_draft_head": 4}, r"the draft head is .*\[5, .*expected .*\[4, .*for difflm_draft_head 4"),
        ({"difflm_draft_head": 0}, r"the draft head is .*\[5, .*expected \{\} for difflm_draft_head 0"),
        ({"difflm_draft_head": "5"}, r"difflm_draft_head .*the rank of the draft head"),
        ({"difflm_draft_head": -1}, r"difflm_draft_head .*the rank of the draft head"),
        ({"difflm_draft_head": True}, r"difflm_draft_head .*the rank of the draft head"),
        ({"difflm_adapter_rows": "all"}, r"difflm_draft_head .*absent where difflm_adapter_rows is not 'noisy'"),
    ],
)
def test_a_draft_head_that_is_not_what_its_file_says(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    base = base_folder(tmp_path / "base", "llama")
    save_adapter(adapted(base, gate="noisy", draft_rank=5), tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    write_json(path, read_json(path) | changes)
    with pytest.raises(CheckpointError, match=message):
        load_model(tmp_path / "adapter")


def test_a_draft_head_that_is_missing(tmp_path: Path) -> None:
    base = base_folder(tmp_path / "base", "llama")
    save_adapter(adapted(base, gate="noisy"), tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    assert "difflm_draft_head" not in read_json(path)
    write_json(path, read_json(path) | {"difflm_draft_head": 5})
    with pytest.raises(CheckpointError, match=r"the draft head is missing, expected .*for difflm_draft_head 5"):
        load_model(tmp_path / "adapter")


def test_a_gate_that_is_none(tmp_path: Path) -> None:
    save_adapter(adapted(base_folder(tmp_path / "base", "llama")), tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    raw = read_json(path)
    assert "difflm_adapter_rows" not in raw
    write_json(path, raw | {"difflm_adapter_rows": "clean"})
    with pytest.raises(CheckpointError, match=r"difflm_adapter_rows .*one of all, noisy"):
        load_model(tmp_path / "adapter")


def sealed(folder: Path, base: Path) -> Path:
    """Write what a run leaves of an adapter for noisy rows: its files, moments, counters, section on training, seal."""
    save_adapter(adapted(base, gate="noisy", rank=64), folder)
    (folder / "optimizer.safetensors").write_bytes(b"moments")
    (folder / "training_state.json").write_text("{}", encoding="utf-8")
    with (folder / "README.md").open("a", encoding="utf-8") as card:
        card.write("\n## Training\n\n| tokens | `600` |\n")
    write_json(folder / "generation_config.json", {"decoding": "verified", "custom_generate": "x"})
    write_json(folder / "difflm.json", {"base_sha256": open_checkpoint(base).digest(), "config": {"block_size": 4}})
    seal_folder(folder)
    return folder


@pytest.mark.parametrize("name", BASES)
def test_a_finished_adapter_is_that_of_the_checkpoint(name: str, tmp_path: Path) -> None:
    base = base_folder(tmp_path / "base", name)
    step, done = sealed(tmp_path / "step", base), tmp_path / "new" / "drafter"
    finish_adapter(step, done)
    assert {each.name for each in done.iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", "difflm.json", "generation_config.json", "README.md",
    }  # fmt: skip
    for file in ("adapter_config.json", "difflm.json", "README.md"):
        assert (done / file).read_bytes() == (step / file).read_bytes()
    assert read_json(done / "generation_config.json") == {"decoding": "verified"}, "no code is carried over"
    before, after = load_model(step), load_model(done)
    assert same_adapter(before, after)
    assert after.adapter is not None
    assert (after.model.adapter_gate, after.path) == ("noisy", base)
    assert after.config.block_size == 4
    assert after.config.generation["decoding"] == "verified"


@pytest.mark.parametrize("dtype", ["bfloat16", torch.float16])
def test_a_dtype_is_that_of_the_file(dtype: str | torch.dtype, tmp_path: Path) -> None:
    step = sealed(tmp_path / "step", base_folder(tmp_path / "base", "llama"))
    finish_adapter(step, tmp_path / "finished", dtype=dtype)
    difflm.save_adapter(load_model(step), tmp_path / "saved", dtype=dtype)
    kind = torch.bfloat16 if dtype == "bfloat16" else dtype
    wide = load_file(step / "adapter_model.safetensors")
    for folder in (tmp_path / "finished", tmp_path / "saved"):
        found = load_file(folder / "adapter_model.safetensors")
        assert found.keys() == wide.keys()
        assert all(torch.equal(each, wide[key].to(kind)) for key, each in found.items())
        sizes = [(each / "adapter_model.safetensors").stat().st_size for each in (folder, step)]
        assert sizes[0] == pytest.approx(sizes[1] / 2, rel=0.03)
        assert load_model(folder).adapter == load_model(step).adapter
        assert read_json(folder / "generation_config.json") == {"decoding": "verified"}
    with pytest.raises(ConfigError, match="dtype is 'int8'; expected one of"):
        finish_adapter(step, tmp_path / "x", dtype="int8")
    with pytest.raises(ConfigError, match="dtype is 'int8'; expected one of"):
        save_adapter(load_model(step), tmp_path / "x", dtype="int8")
    assert not (tmp_path / "x").exists()


def test_the_base_s_defaults_stay_the_base_s(tmp_path: Path) -> None:
    base = base_folder(tmp_path / "base", "llama")
    write_json(base / "generation_config.json", {"temperature": 0.5, "decoding": "block"})
    save_adapter(adapted(base, gate="noisy"), tmp_path / "plain")
    assert not (tmp_path / "plain" / "generation_config.json").exists()
    write_json(tmp_path / "plain" / "generation_config.json", {"decoding": "next_token", "verified": {"window": 4}})
    loaded = load_model(tmp_path / "plain")
    save_adapter(loaded, tmp_path / "again")
    finish_adapter(tmp_path / "plain", tmp_path / "finished")
    for folder in (tmp_path / "again", tmp_path / "finished"):
        own = read_json(folder / "generation_config.json")
        assert own == {"decoding": "next_token", "verified": {"window": 4}}
        assert load_model(folder).config.generation == loaded.config.generation


def test_a_base_that_has_moved_and_one_that_is_another(tmp_path: Path) -> None:
    base = base_folder(tmp_path / "base", "llama")
    step = sealed(tmp_path / "step", base)
    base.rename(tmp_path / "moved")
    with pytest.raises(CheckpointError, match=r"base_model_name_or_path .* not here.*difflm merge .* --base BASE"):
        finish_adapter(step, tmp_path / "drafter")
    other = base_folder(tmp_path / "other", "llama")
    weights = load_file(other / "model.safetensors")
    weights["model.norm.weight"] += 1
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="are not those that the adapter was trained on"):
        finish_adapter(step, tmp_path / "drafter", base=other)
    assert not (tmp_path / "drafter").exists()
    finish_adapter(step, tmp_path / "drafter", base=tmp_path / "moved")
    assert read_json(tmp_path / "drafter" / "adapter_config.json")["base_model_name_or_path"] == str(tmp_path / "moved")
    assert f"base_model: {tmp_path / 'moved'}\n" in (tmp_path / "drafter" / "README.md").read_text(encoding="utf-8")
    assert load_model(tmp_path / "drafter").path == tmp_path / "moved"


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors", "difflm.json"])
def test_a_damaged_checkpoint_is_not_finished(name: str, tmp_path: Path) -> None:
    step = sealed(tmp_path / "step", base_folder(tmp_path / "base", "llama"))
    content = bytearray((step / name).read_bytes())
    content[-5] ^= 1
    (step / name).write_bytes(bytes(content))
    with pytest.raises(CheckpointError, match=rf"{name}: damaged .*; name another checkpoint, or restore this one"):
        finish_adapter(step, tmp_path / "drafter")
    assert not (tmp_path / "drafter").exists()
    shutil.rmtree(tmp_path / "base")
    with pytest.raises(CheckpointError, match="output folder is not empty"):
        finish_adapter(step, step)


def _card(folder: Path) -> str:
    save_adapter(adapted(folder / "parent"), folder / "ar")
    return (folder / "ar" / "README.md").read_text(encoding="utf-8")
