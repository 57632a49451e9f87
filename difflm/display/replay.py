"""Step maps on a terminal: the order in which positions were decided as digits, and the decoding once more, paced."""

from __future__ import annotations

import string
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TextIO

from rich.console import Console

from difflm.decode.events import Denoised, DraftCounts, Drafted, Event
from difflm.display.denoising import Canvas, DenoisingView, recorded_lines
from difflm.display.text import printable

if TYPE_CHECKING:
    from difflm.decode.recorder import Cell, StepMap

DIGITS = string.digits[1:] + string.ascii_lowercase
LEGEND = "1-9a-z: forward of the block that decided the position, + a later one; !: edited since; .: prompt; _: open"
_DRAFT_LEGEND = (
    "1-9a-z: place of the token among those of its forward, + a later one; all but the last were drafts; .: prompt"
)
NARROW = 32


def step_lines(step_map: StepMap) -> list[str]:
    """Return what a request was, and a line for each block: which forward decided each position.

    Args:
        step_map: of a finished request.
    """
    completion = step_map.completion
    lines = [
        printable(f"{step_map.model}, {step_map.policy}, seed {step_map.seed}"),
        f"prompt {len(step_map.prompt)} tokens, answer {completion.num_tokens} in {completion.forwards.denoise} "
        f"denoising forwards, ended by {completion.finish_reason}",
        LEGEND,
    ]
    cells = step_map.cells()
    if any(isinstance(event, Drafted) for event in step_map.events):
        lines[-1:] = [_drafts_line(completion.drafts or DraftCounts(), completion.forwards.commit), _DRAFT_LEGEND]
        cells = _within_forwards(step_map)
    width = step_map.block_size if step_map.block_size > 1 else NARROW
    marked = any(cell.edits for cell in cells)
    for start in range(0, len(cells), width):
        marks = [_mark(cell, marked=marked) for cell in cells[start : start + width]]
        lines.append(f"{start:>6}  {''.join(marks)}".rstrip())
    return lines


def _drafts_line(counts: DraftCounts, verifying: int) -> str:
    """Return what became of the drafts, by their place in a cycle."""
    places = " ".join(f"{share:.2f}" for share in counts.acceptance_at) or "-"
    return (
        f"{verifying} forwards only verified; {counts.accepted} of {counts.drafted} drafts accepted in {counts.cycles} "
        f"cycles, by place: {places}"
    )


def _within_forwards(step_map: StepMap) -> list[Cell]:
    """Return the cells with the place of each token among those of its forward as step."""
    place_of = {
        place: number
        for event in step_map.events
        if isinstance(event, Denoised)
        for number, place in enumerate(event.positions, start=1)
    }
    return [replace(cell, step=place_of.get(cell.position, 0)) for cell in step_map.cells()]


def _mark(cell: Cell, *, marked: bool) -> str:
    if cell.token is None:
        mark = "_"
    elif cell.step == 0:
        mark = "."
    else:
        mark = DIGITS[cell.step - 1] if cell.step <= len(DIGITS) else "+"
    return mark + ("!" if cell.edits else " " if marked else "")


def replay_steps(step_map: StepMap, *, seconds: float = 0.2, file: TextIO | None = None) -> None:
    """Draw the decoding as it happened, one forward after another; away from a terminal, as a line for each.

    Args:
        step_map: of a finished request.
        seconds: between two forwards.
        file: where to write; None is stdout.
    """
    console = Console(file=file or sys.stdout, highlight=False)

    def text(tokens: Sequence[int]) -> str:
        return "".join(step_map.pieces.get(token, f"<{token}>") for token in tokens)

    canvas = Canvas(text, text)
    if console.is_terminal:
        DenoisingView(canvas, console).run(_paced(step_map.events, seconds))
        return
    for line in recorded_lines(canvas, step_map.events):
        print(line, file=console.file)


def _paced(events: Sequence[Event], seconds: float) -> Iterator[Event]:
    for number, event in enumerate(events):
        if number and isinstance(event, Denoised):
            time.sleep(seconds)
        yield event
