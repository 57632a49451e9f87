"""The model card says what the model is, where it comes from, and how not to decode it."""

from __future__ import annotations

from pathlib import Path

import yaml

from difflm.checkpoints.card import licence_files, licence_of_card, model_card, with_serving

CONFIG = {
    "model_type": "llama",
    "block_size": 32,
    "mask_token_id": 16,
    "mask_token": "<|empty|>",
    "logit_shift": False,
    "clean_attention": "block",
    "noisy_attention": "bidirectional",
    "difflm": {
        "version": "1",
        "parent": {"name": "parent", "sha256": {"model.safetensors": "abc123"}},
        "recipe": "wsd",
        "license": "mit",
        "mask_init": "mean",
    },
}


def test_card(tmp_path: Path) -> None:
    card = model_card(CONFIG)
    assert "Warning: do not decode this model left to right" in card
    for part in (
        "abc123",
        "`16`",
        '`"<\\|empty\\|>"`',
        "`false`",
        '`"bidirectional"`',
        "wsd",
        "`mean`",
        "# Block-diffusion model made from parent",
    ):
        assert part in card
    front = yaml.safe_load(card.split("---")[1])
    assert (front["license"], front["base_model"]) == ("mit", "parent")
    (tmp_path / "README.md").write_text(card)
    assert licence_of_card(tmp_path) == "mit"


def test_a_token_causal_model_may_be_decoded_left_to_right() -> None:
    card = model_card(CONFIG | {"clean_attention": "causal"})
    assert "Warning" not in card
    assert "Left to right this is an autoregressive model" in card
    assert 'so that the parent\'s class (`llama`) writes what difflm writes with `decoding="next_token"`' in card
    own = model_card(CONFIG | {"clean_attention": "causal", "model_type": "llada2_moe"})
    assert "so that what `difflm export` makes of it writes" in own


def test_unknown_origins_are_said_to_be_unknown() -> None:
    card = model_card({"model_type": "llama", "mask_token_id": 3})
    assert yaml.safe_load(card.split("---")[1])["license"] == "unknown"
    assert "| parent | `unknown` |" in card


def test_merged_checkpoints_are_listed() -> None:
    record = {**CONFIG["difflm"], "merged": [{"name": "step-10"}, {"name": "step-20"}]}  # type: ignore[dict-item]
    assert "step-10, step-20" in model_card(CONFIG | {"difflm": record})


def test_licence_outside_the_front_matter_does_not_count(tmp_path: Path) -> None:
    assert licence_of_card(tmp_path) is None
    (tmp_path / "README.md").write_text("license: mit\n")
    assert licence_of_card(tmp_path) is None


def test_the_section_on_serving_is_replaced_and_the_rest_stays() -> None:
    card = "# A model\n\n## Serving\n\nits own words\n"
    once = with_serving(card, {"A 1": "run folder", "B 2": ("one reason", "another")})
    assert once.startswith(card)
    assert once.endswith("- A 1\n\n```bash\nrun folder\n```\n\n- B 2: no, one reason; another.\n")
    assert with_serving(once, {"A 1": "run folder", "B 2": ("one reason", "another")}) == once
    assert with_serving("", {"B 2": ("a",)}) == "## Engines that serve this folder\n\n- B 2: no, a.\n"


def test_files_of_a_licence(tmp_path: Path) -> None:
    for name in ("LICENSE", "NOTICE.txt", "License.md", "license.py", "README.md"):
        (tmp_path / name).touch()
    assert [path.name for path in licence_files(tmp_path)] == ["LICENSE", "License.md", "NOTICE.txt"]
    assert licence_files(tmp_path / "LICENSE") == ()
