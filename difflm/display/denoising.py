"""Terminal view of a block as it denoises. Fed by events, it changes nothing.

Everything that a model wrote is shown as text: no markup, no control characters reach the terminal.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from difflm.decode.events import Committed, Completion, Denoised, Drafted, Edited, Event, Finished
from difflm.display.text import printable

if TYPE_CHECKING:
    from difflm.checkpoints.loading import LoadedModel

Decode = Callable[[Sequence[int]], str]
PieceKind = Literal["committed", "decided", "fresh", "open", "draft"]

STYLES: dict[str, str] = {"committed": "", "decided": "cyan", "fresh": "bold green", "open": "dim", "draft": "dim"}


def decoder_of(loaded: LoadedModel, *, special: bool) -> Decode:
    """Return what turns token ids into text; ids in angle brackets where the model has no tokenizer.

    Args:
        loaded: the model.
        special: show special tokens such as EOS.
    """
    if loaded.tokenizer is None:
        return lambda tokens: "".join(f"<{token}>" for token in tokens)
    return lambda tokens: loaded.decode(tokens, skip_special_tokens=not special)


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of text in one state: committed, decided earlier or by the last forward, open (masked), or a draft."""

    text: str
    kind: PieceKind


@dataclass(slots=True)
class Canvas:
    """What is known of one completion, put together from its events. Knows no terminal.

    Attributes:
        decode: token ids to text, for the final text.
        decode_all: the same, special tokens included, for a block that is not final.
        mask: how an undecided position is drawn.
        forwards: denoising forwards so far.
        num_decided: tokens decided so far.
        block: number of the current block.
        committed: final tokens.
        drafted, accepted: drafts that a forward verified, and those of them that it kept.
    """

    decode: Decode
    decode_all: Decode
    mask: str = "_"
    forwards: int = 0
    num_decided: int = 0
    block: int = 0
    committed: list[int] = field(default_factory=list[int])
    drafted: int = 0
    accepted: int = 0
    _drafts: dict[int, int] = field(default_factory=dict[int, int])
    _tokens: dict[int, int] = field(default_factory=dict[int, int])
    _fresh: frozenset[int] = frozenset()
    _open: tuple[int, ...] = ()

    def apply(self, event: Event) -> None:
        """Take in an event."""
        if isinstance(event, Denoised):
            self.forwards += 1
            self.num_decided += len(event.positions)
            self.block, self._open, self._fresh = event.block, event.open_positions, frozenset(event.positions)
            decided = dict(zip(event.positions, event.tokens, strict=True))
            self._tokens |= decided
            self.drafted += len(self._drafts)
            self.accepted += sum(decided.get(place) == token for place, token in self._drafts.items())
            self._drafts = {}
        elif isinstance(event, Drafted):
            self._drafts = dict(zip(event.positions, event.tokens, strict=True))
        elif isinstance(event, Edited):
            self._fresh |= frozenset(event.positions)
            for place, token in zip(event.positions, event.tokens, strict=True):
                self._tokens[place] = token
            for place in self._open:
                self._tokens.pop(place, None)  # a policy may open a position again
        elif isinstance(event, Committed):
            self.committed += event.tokens
            self._tokens, self._open = {}, ()
        else:
            self._tokens, self._drafts, self._open = {}, {}, ()

    def pieces(self, *, drafts: bool = True) -> Iterator[Piece]:
        """Yield the text so far: the committed part, then what is provisional in stretches of equal state.

        Args:
            drafts: show what they say; else they are drawn as undecided positions.
        """
        if self.committed:
            yield Piece(self.decode(self.committed), "committed")
        kind: PieceKind = "decided"
        run: list[int] = []
        first = True
        for place in sorted({*self._tokens, *self._open}):
            now: PieceKind = "fresh" if place in self._fresh else "decided" if place in self._tokens else "open"
            if now != kind and run:
                yield self._piece(run, kind, first=first)
                run, first = [], False
            kind = now
            run.append(self._tokens.get(place, -1))
        if run:
            yield self._piece(run, kind, first=first)
        if self._drafts:
            written = [token for _, token in sorted(self._drafts.items())]
            alone = not self.committed and not run
            yield self._piece(written, "draft" if drafts else "open", first=alone, before=run[-1:])

    def _piece(self, run: list[int], kind: PieceKind, *, first: bool, before: Sequence[int] = ()) -> Piece:
        if kind == "open":
            return Piece(self.mask * len(run), kind)
        # Some tokenizers drop the space before the first token of a text, so a run is decoded behind another token.
        anchor = list(before) or self.committed[-1:] or ([] if first else run[:1])
        shown, both = self.decode_all(anchor), self.decode_all([*anchor, *run])
        return Piece(both.removeprefix(shown) if both.startswith(shown) else self.decode_all(run), kind)

    def text(self) -> str:
        """Return the text so far on one line, newlines written as \\n."""
        return printable("".join(piece.text for piece in self.pieces(drafts=False))).replace("\n", "\\n")


def canvas_of(loaded: LoadedModel) -> Canvas:
    """Return an empty canvas for completions of this model."""
    return Canvas(decoder_of(loaded, special=False), decoder_of(loaded, special=True))


def recording(loaded: LoadedModel, events: Iterable[Event], *, width: int = 100) -> list[str]:
    """Return a decoding as plain lines: the number of each denoising forward and the text after it.

    Args:
        loaded: the model that decodes.
        events: of one request, e.g. from `Engine.stream`.
        width: longest line, characters; of a longer text the end is shown.
    """
    return recorded_lines(canvas_of(loaded), events, width=width)


def recorded_lines(canvas: Canvas, events: Iterable[Event], *, width: int = 100) -> list[str]:
    """Return what `recording` does, drawn on a canvas of one's own.

    Args:
        canvas: an empty one.
        events: of one request.
        width: longest line, characters.
    """
    lines = list[str]()
    for event in events:
        canvas.apply(event)
        if isinstance(event, Drafted):
            # They belong to the forward whose line stands there, if its tokens were final at once.
            drawn = f"{canvas.forwards:>4}  "
            lines[:] = lines[: len(lines) - (bool(lines) and lines[-1].startswith(drawn))]
            lines.append(drawn + _tail(canvas.text(), width - 6))
        # The line of a block's last forward is written when the block is final, without what an EOS cuts off.
        if isinstance(event, Committed) or (isinstance(event, Denoised) and event.open_positions):
            lines.append(f"{canvas.forwards:>4}  {_tail(canvas.text(), width - 6)}")
    return lines


def _tail(text: str, width: int) -> str:
    return text if len(text) <= width else "..." + text[len(text) - width + 3 :]


class DenoisingView:
    """Draws one completion on a terminal: finished lines scroll up, the current block denoises below them.

    Args:
        canvas: an empty one.
        console: where to draw; a terminal.
    """

    def __init__(self, canvas: Canvas, console: Console) -> None:
        self.canvas = canvas
        self.console = console
        self.started = time.perf_counter()
        self._scrolled = 0  # characters of the final text that have left the live region

    def run(self, events: Iterable[Event]) -> Completion:
        """Draw the events as they come and return the completion."""
        completion: Completion | None = None
        with Live(console=self.console, auto_refresh=False, transient=True) as live:
            for event in events:
                self.canvas.apply(event)
                if isinstance(event, Finished):
                    completion = event.completion
                if isinstance(event, Committed):
                    self._scroll()
                live.update(self.picture(), refresh=True)
        assert completion is not None, "the events ended before the request was finished"
        self.console.print(Text(self._waiting()))
        return completion

    def _waiting(self) -> str:
        return printable(self.canvas.decode(self.canvas.committed))[self._scrolled :]

    def _scroll(self) -> None:
        """Print the lines that are final, so that the live region stays small."""
        final, newline, _ = self._waiting().rpartition("\n")
        if newline:
            self.console.print(Text(final))
            self._scrolled += len(final) + 1

    def picture(self) -> Group:
        """Return the live region: the text that has not scrolled away, and a line of figures."""
        text, skip = Text(), self._scrolled
        for piece in self.canvas.pieces():
            shown = printable(piece.text)
            text.append(shown[skip:] if piece.kind == "committed" else shown, style=STYLES[piece.kind])
        # Of a paragraph higher than the screen the end is shown, as the last lines are the ones that change.
        room = self.console.width * max(self.console.height - 4, 1)
        seconds = max(time.perf_counter() - self.started, 1e-9)
        rate = self.canvas.num_decided / max(self.canvas.forwards, 1)
        canvas = self.canvas
        at = f"drafts {canvas.accepted}/{canvas.drafted}" if canvas.drafted else f"block {canvas.block}"
        figures = (
            f"{at}  forward {canvas.forwards}  {rate:.1f} tokens/forward  {canvas.num_decided / seconds:.0f} tokens/s"
        )
        return Group(text[-room:] if len(text) > room else text, Text(figures, style="dim"))


def show_denoising(loaded: LoadedModel, events: Iterable[Event], *, file: TextIO | None = None) -> Completion:
    """Draw a decoding as it happens and return its completion. Away from a terminal only the text is printed.

    Args:
        loaded: the model that decodes.
        events: of one request, e.g. from `Engine.stream`.
        file: where to write; None is stdout.
    """
    return show_events(canvas_of(loaded), events, file=file)


def show_events(canvas: Canvas, events: Iterable[Event], *, file: TextIO | None = None) -> Completion:
    """Draw what `show_denoising` does on a canvas of one's own.

    Args:
        canvas: an empty one.
        events: of one request.
        file: where to write; None is stdout.
    """
    console = Console(file=file or sys.stdout, highlight=False)
    if console.is_terminal:
        return DenoisingView(canvas, console).run(events)
    completion: Completion | None = None
    for event in events:
        if isinstance(event, Finished):
            completion = event.completion
    assert completion is not None, "the events ended before the request was finished"
    text = canvas.decode(completion.tokens) if completion.text is None else completion.text
    print(text, file=console.file, flush=True)
    return completion
