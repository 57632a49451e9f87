"""Linear maps of the same input as one product, for inference: fewer, larger calls of the kernel.

A forward of a few rows waits for calls more than for numbers: query, key and value in one product, and gate and up in
another, halve the time of a row on two cores (benchmarks/2026-11-30-lossless.md). The low-rank pairs beside them are
one pair of matrices, too, which is applied to the adapter's rows alone.

Shape legend: see `difflm.types`; I inputs, O outputs of all maps, R ranks of all pairs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from difflm.models.lora import AdapterRows, Linear, LowRank, adapted


class Stack:
    """Maps of one input, one below the other.

    The weights become views of one tensor: their memory is not doubled, and a change in place changes both. Of the
    adapter's pairs a copy is kept; `current` says whether all of it still is what the maps are.

    Args:
        maps: plain tensors of one dtype, all with a bias or none.
    """

    def __init__(self, maps: Sequence[Linear]) -> None:
        self.maps = tuple(maps)
        self.sizes = [each.out_features for each in maps]
        # Parameters stay ordinary tensors, whoever builds an engine in inference mode.
        with torch.inference_mode(False), torch.no_grad():
            self.weight_OI = torch.cat([each.weight.detach() for each in maps])
            biases = [each.bias.detach() for each in maps if each.bias is not None]
            self.bias_O = torch.cat(biases) if biases else None
            _into_views([each.weight for each in maps], self.weight_OI)
            if self.bias_O is not None:
                _into_views([each.bias for each in maps], self.bias_O)
            self.pair = _joint_pair([each.lora for each in maps], self.sizes)
        self.built_from = self._state()

    def _state(self) -> list[tuple[object, ...]]:
        """Return what tells whether the maps are still those that were stacked."""
        found: list[tuple[object, ...]] = []
        for each in self.maps:
            found.append(
                (each.weight.data_ptr(), each.weight.dtype, None if each.bias is None else each.bias.data_ptr())
            )
            if each.lora is not None:
                found += [
                    (id(half), half.data_ptr(), 0 if half.is_inference() else half._version)
                    for half in (each.lora.a, each.lora.b)
                ]
        return found

    def current(self) -> bool:
        """Return whether the maps still are those that were stacked."""
        return self._state() == self.built_from

    def __call__(self, hidden: Tensor, adapter: AdapterRows) -> tuple[Tensor, ...]:
        """Return the maps' outputs; rows without the adapter are bit for bit those of the stack without it."""
        out = F.linear(hidden, self.weight_OI, self.bias_O)
        if self.pair is not None and adapter is not False:
            a_RI, b_OR = self.pair
            out = adapted(out, lambda rows: F.linear(F.linear(rows, a_RI), b_OR), hidden, adapter)
        return out.split(self.sizes, dim=-1)


def _into_views(parameters: Sequence[Tensor], stacked: Tensor) -> None:
    """Make the parameters views of what they were stacked into."""
    sizes = [len(each) for each in parameters]
    for each, part in zip(parameters, stacked.split(sizes), strict=True):
        each.data = part


def _joint_pair(pairs: Sequence[LowRank | None], sizes: Sequence[int]) -> tuple[Tensor, Tensor] | None:
    """Return A [R, I] and B [O, R], the scale in B, of all pairs together; None: there are none."""
    present = [each for each in pairs if each is not None]
    if not present:
        return None
    shared = list({id(each.a): each.a for each in present}.values())  # pairs of one fused matrix share A
    firsts = {id(a): sum(len(other) for other in shared[:number]) for number, a in enumerate(shared)}
    a_RI = torch.cat([each.detach() for each in shared])
    b_OR = a_RI.new_zeros(sum(sizes), len(a_RI))
    row = 0
    for pair, size in zip(pairs, sizes, strict=True):
        if pair is not None:
            first = firsts[id(pair.a)]
            b_OR[row : row + size, first : first + len(pair.a)] = pair.b.detach() * pair.scale
        row += size
    return a_RI, b_OR


def stack_of(maps: Sequence[nn.Module]) -> Stack | None:
    """Return the stack of maps of one input; None for 8-bit weights, sharded ones, or types that differ."""
    linear = [each for each in maps if isinstance(each, Linear)]
    plain = all(type(each.weight.data) is Tensor and not each.weight.is_meta for each in linear)
    kinds = {(each.weight.dtype, each.weight.device, each.bias is None) for each in linear}
    pairs = {(each.lora.a.dtype, each.lora.a.device) for each in linear if each.lora is not None}
    if len(linear) < len(maps) or not plain or len(kinds) > 1 or len(pairs) > 1:
        return None
    return Stack(linear)


class SharedInput(nn.Module):
    """A module whose first maps read the same input."""

    def __init__(self) -> None:
        super().__init__()
        self.stack: Stack | None = None

    @property
    def maps(self) -> tuple[Linear, ...]:
        """Return the maps of its input."""
        raise NotImplementedError

    def mapped(self, hidden_BND: Tensor, adapter: AdapterRows) -> Sequence[Tensor]:
        """Return the outputs of the maps: by their stack where there is one that may be used.

        Args:
            hidden_BND: input.
            adapter: see `Transformer.forward`.
        """
        # A compiler stacks as it likes, and cannot follow the question for inference mode.
        stack = None if torch.compiler.is_compiling() else self.stack
        if stack is None or not torch.is_inference_mode_enabled() or not stack.current():
            return [each(hidden_BND, adapter) for each in self.maps]
        return stack(hidden_BND, adapter)


def stack_maps(model: nn.Module) -> None:
    """Let maps of one input be computed by one product in inference mode.

    Weights stay what they are, and may change afterwards: maps that are not any more what was stacked are computed
    one by one, until this is called again.

    Args:
        model: changed in place: its parameters become views of larger tensors.
    """
    for module in model.modules():
        if isinstance(module, SharedInput) and (module.stack is None or not module.stack.current()):
            module.stack = stack_of(module.maps)
