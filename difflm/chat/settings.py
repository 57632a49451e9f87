"""What a person chose about decoding, by name: checked when it is chosen, kept apart from what nobody chose."""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from difflm.decode.policies.named import parse_policy
from difflm.decode.request import SamplingParams
from difflm.errors import RequestError

_OTHERS = ("n", "logprobs", "guesses", "constraint")
"""Fields of `SamplingParams` that mean nothing in a conversation, or are no text."""
NAMES = tuple(each.name for each in dataclasses.fields(SamplingParams) if each.name not in _OTHERS)
ALIASES: Mapping[str, str] = {"max_tokens": "max_new_tokens"}
UNSET = ("default", "null")
"""Values that take a choice back."""


def suggestion(word: str, known: Sequence[str], otherwise: str) -> str:
    """Return what to do about a word that is not known.

    Args:
        word: as given.
        known: words; the nearest is named.
        otherwise: where none is near.
    """
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.75)
    return f"did you mean {near[0]}?" if near else otherwise


@dataclass(frozen=True, slots=True)
class Settings:
    """Fields of `SamplingParams` that were chosen.

    Attributes:
        given: name -> value; a policy as its line (`NAME:SETTING=VALUE,...`).
    """

    given: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def params(self) -> SamplingParams:
        """Return the parameters, with our defaults where nothing was chosen.

        Raises:
            RequestError: values that cannot be used, or not beside each other.
        """
        values = dict(self.given)
        if "policy" in values:
            values["policy"] = parse_policy(values["policy"])
        return SamplingParams(**values)

    def changed(self, name: str, value: str) -> Settings:
        """Return the settings with one of them changed.

        Args:
            name: of a setting; "max_tokens" is "max_new_tokens".
            value: JSON, or a text as it is; "default" takes a choice back.

        Raises:
            RequestError: no such setting, or a value that it does not take.
        """
        name = known_name(name)
        rest = {key: kept for key, kept in self.given.items() if key != name}
        found = Settings(rest if value in UNSET else {**rest, name: _parsed(name, value)})
        found.params()
        return found

    def shown(self, name: str, unset: str | None) -> str:
        """Return the value of a setting, to be read.

        Args:
            name: one of `NAMES`.
            unset: whose value it is where nothing was chosen; None: our own default.
        """
        if name in self.given:
            value = self.given[name]
            return value if isinstance(value, str) else json.dumps(value)
        if unset is not None:
            return unset
        value = SamplingParams().value_of(name)
        return "the model's" if value is None and name in ("block_size", "threshold", "decoding") else json.dumps(value)


def known_name(name: str) -> str:
    """Return the name of a setting.

    Raises:
        RequestError: there is none.
    """
    found = ALIASES.get(name, name)
    if found not in NAMES:
        known = sorted((*NAMES, *ALIASES))
        all_of_them = f"there are {', '.join(known)}"
        raise RequestError(f"/set: no setting {name!r}; {suggestion(name, known, all_of_them)}")
    return found


def _parsed(name: str, text: str) -> Any:
    """Return a value as `SamplingParams` takes it; what is wrong with it is said there."""
    if name in ("policy", "decoding"):
        return text
    try:
        value: Any = json.loads(text)
    except ValueError:
        value = text
    if name in ("stop", "stop_token_ids"):
        return (
            tuple(value)
            if isinstance(value, list)
            else (text if name == "stop" and not isinstance(value, str) else value,)
        )
    if name == "logit_bias" and isinstance(value, dict):
        try:
            return {int(token): bias for token, bias in value.items()}
        except ValueError:
            raise RequestError(f'logit_bias: {text!r:.60} has keys that are no ids; give e.g. {{"42": -5}}') from None
    return value
