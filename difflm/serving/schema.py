"""Bodies of requests. Null means that a field is not given; unknown fields are kept apart, and ignored."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

Role = Literal["system", "developer", "user", "assistant", "tool", "function"]
MOST_LOGPROBS = 20


def _is_json(value: dict[str, Any]) -> dict[str, Any]:
    """Return an object that can be written as JSON again: the parser takes NaN, and numbers without bound."""
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        raise PydanticCustomError("not_json", "It holds NaN or a number that is too large; give JSON") from None
    return value


class Body(BaseModel):
    """A JSON object; numbers are finite, and no type is taken for another."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False, frozen=True)


class Own(Body):
    """An object that is only ours: what it does not know is refused."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class Editing(Own):
    """Editing of decided tokens in a block that is not final yet.

    Attributes:
        threshold: a decided token is replaced where another is proposed with more confidence.
        max_post_steps: forwards of a block that only edit, at most.
    """

    threshold: Annotated[float, Field(ge=0)]
    max_post_steps: Annotated[int, Field(ge=0)] | None = None


class NamedPolicy(Body):
    """A policy of docs/decoding.md with its settings beside the name.

    Attributes:
        name: "native", "verified", "hf20", "hf20-greedy", "hf21", "sglang" or "dinfer".
    """

    name: str


class Diffusion(Own):
    """How the answer is decoded.

    Attributes:
        block_size: tokens of a diffusion block.
        threshold: a proposal is kept when its probability is above.
        min_accept: tokens decided per forward at least.
        decoding: "block", "next_token" or "verified".
        policy: a name, or an object with `name` and settings.
        editing: see `Editing`.
    """

    block_size: Annotated[int, Field(ge=1)] | None = None
    threshold: Annotated[float, Field(ge=0)] | None = None
    min_accept: Annotated[int, Field(ge=1)] | None = None
    decoding: Literal["block", "next_token", "verified"] | None = None
    policy: str | NamedPolicy | None = None
    editing: Editing | None = None


class StreamOptions(Body):
    """What a stream holds beside text.

    Attributes:
        include_usage: one more chunk, with the usage and without choices.
        continuous_usage_stats: the usage so far in every chunk.
        denoising: provisional tokens, in chunks without choices.
    """

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    denoising: bool | None = None


class NamedSchema(Body):
    """A JSON schema with a name; it is enforced whatever `strict` says."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    description: str | None = None
    definition: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Body):
    """What an answer is: any text, a JSON object, or JSON that a schema allows."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None
    definition: dict[str, Any] | None = Field(None, alias="schema")


class StructuredOutputs(Body):
    """What an answer has to match; one of these."""

    definition: dict[str, Any] | str | None = Field(None, alias="json")
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None


class Asked(Body):
    """What both kinds of requests have. See docs/serving.md for each field."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=16)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[Annotated[int, Field(ge=0)]] | None = None
    ignore_eos: bool | None = None
    min_tokens: Annotated[int, Field(ge=0)] | None = None
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: dict[str, Any] | str | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    json_schema: dict[str, Any] | str | None = None
    regex: str | None = None
    grammar: str | None = None
    diffusion: Diffusion | None = None

    @property
    def extra(self) -> dict[str, Any]:
        """Fields that are not known here, but for nulls."""
        return {name: value for name, value in (self.model_extra or {}).items() if value is not None}


class CompletionRequest(Asked):
    """Body of /v1/completions."""

    prompt: str | list[str] | list[int] | list[list[int]] | None = None
    logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] | None = None
    echo: bool | None = None


class Part(Body):
    """A part of a message's content."""

    type: str
    text: str | None = None


class Called(Body):
    """A function and its arguments, an object written as JSON."""

    name: str
    arguments: str


class ToolCall(Body):
    """A call that an assistant made."""

    id: str
    type: Literal["function"] = "function"
    function: Called


class Message(Body):
    """A message of a conversation."""

    role: Role
    content: str | list[Part] | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None


class Function(Body):
    """A function that may be called; `parameters` is the JSON schema of its arguments."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
    description: str | None = None
    parameters: Annotated[dict[str, Any], AfterValidator(_is_json)] | None = None
    strict: bool | None = None


class Tool(Body):
    """A function, as a tool."""

    type: Literal["function"]
    function: Function


class Named(Body):
    """The name of a function."""

    name: str


class NamedChoice(Body):
    """The function that has to be called."""

    type: Literal["function"]
    function: Named


class ChatRequest(Asked):
    """Body of /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1)]
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedChoice | None = None
    parallel_tool_calls: bool | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] | None = None


class TokenizeRequest(Body):
    """Body of /tokenize: a text, or a conversation in the model's chat template."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[Message], Field(min_length=1)] | None = None
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    add_special_tokens: bool | None = None


class DetokenizeRequest(Body):
    """Body of /detokenize."""

    model: str | None = None
    tokens: list[Annotated[int, Field(ge=0)]]
