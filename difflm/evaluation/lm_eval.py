"""Our models in lm-evaluation-harness's own command and functions, under the name "difflm".

`python -m difflm.evaluation.lm_eval` is the harness's command with that name known. From Python: `DifflmLM`, which
derives from a class of the harness and is therefore made when it is first asked for (extra [eval]).
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib
import logging
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Self

import torch

from difflm.checkpoints.loading import load_model
from difflm.decode.policies.named import parse_policy
from difflm.decode.request import SamplingParams
from difflm.errors import ConfigError, DifflmError
from difflm.evaluation.answers import Answers, AnswerSettings

if TYPE_CHECKING:
    from difflm.checkpoints.loading import LoadedModel

NAME = "difflm"
LOADING = ("device", "dtype", "weights", "revision", "adapter")
ANSWERING = ("likelihood", "samples", "batch_tokens", "max_requests")
SAMPLING = tuple(each.name for each in dataclasses.fields(SamplingParams))


def __getattr__(name: str) -> Any:
    """Return `DifflmLM`, made when it is first asked for."""
    if name == "DifflmLM":
        return lm_class()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class Asked:
    """What the harness asks of a model, answered by `Answers`; `lm_class` makes a model of the harness of it.

    Args:
        loaded: model and tokenizer.
        settings: how requests are answered, where their task does not say otherwise; None takes the defaults.
        say: is told what is being done, a line at a time.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        settings: AnswerSettings | None = None,
        *,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        super().__init__()
        self.answers = Answers(loaded, settings or AnswerSettings(), say=say)

    @classmethod
    def create_from_arg_obj(cls, arg_dict: Mapping[str, Any], additional_config: Any = None) -> Self:
        """Return the model of --model_args; of the harness's own options only --device counts."""
        log = logging.getLogger("lm_eval.difflm")
        given = dict(arg_dict)
        if given.get("device") is None:
            given["device"] = (additional_config or {}).get("device")
            # The harness asks for its first GPU where nobody names a device.
            if str(given["device"]).startswith("cuda") and not torch.cuda.is_available():
                log.warning("difflm: there is no CUDA device here; the model runs on the CPU")
                given["device"] = "cpu"
        return cls(load_from(given), settings_from(given), say=log.info)

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: Any = None) -> Self:
        """Return the model of NAME=VALUE,NAME=VALUE."""
        parse = importlib.import_module("lm_eval.utils").simple_parse_args_string
        return cls.create_from_arg_obj(parse(arg_string), additional_config)

    @property
    def tokenizer_name(self) -> str:
        """Under which the harness keeps rendered requests."""
        return str(self.answers.loaded.path)

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        """Return (log-likelihood in nats, whether greedy decoding writes it) of (context, continuation) pairs."""
        return self.answers.loglikelihood(requests)

    def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
        """Return the log-likelihood of whole texts, nats."""
        return self.answers.loglikelihood_rolling(requests)

    def generate_until(self, requests: list[Any]) -> list[str]:
        """Return what the model writes behind contexts."""
        return self.answers.generate_until(requests)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Return a conversation in the model's chat template."""
        return self.answers.chat(chat_history, open_turn=add_generation_prompt)

    def chat_template(self, chat_template: bool | str = False) -> str:
        """Return the template, under which the harness keeps rendered requests."""
        return str(self.answers.loaded.require_tokenizer().chat_template or "")


@functools.cache
def lm_class() -> Any:
    """Return the class `DifflmLM`, of the harness's models; from then on the harness knows its name.

    Raises:
        ConfigError: the harness is not installed.
    """
    register()
    base = importlib.import_module("lm_eval.api.model").LM

    class DifflmLM(Asked, base):
        __doc__ = Asked.__doc__

    return DifflmLM


def register() -> None:
    """Make the name known to the harness of this process.

    Raises:
        ConfigError: the harness is not installed.
    """
    try:
        registry = importlib.import_module("lm_eval.api.registry").model_registry
        # It brings the harness's own names, but only to a registry that is empty.
        importlib.import_module("lm_eval.models")
    except ImportError as error:
        raise ConfigError(f"eval: {error.name} is not installed; pip install 'difflm[eval]'") from None
    if NAME not in registry:
        registry.register(NAME, target="difflm.evaluation.lm_eval:DifflmLM")


def load_from(given: Mapping[str, Any]) -> LoadedModel:
    """Return the model that arguments name.

    Args:
        given: "pretrained" (folder, file or hub id), arguments of `difflm.load_model`, and those of `settings_from`.

    Raises:
        ConfigError: an argument that is not known, or no model.
        CheckpointError: the model cannot be loaded.
    """
    for name in given:
        known = ("pretrained", *LOADING, *ANSWERING, *SAMPLING)
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"use {', '.join(known)}"
            raise ConfigError(f"model_args: {name!r} is not known; {hint}")
    if not given.get("pretrained"):
        raise ConfigError("model_args: pretrained is missing; give pretrained=FOLDER of a model")
    return load_model(str(given["pretrained"]), **_of(given, LOADING))


def settings_from(given: Mapping[str, Any]) -> AnswerSettings:
    """Return how requests are answered.

    Args:
        given: fields of `AnswerSettings` and of its `SamplingParams`; a policy as NAME or NAME:SETTING=VALUE,...

    Raises:
        RequestError: a value that cannot be used.
    """
    sampling = _of(given, SAMPLING)
    if isinstance(sampling.get("policy"), str):
        sampling["policy"] = parse_policy(sampling["policy"])
    return AnswerSettings(params=SamplingParams(**sampling), **_of(given, ANSWERING))


def _of(given: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """Return the arguments of these names; None stands for the default of any."""
    return {name: given[name] for name in names if given.get(name) is not None}


def main() -> int:
    """Run the harness's command and return its exit code; what a user can mend is one line, and 2."""
    try:
        register()
        importlib.import_module("lm_eval.__main__").cli_evaluate()
    except DifflmError as error:
        print(f"difflm: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
