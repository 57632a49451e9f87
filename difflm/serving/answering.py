"""A plan -> its answer, whole or in chunks, within the server's times; however it ends, the engine is left clean."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from difflm.decode.events import Denoised, Event, Finished
from difflm.errors import DifflmError
from difflm.serving.answers import Answer, Delta, usage_of
from difflm.serving.bridge import Bridge
from difflm.serving.denoising import committed_object, provisional_object
from difflm.serving.errors import ApiError, internal, not_usable, unanswered
from difflm.serving.failures import TimedOut, Unanswered
from difflm.serving.formats import Echo, usage_object
from difflm.serving.limits import Limits
from difflm.serving.planning import Plan
from difflm.serving.tickets import Ticket

Inbox = asyncio.Queue[tuple[Answer, Event | Exception]]
"""What happens to the answers of one request, in order."""

MOST_BEHIND = 256
"""Events that a reader may be behind; those beyond come without guesses, so that they take no memory."""

_log = logging.getLogger("difflm.serving")


def error_of(error: Exception) -> ApiError:
    """Return what a client is told of a failure; defects go to the log."""
    match error:
        case ApiError():
            return error
        case Unanswered():
            return unanswered(error)
        case DifflmError():
            return not_usable(error)
    _log.error("a request failed by a defect of the server", exc_info=error)
    return internal()


async def whole(plan: Plan, tickets: Sequence[Ticket], bridge: Bridge, limits: Limits) -> dict[str, Any]:
    """Return the response of a plan.

    Args:
        plan: what is answered.
        tickets: of its jobs, and then of its orders.
        bridge: they are of.
        limits: how long it may take.

    Raises:
        Unanswered: there is none.
    """
    try:
        before = await echoes(plan, tickets, limits)
        async with aclosing(deltas(plan, tickets[len(plan.jobs) :], bridge, limits)) as told:
            async for _ in told:
                pass
        return plan.form.whole(plan.answers, usage_of(plan.prompts, plan.answers), before)
    finally:
        give_up(tickets, bridge)


def give_up(tickets: Sequence[Ticket], bridge: Bridge) -> None:
    """Cancel what is not finished."""
    for ticket in tickets:
        bridge.cancel(ticket)


async def echoes(plan: Plan, tickets: Sequence[Ticket], limits: Limits) -> list[Echo]:
    """Return what is repeated before each answer, with its log-probabilities if they were asked for.

    Args:
        plan: what is answered.
        tickets: of its jobs, and then of its orders.
        limits: how long it may take.

    Raises:
        Unanswered: there are none.
    """
    try:
        async with asyncio.timeout(limits.answer_seconds):
            return plan.echoes([await ticket.value() for ticket in tickets[: len(plan.jobs)]])
    except TimeoutError:
        raise TimedOut(f"the prompt was not scored within {limits.answer_seconds:g} seconds") from None


async def chunks(
    plan: Plan, tickets: Sequence[Ticket], bridge: Bridge, limits: Limits
) -> AsyncGenerator[dict[str, Any], None]:
    """Yield the chunks of a stream; an error is one of them, and the last. Takes what `whole` takes."""
    form, options = plan.form, plan.options

    def chunk(*choices: dict[str, Any], **more: Any) -> dict[str, Any]:
        if options.continuous_usage_stats:
            more.setdefault("usage", usage_object(usage_of(plan.prompts, plan.answers)))
        elif options.include_usage:
            more.setdefault("usage", None)
        return form.chunk(choices, **more)

    try:
        if form.kind == "chat":
            for answer in plan.answers:
                yield chunk(form.opening(answer.index))
        for answer, echo in zip(plan.answers, await echoes(plan, tickets, limits), strict=False):
            scores = form.text_logprobs(echo.logprobs) if plan.jobs else None
            yield chunk(form.part(answer.index, echo.text, scores))
            if not plan.orders:
                yield chunk(form.closing(answer))
        async with aclosing(deltas(plan, tickets[len(plan.jobs) :], bridge, limits)) as told:
            async for delta in told:
                answer = plan.answers[delta.index]
                if delta.provisional is not None:
                    yield chunk(diffusion=provisional_object(delta.provisional, answer, form.pieces))
                    continue
                if options.denoising and delta.tokens:
                    yield chunk(diffusion=committed_object(delta, answer, form.pieces))
                scores = _scores(plan, answer, delta)
                if delta.text or scores is not None:
                    yield chunk(form.part(delta.index, delta.text, scores))
                for choice in form.calling(answer, delta.calls):
                    yield chunk(choice)
                if delta.finished is not None:
                    yield chunk(form.closing(answer))
        if options.include_usage:
            yield chunk(usage=usage_object(usage_of(plan.prompts, plan.answers)))
    except Exception as error:
        yield error_of(error).body
    finally:
        give_up(tickets, bridge)


def _scores(plan: Plan, answer: Answer, delta: Delta) -> dict[str, Any] | None:
    """Return the log-probabilities of new tokens, if they were asked for and there are some."""
    if not delta.logprobs:
        return None
    if plan.form.kind == "chat":
        return plan.form.chat_logprobs(delta.logprobs)
    before = answer.tokens[: -len(delta.tokens)]
    return plan.form.text_logprobs(delta.logprobs, [*answer.prompt, *before] if plan.echo else before)


async def deltas(plan: Plan, tickets: Sequence[Ticket], bridge: Bridge, limits: Limits) -> AsyncGenerator[Delta, None]:
    """Yield what is new of all answers as it comes, until all are finished; at the end the tickets are given up.

    Takes what `whole` takes.

    Raises:
        Unanswered: one of the answers failed, or the time is up.
        ApiError: one of them has to match what it cannot.
    """
    inbox: Inbox = asyncio.Queue()

    async def follow(answer: Answer, ticket: Ticket) -> None:
        try:
            async for event in ticket.events():
                if isinstance(event, Denoised) and inbox.qsize() > MOST_BEHIND:
                    event = replace(event, guesses=())
                inbox.put_nowait((answer, event))
        except Exception as error:
            inbox.put_nowait((answer, error))

    pairs = zip(plan.answers, tickets, strict=bool(plan.orders))
    tasks = [asyncio.create_task(follow(answer, ticket)) for answer, ticket in pairs]
    began, left = asyncio.get_running_loop().time(), len(tasks)
    try:
        while left:
            answer, event = await _next(inbox, tickets, began, limits)
            if isinstance(event, Exception):
                raise event
            if isinstance(event, Finished) and event.completion.finish_reason == "stuck" and plan.wanted is not None:
                raise plan.wanted.exhausted()
            left -= isinstance(event, Finished)
            yield answer.take(event)
    finally:
        give_up(tickets, bridge)
        for task in tasks:
            task.cancel()


async def _next(
    inbox: Inbox, tickets: Sequence[Ticket], began: float, limits: Limits
) -> tuple[Answer, Event | Exception]:
    """Return what comes next.

    Raises:
        TimedOut: nothing came in time.
    """
    while True:
        waits = all(ticket.started is None for ticket in tickets)
        seconds = min(limits.queue_seconds, limits.answer_seconds) if waits else limits.answer_seconds
        try:
            async with asyncio.timeout_at(began + seconds):
                return await inbox.get()
        except TimeoutError:
            if waits and any(ticket.started is not None for ticket in tickets) and seconds < limits.answer_seconds:
                continue
            what = "it was not begun" if waits else "it was not finished"
            raise TimedOut(f"{what} within {seconds:g} seconds") from None
