"""The bytes and the text of single tokens."""

from __future__ import annotations

import codecs
import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@functools.cache
def byte_of_letter() -> dict[str, int]:
    """Return the byte for which each letter of a byte-level vocabulary stands.

    Source: GPT-2's vocabulary: bytes that can be printed stand for themselves, the others follow from 256 on.
    """
    plain = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + n): byte for n, byte in enumerate(others)}


@dataclass(slots=True)
class Pieces:
    """Single tokens as bytes; a character may take several tokens.

    Attributes:
        tokenizer: a transformers tokenizer.
    """

    tokenizer: Any
    _byte_level: bool = field(init=False)
    _known: dict[int, bytes] = field(default_factory=dict[int, bytes])

    def __post_init__(self) -> None:
        state = self.tokenizer.backend_tokenizer.to_str() if self.tokenizer.is_fast else ""
        decoder = state.partition('"decoder":')[2].partition('"model":')[0]
        self._byte_level = '"ByteLevel"' in decoder

    def bytes_of(self, token: int) -> bytes:
        """Return the bytes of a token, as it stands inside a text."""
        if token not in self._known:
            self._known[token] = self._find(token)
        return self._known[token]

    def _find(self, token: int) -> bytes:
        if token in self.tokenizer.added_tokens_decoder:
            return str(self.tokenizer.added_tokens_decoder[token]).encode()
        name = self.tokenizer.convert_ids_to_tokens(token)
        if name is None:
            return b""
        if self._byte_level and all(letter in byte_of_letter() for letter in name):
            return bytes(byte_of_letter()[letter] for letter in name)
        if re.fullmatch(r"<0x[0-9A-F]{2}>", name):
            return bytes([int(name[3:5], 16)])
        return name.replace("\u2581", " ").encode()

    def text_of(self, token: int) -> str:
        """Return the text of a token; of a part of a character its bytes, as "bytes:\\xf0\\x9f"."""
        try:
            return self.bytes_of(token).decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in self.bytes_of(token))

    def offsets(self, tokens: Sequence[int]) -> list[int]:
        """Return where in their text each of the tokens begins, characters."""
        decoder, length, found = codecs.getincrementaldecoder("utf-8")("replace"), 0, list[int]()
        for token in tokens:
            found.append(length)
            length += len(decoder.decode(self.bytes_of(token)))
        return found
