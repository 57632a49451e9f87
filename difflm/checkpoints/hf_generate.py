"""Greedy decoding by transformers' own `generate`: the yardstick of `difflm bench decode`."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch

from difflm.checkpoints.loading import LoadedModel
from difflm.checkpoints.saving import save_model


class TransformersGenerator:
    """A model in transformers' hands, with the same weights and dtype.

    The weights pass through a temporary HF folder, so that a GGUF parent is decoded from the very same numbers.

    Args:
        loaded: an AR model of ours, on the CPU.
        ends: ids that end an answer; none decodes to the limit.
    """

    def __init__(self, loaded: LoadedModel, *, ends: Collection[int]) -> None:
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        logging.disable_progress_bar()

        self.dtype = loaded.model.embedding.weight.dtype
        self.eos = sorted(ends)
        with tempfile.TemporaryDirectory(prefix="difflm-") as folder:
            save_model(loaded, Path(folder) / "model")
            # Any: transformers' classes are typed for their own checker.
            auto: Any = AutoModelForCausalLM
            self.model: Any = auto.from_pretrained(
                Path(folder) / "model", dtype=self.dtype, local_files_only=True, trust_remote_code=False
            )
        self.model.eval()

    @torch.inference_mode()
    def __call__(self, prompt: Sequence[int], max_new_tokens: int) -> list[int]:
        """Return the generated ids, the EOS included, for a prompt; arg-max, KV cache, one token per forward.

        Args:
            prompt: token ids, not empty.
            max_new_tokens: tokens to generate at most.
        """
        token_BN = torch.tensor([list(prompt)])
        result = self.model.generate(
            token_BN,
            attention_mask=torch.ones_like(token_BN),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            temperature=None,
            top_p=None,
            top_k=None,
            repetition_penalty=None,
            eos_token_id=self.eos or None,
            pad_token_id=self.eos[0] if self.eos else 0,
            use_cache=True,
        )
        return result[0, len(prompt) :].tolist()
