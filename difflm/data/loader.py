"""The order in which rows are drawn: a pure function of (seed, epoch), resumable from two counters."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch

from difflm.errors import DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class LoaderState:
    """Where a loader stands; all there is to save.

    Attributes:
        epoch: passes over the data that are complete.
        position: rows of the current epoch that are already drawn, in [0, number of rows).
    """

    epoch: int = 0
    position: int = 0


class Draw(NamedTuple):
    """Rows in the order they were drawn. A draw may cross the end of an epoch, so each row has its own epoch.

    In a mixture the epoch of a row is the pass over its source.
    """

    epoch_B: tuple[int, ...]
    row_B: tuple[int, ...]


class Order(Protocol):
    """Which row comes at which position of an epoch; `RowOrder`, or `difflm.data.mixture.MixtureOrder`."""

    @property
    def num_rows(self) -> int:
        """Return the positions of an epoch."""
        ...

    def epoch(self, epoch: int) -> tuple[int, ...]:
        """Return the row number at each position of an epoch."""
        ...

    def passes(self, epoch: int) -> tuple[int, ...]:
        """Return the pass over its data at each position of an epoch; it decides the row's noise."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RowOrder:
    """Which row comes at which position of an epoch.

    Attributes:
        num_rows: rows in the data set.
        seed: another seed is another order.
        shuffle: False draws the rows in order, in every epoch.
    """

    num_rows: int
    seed: int = 0
    shuffle: bool = True

    def __post_init__(self) -> None:
        """Check the number of rows."""
        if self.num_rows < 1:
            raise DataError(f"data: {self.num_rows} rows cannot be drawn from; give at least one document")

    def epoch(self, epoch: int) -> tuple[int, ...]:
        """Return the row indices of one epoch: each row exactly once, a pure function of (seed, epoch)."""
        if not self.shuffle:
            return tuple(range(self.num_rows))
        # Hashed, so that (seed, epoch) and (seed + 1, epoch - 1) have nothing in common.
        digest = hashlib.blake2b(f"row order:{self.seed}:{epoch}".encode("ascii"), digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
        return tuple(torch.randperm(self.num_rows, generator=generator).tolist())

    def passes(self, epoch: int) -> tuple[int, ...]:
        """Return the epoch itself for every position: each row is drawn once an epoch."""
        return (epoch,) * self.num_rows


class Loader:
    """Draws rows without end, epoch after epoch.

    Drawing a rows and then b rows gives the same rows as drawing a + b at once, and a loader made from `state`
    continues exactly where the other one stood; hence neither batch size nor an interruption changes what is
    seen. There are no workers, no prefetch and no random state.
    """

    def __init__(self, order: Order, state: LoaderState | None = None) -> None:
        """Start at `state`.

        Args:
            order: which row comes when.
            state: where to continue; None starts at the first row of epoch 0.

        Raises:
            DataError: a state that does not belong to a data set of this size.
        """
        state = state or LoaderState()
        if state.epoch < 0 or not 0 <= state.position < order.num_rows:
            raise DataError(
                f"data: the saved position (epoch {state.epoch}, row {state.position}) does not exist in data of "
                f"{order.num_rows} rows; resume with the data the run began with"
            )
        self.order = order
        self._epoch = state.epoch
        self._position = state.position
        self._load()

    def _load(self) -> None:
        self._rows, self._passes = self.order.epoch(self._epoch), self.order.passes(self._epoch)

    @property
    def state(self) -> LoaderState:
        """Return the counters from which another loader continues."""
        return LoaderState(epoch=self._epoch, position=self._position)

    def next(self, count: int) -> Draw:
        """Return the next `count` rows with their epochs, and move on.

        Args:
            count: rows to draw, at least 1; may exceed the rows of an epoch.
        """
        assert count > 0, "a draw has at least one row"
        epochs: list[int] = []
        rows: list[int] = []
        while len(rows) < count:
            taken = slice(self._position, self._position + count - len(rows))
            epochs += self._passes[taken]
            rows += self._rows[taken]
            self._position = min(taken.stop, self.order.num_rows)
            if self._position == self.order.num_rows:
                self._epoch += 1
                self._position = 0
                self._load()
        return Draw(epoch_B=tuple(epochs), row_B=tuple(rows))
