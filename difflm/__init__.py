"""An autoregressive checkpoint goes in, a block-diffusion language model comes out.

The public names load on first use, so that `import difflm` costs nothing (no torch, no transformers).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from difflm.builtin import builtin_model
    from difflm.checkpoints.adapter_saving import save_adapter
    from difflm.checkpoints.constraints import Constraint
    from difflm.checkpoints.convert import convert
    from difflm.checkpoints.export import Export, export
    from difflm.checkpoints.loading import LoadedModel, load_model
    from difflm.checkpoints.merge import average_checkpoints as merge
    from difflm.decode.engine import Engine, generate
    from difflm.decode.events import Completion
    from difflm.decode.policies.named import policy
    from difflm.decode.request import SamplingParams
    from difflm.errors import CheckpointError, ConfigError, DataError, DifflmError, Interrupted, RequestError
    from difflm.likelihood import Continuation, Likelihood, likelihoods
    from difflm.reporting.page import write_report as report
    from difflm.runs import train
    from difflm.scoring import logits, score
    from difflm.training.config import TrainConfig
    from difflm.training.prepare import PrepareSummary, prepare

__version__ = "0.1.0.dev0"

__all__ = [
    "CheckpointError",
    "Completion",
    "ConfigError",
    "Constraint",
    "Continuation",
    "DataError",
    "DifflmError",
    "Engine",
    "Export",
    "Interrupted",
    "Likelihood",
    "LoadedModel",
    "PrepareSummary",
    "RequestError",
    "SamplingParams",
    "TrainConfig",
    "__version__",
    "builtin_model",
    "convert",
    "export",
    "generate",
    "likelihoods",
    "load_model",
    "logits",
    "merge",
    "policy",
    "prepare",
    "report",
    "save_adapter",
    "score",
    "train",
]

_HOMES = {
    "builtin_model": "difflm.builtin:builtin_model",
    "save_adapter": "difflm.checkpoints.adapter_saving:save_adapter",
    "Constraint": "difflm.checkpoints.constraints:Constraint",
    "convert": "difflm.checkpoints.convert:convert",
    "Export": "difflm.checkpoints.export:Export",
    "export": "difflm.checkpoints.export:export",
    "LoadedModel": "difflm.checkpoints.loading:LoadedModel",
    "load_model": "difflm.checkpoints.loading:load_model",
    "merge": "difflm.checkpoints.merge:average_checkpoints",
    "Engine": "difflm.decode.engine:Engine",
    "generate": "difflm.decode.engine:generate",
    "policy": "difflm.decode.policies.named:policy",
    "Completion": "difflm.decode.events:Completion",
    "SamplingParams": "difflm.decode.request:SamplingParams",
    "CheckpointError": "difflm.errors:CheckpointError",
    "ConfigError": "difflm.errors:ConfigError",
    "DataError": "difflm.errors:DataError",
    "DifflmError": "difflm.errors:DifflmError",
    "Interrupted": "difflm.errors:Interrupted",
    "RequestError": "difflm.errors:RequestError",
    "Continuation": "difflm.likelihood:Continuation",
    "Likelihood": "difflm.likelihood:Likelihood",
    "likelihoods": "difflm.likelihood:likelihoods",
    "logits": "difflm.scoring:logits",
    "score": "difflm.scoring:score",
    "TrainConfig": "difflm.training.config:TrainConfig",
    "PrepareSummary": "difflm.training.prepare:PrepareSummary",
    "prepare": "difflm.training.prepare:prepare",
    "report": "difflm.reporting.page:write_report",
    "train": "difflm.runs:train",
}


def __getattr__(name: str) -> Any:
    """Return a public name, importing its module."""
    if name not in _HOMES:
        raise AttributeError(f"module 'difflm' has no attribute {name!r}")
    module, _, attribute = _HOMES[name].partition(":")
    return vars(importlib.import_module(module))[attribute]


def __dir__() -> list[str]:
    """Return the public names."""
    return list(__all__)
