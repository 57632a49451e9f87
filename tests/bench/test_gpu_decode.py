"""Decoding in the GPU check, on CPU with tiny shapes: bytes that a forward touches, both attentions, rates."""

from __future__ import annotations

import pytest
import torch

from difflm.bench import gpu_decode, gpu_suite
from difflm.bench.checks import NotRunError, WrongError
from difflm.bench.gpu_decode import (
    SHAPES,
    Touched,
    copy_bandwidth,
    decode_figures,
    device_model,
    forward_figures,
    loaded_of,
    schedule_rates,
    segment_inputs,
    shape,
    touched_bytes,
)
from difflm.bench.speed_systems import BLOCK, Probe
from difflm.decode.forwards import body_of
from difflm.models.cache import bytes_per_token

CPU = torch.device("cpu")


def test_a_body_of_segments_computes_the_probe_s_forward() -> None:
    """What is recorded as a graph is what was asked for: same rows, same caches, each sequence by itself."""
    model = device_model(shape(SHAPES[0], quick=True), device=CPU, dtype=torch.float32)
    probe = Probe(loaded_of(model), sequences=3, rows=BLOCK, cached=8, head=96)
    with torch.inference_mode():
        found = body_of(model, probe.attend.pool)(*segment_inputs(probe, sequences=3, cached=8))
        expected = model(probe.token_BN, probe.position_BN, probe.attend)[0]
    assert torch.allclose(found, expected, atol=1e-5)


def test_bytes_of_a_dense_model_are_its_weights_rows_and_cache() -> None:
    config = shape(SHAPES[0], quick=True)
    model = device_model(config, device=CPU, dtype=torch.bfloat16)
    probe = Probe(loaded_of(model), sequences=2, rows=BLOCK, cached=24, head=64)
    inside = sum(each.numel() for layer in model.layers for each in layer.parameters())
    head = config.vocab_size * config.hidden_size
    expected = 2 * (inside + head + 64 * config.hidden_size) + 48 * bytes_per_token(config, torch.bfloat16)
    assert touched_bytes(probe, sequences=2, cached=24) == expected


def test_only_experts_with_a_row_are_touched() -> None:
    model = device_model(shape(SHAPES[1], quick=True), device=CPU, dtype=torch.bfloat16)
    few = Probe(loaded_of(model), sequences=1, rows=1, cached=8, head=1)
    many = Probe(loaded_of(model), sequences=4, rows=BLOCK, cached=8, head=1)
    assert touched_bytes(few, sequences=1, cached=8) < touched_bytes(many, sequences=1, cached=8) - 100_000
    counted = Touched()
    counted.record(3, counted.measure(torch.zeros(3, 6), torch.tensor([[0, 5], [5, 2], [0, 2]])))
    assert counted.experts == {3: 3}


@pytest.mark.parametrize("name", SHAPES)
def test_weights_are_made_on_the_device_and_figures_are_there(name: str) -> None:
    figures = decode_figures(name, CPU, quick=True)
    assert set(figures["forwards"]) == {"cache 24, batch 1", "cache 24, batch 3"}
    for each in figures["forwards"].values():
        assert each["floor_ms"] > 0
        assert each["difference"] < 4e-2
        assert each["plain"]["over_floor"] == pytest.approx(each["plain"]["ms"] / each["floor_ms"])
    assert figures["tokens_per_second"]["plain, batch 3"]["S=8"] > 0


def test_the_pieces() -> None:
    assert copy_bandwidth(CPU, quick=True) > 1e6
    model = device_model(shape(SHAPES[0], quick=True), device=CPU, dtype=torch.float32)
    assert all(not each.requires_grad for each in model.parameters())
    assert forward_figures(model, sequences=1, cached=4, bandwidth=1e9, quick=True)["floor_ms"] > 0
    rates = schedule_rates(model, execution="plain", requests=2, prompt=32, new_tokens=32, schedules=(1, 8))
    assert list(rates) == ["S=1", "S=8"]
    assert shape("llada2.0-mini", quick=False).num_layers == 20


def test_the_check_names_the_goal_and_fails_only_on_wrong_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = {"floor_ms": 1.0, "difference": 0.01, "plain": {"ms": 2.0, "over_floor": 2.0}}
    figures = {
        "bandwidth_gb_s": 10.0,
        "forwards": {"cache 24, batch 1": forward},
        "tokens_per_second": {"plain, batch 1": {"S=8": 99.0}},
    }
    monkeypatch.setattr(gpu_decode, "decode_figures", lambda *args, **options: figures)
    detail, found = gpu_suite.decoding_speed(SHAPES[0], CPU, quick=True)
    assert found is figures
    assert "goal 1.5: missed): cache 24, batch 1 2.00" in detail
    assert "S=8 99" in detail
    forward["plain"] = {"ms": 1.4, "over_floor": 1.4}
    assert "goal 1.5: met" in gpu_suite.decoding_speed(SHAPES[0], CPU, quick=True)[0]
    forward["difference"] = 0.2
    with pytest.raises(WrongError, match="attentions within"):
        gpu_suite.decoding_speed(SHAPES[0], CPU, quick=True)

    def full(*args: object, **options: object) -> None:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(gpu_decode, "decode_figures", full)
    with pytest.raises(NotRunError, match="do not fit"):
        gpu_suite.decoding_speed(SHAPES[1], CPU, quick=True)
