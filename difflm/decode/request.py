"""What goes into decoding: parameters and admitted requests. No tensors."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Any, get_args

from difflm.checkpoints.constraints import Constraint
from difflm.decode.checks import check_bias, check_ids, check_integer, check_number, check_strings
from difflm.decode.matching import Grammar
from difflm.errors import RequestError
from difflm.types import Decoding

if TYPE_CHECKING:
    from difflm.decode.policies.base import Policy
    from difflm.decode.policies.verified import Verified
    from difflm.decode.sampling import Rule
    from difflm.decode.stopping import StopStrings


DEFAULT_BLOCK_SIZE = 32
DEFAULT_THRESHOLD = 0.95
MOST_LOGPROBS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How a request is decoded.

    Attributes:
        max_new_tokens: tokens to generate at most, >= 1.
        block_size: tokens per diffusion block; None takes generation_config's, then config's, then 32.
        threshold: a proposal is kept when its probability is strictly above it; >= 0. From 1 on nothing is
            above it, so that each forward decides `min_accept` tokens. None takes generation_config's, then 0.95.
        min_accept: tokens decided per forward at least (the most confident ones), >= 1.
        temperature: 0 is arg-max; above 0, tokens are drawn from softmax(logits / temperature) and that
            distribution also gives the confidence.
        top_k, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty, logit_bias: see
            `difflm.decode.drawing.Draw`; the bias maps ids to numbers. They also change the confidence.
        seed: of the request's own generator; used when temperature > 0.
        ignore_eos: treat EOS as an ordinary token.
        stop_token_ids: more ids that end the answer like an EOS, also when EOS is ignored.
        stop: strings that end the answer before them; looked for when a block is finished.
        min_tokens: neither an EOS, a stop id nor a stop string ends the answer before this many tokens.
        logprobs: None, or how many of the most probable ids to report with every token (0..20).
        guesses: whether `Denoised` events hold what was proposed for positions that stay open.
        n: answers per prompt, of `generate`; each has a seed of its own, the first one `seed`.
        editing_threshold: decided tokens of the current block may be replaced; see `difflm.decode.policies.native`.
            None decides each position once.
        max_post_steps: forwards of a block that only edit, at most.
        decoding: "block" (block diffusion); "next_token" (left to right under a causal mask, one token per
            forward: for the AR parent and AR controls); or "verified" (left to right, drafted and verified: the text
            of "next_token" in fewer forwards). Left to right, block_size, threshold and min_accept are not used. None
            takes "verified" where the model is one that drafts (an adapter for noisy rows, or generation_config's
            `decoding`), else "block".
        policy: from `difflm.policy`: the rules of another system, or other strategies of ours. It brings its own
            settings for what a forward keeps and how tokens are drawn; `max_new_tokens` holds where it has no
            gen_length. None is the native policy, or that of "verified", with the fields above.
        constraint: what the text of the answer has to match: JSON, a schema, an expression, a grammar; or what
            `LoadedModel.grammar` made of one. An answer whose finish reason is "stop" matches (one that a stop string
            or an id of `stop_token_ids` ends as well, but for what the string cuts off); "length": it is the beginning
            of one that does. "stuck": no token of the model's goes on with it, or finding out takes too much work. Not
            beside ignore_eos, min_tokens, editing, and policies of other systems.

    Raises:
        RequestError: for a value outside these ranges.
    """

    max_new_tokens: int = 128
    block_size: int | None = None
    threshold: float | None = None
    min_accept: int = 1
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] | None = None
    seed: int = 0
    ignore_eos: bool = False
    stop_token_ids: Sequence[int] = ()
    stop: Sequence[str] = ()
    min_tokens: int = 0
    logprobs: int | None = None
    guesses: bool = False
    n: int = 1
    editing_threshold: float | None = None
    max_post_steps: int = 16
    decoding: Decoding | None = None
    policy: Policy | Verified | None = None
    constraint: Constraint | Grammar | None = None

    def __post_init__(self) -> None:
        check_integer("max_new_tokens", self.max_new_tokens, minimum=1, unit="tokens")
        if self.block_size is not None:
            check_integer("block_size", self.block_size, minimum=1, unit="tokens")
        if self.threshold is not None:
            check_number("threshold", self.threshold)
        check_integer("min_accept", self.min_accept, minimum=1, unit="tokens per forward")
        check_number("temperature", self.temperature)
        check_integer("seed", self.seed, minimum=0, unit="a 63-bit integer")
        if self.seed >= 2**63:
            raise RequestError(f"seed: {self.seed} does not fit; give an integer below 2**63")
        for name, flag in (("ignore_eos", self.ignore_eos), ("guesses", self.guesses)):
            if flag not in (True, False):
                raise RequestError(f"{name}: {flag!r} is not a boolean; give True or False")
        if self.decoding not in (None, *get_args(Decoding)):
            known = ", ".join(map(repr, get_args(Decoding)))
            raise RequestError(f"decoding: {self.decoding!r} is unknown; choose one of {known}")
        if self.decoding in ("next_token", "verified") and self.editing_threshold is not None:
            raise RequestError(
                f"editing_threshold: {self.editing_threshold!r} has no effect with decoding '{self.decoding}'; "
                "leave it out"
            )
        self._check_sampling()
        self._check_stopping()
        self._check_constraint()
        if self.policy is not None:
            self._check_alone()

    def _check_sampling(self) -> None:
        check_integer("top_k", self.top_k, minimum=0, unit="tokens, 0 keeps all")
        check_number("top_p", self.top_p, high=1.0, above=True)
        check_number("min_p", self.min_p, high=1.0)
        check_number("repetition_penalty", self.repetition_penalty, above=True)
        check_number("presence_penalty", self.presence_penalty, low=-math.inf)
        check_number("frequency_penalty", self.frequency_penalty, low=-math.inf)
        check_bias("logit_bias", {} if self.logit_bias is None else self.logit_bias)
        if self.editing_threshold is not None:
            check_number("editing_threshold", self.editing_threshold)
        check_integer("max_post_steps", self.max_post_steps, minimum=0, unit="forwards per block")

    def _check_stopping(self) -> None:
        check_ids("stop_token_ids", self.stop_token_ids)
        check_strings("stop", self.stop)
        check_integer("min_tokens", self.min_tokens, minimum=0, unit="tokens")
        if self.min_tokens > self.max_new_tokens:
            raise RequestError(f"min_tokens: {self.min_tokens} is more than max_new_tokens {self.max_new_tokens}")
        check_integer("n", self.n, minimum=1, unit="answers")
        if self.logprobs is not None:
            check_integer("logprobs", self.logprobs, minimum=0, unit="ids per token")
            if self.logprobs > MOST_LOGPROBS:
                raise RequestError(f"logprobs: {self.logprobs} cannot be used; give at most {MOST_LOGPROBS}")

    def _check_constraint(self) -> None:
        """Refuse what is no constraint, and what would keep an answer from ending where its grammar does."""
        if self.constraint is None:
            return
        if not isinstance(self.value_of("constraint"), Constraint | Grammar):
            kind = type(self.constraint).__name__
            raise RequestError(f"constraint: {kind} cannot be used; give difflm.Constraint(json_schema=...)")
        beside = {"ignore_eos": self.ignore_eos, "min_tokens": self.min_tokens}
        beside |= {"editing_threshold": self.editing_threshold}
        for name, value in beside.items():
            if value or (name == "editing_threshold" and value is not None):
                raise RequestError(f"{name}: {value!r} cannot be used beside a constraint; leave one of them out")

    def _check_alone(self) -> None:
        """Refuse what is no policy, and parameters that a policy decides."""
        if not is_dataclass(self.policy) or isinstance(self.policy, type):
            raise RequestError(
                f"policy: {self.policy!r} is no policy; make one by its name: difflm.policy('native', threshold=0.9)"
            )
        beside = {"max_new_tokens", "seed", "ignore_eos", "stop_token_ids", "stop", "logprobs", "guesses", "n"}
        beside |= {"constraint"}
        for name, value, default in ((each.name, self.value_of(each.name), each.default) for each in fields(self)):
            if name not in beside | {"policy"} and value != default:
                raise RequestError(
                    f"{name}: {value!r} has no effect beside a policy; "
                    "leave it out, or give the policy's own setting to difflm.policy"
                )

    def value_of(self, name: str) -> object:
        """Return the value of a field.

        Args:
            name: of the field.
        """
        return operator.attrgetter(name)(self)

    def resolved_block_size(self, generation: Mapping[str, Any], config_block_size: int | None) -> int:
        """Return the block size in tokens: of the request, of generation_config, of config, or 32."""
        if self.block_size is not None:
            return self.block_size
        if generation.get("block_size") is not None:
            field = "generation_config.json: block_size"
            check_integer(field, generation["block_size"], minimum=1, unit="tokens")
            return generation["block_size"]
        return DEFAULT_BLOCK_SIZE if config_block_size is None else config_block_size

    def resolved_threshold(self, generation: Mapping[str, Any]) -> float:
        """Return the threshold: of the request, of generation_config, or 0.95."""
        if self.threshold is not None:
            return float(self.threshold)
        if generation.get("threshold") is not None:
            check_number("generation_config.json: threshold", generation["threshold"])
            return float(generation["threshold"])
        return DEFAULT_THRESHOLD


def checked(params: object) -> SamplingParams:
    """Return the parameters, the defaults where None is given.

    Args:
        params: of a caller, of whatever type.

    Raises:
        RequestError: they are something else.
    """
    if params is None:
        return SamplingParams()
    if isinstance(params, SamplingParams):
        return params
    kind = type(params).__name__
    inside = "**params" if isinstance(params, Mapping) else "max_new_tokens=128"
    raise RequestError(f"params: {kind} where SamplingParams belong; give difflm.SamplingParams({inside})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """An admitted request: a checked prompt and every decision that its decoding needs.

    Attributes:
        id: number of the request in its engine.
        prompt: token ids; MASK only under the policies that take it.
        max_new_tokens: tokens to generate at most.
        block_size: tokens per block; 1 for next-token decoding.
        policy: decides what is filled and when it ends; None for decoding left to right.
        drafting: how it drafts and verifies; None without drafts.
        rule: how rows become proposals.
        seed: of the request's generator.
        eos_ids: ids that end the completion.
        min_tokens: generated tokens before which nothing ends it.
        stops: stop strings, if any.
        logprobs, guesses: see `SamplingParams`.
        mask_id: input id of an undecided position; None for next-token decoding.
        logit_shift: token i is read at row i-1.
        noisy_shift: the same for the tokens that MASK rows behind clean ones predict.
        clean_causal: prefill and commit rows are token-causal instead of block-causal.
        noisy_causal: rows of the noisy block see only earlier rows of it.
        fused: a finished block is committed in the forward that first denoises the next one.
        template: of an infilling, what stands behind the prompt: ids, and None where one is to be found; its length is
            `max_new_tokens`. Empty otherwise.
        grammar: that the answer has to match, if any.
    """

    id: int
    prompt: tuple[int, ...]
    max_new_tokens: int
    block_size: int
    policy: Policy | None
    rule: Rule
    seed: int
    eos_ids: frozenset[int]
    mask_id: int | None
    logit_shift: bool
    clean_causal: bool
    noisy_causal: bool
    noisy_shift: bool
    drafting: Verified | None = None
    fused: bool = True
    min_tokens: int = 0
    stops: StopStrings | None = None
    logprobs: int | None = None
    guesses: bool = False
    template: tuple[int | None, ...] = ()
    grammar: Grammar | None = None

    @property
    def given(self) -> tuple[int, ...]:
        """The prompt and the given tokens of a template: what is no answer."""
        return (*self.prompt, *(token for token in self.template if token is not None))

    @property
    def limit(self) -> int:
        """Position behind the last token that may be generated."""
        return len(self.prompt) + self.max_new_tokens

    @property
    def capacity(self) -> int:
        """Rows of keys and values that the request can ever hold: its tokens, up to a whole block."""
        return math.ceil(self.limit / self.block_size) * self.block_size
