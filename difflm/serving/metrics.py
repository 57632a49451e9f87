"""Metrics for Prometheus: what waits and runs, what was answered, how long it took, what it cost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from difflm.errors import ConfigError
from difflm.serving.answers import usage_of
from difflm.serving.bridge import Bridge
from difflm.serving.planning import Plan
from difflm.serving.tickets import Ticket

PREFIX = "difflm_"
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
PER_FORWARD = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0)


class Metrics:
    """The metrics of one server.

    Args:
        bridge: what is read when somebody asks.

    Raises:
        ConfigError: the extra [serve] is not installed.
    """

    def __init__(self, bridge: Bridge) -> None:
        try:
            import prometheus_client as prometheus
        except ImportError as error:
            raise ConfigError(f"serve: {error.name} is not installed; pip install 'difflm[serve]'") from None
        self._registry = prometheus.CollectorRegistry()
        self._latest = prometheus.generate_latest
        self.content_type = prometheus.CONTENT_TYPE_LATEST

        def counter(name: str, text: str, labels: Sequence[str] = ()) -> Any:
            return prometheus.Counter(PREFIX + name, text, labels, registry=self._registry)

        def histogram(name: str, text: str, buckets: Sequence[float] = SECONDS) -> Any:
            return prometheus.Histogram(PREFIX + name, text, registry=self._registry, buckets=buckets)

        self.prompt_tokens = counter("prompt_tokens", "Prompt tokens of answered requests.")
        self.cached_tokens = counter("cached_prompt_tokens", "Those of them that were not read again.")
        self.generated_tokens = counter("generation_tokens", "Tokens of answers, also of those that were given up.")
        self.answers = counter("request_success", "Answers that were finished.", ["finished_reason"])
        self.unfinished = counter("request_unfinished", "Answers that failed or that nobody waited for.")
        self.forwards = counter("request_forwards", "Forwards that finished answers took part in.", ["kind"])
        self.drafted = counter("drafted_tokens", "Drafts that were verified.")
        self.accepted = counter("accepted_tokens", "Drafts that were written.")
        self.first = histogram("time_to_first_token_seconds", "From a request to its first final tokens.")
        self.between = histogram("inter_token_latency_seconds", "Between tokens behind the first ones, on average.")
        self.whole = histogram("e2e_request_latency_seconds", "From a request to the end of its answer.")
        self.queued = histogram("request_queue_time_seconds", "From a request to its first forward.")
        self.rate = histogram("tokens_per_forward", "Tokens per forward of finished answers.", PER_FORWARD)
        self._registry.register(_Live(bridge))

    def observe(self, plan: Plan, tickets: Sequence[Ticket]) -> dict[str, Any]:
        """Count a request that is over, and return what the log says of it.

        Args:
            plan: of the request.
            tickets: of its jobs, and then of its answers.
        """
        usage = usage_of(plan.prompts, plan.answers)
        done = [each.completion for each in plan.answers if each.completion is not None]
        self.generated_tokens.inc(usage.completion_tokens)
        self.unfinished.inc(len(plan.answers) - len(done))
        if done:
            self.prompt_tokens.inc(usage.prompt_tokens)
            self.cached_tokens.inc(usage.reused)
        for kind, count in asdict(usage.forwards).items():
            self.forwards.labels(kind).inc(count)
        if usage.drafts is not None:
            self.drafted.inc(usage.drafts.drafted)
            self.accepted.inc(usage.drafts.accepted)
        for each in done:
            self.answers.labels(each.finish_reason).inc()
            self.rate.observe(each.tokens_per_forward)
        for ticket, answer in zip(tickets[len(plan.jobs) :], plan.answers, strict=bool(plan.orders)):
            self._times(ticket, len(answer.tokens))
        facts: dict[str, Any] = {
            "id": plan.form.id,
            "stream": plan.stream,
            "answers": len(plan.answers),
            "finished": len(done),
            "finish_reasons": [each.finish_reason for each in done],
            "prompt_tokens": usage.prompt_tokens,
            "cached_tokens": usage.reused,
            "completion_tokens": usage.completion_tokens,
            "forwards": usage.forwards.denoise + usage.forwards.commit,
        }
        if usage.drafts is not None:
            facts |= {"drafted_tokens": usage.drafts.drafted, "accepted_tokens": usage.drafts.accepted}
        for name, moments in (
            ("queue_seconds", [each.started - each.submitted for each in tickets if each.started is not None]),
            ("first_token_seconds", [each.first - each.submitted for each in tickets if each.first is not None]),
        ):
            facts |= {name: round(min(moments), 6)} if moments else {}
        return facts

    def _times(self, ticket: Ticket, tokens: int) -> None:
        if ticket.started is not None:
            self.queued.observe(ticket.started - ticket.submitted)
        if ticket.first is not None:
            self.first.observe(ticket.first - ticket.submitted)
        if ticket.finished is not None:
            self.whole.observe(ticket.finished - ticket.submitted)
            if ticket.first is not None and tokens > 1:
                self.between.observe((ticket.finished - ticket.first) / (tokens - 1))

    def text(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return self._latest(self._registry)


class _Live:
    """What the bridge says when it is asked."""

    def __init__(self, bridge: Bridge) -> None:
        self.bridge = bridge

    def collect(self) -> Iterator[Any]:
        """Yield the metrics of this moment."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        bridge, counts = self.bridge, self.bridge.counts
        gauges = {
            "num_requests_running": ("Answers that the engine is at.", bridge.running),
            "num_requests_waiting": ("Answers that wait.", bridge.waiting),
            "num_tokens_waiting": ("Tokens of their prompts and longest answers.", bridge.waiting_tokens),
            "engine_alive": ("1 while the engine is alive.", int(bridge.state in ("running", "draining"))),
        }
        counters = {
            "forward_passes": ("Forwards of the engine, each for all that took part.", counts.forwards),
            "forward_seconds": ("Seconds spent in them.", counts.seconds),
            "engine_failures": ("Forwards that failed.", counts.failures),
            "requests_refused": ("Answers that were not taken, as the queue was full.", counts.refused),
            "requests_cancelled": ("Answers that nobody wanted any more.", counts.cancelled),
        }
        for name, (text, value) in gauges.items():
            yield GaugeMetricFamily(PREFIX + name, text, value=value)
        for name, (text, value) in counters.items():
            yield CounterMetricFamily(PREFIX + name, text, value=value)
