"""Metrics say what happened: their sums are those of the answers."""

from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from difflm.checkpoints.loading import LoadedModel, load_model
from tests.drafters import drafters
from tests.serving.servers import Running, serving

__all__ = ["drafters"]


def values(server: Running) -> dict[str, float]:
    response = server.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    return {
        sample.name + "".join(f":{value}" for value in sample.labels.values()): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
        if "le" not in sample.labels
    }


def test_sums_are_those_of_the_answers(loaded: LoadedModel) -> None:
    with serving(loaded) as server:
        empty = values(server)
        assert empty["difflm_num_requests_running"] == empty["difflm_num_requests_waiting"] == 0
        body = {"prompt": "in the beginning", "max_tokens": 10, "n": 2, "temperature": 1}
        whole = server.post("/v1/completions", body).json()["usage"]
        server.post("/v1/completions", {**body, "stream": True, "seed": 5})
        same = server.post("/v1/completions", {**body, "seed": 5}).json()["usage"]
        found = values(server)
    own = [each["diffusion"]["forwards"] for each in (whole, same, same)]
    assert found["difflm_prompt_tokens_total"] == 3 * whole["prompt_tokens"]
    tokens = whole["completion_tokens"] + 2 * same["completion_tokens"]
    assert found["difflm_generation_tokens_total"] == tokens
    assert found["difflm_request_forwards_total:denoise"] == sum(each["denoise"] for each in own)
    ends = [value for name, value in found.items() if name.startswith("difflm_request_success_total")]
    assert sum(ends) == found["difflm_e2e_request_latency_seconds_count"] == 6
    assert found["difflm_request_queue_time_seconds_count"] == 6
    assert found["difflm_tokens_per_forward_count"] == 6
    assert found["difflm_request_unfinished_total"] == 0
    assert 0 < found["difflm_forward_passes_total"] <= found["difflm_request_forwards_total:denoise"] + 10
    assert found["difflm_engine_alive"] == 1


def test_drafts_are_counted(drafters: Path) -> None:
    with serving(load_model(drafters / "drafter")) as server:
        own = server.post("/v1/completions", {"prompt": "in", "max_tokens": 20}).json()["usage"]["diffusion"]
        found = values(server)
    assert found["difflm_drafted_tokens_total"] == own["drafted_tokens"] > 0
    assert found["difflm_accepted_tokens_total"] == own["accepted_tokens"]


@pytest.mark.parametrize("path", ["/health", "/ready"])
def test_it_does_not_count_what_is_no_answer(path: str, loaded: LoadedModel) -> None:
    with serving(loaded) as server:
        before = values(server)
        server.get(path)
        server.post("/v1/completions", {"prompt": 5})
        after = values(server)
    assert {name: value for name, value in after.items() if "created" not in name} == {
        name: value for name, value in before.items() if "created" not in name
    }
