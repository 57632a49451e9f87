"""What answers cost: forwards, tokens and time of one task."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from difflm.decode.events import Completion
from difflm.likelihood import Likelihood


@dataclass(slots=True)
class Usage:
    """What the answers to one task cost.

    Attributes:
        likelihoods: texts scored.
        exact: those of them whose value is exact.
        scored_tokens: tokens of all of them.
        likelihood_rows: rows that went through the model for them, one for each mask of each text.
        likelihood_errors: standard errors of the others, nats.
        likelihood_seconds: wall-clock time.
        generated: requests decoded.
        tokens: generated tokens, as `Completion.num_tokens` counts them.
        prefill, denoise, commit: forwards of all requests, each counted by itself.
        seconds: wall-clock time of decoding, all requests together.
        truncated: contexts that were cut on the left to fit.
    """

    likelihoods: int = 0
    exact: int = 0
    scored_tokens: int = 0
    likelihood_rows: int = 0
    likelihood_errors: list[float] = field(default_factory=list[float])
    likelihood_seconds: float = 0.0
    generated: int = 0
    tokens: int = 0
    prefill: int = 0
    denoise: int = 0
    commit: int = 0
    seconds: float = 0.0
    truncated: int = 0

    def add_likelihood(self, found: Likelihood) -> None:
        """Take in a scored text."""
        self.likelihoods += 1
        self.exact += found.standard_error == 0
        self.scored_tokens += found.num_tokens
        self.likelihood_rows += found.forwards
        if found.standard_error:
            self.likelihood_errors.append(found.standard_error)

    def add_completion(self, completion: Completion) -> None:
        """Take in a decoded request."""
        self.generated += 1
        self.tokens += completion.num_tokens
        self.prefill += completion.forwards.prefill
        self.denoise += completion.forwards.denoise
        self.commit += completion.forwards.commit

    def as_dict(self) -> dict[str, Any]:
        """Return the figures of what there was: "likelihood", "generation"; TPF and TPS over all requests."""
        found: dict[str, Any] = {"truncated_contexts": self.truncated}
        if self.likelihoods:
            errors = self.likelihood_errors
            found["likelihood"] = {
                "texts": self.likelihoods,
                "exact": self.exact,
                "tokens": self.scored_tokens,
                "forwards": self.likelihood_rows,
                "mean_standard_error_nats": math.fsum(errors) / len(errors) if errors else 0.0,
                "seconds": self.likelihood_seconds,
            }
        if self.generated:
            forwards = self.denoise + self.commit
            found["generation"] = {
                "requests": self.generated,
                "tokens": self.tokens,
                "forwards": {"prefill": self.prefill, "denoise": self.denoise, "commit": self.commit},
                "tokens_per_forward": self.tokens / forwards if forwards else 0.0,
                "tokens_per_second": self.tokens / self.seconds if self.seconds > 0 else 0.0,
                "seconds": self.seconds,
            }
        return found
