"""Field types that the sections of a training configuration share: ranges in the annotations, strict parsing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, ConfigDict, Field

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


def _not_empty(value: object) -> object:
    if value == "":
        raise ValueError("a path, not empty")
    return value


NonEmptyPath = Annotated[Path, BeforeValidator(_not_empty)]
NonEmpty = Annotated[str, Field(min_length=1)]
Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
OpenShare = Annotated[float, Field(ge=0.0, lt=1.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
AboveZero = Annotated[float, Field(gt=0.0)]
UpToOne = Annotated[float, Field(gt=0.0, le=1.0)]
