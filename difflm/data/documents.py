"""One document as read, and the rules for a record that holds one: which fields, of which type."""

from __future__ import annotations

import difflib
import hashlib
import json
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from difflm.errors import DataError

IGNORED_LABEL = -100
"""The label of a token that is not learnt."""
_PAIR = ("prompt", "completion")
# Fields of other formats. They change what a record means, so they are refused where metadata is ignored.
_FOREIGN_FIELDS = frozenset({"messages", "conversations", "instruction", "chosen", "rejected", "loss_mask", "weight"})
_TOKEN_FIELDS = ("input_ids", "labels", "attention_mask")


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One document as read: `text`, or `prompt` and `completion`, or `token` ids.

    Attributes:
        text: plain text, every token of which is learnt; None otherwise.
        prompt: given text, never learnt; None otherwise.
        completion: the answer to `prompt`, learnt; None otherwise.
        token: ids that need no tokenizer; None otherwise.
        trainable: which of the ids are learnt; None learns all.
        complete: the text ends here; False for a piece of a longer text, which gets no EOS.
        where: "file:line", "file:row" or "file", for messages.
    """

    text: str | None = None
    prompt: str | None = None
    completion: str | None = None
    token: Sequence[int] | None = None
    trainable: Sequence[bool] | None = None
    complete: bool = True
    where: str = ""

    def __post_init__(self) -> None:
        """Check our own construction: exactly one of the three forms."""
        assert (self.prompt is None) == (self.completion is None), "prompt and completion come together"
        forms = [self.text is not None, self.prompt is not None, self.token is not None]
        assert sum(forms) == 1, "text, or prompt and completion, or ids"

    @property
    def kind(self) -> str:
        """Return "text", "prompt + completion" or "token ids"."""
        if self.token is not None:
            return "token ids"
        return "text" if self.text is not None else "prompt + completion"

    @property
    def content(self) -> bytes:
        """Return a hash of what the document says (not of where it stands), 32 bytes: equal documents, equal hashes."""
        if self.token is not None:
            digest = hashlib.sha256(b"ids" + array("i", self.token).tobytes())
            digest.update(bytes(self.trainable or ()))
            return digest.digest()
        # JSON keeps the parts apart: ("ab", "c") and ("a", "bc") differ.
        content = json.dumps([self.text, self.prompt, self.completion])
        return hashlib.sha256(content.encode("ascii")).digest()

    @property
    def content_hash(self) -> str:
        """Return `content` as hexadecimal digits."""
        return self.content.hex()


def parse_record(record: object, where: str, text_field: str = "text") -> Document:
    """Return the document in a record: an object with the fields of exactly one form.

    Args:
        record: what a line, an array element or a table row holds.
        where: of the record, for messages.
        text_field: name of the field with plain text.

    Raises:
        DataError: not an object, or its fields are missing, ambiguous, of another format or of another type.
    """
    if not isinstance(record, dict):
        raise DataError(
            f"{where}: the line is {describe(record)}, not a JSON object with {text_field!r} (or 'prompt', ...)"
        )
    form = check_fields(list(record), where, text_field)
    if form == ("input_ids",):
        return _ids(record, where)
    values = {name: _string(record, name, where) for name in form}
    if form == (text_field,):
        return Document(text=values[text_field], where=where)
    return Document(prompt=values["prompt"], completion=values["completion"], where=where)


def check_fields(names: Sequence[str], where: str, text_field: str = "text") -> tuple[str, ...]:
    """Return which fields make the document: (text field,), ("prompt", "completion") or ("input_ids",).

    Args:
        names: all fields or columns that there are.
        where: for messages.
        text_field: name of the field with plain text.

    Raises:
        DataError: none of the three, more than one, or a field that belongs to another format.
    """
    known = (text_field, *_PAIR, "input_ids")
    present = [name for name in known if name in names]
    expected = f"expected {text_field!r}, or 'prompt' and 'completion', or 'input_ids'"
    foreign = sorted((_FOREIGN_FIELDS - {text_field}) & set(names))
    if "input_ids" not in present:
        foreign += [name for name in ("labels",) if name in names and name != text_field]
    if foreign:
        raise DataError(f"{where}: field {foreign[0]!r} belongs to a format that is not read here; {expected}")
    if present in ([text_field], list(_PAIR), ["input_ids"]):
        return tuple(present)
    if text_field in present or "input_ids" in present:
        raise DataError(f"{where}: fields {', '.join(map(repr, present))} together are ambiguous; {expected}")
    missing = [name for name in _PAIR if name not in present] if present else [text_field]
    others = [name for name in names if name not in known]
    near = difflib.get_close_matches(missing[0], others, n=1)
    hint = f" (is {near[0]!r} a misspelling?)" if near else ""
    found = ", ".join(map(repr, list(names)[:8])) or "no field"
    raise DataError(f"{where}: field {missing[0]!r} is missing, found {found}{hint}; {expected}")


def used_fields(form: tuple[str, ...], names: Sequence[str]) -> list[str]:
    """Return the fields that a document of this form is read from, of those that there are."""
    return [name for name in names if name in (_TOKEN_FIELDS if form == ("input_ids",) else form)]


def _string(record: dict[str, object], name: str, where: str) -> str:
    value = record[name]
    if not isinstance(value, str):
        raise DataError(f"{where}: field {name!r} is {describe(value)}; it must be a string")
    # An empty prompt is a way to say "no prompt"; nothing to learn is a mistake.
    if name != "prompt" and not value.strip():
        raise DataError(f"{where}: field {name!r} is empty; remove the line or fill it in")
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        raise DataError(f"{where}: field {name!r} holds half of a surrogate pair, which is not text; repair the line")
    return value


def _ids(record: dict[str, Any], where: str) -> Document:
    """Return a row of ids; padding that the attention mask marks is cut off, labels say which ids are learnt."""
    token = _integers(record, "input_ids", where, least=0)
    mask = _integers(record, "attention_mask", where, least=0) if record.get("attention_mask") is not None else None
    labels = _integers(record, "labels", where, least=IGNORED_LABEL) if record.get("labels") is not None else None
    for name, value in (("attention_mask", mask), ("labels", labels)):
        if value is not None and len(value) != len(token):
            raise DataError(
                f"{where}: field {name!r} has {len(value)} entries for {len(token)} input_ids; give one for each"
            )
    if mask is not None:
        begin, end = _unpadded(mask, where)
        token, labels = token[begin:end], labels[begin:end] if labels is not None else None
    if not token:
        raise DataError(f"{where}: field 'input_ids' holds no token; remove the row")
    if labels is None:
        return Document(token=token, where=where)
    for place, (token_id, label) in enumerate(zip(token, labels, strict=True)):
        if label not in (token_id, IGNORED_LABEL):
            raise DataError(
                f"{where}: labels[{place}] is {label}, but input_ids[{place}] is {token_id}; a label is the id at its "
                f"own place (not shifted) or {IGNORED_LABEL}"
            )
    learnt = [label != IGNORED_LABEL for label in labels]
    if not any(learnt):
        raise DataError(f"{where}: every label is {IGNORED_LABEL}, so nothing would be learnt; remove the row")
    return Document(token=token, trainable=learnt, where=where)


def _integers(record: dict[str, Any], name: str, where: str, *, least: int) -> list[int]:
    value = record[name]
    if not isinstance(value, list):
        raise DataError(f"{where}: field {name!r} is {describe(value)}; it must be a list of whole numbers")
    for place, each in enumerate(value):
        if type(each) is not int or not least <= each < 2**31:
            raise DataError(f"{where}: {name}[{place}] is {describe(each)}; it must be a whole number from {least} on")
    return value


def _unpadded(mask: list[int], where: str) -> tuple[int, int]:
    """Return where the ones begin and end; they have to be one run."""
    ones = sum(mask)
    begin = mask.index(1) if 1 in mask else 0
    if any(each not in (0, 1) for each in mask) or not all(mask[begin : begin + ones]):
        raise DataError(
            f"{where}: field 'attention_mask' is not one run of 1 between 0s; a row is one document with padding "
            "before or after it"
        )
    return begin, begin + ones


def describe(value: object) -> str:
    """Return what kind of JSON value this is and how it begins, e.g. "a number (3)"."""
    kinds = {dict: "an object", list: "a list", bool: "a boolean", int: "a number", float: "a number"}
    shown = json.dumps(value, default=repr)
    kind = "null" if value is None else kinds.get(type(value), "a string" if isinstance(value, str) else "a value")
    return f"{kind} ({shown if len(shown) <= 40 else shown[:37] + '...'})"
