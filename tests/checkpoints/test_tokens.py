"""Tokenizers: no code of a checkpoint runs, and text never becomes the mask id."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from difflm.checkpoints.tokens import (
    SafeEncoder,
    carried_text_files,
    load_tokenizer,
    special_token_ids,
    tokenizer_fingerprint,
    turn_token_ids,
    vocabulary,
)
from difflm.errors import CheckpointError, DataError
from tests.checkpoints.tiny import SPECIAL, TEXT, YARN_SCALING, make_tokenizer

MASK = "<spare_0>"
SHARED = make_tokenizer()


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return make_tokenizer()


def word_tokenizer(**options: Any) -> Any:
    """Return a tokenizer of whole words, in which a token is matched as a word even when it is not special."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<unk>": 0, "<eos>": 1, MASK: 2, "a": 3, "b": 4}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if options.get("lower"):
        backend.normalizer = normalizers.Lowercase()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", unk_token="<unk>")


def test_a_folder_without_tokenizer(tmp_path: Path) -> None:
    assert load_tokenizer(tmp_path) is None


def test_loading_what_was_saved(tokenizer: Any, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded is not None
    assert vocabulary(loaded) == vocabulary(tokenizer)
    assert loaded.encode(TEXT[0]) == tokenizer.encode(TEXT[0])
    names = [path.name for path in carried_text_files(tmp_path)]
    assert {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"} <= set(names)


def test_damaged_tokenizer(tokenizer: Any, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match="the tokenizer cannot be loaded") as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("known_class", [True, False], ids=["known class", "class of its own"])
def test_code_of_a_tokenizer_never_runs(known_class: bool, tokenizer: Any, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    folder = tmp_path / "a"
    tokenizer.save_pretrained(folder)
    (folder / "evil.py").write_text(f"open({str(canary)!r}, 'w').close()\nclass Evil: pass\n")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["auto_map"] = {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}
    if not known_class:
        config["tokenizer_class"] = "EvilTokenizer"
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    if known_class:
        assert vocabulary(load_tokenizer(folder)) == vocabulary(tokenizer)
    else:
        with pytest.raises(CheckpointError, match=r"names code of its own \(auto_map\), which is never run"):
            load_tokenizer(folder)
    assert not canary.exists()


def test_special_ids(tokenizer: Any) -> None:
    ids = vocabulary(tokenizer)
    assert special_token_ids(tokenizer) == {"eos_token": ids["<|im_end|>"], "pad_token": ids["<|im_end|>"]}


def test_turn_tokens_come_from_template_and_convention() -> None:
    special = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|HUMAN|>", "<|user|>", "<tool>", "<spare_0>")
    template = "{% for m in messages %}<tool><|{{ m['role'] }}|>{{ m['content'] }}{% endfor %}"
    ids = vocabulary(tokenizer := make_tokenizer(special, template=template))
    found = turn_token_ids(tokenizer)
    assert {ids["<tool>"], ids["<|user|>"], ids["<|im_start|>"]} <= found
    assert ids["<spare_0>"] not in found
    bare = turn_token_ids(make_tokenizer(special, template=None))
    assert ids["<|im_start|>"] in bare
    assert ids["<tool>"] not in bare
    assembled = make_tokenizer(("<|im_end|>", "<|HUMAN|>"), template="<|{{ 'HUM' + 'AN' }}|>")
    assert vocabulary(assembled)["<|HUMAN|>"] in turn_token_ids(assembled)
    broken = make_tokenizer(template="{{ raise_exception('roles') }}<spare_1>")
    assert vocabulary(broken)["<spare_1>"] in turn_token_ids(broken)


def test_a_literal_mask_token_is_ordinary_characters(tokenizer: Any) -> None:
    mask_id = vocabulary(tokenizer)[MASK]
    encoder = SafeEncoder(tokenizer, MASK, mask_id)
    text = f"the {MASK} fox{MASK}{MASK}<|im_end|> jumps"
    assert mask_id in tokenizer.encode(text), "the tokenizer alone would make it the control token"
    ids = encoder.encode(text)
    assert mask_id not in ids
    assert tokenizer.decode(ids) == text
    assert vocabulary(tokenizer)["<|im_end|>"] in ids, "other special strings are still recognised"
    assert encoder.encode("the fox<|im_end|>") == tokenizer.encode("the fox<|im_end|>", add_special_tokens=False)
    # The neighbours are tokenised as if the token did not exist.
    without = make_tokenizer([token for token in SPECIAL if token != MASK])
    as_tokens = without.convert_ids_to_tokens(without.encode(text, add_special_tokens=False))
    assert tokenizer.convert_ids_to_tokens(ids) == as_tokens
    assert "\N{LATIN CAPITAL LETTER G WITH DOT ABOVE}<" in as_tokens, (
        "the blank before the literal joins its first character"
    )


PIECES = st.sampled_from(
    [MASK, MASK[:-1], MASK[1:], "<", " ", "the fox", "<|im_end|>", "spare_0>", "\u00e9\u4e2d", "\n"]
)


@settings(max_examples=60, deadline=None)
@given(pieces=st.lists(PIECES, max_size=8))
def test_no_text_becomes_the_mask(pieces: list[str], tokenizer: Any) -> None:
    mask_id = vocabulary(tokenizer)[MASK]
    text = "".join(pieces)
    ids = SafeEncoder(tokenizer, MASK, mask_id).encode(text)
    assert mask_id not in ids
    assert tokenizer.decode(ids) == text


def test_a_vocabulary_of_words_is_broken_up() -> None:
    tokenizer = word_tokenizer()
    encoder = SafeEncoder(tokenizer, MASK, 2)
    assert tokenizer.encode(f"a {MASK} b") == [3, 2, 4]
    ids = encoder.encode(f"a {MASK} b")
    assert 2 not in ids
    assert (ids[0], ids[-1]) == (3, 4)


def test_text_that_cannot_be_told_from_the_mask_is_refused() -> None:
    encoder = SafeEncoder(word_tokenizer(lower=True), MASK, 2)
    with pytest.raises(DataError, match="the mask token of this model"):
        encoder.encode(f"a {MASK.upper()} b")


def test_without_mask_token_nothing_changes(tokenizer: Any) -> None:
    assert SafeEncoder(tokenizer, None, None).encode(MASK) == [vocabulary(tokenizer)[MASK]]


@given(
    st.lists(
        st.lists(st.sampled_from([*TEXT, MASK, SPECIAL[0], " ", "caf\u00e9"]), max_size=4).map("".join), max_size=5
    )
)
@settings(max_examples=40)
def test_a_batch_is_encoded_text_by_text(texts: list[str]) -> None:
    encoder = SafeEncoder(SHARED, MASK, SHARED.convert_tokens_to_ids(MASK))
    assert encoder.encode_batch(texts) == [encoder.encode(text) for text in texts]


def test_a_batch_is_not_cut_or_padded_by_the_backend_and_names_bad_text(tokenizer: Any) -> None:
    encoder = SafeEncoder(tokenizer, MASK, tokenizer.convert_tokens_to_ids(MASK))
    texts = [TEXT[0] * 4, "a"]
    expected = [encoder.encode(text) for text in texts]
    tokenizer.backend_tokenizer.enable_truncation(3)
    tokenizer.backend_tokenizer.enable_padding(length=9)
    assert encoder.encode_batch(texts) == expected
    with pytest.raises(DataError, match="half a surrogate pair"):
        encoder.encode_batch(["a", "\ud800"])


def test_the_fingerprint_leaves_out_the_mask_token_and_what_changes_no_ids() -> None:
    one, other = make_tokenizer(), make_tokenizer()
    plain = tokenizer_fingerprint(one, None)
    other.add_special_tokens({"additional_special_tokens": ["<|mask|>"]})
    mask_id = other.convert_tokens_to_ids("<|mask|>")
    assert tokenizer_fingerprint(other, mask_id) == plain
    assert tokenizer_fingerprint(other, None) != plain
    one.backend_tokenizer.enable_truncation(7)
    assert tokenizer_fingerprint(one, None) == plain
    assert tokenizer_fingerprint(word_tokenizer(), None) != tokenizer_fingerprint(word_tokenizer(lower=True), None)


def test_a_configuration_that_transformers_does_not_know_is_not_in_the_way(tmp_path: Path) -> None:
    """It would read rope scaling into a class without fields, and fail on one that is not there."""
    make_tokenizer().save_pretrained(tmp_path)
    raw = {"model_type": "llada2_moe", "rope_theta": 1e6, "rope_scaling": YARN_SCALING, "max_position_embeddings": 128}
    (tmp_path / "config.json").write_text(json.dumps(raw), encoding="utf-8")
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer is not None
    assert tokenizer.get_vocab() == make_tokenizer().get_vocab()
