"""Section `data` of a training configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field

from difflm.data.records import Records
from difflm.errors import ConfigError
from difflm.training.config_fields import STRICT, AboveZero, Count, NonEmpty, NonEmptyPath, OpenShare, Share


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """Where rows come from and how they are packed.

    Attributes:
        paths: training files, folders, glob patterns, or folders written by `difflm prepare`. No default.
        weights: share of each path in the rows drawn, in proportion (a mixture: each path is a source of its own,
            repeated or cut as its share asks); empty draws every row of every path once an epoch. Default [].
        format: "auto" (by the first rows), "jsonl", "json" (an array), "text", "csv", "parquet" or "arrow".
            Default "auto".
        text_field: name of the field or column that holds plain text. Default "text".
        records: what records hold: "auto" (by their fields), "text", "prompt_completion", "input_ids", "messages",
            "sharegpt", "alpaca" or "preference". Default "auto".
        row_length: L, tokens in a packed row; every stage's block size divides it. Default 256.
        packing: "best_fit" (longest first, each into the fullest row that has room) or "greedy" (in order, each
            into the current row). Default "best_fit".
        random_length: share of the rows whose room is drawn uniformly from 1 to `row_length`. Default 0.
        long_text: plain text longer than a row is cut into rows ("split"), or left out and counted ("drop").
            Default "split".
        overlong: an answer that is with its prompt longer than a row is left out and counted ("drop"), an error
            ("refuse"), or loses its end ("cut": no EOS is learnt there; preference pairs are dropped all the same).
            Default "drop".
        fill: "eos" repeats EOS after each answer (of a pair after both) up to a multiple of the last stage's block
            size, as a part of the loss, so that its last block looks as it does when decoding; "none" ends each
            document with its one EOS. Plain-text documents are never filled. Default "eos".
        validation_paths: files with the validation documents; not together with `validation_fraction`. Default none.
        validation_fraction: share of the documents held out by a hash of their content. Default 0.
        split_seed: seed of that hash, apart from the run's seed so that runs share one split. Default 0.
        shuffle: new order of the rows in each epoch, from (seed, epoch); otherwise file order. Default true.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    paths: Annotated[tuple[NonEmptyPath, ...], Field(min_length=1)]
    weights: tuple[AboveZero, ...] = ()
    format: Literal["auto", "jsonl", "json", "text", "csv", "parquet", "arrow"] = "auto"
    text_field: NonEmpty = "text"
    records: Records = "auto"
    row_length: Annotated[int, Field(ge=2)] = 256
    packing: Literal["best_fit", "greedy"] = "best_fit"
    random_length: Share = 0.0
    long_text: Literal["split", "drop"] = "split"
    overlong: Literal["drop", "refuse", "cut"] = "drop"
    fill: Literal["eos", "none"] = "eos"
    validation_paths: tuple[NonEmptyPath, ...] = ()
    validation_fraction: OpenShare = 0.0
    split_seed: Count = 0
    shuffle: bool = True

    def __post_init__(self) -> None:
        """Refuse two sources of validation documents, and weights that do not belong to the paths."""
        if self.weights and len(self.weights) != len(self.paths):
            raise ConfigError(
                f"train.data.weights: {len(self.weights)} weights for {len(self.paths)} paths; give one for each path, "
                "or none"
            )
        if self.validation_paths and self.validation_fraction > 0:
            raise ConfigError(
                f"train.data.validation_fraction: {self.validation_fraction} together with validation_paths; "
                "set one of the two (validation_fraction: 0 uses the files)"
            )
