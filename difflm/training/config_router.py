"""Section `router` of a training configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pydantic import ConfigDict

from difflm.errors import ConfigError
from difflm.training.config_fields import STRICT, NonNegative


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterConfig:
    """How the routers of a mixture of experts are kept balanced; everything is off by default.

    Attributes:
        bias_update_rate: after each optimiser step, add this to the selection bias of every expert that got fewer
            tokens than the mean, subtract it where it got more; 1e-3 is what DeepSeek-V3 and Ling 2.0 were pre-trained
            with. 0 leaves the biases as they are. Default 0.
        z_loss: coefficient of the mean squared log-sum-exp of a token's router logits, for each layer; 1e-3 is usual.
            Default 0.
        balance_loss: coefficient of DeepSeek-V3's sequence-wise balance loss, for each layer; 1e-4 is usual. A
            sequence is one stream of one row. Default 0.
        freeze: the weights and the biases of the routers stay as they are. Default false.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    bias_update_rate: NonNegative = 0.0
    z_loss: NonNegative = 0.0
    balance_loss: NonNegative = 0.0
    freeze: bool = False

    def __post_init__(self) -> None:
        """Refuse to balance what is frozen."""
        wanted = self.first_wanted
        if self.freeze and wanted:
            raise ConfigError(
                f"train.router.freeze: true together with {wanted[0]} {wanted[1]}, which changes routers; "
                "set one of the two"
            )

    @property
    def first_wanted(self) -> tuple[str, float] | None:
        """Return (name, value) of the first rate or coefficient that is not 0."""
        values = {
            "bias_update_rate": self.bias_update_rate,
            "z_loss": self.z_loss,
            "balance_loss": self.balance_loss,
        }
        return next(((name, value) for name, value in values.items() if value), None)
