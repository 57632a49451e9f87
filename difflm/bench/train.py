"""`difflm bench train`: tokens per second and peak memory of training, per attention backend and row length.

A step is what the trainer does with one micro-batch: forward, loss, backward, AdamW; float32 master weights beside
bfloat16 ones. The backends of a length take turns in one process, so a busy machine slows them alike; ratios are
paired by repeat. Memory on CPU is the peak resident set of a fresh process for each backend and length, on CUDA the
peak of torch's allocations.
"""

from __future__ import annotations

import copy
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace

import torch

from difflm.bench.environment import environment, usable_cores
from difflm.bench.memory import number_printed_by, peak_resident_mib
from difflm.bench.steps import Forward, random_batch, random_model, shape_of, synchronise
from difflm.checkpoints.loading import check_device, resolve_dtype
from difflm.diffusion.objectives import BlockDiffusion
from difflm.errors import ConfigError
from difflm.models.attention import AttentionBackend, AttentionChoice, backend_for
from difflm.training.config_optimizer import OptimizerConfig
from difflm.training.optim import MasterWeights, Optimizer

BACKENDS: tuple[AttentionBackend, ...] = ("split", "flex", "portable", "dense")


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One case of the benchmark.

    Attributes:
        model: published name, checkpoint folder or GGUF file; only its shape counts.
        attention: backend.
        length: L, tokens of a row (the model sees 2 L: noisy and clean).
        rows: of a step.
        documents: of a row.
        block_size: S, tokens.
        layers: decoder layers to keep; 0 = all.
        dtype: "float32" or "bfloat16".
        device: torch device.
        threads: CPU threads; 0 = all usable cores.
        activation_checkpointing: recompute each layer in the backward pass.
    """

    model: str
    attention: AttentionChoice
    length: int
    rows: int = 1
    documents: int = 1
    block_size: int = 32
    layers: int = 0
    dtype: str = "float32"
    device: str = "cpu"
    threads: int = 0
    activation_checkpointing: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """The measurement of one backend at one length.

    Attributes:
        attention: backend.
        length: L, tokens.
        seconds: of a step; median over the repeats.
        tokens_per_second: rows * length / seconds: tokens of data, not of the doubled input.
        ratio: speed over the last backend's, paired by repeat; median.
        ratio_range: smallest and largest of these ratios.
        peak_mib: see the module; NaN if it was not measured.
    """

    attention: str
    length: int
    seconds: float
    tokens_per_second: float
    ratio: float
    ratio_range: tuple[float, float]
    peak_mib: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainBench:
    """Result of `bench_train`.

    Attributes:
        settings: what was common to all cases (attention and length of the first).
        rows: by length, then backend.
        repeats: interleaved steps of each case.
        parameters: of the model that was measured.
        left_out: backend -> why it cannot train here.
        environment: hardware, versions, commit.
    """

    settings: Setting
    rows: tuple[Row, ...]
    repeats: int
    parameters: int
    left_out: dict[str, str]
    environment: dict[str, str | int | None] = field(default_factory=environment)


class TrainingStep:
    """A model, its optimiser and a batch: each call is one training step.

    Args:
        setting: see `Setting`.
        weights: model and optimiser of another step of the same model, to share; None builds them.
    """

    def __init__(self, setting: Setting, weights: TrainingStep | None = None) -> None:
        self.setting = setting
        config = shape_of(setting.model, layers=setting.layers)
        if setting.length > config.max_positions:
            raise ConfigError(f"length: {setting.length} exceeds the model's context of {config.max_positions} tokens")
        if weights is not None:
            self.master, self.working, self.pair = weights.master, weights.working, weights.pair
            self.optimizer = weights.optimizer
        else:
            dtype = resolve_dtype(setting.dtype)
            self.master = random_model(config, device=setting.device, dtype=torch.float32)
            self.optimizer = Optimizer(self.master, OptimizerConfig(), mask_id=None)
            self.working = self.master if dtype == torch.float32 else copy.deepcopy(self.master).to(dtype)
            self.pair = MasterWeights(self.master, self.working)
        self.forward = Forward(
            objective=BlockDiffusion(block_size=setting.block_size),
            batch=random_batch(config, rows=setting.rows, length=setting.length, documents=setting.documents),
            attention=setting.attention,
            activation_checkpointing=setting.activation_checkpointing,
        )

    def __call__(self) -> float:
        """Do one step and return its seconds."""
        synchronise(self.setting.device)
        started = time.perf_counter()
        self.forward.loss(self.working).backward()
        self.pair.collect()
        self.optimizer.clip()
        self.optimizer.step(1.0)
        self.pair.publish()
        synchronise(self.setting.device)
        return time.perf_counter() - started

    def discard_gradients(self) -> None:
        """Forget what a step that failed has left behind."""
        self.master.zero_grad(set_to_none=True)
        self.working.zero_grad(set_to_none=True)


def use_threads(threads: int) -> None:
    """Use so many CPU threads; 0 = all usable cores."""
    torch.set_num_threads(threads or usable_cores())


def usable_backends(
    setting: Setting, asked: Sequence[AttentionBackend]
) -> tuple[tuple[AttentionBackend, ...], dict[str, str]]:
    """Return the backends that can train a setting, and why the others cannot.

    Args:
        setting: for its device, dtype and model.
        asked: backends to choose from, in order; empty = all.

    Raises:
        ConfigError: one that was asked for cannot train here.
    """
    config = shape_of(setting.model, layers=setting.layers)
    found: list[AttentionBackend] = []
    left_out: dict[str, str] = {}
    for name in asked or BACKENDS:
        try:
            backend_for(
                name,
                device=setting.device,
                dtype=resolve_dtype(setting.dtype),
                head_dim=config.head_dim,
                backward=True,
                field="backend",
            )
        except ConfigError as error:
            if asked:
                raise
            left_out[name] = str(error)
        else:
            found.append(name)
    return tuple(found), left_out


def bench_train(
    setting: Setting,
    *,
    lengths: Sequence[int],
    backends: Sequence[AttentionBackend] = (),
    repeats: int = 3,
    memory: bool = True,
    say: Callable[[str], None] = lambda line: None,
) -> TrainBench:
    """Measure every backend at every length and return the figures.

    Args:
        setting: what all cases share; its attention and length are replaced.
        lengths: row lengths, tokens.
        backends: to compare, the last one is the reference of the ratios; empty = all that can train on the device.
        repeats: interleaved steps of each case, after one that is not counted.
        memory: also measure peak memory.
        say: receives progress lines.

    Raises:
        ConfigError: a model, length, backend, device or dtype that cannot be used.
    """
    if repeats < 1 or not lengths or min(lengths) < 1:
        raise ConfigError(f"repeats: {repeats}, lengths: {list(lengths)}; both need at least 1, and one length")
    if setting.dtype not in ("float32", "bfloat16"):
        raise ConfigError(f"dtype: '{setting.dtype}' is not trained in; use float32 or bfloat16")
    check_device(setting.device, field="device")
    use_threads(setting.threads)
    names, left_out = usable_backends(setting, backends)
    rows: list[Row] = []
    parameters = 0
    for length in lengths:
        found, parameters = _one_length([_changed(setting, name, length) for name in names], repeats, memory, left_out)
        rows += found
        for row in found:
            say(f"L {length}, {row.attention}: {row.tokens_per_second:.1f} tokens/s, {row.peak_mib:.0f} MiB")
    first = _changed(setting, names[0], lengths[0])
    return TrainBench(settings=first, rows=tuple(rows), repeats=repeats, parameters=parameters, left_out=left_out)


def _changed(setting: Setting, name: AttentionBackend, length: int) -> Setting:
    return replace(setting, attention=name, length=length)


def _one_length(
    cases: Sequence[Setting], repeats: int, memory: bool, left_out: dict[str, str]
) -> tuple[list[Row], int]:
    """Return the rows of one length and the model's parameters; notes in `left_out` what did not fit."""
    on_cuda = torch.device(cases[0].device).type == "cuda"
    steps, peaks = list[TrainingStep](), list[float]()
    weights: TrainingStep | None = None
    for case in cases:
        step = TrainingStep(case, weights)
        weights = step
        try:
            step()  # compiles, allocates the gradients
            peaks.append(_cuda_peak_mib(step) if memory and on_cuda else float("nan"))
        except torch.OutOfMemoryError:
            left_out[f"{case.attention} at length {case.length}"] = "out of memory"
            step.discard_gradients()
            continue
        steps.append(step)
    assert weights is not None
    if not steps:
        raise ConfigError(f"length: {cases[0].length} does not fit this device with any backend; use a shorter one")
    seconds: list[list[float]] = [[] for _ in steps]
    for repeat in range(repeats):
        order = range(len(steps))
        shift = repeat % len(steps)
        for index in [*order[shift:], *order[:shift]]:
            seconds[index].append(steps[index]())
    if memory and not on_cuda:
        peaks = [peak_in_own_process(step.setting) for step in steps]
    parameters = sum(each.numel() for each in weights.master.parameters())
    rows = [
        summarise(step.setting, mine, seconds[-1], peak) for step, mine, peak in zip(steps, seconds, peaks, strict=True)
    ]
    return rows, parameters


def _cuda_peak_mib(step: TrainingStep) -> float:
    torch.cuda.reset_peak_memory_stats(step.setting.device)
    step()
    return torch.cuda.max_memory_allocated(step.setting.device) / 2**20


def peak_in_own_process(setting: Setting) -> float:
    """Return the peak resident set of two training steps in a fresh process, MiB.

    Raises:
        DifflmError: that process failed; its last line is the message.
    """
    what = f"memory of {setting.attention} at length {setting.length}"
    return number_printed_by("difflm.bench.train", [json.dumps(asdict(setting))], what=what)


def print_peak(argument: str) -> None:
    """Do two steps of a setting and print this process's peak resident set, MiB.

    Args:
        argument: the setting as JSON.
    """
    setting = Setting(**json.loads(argument))
    use_threads(setting.threads)
    step = TrainingStep(setting)
    for _ in range(2):
        step()
    print(peak_resident_mib())


def summarise(setting: Setting, seconds: Sequence[float], baseline: Sequence[float], peak_mib: float) -> Row:
    """Return the row of a case.

    Args:
        setting: what ran.
        seconds: of its steps.
        baseline: of the reference's steps, in the same repeats.
        peak_mib: its peak memory.
    """
    ratios = [other / mine for mine, other in zip(seconds, baseline, strict=True)]
    middle = statistics.median(seconds)
    return Row(
        attention=setting.attention,
        length=setting.length,
        seconds=middle,
        tokens_per_second=setting.rows * setting.length / middle,
        ratio=statistics.median(ratios),
        ratio_range=(min(ratios), max(ratios)),
        peak_mib=peak_mib,
    )


if __name__ == "__main__":
    print_peak(sys.argv[1])
