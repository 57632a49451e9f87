"""Padded, compiled and recorded forwards answer as the plain ones; few shapes are compiled or recorded."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from difflm.checkpoints.loading import LoadedModel
from difflm.decode.engine import Engine
from difflm.decode.events import Completion, Finished
from difflm.decode.forwards import (
    Body,
    CompiledBody,
    PaddedForward,
    PlainForward,
    RecordedBody,
    padded_count,
    padded_forward,
)
from difflm.decode.packing import noisy_rows, packed
from difflm.decode.policies.named import policy
from difflm.decode.request import SamplingParams
from difflm.decode.work import Work
from difflm.errors import ConfigError, RequestError
from difflm.models.adapters import AdapterSite, adaptable_weights, adapter_parameters, attach_adapter
from difflm.models.cache import CachePool
from difflm.models.lora import AdapterGate
from difflm.models.stacking import stack_maps
from tests.decode.drafting import causal, check_same, pair
from tests.decode.test_engine import PARAMETRISATIONS
from tests.decode.test_runner import request_of
from tests.decode.tiny import MASK, tiny

CACHE_TOKENS = 60


def engine_of(loaded: LoadedModel, wrap: Callable[[Body], Body], **options: Any) -> Engine:
    """Return an engine whose forwards are padded, their computation wrapped."""
    engine = Engine(loaded, cache_bytes=CACHE_TOKENS * 256, **options)
    engine.runner.forward = padded_forward(loaded.model, engine.runner.pool, wrap, max_tokens=CACHE_TOKENS)
    return engine


def recorded_on_cpu(compute: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
    """Stands in for a CUDA graph: repeats the computation, its result lies where the first one did."""
    result = compute().clone()

    def repeat() -> None:
        result.copy_(compute())

    return repeat, result


def test_few_shapes_and_little_padding() -> None:
    padded = [padded_count(count) for count in range(1, 5000)]
    assert all(count <= given <= max(32, 1.25 * count + 31) for count, given in enumerate(padded, 1))
    assert all(given <= 1.25 * count for count, given in enumerate(padded, 1) if count >= 128)
    assert padded == sorted(padded)
    assert len(set(padded)) == 25


@st.composite
def crowds(draw: st.DrawFn) -> tuple[LoadedModel, list[tuple[list[int], SamplingParams]]]:
    shift, clean, noisy = draw(st.sampled_from(PARAMETRISATIONS))
    loaded = tiny(draw(st.integers(0, 10_000)), logit_shift=shift, clean=clean, noisy=noisy, eos=(3,))
    requests: list[tuple[list[int], SamplingParams]] = []
    drafts = SamplingParams(decoding="verified") if clean == "causal" else SamplingParams(decoding="next_token")
    drawn = replace(drafts, temperature=1.1, presence_penalty=0.5)
    for _ in range(draw(st.integers(1, 5))):
        new = draw(st.integers(1, 9))
        params = draw(
            st.sampled_from(
                (
                    replace(drafts, max_new_tokens=new),
                    replace(drawn, max_new_tokens=new, seed=new),
                    SamplingParams(max_new_tokens=new, block_size=4, threshold=0.4),
                    SamplingParams(max_new_tokens=new, block_size=3, threshold=1.0, temperature=0.9, seed=new),
                    SamplingParams(max_new_tokens=new, policy=policy("sglang", block_size=2, edit_threshold=0.3)),
                    SamplingParams(max_new_tokens=new, decoding="next_token"),
                )
            )
        )
        requests.append((draw(st.lists(st.integers(0, MASK - 1), min_size=1, max_size=11)), params))
    return loaded, requests


def completions(engine: Engine, requests: list[tuple[list[int], SamplingParams]]) -> list[Completion]:
    numbers = [engine.submit(prompt, params) for prompt, params in requests]
    done: dict[int, Completion] = {}
    while len(done) < len(numbers):
        done |= {event.request_id: event.completion for event in engine.step() if isinstance(event, Finished)}
    return [done[number] for number in numbers]


@settings(max_examples=25, deadline=None)
@given(crowds(), st.booleans(), st.sampled_from((4, 512)), st.booleans())
def test_padded_and_recorded_forwards_answer_as_plain_ones(
    case: tuple[LoadedModel, list[tuple[list[int], SamplingParams]]],
    fused: bool,
    prefill_tokens: int,
    prefix_caching: bool,
) -> None:
    # float64: a decision turns on rounding with a probability that no test run meets
    loaded, requests = case
    options: dict[str, Any] = {
        "fused": fused,
        "prefill_tokens": prefill_tokens,
        "prefix_caching": prefix_caching,
        "max_requests": 3,
    }
    plain = completions(Engine(loaded, cache_bytes=CACHE_TOKENS * 256, **options), requests)
    recorded = RecordedBody(lambda *inputs: torch.empty(0), recorded_on_cpu)

    def wrap(body: Body) -> Body:
        recorded.body = body
        return recorded

    for found in (completions(engine_of(loaded, each, **options), requests) for each in (lambda body: body, wrap)):
        assert [(each.tokens, each.forwards) for each in found] == [(each.tokens, each.forwards) for each in plain]
    # rows: 32 or 64; segments: a quarter of them, or one for each row
    assert set(recorded.recorded) <= {(32, 8), (32, 33), (64, 16), (64, 65)}


def drafting(seed: int = 4, *, gate: AdapterGate = "noisy", **facts: Any) -> LoadedModel:
    """Return a tiny model with an adapter on every map and the mask's row."""
    loaded = causal(seed, **facts)
    sites = [AdapterSite(weights=(each,), rank=2, alpha=4.0) for each in adaptable_weights(loaded.model)]
    generator = torch.Generator().manual_seed(1)
    attach_adapter(loaded.model, sites, token_ids=(MASK,), generator=generator, gate=gate)
    with torch.no_grad():
        for parameter in adapter_parameters(loaded.model).values():
            parameter += torch.randn(parameter.shape, generator=generator)
    return loaded


def causal_work(number: int, clean: int, noisy: int, start: int = 0) -> Work:
    request = request_of(
        id=number, block_size=1, clean_causal=True, noisy_causal=True, logit_shift=True, max_new_tokens=9
    )
    tokens = (*range(1, clean + 1), *([MASK] * noisy))
    return Work(request=request, base=20 * number, kind="denoise", start=start, tokens=tokens, num_clean=clean)


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize(
    ("works", "given"),
    [
        ([causal_work(0, 3, 4)], slice(3, 7)),
        ([causal_work(0, 0, 4)], slice(0, 4)),
        ([causal_work(0, 2, 0), causal_work(1, 1, 3, 4), causal_work(2, 5, 0, 1)], slice(3, 6)),
        ([causal_work(0, 2, 1), causal_work(1, 4, 0), causal_work(2, 1, 2)], [0, 0, 1, 0, 0, 0, 0, 0, 1, 1]),
        ([causal_work(0, 2, 0), causal_work(1, 3, 0)], None),
    ],
)
def test_noisy_rows_of_one_request_are_a_run_and_a_run_gives_what_a_mask_does(
    works: list[Work], given: object, stacked: bool
) -> None:
    loaded, seen = drafting(), list[Any]()
    if stacked:
        stack_maps(loaded.model)
    forward = loaded.model.forward

    def recorded(*args: Any, **options: Any) -> Tensor:
        seen.append(options.get("adapter"))
        return forward(*args, **options)

    loaded.model.forward = recorded
    rows, found = packed(works), list[Tensor]()
    with torch.inference_mode():
        for masked in (False, True):
            pool = CachePool(loaded.model.config, device="cpu", dtype=torch.float64)
            pool.ensure(80, most=80)
            for stored in (pool.key, pool.value):
                stored.zero_()
            if not masked:
                found.append(PlainForward(loaded.model, pool)(works, rows))
                continue
            loaded.model.forward = lambda *args, **options: forward(
                *args, adapter=torch.tensor([noisy_rows(works)], dtype=torch.bool)
            )
            found.append(PlainForward(loaded.model, pool)(works, rows))
    assert [each[0].int().tolist() if isinstance(each, Tensor) else each for each in seen] == [given]
    assert torch.allclose(found[0], found[1], atol=1e-12)


def test_an_adapter_for_every_row_needs_no_rows() -> None:
    loaded, seen = drafting(gate="all"), list[dict[str, Any]]()
    forward = loaded.model.forward
    loaded.model.forward = lambda *args, **options: (seen.append(options), forward(*args, **options))[1]
    Engine(loaded, cache_bytes=100 * 256).generate([[1, 2]], SamplingParams(max_new_tokens=2, decoding="next_token"))
    assert seen
    assert not any(seen)


@pytest.mark.parametrize("shift", [False, True])
def test_padded_forwards_keep_an_adapter_for_noisy_rows_to_these(shift: bool) -> None:
    loaded = causal(4, logit_shift=shift, eos=(3,))
    sites = [AdapterSite(weights=(each,), rank=2, alpha=4.0) for each in adaptable_weights(loaded.model)]
    generator = torch.Generator().manual_seed(1)
    prompts = [[1, 2, 4], [5], [6, 7, 8, 9, 10]]
    requests: list[tuple[list[int], SamplingParams]] = []
    for prompt, temperature in zip(prompts, (0.0, 0.9, 0.0), strict=True):
        verified, plain = pair(
            sampling={"temperature": temperature}, drafting={"fallback": False}, max_new_tokens=9, logprobs=1
        )
        requests += [(prompt, verified), (prompt, plain)]
    base = completions(Engine(loaded, cache_bytes=100 * 256), requests)
    attach_adapter(loaded.model, sites, token_ids=(MASK,), generator=generator, gate="noisy")
    with torch.no_grad():
        for parameter in adapter_parameters(loaded.model).values():
            parameter += torch.randn(parameter.shape, generator=generator)
    plain_forwards = completions(Engine(loaded), requests)
    engine = engine_of(loaded, lambda body: body)
    assert isinstance(engine.runner.forward, PaddedForward)
    assert engine.runner.forward.gated is not engine.runner.forward.body
    padded = completions(engine, requests)
    for each, other, own in zip(padded, plain_forwards, base, strict=True):
        check_same(each, own)
        check_same(other, own)
        assert (each.drafts, each.forwards) == (other.drafts, other.forwards)
    drafts = [(each.drafts, own.drafts) for each, own in zip(padded, base, strict=True) if each.drafts]
    assert any(adapted != plain for adapted, plain in drafts), "the adapter drafts otherwise than its base"


def test_a_recording_is_repeated_on_new_inputs_and_large_forwards_are_not_recorded() -> None:
    calls: list[str] = []

    def body(*inputs: Tensor) -> Tensor:
        calls.append("computed")
        return inputs[0] + inputs[1].sum()

    def record(compute: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        calls.append("recorded")
        return recorded_on_cpu(compute)

    recorded = RecordedBody(body, record, most=4)
    for number in (1, 2, 3):
        result = recorded(torch.full((4,), number), torch.tensor([10 * number]))
        assert result.tolist() == [11 * number] * 4
    assert calls.count("recorded") == 1
    assert recorded(torch.ones(5), torch.tensor([1])).tolist() == [2] * 5
    assert calls.count("recorded") == 1
    recorded(torch.ones(3), torch.tensor([1]))
    assert calls.count("recorded") == 2


@pytest.fixture
def compiled_graphs() -> Iterator[list[torch.fx.GraphModule]]:
    torch.compiler.reset()
    graphs: list[torch.fx.GraphModule] = []
    yield graphs
    torch.compiler.reset()


def test_compiled_forwards_answer_as_plain_ones_and_each_shape_is_compiled_once(
    compiled_graphs: list[torch.fx.GraphModule],
) -> None:
    from torch._dynamo.backends.common import aot_autograd
    from torch._functorch.compilers import nop

    def counting(graph: torch.fx.GraphModule, example_inputs: Any) -> Any:
        compiled_graphs.append(graph)
        return aot_autograd(fw_compiler=nop)(graph, example_inputs)

    loaded = tiny(3, eos=(3,))
    requests = [
        ([1, 2, 4, 5, 6, 7][:length], SamplingParams(max_new_tokens=new, threshold=0.4, decoding=decoding))
        for length, new, decoding in itertools.product((1, 5), (2, 9), ("block", "next_token"))
    ]
    plain = completions(Engine(loaded, cache_bytes=CACHE_TOKENS * 256), requests)
    engine = engine_of(loaded, lambda body: CompiledBody(body, backend=counting))
    for _ in range(2):
        found = completions(engine, requests)
        assert [(each.tokens, each.forwards) for each in found] == [(each.tokens, each.forwards) for each in plain]
    # 32 rows with few segments or one for each row, no more: neither lengths nor places are compiled in
    assert len(compiled_graphs) == 2


def test_a_model_that_cannot_be_compiled_is_refused(compiled_graphs: list[torch.fx.GraphModule]) -> None:
    class Asking(nn.Module):
        def forward(self, hidden: Tensor, adapter: object = True) -> Tensor:
            return hidden * hidden.tolist()[0][0][0]

    loaded = tiny(3)
    loaded.model.layers[1].mlp = Asking()
    engine = engine_of(loaded, lambda body: CompiledBody(body, backend="eager"))
    with pytest.raises(ConfigError, match=r"execution: this model cannot be compiled here \(.*\); use 'plain'"):
        engine.generate([[1]], SamplingParams(max_new_tokens=1))


def test_executions_that_are_not_there_are_refused() -> None:
    with pytest.raises(RequestError, match="execution: 'graphs' needs a CUDA device, the model is on cpu; use 'plain'"):
        Engine(tiny(1), cache_bytes=256, execution="graphs")
    with pytest.raises(RequestError, match="execution: 'fast' is unknown; use 'plain', 'compiled', 'graphs'"):
        Engine(tiny(1), execution="fast")  # type: ignore[arg-type]


def test_compiled_is_padded_and_takes_all_of_the_cache_which_hides_no_nan() -> None:
    engine = Engine(tiny(1), cache_bytes=9 * 256, execution="compiled")
    assert engine.runner.pool.capacity == 10
    assert not engine.runner.pool.key.any()
    assert not engine.runner.pool.value.any()
    assert isinstance(engine.runner.forward, PaddedForward)
    assert isinstance(engine.runner.forward.body, CompiledBody)
