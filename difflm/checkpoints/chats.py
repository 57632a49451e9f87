"""Conversations -> ids by the checkpoint's own chat template, the same in training and in use.

Which tokens an assistant wrote is found by rendering twice: the conversation before its message, opened for an answer
(which is what a model is asked with), and the conversation with the message. The second has to begin with the first;
what follows is the answer. Prompt and answer are encoded apart, so the prompt's ids are those of use.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from difflm.checkpoints.fields import one_line
from difflm.checkpoints.literals import (
    STAND_INS,
    Hidden,
    LiteralEncoder,
    mapped,
    marked,
    strings,
    unmarked,
    words_pattern,
)
from difflm.checkpoints.templates import Render, TemplateEndless, render_here
from difflm.checkpoints.tokens import SafeEncoder, refuse_half_characters, turn_token_ids
from difflm.errors import CheckpointError, RequestError

Message = Mapping[str, Any]
"""Object with "role" and "content", and whatever else the template reads."""
_PROBE = STAND_INS[-1]


@dataclass(slots=True)
class ChatEncoder:
    """Encodes conversations.

    Control words in what people wrote stay characters: in messages of the assistant special tokens and EOS (its own
    markup, as `<think>`, is added but not special and stays a token), elsewhere also every marker that the template
    uses.

    Attributes:
        safe: encodes text without a conversation.
        eos_ids: ids that end an answer; the first is added where a template ends answers with none of them.
        path: checkpoint, for messages.
        render: what renders the template.
    """

    safe: SafeEncoder
    eos_ids: tuple[int, ...]
    path: Path
    render: Render = render_here
    _literals: LiteralEncoder = field(init=False, repr=False)
    _special: frozenset[str] = field(init=False, repr=False)
    _control: re.Pattern[str] | None = field(init=False, repr=False)
    _marked: re.Pattern[str] | None = field(init=False, repr=False)
    _opens_when_asked: bool = field(default=False, init=False, repr=False)
    _shown: set[str] = field(default_factory=set[str], init=False, repr=False)

    def __post_init__(self) -> None:
        """Find the control words."""
        tokenizer, mask = self.safe.tokenizer, self.safe.mask_token_id
        added = {token_id: str(token) for token_id, token in tokenizer.added_tokens_decoder.items()}
        special = {each for each, token in tokenizer.added_tokens_decoder.items() if token.special}
        special |= {*self.eos_ids, *(() if mask is None else (mask,))} & set(added)
        control = special | turn_token_ids(tokenizer, self.render) & set(added)
        self._literals = LiteralEncoder(tokenizer, frozenset(control), frozenset(() if mask is None else (mask,)))
        self._special = frozenset(added[each] for each in special)
        self._control = words_pattern({added[each] for each in control})
        self._marked = words_pattern({marked(added[each]) for each in control})

    def prompt(self, messages: Sequence[Message], tools: Sequence[Any] | None = None) -> list[int]:
        """Return the ids of a conversation, opened for the assistant's answer.

        Args:
            messages: turns so far.
            tools: descriptions of functions, as JSON schemas.

        Raises:
            CheckpointError: no chat template, or one that refuses the conversation.
            RequestError: content that is not text.
        """
        conversation = self._conversation(messages, tools)
        return self._encode(self._render(conversation, len(messages), open_turn=True), conversation.hidden)

    def text(self, messages: Sequence[Message], *, open_turn: bool = True) -> str:
        """Return a conversation as text, of which `encode` makes its ids.

        Control words that people typed have a character in them that no text holds (`literals.MARK`).

        Args:
            messages: turns so far.
            open_turn: end with the opening of the assistant's turn; else the last message goes on.

        Raises:
            CheckpointError: see `prompt`.
            DataError: the conversation holds that character.
            RequestError: see `prompt`.
        """
        conversation = self._conversation(messages, None)
        text = self._render(conversation, len(messages), open_turn=open_turn, go_on=not open_turn)
        return conversation.hidden.shown(text)

    def encode(self, text: str) -> list[int]:
        """Return the ids of what `text` gave, and of whatever was written behind it: for an opened turn, `prompt`'s."""
        return self._encode(*unmarked(self._marked, text))

    def answers(
        self, messages: Sequence[Message], learnt: Sequence[int], tools: Sequence[Any] | None = None
    ) -> list[tuple[list[int], list[int]]]:
        """Return (prompt ids, answer ids) of some messages of the assistant; an answer ends in one EOS.

        Args:
            messages: a conversation.
            learnt: numbers of the messages, from 0.
            tools: see `prompt`.

        Raises:
            CheckpointError: see `prompt`; or a template in which a conversation does not begin with the prompt of its
                last message, or that renders nothing for it, or leaves out functions or calls.
            RequestError: see `prompt`.
        """
        conversation = self._conversation(messages, tools)
        found: list[tuple[list[int], list[int]]] = []
        for number in learnt:
            prompt = self._render(conversation, number, open_turn=True)
            whole = self._render(conversation, number + 1, open_turn=False)
            if not self._opens_when_asked:
                self._check_opening(conversation, number, prompt)
            self._check_shown(conversation, number + 1, whole)
            if not whole.startswith(prompt):
                raise CheckpointError(self._difference(prompt, whole, number))
            answer = self._answer(whole[len(prompt) :], number, conversation.hidden)
            found.append((self._encode(prompt, conversation.hidden), answer))
        return found

    def _answer(self, text: str, number: int, hidden: Hidden) -> list[int]:
        """Return the ids of an answer up to its EOS; one is added where the template has none."""
        ids = self._encode(text, hidden)
        ends = [place for place, token_id in enumerate(ids) if token_id in self.eos_ids]
        if ends:
            behind = self.safe.tokenizer.decode(ids[ends[0] + 1 :], skip_special_tokens=True)
            if behind.strip():
                raise CheckpointError(
                    f"{self.path}: the chat template writes {behind.strip()!r:.60} behind the EOS of "
                    f"messages[{number}], where no answer goes on; mend the template"
                )
            ids = ids[: ends[0] + 1]
        else:
            # Decoding stops at EOS alone, whatever else the template ends a turn with.
            ids = [*self._encode(text.rstrip(), hidden), self.eos_ids[0]]
        if len(ids) == 1:
            raise CheckpointError(
                f"{self.path}: the chat template renders nothing for messages[{number}], so it would teach nothing; "
                "leave the message out, or mend the template"
            )
        return ids

    def _check_opening(self, conversation: _Conversation, number: int, prompt: str) -> None:
        """Refuse, once, a template that opens the assistant's turn behind everything, an answer included."""
        probe = {"role": "assistant", "content": _PROBE}
        asked = replace(conversation, messages=[*conversation.messages[:number], probe])
        whole = self._render(asked, number + 1, open_turn=False)
        tail = whole.rpartition(_PROBE)[2]
        opens = tail.strip() and prompt.endswith(tail) and whole == prompt + _PROBE + tail
        if opens and not set(self.safe.encode(tail)) & set(self.eos_ids):
            raise CheckpointError(
                f"{self.path}: the chat template ends with {tail.strip()!r:.60} whether or not an answer is asked "
                "for; write it only {% if add_generation_prompt %}"
            )
        self._opens_when_asked = True

    def _check_shown(self, conversation: _Conversation, count: int, whole: str) -> None:
        """Refuse, once for each, functions and calls that the template leaves out of `count` messages."""
        plain = [
            {name: each for name, each in message.items() if name != "tool_calls"} for message in conversation.messages
        ]
        called = any(message.get("tool_calls") for message in conversation.messages[:count])
        for name, given, without in (
            ("tools", bool(conversation.tools), replace(conversation, tools=None)),
            ("tool_calls", called, replace(conversation, messages=plain)),
        ):
            if not given or name in self._shown:
                continue
            try:
                left_out = self._render(without, count, open_turn=False) == whole
            except CheckpointError:  # it needs them
                left_out = False
            if left_out:
                raise CheckpointError(
                    f"{self.path}: the chat template does not show {name}, so answers would be learnt without them; "
                    f"leave {name} out of the data, or mend the template"
                )
            self._shown.add(name)

    def _difference(self, prompt: str, whole: str, number: int) -> str:
        place = _num_shared(prompt, whole)
        asked, answered = (text[max(place - 20, 0) : place + 30] for text in (prompt, whole))
        return (
            f"{self.path}: the chat template asks for messages[{number}] with ...{asked!r}, but renders the "
            f"conversation that holds it as ...{answered!r}; a model trained on it would not be asked like that, so "
            "mend the template"
        )

    def _conversation(self, messages: Sequence[Message], tools: Sequence[Any] | None) -> _Conversation:
        plain = [_plain(message, number) for number, message in enumerate(messages)]
        described = [_described(tool) for tool in tools or ()]
        said = "\0".join(text for value in (plain, described) for text in strings(value))
        hidden = Hidden(self._control, said)
        roles = tuple(str(message.get("role")) for message in plain)
        return _Conversation(
            messages=[self._without_words(message, hidden) for message in plain],
            tools=mapped(described, hidden.hide) or None,
            roles=roles,
            hidden=hidden,
        )

    def _without_words(self, message: dict[str, Any], hidden: Hidden) -> dict[str, Any]:
        """Return a message with stand-ins for control words; its role is the template's business."""
        if not hidden.word_of:
            return message
        only = self._special if message.get("role") == "assistant" else None
        return {
            key: value if key == "role" else mapped(value, lambda text: hidden.hide(text, only))
            for key, value in message.items()
        }

    def _render(self, conversation: _Conversation, count: int, *, open_turn: bool, go_on: bool = False) -> str:
        tokenizer = self.safe.tokenizer
        if not tokenizer.chat_template:
            raise CheckpointError(
                f"{self.path}: the tokenizer has no chat template; use a plain prompt, or add chat_template.jinja"
            )
        try:
            return self.render(
                tokenizer, conversation.messages[:count], tools=conversation.tools, open_turn=open_turn, go_on=go_on
            )
        except TemplateEndless as error:
            raise CheckpointError(
                f"{self.path}: the chat template was stopped in a conversation of {count} messages, as {error}; "
                "shorten the conversation, or mend the template"
            ) from None
        # The template is a program of the checkpoint, in a sandbox: it may refuse roles, or be broken.
        except Exception as error:
            roles = ", ".join(conversation.roles[:count])
            raise CheckpointError(
                f"{self.path}: the chat template refuses a conversation of {roles} ({one_line(error)}); "
                "use a plain prompt, or mend the template"
            ) from None

    def _encode(self, text: str, hidden: Hidden) -> list[int]:
        if not hidden.word_of:
            return self.safe.encode(text)
        refuse_half_characters(text)
        return self._literals.encode(text, hidden)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Conversation:
    """What is rendered: messages and tools with stand-ins, and what they stand for."""

    messages: list[dict[str, Any]]
    tools: list[Any] | None
    roles: tuple[str, ...]
    hidden: Hidden


def _num_shared(one: str, other: str) -> int:
    """Return how many characters two texts begin with alike."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (left, right) in pairs if left != right), min(len(one), len(other)))


def _plain(message: Message, number: int) -> dict[str, Any]:
    """Return a message as templates expect it: content as one string, arguments of calls as objects."""
    changed = dict(message)
    if changed.get("role") == "developer":  # a newer name that few templates know: the others leave such a message out
        changed["role"] = "system"
    content = message.get("content")
    if isinstance(content, list):
        for place, part in enumerate(content):
            if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
                kind = part.get("type") if isinstance(part, dict) else part
                raise RequestError(
                    f"messages[{number}].content[{place}]: {kind!r:.40} is not read here; give text parts"
                )
        changed["content"] = "".join(part["text"] for part in content)
    calls = message.get("tool_calls")
    if isinstance(calls, list):
        changed["tool_calls"] = [_call(each) for each in calls]
    return changed


def _described(tool: Any) -> Any:
    """Return the description of a function as requests have it: templates print it whole, order of fields included."""
    tool = _wrapped(tool)
    function = tool.get("function") if isinstance(tool, dict) else None
    if not isinstance(function, dict):
        return tool
    function = _ordered(function, "name", "description", "parameters", "strict")
    return _ordered({"type": "function", **tool, "function": function}, "type", "function")


def _call(call: Any) -> Any:
    """Return a call as requests have it, with its arguments as an object where they are one written as JSON."""
    call = _wrapped(call)
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict):
        return call
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            read = json.loads(arguments)
        except (ValueError, RecursionError):
            read = None
        arguments = read if isinstance(read, dict) else arguments
    function = {**function, "arguments": {} if arguments is None else arguments}
    return _ordered({"type": "function", **call, "function": _ordered(function, "name", "arguments")}, "id", "type")


def _wrapped(given: Any) -> Any:
    """Return a function, or a call of one, inside an object that says so, where it stands alone."""
    if not isinstance(given, dict) or "function" in given or not isinstance(given.get("name"), str):
        return given
    return {"type": "function", "function": {name: each for name, each in given.items() if name != "type"}}


def _ordered(value: Mapping[str, Any], *first: str) -> dict[str, Any]:
    """Return an object with these fields first, and without those that are null."""
    names = dict.fromkeys((*first, *value))
    return {name: value[name] for name in names if value.get(name) is not None}
