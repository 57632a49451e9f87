"""8-bit linear maps against what their codes stand for; a row's result does not depend on the rows beside it."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import difflm
from difflm.checkpoints.saving import save_model
from difflm.errors import CheckpointError, ConfigError
from difflm.models import quantised
from difflm.models.attention import DenseAttention
from difflm.models.lora import Linear
from difflm.models.quantised import QuantisedLinear, check_weights, has_products, quantise
from difflm.scoring import logits
from tests.checkpoints.tiny import ling_folder
from tests.decode.tiny import architecture, random_transformer
from tests.drafters import drafters as drafters
from tests.products import needs_products
from tests.standins import write_parent

pytestmark = needs_products


def linear(inputs: int = 40, outputs: int = 24, *, bias: bool = True) -> Linear:
    made = Linear(inputs, outputs, bias=bias).requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        made.weight.normal_(generator=generator).mul_(torch.logspace(-3, 2, outputs)[:, None])
        if made.bias is not None:
            made.bias.normal_(generator=generator)
    return made


def rows(count: int, inputs: int = 40) -> torch.Tensor:
    scale = torch.logspace(-4, 3, count)[:, None]
    return torch.randn(count, inputs, generator=torch.Generator().manual_seed(1)) * scale


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("count", [1, 3, 16, 65])
def test_products_with_what_the_codes_stand_for(count: int, bias: bool) -> None:
    made, hidden = linear(bias=bias), rows(count)
    hidden[:, 3] *= 100.0  # as real models have them: 8 bits at its scale would leave nothing of the others
    found = QuantisedLinear(made)
    expected = F.linear(hidden.double(), found.weight.double(), None if made.bias is None else made.bias.double())
    step_N1 = hidden.abs().amax(-1, keepdim=True).double() / 127 / 254
    # Half a step of every input, at the worst.
    most = 0.5001 * step_N1 * found.weight.abs().sum(-1).double() + 1e-6 * expected.abs()
    assert bool(((found(hidden).double() - expected).abs() <= most).all())


def test_codes_stand_for_the_weight_to_half_a_step_of_each_row() -> None:
    made = linear()
    step_O = made.weight.abs().amax(-1) / 127
    found = QuantisedLinear(made)
    assert found.code_OI.dtype == torch.int8
    assert bool(((found.weight - made.weight).abs().amax(-1) <= 0.5001 * step_O).all())
    assert int(found.code_OI.abs().max()) == 127


def test_sums_do_not_saturate() -> None:
    """Pairs of products that are summed in 16 bits would: the fault of 8-bit kernels without VNNI."""
    made = Linear(2048, 8, bias=False)
    nn.init.constant_(made.weight, 0.5)
    for value in (-3.0, 3.0):
        assert QuantisedLinear(made)(torch.full((5, 2048), value)).tolist() == [[1024 * value] * 8] * 5


@pytest.mark.parametrize("kernels", ["AVX2", "AVX512_CORE"])
def test_kernels_whose_sums_saturate_are_refused(kernels: str) -> None:
    """Whether they do is oneDNN's business; what is let through has to be exact."""
    code = (
        "import torch; from difflm.models.quantised import LARGEST, has_products; "
        "code = torch.full((7, 96), LARGEST, dtype=torch.int8); "
        "found = torch.ops.aten._int_mm(code, code.t()); "
        "assert not has_products() or bool((found == 96 * LARGEST**2).all())"
    )
    environ = {**os.environ, "ONEDNN_MAX_CPU_ISA": kernels}
    subprocess.run([sys.executable, "-c", code], check=True, env=environ)


def test_products_have_to_be_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    saturated = torch.full((64, 64), 2**15 - 1, dtype=torch.int32)
    monkeypatch.setattr(torch.ops.aten, "_int_mm", lambda left, right: saturated)
    assert not has_products.__wrapped__()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_does_not_depend_on_the_others(dtype: torch.dtype) -> None:
    found = QuantisedLinear(linear().to(dtype))
    hidden = rows(33).to(dtype)
    together = found(hidden)
    assert together.dtype == dtype
    assert torch.equal(together, torch.cat([found(row[None]) for row in hidden]))
    assert torch.equal(together[:7], found(hidden[:7]))
    assert torch.equal(found(hidden[None])[0], together)


def test_no_rows() -> None:
    assert QuantisedLinear(linear())(torch.zeros(2, 0, 40)).shape == (2, 0, 24)


def test_a_row_of_zeros_is_the_bias() -> None:
    made = linear()
    assert torch.equal(QuantisedLinear(made)(torch.zeros(2, 40)), made.bias.detach().expand(2, -1))


@pytest.mark.parametrize("tied", [True, False])
def test_every_linear_map_of_a_model(tied: bool) -> None:
    model = random_transformer(replace(architecture(), tied_embeddings=tied), seed=0).float()
    embedding = model.embedding.weight.detach().clone()
    quantise(model)
    left = [name for name, each in model.named_modules() if isinstance(each, nn.Linear)]
    assert left == []
    assert isinstance(model.head, QuantisedLinear)
    assert torch.equal(model.embedding.weight, embedding)
    if tied:
        assert not torch.equal(model.head.weight, embedding)
        assert torch.allclose(model.head.weight, embedding, atol=0.51 * float(embedding.abs().max()) / 127)


def test_a_checkpoint_decodes_and_scores(tmp_path: Path) -> None:
    path = tmp_path / "model"
    difflm.convert(write_parent(tmp_path / "parent"), path, block_size=8)
    whole, narrow = (difflm.load_model(path, weights=each) for each in ("float", "int8"))
    tokens = torch.arange(40)[None]
    exact, near = (logits(each, tokens, attention="causal") for each in (whole, narrow))
    assert 0 < float((exact - near).abs().max() / exact.std()) < 0.2
    params = difflm.SamplingParams(max_new_tokens=20, ignore_eos=True)
    prompts = [[1, 2, 3], list(range(30)), [7]]
    together = difflm.generate(narrow, prompts, params)
    assert [each.tokens for each in together] == [difflm.generate(narrow, [each], params)[0].tokens for each in prompts]


def test_int8_weights_are_not_saved(tmp_path: Path) -> None:
    loaded = difflm.load_model(write_parent(tmp_path / "parent"), weights="int8")
    with pytest.raises(
        CheckpointError, match="loaded with weights 'int8', which no file of a checkpoint holds; load it"
    ):
        save_model(loaded, tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_an_adapter_that_drafts_stays_beside_the_codes(drafters: Path) -> None:
    base = difflm.load_model(drafters / "base", weights="int8")
    loaded = difflm.load_model(drafters / "drafter", weights="int8")
    assert loaded.model.adapter_gate == "noisy"
    assert [name for name, _ in loaded.model.named_modules() if name.endswith(".lora")]
    token_BN = torch.tensor([[5, 6, 7, 8]])
    position_BN, attend = torch.arange(4)[None], DenseAttention(torch.ones(1, 1, 4, 4, dtype=torch.bool).tril())
    noisy_BN = torch.tensor([[False, False, True, True]])
    with torch.no_grad():
        alone = base.model(token_BN, position_BN, attend)
        silent = loaded.model(token_BN, position_BN, attend)
        gated = loaded.model(token_BN, position_BN, attend, adapter=noisy_BN)
    assert torch.equal(silent, alone), "clean rows are the base's"
    assert torch.equal(gated[:, :2], alone[:, :2])
    assert not torch.allclose(gated[:, 2:], alone[:, 2:])


def test_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="weights: 'int8' is for dense models, and this one has experts"):
        difflm.load_model(ling_folder(tmp_path / "ling"), weights="int8")
    with pytest.raises(ConfigError, match="weights: 'int4' is unknown; use 'float' or 'int8'"):
        check_weights("int4", architecture(), device="cpu", gate=None)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"under an adapter; merge it first \(difflm merge\)"):
        check_weights("int8", architecture(), device="cpu", gate="all")
    with pytest.raises(ConfigError, match="is for CPU, and the device is cuda:1; or use 'float'"):
        check_weights("int8", architecture(), device="cuda:1", gate=None)
    monkeypatch.setattr(quantised, "has_products", lambda: False)
    with pytest.raises(ConfigError, match="8-bit numbers"):
        check_weights("int8", architecture(), device="cpu", gate=None)
    check_weights("float", architecture(), device="cuda:1", gate="all")
