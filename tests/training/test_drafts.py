"""Drafting runs: what is measured, an adapter for noisy rows over an untouched base, all weights with the AR loss."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import difflm
from difflm.checkpoints.convert import convert
from difflm.checkpoints.fields import read_json
from difflm.checkpoints.loading import load_model
from difflm.diffusion.noise import RowNoise
from difflm.diffusion.windows import Drafting
from difflm.errors import CheckpointError, ConfigError, RequestError
from difflm.models.adapters import adapter_parameters
from difflm.scoring import logits, score_input
from difflm.training.drafts import DraftTally
from difflm.training.merging import merge_run
from difflm.training.trainer import Trainer
from difflm.types import Parametrisation
from tests.checkpoints.tiny import tokens
from tests.decode.tiny import MASK, tiny
from tests.rows import batch_of
from tests.training.runs import Notes, config_of
from tests.training.test_lora import digests
from tests.training.test_resume import rows_of, run_with_stops

GATED: dict[str, Any] = {"rank": 4, "alpha": 8.0, "adapter_rows": "noisy"}


def drafting_run(files: dict[str, Path], output: Path, *, model: str = "shift", **changes: Any) -> Any:
    given: dict[str, Any] = {
        "objective": {"kind": "drafting", "ar_weight": 0.0, "noisy_rows": 40},
        "lora": GATED,
        "optimizer": {"learning_rate": 1e-2},
        "checkpoint": {"every_tokens": 200, "keep": 20, "keep_best": 20},
    }
    return config_of(files, output, model=model, **(given | changes))


@pytest.mark.parametrize("shift", [False, True])
def test_agreement_and_tokens_per_cycle_against_a_loop(shift: bool) -> None:
    parametrisation = Parametrisation(logit_shift=shift, clean_attention="causal")
    loaded = tiny(logit_shift=shift, clean="causal")
    objective = Drafting(window=4, draft_loss="kl", noisy_rows=60, ar_weight=0.0, parametrisation=parametrisation)
    tally = DraftTally(objective)
    assert tally.row() == {"agreement": {}, "tokens_per_cycle": None}
    first = 2 if shift else 1
    hits: dict[int, list[bool]] = {place: [] for place in range(first, 5)}
    runs: list[int] = []
    for seed in range(2):
        batch = batch_of([[9, 6], [13]], row_length=16, prompts=[[3, 0], [5]])
        inputs = objective.prepare(batch, mask_id=MASK, noise=RowNoise(seed))
        (scores,) = score_input(loaded.model, inputs)
        tally.add(inputs, scores)
        width = inputs.layout.noisy_length
        assert inputs.layout.anchor_BW is not None
        hidden = difflm.scoring.forward_hidden(loaded.model, inputs.token_BN, inputs.position_BN, inputs.layout)
        best = (hidden @ loaded.model.head.weight.T).argmax(-1)
        for row, anchors in enumerate(inputs.layout.anchor_BW.tolist()):
            for anchor, group in itertools.groupby(enumerate(anchors), key=lambda pair: pair[1]):
                if anchor < 0:
                    continue
                same = []
                for number, (column, _) in enumerate(group, start=first):
                    same.append(bool(best[row, column] == best[row, width + anchor + number - 1]))
                    hits[number].append(same[-1])
                if len(same) == 5 - first:
                    runs.append(next((index for index, hit in enumerate(same) if not hit), len(same)))
    found = tally.row()
    expected = {str(place): sum(each) / len(each) for place, each in hits.items()}
    assert found["agreement"] == pytest.approx(expected)
    assert found["tokens_per_cycle"] == pytest.approx(first + sum(runs) / len(runs))


def test_an_adapter_for_noisy_rows_leaves_the_base_as_it_is(files: dict[str, Path], tmp_path: Path) -> None:
    folders = []
    for name, stops in (("whole", ()), ("stopped", (1, 3))):
        folders.append(run_with_stops(drafting_run(files, tmp_path / name), stops))
    assert digests(folders[0]) == digests(folders[1])
    assert rows_of(tmp_path / "whole") == rows_of(tmp_path / "stopped")
    last = folders[0]
    assert read_json(last / "adapter_config.json")["difflm_adapter_rows"] == "noisy"
    base, adapted = load_model(files["shift"]), load_model(last)
    assert adapted.adapter is not None
    assert adapted.adapter.gate == "noisy"
    stored = adapted.model.stored_tensors()
    assert all(torch.equal(each, stored[name]) for name, each in base.model.stored_tensors().items())
    token_BL = tokens(base.config.model.vocab_size)
    assert torch.equal(*(logits(each, token_BL, attention="causal") for each in (base, adapted)))
    params = difflm.SamplingParams(max_new_tokens=6, decoding="next_token")
    ours, theirs = (difflm.generate(each, ["the fox"], params)[0].tokens for each in (adapted, base))
    assert ours == theirs
    with pytest.raises(RequestError, match=r"decoding: 'block', but the adapter on .* only drafts"):
        difflm.generate(adapted, ["the fox"], replace(params, decoding="block"))
    # Asked for nothing else, it drafts, and the text is the base's.
    drawn = difflm.SamplingParams(max_new_tokens=24, temperature=1.0, seed=3, ignore_eos=True)
    for each in (drawn, replace(drawn, temperature=0.0), replace(drawn, stop=["e", "o "], min_tokens=4)):
        written = difflm.generate(base, ["the fox", "a"], replace(each, decoding="next_token"))
        for found, expected in zip(difflm.generate(adapted, ["the fox", "a"], each), written, strict=True):
            assert (found.tokens, found.text, found.stopped_by) == (expected.tokens, expected.text, expected.stopped_by)
            assert found.drafts is not None
            assert found.drafts.drafted > 0
    for merging in (
        lambda: difflm.merge([last], tmp_path / "merged"),
        lambda: merge_run(tmp_path / "whole", tmp_path / "merged"),
        lambda: difflm.export(last, tmp_path / "merged"),
    ):
        with pytest.raises(CheckpointError, match="its adapter acts on noisy rows alone"):
            merging()
    assert not (tmp_path / "merged").exists()
    with pytest.raises(
        ConfigError, match=r"train\.model: .* only drafts, and is never merged; train a new one on its base"
    ):
        Trainer(drafting_run(files | {"shift": last}, tmp_path / "again"))


def test_a_drafting_run_learns_and_tells_how_it_drafts(files: dict[str, Path], tmp_path: Path) -> None:
    notes = Notes()
    Trainer(
        drafting_run(files, tmp_path / "run", curriculum=[{"block_size": 4, "tokens": 4000}]), observer=notes
    ).train()
    first, *_, last = [row for row in notes.rows if row["kind"] == "validation"]
    assert last["perplexity"]["4"] < 0.9 * first["perplexity"]["4"]
    assert set(last["perplexity"]) == {"4"}
    assert last["ar_perplexity"] == first["ar_perplexity"], "the base writes as before"
    assert set(last["drafts"]["agreement"]) == {"2", "3", "4"}
    assert 2.0 <= last["drafts"]["tokens_per_cycle"] <= 5.0
    assert "mask_ratio" not in notes.rows[1]
    assert set(notes.rows[1]["loss_by_term"]) == {"diffusion"}


def test_a_head_that_knows_the_token_before_learns_as_well(files: dict[str, Path], tmp_path: Path) -> None:
    curriculum = [{"block_size": 4, "tokens": 4000}]
    notes = {rank: Notes() for rank in (0, 16)}
    for rank, each in notes.items():
        lora = GATED | {"draft_head": rank}
        output = tmp_path / f"run-{rank}"
        config = drafting_run(files, output, lora=lora, curriculum=curriculum)
        last = Trainer(config, observer=each).train()
        assert (last.model.draft_head is None) == (rank == 0)
    first, learnt = ([row for row in notes[rank].rows if row["kind"] == "validation"][-1] for rank in (0, 16))
    assert learnt["perplexity"]["4"] < first["perplexity"]["4"]
    assert learnt["ar_perplexity"] == first["ar_perplexity"], "the base writes as before"
    again = load_model(sorted((tmp_path / "run-16" / "checkpoints").iterdir())[-1])
    assert again.model.draft_head is not None
    assert bool(again.model.draft_head.up.any())


@pytest.mark.parametrize("draft_loss", ["ce", "kl", "tv"])
def test_all_weights_learn_to_draft_and_to_write(files: dict[str, Path], tmp_path: Path, draft_loss: str) -> None:
    objective = {"kind": "drafting", "draft_loss": draft_loss, "noise": "draft"}
    config = drafting_run(files, tmp_path / "run", objective=objective, lora=None, optimizer={"learning_rate": 1e-3})
    trainer = Trainer(config)
    try:
        row = trainer.train_step()
        terms = row["loss_by_term"]
        assert row["loss"] == pytest.approx(0.3 * terms["diffusion"] + terms["ar"])
        assert math.isfinite(row["grad_norm"])
        assert all(each.grad is None for each in trainer.loaded.model.parameters())
        assert trainer.objective_at(0).noisy_rows == 64  # type: ignore[attr-defined]
    finally:
        trainer.close()


@pytest.mark.parametrize("name", ["paper", "qwen"])
def test_mixtures_draft_as_well(mixtures: dict[str, Path], tmp_path: Path, name: str) -> None:
    convert(
        mixtures[name].parent / {"paper": "ling", "qwen": "qwen"}[name],
        tmp_path / "model",
        block_size=4,
        logit_shift=True,
        clean_attention="causal",
    )
    files = mixtures | {"shift": tmp_path / "model"}
    lora = GATED | {"targets": ["attention", "experts"]}
    notes = Notes()
    config = drafting_run(files, tmp_path / "run", lora=lora, router={"z_loss": 1e-3, "balance_loss": 1e-3})
    last = Trainer(config, observer=notes).train()
    row = next(row for row in notes.rows if row["kind"] == "train")
    assert set(row["router"]) == {"noisy", "z_loss", "balance_loss"}, "the clean stream's routing is the base's"
    token_BL = tokens(last.config.model.vocab_size)
    base = load_model(tmp_path / "model")
    assert torch.equal(*(logits(each, token_BL, attention="causal") for each in (base, last)))
    assert any(bool(each.any()) for key, each in adapter_parameters(last.model).items() if "experts" in key)
    # All weights: both streams are counted, windows by their own rows.
    whole = drafting_run(files, tmp_path / "whole", lora=None, objective={"kind": "drafting", "noisy_rows": 40})
    trainer = Trainer(replace(whole, router=replace(whole.router, z_loss=1e-3, balance_loss=1e-3)))
    try:
        assert {"noisy", "clean"} < set(trainer.train_step()["router"])
    finally:
        trainer.close()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": {"kind": "drafting"}}, "train.objective.ar_weight: 1.0, but clean rows do not learn"),
        ({"objective": {"kind": "next_token"}, "curriculum": [{"tokens": 600}]}, "next_token has no noisy rows"),
        ({"samples": {"every_tokens": 9, "prompts": ["a"]}}, "train.samples.every_tokens: 9, but under"),
        ({"curriculum": [{"block_size": "row", "tokens": 9}]}, "train.curriculum[0].block_size: row is no window"),
        ({"curriculum": [{"block_size": 64, "tokens": 9}]}, "64 is no window, which is shorter than a row (64 tokens)"),
        ({"curriculum": [{"block_size": 1, "tokens": 9}]}, "objective.window: 1 leaves nothing to learn: with a logit"),
        ({"model": "paper"}, "objective.kind: 'drafting' needs clean_attention 'causal', the model has 'block'"),
        ({"model": "parent"}, "has no mask token; convert it first"),
    ],
)
def test_what_cannot_be(files: dict[str, Path], tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Trainer(drafting_run(files, tmp_path / "run", **changes))
    assert message in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_windows_need_not_divide_the_row_and_documents_are_not_filled(files: dict[str, Path], tmp_path: Path) -> None:
    config = drafting_run(files, tmp_path / "run", curriculum=[{"block_size": 5, "tokens": 9}])
    assert config.fill_multiple is None
    assert config.data.fill == "eos"
