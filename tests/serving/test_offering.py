"""What /v1/models offers is what the server does."""

from __future__ import annotations

from pathlib import Path

import pytest

from difflm.checkpoints.loading import LoadedModel, load_model
from difflm.decode.policies.named import policy
from difflm.serving.limits import Defaults, Limits
from difflm.serving.offering import BLOCK_POLICIES, offering
from tests.drafters import drafters
from tests.serving.servers import Running

__all__ = ["drafters"]
SHORT = {"prompt": "in the", "max_tokens": 4}


def test_every_decoding_and_policy_that_is_offered_is_served(server: Running) -> None:
    offer = server.get("/v1/models").json()["data"][0]["diffusion"]
    assert offer["decoding"] in offer["decodings"]
    for decoding in offer["decodings"]:
        response = server.post("/v1/completions", {**SHORT, "diffusion": {"decoding": decoding}})
        assert response.status_code == 200, response.text
    assert tuple(offer["policies"]) == BLOCK_POLICIES
    for name, settings in offer["policies"].items():
        chosen = {"name": name, "threshold": 0.5}
        chosen |= {each: 4 for each in settings if each in ("block_size", "block_length")}
        assert len(chosen) == 3, name
        assert server.post("/v1/completions", {**SHORT, "diffusion": {"policy": chosen}}).status_code == 200


def test_bounds_are_those_of_requests(server: Running) -> None:
    offer = server.get("/v1/models").json()["data"][0]["diffusion"]
    for size, status in ((offer["most_block_size"], 200), (offer["most_block_size"] + 1, 400)):
        response = server.post("/v1/completions", {**SHORT, "diffusion": {"block_size": size}})
        assert response.status_code == status
    assert server.post("/v1/completions", {**SHORT, "max_tokens": offer["most_tokens"] + 1}).status_code == 400
    assert offer["chat"] is True


def test_the_servers_own_settings_are_told(loaded: LoadedModel) -> None:
    found = offering(loaded, Defaults(), Limits())
    assert (found["block_size"], found["threshold"], found["policy"]) == (8, 0.95, None)
    own = Defaults(policy=("hf21", {}), block_size=4, threshold=0.0, temperature=0.5)
    found = offering(loaded, own, Limits(block_size=16, new_tokens=9, least_threshold=0.25))
    assert (found["block_size"], found["threshold"], found["temperature"], found["policy"]) == (4, 0.0, 0.5, "hf21")
    assert (found["most_block_size"], found["most_tokens"], found["least_threshold"]) == (16, 9, 0.25)


def test_a_model_that_only_drafts_offers_no_blocks(drafters: Path) -> None:
    found = offering(load_model(drafters / "drafter"), Defaults(), Limits())
    assert (found["decodings"], found["decoding"]) == (["next_token", "verified"], "verified")
    assert found["policies"] == {}


@pytest.mark.parametrize("name", BLOCK_POLICIES)
def test_policies_are_known(name: str) -> None:
    assert policy(name)
