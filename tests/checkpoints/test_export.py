"""Exports: what other programs load, proved against tables of their loaders; the same model, token for token."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import difflm
from difflm.checkpoints.export import FORMATS, export
from difflm.checkpoints.families import FAMILIES, model_config
from difflm.checkpoints.fields import read_json, write_json
from difflm.checkpoints.saving import save_model
from difflm.checkpoints.tokens import load_tokenizer
from difflm.cli.main import run
from difflm.errors import CheckpointError, ConfigError
from tests.checkpoints import loaders
from tests.checkpoints.tiny import YARN_SCALING, hf_folder, ling_folder, make_tokenizer, sarvam, tokens

CHAT = [{"role": "user", "content": "the quick brown fox"}, {"role": "assistant", "content": "jumps"}]
SOURCES = ("llada2_moe", "qwen3", "qwen3_moe", "llama", "qwen2", "mistral")
TARGETS = {  # (source, format) -> model_type
    ("llada2_moe", "hf"): "llada2_moe",
    ("llada2_moe", "stacked"): "llada2_moe_veomni",
    ("qwen3", "sdar"): "sdar",
    ("qwen3_moe", "sdar"): "sdar_moe",
    **{(name, "hf"): name for name in ("qwen3", "qwen3_moe", "llama", "qwen2", "mistral")},
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A converted checkpoint of each family, with tokenizer, card and licence; bfloat16, tied where that is usual."""
    folder = tmp_path_factory.mktemp("sources")
    tokenizer = make_tokenizer()
    for family in SOURCES:
        parent = folder / f"{family} parent"
        if family == "llada2_moe":
            ids = {"eos_token_id": tokenizer.eos_token_id, "num_nextn_predict_layers": 1}
            ling_folder(parent, tokenizer=tokenizer, vocab_size=len(tokenizer), dtype=torch.bfloat16, **ids)
        else:
            tied: dict[str, Any] = {"tie_word_embeddings": family in ("qwen3", "llama")}
            if family == "qwen3":
                tied["rope_parameters"] = {"rope_theta": 1e6, **YARN_SCALING}
            hf_folder(parent, family, tokenizer=tokenizer, vocab_size=len(tokenizer), dtype=torch.bfloat16, **tied)
        (parent / "README.md").write_text("---\nlicense: apache-2.0\n---\n", encoding="utf-8")
        (parent / "LICENSE").write_text("the licence\n", encoding="utf-8")
        difflm.convert(parent, folder / family, block_size=4)
    return folder


@pytest.fixture(scope="module")
def exports(sources: Path) -> Callable[[str, str], Path]:
    """Return the folder of an export, written once."""

    def get(family: str, format: str) -> Path:
        target = sources / f"{family} as {format}"
        if not target.exists():
            export(sources / family, target, format=format, max_shard_bytes=60_000)
        return target

    return get


def stored(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


def shapes(folder: Path) -> loaders.Shapes:
    return {name: tuple(tensor.shape) for name, tensor in stored(folder).items()}


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return set(left) == set(right) and all(
        left[name].dtype == right[name].dtype and torch.equal(left[name], right[name]) for name in left
    )


@pytest.mark.parametrize(("family", "format"), TARGETS)
def test_an_export_is_the_same_model(
    family: str, format: str, sources: Path, exports: Callable[[str, str], Path]
) -> None:
    """Logits, completions, ids of text and chat template, ends of a text, card and licence."""
    source, target = difflm.load_model(sources / family), difflm.load_model(exports(family, format))
    assert target.config.family == TARGETS[family, format]
    token_BL = tokens(300)
    for attention in ("block", "causal"):
        size = 4 if attention == "block" else None
        left, right = (difflm.logits(each, token_BL, attention=attention, block_size=size) for each in (source, target))
        assert torch.equal(left, right)
    params = difflm.SamplingParams(max_new_tokens=9, threshold=0.3, temperature=0.7, seed=3)
    left, right = (difflm.generate(each, ["the quick", "one two"], params) for each in (source, target))
    assert [each.tokens for each in left] == [each.tokens for each in right]
    before, after = (load_tokenizer(folder) for folder in (sources / family, exports(family, format)))
    assert before is not None
    assert after is not None
    assert before.get_vocab() == after.get_vocab()
    assert before.encode("the lazy dog <|im_end|>") == after.encode("the lazy dog <|im_end|>")
    assert before.apply_chat_template(CHAT, tokenize=False) == after.apply_chat_template(CHAT, tokenize=False)
    for name in ("eos_token_ids", "pad_token_id", "mask_token_id", "mask_token", "block_size", "parametrisation"):
        assert getattr(source.config, name) == getattr(target.config, name), name
    assert (exports(family, format) / "LICENSE").read_text() == "the licence\n"
    card = (exports(family, format) / "README.md").read_text()
    assert "license: apache-2.0" in card
    assert f"| parent | `{family} parent` |" in card
    assert "## Engines that serve this folder\n\n- SGLang 0.5.23: no, " in card


@pytest.mark.parametrize(("family", "format"), TARGETS)
def test_stored_values_are_the_sources_bits(
    family: str, format: str, sources: Path, exports: Callable[[str, str], Path]
) -> None:
    left, right = (
        difflm.load_model(folder, dtype="bfloat16").model.stored_tensors()
        for folder in (sources / family, exports(family, format))
    )
    assert set(right) - set(left) <= {"head.weight"}, "of a tied model"
    for name, tensor in right.items():
        assert torch.equal(tensor, left["embedding.weight" if name not in left else name]), name
    wide = {name for name, tensor in stored(exports(family, format)).items() if tensor.dtype != torch.bfloat16}
    assert all(name.endswith("expert_bias") for name in wide)


def test_stacked_and_split_come_back_bit_for_bit(exports: Callable[[str, str], Path], tmp_path: Path) -> None:
    split, stacked = exports("llada2_moe", "hf"), exports("llada2_moe", "stacked")
    export(stacked, tmp_path / "split", max_shard_bytes=50_000)
    export(tmp_path / "split", tmp_path / "stacked", format="stacked")
    export(stacked, tmp_path / "again", format="stacked")
    assert same(stored(split), stored(tmp_path / "split"))
    assert same(stored(stacked), stored(tmp_path / "stacked"))
    assert same(stored(stacked), stored(tmp_path / "again"))
    for one, other in ((split, tmp_path / "split"), (stacked, tmp_path / "stacked")):
        assert read_json(one / "config.json") == read_json(other / "config.json")


def test_stacked_is_what_the_trainers_converter_writes(exports: Callable[[str, str], Path]) -> None:
    folder = exports("llada2_moe", "stacked")
    raw, tensors = read_json(folder / "config.json"), stored(folder)
    assert (raw["model_type"], raw["architectures"]) == ("llada2_moe_veomni", ["LLaDA2MoeModelLM"])
    assert shapes(folder) == loaders.dfactory_merged(raw)
    split = stored(exports("llada2_moe", "hf"))
    for part in ("gate", "up", "down"):
        names = [f"model.layers.2.mlp.experts.{expert}.{part}_proj.weight" for expert in range(8)]
        expected = torch.stack([split[name] for name in names], dim=0)
        assert torch.equal(tensors[f"model.layers.2.mlp.experts.{part}_proj"], expected)


def test_the_trainers_own_configuration_is_read() -> None:
    """configs/model_configs/llada2_mini/config.json of dFactory (92b6890), which is silent on use_qk_norm."""
    from difflm.checkpoints.architectures import architecture_fields

    fields = architecture_fields("llada2.0-mini") | {"max_position_embeddings": 16_384, "norm_softmax": False}
    del fields["use_qk_norm"], fields["mask_token_id"]
    raw = fields | {"model_type": "llada2_moe_veomni", "architectures": ["LLaDA2MoeModelLM"]}
    assert model_config(raw, "x") == model_config(raw | {"model_type": "llada2_moe"}, "x")


@pytest.mark.parametrize("format", ["hf", "stacked"])
def test_names_and_shapes_are_those_of_llada2_loaders(format: str, exports: Callable[[str, str], Path]) -> None:
    folder = exports("llada2_moe", format)
    raw = read_json(folder / "config.json")
    assert loaders.expanded_by_sglang(shapes(folder), raw) == loaders.llada2_parameters(raw)
    assert raw["architectures"] == ["LLaDA2MoeModelLM"], "which SGLang and the plugin look up"
    assert stored(folder)["model.layers.1.mlp.gate.expert_bias"].dtype == torch.float32
    index = read_json(folder / "model.safetensors.index.json")["weight_map"]
    assert set(index) == set(shapes(folder))
    if format == "hf":  # dInfer takes the number of an expert from the name
        assert {int(name.split(".mlp.experts.")[1].split(".")[0]) for name in index if ".mlp.experts." in name} == {
            *range(8)
        }


@pytest.mark.parametrize("family", ["qwen3", "qwen3_moe"])
def test_names_and_shapes_are_those_of_sdar_loaders(family: str, exports: Callable[[str, str], Path]) -> None:
    folder = exports(family, "sdar")
    raw = read_json(folder / "config.json")
    assert shapes(folder) == loaders.sdar_parameters(raw)
    assert raw["tie_word_embeddings"] is False
    assert raw["architectures"] == [FAMILIES[raw["model_type"]].architecture]
    released = {"mask_token_id": raw["mask_token_id"], "block_size": 4, "attention_bias": False, "use_cache": False}
    released |= {"sliding_window": None, "use_sliding_window": False, "torch_dtype": "bfloat16"}
    assert raw == raw | released, "fields of JetLM/SDAR-4B-Chat's config.json"
    assert read_json(folder / "tokenizer_config.json")["mask_token"] == "<|mask|>", "generate.py of SDAR asks for it"


@pytest.mark.parametrize(
    ("family", "format", "fields"),
    [
        ("llada2_moe", "hf", loaders.SGLANG_LLADA2_FIELDS),
        ("llada2_moe", "stacked", loaders.SGLANG_LLADA2_FIELDS),
        ("qwen3", "sdar", loaders.SDAR_FIELDS),
        ("qwen3_moe", "sdar", loaders.SDAR_MOE_FIELDS),
    ],
)
def test_auto_config_gives_every_field_that_engines_read(
    family: str, format: str, fields: tuple[str, ...], exports: Callable[[str, str], Path]
) -> None:
    """The class beside config.json is all that an engine needs to open it; ours never runs it."""
    from transformers import AutoConfig, GenerationConfig

    folder = exports(family, format)
    raw = read_json(folder / "config.json")
    assert not [name for name in fields if name not in raw]
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    for name in fields:
        value = getattr(config, name)
        assert (str(value).removeprefix("torch.") if name == "torch_dtype" else value) == raw[name], name
    assert config.architectures == raw["architectures"]
    scaling = raw["rope_scaling"] and raw["rope_scaling"] | {"rope_theta": 1e6}
    assert config.rope_scaling == scaling, "transformers 5 adds rope_theta"
    generation = GenerationConfig.from_pretrained(folder)
    assert generation.eos_token_id == list(difflm.load_model(folder).config.eos_token_ids)


def test_an_export_loads_in_transformers_with_equal_logits(exports: Callable[[str, str], Path], tmp_path: Path) -> None:
    """LLaDA2 through the oracle that reads its names; dense families as what they are."""
    from transformers import AutoModelForCausalLM

    token_BL = tokens(300)
    for family in ("llada2_moe", "qwen2"):
        folder = exports(family, "hf")
        if family == "llada2_moe":
            theirs: Any = sarvam(folder, tmp_path / "oracle")
        else:
            theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        ours = difflm.logits(difflm.load_model(folder), token_BL, attention="causal")
        with torch.no_grad():
            expected = theirs(token_BL).logits
        assert float((ours - expected).abs().max() / expected.abs().max()) < 1e-5


def big(folder: Path, family: str, *, mask: int, **changes: Any) -> Path:
    """Return a converted model with the vocabulary of the real ones, a few numbers wide and without tokenizer."""
    small: dict[str, Any] = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2, "head_dim": 4}
    small |= {"num_attention_heads": 2, "num_key_value_heads": 1, "dtype": torch.bfloat16} | changes
    if family == "llada2_moe":
        ling_folder(folder / "parent", vocab_size=157_184, rotary_dim=2, moe_intermediate_size=4, **small)
    else:
        hf_folder(folder / "parent", family, vocab_size=151_936, **small)
    difflm.convert(folder / "parent", folder / "source", mask_token_id=mask, mask_init="keep", block_size=16)
    write_json(folder / "source" / "generation_config.json", {"threshold": 0.9})
    return folder / "source"


def test_the_command_prints_how_each_engine_is_started(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = big(tmp_path, "llada2_moe", mask=156_895), tmp_path / "out"
    assert run(["export", str(source), str(target), "--engine", "sglang"]) == 0
    said = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    assert said[str(target)] == "llada2_moe, format hf"
    assert said["sglang"] == (
        f"python -m sglang.launch_server --model-path {target} --trust-remote-code "
        f"--dllm-algorithm LowConfidence --dllm-algorithm-config {target}/sglang.yaml"
    )
    assert (target / "sglang.yaml").read_text() == "block_size: 16\nthreshold: 0.9\n"
    assert f"--model_name {target} --model_type llada2" in said["dinfer"]
    assert "--threshold 0.9 --block_length 16" in said["dinfer"]
    assert "VLLM_DLLM_DRAFT_SIZE=16 vllm serve" in said["vllm"]
    assert said["lmdeploy"].startswith("no, it has no block diffusion for LLaDA2MoeModelLM (llada2_moe)")
    assert (
        "```bash\npython -m sglang.launch_server --model-path path/to/this/folder" in (target / "README.md").read_text()
    )
    card = (target / "README.md").read_text()
    export(target, tmp_path / "stacked", format="stacked")
    again = (tmp_path / "stacked" / "README.md").read_text()
    assert (card.count("## Engines that serve this folder"), again.count("## Engines that serve this folder")) == (1, 1)
    assert "it reads one matrix per expert, not stacked ones; export format hf" in again


def test_sdar_is_served_by_two_engines(tmp_path: Path) -> None:
    done = export(big(tmp_path, "qwen3", mask=151_669), tmp_path / "out", format="sdar", engine="lmdeploy")
    assert set(done.commands) == {"sglang", "lmdeploy"}
    assert done.commands["lmdeploy"].endswith(
        "--dllm-block-length 16 --dllm-unmasking-strategy low_confidence_dynamic --dllm-confidence-threshold 0.9"
    )


def changed(source: Path, target: Path, **fields: Any) -> Path:
    """Return a copy of a folder with other fields in config.json; the weights are linked."""
    target.mkdir()
    for file in source.iterdir():
        if file.name != "config.json":
            (target / file.name).symlink_to(file)
    write_json(target / "config.json", read_json(source / "config.json") | fields)
    return target


SHIFT = "logit_shift is True, they read every token at its own row: engines that load SDARForCausalLM would decode it "


@pytest.mark.parametrize(
    ("family", "fields", "options", "message"),
    [
        ("qwen3", {"logit_shift": True}, {"format": "sdar"}, SHIFT + "wrongly without a message; serve it with difflm"),
        ("llada2_moe", {"logit_shift": True}, {}, "logit_shift is True, they read every token at its own row: engines"),
        ("llada2_moe", {"clean_attention": "causal"}, {"format": "stacked"}, "clean_attention is 'causal', they show"),
        ("qwen3", {"noisy_attention": "causal"}, {"format": "sdar"}, "noisy_attention is 'causal', they denoise a"),
        ("llama", {}, {"format": "sdar"}, "model_type is 'llama'; format sdar takes qwen3, sdar, qwen3_moe, sdar_moe;"),
        (
            "qwen3_moe",
            {},
            {"format": "stacked"},
            "'qwen3_moe'; format stacked takes llada2_moe, llada2_moe_veomni",
        ),
        ("qwen3", {"mask_token_id": None}, {"format": "sdar"}, "mask_token_id is missing, an AR model; format sdar is"),
        (
            "qwen3",
            {},
            {"engine": "sglang"},
            "SGLang 0.5.23: it has no block diffusion for Qwen3ForCausalLM (qwen3)",
        ),
        ("llada2_moe", {}, {"engine": "dinfer"}, "dInfer (fce4e32): mask_token_id is 320; it has 156895 built in for "),
        ("qwen3", {"mask_token_id": None}, {"engine": "lmdeploy"}, "LMDeploy 0.16.0: an AR model"),
        ("qwen3_moe", {"mlp_only_layers": [9]}, {}, "mlp_only_layers is [9]"),
    ],
)
def test_what_would_be_decoded_wrongly_is_refused(
    family: str, fields: dict[str, Any], options: dict[str, Any], message: str, sources: Path, tmp_path: Path
) -> None:
    source = changed(sources / family, tmp_path / "source", **fields)
    with pytest.raises(CheckpointError) as caught:
        export(source, tmp_path / "out", **options)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{source}/config.json: ")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


CAUSAL = {"clean_attention": "causal", "noisy_attention": "causal", "logit_shift": True}


@pytest.mark.parametrize(("family", "written"), [("qwen3", "qwen3"), ("llama", "llama"), ("llada2_moe", "bailing_moe")])
def test_a_token_causal_model_is_written_in_its_parent_s_class(
    family: str, written: str, sources: Path, tmp_path: Path
) -> None:
    source = changed(sources / family, tmp_path / "source", **CAUSAL)
    done = export(source, tmp_path / "out")
    assert done.family == written
    assert done.note is not None
    assert done.note.startswith(f"for left-to-right use: {FAMILIES[written].architecture} writes the text of decoding ")
    raw, parent = read_json(tmp_path / "out" / "config.json"), read_json(sources / f"{family} parent" / "config.json")
    assert raw["architectures"] == parent["architectures"] == [FAMILIES[written].architecture]
    assert raw.get("use_cache", True) is True
    mask_id = raw["mask_token_id"]
    assert read_json(tmp_path / "out" / "generation_config.json")["suppress_tokens"] == [mask_id]
    assert "Left to right this is an autoregressive model" in (tmp_path / "out" / "README.md").read_text()
    ours, again = difflm.load_model(source), difflm.load_model(tmp_path / "out")
    params = difflm.SamplingParams(max_new_tokens=8, ignore_eos=True, decoding="next_token")
    prompt = tokens(50)[0].tolist()
    expected = difflm.generate(ours, [prompt], params)[0].tokens
    assert difflm.generate(again, [prompt], params)[0].tokens == expected
    verified = difflm.SamplingParams(max_new_tokens=8, ignore_eos=True, decoding="verified")
    assert difflm.generate(again, [prompt], verified)[0].tokens == expected, "nothing that drafts need is lost"


def test_the_parent_s_class_in_other_hands_writes_the_same_and_no_mask(sources: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    source = changed(sources / "llama", tmp_path / "source", **CAUSAL)
    export(source, tmp_path / "out", dtype="float32")
    prompt = tokens(50)[0].tolist()
    params = difflm.SamplingParams(max_new_tokens=8, ignore_eos=True, decoding="verified")
    expected = difflm.generate(difflm.load_model(tmp_path / "out"), [prompt], params)[0].tokens
    auto: Any = AutoModelForCausalLM
    model = auto.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert model.generation_config.suppress_tokens == [read_json(source / "config.json")["mask_token_id"]]
    written = model.generate(torch.tensor([prompt]), max_new_tokens=8, do_sample=False, eos_token_id=None)
    assert written[0, len(prompt) :].tolist() == expected


def test_blocks_alone_have_no_note(exports: Callable[[str, str], Path]) -> None:
    assert "suppress_tokens" not in (exports("llama", "hf") / "generation_config.json").read_text()
    assert "do not decode this model left to right" in (exports("llama", "hf") / "README.md").read_text()


def test_options_are_named(sources: Path, tmp_path: Path) -> None:
    wrong: tuple[tuple[dict[str, Any], str], ...] = (
        ({"format": "gguf"}, "format is 'gguf'; expected one of hf, stacked, sdar"),
        ({"engine": "tgi"}, "engine is 'tgi'; expected one of sglang, lmdeploy, dinfer, vllm"),
        ({"dtype": "int8"}, "dtype is 'int8'"),
    )
    for options, message in wrong:
        with pytest.raises(ConfigError, match=message):
            export(sources / "llama", tmp_path / "out", **options)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").touch()
    with pytest.raises(CheckpointError, match="output folder is not empty"):
        export(sources / "llama", tmp_path / "out")


def test_shifted_and_autoregressive_models_leave_as_what_they_are(sources: Path, tmp_path: Path) -> None:
    """Format hf of a dense family: nothing but difflm reads its diffusion fields."""
    source = changed(sources / "llama", tmp_path / "shifted", logit_shift=True, clean_attention="causal")
    export(source, tmp_path / "out")
    config = difflm.load_model(tmp_path / "out").config
    assert (config.logit_shift, config.clean_attention, config.mask_token_id) == (True, "causal", 320)
    for family in ("llama", "llada2_moe"):
        done = export(sources / f"{family} parent", tmp_path / family, dtype="float32")
        loaded = difflm.load_model(tmp_path / family)
        assert loaded.config.mask_token_id is None
        assert set(done.refused) == {"sglang", "lmdeploy", "dinfer", "vllm"}
        assert (tmp_path / family / "README.md").read_text() == "---\nlicense: apache-2.0\n---\n"
        assert read_json(tmp_path / family / "config.json")["dtype"] == "float32"
    raw = json.loads((tmp_path / "llada2_moe" / "config.json").read_text())
    assert (raw["model_type"], raw["num_nextn_predict_layers"]) == ("bailing_moe", 0)


def test_code_of_the_source_stays_behind(sources: Path, tmp_path: Path) -> None:
    """The only code in an export is the class that holds config.json; what is made from it has none."""
    source = changed(sources / "llada2_moe", tmp_path / "source", auto_map={"AutoModel": "modeling_x.X"})
    (source / "modeling_x.py").write_text("raise SystemExit\n", encoding="utf-8")
    export(source, tmp_path / "out")
    raw = read_json(tmp_path / "out" / "config.json")
    assert raw["auto_map"] == {"AutoConfig": "configuration_llada2_moe.Config"}
    assert [path.name for path in (tmp_path / "out").glob("*.py")] == ["configuration_llada2_moe.py"]
    save_model(difflm.load_model(tmp_path / "out"), tmp_path / "saved")
    assert "auto_map" not in read_json(tmp_path / "saved" / "config.json")
    assert not list((tmp_path / "saved").glob("*.py"))


def test_every_family_has_a_format() -> None:
    assert set(FORMATS["hf"].families) == set(FAMILIES)
