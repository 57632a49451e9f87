"""From a checkpoint to generated text in Python: convert, adapt, merge, decode.

    python examples/convert_tiny.py CHECKPOINT TEXTS.jsonl WORK_FOLDER [TOKENS]

CHECKPOINT is a folder with safetensors or one GGUF file; every line of TEXTS.jsonl is {"text": ...}.
TOKENS is the length of the run (default 20000: a smoke test, not a model).
"""

from __future__ import annotations

import sys
from pathlib import Path

import difflm


def main(checkpoint: Path, texts: Path, work: Path, tokens: int = 20_000) -> None:
    """Convert `checkpoint`, train it for `tokens` tokens of `texts` and print a completion."""
    difflm.convert(checkpoint, work / "converted", logit_shift=True, clean_attention="causal", block_size=8)
    trained = difflm.train(
        {
            "model": str(work / "converted"),
            "output": str(work / "run"),
            "data": {"paths": [str(texts)], "row_length": 128, "validation_fraction": 0.1},
            # Block sizes grow from what the parent knows (1) to what decoding will use (8).
            "curriculum": [{"block_size": size, "tokens": tokens // 4} for size in (1, 2, 4, 8)],
            "optimizer": {"learning_rate": 2e-4},
        }
    )
    model = difflm.load_model(trained)
    completion = difflm.generate(model, ["In the beginning"], difflm.SamplingParams(max_new_tokens=24))[0]
    print(f"{completion.text!r}: {completion.num_tokens} tokens in {completion.forwards.denoise} forwards")


if __name__ == "__main__":
    checkpoint, texts, work = map(Path, sys.argv[1:4])
    main(checkpoint, texts, work, *map(int, sys.argv[4:]))
