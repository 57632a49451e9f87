"""What a setting gives is what decoding and scoring by hand give."""

from __future__ import annotations

from pathlib import Path

import pytest

import difflm
from difflm.decode.events import DraftCounts, Forwards
from difflm.decode.policies.named import policy
from difflm.decode.request import SamplingParams
from difflm.errors import ConfigError, RequestError
from difflm.evaluation.measuring import Measured, Setting, answer_of, encoded, measure
from difflm.evaluation.tasks import LocalFile
from tests.evaluation.models import workshop

__all__ = ["workshop"]

BASE = SamplingParams(max_new_tokens=6)


def test_figures_are_those_of_the_completions(workshop: Path) -> None:
    loaded, task = difflm.load_model(workshop / "model"), LocalFile(workshop / "items.jsonl")
    items, seen = task.items(None, 0), list[int]()
    params = Setting(policy="native", settings=(("threshold", 1.0), ("block_length", 4))).params(BASE)
    for together in (1, 4):
        found = measure(loaded, task, items, params, max_requests=together, each=lambda: seen.append(1))
        expected = difflm.generate(loaded, [item.prompt for item in items], params)
        assert found.answers == [each.text for each in expected]
        assert found.scores == [0, 1, 0, 1, 0, 1]
        assert found.score == 0.5
        assert found.num_tokens == sum(each.num_tokens for each in expected)
        assert found.forwards == Forwards(
            prefill=sum(each.forwards.prefill for each in expected),
            denoise=sum(each.forwards.denoise for each in expected),
        )
        assert found.tokens_per_forward == found.num_tokens / (found.forwards.denoise + found.forwards.commit)
        assert found.tokens_per_second == found.num_tokens / found.seconds
        assert found.stuck == 0
    assert len(seen) == 2 * len(items)


def test_an_answer_is_without_the_prompt_that_a_policy_returns(workshop: Path) -> None:
    loaded = difflm.load_model(workshop / "model")
    prompt = loaded.encode("ab")
    completion = difflm.generate(loaded, [prompt], BASE)[0]
    assert answer_of(loaded, completion, completion.tokens) == completion.text
    with_prompt = difflm.Completion(
        tokens=[*prompt, *completion.tokens],
        text=loaded.decode([*prompt, *completion.tokens]),
        forwards=completion.forwards,
        finish_reason="stop",
        num_tokens=completion.num_tokens,
        seconds=1.0,
    )
    assert answer_of(loaded, with_prompt, completion.tokens) == completion.text


def test_prompts_are_text_or_a_turn(workshop: Path) -> None:
    loaded = difflm.load_model(workshop / "model")
    assert encoded(loaded, "ab", chat_template=False) == loaded.encode("ab")
    assert encoded(loaded, "ab", chat_template=True) == loaded.encode_chat([{"role": "user", "content": "ab"}])


def test_a_setting_becomes_parameters() -> None:
    setting = Setting(policy="hf21", settings=(("block_length", 8), ("threshold", 0.7)))
    assert setting.label == "hf21:block_length=8,threshold=0.7"
    assert setting.params(BASE).policy == policy("hf21", block_length=8, threshold=0.7)
    assert Setting(policy="next_token").params(BASE) == SamplingParams(max_new_tokens=6, decoding="next_token")
    with pytest.raises(RequestError, match="it has no setting 'a'"):
        Setting(policy="hf21", settings=(("a", 1),)).params(BASE)


def test_no_items_are_refused(workshop: Path) -> None:
    with pytest.raises(ConfigError, match="there are none"):
        measure(difflm.load_model(workshop / "model"), LocalFile(workshop / "items.jsonl"), [], BASE)


def test_tokens_without_drafts_are_no_part_of_cycles() -> None:
    one = DraftCounts(cycles=3, tokens=12, verified_at=(3, 2), accepted_at=(2, 0))
    found = Measured(scores=[1.0], answers=["a"], num_tokens=50, drafts=one)
    assert (found.tokens_per_cycle, found.acceptance) == (4.0, 0.4)
    assert (Measured(scores=[], answers=[]).tokens_per_cycle, Measured(scores=[], answers=[]).acceptance) == (
        None,
        None,
    )
