"""Chat templates -> text: in this process, or in one of its own that is ended when a template does not end.

A template is a program of the checkpoint. Its sandbox keeps it from files and from the interpreter, but not from
looping, nor from a single expression that runs for hours or takes all memory. A process can be ended whatever it does.
"""

from __future__ import annotations

import importlib
import json
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol

from difflm.checkpoints.fields import one_line
from difflm.checkpoints.processes import START_SECONDS, LineProcess

_READY = b"ready\n"


class TemplateError(Exception):
    """A template refused a conversation, or failed."""


class TemplateEndless(TemplateError):
    """A template was ended, as it took too long."""


class Render(Protocol):
    """Renders conversations."""

    def __call__(
        self,
        tokenizer: Any,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Any] | None = None,
        open_turn: bool = False,
        go_on: bool = False,
    ) -> str:
        """Return a conversation in the tokenizer's chat template.

        Args:
            tokenizer: of transformers, with a template.
            messages: of JSON values.
            tools: descriptions of functions, as JSON schemas.
            open_turn: end with the opening of the assistant's turn.
            go_on: end inside the last message.

        Raises:
            Exception: whatever the template does.
        """
        ...


def render_here(
    tokenizer: Any,
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Any] | None = None,
    open_turn: bool = False,
    go_on: bool = False,
) -> str:
    """Return a conversation in the tokenizer's chat template, without bounds; see `Render`."""
    return tokenizer.apply_chat_template(
        list(messages),
        tools=tools,
        tokenize=False,
        add_generation_prompt=open_turn,
        continue_final_message=go_on,
    )


@dataclass(slots=True, kw_only=True)
class BoundedRender:
    """Renders like `render_here`, in processes that are ended when a template takes too long; see `Render`.

    A process is started when it is first needed and used again; several threads get several.

    Attributes:
        seconds: for a conversation.
        memory_bytes: beyond what an idle process has (Linux; elsewhere only the time is bounded).
        characters: of a rendered conversation, at most.
    """

    seconds: float = 10.0
    memory_bytes: int = 1 << 30
    characters: int = 1 << 26
    _idle: list[_Process] = field(default_factory=list["_Process"], init=False, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)
    _closed: bool = field(default=False, init=False, repr=False)

    def __call__(
        self,
        tokenizer: Any,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Any] | None = None,
        open_turn: bool = False,
        go_on: bool = False,
    ) -> str:
        """Return a conversation in the tokenizer's chat template.

        Raises:
            TemplateEndless: it took more than `seconds`; its process is gone.
            TemplateError: the template refused the conversation, failed, or wanted too much memory.
        """
        call = {
            "conversations": [[_without_nulls(message) for message in messages]],
            "tools": tools,
            "chat_template": tokenizer.get_chat_template(None, tools),
            "add_generation_prompt": open_turn,
            "continue_final_message": go_on,
            **tokenizer.special_tokens_map,
        }
        process = self._take()
        try:
            reply = process.ask(json.dumps(call, default=str).encode("ascii"), self.seconds)
        except BaseException:
            process.end()
            raise
        self._put_back(process)
        if "text" not in reply:
            raise TemplateError(reply.get("error", "its process gave no answer"))
        return reply["text"]

    def close(self) -> None:
        """End the processes; those that are at work end when they are done."""
        with self._lock:
            self._closed, idle = True, self._idle
            self._idle = []
        for process in idle:
            process.end()

    def _take(self) -> _Process:
        with self._lock:
            while self._idle:
                process = self._idle.pop()
                if process.alive:
                    return process
                process.end()
        return _Process(self.memory_bytes, self.characters)

    def _put_back(self, process: _Process) -> None:
        with self._lock:
            if not self._closed:
                self._idle.append(process)
                return
        process.end()


class _Process(LineProcess):
    """One process; one thread at a time asks it."""

    def __init__(self, memory_bytes: int, characters: int) -> None:
        super().__init__("difflm.checkpoints.templates", str(memory_bytes), str(characters))
        try:
            line = self._line(b"", START_SECONDS)
        except BaseException:
            self.end()
            raise
        if line != _READY:
            self.end()
            raise TemplateError("the process that renders chat templates does not start")

    def ask(self, call: bytes, seconds: float) -> dict[str, Any]:
        """Return the reply to a call.

        Raises:
            TemplateEndless: there was none in time.
            TemplateError: the process ended.
        """
        line = self._line(b"%g %b\n" % (seconds, call), seconds)
        if not line.endswith(b"\n"):
            raise TemplateError("its process ended")
        return json.loads(line)

    def _line(self, question: bytes, seconds: float) -> bytes:
        try:
            return self.line(question, seconds)
        except TimeoutError as error:
            raise TemplateEndless(str(error)) from None


def _without_nulls(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return a message without what it does not say, as transformers gives it to a template."""
    return {name: value for name, value in message.items() if value is not None}


# What follows runs in the process.


def _reply(call: Mapping[str, Any], characters: int) -> dict[str, str]:
    """Return the text of a call, or why there is none."""
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        rendered, _ = render_jinja_template(**call)
    except Exception as error:  # whatever the template does, MemoryError and RecursionError included
        return {"error": one_line(error)}
    if len(rendered[0]) > characters:
        return {"error": f"it writes {len(rendered[0])} characters, of {characters} that are read"}
    return {"text": rendered[0]}


def _bound_memory(more: int) -> None:
    """Let this process have so many bytes more than it has now, where the system can say what it has."""
    with suppress(ImportError, OSError, ValueError):
        resource: Any = importlib.import_module("resource")
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        most = pages * resource.getpagesize() + more
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _wake(seconds: float) -> None:
    """Let the system end this process after a time, 0 for never: whoever asked may be gone."""
    if "setitimer" in vars(signal):  # Windows has none
        signal.setitimer(signal.ITIMER_REAL, seconds)


def _answer_calls(calls: IO[bytes], replies: IO[bytes], characters: int) -> None:
    """Answer each line until there are no more."""
    for line in calls:
        seconds, _, call = line.partition(b" ")
        _wake(float(seconds) + 1)
        reply = _reply(json.loads(call), characters)
        _wake(0)
        replies.write(json.dumps(reply).encode("ascii") + b"\n")
        replies.flush()


def _main(arguments: Sequence[str]) -> None:
    importlib.import_module("transformers.utils.chat_template_utils")
    memory_bytes, characters = map(int, arguments)
    _bound_memory(memory_bytes)
    replies = sys.stdout.buffer
    sys.stdout = sys.stderr  # replies are the only thing that is written there
    replies.write(_READY)
    replies.flush()
    _answer_calls(sys.stdin.buffer, replies, characters)


if __name__ == "__main__":
    _main(sys.argv[1:])
