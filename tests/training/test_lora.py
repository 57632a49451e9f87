"""Runs with an adapter: only it learns and is saved; resumed to the bit, merged, refused with another base."""

from __future__ import annotations

import hashlib
import re
import shutil
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import difflm
from difflm.checkpoints.adapter_config import ADAPTER_WEIGHTS, is_adapter
from difflm.checkpoints.adapter_names import adapter_layout
from difflm.checkpoints.families import FAMILIES, model_config
from difflm.checkpoints.fields import read_json
from difflm.checkpoints.loading import load_model
from difflm.checkpoints.source import open_checkpoint
from difflm.errors import CheckpointError, ConfigError
from difflm.models.adapters import adapter_parameters
from difflm.scoring import logits, score_input
from difflm.training.config_lora import LoRAConfig
from difflm.training.lora import sites_of
from difflm.training.merge_methods import Best, Window
from difflm.training.merging import MergedRun, compare_merges, merge_run
from difflm.training.state import MOMENTS
from difflm.training.trainer import Trainer
from tests.checkpoints.tiny import LING, tokens
from tests.training.runs import Notes, config_of
from tests.training.test_resume import rows_of, run_with_stops

LORA: dict[str, Any] = {"rank": 4, "alpha": 8.0}
EVERYWHERE = LORA | {"targets": ["attention", "experts"]}


def digests(folder: Path) -> dict[str, str]:
    """Return the content of every file of a checkpoint, seconds and hashes of them left out."""
    found = {}
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        if path.name == "training_state.json":
            content = re.sub(rb'"seconds": [^\n]*', b"", content)
        if path.name != "manifest.json":
            found[path.name] = hashlib.sha256(content).hexdigest()
    return found


def ladder(files: dict[str, Path], output: Path, *, tokens: int = 700, **changes: Any) -> Any:
    curriculum = [{"block_size": 4, "tokens": tokens}, {"block_size": 8, "tokens": tokens}]
    checkpoint = {"every_tokens": 200, "keep": 20, "keep_best": 20}
    return config_of(files, output, curriculum=curriculum, checkpoint=checkpoint, **changes)


@pytest.mark.parametrize(("kind", "dtype"), [("dense", "bfloat16"), ("ling", "bfloat16"), ("qwen", "float32")])
def test_an_interrupted_run_ends_as_a_whole_one_and_only_the_adapter_learns(
    files: dict[str, Path], mixtures: dict[str, Path], tmp_path: Path, kind: str, dtype: str
) -> None:
    given, model = (files, "paper") if kind == "dense" else (mixtures, {"ling": "paper", "qwen": "qwen"}[kind])
    folders = []
    for name, stops in (("whole", ()), ("stopped", (1, 4))):
        config = ladder(
            given,
            tmp_path / name,
            tokens=320,
            model=model,
            dtype=dtype,
            lora=LORA if kind == "dense" else EVERYWHERE,
            optimizer={"learning_rate": 1e-2, "kind": "muon" if kind == "ling" else "adamw"},
        )
        folders.append(run_with_stops(config, stops))
    assert digests(folders[0]) == digests(folders[1])
    assert rows_of(tmp_path / "whole") == rows_of(tmp_path / "stopped")
    last = folders[0]
    assert is_adapter(last)
    tensors, moments = load_file(last / ADAPTER_WEIGHTS), load_file(last / MOMENTS)
    assert {each.dtype for each in tensors.values()} == {torch.float32}
    assert {name.rsplit(".", 1)[0] for name in moments} == set(adapter_parameters(load_model(last).model))
    moved = [name for name, each in tensors.items() if "lora_B" in name and bool(each.any())]
    assert len(moved) > 0.7 * sum("lora_B" in name for name in tensors), "but for experts that no token reached"
    base, adapted = load_model(given[model]), load_model(last)
    stored = adapted.model.stored_tensors()
    assert all(torch.equal(each, stored[name]) for name, each in base.model.stored_tensors().items())
    token_BL = tokens(base.config.model.vocab_size)
    off = logits(adapted, token_BL, attention="block", block_size=4, adapter=False)
    parent = logits(base, token_BL, attention="block", block_size=4)
    assert torch.equal(off, parent), "the reference of a preference loss"
    assert adapted.config.block_size == 8


def test_the_working_copy_shares_the_base_and_rounds_only_the_adapter(files: dict[str, Path], tmp_path: Path) -> None:
    trainer = Trainer(config_of(files, tmp_path / "run", lora=LORA, dtype="bfloat16"))
    try:
        master, working = trainer.loaded.model, trainer.model
        mine, theirs = dict(master.named_parameters()), dict(working.named_parameters())
        adapter = adapter_parameters(master)
        assert {name for name in mine if mine[name] is theirs[name]} == set(mine) - set(adapter)
        assert {each.dtype for each in adapter.values()} == {torch.float32}
        assert {each.dtype for each in theirs.values()} == {torch.bfloat16}
        assert {id(plan.parameter) for plan in trainer.optimizer.trained} == set(map(id, adapter.values()))
        inputs, _ = trainer._draw(trainer.objective_at(0))
        before = score_input(working, inputs[0])[0]
        trainer.train_step()
        off, on = (score_input(working, inputs[0], adapter=each)[0] for each in (False, True))
        assert torch.equal(off.nll_M, before.nll_M), "the reference of a preference loss is the base, bit for bit"
        assert not torch.equal(on.nll_M, before.nll_M)
        name = "layers.0.attention.query.lora.b"
        assert torch.equal(theirs[name], mine[name].bfloat16())
        assert bool(mine[name].any())
        assert all(each.grad is None for each in mine.values())
    finally:
        trainer.close()


def test_a_merged_run_is_its_adapter_and_the_mean_is_of_merged_weights(files: dict[str, Path], tmp_path: Path) -> None:
    config = ladder(files, tmp_path / "run", lora=LORA, optimizer={"learning_rate": 1e-2})
    last = difflm.train(config)
    difflm.merge([last], tmp_path / "merged")
    apart, merged = load_model(last), load_model(tmp_path / "merged")
    token_BL = tokens(apart.config.model.vocab_size)
    one, two = (logits(each, token_BL, attention="block") for each in (apart, merged))
    assert float((one - two).abs().max() / one.abs().max()) < 1e-5
    params = difflm.SamplingParams(max_new_tokens=6, threshold=0.0)
    ours, theirs = (difflm.generate(each, ["the fox"], params)[0].tokens for each in (apart, merged))
    assert ours == theirs
    # Wide steps apart, so that the mean of products is not the product of means.
    found = merge_run(tmp_path / "run", tmp_path / "mean", method=Window(3))
    expected = sum(
        (each.weight * _merged(load_model(each.folder), "layers.0.mlp.up") for each in found.members), torch.zeros(())
    )
    mean = load_model(tmp_path / "mean")
    assert mean.adapter is None
    assert torch.allclose(mean.model.get_parameter("layers.0.mlp.up.weight"), expected, atol=1e-7)
    raw = read_json(tmp_path / "mean" / "config.json")
    assert raw["block_size"] == 8
    assert [each["name"] for each in raw["difflm"]["merged"]] == [each.folder.name for each in found.members]
    compared = compare_merges(tmp_path / "run", [Window(3), Best(2)])
    assert isinstance(compared[0], MergedRun)
    assert compared[0].perplexity == pytest.approx(found.perplexity, rel=1e-5)


def _merged(loaded: Any, weight: str) -> torch.Tensor:
    module = loaded.model.get_submodule(weight)
    return (module.weight + module.lora.delta()).detach()


def test_a_fresh_run_is_the_base(files: dict[str, Path], tmp_path: Path) -> None:
    """B is zero: validation before the first step is that of the base, to the bit, and A follows from the seed."""
    rows, starts = [], []
    runs: dict[str, dict[str, Any]] = {"with": {"lora": LORA}, "without": {}, "other": {"lora": LORA, "seed": 1}}
    for name, changes in runs.items():
        config = config_of(files, tmp_path / name, curriculum=[{"block_size": 4, "tokens": 64}], **changes)
        notes = Notes()
        trainer = Trainer(config, observer=notes)
        starts.append({key: each.clone() for key, each in adapter_parameters(trainer.loaded.model).items()})
        trainer.train()
        trainer.close()
        rows.append(notes.rows)
    assert rows[0][0]["kind"] == "validation"
    assert rows[0][0] == rows[1][0]
    assert rows[0][1]["loss"] == rows[1][1]["loss"]
    a = "layers.1.mlp.down.lora.a"
    assert not torch.equal(starts[0][a], starts[2][a])


@pytest.mark.parametrize("suppress", [False, True])
def test_the_row_of_a_tied_embedding_learns_what_the_embedding_would(
    files: dict[str, Path], tmp_path: Path, suppress: bool
) -> None:
    """A fresh adapter computes what its base does, so the row's gradient is that of the base's own row."""
    grads = []
    runs: dict[str, dict[str, Any]] = {"with": {"lora": LORA}, "without": {}}
    for name, changes in runs.items():
        objective = {"kind": "block_diffusion", "suppress_mask": suppress}
        trainer = Trainer(config_of(files, tmp_path / name, objective=objective, head_chunk_rows=7, **changes))
        try:
            inputs, _ = trainer._draw(trainer.objective_at(0))
            scores = trainer._score(inputs[0])
            torch.stack(trainer.objective_at(0).loss(scores, inputs[0])).sum().backward()
            model = trainer.model
            row = model.embedding.weight if model.token_rows is None else model.token_rows.weight
            assert row.grad is not None
            grads.append(row.grad[trainer.mask_id if name == "without" else 0])
        finally:
            trainer.close()
    assert model_is_tied(files["paper"])
    assert torch.allclose(grads[0], grads[1], rtol=1e-4, atol=1e-6)
    assert float(grads[0].abs().max()) > 1e-3


def model_is_tied(folder: Path) -> bool:
    return load_model(folder).config.model.tied_embeddings


def test_another_base_is_refused(files: dict[str, Path], tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(files["paper"], base)
    saved = {"every_tokens": 200}
    config = config_of(files | {"copy": base}, tmp_path / "run", model="copy", lora=LORA, checkpoint=saved)
    last = run_with_stops(config, ())
    weights = load_file(base / "model.safetensors")
    weights["model.norm.weight"][0] += 1
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="are not those that the adapter was trained on"):
        load_model(last)
    assert load_model(files["paper"], adapter=last).adapter is not None
    shutil.rmtree(last)
    with pytest.raises(CheckpointError, match=r"train\.model: config\.json or weights of .* are not those"):
        Trainer(config, resume="auto")


def test_what_a_run_with_an_adapter_refuses(files: dict[str, Path], tmp_path: Path) -> None:
    last = difflm.train(config_of(files, tmp_path / "run", lora=LORA, curriculum=[{"block_size": 4, "tokens": 64}]))
    with pytest.raises(ConfigError, match=r"train\.model: .* is an adapter; merge it into its base first"):
        Trainer(config_of(files | {"adapter": last}, tmp_path / "next", model="adapter"))
    with pytest.raises(ConfigError, match=r"mask_row_lr_scale: 2\.0 has no effect on a frozen embedding"):
        Trainer(config_of(files, tmp_path / "x", lora=LORA | {"mask_row": False}, optimizer={"mask_row_lr_scale": 2.0}))
    with pytest.raises(ConfigError, match=r"train\.lora: differs from the run"):
        Trainer(config_of(files, tmp_path / "run", curriculum=[{"block_size": 4, "tokens": 64}]), resume="auto")


def test_an_ar_model_has_no_mask_row_to_train(files: dict[str, Path], tmp_path: Path) -> None:
    config = config_of(
        files,
        tmp_path / "run",
        model="parent",
        objective={"kind": "next_token"},
        curriculum=[{"tokens": 200}],
        validation={"rows": 2},
        lora=LORA,
    )
    adapter = load_model(difflm.train(config)).adapter
    assert adapter is not None
    assert adapter.token_ids == ()


def layout(family: str = "llada2_moe", **changes: Any) -> Any:
    raw = LING | {"model_type": "llada2_moe"} | changes
    return adapter_layout(FAMILIES[family], model_config(raw, "x"))


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (("attention",), {"layers.*.attention.query", "layers.*.attention.output"}),
        (("mlp",), {"layers.0.mlp.gate", "layers.0.mlp.up", "layers.0.mlp.down"}),
        (("shared",), {f"layers.*.mlp.shared.{part}" for part in ("gate", "up", "down")}),
        (("experts",), {"layers.*.mlp.experts.gate_up", "layers.*.mlp.experts.down"}),
        (("layers.1.*.output", "*.experts.down"), {"layers.1.attention.output", "layers.*.mlp.experts.down"}),
    ],
)
def test_words_and_patterns_choose_weights(targets: tuple[str, ...], expected: set[str]) -> None:
    places = layout()
    sites = sites_of(LoRAConfig(rank=2, targets=targets), places, family="llada2_moe")
    first = {site.weights[0] for site in sites}
    assert first == {
        place.weights[0] for place in places.places if any(fnmatchcase(place.weights[0], each) for each in expected)
    }
    assert all(any(fnmatchcase(name, each) for name in first) for each in expected)
    fused = [site for site in sites if site.weights[0].endswith("query")]
    assert all(len(site.weights) == 3 for site in fused)
    assert {site.rank for site in sites} == {2}


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (("attention", "layers.9.*"), "train.lora.targets[1]: 'layers.9.*' matches no parameter; did you mean"),
        (("attentoin",), "train.lora.targets[0]: 'attentoin' matches no parameter; did you mean"),
        (
            ("*.query", "*.key"),
            "match layers.0.attention.query but not layers.0.attention.value, which are one matrix in the files of "
            "llada2_moe (model.layers.0.attention.query_key_value) and share a pair",
        ),
        (("head",), "'head' matches no parameter"),
    ],
)
def test_targets_that_cannot_be(targets: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        sites_of(LoRAConfig(targets=targets), layout(), family="llada2_moe")
    assert message in str(caught.value)


def test_words_that_a_model_has_no_weights_for(files: dict[str, Path]) -> None:
    config = model_config(open_checkpoint(files["paper"]).raw, "x")
    with pytest.raises(ConfigError, match=r"targets\[0\]: 'experts' is no part of this model; it has attention, mlp"):
        sites_of(LoRAConfig(targets=("experts",)), adapter_layout(FAMILIES["llama"], config), family="llama")
    with pytest.raises(ConfigError, match=r"the files of llada2_moe_veomni hold all experts in one tensor"):
        sites_of(LoRAConfig(targets=("experts",)), layout("llada2_moe_veomni"), family="llada2_moe_veomni")
