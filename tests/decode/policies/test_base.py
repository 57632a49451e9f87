"""The state that policies share, and the choice that most of them make."""

from __future__ import annotations

from difflm.decode.policies.base import Draft, threshold_or_top

EOS, MASK = 7, 8


def draft(tokens: list[int], *, num_prompt: int, limit: int, start: int) -> Draft:
    return Draft(
        tokens=tokens,
        decided=[token != MASK for token in tokens],
        num_prompt=num_prompt,
        limit=limit,
        mask_id=MASK,
        eos_ids=frozenset({EOS}),
        start=start,
        stop=len(tokens),
    )


def test_generated_tokens_end_behind_the_first_eos_and_at_the_limit() -> None:
    state = draft([EOS, 1, 2, 3, EOS, 4, EOS, MASK], num_prompt=2, limit=8, start=4)
    assert state.generated() == ([2, 3, EOS], EOS)
    assert draft(state.tokens, num_prompt=2, limit=4, start=4).generated() == ([2, 3], None)
    assert state.masked() == [7]
    assert state.block() == (EOS, 4, EOS, MASK)
    assert (state.first_eos(0, 8), state.first_eos(1, 8), state.first_eos(5, 6)) == (0, 4, None)


def test_the_choice_and_what_made_it() -> None:
    places, confidence = (3, 5, 6), (0.5, 0.9, 0.5)
    assert threshold_or_top(confidence, places, threshold=0.5, least=1) == ((5,), "threshold")
    assert threshold_or_top(confidence, places, threshold=0.5, least=2) == ((3, 5), "top_k")
    assert threshold_or_top(confidence, places, threshold=0.9, least=0) == ((), "none")
    assert threshold_or_top((), (), threshold=0.9, least=2) == ((), "none")
