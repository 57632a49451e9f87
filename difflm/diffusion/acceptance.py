"""Which proposals of a denoising step are kept. Plain numbers, no tensors: a block has few positions.

Source: LLaDA2.0 report, section 5.4 (accept every token whose probability exceeds a threshold; if too few do,
accept a fixed number of the most probable). The comparison is strict, as in the released code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


class Acceptance(Protocol):
    """Which proposals of one step are kept. An instance is its own configuration."""

    @property
    def needs_entropy(self) -> bool:
        """Whether the entropies are read; they cost a pass over the vocabulary."""
        ...

    def __call__(self, confidences: Sequence[float], entropies: Sequence[float]) -> list[int]:
        """Return indices of the undecided positions to fill now, ascending; at least one.

        Args:
            confidences: probability of each undecided position's proposal, in [0, 1].
            entropies: of each position's distribution, nats; empty unless needed.
        """
        ...


def most_confident(confidences: Sequence[float], count: int) -> list[int]:
    """Return the indices of the `count` largest values, ascending; the lowest index among equals."""
    ranked = sorted(range(len(confidences)), key=lambda i: (-confidences[i], i))
    return sorted(ranked[:count])


def accept(confidences: Sequence[float], *, threshold: float, min_accept: int = 1) -> list[int]:
    """Return the indices whose confidence is strictly above the threshold, ascending.

    Where fewer than `min_accept` are, the `min_accept` most confident are taken instead (a superset; lowest index
    among equals; all of them if there are fewer).

    Args:
        confidences: probability of each undecided position's proposal.
        threshold: probability; a value of 1 or more leaves one token per step (`min_accept` of them).
        min_accept: positions to fill per step, at least 1.
    """
    high = [i for i, confidence in enumerate(confidences) if confidence > threshold]
    return high if len(high) >= min_accept else most_confident(confidences, min_accept)


@dataclass(frozen=True, slots=True)
class ThresholdAcceptance:
    """Native rule of difflm: strict threshold with a floor of `min_accept` tokens per step (see `accept`).

    Attributes:
        threshold: probability, >= 0; 1 or more decides `min_accept` tokens per step.
        min_accept: tokens decided per step at least.
    """

    threshold: float
    min_accept: int = 1
    needs_entropy: bool = False

    def __call__(self, confidences: Sequence[float], entropies: Sequence[float]) -> list[int]:
        """Return `accept` under this threshold and floor."""
        return accept(confidences, threshold=self.threshold, min_accept=self.min_accept)


@dataclass(frozen=True, slots=True)
class FixedAcceptance:
    """The same number of tokens every step, whatever their confidence: forced schedules.

    Attributes:
        count: tokens per step; the last step of a block takes what is left.
    """

    count: int
    needs_entropy: bool = False

    def __call__(self, confidences: Sequence[float], entropies: Sequence[float]) -> list[int]:
        """Return the `count` most confident."""
        return most_confident(confidences, self.count)


@dataclass(frozen=True, slots=True)
class EntropyAcceptance:
    """As many tokens as an entropy budget pays for, the surest first.

    Positions are sorted by entropy; the first is always taken, and further ones while the sum of the entropies of
    those taken, less the largest of them, stays within the bound (an upper bound of the error of drawing them
    independently).

    Attributes:
        bound: nats, >= 0; 0 takes one token, and those of entropy 0.

    Source: EB-Sampler (arXiv 2505.24857), Eq. 9: sum of entropies - largest <= gamma.
    """

    bound: float
    needs_entropy: bool = True

    def __call__(self, confidences: Sequence[float], entropies: Sequence[float]) -> list[int]:
        """Return the longest prefix by entropy that the bound allows."""
        ranked = sorted(range(len(entropies)), key=lambda i: (entropies[i], i))
        taken, before = ranked[:1], 0.0
        for number, current in enumerate(ranked[1:]):
            before += entropies[ranked[number]]  # the sum less the largest, which is the current one
            if before > self.bound:
                break
            taken.append(current)
        return sorted(taken)
