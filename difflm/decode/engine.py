"""The decoding engine: requests in, events and completions out.

One step is one forward: the scheduler says which rows of which requests, the runner runs them, the scheduler draws the
consequences.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from difflm.decode.admission import Prompt, admit, admit_gaps
from difflm.decode.checks import check_integer
from difflm.decode.events import Completion, Event, Finished
from difflm.decode.forwards import Execution
from difflm.decode.prefixes import Prefixes
from difflm.decode.request import Request, SamplingParams, checked
from difflm.decode.runner import Runner
from difflm.decode.scheduler import Scheduler
from difflm.decode.slots import Spans
from difflm.decode.work import Outcome
from difflm.errors import RequestError
from difflm.models.cache import bytes_per_token

if TYPE_CHECKING:
    from difflm.checkpoints.loading import LoadedModel


DEFAULT_CACHE_BYTES = 4 << 30
DEFAULT_PREFILL_TOKENS = 512


@dataclass(slots=True)
class _Started:
    """When a request started, and what it did not have to read."""

    seconds: float
    reused_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheUse:
    """What the cache is used for, tokens.

    Attributes:
        size: all there is room for.
        running: in spans of running requests.
        kept: of finished blocks that can be taken over.
        reused: taken over so far.
        evicted: given up for running requests so far.
    """

    size: int
    running: int
    kept: int
    reused: int
    evicted: int


class Engine:
    """Decodes requests on one model, all that there is room for together: one forward per step for all of them.

    A request gets a span of the cache for its whole length before it starts, and waits until there is one; it joins and
    leaves whatever the others are at. What it answers does not depend on them, but for the rounding of larger sums.

    Args:
        loaded: model, tokenizer (or None) and configuration.
        fused: commit a finished block in the forward that first denoises the next one. False spends a separate
            forward on it; the tokens are the same.
        max_requests: requests that run at once; more of them wait.
        cache_bytes: what the keys and values may take; allocated as it is needed.
        prefill_tokens: prompt tokens that one forward reads at most, in whole blocks, one at least; a longer prompt
            is read in pieces, so that running requests go on meanwhile.
        prefix_caching: keep finished blocks as long as there is room, and do not read the prompt blocks with which
            another request began. The model's weights must not change meanwhile.
        execution: "plain"; or in few padded shapes, with the whole cache allocated at once: "compiled" by
            torch.compile, or "graphs", recorded as CUDA graphs.

    Raises:
        RequestError: less room than for one request, or for one token; nothing to be read.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        fused: bool = True,
        max_requests: int = 64,
        cache_bytes: int = DEFAULT_CACHE_BYTES,
        prefill_tokens: int = DEFAULT_PREFILL_TOKENS,
        prefix_caching: bool = False,
        execution: Execution = "plain",
    ) -> None:
        self.loaded = loaded
        self.fused = fused
        each = bytes_per_token(loaded.model.config, loaded.model.embedding.weight.dtype)
        self.cache_tokens = cache_bytes // each
        for field, value in (("max_requests", max_requests), ("prefill_tokens", prefill_tokens)):
            check_integer(field, value, minimum=1, unit="requests" if field == "max_requests" else "tokens")
        if self.cache_tokens < 1:
            raise RequestError(f"cache_bytes: {cache_bytes} hold no token; one takes {each} bytes of this model")
        self.prefixes = Prefixes(Spans(self.cache_tokens), kept=prefix_caching)
        self.scheduler = Scheduler(self.prefixes, max_requests, prefill_tokens)
        self.runner = Runner(loaded.model, max_tokens=self.cache_tokens, execution=execution)
        self._submitted = self._reused = 0
        self._started: dict[int, _Started] = {}
        self._inboxes: dict[int, deque[Event]] = {}

    def submit(self, prompt: Prompt, params: SamplingParams | None = None) -> int:
        """Queue a prompt and return the request's number.

        Args:
            prompt: token ids, or text where the model has a tokenizer.
            params: how to decode it; None is the defaults.

        Raises:
            RequestError: if the prompt or the parameters do not fit the model.
        """
        request = self._admit(prompt, params)
        self.scheduler.admit(request)
        return request.id

    def _admit(self, prompt: Prompt, params: SamplingParams | None) -> Request:
        params = checked(params)
        if params.n > 1:
            raise RequestError(f"n: {params.n} answers are for generate; submit or stream one request per answer")
        request = admit(self.loaded, prompt, params, request_id=self._submitted, fused=self.fused)
        self._check_room(request)
        self._submitted += 1
        return request

    def _check_room(self, request: Request) -> None:
        """Refuse a request that would never fit into the cache."""
        if request.capacity > self.cache_tokens:
            raise RequestError(
                f"max_new_tokens: prompt and answer take {request.capacity} tokens of cache, and the engine has "
                f"{self.cache_tokens}; shorten them, or give the engine more cache_bytes"
            )

    def infill(self, tokens: Sequence[int | None], params: SamplingParams | None = None) -> Completion:
        """Return the completion that fills the gaps of a row; its tokens are the whole row.

        A gap is filled with everything before it in sight, and the given tokens of its own block behind it, not those
        of later blocks: a `block_size` of the row's length shows each gap the whole row. No EOS is written.
        Log-probabilities are those of the filled positions.

        Args:
            tokens: ids, None where one is to be found.
            params: how to decode, under the native policy; `max_new_tokens` is not used, and what ends an answer is
                refused.

        Raises:
            RequestError: if there is no gap, or parameters or ids do not fit.
        """
        request = admit_gaps(self.loaded, tokens, checked(params), request_id=self._submitted, fused=self.fused)
        self._check_room(request)
        self._submitted += 1
        last = list(self._events(request))[-1]
        assert isinstance(last, Finished), "a request that nobody cancels is finished"
        row = [*request.prompt, *last.completion.tokens]
        text = None if self.loaded.tokenizer is None else self.loaded.decode(row)
        scores = last.completion.logprobs
        if scores is not None:
            pairs = zip(scores, request.template, strict=True)
            scores = tuple(score for score, given in pairs if given is None)
        count = request.template.count(None)
        return replace(last.completion, tokens=row, text=text, num_tokens=count, logprobs=scores)

    def step(self) -> list[Event]:
        """Run one forward and return what it led to; an empty list also when there is nothing to do."""
        updates, reuses = self.scheduler.start()
        now = time.perf_counter()
        for number in (*self.scheduler.running, *(number for number, _, _ in updates)):
            self._started.setdefault(number, _Started(now))
        for reuse in reuses:
            self.runner.reuse(reuse)
            self._started[reuse.request.id].reused_tokens = reuse.count
            self._reused += reuse.count
        works = self.scheduler.schedule()
        if works:
            proposals = self.runner.run(works)
            updates += [self.scheduler.update(*each) for each in zip(works, proposals, strict=True)]
        told: list[Event] = []
        for number, events, outcome in updates:
            if outcome is not None:
                events.append(self._finish(number, outcome))
            if number in self._inboxes:
                self._inboxes[number] += events
            told += events
        return told

    def _finish(self, request_id: int, outcome: Outcome) -> Finished:
        self.runner.release(request_id)
        started = self._started.pop(request_id)
        text = outcome.text
        if text is None and self.loaded.tokenizer is not None:
            text = self.loaded.decode(outcome.tokens)
        completion = Completion(
            tokens=outcome.tokens,
            text=text,
            forwards=outcome.forwards,
            finish_reason=outcome.finish_reason,
            num_tokens=outcome.num_tokens,
            seconds=time.perf_counter() - started.seconds,
            stopped_by=outcome.stopped_by,
            logprobs=outcome.logprobs,
            reused_tokens=started.reused_tokens,
            drafts=outcome.drafts,
        )
        return Finished(request_id=request_id, completion=completion)

    @property
    def cache_use(self) -> CacheUse:
        """What the cache is used for now."""
        kept, used = self.prefixes.idle_entries, self.prefixes.spans.used
        return CacheUse(
            size=self.cache_tokens,
            running=used - kept,
            kept=kept,
            reused=self._reused,
            evicted=self.prefixes.evicted,
        )

    def cancel(self, request_id: int) -> None:
        """Forget a request, waiting or running, and free its cache; unknown or finished ones are ignored."""
        self.scheduler.drop(request_id)
        self.runner.release(request_id)
        self._started.pop(request_id, None)
        self._inboxes.pop(request_id, None)

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Generator[Event, None, None]:
        """Yield the events of one prompt, the last of them `Finished`. Closing the iterator cancels the request.

        The prompt is checked here and now, and queued at the first event. Several streams of one engine may be
        read in any order. Raises as `submit`.
        """
        return self._events(self._admit(prompt, params))

    def _events(self, request: Request) -> Generator[Event, None, None]:
        inbox = self._inboxes[request.id] = deque[Event]()
        self.scheduler.admit(request)
        try:
            while request.id in self._inboxes:
                while inbox:
                    event = inbox.popleft()
                    yield event
                    if isinstance(event, Finished):
                        return
                self.step()
        finally:
            self.cancel(request.id)

    def generate(self, prompts: Sequence[Prompt], params: SamplingParams | None = None) -> list[Completion]:
        """Return `n` completions per prompt, one prompt's together, in their order. All prompts are checked first.

        Raises as `submit`.
        """
        if isinstance(prompts, str):
            raise RequestError(f"prompts: one string ({prompts[:40]!r}) was given; give a list of prompts")
        alone = [replace(checked(params), n=1, seed=seed) for seed in seeds(params)]
        return self.complete([(prompt, each) for prompt in prompts for each in alone])

    def complete(self, asked: Sequence[tuple[Prompt, SamplingParams]]) -> list[Completion]:
        """Return the completions of prompts with parameters of their own, in their order. All are checked first.

        Raises as `submit`.
        """
        numbers: list[int] = []
        try:
            numbers.extend(self.submit(prompt, each) for prompt, each in asked)
            finished: dict[int, Completion] = {}
            while len(finished) < len(numbers):
                for event in self.step():
                    if isinstance(event, Finished):
                        finished[event.request_id] = event.completion
        finally:
            for number in numbers:
                self.cancel(number)
        return [finished[number] for number in numbers]


def seeds(params: SamplingParams | None) -> list[int]:
    """Return a seed for each of the `n` answers to a prompt; the first is the parameters' own."""
    params = checked(params)
    # An odd multiplier of full width: seeds that are near each other do not meet.
    return [(params.seed + number * 0x9E3779B97F4A7C15) % 2**63 for number in range(params.n)]


def generate(loaded: LoadedModel, prompts: Sequence[Prompt], params: SamplingParams | None = None) -> list[Completion]:
    """Return `n` completions per prompt (one, unless the parameters say otherwise), one prompt's together.

    Args:
        loaded: from `difflm.load_model`.
        prompts: each a list of token ids, or a string where the model has a tokenizer.
        params: how to decode; None is the defaults.

    Raises:
        RequestError: if a prompt or the parameters do not fit the model.
    """
    return Engine(loaded).generate(prompts, params)


def stream(loaded: LoadedModel, prompt: Prompt, params: SamplingParams | None = None) -> Generator[Event, None, None]:
    """Yield the events of one prompt as it is decoded, the last of them `Finished`. See `Engine.stream`."""
    return Engine(loaded).stream(prompt, params)
