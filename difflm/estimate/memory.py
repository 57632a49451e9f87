"""Bytes that a training step holds, term by term, from shapes alone.

Weights, gradients, optimiser state and master copies follow from the parameters and are exact. Activations are what
autograd keeps of `difflm.models.transformer` for the backward pass: the sums below name each kept tensor and are
compared with autograd's own in the tests. Peaks are of the moments that can be the largest one: the start of the
backward pass (all activations), its end (all gradients), and the update.

Shape letters as in `difflm.types`; H query heads, G key/value heads, E head dimension, I inner width of the MLP.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from difflm.checkpoints.adapter_names import adapter_layout
from difflm.checkpoints.families import FAMILIES
from difflm.checkpoints.loading import resolve_dtype
from difflm.estimate.tiles import tile_shapes
from difflm.models.adapters import attach_adapter
from difflm.models.attention import AttentionBackend
from difflm.models.config import ModelConfig
from difflm.models.transformer import Transformer
from difflm.training.config import OptimizerConfig, PreferenceConfig, TrainConfig
from difflm.training.config_lora import LoRAConfig
from difflm.training.lora import sites_of
from difflm.training.parameters import plan_parameters
from difflm.types import ModelInput

WIDE = 4
"""Bytes of a float32: norm statistics, logits and masters are kept in it whatever the run's dtype."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterMemory:
    """What a run keeps for its parameters, bytes; exact.

    Attributes:
        parameters: how many there are (tied ones once); not bytes.
        active: how many take part in the forward of one token (of a mixture, the chosen experts only); not bytes.
        weights: in the run's dtype.
        masters: float32 copies that the optimiser updates; 0 for a float32 run, whose weights are the masters.
        gradients: of the masters (or weights), float32.
        working_gradients: of a bfloat16 working copy, until they are added to the masters'.
        optimizer: moments and counters.
        embedding_gradient: of the embedding (and a tied head), in the run's dtype.
        reference: frozen copy that a preference run compares with, in the run's dtype; 0 where there is none.
    """

    parameters: int
    active: int
    weights: int
    masters: int
    gradients: int
    working_gradients: int
    optimizer: int
    embedding_gradient: int
    reference: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class StepMemory:
    """What a step holds beside its parameters, bytes.

    Attributes:
        activations: kept by the forward of one micro-batch for its backward.
        layer: those of one layer.
        recomputed: those of one layer again, where the backward computes layers anew (activation checkpointing).
        logits: logits of one chunk of the head with what its backward needs, and the head's gradient in the making.
        masks: attention masks of the micro-batch, shared by its layers.
    """

    activations: int
    layer: int
    recomputed: int
    logits: int
    masks: int


def parameter_memory(
    model: ModelConfig,
    optimizer: OptimizerConfig,
    *,
    dtype: torch.dtype,
    lora: LoRAConfig | None = None,
    family: str = "llama",
) -> ParameterMemory:
    """Return the bytes of a run's parameters and of what the optimiser keeps for them.

    Args:
        model: architecture.
        optimizer: its kind and what it freezes.
        dtype: of the run.
        lora: low-rank pairs that learn instead of the weights.
        family: of the model; decides which weights share a pair.
    """
    with torch.device("meta"):
        built = Transformer(model)
    if lora is not None:
        sites = sites_of(lora, adapter_layout(FAMILIES[family], model), family=family)
        attach_adapter(built, sites, token_ids=(0,) if lora.mask_row else ())
    plans = plan_parameters(built, optimizer)
    total = sum(plan.parameter.numel() for plan in plans)
    trained = [plan for plan in plans if not plan.frozen]
    size = sum(plan.parameter.numel() for plan in trained)
    state = 0
    for plan in trained:
        by_muon = optimizer.kind == "muon" and plan.matrix
        # Muon: one momentum. AdamW: two moments and a float32 counter.
        state += WIDE * plan.parameter.numel() if by_muon else 2 * WIDE * plan.parameter.numel() + 4
    narrow = dtype.itemsize if dtype != torch.float32 else 0
    embedding = built.embedding.weight
    learns = any(plan.parameter is embedding and not plan.frozen for plan in plans)
    return ParameterMemory(
        parameters=total,
        active=total - _idle(model),
        weights=total * dtype.itemsize,
        # The base of an adapter is never updated, so there is one copy of it.
        masters=(total if lora is None else size) * WIDE if narrow else 0,
        gradients=size * WIDE,
        working_gradients=size * narrow,
        optimizer=state,
        embedding_gradient=embedding.numel() * dtype.itemsize if learns else 0,
    )


def with_reference(parameters: ParameterMemory, config: TrainConfig) -> ParameterMemory:
    """Return the parameters of a run with the frozen copy that a preference run compares with, where it needs one."""
    chosen = config.objective
    if not isinstance(chosen, PreferenceConfig) or (config.lora is not None and chosen.reference is None):
        return parameters
    return replace(parameters, reference=parameters.parameters * resolve_dtype(config.dtype).itemsize)


def _idle(model: ModelConfig) -> int:
    """Return the parameters of experts that a token does not pass."""
    if model.moe is None:
        return 0
    sparse = model.num_layers - len(model.moe.dense_layers)
    expert = 3 * model.hidden_size * model.moe.expert_size
    return sparse * (model.moe.num_experts - model.moe.experts_per_token) * expert


def step_memory(
    model: ModelConfig,
    inputs: ModelInput,
    *,
    dtype: torch.dtype,
    backend: AttentionBackend,
    activation_checkpointing: bool,
    head_chunk: int,
) -> StepMemory:
    """Return what the forward of a micro-batch keeps for its backward, and what the head needs on top.

    Args:
        model: architecture.
        inputs: the micro-batch.
        dtype: of the run.
        backend: of attention.
        activation_checkpointing: keep only the layers' inputs.
        head_chunk: rows that meet the head at once.
    """
    tokens, size = inputs.token_BN.numel(), dtype.itemsize
    scored = max((term.row_M.numel() for term in inputs.terms), default=0)
    attention, masks = _attention_bytes(model, inputs, size=size, backend=backend)
    sparse, router = _moe_bytes(model, size=size)
    outside = tokens * (8 + 2 * model.head_dim * size + _norm(model.hidden_size, size) + 4)
    # The final hidden states, and the rows of them that are scored.
    outside += tokens * model.hidden_size * size
    outside += sum(term.row_M.numel() for term in inputs.terms) * model.hidden_size * size
    layers = []
    for number in range(model.num_layers):
        dense = model.moe is None or number in model.moe.dense_layers
        branch = 4 * model.intermediate_size * size if dense else sparse
        layers.append(tokens * (_projections(model, size) + branch) + (0 if dense else router) + attention)
    chunk = min(head_chunk, scored)
    # Float32 logits, probabilities and gradient of a chunk; their copy in the run's dtype; the head's gradient twice:
    # the sum so far and a chunk's part.
    logits = chunk * model.vocab_size * (3 * WIDE + (size if size != WIDE else 0))
    logits += 2 * model.vocab_size * model.hidden_size * size
    kept = tokens * model.hidden_size * size * model.num_layers if activation_checkpointing else sum(layers)
    return StepMemory(
        activations=outside + kept,
        layer=max(layers),
        recomputed=max(layers) if activation_checkpointing else 0,
        logits=logits,
        masks=masks,
    )


def largest_step(
    config: TrainConfig, model: ModelConfig, batches: Sequence[ModelInput], *, backend: AttentionBackend
) -> StepMemory:
    """Return what the micro-batch that needs most holds.

    Args:
        config: the run.
        model: architecture.
        batches: a micro-batch of each stage.
        backend: of attention.
    """
    steps = [
        step_memory(
            model,
            each,
            dtype=resolve_dtype(config.dtype),
            backend=backend,
            activation_checkpointing=config.activation_checkpointing,
            head_chunk=config.head_chunk_rows,
        )
        for each in batches
    ]
    return max(steps, key=lambda each: each.activations + each.logits + each.masks)


def _norm(width: int, size: int) -> int:
    """Return what an RMSNorm keeps per row: its input in float32, the normalised values in the run's dtype, a root."""
    return width * (WIDE + size) + WIDE


def _projections(model: ModelConfig, size: int) -> int:
    """Return what a layer keeps per token without attention and feed-forward: norms and their results."""
    kept = 2 * (_norm(model.hidden_size, size) + model.hidden_size * size)
    if model.qk_norm:
        heads = model.num_heads + model.num_kv_heads
        kept += heads * _norm(model.head_dim, size)
    return kept


def _moe_bytes(model: ModelConfig, *, size: int) -> tuple[int, int]:
    """Return what a mixture keeps, bytes: per token, and per layer whatever the tokens (a router in float32)."""
    moe, hidden = model.moe, model.hidden_size
    if moe is None:
        return 0, 0
    # Of each pair of token and expert: its sorted row, gate and up, silu, their product, its unsorted result; two
    # orders and the choice (int64); its weight, and the one before normalisation.
    pair = (2 * hidden + 4 * moe.expert_size) * size + 3 * 8 + WIDE * (2 if moe.normalise else 1)
    router = moe.num_experts * WIDE + (WIDE if moe.normalise else 0)
    if size != WIDE:
        # The router's input again in float32; the narrow one is kept by a shared expert only.
        router += hidden * WIDE - (0 if moe.shared_experts else hidden * size)
    shared = 4 * moe.shared_experts * moe.shared_size * size
    return moe.experts_per_token * pair + router + shared, moe.num_experts * hidden * WIDE if size != WIDE else 0


def _attention_bytes(
    model: ModelConfig, inputs: ModelInput, *, size: int, backend: AttentionBackend
) -> tuple[int, int]:
    """Return what attention keeps for its backward, bytes of (one layer, all layers together)."""
    rows, length = inputs.token_BN.shape
    width = (model.num_heads + model.num_kv_heads) * model.head_dim
    # Queries, keys, values, result; a log-sum-exp per query.
    plain = rows * length * (2 * width * size + model.num_heads * WIDE)
    if backend == "flex":
        return plain, 0
    if backend == "dense":
        # The mask once as booleans, and again as numbers in every layer.
        return plain + rows * length**2 * size, rows * length**2
    fold = model.num_heads // model.num_kv_heads
    masks = copies = 0
    for queries, prefix, masked in tile_shapes(inputs.layout):
        seen = queries + prefix
        masks += fold * queries * queries * size if masked else 0
        # "portable" gathers the keys and values of every tile, and widens its mask by the prefix.
        copies += 2 * seen * model.num_kv_heads * model.head_dim * size
        copies += queries * model.num_heads * (2 * model.head_dim * size + WIDE)
        copies += fold * queries * seen * size if masked else 0
    if backend == "portable":
        return rows * length * model.num_heads * model.head_dim * size + copies, masks
    return plain, masks


def peak_memory_of(parameters: ParameterMemory, step: StepMemory, *, accumulation: int) -> dict[str, int]:
    """Return the bytes held at the moments that can be the largest, by name.

    Args:
        parameters: of the run.
        step: of its largest micro-batch.
        accumulation: micro-batches of an optimiser step; from the second on, gradients lie there during the forward.
    """
    held = parameters.weights + parameters.reference + parameters.masters + parameters.optimizer + step.masks
    summed = parameters.gradients if accumulation > 1 else 0
    # A working copy's gradients are added to the masters' and freed one after the other, after the backward.
    gradients = summed + parameters.working_gradients if parameters.masters else parameters.gradients
    activations = step.activations + step.recomputed
    return {
        "start of the backward pass": held + summed + activations + step.logits,
        # Embedding rows get a gradient of the whole matrix, which is then added to that of a tied head.
        "end of the backward pass": held + gradients + step.layer + parameters.embedding_gradient,
        "update": held + parameters.gradients,
    }
