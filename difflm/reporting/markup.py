"""HTML that is safe by construction: text becomes `Html` through `escaped` only."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import NewType

from difflm.display.text import printable
from difflm.plots import INK, RULE

Html = NewType("Html", str)

STYLE = f"""
:root {{ color-scheme: light dark; --page: #fff; --card: #f6f7f9; --ink: #1d2129; --soft: {INK}; --rule: {RULE};
  --good: #1f7a4d; --bad: #b3304f; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --page: #14171c; --card: #1d2128; --ink: #e4e7ec; --soft: #a9b1bf; --rule: #3a414d; --good: #5cc795;
    --bad: #f08aa3; }}
}}
* {{ box-sizing: border-box; }}
body {{ margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }}
main {{ max-width: 1120px; margin: 0 auto; padding: 16px; }}
h1 {{ font-size: 1.6rem; margin: 8px 0 12px; overflow-wrap: anywhere; }}
h2 {{ font-size: 1.15rem; margin: 32px 0 8px; }}
h3 {{ font-size: 0.95rem; margin: 0 0 4px; }}
.cards {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 8px; margin: 0; }}
.cards div {{ background: var(--card); border-radius: 8px; padding: 8px 12px; }}
dt, figcaption, .note {{ color: var(--soft); font-size: 0.82rem; }}
dd {{ margin: 0; font-size: 1.1rem; font-weight: 600; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }}
dd small {{ display: block; font-size: 0.78rem; font-weight: 400; color: var(--soft); }}
.figures {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 420px), 1fr)); gap: 12px;
  margin-top: 20px; }}
figure {{ margin: 0; padding: 12px; border: 1px solid var(--rule); border-radius: 8px; min-width: 0; }}
svg {{ display: block; width: 100%; height: auto; stroke-linejoin: round; stroke-linecap: butt; }}
[fill="{INK}"] {{ fill: var(--soft); }} [stroke="{INK}"] {{ stroke: var(--soft); }}
[fill="{RULE}"] {{ fill: var(--rule); }} [stroke="{RULE}"] {{ stroke: var(--rule); }}
.scroll {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: 0.88rem; font-variant-numeric: tabular-nums; }}
th, td {{ text-align: left; padding: 4px 14px 4px 0; border-bottom: 1px solid var(--rule); vertical-align: top; }}
th {{ font-weight: 600; color: var(--soft); white-space: nowrap; }}
td.number, th.number {{ text-align: right; white-space: nowrap; }}
td.text {{ white-space: pre-wrap; overflow-wrap: anywhere; min-width: 14rem; }}
.good {{ color: var(--good); }} .bad {{ color: var(--bad); }}
pre {{ overflow-x: auto; background: var(--card); border-radius: 8px; padding: 12px; font-size: 0.82rem; }}
summary {{ cursor: pointer; }}
"""


def escaped(value: object) -> Html:
    """Return a value as text for HTML: markup has no meaning in it, control characters are made visible."""
    return Html(html.escape(printable(str(value)), quote=True))


def join(*parts: Html) -> Html:
    """Return the parts one below the other."""
    return Html("\n".join(part for part in parts if part))


def element(tag: str, *content: Html, kind: str = "") -> Html:
    """Return an element.

    Args:
        tag: its name.
        content: what is inside.
        kind: its class; "" for none.
    """
    opening = f'{tag} class="{kind}"' if kind else tag
    return Html(f"<{opening}>{''.join(content)}</{tag}>")


def table(columns: Sequence[tuple[str, str]], rows: Sequence[Sequence[Html]]) -> Html:
    """Return a table that scrolls sideways where the page is narrow.

    Args:
        columns: (heading, class of the cells) from left to right.
        rows: cells, one for each column.
    """
    head = element("tr", *(element("th", escaped(title), kind=kind) for title, kind in columns))
    body = [
        element("tr", *(element("td", cell, kind=kind) for cell, (_, kind) in zip(row, columns, strict=True)))
        for row in rows
    ]
    inside = element("table", element("thead", head), element("tbody", Html("\n".join(body))))
    return element("div", inside, kind="scroll")


def colored(text: object, *, good: bool) -> Html:
    """Return text in the color of what is well, or of what is not."""
    return element("span", escaped(text), kind="good" if good else "bad")
