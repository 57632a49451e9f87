"""Exact and near duplicates, against slow references."""

from __future__ import annotations

import random
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from difflm.data import duplicates
from difflm.data.duplicates import GRAM, ExactDuplicates, Flags, NearDuplicates, normalised, sketches


def words(generator: random.Random, count: int) -> list[str]:
    return ["".join(generator.choices("abcdefghij", k=generator.randint(2, 9))) for _ in range(count)]


def jaccard(one: bytes, two: bytes) -> float:
    """Return the similarity from the sets themselves."""
    first, second = ({text[at : at + GRAM] for at in range(max(len(text) - GRAM, 0) + 1)} for text in (one, two))
    return len(first & second) / len(first | second)


@given(st.lists(st.integers(0, 12), max_size=60))
@settings(max_examples=25)
def test_exact_duplicates_are_all_but_the_first(tmp_path_factory: pytest.TempPathFactory, numbers: list[int]) -> None:
    finder = ExactDuplicates(tmp_path_factory.mktemp("exact"))
    for number in numbers:
        finder.add(sha256(bytes([number])).digest())
    found, pairs = finder.finish(examples=3)
    expected = [index for index, number in enumerate(numbers) if number in numbers[:index]]
    assert [index for index in range(len(numbers)) if found[index]] == expected
    assert len(found) == len(expected)
    assert [(pair.index, pair.first) for pair in pairs] == [(i, numbers.index(numbers[i])) for i in expected[:3]]


@pytest.mark.parametrize("changed", [1, 4, 12, 40])
def test_agreement_estimates_the_jaccard_similarity(changed: int) -> None:
    generator = random.Random(changed)
    errors = []
    for _ in range(40):
        one = words(generator, 120)
        two = list(one)
        for place in generator.sample(range(len(two)), changed):
            two[place] = words(generator, 1)[0]
        texts = [normalised(" ".join(each)) for each in (one, two)]
        sketch = sketches(texts)
        errors.append(float((sketch[0] == sketch[1]).mean()) - jaccard(*texts))
    assert abs(np.mean(errors)) < 0.035  # 64 bins, 40 pairs: a standard error of at most 0.01
    assert np.std(errors) < 0.09


def test_a_sketch_does_not_depend_on_how_the_text_is_cut_for_hashing(monkeypatch: pytest.MonkeyPatch) -> None:
    text = normalised(" ".join(words(random.Random(0), 400)))
    whole = sketches([text])
    monkeypatch.setattr(duplicates, "_STRIDE", 97)
    assert (sketches([text]) == whole).all()


def test_case_and_spaces_do_not_matter_and_short_texts_differ() -> None:
    assert normalised("A  b\n\tC ") == b"a b c"
    sketch = sketches([b"one", b"two", b"one"])
    assert (sketch[0] == sketch[2]).all()
    assert (sketch[0] == sketch[1]).mean() < 0.2


def find(folder: Path, texts: list[str], skip: list[int], threshold: float = 0.8) -> tuple[list[int], list[int]]:
    finder = NearDuplicates(folder, threshold)
    for start in range(0, len(texts), 3):
        finder.add([normalised(text) for text in texts[start : start + 3]])
    left_out = Flags(len(texts))
    left_out.set(np.array(skip, dtype=np.int64))
    found, pairs = finder.finish(skip=left_out, examples=2)
    assert not any(folder.iterdir()), "temporary files are gone"
    return [index for index in range(len(texts)) if found[index]], [pair.first for pair in pairs]


@pytest.mark.parametrize("partition", [64, 1 << 22])
def test_near_duplicates_are_found_whatever_the_partition_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, partition: int
) -> None:
    monkeypatch.setattr(duplicates, "_PARTITION_BYTES", partition)
    generator = random.Random(3)
    texts = [words(generator, 80) for _ in range(30)]
    texts[7] = [*texts[2][:40], "changed", *texts[2][41:]]
    texts[20] = [*texts[2][:70], *words(generator, 1), *texts[2][71:]]
    texts[25] = texts[9]
    joined = [" ".join(text) for text in texts]
    found, first = find(tmp_path, joined, [])
    assert found == [7, 20, 25]
    assert first == [2, 2]
    assert find(tmp_path, joined, [25])[0] == [7, 20], "what is an exact duplicate is not reported again"
    assert find(tmp_path, joined, [], threshold=0.99)[0] == [25]
