"""The model card (README.md) of a checkpoint that difflm writes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from difflm.checkpoints.config import DIFFUSION_FIELDS, DIFFUSION_TYPES

_CARD = """---
license: {license}
base_model: {parent}
library_name: difflm
tags:
- difflm
- block-diffusion
---

# Block-diffusion model made from {parent}

Made by difflm from the autoregressive checkpoint `{parent}`.

> {warning} Use difflm:
>
> ```python
> import difflm
>
> loaded = difflm.load_model("path/to/this/folder")
> print(difflm.generate(loaded, ["Hello"], difflm.SamplingParams())[0].text)
> ```

## Diffusion fields of config.json

| field | value |
|---|---|
{rows}

## Provenance

| | |
|---|---|
{provenance}

The licence is that of the parent unless stated otherwise; check it before you publish.
"""


_WARNING = "**Warning: do not decode this model left to right.** "
_BOTH_SIDES = "\n> It predicts masked tokens of a block, from both sides."
_KEEPS_TYPE = """The folder keeps the parent's `model_type`
> (`{model_type}`), so an autoregressive library or server (transformers `generate`, vLLM, llama.cpp, ...) loads it
> without complaint and would decode it next token by next token. That is wrong."""
_OWN_TYPE = """Its `model_type` is `{model_type}`; the tensors
> have the names of its autoregressive parent, whose class would load them and decode next token by next token."""


_CAUSAL = """**Left to right this is an autoregressive model.** Its finished rows see earlier ones alone
> (`clean_attention: causal`), so that {by} writes what difflm writes with `decoding="next_token"` and, in fewer
> forwards, `"verified"`. Drafts and blocks of masked tokens are for difflm alone; suppress the mask token elsewhere."""


def model_card(config: Mapping[str, Any]) -> str:
    """Return README.md for a converted checkpoint.

    Args:
        config: its config.json, with the diffusion fields and the `difflm` object.
    """
    record = config.get("difflm") or {}
    parent = record.get("parent") or {}
    values = {name: json.dumps(config.get(name), ensure_ascii=False) for name in DIFFUSION_FIELDS}
    facts = {
        "parent": parent.get("name", "unknown"),
        **({"revision of the parent": parent["revision"]} if parent.get("revision") else {}),
        **{f"sha256 of {name}": digest for name, digest in (parent.get("sha256") or {}).items()},
        **({"left out": f"{len(record['left_out'])} tensors"} if record.get("left_out") else {}),
        "mask row": record.get("mask_init", "unknown"),
        "recipe": json.dumps(record.get("recipe"), ensure_ascii=False),
        "licence": record.get("license") or "unknown",
        "difflm": record.get("version", "unknown"),
    }
    if record.get("merged"):
        facts["mean of"] = ", ".join(str(each["name"]) for each in record["merged"])
    own, kind = config.get("model_type") in DIFFUSION_TYPES, config.get("model_type")
    warning = _WARNING + (_OWN_TYPE if own else _KEEPS_TYPE).format(model_type=kind) + _BOTH_SIDES
    if config.get("clean_attention") == "causal":
        by = "what `difflm export` makes of it" if own else f"the parent's class (`{kind}`)"
        warning = _CAUSAL.format(by=by)
    return _CARD.format(
        license=record.get("license") or "unknown",
        parent=parent.get("name", "unknown"),
        warning=warning,
        rows=_table({f"`{name}`": value for name, value in values.items()}),
        provenance=_table(facts),
    )


def _table(rows: Mapping[str, Any]) -> str:
    """Return rows of a Markdown table; a bar inside a value would end its cell."""
    return "\n".join(f"| {name} | `{str(value).replace('|', chr(92) + '|')}` |" for name, value in rows.items())


_SERVING = "## Engines that serve this folder"
LICENCES = ("LICENSE", "LICENCE", "NOTICE", "COPYING", "USE_POLICY")
"""How names of files with a licence or a notice begin, in any case."""


def with_serving(card: str, engines: Mapping[str, str | Sequence[str]]) -> str:
    """Return a model card with a section on serving; one that it has already is replaced.

    Args:
        card: README.md.
        engines: name and version of an engine -> its launch command, or the reasons why it does not serve the model.
    """
    kept = card.partition(f"{_SERVING}\n")[0].rstrip()
    lines = [_SERVING, ""]
    for title, answer in engines.items():
        text = f"\n\n```bash\n{answer}\n```\n" if isinstance(answer, str) else f": no, {'; '.join(answer)}."
        lines.append(f"- {title}{text}")
    return "\n".join([*([kept, ""] if kept else []), *lines, ""])


def licence_files(folder: Path) -> tuple[Path, ...]:
    """Return the files of a folder that hold a licence or a notice; none for a single file."""
    if not folder.is_dir():
        return ()
    found = (path for path in folder.iterdir() if path.is_file() and path.suffix.lower() in ("", ".md", ".txt"))
    return tuple(sorted(path for path in found if path.name.upper().startswith(LICENCES)))


def licence_of_card(folder: Path) -> str | None:
    """Return the `license` of a README.md's front matter, None where there is none."""
    path = folder / "README.md"
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    if not lines or lines[0].strip() != "---":
        return None
    for line in lines[1:]:
        if line.strip() == "---":
            return None
        name, _, value = line.partition(":")
        if name.strip() == "license" and value.strip():
            return value.strip().strip("'\"")
    return None
