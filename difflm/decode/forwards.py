"""How the model is run on the rows of a forward: as they are, or padded to few shapes, compiled or recorded as graphs.

Shape legend: see `difflm.types`; N rows and S segments of one forward, T entries of the cache.
"""

# torch.compile and its settings are partly untyped.
# pyright: reportUnknownMemberType=false, reportUnknownLambdaType=false, reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor

from difflm.decode.packing import Packed, noisy_rows, parts_of, segments_of
from difflm.decode.work import Work
from difflm.errors import ConfigError, RequestError
from difflm.models.cache import CachePool, PackedAttention
from difflm.models.segments import SegmentAttention, Segments, kernel_for
from difflm.models.transformer import Transformer

Execution = Literal["plain", "compiled", "graphs"]

ROWS = 32
"""Numbers of rows are rounded up to multiples of it, and of a quarter of the power of two below them."""
SHAPES = 64
"""Shapes that may be compiled; torch gives up at 8 unless told otherwise."""
MOST_RECORDED = 1024
"""Rows of the largest forward that is recorded as a graph: larger ones keep a GPU busy without."""


class Forward(Protocol):
    """Runs the rows of the works through the model; their keys and values are in the cache afterwards."""

    def __call__(self, works: Sequence[Work], rows: Packed) -> Tensor:
        """Return the final hidden states, [N, D]."""
        ...


@dataclass(frozen=True, slots=True)
class PlainForward:
    """The rows as they are, a call of the attention kernel for each part of them.

    Attributes:
        model: the transformer.
        pool: the cache.
    """

    model: Transformer
    pool: CachePool

    def __call__(self, works: Sequence[Work], rows: Packed) -> Tensor:
        """Return the final hidden states, [N, D]."""
        device, columns = self.pool.key.device, [rows.tokens, rows.positions, rows.entries]
        adapter = self._adapter(works, rows)
        # One transfer for all of them.
        token_N, position_N, entry_N, *noisy = torch.tensor(
            [*columns, adapter] if isinstance(adapter, list) else columns, device=device
        )
        parts = [part for work, first in zip(works, rows.firsts, strict=True) for part in parts_of(work, first, device)]
        attend = PackedAttention(self.pool, entry_N, parts)
        if adapter is None:
            return self.model(token_N[None], position_N[None], attend)[0]
        acts = noisy[0][None].bool() if isinstance(adapter, list) else adapter
        return self.model(token_N[None], position_N[None], attend, adapter=acts)[0]

    def _adapter(self, works: Sequence[Work], rows: Packed) -> slice | list[int] | None:
        """Return the rows that the adapter acts on: a run, a flag for each, or None, what it does by itself."""
        if not drafts(self.model, works):
            return None
        with_some = [number for number, work in enumerate(works) if len(work.tokens) > work.num_clean]
        if len(with_some) > 1:
            return noisy_rows(works)
        first, work = rows.firsts[with_some[0]], works[with_some[0]]
        return slice(first + work.num_clean, first + len(work.tokens))


def drafts(model: Transformer, works: Sequence[Work]) -> bool:
    """Return whether a forward has rows that the model's adapter, being for noisy rows alone, acts on."""
    return model.adapter_gate == "noisy" and any(len(work.tokens) > work.num_clean for work in works)


Body = Callable[..., Tensor]
"""Tokens, positions and the tensors of `Segments` to hidden states: the same computation for the same shapes."""


def body_of(model: Transformer, pool: CachePool, *, gated: bool = False) -> Body:
    """Return the model over a cache as a function of tensors alone.

    Args:
        model: the transformer.
        pool: the cache; must not grow any more.
        gated: whether the model's adapter acts on the noisy rows, which are then the third input (1, else 0), instead
            of where it does by itself.
    """
    kernel = kernel_for(pool.key.device, pool.key.dtype)
    key, value = pool.key, pool.value

    def body(token_N: Tensor, position_N: Tensor, *more: Tensor) -> Tensor:
        attend = SegmentAttention(key, value, Segments(*more[gated:]), kernel)
        if not gated:
            return model(token_N[None], position_N[None], attend)[0]
        return model(token_N[None], position_N[None], attend, adapter=more[0][None].bool())[0]

    return body


@dataclass(frozen=True, slots=True)
class PaddedForward:
    """The rows, padded to one of few shapes.

    Rows that fill up are token 0 at position 0; they see and overwrite the last entry of the cache, which is nobody's.

    Attributes:
        model: the transformer.
        body: what runs; see `body_of`.
        gated: what runs where the model's adapter acts on noisy rows alone, and there are some.
        entries: of the cache.
        device: of the tensors.
    """

    model: Transformer
    body: Body
    gated: Body
    entries: int
    device: torch.device

    def __call__(self, works: Sequence[Work], rows: Packed) -> Tensor:
        """Return the final hidden states of the rows without the padding, [N, D]."""
        count, last = len(rows.tokens), self.entries - 1
        missing = padded_count(count) - count
        gated = drafts(self.model, works)
        columns = [rows.tokens, rows.positions, *([noisy_rows(works)] if gated else []), rows.entries]
        nowhere = [0] * (len(columns) - 1) + [last]
        padded = [own + [filler] * missing for own, filler in zip(columns, nowhere, strict=True)]
        segments = [each for work in works for each in segments_of(work)] + [(missing, last, 1)]
        # Blocks make few segments, single rows (causal attention) as many as there are rows: two shapes, no more.
        few = (count + missing) // 4
        segments += [(0, last, 1)] * ((few if len(segments) <= few else count + missing + 1) - len(segments))
        firsts = [0]
        for size, _, _ in segments:
            firsts.append(firsts[-1] + size)
        bases, seen = [base for _, base, _ in segments], [number for _, _, number in segments]
        inputs = torch.tensor(padded, device=self.device).unbind()
        table = torch.tensor([firsts, [*bases, self.entries], [*seen, 1]], device=self.device, dtype=torch.int32)
        body = self.gated if gated else self.body
        hidden_ND = body(*inputs, table[0], table[1], table[2, :-1])
        return hidden_ND[:count]


def padded_count(count: int) -> int:
    """Return the number of rows that `count` rows are padded to: at most a quarter more, from `ROWS` on."""
    unit = max(ROWS, 1 << max(0, count.bit_length() - 3))
    return -(-count // unit) * unit


class CompiledBody:
    """A body under torch.compile, as a whole and for fixed shapes.

    Args:
        body: computes.
        backend: of torch.compile.
    """

    def __init__(self, body: Body, *, backend: str | Callable[..., Any] = "inductor") -> None:
        # Imported here: the compiler takes seconds to load.
        from torch._dynamo.exc import TorchDynamoException
        from torch.compiler import config

        self._refused: type[Exception] = TorchDynamoException
        self._more_shapes: Callable[[], AbstractContextManager[None]] = lambda: config.patch(recompile_limit=SHAPES)
        self._compiled: Body = torch.compile(body, dynamic=False, fullgraph=True, backend=backend)

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Return the hidden states.

        Raises:
            ConfigError: the model does something that cannot be compiled.
        """
        try:
            with self._more_shapes():
                return self._compiled(*inputs)
        except self._refused as error:
            reason = str(error).strip().splitlines()[0]
            raise ConfigError(f"execution: this model cannot be compiled here ({reason}); use 'plain'") from error


Recorder = Callable[[Callable[[], Tensor]], tuple[Callable[[], None], Tensor]]
"""Runs a computation and returns what repeats it and where its result lies after each repetition."""


def record_cuda(compute: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
    """Return the replay of a CUDA graph, and its result.

    Args:
        compute: only launches kernels, on tensors that stay where they are.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):  # libraries and allocator settle
            compute()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = compute()
    return graph.replay, result


@dataclass(slots=True)
class RecordedBody:
    """A body that is recorded once per shape and repeated on the tensors of the recording.

    Attributes:
        body: computes.
        record: see `Recorder`.
        most: rows of the largest forward that is recorded; larger ones are computed as they are.
        recorded: by shapes: input tensors, what repeats the computation, its result.
    """

    body: Body
    record: Recorder = record_cuda
    most: int = MOST_RECORDED
    recorded: dict[tuple[int, int], tuple[tuple[Tensor, ...], Callable[[], None], Tensor]] = field(
        default_factory=dict[tuple[int, int], tuple[tuple[Tensor, ...], Callable[[], None], Tensor]]
    )

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Return the hidden states; they are valid until the next call."""
        if len(inputs[0]) > self.most:
            return self.body(*inputs)
        shape = len(inputs[0]), len(inputs[-1])
        if shape not in self.recorded:
            own = tuple(each.clone() for each in inputs)
            self.recorded[shape] = own, *self.record(lambda: self.body(*own))
        own, repeat, result = self.recorded[shape]
        for mine, given in zip(own, inputs, strict=True):
            mine.copy_(given)
        repeat()
        return result


def forward_for(execution: Execution, model: Transformer, pool: CachePool, *, max_tokens: int) -> Forward:
    """Return how forwards are run.

    Args:
        execution: "plain"; "compiled": by torch.compile, for padded shapes; "graphs": recorded as CUDA graphs.
        model: the transformer.
        pool: its cache; allocated in full here unless plain.
        max_tokens: entries that requests use.

    Raises:
        RequestError: unknown, or not possible on the model's device.
    """
    if execution == "plain":
        return PlainForward(model, pool)
    if execution not in get_args(Execution):
        raise RequestError(f"execution: '{execution}' is unknown; use {', '.join(map(repr, get_args(Execution)))}")
    device = pool.key.device
    if execution == "graphs" and device.type != "cuda":
        raise RequestError(f"execution: 'graphs' needs a CUDA device, the model is on {device}; use 'plain'")
    return padded_forward(model, pool, RecordedBody if execution == "graphs" else CompiledBody, max_tokens=max_tokens)


def padded_forward(
    model: Transformer, pool: CachePool, wrap: Callable[[Body], Body], *, max_tokens: int
) -> PaddedForward:
    """Return padded forwards over a cache, which is allocated in full here: its tensors must stay where they are.

    Args:
        model: the transformer.
        pool: its cache.
        wrap: what becomes of the computation.
        max_tokens: entries that requests use.
    """
    entries = max_tokens + 1
    pool.ensure(entries, most=entries)
    for stored in (pool.key, pool.value):
        stored.zero_()  # a mask multiplies what it hides by 0, which not even hidden NaN may survive
    gated, plain = (wrap(body_of(model, pool, gated=each)) for each in (True, False))
    return PaddedForward(model, plain, gated, entries, pool.key.device)
