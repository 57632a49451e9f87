"""The mixtures of the GPU check, on CPU: right results pass, wrong ones are seen."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from difflm.bench import gpu_moe as moe
from difflm.bench import gpu_suite
from difflm.bench.checks import WrongError
from difflm.bench.gpu_cases import Difference, training_losses
from difflm.models import moe as models

CPU = torch.device("cpu")
DTYPES = list(moe.TOLERANCE)


def test_families_have_both_routers_and_everything_that_differs() -> None:
    ling, qwen = (config.moe for config in moe.FAMILIES.values())
    assert ling is not None
    assert qwen is not None
    assert (ling.score, ling.groups, ling.expert_bias, ling.dense_layers) == ("sigmoid", 4, True, (0,))
    assert (qwen.score, qwen.groups, qwen.expert_bias, qwen.shared_experts) == ("softmax", 1, False, 0)
    assert {shape[0] for shape in moe.SHAPES} == {8, 16, 64, 256}
    assert any(hidden % 4 for _, _, hidden, _ in moe.SHAPES), "a size that no kernel takes, in float32 either"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_experts_and_products_are_within_tolerance(dtype: torch.dtype) -> None:
    detail, figures = gpu_suite.experts_parity(CPU, dtype, quick=True)
    assert figures["cases"] == 4
    assert 0 < max(figures["forward"], figures["backward"]) < moe.TOLERANCE[dtype]
    assert "gradients" in detail


def test_a_wrong_product_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def shifted(rows: Any, weight: Any, stops: Any) -> Any:
        return models.looped_linear(rows, weight.roll(1, 0), stops)

    monkeypatch.setattr(models, "grouped_linear", shifted)
    monkeypatch.setattr(moe, "grouped_linear", shifted)
    found = moe.experts_difference(*moe.QUICK_SHAPES[0], device=CPU, dtype=torch.float32)
    assert min(found.forward, found.backward or 0.0) > 0.1
    assert moe.products_difference(8, device=CPU, dtype=torch.float32, looped=False).forward > 0.1
    assert moe.products_difference(8, device=CPU, dtype=torch.float32, looped=True).forward < 1e-5
    with pytest.raises(WrongError, match="4 cases, forward"):
        gpu_suite.experts_parity(CPU, torch.float32, quick=True)


def test_gradients_alone_fail_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moe, "experts_difference", lambda *given, **options: Difference(forward=0.0, backward=0.1))
    with pytest.raises(WrongError, match=r"gradients 1\.0e-01"):
        gpu_suite.experts_parity(CPU, torch.bfloat16, quick=True)


def test_routers_compute_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    assert gpu_suite.router_parity(CPU)[1] == {"weights": 0.0, "agreement": 1.0}
    logits = models.Router.logits
    calls: list[int] = []

    def narrow(router: models.Router, hidden: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return logits(router, hidden) if len(calls) % 2 else logits(router, hidden).bfloat16().float()

    monkeypatch.setattr(models.Router, "logits", narrow)
    with pytest.raises(WrongError, match="of the tokens go to the same experts"):
        gpu_suite.router_parity(CPU)


@pytest.mark.parametrize("family", moe.FAMILIES)
def test_a_family_trains_and_decodes_as_on_the_cpu(family: str) -> None:
    config = moe.FAMILIES[family]
    losses = training_losses("auto", device=CPU, steps=3, config=config)
    assert losses[-1] < losses[0]
    assert gpu_suite.step_parity("auto", CPU, config=config)[1]["gradients"] < 1e-5
    assert gpu_suite.decoding(CPU, 3, config=config)[1]["agreement"] == 1.0


def test_timings_have_both_ways() -> None:
    detail, figures = gpu_suite.experts_timings(CPU, quick=True)
    assert list(figures) == ["float32, 8", "bfloat16, 8"]
    assert all(each["grouped_ms"] > 0 and each["loop_ms"] > 0 for each in figures.values())
    assert "loop" in detail


def test_the_list_has_every_check_of_a_mixture() -> None:
    names = [name for name, _ in gpu_suite.checks_for(torch.device("cuda"), lengths=(), quick=True)]
    for family in moe.FAMILIES:
        for what in ("loss and gradients", "training run, float32", "training run, bfloat16", "decoding"):
            assert f"{family}: {what}" in names
    assert {"experts parity: float32", "experts parity: bfloat16", "router in float32", "timings of experts"} <= {
        *names
    }
