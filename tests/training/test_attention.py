"""The attention and activation_checkpointing of a configuration reach the forward; the results do not change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from difflm.errors import ConfigError
from difflm.models.attention import DenseAttention, SplitAttention
from difflm.models.transformer import Transformer
from difflm.training.trainer import Trainer
from tests.training.runs import config_of


def one_step(files: dict[str, Path], output: Path, **changes: Any) -> tuple[float, dict[str, torch.Tensor]]:
    """Return the loss of the first step and the weights after it."""
    trainer = Trainer(config_of(files, output, **changes))
    loss = trainer.train_step()["loss"]
    return loss, {name: value.detach().clone() for name, value in trainer.loaded.model.state_dict().items()}


def test_activation_checkpointing_changes_no_bit(files: dict[str, Path], tmp_path: Path) -> None:
    calls: list[bool] = []
    forward = Transformer.forward

    def spy(self: Transformer, *args: Any, **options: Any) -> torch.Tensor:
        calls.append(options["activation_checkpointing"])
        return forward(self, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Transformer, "forward", spy)
        plain = one_step(files, tmp_path / "plain")
        assert not any(calls)
        calls.clear()
        recomputed = one_step(files, tmp_path / "recomputed", activation_checkpointing=True)
    assert all(calls)
    assert recomputed[0] == plain[0]
    assert all(torch.equal(value, plain[1][name]) for name, value in recomputed[1].items())


@pytest.mark.parametrize("choice", ["portable", "dense"])
def test_a_named_attention_trains_the_same_model(
    files: dict[str, Path], tmp_path: Path, choice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = one_step(files, tmp_path / "plain")
    used: list[str] = []
    forward = Transformer.forward

    def spy(
        self: Transformer, token: torch.Tensor, position: torch.Tensor, attend: Any, **options: Any
    ) -> torch.Tensor:
        used.append(attend.backend if isinstance(attend, SplitAttention) else type(attend).__name__)
        return forward(self, token, position, attend, **options)

    monkeypatch.setattr(Transformer, "forward", spy)
    named = one_step(files, tmp_path / choice, attention=choice)
    assert set(used) == {"portable" if choice == "portable" else DenseAttention.__name__}
    assert named[0] == pytest.approx(plain[0], rel=1e-5)


def test_validation_uses_the_named_attention(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: set[str] = set()
    forward = Transformer.forward

    def spy(
        self: Transformer, token: torch.Tensor, position: torch.Tensor, attend: Any, **options: Any
    ) -> torch.Tensor:
        used.add(type(attend).__name__)
        return forward(self, token, position, attend, **options)

    trainer = Trainer(config_of(files, tmp_path / "run", attention="dense"))
    monkeypatch.setattr(Transformer, "forward", spy)
    trainer._validate()
    assert used == {DenseAttention.__name__}


def test_attention_that_cannot_train_here_is_refused_before_anything_is_written(
    files: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"^train.attention: 'flex' does not work on cpu: it has no backward"):
        Trainer(config_of(files, tmp_path / "run", attention="flex"))
    assert not (tmp_path / "run").exists()
