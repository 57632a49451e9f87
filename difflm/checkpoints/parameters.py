"""Parameters that are made when they are asked for: whole, some experts of a stack, or only shape and dtype."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from difflm.checkpoints.rules import KeyRule, StackExperts
from difflm.checkpoints.shards import ShardWriter
from difflm.models.config import ModelConfig

SLAB_BYTES = 2**26
"""Experts of a stack are read and written together up to this size; a larger one alone."""


class Parameters(Mapping[str, Tensor]):
    """Parameters of a model by name, none of them in memory before it is asked for."""

    @abstractmethod
    def take(self, names: Sequence[str], experts: range | None = None) -> list[Tensor]:
        """Return parameters; what they have in common on disk is read once.

        Args:
            names: of the parameters.
            experts: which of the first dimension, one after the other; only of stacks of experts. None: all.
        """
        ...

    @abstractmethod
    def outline(self, name: str) -> Tensor:
        """Return a parameter on the meta device: shape and dtype, nothing is read."""
        ...

    def __getitem__(self, name: str) -> Tensor:
        """Return a parameter."""
        return self.take([name])[0]


def take(parameters: Mapping[str, Tensor], names: Sequence[str], experts: range | None = None) -> list[Tensor]:
    """Return `Parameters.take`, or the same of tensors that are in memory."""
    if isinstance(parameters, Parameters):
        return parameters.take(names, experts)
    found = [parameters[name] for name in names]
    return found if experts is None else [each[experts.start : experts.stop] for each in found]


def outline(parameters: Mapping[str, Tensor], name: str) -> Tensor:
    """Return `Parameters.outline`, or the same of a tensor that is in memory."""
    return parameters.outline(name) if isinstance(parameters, Parameters) else parameters[name].to("meta")


def is_stack(name: str) -> bool:
    """Return whether a parameter is a stack of experts, which every change treats one by one."""
    return ".mlp.experts." in name


def disk_parts(rule: KeyRule, experts: range, config: ModelConfig) -> list[tuple[str, range | None]]:
    """Return what some experts of a rule are on disk: names, and rows where a tensor holds other experts too.

    Args:
        rule: of a stack of experts, filled in.
        experts: one after the other.
        config: architecture.
    """
    if not isinstance(rule.change, StackExperts):
        return [(name, experts) for name in rule.disk]
    assert config.moe is not None
    each = len(rule.disk) // config.moe.num_experts
    return [(name, None) for name in rule.disk[experts.start * each : experts.stop * each]]


def put_parameters(
    writer: ShardWriter, rules: Sequence[KeyRule], parameters: Mapping[str, Tensor], config: ModelConfig
) -> None:
    """Write every parameter that the writer wants, rule by rule, stacks of experts in slabs; casts to what is planned.

    Args:
        writer: of the files.
        rules: filled in, in the order of the files.
        parameters: by the names of `Transformer`.
        config: architecture.
    """
    for rule in rules:
        for experts in _slabs(rule, parameters):
            parts = [(name, None) for name in rule.disk] if experts is None else disk_parts(rule, experts, config)
            if any(writer.wants(name) for name, _ in parts):
                # Made in a call: no variable here holds a tensor while the next one is read.
                _put(writer, parts, rule.change.to_disk(take(parameters, rule.model, experts), config))


def _put(writer: ShardWriter, parts: Sequence[tuple[str, range | None]], tensors: Sequence[Tensor]) -> None:
    for (name, rows), tensor in zip(parts, tensors, strict=True):
        writer.put(name, tensor, rows.start if rows else 0)


def _slabs(rule: KeyRule, parameters: Mapping[str, Tensor]) -> Iterator[range | None]:
    if not is_stack(rule.model[0]):
        yield None
        return
    whole = [outline(parameters, name) for name in rule.model]
    count = whole[0].shape[0]
    one = sum(each.numel() * each.element_size() for each in whole) // count
    step = max(1, SLAB_BYTES // one)
    for start in range(0, count, step):
        yield range(start, min(start + step, count))
