"""llama.cpp as a worker of `difflm bench speed`: run by an interpreter that has llama-cpp-python, not by ours.

    python llama_worker.py MODEL.gguf THREADS

Reads a JSON object per line ({"prompts": [[ids]], "new_tokens": n}) and answers each with one ({"seconds", "answers"}),
greedy and to the full length. The first line it writes names the version.
"""

# The package is not ours to install.
# pyright: reportMissingImports=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import itertools
import json
import sys
import time


def main(path: str, threads: int) -> None:
    """Answer until the input ends."""
    import llama_cpp

    model = llama_cpp.Llama(
        model_path=path, n_ctx=2048, n_threads=threads, n_threads_batch=threads, n_gpu_layers=0, verbose=False
    )
    print(json.dumps({"version": llama_cpp.__version__}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        answers: list[list[int]] = []
        started = time.perf_counter()
        for prompt in asked["prompts"]:
            model.reset()  # else the prompt is taken from the last answer's cache
            tokens = model.generate(prompt, temp=0.0)
            answers.append([int(token) for token in itertools.islice(tokens, asked["new_tokens"])])
        print(json.dumps({"seconds": time.perf_counter() - started, "answers": answers}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
