"""How likely a text is under a model: one definition for validation, evaluation and whoever else asks.

A value is a weighted sum of log-likelihoods of masked tokens in the training layout: an objective lays the rows out and
weighs (`BlockDiffusion`, `NextToken`), `measure` runs the model. See docs/evaluation.md for what each kind means.

Shape legend: see `difflm.types`; here N tokens to score, W views (masks) of them.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor

from difflm.diffusion.loss_rows import scorable
from difflm.diffusion.noise import RowNoise
from difflm.diffusion.objectives import BlockDiffusion, NextToken
from difflm.diffusion.views import Views, views
from difflm.errors import RequestError
from difflm.models.attention import AttentionChoice
from difflm.models.transformer import Transformer
from difflm.reading import score_read
from difflm.scoring import score_input
from difflm.types import PADDING, Batch, ModelInput, TokenScores

if TYPE_CHECKING:
    from difflm.checkpoints.loading import LoadedModel

LikelihoodKind = Literal["elbo", "chain", "next_token"]
BATCH_TOKENS = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class Continuation:
    """A text to score, behind what is given.

    Attributes:
        tokens: ids to score, in order; at least one.
        prompt: ids before them; seen, never masked, not scored. The text begins a document if there are none.
        ends: the last token ends its document, so that its block ends there, as in training. Otherwise the rest of
            that block is unknown, and masked, as in decoding.
        key: texts with the same key see the same noise at the same place behind their prompts. None: those with the
            same prompt do.
    """

    tokens: Sequence[int]
    prompt: Sequence[int] = ()
    ends: bool = False
    key: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Likelihood:
    """How likely a continuation is.

    Attributes:
        log_likelihood: of all scored tokens together, nats; of kind "elbo" a lower bound, or an estimate of it.
        standard_error: of the estimate, over its samples, nats; 0 where the value is exact, None for one sample.
        num_tokens: scored tokens: one less than given where nothing stands before the first one and the model reads
            each token at the row before it.
        greedy: of kinds "chain" and "next_token": each scored token is the most probable one; None for "elbo".
        forwards: rows that went through the model for it.
    """

    log_likelihood: float
    standard_error: float | None
    num_tokens: int
    greedy: bool | None
    forwards: int


def measure(
    model: Transformer, inputs: ModelInput, *, suppressed: tuple[int, ...] = (), backend: AttentionChoice = "auto"
) -> tuple[tuple[TokenScores, ...], Tensor]:
    """Return (scores of each term, weighted negative log-likelihood of the first term in each row, float64 [B], nats).

    Args:
        model: any dtype and device.
        inputs: of an objective's `prepare` or `given`.
        suppressed: ids that get probability 0.
        backend: of the attention.
    """
    scores = score_input(model, inputs, suppressed_id=suppressed, backend=backend)
    return scores, row_sums(inputs, scores[0])


def row_sums(inputs: ModelInput, scores: TokenScores) -> Tensor:
    """Return sum(weight * negative log-likelihood) of the first term in each row, float64 [B], nats."""
    term = inputs.terms[0]
    rows, length = inputs.layout.document_BL.shape
    total_B = torch.zeros(rows, dtype=torch.float64)
    value_M = term.weight_M.cpu().double() * scores.nll_M.double().cpu()
    return total_B.index_add_(0, term.place_M.cpu() // length, value_M)


@torch.no_grad()
def likelihoods(
    loaded: LoadedModel,
    continuations: Sequence[Continuation],
    *,
    kind: LikelihoodKind | None = None,
    block_size: int | None = None,
    samples: int = 32,
    seed: int = 0,
    batch_tokens: int = BATCH_TOKENS,
) -> list[Likelihood]:
    """Return the likelihood of each continuation given its prompt.

    What one gets depends neither on the others nor on their order, but for the rounding of larger sums.

    Args:
        loaded: a model.
        continuations: texts to score.
        kind: "elbo" (Eq. 5 at `block_size`: a bound, over all orders in which a block could be filled), "chain" (left
            to right at block size 1: exact; for a model without a mask token its next-token likelihood) or "next_token"
            (left to right without masks: exact, the probability with which decoding "next_token" or "verified" draws
            the text, ids that are never written left out). None: see `likelihood_kind`.
        block_size: of "elbo", tokens; None: the model's (of generation_config.json, config.json, or 32).
        samples: masks per text at most; where a text has no more of them altogether, all are used and the bound is
            exact.
        seed: of the masks, >= 0.
        batch_tokens: tokens of a forward at most; a mask of a longer text goes alone.

    Raises:
        RequestError: a kind that the model does not have, ids that it does not know, nothing to score, more tokens
            than its context, or a number that is out of its range.
    """
    kind = likelihood_kind(loaded, kind)
    for name, value, least in (
        ("samples", samples, 1),
        ("batch_tokens", batch_tokens, 1),
        ("block_size", 1 if block_size is None else block_size, 1),
        ("seed", seed, 0),
    ):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise RequestError(f"{name}: {value!r} cannot be used; give an integer >= {least}")
    scorer = _Scorer(loaded, kind, block_size or model_block_size(loaded) if kind == "elbo" else 1, samples, seed)
    for number, each in enumerate(continuations):
        _check(loaded, kind, number, each)
    # Texts of one prompt go together and share its rows, then those of like length, so that little is padded.
    order = sorted(range(len(continuations)), key=lambda number: _order(continuations[number]))
    rows = (row for number in order for row in scorer.rows(number, continuations[number]))
    for chunk in _chunks(rows, batch_tokens):
        scorer.add(chunk)
    return [scorer.result(number) for number in range(len(continuations))]


def model_block_size(loaded: LoadedModel) -> int:
    """Return the block size that decoding uses by default, tokens."""
    own = loaded.config.generation.get("block_size")
    return int(own) if own is not None else loaded.config.block_size or 32


def likelihood_kind(loaded: LoadedModel, kind: LikelihoodKind | None = None) -> LikelihoodKind:
    """Return the kind of likelihood that a model is asked for: the one given, else what it is decoded with.

    Args:
        loaded: a model.
        kind: None: "next_token" for a model that is decoded left to right by itself (an adapter that drafts, or
            generation_config.json says so), else "elbo" for one with a mask token, else "chain".

    Raises:
        RequestError: a kind that the model does not have.
    """
    masked = loaded.config.mask_token_id is not None
    if kind is None:
        left_to_right = loaded.model.adapter_gate == "noisy" or loaded.default_decoding() != "block"
        return "next_token" if left_to_right else "elbo" if masked else "chain"
    if kind not in get_args(LikelihoodKind):
        raise RequestError(f"kind: {kind!r} is unknown; choose 'elbo', 'chain' or 'next_token'")
    if kind != "next_token" and loaded.model.adapter_gate == "noisy":
        raise RequestError(
            f"kind: '{kind}' reads the rows of masks, with which the adapter on {loaded.path} only drafts (its gate is "
            "'noisy'); use 'next_token', or load the base alone"
        )
    if kind == "elbo" and not masked:
        raise RequestError(f"kind: 'elbo' needs a mask token and {loaded.path} has none; use 'chain', or convert it")
    return kind


def _check(loaded: LoadedModel, kind: LikelihoodKind, number: int, given: Continuation) -> None:
    where = f"continuations[{number}]"
    model, length = loaded.config.model, _row_length(given)
    if not given.tokens:
        raise RequestError(f"{where}: it has no tokens; give at least one to score")
    if length > model.max_positions:
        raise RequestError(f"{where}: {length} tokens do not fit the context of {model.max_positions}; shorten it")
    for token in (*given.prompt, *given.tokens):
        if not 0 <= token < model.vocab_size or token == loaded.config.mask_token_id:
            known = f"0..{model.vocab_size - 1}, without the mask {loaded.config.mask_token_id}"
            raise RequestError(f"{where}: id {token} is no token of a text ({known}); remove it")
    for token in given.tokens if kind == "next_token" else ():
        if token in loaded.config.suppressed_token_ids:
            raise RequestError(f"{where}: id {token} is never written (the tokenizer has no token of it); remove it")


def _row_length(given: Continuation) -> int:
    return len(given.prompt) + len(given.tokens)


def _order(given: Continuation) -> tuple[int, tuple[int, ...], int]:
    return len(given.prompt), tuple(given.prompt), len(given.tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """One view of one text.

    Attributes:
        number: of the text.
        token: ids; behind the text the masks of the rest of its block.
        place_N: positions that are scored.
        width: noisy rows, those of the blocks of these positions.
        masked_N: bool, those of them that are masked in this view.
        weight_N: float64 weights of these.
    """

    number: int
    token: list[int]
    place_N: Tensor
    width: int
    masked_N: Tensor
    weight_N: Tensor


class _Scorer:
    """Makes the rows of texts and collects what they add up to."""

    def __init__(self, loaded: LoadedModel, kind: LikelihoodKind, block_size: int, samples: int, seed: int) -> None:
        self.loaded, self.kind, self.block_size, self.samples = loaded, kind, block_size, samples
        self.noise = RowNoise(seed)
        parametrisation = loaded.config.parametrisation
        self.objective = BlockDiffusion(block_size=block_size, parametrisation=parametrisation)
        self.mask_id = loaded.config.mask_token_id
        self.clean_only = kind == "next_token" or self.mask_id is None
        self.suppressed = loaded.config.suppressed_token_ids if kind == "next_token" else ()
        self.reads_before = parametrisation.logit_shift or self.clean_only
        self.values: dict[int, list[float]] = {}
        self.greedy: dict[int, bool] = {}
        self.scored: dict[int, tuple[int, bool]] = {}

    def rows(self, number: int, given: Continuation) -> Iterator[_Row]:
        """Yield the views of a text; nothing where its only token cannot be predicted."""
        length, first = _row_length(given), len(given.prompt)
        place_N = torch.arange(max(first, int(self.reads_before)), length)
        self.values[number] = []
        found = self._views(given, place_N) if len(place_N) else None
        self.scored[number] = (len(place_N), found is None or found.exact)
        token = [*given.prompt, *given.tokens]
        if self.mask_id is not None and not given.ends:
            token += [self.mask_id] * (-length % self.block_size)
        for view in range(0 if found is None else len(found.masked_WN)):
            assert found is not None
            yield _Row(
                number=number,
                token=token,
                place_N=place_N,
                width=len(token) - int(place_N[0]) // self.block_size * self.block_size,
                masked_N=found.masked_WN[view],
                weight_N=found.weight_WN[view],
            )

    def _views(self, given: Continuation, place_N: Tensor) -> Views:
        if self.kind != "elbo":
            one_1N = torch.ones(1, len(place_N), dtype=torch.float64)
            return Views(one_1N > 0, one_1N, exact=True)
        block_N = place_N // self.block_size
        key = prompt_key(given.prompt) if given.key is None else given.key
        behind_N = place_N - len(given.prompt)
        return views(block_N - block_N[0], behind_N, samples=self.samples, noise=self.noise, key=key)

    def add(self, rows: Sequence[_Row]) -> None:
        """Run the rows through the model, together, and take in their values."""
        longest = max(len(row.token) for row in rows)
        shape = (len(rows), longest)
        token_BL, document_BL = torch.zeros(shape, dtype=torch.int64), torch.full(shape, PADDING)
        wanted_BL, masked_BL = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.bool)
        weight_BL = torch.zeros(shape, dtype=torch.float64)
        for index, row in enumerate(rows):
            token_BL[index, : len(row.token)] = torch.tensor(row.token)
            document_BL[index, : len(row.token)] = 0
            wanted_BL[index, row.place_N] = True
            masked_BL[index, row.place_N] = row.masked_N
            weight_BL[index, row.place_N] = row.weight_N
        batch = Batch(
            token_BL=token_BL,
            document_BL=document_BL,
            position_BL=torch.arange(longest).expand(shape).where(document_BL != PADDING, 0),
            trainable_BL=wanted_BL,
            row_B=torch.arange(len(rows)),
            epoch_B=torch.zeros(len(rows), dtype=torch.int64),
        )
        if self.clean_only:
            inputs = NextToken().prepare(batch, mask_id=None, noise=self.noise)
        else:
            assert bool((scorable(batch, self.objective.parametrisation) == wanted_BL).all()), "an unscorable place"
            inputs = self.objective.given(batch, masked_BL, weight_BL, mask_id=self.mask_id)
        if inputs.layout.two_streams:
            scores = score_read(self.loaded.model, inputs)
            total_B = row_sums(inputs, scores)
        else:
            (scores, *_), total_B = measure(self.loaded.model, inputs, suppressed=self.suppressed)
        wrong = (inputs.terms[0].place_M.cpu() // longest)[~scores.correct_M.cpu()].unique().tolist()
        for index, (row, value) in enumerate(zip(rows, total_B.tolist(), strict=True)):
            self.values[row.number].append(-value)
            self.greedy[row.number] = index not in wrong

    def result(self, number: int) -> Likelihood:
        """Return what the views of a text say together."""
        values, (count, exact) = self.values[number], self.scored[number]
        mean = math.fsum(values) / (1 if exact else len(values))
        error: float | None = 0.0
        if not exact:
            square = math.fsum((value - mean) ** 2 for value in values)
            error = math.sqrt(square / (len(values) - 1) / len(values)) if len(values) > 1 else None
        return Likelihood(
            log_likelihood=mean,
            standard_error=error,
            num_tokens=count,
            greedy=None if self.kind == "elbo" else self.greedy.get(number, True),
            forwards=len(values),
        )


def prompt_key(prompt: Sequence[int]) -> int:
    """Return a number for a prompt, the same in every process."""
    content = b"".join(token.to_bytes(8, "little") for token in prompt)
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "little")


def _chunks(rows: Iterator[_Row], batch_tokens: int) -> Iterator[list[_Row]]:
    """Yield the rows of each forward: clean rows once a text, noisy rows once a view.

    An eighth of a token stands for a key and value of the clean stream, which every view has a copy of.
    """
    chunk: list[_Row] = []
    texts, longest, widest = set[int](), 0, 0
    for row in rows:
        texts.add(row.number)
        longest, widest = max(longest, len(row.token)), max(widest, row.width)
        if chunk and len(texts) * longest + (len(chunk) + 1) * (widest + longest // 8) > batch_tokens:
            yield chunk
            chunk = []
            texts, longest, widest = {row.number}, len(row.token), row.width
        chunk.append(row)
    if chunk:
        yield chunk
