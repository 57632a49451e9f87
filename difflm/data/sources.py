"""Text files -> documents: JSONL (`text`, or `prompt` + `completion`) and plain text, one document per file.

A document is never interpreted here, only read and checked; `tokens.py` turns it into ids. Files are read
as bytes and decoded line by line, so that an error names the file and the line.
"""

from __future__ import annotations

import difflib
import glob
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from difflm.errors import DataError

Format = Literal["auto", "jsonl", "text"]

SUFFIXES: dict[str, Literal["jsonl", "text"]] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".txt": "text",
    ".text": "text",
    ".md": "text",
}
"""What `format="auto"` concludes from a file name; any other suffix is refused."""

_FIELDS = ("text", "prompt", "completion")
# Fields of other formats. They change what a record means, so they are refused where metadata is ignored.
_FOREIGN_FIELDS = frozenset(
    {"messages", "conversations", "instruction", "chosen", "rejected", "input_ids", "labels", "loss_mask", "weight"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One document as read: either `text`, or `prompt` and `completion`.

    Attributes:
        text: plain text, every token of which is learnt; None for a prompt with a completion.
        prompt: given text, never learnt; None for plain text.
        completion: the answer to `prompt`, learnt; None for plain text.
        where: "file:line" (JSONL) or "file", for messages.
    """

    text: str | None = None
    prompt: str | None = None
    completion: str | None = None
    where: str = ""

    def __post_init__(self) -> None:
        """Check our own construction: exactly one of the two forms."""
        assert (self.prompt is None) == (self.completion is None), "prompt and completion come together"
        assert (self.text is None) != (self.prompt is None), "text, or prompt and completion"

    @property
    def kind(self) -> str:
        """Return "text" or "prompt + completion"."""
        return "text" if self.text is not None else "prompt + completion"

    @property
    def content_hash(self) -> str:
        """Return a hash of what the document says (not of where it stands): equal documents, equal hashes."""
        # JSON keeps the parts apart: ("ab", "c") and ("a", "bc") differ.
        content = json.dumps([self.text, self.prompt, self.completion])
        return hashlib.sha256(content.encode("ascii")).hexdigest()


def read_documents(paths: str | Path | Sequence[str | Path], *, format: Format = "auto") -> Iterator[Document]:
    """Yield the documents of files, folders (read recursively) and glob patterns, in a reproducible order.

    JSONL has one object a line, with `text`, or with `prompt` and `completion`; blank lines are skipped and
    further fields (metadata) are ignored unless they belong to another format. A plain text file is one
    document. All documents of one call must be of one kind.

    Args:
        paths: file, folder or pattern, or several of them; folders and patterns are sorted by name.
        format: "jsonl", "text", or "auto" to decide by the file's suffix (see `SUFFIXES`).

    Raises:
        DataError: a path that does not exist or is given twice, an empty or binary file, a line that is not
            a JSON object with the right fields, or documents of two kinds. The message names file and line.
    """
    if format not in ("auto", "jsonl", "text"):
        raise DataError(f"data format: {format!r} is unknown; use 'auto', 'jsonl' or 'text'")
    first: Document | None = None
    for file in list_files(paths, format=format):
        reader = _read_jsonl if _format_of(file, format) == "jsonl" else _read_text
        for document in reader(file):
            first = first or document
            if document.kind != first.kind:
                raise DataError(
                    f"{document.where}: a {document.kind} document in data that began with a {first.kind} document "
                    f"({first.where}); train on them separately"
                )
            yield document


def list_files(paths: str | Path | Sequence[str | Path], *, format: Format = "auto") -> list[Path]:
    """Return the data files behind files, folders and glob patterns, each once, in a reproducible order.

    Args:
        paths: file, folder or pattern, or several of them.
        format: as in `read_documents`; decides which files of a folder count as data.

    Raises:
        DataError: a path or pattern without data files, or a file that is named twice.
    """
    entries = [paths] if isinstance(paths, str | Path) else list(paths)
    if not entries:
        raise DataError("data: no file given; name a .jsonl or .txt file, a folder or a pattern")
    files = [file for entry in entries for file in _expand(str(entry), format)]
    seen: set[Path] = set()
    for file in files:
        if file.resolve() in seen:
            raise DataError(f"{file}: the data names this file twice; name it once")
        seen.add(file.resolve())
    return files


def split_validation(
    documents: Iterable[Document], *, fraction: float, seed: int
) -> tuple[list[Document], list[Document]]:
    """Return (training documents, validation documents), split by a hash of each document's content.

    The side depends on the content and the seed alone, not on order or neighbours, so identical documents
    always land on the same side. Should one side come out empty, the one document nearest to the boundary
    moves there (with all its copies).

    Args:
        documents: what to split; order is kept on both sides.
        fraction: expected share of different documents that goes to validation, in [0, 1); 0 means none.
        seed: another seed is another split.

    Raises:
        DataError: `fraction` out of range, or fewer than two different documents to split.
    """
    if not 0.0 <= fraction < 1.0:
        raise DataError(f"validation fraction: {fraction} is out of range; use a share of at least 0 and below 1")
    documents = list(documents)
    if fraction == 0.0:
        return documents, []
    rank = [_rank(document, seed) for document in documents]
    different = sorted(set(rank))
    if len(different) < 2:
        where = documents[0].where if documents else "data"
        raise DataError(
            f"{where}: {len(different)} different document(s) cannot be split into training and validation; "
            "name a validation file, set the validation fraction to 0, or cut the text into several documents"
        )
    boundary = int(fraction * 2**64)
    # At least the lowest-ranked document validates, and at least the highest-ranked one trains.
    boundary = min(max(boundary, different[0] + 1), different[-1])
    training = [document for document, place in zip(documents, rank, strict=True) if place >= boundary]
    validation = [document for document, place in zip(documents, rank, strict=True) if place < boundary]
    return training, validation


def check_disjoint(training: Iterable[Document], validation: Iterable[Document]) -> None:
    """Refuse validation documents that also occur, word for word, in the training documents.

    Raises:
        DataError: names the first shared document on both sides.
    """
    trained = {document.content_hash: document.where for document in training}
    for document in validation:
        if document.content_hash in trained:
            raise DataError(
                f"{document.where}: this validation document is also a training document "
                f"({trained[document.content_hash]}); remove it from one of the two"
            )


def _rank(document: Document, seed: int) -> int:
    """Return the document's place in [0, 2**64), a pure function of content and seed."""
    digest = hashlib.blake2b(f"{seed}:{document.content_hash}".encode("ascii"), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def _expand(entry: str, format: Format) -> list[Path]:
    path = Path(entry)
    if path.is_file():
        return [path]
    if path.is_dir():
        found = [file for file in sorted(path.rglob("*")) if file.is_file() and _is_data(file, path, format)]
        if not found:
            raise DataError(f"{path}: the folder holds no data file ({', '.join(SUFFIXES)})")
        return found
    if glob.has_magic(entry):
        found = [Path(name) for name in sorted(glob.glob(entry, recursive=True)) if Path(name).is_file()]
        if not found:
            raise DataError(f"{entry}: no file matches the pattern")
        return found
    if path.exists():
        raise DataError(f"{path}: not a regular file; name a .jsonl or .txt file, a folder or a pattern")
    raise DataError(f"{path}: no such file or folder; name a .jsonl or .txt file, a folder or a pattern")


def _is_data(file: Path, folder: Path, format: Format) -> bool:
    """Return whether a file found in a folder counts as data: known suffix, nothing hidden on the way."""
    if any(part.startswith(".") for part in file.relative_to(folder).parts):
        return False
    found = SUFFIXES.get(file.suffix.lower())
    return found is not None and format in ("auto", found)


def _format_of(file: Path, format: Format) -> Literal["jsonl", "text"]:
    if format != "auto":
        return format
    suffix = file.suffix.lower()
    if suffix not in SUFFIXES:
        raise DataError(
            f"{file}: cannot tell the format from the suffix {suffix!r}; use {', '.join(SUFFIXES)}, "
            "or name the format (data.format=jsonl or text)"
        )
    return SUFFIXES[suffix]


def _read_text(file: Path) -> Iterator[Document]:
    text = _decode(_read_bytes(file), str(file)).removeprefix("\ufeff").replace("\r\n", "\n")
    if not text.strip():
        raise DataError(f"{file}: the file is empty; a plain text file is one document and needs text")
    yield Document(text=text, where=str(file))


def _read_jsonl(file: Path) -> Iterator[Document]:
    first: Document | None = None
    # Lines end at \n only: U+2028 and friends may stand unescaped inside a JSON string.
    for number, line in enumerate(_read_bytes(file).split(b"\n"), start=1):
        where = f"{file}:{number}"
        text = _decode(line, where)
        if number == 1:
            text = text.removeprefix("\ufeff")
        if not text.strip():
            continue
        document = _parse_record(text, where)
        first = first or document
        if document.kind != first.kind:
            raise DataError(
                f"{where}: a {document.kind} document in a file that began with a {first.kind} document "
                f"({first.where}); one file holds one kind"
            )
        yield document
    if first is None:
        raise DataError(f"{file}: the file is empty; JSONL needs one object a line")


def _parse_record(line: str, where: str) -> Document:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not valid JSON ({error}); each line is one JSON object") from None
    if not isinstance(record, dict):
        raise DataError(f"{where}: the line is {_describe(record)}, not a JSON object with 'text' (or 'prompt', ...)")
    _check_fields(record, where)
    values = {name: _string(record, name, where) for name in _FIELDS if name in record}
    return Document(**values, where=where)


def _check_fields(record: dict[str, object], where: str) -> None:
    present = [name for name in _FIELDS if name in record]
    foreign = sorted(_FOREIGN_FIELDS & record.keys())
    expected = "expected 'text', or 'prompt' and 'completion'"
    if foreign:
        raise DataError(f"{where}: field {foreign[0]!r} belongs to a format that is not read here; {expected}")
    if present in (["text"], ["prompt", "completion"]):
        return
    if "text" in present:
        raise DataError(f"{where}: fields {', '.join(map(repr, present))} together are ambiguous; {expected}")
    missing = [name for name in ("prompt", "completion") if name not in present] if present else ["text"]
    others = [name for name in record if name not in _FIELDS]
    near = difflib.get_close_matches(missing[0], others, n=1)
    hint = f" (is {near[0]!r} a misspelling?)" if near else ""
    found = ", ".join(map(repr, list(record)[:8])) or "no field"
    raise DataError(f"{where}: field {missing[0]!r} is missing, found {found}{hint}; {expected}")


def _string(record: dict[str, object], name: str, where: str) -> str:
    value = record[name]
    if not isinstance(value, str):
        raise DataError(f"{where}: field {name!r} is {_describe(value)}; it must be a string")
    # An empty prompt is a way to say "no prompt"; nothing to learn is a mistake.
    if name != "prompt" and not value.strip():
        raise DataError(f"{where}: field {name!r} is empty; remove the line or fill it in")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise DataError(f"{where}: field {name!r} holds half of a surrogate pair, which is not text; repair the line")
    return value


def _describe(value: object) -> str:
    kinds = {dict: "an object", list: "a list", bool: "a boolean", int: "a number", float: "a number"}
    shown = json.dumps(value)
    kind = "null" if value is None else kinds.get(type(value), "a string")
    return f"{kind} ({shown if len(shown) <= 40 else shown[:37] + '...'})"


def _read_bytes(file: Path) -> bytes:
    try:
        content = file.read_bytes()
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}); check the file and its permissions") from None
    if not content:
        raise DataError(f"{file}: the file is empty (0 bytes); give a file with text")
    if b"\0" in content:
        raise DataError(
            f"{file}: looks like a binary file (zero byte at offset {content.index(0)}); data is UTF-8 text"
        )
    return content


def _decode(content: bytes, where: str) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where}: not UTF-8 text (byte 0x{content[error.start]:02x} at offset {error.start}); "
            "a binary file, or text in another encoding"
        ) from None
