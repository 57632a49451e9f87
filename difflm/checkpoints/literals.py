"""Text in which some words are literal: what a person typed never becomes a control token, whatever it spells.

A conversation is rendered into one text in which the template's markers have to become control tokens and the same
characters typed by a person must not. Before rendering, each control word in what people wrote is replaced by a
character that stands in for it; after tokenising, its id is replaced by the ids of the word's characters.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

from difflm.errors import CheckpointError, DataError

STAND_INS = (
    *map(chr, range(0xFDD0, 0xFDF0)),
    *(chr((plane << 16) + last) for plane in range(17) for last in (0xFFFE, 0xFFFF)),
)
"""The code points that Unicode keeps for internal use ("noncharacters"); no text holds them."""

MARK = STAND_INS[-2]
"""What stands behind the first character of a control word that is text, where both are in one string."""


class Hidden:
    """The control words of one conversation, each behind a character that occurs nowhere in it.

    Args:
        words: what is to be hidden; None for nothing.
        text: everything that the conversation says.
        mark: a character that the words may hold; it stands in for none.

    Raises:
        DataError: more different words than there are stand-ins, or a stand-in beside them in the text.
    """

    def __init__(self, words: re.Pattern[str] | None, text: str, *, mark: str = "") -> None:
        self._words = words
        found = [] if words is None else list(dict.fromkeys(words.findall(text)))
        usable = [each for each in STAND_INS if each != mark]
        if len(found) > len(usable):
            raise DataError(
                f"text: {len(found)} different control words of the tokenizer stand in one conversation, and "
                f"{len(usable)} of them can be kept as text; shorten it"
            )
        odd = next((each for each in usable if each in text), None) if found else None
        if odd is not None:
            raise DataError(f"text: it holds U+{ord(odd):04X}, which is no character, beside {found[0]!r}; remove it")
        self.word_of = dict(zip(usable, found, strict=False))
        self._stand_in = {word: stand_in for stand_in, word in self.word_of.items()}

    def hide(self, text: str, only: Collection[str] | None = None) -> str:
        """Return a text with stand-ins for its control words, or for some of them."""
        if self._words is None or not self.word_of:
            return text
        words = self._stand_in.keys() if only is None else only
        return self._words.sub(lambda match: self._stand_in[match[0]] if match[0] in words else match[0], text)

    def shown(self, text: str) -> str:
        """Return a text with the words where stand-ins are, marked as text.

        Raises:
            DataError: the mark stands there already.
        """
        if MARK not in self.word_of and MARK in text:
            raise DataError(f"text: it holds U+{ord(MARK):04X}, which is no character; remove it")
        if not self.word_of:
            return text
        return "".join(marked(self.word_of[each]) if each in self.word_of else each for each in text)


def marked(word: str) -> str:
    """Return a control word as text holds it that was written with care: what reads it does not take it for one."""
    return word[:1] + MARK + word[1:]


def unmarked(words: re.Pattern[str] | None, text: str) -> tuple[str, Hidden]:
    """Return a text with stand-ins for its marked words, and what they stand for.

    Args:
        words: finds marked words.
        text: of `Hidden.shown`, or more behind it.

    Raises:
        DataError: see `Hidden`.
    """
    hidden = Hidden(words, text, mark=MARK)
    hiding = hidden.hide(text)
    hidden.word_of = {each: word.replace(MARK, "", 1) for each, word in hidden.word_of.items()}
    return hiding, hidden


def words_pattern(words: Collection[str]) -> re.Pattern[str] | None:
    """Return what finds any of the words, the longest first; None for no words."""
    longest = sorted(filter(str.strip, words), key=lambda word: (-len(word), word))
    return re.compile("|".join(map(re.escape, longest))) if longest else None


def strings(value: Any) -> Iterator[str]:
    """Yield every string in a JSON value, names of fields among them."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, each in value.items():
            yield from strings(key)
            yield from strings(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from strings(each)


def mapped(value: Any, change: Callable[[str], str]) -> Any:
    """Return a JSON value with every string changed, names of fields among them."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {change(key): mapped(each, change) for key, each in value.items()}
    return [mapped(each, change) for each in value] if isinstance(value, list | tuple) else value


@dataclass(slots=True)
class LiteralEncoder:
    """Encodes text with stand-ins.

    Attributes:
        tokenizer: a transformers tokenizer.
        control: ids that no hidden word may become.
        dropped: ids of added tokens that are not even recognised outside hidden words (the mask token).
    """

    tokenizer: Any
    control: frozenset[int]
    dropped: frozenset[int] = frozenset()
    _marking: Any = field(default=None, init=False, repr=False)
    _literal: Any = field(default=None, init=False, repr=False)
    _known: dict[str, list[int]] = field(default_factory=dict[str, list[int]], init=False, repr=False)

    def encode(self, text: str, hidden: Hidden) -> list[int]:
        """Return the ids of a text, without added special tokens; hidden words are ordinary characters.

        Raises:
            CheckpointError: the tokenizer has no tokenizer.json form.
            DataError: a word whose very characters are a control token.
        """
        if self._marking is None:  # set last: a server encodes on several threads
            self._literal = _with_stand_ins(self.tokenizer, lambda _: False)
            self._marking = _with_stand_ins(self.tokenizer, lambda token_id: token_id not in self.dropped)
        word_of = {self._marking.token_to_id(each): word for each, word in hidden.word_of.items()}
        ids: list[int] = []
        # As a batch: a single call keeps the interpreter while it reads, seconds for a huge text.
        (found,) = self._marking.encode_batch_fast([text], add_special_tokens=False)
        for token_id in found.ids:
            ids += self._ids(word_of[token_id]) if token_id in word_of else [token_id]
        return ids

    def _ids(self, word: str) -> list[int]:
        """Return the ids of a control word's characters."""
        if word not in self._known:
            ids = self._behind([word])
            if self.control & set(ids):  # a vocabulary of whole words matches it, so it is broken
                ids = self._behind([word[0], word[1:]])
            if self.control & set(ids):
                raise DataError(f"text contains {word!r}, which this tokenizer cannot spell; remove it from the text")
            self._known[word] = ids
        return self._known[word]

    def _behind(self, parts: list[str]) -> list[int]:
        """Return the ids of parts as they stand behind a token (at the beginning of a text some tokenizers differ)."""
        encoded = (self._literal.encode(STAND_INS[0] + part, add_special_tokens=False).ids for part in parts)
        return [token_id for ids in encoded for token_id in ids[1:]]


def _with_stand_ins(tokenizer: Any, keeps: Callable[[int], bool]) -> Any:
    """Return a copy of the tokenizer's backend with stand-ins as tokens, and only such added tokens as are kept."""
    from tokenizers import AddedToken, Tokenizer

    if not tokenizer.is_fast:
        raise CheckpointError(
            "tokenizer: only tokenizers with a tokenizer.json are supported; convert it with transformers"
        )
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["added_tokens"] = [entry for entry in state["added_tokens"] if keeps(entry["id"])]
    state |= {"truncation": None, "padding": None, "post_processor": None}
    backend = Tokenizer.from_str(json.dumps(state))
    backend.add_special_tokens([AddedToken(each, normalized=False) for each in STAND_INS])
    return backend
