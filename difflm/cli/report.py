"""`difflm report`."""

from __future__ import annotations

from pathlib import Path

import click

from difflm.cli.options import folder


@click.command()
@click.argument("run", type=folder())
@click.option("--output", type=folder(), show_default="report.html in RUN", help="HTML file to write.")
def report(run: Path, *, output: Path | None) -> None:
    """Write a run folder as one HTML page: curves, tables, configuration; it needs nothing else to be read."""
    from difflm.reporting.page import write_report

    click.echo(write_report(run, output))
