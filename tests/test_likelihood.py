"""Likelihoods equal their definition, term by term, and do not depend on who is scored beside them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import difflm
from difflm.checkpoints.loading import LoadedModel, load_model
from difflm.data.packing import pack
from difflm.data.tokens import TokenDocument
from difflm.diffusion.noise import RowNoise
from difflm.diffusion.objectives import BlockDiffusion
from difflm.errors import RequestError
from difflm.likelihood import Continuation, likelihood_kind, likelihoods, measure, model_block_size
from difflm.scoring import logits, score, score_input
from difflm.training.validation import validate
from tests.decode.reference import FILLER, layout_logits
from tests.decode.tiny import MASK, tiny
from tests.drafters import drafters as drafters
from tests.rows import batch_of

COMBINATIONS = list(itertools.product((False, True), ("block", "causal"), ("bidirectional", "causal")))
TEXT = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7]


def elbo_by_hand(loaded: LoadedModel, prompt: Sequence[int], tokens: Sequence[int], size: int) -> float:
    """The bound as it is defined: every block, every number of masks, every set of them, one forward each."""
    row = [*prompt, *tokens]
    tail = -len(row) % size
    clean, total = [*row, *[FILLER] * tail], 0.0
    shift = loaded.config.logit_shift
    wanted = range(max(len(prompt), int(shift)), len(row))
    for block in sorted({place // size for place in wanted}):
        own = [place for place in wanted if place // size == block]
        for k in range(1, len(own) + 1):
            for chosen in itertools.combinations(own, k):
                noisy = [MASK if place in chosen or place >= len(row) else clean[place] for place in range(len(clean))]
                line = layout_logits(loaded, noisy, clean, size).log_softmax(-1)
                for place in chosen:
                    source = place - int(shift)
                    if shift and place % size == 0:
                        source += len(clean)
                    chance = 1 / len(own) / math.comb(len(own), k)
                    total += chance * len(own) / k * float(line[source, clean[place]])
    return total


@pytest.mark.parametrize(("shift", "clean", "noisy"), COMBINATIONS)
def test_the_bound_is_its_definition(shift: bool, clean: str, noisy: str) -> None:
    loaded = tiny(logit_shift=shift, clean=clean, noisy=noisy)  # type: ignore[arg-type]
    # P mod B in {0, 1, B - 1}, P < B, no prompt; one, two and three blocks are touched.
    spans = [(4, 7), (5, 7), (3, 6), (7, 12), (1, 3), (0, 6)]
    given = [Continuation(prompt=TEXT[:start], tokens=TEXT[start:stop]) for start, stop in spans]
    for (start, stop), found in zip(spans, likelihoods(loaded, given, samples=15), strict=True):
        expected = elbo_by_hand(loaded, TEXT[:start], TEXT[start:stop], 4)
        assert found.log_likelihood == pytest.approx(expected, abs=1e-9)
        assert found.standard_error == 0
        assert found.num_tokens == stop - start - int(shift and start == 0)
        assert found.greedy is None


@pytest.mark.parametrize("shift", [False, True])
def test_a_sampled_bound_is_the_exact_one_within_its_standard_error(shift: bool) -> None:
    loaded = tiny(logit_shift=shift)
    given = [Continuation(prompt=TEXT[:5], tokens=TEXT[5:])]
    [exact] = likelihoods(loaded, given, block_size=8, samples=255)
    assert (exact.standard_error, exact.forwards) == (0, 63)  # of the fuller block, 6 tokens of it
    errors: list[float] = []
    for seed in range(8):
        [found] = likelihoods(loaded, given, block_size=8, samples=40, seed=seed)
        assert found.standard_error
        assert found.forwards == 40
        errors.append((found.log_likelihood - exact.log_likelihood) / found.standard_error)
    assert max(abs(error) for error in errors) < 4
    assert 0.5 < math.sqrt(sum(error**2 for error in errors) / len(errors)) < 1.7
    assert len(set(errors)) == 8


@pytest.mark.parametrize(("shift", "clean", "noisy"), COMBINATIONS)
def test_the_chain_is_a_product_of_conditionals(shift: bool, clean: str, noisy: str) -> None:
    loaded = tiny(logit_shift=shift, clean=clean, noisy=noisy)  # type: ignore[arg-type]
    loaded.model.float()
    start = 5
    given = Continuation(prompt=TEXT[:start], tokens=TEXT[start:])
    [found] = likelihoods(loaded, [given], kind="chain")
    total, best = 0.0, True
    for place in range(start, len(TEXT)):
        if shift:  # the autoregressive chain of the same weights
            line = logits(loaded, torch.tensor([TEXT[:place]]), attention="causal")[0, -1].log_softmax(-1)
        else:  # the row's own mask behind everything before it
            row = torch.tensor([[*TEXT[:place], MASK]])
            line = logits(loaded, row, attention="causal")[0, -1].log_softmax(-1)
        total += float(line[TEXT[place]])
        best &= int(line.argmax()) == TEXT[place]
    assert found.log_likelihood == pytest.approx(total, abs=1e-3)
    assert (found.standard_error, found.num_tokens, found.forwards) == (0, len(TEXT) - start, 1)
    assert found.greedy is best


def test_the_chain_of_a_converted_model_is_its_parent_s() -> None:
    parent, converted = tiny(mask_id=None), tiny(logit_shift=True)
    given = [Continuation(prompt=TEXT[:3], tokens=TEXT[3:]), Continuation(tokens=TEXT)]
    for one, other in zip(*(likelihoods(each, given, kind="chain") for each in (parent, converted)), strict=True):
        assert one.log_likelihood == pytest.approx(other.log_likelihood, abs=1e-9)
        assert (one.num_tokens, one.greedy) == (other.num_tokens, other.greedy)
    assert likelihoods(parent, given) == likelihoods(parent, given, kind="chain")
    assert likelihoods(parent, given)[1].num_tokens == len(TEXT) - 1


@pytest.mark.parametrize(("shift", "clean", "noisy"), COMBINATIONS)
def test_next_token_is_what_left_to_right_decoding_draws_from(shift: bool, clean: str, noisy: str) -> None:
    loaded = tiny(logit_shift=shift, clean=clean, noisy=noisy, unassigned=(10, 11))  # type: ignore[arg-type]
    spans = [(5, 14), (0, 6), (1, 2), (4, 5), (9, 14)]
    given = [Continuation(prompt=TEXT[:start], tokens=TEXT[start:stop]) for start, stop in spans]
    written = likelihoods(loaded, given, kind="next_token")
    for (start, stop), found in zip(spans, written, strict=True):
        line_LV = logits(loaded, torch.tensor([TEXT[:stop]]), attention="causal")[0].double()
        line_LV[:, [10, 11, MASK]] = -math.inf
        places = range(max(start, 1), stop)
        total = sum(float(line_LV[place - 1].log_softmax(-1)[TEXT[place]]) for place in places)
        assert found.log_likelihood == pytest.approx(total, abs=1e-5)
        assert found.greedy is all(int(line_LV[place - 1].argmax()) == TEXT[place] for place in places)
        assert (found.standard_error, found.num_tokens, found.forwards) == (0, len(places), 1)
    params = difflm.SamplingParams(decoding="next_token", max_new_tokens=5, ignore_eos=True, logprobs=0)
    [completion] = difflm.generate(loaded, [TEXT[:4]], params)
    [found] = likelihoods(loaded, [Continuation(prompt=TEXT[:4], tokens=completion.tokens)], kind="next_token")
    assert found.greedy
    assert completion.logprobs is not None
    assert found.log_likelihood == pytest.approx(sum(each.logprob for each in completion.logprobs), abs=1e-4)


def test_a_drafter_s_likelihood_is_its_parent_s_and_that_of_transformers(drafters: Path) -> None:
    loaded = {name: load_model(drafters / name) for name in ("parent", "base", "drafter")}
    reference = AutoModelForCausalLM.from_pretrained(drafters / "parent").eval()
    pairs = [("It was ", "a word"), ("It was ", "light"), ("a" * 40, "b" * 20), ("x", "y")]
    given = [Continuation(prompt=loaded["base"].encode(p), tokens=loaded["base"].encode(t)) for p, t in pairs]
    assert {name: likelihood_kind(each) for name, each in loaded.items()} == {
        "parent": "chain", "base": "elbo", "drafter": "next_token",
    }  # fmt: skip
    drafted = likelihoods(loaded["drafter"], given)
    for name in ("parent", "base"):
        for one, other in zip(drafted, likelihoods(loaded[name], given, kind="next_token"), strict=True):
            assert one == replace(other, log_likelihood=pytest.approx(other.log_likelihood, abs=1e-5))
    for each, found in zip(given, drafted, strict=True):
        row = torch.tensor([[*each.prompt, *each.tokens]])
        with torch.no_grad():
            line_LV = reference(row).logits[0].log_softmax(-1)
        places = torch.arange(len(each.prompt), row.shape[1])
        assert found.log_likelihood == pytest.approx(float(line_LV[places - 1, row[0, places]].sum()), abs=1e-3)
        assert found.num_tokens == len(each.tokens)
    [written] = difflm.generate(loaded["drafter"], ["It was "], difflm.SamplingParams(max_new_tokens=8))
    assert likelihoods(loaded["drafter"], [replace(given[0], tokens=written.tokens)])[0].greedy


def test_the_default_kind_is_that_of_the_model_s_decoding(drafters: Path) -> None:
    for decoding, kind in (("block", "elbo"), ("next_token", "next_token"), ("verified", "next_token")):
        assert likelihood_kind(tiny(clean="causal", generation={"decoding": decoding})) == kind
        assert likelihood_kind(tiny(clean="causal", generation={"decoding": decoding}), "elbo") == "elbo"
    assert likelihood_kind(tiny(mask_id=None)) == "chain"
    with pytest.raises(RequestError, match=r"generation_config.json: decoding: 'fast' is unknown"):
        likelihood_kind(tiny(generation={"decoding": "fast"}))
    drafter = load_model(drafters / "drafter")
    blocks = replace(drafter, config=replace(drafter.config, generation={"decoding": "block"}))
    assert likelihood_kind(blocks) == "next_token", "whatever its base is decoded with"
    for kind in ("elbo", "chain"):
        with pytest.raises(RequestError) as refused:
            likelihoods(drafter, [Continuation(prompt=[1], tokens=[2])], kind=kind)
        assert f"kind: '{kind}' reads the rows of masks, with which the adapter on" in str(refused.value)
        assert str(refused.value).endswith(
            "only drafts (its gate is 'noisy'); use 'next_token', or load the base alone"
        )


def test_greedy_says_whether_every_token_is_the_best() -> None:
    loaded, row = tiny(logit_shift=True), TEXT[:3]
    with torch.no_grad():
        loaded.model.head.weight[MASK] = 0  # else the untrained model's best id is often the mask
    for _ in range(6):
        row = [*row, int(logits(loaded, torch.tensor([row]), attention="causal")[0, -1].argmax())]
    tokens = row[3:]
    # Beside others in one batch, in any order.
    wrong = [*tokens[:-1], (tokens[-1] + 1) % MASK]
    given = [Continuation(prompt=TEXT[:3], tokens=each) for each in (wrong, tokens, tokens[:2], wrong)]
    assert [each.greedy for each in likelihoods(loaded, given, kind="chain")] == [False, True, True, False]


@pytest.mark.parametrize("kind", ["elbo", "chain", "next_token"])
def test_a_value_does_not_depend_on_batch_or_order(kind: str) -> None:
    loaded = tiny(logit_shift=True)
    spans = [(0, 5), (3, 14), (5, 6), (1, 9), (8, 14), (0, 14)]
    given = [Continuation(prompt=TEXT[:start], tokens=TEXT[start:stop]) for start, stop in spans]
    alone = [likelihoods(loaded, [each], kind=kind, block_size=8, samples=5)[0] for each in given]  # type: ignore[arg-type]
    for batch_tokens in (1, 100, 10**6):
        for order in (range(6), (3, 5, 1, 0, 2, 4)):
            found = likelihoods(
                loaded, [given[i] for i in order], kind=kind, block_size=8, samples=5, batch_tokens=batch_tokens  # type: ignore[arg-type]
            )  # fmt: skip
            for number, each in zip(order, found, strict=True):
                assert each.log_likelihood == pytest.approx(alone[number].log_likelihood, abs=1e-9)
                assert each.standard_error == pytest.approx(alone[number].standard_error, abs=1e-9)
                assert each.forwards == alone[number].forwards


def test_a_forward_holds_no_more_than_it_may() -> None:
    loaded, sizes = tiny(), list[int]()
    loaded.model.embedding.register_forward_hook(lambda module, given, found: sizes.append(given[0].numel()))
    given = [Continuation(prompt=TEXT[:6], tokens=TEXT[6:stop]) for stop in (7, 9, 14)]
    likelihoods(loaded, given, samples=7, block_size=4, batch_tokens=100)
    assert max(clean + noisy for clean, noisy in itertools.pairwise(sizes)) <= 100
    assert len(sizes) > 4


def test_a_prompt_is_read_once_for_all_its_masks_and_choices() -> None:
    loaded, sizes = tiny(), list[int]()
    loaded.model.embedding.register_forward_hook(lambda module, given, found: sizes.append(given[0].numel()))
    prompt = TEXT * 6
    given = [Continuation(prompt=prompt[:80], tokens=each) for each in ([1], [2, 3, 4], [5, 6, 7])]
    likelihoods(loaded, given, block_size=4, samples=7)
    # 80 clean rows; a block for each of the 1 + 7 + 7 masks.
    assert sizes == [80, 15 * 4]


def test_choices_of_a_question_share_their_noise() -> None:
    loaded, prompt = tiny(), TEXT[:3]
    choices = [[7, 7, 8, 9, 1, 2, 3, 4, 5, 6], [7, 7, 8, 9, 1, 2, 3, 4, 5, 0]]

    def spread(keys: tuple[int | None, int | None]) -> float:
        """Variance of the difference of the choices, over seeds."""
        given = [Continuation(prompt=prompt, tokens=each, key=key) for each, key in zip(choices, keys, strict=True)]
        values = torch.tensor([
            [each.log_likelihood for each in likelihoods(loaded, given, block_size=16, samples=2, seed=seed)]
            for seed in range(16)
        ])  # fmt: skip
        return float((values[:, 0] - values[:, 1]).var())

    assert spread((None, None)) == spread((None, None))
    assert spread((None, None)) < 0.5 * spread((1, 2))
    same = [Continuation(prompt=prompt, tokens=choices[0], key=key) for key in (None, None, 4, 5)]
    values = [each.log_likelihood for each in likelihoods(loaded, same, block_size=16, samples=2)]
    assert values[0] == pytest.approx(values[1], abs=1e-9)
    assert len({round(value, 6) for value in values[1:]}) == 3


def test_a_document_s_last_block_ends_with_it() -> None:
    loaded = tiny()
    loaded.model.float()
    ending = Continuation(prompt=TEXT[:5], tokens=TEXT[5:7], ends=True)
    closed, opened = likelihoods(loaded, [ending, replace(ending, ends=False)])
    assert closed.log_likelihood != pytest.approx(opened.log_likelihood, abs=1e-3)
    clean, expected = torch.tensor([TEXT[:7]]), 0.0
    for masked, weight in (([5], 0.5), ([6], 0.5), ([5, 6], 0.5)):  # 1 / (k C(2, k))
        noisy = clean.clone()
        noisy[0, masked] = MASK
        expected -= weight * float(score(loaded, clean, noisy, block_size=4).nll_BL.sum())
    assert closed.log_likelihood == pytest.approx(expected, abs=1e-4)
    chains = likelihoods(loaded, [ending, replace(ending, ends=False)], kind="chain")
    assert chains[0].log_likelihood == pytest.approx(chains[1].log_likelihood, abs=1e-4)


def test_validation_is_the_likelihood_of_its_documents() -> None:
    loaded = tiny()
    generator = torch.Generator().manual_seed(0)
    texts = [torch.randint(1, MASK, (size,), generator=generator).tolist() for size in (7, 4, 9)]
    rows = pack([TokenDocument(token=each) for each in texts], row_length=12, pad_id=0, eos_id=0)
    given = [Continuation(tokens=each, ends=True) for each in texts]
    found = validate(
        loaded.model, rows, block_sizes=[1, 2], parametrisation=loaded.config.parametrisation, mask_id=MASK, seed=0,
        draws=60, autoregressive=False,
    )  # fmt: skip
    for size, tolerance in ((1, 1e-6), (2, 0.05)):
        exact = likelihoods(loaded, given, block_size=size, samples=3)
        total = sum(each.log_likelihood for each in exact)
        assert -math.log(found.nelbo[size]) == pytest.approx(total / 20, abs=tolerance)


@torch.no_grad()
def test_measure_is_the_loss_row_by_row() -> None:
    loaded = tiny()
    batch = batch_of([[5, 6], [12], [3]], row_length=12)
    objective = BlockDiffusion(block_size=4)
    inputs = objective.prepare(batch, mask_id=MASK, noise=RowNoise(0))
    scores, total_B = measure(loaded.model, inputs)
    assert float(total_B.sum()) == pytest.approx(float(objective.loss(scores, inputs)[0]), rel=1e-6)
    for row in range(3):
        alone = objective.prepare(batch.take(torch.tensor([row])), mask_id=MASK, noise=RowNoise(0))
        expected = objective.loss(score_input(loaded.model, alone), alone)[0]
        assert float(total_B[row]) == pytest.approx(float(expected), rel=1e-6)


def test_block_sizes_come_from_the_model() -> None:
    assert model_block_size(tiny(block_size=8, generation={"block_size": 16})) == 16
    assert model_block_size(tiny(block_size=8)) == 8
    assert model_block_size(tiny(block_size=None)) == 32


def test_what_cannot_be_scored_is_refused() -> None:
    loaded, parent, given = tiny(unassigned=[11]), tiny(mask_id=None), [Continuation(tokens=[1])]
    padded = [Continuation(prompt=[11], tokens=[1]), Continuation(prompt=[1], tokens=[2, 11])]
    refusals = [
        (lambda: likelihoods(parent, given, kind="elbo"), "kind: 'elbo' needs a mask token and tiny has none"),
        (lambda: likelihoods(loaded, given, kind="ar"), "kind: 'ar' is unknown; choose 'elbo', 'chain' or"),  # type: ignore[arg-type]
        (lambda: likelihoods(loaded, given, samples=0), "samples: 0 cannot be used"),
        (lambda: likelihoods(loaded, given, samples=2.5), "samples: 2.5 cannot be used"),  # type: ignore[arg-type]
        (lambda: likelihoods(loaded, given, block_size=0), "block_size: 0 cannot be used"),
        (lambda: likelihoods(loaded, given, batch_tokens=0), "batch_tokens: 0 cannot be used; give an integer >= 1"),
        (lambda: likelihoods(loaded, given, seed=-1), "seed: -1 cannot be used; give an integer >= 0"),
        (lambda: likelihoods(loaded, given, seed=None), "seed: None cannot be used"),  # type: ignore[arg-type]
        (lambda: likelihoods(loaded, given, seed=True), "seed: True cannot be used"),
        (lambda: likelihoods(loaded, [*given, Continuation(tokens=[])]), r"continuations\[1\]: it has no tokens"),
        (lambda: likelihoods(loaded, [Continuation(tokens=[1] * 97)]), "97 tokens do not fit the context of 96"),
        (lambda: likelihoods(loaded, padded, kind="next_token"), r"continuations\[1\]: id 11 is never written"),
        (lambda: likelihoods(loaded, [Continuation(tokens=[13])]), "id 13 is no token of a text"),
        (lambda: likelihoods(loaded, [Continuation(tokens=[1], prompt=[MASK])]), f"id {MASK} is no token of a text"),
    ]
    for refused, message in refusals:
        with pytest.raises(RequestError, match=message):
            refused()
    assert likelihoods(loaded, []) == []
    nothing = likelihoods(parent, given)[0]  # nothing stands before its only token
    assert (nothing.log_likelihood, nothing.num_tokens, nothing.forwards) == (0, 0, 0)
