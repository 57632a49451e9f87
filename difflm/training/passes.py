"""The two passes of `prepare`: read and hash everything, then read it again, tokenise and write it.

Neither holds more than a batch of documents; what has to be known of all of them stands in temporary files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from difflm.checkpoints.loading import LoadedModel
from difflm.data.documents import Document
from difflm.data.duplicates import ExactDuplicates, Flags, NearDuplicates, Pair, normalised
from difflm.data.fitting import FillMeter
from difflm.data.formats import Found
from difflm.data.records import Fields
from difflm.data.shards import ShardWriter, file_hash
from difflm.data.sources import of_one_kind, read_file
from difflm.data.splitting import Split
from difflm.data.tokens import Special, TokenDocument, token_groups
from difflm.errors import DataError

Report = Callable[[str], None]
"""Is told what is being done, one line at a time."""
_EXAMPLES, _BATCH = 5, 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The arguments of `prepare`, checked.

    Attributes:
        sources: path, weight (None without weights) and files of each source.
        fields: how records are read.
        split: the validation split.
        drop_duplicates: leave out exact copies.
        near_threshold: similarity that counts; 0 does not look.
        shard_tokens: tokens of a shard.
        row_length: of the packing figures.
        report: progress.
    """

    sources: tuple[tuple[str, float | None, tuple[Found, ...]], ...]
    fields: Fields
    split: Split
    drop_duplicates: bool
    near_threshold: float
    shard_tokens: int
    row_length: int
    report: Report


@dataclass(slots=True)
class Scan:
    """What the first pass found.

    Attributes:
        kinds: kind of each source's documents.
        counts: documents of each source.
        states: size and time of change of each file, to see that the second pass reads the same.
        hashes: sha256 of each file.
        repeated, near: documents that repeat or resemble an earlier one.
        pairs: examples of both.
        boundary: rank below which a document validates.
    """

    kinds: list[str] = field(default_factory=list[str])
    counts: list[int] = field(default_factory=list[int])
    states: dict[Path, tuple[int, int]] = field(default_factory=dict[Path, tuple[int, int]])
    hashes: dict[Path, str] = field(default_factory=dict[Path, str])
    repeated: Flags = field(default_factory=lambda: Flags(0))
    near: Flags | None = None
    pairs: list[Pair] = field(default_factory=list[Pair])
    boundary: int = 0


@dataclass(slots=True)
class Lengths:
    """Counts of the training side at one row length."""

    meter: FillMeter
    split_texts: int = 0
    overlong_answers: int = 0
    overlong_tokens: int = 0

    def add(self, group: Sequence[TokenDocument]) -> None:
        """Take in what became of a document, as training would pack it: the sides of a pair together."""
        paired = group[0].side is not None
        for unit in [group] if paired else [(document,) for document in group]:
            self._add(sum(len(document.token) for document in unit), is_answer=unit[0].is_answer)

    def _add(self, length: int, *, is_answer: bool) -> None:
        row = self.meter.row_length
        if length <= row:
            self.meter.add(length)
        elif is_answer:
            self.overlong_answers += 1
            self.overlong_tokens += length
        else:
            self.split_texts += 1
            for start in range(0, length, row):
                self.meter.add(min(row, length - start))


def _documents(plan: Plan, source: int) -> Iterator[Document]:
    _, _, files = plan.sources[source]
    return of_one_kind(document for found in files for document in read_file(found, plan.fields))


def first_pass(plan: Plan, scratch: Path) -> Scan:
    """Read everything once: kinds, counts, hashes of files, duplicates, the boundary of the split."""
    scan = Scan()
    exact = ExactDuplicates(scratch)
    near = NearDuplicates(scratch, plan.near_threshold) if plan.near_threshold else None
    waiting: list[bytes] = []
    for number, (path, weight, files) in enumerate(plan.sources):
        for found in files:
            scan.states[found.file], scan.hashes[found.file] = _state(found.file), file_hash(found.file)
        count, kind = 0, ""
        for document in _documents(plan, number):
            if not count:
                plan.report(f"documents: {path}: {document.kind}")
            count, kind = count + 1, document.kind
            content = document.content
            exact.add(content)
            plan.split.see(content, document.where)
            if near is not None:
                waiting.append(_compared(document))
            if near is not None and len(waiting) >= _BATCH:
                near.add(waiting)
                waiting.clear()
        scan.counts.append(count)
        scan.kinds.append(kind)
        if weight is None and kind != scan.kinds[0]:
            raise DataError(
                f"{path}: {kind} documents beside {scan.kinds[0]} documents ({plan.sources[0][0]}); prepare them "
                "separately, or give each path its weight"
            )
    scan.boundary = plan.split.boundary()
    scan.repeated, scan.pairs = exact.finish(examples=_EXAMPLES)
    if near is not None:
        near.add(waiting)
        scan.near, pairs = near.finish(skip=scan.repeated, examples=_EXAMPLES)
        scan.pairs += pairs
    return scan


def _compared(document: Document) -> bytes:
    """Return what near duplicates are looked for in: the text, or the bytes of given ids."""
    if document.token is not None:
        return b"".join(token.to_bytes(4, "little") for token in document.token)
    return normalised(document.said())


def _state(file: Path) -> tuple[int, int]:
    stat = file.stat()
    return stat.st_size, stat.st_mtime_ns


@dataclass(slots=True)
class Written:
    """What the second pass wrote: the sides of each source, row figures, places of the examples."""

    lengths: Lengths
    sides: list[dict[str, dict[str, Any]]] = field(default_factory=list[dict[str, dict[str, Any]]])
    places: dict[int, str] = field(default_factory=dict[int, str])
    dropped: int = 0


def second_pass(plan: Plan, scan: Scan, loaded: LoadedModel, special: Special, folder: Path) -> Written:
    """Read everything again, tokenise it and write shards."""
    written = Written(lengths=Lengths(FillMeter(plan.row_length)))
    wanted = {number for pair in scan.pairs for number in (pair.index, pair.first)}
    base = 0
    for number, (_, _, files) in enumerate(plan.sources):
        writers = {
            side: ShardWriter(
                folder,
                f"{side}-{number:03d}",
                dtype=token_dtype(special),
                shard_tokens=plan.shard_tokens,
                eos_id=special.eos,
                ends=special.ends,
                files=[str(found.file) for found in files],
            )
            for side in ("train", "validation")
        }
        tokenised = token_groups(_documents(plan, number), loaded, special)
        for index, group in enumerate(tokenised, start=base):
            if index >= base + scan.counts[number]:
                break  # the file grew, which is refused below
            if index in wanted:
                written.places[index] = group[0].where
            if plan.drop_duplicates and scan.repeated[index]:
                written.dropped += 1
                continue
            validates = plan.split.rank(group[0].content) < scan.boundary
            for document in group:
                writers["validation" if validates else "train"].add(document)
            if not validates:
                written.lengths.add(group)
        base += scan.counts[number]
        written.sides.append({side: writer.finish() for side, writer in writers.items()})
    for file, state in scan.states.items():
        if _state(file) != state:
            raise DataError(f"{file}: changed while it was read; start again when it is complete")
    return written


def token_dtype(special: Special) -> str:
    """Return the smallest type that holds every id of the vocabulary."""
    return "uint16" if special.vocabulary is not None and special.vocabulary <= 1 << 16 else "uint32"
