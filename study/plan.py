"""How long each part of the study is, and the configurations of its runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from difflm.training.config import TrainConfig
from difflm.training.config_io import config_from_tree
from difflm.types import Decoding

EVALUATION, VALIDATION, PARENT, CONTINUED, TUNED, OWN, PREFERRED = range(1, 8)
"""Parts of every task, by the seeds that make their items: what is scored, what a run validates on, what the AR parent,
the conversion and the fine-tuning learn from, what the model answers itself for CAP and for preferences."""

DRAFTING_WEIGHTS = ["*.query", "*.key", "*.value", "*.gate", "*.up"]

TASKS = (
    ("sums", "reasoning-gym:chain_sum:min_terms=2,max_terms=2,min_digits=1,max_digits=2", 12),
    (
        "sorting",
        "reasoning-gym:number_sorting:min_numbers=3,max_numbers=4,max_decimals=0,min_value=0,max_value=99",
        48,
    ),
    (
        "filtering",
        "reasoning-gym:number_filtering:min_numbers=3,max_numbers=4,max_decimals=0,min_value=0,max_value=99",
        32,
    ),
    ("reversal", "reasoning-gym:word_sequence_reversal:min_words=3,max_words=4", 32),
    ("rotation", "reasoning-gym:rotate_matrix:max_n=3,min_rotations=0,max_rotations=3", 32),
    ("distances", "reasoning-gym:binary_matrix:min_n=4,max_n=4", 48),
)
"""Name, dataset with its settings, longest answer in tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Sizes of the study.

    Attributes:
        layers: decoder layers of the model.
        hidden: its width.
        vocabulary: tokens.
        row_length: tokens of a packed row.
        rows_per_batch: rows of one step.
        block_size: tokens that are denoised together; of decoding and of every stage but the ladder.
        window: tokens that the lossless adapter drafts.
        dtype: of training; see `fast_dtype`.
        log_every: steps between lines of a run's metrics.jsonl; no run is shorter.
        parent_tokens: of the AR parent.
        ladder: the conversion's block sizes: (size or "row", tokens).
        sft_tokens: of fine-tuning and of the AR control each.
        cap_tokens: of confidence-aware training and of the control each.
        dpo_tokens: of preferences, and of the control on the preferred answers.
        draft_tokens: of the lossless adapter.
        parent_items: for each task, learnt by the parent.
        continued_items: for each task, of the conversion.
        tuned_items: for each task, of fine-tuning.
        own_items: for each task, that the fine-tuned model answers for CAP.
        preferred_items: for each task, that it answers several times for preferences.
        samples: answers to each of those.
        validation_items: for each task.
        items: for each task, scored at the default threshold.
        curve_items: for each task, scored at the other thresholds.
        thresholds: of the curve; the last one is the default.
        speed_items: for each task, decoded one by one for tokens per second.
        repeats: of the timings, interleaved.
        compiled: whether torch.compile takes part in the timings; it needs a C++ compiler, and minutes.
        least_records: fewer own answers or pairs than this are not trained on, and the page says so.
        learning_rates: peaks, by stage: parent, wsd, sft, cap, dpo, lossless.
    """

    layers: int = 6
    hidden: int = 256
    vocabulary: int = 1024
    row_length: int = 256
    rows_per_batch: int = 8
    block_size: int = 16
    window: int = 8
    dtype: str = "float32"
    log_every: int = 10
    parent_tokens: int
    ladder: tuple[tuple[int | str, int], ...]
    sft_tokens: int
    cap_tokens: int
    dpo_tokens: int
    draft_tokens: int
    parent_items: int
    continued_items: int
    tuned_items: int
    own_items: int
    preferred_items: int
    samples: int = 4
    validation_items: int = 40
    items: int = 500
    curve_items: int = 150
    thresholds: tuple[float, ...] = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
    speed_items: int = 6
    repeats: int = 5
    compiled: bool = True
    least_records: int = 100
    learning_rates: tuple[tuple[str, float], ...] = (
        ("parent", 3e-3),
        ("wsd", 2e-3),
        ("sft", 1e-3),
        ("cap", 3e-4),
        ("dpo", 2e-5),
        ("lossless", 2e-3),
    )

    @property
    def threshold(self) -> float:
        """The default one."""
        return self.thresholds[-1]

    def rate(self, stage: str) -> float:
        """Return the peak learning rate of a stage, which its ablations and its control share."""
        return dict(self.learning_rates)[stage]


FULL = Plan(
    parent_tokens=5_000_000,
    ladder=((1, 100_000), (4, 200_000), ("row", 1_400_000), (32, 300_000), (16, 1_000_000)),
    sft_tokens=800_000,
    cap_tokens=300_000,
    dpo_tokens=150_000,
    draft_tokens=500_000,
    parent_items=9_000,
    continued_items=4_000,
    tuned_items=1_500,
    own_items=800,
    preferred_items=400,
)
QUICK = replace(
    FULL,
    layers=4,
    hidden=192,
    parent_tokens=900_000,
    ladder=((1, 10_000), (4, 20_000), ("row", 60_000), (32, 20_000), (16, 60_000)),
    sft_tokens=100_000,
    cap_tokens=40_000,
    dpo_tokens=20_000,
    draft_tokens=60_000,
    parent_items=3_000,
    continued_items=800,
    tuned_items=500,
    own_items=150,
    preferred_items=60,
    validation_items=10,
    items=60,
    curve_items=20,
    thresholds=(0.5, 0.8, 0.95),
    speed_items=2,
    repeats=3,
    compiled=False,
    least_records=20,
)


def fast_dtype() -> str:
    """Return the dtype in which this machine trains faster: "bfloat16" where the processor multiplies it in tiles."""
    capabilities: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return "bfloat16" if capabilities.get("amx_bf16") else "float32"


def parent_run(plan: Plan, folder: Path) -> TrainConfig:
    """Return the run that makes the AR parent, from random weights."""
    return _run(plan, folder, "parent", model=folder / "random", data="parent", stages=[{"tokens": plan.parent_tokens}])


def control_run(plan: Plan, folder: Path, stage: str, *, model: Path, data: str) -> TrainConfig:
    """Return the AR control of a stage: next-token training on the data and tokens of that stage.

    Args:
        plan: the sizes.
        folder: of the study.
        stage: whose control: "wsd", "sft", "cap" or "dpo".
        model: the control of the stage before.
        data: file of the stage, without its suffix.
    """
    tokens = {
        "wsd": sum(count for _, count in plan.ladder),
        "sft": plan.sft_tokens,
        "cap": plan.cap_tokens,
        "dpo": plan.dpo_tokens,
    }[stage]
    return _run(plan, folder, f"ar-{stage}", rate=stage, model=model, data=data, stages=[{"tokens": tokens}])


def wsd_run(plan: Plan, folder: Path) -> TrainConfig:
    """Return the conversion: block sizes up, one block over the row, down again; Eqs. 1 and 2."""
    stages = [{"block_size": size, "tokens": tokens} for size, tokens in plan.ladder]
    return _run(
        plan,
        folder,
        "wsd",
        model=folder / "converted",
        data="continued",
        stages=stages,
        objective={"kind": "block_diffusion"},
        extra={
            "embedding_noise": {"sigma": 0.1, "stages": 2},
            "checkpoint": {"every_tokens": max(plan.ladder[-1][1] // 8, 1), "keep": 1, "keep_best": 4},
        },
        validation_sizes=(1, 4, plan.block_size),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """Fine-tuning or confidence-aware training that differs in one respect: same start, data and seeds.

    One that differs in threshold or decoding alone is the stage's own model, decoded otherwise.

    Attributes:
        name: of the run.
        of: what it is a variant of: "sft" or "cap".
        says: what differs, for the page.
        objective: fields of the objective that differ.
        tokens: times the stage's tokens.
        rate: times the stage's learning rate.
        block_size: of training and decoding; None is the plan's.
        threshold: of decoding; None is the plan's.
        decoding: "block", "next_token", or "verified" with the plan's window.
    """

    name: str
    of: str
    says: str
    objective: Mapping[str, Any] = field(default_factory=dict[str, Any])
    tokens: float = 1.0
    rate: float = 1.0
    block_size: int | None = None
    threshold: float | None = None
    decoding: Decoding = "block"

    @property
    def trained(self) -> bool:
        """Whether it is a run of its own."""
        return bool(self.objective) or (self.tokens, self.rate, self.block_size) != (1.0, 1.0, None)


VARIANTS = (
    Variant(name="sft-sure", of="sft", says="decoded at threshold 0.99", threshold=0.99),
    Variant(name="sft-one", of="sft", says="decoded a token at a time (threshold 1)", threshold=1.0),
    Variant(name="sft-all", of="sft", says="decoded a block at a time (threshold 0): the most TPF", threshold=0.0),
    Variant(name="sft-left", of="sft", says="decoded left to right", decoding="next_token"),
    Variant(name="sft-verified", of="sft", says="decoded verified: it drafts for itself", decoding="verified"),
    Variant(name="sft-single", of="sft", says="without pairs", objective={"complementary": False}),
    Variant(name="sft-8", of="sft", says="blocks of 8", block_size=8),
    Variant(name="cap-4", of="cap", says="weight 4 instead of 2", objective={"confidence": {"weight": 4.0}}),
    Variant(name="cap-32", of="cap", says="blocks of 32", block_size=32),
    Variant(name="cap-zero", of="cap", says="without the entropy", objective={"confidence": None}),
    Variant(name="sft-wide", of="sft", says="mask rates of 0 to 1", objective={"bandwidth": [0, 1]}),
    Variant(
        name="sft-elbo",
        of="sft",
        says="exact counts of masks, the ELBO's weights",
        objective={"noise": "exact_count", "weighting": "elbo"},
    ),
    Variant(name="sft-fast", of="sft", says="twice the learning rate", rate=2.0),
    Variant(name="cap-wide", of="cap", says="mask rates of 0 to 1", objective={"bandwidth": [0, 1]}),
    Variant(name="sft-long", of="sft", says="three times the tokens", tokens=3.0),
    Variant(name="cap-long", of="cap", says="three times the tokens", tokens=3.0),
)
"""Ablations, and remedies for what may keep a stage from its target; all are reported."""


def sft_run(plan: Plan, folder: Path, *, model: Path) -> TrainConfig:
    """Return fine-tuning, Eq. 5, with complementary pairs."""
    return _post_run(plan, folder, Variant(name="sft", of="sft", says=""), model=model)


def cap_run(plan: Plan, folder: Path, *, model: Path) -> TrainConfig:
    """Return training on the model's own right answers, Eq. 6."""
    return _post_run(plan, folder, Variant(name="cap", of="cap", says=""), model=model)


def variant_run(plan: Plan, folder: Path, variant: Variant, *, model: Path) -> TrainConfig:
    """Return a variant of fine-tuning or of confidence-aware training.

    Args:
        plan: the sizes.
        folder: of the study.
        variant: what differs.
        model: that the stage itself starts from.
    """
    return _post_run(plan, folder, variant, model=model)


def dpo_run(plan: Plan, folder: Path, *, model: Path) -> TrainConfig:
    """Return preferences, Eqs. 7 and 8, against the model that the run starts from."""
    return _run(
        plan,
        folder,
        "dpo",
        model=model,
        data="preferred",
        stages=[{"tokens": plan.dpo_tokens, "block_size": plan.block_size}],
        objective={"kind": "dpo", "samples": 2},
        pairs=True,
    )


def draft_run(plan: Plan, folder: Path, *, model: Path) -> TrainConfig:
    """Return the adapter that drafts for the AR control, which itself stays as it is."""
    lora = {"rank": 32, "alpha": 64.0, "targets": DRAFTING_WEIGHTS, "adapter_rows": "noisy"}
    return _run(
        plan,
        folder,
        "lossless",
        model=model,
        data="tuned",
        stages=[{"tokens": plan.draft_tokens, "block_size": plan.window}],
        objective={"kind": "drafting", "noisy_rows": plan.row_length, "ar_weight": 0.0, "diffusion_weight": 1.0},
        extra={"lora": lora, "lr_schedule": {"kind": "linear", "warmup_fraction": 0.03, "final_ratio": 0.0}},
        validation_sizes=(plan.window,),
        autoregressive=False,
    )


_OBJECTIVES: Mapping[str, Mapping[str, Any]] = {
    "sft": {"kind": "block_diffusion", "noise": "bernoulli", "weighting": "uniform", "complementary": True},
    "cap": {
        "kind": "block_diffusion",
        "noise": "bernoulli",
        "weighting": "uniform",
        "complementary": True,
        "confidence": {"weight": 2.0},
    },
}


def _post_run(plan: Plan, folder: Path, variant: Variant, *, model: Path) -> TrainConfig:
    tokens = {"sft": plan.sft_tokens, "cap": plan.cap_tokens}[variant.of]
    size = variant.block_size or plan.block_size
    return _run(
        plan,
        folder,
        variant.name,
        rate=variant.of,
        times=variant.rate,
        model=model,
        data={"sft": "tuned", "cap": "own"}[variant.of],
        stages=[{"tokens": round(variant.tokens * tokens), "block_size": size}],
        objective={**_OBJECTIVES[variant.of], **variant.objective},
        validation_sizes=(size,),
    )


def _run(
    plan: Plan,
    folder: Path,
    name: str,
    *,
    model: Path,
    data: str,
    stages: list[dict[str, Any]],
    rate: str | None = None,
    times: float = 1.0,
    objective: dict[str, Any] | None = None,
    extra: dict[str, Any] | None = None,
    validation_sizes: tuple[int, ...] | None = None,
    pairs: bool = False,
    autoregressive: bool = True,
) -> TrainConfig:
    tokens = sum(stage["tokens"] for stage in stages)
    optimizer = {
        # At 0.5 to 0.6M tokens the parent's loss is 0.4 to 0.7 with Muon and 0.7 to 1.5 with AdamW, at the same rate.
        "kind": "adamw" if pairs or "lora" in (extra or {}) else "muon",
        "learning_rate": times * plan.rate(rate or name),
        "mask_row_lr_scale": 10.0 if name == "wsd" else 1.0,
    }
    # Held-out documents are no pairs. Both answers of a pair, each with the prompt, stand in one row.
    held_out = {} if pairs else {"validation_paths": [str(folder / "data" / "validation.jsonl")]}
    length, rows = (
        (2 * plan.row_length, -(-plan.rows_per_batch // 2)) if pairs else (plan.row_length, plan.rows_per_batch)
    )
    tree: dict[str, Any] = {
        "model": str(model),
        "output": str(folder / "runs" / name),
        "data": {"paths": [str(folder / "data" / f"{data}.jsonl")], "row_length": length, **held_out},
        "objective": objective or {"kind": "next_token"},
        "curriculum": stages,
        "optimizer": optimizer,
        "lr_schedule": {"kind": "wsd", "warmup_fraction": 0.03, "decay_fraction": 0.3, "final_ratio": 0.02},
        "rows_per_batch": rows,
        "dtype": plan.dtype,
        "recipe": f"study-{name}",
        "validation": {
            "rows": 0,
            "rows_per_batch": plan.rows_per_batch,
            "block_sizes": list(validation_sizes or (plan.block_size,)),
            "autoregressive": autoregressive,
        },
        # Limits what an interruption loses; the merge's candidates are those of the conversion.
        "checkpoint": {"every_tokens": max(tokens // 6, 1), "keep": 1, "keep_best": 0},
        "log_every": plan.log_every,
        **(extra or {}),
    }
    return config_from_tree(tree)


def plan_facts(plan: Plan) -> dict[str, Any]:
    """Return the plan as JSON values."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(plan).items()}
