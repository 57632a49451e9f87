"""The policies of the released code: against its own results, and against a transcription on random logits."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from difflm.checkpoints.loading import LoadedModel, load_model
from difflm.decode.engine import Engine
from difflm.decode.events import Committed, Completion, Denoised, Edited, Event, Finished
from difflm.decode.policies.hf import Hf20Greedy, Hf21
from difflm.decode.policies.named import policy
from difflm.decode.request import SamplingParams
from tests.decode.policies import transcriptions as plain
from tests.golden import golden

CASES = golden.cases("generate")["cases"]
HANGING = golden.cases("generate_hang")["cases"]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load_model(golden.checkpoint("llada2", tmp_path_factory.mktemp("golden") / "llada2"))


def params_of(case: dict[str, Any]) -> SamplingParams:
    return SamplingParams(policy=policy(case["mode"], **case["settings"]), seed=case.get("seed", 0))


def decoded_together(engine: Engine, cases: list[dict[str, Any]]) -> list[tuple[Completion, list[Event]]]:
    """Return completion and events of each case, all submitted at once."""
    numbers = [engine.submit(case["prompt"], params_of(case)) for case in cases]
    events: dict[int, list[Event]] = {number: [] for number in numbers}
    done: dict[int, Completion] = {}
    while len(done) < len(numbers):
        for event in engine.step():
            events[event.request_id].append(event)
            if isinstance(event, Finished):
                done[event.request_id] = event.completion
    return [(done[number], events[number]) for number in numbers]


def trace_of(events: list[Event]) -> list[dict[str, Any]]:
    """Return the events of the forwards in the form of the recorded traces."""
    trace: list[dict[str, Any]] = []
    for event in events:
        if isinstance(event, Denoised):
            entry: dict[str, Any] = {
                "block": event.block,
                "masks_before": event.num_masked,
                "selected_by": event.selected_by,
                "filled": [list(pair) for pair in zip(event.positions, event.tokens, strict=True)],
            }
            trace.append(entry | ({"wasted": list(event.wasted)} if event.wasted else {}))
        elif isinstance(event, Edited):
            edits = zip(event.positions, event.before, event.tokens, strict=True)
            trace[-1]["edited"] = [list(each) for each in edits]
    return trace


def check(case: dict[str, Any], completion: Completion, events: list[Event]) -> None:
    """Assert the recorded result, the sampled ones included: the order of the draws is the release's."""
    assert completion.tokens == case["output"], case["id"]
    assert completion.forwards.denoise == case["num_forwards"], case["id"]
    if "trace" in case:
        expected = [{k: v for k, v in entry.items() if v != [] or k == "filled"} for entry in case["trace"]]
        assert trace_of(events) == expected, case["id"]
    generated = case["output"]
    if "prompt_included_in_output" in case["flags"]:
        generated = generated[len(case["prompt"]) :]
    if "eos-in-prompt-early-stop" not in case["flags"]:
        assert [t for event in events if isinstance(event, Committed) for t in event.tokens] == generated


def test_all_recorded_results_decoded_together(loaded: LoadedModel) -> None:
    assert len(CASES) == 233
    engine = Engine(loaded, max_requests=len(CASES))
    for case, (completion, events) in zip(CASES, decoded_together(engine, CASES), strict=True):
        check(case, completion, events)


@pytest.mark.parametrize("fused", [True, False])
def test_recorded_results_decoded_alone(loaded: LoadedModel, fused: bool) -> None:
    engine = Engine(loaded, fused=fused)
    few = [case for case in CASES if case["num_forwards"] < 8]
    for case in few[fused::11]:
        ((completion, events),) = decoded_together(engine, [case])
        check(case, completion, events)


def test_settings_under_which_the_release_never_returns_end_and_say_so(loaded: LoadedModel) -> None:
    assert len(HANGING) == 13
    engine = Engine(loaded)
    for case, (completion, _) in zip(HANGING, decoded_together(engine, HANGING), strict=True):
        assert completion.finish_reason == "stuck"
        # The state after `forwards_before_repeat` forwards is that of `period` forwards later.
        seen = case["forwards_before_repeat"] + case["period"]
        assert completion.forwards.denoise in (seen, max(seen - 1, 1)), case["id"]


@settings(max_examples=150, deadline=None)
@given(
    prompt=st.lists(st.integers(0, plain.MASK), max_size=9),
    seed=st.integers(0, 10**6),
    size=st.sampled_from((1, 3, 4)),
    new=st.integers(0, 10),
    steps=st.integers(1, 6),
    threshold=st.sampled_from((0.0, 0.4, 0.8, 0.95)),
    early=st.booleans(),
    least=st.sampled_from((1, 1, 3)),
    mask_bonus=st.sampled_from((-2.0, 0.0, 2.0)),
)
def test_hf20_greedy(
    prompt: list[int],
    seed: int,
    size: int,
    new: int,
    steps: int,
    threshold: float,
    early: bool,
    least: int,
    mask_bonus: float,
) -> None:
    logits = plain.random_logits(seed, sharpness=2.0, mask_bonus=mask_bonus)
    options = {"steps": steps, "threshold": threshold}
    expected = plain.hf20(prompt, logits, size=size, new=new, early=early, least=least, **options)  # type: ignore[arg-type]
    released = Hf20Greedy(eos_early_stop=early, minimal_topk=least, **options)  # type: ignore[arg-type]
    found = plain.drive(released, prompt, logits, size=size, new=new)
    assert (found.tokens, found.forwards, found.trace) == (expected.tokens, expected.forwards, expected.trace)


@settings(max_examples=150, deadline=None)
@given(
    prompt=st.lists(st.integers(0, plain.MASK), max_size=9),
    seed=st.integers(0, 10**6),
    size=st.sampled_from((1, 3, 4)),
    new=st.integers(0, 10),
    threshold=st.sampled_from((0.0, 0.4, 0.8, 0.95)),
    edit=st.sampled_from((0.0, 0.5, 0.9, 1.0)),
    post_steps=st.sampled_from((0, 1, 4)),
    early=st.booleans(),
    transfer=st.sampled_from((1, 2)),
    mask_bonus=st.sampled_from((-2.0, 0.0, 1.0)),
)
def test_hf21(
    prompt: list[int],
    seed: int,
    size: int,
    new: int,
    threshold: float,
    edit: float,
    post_steps: int,
    early: bool,
    transfer: int,
    mask_bonus: float,
) -> None:
    logits = plain.random_logits(seed, sharpness=2.0, mask_bonus=mask_bonus)
    expected = plain.hf21(
        prompt,
        logits,
        size=size,
        new=new,
        threshold=threshold,
        edit=edit,
        post_steps=post_steps,
        early=early,
        transfer=transfer,
    )
    released = Hf21(
        threshold=threshold,
        editing_threshold=edit,
        max_post_steps=post_steps,
        eos_early_stop=early,
        num_to_transfer=transfer,
        max_forwards=300,
    )
    found = plain.drive(released, prompt, logits, size=size, new=new)
    assert found.outcome is not None
    assert (found.outcome.finish_reason == "stuck") == (expected is None)
    if expected is not None:
        assert (found.tokens, found.forwards, found.trace) == (expected.tokens, expected.forwards, expected.trace)


def test_sampled_blocks_that_do_not_end_stop_at_the_bound() -> None:
    table = {i: [0.0] * plain.MASK + [30.0] for i in range(4)}
    found = plain.drive(Hf21(temperature=0.5, max_forwards=9), [], plain.fixed_logits(table), size=4, new=4)
    assert found.outcome is not None
    assert (found.outcome.finish_reason, found.forwards) == ("stuck", 9)


def test_a_block_that_its_last_forward_left_unchanged_costs_no_commit(loaded: LoadedModel) -> None:
    settings_ = {"block_length": 4, "gen_length": 12, "editing_threshold": 1.0, "eos_id": 301, "mask_id": 300}
    params = SamplingParams(policy=policy("hf21", **settings_), ignore_eos=True)
    (done,) = Engine(loaded, fused=False).generate([[5, 6, 7, 8]], params)
    assert done.forwards.commit == 0
    assert len(done.tokens) == 12
    params = SamplingParams(max_new_tokens=12, block_size=4, ignore_eos=True)
    assert Engine(loaded, fused=False).generate([[5, 6, 7, 8]], params)[0].forwards.commit == 2
