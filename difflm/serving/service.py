"""One model behind one bridge: what the endpoints call. Knows requests and answers, no HTTP."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from difflm.checkpoints.templates import BoundedRender, Render
from difflm.checkpoints.trials import Trials
from difflm.decode.engine import DEFAULT_CACHE_BYTES, DEFAULT_PREFILL_TOKENS, Engine
from difflm.serving.bridge import Bridge, QueueLimits
from difflm.serving.failures import Overloaded
from difflm.serving.limits import Access, Defaults, Limits
from difflm.serving.metrics import Metrics
from difflm.serving.offering import offering
from difflm.serving.pieces import Pieces
from difflm.serving.planning import Plan, Planner
from difflm.serving.tickets import Ticket

if TYPE_CHECKING:
    from difflm.checkpoints.loading import LoadedModel

TEXT_THREADS = 2
MOST_TEXTS = 256
"""Requests that are being read or wait for it; each may be a long text."""
MOST_GRAMMARS = 32
"""Requests whose grammar is compiled or waits for it, one behind another: each takes up to some seconds."""

T = TypeVar("T")


class Service:
    """A model that is served.

    Args:
        loaded: the model.
        name: under which it is served.
        limits: bounds of a request.
        queue: bounds of what waits.
        defaults: what requests do not say.
        access: who may ask; None: everybody.
        max_requests: answers that the engine decodes at once.
        cache_bytes: its keys and values.
        prefill_tokens: prompt tokens of one forward, at most.
        prefix_caching: whether prompts that begin like earlier ones are not read again.
        render: what renders chat templates; None: processes of its own, each conversation within the limits' time.
        questions: that suit the model, for who does not know it.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        name: str,
        limits: Limits | None = None,
        queue: QueueLimits | None = None,
        defaults: Defaults | None = None,
        access: Access | None = None,
        max_requests: int = 64,
        cache_bytes: int = DEFAULT_CACHE_BYTES,
        prefill_tokens: int = DEFAULT_PREFILL_TOKENS,
        prefix_caching: bool = True,
        render: Render | None = None,
        questions: Sequence[str] = (),
    ) -> None:
        self.questions = tuple(questions)
        self.limits, self.defaults = limits or Limits(), defaults or Defaults()
        self.access = access or Access()
        self._own_render = BoundedRender(seconds=self.limits.template_seconds) if render is None else None
        self._trials = Trials()
        loaded = replace(loaded, render=render or self._own_render, trial=self._trials.check)
        self.loaded, self.name = loaded, name
        make = functools.partial(
            Engine,
            loaded,
            max_requests=max_requests,
            cache_bytes=cache_bytes,
            prefill_tokens=prefill_tokens,
            prefix_caching=prefix_caching,
        )
        self.bridge = Bridge(make, limits=queue)
        self.metrics = Metrics(self.bridge)
        self.planner = Planner(
            loaded=loaded,
            name=name,
            limits=self.limits,
            defaults=self.defaults,
            cache_tokens=make().cache_tokens,
            pieces=None if loaded.tokenizer is None else Pieces(loaded.tokenizer),
        )
        self._texts = ThreadPoolExecutor(TEXT_THREADS, thread_name_prefix="difflm-text")
        self._grammars = ThreadPoolExecutor(1, thread_name_prefix="difflm-grammar")
        self._reading, self._compiling = 0, 0

    async def start(self) -> None:
        """Start the engine's thread.

        Raises:
            Exception: the engine cannot be made.
        """
        await self.bridge.start()

    async def stop(self) -> None:
        """Fail what is left, and end the threads."""
        await self.bridge.stop()
        self._texts.shutdown(wait=False, cancel_futures=True)
        self._grammars.shutdown(wait=False, cancel_futures=True)
        self._trials.close()
        if self._own_render is not None:
            self._own_render.close()

    async def off_the_loop(self, call: Callable[[], T]) -> T:
        """Return what a slow call of texts returns; at most `TEXT_THREADS` run, at most `MOST_TEXTS` wait.

        Raises:
            Overloaded: too many wait.
        """
        if self._reading >= MOST_TEXTS:
            raise Overloaded(f"{self._reading} requests are being read; try again later", retry_after=1)
        self._reading += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._texts, call)
        finally:
            self._reading -= 1

    async def plan(self, kind: str, body: bytes) -> Plan:
        """Return the plan of a request.

        Args:
            kind: "chat" or "text".
            body: JSON.

        Raises:
            ApiError: the request cannot be served.
            Overloaded: too many are being read.
        """
        make = self.planner.chat if kind == "chat" else self.planner.text
        plan = await self.off_the_loop(lambda: make(body))
        return self.planner.constrained_at_once(plan) or await self._constrained(plan)

    async def _constrained(self, plan: Plan) -> Plan:
        """Return a plan with its grammar, compiled in a thread of its own: requests without one do not wait for it."""
        if self._compiling >= MOST_GRAMMARS:
            raise Overloaded(f"{self._compiling} constraints are being compiled; try again later", retry_after=1)
        self._compiling += 1
        try:
            work = functools.partial(self.planner.constrained, plan)
            return await asyncio.get_running_loop().run_in_executor(self._grammars, work)
        finally:
            self._compiling -= 1

    def submit(self, plan: Plan, client: str) -> Sequence[Ticket]:
        """Queue the jobs of a plan, and its orders; return their tickets.

        Args:
            plan: of a request.
            client: whose it is.

        Raises:
            Unanswered: they are not taken.
        """
        return self.bridge.submit([*plan.jobs, *plan.orders], client=client, request=plan.form.id)

    def model_object(self, created: int) -> dict[str, Any]:
        """Return the model as /v1/models lists it.

        Args:
            created: when it was loaded, seconds since 1970.
        """
        return {
            "id": self.name,
            "object": "model",
            "created": created,
            "owned_by": "difflm",
            "max_model_len": self.loaded.config.model.max_positions,
            "diffusion": offering(self.loaded, self.defaults, self.limits, self.questions),
        }
