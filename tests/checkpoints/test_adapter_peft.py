"""Against PEFT itself, in both directions: what it loads of ours and what we load of its compute the same logits."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from difflm.checkpoints.adapter import Adapter, write_adapter
from difflm.checkpoints.adapter_config import ADAPTER_WEIGHTS
from difflm.checkpoints.adapter_saving import save_adapter
from difflm.checkpoints.families import FAMILIES
from difflm.checkpoints.loading import load_model
from difflm.models.adapters import adapter_parameters
from difflm.scoring import logits
from tests.checkpoints.adapters import adapted, base_folder, same_adapter
from tests.checkpoints.tiny import causal, their_logits, tokens

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
TOKENS = tokens(67, length=24)
TOKENS[0, 3], TOKENS[1, 9] = 5, 60  # whose rows are replaced


def distance(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


def their_base(base: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()


def peft_on(model: Any, adapter: Path) -> Any:
    """Return PEFT's model; a name that it does not find, or misses, is an error."""
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", message=".*gate_up_proj.*", category=RuntimeWarning)  # its own pattern
        return PeftModel.from_pretrained(model, str(adapter)).eval()


# Not qwen3_moe with rsLoRA: PEFT fuses the pairs of gate and up into one of twice the rank and doubles alpha, which
# keeps alpha / R but not alpha / sqrt(R).
@pytest.mark.parametrize(
    ("name", "stabilised"),
    [("llama", False), ("llama", True), ("tied", False), ("qwen3", True), ("qwen3_moe", False)],
)
def test_peft_computes_what_we_compute(name: str, stabilised: bool, tmp_path: Path) -> None:
    base = base_folder(tmp_path / "base", name)
    loaded = adapted(base, stabilised=stabilised)
    save_adapter(loaded, tmp_path / "adapter")
    ours = logits(loaded, TOKENS, attention="causal")
    assert distance(ours, logits(loaded, TOKENS, attention="causal", adapter=False)) > 0.1
    theirs = peft_on(their_base(base), tmp_path / "adapter")
    assert distance(ours, their_logits(theirs, TOKENS)) < 1e-5
    assert distance(ours, their_logits(theirs.merge_and_unload(), TOKENS)) < 2e-5


@pytest.mark.parametrize("name", ["llama", "tied", "qwen2", "qwen3"])
def test_we_compute_what_peft_computes(name: str, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    base = base_folder(tmp_path / "base", name)
    config = LoraConfig(
        r=4,
        lora_alpha=10,
        lora_dropout=0.1,
        target_modules=LINEAR,
        rank_pattern={"q_proj": 2, "layers.1.mlp.down_proj": 6},
        alpha_pattern={"up_proj": 3},
        trainable_token_indices=[5, 60],
        task_type="CAUSAL_LM",
    )
    model: Any = get_peft_model(their_base(base), config).eval()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in (each for each in model.parameters() if each.requires_grad):
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(tmp_path / "adapter")
    loaded = load_model(base, adapter=tmp_path / "adapter")
    theirs = their_logits(model, TOKENS)
    assert distance(logits(loaded, TOKENS, attention="causal"), theirs) < 1e-5
    with model.disable_adapter():
        parent = their_logits(model, TOKENS)
    assert distance(logits(loaded, TOKENS, attention="causal", adapter=False), parent) < 1e-5
    save_adapter(loaded, tmp_path / "again")
    assert same_adapter(load_model(tmp_path / "again"), loaded)
    again = peft_on(their_base(base), tmp_path / "again")
    assert torch.equal(their_logits(again, TOKENS), theirs)


def test_a_gradient_is_peft_s(tmp_path: Path) -> None:
    """Of the same loss on a dense model, compared by the names in the files."""
    base = base_folder(tmp_path / "base", "llama")
    loaded = adapted(base)
    save_adapter(loaded, tmp_path / "adapter")
    theirs = peft_on(their_base(base), tmp_path / "adapter")
    for name, parameter in theirs.named_parameters():
        parameter.requires_grad_("lora_" in name or "trainable_tokens" in name)
    theirs(TOKENS).logits.square().mean().backward()
    model, facts = loaded.model, loaded.adapter
    position_BL = torch.arange(TOKENS.shape[1]).expand_as(TOKENS)
    (model(TOKENS, position_BL, causal) @ model.head_weight().T).square().mean().backward()
    assert facts is not None
    grads = {name: each.grad for name, each in adapter_parameters(model).items() if each.grad is not None}
    (tmp_path / "grads").mkdir()
    write_adapter(tmp_path / "grads", Adapter(facts, grads), FAMILIES["llama"], loaded.config.model)
    mine = load_file(tmp_path / "grads" / ADAPTER_WEIGHTS)
    found = {name.replace(".default", ""): each.grad for name, each in theirs.named_parameters() if each.requires_grad}
    assert mine.keys() == found.keys()
    assert len(mine) == 2 * 7 * 2 + 1
    for name, grad in mine.items():
        assert distance(grad, found[name]) < 1e-4, name


class Skeleton(nn.Module):
    """The modules of a checkpoint's files by their names and nothing else: what PEFT finds where it is loaded."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            path, _, leaf = name.rpartition(".")
            *above, last = path.split(".")
            if leaf != "weight" or tensor.dim() != 2:
                continue
            holder: nn.Module = self
            for part in above:
                if part not in dict(holder.named_children()):
                    holder.add_module(part, nn.Module())
                holder = holder.get_submodule(part)
            rows, columns = tensor.shape
            made = nn.Embedding(rows, columns) if "embed" in last else nn.Linear(columns, rows, bias=False)
            made.weight = nn.Parameter(tensor)
            holder.add_module(last, made)


@pytest.mark.parametrize("only", ["", "attention", "experts", ".1.", "down"])
@pytest.mark.parametrize("name", ["llada2_moe", "qwen3_moe"])
def test_peft_merges_into_the_files_what_we_compute(name: str, only: str, tmp_path: Path) -> None:
    """Fused query/key/value and single experts, as the published classes of Ling and LLaDA2 have them."""
    from peft import LoraConfig, PeftModel

    base = base_folder(tmp_path / "base", name)
    loaded = adapted(base, only=only)
    save_adapter(loaded, tmp_path / "adapter")
    tensors = load_file(base / "model.safetensors")
    config = LoraConfig.from_pretrained(str(tmp_path / "adapter"))
    assert not isinstance(config.task_type, tuple)
    config.task_type = None  # its wrapper wants a model that generates
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model: Any = PeftModel.from_pretrained(Skeleton(tensors), str(tmp_path / "adapter"), config=config)
    merged = model.merge_and_unload().state_dict()
    assert merged.keys() <= tensors.keys()
    (tmp_path / "merged").mkdir()
    save_file(tensors | merged, tmp_path / "merged" / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "merged" / "config.json").write_bytes((base / "config.json").read_bytes())
    theirs = logits(load_model(tmp_path / "merged"), TOKENS, attention="causal")
    ours = logits(loaded, TOKENS, attention="causal")
    assert distance(ours, logits(loaded, TOKENS, attention="causal", adapter=False)) > 0.1
    assert distance(ours, theirs) < 2e-5
