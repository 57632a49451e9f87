"""A request's body -> everything its answer needs: checked, encoded, admitted. To be called off the event loop."""

from __future__ import annotations

import functools
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeVar

from pydantic import ValidationError

from difflm.decode.admission import admit
from difflm.decode.engine import seeds
from difflm.decode.events import Completion, Forwards, TokenLogprob
from difflm.decode.matching import Grammar
from difflm.decode.request import SamplingParams
from difflm.errors import DifflmError
from difflm.serving.answers import Answer
from difflm.serving.constraints import Later, Wanted, wanted
from difflm.serving.echoing import prompt_logprobs
from difflm.serving.errors import ApiError, bad, not_usable, not_valid, of_field
from difflm.serving.formats import Echo, Form, Kind
from difflm.serving.limits import Defaults, Limits
from difflm.serving.pieces import Pieces
from difflm.serving.prompts import conversation_ids, prompts_of
from difflm.serving.sampling import sampling_params
from difflm.serving.schema import Asked, Body, ChatRequest, CompletionRequest, StreamOptions
from difflm.serving.texts import GrowingText
from difflm.serving.tickets import Job, Order
from difflm.serving.tools import ToolTemplate, offer_of, or_else
from difflm.serving.unsupported import check_extra

if TYPE_CHECKING:
    from difflm.checkpoints.loading import LoadedModel

DEFAULT_NEW_TOKENS = 16
"""Of /v1/completions, where a request does not say."""

NOTHING = Completion(tokens=[], text="", forwards=Forwards(), finish_reason="length", num_tokens=0, seconds=0.0)
"""The answer of no tokens."""

B = TypeVar("B", bound=Body)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A request that can be answered.

    Attributes:
        form: how it is written.
        prompts: ids of each.
        orders: for the engine, one for each answer.
        answers: that will grow, in the same order.
        jobs: for the engine, one for each prompt that is scored.
        stream: whether it is told as it comes.
        options: what a stream holds beside text.
        echo: whether prompts are repeated.
        texts: of the prompts, where they are repeated.
        wanted: what answers have to match, if anything; orders are not complete before `Planner.constrained`.
    """

    form: Form
    prompts: Sequence[Sequence[int]]
    orders: Sequence[Order]
    answers: Sequence[Answer]
    jobs: Sequence[Job] = ()
    stream: bool = False
    options: StreamOptions = field(default_factory=StreamOptions)
    echo: bool = False
    texts: Sequence[str] = ()
    wanted: Wanted | None = None

    def echoes(self, scores: Sequence[tuple[TokenLogprob | int, ...]]) -> list[Echo]:
        """Return what is repeated before each answer; nothing without `echo`.

        Args:
            scores: of each prompt's tokens; empty where they were not asked for.
        """
        if not self.echo:
            return []
        each = [Echo(text=text, logprobs=scores[i] if scores else ()) for i, text in enumerate(self.texts)]
        return [each[number * len(each) // len(self.answers)] for number in range(len(self.answers))]


@dataclass(slots=True, kw_only=True)
class Planner:
    """Makes plans.

    Attributes:
        loaded: the model.
        name: under which it is served.
        limits: bounds.
        defaults: what requests do not say.
        cache_tokens: that the engine has room for.
        pieces: text of single tokens; None without a tokenizer.
        template: how its chat template writes calls of functions.
    """

    loaded: LoadedModel
    name: str
    limits: Limits
    defaults: Defaults
    cache_tokens: int
    pieces: Pieces | None = None
    template: ToolTemplate = field(init=False)

    def __post_init__(self) -> None:
        self.template = ToolTemplate(self.loaded)

    def chat(self, body: bytes) -> Plan:
        """Return the plan of a conversation.

        Raises:
            ApiError: the request cannot be served; it says why.
        """
        asked = parsed(ChatRequest, body)
        self._check_common(asked, chat=True)
        if asked.top_logprobs is not None and not asked.logprobs:
            raise of_field("top_logprobs", "it needs logprobs true")
        offer = offer_of(asked, self.template)
        want = wanted(asked)
        if want is not None and offer.format is not None:
            want = or_else(offer, asked, self.template, want)
        prompt = conversation_ids(self.loaded, asked.messages, self.limits, tools=offer.tools)
        most = asked.max_tokens if asked.max_completion_tokens is None else asked.max_completion_tokens
        if most == 0:
            raise of_field("max_tokens", "0 cannot be used; give at least 1")
        new_tokens = self._new_tokens([prompt], most, self.limits.new_tokens, where="messages")
        top = (asked.top_logprobs or 0) if asked.logprobs else None
        plan = self._plan(asked, "chat", [prompt], new_tokens=new_tokens, top=top, want=want or offer.forced)
        for answer in plan.answers:
            answer.reading, answer.named = offer.reader(), offer.named
        return plan

    def text(self, body: bytes) -> Plan:
        """Return the plan of a completion. Raises as `chat`."""
        asked = parsed(CompletionRequest, body)
        self._check_common(asked, chat=False)
        if asked.max_tokens == 0 and not asked.echo:
            raise of_field("max_tokens", "0 cannot be used without echo; give at least 1")
        want = wanted(asked)
        prompts = prompts_of(self.loaded, asked, self.limits)
        new_tokens = self._new_tokens(prompts, asked.max_tokens, DEFAULT_NEW_TOKENS, where="prompt")
        if not asked.echo:
            return self._plan(asked, "text", prompts, new_tokens=new_tokens, top=asked.logprobs, want=want)
        self._check_ids(prompts)
        scored = asked.logprobs is not None
        if scored and want is not None:
            raise of_field(
                want.param,
                "it cannot be used beside echo with logprobs, which count on max_tokens tokens, whatever they are",
            )
        if scored:
            # Who asks for scores counts on so many tokens behind the prompt, whatever they are.
            asked = asked.model_copy(update={"ignore_eos": True})
        # Where nothing is generated, the engine needs no room for it; everything else is checked as ever.
        checked = prompts if new_tokens else [prompt[:1] for prompt in prompts]
        plan = self._plan(asked, "text", checked, new_tokens=max(new_tokens, 1), top=asked.logprobs, want=want)
        if new_tokens == 0:
            for answer in plan.answers:
                answer.completion = NOTHING
        return replace(
            plan,
            prompts=prompts,
            echo=True,
            orders=plan.orders if new_tokens else (),
            texts=self._texts(asked, prompts),
            jobs=[self._job(prompt, asked.logprobs or 0) for prompt in prompts] if scored else (),
        )

    def _check_ids(self, prompts: Sequence[Sequence[int]]) -> None:
        """Refuse ids that are no tokens of a text."""
        vocab_size, mask_id = self.loaded.config.model.vocab_size, self.loaded.config.mask_token_id
        for prompt in prompts:
            for token in prompt:
                if not 0 <= token < vocab_size:
                    raise of_field("prompt", f"id {token} is not in the vocabulary (0..{vocab_size - 1})")
                if token == mask_id:
                    raise of_field("prompt", f"id {token} is the MASK token; remove it")

    def _texts(self, asked: CompletionRequest, prompts: Sequence[Sequence[int]]) -> list[str]:
        """Return the texts of prompts: as they were given, else of their ids."""
        if isinstance(asked.prompt, str):
            return [asked.prompt]
        given = asked.prompt or []
        if all(isinstance(each, str) for each in given):
            return [each for each in given if isinstance(each, str)]
        if self.loaded.tokenizer is None:
            return [""] * len(prompts)
        return [self.loaded.decode(prompt, skip_special_tokens=False) for prompt in prompts]

    def _job(self, prompt: Sequence[int], top: int) -> Job:
        return Job(compute=functools.partial(prompt_logprobs, self.loaded, prompt, top), cost=len(prompt))

    def check_model(self, model: str | None) -> None:
        """Refuse a name under which nothing is served; no name is the only model's.

        Raises:
            ApiError: there is no such model.
        """
        if model and model != self.name:
            message = f"model: {model!r:.100} is not served here; use {self.name!r}"
            raise ApiError(status=404, message=message, param="model", code="model_not_found")

    def _check_common(self, asked: Asked, *, chat: bool) -> None:
        self.check_model(asked.model)
        try:
            check_extra(asked.extra, n=asked.n or 1, chat=chat)
        except DifflmError as error:
            raise not_usable(error) from None
        if asked.stream_options is not None and not asked.stream:
            raise of_field("stream_options", "they need stream true")

    def _new_tokens(self, prompts: Sequence[Sequence[int]], most: int | None, default: int, *, where: str) -> int:
        """Return the tokens of each answer at most; nothing is ever cut from a prompt."""
        if most is not None and most > self.limits.new_tokens:
            raise of_field(
                "max_tokens", f"{most} is more than this server allows; give at most {self.limits.new_tokens}"
            )
        context = min(self.loaded.config.model.max_positions, self.cache_tokens)
        longest = max(map(len, prompts))
        room, least = context - longest, 1 if most is None else most
        if room < least:
            raise of_field(
                where,
                f"{longest} tokens and {least} new ones do not fit the context of {context}; shorten it"
                + (" or lower max_tokens" if room > 0 else ""),
                code="context_length_exceeded",
            )
        return min(default, room) if most is None else most

    def constrained(self, plan: Plan) -> Plan:
        """Return a plan with its grammar compiled: up to a second, so not for a thread that others wait for.

        Args:
            plan: as it was made.

        Raises:
            ApiError: the constraint cannot be used.
        """
        if plan.wanted is None:
            return plan
        try:
            return self._with(plan, self.loaded.grammar(plan.wanted.constraint))
        except DifflmError as error:
            raise plan.wanted.refused(error) from None

    def constrained_at_once(self, plan: Plan) -> Plan | None:
        """Return a plan with its grammar, where that was compiled before; None otherwise.

        Args:
            plan: as it was made.
        """
        if plan.wanted is None:
            return plan
        grammar = self.loaded.kept_grammar(plan.wanted.constraint)
        return None if grammar is None else self._with(plan, grammar)

    def _with(self, plan: Plan, grammar: Grammar) -> Plan:
        """Return a plan whose orders have their grammar."""
        orders = [replace(order, params=replace(order.params, constraint=grammar)) for order in plan.orders]
        return replace(plan, orders=orders)

    def _plan(
        self,
        asked: Asked,
        kind: Kind,
        prompts: Sequence[Sequence[int]],
        *,
        new_tokens: int,
        top: int | None,
        want: Wanted | None,
    ) -> Plan:
        if want is not None and asked.stop:
            raise of_field("stop", f"it cannot be used beside {want.param}: what is cut there would not match")
        try:
            params = sampling_params(
                asked, new_tokens=new_tokens, logprobs=top, defaults=self.defaults, limits=self.limits
            )
            params = params if want is None else replace(params, constraint=Later())
            watched = bool(asked.stream and asked.stream_options and asked.stream_options.denoising)
            alone = [replace(params, n=1, seed=seed, guesses=watched) for seed in seeds(params)]
            orders = [self._order(prompt, each, watched=watched) for prompt in prompts for each in alone]
        except DifflmError as error:
            raise not_usable(error, constraint=None if want is None else want.param) from None
        prefix = "chatcmpl-" if kind == "chat" else "cmpl-"
        return Plan(
            form=Form(
                kind=kind,
                id=prefix + uuid.uuid4().hex,
                created=int(time.time()),
                model=self.name,
                pieces=self.pieces,
                top=top,
            ),
            prompts=prompts,
            orders=orders,
            answers=[self._answer(number, order) for number, order in enumerate(orders)],
            stream=bool(asked.stream),
            options=asked.stream_options or StreamOptions(),
            wanted=want,
        )

    def _order(self, prompt: Sequence[int], params: SamplingParams, *, watched: bool) -> Order:
        request = admit(self.loaded, prompt, params, request_id=0, fused=True)
        if request.capacity > self.cache_tokens:
            raise bad(f"max_tokens: prompt and answer take {request.capacity} tokens of cache, of {self.cache_tokens}")
        return Order(
            prompt=request.prompt,
            params=params,
            capacity=request.capacity,
            watched=watched,
            block_size=request.block_size,
        )

    def _answer(self, index: int, order: Order) -> Answer:
        growing = GrowingText(self._decode, tuple(order.params.stop))
        return Answer(
            loaded=self.loaded,
            index=index,
            prompt=order.prompt,
            seed=order.params.seed,
            growing=growing,
            block_size=order.block_size,
        )

    def _decode(self, tokens: Sequence[int]) -> str:
        return "" if self.loaded.tokenizer is None else self.loaded.decode(tokens)


def parsed(kind: type[B], body: bytes) -> B:
    """Return the body as an object of its schema.

    Args:
        kind: the schema.
        body: JSON.

    Raises:
        ApiError: it does not fit.
    """
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise not_valid(error) from None
