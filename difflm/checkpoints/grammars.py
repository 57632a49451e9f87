"""Compiled constraints: which token may come next, by llguidance. Imported when a constraint is used.

llguidance works on bytes, whatever tokens they come in; every method may be called from any thread.
"""

from __future__ import annotations

import importlib.util
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from difflm.checkpoints.constraints import Constraint
from difflm.errors import RequestError

KEPT = 64
"""Compiled constraints that are kept for the next request."""
WHITESPACE = r"[\x20\x0A\x0D\x09]{1,24}"
"""Between the parts of JSON: without a bound a model can write blanks until its limit."""
JSON_OPTIONS: Mapping[str, Any] = {
    "whitespace_pattern": WHITESPACE,
    "lenient": False,
    "coerce_one_of": False,
    "json_allowed_escapes": 'nrbtf\\"',
}
"""Over what a schema says of itself under "x-guidance": keywords that are not known are never passed over, and names
are never written as \\u0061, under which the library takes them for others than they are.
"""
LIMITS: Mapping[str, int] = {
    "initial_lexer_fuel": 200_000,
    "step_lexer_fuel": 50_000,
    "step_max_items": 10_000,
    "max_items_in_row": 10_000,
    "max_lexer_states": 32_000,
    "max_grammar_size": 100_000,
}
"""Of llguidance's own work. A step of a grammar that is at its limits takes about a tenth of a second, a constraint at
its first use a quarter, and an answer 60 MB; schemas of a thousand properties and repetitions of some thousand
characters need less.
"""


@dataclass(slots=True)
class CompiledMatcher:
    """How far an answer has come; see `difflm.decode.matching.Matcher`.

    Attributes:
        matcher: of llguidance.
        ends: ids that end a text in the tokenizer's view.
        tokenizer: of llguidance.
        count: tokens taken.
        lost: whether a token was written that could not be taken.
    """

    matcher: Any
    ends: tuple[int, ...]
    tokenizer: Any
    count: int = 0
    lost: bool = False

    @property
    def _given_up(self) -> bool:
        return self.lost or self.matcher.is_error()

    def back_to(self, count: int) -> None:
        """Forget all but the first `count` tokens."""
        if count > self.count:  # a limit of work can be reached in taking a token that was allowed
            self.lost = True
        elif count < self.count and not self._given_up:
            self.matcher.rollback(self.count - count)
        self.count = count

    def allowed(self) -> bytes | None:
        """Return a bit for each id that may come next, none for ends; None where a limit of work was reached."""
        if self._given_up:
            return None
        bits = bytearray(self.matcher.compute_bitmask())
        if self.matcher.is_error():
            return None
        for token in self.ends:
            bits[token // 8] &= ~(1 << token % 8)
        return self._forced(bytes(bits))

    def _forced(self, bits: bytes) -> bytes:
        """Return the bits, of a text that is spelled where its only token is none.

        What has to follow is tokenised by the library, and it takes no token for text that looks like a mark
        (`<tool_call>` among the added tokens), though its tokeniser may give one.
        """
        number = int.from_bytes(bits, "little")
        if number.bit_count() != 1 or self.matcher.validate_tokens([number.bit_length() - 1]):
            return bits
        spelled = self.tokenizer.greedy_tokenize(self.matcher.compute_ff_bytes().decode("utf-8", "ignore"))
        able = 1 << spelled[0] if spelled and self.matcher.validate_tokens(spelled[:1]) else 0
        return able.to_bytes(len(bits), "little")

    def accepts(self) -> bool:
        """Return whether the tokens taken are a whole text."""
        return not self._given_up and self.matcher.is_accepting()

    def take(self, token: int) -> bool:
        """Go on by a token; return whether it could be taken."""
        if self._given_up or self.matcher.try_consume_tokens([token]) != 1:
            return False
        self.count += 1
        return True


@dataclass(frozen=True, slots=True)
class CompiledGrammar:
    """A constraint for one vocabulary; see `difflm.decode.matching.Grammar`.

    Attributes:
        constraint: what was compiled.
        first: a matcher that has taken nothing.
        ends, tokenizer: see `CompiledMatcher`.
    """

    constraint: Constraint
    first: Any = field(repr=False)
    ends: tuple[int, ...]
    tokenizer: Any = field(repr=False)

    def matcher(self) -> CompiledMatcher:
        """Return a matcher at the beginning."""
        return CompiledMatcher(self.first.deep_copy(), self.ends, self.tokenizer)


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """What llguidance has to know of a tokenizer.

    Attributes:
        tokenizer: its tokenizer.json, as text.
        size: rows of the model's head.
        ends: ids that end a text.
    """

    tokenizer: str = field(repr=False)
    size: int
    ends: tuple[int, ...]


Trial = Callable[[Constraint, Vocabulary], None]
"""Refuses a constraint that cannot be compiled safely."""


class Compiler:
    """Compiles constraints for one vocabulary.

    Args:
        vocabulary: of the model.

    Raises:
        RequestError: llguidance is not there, or does not know such a tokenizer.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._library = _library()
        try:
            self.tokenizer = self._library.LLTokenizer(
                vocabulary.tokenizer, n_vocab=vocabulary.size, eos_token=list(vocabulary.ends) or None
            )
        # The library raises whatever its parser of tokenizers does.
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise RequestError(f"constraint: llguidance cannot use this model's tokenizer ({reason})") from None
        self.ends = tuple(sorted({*vocabulary.ends, *self.tokenizer.eos_tokens}))

    def compiled(self, constraint: Constraint) -> Any:
        """Return a matcher that has computed what may come first.

        Raises:
            RequestError: the constraint cannot be enforced, nothing matches it, or it takes too much work.
        """
        library = self._library
        make = {
            "json_object": self._json,
            "json_schema": self._json,
            "regex": library.LLMatcher.grammar_from_regex,
            "grammar": library.LLMatcher.grammar_from_lark,
        }
        limits = library.LLParserLimits(**LIMITS, verbose_errors=False)
        grammar = make[constraint.field](constraint.text)
        matcher = library.LLMatcher(self.tokenizer, grammar, log_level=0, limits=limits)
        if not matcher.is_error():
            bits = matcher.compute_bitmask()
            if not matcher.is_error() and any(bits):
                return matcher
        why = " ".join(matcher.get_error().replace("<non-verbose/>", "").partition("<backtrace>")[0].split())
        raise RequestError(f"{constraint.field}: it cannot be used ({why[:300] or 'no text matches it'}); change it")

    def _json(self, schema: str) -> str:
        try:
            return self._library.LLMatcher.grammar_from_json_schema(schema, overrides=JSON_OPTIONS)
        except ValueError as error:  # nested deeper than its parser goes
            raise RequestError(f"json_schema: it cannot be used ({error}); change it") from None


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
        _library()
        self.vocabulary = Vocabulary(tokenizer=_tokenizer_text(tokenizer), size=vocab_size, ends=ends)
        self._compiler = Compiler(self.vocabulary)
        self._kept: OrderedDict[tuple[str, str], CompiledGrammar] = OrderedDict()
        self._lock = threading.Lock()

    def kept(self, constraint: Constraint) -> CompiledGrammar | None:
        """Return a constraint that was compiled before, at once; None for others.

        Args:
            constraint: what answers have to match.
        """
        key = constraint.field, constraint.text
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def is_mark(self, token: int) -> bool:
        """Return whether a token is no text: it stands in a grammar by its number, `<[7]>`.

        Args:
            token: its id.
        """
        return self._compiler.tokenizer.is_special_token(token)

    def grammar(self, constraint: Constraint, trial: Trial | None = None) -> CompiledGrammar:
        """Return a compiled constraint.

        Args:
            constraint: what answers have to match.
            trial: is asked before one is compiled that is not kept.

        Raises:
            RequestError: it cannot be enforced, nothing matches it, or it takes too much work.
        """
        key = constraint.field, constraint.text
        if (kept := self.kept(constraint)) is not None:
            return kept
        # Outside of the lock: it takes up to seconds, and others must not wait for it.
        if trial is not None:
            trial(constraint, self.vocabulary)
        compiler = self._compiler
        made = CompiledGrammar(constraint, compiler.compiled(constraint), compiler.ends, compiler.tokenizer)
        with self._lock:
            self._kept[key] = made
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return made


def installed() -> bool:
    """Return whether constraints can be compiled here."""
    try:
        return importlib.util.find_spec("llguidance") is not None
    except ValueError:  # it was taken out
        return False


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


def _tokenizer_text(tokenizer: Any) -> str:
    """Return the tokenizer.json of a transformers tokenizer."""
    if not tokenizer.is_fast:
        raise RequestError(
            "constraint: only tokenizers with a tokenizer.json are supported; convert it with transformers"
        )
    from tokenizers import Tokenizer

    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_padding()
    backend.no_truncation()
    return backend.to_str()
