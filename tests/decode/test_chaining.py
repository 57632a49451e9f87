"""Drafts that are chosen one after another: against loops, alone and in company, and never seen in the text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from difflm.checkpoints.loading import LoadedModel, load_model
from difflm.decode import chaining
from difflm.decode.drawing import Draw, gumbel
from difflm.decode.engine import Engine
from difflm.decode.events import Completion, Drafted, Finished
from difflm.decode.policies.verified import Verified
from difflm.decode.predicting import Slot, predict
from difflm.decode.ratio import DRAFTING, Ratio
from difflm.decode.request import SamplingParams
from difflm.decode.sampling import Candidates, Rows, Rule, filtered
from difflm.decode.work import Work
from difflm.models.adapters import attach_adapter
from difflm.models.quantised import QuantisedLinear, quantise
from difflm.models.transformer import Transformer
from tests.decode.drafting import answer, causal, check_equal, check_same, pair
from tests.decode.policies.test_verified import FAMILIES, cases, converted
from tests.decode.policies.test_verified import folders as folders  # a fixture
from tests.decode.test_drawing import keyed
from tests.decode.test_forwards import completions, engine_of
from tests.decode.test_runner import request_of
from tests.decode.tiny import MASK, VOCAB, tiny
from tests.products import needs_products


def headed(loaded: LoadedModel, *, rank: int = 4, scale: float = 1.0, seed: int = 0) -> LoadedModel:
    """Return the model with a random draft head, put on in place; a scale of 0 leaves it at zeros."""
    generator = torch.Generator().manual_seed(seed)
    attach_adapter(loaded.model, (), generator=generator, gate="noisy", draft_rank=rank)
    head = loaded.model.draft_head
    assert head is not None
    with torch.no_grad():
        for each in (head.down, head.up):
            each.add_(scale * torch.randn(each.shape, generator=generator))
    return loaded


def work_of(number: int, rule: Rule, *, drafts: int, window: int, **facts: Any) -> Work:
    """Return a forward behind five tokens that verifies so many drafts and predicts so many places with MASK rows."""
    shift = number % 2 > 0
    common: dict[str, Any] = {"policy": None, "block_size": 1, "logit_shift": True, "noisy_shift": shift}
    request = request_of(
        id=number, prompt=(1, 2), rule=rule, seed=40 + number, drafting=Verified(window=8), **common, **facts
    )
    masks = (MASK,) * (window + (not shift) if window else 0)
    checked = tuple((3 * number + 5 * i) % MASK for i in range(drafts))
    return Work(
        request=request,
        kind="denoise",
        start=4,
        tokens=(7, *checked, *masks),
        num_clean=1 + drafts,
        places=tuple(range(5, 6 + drafts + window)),
        drafts=checked,
        generated=(4, 9, 7) if rule.needs_history else (),
    )


def slot_of(work: Work) -> Slot:
    """Return what is kept of a request; under `Ratio` the drafts that it verifies had distributions."""
    drawn = torch.Generator().manual_seed(work.request.id)
    share = torch.rand(len(work.drafts), VOCAB, generator=drawn, dtype=torch.float64).softmax(-1)
    return Slot(torch.Generator(), memory={"drafting": share} if work.drafts else {})


RULES: dict[str, Draw | Ratio] = {
    "best": Draw(suppressed=(MASK,), keyed=True),
    "drawn": Draw(suppressed=(MASK,), keyed=True, temperature=0.9, top_p=0.9),
    "bias": Draw(suppressed=(MASK,), keyed=True, logit_bias=((2, 1.5), (8, -1.0))),
    "penalties": Draw(suppressed=(MASK,), keyed=True, repetition_penalty=1.5, frequency_penalty=0.5),
    "all": Draw(
        suppressed=(MASK, 11), keyed=True, temperature=1.3, top_k=6, min_p=0.01, presence_penalty=0.7,
        logit_bias=((3, 2.0),),
    ),
    "ratio": Ratio(draw=Draw(suppressed=(MASK,), keyed=True, temperature=1.1, top_k=9)),
    "ratio best": Ratio(draw=Draw(suppressed=(MASK,), keyed=True, temperature=1.1), best=True),
}  # fmt: skip


def processed(rule: Draw, logits_V: Tensor, work: Work, place: int) -> Tensor:
    """Return the logits of a drafted place, token by token."""
    history = [*work.generated, *work.drafts]
    out = logits_V.tolist()
    for token in range(VOCAB):
        out[token] += dict(rule.logit_bias).get(token, 0.0)
        barred = place < len(work.request.prompt) + work.request.min_tokens and token in work.request.eos_ids
        if token in rule.suppressed or barred:
            out[token] = -torch.inf
        if rule.needs_history and token in [*work.request.prompt, *history]:
            out[token] = (
                out[token] / rule.repetition_penalty if out[token] > 0 else out[token] * rule.repetition_penalty
            )
        if token in history and rule.needs_history:
            out[token] -= rule.presence_penalty + rule.frequency_penalty * history.count(token)
    return torch.tensor(out, dtype=logits_V.dtype)


def share_of(rule: Draw, logits_V: Tensor) -> Tensor:
    """Return the distribution of processed logits."""
    scaled_V = logits_V / (rule.temperature or 1.0)
    if rule.temperature:
        weight_V = scaled_V.softmax(-1)
        scaled_V = scaled_V.masked_fill(weight_V < rule.min_p * weight_V.max(), -torch.inf)
        scaled_V = filtered(scaled_V[None], rule.top_k, rule.top_p)[0]
    return scaled_V.softmax(-1)


def looped(
    model: Transformer, work: Work, hidden_ND: Tensor, said: int, candidates: int
) -> tuple[list[int], list[float], list[Tensor]]:
    """Return a window's drafts, their confidences and distributions: a row at a time, the whole vocabulary."""
    rule, head = work.request.rule, model.draft_head
    assert isinstance(rule, Draw | Ratio)
    assert head is not None
    draw = rule.draw if isinstance(rule, Ratio) else rule
    tokens, confidences, shares = list[int](), list[float](), list[Tensor]()
    for place in work.places[len(work.drafts) + 1 :]:
        row_D = hidden_ND[work.row_of(place)]
        best = processed(draw, model.head.weight @ row_D, work, place).topk(candidates).indices
        corrected_D = head(row_D[None], model.embedding.weight[said][None])[0]
        logits_V = torch.full((VOCAB,), -torch.inf, dtype=row_D.dtype)
        logits_V[best] = (model.head.weight @ corrected_D)[best]
        shares.append(share_of(draw, processed(draw, logits_V, work, place)))
        score_V = shares[-1].log()
        if draw.temperature and not (isinstance(rule, Ratio) and rule.best):
            stream = DRAFTING if isinstance(rule, Ratio) else 0
            score_V = score_V + gumbel([keyed((place,), seed=work.request.seed)], VOCAB, stream=stream)[0]
        said = int(score_V.argmax())
        tokens.append(said)
        confidences.append(float(shares[-1][said]))
    return tokens, confidences, shares


@pytest.mark.parametrize("candidates", [VOCAB, 3])
@pytest.mark.parametrize("name", RULES)
@torch.inference_mode()
def test_drafts_are_those_of_a_loop_over_rows(name: str, candidates: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chaining, "CANDIDATES", candidates)
    rule, sizes = RULES[name], ((0, 2), (2, 0), (1, 5), (0, 3), (3, 1))  # drafts to be verified, places to draft
    changed = 0
    for seed in range(3):
        model = headed(causal(seed), seed=seed).model
        works = [
            work_of(number, rule, drafts=drafts, window=window, min_tokens=6 * (number % 2), eos_ids=frozenset({1, 5}))
            for number, (drafts, window) in enumerate(sizes)
        ]
        rows = [len(work.tokens) for work in works]
        drawn = torch.Generator().manual_seed(seed)
        hidden_ND = torch.randn(sum(rows), 16, generator=drawn, dtype=torch.float64)
        firsts = [sum(rows[:number]) for number in range(len(rows))]
        slots, before = [slot_of(work) for work in works], [slot_of(work) for work in works]
        found = predict(model, works, slots, firsts, hidden_ND)
        head, model.draft_head = model.draft_head, None
        plain = predict(model, works, before, firsts, hidden_ND)
        model.draft_head = head
        for work, slot, first, ours, theirs in zip(works, slots, firsts, found, plain, strict=True):
            clean = len(work.drafts) + 1
            assert (ours.tokens[:clean], ours.confidences[:clean]) == (
                theirs.tokens[:clean],
                theirs.confidences[:clean],
            )
            own_ND = hidden_ND[first : first + len(work.tokens)]
            tokens, confidences, shares = looped(model, work, own_ND, int(ours.tokens[clean - 1]), candidates)
            assert ours.tokens[clean:] == tokens
            assert ours.confidences[clean:] == pytest.approx(confidences)
            changed += sum(one != other for one, other in zip(ours.tokens[clean:], theirs.tokens[clean:], strict=True))
            if isinstance(rule, Ratio):
                kept = slot.memory.get("drafting")
                assert (kept is not None) == bool(shares)
                if kept is not None:
                    torch.testing.assert_close(kept, torch.stack(shares))
    assert changed > 5


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_text_of_every_family_is_that_of_next_token(family: str, dtype: str, folders: dict[str, Path]) -> None:
    number = FAMILIES.index(family) + (dtype == "float32")
    noisy = ("causal", "bidirectional")[number // 2 % 2]
    loaded = headed(converted(load_model(folders[family], dtype=dtype), shift=number % 2 > 0, noisy=noisy))
    drafting = {"window": 3 + number % 6, "start": 8, "fused": (True, False, None)[number % 3], "fallback": False}
    for sampling in ({}, {"temperature": 1.0, "top_p": 0.95, "presence_penalty": 0.5}):
        params = pair(sampling=sampling, drafting=drafting, max_new_tokens=12, seed=number, logprobs=2)
        check_equal(loaded, [5, 9, 33], params)


@settings(max_examples=40)
@given(cases())
def test_the_text_of_any_mixture_is_that_of_next_token(
    case: tuple[LoadedModel, list[int], tuple[SamplingParams, SamplingParams], int],
) -> None:
    loaded, prompt, params, room = case
    check_equal(headed(loaded), prompt, params, prefill_tokens=room)


def drafted(loaded: LoadedModel, params: SamplingParams) -> tuple[list[Drafted], Completion]:
    """Return what a request drafts, and its completion."""
    events = list(Engine(loaded).stream([1, 2, 4], params))
    assert isinstance(events[-1], Finished)
    return [event for event in events if isinstance(event, Drafted)], events[-1].completion


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.0}, {"temperature": 1.0, "check": "ratio"}])
def test_zeros_change_nothing_and_random_numbers_do(sampling: dict[str, Any]) -> None:
    drafting = {"window": 6, "start": 6, "fallback": False, "check": sampling.get("check", "same")}
    sampling = {name: value for name, value in sampling.items() if name != "check"}
    params, _ = pair(sampling=sampling, drafting=drafting, max_new_tokens=20, seed=1)
    found = [
        drafted(loaded, params)
        for loaded in (
            causal(3, block_size=6),
            headed(causal(3, block_size=6), scale=0.0),
            headed(causal(3, block_size=6)),
        )
    ]
    (plain, text), (zeros, same), (random, _) = found
    assert [(each.positions, each.tokens) for each in zeros] == [(each.positions, each.tokens) for each in plain]
    for ours, theirs in zip(zeros, plain, strict=True):
        assert ours.confidences == pytest.approx(theirs.confidences)
    assert (same.tokens, same.drafts) == (text.tokens, text.drafts)
    assert [each.tokens for each in random] != [each.tokens for each in plain]


@pytest.mark.parametrize("execution", ["plain", "padded"])
def test_requests_beside_each_other_draft_as_alone(execution: str) -> None:
    loaded = headed(causal(6, block_size=8, eos=(3,)))
    requests = list[tuple[list[int], SamplingParams]]()
    for number, sampling in enumerate(({}, {"temperature": 0.9}, {"presence_penalty": 0.5}, {}, {})):
        drafting = {"window": 2 + number, "fused": (True, False, None)[number % 3], "fallback": False}
        requests += [
            ([1 + number, 2, 5][: 1 + number % 3], params)
            for params in pair(sampling=sampling, drafting=drafting, max_new_tokens=6 + number, seed=number)
        ]
    options: dict[str, Any] = {"prefill_tokens": 4, "max_requests": 4}
    if execution == "plain":
        found = completions(Engine(loaded, **options), requests)
    else:
        found = completions(engine_of(loaded, lambda body: body, **options), requests)
    for each, (prompt, params) in zip(found, requests, strict=True):
        alone = answer(loaded, prompt, params)
        check_same(each, alone)
        assert each.drafts == alone.drafts


def following_pairs(*, eos: Sequence[int] = (), wise: bool) -> LoadedModel:
    """Return a model whose clean rows know the token before alone; its draft head does so, too, if it is wise.

    The head is the identity of the second half of its input: x = silu(x) - silu(-x).
    """
    loaded = causal(8, block_size=8, eos=eos)  # six tokens in a ring
    model, width = loaded.model, loaded.model.config.hidden_size
    with torch.no_grad():
        for layer in model.layers:
            layer.attention.output.weight.zero_()  # pyright: ignore
            layer.mlp.down.weight.zero_()  # pyright: ignore
        model.norm.weight.fill_(1.0)
        headed(loaded, rank=2 * width, scale=0.0)
        head = model.draft_head
        assert head is not None
        head.down.zero_()
        if wise:
            eye = torch.eye(width, dtype=head.up.dtype)
            head.down[:, width:] = torch.cat([eye, -eye])
            head.up.copy_(100.0 * torch.cat([eye, -eye], dim=1))
    return loaded


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.01}], ids=["best", "drawn"])
def test_a_head_that_knows_what_follows_has_everything_accepted(sampling: dict[str, Any]) -> None:
    drafting = {"window": 8, "start": 8, "fused": False, "fallback": False}
    verified, plain = pair(sampling=sampling, drafting=drafting, max_new_tokens=27)
    found = [answer(following_pairs(wise=wise), [1, 2], verified) for wise in (True, False)]
    for each in found:
        check_same(each, answer(following_pairs(wise=False), [1, 2], plain))
    (wise, without) = (each.drafts for each in found)
    assert wise is not None
    assert without is not None
    assert wise.accepted == wise.drafted == 21
    assert without.accepted < without.drafted
    assert found[0].forwards.denoise + found[0].forwards.commit == 6


def test_an_end_is_the_last_token_that_is_drafted() -> None:
    verified, plain = pair(drafting={"window": 8, "start": 8, "fused": False}, max_new_tokens=12)
    text = answer(following_pairs(wise=True), [1, 2, 4], plain).tokens
    ends = 0
    for place, token in enumerate(text):
        if token in text[:place]:
            continue
        loaded = following_pairs(eos=(token,), wise=True)
        events, found = drafted(loaded, verified)
        check_same(found, answer(loaded, [1, 2, 4], plain))
        ends += sum(token == each.tokens[-1] for each in events)
        assert not any(token in each.tokens[:-1] for each in events)
    assert ends > 1


@needs_products
@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.0}])
def test_eight_bit_weights_keep_the_text_and_are_read_by_row(sampling: dict[str, Any]) -> None:
    loaded = headed(causal(5, block_size=6))
    loaded.model.float()
    quantise(loaded.model)
    verified, plain = pair(sampling=sampling, drafting={"fallback": False, "start": 6}, max_new_tokens=16, logprobs=1)
    check_same(answer(loaded, [1, 2], verified), answer(loaded, [1, 2], plain))
    head = loaded.model.head
    assert isinstance(head, QuantisedLinear)
    id_KC = torch.tensor([[0, 4, 9], [1, 2, 12]])
    assert torch.equal(chaining._weights(head, id_KC), head.weight[id_KC])


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float32])
@torch.inference_mode()
def test_clean_rows_are_the_same_in_every_type(kind: torch.dtype) -> None:
    model = headed(causal(2)).model.to(kind)
    work = work_of(1, RULES["best"], drafts=2, window=4, logprobs=2)
    hidden_ND = torch.randn(len(work.tokens), 16, generator=torch.Generator().manual_seed(1)).to(kind)
    (ours,) = predict(model, [work], [slot_of(work)], [0], hidden_ND)
    model.draft_head = None
    (theirs,) = predict(model, [work], [slot_of(work)], [0], hidden_ND)
    assert ours.tokens[3:] != theirs.tokens[3:]
    for name in ("tokens", "confidences", "scores"):
        assert getattr(ours, name)[:3] == getattr(theirs, name)[:3]


@torch.inference_mode()
def test_the_vocabulary_is_multiplied_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = headed(causal(2)).model, list[int]()
    model.head.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    transfers: list[Any] = []
    read = Tensor.tolist
    monkeypatch.setattr(Tensor, "tolist", lambda self: transfers.append(len(self)) or read(self))
    works = [work_of(number, RULES["best"], drafts=1, window=4 + number) for number in range(3)]
    hidden_ND = torch.zeros(sum(len(work.tokens) for work in works), 16, dtype=torch.float64)
    firsts = [sum(len(work.tokens) for work in works[:number]) for number in range(3)]
    predict(model, works, [slot_of(work) for work in works], firsts, hidden_ND)
    assert (len(seen), len(transfers)) == (1, 1)


def test_without_drafts_or_without_their_policy_the_rule_is_asked_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("difflm.decode.predicting.chained", lambda *_: pytest.fail("nothing is drafted"))
    model = headed(tiny(3, clean="causal")).model
    work = work_of(1, RULES["best"], drafts=2, window=0)
    blocks = Work(request=request_of(id=3), kind="denoise", start=4, tokens=(MASK,) * 4, num_clean=0, places=(4, 6))
    assert (work.drafted, blocks.drafted) == (0, 0)
    for each in (work, blocks):
        (found,) = predict(model, [each], [slot_of(each)], [0], torch.zeros(4, 16, dtype=torch.float64))
        assert len(found.tokens) == len(each.places)


def test_plain_and_spread_candidates_say_the_same() -> None:
    drawn = torch.Generator().manual_seed(0)
    candidates = Candidates(
        id_MC=torch.tensor([[1, 4, 7], [0, 2, 12], [3, 4, 5]]),
        logit_MC=torch.tensor([[1.0, 2.0, 2.0], [0.0, 1.0, 9.0], [-3.0, -1.0, -2.0]]),
        never_MC=torch.tensor([[False] * 3, [False, False, True], [False] * 3]),
        vocab_size=VOCAB,
    )
    rows: list[Rows] = [keyed((place,)) for place in range(3)]
    rule = Draw(suppressed=(MASK,), keyed=True)
    plain, spread = rule.draft(candidates, rows), rule(candidates.spread(), rows)
    assert plain.token_M.tolist() == spread.token_M.tolist() == [4, 2, 4], "the lowest of equals"
    torch.testing.assert_close(plain.confidence_M, spread.confidence_M)
    random = Candidates(
        id_MC=torch.arange(VOCAB).repeat(3, 1),
        logit_MC=torch.randn(3, VOCAB, generator=drawn),
        never_MC=torch.zeros(3, VOCAB, dtype=torch.bool),
        vocab_size=VOCAB,
    )
    assert torch.equal(random.spread(), random.logit_MC)
