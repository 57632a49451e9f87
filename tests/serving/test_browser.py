"""The page in a real browser: typing, stopping, reloading, what goes wrong, small screens, keyboards."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from difflm.checkpoints.convert import convert
from difflm.checkpoints.loading import LoadedModel, load_model
from difflm.serving.limits import Access
from tests.serving.conftest import TEXTS, TURNS
from tests.serving.servers import Running, serving, until
from tests.serving.test_server import slowed
from tests.standins import word_tokenizer, write_parent

pytestmark = pytest.mark.slow
api = pytest.importorskip("playwright.sync_api", reason="playwright is in the extra [dev]")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
if CHROMIUM is None:
    pytest.skip("there is no Chromium on this machine (Debian: apt install chromium)", allow_module_level=True)

SECONDS = 120
CHAT = "**/v1/chat/completions"


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """A tiny model that offers blocks and decoding left to right."""
    folder = tmp_path_factory.mktemp("browser")
    parent = write_parent(folder / "parent", tokenizer=word_tokenizer(TEXTS, special=TURNS, vocabulary=300))
    convert(parent, folder / "tiny", block_size=8, clean_attention="causal")
    return load_model(folder / "tiny")


@pytest.fixture(scope="module")
def running(causal: LoadedModel) -> Iterator[Running]:
    with serving(causal, prefix_caching=False) as found:
        yield found


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with api.sync_playwright() as player:
        options = ["--no-sandbox"] if os.geteuid() == 0 else []
        found = player.chromium.launch(executable_path=CHROMIUM, args=options)
        yield found
        found.close()


class Shown:
    """A page that was opened.

    Args:
        browser: of the tests.
        address: of the server.
        options: of the context.
    """

    def __init__(self, browser: Any, address: str, **options: Any) -> None:
        self.context = browser.new_context(**options)
        self.context.set_default_timeout(SECONDS * 1000)
        self.page = self.context.new_page()
        self.said: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text) if message.type == "error" else None)
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.goto(f"{address}/")

    def expect(self, selector: str) -> Any:
        return api.expect(self.page.locator(selector))

    def connected(self) -> Shown:
        self.expect("#model").to_contain_text("context", timeout=SECONDS * 1000)
        return self

    def set(self, tokens: int = 20, **fields: Any) -> None:
        self.page.locator("#settings summary").click()
        self.page.locator("#tokens").fill(str(tokens))
        for name, value in fields.items():
            field = self.page.locator(f"#{name}")
            field.set_checked(value) if isinstance(value, bool) else field.fill(str(value))

    def ask(self, text: str = "in the beginning") -> None:
        self.page.locator("#message").fill(text)
        self.page.keyboard.press("Enter")

    def done(self) -> None:
        self.expect("#stop").to_be_hidden(timeout=SECONDS * 1000)
        self.expect("#send").to_be_visible(timeout=SECONDS * 1000)

    def messages(self) -> list[str]:
        return self.page.locator("#messages li p").all_text_contents()


@pytest.fixture
def shown(browser: Any, running: Running) -> Iterator[Shown]:
    found = Shown(browser, running.address).connected()
    yield found
    found.context.close()


def stream_of(*objects: Any, done: bool = True) -> str:
    lines = [f"data: {json.dumps(each)}\n\n" for each in objects]
    return "".join(lines) + ("data: [DONE]\n\n" if done else "")


def piece(text: str) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]}


def sse(body: str) -> dict[str, Any]:
    return {"status": 200, "headers": {"content-type": "text/event-stream"}, "body": body}


def refusal(status: int, message: str = "why", **headers: str) -> dict[str, Any]:
    body = json.dumps({"error": {"message": message, "type": "x", "param": None, "code": None}})
    return {"status": status, "headers": {"content-type": "application/json", **headers}, "body": body}


def answer_of(running: Running, **diffusion: Any) -> dict[str, Any]:
    body = {"messages": [{"role": "user", "content": "in the beginning"}], "max_tokens": 20, "temperature": 0}
    return running.post("/v1/chat/completions", {**body, "diffusion": diffusion or None}).json()


def test_questions_that_suit_the_model_are_offered_until_something_was_said(browser: Any, causal: LoadedModel) -> None:
    questions = ["in the beginning", "a <b>word</b>\nand the light"]
    with serving(causal, questions=questions) as running:
        shown = Shown(browser, running.address, viewport={"width": 390, "height": 800}).connected()
        buttons = shown.page.locator("#questions button")
        assert buttons.all_text_contents() == questions
        assert shown.page.evaluate("document.documentElement.scrollWidth") <= 390
        buttons.nth(1).click()
        shown.done()
        assert shown.messages()[0] == questions[1]
        assert len(shown.messages()) == 2
        shown.expect("#questions").to_be_hidden()
        shown.page.locator("#fresh").click()
        shown.expect("#questions").to_be_visible()
        assert shown.said == []
        shown.context.close()


def test_a_server_without_questions_shows_none(shown: Shown) -> None:
    shown.expect("#empty").to_be_visible()
    shown.expect("#questions").to_be_hidden()


def test_an_answer_is_the_servers_and_can_be_seen_to_denoise(shown: Shown, running: Running) -> None:
    shown.set(20, parent=True)
    shown.ask()
    shown.done()
    whole, parent = answer_of(running), answer_of(running, decoding="next_token")
    assert shown.messages() == ["in the beginning", whole["choices"][0]["message"]["content"]]
    for number, response in enumerate((whole, parent)):
        figures = shown.page.locator(".lane").nth(number).locator("dd").all_text_contents()
        spent = response["usage"]["diffusion"]["forwards"]["denoise"]
        assert figures[2:] == [str(response["usage"]["completion_tokens"]), str(spent)]
        assert figures[0] == f"{response['usage']['completion_tokens'] / spent:.2f}"
    lane = shown.page.locator(".lane").first
    lane.locator(".replay input").fill("3")
    assert lane.locator("output").text_content() == f"3 / {whole['usage']['diffusion']['forwards']['denoise']}"
    assert lane.locator(".cell.guess").count() > 0
    assert lane.locator(".cell.decided").count() > 0
    lane.locator(".replay input").fill("0")
    assert lane.locator(".cell").count() == 0
    lane.locator(".play").click()
    api.expect(lane.locator(".cell.final")).to_have_count(whole["usage"]["completion_tokens"], timeout=SECONDS * 1000)
    assert shown.said == []


def test_settings_are_within_the_servers_bounds_and_sent(shown: Shown, running: Running) -> None:
    offer = running.get("/v1/models").json()["data"][0]["diffusion"]
    assert shown.page.locator("#block").get_attribute("max") == str(offer["most_block_size"])
    shown.set(12, threshold=0.5, block=4, editing=0.5)
    with shown.page.expect_request(CHAT) as caught:
        shown.ask()
    body = caught.value.post_data_json
    assert body["diffusion"] == {"decoding": "block", "threshold": 0.5, "block_size": 4, "editing": {"threshold": 0.5}}
    assert (body["max_tokens"], body["stream_options"]["denoising"]) == (12, True)
    shown.done()
    for name in offer["policies"]:
        shown.page.locator("#decoding").select_option(f"policy {name}")
        with shown.page.expect_request(CHAT) as caught:
            shown.ask()
        policy = caught.value.post_data_json["diffusion"]["policy"]
        assert (policy["name"], policy["threshold"]) == (name, 0.5)
        shown.done()
        shown.expect("#problem").to_be_hidden()


@pytest.mark.parametrize("how", ["click", "key"])
def test_stopping_ends_the_answer_here_and_there(how: str, browser: Any, causal: LoadedModel) -> None:
    with serving(causal) as server:
        slowed(server, 0.25)
        shown = Shown(browser, server.address).connected()
        shown.set(400, threshold=1)
        shown.ask()
        shown.expect(".cell.guess >> nth=0").to_be_visible(timeout=SECONDS * 1000)
        if how == "click":
            shown.page.locator("#stop").click()
        else:
            shown.page.keyboard.press("Escape")
        shown.done()
        shown.expect("#messages small >> nth=-1").to_have_text("stopped")
        until(lambda: server.service.bridge.active == 0, SECONDS)
        shown.context.close()


def test_a_reload_keeps_conversation_trace_settings_and_draft(shown: Shown) -> None:
    shown.set(16)
    shown.ask()
    shown.done()
    before, cells = shown.messages(), shown.page.locator(".canvas .cell").all_text_contents()
    shown.page.locator("#message").fill("not sent yet")
    shown.page.reload()
    shown.connected()
    assert shown.messages() == before
    assert shown.page.locator(".canvas .cell").all_text_contents() == cells
    assert shown.page.locator("#message").input_value() == "not sent yet"
    assert shown.page.locator("#tokens").input_value() == "16"
    shown.page.locator("#fresh").click()
    shown.page.reload()
    assert shown.connected().messages() == []


def test_a_key_is_asked_for_and_never_kept(browser: Any, causal: LoadedModel) -> None:
    with serving(causal, access=Access(keys=("s\u00e9same",))) as server:
        shown = Shown(browser, server.address)
        shown.expect("#problem h2").to_have_text("The server asks for an API key", timeout=SECONDS * 1000)
        for key in ("wrong", "s\u00e9same"):
            shown.expect("#problem").to_be_visible(timeout=SECONDS * 1000)
            shown.page.locator("#key").fill(key)
            shown.page.locator("#key-form button").click()
        shown.connected()
        shown.expect("#problem").to_be_hidden()
        shown.set(4)
        shown.ask()
        shown.done()
        assert len(shown.messages()) == 2
        assert "same" not in json.dumps(shown.context.storage_state())
        shown.context.close()


STATES: list[tuple[dict[str, Any], str]] = [
    (refusal(429, "full", **{"retry-after": "1"}), "The queue is full"),
    (refusal(503, "draining"), "The server is stopping or not ready"),
    (refusal(500), "The server failed at this request"),
    (refusal(400, "threshold: 9; give less"), "The server does not take this request"),
    (sse(stream_of(piece("half"), {"error": {"message": "m", "code": "engine"}}, done=False)), "The server failed at"),
    (sse(stream_of(piece("half"), done=False)), "The answer broke off"),
    (sse("data: {nonsense\n\n"), "The answer broke off"),
]


@pytest.mark.parametrize(("response", "title"), STATES, ids=lambda value: value if isinstance(value, str) else "")
def test_what_goes_wrong_is_said_and_can_be_tried_again(response: dict[str, Any], title: str, shown: Shown) -> None:
    shown.set(4)
    shown.page.route(CHAT, lambda route: route.fulfill(**response))
    shown.ask()
    shown.expect("#problem h2").to_contain_text(title, timeout=SECONDS * 1000)
    shown.done()
    assert shown.messages() == ["in the beginning", *(["half"] if "half" in response["body"] else [])]
    shown.page.unroute(CHAT)
    shown.page.locator("#retry").click()
    shown.done()
    shown.expect("#problem").to_be_hidden()
    assert len(shown.messages()) == 2


def test_without_a_server_it_says_so(shown: Shown) -> None:
    shown.set(4)
    shown.context.set_offline(True)
    shown.ask()
    shown.expect("#problem h2").to_have_text("The server cannot be reached", timeout=SECONDS * 1000)
    shown.context.set_offline(False)
    shown.page.locator("#retry").click()
    shown.done()
    assert len(shown.messages()) == 2


def test_what_a_model_wrote_stays_text(shown: Shown) -> None:
    text = "<img src=x onerror=\"document.title='owned'\"><b>bold</b>\u2028&amp;"
    token = {"index": 0, "event": "denoised", "forward": 1, "positions": [0], "tokens": [5], "texts": [text]}
    token |= {"confidences": [0.5], "block": 0, "block_start": 0, "block_stop": 2, "open_positions": []}
    body = stream_of({"choices": [], "diffusion": token}, piece(text))
    shown.page.route(CHAT, lambda route: route.fulfill(**sse(body)))
    shown.ask(text)
    shown.done()
    assert shown.messages() == [text, text]
    assert shown.page.locator(".canvas .cell").first.text_content() == text
    assert shown.page.locator("main img, main b").count() == 0
    shown.page.reload()
    shown.connected()
    assert shown.messages() == [text, text]
    assert "owned" not in shown.page.title()


@pytest.mark.parametrize("size", [(320, 640), (390, 844), (1280, 800)])
def test_nothing_is_cut_on_any_screen(size: tuple[int, int], browser: Any, running: Running) -> None:
    width, height = size
    shown = Shown(browser, running.address, viewport={"width": width, "height": height}).connected()
    shown.set(60, parent=True)
    shown.ask("a" * 200)
    shown.done()
    assert shown.page.evaluate("document.documentElement.scrollWidth") <= width
    for name in ("#message", "#send", "#fresh", "#settings summary", ".play >> nth=0"):
        box = shown.page.locator(name).bounding_box()
        assert box is not None
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
        assert box["height"] >= 24
    shown.context.close()


def test_the_keyboard_is_enough(shown: Shown) -> None:
    shown.set(12)
    shown.page.locator("#message").focus()
    shown.page.keyboard.type("in the beginning")
    shown.page.keyboard.press("Shift+Enter")
    shown.page.keyboard.type("was")
    shown.page.keyboard.press("Enter")
    shown.done()
    assert shown.messages()[0] == "in the beginning\nwas"
    shown.page.locator(".canvas").focus()
    for key in ("Home", "ArrowRight", "ArrowRight", "ArrowLeft"):
        shown.page.keyboard.press(key)
    said = shown.page.locator(".detail").text_content()
    assert re.match(r"position 1, \".*\", final, confidence [01]\.\d{3}, forward \d+", said)
    shown.page.locator(".replay input").focus()
    shown.page.keyboard.press("Home")
    assert shown.page.locator(".canvas .cell").count() == 0
    assert "after forward 0 of" in shown.page.locator(".canvas").get_attribute("aria-label")
    assert shown.page.locator("#status").text_content().startswith("The answer is whole")


def test_colours_and_motion_follow_the_reader(shown: Shown) -> None:
    def paper() -> str:
        return shown.page.evaluate("getComputedStyle(document.body).backgroundColor")

    shown.page.emulate_media(color_scheme="light")
    light = paper()
    shown.page.emulate_media(color_scheme="dark", reduced_motion="reduce")
    dark = paper()
    assert light != dark
    for name, expected in (("Light", light), ("Dark", dark), ("Auto", dark)):
        shown.page.locator("#theme").click()
        shown.expect("#theme").to_have_text(name)
        assert paper() == expected
    shown.set(8)
    shown.ask()
    shown.done()
    motion = "[...document.querySelectorAll('.cell')].map((each) => getComputedStyle(each).animationName)"
    assert set(shown.page.evaluate(motion)) == {"none"}
