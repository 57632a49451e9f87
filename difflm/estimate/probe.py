"""A few steps of a run on few layers in a process of their own, whose memory nothing else has touched.

    python -m difflm.estimate.probe FILL < config.yaml

prints the `Speed` of the run as JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict

import torch

from difflm.errors import DifflmError
from difflm.estimate.facts import model_facts
from difflm.estimate.memory import parameter_memory
from difflm.estimate.speed import Speed, measured_speed, step_operations
from difflm.estimate.workload import workload_of
from difflm.training.build import set_threads
from difflm.training.config import TrainConfig
from difflm.training.config_io import config_from_tree, dump_config, parse_yaml


def probe(config: TrainConfig, *, fill: float) -> Speed:
    """Return the speed of a run, measured in a fresh process.

    Args:
        config: the run.
        fill: share of row positions that hold a token.

    Raises:
        DifflmError: that process failed; its last line is the message.
    """
    command = [sys.executable, "-m", "difflm.estimate.probe", repr(fill)]
    done = subprocess.run(command, input=dump_config(config), capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise DifflmError(f"estimate: the steps on few layers failed ({last}); --no-measure leaves them out")
    found = json.loads(done.stdout.splitlines()[-1])
    return Speed(**{**found, "micro_steps": tuple(found["micro_steps"])})


def main(fill: float, text: str) -> None:
    """Measure the run that a YAML text describes and print its speed.

    Args:
        fill: share of row positions that hold a token.
        text: the configuration.
    """
    config = config_from_tree(parse_yaml(text, where="standard input"))
    set_threads(config.threads)
    facts = model_facts(config)
    work = workload_of(config, facts.parametrisation, mask_id=facts.mask_id, fill=fill)
    active = parameter_memory(facts.model, config.optimizer, dtype=torch.float32).active
    recompute = config.activation_checkpointing
    operations = [
        step_operations(facts.model, stage.micro_batch, active=active, recompute=recompute) for stage in work.stages
    ]
    print(json.dumps(asdict(measured_speed(config, facts.model, work.stages, operations))))


if __name__ == "__main__":
    main(float(sys.argv[1]), sys.stdin.read())
