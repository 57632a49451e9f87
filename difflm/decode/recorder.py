"""Step maps: which position was decided when, with which confidence, and what was edited. Put together from events.

A file holds one JSON object a line, one for each request; docs/decoding.md lists its fields.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from difflm.decode.admission import Prompt, admit
from difflm.decode.events import (
    Committed,
    Completion,
    Denoised,
    DraftCounts,
    Drafted,
    Edited,
    Event,
    Finished,
    Forwards,
)
from difflm.errors import DataError

if TYPE_CHECKING:
    from difflm.checkpoints.loading import LoadedModel
    from difflm.decode.request import SamplingParams

SCHEMA = "difflm.step-map/1"
KINDS: dict[str, type[Denoised] | type[Edited] | type[Drafted] | type[Committed]] = {
    "denoised": Denoised,
    "edited": Edited,
    "drafted": Drafted,
    "committed": Committed,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """What happened at one position.

    Attributes:
        position: counted from the start of the prompt.
        token: the id that stands there at the end; None where it was left open.
        step: denoising forward of its block that decided it first, from 1; 0 for the prompt and what was left open.
        confidence: of the last writing; None where nothing was written.
        edits: how often it was replaced.
    """

    position: int
    token: int | None
    step: int = 0
    confidence: float | None = None
    edits: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class StepMap:
    """How one request was decoded.

    Attributes:
        model: where the model is from.
        policy: the policy with all its settings, or "next_token".
        seed: of the request.
        block_size: tokens per block; 1 for next-token decoding.
        mask_id: id of an undecided position; None for next-token decoding.
        prompt: token ids.
        events: all of them, the last one `Finished`; without logprobs.
        pieces: the text of each id that occurs; empty where the model has no tokenizer.
    """

    model: str
    policy: str
    seed: int
    block_size: int
    mask_id: int | None
    prompt: tuple[int, ...]
    events: tuple[Event, ...] = ()
    pieces: Mapping[int, str] = field(default_factory=dict[int, str])

    @property
    def completion(self) -> Completion:
        """The result."""
        last = self.events[-1]
        assert isinstance(last, Finished), "the request was not finished"
        return last.completion

    def cells(self) -> list[Cell]:
        """Return every position of the prompt and of the blocks that were decoded, in order."""
        known = {place: Cell(position=place, token=token) for place, token in enumerate(self.prompt)}
        block, step = -1, 0
        for event in self.events:
            if isinstance(event, Denoised):
                block, step = event.block, step + 1 if event.block == block else 1
            if isinstance(event, Denoised | Committed):
                for place in range(event.block * self.block_size, (event.block + 1) * self.block_size):
                    known.setdefault(place, Cell(position=place, token=None))
            if isinstance(event, Denoised | Edited):
                edited = isinstance(event, Edited)
                for place, token, sure in zip(event.positions, event.tokens, event.confidences, strict=True):
                    cell = known.get(place, Cell(position=place, token=None))
                    known[place] = replace(
                        cell,
                        token=None if token == self.mask_id else token,
                        step=cell.step or step,
                        confidence=sure,
                        edits=cell.edits + edited,
                    )
        return [known[place] for place in sorted(known)]

    def replayed(self) -> list[int]:
        """Return the row of ids that the events lead to, prompt included, the mask id where nothing was decided."""
        open_id = -1 if self.mask_id is None else self.mask_id
        return [open_id if cell.token is None else cell.token for cell in self.cells()]


@dataclass(slots=True)
class Recorder:
    """Makes a step map of one request; knows nothing but its events.

    Attributes:
        header: the step map without events.
        decode: text of ids; None where the model has no tokenizer.
        events: so far.
    """

    header: StepMap
    decode: Callable[[Sequence[int]], str] | None = None
    events: list[Event] = field(default_factory=list[Event])

    def apply(self, event: Event) -> None:
        """Take in an event of the request."""
        if isinstance(event, Finished):
            event = replace(event, completion=replace(event.completion, logprobs=None))
        if isinstance(event, Committed):
            event = replace(event, logprobs=None)
        self.events.append(event)

    def watching(self, events: Iterable[Event]) -> Iterator[Event]:
        """Yield the events of the request, each taken in before."""
        for event in events:
            self.apply(event)
            yield event

    @property
    def map(self) -> StepMap:
        """The step map; whole after `Finished`."""
        seen = set(self.header.prompt)
        for event in self.events:
            if isinstance(event, Denoised | Edited | Drafted | Committed):
                seen.update(event.tokens)
        pieces = {} if self.decode is None else {token: _piece(self.decode, token) for token in sorted(seen)}
        return replace(self.header, events=tuple(self.events), pieces=pieces)


def _piece(decode: Callable[[Sequence[int]], str], token: int) -> str:
    """Return the text of a token inside a text: some tokenizers drop the space before the first one."""
    one, both = decode([token]), decode([token, token])
    return both.removeprefix(one) if both.startswith(one) else one


def recorder_of(loaded: LoadedModel, prompt: Prompt, params: SamplingParams) -> Recorder:
    """Return the recorder of a request.

    Args:
        loaded: the model that decodes it.
        prompt: as for `Engine.submit`.
        params: as for `Engine.submit`.

    Raises:
        RequestError: as `Engine.submit`.
    """
    request = admit(loaded, prompt, params, request_id=0, fused=True)
    header = StepMap(
        model=str(loaded.path),
        policy=repr(request.drafting or request.policy) if request.drafting or request.policy else "next_token",
        seed=request.seed,
        block_size=request.block_size,
        mask_id=request.mask_id,
        prompt=request.prompt,
    )

    def decode(tokens: Sequence[int]) -> str:
        return loaded.decode(list(tokens), skip_special_tokens=False)

    return Recorder(header, None if loaded.tokenizer is None else decode)


def append_step_maps(path: Path, maps: Iterable[StepMap]) -> None:
    """Write step maps behind what a JSONL file holds, one line each; they are finished ones."""
    with path.open("a", encoding="utf-8") as file:
        for each in maps:
            file.write(f"{json.dumps(_line(each))}\n")


def read_step_maps(path: Path) -> list[StepMap]:
    """Return the step maps of a JSONL file.

    Raises:
        DataError: a line that is none.
    """
    maps: list[StepMap] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            maps.append(_map(json.loads(line)))
        except (KeyError, TypeError, ValueError, AttributeError):
            raise DataError(f"{path}, line {number}: no step map; difflm generate --step-map writes them") from None
    if not maps:
        raise DataError(f"{path}: it holds no step map; difflm generate --step-map writes them")
    return maps


def _line(each: StepMap) -> dict[str, Any]:
    """Return the JSON object of a step map."""
    events: list[dict[str, Any]] = []
    for event in each.events[:-1]:
        kind = next(name for name, known in KINDS.items() if isinstance(event, known))
        told = asdict(event)
        del told["request_id"]
        told.pop("logprobs", None)
        told.pop("guesses", None)
        events.append({"event": kind, **told})
    completion = asdict(each.completion)
    del completion["logprobs"]
    return {
        "schema": SCHEMA,
        "model": each.model,
        "policy": each.policy,
        "seed": each.seed,
        "block_size": each.block_size,
        "mask_id": each.mask_id,
        "prompt": each.prompt,
        "events": events,
        "completion": completion,
        "pieces": each.pieces,
    }


def _map(record: dict[str, Any]) -> StepMap:
    """Return the step map of a JSON object; a `KeyError` or the like where it is none."""
    if record["schema"] != SCHEMA:
        raise KeyError(record["schema"])
    events: list[Event] = []
    for each in record["events"]:
        kind = KINDS[each["event"]]
        known = {one.name for one in fields(kind)}
        told = {key: _frozen(value) for key, value in each.items() if key in known}
        events.append(kind(request_id=0, **told))
    completion = dict(record["completion"])
    completion["forwards"] = Forwards(**completion["forwards"])
    if completion.get("drafts") is not None:
        drafts = {key: _frozen(value) for key, value in completion["drafts"].items()}
        completion["drafts"] = DraftCounts(**drafts)
    events.append(Finished(request_id=0, completion=Completion(**completion)))
    header = {key: _frozen(record[key]) for key in ("model", "policy", "seed", "block_size", "mask_id", "prompt")}
    pieces = {int(key): str(value) for key, value in record["pieces"].items()}
    return StepMap(**header, events=tuple(events), pieces=pieces)


def _frozen(value: Any) -> Any:
    return tuple(cast("list[Any]", value)) if isinstance(value, list) else value
