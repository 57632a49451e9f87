"""The demo's narrow task: one sentence about a person -> a JSON record.

    Text: Maria Keller, 34, works as a bridge painter in Lyon.
    JSON: {"name": "Maria Keller", "age": 34, "job": "bridge painter", "city": "Lyon"}

Sentences come from templates with the fields in different order and with distractors (other people, other
places, other numbers). Half of the names and cities are real, half are built from syllables, so that there are
thousands of each and the model has to learn to copy a value rather than to recognise it.

Three splits, disjoint whatever the seeds and counts, because the side is a function of the value itself:
- "train": what is trained on.
- "fresh": other records over the same values (no record is in both).
- "unseen": first name, last name, job and city are all values that no training sentence contains. A job counts
  by its first word: no training job has that word.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from demo import values

Split = Literal["train", "fresh", "unseen"]
Record = dict[str, str | int]

FIELDS = ("name", "age", "job", "city")
"""Keys of a record, in the order in which they are written."""

TEMPLATES = (
    "{name}, {age}, works as {a_job} in {city}.",
    "{name} is {a_job} from {city} and turned {age} last {weekday}.",
    "In {city}, {name} ({age}) earns a living as {a_job}.",
    "At {age}, {name} is the youngest {job} in {city}.",
    "The new {job} in {city} is {name}, aged {age}.",
    "{city} has a new {job}: {name}, {age} years old.",
    "After {years} years away, {name}, now {age}, is back in {city} as {a_job}.",
    "Meet {name}, {a_job} of {age} who lives in {city}.",
    "On {weekday} {name} of {city}, {a_job}, celebrated birthday number {age}.",
    "{name} moved from {place} to {city} at {age} to become {a_job}.",
    "Aged {age} and living in {city}, {name} found work as {a_job}.",
    "{friend} introduced {name}, the {age}-year-old {job} from {city}.",
    "Our {job}, {name}, is {age} and comes from {city}, not from {place}.",
    "{name} has been {a_job} in {city} for {years} years and is {age} years old.",
    "In {month}, {a_job} named {name}, {age}, opened a shop in {city}.",
    "Everyone in {city} knows {name}: {age}, {job}, never late.",
    "The {city} office hired {name} as {a_job} at the age of {age}.",
    "Profession {job}, age {age}, home {city}: that is {name}.",
    "{name} shares a flat in {city} with {friend} and, at {age}, works as {a_job}.",
    "At the {weekday} market in {city} you can meet {name}, {a_job}, {age}.",
)
"""Every template names the four fields once; `place`, `friend`, `years`, `weekday` and `month` distract."""

BUILT_SHARE = 0.5
"""Share of names and cities that are built from syllables instead of taken from the lists."""

UNSEEN_SHARE = 6
"""One value in this many is kept out of training."""

FRESH_SHARE = 6
"""One record in this many (over training values) is kept out of training."""

WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = ("January", "March", "April", "May", "July", "August", "October", "December")


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One example of the task.

    Attributes:
        prompt: the lead, the sentence and the cue, up to and including "JSON:".
        completion: a space and the record as JSON; what follows the prompt.
        record: the record itself, keys in the order of `FIELDS`.
    """

    prompt: str
    completion: str
    record: Record


def items(split: Split, count: int, seed: int) -> list[Item]:
    """Return `count` different items of a split, a pure function of the arguments.

    A larger count begins with the items of a smaller one.

    Args:
        split: "train", "fresh" or "unseen".
        count: number of items, at least 0.
        seed: another seed draws other items (of the same split, so never an item of another split).
    """
    assert split in ("train", "fresh", "unseen"), f"unknown split {split!r}"
    rng = random.Random(f"{split}:{seed}")
    found: list[Item] = []
    known: set[str] = set()
    while len(found) < count:
        record = _draw_record(split, rng)
        key = to_json(record)
        if key in known or (split != "unseen" and _is_fresh(key) != (split == "fresh")):
            continue
        known.add(key)
        sentence = _sentence(record, split, rng)
        found.append(Item(prompt=to_prompt(sentence), completion=f" {key}", record=record))
    return found


def to_prompt(sentence: str) -> str:
    """Return the prompt for a sentence: a fixed lead, the sentence, a new line and the cue.

    The lead is there because the first token of a document is where attention of many models goes to rest: such a
    model reads its identity badly, and a name that stands there is copied wrong (measured: most of the errors without
    it). It also gives the sentence's first word the leading space that words have elsewhere.
    """
    return f"Text: {sentence}\nJSON:"


CHAT_TEMPLATE = r"{{ 'Text: ' ~ (messages | selectattr('role', 'equalto', 'user') | list | last).content ~ '\nJSON:' }}"
"""The same as a chat template: a chat's last sentence. The parent's own would ask in a form that was not learnt."""


def to_json(record: Record) -> str:
    """Return the record as JSON on one line, with a space after each colon and comma."""
    return json.dumps(record)


def is_unseen(value: str) -> bool:
    """Return whether a value (a name, a city or the first word of a job) is kept out of training."""
    return _bucket(f"value:{value.lower()}") % UNSEEN_SHARE == 0


def exact_match(text: str, item: Item) -> bool:
    """Return whether a generated text is the item's record: the same keys, values and types, nothing else.

    Args:
        text: what the model wrote after the prompt; white space around it is ignored.
        item: what it should have written.
    """
    try:
        pairs = json.loads(text.strip(), object_pairs_hook=lambda found: found)
    except (ValueError, RecursionError):
        return False
    if not isinstance(pairs, list) or not all(isinstance(pair, tuple) for pair in pairs):
        return False
    # As pairs, so that a repeated key is seen; with types, because 34 == 34.0.
    expected = item.record.items()
    return sorted((key, type(value).__name__, str(value)) for key, value in pairs) == sorted(
        (key, type(value).__name__, str(value)) for key, value in expected
    )


def field_matches(text: str, item: Item) -> dict[str, bool]:
    """Return for each field whether the text states it word for word, also where the whole is not valid JSON.

    Args:
        text: what the model wrote after the prompt.
        item: what it should have written.
    """
    return {
        key: any(f"{json.dumps(key)}: {json.dumps(value)}{end}" in text for end in (",", "}"))
        for key, value in item.record.items()
    }


def write_jsonl(examples: Sequence[Item], path: Path) -> None:
    """Write the items as JSONL with `prompt` and `completion`, aside and then renamed.

    Args:
        examples: what to write, in order.
        path: target file; its folder is created, an existing file is replaced.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.part")
    lines = [json.dumps({"prompt": item.prompt, "completion": item.completion}) + "\n" for item in examples]
    partial.write_text("".join(lines), encoding="utf-8")
    os.replace(partial, path)


def _draw_record(split: Split, rng: random.Random) -> Record:
    return {
        "name": f"{_first_name(split, rng)} {_last_name(split, rng)}",
        "age": rng.randint(18, 89),
        "job": f"{_pick(values.DOMAINS, split, rng)} {rng.choice(values.ROLES)}",
        "city": _city(split, rng),
    }


def _sentence(record: Record, split: Split, rng: random.Random) -> str:
    """Return a sentence for the record; distractors come from the values of the same split."""
    friend = _first_name(split, rng)
    while str(record["name"]).startswith(f"{friend} "):
        friend = _first_name(split, rng)
    place = _city(split, rng)
    while place == record["city"]:
        place = _city(split, rng)
    job = str(record["job"])
    return rng.choice(TEMPLATES).format(
        **record,
        a_job=f"{'an' if job[0] in 'aeio' else 'a'} {job}",
        friend=friend,
        place=place,
        years=rng.randint(2, 17),
        weekday=rng.choice(WEEKDAYS),
        month=rng.choice(MONTHS),
    )


def _first_name(split: Split, rng: random.Random) -> str:
    return _name(values.FIRST_NAMES, values.FIRST_STARTS, values.FIRST_ENDS, split, rng)


def _last_name(split: Split, rng: random.Random) -> str:
    return _name(values.LAST_NAMES, values.LAST_STARTS, values.LAST_ENDS, split, rng)


def _city(split: Split, rng: random.Random) -> str:
    return _name(values.CITIES, values.CITY_STARTS, values.CITY_ENDS, split, rng)


def _name(real: Sequence[str], starts: Sequence[str], ends: Sequence[str], split: Split, rng: random.Random) -> str:
    """Return a real or a built name on the split's side."""
    if rng.random() >= BUILT_SHARE:
        return _pick(real, split, rng)
    while True:
        name = rng.choice(starts) + rng.choice(ends)
        if is_unseen(name) == (split == "unseen"):
            return name


def _pick(pool: Sequence[str], split: Split, rng: random.Random) -> str:
    """Return a word of the pool on the split's side, each with the same probability."""
    while True:
        value = rng.choice(pool)
        if is_unseen(value) == (split == "unseen"):
            return value


def _is_fresh(record: str) -> bool:
    return _bucket(f"record:{record}") % FRESH_SHARE == 0


def _bucket(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest()[:8], "big")
