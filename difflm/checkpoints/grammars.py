"""Compiled constraints: which token may come next, by llguidance. Imported when a constraint is used.

llguidance works on bytes, whatever tokens they come in; every method may be called from any thread.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

from difflm.checkpoints.constraints import Constraint
from difflm.errors import RequestError

KEPT = 64
"""Compiled constraints that are kept for the next request."""
WHITESPACE = r"[\x20\x0A\x0D\x09]{1,24}"
"""Between the parts of JSON: without a bound a model can write blanks until its limit."""


@dataclass(slots=True)
class CompiledMatcher:
    """How far an answer has come; see `difflm.decode.matching.Matcher`.

    Attributes:
        matcher: of llguidance.
        ends: ids that end a text in the tokenizer's view.
        count: tokens taken.
    """

    matcher: Any
    ends: tuple[int, ...]
    count: int = 0

    def back_to(self, count: int) -> None:
        """Forget all but the first `count` tokens."""
        assert count <= self.count, "an answer has tokens that its matcher has not seen"
        if count < self.count and not self.matcher.is_error():
            self.matcher.rollback(self.count - count)
        self.count = count

    def allowed(self) -> bytes | None:
        """Return a bit for each id that may come next, none for ends; None where a limit of work was reached."""
        if self.matcher.is_error():
            return None
        bits = bytearray(self.matcher.compute_bitmask())
        if self.matcher.is_error():
            return None
        for token in self.ends:
            bits[token // 8] &= ~(1 << token % 8)
        return bytes(bits)

    def accepts(self) -> bool:
        """Return whether the tokens taken are a whole text."""
        return not self.matcher.is_error() and self.matcher.is_accepting()

    def take(self, token: int) -> bool:
        """Go on by a token; return whether it could be taken."""
        if self.matcher.is_error() or self.matcher.try_consume_tokens([token]) != 1:
            return False
        self.count += 1
        return True


@dataclass(frozen=True, slots=True)
class CompiledGrammar:
    """A constraint for one vocabulary; see `difflm.decode.matching.Grammar`.

    Attributes:
        constraint: what was compiled.
        first: a matcher that has taken nothing.
        ends: see `CompiledMatcher`.
    """

    constraint: Constraint
    first: Any = field(repr=False)
    ends: tuple[int, ...]

    def matcher(self) -> CompiledMatcher:
        """Return a matcher at the beginning."""
        return CompiledMatcher(self.first.deep_copy(), self.ends)


class Grammars:
    """Compiles constraints for one tokenizer and keeps the last ones.

    Args:
        tokenizer: a transformers tokenizer with a tokenizer.json form.
        vocab_size: rows of the model's head.
        ends: ids that end a text.

    Raises:
        RequestError: llguidance is not there, or does not know such a tokenizer.
    """

    def __init__(self, tokenizer: Any, vocab_size: int, ends: tuple[int, ...]) -> None:
        self._library = _library()
        self._vocabulary = _vocabulary(self._library, tokenizer, vocab_size, ends)
        self._ends = tuple(sorted({*ends, *self._vocabulary.eos_tokens}))
        self._kept: OrderedDict[tuple[str, str], CompiledGrammar] = OrderedDict()
        self._lock = threading.Lock()

    def grammar(self, constraint: Constraint) -> CompiledGrammar:
        """Return a compiled constraint.

        Raises:
            RequestError: it cannot be enforced, nothing matches it, or it takes too much work.
        """
        key = constraint.field, constraint.text
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        # Outside of the lock: it takes up to seconds, and others must not wait for it.
        made = CompiledGrammar(constraint, self._compiled(constraint), self._ends)
        with self._lock:
            self._kept[key] = made
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return made

    def _compiled(self, constraint: Constraint) -> Any:
        """Return a matcher that has computed what may come first."""
        library = self._library
        make = {
            "json_object": self._json,
            "json_schema": self._json,
            "regex": library.LLMatcher.grammar_from_regex,
            "grammar": library.LLMatcher.grammar_from_lark,
        }
        limits = library.LLParserLimits(
            max_lexer_states=50_000, max_grammar_size=100_000, step_max_items=20_000, verbose_errors=False
        )
        grammar = make[constraint.field](constraint.text)
        matcher = library.LLMatcher(self._vocabulary, grammar, log_level=0, limits=limits)
        if not matcher.is_error():
            bits = matcher.compute_bitmask()
            if not matcher.is_error() and any(bits):
                return matcher
        why = " ".join(matcher.get_error().replace("<non-verbose/>", "").split())[:300] or "no text matches it"
        raise RequestError(f"{constraint.field}: it cannot be used ({why}); change it")

    def _json(self, schema: str) -> str:
        return self._library.LLMatcher.grammar_from_json_schema(schema, overrides={"whitespace_pattern": WHITESPACE})


def _library() -> Any:
    """Return llguidance.

    Raises:
        RequestError: it is not installed.
    """
    try:
        import llguidance
    except ImportError:
        raise RequestError(
            "constraint: it needs llguidance, which is not installed; pip install 'difflm[constrain]'"
        ) from None
    return llguidance


def _vocabulary(library: Any, tokenizer: Any, vocab_size: int, ends: tuple[int, ...]) -> Any:
    """Return llguidance's view of a tokenizer."""
    if not tokenizer.is_fast:
        raise RequestError(
            "constraint: only tokenizers with a tokenizer.json are supported; convert it with transformers"
        )
    from tokenizers import Tokenizer

    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_padding()
    backend.no_truncation()
    try:
        return library.LLTokenizer(backend.to_str(), n_vocab=vocab_size, eos_token=list(ends) or None)
    # The library raises whatever its parser of tokenizers does.
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise RequestError(f"constraint: llguidance cannot use this model's tokenizer ({reason})") from None
