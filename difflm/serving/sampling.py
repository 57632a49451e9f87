"""Fields of a request -> the engine's parameters, within the server's bounds."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from difflm.decode.drawing import Draw
from difflm.decode.policies.named import policy, policy_settings
from difflm.decode.request import SamplingParams
from difflm.serving.errors import of_field
from difflm.serving.limits import Defaults, Limits
from difflm.serving.schema import Asked, Diffusion, NamedPolicy

_DRAWING = {each.name for each in fields(Draw)} - {"suppressed", "entropy", "keyed"}
_KNOWN: Mapping[str, set[str]] = {
    "native": {*_DRAWING, "min_tokens"},
    "verified": {*_DRAWING, "min_tokens"},
    "hf20": {"temperature", "top_k", "top_p"},
    "hf20-greedy": {"temperature", "top_k", "top_p"},
    "hf21": {"temperature", "top_k", "top_p"},
    "dinfer": {"temperature"},
}
"""Settings of a policy that a request may give under the names that every client knows."""

_OURS = ("mask_id", "eos_id", "gen_length")
"""Settings of policies that a request does not choose."""

_MOST: Mapping[str, float] = {
    "temperature": 2.0,
    "presence_penalty": 2.0,
    "frequency_penalty": 2.0,
    "repetition_penalty": 10.0,
    "decay_beta": 1.0,
    "max_forwards": 4096,
    "steps": 4096,
}
"""Largest values of settings, either sign, that are no field of `Limits`; as the fields of a request have them."""
_ANY = 1e6
"""Largest value of every other setting: what is beyond is no number of a float32 any more, somewhere."""

_NEUTRAL: Mapping[str, Any] = {
    "temperature": 0.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "repetition_penalty": 1.0,
    "logit_bias": None,
    "min_tokens": 0,
}


def sampling_params(
    asked: Asked, *, new_tokens: int, logprobs: int | None, defaults: Defaults, limits: Limits
) -> SamplingParams:
    """Return the engine's parameters of a request; without a seed it gets one by chance.

    Args:
        asked: the body.
        new_tokens: tokens of an answer at most.
        logprobs: most probable ids to tell with each token; None for none.
        defaults: what it does not say.
        limits: bounds.

    Raises:
        ApiError: a value beyond the server's bounds, or a setting that its policy does not have.
        RequestError: a value that the engine does not take.
    """
    _check_bounds(asked, limits)
    diffusion = asked.diffusion or Diffusion()
    common: dict[str, Any] = {
        "max_new_tokens": new_tokens,
        "seed": secrets.randbits(63) if asked.seed is None else asked.seed % 2**63,
        "ignore_eos": bool(asked.ignore_eos),
        "stop": _stops(asked, limits),
        "stop_token_ids": tuple(asked.stop_token_ids or ()),
        "logprobs": logprobs,
        "n": asked.n or 1,
    }
    drawing = _asked_drawing(asked, limits)
    own = {"temperature": defaults.temperature, "top_p": defaults.top_p, "top_k": defaults.top_k}
    named = _policy(diffusion, defaults)
    if named is not None:
        _refuse_beside(diffusion)
        name, settings = named
        _check_settings(settings, None if diffusion.policy is None else limits)
        return SamplingParams(policy=policy(name, **_settings(name, settings, own, drawing)), **common)
    editing = diffusion.editing
    threshold = defaults.threshold if diffusion.threshold is None else diffusion.threshold
    given: dict[str, Any] = {
        "block_size": diffusion.block_size or defaults.block_size,
        "threshold": threshold,
        "min_accept": diffusion.min_accept,
        "decoding": diffusion.decoding or (None if _means_blocks(diffusion) else defaults.decoding),
        "editing_threshold": None if editing is None else editing.threshold,
        "max_post_steps": None if editing is None else editing.max_post_steps,
    }
    fields_given = {name: value for name, value in given.items() if value is not None}
    return SamplingParams(**common, **{**own, **drawing}, **fields_given)


def _means_blocks(diffusion: Diffusion) -> bool:
    """Return whether fields are given that only blocks have, so that the server's own decoding is not meant."""
    return diffusion.editing is not None


def _policy(diffusion: Diffusion, defaults: Defaults) -> tuple[str, Mapping[str, Any]] | None:
    """Return name and settings of the policy of a request, else of the server where the request chooses nothing."""
    match diffusion.policy:
        case str(text):
            return policy_settings(text)
        case NamedPolicy() as named:
            extra = named.model_extra or {}
            return named.name, {name: value for name, value in extra.items() if value is not None}
        case None:
            own = diffusion.model_dump(exclude_none=True)
            return None if own else defaults.policy


def _refuse_beside(diffusion: Diffusion) -> None:
    """Refuse fields that a policy decides itself."""
    for name in ("block_size", "threshold", "min_accept", "decoding", "editing"):
        if name in diffusion.model_dump(exclude_none=True):
            raise of_field(f"diffusion.{name}", "it has no effect beside diffusion.policy; give the policy's setting")


def _asked_drawing(asked: Asked, limits: Limits) -> dict[str, Any]:
    """Return how tokens are drawn, as far as the request says."""
    given = {
        "temperature": asked.temperature,
        "top_p": asked.top_p,
        "top_k": None if asked.top_k is None else max(asked.top_k, 0),
        "min_p": asked.min_p,
        "presence_penalty": asked.presence_penalty,
        "frequency_penalty": asked.frequency_penalty,
        "repetition_penalty": asked.repetition_penalty,
        "logit_bias": _bias(asked, limits),
        "min_tokens": asked.min_tokens,
    }
    return {name: value for name, value in given.items() if value is not None}


def _bias(asked: Asked, limits: Limits) -> dict[int, float] | None:
    if not asked.logit_bias:
        return None
    if len(asked.logit_bias) > limits.biases:
        raise of_field("logit_bias", f"{len(asked.logit_bias)} entries; give at most {limits.biases}")
    for token in asked.logit_bias:
        if not (token.isascii() and token.isdigit() and len(token) < 12):
            raise of_field("logit_bias", f"{token!r:.40} is no token id; give ids, as strings of digits")
    return {int(token): bias for token, bias in asked.logit_bias.items()}


def _stops(asked: Asked, limits: Limits) -> tuple[str, ...]:
    stops = (asked.stop,) if isinstance(asked.stop, str) else tuple(asked.stop or ())
    if len(stops) > limits.stops:
        raise of_field("stop", f"{len(stops)} strings; give at most {limits.stops}")
    for each in stops:
        if not 0 < len(each) <= limits.stop_characters:
            raise of_field("stop", f"{each!r:.20}; give strings of 1 to {limits.stop_characters} characters")
    return stops


def _check_bounds(asked: Asked, limits: Limits) -> None:
    """Refuse values beyond the server's bounds on how an answer is decoded."""
    diffusion = asked.diffusion or Diffusion()
    if diffusion.block_size is not None and diffusion.block_size > limits.block_size:
        raise of_field("diffusion.block_size", f"{diffusion.block_size}; give at most {limits.block_size}")
    if diffusion.threshold is not None and diffusion.threshold < limits.least_threshold:
        raise of_field("diffusion.threshold", f"{diffusion.threshold}; give at least {limits.least_threshold}")
    post = None if diffusion.editing is None else diffusion.editing.max_post_steps
    if post is not None and post > limits.post_steps:
        raise of_field("diffusion.editing.max_post_steps", f"{post}; give at most {limits.post_steps}")


def _settings(
    name: str, settings: Mapping[str, Any], own: Mapping[str, Any], drawing: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the settings of a policy.

    Args:
        name: of the policy.
        settings: given with its name.
        own: how the server draws tokens.
        drawing: how the request does; it has the last word.
    """
    known = _KNOWN.get(name, set[str]())
    for key, value in drawing.items():
        if key not in known and value != _NEUTRAL[key]:
            raise of_field(key, f"the policy {name!r} has no such setting; leave it out, or choose another policy")
    own = {key: value for key, value in own.items() if key in known and value != _NEUTRAL[key]}
    return {**own, **settings, **{key: value for key, value in drawing.items() if key in known}}


def _check_settings(settings: Mapping[str, Any], limits: Limits | None) -> None:
    """Refuse settings that no request and no server chooses, and those beyond the bounds of requests, if given."""
    for key in _OURS:
        if key in settings:
            raise of_field("diffusion.policy", f"{key} is not for requests; leave it out")
    if limits is None:
        return
    most: dict[str, float] = dict(_MOST)
    most |= dict.fromkeys(("max_post_steps", "max_post_edit_steps"), limits.post_steps)
    most |= dict.fromkeys(("block_size", "block_length", "window", "start"), limits.block_size)
    for key, value in settings.items():
        number = value if isinstance(value, int | float) else None
        if number is not None and abs(number) > most.get(key, _ANY):
            raise of_field("diffusion.policy", f"{key} {value!r:.40}; give at most {most.get(key, _ANY):g}")
        if key == "threshold" and number is not None and number < limits.least_threshold:
            raise of_field("diffusion.policy", f"threshold {value}; give at least {limits.least_threshold}")
