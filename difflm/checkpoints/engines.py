"""Serving engines: what each assumes of a block-diffusion checkpoint, as read in the version named; no network.

An engine decodes what its code expects: a mask id that it has built in, no token shift, attention by whole blocks.
Nothing in it looks at our fields, so a checkpoint that does not fit is decoded wrongly without a message. The table
holds these assumptions; `docs/serving-at-scale.md` says more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from difflm.checkpoints.config import CheckpointConfig
from difflm.checkpoints.families import FAMILIES


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """What an engine loads.

    Attributes:
        title: name and version that was read.
        mask_ids: class name in `architectures` -> the mask id that the engine has built in for it.
        stacked: it reads experts that are stacked in one tensor.
        qk_norm: it normalises query and key heads whatever the configuration says.
        expert_bias: it needs a bias for the choice of experts.
        dense_layers: it knows layers without experts in these classes.
        command: launch command; `{target}`, `{block_size}` and `{threshold}` are filled in.
    """

    title: str
    mask_ids: Mapping[str, int]
    stacked: bool = False
    qk_norm: bool = False
    expert_bias: bool = False
    dense_layers: tuple[str, ...] = ()
    command: str = field(repr=False)


_LLADA2, _SDAR, _SDAR_MOE = "LLaDA2MoeModelLM", "SDARForCausalLM", "SDARMoeForCausalLM"

ENGINES: Mapping[str, Engine] = {
    # sglang/srt/dllm/config.py, models/llada2.py, sdar.py, sdar_moe.py
    "sglang": Engine(
        title="SGLang 0.5.23",
        mask_ids={_LLADA2: 156_895, _SDAR: 151_669, _SDAR_MOE: 151_669},
        stacked=True,
        expert_bias=True,
        dense_layers=(_LLADA2,),
        command="python -m sglang.launch_server --model-path {target} --trust-remote-code"
        " --dllm-algorithm LowConfidence --dllm-algorithm-config {target}/sglang.yaml",
    ),
    # lmdeploy/pytorch/configurations/sdar.py, models/sdar.py, sdar_moe.py
    "lmdeploy": Engine(
        title="LMDeploy 0.16.0",
        mask_ids={_SDAR: 151_669, _SDAR_MOE: 151_669},
        dense_layers=(_SDAR_MOE,),
        command="lmdeploy serve api_server {target} --backend pytorch --trust-remote-code"
        " --dllm-block-length {block_size} --dllm-unmasking-strategy low_confidence_dynamic"
        " --dllm-confidence-threshold {threshold}",
    ),
    # python/dinfer/model/modeling_llada2_moe.py, modeling_llada2_moe_sglang.py, benchmarks/benchmark.py
    "dinfer": Engine(
        title="dInfer (fce4e32)",
        mask_ids={_LLADA2: 156_895},
        qk_norm=True,
        expert_bias=True,
        dense_layers=(_LLADA2,),
        command="python benchmarks/benchmark.py --model_name {target} --model_type llada2 --gpu 0 --use_bd"
        " --cache prefix --parallel_decoding threshold --threshold {threshold} --block_length {block_size}",
    ),
    # dllm_plugin/models/llada2.py, config.py
    "vllm": Engine(
        title="vLLM's dllm-plugin (2191c59)",
        mask_ids={_LLADA2: 156_895},
        qk_norm=True,
        expert_bias=True,
        dense_layers=(_LLADA2,),
        command="VLLM_PLUGINS=dllm VLLM_USE_V2_MODEL_RUNNER=1 VLLM_ENABLE_V1_MULTIPROCESSING=0"
        " VLLM_DLLM_DRAFT_SIZE={block_size} vllm serve {target} --trust-remote-code"
        " --scheduler-cls dllm_plugin.runtime_scheduler.DllmRuntimeScheduler"
        " --worker-cls dllm_plugin.runtime_worker.DllmRuntimeWorker",
    ),
}
"""Engines by the name that `difflm export --engine` takes."""


def shortcomings(engine: Engine, family_name: str, config: CheckpointConfig) -> tuple[str, ...]:
    """Return why an engine would not load a checkpoint or would decode it wrongly, empty where it serves it.

    Args:
        engine: one of `ENGINES`.
        family_name: `model_type` that is written.
        config: facts of the checkpoint, which must be a block-diffusion model with the paper's parametrisation.
    """
    family, model = FAMILIES[family_name], config.model
    if family.architecture not in engine.mask_ids:
        known = ", ".join(engine.mask_ids)
        return (f"it has no block diffusion for {family.architecture} ({family_name}), only for {known}",)
    found = []
    mask = engine.mask_ids[family.architecture]
    if config.mask_token_id != mask:
        found.append(f"mask_token_id is {config.mask_token_id}; it has {mask} built in for {family.architecture}")
    if family_name == "llada2_moe_veomni" and not engine.stacked:
        found.append("it reads one matrix per expert, not stacked ones; export format hf")
    if engine.qk_norm and not model.qk_norm:
        found.append("use_qk_norm is False; it always normalises queries and keys")
    moe = model.moe
    if moe is not None and engine.expert_bias and family.experts == "ling" and not moe.expert_bias:
        found.append("moe_router_enable_expert_bias is False; its sigmoid router needs the bias")
    if moe is not None and moe.dense_layers and family.architecture not in engine.dense_layers:
        found.append(f"layers {', '.join(map(str, moe.dense_layers))} have no experts; it gives every layer some")
    return tuple(found)
