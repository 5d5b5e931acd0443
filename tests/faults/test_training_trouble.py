"""A loss that is not finite stops with its batch; memory that runs out says what fits."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from medseg.config import load
from medseg.errors import MedsegError
from medseg.inference.runner import NonFiniteError
from medseg.training import loop
from medseg.training import step as steps
from medseg.training.budget import Clock
from medseg.training.setup import Setup, set_up
from medseg.training.state import State
from medseg.training.step import Step
from medseg.training.trouble import Part
from medseg.training.watch import Watch

Recipe = Callable[..., Path]
SIZE = (16, 16, 16)


@pytest.fixture(scope="module")
def setup(recipe: Recipe) -> Setup:
    return set_up(load(recipe()))


def make(setup: Setup, loss: Any = None, bad: Path | None = None, **train: Any) -> Step:
    config = setup.config.numbered
    config = config.model_copy(update={"train": config.train.model_copy(update=train)})
    fresh = set_up(setup.config)
    state = State(fresh.network, config.train, fresh.tuning)
    state.precision = "fp32"
    return Step(state, loss or fresh.loss, config, bad)


def part(patches: int = 2, *, start: int = 0) -> Part:
    generator = torch.Generator().manual_seed(start)
    image = torch.randn(patches, 2, *SIZE, generator=generator)
    label = torch.randint(0, 2, (patches, *SIZE), generator=generator)
    return Part(image, label, [f"case{start + n}" for n in range(patches)])


class Loss(nn.Module):
    """Of the logits times a factor, which may be none that is finite."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.change = change

    def forward(self, outputs: Any, _: Tensor) -> Tensor:
        return self.change(outputs[0].mean())


def test_a_loss_that_is_not_finite_names_its_cases_and_keeps_its_batch(
    setup: Setup, tmp_path: Path
) -> None:
    bad = tmp_path / "bad_batch.safetensors"
    losses = iter([torch.tensor(1.0), torch.tensor(torch.nan)])
    step = make(setup, Loss(lambda value: value * next(losses)), bad)
    parts = [part(), part(start=2)]
    with pytest.raises(NonFiniteError) as caught:
        step(parts, 1e-3)
    said = str(caught.value)
    assert said.startswith(
        f"the loss is nan at step 0, of a batch of the cases case2, case3 (saved as {bad})"
    )
    assert "lower train.lr" in said
    with safe_open(bad, "pt") as file:
        about = file.metadata()
        assert torch.equal(file.get_tensor("image"), parts[1].image)
        assert torch.equal(file.get_tensor("label").long(), parts[1].label)
    assert json.loads(about["cases"]) == ["case2", "case3"]
    assert (about["step"], about["loss"]) == ("0", "nan")


def test_an_image_that_is_not_finite_is_the_cause(setup: Setup) -> None:
    batch = part()
    batch.image[1, 0, 3, 3, 3:5] = torch.inf
    with pytest.raises(NonFiniteError, match="its image has 2 values that are not finite: mend"):
        make(setup)([batch], 1e-3)


def test_a_full_disk_does_not_hide_it(
    setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    step = make(setup, Loss(lambda value: value * torch.inf), tmp_path / "bad.safetensors")
    with pytest.raises(NonFiniteError, match=r"case0, case1 \(which could not be .*disk is full"):
        step([part()], 1e-3)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("clip", [5.0, None])
def test_a_gradient_that_is_not_finite_stops_before_the_next_batch_is_blamed(
    clip: float | None, setup: Setup
) -> None:
    step = make(setup, Loss(lambda value: (value * 0).sqrt()), clip=clip)
    with pytest.raises(NonFiniteError, match=r"gradient's norm is nan at step 0, .*case0, case1"):
        step([part()], 1e-3)


def test_fp16_skips_steps_and_counts_them_but_not_for_ever(setup: Setup) -> None:
    step = make(setup, Loss(lambda value: (value * 0).sqrt()))
    step.state.scaler = torch.amp.GradScaler("cpu", enabled=True)
    before = [weight.clone() for weight in step.state.network.parameters()]
    for _ in range(50):
        step([part(1)], 1e-3)
    assert step.skipped == 50
    for old, new in zip(before, step.state.network.parameters(), strict=True):
        assert torch.equal(old, new)
    with pytest.raises(NonFiniteError, match="gradient's norm is nan at step 50"):
        step([part(1)], 1e-3)


@pytest.mark.slow
def test_a_run_that_stops_so_leaves_no_model(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_batch = steps.augmented

    def poisoned(batch: Any, config: Any, number: int, device: torch.device) -> Any:
        image, label = make_batch(batch, config, number, device)
        return (image * torch.nan if number == 3 else image), label

    monkeypatch.setattr(steps, "augmented", poisoned)
    run = tmp_path / "run"
    with pytest.raises(NonFiniteError, match=r"nan at step 3, of a batch of the cases head_00\d, "):
        loop.train(load(recipe(**{"train.validate_every": 50})), run, device="cpu", quiet=True)
    assert (run / "bad_batch.safetensors").exists()
    assert not (run / "model.safetensors").exists()
    assert not (run / "last.safetensors").exists()


# Memory


class Small(nn.Module):
    """A network on a device whose memory takes so many patches."""

    def __init__(self, network: nn.Module, fits: int, error: Exception) -> None:
        super().__init__()
        self.network, self.fits, self.error, self.seen = network, fits, error, list[int]()

    def forward(self, image: Tensor) -> Any:
        self.seen.append(len(image))
        if len(image) > self.fits:
            raise self.error
        return self.network(image)


FULL = RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")


@pytest.mark.parametrize(
    "error", [FULL, MemoryError(), torch.OutOfMemoryError("CUDA out of memory")]
)
@pytest.mark.parametrize(
    ("batch", "accumulate", "fits", "said"),
    [
        (6, 1, 4, "3 would fit: start anew with train.batch=3 train.accumulate=2"),
        (6, 2, 2, "2 would fit: start anew with train.batch=2 train.accumulate=6"),
        (4, 1, 1, "1 would fit: start anew with train.batch=1 train.accumulate=4"),
        (2, 1, 0, "not even 1 would fit: set a smaller train.patch"),
        (1, 1, 0, "not even 1 would fit"),
    ],
)
def test_it_says_which_batch_fits(
    batch: int, accumulate: int, fits: int, said: str, error: Exception, setup: Setup
) -> None:
    step = make(setup, batch=batch, accumulate=accumulate)
    step.objective.alone.network = Small(step.state.network, fits, error)
    with pytest.raises(MedsegError) as caught:
        step([part(batch)] * accumulate, 1e-3)
    assert f"out of memory on cpu in a step with {batch} patches of [16, 16, 16]" in str(
        caught.value
    )
    assert said in str(caught.value)
    assert caught.value.__cause__ is None  # it would hold what the step had computed
    assert caught.value.__context__ is None


def test_other_errors_are_not_taken_for_it(setup: Setup) -> None:
    step = make(setup)
    step.objective.alone.network = Small(step.state.network, 0, RuntimeError("size mismatch"))
    with pytest.raises(RuntimeError, match="size mismatch"):
        step([part()], 1e-3)


# What is told at the end


class Slow(Clock):
    """A clock that goes on by ten seconds each time it is looked at."""

    def elapsed(self) -> float:
        self.spent += 10
        return self.spent


@pytest.mark.parametrize(("budget", "warns"), [(19.0, True), (21.0, False)])
def test_validations_that_take_most_of_the_budget_are_told(
    budget: float, warns: bool, setup: Setup, recwarn: pytest.WarningsRecorder
) -> None:
    train = setup.config.train
    watch = Watch(Slow(train.budget.model_copy(update={"steps": None, "cpu_seconds": budget}), 1))
    with watch:
        watch.scores = {"lesion": 0.5}
    watch.tell()
    told = [str(warning.message) for warning in recwarn]
    assert told == (
        [
            "validation took 10 s (1 times) of a budget of 19 s, and the run 30 s; raise "
            "train.budget or train.validate_every, or lower train.validation_cases"
        ]
        if warns
        else []
    )


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        ({"a": 0.0}, "found no voxel of any class"),
        ({"mean": 0.0, "a": 0.0, "b": 0.0}, "found no voxel of any class"),
        ({"mean": 0.2, "a": 0.0, "b": 0.4}, r"found no voxel of a \(Dice 0\)"),
    ],
)
def test_a_model_that_finds_nothing_is_told(
    scores: dict[str, float], said: str, setup: Setup
) -> None:
    watch = Watch(Clock(setup.config.train.budget, 1))
    watch.scores = scores
    with pytest.warns(UserWarning, match=said):
        watch.tell()


def test_a_model_that_finds_all_classes_is_not(setup: Setup) -> None:
    watch = Watch(Clock(setup.config.train.budget, 1))
    watch.scores = {"mean": 0.2, "a": 0.1, "b": 0.3}
    watch.tell()
