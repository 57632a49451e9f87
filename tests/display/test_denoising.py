"""Views of decoding and training: what they show at each event, and that nothing a model writes is obeyed."""

from __future__ import annotations

import io
from collections.abc import Sequence

import pytest

from difflm.checkpoints.loading import LoadedModel
from difflm.decode.engine import Engine, stream
from difflm.decode.events import Committed, Completion, Denoised, Drafted, Event, Finished, Forwards
from difflm.decode.request import SamplingParams
from difflm.display import show_denoising
from difflm.display.denoising import Canvas, DenoisingView, canvas_of, recording
from difflm.display.text import printable
from tests.decode.tiny import certain, scripted, tiny
from tests.display.consoles import output, terminal

WORDS = ["The", " cat", " sat", " on", " the", " mat", "\n", ".", "<eos>", "[red]x[/red]", "\x1b[2J", "!", "?"]


class WordTokenizer:
    """Decodes like a sentencepiece tokenizer: the space before the first token of a text is lost."""

    def decode(self, tokens: Sequence[int], *, skip_special_tokens: bool) -> str:
        kept = [WORDS[t] for t in tokens if not (skip_special_tokens and WORDS[t] == "<eos>")]
        return "".join(kept).removeprefix(" ")


@pytest.fixture
def loaded() -> LoadedModel:
    model = scripted(lambda position: certain(position % 6), eos=(8,))
    model.tokenizer = WordTokenizer()
    return model


def denoised(block: int, decided: dict[int, int], left: tuple[int, ...]) -> Denoised:
    return Denoised(
        request_id=0,
        block=block,
        positions=tuple(decided),
        tokens=tuple(decided.values()),
        confidences=(0.9,) * len(decided),
        open_positions=left,
    )


def finished(tokens: list[int], reason: str = "length") -> Finished:
    completion = Completion(
        tokens=tokens,
        text=None,
        forwards=Forwards(denoise=3),
        finish_reason="stop" if reason == "stop" else "length",
        num_tokens=len(tokens),
        seconds=1.0,
    )
    return Finished(request_id=0, completion=completion)


EVENTS: list[Event] = [
    denoised(1, {4: 0, 7: 3}, (5, 6)),
    denoised(1, {5: 1, 6: 2}, ()),
    Committed(request_id=0, block=1, tokens=(0, 1, 2, 3)),
    denoised(2, {8: 4, 10: 8}, (9,)),
    denoised(2, {9: 5}, ()),
    Committed(request_id=0, block=2, tokens=(4, 5)),
    finished([0, 1, 2, 3, 4, 5], "stop"),
]


def test_a_recording_shows_every_forward_and_no_eos_at_the_end(loaded: LoadedModel) -> None:
    assert recording(loaded, EVENTS) == [
        "   1  The__ on",
        "   2  The cat sat on",
        "   3  The cat sat on the_<eos>",
        "   4  The cat sat on the mat",
    ]
    assert recording(loaded, EVENTS, width=20)[-1] == "   4  ... on the mat"


def test_a_recording_of_an_engine_ends_with_its_text(loaded: LoadedModel) -> None:
    engine = Engine(loaded)
    params = SamplingParams(max_new_tokens=9, threshold=1.0, min_accept=2)
    lines = recording(loaded, engine.stream([1, 2, 3], params), width=200)
    completion = engine.generate([[1, 2, 3]], params)[0]
    assert len(lines) == completion.forwards.denoise
    assert lines[-1].endswith(loaded.decode(completion.tokens))


def test_pieces_tell_what_is_new(loaded: LoadedModel) -> None:
    canvas = canvas_of(loaded)
    for event in EVENTS[:1]:
        canvas.apply(event)
    assert [(p.text, p.kind) for p in canvas.pieces()] == [("The", "fresh"), ("__", "open"), (" on", "fresh")]
    canvas.apply(EVENTS[1])
    assert [(p.text, p.kind) for p in canvas.pieces()] == [
        ("The", "decided"),
        (" cat sat", "fresh"),
        (" on", "decided"),
    ]
    for event in EVENTS[2:4]:
        canvas.apply(event)
    # Behind a committed token the leading space survives.
    assert [(p.text, p.kind) for p in canvas.pieces()] == [
        ("The cat sat on", "committed"),
        (" the", "fresh"),
        ("_", "open"),
        ("<eos>", "fresh"),
    ]
    assert (canvas.forwards, canvas.num_decided) == (3, 6)


def drafted(tokens: dict[int, int]) -> Drafted:
    return Drafted(
        request_id=0, positions=tuple(tokens), tokens=tuple(tokens.values()), confidences=(0.5,) * len(tokens)
    )


# A forward writes a token and drafts; the next one keeps the first draft and replaces the second.
DRAFTING: list[Event] = [
    denoised(1, {1: 0}, ()),
    Committed(request_id=0, block=1, tokens=(0,)),
    drafted({2: 1, 3: 3, 4: 7}),
    denoised(2, {2: 1, 3: 2}, ()),
    Committed(request_id=0, block=2, tokens=(1, 2)),
    drafted({4: 3}),
    denoised(4, {4: 3, 5: 4}, ()),
    Committed(request_id=0, block=4, tokens=(3, 4)),
    finished([0, 1, 2, 3, 4]),
]


def test_drafts_are_masks_in_a_recording_until_they_are_verified(loaded: LoadedModel) -> None:
    assert recording(loaded, DRAFTING) == ["   1  The___", "   2  The cat sat_", "   3  The cat sat on the"]
    # Tokens that a stop string holds back have no line of their own, their drafts do.
    held = [event for event in DRAFTING if not isinstance(event, Committed)]
    assert recording(loaded, held) == ["   1  The___", "   2  The cat sat_"]


def test_drafts_are_text_of_their_own_kind_and_counted(loaded: LoadedModel) -> None:
    canvas = canvas_of(loaded)
    shown: list[list[tuple[str, str]]] = []
    for event in DRAFTING:
        canvas.apply(event)
        shown.append([(piece.text, piece.kind) for piece in canvas.pieces()])
    assert shown[1] == [("The", "committed")]
    assert shown[2] == [("The", "committed"), (" cat on.", "draft")]
    assert shown[3] == [("The", "committed"), (" cat sat", "fresh")]
    assert shown[5] == [("The cat sat", "committed"), (" on", "draft")]
    assert shown[-1] == [("The cat sat on the", "committed")]
    assert (canvas.drafted, canvas.accepted) == (4, 2)
    alone = canvas_of(loaded)
    alone.apply(drafted({1: 0, 2: 1}))
    assert [(piece.text, piece.kind) for piece in alone.pieces()] == [("The cat", "draft")]


def test_the_live_view_counts_drafts(loaded: LoadedModel) -> None:
    console = terminal()
    DenoisingView(canvas_of(loaded), console).run(DRAFTING)
    assert " cat on." in output(console)
    assert "drafts 1/3  forward 2" in output(console)
    assert output(console).rstrip().endswith("The cat sat on the")
    console = terminal()
    DenoisingView(canvas_of(loaded), console).run(EVENTS)
    assert "drafts" not in output(console)
    assert "block 1  forward 2" in output(console)


def test_ids_are_shown_where_there_is_no_tokenizer() -> None:
    assert recording(tiny(), [denoised(0, {1: 5}, (2,))]) == ["   1  <5>_"]


def test_the_live_view_draws_masks_and_leaves_the_text(loaded: LoadedModel) -> None:
    console = terminal()
    completion = DenoisingView(canvas_of(loaded), console).run(EVENTS)
    drawn = output(console)
    assert completion.tokens == [0, 1, 2, 3, 4, 5]
    assert "__" in drawn
    assert "tokens/forward" in drawn
    assert drawn.rstrip().endswith("The cat sat on the mat")


def test_finished_lines_scroll_and_are_not_drawn_twice(loaded: LoadedModel) -> None:
    console = terminal()
    view = DenoisingView(canvas_of(loaded), console)
    tokens = [0, 6, 1, 6, 2, 3]
    list(map(view.canvas.apply, [Committed(request_id=0, block=0, tokens=tuple(tokens))]))
    view._scroll()
    assert output(console) == "The\n cat\n"
    with console.capture() as captured:
        console.print(view.picture())
    assert captured.get().splitlines()[0].strip() == "sat on"


def test_a_paragraph_higher_than_the_screen_shows_its_end(loaded: LoadedModel) -> None:
    console = terminal(width=20)
    view = DenoisingView(canvas_of(loaded), console)
    view.canvas.apply(Committed(request_id=0, block=0, tokens=(0, 1, 2, 3, 4, 5) * 40))
    with console.capture() as captured:
        console.print(view.picture())
    lines = captured.get().splitlines()
    assert len(lines) <= 10
    assert "mat" in "".join(lines[-5:])


def test_markup_and_control_characters_of_a_model_are_only_text(loaded: LoadedModel) -> None:
    console = terminal()
    events: list[Event] = [
        denoised(0, {0: 9, 1: 10}, ()),
        Committed(request_id=0, block=0, tokens=(9, 10)),
        finished([9, 10]),
    ]
    DenoisingView(canvas_of(loaded), console).run(events)
    assert "[red]x[/red]" in output(console)
    assert "\x1b[2J" not in output(console)
    assert printable("a\tb\x07\x1b[0m\n") == "a    b\ufffd\ufffd[0m\n"


def test_away_from_a_terminal_only_the_text_is_printed(loaded: LoadedModel) -> None:
    file = io.StringIO()
    params = SamplingParams(max_new_tokens=5)
    completion = show_denoising(loaded, stream(loaded, [1], params), file=file)
    assert file.getvalue() == loaded.decode(completion.tokens) + "\n"


def test_a_canvas_without_events_is_empty() -> None:
    assert Canvas(str, str).text() == ""
