"""Stacked maps against the same maps one by one, whatever becomes of their tensors after they were stacked."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrizations

import difflm
from difflm.checkpoints.adapter_saving import save_adapter
from difflm.checkpoints.saving import save_model
from difflm.models import quantised
from difflm.models.adapters import AdapterSite, adaptable_weights, adapter_parameters, attach_adapter
from difflm.models.attention import DenseAttention
from difflm.models.config import ModelConfig
from difflm.models.lora import AdapterRows, Linear, LowRank
from difflm.models.quantised import QuantisedLinear, quantise
from difflm.models.stacking import SharedInput, Stack, stack_maps, stack_of
from difflm.models.transformer import Transformer
from tests.checkpoints.adapters import adapted
from tests.decode.tiny import architecture, random_transformer, tiny
from tests.models.test_moe import LING, QWEN
from tests.models.test_moe import architecture as sparse_architecture
from tests.standins import write_parent

SIZES, INPUTS = (12, 8, 8), 10
ATOL = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.15}
ROWS: dict[str, AdapterRows] = {
    "all": True,
    "none": False,
    "run": slice(2, 5),
    "empty": slice(3, 3),
    "mask": torch.tensor([[True, False, True, False, True, False], [False, True, True, False, False, True]]),
}
PAIRS = {"no": "---", "each": "abc", "shared": "aaa", "some": "a-b", "two share": "aab"}
"""For each map the name of its pair's A; "-": no pair."""


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pair_of(out: int, *, rank: int = 2, scale: float = 1.5, seed: int = 0, a: nn.Parameter | None = None) -> LowRank:
    a = nn.Parameter(0.3 * drawn(rank, INPUTS, seed=30 + seed)) if a is None else a
    return LowRank(a, nn.Parameter(drawn(out, len(a), seed=40 + seed)), scale=scale)


def maps_of(letters: str = "---", *, bias: bool = True) -> list[Linear]:
    """Return three maps of one input, the same numbers at every call."""
    made = [Linear(INPUTS, size, bias=bias).double() for size in SIZES]
    shared: dict[str, nn.Parameter] = {}
    for number, (each, letter) in enumerate(zip(made, letters, strict=True)):
        with torch.no_grad():
            for tensor in each.parameters():
                tensor.copy_(drawn(*tensor.shape, seed=10 * number + tensor.dim()))
        if letter != "-":
            each.lora = pair_of(SIZES[number], seed=number, a=shared.get(letter))
            shared[letter] = each.lora.a
    return made


def hidden(dtype: torch.dtype = torch.float64) -> Tensor:
    return drawn(2, 6, INPUTS, seed=99).to(dtype)


def stacked(maps: Sequence[nn.Module]) -> Stack:
    made = stack_of(maps)
    assert made is not None
    return made


class Shared(SharedInput):
    """Three maps of one input, as attention has them."""

    def __init__(self, maps: Sequence[nn.Module]) -> None:
        super().__init__()
        self.given = nn.ModuleList(maps)

    @property
    def maps(self) -> tuple[Linear, ...]:
        return tuple(self.given)  # pyright: ignore[reportReturnType]


def watched(shared: Shared) -> list[str]:
    """Stack a module's maps; return the list to which each product of the stack is added."""
    stack_maps(shared)
    assert shared.stack is not None
    product, calls = shared.stack.product, list[str]()

    def counted(*operands: Tensor) -> Tensor:
        calls.append("product")
        return product(*operands)

    shared.stack.product = counted
    return calls


@torch.inference_mode()
def check_maps(shared: Shared, calls: list[str], *, by_stack: bool, dtype: torch.dtype = torch.float64) -> None:
    """Assert that a module's maps give what they give one by one, and whether the stack is what computes."""
    calls.clear()
    found = shared.mapped(hidden(dtype), True)
    assert calls == ["product"] * by_stack
    for mine, each in zip(found, shared.maps, strict=True):
        assert torch.allclose(mine, each(hidden(dtype), True), atol=ATOL[dtype])


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("letters", PAIRS.values(), ids=PAIRS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", ATOL, ids=str)
def test_a_stack_equals_its_maps(dtype: torch.dtype, bias: bool, letters: str, rows: str) -> None:
    maps, acts = [each.to(dtype) for each in maps_of(letters, bias=bias)], ROWS[rows]
    with torch.inference_mode():
        alone = [each(hidden(dtype), acts) for each in maps]
        stack = stacked(maps)
        found, silent = stack(hidden(dtype), acts), stack(hidden(dtype), False)
    outside = torch.ones(2, 6, dtype=torch.bool)
    outside[acts if isinstance(acts, Tensor) else (slice(None), acts if isinstance(acts, slice) else slice(6))] = False
    for mine, expected, base in zip(found, alone, silent, strict=True):
        assert mine.dtype == dtype
        assert torch.allclose(mine, expected, atol=ATOL[dtype])
        assert torch.equal(mine[outside], base[outside])
    if letters == "abc" and rows == "all":
        assert not torch.allclose(found[0], silent[0], atol=ATOL[dtype])


@pytest.mark.parametrize(
    ("ranks", "scales"), [((2, 3, 1), (1.5, 1.5, 1.5)), ((2, 2, 2), (1.5, 0.5, 1.5)), ((3, 3, 3), (0.7, 0.7, 0.7))]
)
def test_pairs_may_differ_in_rank_and_scale(ranks: tuple[int, ...], scales: tuple[float, ...]) -> None:
    shared = Shared(maps_of())
    for number, each in enumerate(shared.maps):
        each.lora = pair_of(SIZES[number], rank=ranks[number], scale=scales[number], seed=number)
    check_maps(shared, watched(shared), by_stack=True)


def test_every_tensor_becomes_a_view_of_one_and_keeps_its_numbers() -> None:
    maps = maps_of("abc")
    before = [tensor.detach().clone() for each in maps for tensor in each.parameters()]
    stacked(maps)
    after = [tensor for each in maps for tensor in each.parameters()]
    assert all(torch.equal(*both) for both in zip(before, after, strict=True))
    assert all(tensor.is_contiguous() for tensor in after)
    assert len({tensor.untyped_storage().data_ptr() for tensor in after}) == 4, "weights, biases, A and B"
    held = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in after}
    assert sum(held.values()) == sum(tensor.nbytes for tensor in after), "memory is not doubled"


def by_optimiser(**options: Any) -> Callable[[Shared], object]:
    def step(shared: Shared) -> None:
        for each in shared.parameters():
            each.grad = torch.ones_like(each)
        torch.optim.AdamW(shared.parameters(), lr=0.1, **options).step()

    return step


@torch.no_grad()
def without_gradient(shared: Shared) -> None:
    for each in shared.parameters():
        each.mul_(0.5)


@torch.inference_mode()
def in_inference_mode(shared: Shared) -> None:
    for each in shared.parameters():
        each.mul_(0.5)


def past_autograd(shared: Shared) -> None:
    for each in shared.parameters():
        each.data.mul_(0.5)


def loaded(shared: Shared) -> None:
    shared.load_state_dict({name: 2 * each for name, each in shared.state_dict().items()})


@pytest.mark.parametrize("letters", PAIRS.values(), ids=PAIRS)
@pytest.mark.parametrize(
    "change",
    [
        by_optimiser(fused=True),
        by_optimiser(foreach=True),
        by_optimiser(foreach=False),
        without_gradient,
        in_inference_mode,
        past_autograd,
        loaded,
    ],
    ids=["fused", "foreach", "loop", "without gradient", "in inference mode", "past autograd", "loaded"],
)
def test_a_change_in_place_changes_both(change: Callable[[Shared], object], letters: str) -> None:
    """Counters of versions see neither a fused optimiser nor `.data`."""
    shared = Shared(maps_of(letters))
    calls = watched(shared)
    check_maps(shared, calls, by_stack=True)
    before = shared.maps[0].weight.detach().clone()
    change(shared)
    assert not torch.allclose(shared.maps[0].weight, before)
    check_maps(shared, calls, by_stack=True)


def pair(shared: Shared) -> LowRank:
    found = shared.maps[2].lora
    assert found is not None
    return found


REPLACED: dict[str, Callable[[Shared], object]] = {
    "weight": lambda shared: setattr(shared.maps[0], "weight", nn.Parameter(drawn(12, INPUTS, seed=70))),
    "weight's data": lambda shared: setattr(shared.maps[0].weight, "data", drawn(12, INPUTS, seed=70)),
    "weight's place": lambda shared: setattr(shared.maps[1].weight, "data", shared.maps[2].weight.data),
    "weight's order": lambda shared: setattr(shared.maps[1].weight, "data", shared.maps[1].weight.data.flip(0)),
    "weight's strides": lambda shared: setattr(
        shared.maps[1].weight, "data", shared.maps[1].weight.data.as_strided((8, INPUTS), (1, 8))
    ),
    "bias": lambda shared: setattr(shared.maps[1], "bias", nn.Parameter(drawn(8, seed=70))),
    "bias gone": lambda shared: setattr(shared.maps[1], "bias", None),
    "pair": lambda shared: setattr(shared.maps[2], "lora", pair_of(8, seed=70)),
    "pair gone": lambda shared: setattr(shared.maps[2], "lora", None),
    "A": lambda shared: setattr(pair(shared), "a", nn.Parameter(drawn(2, INPUTS, seed=70))),
    "A's data": lambda shared: setattr(pair(shared).a, "data", drawn(2, INPUTS, seed=70)),
    "B": lambda shared: setattr(pair(shared), "b", nn.Parameter(drawn(8, 2, seed=70))),
    "B's data": lambda shared: setattr(pair(shared).b, "data", drawn(8, 2, seed=70)),
    "scale": lambda shared: setattr(pair(shared), "scale", 3.5),
    "map": lambda shared: shared.given.__setitem__(1, maps_of("abc")[2]),
    "order of maps": lambda shared: setattr(shared, "given", nn.ModuleList([shared.maps[each] for each in (0, 2, 1)])),
}


@pytest.mark.parametrize("name", REPLACED)
def test_what_was_replaced_is_computed_until_it_is_stacked_again(name: str) -> None:
    shared = Shared(maps_of("abc"))
    calls = watched(shared)
    with torch.inference_mode():
        before = shared.mapped(hidden(), True)
    REPLACED[name](shared)
    check_maps(shared, calls, by_stack=False)
    with torch.inference_mode():
        assert not all(map(torch.allclose, before, shared.mapped(hidden(), True)))
    if name != "bias gone":
        check_maps(shared, watched(shared), by_stack=True)


def test_a_bias_or_a_pair_that_comes_later_is_computed() -> None:
    for name, come in (("bias", nn.Parameter(drawn(8, seed=70))), ("lora", pair_of(8, seed=70))):
        for kind in (Linear, QuantisedLinear):
            maps = [kind(each) if kind is QuantisedLinear else each for each in maps_of(bias=False)]
            shared = Shared(maps)
            calls = watched(shared)
            given = nn.Buffer(come.detach()) if kind is QuantisedLinear and isinstance(come, nn.Parameter) else come
            setattr(shared.maps[1], name, given)
            check_maps(shared, calls, by_stack=False)


def test_weights_stay_where_they_are_when_their_pairs_come_and_go() -> None:
    """Graphs that an engine has recorded know addresses."""
    shared = Shared(maps_of())
    calls = watched(shared)
    places = [each.data_ptr() for each in shared.parameters()]
    names = [name for name, _ in shared.named_parameters()]
    for letters in ("abc", "---", "aaa"):
        for each, other in zip(shared.maps, maps_of(letters), strict=True):
            each.lora = other.lora
        check_maps(shared, calls, by_stack=False)
        calls = watched(shared)
        check_maps(shared, calls, by_stack=True)
        without_gradient(shared)
        check_maps(shared, calls, by_stack=True)
        assert [shared.get_parameter(name).data_ptr() for name in names] == places


def test_weights_that_are_pieces_of_a_fused_one_stay_its_pieces() -> None:
    for order, copied in (((0, 1, 2), False), ((0, 2, 1), True)):
        maps, fused = maps_of(bias=False), drawn(sum(SIZES), INPUTS, seed=3)
        pieces = fused.split(list(SIZES))
        for each, number in zip(maps, order, strict=True):
            each.weight.data = pieces[number]
        shared = Shared(maps)
        check_maps(shared, watched(shared), by_stack=True)
        assert (maps[0].weight.data_ptr() != fused.data_ptr()) is copied


def test_another_dtype() -> None:
    shared = Shared(maps_of("abc"))
    calls = watched(shared)
    shared.float()
    check_maps(shared, calls, by_stack=False, dtype=torch.float32)
    check_maps(shared, watched(shared), by_stack=True, dtype=torch.float32)


def test_another_device() -> None:
    shared = Shared(maps_of("abc"))
    stack_maps(shared)
    assert shared.stack is not None
    assert shared.stack.current(shared.maps)
    shared.to("meta")
    assert not shared.stack.current(shared.maps)


def test_memory_that_was_freed_and_taken_again_is_not_mistaken() -> None:
    shared = Shared(maps_of("abc"))
    calls = watched(shared)
    for number in range(20):
        pair(shared).a.data = drawn(2, INPUTS, seed=number)
        check_maps(shared, calls, by_stack=False)


def test_hooks_are_called_and_other_weights_for_a_call_are_used() -> None:
    shared, seen = Shared(maps_of("abc")), list[nn.Module]()
    calls = watched(shared)
    for module in (shared.maps[1], pair(shared)):
        for register in (module.register_forward_hook, module.register_forward_pre_hook):
            handle = register(lambda module, *_: seen.append(module))
            check_maps(shared, calls, by_stack=False)
            assert seen == [module] * 2, "once from the maps of a module, once by itself"
            seen.clear()
            handle.remove()
            check_maps(shared, calls, by_stack=True)
    calls.clear()
    with torch.inference_mode():
        zeros = {name: torch.zeros_like(each) for name, each in shared.named_parameters() if name.endswith("weight")}
        found = functional_call(Called(shared), {f"shared.{name}": each for name, each in zeros.items()}, (hidden(),))
    assert calls == []
    assert torch.allclose(found[1], (shared.maps[1].bias + shared.maps[1].lora(hidden())).detach())  # pyright: ignore
    parametrizations.weight_norm(shared.maps[0])
    with torch.no_grad():
        shared.maps[0].parametrizations.weight.original0.mul_(2)  # pyright: ignore
    check_maps(shared, calls, by_stack=False)


class Called(nn.Module):
    def __init__(self, shared: Shared) -> None:
        super().__init__()
        self.shared = shared

    def forward(self, given: Tensor) -> Sequence[Tensor]:
        return self.shared.mapped(given, True)


def saved(shared: Shared) -> Shared:
    file = io.BytesIO()
    torch.save(shared, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, saved])
def test_copies_have_tensors_of_their_own_and_no_stack(copied: Callable[[Shared], Shared]) -> None:
    shared = Shared(maps_of("abc"))
    stack_maps(shared)
    other = copied(shared)
    assert other.stack is None
    assert shared.stack is not None
    calls = watched(shared)
    with torch.no_grad():
        for each in other.parameters():
            each.mul_(2)
    check_maps(shared, calls, by_stack=True)
    for mine, theirs in zip(shared.parameters(), other.parameters(), strict=True):
        assert torch.equal(2 * mine, theirs)
    check_maps(other, watched(other), by_stack=True)


@pytest.mark.parametrize(("letters", "turned"), [("aaa", False), ("abc", False), ("abc", True)])
def test_maps_whose_pairs_share_an_a_with_other_maps(letters: str, turned: bool) -> None:
    """In another order the later stack has them."""
    one, two = Shared(maps_of(letters)), Shared(maps_of())
    lent = [each.lora.a for each in one.maps if each.lora is not None]
    for each, a in zip(two.maps, lent[::-1] if turned else lent, strict=True):
        each.lora = LowRank(a, nn.Parameter(drawn(each.out_features, 2, seed=5)), scale=1.0)
    calls = [watched(one), watched(two)]
    check_maps(one, calls[0], by_stack=not turned)
    check_maps(two, calls[1], by_stack=True)


def test_outside_inference_mode_maps_learn_as_ever() -> None:
    shared, alone = Shared(maps_of("abc")), Shared(maps_of("abc"))
    with torch.inference_mode():
        calls = watched(shared)
    for name, each in shared.named_parameters():
        assert each.requires_grad, name
        assert each.is_leaf, name
        assert not each.is_inference(), name
    for module in (shared, alone):
        sum(each.square().sum() for each in module.mapped(hidden(), ROWS["run"])).backward()  # pyright: ignore
    assert calls == []
    for mine, theirs in zip(shared.parameters(), alone.parameters(), strict=True):
        assert mine.grad is not None
        assert theirs.grad is not None
        assert torch.equal(mine.grad, theirs.grad)
    for module in (shared, alone):
        torch.optim.AdamW(module.parameters(), lr=0.1).step()
    assert all(map(torch.equal, shared.parameters(), alone.parameters()))
    with torch.no_grad():
        shared.mapped(hidden(), True)
    assert calls == []
    check_maps(shared, calls, by_stack=True)


def test_a_compiler_sees_the_maps() -> None:
    torch.compiler.reset()
    shared = Shared(maps_of("abc"))
    calls = watched(shared)
    with torch.inference_mode():
        found = torch.compile(Called(shared), fullgraph=True, backend="eager")(hidden())
        assert calls == []
        expected = shared.mapped(hidden(), True)
    assert all(map(torch.allclose, found, expected))
    torch.compiler.reset()


def test_maps_that_were_made_in_inference_mode() -> None:
    with torch.inference_mode():
        shared = Shared(maps_of("abc"))
        calls = watched(shared)
        check_maps(shared, calls, by_stack=True)
        in_inference_mode(shared)
        check_maps(shared, calls, by_stack=True)


class Wrapped(Tensor):
    """Stands in for a sharded tensor: not a plain one."""


class Doubled(Linear):
    def forward(self, hidden: Tensor, adapter: AdapterRows = True) -> Tensor:  # pyright: ignore
        return 2 * super().forward(hidden, adapter)


def replaced(number: int, make: Callable[[Linear], nn.Module], letters: str = "---") -> list[nn.Module]:
    maps = list[nn.Module](maps_of(letters))
    maps[number] = make(maps_of(letters)[number])
    return maps


def wrapped(linear: Linear) -> Linear:
    linear.weight = nn.Parameter(linear.weight.detach().as_subclass(Wrapped))
    return linear


def wrapped_pair(linear: Linear) -> Linear:
    assert linear.lora is not None
    linear.lora.b = nn.Parameter(linear.lora.b.detach().as_subclass(Wrapped))
    return linear


def narrow_pair(linear: Linear) -> Linear:
    assert linear.lora is not None
    linear.lora.float()
    return linear


@pytest.mark.parametrize(
    "maps",
    [
        replaced(1, wrapped),
        replaced(1, wrapped_pair, "abc"),
        replaced(1, narrow_pair, "abc"),
        replaced(1, lambda each: each.float()),
        replaced(2, lambda each: each.to("meta")),
        replaced(0, lambda each: Linear(INPUTS, 12, bias=False).double()),
        replaced(0, lambda each: nn.Linear(INPUTS, 12).double()),
        replaced(0, lambda each: Doubled(INPUTS, 12, bias=True).double()),
        [Doubled(INPUTS, size, bias=True) for size in SIZES],
        replaced(2, QuantisedLinear),
    ],
    ids=["wrapped", "wrapped pair", "narrow pair", "dtype", "meta", "bias", "other", "one inherits", "inherit", "int8"],
)
def test_what_cannot_be_stacked_is_left_alone(maps: list[nn.Module]) -> None:
    before = [tensor.data_ptr() for each in maps for tensor in each.parameters() if type(tensor.data) is Tensor]
    assert stack_of(maps) is None
    assert before == [tensor.data_ptr() for each in maps for tensor in each.parameters() if type(tensor.data) is Tensor]


MODELS: dict[str, ModelConfig] = {
    "dense": replace(architecture(), qkv_bias=True),
    "dense layers and shared experts": replace(sparse_architecture(replace(LING, dense_layers=(0,))), vocab_size=13),
    "experts": replace(sparse_architecture(QWEN), vocab_size=13),
}
STACKS = {
    "dense": ["layers.0.attention", "layers.0.mlp", "layers.1.attention", "layers.1.mlp"],
    "dense layers and shared experts": [
        "layers.0.attention",
        "layers.0.mlp",
        "layers.1.attention",
        "layers.1.mlp.shared",
    ],
    "experts": ["layers.0.attention", "layers.1.attention"],
}


def model_of(name: str, *, adapter: bool = True, dtype: torch.dtype = torch.float64) -> Transformer:
    model = random_transformer(MODELS[name], seed=0)
    if adapter:
        sites = [AdapterSite(weights=(each,), rank=2, alpha=4.0) for each in adaptable_weights(model)]
        generator = torch.Generator().manual_seed(1)
        attach_adapter(model, sites, token_ids=(12,), generator=generator)
        with torch.no_grad():
            for parameter in adapter_parameters(model).values():
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model.to(dtype)


def states(model: Transformer, rows: AdapterRows) -> Tensor:
    token_BN, position_BN = torch.tensor([[5, 12, 7, 8, 12, 1], [1, 2, 12, 3, 12, 5]]), torch.arange(6).expand(2, 6)
    attend = DenseAttention(torch.ones(2, 1, 6, 6, dtype=torch.bool).tril())
    return model(token_BN, position_BN, attend, adapter=rows)


@pytest.mark.parametrize("name", MODELS)
def test_a_stacked_model_says_the_same(name: str) -> None:
    model, twin = model_of(name), model_of(name)
    keys = list(model.state_dict())
    stack_maps(model)
    found = [each for each, module in model.named_modules() if isinstance(module, SharedInput) and module.stack]
    assert found == STACKS[name]
    assert list(model.state_dict()) == keys
    for rows in ROWS.values():
        with torch.inference_mode():
            assert torch.allclose(states(model, rows), states(twin, rows), atol=1e-11)
        with torch.no_grad():
            assert torch.equal(states(model, rows), states(twin, rows))


@pytest.mark.parametrize("name", MODELS)
def test_a_run_of_rows_is_the_mask_of_them(name: str) -> None:
    model, mask_BN = model_of(name), torch.zeros(2, 6, dtype=torch.bool)
    mask_BN[:, 2:5] = True
    for stack in (False, True):
        if stack:
            stack_maps(model)
        with torch.inference_mode():
            run, masked, base = (states(model, rows) for rows in (slice(2, 5), mask_BN, False))
        assert torch.allclose(run, masked, atol=1e-11)
        assert torch.equal(run[:, :2], base[:, :2]), "causal: nothing of the adapter is before its rows"
        assert not torch.allclose(run[:, 2:], base[:, 2:], atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_8_bit_maps_share_the_codes_of_their_input_and_give_the_same_bits(
    bias: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = Shared([QuantisedLinear(each.to(dtype)) for each in maps_of(bias=bias)])
    held = [tensor.clone() for tensor in shared.buffers()]
    given = hidden(dtype) * torch.logspace(-4, 3, 6).to(dtype)[:, None]
    with torch.inference_mode():
        alone = [each(given, True) for each in shared.maps]
        calls = watched(shared)
        scales, seen = quantised._scales, list[Tensor]()
        monkeypatch.setattr(quantised, "_scales", lambda wide: scales(seen.append(wide) or wide))
        found = shared.mapped(given, True)
    assert calls == ["product"]
    assert len(seen) == 1
    assert all(map(torch.equal, found, alone))
    assert all(map(torch.equal, held, shared.buffers()))
    kinds = [tensor for tensor in shared.buffers() if tensor.dtype == torch.int8]
    assert len({tensor.untyped_storage().data_ptr() for tensor in kinds}) == 1
    assert kinds[0].untyped_storage().nbytes() == sum(tensor.nbytes for tensor in kinds)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("letters", PAIRS.values(), ids=PAIRS)
def test_pairs_beside_8_bit_maps(letters: str, rows: str) -> None:
    maps, given = [QuantisedLinear(each.float()) for each in maps_of(letters)], hidden(torch.float32)
    with torch.inference_mode():
        alone = [each(given, ROWS[rows]) for each in maps]
        found = stacked(maps)(given, ROWS[rows])
    for mine, expected in zip(found, alone, strict=True):
        assert torch.allclose(mine, expected, atol=1e-5)


def test_maps_that_become_8_bit_after_they_were_stacked() -> None:
    model = model_of("dense", dtype=torch.float32)
    stack_maps(model)
    quantise(model)
    twin = copy.deepcopy(model)
    with torch.inference_mode():
        assert torch.equal(states(model, False), states(twin, False))
        stack_maps(model)
        assert all(module.stack for module in model.modules() if isinstance(module, SharedInput))
        assert torch.equal(states(model, False), states(twin, False)), "the same bits"
        assert torch.allclose(states(model, True), states(twin, True), atol=1e-3)


def test_an_engine_stacks_and_the_next_one_leaves_it() -> None:
    loaded = tiny(0)
    shared = [each for each in loaded.model.modules() if isinstance(each, SharedInput)]
    assert not any(each.stack for each in shared)
    difflm.generate(loaded, [[1, 2]], difflm.SamplingParams(max_new_tokens=2))
    stacks = [each.stack for each in shared]
    assert all(stacks)
    difflm.generate(loaded, [[1, 2]], difflm.SamplingParams(max_new_tokens=2))
    assert all(each.stack is stack for each, stack in zip(shared, stacks, strict=True))


def written(folder: Path) -> dict[str, bytes]:
    return {each.name: each.read_bytes() for each in folder.iterdir()}


def test_checkpoints_and_adapters_are_saved_as_ever(tmp_path: Path) -> None:
    base = write_parent(tmp_path / "base")
    for stack in (False, True):
        plain, with_pairs = difflm.load_model(base), adapted(base)
        if stack:
            stack_maps(plain.model)
            stack_maps(with_pairs.model)
        save_model(plain, tmp_path / f"model-{stack}")
        save_adapter(with_pairs, tmp_path / f"adapter-{stack}")
        save_model(with_pairs, tmp_path / f"merged-{stack}")
    for kind in ("model", "adapter", "merged"):
        assert written(tmp_path / f"{kind}-False") == written(tmp_path / f"{kind}-True")
