"""What `mkdocs build` changes in a page: fences that the tests execute lose their mark."""

from __future__ import annotations

import re
from typing import Any


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Return the page with the fences of bash, python and json that are marked "test" as plain ones."""
    return re.sub(r"^```(bash|python|json) test$", r"```\1", markdown, flags=re.M)
