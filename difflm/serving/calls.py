"""Calls of functions in the text of an answer: found as it grows, and told apart from its content."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A call that an answer asks for.

    Attributes:
        id: by which its result names it.
        name: of the function.
        arguments: an object, as JSON.
    """

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CallFormat:
    """How a chat template writes calls: an object with "name" and arguments, perhaps between two marks.

    Attributes:
        opening, closing: the marks, as `<tool_call>` and `</tool_call>`; both empty where an object alone is the
            answer, or several that `;` separates.
        arguments: name of the field with the arguments.
    """

    opening: str = ""
    closing: str = ""
    arguments: str = "arguments"


@dataclass(frozen=True, slots=True)
class Told:
    """What is new of an answer.

    Attributes:
        text: content.
        calls: whole ones.
    """

    text: str = ""
    calls: tuple[Call, ...] = ()


@dataclass(slots=True, kw_only=True)
class GrowingCalls:
    """Separates content from calls, as early as nothing that follows can change it.

    What is no whole call of an offered function stays content, marks included. White space around calls is no content.

    Attributes:
        format: of the calls.
        names: functions that are offered.
        single: only the first call is told.
        content: so far.
        calls: so far.
    """

    format: CallFormat
    names: Collection[str]
    single: bool = False
    content: str = ""
    calls: list[Call] = field(default_factory=list[Call])
    _held: str = ""
    _behind_call: bool = False

    def add(self, text: str) -> Told:
        """Take in text and return what is certain now."""
        self._held += text
        return self._marked(last=False) if self.format.opening else self._bare(last=False)

    def end(self, text: str) -> Told:
        """Take in the last text and return what is left."""
        self._held += text
        return self._marked(last=True) if self.format.opening else self._bare(last=True)

    def _tell(self, text: str, calls: list[Call]) -> Told:
        if self.single:
            calls = calls[: 1 - len(self.calls)]
        self.content += text
        self.calls += calls
        return Told(text, tuple(calls))

    def _marked(self, *, last: bool) -> Told:
        text, calls = "", list[Call]()
        opening, closing = self.format.opening, self.format.closing
        while True:
            if self._behind_call:
                self._held = self._held.lstrip()
            place = self._held.find(opening)
            end = None if place < 0 else end_of(self._held, place + len(opening), closing)
            if end is None:
                break  # there is none, it is not whole yet, or it never will be
            call = self._call(self._held[place + len(opening) : end - len(closing)])
            text += self._held[:end] if call is None else self._held[:place].rstrip()
            calls += () if call is None else (call,)
            self._behind_call, self._held = call is not None, self._held[end:]
        if last:
            certain = self._held.rstrip() if self.calls or calls else self._held
        else:
            begun = (n for n in range(len(opening) - 1, 0, -1) if self._held.endswith(opening[:n]))
            certain = self._held[: place if place >= 0 else len(self._held) - next(begun, 0)].rstrip()
        self._held = "" if last else self._held[len(certain) :]
        self._behind_call &= not certain
        return self._tell(text + certain, calls)

    def _bare(self, *, last: bool) -> Told:
        """An answer that begins with an object is told at its end: only then it is known whether it is calls alone."""
        waits = not self.content and self._held.lstrip()[:1] in ("", "{")
        if waits and not last:
            return Told()
        rest, self._held = self._held, ""
        calls = self._objects(rest) if waits else None
        return self._tell(rest, []) if calls is None else self._tell("", calls)

    def _objects(self, text: str) -> list[Call] | None:
        """Return the calls that a text consists of; None where it holds anything else."""
        found, rest = list[Call](), text.strip()
        while rest:
            try:
                _, end = json.JSONDecoder().raw_decode(rest)
            except (ValueError, RecursionError):
                return None
            call, rest = self._call(rest[:end]), rest[end:].lstrip()
            if call is None or (rest and rest[0] != ";"):
                return None
            found.append(call)
            rest = rest[1:].lstrip()
        return found or None

    def _call(self, text: str) -> Call | None:
        """Return the call that a text is; None where it is none of an offered function."""
        try:
            read: Any = json.loads(text, parse_constant=_refuse)
            if not isinstance(read, dict) or read.get("name") not in self.names:
                return None
            arguments = read.get(self.format.arguments, {})
            written = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
            written.encode()  # halves of characters, written as escapes, are no text
        except (ValueError, TypeError, RecursionError):
            return None
        if not isinstance(arguments, dict):
            return None
        return Call(id=f"call_{uuid.uuid4().hex[:24]}", name=read["name"], arguments=written)


def end_of(text: str, start: int, closing: str) -> int | None:
    """Return where a closing mark ends that stands outside of JSON strings; None where there is none.

    Args:
        text: of an answer.
        start: where the search begins.
        closing: the mark.
    """
    for found in re.compile(rf'"(?:[^"\\]|\\.)*(?:"|\\?\Z)|{re.escape(closing)}', re.DOTALL).finditer(text, start):
        if found[0] == closing:
            return found.end()
    return None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")
