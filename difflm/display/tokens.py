"""Tokens by their role in training, and what `prepare` found; readable with and without colours."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, TextIO

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from difflm.display.text import printable

if TYPE_CHECKING:
    from difflm.training.prepare import PrepareSummary
    from difflm.training.preview import ShownRow, ShownToken

STYLES = {"prompt": "cyan", "trainable": "green", "eos": "bold magenta", "fill": "magenta", "padding": "dim"}
MASKED = "reverse"
_WIDTH = 120


def show_rows(rows: Sequence[ShownRow], *, mask_rate: float, stream: TextIO | None = None) -> None:
    """Print packed rows with a legend; the marks are the same with colours (a terminal) and without.

    Args:
        rows: what to print.
        mask_rate: at which they were masked, for the legend.
        stream: where to print. None: standard output.
    """
    console = _console(stream)
    console.print(legend(mask_rate))
    for row in rows:
        console.print(row_text(row))


def show_summary(summary: PrepareSummary, *, stream: TextIO | None = None) -> None:
    """Print what `prepare` found: one line a source, then duplicates, lengths and packing.

    Args:
        summary: of `prepare`.
        stream: where to print. None: standard output.
    """
    console = _console(stream)
    console.print(_source_table(summary))
    console.print(_figures(summary))
    for example in summary.examples:
        kind = "repeats" if example.exact else f"resembles ({example.similarity:.2f})"
        console.print(Text(printable(f"  {example.where} {kind} {example.first}")))


def legend(mask_rate: float) -> Text:
    """Return what the marks mean."""
    return Text.assemble(
        "legend: ",
        ("{prompt}", STYLES["prompt"]),
        "  ",
        ("trainable", STYLES["trainable"]),
        "  ",
        (f"[masked at t = {mask_rate:g}]", f"{STYLES['trainable']} {MASKED}"),
        "  ",
        ("<EOS>", STYLES["eos"]),
        "  ",
        ("<fill>", STYLES["fill"]),
        " (EOS up to a block)  ",
        ("~padding", STYLES["padding"]),
        "   | between tokens",
    )


def row_text(row: ShownRow) -> Text:
    """Return one row: a heading, then each document with its tokens in stretches of one role."""
    held = sum(token.role != "padding" for token in row.tokens)
    learnt = sum(token.role in ("trainable", "eos", "fill") for token in row.tokens)
    masked = sum(token.masked for token in row.tokens)
    text = Text(
        printable(
            f"\nrow {row.number} of {row.source}: {held} of {len(row.tokens)} positions hold tokens, {learnt} "
            f"trainable, {masked} masked (packed from the first {row.documents_read} documents)"
        ),
        style="bold",
    )
    text = Text.assemble(text, "\n")
    place = 0
    for document, group in groupby(row.tokens, key=lambda token: token.document):
        tokens = list(group)
        name = "padding" if document < 0 else f"document {document}"
        text.append(f"  -- {name}, positions {place} to {place + len(tokens) - 1}\n", style="dim")
        text.append("  ")
        for (role, hidden), run in groupby(tokens, key=lambda token: (token.role, token.masked)):
            _append_run(text, list(run), role=role, hidden=hidden)
        text.append("\n")
        place += len(tokens)
    return text


def _append_run(text: Text, tokens: Sequence[ShownToken], *, role: str, hidden: bool) -> None:
    style = f"{STYLES[role]} {MASKED}" if hidden else STYLES[role]
    if role == "padding":
        text.append(f"~padding x {len(tokens)}", style=style)
        return
    marks = {"eos": "<EOS>", "fill": "<fill>"}
    inside = "|".join(marks.get(role) or escaped(token.text) for token in tokens)
    opened, closed = ("[", "]") if hidden else ("{", "}") if role == "prompt" else ("", "")
    text.append(f"{opened}{inside}{closed}", style=style)
    text.append("|", style="dim")


def escaped(text: str) -> str:
    r"""Return the text on one line: line breaks and tabs as \n and \t, control characters replaced."""
    return printable(text.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t"))


def _console(stream: TextIO | None) -> Console:
    console = Console(file=stream or sys.stdout, highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console = Console(file=stream or sys.stdout, highlight=False, soft_wrap=True, width=_WIDTH, no_color=True)
    return console


def _source_table(summary: PrepareSummary) -> Table:
    table = Table(box=box.SIMPLE, pad_edge=False)
    table.add_column("source", overflow="fold")
    for name in ("weight", "format", "documents", "training", "tokens", "trainable", "validation", "tokens "):
        table.add_column(name, justify="left" if name == "format" else "right")
    for source in summary.sources:
        formats = ", ".join(
            dict.fromkeys(
                f"{found.format}{' ' + found.compression if found.compression else ''}" for found in source.files
            )
        )
        table.add_row(
            printable(source.path),
            "-" if source.weight is None else f"{source.weight:g}",
            f"{formats}: {source.kind}",
            *(
                f"{number:,}"
                for number in (
                    source.documents,
                    source.train_documents,
                    source.tokens,
                    source.trainable,
                    source.validation_documents,
                    source.validation_tokens,
                )
            ),
        )
    return table


def _figures(summary: PrepareSummary) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column()
    table.add_column(overflow="fold")
    copies = f"{summary.exact_duplicates:,}"
    if summary.exact_duplicates:
        copies += f" ({summary.dropped_duplicates:,} left out)"
    table.add_row("exact duplicates", copies)
    near = "not looked for" if summary.near_duplicates is None else f"{summary.near_duplicates:,}"
    table.add_row(f"near duplicates (>= {summary.near_threshold:g})", near)
    row = f"rows of {summary.row_length}"
    table.add_row(f"{row}: texts that are split", f"{summary.split_texts:,}")
    table.add_row(
        f"{row}: answers that are dropped", f"{summary.overlong_answers:,} ({summary.overlong_tokens:,} tokens)"
    )
    for name, rows in (("best_fit", summary.rows_best_fit), ("greedy", summary.rows_greedy)):
        table.add_row(f"{row}: {name}", f"{rows:,} rows, fill {summary.fill_rate(rows):.1%}")
    if summary.without_eos:
        table.add_row("rows of ids without EOS", f"{summary.without_eos:,}")
    table.add_row("seconds", f"{summary.seconds:.1f}")
    table.add_row("written to", printable(str(summary.folder)))
    return table
