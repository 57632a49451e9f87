"""A service: slow texts never hold up the loop, and there are never too many of them."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from typing import Any

import pytest

from difflm.checkpoints.loading import LoadedModel
from difflm.checkpoints.templates import BoundedRender
from difflm.errors import RequestError
from difflm.serving import service as module
from difflm.serving.failures import Overloaded
from difflm.serving.limits import Limits
from difflm.serving.service import Service
from tests.serving.servers import serving


def test_texts_are_read_off_the_loop(loaded: LoadedModel) -> None:
    async def body() -> None:
        service = Service(loaded, name="tiny")
        slow = asyncio.ensure_future(service.off_the_loop(lambda: time.sleep(0.3) or threading.current_thread().name))
        began, turns = time.monotonic(), 0
        while not slow.done():
            await asyncio.sleep(0.005)
            turns += 1
        assert time.monotonic() - began >= 0.25
        assert turns > 10
        assert (await slow).startswith("difflm-text")

    asyncio.run(body())


def test_too_many_texts_are_refused(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_TEXTS", 1)

    async def body() -> None:
        service = Service(loaded, name="tiny")
        first = asyncio.ensure_future(service.off_the_loop(lambda: time.sleep(0.1)))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match="1 requests are being read"):
            await service.off_the_loop(lambda: None)
        await first
        assert await service.off_the_loop(lambda: 5) == 5

    asyncio.run(body())


@pytest.mark.parametrize("options", [{"max_requests": 0}, {"cache_bytes": 1}])
def test_an_engine_that_cannot_be_made_is_said_at_once(options: dict[str, Any], loaded: LoadedModel) -> None:
    with pytest.raises(RequestError, match=next(iter(options))):
        Service(loaded, name="tiny", **options)


def test_a_template_that_does_not_end_costs_one_request(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    body = {"messages": [{"role": "user", "content": "in the"}], "max_tokens": 4}
    with serving(loaded, render=None, limits=Limits(template_seconds=300)) as server:
        expected = server.post("/v1/chat/completions", body).json()["choices"][0]["message"]
        render = server.service.loaded.render
        assert isinstance(render, BoundedRender)
        assert render.seconds == 300
        (process,) = render._idle
        render.seconds = 0.2
        with monkeypatch.context() as patch:
            endless = "{% for a in range(99999) %}" * 3 + "{% endfor %}" * 3
            patch.setattr(server.service.loaded.tokenizer, "chat_template", endless)
            response = server.post("/v1/chat/completions", body)
        assert response.status_code == 400
        assert response.json()["error"]["message"] == (
            "messages: the chat template was stopped in a conversation of 1 messages, as it did not end within "
            "0.2 seconds; shorten the conversation, or mend the template"
        )
        assert process._process.returncode == -signal.SIGKILL
        render.seconds = 300
        assert server.post("/v1/chat/completions", body).json()["choices"][0]["message"] == expected
        (process,) = render._idle
    assert render._idle == []
    assert process._process.returncode == -signal.SIGKILL
