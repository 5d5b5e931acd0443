"""Processes of one training: who tells what, and what each of them draws."""

from __future__ import annotations

import math
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from medseg.config import load
from medseg.errors import DataError, MedsegError, ToldElsewhereError
from medseg.inference.runner import NonFiniteError
from medseg.training import cache, processes, sharing, validate
from medseg.training.cache import CachedCase
from medseg.training.finetune import FineTuning
from medseg.training.objective import Averaged, Objective
from medseg.training.ranks import ALONE, Ranks
from medseg.training.setup import set_up
from medseg.training.state import State
from medseg.training.step import Step
from medseg.training.trouble import Part
from medseg.training.world import World, told_once_a_machine

PAIR = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}


class Named(NamedTuple):
    """Stands for a case."""

    id: str


class Threads:
    """Links of some threads, in place of processes."""

    def __init__(self, size: int) -> None:
        self.size, self.given = size, [b""] * size
        self.tensor = torch.empty(0)
        self.barrier = threading.Barrier(size, timeout=60)

    def run(self, job: Callable[[Ranks], Any]) -> list[Any]:
        """Run a job in each; what it gives, or the error it raises."""

        def caught(rank: int) -> Any:
            try:
                return job(Ranks(World(rank, self.size, rank, self.size), _Link(self, rank)))
            except MedsegError as error:
                return error

        with ThreadPoolExecutor(self.size) as pool:
            return list(pool.map(caught, range(self.size)))


class _Link:
    def __init__(self, threads: Threads, rank: int) -> None:
        self.threads, self.rank = threads, rank

    def exchange(self, data: bytes) -> list[bytes]:
        self.threads.given[self.rank] = data
        self.threads.barrier.wait()
        given = list(self.threads.given)
        self.threads.barrier.wait()
        return given

    def broadcast(self, tensor: Tensor) -> None:
        if self.rank == 0:
            self.threads.tensor = tensor
        self.threads.barrier.wait()
        tensor.copy_(self.threads.tensor)
        self.threads.barrier.wait()


def failing(ranks: Ranks, *which: int) -> int:
    if ranks.rank in which:
        raise DataError(f"file{ranks.rank}", "is bad")
    return ranks.rank


def test_what_torchrun_sets_is_understood() -> None:
    assert World.here({}) == World(0, 1, 0, 1)
    assert World.here(PAIR) == World(1, 2, 1, 2)
    assert World.here({}).is_first
    assert not World.here(PAIR).is_first


@pytest.mark.parametrize(
    "change", [{"RANK": "2"}, {"RANK": "-1"}, {"LOCAL_RANK": "x"}, {"LOCAL_WORLD_SIZE": "3"}]
)
def test_a_world_that_contradicts_itself_is_refused(change: dict[str, str]) -> None:
    name, value = next(iter(change.items()))
    with pytest.raises(MedsegError, match=f"{name}={value}.*start with torchrun"):
        World.here({**PAIR, **change})
    with pytest.raises(MedsegError, match=r"RANK=\(not set\)"):
        World.here({"WORLD_SIZE": "2"})


def test_values_come_by_rank() -> None:
    seen = Threads(3).run(lambda ranks: ranks.gather([ranks.rank, 0.1 + ranks.rank, None]))
    assert seen == [[[0, 0.1, None], [1, 1.1, None], [2, 2.1, None]]] * 3
    nan = Threads(2).run(lambda ranks: ranks.each(lambda: math.nan))
    assert all(math.isnan(value) for values in nan for value in values)


def test_the_first_decides() -> None:
    asked = []

    def decide(ranks: Ranks) -> Any:
        return ranks.first(lambda: asked.append(ranks.rank) or {"lr": 0.5})

    assert Threads(3).run(decide) == [{"lr": 0.5}] * 3
    assert asked == [0]


def test_bytes_and_tensors_of_the_first_reach_all() -> None:
    assert Threads(3).run(lambda ranks: ranks.share(bytes(5 * [ranks.rank + 7]))) == [b"\7" * 5] * 3

    def same(ranks: Ranks) -> list[float]:
        tensor = torch.full((2,), float(ranks.rank + 1))
        ranks.same([tensor])
        return tensor.tolist()

    assert Threads(2).run(same) == [[1, 1], [1, 1]]


@pytest.mark.parametrize("which, teller", [((0,), 0), ((2,), 2), ((0, 1, 2), 0), ((2, 1), 1)])
@pytest.mark.parametrize("form", ["each", "together"])
def test_an_error_is_told_once_and_ends_all(which: tuple[int, ...], teller: int, form: str) -> None:
    def job(ranks: Ranks) -> None:
        with ranks.together():  # what has been told within is not told again
            if form == "each":
                ranks.each(lambda: failing(ranks, *which))
            else:
                with ranks.together():
                    failing(ranks, *which)
        ranks.gather("nobody comes here")

    ends = Threads(3).run(job)
    assert [type(end) for end in ends].count(DataError) == 1
    assert str(ends[teller]) == f"file{teller}: is bad"
    others = [str(end) for end in ends if isinstance(end, ToldElsewhereError)]
    assert others == [f"process {teller} of 3: file{teller}: is bad"] * 2


def test_an_error_between_two_talks_reaches_those_who_wait_in_the_next() -> None:
    def job(ranks: Ranks) -> None:
        with ranks.together():
            failing(ranks, 1)
            ranks.gather(1)
            ranks.first(lambda: 2)

    ends = Threads(2).run(job)
    assert [type(end) for end in ends] == [ToldElsewhereError, DataError]


def test_alone_nothing_is_different() -> None:
    assert ALONE.gather({"a": 1}) == [{"a": 1}]
    assert ALONE.first(lambda: 3) == 3
    assert ALONE.share(b"x") == b"x"
    for form in (lambda: ALONE.each(lambda: failing(ALONE, 0)), lambda: _together(ALONE)):
        with pytest.raises(DataError, match="file0: is bad"):
            form()
    assert not dist.is_initialized()


def _together(ranks: Ranks) -> None:
    with ranks.together():
        failing(ranks, 0)


def test_a_wrong_config_is_told_once_a_machine(
    monkeypatch: pytest.MonkeyPatch, cli: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    (tmp_path / "run.yaml").write_text("name: [")
    words = ("train", "-c", tmp_path / "run.yaml", "-o", tmp_path / "run")
    code, said = cli(*words)
    assert code == 2
    assert "run.yaml" in said
    for name, value in PAIR.items():
        monkeypatch.setenv(name, value)
    assert cli(*words) == (2, "")
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert cli(*words) == (2, said)


def test_a_study_is_not_for_several_processes(
    monkeypatch: pytest.MonkeyPatch,
    cli: Callable[..., tuple[int, str]],
    recipe: Callable[..., Path],
    tmp_path: Path,
) -> None:
    for name, value in {**PAIR, "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    code, said = cli("train", "-c", recipe(), "-o", tmp_path / "study", "--fold", "1")
    assert code == 2
    assert "start them one by one without torchrun" in said
    assert not (tmp_path / "study").exists()


def test_what_is_no_error_of_a_user_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in PAIR.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ZeroDivisionError), told_once_a_machine():
        1 / 0  # noqa: B018
    with pytest.raises(ToldElsewhereError), told_once_a_machine():
        raise MedsegError("x")


def test_each_process_has_a_device_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    world, asked = World(5, 8, 1, 4), list[str]()
    assert processes.own_device("cpu", world).type == "cpu"
    with pytest.raises(DataError, match="4 processes of a machine would share it"):
        processes.own_device("cuda:0", world)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(DataError, match="4 processes on this machine, where torch finds 2"):
        processes.own_device("cuda", world)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: asked.append(f"set {device}"))
    monkeypatch.setattr(
        processes, "pick_device", lambda name: asked.append(name) or torch.device(name)
    )
    for name in ("auto", "cuda"):
        assert processes.own_device(name, world) == torch.device("cuda:1")
    assert asked == ["cuda:1", "set cuda:1"] * 2


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> Iterator[dist.Store]:
    """A store, and a process group of this process alone that takes itself for one of two."""
    store = dist.HashStore()
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    monkeypatch.setattr(processes, "_met", lambda world: store)
    for name, value in PAIR.items():
        monkeypatch.setenv(name, value)
    yield store
    if dist.is_initialized():
        dist.destroy_process_group()


def test_short_and_long_messages_are_carried_whole(group: dist.Store) -> None:
    link = processes._Group(World())
    for length in (0, 1, 1015, 1016, 1017, 5000):
        data = bytes(np.arange(length) % 251)
        assert link.exchange(data) == [data]


GONE = "[/gloo/transport/tcp/pair.cc:1] Connection closed by peer [10.0.0.2]:7. This is typical"


@pytest.mark.parametrize(
    "error, raised, said",
    [
        (RuntimeError(GONE), MedsegError, r"is gone.*\(Connection closed by peer \[10\.0\.0\.2\]"),
        (dist.DistBackendError("NCCL"), MedsegError, r"\(NCCL\); --resume goes on"),
        (RuntimeError("mat1 and mat2"), RuntimeError, "mat1 and mat2"),
        (DataError("file", "is bad"), DataError, "file: is bad"),
        (KeyboardInterrupt("^C"), KeyboardInterrupt, "C"),
    ],
)
def test_a_lost_contact_says_what_to_do(
    error: BaseException, raised: type[BaseException], said: str, group: dist.Store
) -> None:
    with pytest.raises(raised, match=said) as caught, processes.joined():
        raise error
    assert type(caught.value) is raised
    assert not dist.is_initialized()
    is_own = not isinstance(error, dist.DistError) and str(error) != GONE
    assert group.check(["ended"]) is is_own  # so that others know why they lost contact


@pytest.mark.parametrize("key", ["ended", "lost"])
def test_a_lost_contact_that_another_told_of_is_not_told_again(key: str, group: dist.Store) -> None:
    group.add(key, 1)
    with pytest.raises(ToldElsewhereError), processes.joined():
        raise RuntimeError(GONE)


def test_processes_that_do_not_meet_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in PAIR.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with (
        pytest.raises(MedsegError, match=r"process 1 of 2 did not find the others.*MASTER_ADDR"),
        processes.joined(),
    ):
        pass


def test_scores_do_not_depend_on_who_validates(monkeypatch: pytest.MonkeyPatch) -> None:
    scored = lambda _, cases, *__: iter(  # noqa: E731
        {"a": 0.1 * n, "b": None if n % 3 else 0.7 / (n + 1)} for n in cases
    )
    monkeypatch.setattr(validate, "_scored", scored)
    labels: Any = SimpleNamespace(classes=("a", "b"))
    cases: Any = range(7)

    def scores(ranks: Ranks) -> Any:
        return validate.validate(None, cases, None, labels, None, ranks)  # type: ignore[arg-type]

    one = scores(ALONE)
    assert one["a"] == np.mean([0.1 * n for n in range(7)])
    assert Threads(3).run(scores) == [one] * 3


def test_a_cache_is_filled_once(
    recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup, stored = set_up(load(recipe())), list[str]()
    store = cache._store
    monkeypatch.setattr(
        cache, "_store", lambda place, *more: (stored.append(place.name), store(place, *more))
    )

    def fill(ranks: Ranks) -> Any:
        dataset = setup.dataset
        return sharing.fill(
            ranks, tmp_path, dataset.cases, dataset, setup.preprocessor, lambda: None
        )

    first, second, third = Threads(3).run(fill)
    assert first == second == third == fill(ALONE)
    assert [case.id for case in first] == [case.id for case in setup.dataset.cases]
    assert len(stored) == len(set(stored)) == 6


def test_a_machine_that_does_not_see_the_others_cache_fills_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Four processes on two machines, which have folders of their own under the same name."""
    disks: list[set[str]] = [set(), set()]
    machine = threading.local()

    def fake(folder: Path, cases: Any, *_: Any) -> Any:
        disks[machine.number] |= set(cases)
        return tuple(CachedCase(case.id, folder, (1, 1, 1)) for case in cases)

    def fill(ranks: Ranks) -> Any:
        machine.number = ranks.rank // 2
        ranks.world = World(ranks.rank, 4, ranks.rank % 2, 2)
        cases: Any = tuple(Named(f"case{n}") for n in range(9))
        return sharing.fill(ranks, Path("cache"), cases, *[None] * 3)  # type: ignore[arg-type]

    monkeypatch.setattr(cache, "fill", fake)
    monkeypatch.setattr(sharing, "_is_here", lambda case: Named(case.id) in disks[machine.number])
    found = Threads(4).run(fill)
    assert all([case.id for case in some] == [f"case{n}" for n in range(9)] for some in found)
    assert [len(disk) for disk in disks] == [9, 9]


def test_processes_never_draw_the_same(recipe: Callable[..., Path]) -> None:
    """Whoever draws, batch n is changed by the numbers of n, and a step of two takes two."""
    setup = set_up(load(recipe(**{"train.accumulate": 2, "model.deep_supervision": 0})))
    config, loss = setup.config.numbered, setup.loss
    batch = {
        "image": torch.rand(2, 2, 16, 16, 16), "label": torch.zeros(2, 16, 16, 16).long(),
        "spacing": torch.full((2, 3), 4.0), "present": torch.ones(2, 2, dtype=torch.bool),
        "case": ["a", "b"],
    }  # fmt: skip

    def drawn(rank: int, size: int, step: int) -> list[Tensor]:
        state = State(setup.network, config.train, setup.tuning)
        state.step, state.batches = step, step * 2 * size
        taken = Step(state, loss, config, ranks=Ranks(World(rank, size, rank, size)))
        return [taken.prepare(batch, part)[0] for part in range(2)]

    alone = [image for step in range(4) for image in drawn(0, 1, step)]
    assert not any(torch.equal(a, b) for n, a in enumerate(alone) for b in alone[:n])
    pair = [[drawn(rank, 2, step) for rank in range(2)] for step in range(2)]
    together = [images[part] for step in pair for part in range(2) for images in step]
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


@pytest.mark.parametrize("culprit", [0, 1])
def test_a_loss_that_is_not_finite_is_told_where_it_was(culprit: int, tmp_path: Path) -> None:
    """The mean gradient is not finite in any process; the batch that is kept is of the culprit."""
    state: Any = SimpleNamespace(
        step=7, network=nn.Linear(1, 1), scaler=torch.amp.GradScaler("cpu", enabled=False)
    )
    config: Any = SimpleNamespace(train=SimpleNamespace(compile=False))

    def stop(ranks: Ranks) -> float:
        step = Step(state, nn.Identity(), config, tmp_path / "bad.safetensors", ranks)
        part = Part(torch.zeros(1, 1, 2, 2, 2), torch.zeros(1, 2, 2, 2), [f"case{ranks.rank}"])
        loss = math.nan if ranks.rank == culprit else 1.0
        assert step._agreed([part], [float(ranks.rank)], 1.0) == 0.5
        return step._agreed([part], [loss], math.nan)

    ends = Threads(2).run(stop)
    assert [type(end) for end in ends].count(NonFiniteError) == 1
    assert f"the loss is nan at step 7, of a batch of the cases case{culprit}" in str(ends[culprit])
    assert isinstance(ends[1 - culprit], ToldElsewhereError)


@pytest.mark.usefixtures("group")
def test_torchs_word_on_kernels_of_one_voxel_is_not_passed_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "0")
    with processes.joined():
        warnings.warn("Grad strides do not match bucket view strides. This", stacklevel=1)
    with pytest.raises(UserWarning, match="Grad strides"):  # as all else would be
        warnings.warn("Grad strides do not match bucket view strides. This", stacklevel=1)


class _Full(torch.autograd.Function):
    """Memory for the gradient of one patch alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.patches = len(x)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        if ctx.patches > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return gradient


@pytest.mark.usefixtures("group")
def test_memory_that_runs_out_in_one_of_several_processes_says_what_fits(
    recipe: Callable[..., Path],
) -> None:
    """DDP has begun a pass by then, which the smaller batches are no part of."""

    class Network(nn.Sequential):
        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            return (self[2](_Full.apply(self[1](self[0](x)))),)

    class Loss(nn.Module):
        def forward(self, outputs: tuple[Tensor, ...], _: Tensor) -> Tensor:
            return outputs[0].square().mean()

    config = load(recipe()).numbered
    network: Any = Network(nn.Conv3d(1, 2, 1), nn.BatchNorm3d(2), nn.Conv3d(2, 2, 1))
    state = State(network, config.train, FineTuning(network, 1, config.train))
    state.precision = "fp32"
    step = Step(state, Loss(), config, None, Ranks(World(0, 2, 0, 2)))
    part = Part(torch.rand(2, 1, 4, 4, 4), torch.zeros(2, 4, 4, 4), ["a", "b"])
    with pytest.raises(MedsegError, match=r"out of memory on cpu .*; 1 would fit"):
        step([part], 1e-3)


def test_alone_the_objective_is_not_wrapped() -> None:
    objective = Objective(nn.Conv3d(1, 2, 1), nn.CrossEntropyLoss())
    with Averaged(objective, ALONE).part(is_last=True) as lowered:
        assert lowered is objective
        value = lowered(torch.rand(1, 1, 2, 2, 2), torch.zeros(1, 2, 2, 2).long(), "fp32")
    assert value.isfinite()


def test_a_state_without_its_batches_is_of_another_run(
    recipe: Callable[..., Path], tmp_path: Path
) -> None:
    setup = set_up(load(recipe()))
    state = State(setup.network, setup.config.train, setup.tuning)
    state.step, state.batches, state.precision = 3, 6, "fp32"
    state.save(tmp_path / "last.pt")
    other = State(setup.network, setup.config.train, setup.tuning)
    other.unpack(state.packed())
    assert (other.step, other.batches) == (3, 6)
    values = torch.load(tmp_path / "last.pt", weights_only=True)
    del values["batches"]
    torch.save(values, tmp_path / "last.pt")
    with pytest.raises(DataError, match="belongs to another run: 'batches'"):
        state.restore(tmp_path / "last.pt")
