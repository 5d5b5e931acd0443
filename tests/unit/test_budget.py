"""When training ends, and how the learning rate falls until then."""

from __future__ import annotations

import time
from itertools import pairwise
from typing import Any

import pytest

from medseg.config.schema import Budget, Train
from medseg.training import budget
from medseg.training.budget import Clock, learning_rate


def settings(**options: Any) -> Train:
    values = {"patch": (8, 8, 8), "budget": {"steps": 10}, "lr": 0.1, **options}
    return Train.model_validate(values, strict=False)


def test_steps_and_epochs_count_the_same_everywhere() -> None:
    assert Clock(Budget(steps=10), 4).total_steps == 10
    clock = Clock(Budget(epochs=3), 4, spent=1e9)
    assert clock.total_steps == 12
    assert [clock.fraction(step) for step in (0, 6, 12, 13)] == [0, 0.5, 1, 1]


@pytest.mark.parametrize(
    "kind, clock", [("wall_seconds", "monotonic"), ("cpu_seconds", "process_time")]
)
def test_seconds_go_on_from_those_already_spent(
    kind: str, clock: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 50.0
    monkeypatch.setattr(budget.time, clock, lambda: now)
    running = Clock(Budget(**{kind: 40.0}), 4, spent=10.0)
    assert running.total_steps is None
    if kind == "wall_seconds":
        assert running.fraction(0) == pytest.approx(0.25)
        now = 65.0
        assert running.elapsed() == pytest.approx(25)
        now = 85.0
    else:  # start-up counts too: the process began at 0
        assert running.fraction(0) == 1
    assert running.fraction(7) == 1


def test_cpu_seconds_are_those_of_the_process() -> None:
    running = Clock(Budget(cpu_seconds=1e6), 1)
    before, start = running.elapsed(), time.process_time()
    while time.process_time() - start < 0.05:
        pass
    assert 0.04 < running.elapsed() - before < 1


def test_the_rate_rises_then_falls_to_nothing() -> None:
    for schedule in ("cosine", "poly"):
        train = settings(schedule=schedule, warmup=0.1)
        rates = [learning_rate(train, n / 1000) for n in range(1001)]
        assert 0 < rates[0] < 0.01
        top = rates.index(max(rates))
        assert 90 <= top <= 100
        assert all(a < b for a, b in pairwise(rates[: top + 1]))
        assert all(a > b for a, b in pairwise(rates[top:]))
        assert rates[-1] == pytest.approx(0, abs=1e-9)
        assert max(rates) > 0.09


def test_cosine_is_torchs() -> None:
    import torch

    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    peer = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 20)
    for step in range(20):
        mine = learning_rate(settings(warmup=0.0), step / 20)
        assert mine == pytest.approx(optimiser.param_groups[0]["lr"])
        optimiser.step()
        peer.step()


def test_poly_is_torchs() -> None:
    import torch

    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    peer = torch.optim.lr_scheduler.PolynomialLR(optimiser, 20, power=0.9)
    for step in range(20):
        mine = learning_rate(settings(schedule="poly", warmup=0.0), step / 20)
        assert mine == pytest.approx(optimiser.param_groups[0]["lr"])
        optimiser.step()
        peer.step()
