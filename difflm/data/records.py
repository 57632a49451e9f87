"""A record (a line, an element of an array, a row of a table) -> the document that it holds, by its fields."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from difflm.data.conversations import from_alpaca, from_messages, from_prompt, from_sharegpt, string_of
from difflm.data.documents import Document, describe
from difflm.data.preferences import from_preference
from difflm.errors import DataError

Records = Literal["auto", "text", "prompt_completion", "input_ids", "messages", "sharegpt", "alpaca", "preference"]
"""What records hold; "auto" concludes it from their fields."""
IGNORED_LABEL = -100
"""The label of a token that is not learnt."""
_FOREIGN_FIELDS = {
    "loss_mask": "remove it",
    "weight": "remove it",
    "completion_mask": f"write 'labels', with {IGNORED_LABEL} for what is not learnt",
    "assistant_masks": f"write 'labels', with {IGNORED_LABEL} for what is not learnt",
}
"""They change what a record means, so they are refused where metadata is ignored; with what to do."""
_SPOKEN = ("system", "history", "tools", "functions")
"""Parts of conversations; where a form does not read them, answers would be learnt without what they answer."""
_JUDGED = "label"
"""Of answers that are good (true) or bad (false), as for KTO; another value is metadata."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fields:
    """How records are read.

    Attributes:
        text: name of the field with plain text.
        records: what they hold.
    """

    text: str = "text"
    records: Records = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """What a record may hold.

    Attributes:
        name: see `Records`.
        needs: fields that make it.
        takes: further fields that it reads.
        nested: whether a cell of CSV cannot hold it.
    """

    name: Records
    needs: tuple[str, ...]
    takes: tuple[str, ...] = ()
    nested: bool = False


_FORMS = (
    Form(name="prompt_completion", needs=("prompt", "completion"), takes=("tools",)),
    Form(name="input_ids", needs=("input_ids",), takes=("labels", "attention_mask"), nested=True),
    Form(name="messages", needs=("messages",), takes=("tools",), nested=True),
    Form(name="sharegpt", needs=("conversations",), takes=("system", "tools"), nested=True),
    Form(name="alpaca", needs=("instruction", "output"), takes=("input", "system", "history")),
    Form(
        name="preference",
        needs=("chosen", "rejected"),
        takes=("prompt", "conversations", "instruction", "input", "system", "history", "tools"),
    ),
)
_TELLING = frozenset({name for form in _FORMS for name in form.needs} - {"output"}) | {"labels"}
"""Fields that say what a record holds; "output" is too common a name."""


def telling_fields(fields: Fields) -> frozenset[str]:
    """Return the names of fields from which one can tell what a record holds."""
    return _TELLING | {fields.text}


def table_columns(fields: Fields) -> list[set[str]]:
    """Return which columns make a table of records, for each form that a cell of CSV can hold."""
    return [set(form.needs) for form in _forms(fields) if not form.nested]


def _forms(fields: Fields) -> tuple[Form, ...]:
    return (Form(name="text", needs=(fields.text,)), *_FORMS)


def parse_record(record: object, where: str, fields: Fields | None = None) -> Document:
    """Return the document in a record: an object with the fields of exactly one form.

    Args:
        record: what a line, an array element or a table row holds.
        where: of the record, for messages.
        fields: how records are read; None for the defaults.

    Raises:
        DataError: not an object, or its fields are missing, ambiguous, of another format or of another type.
    """
    fields = fields or Fields()
    if not isinstance(record, dict):
        raise DataError(
            f"{where}: the line is {describe(record)}, not a JSON object with {fields.text!r} (or 'messages', ...)"
        )
    form = check_fields(list(record), where, fields)
    if form.name == "text":
        return Document(text=string_of(record, fields.text, where), where=where)
    if form.name != "input_ids" and fields.records == "auto":
        _refuse_unread(form, record, where)
    return _READERS[form.name](record, where)


def check_fields(names: Sequence[str], where: str, fields: Fields | None = None) -> Form:
    """Return which fields make the document.

    Args:
        names: all fields or columns that there are.
        where: for messages.
        fields: how records are read; None for the defaults.

    Raises:
        DataError: no form, more than one, or a field that belongs to another format.
    """
    fields = fields or Fields()
    forms = _forms(fields)
    whole = [form for form in forms if set(form.needs) <= set(names)]
    foreign = [name for name in _FOREIGN_FIELDS if name in names and name != fields.text]
    if foreign:
        raise DataError(
            f"{where}: field {foreign[0]!r} belongs to a format that is not read here; {_FOREIGN_FIELDS[foreign[0]]}"
        )
    if fields.records != "auto":
        form = next(form for form in forms if form.name == fields.records)
        if form not in whole:
            raise DataError(_missing([form], names, where))
        return form
    pairs = [form for form in whole if form.name == "preference"]
    if pairs:  # the prompt of a pair may be of another form
        whole = [form for form in whole if form.name == "preference" or not set(form.needs) <= set(pairs[0].takes)]
    if not whole:
        begun = [form for form in forms if set(form.needs) & set(names)]
        raise DataError(_missing(begun or list(forms), names, where))
    known = {name for form in whole for name in (*form.needs, *form.takes)}
    stray = [name for name in names if name in telling_fields(fields) and name not in known]
    if len(whole) > 1 or stray:
        present = [name for name in names if name in telling_fields(fields)]
        choices = " or ".join(form.name for form in whole)
        raise DataError(
            f"{where}: fields {', '.join(map(repr, present))} together are ambiguous; say what is meant "
            f"(data.records, --records): {choices}"
        )
    return whole[0]


def _missing(forms: list[Form], names: Sequence[str], where: str) -> str:
    """Return the message about a record that lacks what these forms need; the first of them is named."""
    missing = next(name for name in forms[0].needs if name not in names)
    others = [name for name in names if name not in _TELLING]
    near = difflib.get_close_matches(missing, others, n=1)
    hint = f" (is {near[0]!r} a misspelling?)" if near else ""
    found = ", ".join(map(repr, list(names)[:8])) or "no field"
    expected = ", or ".join(" and ".join(map(repr, form.needs)) for form in forms)
    return f"{where}: field {missing!r} is missing, found {found}{hint}; expected {expected}"


def used_fields(form: Form, names: Sequence[str]) -> list[str]:
    """Return the fields that a document of this form is read from, or refused for, of those that there are."""
    looked_at = (*_SPOKEN, _JUDGED) if form.name not in ("text", "input_ids") else ()
    return [name for name in names if name in (*form.needs, *form.takes, *looked_at)]


def _refuse_unread(form: Form, record: Mapping[str, Any], where: str) -> None:
    """Refuse parts of a conversation that the form does not read from such a record, and judged answers."""
    read = {"tools"} if form.name != "alpaca" else set[str]()
    answers = [record.get(name) for name in ("prompt", *form.needs)]
    if form.name in ("prompt_completion", "preference") and all(isinstance(each, str) for each in answers):
        read = set[str]()
    if record.get("conversations") is not None:
        read |= {"system"}
    if record.get("instruction") is not None:
        read |= {"system", "history"}
    for name in _SPOKEN:
        value = record.get(name)
        if name in read or not value or (isinstance(value, str) and value.strip() in ("", "[]")):
            continue
        raise DataError(
            f"{where}: field {name!r} ({describe(value)}) is not read beside {' and '.join(map(repr, form.needs))} as "
            f"they are here; write all of it as messages, or say with --records or data.records: {form.name} that it "
            "means nothing"
        )
    if isinstance(record.get(_JUDGED), bool) and form.name != "preference":
        raise DataError(
            f"{where}: field {_JUDGED!r} is {describe(record[_JUDGED])}, a judgement, and every answer here is learnt; "
            f"keep the lines whose {_JUDGED} is true, without the field"
        )


def _ids(record: Mapping[str, Any], where: str) -> Document:
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


def _integers(record: Mapping[str, Any], name: str, where: str, *, least: int) -> list[int]:
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


_READERS: dict[Records, Callable[[Mapping[str, Any], str], Document]] = {
    "prompt_completion": from_prompt,
    "input_ids": _ids,
    "messages": from_messages,
    "sharegpt": from_sharegpt,
    "alpaca": from_alpaca,
    "preference": from_preference,
}
