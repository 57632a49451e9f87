"""The built-in page: a few files of this package, read once; no path of a request is ever opened."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
_NAMES = ("style.css", "icon.svg", "app.js", "api.js", "controls.js", "lane.js", "store.js", "trace.js")
PLACES: Mapping[str, str] = {"/": "index.html", **{f"/page/{name}": name for name in _NAMES}}
"""Path -> file. They need no key: they hold nothing of the model."""

HEADERS: Mapping[str, str] = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    # Asked for again each time, so that page and server are of one version.
    "cache-control": "no-cache",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PageFile:
    """A file of the page.

    Attributes:
        content: bytes.
        kind: media type.
        tag: ETag.
    """

    content: bytes
    kind: str
    tag: str


@functools.cache
def page_files() -> Mapping[str, PageFile]:
    """Return the files of the page by their paths."""
    folder = files("difflm.serving") / "static"
    found: dict[str, PageFile] = {}
    for path, name in PLACES.items():
        content = (folder / name).read_bytes()
        tag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
        found[path] = PageFile(content=content, kind=_TYPES[name.rpartition(".")[2]], tag=tag)
    return found


def page_response(request: Request) -> Response:
    """Return a file of the page, or 304 where the browser has it.

    Args:
        request: its path is one of `PLACES`.
    """
    from starlette.responses import Response

    file = page_files()[request.url.path]
    headers = {**HEADERS, "etag": file.tag}
    if request.headers.get("if-none-match") == file.tag:
        return Response(status_code=304, headers=headers)
    return Response(file.content, media_type=file.kind, headers=headers)
