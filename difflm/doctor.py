"""What works on this machine: versions, threads, dtypes, attention, memory, disk; what to do where it does not.

Nothing is asserted that was not tried here: dtypes are multiplied, every attention backend computes a small layout and
is compared with the reference. Nothing is downloaded, and no value of a token or key is read.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

import difflm
from difflm.bench.environment import environment, usable_cores
from difflm.diffusion.masks import document_positions
from difflm.errors import ConfigError
from difflm.estimate.facts import available_memory
from difflm.models.attention import AttentionBackend, attention_for
from difflm.types import Layout

Verdict = Literal["ok", "note", "problem"]

LEAST = {"torch": (2, 11), "transformers": (5, 17), "safetensors": (0, 6), "numpy": (2, 0)}
"""Packages without which nothing works, and their oldest versions."""

EXTRAS = {
    "gguf": "gguf", "matplotlib": "plot", "pyarrow": "data", "zstandard": "data", "tensorboard": "tensorboard",
    "wandb": "wandb", "trackio": "trackio",
}  # fmt: skip
"""Optional packages, and the extra of difflm that installs them."""

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2}
"""Largest difference from the reference that is rounding."""

SMALL_DISK = 5 * 2**30
"""Bytes below which a checkpoint of a small model with its optimiser may not fit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        area: what it belongs to.
        name: what was looked at.
        value: what was found.
        verdict: "ok", "note" (works, but worth knowing) or "problem" (does not work).
        advice: what to do; empty where there is nothing.
    """

    area: str
    name: str
    value: str
    verdict: Verdict = "ok"
    advice: str = ""


def examine(folder: Path | None = None) -> list[Finding]:
    """Return everything there is to know about this machine, in the order in which it is read.

    Args:
        folder: where runs are to be written; None: the current one.
    """
    return [
        *versions(),
        *processor(os.environ),
        *waiting(os.environ, load=_load()),
        *dtypes("cpu"),
        *accelerators(),
        *backends("cpu"),
        *(backends("cuda") if torch.cuda.is_available() else ()),
        *memory_and_disk(folder or Path.cwd()),
        *hub(os.environ),
    ]


def versions() -> Iterator[Finding]:
    """Yield the versions of Python, difflm and the packages that it uses; absent ones say what they are for."""
    facts = environment()
    yield Finding(area="versions", name="python", value=str(facts["python"]))
    yield Finding(area="versions", name="difflm", value=difflm.__version__)
    for package, least in LEAST.items():
        found = _version(package)
        wanted = ".".join(map(str, least))
        if found is None or _numbers(found) < least:
            advice = f"pip install '{package}>={wanted}'"
            yield Finding(area="versions", name=package, value=found or "absent", verdict="problem", advice=advice)
        else:
            yield Finding(area="versions", name=package, value=found)
    for package, extra in EXTRAS.items():
        found = _version(package)
        advice = "" if found else f"optional: pip install 'difflm[{extra}]'"
        yield Finding(area="versions", name=package, value=found or "absent", advice=advice)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    parts = version.split("+")[0].split(".")[:2]
    return tuple(int("".join(filter(str.isdigit, part)) or 0) for part in parts)


def processor(environ: Mapping[str, str]) -> Iterator[Finding]:
    """Yield the processor, the cores this process may use, and whether torch uses more threads than that.

    Args:
        environ: environment variables.
    """
    facts, cores, quota = environment(), usable_cores(), cpu_quota()
    yield Finding(area="processor", name="cpu", value=str(facts["processor"]))
    allowed = cores if quota is None else min(cores, max(int(quota), 1))
    limit = f", limited to {quota:g} by the container" if quota is not None and quota < cores else ""
    yield Finding(area="processor", name="cores", value=f"{cores} usable{limit}")
    threads = torch.get_num_threads()
    settings = ", ".join(
        f"{name}={environ[name]}" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if name in environ
    )
    value = f"{threads} of torch" + (f" ({settings})" if settings else "")
    if threads > allowed:
        advice = f"more threads than cores wait for each other: set OMP_NUM_THREADS={allowed}, or threads={allowed}"
        yield Finding(area="processor", name="threads", value=value, verdict="note", advice=advice)
    elif settings and threads < allowed:
        advice = f"{allowed - threads} of the cores stay idle unless a run sets `threads`"
        yield Finding(area="processor", name="threads", value=value, verdict="note", advice=advice)
    else:
        yield Finding(area="processor", name="threads", value=value)


def waiting(environ: Mapping[str, str], *, load: float | None) -> Iterator[Finding]:
    """Yield how threads wait for each other: at full speed, which costs most where others want the same cores.

    Args:
        environ: environment variables.
        load: processes that wanted a core in the last minute; None where the system does not say.
    """
    policy, spins = environ.get("OMP_WAIT_POLICY"), environ.get("GOMP_SPINCOUNT")
    given = {"OMP_WAIT_POLICY": policy, "GOMP_SPINCOUNT": spins}
    value = ", ".join(f"{name}={each}" for name, each in given.items() if each) or "spinning (the default)"
    if load is not None:
        value += f"; load {load:.1f} on {usable_cores()} cores"
    spinning = (policy or "").lower() != "passive" and spins != "0"
    if spinning and load is not None and load > usable_cores() and torch.get_num_threads() > 1:
        advice = "other processes want these cores: set OMP_WAIT_POLICY=passive GOMP_SPINCOUNT=0"
        yield Finding(area="processor", name="waiting", value=value, verdict="note", advice=advice)
    else:
        yield Finding(area="processor", name="waiting", value=value)


def _load() -> float | None:
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):  # not on every system
        return None


def cpu_quota(path: Path = Path("/sys/fs/cgroup/cpu.max")) -> float | None:
    """Return how many cores a container may keep busy; None where nothing limits it.

    Args:
        path: the limit, as Linux states it: microseconds of computing per microseconds of time.
    """
    try:
        share, _, period = path.read_text(encoding="ascii").strip().partition(" ")
        return None if share == "max" else int(share) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def dtypes(device: str) -> Iterator[Finding]:
    """Yield whether each dtype of training multiplies correctly on a device, and how fast.

    Args:
        device: torch device.
    """
    size, rates = 512, dict[str, float]()
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(size, size, generator=generator), torch.randn(size, size, generator=generator)
    exact = left.double() @ right.double()
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        try:
            one, other = left.to(device, dtype), right.to(device, dtype)
            error = float((((one @ other).cpu().double() - exact).abs() / size**0.5).max())
            rates[name] = 2.0 * size**3 / _middle_time(one, other) / 1e9
        except RuntimeError as problem:
            text = str(problem).splitlines()[0]
            yield Finding(area="dtypes", name=name, value=f"fails on {device}: {text}", verdict="problem",
                          advice="train in the other dtype")  # fmt: skip
            continue
        # bfloat16 keeps 8 bits of each factor and of the result.
        if error > (1e-4 if dtype == torch.float32 else 0.1):
            yield Finding(area="dtypes", name=name, value=f"wrong on {device} by {error:.2g}", verdict="problem",
                          advice="this torch does not fit this processor; install another build")  # fmt: skip
            continue
        value = f"works on {device}, {rates[name]:.0f} GFLOP/s"
        slow = name == "bfloat16" and rates[name] < rates.get("float32", 0.0)
        advice = f"slower than float32 here: use dtype: float32 on {device}" if slow else ""
        yield Finding(area="dtypes", name=name, value=value, verdict="note" if slow else "ok", advice=advice)


def _middle_time(left: Tensor, right: Tensor) -> float:
    times = []
    for _ in range(6):
        started = time.perf_counter()
        product = left @ right
        if product.device.type == "cuda":
            torch.cuda.synchronize(product.device)
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def accelerators() -> Iterator[Finding]:
    """Yield the CUDA devices, or that there is none."""
    if not torch.cuda.is_available():
        built = torch.version.cuda
        value = f"none (torch is built for CUDA {built})" if built else "none (torch is built without CUDA)"
        yield Finding(area="gpu", name="cuda", value=value)
        return
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        value = f"{facts.name}, {facts.total_memory / 2**30:.0f} GiB, compute capability {facts.major}.{facts.minor}"
        yield Finding(area="gpu", name=f"cuda:{index}", value=value)
        yield from dtypes(f"cuda:{index}")


def small_layout() -> Layout:
    """Return a row of two documents in blocks of four as [noisy | clean], 24 tokens long, two of them padding."""
    document_BL = torch.tensor([[0] * 14 + [1] * 8 + [-1] * 2])
    block_BL = document_positions(document_BL) // 4
    return Layout(document_BL=document_BL, block_BL=block_BL, two_streams=True)


def backends(device: str) -> Iterator[Finding]:
    """Yield, for each attention backend, whether it computes what the reference does, forward and backward.

    Args:
        device: torch device.
    """
    for backend in get_args(AttentionBackend):
        name = f"{backend} on {device}"
        backward = not (backend == "flex" and torch.device(device).type == "cpu")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch says that uncompiled FlexAttention is slow, which is no news
                worst = max(_difference(backend, device, dtype, backward=backward) for dtype in TOLERANCE)
        except ConfigError as refusal:
            yield Finding(area="attention", name=name, value=f"not here: {refusal}", verdict="ok")
            continue
        except RuntimeError as problem:
            yield Finding(area="attention", name=name, value=f"fails: {str(problem).splitlines()[0]}",
                          verdict="problem", advice="use attention: portable")  # fmt: skip
            continue
        if worst > 1:
            yield Finding(area="attention", name=name, value=f"wrong: {worst:.1f} times the rounding error",
                          verdict="problem", advice="use attention: portable, and report this")  # fmt: skip
        else:
            what = "forward and gradients equal" if backward else "forward equal (no gradients on this device)"
            yield Finding(area="attention", name=name, value=f"works: {what} to the reference's")


def _difference(backend: AttentionBackend, device: str, dtype: torch.dtype, *, backward: bool) -> float:
    """Return the largest difference from the dense form in float64, in units of what rounding explains."""
    layout, heads, groups, width = small_layout(), 4, 2, 16
    length = 2 * layout.document_BL.shape[1]
    generator = torch.Generator().manual_seed(1)
    shapes = [(1, heads, length, width), (1, groups, length, width), (1, groups, length, width)]
    values = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in (*shapes, shapes[0])]
    real_N = (layout.document_BL >= 0).repeat(1, 2)[0]

    def compute(name: AttentionBackend, place: str, kind: torch.dtype) -> list[Tensor]:
        attend = attention_for(layout, heads_per_group=heads // groups, dtype=kind, device=place, backend=name,
                               head_dim=width)  # fmt: skip
        query, key, value = (each.to(place, kind, copy=True).requires_grad_(backward) for each in values[:3])
        with torch.set_grad_enabled(backward):
            mixed = attend(0, query, key, value)
        found = [mixed.detach()[:, :, real_N.to(place)]]
        if backward:
            # Nothing flows back from padding, whose rows are nobody's business.
            (mixed * (values[3] * real_N[:, None]).to(place, kind)).sum().backward()
            found += [each.grad for each in (query, key, value) if each.grad is not None]
        return [each.double().cpu() for each in found]

    expected, found = compute("dense", "cpu", torch.float64), compute(backend, device, dtype)
    return max(float((one - other).abs().max()) for one, other in zip(expected, found, strict=True)) / TOLERANCE[dtype]


def memory_and_disk(folder: Path) -> Iterator[Finding]:
    """Yield the memory that is free, and the room of the folders that difflm writes to.

    Args:
        folder: where runs are to be written.
    """
    available = available_memory()
    value = "unknown" if available is None else f"{available / 2**30:.1f} GiB available"
    yield Finding(area="memory", name="ram", value=value)
    for name, place in (("runs", folder), ("temporary files", Path(tempfile.gettempdir()))):
        if not place.is_dir() or not os.access(place, os.W_OK):
            yield Finding(area="disk", name=name, value=f"{place} cannot be written", verdict="problem",
                          advice="choose another folder with output=")  # fmt: skip
            continue
        free = shutil.disk_usage(place).free
        small = free < SMALL_DISK
        advice = "a checkpoint with its optimiser takes 12 bytes a parameter" if small else ""
        value = f"{free / 2**30:.1f} GiB free in {place}"
        yield Finding(area="disk", name=name, value=value, verdict="note" if small else "ok", advice=advice)


def hub(environ: Mapping[str, str]) -> Iterator[Finding]:
    """Yield whether the Hugging Face hub may be asked, and where its files lie.

    Args:
        environ: environment variables.
    """
    offline = environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    value = "offline (HF_HUB_OFFLINE)" if offline else "asked only for models named by id and revision"
    yield Finding(area="hub", name="hugging face", value=value)
    home = environ.get("HF_HOME") or str(Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface")
    yield Finding(area="hub", name="cache", value=home)


def findings_tree(found: list[Finding]) -> dict[str, Any]:
    """Return the findings as JSON values, with what they amount to."""
    return {"healthy": healthy(found), "findings": [asdict(each) for each in found]}


def healthy(found: list[Finding]) -> bool:
    """Return whether nothing is broken; notes are not problems."""
    return all(each.verdict != "problem" for each in found)


def finding_lines(found: list[Finding]) -> list[str]:
    """Return the findings as lines for a reader."""
    marks = {"ok": " ", "note": "!", "problem": "x"}
    lines, area = list[str](), ""
    for each in found:
        head = each.area if each.area != area else ""
        area = each.area
        advice = f"  ({each.advice})" if each.advice else ""
        lines.append(f"{marks[each.verdict]} {head:<11}{each.name:<18}{each.value}{advice}")
    problems = sum(each.verdict == "problem" for each in found)
    notes = sum(each.verdict == "note" for each in found)
    return [*lines, "", f"{problems} problems (x), {notes} notes (!)"]
