"""Linear maps of the same input as one product, for inference: fewer, larger calls of the kernel.

A forward of a few rows waits for calls as well as for numbers: query, key and value are one product here, gate and up
another. The low-rank pairs beside them are one pair, too, which is applied to the adapter's rows alone. 8-bit maps
share the codes of their input.

Shape legend: see `difflm.types`; I inputs, R ranks, P pieces of G outputs that the outputs of all maps are made of.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from difflm.models.lora import AdapterRows, Linear, LowRank, adapted
from difflm.models.quantised import QuantisedLinear

StackedMap = Linear | QuantisedLinear


class Stack:
    """Maps of one input, one below the other.

    Their tensors, and those of their pairs, become views of larger ones: memory is not doubled, a change in place
    changes both, and nothing is kept that could be late. (A copy would have to know of every change, and fused
    optimisers change parameters without their counters of versions.) A copy of a stack is None, as copied maps have
    tensors of their own.

    Args:
        maps: what `stack_of` lets through.
    """

    def __init__(self, maps: Sequence[StackedMap]) -> None:
        self.maps, self.watch = tuple(maps), _Watch()
        self.product: Callable[..., Tensor] = maps[0].product
        self.pairs = [each.lora for each in maps]
        columns = list(zip(*(each.operands() for each in maps), strict=True))
        self.sizes = [len(each) for each in columns[0]]
        # A bias that none of them has stays None.
        self.operands = [None if column[0] is None else self.watch.one_of(column) for column in columns]
        joinable = _joinable(self.pairs)
        self.joint = _JointPair(joinable, self.sizes, self.watch) if joinable else None
        for each in maps:
            self.watch.module(each)

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        return type(None), ()

    def current(self, maps: Sequence[nn.Module]) -> bool:
        """Return whether these maps still are what was stacked, and nobody waits for their calls (a hook)."""
        return all(map(operator.is_, maps, self.maps)) and self.watch.unchanged()

    def __call__(self, hidden: Tensor, adapter: AdapterRows) -> Sequence[Tensor]:
        """Return the maps' outputs; rows without the adapter are bit for bit those of the stack without it."""
        out = self.product(hidden, *self.operands)
        if self.joint is not None and adapter is not False:
            out = self.joint.added(out, hidden, adapter)
        parts = out.split(self.sizes, dim=-1)
        if self.joint is not None or adapter is False:
            return parts
        pairs = zip(parts, self.pairs, strict=True)
        return [part if pair is None else adapted(part, pair, hidden, adapter) for part, pair in pairs]


class _JointPair:
    """The low-rank pairs beside stacked maps as one: a product with all A, and one of batches with all B.

    The outputs are cut into pieces of the largest size that all maps are made of, as heads are: each piece is a product
    of its rows of B with what its map's A gives.

    Args:
        pairs: of the maps, of one rank and scale; those of one fused matrix share A.
        sizes: outputs of the maps.
        watch: is told of what has to stay as it is.
    """

    def __init__(self, pairs: Sequence[LowRank], sizes: Sequence[int], watch: _Watch) -> None:
        self.scale, rank, size = pairs[0].scale, len(pairs[0].a), math.gcd(*sizes)
        self.pieces = sum(sizes) // size, size
        shared = list({id(each.a): each.a for each in pairs}.values())
        self.a_RI = watch.one_of(shared)
        self.halves = len(shared), rank
        self.b_PRG = watch.one_of([each.b for each in pairs]).view(*self.pieces, rank).transpose(1, 2)
        number = {id(a): place for place, a in enumerate(shared)}
        of_P = [number[id(each.a)] for each, count in zip(pairs, sizes, strict=True) for _ in range(count // size)]
        self.of_P = None if of_P == list(range(len(shared))) else torch.tensor(of_P, device=self.a_RI.device)
        for each in pairs:
            watch.module(each)

    def __call__(self, rows: Tensor) -> Tensor:
        """Return what the pairs add to the outputs of all maps, [..., P, G]."""
        # A matrix: rows that are a part of a batch of one would be multiplied as a batch, which takes twice as long.
        half_NR = F.linear(rows.reshape(-1, rows.shape[-1]), self.a_RI).view(-1, *self.halves).transpose(0, 1)
        half_PNR = half_NR if self.of_P is None else half_NR.index_select(0, self.of_P)
        return torch.bmm(half_PNR, self.b_PRG).mul_(self.scale).transpose(0, 1).unflatten(0, rows.shape[:-1])

    def added(self, out: Tensor, hidden: Tensor, adapter: AdapterRows) -> Tensor:
        """Return the outputs with what the pairs add on their rows; see `adapted`."""
        rows = adapter[..., None] if isinstance(adapter, Tensor) else adapter
        return adapted(out.unflatten(-1, self.pieces), self, hidden, rows).flatten(-2)


def _joinable(pairs: Sequence[LowRank | None]) -> list[LowRank] | None:
    """Return the pairs if every map has one, all of one rank and scale; else each is applied by itself."""
    present = [each for each in pairs if each is not None]
    alike = len(present) == len(pairs) and len({(len(each.a), each.scale) for each in present}) == 1
    return present if alike else None


class _Watch:
    """What has to stay as it is, asked for at every forward: a module's own look-up would take ten times as long."""

    def __init__(self) -> None:
        self.places: list[tuple[Mapping[str, object], str, object]] = []
        self.views: list[tuple[Tensor, Tensor, int]] = []
        self.hooks: list[dict[int, Any]] = []

    def module(self, module: nn.Module) -> None:
        """Watch a module's tensors, its pair, a pair's scale, and for hooks on its calls."""
        self.hooks += [module._forward_hooks, module._forward_pre_hooks]
        for held in (module._parameters, module._buffers):
            self.places += [(held, name, kept) for name, kept in held.items()]
        for held, name in ((module._modules, "lora"), (module.__dict__, "scale")):
            self.places.append((held, name, held.get(name)))

    def one_of(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return one tensor of several, below each other, which they are views of from now on, and are watched for."""
        # Parameters stay ordinary tensors, or ones of inference mode, whoever builds an engine in which mode.
        with torch.inference_mode(tensors[0].is_inference()), torch.no_grad():
            laid = _laid_out(tensors)
            whole = torch.cat([each.detach() for each in tensors]) if laid is None else laid
            for each, part in zip(tensors, whole.split(list(map(len, tensors))), strict=True):
                if laid is None:
                    each.data = part
                self.views.append((each, part, part.data_ptr()))
        return whole

    def unchanged(self) -> bool:
        """Return whether the modules hold the same tensors, these are the same views, and there is no hook."""
        return (
            not any(self.hooks)
            and all(held.get(name) is kept for held, name, kept in self.places)
            # The address first: the question for views is for one device.
            and all(each.data_ptr() == place and each.is_set_to(view) for each, view, place in self.views)
        )


def _laid_out(tensors: Sequence[Tensor]) -> Tensor | None:
    """Return the one tensor of those that lie one behind another in memory already, as after another adapter came.

    They stay where they are, then: others may know their addresses (graphs).
    """
    first, place = tensors[0], tensors[0].data_ptr()
    storage = first.untyped_storage().data_ptr()
    for each in tensors:
        if each.untyped_storage().data_ptr() != storage or each.data_ptr() != place or not each.is_contiguous():
            return None
        place += each.nbytes
    strides = (first[0].numel(), 1)[-first.dim() :]  # not the first one's: a single row has any
    return first.detach().as_strided((sum(map(len, tensors)), *first.shape[1:]), strides)


def stack_of(maps: Sequence[nn.Module]) -> Stack | None:
    """Return the stack of maps of one input; None for sharded ones, classes that are not ours, or types that differ."""
    linear: list[StackedMap] = []
    for each in maps:
        # Not what inherits from them: it may compute something else.
        if isinstance(each, StackedMap) and type(each) in (Linear, QuantisedLinear):
            linear.append(each)
    if len(linear) < len(maps) or len({type(each) for each in linear}) > 1:
        return None
    pairs = [each.lora for each in linear if each.lora is not None]
    columns: list[Sequence[Tensor | None]] = list(zip(*(each.operands() for each in linear), strict=True))
    columns.append([half for pair in pairs for half in (pair.a, pair.b)])
    return Stack(linear) if all(map(_alike, columns)) else None


def _alike(tensors: Sequence[Tensor | None]) -> bool:
    """Return whether tensors are plain ones of one type on one device, or all of them None."""
    plain = all(each is None or (type(each.data) is Tensor and not each.is_meta) for each in tensors)
    kinds = {None if each is None else (each.dtype, each.device, each.is_inference()) for each in tensors}
    return plain and len(kinds) < 2


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
        if stack is None or not torch.is_inference_mode_enabled() or not stack.current(self.maps):
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
        if isinstance(module, SharedInput) and (module.stack is None or not module.stack.current(module.maps)):
            module.stack = stack_of(module.maps)
