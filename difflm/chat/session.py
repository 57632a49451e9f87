"""A conversation: what was said, how it is answered, what can be done to it. Knows neither terminal nor network."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from difflm.chat.settings import NAMES, Settings, known_name
from difflm.decode.events import Completion, Event
from difflm.decode.recorder import StepMap
from difflm.errors import DataError, RequestError

Message = dict[str, str]
"""Object with "role" and "content"."""
Decode = Callable[[Sequence[int]], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """An answer that is about to come.

    Attributes:
        events: the last of them `Finished`; closing it cancels the answer.
        decode: ids of final tokens to text.
        decode_all: the same for tokens that may still change, special ones included.
        step_map: how it was decoded, once it is finished; None where that is not told.
    """

    events: Generator[Event, None, None]
    decode: Decode
    decode_all: Decode
    step_map: Callable[[], StepMap | None]


class Backend(Protocol):
    """What answers."""

    @property
    def unset(self) -> str | None:
        """Whose value a setting has that nobody chose, to be read; None: the default of `SamplingParams`."""
        ...

    def ask(self, messages: Sequence[Message], settings: Settings) -> Asked:
        """Return an answer that is about to come.

        Args:
            messages: of a conversation, the last one of the user.
            settings: how to decode.

        Raises:
            DifflmError: it cannot be answered like this; also of the events.
        """
        ...


Show = Callable[[Asked], Completion]
"""Takes the events of an answer, in whatever way they are shown, and returns its completion."""


@dataclass(slots=True)
class Session:
    """What has been said, and how to answer.

    Attributes:
        backend: what answers.
        show: what shows an answer while it comes.
        settings: how it is decoded.
        messages: turns so far.
        last: how the last answer was decoded, where that is told.
        questions: that suit the model, to begin with.
    """

    backend: Backend
    show: Show
    settings: Settings = field(default_factory=Settings)
    messages: list[Message] = field(default_factory=list[Message])
    last: StepMap | None = None
    questions: Sequence[str] = ()
    _tried: int = field(default=0, init=False)

    def next_question(self) -> str:
        """Return the next of the questions that suit the model; after the last comes the first.

        Raises:
            RequestError: none is known.
        """
        if not self.questions:
            raise RequestError("/try: no questions are known that suit this model; type one")
        self._tried += 1
        return self.questions[(self._tried - 1) % len(self.questions)]

    def say(self, text: str) -> Completion:
        """Answer a message; both are kept only if the answer was not interrupted or refused.

        Raises:
            DifflmError: there is no answer; it says why.
        """
        turn = {"role": "user", "content": text}
        asked = self.backend.ask([*self.messages, turn], self.settings)
        completion = self.show(asked)
        self.last = asked.step_map()
        self.messages += [turn, {"role": "assistant", "content": completion.text or ""}]
        return completion

    def retry(self) -> Completion:
        """Answer the last message again, with the next seed where one was chosen or is ours to choose.

        Raises:
            DifflmError: nothing has been said, or there is no answer; then all is as it was.
        """
        kept, settings, last = list(self.messages), self.settings, self.last
        text = self.undo()
        if "seed" in settings.given or self.backend.unset is None:
            seed = (settings.params().seed + 1) % 2**63
            self.settings = Settings({**settings.given, "seed": seed})
        try:
            return self.say(text)
        except BaseException:
            self.messages, self.settings, self.last = kept, settings, last
            raise

    def undo(self) -> str:
        """Forget the last exchange and return its message.

        Raises:
            RequestError: there is none.
        """
        if len(self.messages) < 2 or self.messages[-1]["role"] != "assistant":
            raise RequestError("/undo, /retry: nothing has been said yet")
        text = self.messages[-2]["content"]
        del self.messages[-2:]
        self.last = None
        return text

    def clear(self) -> None:
        """Forget what has been said, but for instructions."""
        self.messages = [each for each in self.messages[:1] if each["role"] == "system"]
        self.last = None

    def system(self, text: str) -> None:
        """Start anew, with instructions; an empty text is none."""
        self.messages = [{"role": "system", "content": text}] if text else []
        self.last = None

    def set(self, words: str) -> str:
        """Change a setting, or say what they are; return what to print.

        Args:
            words: nothing, a name, or a name and a value.

        Raises:
            RequestError: no such setting, or a value that it does not take.
        """
        name, _, value = words.strip().partition(" ")
        if not name:
            return "\n".join(self._shown(each) for each in NAMES)
        name = known_name(name)
        if value.strip():
            self.settings = self.settings.changed(name, value.strip())
        return self._shown(name)

    def _shown(self, name: str) -> str:
        return f"{name} {self.settings.shown(name, self.backend.unset)}"

    def save(self, path: Path) -> str:
        """Append the conversation to a file, as training data, and return a line that says so.

        Args:
            path: of JSON lines.

        Raises:
            RequestError: nothing has been answered yet.
        """
        if not any(each["role"] == "assistant" for each in self.messages):
            raise RequestError("/save: nothing has been answered yet, so there is nothing to learn from")
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"messages": self.messages}, ensure_ascii=False) + "\n")
        return f"saved {len(self.messages)} messages to {path}"

    def load(self, path: Path) -> str:
        """Go on with the last conversation of a file and return a line that says so.

        Args:
            path: of JSON lines, as `save` writes them.

        Raises:
            DataError: it holds no such conversation.
        """
        self.messages = _conversation(path)
        self.last = None
        return f"loaded {len(self.messages)} messages from {path}"


def _conversation(path: Path) -> list[Message]:
    """Return the last conversation of a file: instructions, then exchanges, each with an answer."""
    try:
        lines = [line for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
        found = json.loads(lines[-1]) if lines else None
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise DataError(
            f"{path}: its last line is no JSON ({' '.join(str(error).split())}); /save writes such files"
        ) from None
    messages = found.get("messages") if isinstance(found, dict) else None
    if not isinstance(messages, list) or not messages:
        raise DataError(f"{path}: its last line has no messages; /save writes such files")
    for number, message in enumerate(messages):
        where = f"{path}: messages[{number}]"
        if not isinstance(message, dict) or not all(isinstance(message.get(name), str) for name in ("role", "content")):
            raise DataError(f"{where} is no object with a role and a text as content; leave it out")
        if other := sorted(set(message) - {"role", "content"}):
            raise DataError(f"{where} has {other[0]!r}, which a conversation here does not keep; remove it")
    roles = [message["role"] for message in messages]
    turns = roles[roles[0] == "system" :]
    if not turns or turns != ["user", "assistant"] * (len(turns) // 2):
        raise DataError(
            f"{path}: the roles are {', '.join(roles)}; after a system message give user and assistant in turn"
        )
    return messages
