"""The arithmetic of a run on many GPUs, as JSON values and as a table for a reader."""

from __future__ import annotations

from typing import Any

from difflm.estimate.cluster import PREFETCHED, RESERVED, ClusterEstimate
from difflm.estimate.run import LORA_NOTE, bytes_text, duration_text


def cluster_tree(found: ClusterEstimate) -> dict[str, Any]:
    """Return an estimate as JSON values; bytes, tokens, operations and hours."""
    memory, cluster, config = found.memory, found.cluster, found.config
    tokens, hours = sum(stage.tokens for stage in found.stages), found.hours
    return {
        "measured": False,
        "model": {
            "name": str(config.model), "parameters": found.parameters, "active_parameters": found.active,
            "layers": found.model.num_layers,
        },
        "cluster": {
            "gpus": cluster.gpus, "gpu_memory": cluster.memory, "usable": cluster.usable, "shard": cluster.shard,
            "expert_parallel": cluster.expert_parallel, "gpu_tflops": cluster.tflops, "mfu": cluster.mfu,
        },
        "run": {
            "dtype": config.dtype, "row_length": config.data.row_length, "rows_per_gpu": config.rows_per_batch,
            "micro_steps": found.micro_steps, "rows_per_step": config.rows_per_batch * config.accumulation,
            "activation_checkpointing": config.activation_checkpointing, "tokens": tokens,
        },
        "memory_total": memory.total,
        "memory_per_gpu": {
            "state": memory.state, "embedding_and_head": memory.root, "gathered_layers": memory.layers,
            "gradients_of_a_layer": memory.reduced, "activations": memory.step.activations,
            "recomputed_layer": memory.step.recomputed, "logits": memory.step.logits, "peaks": memory.peaks,
            "peak": memory.peak, "peak_with_the_other_checkpointing": found.other.peak,
        },
        "fits": found.fits,
        "smallest_gpus": found.smallest,
        "operations": sum(found.operations),
        "time": {
            "hours": hours, "gpu_hours": None if hours is None else hours * cluster.gpus,
            "tokens_per_second": None if hours is None else tokens / hours / 3600,
        },
    }  # fmt: skip


def cluster_lines(found: ClusterEstimate) -> list[str]:
    """Return an estimate as lines for a reader."""
    tree, config = cluster_tree(found), found.config
    model, cluster, run, memory = tree["model"], tree["cluster"], tree["run"], tree["memory_per_gpu"]
    saving = run["activation_checkpointing"]
    parallel = f", experts over {cluster['expert_parallel']}" if cluster["expert_parallel"] > 1 else ""
    active = f", {model['active_parameters']:,} active" if model["active_parameters"] != model["parameters"] else ""
    lines = [
        "arithmetic, not a measurement: nothing was run on these GPUs",
        "",
        f"model       {model['name']}: {model['parameters']:,} parameters{active}, {model['layers']} layers",
        f"cluster     {cluster['gpus']} GPUs of {bytes_text(cluster['gpu_memory'])}, shard {cluster['shard']}"
        f"{parallel}",
        f"run         {run['tokens']:,} tokens, {run['rows_per_step']} rows of {run['row_length']} a step: "
        f"{run['micro_steps']} x {run['rows_per_gpu']} on each GPU",
        f"computes    {run['dtype']}{', activation checkpointing' if saving else ''}",
        "",
    ]
    whole = f"of {bytes_text(tree['memory_total'])}: parameters, gradients, moments"
    reduced = "in the run's dtype and in float32"
    remarks = {
        "state": whole, "gathered_layers": f"{PREFETCHED} at once", "gradients_of_a_layer": reduced,
        "activations": f"rows at once: {run['rows_per_gpu']}",
    }  # fmt: skip
    for name in (
        "state", "embedding_and_head", "gathered_layers", "gradients_of_a_layer", "activations", "recomputed_layer",
        "logits",
    ):  # fmt: skip
        if memory[name]:
            remark = f"  ({remarks[name]})" if name in remarks else ""
            lines.append(f"{name.replace('_', ' '):<22}{bytes_text(memory[name]):>12}{remark}")
    when = max(memory["peaks"], key=lambda name: memory["peaks"][name])
    other = f"{'without' if saving else 'with'} activation checkpointing"
    smallest = tree["smallest_gpus"]
    enough = "no number of GPUs is enough" if smallest is None else f"the fewest that are enough: {smallest}"
    lines += [
        f"{'peak of a GPU':<22}{bytes_text(memory['peak']):>12}  ({when}; {other} "
        f"{bytes_text(memory['peak_with_the_other_checkpointing'])})",
        f"{'usable':<22}{bytes_text(cluster['usable']):>12}  ({RESERVED:.0%} kept free for what is not a tensor)",
        f"{'fits':<22}{'yes' if tree['fits'] else 'no':>12}  ({enough})",
        "",
        f"operations  {tree['operations']:.3g}, recomputation not counted",
    ]
    if config.lora is not None:
        lines.append(f"note        {LORA_NOTE}")
    timing = tree["time"]
    if timing["hours"] is None:
        lines.append("time        not without --gpu-tflops, the peak of a GPU")
    else:
        lines.append(
            f"time        {duration_text(3600 * timing['hours'])}, {timing['gpu_hours']:,.0f} GPU hours, "
            f"{timing['tokens_per_second']:,.0f} tokens/s, if {cluster['mfu']:.0%} of {cluster['gpu_tflops']:g} "
            "TFLOP/s go into the model"
        )
    return lines
