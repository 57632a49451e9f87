"""Nothing that a model wrote can steer a terminal."""

from __future__ import annotations

from difflm.display.text import printable


def test_control_characters_are_replaced_and_tabs_expanded() -> None:
    assert printable("a\tb\x1b[31m\n") == "a    b\ufffd[31m\n"
