"""Constraints that would end the process, or keep it busy, are refused; those that do neither pass."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from difflm.checkpoints.constraints import Constraint
from difflm.checkpoints.grammars import Grammars, Vocabulary
from difflm.checkpoints.trials import Trials
from difflm.errors import RequestError
from tests.decode.grammars import tokenizer

CHAIN = "start: r0\n" + "\n".join(f'r{number}: "a" r{number + 1}' for number in range(3000)) + '\nr3000: "b"'
NESTED = {f"a{number}": {"items": {"$ref": f"#/a{number + 1}"}} for number in range(1600)}


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Grammars(tokenizer(), len(tokenizer()), (tokenizer().eos_token_id,)).vocabulary


@pytest.fixture(scope="module")
def trials() -> Iterator[Trials]:
    made = Trials(seconds=0.2)
    yield made
    made.close()


@pytest.mark.parametrize(
    "constraint",
    [
        Constraint(grammar=CHAIN),
        Constraint(json_schema=json.dumps({"$ref": "#/a0", **NESTED, "a1600": {"type": "null"}})),
        Constraint(json_schema={"type": "integer", "multipleOf": 1_000_003}),
    ],
    ids=lambda constraint: constraint.text[:40],
)
def test_what_would_end_the_process_or_keep_it_busy_is_refused(
    constraint: Constraint, trials: Trials, vocabulary: Vocabulary
) -> None:
    with pytest.raises(RequestError, match=rf"^{constraint.field}: it takes more than .*; make it smaller$"):
        trials.check(constraint, vocabulary)
    trials.check(Constraint(regex="[a-z]+"), vocabulary)


def test_what_ends_in_time_passes_also_where_it_will_be_refused(trials: Trials, vocabulary: Vocabulary) -> None:
    trials.check(Constraint(json_object=True), vocabulary)
    trials.check(Constraint(json_schema={"type": "array", "items": {"type": "integer"}}), vocabulary)
    trials.check(Constraint(regex="["), vocabulary)


def test_a_process_that_is_gone_refuses_once_and_is_made_anew(vocabulary: Vocabulary) -> None:
    trials = Trials()
    trials.check(Constraint(regex="a"), vocabulary)
    assert trials._process is not None
    trials._process._process.kill()
    trials._process._process.wait()
    with pytest.raises(RequestError, match="regex: "):
        trials.check(Constraint(regex="a"), vocabulary)
    trials.check(Constraint(regex="a"), vocabulary)
    trials.close()
    trials.close()


def test_memory_is_bounded(vocabulary: Vocabulary) -> None:
    trials = Trials(seconds=60, memory_bytes=1 << 22)
    try:
        with pytest.raises(RequestError, match="json_schema: it takes more"):
            trials.check(Constraint(json_schema={"type": "integer", "multipleOf": 1_000_003}), vocabulary)
    finally:
        trials.close()
