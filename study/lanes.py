"""Training runs in processes of their own, some at a time: one run on so small a model does not keep two cores busy."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import TypeVar

from difflm import DifflmError, train
from difflm.display import training_observer
from difflm.display.progress import TrainingLines
from difflm.training.config import TrainConfig

T = TypeVar("T")


class NamedLines(TrainingLines):
    """Progress of one of several runs: every line begins with its name.

    Args:
        name: of the run.
    """

    def __init__(self, name: str) -> None:
        super().__init__(sys.stderr, interval=30.0)
        self.name = name

    def message(self, text: str) -> None:
        """Write a line."""
        super().message(f"{self.name}: {text}")


def _trained(answer: Connection, name: str, config: TrainConfig) -> None:
    """Train, or go on, in a process of its own; send the last checkpoint, or what went wrong."""
    try:
        answer.send(train(config, resume="auto", observer=NamedLines(name)))
    except (DifflmError, KeyboardInterrupt) as error:
        answer.send(error)


class Lanes:
    """Runs several trainings at a time, each with its share of the cores.

    Args:
        count: of trainings; 1 does one after the other, in this process and with all cores.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._threads = max((os.cpu_count() or 1) // count, 1)
        self._running: set[SpawnProcess] | None = None

    def together(self, works: Sequence[Callable[[], T]]) -> list[T]:
        """Do works, as many at a time as there are lanes, and return what they give, in their order.

        What `train` is asked for by them is done in processes; anything else shares this one. Where one of them fails,
        or the study is interrupted, the trainings are told to save what they have and to end.
        """
        if self.count == 1:
            return [work() for work in works]
        self._running = set()
        with ThreadPoolExecutor(self.count) as threads:
            try:
                return list(threads.map(lambda work: work(), works))
            except BaseException:
                threads.shutdown(wait=False, cancel_futures=True)
                for process in tuple(self._running):
                    process.terminate()
                raise
            finally:
                self._running = None

    def train(self, name: str, config: TrainConfig) -> Path:
        """Train, or go on; return the last checkpoint.

        Args:
            name: of the run.
            config: of the run.

        Raises:
            DifflmError: what the run raises, or that its process died.
        """
        running = self._running
        if running is None:
            return train(config, resume="auto", observer=training_observer())
        context = multiprocessing.get_context("spawn")
        receiver, sender = context.Pipe(duplex=False)
        config = replace(config, threads=self._threads)
        process = context.Process(target=_trained, args=(sender, name, config), daemon=True)
        process.start()
        running.add(process)
        sender.close()
        try:
            answer: Path | BaseException = receiver.recv()
        except EOFError:
            raise DifflmError(f"{name}: its process ended without an answer; the lines above may say why") from None
        finally:
            process.join()
            running.discard(process)
        if isinstance(answer, BaseException):
            raise answer
        return answer
