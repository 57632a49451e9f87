"""The items of a task decoded under one setting: score, tokens per forward, tokens per second."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from difflm.decode.engine import Engine
from difflm.decode.events import Committed, Completion, DraftCounts, Finished, Forwards
from difflm.decode.policies.named import policy
from difflm.decode.request import SamplingParams
from difflm.errors import ConfigError
from difflm.evaluation.intervals import interval

if TYPE_CHECKING:
    from difflm.checkpoints.loading import LoadedModel
    from difflm.evaluation.tasks import Item, Task

NEXT_TOKEN, VERIFIED = "next_token", "verified"


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """How the items are decoded.

    Attributes:
        policy: a name of `difflm.policy`, or "next_token".
        settings: of the policy, in order, what is swept included.
        block_size: tokens per block; None is the model's.
        threshold: None where the policy has none.
    """

    policy: str
    settings: tuple[tuple[str, Any], ...] = ()
    block_size: int | None = None
    threshold: float | None = None

    @property
    def label(self) -> str:
        """NAME:SETTING=VALUE,... as the command line takes it."""
        return ":".join(filter(None, (self.policy, ",".join(f"{key}={value}" for key, value in self.settings))))

    def params(self, base: SamplingParams) -> SamplingParams:
        """Return the parameters of a request.

        Args:
            base: length, stop strings and seed.

        Raises:
            RequestError: a setting that the policy does not take.
        """
        if self.policy == NEXT_TOKEN:
            return replace(base, decoding="next_token")
        return replace(base, policy=policy(self.policy, **dict(self.settings)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What a setting gave.

    Attributes:
        scores: of each item.
        answers: of each item.
        forwards: of all items.
        num_tokens: of all items, up to the first EOS of each.
        seconds: wall-clock time of the decoding of all items, scoring apart.
        stuck: items that a policy without a bound gave up.
        drafts: what became of those of all items; no cycles where nothing was drafted.
    """

    scores: list[float]
    answers: list[str]
    forwards: Forwards = field(default_factory=Forwards)
    num_tokens: int = 0
    seconds: float = 0.0
    stuck: int = 0
    drafts: DraftCounts = field(default_factory=DraftCounts)

    @property
    def score(self) -> float:
        """The mean."""
        return sum(self.scores) / len(self.scores)

    @property
    def interval(self) -> tuple[float, float]:
        """95 % of the mean; see `difflm.evaluation.intervals`."""
        return interval(self.scores)

    @property
    def tokens_per_forward(self) -> float:
        """TPF: tokens / (denoise + commit forwards)."""
        return self.num_tokens / max(self.forwards.denoise + self.forwards.commit, 1)

    @property
    def tokens_per_second(self) -> float:
        """TPS: tokens / seconds, prefill included."""
        return self.num_tokens / self.seconds if self.seconds > 0 else 0.0

    @property
    def tokens_per_cycle(self) -> float | None:
        """Tokens for each forward that verified; None where none did. Those written without drafts do not count."""
        return self.drafts.tokens_per_cycle if self.drafts.cycles else None

    @property
    def acceptance(self) -> float | None:
        """Share of the verified drafts that was written; None without drafts."""
        return self.drafts.accepted / self.drafts.drafted if self.drafts.drafted else None


def measure(
    loaded: LoadedModel,
    task: Task,
    items: Sequence[Item],
    params: SamplingParams,
    *,
    max_requests: int = 1,
    chat_template: bool = False,
    each: Callable[[], object] = lambda: None,
) -> Measured:
    """Decode items and score them.

    The first one is decoded once before, so that the time has no first calls in it.

    Args:
        loaded: the model; it needs a tokenizer.
        task: scores.
        items: of the task, at least one.
        params: how they are decoded.
        max_requests: requests that run together; 1 is the speed that one user sees.
        chat_template: whether a prompt is a user's turn.
        each: called when an item is decoded.

    Raises:
        RequestError: an item that does not fit the model, or parameters that do not.
        ConfigError: no items.
    """
    if not items:
        raise ConfigError("items: there are none; give --items at least 1")
    prompts = [encoded(loaded, item.prompt, chat_template=chat_template) for item in items]
    engine = Engine(loaded, max_requests=max_requests)
    engine.generate(prompts[:1], params)
    numbers = [engine.submit(prompt, params) for prompt in prompts]
    written: dict[int, list[int]] = {number: [] for number in numbers}
    finished: dict[int, Completion] = {}
    started = time.perf_counter()
    while len(finished) < len(numbers):
        for event in engine.step():
            if isinstance(event, Committed):
                written[event.request_id] += event.tokens
            elif isinstance(event, Finished):
                finished[event.request_id] = event.completion
                each()
    seconds = time.perf_counter() - started
    completions = [finished[number] for number in numbers]
    answers = [answer_of(loaded, each, written[number]) for number, each in zip(numbers, completions, strict=True)]
    counts = [completion.forwards for completion in completions]
    return Measured(
        scores=[task.score(item, answer) for item, answer in zip(items, answers, strict=True)],
        answers=answers,
        forwards=Forwards(
            prefill=sum(each.prefill for each in counts),
            denoise=sum(each.denoise for each in counts),
            commit=sum(each.commit for each in counts),
        ),
        num_tokens=sum(completion.num_tokens for completion in completions),
        seconds=seconds,
        stuck=sum(completion.finish_reason == "stuck" for completion in completions),
        drafts=sum((each.drafts for each in completions if each.drafts is not None), DraftCounts()),
    )


def encoded(loaded: LoadedModel, prompt: str, *, chat_template: bool) -> list[int]:
    """Return the ids of a prompt, as text to go on with or as a user's turn."""
    return loaded.encode_chat([{"role": "user", "content": prompt}]) if chat_template else loaded.encode(prompt)


def answer_of(loaded: LoadedModel, completion: Completion, written: Sequence[int]) -> str:
    """Return the text behind the prompt; some policies return the prompt with it.

    Args:
        loaded: the model.
        completion: of the request.
        written: tokens of its `Committed` events.
    """
    if list(written) == completion.tokens and completion.text is not None:
        return completion.text
    return loaded.decode(written)
