"""Answers are those of the library, asked directly; requests of any number and order get the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import difflm
from difflm.checkpoints.literals import MARK
from difflm.checkpoints.loading import LoadedModel, load_model
from difflm.decode.engine import Engine
from difflm.decode.request import SamplingParams
from difflm.errors import CheckpointError, ConfigError, RequestError
from difflm.evaluation.answers import Answers, AnswerSettings, noise_key, request_params, windows
from difflm.likelihood import Continuation, likelihoods
from tests.decode.tiny import tiny
from tests.drafters import drafters as drafters
from tests.standins import EOS, word_tokenizer, write_parent

PARAMS = SamplingParams(max_new_tokens=6, threshold=0.01, ignore_eos=True)
SETTINGS = AnswerSettings(params=PARAMS, samples=7)


@dataclass(frozen=True)
class Asked:
    """A request as the harness makes it."""

    args: tuple[Any, ...]
    doc_id: int | None = 0
    task_name: str | None = "task"


@pytest.fixture(scope="module")
def models(files: dict[str, Path]) -> dict[str, LoadedModel]:
    return {name: load_model(files[name]) for name in ("paper", "shift", "parent")}


PAIRS = [("one two ", "three"), ("one two", " four"), ("", "five six"), ("seven", "\n"), ("a" * 40, "b" * 20)]


@pytest.mark.parametrize("name", ["paper", "shift"])
def test_log_likelihoods_are_the_library_s(models: dict[str, LoadedModel], name: str) -> None:
    loaded = models[name]
    answers = Answers(loaded, SETTINGS)
    found = answers.loglikelihood([Asked(pair, doc_id=number) for number, pair in enumerate(PAIRS)])
    for number, ((context, text), (value, best)) in enumerate(zip(PAIRS, found, strict=True)):
        prompt = loaded.encode(context.rstrip()) if context else answers.opening
        tokens = loaded.encode(context + text)[len(prompt) if context else 0 :]
        assert prompt + tokens == [*(answers.opening if not context else []), *loaded.encode(context + text)]
        key = noise_key("task", number)
        [expected] = likelihoods(loaded, [Continuation(prompt=prompt, tokens=tokens, key=key)], samples=7)
        assert value == pytest.approx(expected.log_likelihood, abs=1e-4)
        [written] = difflm.generate(loaded, [prompt], replace(PARAMS, max_new_tokens=len(tokens)))
        assert best is (written.tokens == tokens)
    usage = answers.usage["task"].as_dict()["likelihood"]
    assert usage["texts"] == 5
    assert usage["exact"] < 5
    assert usage["mean_standard_error_nats"] > 0
    assert usage["tokens"] == sum(len(text) + (context[-1:] == " ") for context, text in PAIRS)


def test_what_greedy_decoding_writes_is_greedy(models: dict[str, LoadedModel]) -> None:
    loaded = models["paper"]
    prompt = loaded.encode("one two")
    [written] = difflm.generate(loaded, [prompt], replace(PARAMS, max_new_tokens=6))
    given = [Continuation(prompt=prompt, tokens=written.tokens), Continuation(prompt=prompt, tokens=[65] * 6)]
    answers = Answers(loaded, SETTINGS)
    assert answers._greedy(given, likelihoods(loaded, given, samples=1)) == [True, False]
    chain = likelihoods(loaded, given, kind="chain")
    assert answers._greedy(given, chain) == [each.greedy for each in chain]


def test_choices_of_a_question_share_noise_and_questions_do_not(models: dict[str, LoadedModel]) -> None:
    answers = Answers(models["paper"], replace(SETTINGS, samples=2))
    same = ("one two", " three four")
    asked = [Asked(same), Asked(same), Asked(same, doc_id=1), Asked(same, task_name="other")]
    values = [value for value, _ in answers.loglikelihood(asked)]
    assert values[0] == pytest.approx(values[1], abs=1e-5)
    assert len({round(value, 4) for value in values[1:]}) == 3
    assert set(answers.usage) == {"task", "other"}
    assert answers.usage["task"].likelihoods == 3


def test_answers_do_not_depend_on_their_order(models: dict[str, LoadedModel]) -> None:
    asked = [Asked(pair, doc_id=number, task_name="ab"[number % 2]) for number, pair in enumerate(PAIRS)]
    one = Answers(models["shift"], SETTINGS).loglikelihood(asked)
    other = Answers(models["shift"], replace(SETTINGS, batch_tokens=1)).loglikelihood(asked[::-1])[::-1]
    for (value, best), (again, still) in zip(one, other, strict=True):
        assert value == pytest.approx(again, abs=1e-3)
        assert best is still


def test_a_parent_is_measured_by_its_chain(models: dict[str, LoadedModel]) -> None:
    answers = Answers(models["parent"], SETTINGS)
    [(value, _)] = answers.loglikelihood([Asked(("one two", " three"))])
    chain = Answers(models["shift"], replace(SETTINGS, likelihood="chain"))
    [(again, _)] = chain.loglikelihood([Asked(("one two", " three"))])
    # The same weights and one more id, that of the mask.
    assert value == pytest.approx(again, abs=0.2)


def test_a_drafter_is_measured_left_to_right(drafters: Path) -> None:
    loaded, parent = load_model(drafters / "drafter"), load_model(drafters / "parent")
    lines: list[str] = []
    answers = Answers(loaded, SETTINGS, say=lines.append)
    asked = [Asked(pair, doc_id=number) for number, pair in enumerate(PAIRS)]
    found = answers.loglikelihood(asked)
    assert lines == ["task: 5 likelihoods (next_token)"]
    whole = answers.loglikelihood_rolling([Asked(("one two",))])[0]
    again = Answers(parent, replace(SETTINGS, likelihood="next_token"))
    assert [value for value, _ in found] == pytest.approx([value for value, _ in again.loglikelihood(asked)], abs=1e-4)
    assert whole == pytest.approx(again.loglikelihood_rolling([Asked(("one two",))])[0], abs=1e-4)
    usage = answers.usage["task"].as_dict()["likelihood"]
    assert (usage["texts"], usage["exact"], usage["forwards"]) == (6, 6, 6)
    with pytest.raises(RequestError, match="kind: 'elbo' reads the rows of masks"):
        Answers(loaded, replace(SETTINGS, likelihood="elbo"))


def test_left_to_right_a_text_without_context_has_a_row_before_it(models: dict[str, LoadedModel]) -> None:
    loaded = models["paper"]
    assert Answers(loaded, SETTINGS).opening == []
    answers = Answers(loaded, replace(SETTINGS, likelihood="next_token"))
    assert answers.opening == [loaded.config.eos_token_ids[0]]
    answers.loglikelihood_rolling([Asked(("abc",))])
    assert answers.usage["task"].scored_tokens == 3


def test_the_bound_of_a_left_to_right_model_decodes_blocks(drafters: Path) -> None:
    base = load_model(drafters / "base")
    left_to_right = replace(base, config=replace(base.config, generation={"decoding": "next_token"}))
    prompt = base.encode("one two")
    params = replace(PARAMS, decoding="block", max_new_tokens=6)
    [blocks], [line] = (
        difflm.generate(base, [prompt], replace(params, decoding=decoding)) for decoding in ("block", "next_token")
    )
    assert blocks.tokens != line.tokens, "the two decodings have to differ here"
    given = [Continuation(prompt=prompt, tokens=each.tokens) for each in (blocks, line)]
    for kind, greedy in (("elbo", [True, False]), ("next_token", [False, True])):
        answers = Answers(left_to_right, replace(SETTINGS, likelihood=kind))  # type: ignore[arg-type]
        assert answers._greedy(given, answers._likelihoods("task", given)) == greedy


def test_whole_texts_go_in_windows(models: dict[str, LoadedModel]) -> None:
    loaded = models["shift"]
    answers = Answers(loaded, replace(SETTINGS, likelihood="chain"))
    text = "abc" * 250
    whole = answers.loglikelihood_rolling([Asked((text,)), Asked(("short",), doc_id=1)])
    ids, room = loaded.encode(text), loaded.config.model.max_positions
    parts = [
        Continuation(prompt=answers.opening, tokens=ids[: room - 1]),
        Continuation(prompt=ids[len(ids) - room : room - 1], tokens=ids[room - 1 :]),
    ]
    expected = sum(each.log_likelihood for each in likelihoods(loaded, parts, kind="chain"))
    assert whole[0] == pytest.approx(expected, rel=1e-5)
    assert answers.usage["task"].scored_tokens == len(ids) + 5


@given(st.integers(0, 60), st.integers(0, 1), st.integers(3, 12))
def test_windows_score_each_token_once_with_all_the_context_there_is(length: int, opening: int, room: int) -> None:
    tokens, before = list(range(length)), [-1] * opening
    found = windows(tokens, before, room)
    assert [token for _, part in found for token in part] == tokens
    row = before + tokens
    for number, (prompt, part) in enumerate(found):
        assert len(prompt) + len(part) <= room
        start = row.index(part[0])
        assert prompt == row[start - len(prompt) : start]
        assert number == 0 or prompt
    if len(row) >= room and found:
        assert len(found[-1][0]) + len(found[-1][1]) == room


def test_generation_is_the_library_s_with_what_the_task_says(models: dict[str, LoadedModel]) -> None:
    loaded = models["paper"]
    answers = Answers(loaded, SETTINGS)
    asked = [Asked(("one two", {"until": []})), Asked(("three", {"max_gen_toks": 3, "do_sample": False}))]
    found = answers.generate_until(asked)
    expected = [
        difflm.generate(loaded, ["one two"], PARAMS)[0],
        difflm.generate(loaded, ["three"], replace(PARAMS, max_new_tokens=3))[0],
    ]
    assert found == [each.text for each in expected]
    cost = answers.usage["task"].as_dict()["generation"]
    assert cost["tokens"] == 9
    assert cost["forwards"]["denoise"] == sum(each.forwards.denoise for each in expected)
    assert cost["tokens_per_forward"] == 9 / cost["forwards"]["denoise"]
    stop = found[0][-1]
    [stopped] = difflm.generate(loaded, ["one two"], replace(PARAMS, stop=(stop,)))
    assert answers.generate_until([Asked(("one two", {"until": stop}))]) == [stopped.text]
    assert stop not in (stopped.text or "")


def test_a_long_context_loses_its_beginning(models: dict[str, LoadedModel]) -> None:
    loaded = models["paper"]
    answers = Answers(loaded, SETTINGS)
    room = loaded.config.model.max_positions
    text = "x" * 30 + "y" * room
    assert answers.generate_until([Asked((text, {}))]) == answers.generate_until([Asked(("y" * (room - 6), {}))])
    assert answers.usage["task"].truncated == 1
    answers.loglikelihood([Asked((text, "abc"))])
    assert answers.usage["task"].truncated == 2
    with pytest.raises(ConfigError, match=f"max_gen_toks: {room} of task 'task' leave no room for a question"):
        answers.generate_until([Asked(("x", {"max_gen_toks": room}))])


def test_draws_of_questions_and_of_repeated_ones_differ(models: dict[str, LoadedModel]) -> None:
    settings = replace(SETTINGS, params=replace(PARAMS, temperature=1.0, max_new_tokens=12))
    asked = [Asked(("one two", {"until": []}))] * 3
    found = Answers(models["paper"], settings).generate_until(asked)
    assert len(set(found)) == 3
    assert Answers(models["paper"], replace(settings, max_requests=1)).generate_until(asked) == found


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ({"until": "\n"}, {"stop": ("#", "\n")}),
        ({"until": ["a", "", "b"], "max_gen_toks": 9}, {"stop": ("#", "a", "b"), "max_new_tokens": 9}),
        ({"do_sample": False, "temperature": 0.7}, {"temperature": 0.0}),
        ({"do_sample": True}, {"temperature": 1.0}),
        ({"do_sample": True, "temperature": 0.7, "top_p": 0.9}, {"temperature": 0.7, "top_p": 0.9}),
        ({}, {"temperature": 0.3}),
    ],
)
def test_the_task_s_settings_go_first(task: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    settings = AnswerSettings(params=SamplingParams(temperature=0.3, stop=("#",), max_new_tokens=20))
    found = request_params(settings, task, 0)
    assert {name: found.value_of(name) for name in expected} == expected


def test_an_unknown_setting_of_a_task_is_named() -> None:
    with pytest.raises(ConfigError, match="generation_kwargs: 'num_beams' of a task is not known; use until, max_gen"):
        request_params(SETTINGS, {"num_beams": 4}, 0)


def test_a_pair_that_melts_into_one_token_is_cut_before_it(tmp_path: Path) -> None:
    tokenizer = word_tokenizer(["banana band"] * 50)
    loaded = load_model(write_parent(tmp_path / "words", tokenizer=tokenizer))
    answers = Answers(loaded, SETTINGS)
    for context, text in (("ban", "ana"), ("ban ", "d"), ("banana", " band")):
        prompt, tokens = answers.encode_pair(context, text)
        assert tokens
        assert loaded.decode((prompt if prompt != answers.opening else []) + tokens) == context + text
    assert answers.encode_pair("ban", "ana") == (answers.opening, loaded.encode("banana"))


def test_what_stands_before_a_text_without_context(models: dict[str, LoadedModel]) -> None:
    eos = models["paper"].config.eos_token_ids[0]
    assert models["paper"].decode([eos], skip_special_tokens=False) == EOS
    openings = {name: Answers(loaded, SETTINGS).opening for name, loaded in models.items()}
    assert openings == {"paper": [], "shift": [eos], "parent": [eos]}
    named = replace(models["paper"], config=replace(models["paper"].config, bos_token_id=7))
    assert Answers(named, SETTINGS).opening == [7]


def test_a_conversation_is_put_into_the_template(models: dict[str, LoadedModel]) -> None:
    answers = Answers(models["paper"], SETTINGS)
    turns = [{"role": "user", "content": "Hi"}]
    assert answers.chat(turns, open_turn=True) == "<|user|>Hi<|assistant|>"
    started = [*turns, {"role": "assistant", "content": "The answer is"}]
    template = models["paper"].require_tokenizer().chat_template
    try:
        models[
            "paper"
        ].require_tokenizer().chat_template = (
            "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
        )
        assert answers.chat(started, open_turn=False) == "<|user|>Hi<|end|><|assistant|>The answer is"
        models["paper"].require_tokenizer().chat_template = "{{ raise_exception('no system') }}"
        with pytest.raises(CheckpointError, match=r"refuses a conversation of user .*no system.*; use a plain prompt"):
            answers.chat(turns, open_turn=True)
        models["paper"].require_tokenizer().chat_template = None
        with pytest.raises(CheckpointError, match="the tokenizer has no chat template; evaluate with --plain"):
            answers.chat(turns, open_turn=True)
    finally:
        models["paper"].require_tokenizer().chat_template = template


@pytest.mark.parametrize("typed", ["Hi", f" Hi {EOS}there ", f"{EOS}{EOS}", "a < b", "{mask}{mask} a"])
def test_the_ids_of_a_conversation_are_those_of_a_chat(
    models: dict[str, LoadedModel], typed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a question spells never becomes a control token, whichever way the harness takes the text."""
    model = models["paper"]
    typed = typed.replace("{mask}", str(model.config.mask_token))
    answers = Answers(model, SETTINGS)
    turns = [{"role": role, "content": typed} for role in ("user", "assistant", "user")]
    text, prompt = answers.chat(turns, open_turn=True), model.encode_chat(turns)
    assert model.encode_chat_text(text) == prompt
    assert (EOS in typed) == (model.encode(text.replace(MARK, "")) != prompt), (
        "as plain text it would be control tokens"
    )
    params = request_params(SETTINGS, {"until": ["zz"], "max_gen_toks": 3}, 0)
    written = Engine(model).generate([prompt], params)[0].text
    decoded: list[list[int]] = []
    decode = Answers._decode

    def noting(self: Answers, asked: Sequence[tuple[list[int], SamplingParams]]) -> list[difflm.Completion]:
        decoded.extend(ids for ids, _ in asked)
        return decode(self, asked)

    monkeypatch.setattr(Answers, "_decode", noting)
    assert answers.generate_until([Asked((text, {"until": ["zz"], "max_gen_toks": 3}))]) == [written]
    assert decoded == [prompt]
    assert answers.encode_pair(text, " yes") == (prompt, model.encode(" yes"))


def test_a_model_without_a_tokenizer_cannot_be_asked() -> None:
    with pytest.raises(CheckpointError, match="the checkpoint has no tokenizer"):
        Answers(tiny(), SETTINGS)


def test_the_policy_s_block_size_is_the_bound_s(models: dict[str, LoadedModel]) -> None:
    policy = SamplingParams(policy=difflm.policy("sglang", block_size=2))
    own = [SETTINGS, replace(SETTINGS, params=replace(PARAMS, block_size=4)), replace(SETTINGS, params=policy)]
    assert [Answers(models["paper"], each).block_size for each in own] == [8, 4, 2]
