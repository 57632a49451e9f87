"""Loading a checkpoint into a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import torch

from difflm.checkpoints.adapter import AdapterFacts, put_adapter
from difflm.checkpoints.adapter_config import ADAPTER_CONFIG, is_adapter
from difflm.checkpoints.chats import ChatEncoder, Message
from difflm.checkpoints.config import CheckpointConfig, checkpoint_config
from difflm.checkpoints.constraints import Constraint
from difflm.checkpoints.families import model_config, refuse_window
from difflm.checkpoints.grammars import CompiledGrammar, Grammars, Trial
from difflm.checkpoints.literals import MARK
from difflm.checkpoints.rope_fields import with_rope_scaling
from difflm.checkpoints.rules import stored_dtype
from difflm.checkpoints.source import StoredParameters, open_checkpoint, tokenizer_facts, with_adapters
from difflm.checkpoints.templates import Render, render_here
from difflm.checkpoints.tokens import SafeEncoder
from difflm.errors import CheckpointError, ConfigError, RequestError
from difflm.models.config import ModelConfig
from difflm.models.quantised import Weights, check_weights, quantise
from difflm.models.transformer import Transformer
from difflm.types import Decoding

DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}


@dataclass(slots=True)
class LoadedModel:
    """A model with what is needed to use it.

    Attributes:
        model: the decoder, in evaluation mode.
        tokenizer: transformers tokenizer, None where the checkpoint has none.
        config: facts of the checkpoint.
        path: HF folder or GGUF file it came from; of a model with an adapter, that of the base.
        adapter: what the model's adapter is; None for a model without.
        render: what renders its chat template.
        trial: what refuses constraints that cannot be compiled safely, where they are a stranger's; see
            `difflm.checkpoints.trials`.
    """

    model: Transformer
    tokenizer: Any | None
    config: CheckpointConfig
    path: Path
    adapter: AdapterFacts | None = None
    render: Render = render_here
    trial: Trial | None = None
    _encoder: SafeEncoder | None = field(default=None, init=False, repr=False)
    _chats: ChatEncoder | None = field(default=None, init=False, repr=False)
    _grammars: Grammars | None = field(default=None, init=False, repr=False)

    def encode(self, text: str) -> list[int]:
        """Return the token ids of `text`, without added special tokens.

        Strings of special tokens (a rendered chat template) are recognised; a literal mask token is tokenised as
        ordinary characters, never as the mask id.

        Raises:
            CheckpointError: the checkpoint has no tokenizer.
        """
        return self._safe_encoder().encode(text)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each text, the same as `encode` gives; faster for many.

        Raises:
            CheckpointError: the checkpoint has no tokenizer.
        """
        return self._safe_encoder().encode_batch(texts)

    def _safe_encoder(self) -> SafeEncoder:
        tokenizer = self.require_tokenizer()
        if self._encoder is None:
            self._encoder = SafeEncoder(tokenizer, self.config.mask_token, self.config.mask_token_id)
        return self._encoder

    def encode_chat(self, messages: Sequence[Message], *, tools: Sequence[Any] | None = None) -> list[int]:
        """Return the ids of a conversation in the checkpoint's chat template, ready for the assistant's turn.

        Control tokens that a person typed stay characters.

        Args:
            messages: objects with "role" and "content" (text, or parts of text), and what else the template reads.
            tools: descriptions of functions, as JSON schemas.

        Raises:
            CheckpointError: no tokenizer, or it has no chat template, or one that refuses the conversation.
            RequestError: content that is not text.
        """
        return self._chat_encoder().prompt(messages, tools)

    def chat_text(self, messages: Sequence[Message], *, open_turn: bool = True) -> str:
        """Return a conversation as text in the checkpoint's chat template, to be encoded by `encode_chat_text`.

        Args:
            messages: see `encode_chat`.
            open_turn: end with the opening of the assistant's turn; else the last message goes on.

        Raises:
            CheckpointError: see `encode_chat`.
            RequestError: content that is not text.
        """
        return self._chat_encoder().text(messages, open_turn=open_turn)

    def encode_chat_text(self, text: str) -> list[int]:
        """Return the ids of a text of `chat_text`, or of one that goes on behind it; of an open turn, `encode_chat`'s.

        Of a text that is none, the ids are those of `encode`.

        Raises:
            CheckpointError: the checkpoint has no tokenizer.
        """
        return self._chat_encoder().encode(text) if MARK in text else self.encode(text)

    def encode_answers(
        self, messages: Sequence[Message], learnt: Sequence[int], *, tools: Sequence[Any] | None = None
    ) -> list[tuple[list[int], list[int]]]:
        """Return (prompt ids, answer ids) of some messages of the assistant in the checkpoint's chat template.

        The prompt is what `encode_chat` gives for the messages before; the answer ends in EOS.

        Args:
            messages: a conversation, see `encode_chat`.
            learnt: numbers of the messages, from 0.
            tools: see `encode_chat`.

        Raises:
            CheckpointError: see `encode_chat`; or a template that does not show where the answer begins and ends.
            RequestError: content that is not text.
        """
        return self._chat_encoder().answers(messages, learnt, tools)

    def _chat_encoder(self) -> ChatEncoder:
        if self._chats is None:
            self._chats = ChatEncoder(self._safe_encoder(), self.config.eos_token_ids, self.path, self.render)
        return self._chats

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Return the text of `token_ids`.

        Args:
            token_ids: ids of the tokenizer.
            skip_special_tokens: leave special tokens (turn markers, end of text) out.

        Raises:
            CheckpointError: the checkpoint has no tokenizer.
        """
        return self.require_tokenizer().decode(list(token_ids), skip_special_tokens=skip_special_tokens)

    def grammar(self, constraint: Constraint) -> CompiledGrammar:
        """Return a constraint compiled for this model; the last ones are kept.

        The first call reads the vocabulary: seconds for a large one. Where that must not be waited for, give what is
        returned here to `SamplingParams(constraint=...)`.

        Args:
            constraint: what answers have to match.

        Raises:
            CheckpointError: the checkpoint has no tokenizer.
            RequestError: the constraint cannot be enforced, or llguidance is not installed.
        """
        return self.grammars().grammar(constraint, self.trial)

    def kept_grammar(self, constraint: Constraint) -> CompiledGrammar | None:
        """Return what `grammar` would, if that is at once; None otherwise.

        Args:
            constraint: what answers have to match.
        """
        return None if self._grammars is None else self._grammars.kept(constraint)

    def grammars(self) -> Grammars:
        """Return what compiles constraints for this model. Raises as `grammar`."""
        tokenizer = self.require_tokenizer()
        if self._grammars is None:
            self._grammars = Grammars(tokenizer, self.config.model.vocab_size, self.config.eos_token_ids)
        return self._grammars

    def default_decoding(self) -> Decoding:
        """Return how text is decoded where a request says nothing: as generation_config.json says, else as it was made.

        That is "verified" under an adapter that drafts, and "block" otherwise.

        Raises:
            RequestError: generation_config.json names none that there is.
        """
        own = self.config.generation.get("decoding")
        if own is None:
            return "verified" if self.model.adapter_gate == "noisy" else "block"
        if own not in get_args(Decoding):
            known = ", ".join(map(repr, get_args(Decoding)))
            raise RequestError(f"generation_config.json: decoding: {own!r} is unknown; write one of {known}")
        return own

    def require_tokenizer(self) -> Any:
        """Return the tokenizer.

        Raises:
            CheckpointError: the checkpoint has none.
        """
        if self.tokenizer is None:
            raise CheckpointError(
                f"{self.path}: the checkpoint has no tokenizer; pass token ids, or add its tokenizer files"
            )
        return self.tokenizer


def load_model(
    path: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype = "float32",
    rope_scaling: Mapping[str, Any] | None = None,
    revision: str | None = None,
    adapter: str | Path | None = None,
    weights: Weights = "float",
) -> LoadedModel:
    """Load a checkpoint: an HF folder, a GGUF file, a folder with one GGUF file, a hub id at a commit, or an adapter.

    Reads safetensors and GGUF only; pickle files are never opened and code of a checkpoint is never run. The folder of
    an adapter in PEFT's format is loaded with the base that it names; the two stay apart in the model, so that
    `logits(..., adapter=False)` is the base, bit for bit.

    Args:
        path: local folder or file; or, where there is none of that name, a hub id: "org/name", "org/name/file.gguf".
        device: where the parameters go.
        dtype: of the parameters: "float32", "bfloat16", "float16" or "float64".
        rope_scaling: replaces the checkpoint's rope scaling, as in config.json: {"rope_type": "linear", "factor": 2.0}
            or {"rope_type": "yarn", "factor": 4.0}; the longest context grows with it. None leaves it as it is.
        revision: commit of a hub id, 40 hexadecimal digits. Without one nothing is ever downloaded.
        adapter: folder of an adapter to put on the checkpoint `path`, whatever base it names itself.
        weights: "float": as `dtype` says; "int8": the linear maps as 8-bit integers, everything else as `dtype` says.
            Dense models on CPU, for decoding and scoring only; an adapter that drafts stays beside them as it is.

    Raises:
        CheckpointError: the checkpoint cannot be used; the message names the file or field, its value and the fix.
        ConfigError: a device or dtype that torch does not know, a revision that is no commit, or weights that this
            model or device does not have.
    """
    check_device(device, field="device")
    source = open_checkpoint(path, revision=revision)
    if adapter is not None:
        if not is_adapter(Path(adapter)):
            raise CheckpointError(f"{adapter}: no adapter; expected a folder with {ADAPTER_CONFIG}")
        source = with_adapters(source, [Path(adapter)])
    architecture = model_config(source.raw, source.where)
    if rope_scaling is not None:
        architecture = with_rope_scaling(architecture, rope_scaling)
        refuse_window(source.family, source.raw, architecture.max_positions, source.where)
    found = None if source.adapter is None else source.adapter.members[0]
    check_weights(weights, architecture, device=device, gate=None if found is None else found.facts.gate)
    parameters = source.parameters(architecture, merge=False)
    tokenizer = source.tokenizer()
    config = checkpoint_config(
        source.raw, source.generation, tokenizer_facts(tokenizer), model=architecture, where=source.where
    )
    model = build_model(architecture, parameters, device=device, dtype=resolve_dtype(dtype))
    if found is not None:
        put_adapter(model, found)
    if weights == "int8":
        quantise(model)
    return LoadedModel(model, tokenizer, config, source.path, None if found is None else found.facts)


def load_without_weights(path: str | Path, *, revision: str | None = None) -> LoadedModel:
    """Open a checkpoint for its tokenizer and configuration; its model stays on the meta device, nothing is read.

    Args:
        path: as in `load_model`.
        revision: commit of a hub id.

    Raises:
        CheckpointError: the checkpoint cannot be used.
    """
    source = open_checkpoint(path, revision=revision)
    architecture = model_config(source.raw, source.where)
    tokenizer = source.tokenizer()
    config = checkpoint_config(
        source.raw, source.generation, tokenizer_facts(tokenizer), model=architecture, where=source.where
    )
    with torch.device("meta"):
        model = Transformer(config.model)
    return LoadedModel(model.eval(), tokenizer, config, source.path)


def build_model(
    config: ModelConfig, parameters: StoredParameters, *, device: str | torch.device, dtype: torch.dtype
) -> Transformer:
    """Return a model in evaluation mode with parameters copied from `parameters`."""
    with torch.device("meta"):
        model = Transformer(config)
    state: dict[str, torch.Tensor] = {}
    for rule in dict.fromkeys(parameters.source.values()):  # a fused tensor of the files is read once
        for name, tensor in zip(rule.model, parameters.take(rule.model), strict=True):
            # A copy even where the dtype fits: parts of a fused tensor, and a GGUF file's, lie in memory of others.
            state[name] = tensor.to(device=device, dtype=stored_dtype(name, dtype), copy=True)
    model.load_state_dict(state, strict=False, assign=True)
    model.tie()
    assert not any(tensor.is_meta for tensor in model.stored_tensors().values()), "a parameter was not loaded"
    return model.eval()


def check_device(device: str | torch.device, *, field: str) -> None:
    """Refuse a device that cannot hold a tensor here; `field` names it in the error.

    Raises:
        ConfigError: no such device, or torch was built without it.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).split("\n")[0]
        raise ConfigError(f"{field}: {str(device)!r} cannot be used here ({reason}); use cpu") from None


def resolve_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """Return the torch dtype of a name.

    Raises:
        ConfigError: not a floating-point dtype we load.
    """
    found = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if found not in DTYPES.values():
        raise ConfigError(f"dtype is {dtype!r}; expected one of {', '.join(DTYPES)}")
    assert found is not None
    return found
