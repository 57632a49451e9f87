"""The shared field types refuse what they promise to refuse."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from difflm.training.config_fields import AboveZero, Count, NonEmptyPath, OpenShare, Positive, Share, UpToOne


@pytest.mark.parametrize(
    ("kind", "fine", "wrong"),
    [
        (Positive, 1, 0),
        (Count, 0, -1),
        (Share, 1.0, 1.1),
        (OpenShare, 0.0, 1.0),
        (UpToOne, 1.0, 0.0),
        (AboveZero, 0.1, 0.0),
        (NonEmptyPath, "a", ""),
    ],
)
def test_ranges(kind: Any, fine: Any, wrong: Any) -> None:
    adapter = TypeAdapter(kind)
    adapter.validate_python(fine)
    with pytest.raises(ValidationError):
        adapter.validate_python(wrong)
