"""How likely the tokens of a prompt are: the one likelihood of a model that adds up token by token, left to right.

For a model that is decoded left to right by itself it is `difflm.likelihoods(kind="next_token")`, for any other one
`kind="chain"`: the same definition, told for each token.

Shape legend: see `difflm.types`; here L tokens of a prompt and M of them that are scored, all but the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch.nn import functional as F

from difflm.decode.events import TokenLogprob
from difflm.decode.sampling import logprob_columns
from difflm.diffusion.noise import RowNoise
from difflm.diffusion.objectives import BlockDiffusion, NextToken
from difflm.likelihood import likelihood_kind
from difflm.scoring import forward_hidden
from difflm.types import Batch

if TYPE_CHECKING:
    from difflm.checkpoints.loading import LoadedModel

LOGITS_BYTES = 1 << 28
"""Logits in float32 that are held at once."""


def echo_kind(loaded: LoadedModel) -> Literal["chain", "next_token"]:
    """Return the kind of likelihood that a model's prompts are told with; see `difflm.likelihoods`.

    Args:
        loaded: the model.
    """
    return "next_token" if likelihood_kind(loaded) == "next_token" else "chain"


@torch.no_grad()
def prompt_logprobs(loaded: LoadedModel, prompt: Sequence[int], top: int) -> tuple[TokenLogprob | int, ...]:
    """Return the log-probability of each token given those before it; of the first one its id alone.

    Args:
        loaded: the model.
        prompt: ids, without the mask.
        top: how many of the most probable ids to tell with each.
    """
    if len(prompt) < 2:
        return tuple(prompt)
    token_BL = torch.tensor([list(prompt)])
    batch = Batch(
        token_BL=token_BL,
        document_BL=torch.zeros_like(token_BL),
        position_BL=torch.arange(len(prompt))[None],
        trainable_BL=torch.arange(len(prompt))[None] > 0,
        row_B=torch.zeros(1, dtype=torch.int64),
        epoch_B=torch.zeros(1, dtype=torch.int64),
    )
    mask_id, kind = loaded.config.mask_token_id, echo_kind(loaded)
    if kind == "next_token" or mask_id is None:
        inputs = NextToken().prepare(batch, mask_id=None, noise=RowNoise(0))
    else:
        # At block size 1 every token that is scored is masked, and nothing is drawn.
        objective = BlockDiffusion(block_size=1, parametrisation=loaded.config.parametrisation)
        inputs = objective.prepare(batch, mask_id=mask_id, noise=RowNoise(0))
    model, term = loaded.model, inputs.terms[0]
    clean = model.adapter_gate == "noisy"  # an adapter that drafts has no part in clean rows
    hidden_BND = forward_hidden(
        model, inputs.token_BN, inputs.position_BN, inputs.layout, adapter=False if clean else None
    )
    hidden_MD = hidden_BND.flatten(0, 1)[term.row_M.to(hidden_BND.device)]
    target_M, weight_VD = term.target_M.to(hidden_BND.device), model.head_weight()
    suppressed = loaded.config.suppressed_token_ids if kind == "next_token" else ()
    found: list[TokenLogprob | int] = [prompt[0]]
    size = max(1, LOGITS_BYTES // (4 * len(weight_VD)))
    for first in range(0, len(target_M), size):
        piece = slice(first, first + size)
        rows_MC = logprob_columns(F.linear(hidden_MD[piece], weight_VD), target_M[piece], top, suppressed).T.tolist()
        for token, row in zip(target_M[piece].tolist(), rows_MC, strict=True):
            pairs = zip(row[1::2], row[2::2], strict=True)
            best = tuple((int(each), logprob) for each, logprob in pairs)
            found.append(TokenLogprob(token=token, logprob=row[0], top=best))
    assert len(found) == len(prompt), "all but the first are scored"
    return tuple(found)
