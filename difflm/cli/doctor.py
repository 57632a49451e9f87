"""`difflm doctor`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from difflm.cli.options import folder


@click.command()
@click.option(
    "--output", type=folder(), show_default="the current folder", help="Folder that runs would be written to."
)
@click.option("--json/--table", "as_json", default=False, show_default=True, help="Print JSON, or a table.")
def doctor(*, output: Path | None, as_json: bool) -> int:
    """Try what difflm needs on this machine: versions, threads, dtypes, attention backends, memory, disk.

    Exit code 0: everything works that was tried; 1: something does not.
    """
    from difflm.doctor import examine, finding_lines, findings_tree, healthy

    found = examine(output)
    click.echo(json.dumps(findings_tree(found), indent=1) if as_json else "\n".join(finding_lines(found)))
    return 0 if healthy(found) else 1
