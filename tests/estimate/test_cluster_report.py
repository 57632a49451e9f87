"""The arithmetic of many GPUs for a reader and for programs."""

from __future__ import annotations

import json

import pytest

from difflm.estimate.cluster_report import cluster_lines, cluster_tree
from tests.estimate.test_cluster import GIB, estimated


def test_figures_say_that_nothing_was_measured() -> None:
    found = estimated("llada2.0-mini", gpus=4, tflops=500.0, expert_parallel=2)
    tree = cluster_tree(found)
    assert json.loads(json.dumps(tree)) == tree
    assert tree["measured"] is False
    memory = tree["memory_per_gpu"]
    assert memory["peak"] == max(memory["peaks"].values()) == found.memory.peak
    assert tree["time"]["gpu_hours"] == pytest.approx(4 * tree["time"]["hours"])
    assert tree["time"]["tokens_per_second"] == pytest.approx(1e6 / 3600 / tree["time"]["hours"])
    text = "\n".join(cluster_lines(found))
    for part in (
        "arithmetic, not a measurement", "16,255,638,528 parameters, 1,432,968,192 active, 20 layers",
        "4 GPUs of 80.00 GiB, shard fsdp, experts over 2", "4 rows of 256 a step: 1 x 1 on each GPU",
        "without activation checkpointing", "yes  (the fewest that are enough: ", "30% of 500 TFLOP/s",
    ):  # fmt: skip
        assert part in text, text


def test_what_does_not_fit_says_what_would() -> None:
    text = "\n".join(cluster_lines(estimated(gpus=1, changes={"activation_checkpointing": False})))
    assert "no  (the fewest that are enough: " in text
    assert "; with activation checkpointing " in text
    assert "time        not without --gpu-tflops" in text
    assert "no  (no number of GPUs is enough)" in "\n".join(cluster_lines(estimated(memory=4 * GIB)))
