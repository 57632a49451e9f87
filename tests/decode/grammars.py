"""Constrained decoding for tests: tiny models whose tokens are bytes and pieces of words, and what matches means."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema

from difflm.checkpoints.config import CheckpointConfig
from difflm.checkpoints.constraints import Constraint
from difflm.checkpoints.loading import LoadedModel
from difflm.decode.events import Completion
from difflm.decode.matching import Matcher
from difflm.types import CleanAttention, Parametrisation
from tests.checkpoints.tiny import make_tokenizer
from tests.decode.tiny import architecture, random_transformer

PROMPT = (5, 6, 7)
MASK = "<|mask|>"


@cache
def tokenizer() -> Any:
    """Return a byte-level tokenizer with a mask token."""
    made = make_tokenizer()
    made.add_special_tokens({"additional_special_tokens": [MASK]})
    return made


@cache
def spoken(seed: int = 0, *, clean: CleanAttention = "causal", block_size: int = 8) -> LoadedModel:
    """Return a random model with a tokenizer: it writes junk, so that what matches was made to.

    Args:
        seed: of its weights.
        clean: attention of its clean rows; "causal" also reads each token at the row before it, and can be verified.
        block_size: tokens.
    """
    vocabulary = len(tokenizer()) + 3  # rows without a token
    model = random_transformer(architecture(vocabulary, 192), seed)
    config = CheckpointConfig(
        family="llama",
        model=model.config,
        mask_token_id=tokenizer().convert_tokens_to_ids(MASK),
        block_size=block_size,
        parametrisation=Parametrisation(
            logit_shift=clean == "causal", clean_attention=clean, noisy_attention="bidirectional"
        ),
        eos_token_ids=(tokenizer().eos_token_id,),
        bos_token_id=None,
        unassigned_token_ids=tuple(range(len(tokenizer()), vocabulary)),
        generation={},
    )
    return LoadedModel(model, tokenizer(), config, Path("spoken"))


def matches(constraint: Constraint, text: str) -> bool:
    """Return whether a text matches, by others than the library that made it."""
    if constraint.regex is not None:
        return re.fullmatch(constraint.regex, text) is not None
    value = json.loads(text)
    schema = json.loads(constraint.text)
    return jsonschema.Draft202012Validator(schema).is_valid(value)


def can_go_on(loaded: LoadedModel, constraint: Constraint, tokens: Sequence[int]) -> bool:
    """Return whether tokens are the beginning of a text that matches."""
    matcher = loaded.grammar(constraint).matcher()
    return all(matcher.take(token) for token in tokens) and (matcher.accepts() or any(matcher.allowed() or b""))


def check_sound(loaded: LoadedModel, constraint: Constraint, found: Completion) -> None:
    """Assert that an answer that stopped matches, and that one at its limit is the beginning of one that does."""
    assert found.finish_reason in ("stop", "length")
    assert found.text is not None
    if found.finish_reason == "stop":
        assert matches(constraint, found.text), (constraint, found.text)
    else:
        assert can_go_on(loaded, constraint, found.tokens), (constraint, found.text)
    assert loaded.config.mask_token_id not in found.tokens


@dataclass(slots=True)
class _Listed:
    """A matcher of `Words`."""

    words: Sequence[Sequence[int]]
    vocabulary: int
    taken: list[int]

    def back_to(self, count: int) -> None:
        assert count <= len(self.taken)
        del self.taken[count:]

    def allowed(self) -> bytes:
        count = len(self.taken)
        following = {word[count] for word in self.words if len(word) > count and list(word[:count]) == self.taken}
        return sum(1 << token for token in following).to_bytes(-(-self.vocabulary // 8), "little")

    def accepts(self) -> bool:
        return any(list(word) == self.taken for word in self.words)

    def take(self, token: int) -> bool:
        able = bool(int.from_bytes(self.allowed(), "little") >> token & 1)
        self.taken += [token] if able else []
        return able


@dataclass(frozen=True, slots=True)
class Words:
    """A grammar that lists its texts: the reference, without a library.

    Attributes:
        words: ids of each text.
        vocabulary: ids that there are.
    """

    words: tuple[tuple[int, ...], ...]
    vocabulary: int

    def matcher(self) -> Matcher:
        """Return a matcher at the beginning."""
        return _Listed(self.words, self.vocabulary, [])
