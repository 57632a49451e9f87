"""Verified decoding says what one token per forward says: every family, window, draft, end and way of drawing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import difflm
from difflm.checkpoints.loading import LoadedModel, load_model
from difflm.decode.drawing import Draw
from difflm.decode.engine import generate
from difflm.decode.events import Completion, Forwards
from difflm.decode.policies.named import policy
from difflm.decode.policies.verified import Verified
from difflm.decode.ratio import Ratio
from difflm.decode.request import SamplingParams
from difflm.decode.runner import Runner
from difflm.decode.work import Work
from difflm.errors import RequestError
from difflm.models.quantised import is_quantised, quantise
from difflm.types import Parametrisation
from tests.checkpoints.adapters import adapted, base_folder
from tests.checkpoints.tiny import hf_folder, ling_folder
from tests.decode.drafting import answer, causal, check_equal, check_same, mixed, oracle, pair, wrong
from tests.decode.test_options import LETTERS, lettered, spelling
from tests.decode.test_runner import request_of
from tests.decode.tiny import MASK, certain, scripted
from tests.products import needs_products
from tests.standins import write_parent

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "qwen3_moe", "bailing_moe", "llada2_moe")
SAMPLED: dict[str, Any] = {"temperature": 1.3, "top_k": 9, "top_p": 0.9, "min_p": 0.02}


def converted(loaded: LoadedModel, *, shift: bool = False, noisy: Any = "bidirectional", mask: int = 60) -> LoadedModel:
    """Return the model as one whose MASK rows draft, blocks of 8."""
    parametrisation = Parametrisation(logit_shift=shift, clean_attention="causal", noisy_attention=noisy)
    config = replace(loaded.config, mask_token_id=mask, block_size=8, parametrisation=parametrisation)
    return replace(loaded, config=config)


def test_a_policy_makes_the_rule() -> None:
    assert policy("verified") == Verified()
    same, drawn = Verified().rule((3, 4)), policy("verified", check="ratio", temperature=0.7)
    assert same == Draw(suppressed=(3, 4), keyed=True)
    assert isinstance(drawn, Verified)
    expected = Draw(temperature=0.7, suppressed=(5,), keyed=True)
    assert drawn.rule((5,)) == Ratio(draw=expected)
    assert replace(drawn, draft="best").rule((5,)) == Ratio(draw=expected, best=True)
    assert replace(drawn, check="same").rule((5,)) == expected
    assert Verified(check="ratio").rule(()) == Draw(keyed=True), "without chance the two are one"
    assert (drawn.block_length, drawn.gen_length) == (None, None)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    for name in FAMILIES:
        if name in ("bailing_moe", "llada2_moe"):
            ling_folder(root / name, model_type=name)
        else:
            hf_folder(root / name, name)
    return {name: root / name for name in FAMILIES}


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family: str, dtype: str, folders: dict[str, Path]) -> None:
    number = FAMILIES.index(family) + (dtype == "float32")
    noisy = ("causal", "bidirectional")[number // 2 % 2]
    loaded = converted(load_model(folders[family], dtype=dtype), shift=number % 2 > 0, noisy=noisy)
    drafting = {"window": 2 + number % 7, "fused": (True, False, None)[number % 3], "fallback": False}
    for sampling in ({}, {"temperature": 1.0, "top_p": 0.95}):
        params = pair(sampling=sampling, drafting=drafting, max_new_tokens=12, seed=number, logprobs=2)
        again = check_equal(loaded, [5, 9, 33], params)
        assert again.drafts is not None
        assert again.drafts.accepted > 2


@pytest.mark.parametrize("fused", [True, False, None])
@pytest.mark.parametrize("window", range(2, 9))
def test_every_window(window: int, fused: bool | None) -> None:
    size, number = 8, 3 * window + (0 if fused is None else 1 + fused)
    loaded = causal(
        number, block_size=size, logit_shift=number % 2 > 0, noisy=("causal", "bidirectional")[number // 2 % 2]
    )
    lengths = (1, size - 1, size, size + 1, 2 * size + 3)
    for length in (lengths[number % 5], lengths[(number + 2) % 5]):
        prompt = [(7 * place + number) % MASK for place in range(length)]
        drafting = {"window": window, "fused": fused, "fallback": number % 2 > 0, "start": 2 + number % 7}
        sampling = SAMPLED if length % 2 else {}
        params = pair(sampling=sampling, drafting=drafting, max_new_tokens=15, seed=length)
        check_equal(loaded, prompt, params, prefill_tokens=4 if length > size else 512)


LETTER = st.sampled_from(LETTERS[:MASK])


@st.composite
def cases(draw: st.DrawFn) -> tuple[LoadedModel, list[int], tuple[SamplingParams, SamplingParams], int]:
    """Return a model, a prompt, parameters of both ways, and how much of a prompt is read at once."""
    loaded = lettered(
        causal(
            draw(st.integers(0, 10_000)),
            block_size=draw(st.sampled_from((2, 3, 8))),
            logit_shift=draw(st.booleans()),
            noisy=draw(st.sampled_from(("bidirectional", "causal"))),
            eos=draw(st.sampled_from(((), (3,), (0, 7)))),
            unassigned=draw(st.sampled_from(((), (10, 11)))),
        )
    )
    new = draw(st.integers(1, 20))
    sampling: dict[str, Any] = {
        "temperature": draw(st.sampled_from((0.0, 0.8, 2.0))),
        "top_k": draw(st.sampled_from((0, 3))),
        "top_p": draw(st.sampled_from((1.0, 0.8))),
        "min_p": draw(st.sampled_from((0.0, 0.05))),
        "repetition_penalty": draw(st.sampled_from((1.0, 1.4))),
        "presence_penalty": draw(st.sampled_from((0.0, 0.7))),
        "frequency_penalty": draw(st.sampled_from((0.0, -0.2, 0.5))),
        "logit_bias": draw(st.sampled_from((None, {1: 1.5, 4: -2.0}))),
        "min_tokens": draw(st.integers(0, new)),
    }
    drafting: dict[str, Any] = {
        "window": draw(st.integers(2, loaded.config.block_size or 2)),
        "start": draw(st.integers(2, 9)),
        "fused": draw(st.sampled_from((True, False, None))),
        "fallback": draw(st.booleans()),
        "row_cost": draw(st.sampled_from((0.0, 0.05, 0.5))),
        "draft_cost": draw(st.sampled_from((0.0, 0.5))),
    }
    params = pair(
        sampling=sampling,
        drafting=drafting,
        max_new_tokens=new,
        seed=draw(st.integers(0, 9)),
        ignore_eos=draw(st.booleans()),
        stop_token_ids=draw(st.sampled_from(((), (5, 6)))),
        stop=draw(st.lists(st.text(LETTER, min_size=1, max_size=3), max_size=3)),
        logprobs=draw(st.sampled_from((None, 0, 3))),
    )
    prompt = draw(st.lists(st.integers(0, 9), min_size=1, max_size=10))
    return loaded, prompt, params, draw(st.sampled_from((3, 512)))


@settings(max_examples=60)
@given(cases())
def test_any_mixture(case: tuple[LoadedModel, list[int], tuple[SamplingParams, SamplingParams], int]) -> None:
    # float64: a decision turns on rounding with a probability that no test run meets
    loaded, prompt, params, room = case
    check_equal(loaded, prompt, params, prefill_tokens=room)


@pytest.mark.parametrize("sampling", [{}, SAMPLED, {"temperature": 0.9, "frequency_penalty": 1.0}])
def test_the_requests_own_fields_are_those_of_next_token(sampling: dict[str, Any]) -> None:
    loaded = causal(7, block_size=4, eos=(3,), generation={"verified": {"window": 3, "fallback": False}})
    common: dict[str, Any] = {"max_new_tokens": 16, "seed": 4, "logprobs": 1, "min_tokens": 9, **sampling}
    params = tuple(SamplingParams(decoding=each, **common) for each in ("verified", "next_token"))
    check_equal(loaded, [1, 2], (params[0], params[1]))


def script_of(text: list[int], num_prompt: int) -> Any:
    """Return the script of a model that writes a text: its clean rows do; its MASK rows are beside it."""
    return lambda position: certain(text[(position + 1 - num_prompt) % len(text)])


TEXT = [4, 5, 6, 7, 8, 9, 10, 11, 0, 1, 2, 4, 6, 8, 10, 1, 5, 7]


@pytest.mark.parametrize("slot", range(10))
@pytest.mark.parametrize("fused", [True, False])
def test_an_eos_in_every_slot(slot: int, fused: bool) -> None:
    text = [*TEXT[:slot], 3, *TEXT[slot:]]
    loaded = scripted(script_of(text, 2), eos=(3,), block_size=4, clean="causal")
    params = pair(drafting={"window": 4, "start": 4, "fused": fused}, max_new_tokens=15)
    for drafter in (oracle([1, 2], text), wrong([1, 2], text)):
        found = answer(loaded, [1, 2], params[0], drafter)
        check_same(found, answer(loaded, [1, 2], params[1]))
        assert (found.tokens, found.num_tokens, found.stopped_by) == (TEXT[:slot], slot + 1, 3)
        assert found.drafts is not None
        assert found.drafts.accepted <= slot + 1, "behind the end nothing is accepted"
    ignoring = [replace(each, ignore_eos=True) for each in params]
    check_same(answer(loaded, [1, 2], ignoring[0], oracle([1, 2], text)), answer(loaded, [1, 2], ignoring[1]))


def forwards_of(limit: int, window: int, *, fused: bool) -> int:
    """Return how many forwards write so many tokens if every draft is right."""
    left, drafts, count = limit, 0, 0
    while left:
        left -= min(left, drafts + 1)
        more = left >= 2 and (fused or not drafts)
        drafts, count = (min(window - 1, left) if more else 0), count + 1
    return count


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("window", [2, 4])
def test_every_limit_around_a_window(window: int, fused: bool) -> None:
    loaded = scripted(script_of(TEXT, 2), block_size=4, clean="causal")
    drafting = {"window": window, "start": window, "fused": fused, "fallback": False}
    for limit in range(1, 2 * window + 4):
        verified, _ = pair(drafting=drafting, max_new_tokens=limit)
        right = answer(loaded, [1, 2], verified, oracle([1, 2], TEXT))
        assert (right.tokens, right.finish_reason) == (TEXT[:limit], "length")
        forwards = right.forwards.denoise + right.forwards.commit
        assert forwards == forwards_of(limit, window, fused=fused)
        never = answer(loaded, [1, 2], verified, wrong([1, 2], TEXT))
        assert never.tokens == TEXT[:limit]
        assert never.drafts is not None
        assert never.drafts.accepted == 0
        assert never.forwards.denoise + never.forwards.commit == limit


def completions_with(window: int, *, fused: bool | None, drafter: Any) -> Completion:
    loaded = scripted(script_of(TEXT, 2), block_size=8, clean="causal")
    drafting = {"window": window, "start": window, "fused": fused}
    verified, _ = pair(drafting=drafting, max_new_tokens=5 * len(TEXT))
    found = answer(loaded, [1, 2], verified, drafter([1, 2], TEXT * 5))
    assert found.tokens == TEXT * 5
    return found


@pytest.mark.parametrize("window", [2, 4, 8])
def test_right_drafts_give_a_window_and_one_for_two_forwards_or_a_window_for_each(window: int) -> None:
    cycle = completions_with(window, fused=False, drafter=oracle)
    assert cycle.drafts is not None
    assert cycle.drafts.accepted == cycle.drafts.drafted
    assert abs(2 * len(cycle.tokens) / (window + 1) - cycle.forwards.denoise - cycle.forwards.commit) <= 1
    assert abs(cycle.forwards.denoise - cycle.forwards.commit) <= 1
    fused = completions_with(window, fused=True, drafter=oracle)
    assert fused.tokens_per_forward == pytest.approx(window, rel=0.15)
    assert fused.forwards.commit <= 1
    assert fused.drafts is not None
    assert fused.drafts.tokens_per_cycle >= 0.9 * window
    assert completions_with(window, fused=None, drafter=oracle).tokens_per_forward > 0.8 * (window + 1) / 2


def test_drafts_that_are_never_right_cost_rows_and_nothing_else() -> None:
    for fused in (True, False, None):
        found = completions_with(4, fused=fused, drafter=wrong)
        assert found.drafts is not None
        assert (found.drafts.accepted, set(found.drafts.acceptance_at)) == (0, {0.0})
        assert found.tokens_per_forward == 1.0
        assert found.drafts.cycles < 10, "it stops drafting"


@pytest.mark.parametrize(
    "stop",
    [["ef"], ["bc", "abcd"], ["cdef", "de"], ["de", "cdef"], ["hi", "efghij"], ["k", "bcdefghijkl"], ["zz"]],
    ids="-".join,
)
@pytest.mark.parametrize("fused", [True, False])
def test_stop_strings_across_drafts_cut_as_one_token_after_another(stop: list[str], fused: bool) -> None:
    word = [LETTERS.index(letter) for letter in "bcdefghijkl"]
    loaded = spelling("bcdefghijkla", clean="causal", block_size=6)
    for window in range(2, 7):
        drafting = {"window": window, "start": window, "fused": fused}
        params = pair(drafting=drafting, max_new_tokens=11, stop=stop)
        expected = answer(loaded, [0], params[1])
        check_same(answer(loaded, [0], params[0], oracle([0], word)), expected)
        check_same(answer(loaded, [0], params[0], mixed([0], word)), expected)
        late = pair(sampling={"min_tokens": 6}, drafting=drafting, max_new_tokens=11, stop=stop)
        check_same(answer(loaded, [0], late[0], oracle([0], word)), answer(loaded, [0], late[1]))


@pytest.fixture(scope="module")
def gated(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[LoadedModel, LoadedModel]]:
    """Return bases, and the same with an adapter for noisy rows, every number of it random."""
    root, found = tmp_path_factory.mktemp("gated"), {}
    for number, name in enumerate(("tied", "qwen3_moe", "llada2_moe")):
        folder = base_folder(root / name, name)
        each = load_model(folder, dtype="float64"), adapted(folder, dtype="float64", token_ids=(60,), gate="noisy")
        base, drafting = (converted(one, shift=number % 2 > 0) for one in each)
        # The base alone would not be asked for drafts: here it is, to compare its clean rows.
        found[name] = base, drafting
    return found


@pytest.mark.parametrize("name", ["tied", "qwen3_moe", "llada2_moe"])
@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.0}], ids=["best", "drawn"])
def test_an_adapter_that_drafts_leaves_the_text_to_its_base(
    name: str, sampling: dict[str, Any], gated: dict[str, tuple[LoadedModel, LoadedModel]]
) -> None:
    base, loaded = gated[name]
    verified, plain = pair(
        sampling=sampling, drafting={"fallback": False, "start": 3}, max_new_tokens=14, seed=3, logprobs=2
    )
    prompt = [5, 9, 33, 7]
    expected = answer(base, prompt, plain)
    check_same(answer(loaded, prompt, plain), expected)
    check_same(answer(loaded, prompt, verified), expected)
    check_same(answer(loaded, prompt, verified, mixed(prompt, expected.tokens)), expected)
    own = SamplingParams(max_new_tokens=14, seed=3, logprobs=2, **sampling)
    by_itself = answer(loaded, prompt, own)
    check_same(by_itself, expected)
    assert by_itself.drafts is not None, "a model whose adapter drafts is decoded so by itself"
    with pytest.raises(
        RequestError, match=r"decoding: 'block', but the adapter on .* only drafts \(its gate is 'noisy'"
    ):
        answer(loaded, prompt, replace(own, decoding="block"))


@pytest.mark.parametrize("name", ["tied", "qwen3_moe", "llada2_moe"])
def test_clean_rows_beside_drafting_ones_are_the_bases(
    name: str, gated: dict[str, tuple[LoadedModel, LoadedModel]]
) -> None:
    request = request_of(
        policy=None, rule=Draw(), mask_id=60, block_size=1, clean_causal=True, logit_shift=True, noisy_shift=False
    )
    logits: list[torch.Tensor] = []

    def record(module: torch.nn.Module, inputs: object, output: torch.Tensor) -> None:
        logits.append(output)

    for loaded in gated[name]:
        hook = loaded.model.head.register_forward_hook(record)
        runner = Runner(loaded.model, max_tokens=64)
        runner.run([Work(request=request, kind="prefill", start=0, tokens=(5, 9, 33), num_clean=3)])
        work = Work(
            request=request, kind="denoise", start=3, tokens=(7, 8, 60, 60), num_clean=2, places=(4, 5, 6), drafts=(8,)
        )
        runner.run([work])
        hook.remove()
    ours, theirs = logits
    assert not torch.allclose(ours[2], theirs[2])
    assert torch.allclose(ours[:2], theirs[:2], rtol=0.0, atol=1e-12)
    if name == "tied":  # the MASK rows of a mixture choose other experts, whose sums have other numbers of rows then
        assert torch.equal(ours[:2], theirs[:2])


@needs_products
def test_eight_bit_weights_have_a_scale_for_each_row_and_stay_equal(tmp_path: Path) -> None:
    path = tmp_path / "model"
    difflm.convert(write_parent(tmp_path / "parent"), path, block_size=8, clean_attention="causal")
    loaded = load_model(path, weights="int8")
    assert is_quantised(loaded.model)
    for sampling in ({}, {"temperature": 1.0}):
        params = pair(
            sampling=sampling, drafting={"fallback": False, "start": 4}, max_new_tokens=16, ignore_eos=True, logprobs=1
        )
        assert check_equal(loaded, [1, 2, 3, 200], params).tokens


@needs_products
def test_eight_bit_weights_under_an_adapter_that_drafts_say_what_they_say_alone(tmp_path: Path) -> None:
    folder = base_folder(tmp_path / "base", "tied")
    base, loaded = (converted(each) for each in (load_model(folder), adapted(folder, token_ids=(60,), gate="noisy")))
    for each in (base, loaded):
        quantise(each.model)
    drafts: list[object] = []
    for sampling in ({}, {"temperature": 1.0}):
        verified, plain = pair(
            sampling=sampling, drafting={"fallback": False, "start": 4}, max_new_tokens=16, ignore_eos=True, logprobs=1
        )
        expected = answer(base, [5, 9, 33], plain)
        check_same(answer(loaded, [5, 9, 33], plain), expected)
        check_same(answer(loaded, [5, 9, 33], verified, mixed([5, 9, 33], expected.tokens)), expected)
        for model in (loaded, base):
            found = answer(model, [5, 9, 33], verified)
            check_same(found, expected)
            drafts.append(found.drafts)
    assert drafts[::2] != drafts[1::2], "the adapter drafts otherwise than its base"


def test_a_block_of_one_token_leaves_nothing_to_draft() -> None:
    loaded = causal(2, block_size=1)
    found = generate(loaded, [[1, 2]], SamplingParams(decoding="verified", max_new_tokens=6))[0]
    check_same(found, generate(loaded, [[1, 2]], SamplingParams(decoding="next_token", max_new_tokens=6))[0])
    assert found.forwards == Forwards(denoise=6)
    assert found.drafts is not None
    assert found.drafts.drafted == 0


@pytest.mark.parametrize("draft", ["drawn", "best"])
def test_the_ratio_rule_accepts_what_agrees_and_ends_as_any_other(draft: str) -> None:
    # Clean rows are certain of the text, and so are MASK rows: p = q up to a hair, so that all is accepted.
    text = TEXT[:9]
    loaded = scripted(lambda position: certain(text[(position - 1) % 9], 1 - 1e-9), logit_shift=True, clean="causal")
    drafting = {"window": 4, "start": 4, "check": "ratio", "draft": draft, "fused": True}
    verified, plain = pair(sampling={"temperature": 1.0}, drafting=drafting, max_new_tokens=20, stop_token_ids=(0,))
    found = answer(loaded, [1, 2], verified)
    check_same(found, answer(loaded, [1, 2], plain))
    assert found.drafts is not None
    assert found.drafts.accepted == min(found.drafts.drafted, found.num_tokens - 2)
