"""What the server allows a request, and what it takes where a request says nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from difflm.decode.checks import check_integer, check_number
from difflm.types import Decoding


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of one request.

    Attributes:
        new_tokens: of an answer at most; also what a chat gets that asks for no number, as far as the context allows.
        answers: `n` times prompts, at most.
        messages: of a conversation at most.
        stops: stop strings at most, each of at most `stop_characters`.
        stop_characters: see `stops`.
        biases: entries of `logit_bias` at most.
        block_size: tokens of a diffusion block at most; also windows of drafts.
        least_threshold: smallest threshold that a request may choose.
        post_steps: forwards of a block that only edit, at most.
        body_bytes: of a request's body.
        body_seconds: for its arrival.
        template_seconds: for a conversation in the chat template.
        queue_seconds: that an answer may wait before it starts.
        answer_seconds: from request to the end of its answer.
        write_seconds: that a client may take to make room for more of a stream.
    """

    new_tokens: int = 4096
    answers: int = 128
    messages: int = 1000
    stops: int = 16
    stop_characters: int = 256
    biases: int = 1024
    block_size: int = 256
    least_threshold: float = 0.0
    post_steps: int = 64
    body_bytes: int = 8 << 20
    body_seconds: float = 30.0
    template_seconds: float = 10.0
    queue_seconds: float = 120.0
    answer_seconds: float = 600.0
    write_seconds: float = 30.0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if name.endswith("_seconds"):
                check_number(name, value, above=True)
            elif name == "least_threshold":
                check_number(name, value)
            else:
                check_integer(name, value, minimum=0 if name in ("biases", "post_steps") else 1, unit="at most")


@dataclass(frozen=True, slots=True, kw_only=True)
class Defaults:
    """How a request is decoded that does not say.

    Attributes:
        decoding: None: what the model offers ("verified" where it drafts).
        policy: name of a policy and its settings; None: what `decoding` says.
        block_size, threshold: None: the model's.
        temperature, top_p, top_k: as in `SamplingParams`.
    """

    decoding: Decoding | None = None
    policy: tuple[str, Mapping[str, Any]] | None = None
    block_size: int | None = None
    threshold: float | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Who may ask, and from where.

    Attributes:
        keys: any of which a request has to bring; empty: none is needed.
        hosts: names in the Host header that are served; empty: all.
        origins: of pages of other sites that may ask from a browser; empty: none.
    """

    keys: tuple[str, ...] = field(default=(), repr=False)
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
