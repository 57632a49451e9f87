"""What is known and not served is refused by name; what is not known is let through."""

from __future__ import annotations

from typing import Any

import pytest

from difflm.errors import RequestError
from difflm.serving.unsupported import check_extra


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"tools": [{"type": "function"}]}, "tools: .* is not supported by this server; leave it out"),
        ({"ebnf": "root ::= [a-z]"}, "ebnf: "),
        ({"chat_template": "{{ 1 }}"}, "chat_template: "),
        ({"chat_template_kwargs": {"chat_template": "x"}}, "chat_template_kwargs: "),
        ({"guided_whitespace_pattern": " "}, "guided_whitespace_pattern: ' '"),
        ({"best_of": 3}, "best_of: 3 is not supported; leave it out, or give it the value of n"),
        ({"echo": True}, "echo: it is not supported for conversations; use /v1/completions"),
        ({"use_beam_search": 0}, "use_beam_search: 0"),
        ({"threshold": 0.9}, 'threshold: it belongs in "diffusion": {"threshold": ...}'),
    ],
)
def test_refused(extra: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message.replace("{", "\\{").replace("}", "\\}")):
        check_extra(extra, n=2, chat=True)


def test_let_through() -> None:
    extra: dict[str, Any] = {"user": "u", "tools": [], "tool_choice": "auto", "best_of": 2, "never_heard_of": [1]}
    check_extra(extra | {"reasoning_effort": "none", "use_beam_search": False, "echo": False}, n=2, chat=True)
