"""Lines of a conversation: commands, and everything else is said."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from difflm.chat.session import Session
from difflm.chat.settings import suggestion
from difflm.decode.events import Completion
from difflm.decode.recorder import StepMap
from difflm.errors import RequestError

HELP = """/set NAME VALUE   change a setting, e.g. /set threshold 0.9 (default takes it back); /set alone lists them
/retry            answer the last message again (with the next seed)
/try              ask the next of the questions that suit the model, where some are known
/undo             forget the last exchange
/system TEXT      start anew with instructions
/save FILE        append the conversation to a file of training data, as one JSON line
/load FILE        go on with the last conversation of such a file
/trace            which forward decided what of the last answer; /trace replay draws it once more
/clear            forget what has been said, but for instructions
/help             this
/exit             leave (also /quit, Ctrl-D, end of input); Ctrl-C stops an answer
A line that ends in \\ goes on in the next one; lines between two \"\"\" are one message; // says a leading /"""

COMMANDS = (
    "/set",
    "/retry",
    "/try",
    "/undo",
    "/system",
    "/save",
    "/load",
    "/trace",
    "/clear",
    "/help",
    "/exit",
    "/quit",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Views:
    """What becomes of results on the way to a person.

    Attributes:
        cost: a line about what an answer cost.
        trace: lines about how it was decoded.
        replay: draws that once more.
        ask: shows a message that nobody typed.
    """

    cost: Callable[[Completion], str]
    trace: Callable[[StepMap], list[str]]
    replay: Callable[[StepMap], None]
    ask: Callable[[str], None]


def answer(session: Session, text: str, views: Views) -> str | None:
    """Do what a line (or several that belong together) asks for and return what to print; None to leave.

    Args:
        session: the conversation.
        text: as typed.
        views: what becomes of results.

    Raises:
        DifflmError: a command or message that cannot be served.
        OSError: a file that cannot be read or written.
    """
    stripped = text.strip()
    if not stripped:
        return ""
    if not stripped.startswith("/") or stripped.startswith("//"):
        return views.cost(session.say(stripped[1:] if stripped.startswith("//") else text))
    command, _, rest = stripped.partition(" ")
    rest = rest.strip()
    if command in ("/exit", "/quit"):
        return None
    if command == "/trace":
        return _trace(session, rest, views)
    return _call(command, rest, session, views)


def _call(command: str, rest: str, session: Session, views: Views) -> str:
    """Return what the other commands print."""

    def file() -> Path:
        if not rest:
            raise RequestError(f"{command}: name a file")
        return Path(rest).expanduser()

    def said(done: None, line: str) -> str:
        return line

    calls: Mapping[str, Callable[[], str]] = {
        "/help": lambda: HELP,
        "/set": lambda: session.set(rest),
        "/retry": lambda: views.cost(session.retry()),
        "/try": lambda: _try(session, views),
        "/undo": lambda: f"forgot: {session.undo()}",
        "/system": lambda: said(session.system(rest), "a new conversation"),
        "/save": lambda: session.save(file()),
        "/load": lambda: session.load(file()),
        "/clear": lambda: said(session.clear(), "forgot all of it"),
    }
    if command not in calls:
        raise RequestError(f"{command}: no such command; {suggestion(command, COMMANDS, '/help lists them')}")
    return calls[command]()


def _try(session: Session, views: Views) -> str:
    """Ask the next of the questions that suit the model; return what its answer cost."""
    question = session.next_question()
    views.ask(question)
    return views.cost(session.say(question))


def _trace(session: Session, rest: str, views: Views) -> str:
    """Return how the last answer was decoded, or draw it."""
    if rest not in ("", "replay"):
        raise RequestError(f"/trace: {rest!r:.40} is not known; give nothing, or replay")
    if session.last is None:
        told = bool(session.messages) and session.messages[-1]["role"] == "assistant"
        why = "how this answer was decoded is not known here" if told else "nothing has been said yet"
        raise RequestError(f"/trace: {why}")
    if rest == "replay":
        views.replay(session.last)
        return ""
    return "\n".join(views.trace(session.last))
