"""A model that answers with a given text, whatever the conversation: as a trained model would do."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from difflm.checkpoints.loading import LoadedModel
from difflm.models.cache import PackedAttention
from difflm.models.transformer import Attend, Transformer
from difflm.serving import planning
from tests.serving.servers import Running, serving

MARKED = """{% if tools %}<|system|>{% for t in tools %}{{ t | tojson }}
{% endfor %}{% endif %}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}\
{% for c in m.tool_calls or [] %}<tool_call>
{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}
</tool_call>{% endfor %}{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}\
{% if add_generation_prompt %}<|assistant|>{% endif %}"""
"""As Hermes and Qwen write calls."""
BARE = """{% for t in tools or [] %}{{ t | tojson }}{% endfor %}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}\
{% for c in m.tool_calls or [] %}{"name": "{{ c.function.name }}", "parameters": {{ c.function.arguments | tojson }}}\
{% endfor %}{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}\
{% if add_generation_prompt %}<|assistant|>{% endif %}"""
"""As Llama 3 does."""


class Saying(nn.Module):
    """Stands in for a transformer: each position behind the prompt has its token of an answer, then EOS.

    Args:
        loaded: whose configuration and EOS it has.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        super().__init__()
        self.config = loaded.model.config
        self.embedding = nn.Embedding(self.config.vocab_size, 1)
        self.adapter_gate, self.draft_head = "all", None
        self.eos, self.shift = loaded.config.eos_token_ids[0], int(loaded.config.parametrisation.logit_shift)
        self.start, self.answer = 0, list[int]()

    def forward(self, token_BN: Tensor, position_BN: Tensor, attend: Attend) -> Tensor:
        """Return hidden states that carry the position."""
        assert isinstance(attend, PackedAttention)
        return position_BN[..., None].float()

    def head(self, hidden_MD: Tensor) -> Tensor:
        """Return the logits of the rows."""
        logits = torch.zeros(len(hidden_MD), self.config.vocab_size)
        for row, position in enumerate(hidden_MD[:, 0].tolist()):
            place = int(position) + self.shift - self.start
            logits[row, self.answer[place] if 0 <= place < len(self.answer) else self.eos] = 20.0
        return logits


class Speaker:
    """A server of such a model.

    Args:
        server: of it.
        model: its model.
    """

    def __init__(self, server: Running, model: Saying) -> None:
        self.server, self.model = server, model
        self.prompts: list[list[int]] = []

    def says(self, text: str) -> None:
        """Let the answers from now on be this text."""
        self.model.answer = self.server.service.loaded.encode(text)

    @property
    def prompt(self) -> str:
        """The text of the last prompt."""
        return self.server.service.loaded.decode(self.prompts[-1], skip_special_tokens=False)


def with_template(loaded: LoadedModel, template: str) -> LoadedModel:
    """Return a model with another chat template."""
    tokenizer = copy.deepcopy(loaded.require_tokenizer())
    tokenizer.chat_template = template
    return LoadedModel(loaded.model, tokenizer, loaded.config, loaded.path)


@contextmanager
def speaking(loaded: LoadedModel, template: str) -> Iterator[Speaker]:
    """Serve such a model while the context lasts, one request after another.

    Args:
        loaded: whose tokenizer and configuration it has.
        template: of its chats.
    """
    own = with_template(loaded, template)
    own.config = replace(own.config)
    model = Saying(loaded)
    own.model = cast("Transformer", model)
    real: Any = planning.conversation_ids

    def recording(*words: Any, **options: Any) -> list[int]:
        ids = real(*words, **options)
        speaker.prompts.append(ids)
        model.start = len(ids)
        return ids

    with serving(own, prefix_caching=False) as server, pytest.MonkeyPatch.context() as patch:
        speaker = Speaker(server, model)
        patch.setattr(planning, "conversation_ids", recording)
        yield speaker
