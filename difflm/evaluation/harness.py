"""Tasks of lm-evaluation-harness, answered by a model of ours: nothing is downloaded.

The harness makes the requests, scores the answers and adds up; `Answers` answers. Its modules are imported when an
evaluation starts (extra [eval]).
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import importlib.metadata
import logging
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from difflm.bench.environment import environment
from difflm.checkpoints.fields import one_line
from difflm.errors import ConfigError
from difflm.evaluation.answers import Answers, AnswerSettings
from difflm.evaluation.lm_eval import lm_class
from difflm.evaluation.tasks import GYM, Task, task_of

if TYPE_CHECKING:
    from difflm.checkpoints.loading import LoadedModel

OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_EVALUATE_OFFLINE")
BOOTSTRAP = 1000
_VERSIONED = ("lm-eval", "datasets", "reasoning-gym")


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What is asked, and how.

    Attributes:
        tasks: names, YAML files, or what `difflm.evaluation.tasks.task_of` makes a task of.
        settings: how requests are answered.
        include: folders with further tasks in the harness's YAML form.
        limit: questions per task, the first ones; None: all of them (500 of a generated task).
        num_fewshot: worked examples before each question; None: the task's own number.
        chat_template: put questions into the model's chat template.
    """

    tasks: Sequence[str]
    settings: AnswerSettings = field(default_factory=AnswerSettings)
    include: Sequence[Path] = ()
    limit: int | None = None
    num_fewshot: int | None = None
    chat_template: bool = False


def evaluate(
    loaded: LoadedModel, evaluation: Evaluation, *, say: Callable[[str], None] = lambda line: None
) -> dict[str, Any]:
    """Return the results of all tasks: metrics with standard errors, forwards, TPF and TPS, and all that led to them.

    Args:
        loaded: model and tokenizer.
        evaluation: what is asked.
        say: progress, a line at a time.

    Raises:
        ConfigError: the extra is not installed, an unknown task, or one whose data are not on this machine.
    """
    harness = _harness()
    model = lm_class()(loaded, evaluation.settings, say=say)
    tasks = _tasks(evaluation, say)
    seed = evaluation.settings.params.seed
    for task in tasks["tasks"].values():
        # A task that says 0 means it: its questions hold their own examples.
        own = task.get_config("num_fewshot")
        shots = own if evaluation.num_fewshot is None or own == 0 else evaluation.num_fewshot
        task.set_config("num_fewshot", shots or 0)
        task.set_fewshot_seed(seed=seed)
    # The harness prints what it does to stdout, where results go.
    with contextlib.redirect_stdout(sys.stderr):
        found = harness.evaluate(
            model,
            tasks,
            limit=evaluation.limit,
            bootstrap_iters=BOOTSTRAP,
            log_samples=False,
            apply_chat_template=evaluation.chat_template,
            fewshot_as_multiturn=True,
        )
    return _results(loaded, evaluation, model.answers, found)


def _harness() -> Any:
    """Return the harness, with its ways to the network closed."""
    for name in OFFLINE:
        os.environ[name] = "1"
    try:
        module = importlib.import_module("lm_eval.evaluator")
        datasets = importlib.import_module("datasets")
        hub = importlib.import_module("huggingface_hub.constants")
    except ImportError as error:
        raise ConfigError(f"eval: {error.name} is not installed; pip install 'difflm[eval]'") from None
    # Both read their environment once, and may have been imported before.
    for namespace in (vars(datasets.config), vars(hub)):
        namespace["HF_HUB_OFFLINE"] = True
    datasets.disable_progress_bars()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    return module


def _tasks(evaluation: Evaluation, say: Callable[[str], None]) -> dict[str, Any]:
    """Return the tasks in the harness's form, with their data."""
    manager_of = importlib.import_module("lm_eval.tasks").TaskManager
    include = [str(folder) for folder in evaluation.include]
    for folder in evaluation.include:
        if not folder.is_dir():
            raise ConfigError(f"include: {folder} is no folder; give one with tasks in YAML files")
    manager = manager_of(include_path=include or None, include_defaults=False)
    own = {name: task_of(name) for name in evaluation.tasks if name.startswith(f"{GYM}:") or name.endswith(".jsonl")}
    names = [name for name in evaluation.tasks if name not in own]
    unknown = [name for name in names if name not in manager.all_tasks and not Path(name).is_file()]
    for name in unknown:
        if name.endswith((".yaml", ".yml")):
            raise ConfigError(f"tasks: there is no file {name}; give the path of a task's YAML file")
    if unknown:
        say(f"{', '.join(unknown)}: looking through the harness's own tasks (half a minute)")
        manager = manager_of(include_path=include or None)
    for name in unknown:
        if name not in manager.all_tasks:
            near = difflib.get_close_matches(name, manager.all_tasks, n=3)
            hint = f"did you mean {', '.join(near)}?" if near else "give a YAML file, or its folder with --include-path"
            raise ConfigError(f"tasks: there is no task {name!r}; {hint}")
    specs = [*names, *(_generated_task(task, evaluation) for task in own.values())]
    every = [each for spec in specs for each in _loaded(manager, spec)]
    try:
        return manager.load(every)
    except ValueError as error:  # two groups share a task
        raise ConfigError(f"tasks: {one_line(error)}; name it once") from None


def _loaded(manager: Any, spec: Any) -> list[Any]:
    """Return the task, group or tasks of a tag that a name or an inline configuration stands for, with their data."""
    name = spec["task"] if isinstance(spec, dict) else spec
    try:
        found = manager.load([spec])
    except (ConnectionError, FileNotFoundError) as error:
        raise ConfigError(
            f"tasks: {name!r} needs data that are not on this machine ({one_line(error)}), and nothing is downloaded; "
            "name local files in its dataset_kwargs"
        ) from None
    # A task is a program of its author: templates, functions, data in any state.
    except Exception as error:
        raise ConfigError(f"tasks: {name!r} cannot be used ({one_line(error)}); mend its file") from None
    for each, task in found["tasks"].items():
        refused = {
            "unsafe_code": "runs code that the model writes",
            "doc_to_image": "needs pictures",
            "doc_to_audio": "needs sound",
        }
        for key, what in refused.items():
            if task.get_config(key):
                raise ConfigError(f"tasks: {each!r} {what}, which is not done here; leave it out")
    return [next(iter(found["groups"].values()))] if found["groups"] else list(found["tasks"].values())


def _generated_task(task: Task, evaluation: Evaluation) -> dict[str, Any]:
    """Return a task of ours as the harness's configuration of one."""
    items = task.items(evaluation.limit, evaluation.settings.params.seed)
    rows = [{"number": number, "prompt": each.prompt, "reference": each.reference} for number, each in enumerate(items)]

    def made(**_: Any) -> dict[str, Any]:
        return {"test": importlib.import_module("datasets").Dataset.from_list(rows)}

    def scored(row: dict[str, Any], answers: Sequence[str]) -> dict[str, float]:
        return {"score": task.score(items[row["number"]], answers[0])}

    return {
        "task": task.name,
        "custom_dataset": made,
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "prompt",
        "doc_to_target": "reference",
        "process_results": scored,
        "generation_kwargs": {"until": []},
        "metric_list": [{"metric": "score", "aggregation": "mean", "higher_is_better": True}],
    }


def _results(loaded: LoadedModel, evaluation: Evaluation, answers: Answers, found: dict[str, Any]) -> dict[str, Any]:
    """Return what is written to the results file."""
    config, settings = loaded.config, evaluation.settings
    tasks: dict[str, Any] = {}
    for name, values in found["results"].items():
        tasks[name] = {
            "metrics": metrics(values, found["higher_is_better"].get(name, {})),
            "questions": found["n-samples"].get(name, {}).get("effective"),
            "num_fewshot": found["n-shot"].get(name),
            "version": found["versions"].get(name),
            "cost": answers.usage[name].as_dict() if name in answers.usage else None,
            "config": found["configs"].get(name),
        }
    return {
        "model": {
            "path": str(loaded.path),
            "dtype": str(loaded.model.embedding.weight.dtype).removeprefix("torch."),
            "device": str(loaded.model.embedding.weight.device),
            "mask_token_id": config.mask_token_id,
            **asdict(config.parametrisation),
        },
        "settings": {
            "sampling": asdict(settings.params),
            "policy": type(settings.params.policy).__name__ if settings.params.policy is not None else "native",
            "likelihood": answers.likelihood,
            "block_size": answers.block_size,
            "samples": settings.samples,
            "seed": settings.params.seed,
            "limit": evaluation.limit,
            "num_fewshot": evaluation.num_fewshot,
            "chat_template": evaluation.chat_template,
            "max_requests": settings.max_requests,
            "batch_tokens": settings.batch_tokens,
        },
        "versions": environment() | {name: importlib.metadata.version(name) for name in _VERSIONED},
        "tasks": tasks,
    }


def metrics(values: Mapping[str, Any], higher_is_better: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the metrics of a task: value, standard error over its questions (None if unknown), and which way is up.

    Args:
        values: of the harness: "METRIC,FILTER" and "METRIC_stderr,FILTER".
        higher_is_better: by metric.
    """
    found: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        name, comma, kind = key.partition(",")
        if not comma or name.endswith("_stderr"):
            continue
        error = values.get(f"{name}_stderr,{kind}")
        found[name if kind == "none" else f"{name} ({kind})"] = {
            "value": value,
            "standard_error": error if isinstance(error, float) and math.isfinite(error) else None,
            "higher_is_better": higher_is_better.get(name),
        }
    return found
