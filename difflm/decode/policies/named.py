"""`difflm.policy`: policies by name, with the settings of the system they reproduce."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any, cast, get_args

from difflm.decode.checks import check_bias, check_number, finite
from difflm.decode.drawing import Draw
from difflm.decode.policies.base import Policy
from difflm.decode.policies.dinfer import Credit, Hierarchy, Threshold
from difflm.decode.policies.hf import Hf20, Hf20Greedy, Hf21
from difflm.decode.policies.native import Native
from difflm.decode.policies.sglang import JointThreshold, LowConfidence
from difflm.decode.policies.verified import Check, DraftTokens, Verified
from difflm.diffusion.acceptance import Acceptance, EntropyAcceptance, FixedAcceptance, ThresholdAcceptance
from difflm.errors import RequestError

LEAST_INTEGER = {
    "block_length": 1,
    "block_size": 1,
    "gen_length": 0,
    "steps": 1,
    "minimal_topk": 1,
    "num_to_transfer": 1,
    "max_post_steps": 0,
    "max_post_edit_steps": 0,
    "top_k": 0,
    "eos_id": 0,
    "mask_id": 0,
    "max_forwards": 1,
    "min_accept": 1,
    "fixed": 1,
    "min_tokens": 0,
    "window": 2,
    "start": 2,
}
"""Settings that are integers, and the smallest value of each."""
BOOLEANS = frozenset({"eos_early_stop", "early_stop", "use_credit", "fused", "fallback"})
SIGNED = frozenset({"presence_penalty", "frequency_penalty"})
"""Settings that are numbers of either sign."""
CHOICES: dict[str, tuple[str, ...]] = {
    "algorithm": ("LowConfidence", "JointThreshold"),
    "parallel_decoding": ("threshold", "hierarchy"),
    "check": get_args(Check),
    "draft": get_args(DraftTokens),
}


def policy(name: str, **settings: Any) -> Policy | Verified:
    """Return a decoding policy, for `SamplingParams(policy=...)`.

    Args:
        name: "hf20" (the code released with LLaDA2.0), "hf20-greedy" (the same with the arg-max at temperature 0),
            "hf21" (LLaDA2.1, with token editing), "sglang", "dinfer", "native", or "verified" (left to right, drafted
            and verified).
        settings: of that system, under its own names; what is not given has its default there. docs/decoding.md
            lists them.

    Raises:
        RequestError: an unknown name or setting, or a value out of range.
    """
    match name:
        case "hf20":
            return _made(Hf20, name, settings)
        case "hf20-greedy":
            return _made(Hf20Greedy, name, settings)
        case "hf21":
            return _made(Hf21, name, settings)
        case "sglang":
            return _sglang(settings)
        case "dinfer":
            return _dinfer(settings)
        case "native":
            return _native(settings)
        case "verified":
            return made_verified(settings)
        case _:
            names = "hf20, hf20-greedy, hf21, sglang, dinfer, native, verified"
            raise RequestError(f"policy: {name!r} is unknown; choose one of {names}")


def parse_policy(text: str) -> Policy | Verified:
    """Return the policy that a line names: NAME, or NAME:SETTING=VALUE,SETTING=VALUE.

    Raises:
        RequestError: as `policy`, or for another form.
    """
    name, settings = policy_settings(text)
    return policy(name, **settings)


def policy_settings(text: str) -> tuple[str, dict[str, Any]]:
    """Return name and settings of NAME:SETTING=VALUE,SETTING=VALUE; they are not checked.

    Raises:
        RequestError: another form.
    """
    name, _, rest = text.partition(":")
    settings: dict[str, Any] = {}
    for part in filter(None, rest.split(",")):
        key, equals, value = part.partition("=")
        if not equals:
            raise RequestError(f"policy {name}: {part!r} is no setting; write NAME:SETTING=VALUE,SETTING=VALUE")
        settings[key] = _value(value)
    return name, settings


def _value(text: str) -> Any:
    """Return a number, a truth value, None, or the text itself."""
    try:
        return json.loads({"True": "true", "False": "false", "None": "null"}.get(text, text))
    except json.JSONDecodeError:
        return text


def _made(kind: type[Any], name: str, settings: Mapping[str, Any]) -> Any:
    """Return the policy of a class, its settings checked."""
    check(name, settings, {each.name for each in dataclasses.fields(kind)})
    defaults = {each.name: each.default for each in dataclasses.fields(kind)}
    return kind(**{key: defaults[key] if value is None else value for key, value in settings.items()})


def check(name: str, settings: Mapping[str, Any], known: set[str], *, where: str | None = None) -> None:
    """Refuse settings that a policy does not have, and values out of range; None is the default of any.

    Args:
        name: of the policy, for errors.
        settings: as given.
        known: names of the policy's settings.
        where: they are from, for errors; None: they were given with the name.

    Raises:
        RequestError: one line that names setting, value and fix.
    """
    source = f"policy {name}" if where is None else where
    for key, value in settings.items():
        if key not in known:
            raise RequestError(f"{source}: it has no setting {key!r}; its settings are {', '.join(sorted(known))}")
        if value is None:
            continue
        said = f"{source}: {key} {value!r} cannot be used"
        if key in BOOLEANS:
            if not isinstance(value, bool):
                raise RequestError(f"{said}; give True or False")
        elif key in CHOICES:
            if value not in CHOICES[key]:
                raise RequestError(f"{said}; choose one of {', '.join(CHOICES[key])}")
        elif key in LEAST_INTEGER:
            if isinstance(value, bool) or not isinstance(value, int) or value < LEAST_INTEGER[key]:
                raise RequestError(f"{said}; give an integer >= {LEAST_INTEGER[key]}")
        elif key == "logit_bias":
            check_bias(f"{source}: {key}", value)
        elif key in SIGNED:
            check_number(f"{source}: {key}", value, low=-math.inf)
        elif isinstance(value, bool) or not isinstance(value, int | float) or not finite(value) or value < 0:
            off = " (1 switches editing off, 0 always edits)" if key.startswith("edit") else ""
            raise RequestError(f"{said}; give a finite number >= 0{off}")
        elif (key == "top_p" and not 0 < value <= 1) or (key == "min_p" and value > 1):
            raise RequestError(f"{said}; give a number above 0, at most 1")
        elif key == "repetition_penalty" and value == 0:
            raise RequestError(f"{said}; give a number above 0")


def made_verified(settings: Mapping[str, Any]) -> Verified:
    """Return the policy "verified" with its settings; those of a draw are among them.

    Args:
        settings: as given.

    Raises:
        RequestError: as `policy`.
    """
    drawing = {each.name for each in dataclasses.fields(Draw)} - {"suppressed", "entropy", "keyed"}
    own = {each.name for each in dataclasses.fields(Verified)} - {"draw"}
    check("verified", settings, drawing | own)
    given = {key: value for key, value in settings.items() if value is not None}
    if "logit_bias" in given:
        given["logit_bias"] = tuple(sorted(given["logit_bias"].items()))
    draw = Draw(**{key: value for key, value in given.items() if key in drawing})
    return Verified(draw=draw, **{key: value for key, value in given.items() if key in own})


def drafting_settings(settings: object, *, where: str) -> Verified:
    """Return the policy "verified" as a model's files set it: how it drafts, not how tokens are drawn.

    Args:
        settings: as read.
        where: they are from, for errors.

    Raises:
        RequestError: no object, an unknown setting, or a value out of range.
    """
    if not isinstance(settings, Mapping):
        raise RequestError(f"{where}: {settings!r} cannot be used; write an object of settings")
    given = cast("Mapping[str, Any]", settings)
    check("verified", given, {each.name for each in dataclasses.fields(Verified)} - {"draw", "min_tokens"}, where=where)
    return Verified(**{key: value for key, value in given.items() if value is not None})


def _sglang(settings: Mapping[str, Any]) -> Policy:
    joint = {"edit_threshold", "max_post_edit_steps", "penalty_lambda"} & settings.keys()
    algorithm = settings.get("algorithm") or ("JointThreshold" if joint else "LowConfidence")
    kind = {"LowConfidence": LowConfidence, "JointThreshold": JointThreshold}.get(algorithm)
    if kind is None:
        check("sglang", settings, {*settings})
    assert kind is not None
    return _made(kind, f"sglang ({algorithm})", {key: value for key, value in settings.items() if key != "algorithm"})


def _dinfer(settings: Mapping[str, Any]) -> Policy:
    check("dinfer", {key: settings[key] for key in ("parallel_decoding", "use_credit") if key in settings}, {*settings})
    hierarchy = settings.get("parallel_decoding") == "hierarchy"
    if hierarchy and settings.get("use_credit"):
        raise RequestError("policy dinfer: use_credit True has no effect on 'hierarchy' there; leave one of them out")
    kind = Hierarchy if hierarchy else Credit if settings.get("use_credit") else Threshold
    rest = {key: value for key, value in settings.items() if key not in ("parallel_decoding", "use_credit")}
    return _made(kind, f"dinfer ({kind.__name__})", rest)


def _native(settings: Mapping[str, Any]) -> Policy:
    strategies = {"threshold", "min_accept", "fixed", "entropy_bound"}
    fields = {each.name for each in dataclasses.fields(Native)} - {"acceptance"}
    check("native", settings, fields | strategies)
    given = {key for key in strategies if settings.get(key) is not None}
    acceptance: Acceptance
    if len(given - {"min_accept"}) > 1 or ("min_accept" in given and given & {"fixed", "entropy_bound"}):
        raise RequestError(f"policy native: {' and '.join(sorted(given))} are different strategies; give one of them")
    if "fixed" in given:
        acceptance = FixedAcceptance(settings["fixed"])
    elif "entropy_bound" in given:
        acceptance = EntropyAcceptance(settings["entropy_bound"])
    else:
        acceptance = ThresholdAcceptance(
            0.95 if settings.get("threshold") is None else settings["threshold"], settings.get("min_accept") or 1
        )
    rest = {key: value for key, value in settings.items() if key in fields}
    return dataclasses.replace(_made(Native, "native", rest), acceptance=acceptance)
