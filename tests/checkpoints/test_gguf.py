"""GGUF import equals the HF original: un-permuted llama rows, dequantised values, configuration, tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from demo.fetch import MODEL, cache_folder
from difflm.checkpoints.gguf import gguf_config, open_gguf
from difflm.checkpoints.loading import load_model
from difflm.checkpoints.source import open_checkpoint
from difflm.errors import CheckpointError
from difflm.models.config import RopeConfig
from difflm.models.rope import rotary_frequencies
from tests.checkpoints.tiny import YARN_SCALING, hf_folder, hf_model, make_tokenizer, our_logits, their_logits, tokens
from tests.checkpoints.tiny_gguf import write_gguf

pytest.importorskip("gguf")
SIZES = {"hidden_size": 32, "intermediate_size": 64, "head_dim": 16}
CASES = {
    "llama": ("llama", {}),
    "llama tied": ("llama", {"tie_word_embeddings": True}),
    "llama biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama yarn": ("llama", {"rope_parameters": {"rope_theta": 500.0, **YARN_SCALING}}),
    "qwen3 yarn bands": ("qwen3", {"rope_parameters": {"rope_theta": 1e6, **YARN_SCALING, "beta_fast": 8.0}}),
    "mistral": ("mistral", {}),  # written, and read, as the architecture llama
    "qwen2": ("qwen2", {"head_dim": 8}),
    "qwen3 tied": ("qwen3", {"tie_word_embeddings": True}),
}


@pytest.mark.parametrize("case", CASES)
def test_float_gguf_equals_the_original(case: str, tmp_path: Path) -> None:
    family, changes = CASES[case]
    model = hf_model(family, **(SIZES | changes))
    write_gguf(tmp_path / "m.gguf", model)
    loaded = load_model(tmp_path / "m.gguf")
    model.save_pretrained(tmp_path / "hf")
    original = load_model(tmp_path / "hf")
    theirs = dict(original.model.named_parameters())
    for name, parameter in loaded.model.named_parameters():
        assert torch.equal(parameter, theirs[name]), name
    assert loaded.config.model == original.config.model
    token_BL = tokens(67)
    expected = their_logits(model, token_BL)
    assert (our_logits(loaded.model, token_BL) - expected).abs().max() < 1e-5 * expected.abs().max()


def test_the_permutation_matters(tmp_path: Path) -> None:
    """Read as if it were qwen2 (not permuted), a llama file gives other logits: the test above is not vacuous."""
    model = hf_model("llama", **SIZES)
    write_gguf(tmp_path / "m.gguf", model)
    opened = open_gguf(tmp_path / "m.gguf")
    stored = opened.read("blk.0.attn_q.weight")
    original = model.state_dict()["model.layers.0.self_attn.q_proj.weight"]
    assert not torch.equal(stored, original)
    assert torch.equal(stored.sort(dim=0).values, original.sort(dim=0).values)


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_quantised_values_are_those_of_the_gguf_package(kind: str, tmp_path: Path) -> None:
    model = hf_model("llama", **SIZES)
    seen = write_gguf(tmp_path / "m.gguf", model, kind=kind)
    checkpoint = open_checkpoint(tmp_path / "m.gguf")
    from difflm.checkpoints.families import model_config

    parameters = checkpoint.parameters(model_config(checkpoint.raw, "x"))
    expected = {
        "layers.1.attention.query.weight": "model.layers.1.self_attn.q_proj.weight",
        "layers.0.attention.key.weight": "model.layers.0.self_attn.k_proj.weight",
        "layers.1.mlp.down.weight": "model.layers.1.mlp.down_proj.weight",
        "embedding.weight": "model.embed_tokens.weight",
    }
    for ours, theirs in expected.items():
        assert parameters[ours].dtype == torch.float32
        assert np.array_equal(parameters[ours].numpy(), seen[theirs]), ours
    assert not np.array_equal(
        seen["model.embed_tokens.weight"], model.state_dict()["model.embed_tokens.weight"].numpy()
    )


def k_quant(kind: str, width: int) -> tuple[Any, np.ndarray]:
    """Return a K-quantised row of random bits with sane scales (the gguf package cannot quantise to these)."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    wanted = GGMLQuantizationType[kind]
    block, size = GGML_QUANT_SIZES[wanted]
    packed = np.random.default_rng(0).integers(0, 256, (2, width // block, size), dtype=np.uint8)
    half = np.frombuffer(np.float16(0.01).tobytes(), np.uint8)
    scales = {"Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}[kind]
    for start in scales:
        packed[:, :, start : start + 2] = half
    return wanted, packed.reshape(2, -1)


@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"])
def test_k_quants_are_read(kind: str, tmp_path: Path) -> None:
    from gguf import GGUFWriter, quants

    wanted, packed = k_quant(kind, 512)
    writer = GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tensor("x", packed, raw_dtype=wanted)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    opened = open_gguf(tmp_path / "m.gguf")
    read = opened.read("x")
    assert opened.facts["x"].shape == read.shape == (2, 512)
    assert np.array_equal(read.numpy(), quants.dequantize(packed, wanted))
    assert read.std() > 0


def test_configuration_from_metadata(tmp_path: Path) -> None:
    model = hf_model("llama", **SIZES, rms_norm_eps=1e-5, rope_parameters={"rope_theta": 100000.0})
    write_gguf(tmp_path / "m.gguf", model)
    raw, generation = gguf_config(open_gguf(tmp_path / "m.gguf"))
    assert raw["rms_norm_eps"] == 1e-5, "the shortest decimal of the stored float32, not 9.999999747e-06"
    assert raw["rope_theta"] == 100000.0
    assert (raw["vocab_size"], raw["head_dim"], raw["tie_word_embeddings"]) == (67, 16, False)
    assert generation == {}


def divisors(factor: float, theta: float, head_dim: int) -> np.ndarray:
    plain = rotary_frequencies(RopeConfig(theta=theta), head_dim)
    return (plain / rotary_frequencies(RopeConfig(theta=theta, kind="llama3", factor=factor), head_dim)).numpy()


def test_llama3_scaling_is_recovered_from_its_divisors(tmp_path: Path) -> None:
    rope = {"rope_theta": 500000.0, "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0}
    rope |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    model = hf_model("llama", **(SIZES | {"head_dim": 64, "max_position_embeddings": 131072}), rope_parameters=rope)
    write_gguf(tmp_path / "m.gguf", model, rope_freqs=divisors(32.0, 500000.0, 64))
    loaded = load_model(tmp_path / "m.gguf")
    assert loaded.config.model.rope == RopeConfig(theta=500000.0, kind="llama3", factor=32.0)
    token_BL = tokens(67)
    expected = their_logits(model, token_BL)
    assert (our_logits(loaded.model, token_BL) - expected).abs().max() < 1e-5 * expected.abs().max()
    write_gguf(tmp_path / "odd.gguf", model, rope_freqs=np.linspace(1, 9, 32))
    with pytest.raises(CheckpointError, match=r"rope_freqs\.weight is not Llama-3 scaling"):
        load_model(tmp_path / "odd.gguf")


def test_linear_scaling(tmp_path: Path) -> None:
    metadata = {"{}.rope.scaling.type": "linear", "{}.rope.scaling.factor": 4.0}
    write_gguf(tmp_path / "m.gguf", hf_model("qwen2", **(SIZES | {"head_dim": 8})), metadata=metadata)
    assert load_model(tmp_path / "m.gguf").config.model.rope.factor == 4.0


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"general.architecture": "gemma3"}, "general.architecture is 'gemma3'; expected one of llama, qwen2, qwen3"),
        ({"{}.rope.scaling.type": "longrope", "{}.rope.scaling.factor": 4.0}, "rope.scaling.type is 'longrope'"),
        ({"{}.rope.scaling.type": "yarn"}, "rope.scaling.original_context_length is missing"),
        (
            {"{}.rope.scaling.type": "yarn", "{}.rope.scaling.attn_factor": 0.5},
            "rope.scaling.attn_factor is 0.5; expected none, or 1 (not implemented)",
        ),
        ({"general.architecture": "mistral"}, "general.architecture is 'mistral'; expected one of llama, qwen2, qwen3"),
        ({"{}.expert_count": 8}, "expert_count is 8"),
        ({"{}.attention.sliding_window": 4096}, "attention.sliding_window is 4096"),
        ({"{}.rope.dimension_count": 8}, "rope.dimension_count is 8; expected 16"),
        ({"{}.block_count": None}, "block_count is missing"),
        ({"{}.block_count": 3}, "missing: blk.2.attn_norm.weight"),
        ({"{}.block_count": 1}, "unexpected: blk.1."),
        ({"{}.feed_forward_length": 96}, "wrong shape: blk.0.ffn_gate.weight is [64, 32], config.json says [96, 32]"),
    ],
)
def test_what_does_not_fit_is_named(metadata: dict[str, Any], message: str, tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", hf_model("llama", **SIZES), metadata=metadata)
    with pytest.raises(CheckpointError) as caught:
        load_model(tmp_path / "m.gguf")
    assert message in str(caught.value)
    assert "m.gguf" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("keep", [0, 3, 40, 700, 0.5, 0.99])
def test_truncated_file(keep: float, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path, hf_model("llama", **SIZES))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
    with pytest.raises(CheckpointError, match=r"m\.gguf: damaged or truncated GGUF file") as caught:
        load_model(path)
    assert "\n" not in str(caught.value)


def test_tokenizer_and_ids_come_along(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    model = hf_model("llama", **SIZES, vocab_size=len(tokenizer))
    write_gguf(tmp_path / "m.gguf", model, tokenizer=tokenizer)
    loaded = load_model(tmp_path)
    text = "the quick fox<|im_end|> In the beginning"
    assert loaded.encode(text) == tokenizer.encode(text, add_special_tokens=False)
    assert loaded.require_tokenizer().chat_template == tokenizer.chat_template
    assert loaded.config.eos_token_ids == (tokenizer.eos_token_id,)
    assert loaded.config.bos_token_id == tokenizer.get_vocab()["<|im_start|>"]
    assert loaded.config.generation["eos_token_id"] == tokenizer.eos_token_id
    assert loaded.config.tokenizer_length == len(tokenizer)


@pytest.mark.slow
def test_the_real_checkpoint_speaks() -> None:
    """Text proves the un-permutation on a real Q4_1 file (with wrong rows the answer is noise)."""
    path = cache_folder() / MODEL.target
    if not path.is_file():
        pytest.skip(f"{path} is absent; python -m demo.fetch fetches it")
    loaded = load_model(path)
    ids = loaded.encode_chat([{"role": "user", "content": "What is the capital of France?"}])
    start = len(ids)
    while len(ids) < start + 16 and ids[-1] not in loaded.config.eos_token_ids:
        ids.append(int(our_logits(loaded.model, torch.tensor([ids]))[0, -1].argmax()))
    assert loaded.decode(ids[start:]) == "The capital of France is Paris."


def test_which_file_is_meant(tmp_path: Path) -> None:
    write_gguf(tmp_path / "a.gguf", hf_model("llama", **SIZES))
    assert load_model(tmp_path).path.name == "a.gguf"
    assert load_model(tmp_path).tokenizer is None
    (tmp_path / "b.gguf").write_bytes((tmp_path / "a.gguf").read_bytes())
    with pytest.raises(CheckpointError, match=r"holds 2 \.gguf files \(a\.gguf, b\.gguf\)"):
        load_model(tmp_path)
    (tmp_path / "b.gguf").unlink()
    hf_folder(tmp_path, "qwen2")
    assert load_model(tmp_path).config.family == "qwen2", "a folder with safetensors is read as such"


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="what a mapping holds is known on Linux only")
def test_pages_that_were_read_are_let_go(tmp_path: Path) -> None:
    """Touched pages of a mapped file count as the process's memory: a large file must not stay there whole."""
    path = tmp_path / "m.gguf"
    write_gguf(path, hf_model("llama", **SIZES, vocab_size=4000))
    opened = open_gguf(path)

    def resident() -> int:
        lines = iter(Path("/proc/self/smaps").read_text().splitlines())
        sizes = [next(line for line in lines if line.startswith("Rss:")) for head in lines if head.endswith(str(path))]
        return sum(int(size.split()[1]) * 1024 for size in sizes)

    opened.read("token_embd.weight")
    assert resident() < 50_000 < path.stat().st_size / 10
    assert opened._map is not None


def test_rows_of_a_tensor(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", hf_model("llama", **SIZES))
    opened = open_gguf(tmp_path / "m.gguf")
    assert torch.equal(opened.read("token_embd.weight", range(3, 5)), opened.read("token_embd.weight")[3:5])
