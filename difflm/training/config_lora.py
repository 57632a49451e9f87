"""Section `lora` of a training configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import ConfigDict, Field

from difflm.models.lora import AdapterGate
from difflm.training.config_fields import STRICT, AboveZero, Count, NonEmpty, Positive


@dataclass(frozen=True, slots=True, kw_only=True)
class LoRAConfig:
    """Low-rank pairs beside the weights learn, the weights do not; `lora: {}` takes the defaults.

    There is no dropout: every random number of a run follows from its row, and what the adapter computes is what the
    merged model computes.

    Attributes:
        rank: R of each pair; of an expert's gate, up and down each. Default 16.
        alpha: the pairs' part is scaled by alpha / rank. Default 32.
        rank_stabilised: scale by alpha / sqrt(rank) instead (rsLoRA). Default false.
        targets: weights that get a pair: "attention", "mlp" (feed-forward of dense layers), "shared" (shared experts),
            "experts", or patterns of names, with * and ?, e.g. "layers.1?.attention.*". Each must match something.
            Default [attention, mlp].
        mask_row: the mask token's row of the embedding learns as well, where the model has one. Default true.
        draft_head: rank of a head that tells each draft the token before it (`difflm.models.draft_head`), for drafting
            with adapter_rows "noisy". 0: none, the default.
        adapter_rows: rows that the adapter acts on: "all", or "noisy": clean rows, and so the text that is written left
            to right, stay the base's bit for bit. Such an adapter is never merged. Default "all".
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    rank: Positive = 16
    alpha: AboveZero = 32.0
    rank_stabilised: bool = False
    targets: Annotated[tuple[NonEmpty, ...], Field(min_length=1)] = ("attention", "mlp")
    mask_row: bool = True
    draft_head: Count = 0
    adapter_rows: AdapterGate = "all"
