"""Left-to-right decoding, driven by hand."""

from __future__ import annotations

from difflm.decode.events import Forwards
from difflm.decode.left_to_right import LeftToRightDecoding
from difflm.decode.sequences import decoding_of
from tests.decode.test_runner import request_of
from tests.decode.test_sequences import answer
from tests.decode.tiny import following


def test_next_token_decoding_reads_the_prompt_and_counts_every_token_once() -> None:
    state = decoding_of(
        request_of(prompt=(1, 2, 3), policy=None, mask_id=None, max_new_tokens=2, logit_shift=True, block_size=1)
    )
    assert isinstance(state, LeftToRightDecoding)
    work = following(state)
    assert (work.kind, work.tokens, work.num_clean, work.places) == ("denoise", (1, 2, 3), 3, (3,))
    assert work.row_of(3) == 2
    assert len(state.absorb(work, answer(7))) == 2
    work = following(state)
    assert (work.start, work.tokens, work.places, work.row_of(4)) == (3, (7,), (4,), 0)
    state.absorb(work, answer(8))
    assert state.outcome is not None
    assert state.outcome.tokens == [7, 8]
    assert state.outcome.forwards == Forwards(denoise=2)
