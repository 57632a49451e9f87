"""The AR parent before its first step: a tokenizer learnt from the tasks, a Qwen3 with random weights."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

EOS, SPARE = "<|end|>", "<|spare|>"
"""The end of an answer, and the token that `convert` makes the mask."""

APART = r"\d|\n|[^\sA-Za-z0-9]+( [^\sA-Za-z0-9]+)* ?"
"""What nothing merges with: a digit, a new line, a run of signs. What stands between them is words, which may merge
across spaces: the datasets' fixed instructions become a few tokens."""


def learn_tokenizer(texts: Iterable[str], vocabulary: int) -> Tokenizer:
    """Return a byte-level BPE learnt from texts; any text can be written with it.

    Args:
        texts: to learn from.
        vocabulary: tokens, at least 258.
    """
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(APART), "isolated")
    bytes_alone = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_alone])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[EOS, SPARE],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def write_parent(folder: Path, tokenizer: Tokenizer, *, layers: int, hidden: int, seed: int) -> int:
    """Write a Qwen3 with random weights and tied embeddings as an HF folder, and return its parameters.

    Args:
        folder: absent.
        tokenizer: see `learn_tokenizer`.
        layers: decoder layers.
        hidden: width; heads have 64 of it, and two share keys and values.
        seed: of the weights.
    """
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    end = tokenizer.token_to_id(EOS)
    config = Qwen3Config(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=max(hidden // 128, 1),
        head_dim=64,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=end,
        pad_token_id=end,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(config)
    aside = folder.with_name(f"{folder.name}.part")
    model.save_pretrained(aside)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS, pad_token=EOS).save_pretrained(aside)
    aside.rename(folder)
    return sum(each.numel() for each in model.parameters())
