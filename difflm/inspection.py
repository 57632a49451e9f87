"""Looking inside: an attention mask as a picture, a packed row as a table, the key map of a checkpoint. Plain lines.

Shape legend: see `difflm.types`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from difflm.checkpoints.families import model_config
from difflm.checkpoints.rules import Change, FusedQKV, InterleaveRotary, KeyRule, Rename, StackExperts
from difflm.checkpoints.source import open_checkpoint, parameter_shapes
from difflm.diffusion.masks import block_numbers, document_positions, layout_mask, materialise
from difflm.errors import ConfigError
from difflm.training.preview import ShownRow
from difflm.types import PADDING, BlockOrigin, Layout, Parametrisation

WIDEST = 256
"""Model rows of the largest mask that is drawn: one column each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Glyphs:
    """Characters of a mask's cells.

    Attributes:
        noisy: a noisy query (or the only stream) sees a key of its own stream.
        earlier: a noisy query sees a clean key.
        clean: a clean query sees a clean key.
        hidden: the query does not see the key.
    """

    noisy: str
    earlier: str
    clean: str
    hidden: str


ASCII = Glyphs(noisy="n", earlier="c", clean="#", hidden=".")
UNICODE = Glyphs(noisy="\u2592", earlier="\u2588", clean="\u2593", hidden="\u00b7")


def document_ids(lengths: Sequence[int], row_length: int) -> Tensor:
    """Return document numbers of one row, int64 [1, L], the rest padding.

    Args:
        lengths: tokens of each document.
        row_length: L.

    Raises:
        ConfigError: no document, an empty one, or more tokens than the row holds.
    """
    if not lengths or min(lengths) < 1 or sum(lengths) > row_length:
        raise ConfigError(
            f"documents: {', '.join(map(str, lengths)) or 'none'} do not fill a row of {row_length} tokens; "
            "give lengths of at least 1 whose sum is at most the row's"
        )
    document_1L = torch.full((1, row_length), PADDING)
    document_1L[0, : sum(lengths)] = torch.arange(len(lengths)).repeat_interleave(torch.tensor(list(lengths)))
    return document_1L


def layout_of(
    document_BL: Tensor,
    *,
    block_size: int | None,
    parametrisation: Parametrisation = Parametrisation(),
    two_streams: bool = True,
    lookahead: int | None = None,
    origin: BlockOrigin = "document",
) -> Layout:
    """Return the training layout of packed documents.

    Args:
        document_BL: document of each position.
        block_size: S in tokens; None: one block for each document.
        parametrisation: attention inside the streams.
        two_streams: [noisy | clean], else the noisy tokens alone.
        lookahead: see `Layout`.
        origin: where blocks begin to count.

    Raises:
        ConfigError: a block size below 1, or a negative lookahead.
    """
    if block_size is not None and block_size < 1:
        raise ConfigError(f"block_size: {block_size} is below 1; give the block size in tokens")
    if lookahead is not None and lookahead < 0:
        raise ConfigError(f"lookahead: {lookahead} is negative; give how many positions ahead are seen, 0 for none")
    position_BL = document_positions(document_BL)
    size = document_BL.shape[1] if block_size is None else block_size
    return Layout(
        document_BL=document_BL,
        block_BL=block_numbers(position_BL, block_size=size, origin=origin),
        two_streams=two_streams,
        causal_inside=parametrisation.noisy_attention == "causal",
        clean_causal=parametrisation.clean_attention == "causal",
        lookahead=lookahead,
    )


def row_documents(row: ShownRow) -> Tensor:
    """Return the documents of a previewed row, int64 [1, L]."""
    return torch.tensor([[token.document for token in row.tokens]])


def mask_lines(layout: Layout, *, glyphs: Glyphs = UNICODE) -> list[str]:
    """Draw who sees whom in the first row of a layout: a line for each query, a column for each key.

    Columns of different blocks are set apart by a space, the streams by a bar. A heading says document and block of
    each column (the last digit; "-" is padding).

    Args:
        layout: attention structure.
        glyphs: of the cells.

    Raises:
        ConfigError: too wide to be read.
    """
    document_L, block_L = layout.document_BL[0].tolist(), layout.block_BL[0].tolist()
    length, streams = len(document_L), 1 + layout.two_streams
    if streams * length > WIDEST:
        raise ConfigError(f"row_length: {length} draws {streams * length} columns; use at most {WIDEST // streams}")
    names = ("noisy", "clean")[:streams] if layout.two_streams else ("token",)
    mask_NN = materialise(layout_mask(layout), layout.document_BL.shape[0], streams * length)[0, 0]
    position_L = document_positions(layout.document_BL)[0].tolist()
    breaks = [(document_L[i], block_L[i]) != (document_L[i - 1], block_L[i - 1]) for i in range(1, length)]

    def columns(cells: Sequence[str]) -> str:
        halves = []
        for start in range(0, len(cells), length):
            part = cells[start : start + length]
            halves.append(part[0] + "".join(" " * apart + cell for apart, cell in zip(breaks, part[1:], strict=True)))
        return " | ".join(halves)

    padding = [document == PADDING for document in document_L]
    heading = [("-" if gone else str(value % 10)) for gone, value in zip(padding, document_L, strict=True)]
    blocks = [("-" if gone else str(value % 10)) for gone, value in zip(padding, block_L, strict=True)]
    margin = " " * len(_query_name(names[0], 0, 0, 0))
    lines = [
        f"{margin[:-9]}document  {columns(heading * streams)}",
        f"{margin[:-6]}block  {columns(blocks * streams)}",
    ]
    for stream, name in enumerate(names):
        for place in range(length):
            row = mask_NN[stream * length + place].tolist()
            cells = [
                _cell(glyphs, stream, key // length, layout.two_streams) if seen else glyphs.hidden
                for key, seen in enumerate(row)
            ]
            label = _query_name(name, document_L[place], block_L[place], position_L[place])
            lines.append(f"{label} {columns(cells)}")
    return [*lines, *_legend(glyphs, two_streams=layout.two_streams)]


def _query_name(stream: str, document: int, block: int, position: int) -> str:
    if document == PADDING:
        return f"{stream} padding         "
    return f"{stream} d{document:<3} b{block:<4} p{position:<4}"


def _cell(glyphs: Glyphs, query_stream: int, key_stream: int, two_streams: bool) -> str:
    if not two_streams or (query_stream, key_stream) == (0, 0):
        return glyphs.noisy
    return glyphs.earlier if query_stream == 0 else glyphs.clean


def _legend(glyphs: Glyphs, *, two_streams: bool) -> list[str]:
    lines = [f"{glyphs.noisy} a {'noisy query sees a noisy key' if two_streams else 'query sees the key'}"]
    if two_streams:
        lines += [f"{glyphs.earlier} a noisy query sees a clean key", f"{glyphs.clean} a clean query sees a clean key"]
    lines += [f"{glyphs.hidden} not seen", "d document, b block, p position; padding sees padding alone"]
    return lines


def row_lines(row: ShownRow, *, block_size: int | None = None, origin: BlockOrigin = "document") -> list[str]:
    """Return a packed row as a table: place, document, position, block, role, what the noise does, token.

    Args:
        row: of `difflm.training.preview.preview`.
        block_size: S in tokens; None: one block for each document.
        origin: where blocks begin to count.
    """
    layout = layout_of(row_documents(row), block_size=block_size, origin=origin)
    position_L = document_positions(layout.document_BL)[0].tolist()
    lines = [
        f"{row.source}, row {row.number}, {len(row.tokens)} tokens"
        + (f", blocks of {block_size}" if block_size else ", one block for each document"),
        f"{'place':>5}  {'document':>8}  {'position':>8}  {'block':>5}  {'role':<9}  {'noisy':<5}  token",
    ]
    before: tuple[int, int] | None = None
    for place, (token, block, position) in enumerate(
        zip(row.tokens, layout.block_BL[0].tolist(), position_L, strict=True)
    ):
        if before is not None and before != (token.document, block):
            lines.append("")
        before = (token.document, block)
        padding = token.document == PADDING
        facts = ["-", "-", "-"] if padding else [str(token.document), str(position), str(block)]
        lines.append(
            f"{place:>5}  {facts[0]:>8}  {facts[1]:>8}  {facts[2]:>5}  {token.role:<9}  "
            f"{'MASK' if token.masked else '':<5}  {'' if padding else repr(token.text)}"
        )
    counts = Counter(token.role for token in row.tokens)
    masked = sum(token.masked for token in row.tokens)
    return [*lines, f"{', '.join(f'{count} {role}' for role, count in counts.items())}; {masked} masked"]


def key_map_lines(checkpoint: str | Path, *, every_layer: bool = False, revision: str | None = None) -> list[str]:
    """Return where each tensor of a checkpoint goes: names and shapes on disk -> names and shapes of ours, the change.

    Layers and experts that are alike are one line with {l} and {e}.

    Args:
        checkpoint: HF folder, GGUF file or hub id; headers are read, weights are not.
        every_layer: a line for each layer instead.
        revision: commit of a hub id.

    Raises:
        CheckpointError: a checkpoint that cannot be used, tensors that do not fit.
    """
    source = open_checkpoint(checkpoint, revision=revision)
    config = model_config(source.raw, source.where)
    stored = source.parameters(config, merge=False)
    shapes, facts = parameter_shapes(config), stored.weights.facts
    found: dict[tuple[str, ...], int] = {}
    for rule in dict.fromkeys(stored.source.values()):
        disk = [f"{name} {_size(facts[name].shape)} {_dtype(facts[name].dtype)}" for name in rule.disk]
        model = [f"{name} {_size(shapes[name])}" for name in rule.model]
        line = (_patterns(disk, every_layer), _patterns(model, every_layer), _change(rule))
        found[line] = found.get(line, 0) + 1
    lines = [f"{source.path}: {source.family.name}, {len(facts)} tensors on disk, {len(stored)} in the model"]
    for (disk, model, change), count in found.items():
        times = f"  ({count} layers)" if count > 1 else ""
        lines.append(f"{disk}  ->  {model}{f'  [{change}]' if change else ''}{times}")
    if config.tied_embeddings:
        lines.append("head.weight is embedding.weight (tied)")
    unread = sorted(set(facts) - {name for rule in stored.source.values() for name in rule.disk})
    lines += [f"{name} {_size(facts[name].shape)}  not read" for name in unread]
    return lines


def _size(shape: Sequence[int]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _patterns(names: Sequence[str], every_layer: bool) -> str:
    """Return the names as one text, with {e} for experts and {l} for layers, repeated patterns once."""
    folded = [re.sub(r"\bexperts\.\d+\b", "experts.{e}", name) for name in names]
    if not every_layer:
        folded = [re.sub(r"\b(layers|blk)\.\d+\b", r"\1.{l}", name) for name in folded]
    return " + ".join(dict.fromkeys(folded))


def _change(rule: KeyRule) -> str:
    change: Change = rule.change
    match change:
        case Rename():
            return ""
        case InterleaveRotary():
            return "rows: adjacent pairs -> half-split pairs"
        case FusedQKV():
            return "split into query, key, value"
        case StackExperts(parts=parts):
            return "experts stacked" if parts == 1 else f"experts stacked, {parts} parts below each other"
        case _:
            return type(change).__name__
