"""Options of the command -> a server."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from difflm.decode.admission import decoding_for
from difflm.decode.checks import check_number
from difflm.decode.policies.named import policy, policy_settings
from difflm.decode.request import SamplingParams
from difflm.errors import ConfigError, RequestError
from difflm.serving.bridge import QueueLimits
from difflm.serving.errors import ApiError
from difflm.serving.limits import Access, Defaults, Limits
from difflm.serving.server import Binding, Served
from difflm.serving.service import Service
from difflm.serving.telemetry import Telemetry, provider_from_environment
from difflm.types import Decoding

if TYPE_CHECKING:
    from difflm.checkpoints.loading import LoadedModel


KEYS = "DIFFLM_API_KEYS"
"""Environment variable with API keys, separated by white space."""
PAGE = "or open {}/ in a browser: a chat, and how its answers denoise"
LOOPBACK = ("localhost", "127.0.0.1", "[::1]", "::1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What `difflm serve` is told.

    Attributes:
        host, port, grace: see `Binding`.
        name: of the model; None: that of its folder.
        decoding, policy, block_size, threshold, temperature: where a request does not say.
        max_new_tokens: longest answer.
        max_requests: decoded at once.
        max_queue, max_queue_tokens: that may wait.
        api_key_file: keys, one a line, beside those of the environment.
        allowed_host: names in the Host header that are served.
        cors_origin: of pages that may ask from a browser.
        log_level: "debug", "info", "warning" or "error".
        cache_gib: keys and values.
        prefix_caching: whether prompts that begin alike are read once.
        telemetry: whether each request becomes a span of OpenTelemetry.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    name: str | None = None
    decoding: str | None = None
    policy: str | None = None
    block_size: int | None = None
    threshold: float | None = None
    temperature: float = 0.0
    max_new_tokens: int = 4096
    max_requests: int = 64
    max_queue: int = 256
    max_queue_tokens: int = 1 << 20
    api_key_file: Path | None = None
    allowed_host: tuple[str, ...] = ()
    cors_origin: tuple[str, ...] = ()
    log_level: str = "info"
    cache_gib: float = 4.0
    prefix_caching: bool = True
    grace: float = 30.0
    telemetry: bool = False

    def check(self) -> None:
        """Refuse what can be refused before a model is loaded.

        Raises:
            RequestError: naming the option.
            ConfigError: what an option needs is not installed.
        """
        if self.telemetry:
            provider_from_environment().shutdown()
        for name, value in (("--cache-gib", self.cache_gib), ("--grace", self.grace)):
            check_number(name, value, above=name == "--cache-gib")
        check_number("--temperature", self.temperature)
        if self.policy is not None:
            name, settings = policy_settings(self.policy)
            policy(name, **settings)

    @property
    def access(self) -> Access:
        """Who may ask.

        Raises:
            ConfigError: a file of keys that cannot be read, or holds none.
        """
        keys = tuple(os.environ.get(KEYS, "").split())
        if self.api_key_file is not None:
            try:
                found = tuple(self.api_key_file.read_text(encoding="utf-8").split())
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(f"--api-key-file: {self.api_key_file} cannot be read ({error})") from None
            if not found:
                raise ConfigError(f"--api-key-file: {self.api_key_file} holds no key; write one a line")
            keys += found
        hosts = tuple(name.lower() for name in self.allowed_host)
        if not hosts and self.host in LOOPBACK:
            hosts = LOOPBACK
        return Access(keys=keys, hosts=hosts, origins=self.cors_origin)

    @property
    def defaults(self) -> Defaults:
        """What requests do not say."""
        return Defaults(
            decoding=cast("Decoding | None", self.decoding),
            policy=None if self.policy is None else policy_settings(self.policy),
            block_size=self.block_size,
            threshold=self.threshold,
            temperature=self.temperature,
        )


def served(
    loaded: LoadedModel,
    options: Options,
    *,
    fallback_name: str,
    say: Callable[[str], None],
    questions: Sequence[str] = (),
) -> Served:
    """Return a server of a model, not started.

    Args:
        loaded: the model.
        options: of the command.
        fallback_name: of the model where none is given.
        say: is told, a line at a time, what is served.
        questions: that suit the model.

    Raises:
        RequestError: options that do not fit the model.
    """
    service = Service(
        loaded,
        name=options.name or fallback_name,
        limits=Limits(new_tokens=options.max_new_tokens),
        queue=QueueLimits(requests=options.max_queue, tokens=options.max_queue_tokens),
        defaults=options.defaults,
        access=options.access,
        max_requests=options.max_requests,
        cache_bytes=int(options.cache_gib * (1 << 30)),
        prefix_caching=options.prefix_caching,
        questions=questions,
    )
    _check_defaults(service)
    binding = Binding(host=options.host, port=options.port, grace_seconds=options.grace)
    for line in introduction(service):
        say(line)
    telemetry = None
    if options.telemetry:
        telemetry = Telemetry(provider_from_environment(), model=service.name)
        say("telemetry: a span for each request, to where the OTEL_* variables say")
    return Served(
        service,
        binding,
        telemetry=telemetry,
        on_start=lambda address: say(f"{address}\n{example(service, address)}\n{PAGE.format(address)}"),
    )


def _check_defaults(service: Service) -> None:
    """Refuse defaults with which every request that says nothing would be refused.

    Raises:
        RequestError: as a request would be told.
    """
    id = next(each for each in (0, 1) if each != service.loaded.config.mask_token_id)
    try:
        service.planner.text(json.dumps({"prompt": [id], "max_tokens": 1}).encode())
    except ApiError as error:
        raise RequestError(f"these options refuse every request that names nothing else: {error.message}") from None


def introduction(service: Service) -> list[str]:
    """Return lines that say what is served, and how.

    Args:
        service: the model.
    """
    loaded, defaults = service.loaded, service.defaults
    params = SamplingParams(decoding=defaults.decoding)
    decoding = defaults.policy[0] if defaults.policy else decoding_for(loaded, params)
    facts = [f"decoding {decoding}", f"temperature {defaults.temperature:g}"]
    if decoding == "block":
        size = params.resolved_block_size(loaded.config.generation, loaded.config.block_size)
        threshold = params.resolved_threshold(loaded.config.generation)
        facts.append(f"block size {defaults.block_size or size}")
        facts.append(f"threshold {threshold if defaults.threshold is None else defaults.threshold:g}")
    template = loaded.tokenizer is not None and bool(loaded.tokenizer.chat_template)
    access = service.access
    keys = f"{len(access.keys)} API keys" if access.keys else "no API key is asked for"
    hosts = f"hosts {', '.join(access.hosts)}" if access.hosts else "any host"
    return [
        f"model {service.name}: {loaded.path}, context {loaded.config.model.max_positions} tokens, "
        f"{'with' if template else 'without'} a chat template",
        f"where a request does not say: {', '.join(facts)}",
        f"access: {keys}, {hosts}, pages of {', '.join(access.origins) or 'no other site'}",
    ]


def example(service: Service, address: str) -> str:
    """Return a command to try.

    Args:
        service: the model.
        address: where it is served.
    """
    tokenizer, asked = service.loaded.tokenizer, (*service.questions, "Hello")[0]
    if tokenizer is not None and tokenizer.chat_template:
        path, body = "chat/completions", {"messages": [{"role": "user", "content": asked}], "max_tokens": 64}
    elif tokenizer is not None:
        path, body = "completions", {"prompt": "In the beginning", "max_tokens": 64}
    else:
        path, body = "completions", {"prompt": [1, 2, 3], "max_tokens": 64}
    key = " -H 'Authorization: Bearer KEY'" if service.access.keys else ""
    return f"curl {address}/v1/{path}{key} -H 'Content-Type: application/json' -d {shlex.quote(json.dumps(body))}"
