"""Routers in training: loads, losses and bias updates against loops; what must not count, and what must survive."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import difflm
from difflm.diffusion.noise import RowNoise
from difflm.diffusion.objectives import BlockDiffusion, NextToken, Objective, weighted_sums
from difflm.errors import ConfigError
from difflm.models.config import MoEConfig
from difflm.models.moe import MoE
from difflm.models.transformer import Transformer
from difflm.scoring import score_input
from difflm.training.config import TrainConfig
from difflm.training.config_io import dump_config
from difflm.training.config_router import RouterConfig
from difflm.training.router import ForwardProbe, RouterStep
from difflm.training.run_folder import check_run
from difflm.training.tracking import flat_values
from difflm.training.trainer import Trainer
from difflm.types import PADDING, Batch, ModelInput
from tests.decode.tiny import MASK, architecture, random_transformer
from tests.models.test_moe import choose_slowly
from tests.training.runs import config_of
from tests.training.test_nonfinite import Poison

LING = MoEConfig(
    num_experts=8,
    experts_per_token=2,
    expert_size=6,
    score="sigmoid",
    groups=4,
    groups_kept=2,
    expert_bias=True,
    scaling=2.5,
    dense_layers=(0,),
)
QWEN = MoEConfig(num_experts=6, experts_per_token=2, expert_size=6, score="softmax")
BOTH = RouterConfig(z_loss=0.3, balance_loss=0.7)
MIXTURES = pytest.mark.parametrize("moe", [LING, QWEN], ids=["sigmoid", "softmax"])
OBJECTIVES = pytest.mark.parametrize(
    ("objective", "streams"),
    [
        (BlockDiffusion(block_size=4), ("noisy", "clean")),
        (BlockDiffusion(block_size=4, complementary=True), ("noisy", "clean")),
        (BlockDiffusion(block_size=4, complementary=True, shared=True), ("noisy", "clean")),
        (BlockDiffusion(block_size=None), ("noisy",)),
        (NextToken(), ("clean",)),
    ],
    ids=["two_streams", "complementary", "shared", "one_block", "next_token"],
)


def network(moe: MoEConfig) -> Transformer:
    """Return a random float64 model of three layers."""
    model = random_transformer(dataclasses.replace(architecture(), num_layers=3, moe=moe), seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for buffer in model.buffers():
            buffer.copy_(0.3 * torch.randn(buffer.shape, generator=generator))
    return model


def batch() -> Batch:
    """Return three rows of 12: two documents and padding, one document, mostly padding."""
    document_BL = torch.full((3, 12), PADDING)
    position_BL = torch.zeros(3, 12, dtype=torch.int64)
    for row, lengths in enumerate([(5, 4), (12,), (3,)]):
        start = 0
        for document, length in enumerate(lengths):
            document_BL[row, start : start + length] = document
            position_BL[row, start : start + length] = torch.arange(length)
            start += length
    token_BL = torch.randint(0, MASK, (3, 12), generator=torch.Generator().manual_seed(2))
    return Batch(
        token_BL=token_BL,
        document_BL=document_BL,
        position_BL=position_BL,
        trainable_BL=document_BL != PADDING,
        row_B=torch.arange(3),
        epoch_B=torch.zeros(3, dtype=torch.int64),
    )


def prepared(objective: Objective, rows: Sequence[int] = (0, 1, 2)) -> ModelInput:
    return objective.prepare(batch().take(torch.tensor(rows)), mask_id=MASK, noise=RowNoise(0))


def measured(model: Transformer, inputs: Sequence[ModelInput], config: RouterConfig, **options: Any) -> RouterStep:
    """Return the step after a forward and a backward of each micro-batch; gradients are left on the model."""
    step = RouterStep(config, model.config.moe, device="cpu")
    for each in inputs:
        step.expect(each)
    for each in inputs:
        probe = step.probe(each)
        scores = score_input(model, each, probe=probe, **options)
        torch.stack([*weighted_sums(scores, each), *step.add(probe)]).sum().backward()
    return step


def gradients_of(model: Transformer) -> dict[str, Tensor]:
    return {name: each.grad for name, each in model.named_parameters() if each.grad is not None}


def kind_of(inputs: ModelInput, streams: Sequence[str], place: int) -> tuple[int, str] | None:
    """Return (batch row, stream) of a token of the flattened input, None for padding."""
    row, column = divmod(place, inputs.token_BN.shape[1])
    noisy = inputs.layout.noisy_length
    first = column < noisy or len(streams) == 1
    stand_BW = inputs.layout.stand_BW
    noisy_BW = inputs.layout.document_BL if stand_BW is None else stand_BW
    real = noisy_BW[row, column] if first else inputs.layout.document_BL[row, column - noisy]
    return None if real == PADDING else (row, streams[0 if first else 1])


def watched(model: Transformer) -> dict[int, list[Tensor]]:
    """Return what will enter each router, by layer, filled as the model runs (also where it recomputes)."""
    seen: dict[int, list[Tensor]] = {}
    for number, layer in enumerate(model.layers):
        if isinstance(layer.mlp, MoE):
            seen[number] = entered(layer.mlp)
    return seen


def entered(branch: MoE) -> list[Tensor]:
    """Return what will enter a mixture, filled as the model runs."""
    kept: list[Tensor] = []
    branch.register_forward_pre_hook(lambda _, given: kept.append(given[0].detach()))
    return kept


def branch_of(model: Transformer, layer: int) -> MoE:
    branch = model.layers[layer].mlp
    assert isinstance(branch, MoE)
    return branch


def loads_slowly(
    model: Transformer, layer: int, hidden_BND: Tensor, inputs: ModelInput, streams: Sequence[str]
) -> dict[str, list[int]]:
    """Return how often each expert of a layer is chosen, by stream, token by token."""
    router = branch_of(model, layer).router
    moe = router.config
    bias = router.expert_bias.tolist() if router.expert_bias is not None else [0.0] * moe.num_experts
    found = {stream: [0] * moe.num_experts for stream in streams}
    for place, hidden_D in enumerate(hidden_BND.flatten(0, 1)):
        kind = kind_of(inputs, streams, place)
        if kind is not None:
            for expert in choose_slowly(router.logits(hidden_D[None])[0].tolist(), bias, moe):
                found[kind[1]][expert] += 1
    return found


@MIXTURES
@OBJECTIVES
def test_loads_equal_a_loop_over_tokens(moe: MoEConfig, objective: Objective, streams: tuple[str, ...]) -> None:
    model, inputs = network(moe), prepared(objective)
    seen = watched(model)
    step = measured(model, [inputs], RouterConfig())
    row = step.row()["router"]
    assert set(row) == set(streams)
    assert set(seen) == ({1, 2} if moe.dense_layers else {0, 1, 2})
    for layer, (hidden_BND,) in seen.items():
        expected = loads_slowly(model, layer, hidden_BND, inputs, streams)
        name, router = f"layer_{layer}", branch_of(model, layer).router
        score_NE = router.logits(hidden_BND.flatten(0, 1)).detach()
        score_NE = score_NE.sigmoid() if moe.score == "sigmoid" else score_NE.softmax(-1)
        for stream, loads in expected.items():
            assert step.load[layer][("noisy", "clean").index(stream)].tolist() == loads
            mean = sum(loads) / len(loads)
            assert row[stream]["max_violation"][name] == pytest.approx(max(loads) / mean - 1)
            assert row[stream]["dead_experts"][name] == loads.count(0) / len(loads)
            places = [n for n in range(len(score_NE)) if (kind := kind_of(inputs, streams, n)) and kind[1] == stream]
            shares = [(score_NE[n] / score_NE[n].sum()).tolist() for n in places]
            entropies = [-sum(p * math.log(p) for p in share) for share in shares]
            assert row[stream]["entropy"][name] == pytest.approx(sum(entropies) / len(entropies))
    for stream in streams:
        for values in row[stream].values():
            assert values["mean"] == pytest.approx(sum(values[f"layer_{n}"] for n in seen) / len(seen))
            assert list(values) == ["mean", *(f"layer_{n}" for n in seen)]


def penalties_slowly(logit_NE: Tensor, inputs: ModelInput, streams: Sequence[str], moe: MoEConfig) -> tuple[Any, Any]:
    """Return (z-loss, balance loss), means over tokens, written out as in the papers."""
    sequences: dict[tuple[int, str], list[Tensor]] = {}
    for place, logit_E in enumerate(logit_NE):
        kind = kind_of(inputs, streams, place)
        if kind is not None:
            sequences.setdefault(kind, []).append(logit_E)
    tokens = sum(map(len, sequences.values()))
    squared = sum(torch.log(logit_E.exp().sum()) ** 2 for each in sequences.values() for logit_E in each) / tokens
    balance: Any = 0.0
    for each in sequences.values():
        scores = [logit_E.sigmoid() if moe.score == "sigmoid" else logit_E.softmax(-1) for logit_E in each]
        best = [
            set(sorted(range(moe.num_experts), key=lambda e: -s[e].item())[: moe.experts_per_token]) for s in scores
        ]
        for expert in range(moe.num_experts):
            chosen = sum(expert in top for top in best)
            fraction = moe.num_experts / (moe.experts_per_token * len(each)) * chosen
            share = sum(score_E[expert] / score_E.sum() for score_E in scores) / len(each)
            balance = balance + fraction * share * len(each) / tokens
    return squared, balance


@MIXTURES
@OBJECTIVES
def test_losses_on_routers_equal_their_formulas(moe: MoEConfig, objective: Objective, streams: tuple[str, ...]) -> None:
    inputs = prepared(objective)
    count = inputs.token_BN.numel()
    generator = torch.Generator().manual_seed(3)
    logit_NE = 2 * torch.randn(count, moe.num_experts, dtype=torch.float64, generator=generator)
    logit_NE.requires_grad_()
    step = RouterStep(BOTH, moe, device="cpu")
    step.expect(inputs)
    probe = step.probe(inputs)
    assert probe is not None
    # What is chosen has no part in either loss.
    probe.record(4, probe.measure(logit_NE, torch.zeros(count, moe.experts_per_token, dtype=torch.int64)))
    (ours,) = step.add(probe)
    squared, balance = penalties_slowly(logit_NE, inputs, streams, moe)
    theirs = BOTH.z_loss * squared + BOTH.balance_loss * balance
    assert float(ours) == pytest.approx(float(theirs), rel=1e-10)
    assert step.losses() == pytest.approx({"z_loss": float(squared), "balance_loss": float(balance)}, rel=1e-10)
    one, other = (torch.autograd.grad(value, logit_NE)[0] for value in (ours, theirs))
    assert torch.allclose(one, other, rtol=1e-9, atol=1e-12)
    padding = [place for place in range(count) if kind_of(inputs, streams, place) is None]
    assert padding
    assert float(one[padding].abs().sum()) == 0.0
    assert 0.9 < float(balance) < 3


@MIXTURES
def test_nothing_is_read_before_the_step_is_done(moe: MoEConfig) -> None:
    """Tensors without values: reading one raises, which on a GPU would be a wait in every layer."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    inputs = prepared(BlockDiffusion(block_size=4))
    with FakeTensorMode(allow_non_fake_inputs=True):
        probe = ForwardProbe(inputs, moe, BOTH, device="cpu")
        logit_NE = torch.randn(inputs.token_BN.numel(), moe.num_experts, requires_grad=True)
        step = RouterStep(BOTH, moe, device="cpu")
        for layer in (0, 1):
            probe.record(layer, probe.measure(logit_NE, logit_NE.topk(2).indices))
        torch.stack(step.add(probe)).sum().backward()


def test_balanced_shares_have_a_balance_loss_of_one() -> None:
    """Every expert takes its part: f = 1 and P = 1 / E."""
    moe = MoEConfig(num_experts=3, experts_per_token=1, expert_size=1, score="softmax")
    inputs = prepared(NextToken(), rows=(1,))
    logit_NE = 5.0 * torch.eye(3, dtype=torch.float64).repeat(4, 1)
    probe = ForwardProbe(inputs, moe, RouterConfig(balance_loss=1.0), device="cpu")
    *_, balance = probe.measure(logit_NE, torch.arange(12)[:, None] % 3)
    assert float(balance) / 12 == pytest.approx(1.0)


@MIXTURES
def test_losses_and_loads_do_not_depend_on_micro_batches(moe: MoEConfig) -> None:
    """Three rows at once, one by one, and the long one apart: the same sums, gradients and biases."""
    objective = BlockDiffusion(block_size=4)
    config = dataclasses.replace(BOTH, bias_update_rate=0.1 if moe.expert_bias else 0.0)
    results = []
    for parts in (((0, 1, 2),), ((0,), (1,), (2,)), ((1,), (2, 0))):
        model = network(moe)
        step = measured(model, [prepared(objective, rows) for rows in parts], config)
        step.update_biases(model)
        results.append((step, gradients_of(model), dict(model.named_buffers())))
    (large, gradients, biases), *others = results
    assert all(bool(gradients[f"layers.{n}.mlp.router.weight"].abs().sum()) for n in large.load)
    for small, grads, buffers in others:
        assert small.losses() == pytest.approx(large.losses(), rel=1e-12)
        assert all(torch.equal(small.load[layer], large.load[layer]) for layer in large.load)
        assert all(torch.allclose(grads[name], gradients[name], atol=1e-11) for name in gradients)
        assert all(torch.equal(buffers[name], biases[name]) for name in biases)


@MIXTURES
def test_recomputed_layers_count_once_and_learn_the_same(moe: MoEConfig) -> None:
    inputs = [prepared(BlockDiffusion(block_size=4), rows) for rows in ((0, 1), (2,))]
    results = []
    for checkpointing in (False, True):
        model = network(moe)
        seen = watched(model)
        step = measured(model, inputs, BOTH, activation_checkpointing=checkpointing)
        runs = {layer: len(each) for layer, each in seen.items()}
        assert set(runs.values()) == {4 if checkpointing else 2}, "a layer is computed again, or this proves nothing"
        results.append((step.row(), step.load, gradients_of(model)))
    (row, loads, grads), (again, loads_again, grads_again) = results
    assert row == again
    assert all(torch.equal(loads[layer], loads_again[layer]) for layer in loads)
    assert all(torch.equal(grads[name], grads_again[name]) for name in grads)
    model = network(moe)
    measured(model, inputs, RouterConfig())
    plain = gradients_of(model)
    assert any(not torch.allclose(plain[name], grads[name]) for name in grads), "the losses have gradients"


def test_biases_move_by_the_rate_towards_the_mean() -> None:
    model = network(LING)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    step = RouterStep(RouterConfig(bias_update_rate=0.01), LING, device="cpu")
    # Noisy plus clean: 4, 4, 4, 4, 0, 10, 3, 3; the mean is 4.
    step.load[1] = torch.tensor([[4, 1, 0, 2, 0, 9, 3, 1], [0, 3, 4, 2, 0, 1, 0, 2]])
    step.update_biases(model)
    moved = model.get_buffer("layers.1.mlp.router.expert_bias") - before["layers.1.mlp.router.expert_bias"]
    assert moved.tolist() == pytest.approx([0.0, 0.0, 0.0, 0.0, 0.01, -0.01, 0.01, 0.01], abs=1e-12)
    name = "layers.2.mlp.router.expert_bias"
    assert torch.equal(model.get_buffer(name), before[name])
    RouterStep(RouterConfig(), LING, device="cpu").update_biases(model)


# Whole runs


def run_config(mixtures: dict[str, Path], output: Path, **changes: Any) -> TrainConfig:
    options: dict[str, Any] = {"router": {"bias_update_rate": 1e-3}, "optimizer": {"learning_rate": 5e-3}} | changes
    return config_of(mixtures, output, **options)


def biases_of(trainer: Trainer) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in trainer.loaded.model.named_buffers()}


def routers_of(trainer: Trainer) -> dict[str, Tensor]:
    return {
        name: each.detach().clone()
        for name, each in trainer.loaded.model.stored_tensors().items()
        if ".router." in name
    }


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_each_step_updates_the_biases_by_its_own_loads(
    mixtures: dict[str, Path], tmp_path: Path, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against a loop over the tokens of both micro-batches, recomputed layers and padding included in what runs."""
    config = run_config(mixtures, tmp_path / "run", dtype=dtype, accumulation=2, activation_checkpointing=True)
    trainer = Trainer(config)
    model, found = trainer.model, list[dict[str, list[int]]]()
    real, kept = trainer._backward, entered(branch_of(trainer.model, 1))

    def backward(objective: Objective, inputs: ModelInput, *rest: Any) -> None:
        kept.clear()
        real(objective, inputs, *rest)
        assert len(kept) == 2, "the layer was computed again"
        found.append(loads_slowly(model, 1, kept[0], inputs, ("noisy", "clean")))

    monkeypatch.setattr(trainer, "_backward", backward)
    (name,) = biases_of(trainer)
    for _ in range(3):
        found.clear()
        before = biases_of(trainer)[name].tolist()
        row = trainer.train_step()["router"]
        load = [sum(each[stream][e] for each in found for stream in each) for e in range(8)]
        mean = sum(load) / 8
        expected = [b + 1e-3 * ((mean > part) - (mean < part)) for b, part in zip(before, load, strict=True)]
        assert biases_of(trainer)[name].tolist() == pytest.approx(expected, abs=1e-7)
        assert before != pytest.approx(expected, abs=5e-4)
        noisy = [sum(each["noisy"][e] for each in found) for e in range(8)]
        assert row["noisy"]["max_violation"]["layer_1"] == pytest.approx(max(noisy) / (sum(noisy) / 8) - 1)
        working = dict(trainer.model.named_buffers())
        assert working[name].dtype == torch.float32
        assert torch.equal(working[name], biases_of(trainer)[name]), "the working copy routes with the masters' bias"
    trainer.close()


def test_what_is_not_training_counts_nothing(mixtures: dict[str, Path], tmp_path: Path) -> None:
    """Validation, `score` and samples between steps leave loads, biases and weights of the next step as they are."""
    rows = []
    for name in ("quiet", "busy"):
        trainer = Trainer(run_config(mixtures, tmp_path / name, accumulation=2))
        trainer.train_step()
        if name == "busy":
            trainer._validate()
            tokens = torch.randint(0, 40, (1, 8), generator=torch.Generator().manual_seed(0))
            difflm.score(trainer.loaded, tokens, tokens)
            difflm.generate(trainer.loaded, ["the fox"], difflm.SamplingParams(max_new_tokens=4))
        rows.append((trainer.train_step()["router"], biases_of(trainer), routers_of(trainer)))
        trainer.close()
    (row, biases, routers), (again, biases_again, routers_again) = rows
    assert row == again
    assert all(torch.equal(biases[name], biases_again[name]) for name in biases)
    assert all(torch.equal(routers[name], routers_again[name]) for name in routers)


def test_a_skipped_step_leaves_the_biases(mixtures: dict[str, Path], tmp_path: Path) -> None:
    config = run_config(mixtures, tmp_path / "run", nonfinite={"action": "skip"}, router={"bias_update_rate": 0.01})
    bad: list[int] = []
    trainer = Trainer(config, objective=lambda inner: Poison(inner, tuple(bad)))
    before = biases_of(trainer)
    bad += range(len(trainer.rows))
    assert trainer.train_step()["kind"] == "skipped"
    assert all(torch.equal(before[name], now) for name, now in biases_of(trainer).items())
    bad.clear()
    assert trainer.train_step()["kind"] == "train"
    moved = [float((now - before[name]).abs().max()) for name, now in biases_of(trainer).items()]
    assert moved == pytest.approx([0.01] * len(moved), rel=1e-4), "one step's update, not two"
    trainer.close()


def test_a_router_loss_that_is_not_finite_is_a_bad_step(mixtures: dict[str, Path], tmp_path: Path) -> None:
    config = run_config(mixtures, tmp_path / "run", router={"z_loss": 1e-3})
    trainer = Trainer(config)
    found: list[dict[str, float]] = []
    trainer._refuse = lambda inputs, losses, norm: found.append(losses) or {"kind": "skipped"}  # type: ignore[method-assign]
    with torch.no_grad():
        trainer.loaded.model.get_parameter("layers.1.mlp.router.weight").mul_(1e30)
    trainer.train_step()
    assert set(found[0]) == {"diffusion", "z_loss"}
    assert not math.isfinite(found[0]["z_loss"])
    trainer.close()


def test_another_rate_is_not_the_same_run(mixtures: dict[str, Path], tmp_path: Path) -> None:
    config = run_config(mixtures, tmp_path / "run")
    config.output.mkdir()
    (config.output / "config.yaml").write_text(dump_config(config))
    check_run(config, "auto")
    changed = dataclasses.replace(config, router=RouterConfig(bias_update_rate=2e-3))
    with pytest.raises(ConfigError, match=r"^train\.router\.bias_update_rate: differs .*0\.001 there, 0\.002 here"):
        check_run(changed, "auto")


def test_a_frozen_router_stays_while_the_rest_learns(mixtures: dict[str, Path], tmp_path: Path) -> None:
    for name, dtype in (("paper", "bfloat16"), ("qwen", "float32")):
        config = run_config(mixtures, tmp_path / name, model=name, router={"freeze": True}, dtype=dtype)
        trainer = Trainer(config)
        before = routers_of(trainer)
        experts = trainer.loaded.model.get_parameter("layers.1.mlp.experts.down").detach().clone()
        row = trainer.train_step()
        assert all(torch.equal(before[each], now) for each, now in routers_of(trainer).items())
        assert not torch.equal(experts, trainer.loaded.model.get_parameter("layers.1.mlp.experts.down"))
        assert "z_loss" not in row["router"]
        assert "frozen: " in trainer.optimizer.describe()
        trainer.close()


def skew(trainer: Trainer) -> None:
    """Make two experts of every layer the first choice of nearly every token."""
    with torch.no_grad():
        for name, buffer in trainer.loaded.model.named_buffers():
            buffer.zero_()
            buffer[:2] = 0.3
            trainer.loaded.model.get_parameter(name.replace("expert_bias", "weight")).mul_(0.3)


def test_the_update_balances_a_skewed_router(mixtures: dict[str, Path], tmp_path: Path) -> None:
    worst: dict[float, list[float]] = {}
    for rate in (0.0, 0.01):
        options: dict[str, Any] = {"rows_per_batch": 4, "optimizer": {"learning_rate": 1e-4}}
        trainer = Trainer(run_config(mixtures, tmp_path / str(rate), router={"bias_update_rate": rate}, **options))
        skew(trainer)
        rows = [trainer.train_step()["router"] for _ in range(24)]
        worst[rate] = [max(row[stream]["max_violation"]["mean"] for stream in ("noisy", "clean")) for row in rows]
        trainer.close()
    assert worst[0.0][0] == worst[0.01][0] > 1.5
    assert min(worst[0.0]) > 1.5
    assert sum(worst[0.01][-6:]) / 6 < 0.6 * worst[0.0][-1]


def test_a_balance_loss_balances_the_router_of_qwen3_moe(mixtures: dict[str, Path], tmp_path: Path) -> None:
    values: list[list[float]] = []
    for coefficient in (1e-9, 1.0):
        settings = {"balance_loss": coefficient, "z_loss": 1e-3 * coefficient}
        config = run_config(mixtures, tmp_path / str(coefficient), model="qwen", router=settings)
        trainer = Trainer(config)
        values.append([trainer.train_step()["router"]["balance_loss"] for _ in range(8)])
        trainer.close()
    assert values[0][0] == pytest.approx(values[1][0], rel=1e-6)
    assert values[1][-1] - 1 < 0.5 * (values[0][-1] - 1)


@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [
        ("qwen", {"bias_update_rate": 0.001}, r"bias_update_rate: 0\.001, but the routers of .*qwen3_moe, softmax"),
        ("dense", {"bias_update_rate": 0.001}, r"bias_update_rate: 0\.001, but .*llama.* is dense"),
        ("dense", {"z_loss": 0.1}, r"z_loss: 0\.1, but .* is dense, it has no routers; leave train\.router out"),
        ("dense", {"freeze": True}, r"freeze: true, but .* is dense"),
    ],
)
def test_what_a_model_has_no_router_for_is_refused(
    mixtures: dict[str, Path],
    files: dict[str, Path],
    tmp_path: Path,
    model: str,
    settings: dict[str, Any],
    message: str,
) -> None:
    folders = mixtures | {"dense": files["paper"]}
    with pytest.raises(ConfigError, match=rf"^train\.router\.{message}"):
        Trainer(run_config(folders, tmp_path / "run", model=model, router=settings))
    assert not (tmp_path / "run").exists()


def test_a_dense_model_has_no_figures_of_routers(files: dict[str, Path], tmp_path: Path) -> None:
    trainer = Trainer(config_of(files, tmp_path / "run"))
    assert "router" not in trainer.train_step()
    trainer.close()


def test_boards_get_the_figures_by_name(mixtures: dict[str, Path], tmp_path: Path) -> None:
    trainer = Trainer(run_config(mixtures, tmp_path / "run", router={"z_loss": 1e-3, "balance_loss": 1e-4}))
    values = flat_values(trainer.train_step())
    trainer.close()
    page = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    section = page.partition("### router, in kind: train")[2].partition("###")[0]
    losses, names = {"z_loss", "balance_loss"}, {"max_violation", "dead_experts", "entropy"}
    assert set(re.findall(r"^\| `(\w+)` \|", section, re.M)) == losses | names, "documented"
    expected = {f"router/{s}/{n}/{w}" for s in ("noisy", "clean") for n in names for w in ("mean", "layer_1")}
    assert {name for name in values if name.startswith("router/")} == {
        *expected,
        *(f"router/{each}" for each in losses),
    }
    assert values["loss"] == values["loss_by_term/diffusion"], "the loss of the model alone: comparable between runs"
