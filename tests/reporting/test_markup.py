"""Text has no markup in it, whatever it holds."""

from __future__ import annotations

from html.parser import HTMLParser

from hypothesis import given, settings
from hypothesis import strategies as st

from difflm.reporting.markup import colored, element, escaped, table


def test_markup_and_control_characters_lose_their_meaning() -> None:
    assert escaped('<b a="1">&\'') == "&lt;b a=&quot;1&quot;&gt;&amp;&#x27;"
    assert escaped("a\x1b[31m\x00\ud800\u202eb\nc") == "a\ufffd[31m\ufffd\ufffd\ufffdb\nc"


@settings(max_examples=50)
@given(st.text())
def test_any_text_is_one_text_to_a_parser(text: str) -> None:
    found: list[str] = []

    class Parser(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            found.append(tag)

    page = element("p", escaped(text))
    page.encode("utf-8")
    Parser().feed(page)
    assert found == ["p"]


def test_tables_and_elements() -> None:
    made = table([("step", "number"), ("text", "")], [[escaped(1), colored("<", good=False)]])
    assert '<th class="number">step</th><th>text</th>' in made
    assert '<td class="number">1</td><td><span class="bad">&lt;</span></td>' in made
