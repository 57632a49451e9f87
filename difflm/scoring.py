"""Model meets maths: forward an input, score its rows; the public `logits` and `score`.

Training, validation, evaluation and the public functions all read a model through this module, so that there is one
definition of the training layout.

Shape legend: see `difflm.types`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from difflm.diffusion.divergence import score_against
from difflm.diffusion.loss_rows import prediction_rows
from difflm.diffusion.masks import block_numbers, document_positions
from difflm.diffusion.scores import score_tokens
from difflm.errors import ConfigError
from difflm.models.attention import AttentionChoice, attention_for
from difflm.models.lora import AdapterRows
from difflm.models.moe import RouterProbe
from difflm.models.streams import Behind, Recorded, clean_layout
from difflm.models.transformer import Attend, Transformer
from difflm.types import PADDING, Layout, LossRows, ModelInput, TokenScores

if TYPE_CHECKING:
    from difflm.checkpoints.loading import LoadedModel

AttentionName = Literal["causal", "bidirectional", "block", "noisy_clean"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PositionScores:
    """Scores aligned to the targets' positions; 0 (False) where nothing was masked and on padding. Units: nats.

    Attributes:
        nll_BL: float32 negative log-likelihood of the clean token.
        entropy_BL: float32 entropy of the prediction.
        correct_BL: bool, the arg-max is the clean token.
    """

    nll_BL: Tensor
    entropy_BL: Tensor
    correct_BL: Tensor


def forward_hidden(
    model: Transformer,
    token_BN: Tensor,
    position_BN: Tensor,
    layout: Layout,
    *,
    backend: AttentionChoice = "auto",
    embedding_noise_BND: Tensor | None = None,
    activation_checkpointing: bool = False,
    probe: RouterProbe | None = None,
    adapter: AdapterRows | None = None,
) -> Tensor:
    """Return the hidden states of a layout's rows, [B, N, D].

    Under an adapter for noisy rows the clean stream is the base's: it is forwarded first, without gradient, and the
    noisy rows behind it; the probe measures those alone.

    The other arguments are those of `attention_for` and `Transformer.forward`; `adapter` None: as its gate says.
    """
    weight = model.embedding.weight
    token_BN, position_BN = token_BN.to(weight.device), position_BN.to(weight.device)

    def attention(layout: Layout, *, noisy_only: bool = False) -> Attend:
        return attention_for(
            layout,
            heads_per_group=model.config.num_heads // model.config.num_kv_heads,
            dtype=weight.dtype,
            device=weight.device,
            backend=backend,
            head_dim=model.config.head_dim,
            noisy_only=noisy_only,
        )

    def forward(rows: slice, attend: Attend, adapter: AdapterRows | None) -> Tensor:
        return model(
            token_BN[:, rows],
            position_BN[:, rows],
            attend,
            embedding_noise_BND=None if embedding_noise_BND is None else embedding_noise_BND[:, rows],
            activation_checkpointing=activation_checkpointing,
            probe=probe,
            adapter=adapter,
        )

    if adapter is not None or model.adapter_gate == "all" or not layout.two_streams:
        return forward(slice(None), attention(layout), adapter)
    width = layout.noisy_length
    clean = Recorded(attention(clean_layout(layout)))
    with torch.no_grad():
        clean_BLD = model(token_BN[:, width:], position_BN[:, width:], clean, adapter=False)
    noisy_BWD = forward(slice(width), Behind(attention(layout, noisy_only=True), clean), True)
    return torch.cat([noisy_BWD, clean_BLD], dim=1)


def score_input(
    model: Transformer,
    inputs: ModelInput,
    *,
    entropy: bool = False,
    chunk: int = 512,
    suppressed_id: int | tuple[int, ...] | None = None,
    backend: AttentionChoice = "auto",
    embedding_noise_BND: Tensor | None = None,
    activation_checkpointing: bool = False,
    probe: RouterProbe | None = None,
    adapter: bool = True,
) -> tuple[TokenScores, ...]:
    """Forward an objective's input and return the scores of each of its terms; only those rows meet the head.

    Args:
        model: any dtype and device.
        inputs: of `Objective.prepare`.
        entropy: also compute the entropy of each prediction.
        chunk: rows that meet the head at once.
        suppressed_id: token, or tokens, that get probability 0 (MASK); None scores raw logits.
        backend: see `attention_for`.
        embedding_noise_BND: see `Transformer.forward`.
        activation_checkpointing: see `Transformer.forward`.
        probe: see `Transformer.forward`.
        adapter: False: the model without its adapter (the reference of a preference loss), bit for bit.
    """
    hidden_BND = forward_hidden(
        model,
        inputs.token_BN,
        inputs.position_BN,
        inputs.layout,
        backend=backend,
        embedding_noise_BND=embedding_noise_BND,
        activation_checkpointing=activation_checkpointing,
        probe=probe,
        adapter=_adapter_rows(model, noisy=inputs.maskable_BW is not None, layout=inputs.layout) if adapter else False,
    )
    rows = model.head_rows(adapter)
    flat = hidden_BND.flatten(0, 1)
    suppressed_V = _suppressed(model, suppressed_id)

    def scored(term: LossRows) -> TokenScores:
        hidden_MD, target_M = flat[term.row_M.to(flat.device)], term.target_M.to(flat.device)
        if term.before_M is not None and model.draft_head is not None and adapter:
            hidden_MD = model.draft_head(hidden_MD, model.embedding(term.before_M.to(flat.device)))
        given: dict[str, Any] = {"chunk": chunk, "suppressed_V": suppressed_V, "rows": rows}
        if term.teacher_M is None:
            wanted = entropy or term.temperature is not None
            warm = 1.0 if term.temperature is None else term.temperature
            return score_tokens(hidden_MD, model.head.weight, target_M, entropy=wanted, temperature=warm, **given)
        teacher_MD = flat[term.teacher_M.to(flat.device)]
        return score_against(hidden_MD, model.head.weight, teacher_MD, target_M, kind=term.divergence, **given)

    found: list[TokenScores] = []
    for term in inputs.terms:
        found.append(scored(term) if term.scores_of is None else found[term.scores_of])
    return tuple(found)


def _adapter_rows(model: Transformer, *, noisy: bool, layout: Layout) -> AdapterRows | None:
    """Return on which rows an adapter acts; a single stream does not say by itself whether it is noisy."""
    single = model.adapter_gate == "noisy" and not layout.two_streams
    return noisy if single else None


def _suppressed(model: Transformer, token_id: int | tuple[int, ...] | None) -> Tensor | None:
    if token_id is None or token_id == ():
        return None
    suppressed_V = torch.zeros(model.config.vocab_size, dtype=torch.bool, device=model.embedding.weight.device)
    suppressed_V[[token_id] if isinstance(token_id, int) else list(token_id)] = True
    return suppressed_V


def _documents(token_BL: Tensor, document_BL: Tensor | None) -> Tensor:
    if document_BL is None:
        return torch.zeros_like(token_BL)
    if document_BL.shape != token_BL.shape:
        raise ConfigError(
            f"document_BL: shape {tuple(document_BL.shape)} is not the tokens' {tuple(token_BL.shape)}; "
            "give one document id per clean token"
        )
    # Contiguous runs are the documents: one that reuses an earlier id is still a document of its own.
    document_BL = document_BL.long()
    run_BL = torch.zeros_like(document_BL)
    run_BL[:, 1:] = (document_BL[:, 1:] != document_BL[:, :-1]).cumsum(dim=1)
    return torch.where(document_BL == PADDING, PADDING, run_BL)


def _block_size(loaded: LoadedModel, block_size: int | None, attention: str) -> int:
    size = loaded.config.block_size if block_size is None else block_size
    if size is None:
        raise ConfigError(f"block_size: None, and the checkpoint records none; attention '{attention}' needs one")
    if size < 1:
        raise ConfigError(f"block_size: {size} is below 1; give the block size in tokens")
    return size


def _training_layout(loaded: LoadedModel, document_BL: Tensor, position_BL: Tensor, block_size: int | None) -> Layout:
    """Return the checkpoint's layout over [noisy | clean]; `block_size` None: noisy rows alone, one block each."""
    return Layout(
        document_BL=document_BL,
        block_BL=torch.zeros_like(position_BL) if block_size is None else position_BL // block_size,
        two_streams=block_size is not None,
        causal_inside=loaded.config.noisy_attention == "causal",
        clean_causal=loaded.config.clean_attention == "causal",
    )


@torch.no_grad()
def logits(
    loaded: LoadedModel,
    token_BL: Tensor,
    *,
    attention: AttentionName,
    block_size: int | None = None,
    document_BL: Tensor | None = None,
    adapter: bool = True,
) -> Tensor:
    """Return raw logits of every row, float32 [B, L, V]; never shifted, nothing suppressed.

    Args:
        loaded: a loaded model.
        token_BL: int64 token ids; for "noisy_clean" the noisy row followed by the clean row (2L tokens), and the
            noisy half is returned.
        attention: "causal", "bidirectional" and "block" (block-causal) are literal masks. "noisy_clean" is the
            training layout of the checkpoint (its `clean_attention` and `noisy_attention`).
        block_size: S in tokens for "block" and "noisy_clean"; None: the checkpoint's.
        document_BL: contiguous runs of document ids; blocks and positions restart in each, documents do not see each
            other, -1 is padding. None: one document per row.
        adapter: False: the model without its low-rank adapter, bit for bit. True: one for noisy rows acts on the noisy
            half of "noisy_clean" alone; under the other masks the rows are clean.

    Raises:
        ConfigError: unknown attention, missing block size, odd length for "noisy_clean", shape mismatch.
    """
    token_BL = token_BL.long()
    if attention == "noisy_clean":
        if token_BL.shape[1] % 2:
            raise ConfigError(f"token_BL: {token_BL.shape[1]} tokens; 'noisy_clean' takes the noisy then the clean row")
        clean_BL = token_BL[:, token_BL.shape[1] // 2 :]
    else:
        clean_BL = token_BL
    document_BL = _documents(clean_BL, document_BL)
    position_BL = document_positions(document_BL)
    match attention:
        case "causal":
            layout = Layout(document_BL=document_BL, block_BL=position_BL, causal_inside=True)
        case "bidirectional":
            layout = Layout(document_BL=document_BL, block_BL=torch.zeros_like(position_BL))
        case "block":
            size = _block_size(loaded, block_size, attention)
            layout = Layout(document_BL=document_BL, block_BL=block_numbers(position_BL, block_size=size))
        case "noisy_clean":
            size = _block_size(loaded, block_size, attention)
            layout = _training_layout(loaded, document_BL, position_BL, size)
            position_BL = torch.cat([position_BL, position_BL], dim=1)
        case _:
            raise ConfigError(
                f"attention: '{attention}' is unknown; use 'causal', 'bidirectional', 'block' or 'noisy_clean'"
            )
    rows = None if adapter else False
    hidden_BND = forward_hidden(loaded.model, token_BL, position_BL, layout, adapter=rows)
    return F.linear(hidden_BND[:, : clean_BL.shape[1]], loaded.model.head_weight(adapter)).float()


@torch.no_grad()
def score(
    loaded: LoadedModel,
    clean_BL: Tensor,
    noisy_BL: Tensor,
    *,
    block_size: int | None = None,
    document_BL: Tensor | None = None,
    suppress_mask: bool = False,
) -> PositionScores:
    """Score the clean tokens at the masked positions under the training layout, aligned to the targets.

    Reads what the checkpoint records: with a logit shift, target i is read at row i-1 (the clean row for the first
    position of a block) and the first token of a document is never scored; the attention of both streams follows
    `clean_attention` and `noisy_attention`.

    Args:
        loaded: a converted model.
        clean_BL: int64 tokens to score.
        noisy_BL: int64, the same with the checkpoint's mask token where a position is masked.
        block_size: S in tokens; None: MDLM (Eq. 2), one block per document and no clean half.
        document_BL: as in `logits`.
        suppress_mask: give MASK probability 0, as native decoding does; by default raw logits are scored.

    Raises:
        ConfigError: no mask token, block size below 1, shape mismatch.
    """
    mask_id = loaded.config.mask_token_id
    if mask_id is None:
        raise ConfigError("mask_token_id: the checkpoint has none; convert it first (difflm convert)")
    if noisy_BL.shape != clean_BL.shape:
        raise ConfigError(f"noisy_BL: shape {tuple(noisy_BL.shape)} is not clean_BL's {tuple(clean_BL.shape)}")
    if block_size is not None and block_size < 1:
        raise ConfigError(f"block_size: {block_size} is below 1; give the block size in tokens, or None for MDLM")
    clean_BL, noisy_BL = clean_BL.long(), noisy_BL.long()
    document_BL = _documents(clean_BL, document_BL)
    position_BL = document_positions(document_BL)
    layout = _training_layout(loaded, document_BL, position_BL, block_size)
    masked_BL = (noisy_BL == mask_id) & (document_BL != PADDING)
    masked_BL &= (position_BL > 0) if loaded.config.logit_shift else True
    token, position = noisy_BL, position_BL
    if layout.two_streams:
        token, position = torch.cat([noisy_BL, clean_BL], dim=1), torch.cat([position_BL, position_BL], dim=1)
    rows = _adapter_rows(loaded.model, noisy=True, layout=layout)
    hidden_BND = forward_hidden(loaded.model, token, position, layout, adapter=rows)
    row_M, place_M = masked_BL.nonzero(as_tuple=True)
    source_M = prediction_rows(layout, row_M, place_M, shift=loaded.config.logit_shift)
    flat = hidden_BND.flatten(0, 1)
    scores = score_tokens(
        flat[source_M.to(flat.device)],
        loaded.model.head.weight,
        clean_BL[row_M, place_M].to(flat.device),
        entropy=True,
        suppressed_V=_suppressed(loaded.model, mask_id if suppress_mask else None),
        rows=loaded.model.head_rows(),
    )
    return PositionScores(
        nll_BL=_placed(scores.nll_M.float(), masked_BL),
        entropy_BL=_placed(scores.entropy_M.float(), masked_BL),
        correct_BL=_placed(scores.correct_M, masked_BL),
    )


def _placed(value_M: Tensor, masked_BL: Tensor) -> Tensor:
    out_BL = torch.zeros(masked_BL.shape, dtype=value_M.dtype, device=masked_BL.device)
    out_BL[masked_BL] = value_M.to(masked_BL.device)
    return out_BL
