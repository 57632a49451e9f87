"""A run folder as one HTML page: no script, nothing loaded from elsewhere, light and dark, wide and narrow."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path

from difflm.checkpoints.folders import replace_text
from difflm.errors import ConfigError
from difflm.plots import draw_svg
from difflm.reporting.charts import figures_of
from difflm.reporting.facts import RunFacts, read_run
from difflm.reporting.markup import STYLE, Html, element, escaped, join
from difflm.reporting.tables import (
    checkpoint_table,
    data_table,
    fault_section,
    sample_table,
    summary_cards,
    validation_table,
)

_FIRST_LINE = "<!doctype html><!-- difflm report -->\n"
DEFAULT_NAME = "report.html"


def write_report(run: str | Path, target: str | Path | None = None) -> Path:
    """Write a run folder as one HTML page that needs nothing else, and return the page's path.

    Args:
        run: output folder of `difflm.train`, of a finished run or of one in progress.
        target: file to write, an earlier report gives way; None: report.html in the run folder.

    Raises:
        CheckpointError: `run` is no run folder.
        ConfigError: `target` is something else than a report, it cannot be written, or matplotlib is not installed.
        DataError: metrics.jsonl or samples.jsonl is damaged before its last line.
    """
    run = Path(run)
    page = Path(target) if target is not None else run / DEFAULT_NAME
    facts = read_run(run)
    _check_target(page)
    text = render(facts)
    try:
        replace_text(page, text)
    except OSError as error:
        raise ConfigError(f"{page}: cannot be written ({error.strerror}); choose another file") from None
    return page


def render(run: RunFacts) -> str:
    """Return the page of a run."""
    name = run.folder.name or str(run.folder)
    body = element(
        "main",
        element("h1", escaped(name)),
        summary_cards(run),
        _figures(run),
        _section("Validation", validation_table(run)),
        _section("Checkpoints", checkpoint_table(run)),
        _section("Samples", sample_table(run)),
        _section("Faults and restarts", fault_section(run)),
        _section("Data", data_table(run)),
        _section(
            "Configuration",
            element("details", element("summary", escaped("config.yaml")), element("pre", escaped(run.config_text))),
        ),
    )
    return f"{_FIRST_LINE}{_head(name)}\n<body>\n{body}\n</body>\n</html>\n"


def _head(name: str) -> Html:
    digest = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    return Html(
        '<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escaped(name)}: training run</title>\n<style>{STYLE}</style>\n</head>"
    )


def _section(title: str, content: Html) -> Html:
    return element("section", element("h2", escaped(title)), content)


def _figures(run: RunFacts) -> Html:
    figures = figures_of(run)
    if not figures:
        return element("p", escaped("The run has not done a step yet: there is nothing to draw."))
    drawn: Sequence[Html] = [
        element(
            "figure",
            element("h3", escaped(each.title)),
            _labelled(draw_svg(each.chart, name=f"chart{number}"), each.title),
            *([element("figcaption", escaped(each.note))] if each.note else []),
        )
        for number, each in enumerate(figures)
    ]
    shaded = "Shaded: every second stage of the curriculum." if len(run.config.curriculum) > 1 else ""
    return join(element("div", *drawn, kind="figures"), element("p", escaped(shaded), kind="note"))


def _labelled(svg: str, title: str) -> Html:
    return Html(svg.replace("<svg ", f'<svg role="img" aria-label="{escaped(title)}" ', 1))


def _check_target(page: Path) -> None:
    """Refuse to overwrite anything but an earlier report."""
    if page.is_dir():
        raise ConfigError(f"{page}: is a folder; name the file to write, e.g. {page / DEFAULT_NAME}")
    if not page.exists():
        return
    with page.open("rb") as file:
        if file.read(len(_FIRST_LINE)) != _FIRST_LINE.encode():
            raise ConfigError(f"{page}: exists and is no report of difflm; choose another file")
