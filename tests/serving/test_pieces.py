"""Bytes of single tokens, joined, are those of the text."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from difflm.checkpoints.loading import LoadedModel
from difflm.serving.pieces import Pieces, byte_of_letter
from tests.standins import EOS, byte_tokenizer


def wrapped(tokenizer: Tokenizer) -> Any:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def test_letters_stand_for_all_bytes() -> None:
    assert sorted(byte_of_letter().values()) == list(range(256))
    assert byte_of_letter()["\u0120"] == ord(" ")


@given(text=st.text(max_size=20))
def test_bytes_joined_are_the_texts(text: str) -> None:
    tokenizer = wrapped(byte_tokenizer())
    pieces = Pieces(tokenizer)
    ids = tokenizer.encode(text, add_special_tokens=False)
    if EOS not in text:
        assert b"".join(map(pieces.bytes_of, ids)) == text.encode()


@pytest.mark.parametrize("text", ["naïve", "\U0001fae0", "a\u9f9cb", "\U0001f600 word"])
def test_offsets_are_those_of_whole_characters(text: str, loaded: LoadedModel) -> None:
    pieces, ids = Pieces(loaded.tokenizer), loaded.encode(text)
    offsets = pieces.offsets(ids)
    for number, offset in enumerate(offsets):
        before = b"".join(map(pieces.bytes_of, ids[:number]))
        assert text.startswith(before.decode("utf-8", "ignore"))
        assert len(before.decode("utf-8", "ignore")) == offset


def test_parts_of_characters_are_shown_as_bytes(loaded: LoadedModel) -> None:
    pieces = Pieces(loaded.tokenizer)
    ids = wrapped(byte_tokenizer()).encode("\U0001fae0", add_special_tokens=False)
    assert Pieces(wrapped(byte_tokenizer())).text_of(ids[0]) == r"bytes:\xf0"
    assert pieces.text_of(loaded.config.eos_token_ids[0]) == EOS
    assert pieces.bytes_of(10**6) == b""


def test_vocabularies_of_words_and_single_bytes() -> None:
    vocabulary = {"\u2581word": 0, "<0xE2>": 1, "x": 2}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken("<end>")])
    pieces = Pieces(wrapped(tokenizer))
    assert [pieces.bytes_of(token) for token in range(4)] == [b" word", b"\xe2", b"x", b"<end>"]
