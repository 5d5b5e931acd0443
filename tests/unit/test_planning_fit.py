"""Which network is planned, when trials take what they are told to take."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from math import prod
from typing import Any

import pytest
import yaml

from medseg.console import Tick
from medseg.errors import ConfigError, MedsegError
from medseg.planning import rules, trial
from medseg.planning.amounts import MIB
from medseg.planning.choice import Choice
from medseg.planning.drafts import Basis
from medseg.planning.fingerprint import ChannelPrint, ClassPrint, Fingerprint, Intensities
from medseg.planning.fit import Fitted, Search, Terms
from medseg.planning.trial import Measured, Request, Seconds, TooMuch

IDLE = 300 * MIB
TERMS = Terms(900.0, 8 << 30, "cpu", None, 10.0)
ASKED = Request("", "/", 1, 2, ((1,),), "cpu", (1, 1, 1), (1.0, 1.0, 1.0))


class Machine:
    """A machine that takes so many bytes and seconds for each voxel of a step.

    Args:
        bytes_a_voxel: Of a step, and of a volume in one pass.
        seconds_a_voxel: Of a step.
        next: How much more work the next network is.
    """

    def __init__(
        self, bytes_a_voxel: float = 1000, seconds_a_voxel: float = 1e-6, next: float = 20
    ) -> None:
        self.bytes, self.seconds, self.next = bytes_a_voxel, seconds_a_voxel, next
        self.asked: list[dict[str, Any]] = []
        self.requests: list[Request] = []

    def __call__(self, request: Request) -> Measured | TooMuch:
        config = yaml.safe_load(request.config)
        self.asked.append(config)
        self.requests.append(request)
        voxels = prod(config["train"]["patch"]) * config["train"]["batch"]
        step, whole = (int(IDLE + self.bytes * n) for n in (voxels, prod(request.volume)))
        if request.memory and step > 2 * request.memory:
            return TooMuch(IDLE)
        seconds = self.seconds * voxels
        return Measured(
            "cpu", "bf16", IDLE, max(step, whole), 16 << 30, 5.0, Seconds(seconds, seconds),
            Seconds(seconds, seconds), self.next,
        )  # fmt: skip


def basis(size: float = 64.0) -> Basis:
    found = Intensities(dict.fromkeys((0.5, 5.0, 50.0, 95.0, 99.0, 99.5), 1.0), 1.0, 1.0)
    figures = Fingerprint(
        cases=20, shape=((size,) * 3,) * 3, spacing=((1.0,) * 3,) * 4, size_mm=((size,) * 3,) * 2,
        content_mm=((size,) * 3,) * 2, orientations={"RAS": 20}, unplaced=0, blank=0.0,
        is_corner_zero=True, outside=0.0,
        channels=(ChannelPrint("t1", "other", "name", found, found, 0.0, 0.0, False, 0),),
        classes=(ClassPrint("a", 20, 0.1, (1, 1, 1), (1, 1, 1), (9, 9, 9), 9000.0, 1.0),),
        sides=(), label_values={1: 20}, masked=0,
    )  # fmt: skip
    data = {"name": "x", "data.layout": "msd", "data.path": "/x"}
    return Basis.of(figures, {key: Choice(value) for key, value in data.items()})


def best(machine: Machine, terms: Terms = TERMS, size: float = 64.0) -> Fitted:
    return Search(basis(size), terms, ASKED, Tick(3), machine).best()


def test_the_small_network_is_tried_first_and_kept_where_steps_are_few() -> None:
    machine = Machine()
    fitted = best(machine)
    assert fitted.shape.size is rules.SMALL
    assert len(machine.asked) == 1
    assert machine.requests[0].volume == fitted.shape.patch
    assert machine.requests[0].next is not None
    assert "(measured)" in fitted.choices["train.patch"].why


def test_a_larger_network_takes_the_steps_that_there_are() -> None:
    fast = Machine(seconds_a_voxel=1e-9, bytes_a_voxel=10, next=2)
    fitted = best(fast, size=200.0)
    assert fitted.shape.size is rules.LARGE
    assert [len(one["model"]["encoder"]["widths"]) for one in fast.asked] == [3, 4, 4, 6]
    assert fitted.plan.steps >= rules.LARGE.least_steps
    assert fast.requests[-1].next is None


def test_a_larger_network_that_turns_out_slow_is_not_taken() -> None:
    class Slow(Machine):
        def __call__(self, request: Request) -> Measured | TooMuch:
            found = super().__call__(request)
            assert isinstance(found, Measured)
            slow = Seconds(9.0, 9.0) if len(self.asked) > 1 else found.step
            return replace(found, step=slow)

    machine = Slow(seconds_a_voxel=1e-9, next=1)
    assert best(machine).shape.size is rules.SMALL
    assert len(machine.asked) == 2


def test_patches_shrink_until_the_memory_holds_them() -> None:
    machine = Machine(bytes_a_voxel=5000)
    fitted = best(machine, replace(TERMS, memory=800 * MIB))
    assert fitted.measured.peak <= 800 * MIB
    assert prod(fitted.shape.patch) < prod(machine.asked[0]["train"]["patch"])
    assert fitted.choices["train.batch"].value == 2
    assert "took more than there is" in fitted.choices["train.patch"].why
    assert all(request.memory == 800 * MIB for request in machine.requests)


def test_a_batch_of_one_comes_last() -> None:
    fitted = best(Machine(bytes_a_voxel=60_000), replace(TERMS, memory=IDLE + 320 * MIB))
    assert fitted.choices["train.batch"].value == 1


def test_half_of_what_is_free_is_taken_where_nothing_is_said() -> None:
    fitted = best(Machine(), replace(TERMS, memory=None))
    assert fitted.memory == 8 << 30


@pytest.mark.parametrize("memory, trials", [(IDLE - MIB, 1), (IDLE + MIB, 30)])
def test_too_little_memory_is_told_with_what_it_takes(memory: int, trials: int) -> None:
    machine = Machine(bytes_a_voxel=1000)
    told = "of memory is too little: .* 300 MiB of them before it begins; give more by --memory"
    with pytest.raises(MedsegError, match=told):
        best(machine, replace(TERMS, memory=memory))
    assert len(machine.asked) <= trials


def test_a_budget_that_holds_no_step_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"12 s is too short: 25 s .* --budget 3\ds at least"):
        best(Machine(), replace(TERMS, budget=12.0))


def test_a_killed_trial_is_one_without_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_words: Any, **_options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess([], -9, "", "")

    monkeypatch.setattr(subprocess, "run", killed)
    assert trial.run(ASKED) == TooMuch()


def test_a_trial_that_fails_otherwise_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def failed(*_words: Any, **_options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess([], 1, "", "Traceback\nValueError: no such thing\n")

    monkeypatch.setattr(subprocess, "run", failed)
    with pytest.raises(MedsegError, match="could not be tried: ValueError: no such thing"):
        trial.run(ASKED)


def test_planning_needs_no_torch() -> None:
    code = "import medseg.planning.run, medseg.planning.summary, sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
