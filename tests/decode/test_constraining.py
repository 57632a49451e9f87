"""Constrained answers: sound under every policy, equal alone and among others, verified as left to right."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from difflm.checkpoints.constraints import Constraint
from difflm.checkpoints.loading import LoadedModel
from difflm.decode.engine import Engine, generate
from difflm.decode.events import Completion, Denoised, Drafted
from difflm.decode.policies.named import policy
from difflm.decode.request import SamplingParams
from difflm.errors import RequestError
from difflm.models.draft_head import DraftHead
from tests.decode.drafting import answer, check_same, mixed
from tests.decode.grammars import PROMPT, Words, check_sound, spoken, tokenizer
from tests.decode.tiny import MASK, VOCAB, certain, scripted, tiny

POLICIES: dict[str, dict[str, Any]] = {
    "block": {"decoding": "block"},
    "low": {"decoding": "block", "threshold": 0.02, "block_size": 5},
    "two": {"decoding": "block", "threshold": 0.3, "min_accept": 2, "temperature": 0.9, "top_k": 40},
    "fixed": {"policy": policy("native", fixed=3, block_length=6)},
    "entropy": {"policy": policy("native", entropy_bound=4.0, temperature=1.0, top_p=0.9)},
    "next_token": {"decoding": "next_token", "temperature": 0.8},
    "verified": {"decoding": "verified", "repetition_penalty": 1.4, "presence_penalty": 0.3},
    "ratio": {"policy": policy("verified", check="ratio", temperature=1.0, fallback=False, min_p=0.001)},
}
LETTERS = st.sampled_from(["a", "b", "[a-c]", "[0-9]", "four", "é", "\\{", " ", "[^a-z\\n]"])
REGEXES = st.recursive(
    LETTERS,
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map(lambda pair: f"(?:{pair[0]}|{pair[1]})"),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "{2,5}", "{3}"])).map(lambda pair: f"(?:{pair[0]}){pair[1]}"),
    ),
    max_leaves=6,
)
LEAVES = st.one_of(
    st.sampled_from(
        [
            {"type": "string", "maxLength": 4},
            {"type": "string", "pattern": "^[a-f]{2,4}$"},
            {"type": "integer", "minimum": -3, "maximum": 120},
            {"type": "number", "exclusiveMinimum": 0, "maximum": 2.5},
            {"type": "boolean"},
            {"type": "null"},
            {"enum": ["on", 3, None, {"a": [1]}]},
            {"const": 'é\n"'},
            {"type": ["string", "null"], "maxLength": 2},
        ]
    )
)


def objects(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    properties = st.dictionaries(st.sampled_from(["a", "bc", "é d"]), inner, max_size=3)
    return properties.flatmap(
        lambda known: st.builds(
            lambda required, more: {
                "type": "object",
                "properties": known,
                "required": required,
                "additionalProperties": more,
            },
            st.lists(st.sampled_from(sorted(known)), unique=True) if known else st.just([]),
            st.booleans(),
        )
    )


SCHEMAS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        objects(inner),
        st.builds(
            lambda items, least: {"type": "array", "items": items, "minItems": least, "maxItems": 2},
            inner,
            st.integers(0, 2),
        ),
        st.tuples(inner, inner).map(lambda pair: {"anyOf": list(pair)}),
    ),
    max_leaves=4,
)
CONSTRAINTS = st.one_of(
    REGEXES.map(lambda text: Constraint(regex=text)), SCHEMAS.map(lambda schema: Constraint(json_schema=schema))
)


def params(name: str, constraint: Constraint | Words, **more: Any) -> SamplingParams:
    return SamplingParams(constraint=constraint, **{"max_new_tokens": 40, **POLICIES[name], **more})


@settings(max_examples=80)
@given(CONSTRAINTS, st.sampled_from(sorted(POLICIES)), st.integers(0, 2), st.integers(0, 100), st.integers(1, 40))
def test_what_stops_matches_and_what_is_cut_begins_a_match(
    constraint: Constraint, name: str, model: int, seed: int, most: int
) -> None:
    loaded = spoken(model)
    (found,) = generate(loaded, [PROMPT], params(name, constraint, seed=seed, max_new_tokens=most))
    check_sound(loaded, constraint, found)


@settings(max_examples=25)
@given(CONSTRAINTS, st.integers(0, 100), st.sampled_from([0.0, 0.7]))
def test_blocks_without_a_shift_are_sound(constraint: Constraint, seed: int, temperature: float) -> None:
    loaded = spoken(1, clean="block")
    more: dict[str, Any] = {"seed": seed, "temperature": temperature}
    (found,) = generate(loaded, [PROMPT], params("block", constraint, threshold=0.1, **more))
    check_sound(loaded, constraint, found)


SOME = [
    Constraint(regex="[a-c]{2,9}(-[0-9]{1,6})?"),
    Constraint(json_schema={"type": "array", "items": {"enum": ["four", "five", 12]}, "maxItems": 4}),
    Constraint(json_object=True),
    Constraint(grammar='start: "a" b* "z"\nb: "b" | "cc"'),
]


def test_alone_and_among_others_the_answers_are_the_same() -> None:
    loaded = spoken(2)
    asked = [
        (PROMPT[: 1 + number % 3], params(name, SOME[number % 4], seed=number, logprobs=1))
        for number, name in enumerate(sorted(POLICIES))
    ]
    asked += [((9, 9), SamplingParams(max_new_tokens=12, seed=seed, temperature=0.5)) for seed in (1, 2)]
    asked += [((8,), replace(asked[0][1], constraint=SOME[1]))]
    random.Random(0).shuffle(asked)
    together = Engine(loaded).complete(asked)
    for one, found in zip(asked, together, strict=True):
        (alone,) = Engine(loaded).complete([one])
        check_same(found, alone)
        assert found.forwards.denoise == alone.forwards.denoise


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize(
    "sampling",
    [
        {},
        {"temperature": 0.9, "top_p": 0.95},
        {"repetition_penalty": 1.3, "frequency_penalty": 0.2, "logit_bias": {20: 2.0}},
    ],
)
def test_verified_is_next_token_also_when_most_drafts_are_right(number: int, sampling: dict[str, Any]) -> None:
    loaded = spoken(number)
    common: dict[str, Any] = {"max_new_tokens": 32, "constraint": SOME[number], "seed": number, "logprobs": 2}
    plain = SamplingParams(decoding="next_token", **sampling, **common)
    verified = SamplingParams(policy=policy("verified", fallback=False, **sampling), **common)
    expected = answer(loaded, PROMPT, plain)
    check_sound_or_grammar(loaded, SOME[number], expected)
    for fused in (True, False):
        drafting = replace(verified, policy=policy("verified", fallback=False, fused=fused, **sampling))
        check_same(answer(loaded, PROMPT, drafting), expected)
    # Drafts of another drafter may be ones that the grammar does not take.
    found = answer(loaded, PROMPT, verified, mixed(PROMPT, expected.tokens))
    check_same(found, expected)
    assert found.drafts is not None
    if len(expected.tokens) > 8:
        assert found.drafts.accepted > 2
        assert found.forwards.denoise + found.forwards.commit < expected.forwards.denoise


def check_sound_or_grammar(loaded: LoadedModel, constraint: Constraint, found: Completion) -> None:
    if constraint.grammar is None:
        check_sound(loaded, constraint, found)


def test_drafts_are_tokens_that_the_grammar_allows_one_behind_another() -> None:
    loaded, constraint = spoken(1), Constraint(json_schema={"type": "array", "items": {"type": "integer"}})
    engine = Engine(loaded)
    written = list[int]()
    drafted = 0
    for event in engine.stream(PROMPT, params("verified", constraint)):
        if isinstance(event, Denoised):
            written += event.tokens
        if isinstance(event, Drafted):
            matcher = loaded.grammar(constraint).matcher()
            ends = loaded.config.eos_token_ids
            assert all(matcher.take(token) for token in written)
            for token in event.tokens:
                assert matcher.accepts() if token in ends else matcher.take(token)
            drafted += len(event.tokens)
    assert drafted > 5


def test_a_draft_head_corrects_drafts_under_the_grammar() -> None:
    loaded = spoken(3)
    size, generator = loaded.model.config.hidden_size, torch.Generator().manual_seed(4)
    head = DraftHead(
        *(
            torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64))
            for shape in ((8, 2 * size), (size, 8))
        )
    )
    for constraint in SOME[:3]:
        expected = answer(loaded, PROMPT, params("next_token", constraint))
        loaded.model.draft_head = head
        try:
            found = answer(loaded, PROMPT, params("next_token", constraint, decoding="verified"))
        finally:
            loaded.model.draft_head = None
        check_same(found, expected)
        assert found.drafts is not None
        assert found.drafts.drafted


# A grammar without the library: every text is listed, so that what is decided can be said by hand.

TEXTS = Words(((1, 2, 3), (1, 2, 4, 5), (7,)), VOCAB)


def listed(script: Any, **more: Any) -> tuple[Completion, list[Denoised]]:
    loaded = scripted(script, eos=[0], clean="causal")
    engine = Engine(loaded)
    given = {"max_new_tokens": 8, "decoding": "block", "threshold": 0.5, "constraint": TEXTS, **more}
    events = list(engine.stream([9, 9, 9, 9], SamplingParams(**given)))
    completion = events[-1].completion  # type: ignore[union-attr]
    return completion, [each for each in events if isinstance(each, Denoised)]


def test_one_forward_writes_all_that_is_sure_and_nothing_behind_a_gap() -> None:
    wanted = {4: 1, 5: 2, 6: 4, 7: 5, 8: 0}
    found, events = listed(lambda position: certain(wanted.get(position, 6), 0.4 if position == 6 else 0.99))
    assert (found.tokens, found.finish_reason, found.stopped_by) == ([1, 2, 4, 5], "stop", 0)
    # Behind 1, 2 the choice is between 3 and 4: the confidence is that of the allowed tokens alone.
    assert [each.tokens for each in events] == [(1, 2, 4, 5), (0,)]
    assert [round(each, 2) for each in events[0].confidences] == [1.0, 1.0, 0.88, 1.0]


def test_a_choice_that_is_not_sure_ends_the_beginning() -> None:
    def script(position: int) -> list[float]:
        logits = certain({4: 1, 7: 5}.get(position, 6))
        if position == 6:
            logits[4] = logits[3] + 0.1
        return logits

    found, events = listed(script, threshold=0.9)
    # All tokens at the third place are improbable; 4 is the likelier one of the two that may stand there.
    assert [each.tokens for each in events] == [(1, 2), (4,), (5,), (0,)]
    assert [each.selected_by for each in events] == ["threshold", "top_k", "threshold", "threshold"]
    assert found.tokens == [1, 2, 4, 5]


def test_the_end_stands_only_where_the_text_is_whole() -> None:
    found, _ = listed(lambda position: certain(0))  # nothing but the end is likely
    assert tuple(found.tokens) in TEXTS.words
    assert (found.finish_reason, found.stopped_by) == ("stop", 0)
    for decoding in ("next_token", "verified"):
        found, _ = listed(lambda position: certain(0), decoding=decoding, threshold=None)
        assert tuple(found.tokens) in TEXTS.words


@pytest.mark.parametrize("decoding", ["block", "next_token", "verified"])
def test_a_grammar_that_leaves_no_token_ends_the_answer_and_says_so(decoding: Any) -> None:
    dead = Words(((1, 2, MASK, 3),), VOCAB)  # MASK is never written
    more: dict[str, Any] = {"threshold": 0.5 if decoding == "block" else None}
    found, _ = listed(lambda position: certain(5), decoding=decoding, constraint=dead, **more)
    assert (found.tokens, found.finish_reason, found.num_tokens) == ([1, 2], "stuck", 2)
    found, _ = listed(lambda position: certain(5), decoding=decoding, constraint=Words(((MASK,),), VOCAB), **more)
    assert (found.tokens, found.finish_reason) == ([], "stuck")


def test_stuck_requests_leave_others_alone() -> None:
    loaded = tiny(3, eos=[0], clean="causal")
    dead = SamplingParams(max_new_tokens=8, constraint=Words(((1, MASK),), VOCAB))
    plain = SamplingParams(max_new_tokens=8)
    stuck, other = Engine(loaded).complete([((4, 5), dead), ((4, 5), plain)])
    assert stuck.finish_reason == "stuck"
    check_same(other, Engine(loaded).complete([((4, 5), plain)])[0])


@pytest.mark.parametrize("name", ["block", "next_token", "verified"])
def test_too_much_work_in_the_middle_of_an_answer_ends_it_alone(name: str) -> None:
    loaded = spoken(0)
    hostile = params(name, Constraint(regex="(a{1000}){1000}"))
    plain = SamplingParams(max_new_tokens=12)
    ended, other = Engine(loaded).complete([(PROMPT, hostile), (PROMPT, plain)])
    assert ended.finish_reason == "stuck"
    assert set(ended.text or "") <= {"a"}
    check_same(other, Engine(loaded).complete([(PROMPT, plain)])[0])


def test_stop_strings_end_before_the_grammar_does_and_a_cancelled_request_is_gone() -> None:
    loaded, constraint = spoken(0), Constraint(regex="[a-c]{30}")
    whole = generate(loaded, [PROMPT], params("low", constraint, max_new_tokens=60))[0]
    assert whole.text is not None
    stop = whole.text[11:13]
    cut = generate(loaded, [PROMPT], params("low", constraint, max_new_tokens=60, stop=[stop]))[0]
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert (cut.finish_reason, cut.stopped_by) == ("stop", stop)
    engine = Engine(loaded)
    number = engine.submit(PROMPT, params("block", constraint))
    for _ in range(3):
        engine.step()
    assert number in engine.runner.slots
    engine.cancel(number)
    assert number not in engine.runner.slots


def test_a_stop_id_is_an_end_and_stands_where_the_grammar_accepts() -> None:
    comma = tokenizer().encode(",", add_special_tokens=False)[0]
    loaded, constraint = spoken(2), Constraint(regex="[a-z]{3}")
    found = generate(loaded, [PROMPT], params("next_token", constraint, stop_token_ids=[comma]))[0]
    check_sound(loaded, constraint, found)
    assert found.stopped_by in (comma, *loaded.config.eos_token_ids)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"constraint": "[a-z]+"}, r"constraint: str cannot be used; give difflm\.Constraint"),
        ({"ignore_eos": True}, "ignore_eos: True cannot be used beside a constraint"),
        ({"min_tokens": 2}, "min_tokens: 2 cannot be used beside a constraint"),
        ({"editing_threshold": 0.0}, r"editing_threshold: 0\.0 cannot be used beside a constraint"),
    ],
)
def test_parameters_that_do_not_go_together_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        SamplingParams(**{"constraint": SOME[0], **given})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"policy": policy("hf21")}, "policy Hf21: it cannot be constrained, as it reproduces a system"),
        ({"policy": policy("native", editing_threshold=0.5)}, "editing_threshold: 0.5 cannot be used"),
        ({"policy": policy("native", min_tokens=3)}, "min_tokens: 3 cannot be used beside a constraint"),
        ({"policy": policy("verified", min_tokens=3)}, "min_tokens: 3 cannot be used beside a constraint"),
    ],
)
def test_policies_that_cannot_be_constrained_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        Engine(spoken()).submit(PROMPT, SamplingParams(constraint=SOME[0], **given))


def test_a_model_without_an_end_and_gaps_are_refused() -> None:
    with pytest.raises(RequestError, match="constraint: tiny names no EOS"):
        Engine(tiny(0)).submit([1], SamplingParams(max_new_tokens=8, constraint=TEXTS))
    with pytest.raises(RequestError, match="constraint: it cannot be used for filling gaps"):
        Engine(tiny(0, eos=[0])).infill([1, None], SamplingParams(constraint=TEXTS))


def test_log_probabilities_are_those_of_the_model_without_the_grammar() -> None:
    loaded = spoken(0)
    found = generate(loaded, [PROMPT], params("next_token", SOME[3], temperature=0.0, logprobs=20))[0]
    assert found.logprobs is not None
    assert len(found.logprobs) == len(found.tokens)
    best = [each.top[0][0] for each in found.logprobs]
    free = generate(loaded, [PROMPT], SamplingParams(max_new_tokens=1, decoding="next_token", logprobs=1))[0]
    assert best[0] == free.tokens[0]
    assert found.tokens[0] != free.tokens[0]
