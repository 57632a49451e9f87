"""Every conformance case of the published LLaDA2 and Ling code: logits, router, losses and gradients."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from difflm.checkpoints.loading import LoadedModel, load_model
from difflm.checkpoints.rules import HF_LING, key_map
from difflm.diffusion.confidence import ConfidenceAware
from difflm.diffusion.masks import block_numbers, document_positions
from difflm.diffusion.objectives import BlockDiffusion
from difflm.diffusion.scores import score_tokens
from difflm.diffusion.shared import RowViews
from difflm.models.attention import AttentionChoice
from difflm.models.config import MoEConfig
from difflm.models.moe import choose_experts
from difflm.scoring import forward_hidden, logits, score_input
from difflm.training.tally import StepTally
from difflm.types import Batch, Layout
from tests.golden import golden

LOGITS, LOSSES, ROUTER = (golden.cases(name) for name in ("logits", "loss", "router"))
EXPECTED = golden.tensors("logits")


@pytest.fixture(scope="module", params=["llada2", "bailing"])
def loaded(request: Any, tmp_path_factory: Any) -> LoadedModel:
    return load_model(golden.checkpoint(request.param, tmp_path_factory.mktemp("golden") / request.param))


@pytest.fixture(scope="module")
def llada2(tmp_path_factory: Any) -> LoadedModel:
    return load_model(golden.checkpoint("llada2", tmp_path_factory.mktemp("golden") / "llada2"))


def ids(case: dict[str, Any]) -> str:
    return case["name"]


@pytest.mark.parametrize("case", LOGITS["cases"], ids=ids)
def test_logits(case: dict[str, Any], loaded: LoadedModel) -> None:
    attention: Any = {"block_causal": "block"}.get(case["attention"], case["attention"])
    tokens = case["noisy_ids"] + case["clean_ids"] if "noisy_ids" in case else case["input_ids"]
    documents = torch.tensor(case["document_ids"])[None] if "document_ids" in case else None
    ours = logits(
        loaded, torch.tensor([tokens]), attention=attention, block_size=case["block_size"], document_BL=documents
    )[0]
    theirs = EXPECTED[case["tensor"]]
    assert ours.shape == theirs.shape
    assert float((ours - theirs).abs().max()) < 5e-4
    assert torch.equal(ours.argmax(-1), theirs.argmax(-1))
    if documents is not None:
        assert document_positions(documents).repeat(1, 2).tolist() == [case["position_ids"]]


def test_blocks_of_one_token_are_causal(loaded: LoadedModel) -> None:
    token_BL = torch.tensor([next(each for each in LOGITS["cases"] if each["block_size"] == 1)["input_ids"]])
    single = logits(loaded, token_BL, attention="block", block_size=1)
    assert torch.equal(single, logits(loaded, token_BL, attention="causal"))


def test_all_logit_cases_are_there() -> None:
    counts = {len(case["param_grad_norm"]["sft"]) for case in LOSSES["cases"] if case["n_masked"]}
    assert counts == {len(LOSSES["parameter_names"])}
    assert {case["attention"] for case in LOGITS["cases"]} == {"causal", "bidirectional", "block_causal", "noisy_clean"}
    assert sum("document_ids" in case for case in LOGITS["cases"]) == 4
    assert (len(LOGITS["cases"]), len(LOSSES["cases"]), len(ROUTER["gates"])) == (19, 15, 8)


@pytest.mark.parametrize("gate", ROUTER["gates"], ids=ids)
def test_router(gate: dict[str, Any], llada2: LoadedModel) -> None:
    stored, name = golden.tensors("router"), gate["name"]
    if gate["gate"]:
        weights = golden.tensors("weights")
        weight, bias = weights[f"{gate['gate']}.weight"], weights[f"{gate['gate']}.expert_bias"]
    else:
        weight, bias = stored[f"{name}.weight"], stored[f"{name}.expert_bias"]
    config = MoEConfig(
        num_experts=gate["num_experts"],
        experts_per_token=gate["top_k"],
        expert_size=1,
        score="sigmoid",
        groups=gate["n_group"],
        groups_kept=gate["topk_group"],
        expert_bias=True,
        normalise=gate["top_k"] > 1,
        scaling=gate["routed_scaling_factor"],
    )
    logit_NE = stored[f"{name}.hidden"].float() @ weight.float().t()
    assert torch.allclose(logit_NE, stored[f"{name}.logits"], atol=1e-5)
    weight_NK, expert_NK = choose_experts(logit_NE, bias, config)
    for row, (ours, chosen) in enumerate(zip(weight_NK, expert_NK, strict=True)):
        order = chosen.argsort()
        assert chosen[order].tolist() == gate["rows"][row]["experts"]
        assert ours[order].tolist() == pytest.approx(gate["rows"][row]["weights"], abs=1e-5)
    if gate["gate"]:
        router = llada2.model.get_submodule(f"layers.{gate['gate'].split('.')[2]}.mlp.router")
        ours, chosen = router(stored[f"{name}.hidden"])
        assert torch.equal(chosen.sort().values, expert_NK.sort().values)
        assert torch.allclose(ours.sort().values, weight_NK.sort().values, atol=1e-6)


class Run:
    """Losses of a case by their definition, on our forward."""

    def __init__(self, case: dict[str, Any], loaded: LoadedModel, backend: AttentionChoice) -> None:
        token_BL, noisy_BL, label_BL = (torch.tensor(case[name]) for name in ("x0", "noisy", "labels"))
        document_BL = torch.zeros_like(token_BL)
        position_BL = document_positions(document_BL)
        block_BL = torch.zeros_like(position_BL)
        two_streams = case["kind"] == "block_diffusion"
        if two_streams:
            block_BL = block_numbers(position_BL, block_size=case["block_size"])
            noisy_BL, position_BL = torch.cat([noisy_BL, token_BL], dim=1), torch.cat([position_BL, position_BL], dim=1)
        layout = Layout(document_BL=document_BL, block_BL=block_BL, two_streams=two_streams)
        hidden_BND = forward_hidden(loaded.model, noisy_BL, position_BL, layout, backend=backend)
        self.row_M, self.place_M = (label_BL != -100).nonzero(as_tuple=True)
        target_M = label_BL[self.row_M, self.place_M]
        head = loaded.model.head.weight
        self.scores = score_tokens(hidden_BND[self.row_M, self.place_M], head, target_M, entropy=True)
        self.best_M = (hidden_BND[self.row_M, self.place_M] @ head.T).argmax(-1)
        rate_BL = torch.ones(label_BL.shape) * torch.tensor(case["t"] or [1.0] * len(label_BL))[:, None]
        for row, rates in enumerate(case["t_blocks"] or ()):
            rate_BL[row] = torch.tensor(rates)[block_BL[row]]
        self.rate_M = rate_BL[self.row_M, self.place_M]

    def losses(self, case: dict[str, Any]) -> dict[str, Tensor]:
        nll_M, correct_M = self.scores.nll_M, self.scores.correct_M
        masked, weighted = max(case["n_masked"], 1), (nll_M / self.rate_M).sum()
        sft = nll_M.sum() / masked
        cap = self.scores.entropy_M[correct_M].mean() if correct_M.any() else nll_M.sum() * 0.0
        return {
            "sft": sft,
            "weighted_per_masked": weighted / masked,
            "weighted_per_maskable": weighted / case["n_maskable"],
            "cap": cap,
            "total": sft + LOSSES["lambda_cap"] * cap,
        }


@pytest.mark.parametrize("backend", ["split", "dense"])
@pytest.mark.parametrize("case", LOSSES["cases"], ids=ids)
def test_losses(case: dict[str, Any], backend: AttentionChoice, llada2: LoadedModel) -> None:
    run = Run(case, llada2, backend)
    ours = run.losses(case)
    if case["n_masked"] == 0:  # the reference divides 0 by 0; a loss must be finite
        assert all(float(value) == 0.0 for value in ours.values())
        return
    for row, theirs in enumerate(case["token_ce"]):
        here_M = run.row_M == row
        assert run.scores.nll_M[here_M].tolist() == pytest.approx(theirs, rel=1e-3, abs=5e-4)
        assert run.best_M[here_M].tolist() == case["argmax"][row]
        entropy_M = run.scores.entropy_M[here_M & run.scores.correct_M]
        assert entropy_M.tolist() == pytest.approx(case["entropy_correct"][row], rel=1e-3, abs=5e-4)
    assert int(run.scores.correct_M.sum()) == case["n_correct"]
    for name, value in ours.items():
        assert float(value) == pytest.approx(case["loss"][name], rel=1e-4, abs=1e-6), name


@pytest.mark.parametrize("case", [each for each in LOSSES["cases"] if each["kind"] == "block_diffusion"], ids=ids)
def test_the_objectives_of_fine_tuning_equal_the_reference(case: dict[str, Any], llada2: LoadedModel) -> None:
    token_BL, label_BL = torch.tensor(case["x0"]), torch.tensor(case["labels"])
    document_BL = torch.zeros_like(token_BL)
    batch = Batch(
        token_BL=token_BL,
        document_BL=document_BL,
        position_BL=document_positions(document_BL),
        trainable_BL=torch.arange(token_BL.shape[1]) >= torch.tensor(case["prompt_lengths"])[:, None],
        row_B=torch.arange(len(token_BL)),
        epoch_B=torch.zeros(len(token_BL), dtype=torch.int64),
    )
    masked_BL = label_BL != -100
    base = BlockDiffusion(block_size=case["block_size"], weighting="uniform")
    objective = ConfidenceAware(base=base, weight=LOSSES["lambda_cap"])
    views = RowViews(batch.row_B, torch.zeros_like(batch.row_B), masked_BL, masked_BL.float(), batch.trainable_BL)
    mask_id = llada2.config.mask_token_id
    for shared in (False, True):
        plain = replace(base, shared=shared).laid_out(batch, views, mask_id=mask_id)
        inputs = objective.extended(plain)
        tally = StepTally()
        for term in inputs.terms:
            tally.expect(term)
        scores = score_input(llada2.model, inputs)
        tally.count(inputs, scores)
        tally.add(inputs, scores, objective.loss(scores, inputs))
        losses = tally.losses()
        expected = {name: 0.0 if value == "nan" else value for name, value in case["loss"].items()}
        assert losses["diffusion"] == pytest.approx(expected["sft"], rel=1e-4, abs=1e-6)
        assert losses["confidence"] == pytest.approx(expected["cap"], rel=1e-4, abs=1e-6)
        assert tally.row(block_size=8)["loss"] == pytest.approx(expected["total"], rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("name", ["sft", "weighted_per_maskable", "cap", "total"])
@pytest.mark.parametrize("case", [each for each in LOSSES["cases"] if each["n_masked"]], ids=ids)
def test_gradient_norms(case: dict[str, Any], name: str, llada2: LoadedModel) -> None:
    """By the names on disk: gradients pass through the same changes as the tensors."""
    stored = llada2.model.stored_tensors()
    for parameter in llada2.model.parameters():
        parameter.grad = None
    Run(case, llada2, "split").losses(case)[name].backward()
    grads: dict[str, Tensor] = {}
    for rule in key_map(HF_LING, {each: () for each in stored}, llada2.config.model):
        values = [
            torch.zeros_like(stored[each]) if (grad := stored[each].grad) is None else grad for each in rule.model
        ]
        grads |= dict(zip(rule.disk, rule.change.to_disk(values, llada2.config.model), strict=True))
    expected, groups = case["grad_norm"][name], dict(LOSSES["groups"])
    groups["expert"] = [f"{case['expert']}.{part}_proj.weight" for part in ("gate", "up", "down")]
    groups["all"] = LOSSES["parameter_names"]
    # The reference's embedding gives the padding row no gradient; ours has no such rule.
    plain = case["name"] != "pad_tail"
    if not plain and name == "sft":
        expected = expected | case["sft_grad_norm_without_padding_idx"]
    for group, names in groups.items():
        if plain or name == "sft" or group not in ("embedding", "all"):
            norm = float(sum(grads[each].double().square().sum() for each in names)) ** 0.5
            assert norm == pytest.approx(expected[group], rel=1e-4, abs=1e-7), group
    for each, theirs in zip(LOSSES["parameter_names"], case["param_grad_norm"].get(name, ()), strict=False):
        if plain or each != "model.word_embeddings.weight":
            assert float(grads[each].double().norm()) == pytest.approx(theirs, rel=1e-3, abs=1e-6), each


def test_the_data_would_notice() -> None:
    """Bias, groups and scaling decide in many rows, and margins are above rounding: the cases are not vacuous."""
    rows = [row for gate in ROUTER["gates"] for row in gate["rows"]]
    for name in ("group_limit_matters", "bias_matters", "minus_inf_mask_matters"):
        assert sum(row[name] for row in rows) >= 5, name
    assert all(low < high for row in rows for low, high in pairwise(row["experts"]))
