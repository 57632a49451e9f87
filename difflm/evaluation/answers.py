"""What a model answers to the requests of an evaluation, and what it cost. Knows nothing of the harness but their form.

A request has `task_name`, `doc_id` and `args`, as the harness's own (`Request`). Answers depend neither on the other
requests nor on their order, but for the rounding of larger sums.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from difflm.decode.engine import Engine
from difflm.decode.events import Completion
from difflm.decode.request import SamplingParams
from difflm.errors import CheckpointError, ConfigError
from difflm.evaluation.usage import Usage
from difflm.likelihood import (
    BATCH_TOKENS,
    Continuation,
    Likelihood,
    LikelihoodKind,
    likelihood_kind,
    likelihoods,
    model_block_size,
)

if TYPE_CHECKING:
    from difflm.checkpoints.loading import LoadedModel

SAMPLING_FIELDS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


class Request(Protocol):
    """One thing that a task wants to know."""

    @property
    def task_name(self) -> str | None:
        """Name of the task."""
        ...

    @property
    def doc_id(self) -> int | None:
        """Number of the question in the task; its choices share it."""
        ...

    @property
    def args(self) -> tuple[Any, ...]:
        """(context, continuation), (text,) or (context, settings)."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerSettings:
    """How requests are answered.

    Attributes:
        params: of generation, where the task does not say otherwise. Block size and seed are the bound's as well; with
            the number of a request in its task, the seed is that of its draws at a temperature above 0.
        likelihood: kind, see `difflm.likelihoods`.
        samples: masks per likelihood at most.
        batch_tokens: tokens of a likelihood's forward at most.
        max_requests: requests that are decoded together at most.
    """

    params: SamplingParams = field(default_factory=SamplingParams)
    likelihood: LikelihoodKind | None = None
    samples: int = 32
    batch_tokens: int = BATCH_TOKENS
    max_requests: int = 64


class Answers:
    """A model that answers requests, task by task.

    Args:
        loaded: model and tokenizer.
        settings: how.
        say: is told what is being done, a line at a time.

    Raises:
        RequestError: a kind of likelihood that the model does not have.
    """

    def __init__(
        self, loaded: LoadedModel, settings: AnswerSettings, *, say: Callable[[str], None] = lambda line: None
    ) -> None:
        loaded.require_tokenizer()
        self.loaded, self.settings, self.say = loaded, settings, say
        self.likelihood: LikelihoodKind = likelihood_kind(loaded, settings.likelihood)
        self.usage: dict[str, Usage] = {}
        self.room = loaded.config.model.max_positions

    @property
    def block_size(self) -> int:
        """Block size of the bound, tokens: of the policy, of the parameters, or the model's."""
        params = self.settings.params
        own = params.policy.block_length if params.policy is not None else params.block_size
        return own or model_block_size(self.loaded)

    def loglikelihood(self, requests: Sequence[Request]) -> list[tuple[float, bool]]:
        """Return (log-likelihood in nats, whether greedy decoding writes it) of (context, continuation) pairs."""
        return self._by_task(requests, self._scored)

    def loglikelihood_rolling(self, requests: Sequence[Request]) -> list[float]:
        """Return the log-likelihood of whole texts, nats; one that is longer than the context goes in windows."""
        return self._by_task(requests, self._rolled)

    def generate_until(self, requests: Sequence[Request]) -> list[str]:
        """Return what the model writes behind contexts, cut before the first stop string."""
        return self._by_task(requests, self._generated)

    def chat(self, messages: Sequence[Mapping[str, str]], *, open_turn: bool) -> str:
        """Return a conversation in the model's chat template, as text of which the ids are those of `difflm chat`.

        Args:
            messages: objects with "role" and "content".
            open_turn: end with the opening of the assistant's turn; else the last message goes on.

        Raises:
            CheckpointError: no template, or one that refuses the conversation.
        """
        if not self.loaded.require_tokenizer().chat_template:
            raise CheckpointError(f"{self.loaded.path}: the tokenizer has no chat template; evaluate with --plain")
        return self.loaded.chat_text(messages, open_turn=open_turn)

    def _by_task(self, requests: Sequence[Request], answer: Callable[[str, list[Request]], list[Any]]) -> list[Any]:
        """Return the answers in the order of the requests, asked for task by task."""
        numbers: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            numbers.setdefault(request.task_name or "", []).append(number)
        found: dict[int, Any] = {}
        for task, own in numbers.items():
            found.update(zip(own, answer(task, [requests[number] for number in own]), strict=True))
        return [found[number] for number in range(len(requests))]

    def _scored(self, task: str, requests: list[Request]) -> list[tuple[float, bool]]:
        given: list[Continuation] = []
        for request in requests:
            prompt, tokens = self.encode_pair(*request.args)
            kept = prompt[max(0, len(prompt) + len(tokens) - self.room) :]
            self._usage(task).truncated += len(kept) < len(prompt)
            given.append(Continuation(prompt=kept, tokens=tokens, key=noise_key(task, request.doc_id)))
        found = self._likelihoods(task, given)
        greedy = self._greedy(given, found)
        return [(each.log_likelihood, best) for each, best in zip(found, greedy, strict=True)]

    def _rolled(self, task: str, requests: list[Request]) -> list[float]:
        given: list[Continuation] = []
        owner: list[int] = []
        for number, request in enumerate(requests):
            tokens = self.loaded.encode(request.args[0])
            for window, (prompt, part) in enumerate(windows(tokens, self.opening, self.room)):
                key = noise_key(task, request.doc_id, window)
                given.append(Continuation(prompt=prompt, tokens=part, key=key))
                owner.append(number)
        totals = [0.0] * len(requests)
        for number, found in zip(owner, self._likelihoods(task, given), strict=True):
            totals[number] += found.log_likelihood
        return totals

    def _likelihoods(self, task: str, given: Sequence[Continuation]) -> list[Likelihood]:
        settings, usage = self.settings, self._usage(task)
        self.say(f"{task}: {len(given)} likelihoods ({self.likelihood})")
        start = time.perf_counter()
        found = likelihoods(
            self.loaded,
            given,
            kind=self.likelihood,
            block_size=self.block_size,
            samples=settings.samples,
            seed=settings.params.seed,
            batch_tokens=settings.batch_tokens,
        )
        usage.likelihood_seconds += time.perf_counter() - start
        for each in found:
            usage.add_likelihood(each)
        return found

    def _greedy(self, given: Sequence[Continuation], found: Sequence[Likelihood]) -> list[bool]:
        """Return whether greedy decoding writes each text: an exact kind knows it, for the bound it is decoded."""
        params, wanted = self.settings.params, dict[tuple[tuple[int, ...], int], None]()
        for each, value in zip(given, found, strict=True):
            if value.greedy is None:
                wanted[tuple(each.prompt), len(each.tokens)] = None
        greedy = SamplingParams(
            decoding="block",
            block_size=self.block_size,
            threshold=params.threshold,
            min_accept=params.min_accept,
            ignore_eos=True,
        )
        asked = [(list(prompt), replace(greedy, max_new_tokens=count)) for prompt, count in wanted]
        written = dict(zip(wanted, (each.tokens for each in self._decode(asked)), strict=True))
        return [
            value.greedy if value.greedy is not None else written[tuple(each.prompt), len(each.tokens)] == each.tokens
            for each, value in zip(given, found, strict=True)
        ]

    def _generated(self, task: str, requests: list[Request]) -> list[str]:
        usage = self._usage(task)
        asked: list[tuple[list[int], SamplingParams]] = []
        for number, request in enumerate(requests):
            context, settings = request.args
            params = request_params(self.settings, settings, number)
            policy = params.policy
            longest = params.max_new_tokens if policy is None else policy.gen_length or params.max_new_tokens
            if longest >= self.room:
                raise ConfigError(
                    f"max_gen_toks: {longest} of task {task!r} leave no room for a question in the context of "
                    f"{self.room}; lower it"
                )
            prompt = self.loaded.encode_chat_text(context) or self.opening
            kept = prompt[max(0, len(prompt) + longest - self.room) :]
            usage.truncated += len(kept) < len(prompt)
            asked.append((kept, params))
        self.say(f"{task}: {len(asked)} answers")
        start = time.perf_counter()
        completions = self._decode(asked)
        usage.seconds += time.perf_counter() - start
        for each in completions:
            usage.add_completion(each)
        return [each.text or "" for each in completions]

    def _decode(self, asked: Sequence[tuple[list[int], SamplingParams]]) -> list[Completion]:
        return Engine(self.loaded, max_requests=self.settings.max_requests).complete(asked)

    @property
    def opening(self) -> list[int]:
        """What stands before a text without context: BOS, else EOS where a row must be there to read from."""
        config = self.loaded.config
        if config.bos_token_id is not None:
            return [config.bos_token_id]
        reads_before = config.logit_shift or config.mask_token_id is None or self.likelihood == "next_token"
        return list(config.eos_token_ids[:1]) if reads_before else []

    def encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Return the ids of context and continuation: those of both together, cut where the context's own end.

        Space at the end of the context belongs to the continuation. Where the two melt into one token, the cut is
        before it. Without context, `opening` stands there.
        """
        if not context:
            return self.opening, self.loaded.encode(continuation)
        bare, encode = context.rstrip(), self.loaded.encode_chat_text
        own, both = encode(bare), encode(context + continuation)
        common = next((i for i, pair in enumerate(zip(own, both, strict=False)) if pair[0] != pair[1]), len(own))
        common = min(common, len(both) - 1)
        return both[:common] or self.opening, both[common:]

    def _usage(self, task: str) -> Usage:
        return self.usage.setdefault(task, Usage())


def request_params(settings: AnswerSettings, task: Mapping[str, Any], number: int) -> SamplingParams:
    """Return the parameters of a request: what its task says, else the settings'.

    Args:
        settings: of the evaluation.
        task: `generation_kwargs` of the task: until, max_gen_toks, do_sample, temperature and filters.
        number: of the request in its task.

    Raises:
        ConfigError: a setting that is not known here.
    """
    given = dict(task)
    until = given.pop("until", None) or []
    stops = tuple(each for each in ([until] if isinstance(until, str) else until) if each)
    changed: dict[str, Any] = {"stop": (*settings.params.stop, *stops)}
    if (longest := given.pop("max_gen_toks", None)) is not None:
        changed["max_new_tokens"] = int(longest)
    sampled = given.pop("do_sample", None)
    changed |= {name: given.pop(name) for name in SAMPLING_FIELDS if name in given}
    if sampled is False:
        changed["temperature"] = 0.0
    elif sampled:
        changed.setdefault("temperature", 1.0)
    if given:
        known = ", ".join(("until", "max_gen_toks", "do_sample", *SAMPLING_FIELDS))
        raise ConfigError(f"generation_kwargs: {sorted(given)[0]!r} of a task is not known; use {known}")
    # Questions do not share their draws, nor do several answers to one.
    changed["seed"] = noise_key("", settings.params.seed, number) >> 1
    return replace(settings.params, **changed)


def noise_key(task: str, *numbers: int | None) -> int:
    """Return the number under which a question's noise is drawn, the same in every process."""
    return int.from_bytes(hashlib.sha256(repr((task, numbers)).encode()).digest()[:8], "little")


def windows(tokens: Sequence[int], opening: Sequence[int], room: int) -> list[tuple[list[int], list[int]]]:
    """Return (prompt, tokens to score) of the windows of a text; each token is scored once.

    Args:
        tokens: of the text.
        opening: what stands before its first token.
        room: tokens of a window. All but the first start with one token of context, and the last one is filled with
            context.
    """
    first = room - len(opening)
    found = [(list(opening), list(tokens[:first]))] if tokens else []
    for start in range(first, len(tokens), room - 1):
        stop = min(start + room - 1, len(tokens))
        found.append((list(tokens[stop - room : start]), list(tokens[start:stop])))
    return found
