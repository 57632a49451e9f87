"""Files -> a folder of tokenised, split, memory-mappable shards. Two passes over the files, in bounded memory.

The first pass reads and hashes (duplicates, the split), the second tokenises and writes. `difflm.training.opening`
reads the folder.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import difflm
from difflm.checkpoints.folders import require_free, staged_folder
from difflm.checkpoints.loading import LoadedModel, load_without_weights
from difflm.checkpoints.tokens import tokenizer_fingerprint
from difflm.data.formats import Format, Found, check_format, listed
from difflm.data.records import Fields, Records
from difflm.data.shards import is_prepared, write_manifest
from difflm.data.sources import detect_all, list_files
from difflm.data.splitting import Split
from difflm.data.tokens import Special
from difflm.errors import ConfigError, DataError
from difflm.training.opening import special_ids
from difflm.training.passes import Plan, Report, Scan, Written, first_pass, second_pass, token_dtype


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceSummary:
    """What became of one path.

    Attributes:
        path: as it was given.
        weight: its share in the mixture; None without weights.
        files: what was concluded about each file.
        kind: "text", "prompt + completion", "messages", "preference pairs", ...
        documents: read.
        train_documents, validation_documents: written to either side; a conversation gives one for each learnt
            message, a preference pair two.
        tokens: on the training side.
        trainable: those of them that are learnt.
        validation_tokens: on the validation side.
    """

    path: str
    weight: float | None
    files: tuple[Found, ...]
    kind: str
    documents: int
    train_documents: int
    validation_documents: int
    tokens: int
    trainable: int
    validation_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A document that repeats (`exact`) or resembles an earlier one: where both stand, their estimated similarity."""

    where: str
    first: str
    similarity: float
    exact: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PrepareSummary:
    """What `prepare` did.

    Attributes:
        folder: where the data is.
        sources: one for each path.
        exact_duplicates: documents that repeat an earlier one word for word.
        dropped_duplicates: those of them that were left out.
        near_duplicates: documents that resemble an earlier one; None if that was not looked for.
        near_threshold: least similarity that counts, 0 to 1.
        examples: of both, the first few.
        without_eos: rows of given ids that do not end in EOS.
        row_length: tokens in a row; the following figures hold for it, on the training side, without EOS fill.
        split_texts: plain texts longer than a row, which training cuts.
        overlong_answers: prompt + completion documents longer than a row, which training leaves out.
        overlong_tokens: their tokens.
        row_tokens: tokens that rows hold.
        rows_best_fit, rows_greedy: rows that either packing makes.
        seconds: how long it took.
    """

    folder: Path
    sources: tuple[SourceSummary, ...]
    exact_duplicates: int
    dropped_duplicates: int
    near_duplicates: int | None
    near_threshold: float
    examples: tuple[Example, ...]
    without_eos: int
    row_length: int
    split_texts: int
    overlong_answers: int
    overlong_tokens: int
    row_tokens: int
    rows_best_fit: int
    rows_greedy: int
    seconds: float

    @property
    def documents(self) -> int:
        """Return the documents read."""
        return sum(source.documents for source in self.sources)

    @property
    def tokens(self) -> int:
        """Return the tokens of the training side."""
        return sum(source.tokens for source in self.sources)

    def fill_rate(self, rows: int) -> float:
        """Return the share of row positions that hold a token, if there are so many rows; 0 for none."""
        return self.row_tokens / (rows * self.row_length) if rows else 0.0


def prepare(
    paths: str | Path | Sequence[str | Path],
    *,
    model: str | Path,
    output: str | Path,
    weights: Sequence[float] = (),
    format: Format = "auto",
    text_field: str = "text",
    records: Records = "auto",
    validation_fraction: float = 0.0,
    split_seed: int = 0,
    drop_duplicates: bool = False,
    near_threshold: float = 0.8,
    shard_tokens: int = 1 << 26,
    row_length: int = 256,
    report: Report | None = None,
) -> PrepareSummary:
    """Tokenise files into a folder that `data.paths` takes, and return what was found on the way.

    Args:
        paths: files, folders or patterns; each is a source of its own.
        model: checkpoint whose tokenizer makes the ids; its weights are not read.
        output: folder to write; absent or empty.
        weights: share of each path in a mixture, in proportion; empty for none.
        format: of the files, "auto" to conclude it from their first rows.
        text_field: name of the field or column with plain text.
        records: what records hold, "auto" to conclude it from their fields.
        validation_fraction: share of the documents that goes to the validation side, by a hash of their content.
        split_seed: seed of that hash.
        drop_duplicates: leave out documents that repeat an earlier one word for word.
        near_threshold: estimated similarity from which two documents count as nearly the same, in (0, 1]; 0 does
            not look for them.
        shard_tokens: tokens of a shard.
        row_length: tokens of the rows for which the packing figures are given.
        report: is told one line at a time what was concluded and what is being done.

    Raises:
        ConfigError: an argument that cannot be used.
        CheckpointError: a model or an output folder that cannot be used.
        DataError: files that cannot be used; nothing is left behind.
    """
    started = time.perf_counter()
    require_free(Path(output))
    plan = check_plan(
        paths,
        weights=weights,
        format=format,
        fields=Fields(text=text_field, records=records),
        split=Split(fraction=validation_fraction, seed=split_seed),
        drop_duplicates=drop_duplicates,
        near_threshold=near_threshold,
        shard_tokens=shard_tokens,
        row_length=row_length,
        report=report or (lambda _: None),
    )
    return _run(plan, load_without_weights(model), Path(output), started)


def _run(plan: Plan, loaded: LoadedModel, output: Path, started: float) -> PrepareSummary:
    special = special_ids(loaded, field="model")
    with staged_folder(output) as stage:
        scratch = stage / "scratch"
        scratch.mkdir()
        plan.report("pass 1 of 2: reading, hashing, looking for duplicates")
        scan = first_pass(plan, scratch)
        shutil.rmtree(scratch)
        plan.report("pass 2 of 2: tokenising, writing")
        written = second_pass(plan, scan, loaded, special, stage)
        summary = _summary(plan, scan, written, folder=output, seconds=time.perf_counter() - started)
        write_manifest(stage, _manifest(plan, scan, written, loaded, special, summary))
    return summary


def check_plan(
    paths: str | Path | Sequence[str | Path],
    *,
    weights: Sequence[float],
    format: Format,
    fields: Fields,
    split: Split,
    drop_duplicates: bool,
    near_threshold: float,
    shard_tokens: int,
    row_length: int,
    report: Report,
) -> Plan:
    """Return the arguments of `prepare` with every file's format concluded and reported.

    Raises:
        ConfigError: a number out of range, or weights that do not belong to the paths.
        DataError: files that cannot be used.
    """
    entries = [str(path) for path in ([paths] if isinstance(paths, str | Path) else paths)]
    if weights and len(weights) != len(entries):
        raise ConfigError(f"weights: {len(weights)} weights for {len(entries)} paths; give one for each path, or none")
    if any(not weight > 0 for weight in weights):
        raise ConfigError(f"weights: {list(weights)} holds one that is not above 0; leave that path out")
    if not 0.0 <= near_threshold <= 1.0:
        raise ConfigError(f"near_threshold: {near_threshold} is out of range; use 0 (off) to 1")
    for name, value in (("shard_tokens", shard_tokens), ("row_length", row_length)):
        if value < 1:
            raise ConfigError(f"{name}: {value} is not usable; give at least 1 token")
    check_format(format)
    for entry in entries:
        if is_prepared(Path(entry)):
            raise DataError(f"{entry}: is a prepared folder already; train on it (data.paths), or name the raw files")
    files = [list_files(entry, format=format) for entry in entries]
    list_files(entries, format=format)  # over all of them: none twice, at least one
    if weights:
        found = [detect_all(each, format=format, fields=fields) for each in files]
    else:
        every = iter(detect_all([file for each in files for file in each], format=format, fields=fields))
        found = [[next(every) for _ in each] for each in files]
    for group in found:
        for line in listed(group):
            report(f"format: {line}")
    return Plan(
        sources=tuple(
            (entry, weights[number] if weights else None, tuple(found[number])) for number, entry in enumerate(entries)
        ),
        fields=fields,
        split=split,
        drop_duplicates=drop_duplicates,
        near_threshold=near_threshold,
        shard_tokens=shard_tokens,
        row_length=row_length,
        report=report,
    )


def _summary(plan: Plan, scan: Scan, written: Written, *, folder: Path, seconds: float) -> PrepareSummary:
    sources = tuple(
        SourceSummary(
            path=path,
            weight=weight,
            files=files,
            kind=kind,
            documents=count,
            train_documents=sides["train"]["documents"],
            validation_documents=sides["validation"]["documents"],
            tokens=sides["train"]["tokens"],
            trainable=sides["train"]["trainable"],
            validation_tokens=sides["validation"]["tokens"],
        )
        for (path, weight, files), kind, count, sides in zip(
            plan.sources, scan.kinds, scan.counts, written.sides, strict=True
        )
    )
    lengths = written.lengths
    places = written.places
    return PrepareSummary(
        folder=folder,
        sources=sources,
        exact_duplicates=len(scan.repeated),
        dropped_duplicates=written.dropped,
        near_duplicates=None if scan.near is None else len(scan.near),
        near_threshold=plan.near_threshold,
        examples=tuple(
            Example(where=places[pair.index], first=places[pair.first], similarity=pair.similarity, exact=pair.exact)
            for pair in scan.pairs
        ),
        without_eos=sum(side["without_eos"] for sides in written.sides for side in sides.values()),
        row_length=plan.row_length,
        split_texts=lengths.split_texts,
        overlong_answers=lengths.overlong_answers,
        overlong_tokens=lengths.overlong_tokens,
        row_tokens=lengths.meter.tokens,
        rows_best_fit=lengths.meter.best_fit_rows(),
        rows_greedy=lengths.meter.greedy_rows,
        seconds=seconds,
    )


def _manifest(
    plan: Plan, scan: Scan, written: Written, loaded: LoadedModel, special: Special, summary: PrepareSummary
) -> dict[str, Any]:
    """Return the content of `manifest.json`."""
    return {
        "difflm": difflm.__version__,
        "dtype": token_dtype(special),
        "tokenizer": {
            "model": loaded.path.name,
            "sha256": tokenizer_fingerprint(loaded.tokenizer, special.mask),
            "vocabulary": special.vocabulary,
            "eos_id": special.eos,
            "mask_id": special.mask,
        },
        "text_field": plan.fields.text,
        "records": plan.fields.records,
        "validation": {
            "fraction": plan.split.fraction,
            "seed": plan.split.seed,
            "rule": "blake2b-64 of '<seed>:<content hash>' below the boundary",
            "boundary": scan.boundary,
        },
        "duplicates": {
            "exact": summary.exact_duplicates,
            "dropped": summary.dropped_duplicates,
            "near": summary.near_duplicates,
            "near_threshold": summary.near_threshold,
        },
        "sources": [
            {
                "path": path,
                "weight": weight,
                "documents": kind,
                "files": [
                    {
                        "path": str(found.file),
                        "found": str(found),
                        "format": found.format,
                        "compression": found.compression,
                        "bytes": scan.states[found.file][0],
                        "sha256": scan.hashes[found.file],
                    }
                    for found in files
                ],
                **sides,
            }
            for (path, weight, files), kind, sides in zip(plan.sources, scan.kinds, written.sides, strict=True)
        ],
    }
