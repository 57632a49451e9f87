"""Rendering in a process of its own: the same text, and whatever a template does, it is ended and the next rendered."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from difflm.checkpoints.chats import ChatEncoder
from difflm.checkpoints.templates import BoundedRender, TemplateEndless, TemplateError, render_here
from difflm.checkpoints.tokens import SafeEncoder
from difflm.errors import CheckpointError
from tests.checkpoints import templates
from tests.checkpoints.tiny import make_tokenizer

TALK: list[dict[str, Any]] = [
    {"role": "system", "content": 'be "brief" \u9f9c\n'},
    {"role": "user", "content": "the fox?", "name": None},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"function": {"name": "f", "arguments": {"a": [1.5, 0]}}}],
    },
    {"role": "tool", "content": "\U0001f600\ufdd0\x00"},
    {"role": "assistant", "content": " jumps ", "reasoning_content": "hm"},
]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
LOOPS = f"{'{% for a in range(99999) %}' * 3}{'{% endfor %}' * 3}"
POWER = "{{ 9 ** (9 ** (9 + messages | length)) }}"
MACROS = "{% macro twice(n) %}{% if n %}{{ twice(n - 1) }}{{ twice(n - 1) }}{% endif %}{% endmacro %}{{ twice(90) }}"
SHORT = "{{ messages[0].content }}{{ bos_token }}"


@pytest.fixture(scope="module")
def render() -> Iterator[BoundedRender]:
    """One process for all that do not end it."""
    bounded = BoundedRender(seconds=300, characters=1000)
    yield bounded
    bounded.close()


def tokenizer(template: str) -> Any:
    return make_tokenizer(template=template)


@pytest.mark.parametrize("name", [name for name in dir(templates) if name.isupper()])
def test_the_text_is_that_of_this_process(name: str, render: BoundedRender) -> None:
    own = tokenizer(getattr(templates, name))
    for tools in (None, [TOOL]):
        for count in range(1, len(TALK) + 1):
            for options in ({}, {"open_turn": True}, {"go_on": True}):
                try:
                    expected = render_here(own, TALK[:count], tools=tools, **options)
                except Exception:
                    with pytest.raises(TemplateError):
                        render(own, TALK[:count], tools=tools, **options)
                else:
                    assert render(own, TALK[:count], tools=tools, **options) == expected


def test_what_a_template_says_is_said(render: BoundedRender) -> None:
    with pytest.raises(TemplateError, match=r"^no system role$"):
        render(tokenizer(templates.REFUSING), TALK)
    with pytest.raises(TemplateError, match="access to attribute '__class__' of 'str' object is unsafe"):
        render(tokenizer("{{ ''.__class__.mro() }}"), TALK)
    with pytest.raises(TemplateError, match="it writes 1001 characters, of 1000 that are read"):
        render(tokenizer("{{ 'a' * 1001 }}"), TALK)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is bounded on Linux")
def test_memory_is_bounded(render: BoundedRender) -> None:
    render(tokenizer(SHORT), TALK)
    (process,) = render._idle
    with pytest.raises(TemplateError, match="MemoryError"):
        render(tokenizer("{{ ('a' * 10 ** 10) | length }}"), TALK)
    assert render._idle == [process], "it goes on"


@pytest.mark.parametrize("endless", [LOOPS, POWER])
def test_what_does_not_end_is_ended(endless: str) -> None:
    """A loop, and a single operation that Python itself cannot interrupt."""
    bounded, own = BoundedRender(seconds=300), tokenizer(SHORT)
    assert bounded(own, TALK[1:]) == "the fox?" + (own.bos_token or "")
    (process,) = bounded._idle
    bounded.seconds = 0.2
    with pytest.raises(TemplateEndless, match=r"^it did not end within 0\.2 seconds$"):
        bounded(tokenizer(endless), TALK)
    assert bounded._idle == []
    assert process._process.returncode == -signal.SIGKILL
    bounded.close()


def test_a_process_that_is_gone_is_replaced(render: BoundedRender) -> None:
    """Its input ends with the process that asked, and an alarm ends what it is doing then."""
    render(tokenizer(SHORT), TALK[1:])
    (process,) = render._idle
    stdin = process._process.stdin
    assert stdin is not None
    stdin.write(b"0 " + json.dumps({"conversations": [[{}]], "chat_template": LOOPS}).encode() + b"\n")
    stdin.flush()
    assert process._process.wait(60) == -signal.SIGALRM
    assert render(tokenizer(SHORT), TALK[1:]), "another one is started"
    (process,) = render._idle
    stdin = process._process.stdin
    assert stdin is not None
    stdin.close()
    assert process._process.wait(60) == 0


def test_threads_do_not_mix(render: BoundedRender) -> None:
    own = tokenizer(SHORT)
    with ThreadPoolExecutor(2) as pool:
        talks = [[{"role": "user", "content": f"number {number}"}] for number in range(20)]
        assert list(pool.map(lambda talk: render(own, talk), talks)) == [render_here(own, talk) for talk in talks]


def test_a_conversation_says_why_it_has_no_ids() -> None:
    def endless(*arguments: Any, **options: Any) -> str:
        raise TemplateEndless("it did not end within 0.2 seconds")

    chats = ChatEncoder(SafeEncoder(tokenizer(SHORT), None, None), (0,), Path("model"), endless)
    with pytest.raises(
        CheckpointError,
        match=r"^model: the chat template was stopped in a conversation of 2 messages, as it did not end within "
        r"0\.2 seconds; shorten the conversation, or mend the template$",
    ):
        chats.prompt(TALK[:2])


def test_what_was_closed_keeps_no_process(render: BoundedRender) -> None:
    """The last test here: it closes what the others share."""
    render(tokenizer(SHORT), TALK[1:])
    processes = list(render._idle)
    render.close()
    assert {each._process.returncode for each in processes} == {-signal.SIGKILL}
    assert render(tokenizer(SHORT), TALK[1:])
    assert render._idle == []
