"""The validation split: by what documents say, however they pass by."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from difflm.data import Document, check_disjoint, split_validation
from difflm.data.splitting import Split
from difflm.errors import DataError


def documents(count: int) -> list[Document]:
    return [Document(text=f"document {index}", where=f"f:{index}") for index in range(count)]


def test_split_is_a_partition_of_about_the_right_size() -> None:
    given_documents = documents(2000)
    training, validation = split_validation(given_documents, fraction=0.1, seed=0)
    assert sorted(d.where for d in training + validation) == sorted(d.where for d in given_documents)
    assert 150 < len(validation) < 250
    check_disjoint(training, validation)


def test_split_does_not_depend_on_order_or_neighbours() -> None:
    _, validation = split_validation(documents(200), fraction=0.2, seed=3)
    _, reversed_validation = split_validation(documents(200)[::-1], fraction=0.2, seed=3)
    assert {d.text for d in validation} == {d.text for d in reversed_validation}
    _, fewer = split_validation(documents(100), fraction=0.2, seed=3)
    assert {d.text for d in fewer} == {d.text for d in validation} & {d.text for d in documents(100)}
    assert [d.where for d in validation] == [d.where for d in documents(200) if d in validation]


def test_seed_changes_the_split() -> None:
    one, two = (split_validation(documents(200), fraction=0.2, seed=seed)[1] for seed in (0, 1))
    assert {d.text for d in one} != {d.text for d in two}


@given(st.lists(st.sampled_from("abcdef"), min_size=2, max_size=20), st.floats(0.01, 0.99), st.integers(0, 5))
@settings(max_examples=60)
def test_copies_land_on_one_side_and_no_side_is_empty(texts: list[str], fraction: float, seed: int) -> None:
    given_documents = [Document(text=text, where=str(index)) for index, text in enumerate(texts)]
    if len(set(texts)) < 2:
        with pytest.raises(DataError, match="cannot be split"):
            split_validation(given_documents, fraction=fraction, seed=seed)
        return
    training, validation = split_validation(given_documents, fraction=fraction, seed=seed)
    assert training
    assert validation
    assert not {d.text for d in training} & {d.text for d in validation}


def test_no_validation_asked_for() -> None:
    assert split_validation(documents(1), fraction=0.0, seed=0) == (documents(1), [])


@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
def test_fraction_out_of_range(fraction: float) -> None:
    with pytest.raises(DataError, match="out of range"):
        split_validation(documents(3), fraction=fraction, seed=0)


def test_hash_keeps_prompt_and_completion_apart() -> None:
    one = Document(prompt="ab", completion="c")
    assert one.content_hash != Document(prompt="a", completion="bc").content_hash
    assert one.content_hash != Document(text="abc").content_hash
    assert one.content_hash == Document(prompt="ab", completion="c", where="elsewhere").content_hash


def test_overlap_with_a_validation_file_is_refused() -> None:
    with pytest.raises(DataError, match=r"v:9: this validation document is also a training document \(f:1\)"):
        check_disjoint(documents(3), [Document(text="document 1", where="v:9")])


def test_a_stream_is_split_like_a_list() -> None:
    given_documents = documents(300)
    _, validation = split_validation(given_documents, fraction=0.1, seed=4)
    split = Split(fraction=0.1, seed=4)
    ranks = [split.see(document.content) for document in given_documents]
    boundary = split.boundary()
    assert [d for d, rank in zip(given_documents, ranks, strict=True) if rank < boundary] == validation
    assert Split(fraction=0.0, seed=0).boundary() == 0
