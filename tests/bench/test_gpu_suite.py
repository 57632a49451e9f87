"""The checks of the GPU check, on CPU: they pass, and a wrong result fails them."""

from __future__ import annotations

import pytest
import torch

from difflm.bench import gpu_cases, gpu_suite
from difflm.bench.checks import NotRunError, WrongError

CPU = torch.device("cpu")

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


def test_the_list_of_checks() -> None:
    cpu = [name for name, _ in gpu_suite.checks_for(CPU, lengths=(32, 64), quick=True)]
    cuda = [name for name, _ in gpu_suite.checks_for(torch.device("cuda"), lengths=(32,), quick=True)]
    assert "attention parity: split, float32" in cpu
    assert not any("split" in name for name in cuda)
    assert "attention parity: flex, bfloat16" in cuda
    assert "loss and gradients: flex" in cuda
    assert "loss and gradients: flex" not in cpu  # no backward there
    assert cpu[-2:] == ["timings, L 32", "timings, L 64"]
    assert len(set(cuda)) == len(cuda)


def test_parity_passes_and_a_wrong_backend_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    detail, figures = gpu_suite.attention_parity("portable", CPU, torch.float32, quick=True)
    assert figures["layouts"] == 8
    assert 0 < figures["backward"] < 1e-5
    assert "gradients" in detail
    monkeypatch.setattr(
        gpu_cases,
        "attention_difference",
        lambda *args, **options: gpu_cases.Difference(forward=float("inf"), backward=0.0),
    )
    with pytest.raises(WrongError, match="forward inf"):
        gpu_suite.attention_parity("portable", CPU, torch.float32, quick=True)


def test_the_curriculum_compiles_at_its_first_size_only(monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    _, figures = gpu_suite.curriculum(CPU)
    assert figures["graphs"] == [1, 0, 0, 0, 0, 0, 0]
    torch._dynamo.reset()
    forwards = gpu_cases.curriculum_forwards

    def forgets(*args: object, **options: object) -> object:
        for size in forwards(*args, **options):  # type: ignore[arg-type]
            yield size
            torch._dynamo.reset()

    monkeypatch.setattr(gpu_cases, "curriculum_forwards", forgets)
    with pytest.raises(WrongError, match="graphs compiled"):
        gpu_suite.curriculum(CPU)


def test_a_run_that_does_not_learn_or_differs_from_the_cpu_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    assert gpu_suite.training(CPU, torch.float32, 6)[1]["losses"][-1] < 5.0
    monkeypatch.setattr(gpu_cases, "training_losses", lambda *args, **options: [3.0, 3.0])
    with pytest.raises(WrongError, match="does not fall"):
        gpu_suite.training(CPU, torch.float32, 2)
    answers = iter([[3.0, 1.0], [3.1, 1.0]])
    monkeypatch.setattr(gpu_cases, "training_losses", lambda *args, **options: next(answers))
    with pytest.raises(WrongError, match=r"within 3.2e-02 of the CPU's"):
        gpu_suite.training(CPU, torch.float32, 2)


def test_answers_that_differ_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    assert gpu_suite.decoding(CPU, 4)[1]["agreement"] == 1.0
    monkeypatch.setattr(gpu_cases, "agreement", lambda found, expected: 0.5)
    with pytest.raises(WrongError, match="50% of 8 answers"):
        gpu_suite.decoding(CPU, 4)


def test_a_step_that_differs_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    assert gpu_suite.step_parity("dense", CPU)[1]["gradients"] < 1e-5
    monkeypatch.setattr(gpu_cases, "gradient_difference", lambda found, expected: 0.1)
    with pytest.raises(WrongError, match=r"gradients 1\.0e-01"):
        gpu_suite.step_parity("dense", CPU)


def test_the_trainer_names_a_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_suite, "FOR_THE_TRAINER", {"no_such_module": "the-package"})
    with pytest.raises(NotRunError, match="needs the package the-package"):
        gpu_suite.trainer(CPU, 4)


def test_timings_have_every_backend_that_trains() -> None:
    detail, figures = gpu_suite.timings(CPU, 32, quick=True)
    assert list(figures) == ["portable", "split", "dense"]
    assert all(each["tokens_per_second"] > 0 for each in figures.values())
    assert "tokens/s" in detail


def test_auto_and_the_environment() -> None:
    assert gpu_suite.automatic(CPU)[1] == {"attention": "split"}
    assert "torch" in gpu_suite.environment_of(CPU)
