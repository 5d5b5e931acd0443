"""Windows put together block by block: the same as all at once, in bounded memory."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from medseg.config.schema import Inference
from medseg.inference import order
from medseg.inference.boxes import Box, starts, within
from medseg.inference.runner import OutOfMemoryError, Runner
from medseg.inference.window import Pass, predict_labels, predict_volume
from medseg.transforms.route import Route, Taps
from medseg.volumes.geometry import Reorient

PATCH = (8, 4, 12)
CLASSES = 3


class Net(nn.Module):
    """Logits that depend on where in its window a voxel lies."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv3d(1, CLASSES, 3, padding=1)
        self.calls: list[int] = []

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        self.calls.append(len(x))
        places = torch.linspace(-1, 1, x.shape[2])[:, None, None]
        return (self.conv(x) * (1 + places),)


def settings(**options: Any) -> Inference:
    values = {"precision": "fp32", "patch": PATCH, "skip_constant": False, "batch": 1, **options}
    return Inference.model_validate(values, strict=False)


def volume(*shape: int) -> Tensor:
    return torch.randn(1, *shape, generator=torch.Generator().manual_seed(1))


def a_pass(image: Tensor, route: Route | None = None, **options: Any) -> Pass:
    roi = options.pop("roi", None)
    chosen = settings(**options)
    return Pass.of(Net().eval(), image, chosen, (1, 1, 1), CLASSES, route=route, roi=roi)


@torch.inference_mode()
def at_once(one: Pass) -> Tensor:
    """The probabilities of what is predicted, by sums over all of the room."""
    total, weights = torch.zeros(CLASSES, *one.plan.size), torch.zeros(one.plan.size)
    for place in one.plan.places:
        here = tuple(slice(a, a + w) for a, w in zip(place, one.plan.window, strict=True))
        (logits,) = one.run(one.plan, [place])
        total[(slice(None), *here)] += logits * one.plan.weight
        weights[here] += one.plan.weight
    shares = (total / weights).softmax(0)
    shares[:, weights == 0] = torch.tensor([1.0, 0, 0])[:, None]
    return shares[(slice(None), *within(one.plan.box, one.plan.room))]


def together(one: Pass, parts: list[list[Box]], shape: tuple[int, ...]) -> Tensor:
    out = torch.full((CLASSES, *shape), torch.nan)
    for part in parts:
        for block, shares in zip(part, one.shares(part), strict=True):
            assert out[(slice(None), *block)].isnan().all()  # each voxel once
            out[(slice(None), *block)] = shares
    return out


@pytest.mark.parametrize("shape", [(30, 11, 25), (9, 40, 12), (5, 3, 2)])
@pytest.mark.parametrize("overlap", [0.0, 0.5, 0.7])
@pytest.mark.parametrize("memory", [1 << 30, 20_000, 1])
def test_blocks_are_what_sums_over_the_whole_give(
    shape: tuple[int, int, int], overlap: float, memory: int
) -> None:
    one = a_pass(volume(*shape), overlap=overlap)
    parts = one.parts(one.seen, memory)
    found = together(one, parts, shape)
    torch.testing.assert_close(found, at_once(one))
    if memory == 1:
        assert len(parts) > 1 or max(shape) < 12


@pytest.mark.parametrize("overlap", [0.3, 0.5])
def test_parts_give_the_same_bits(overlap: float) -> None:
    one = a_pass(volume(40, 30, 26), overlap=overlap)
    shape = (40, 30, 26)
    whole, some = one.parts(one.seen, 1 << 30), one.parts(one.seen, 10_000)
    assert (len(whole), len(some) > 1) == (1, True)
    assert torch.equal(together(one, whole, shape), together(one, some, shape))


def test_parts_hold_what_they_may() -> None:
    one = a_pass(volume(64, 32, 48))
    peaks = []
    for memory in (1 << 30, 60_000, 30_000):
        parts = one.parts(one.seen, memory)
        schedules = [order.schedule(one.plan, one.route, part) for part in parts]
        peaks.append(4 * CLASSES * max(schedule.peak for schedule in schedules))
        assert peaks[-1] <= memory
        assert sum(schedule.runs for schedule in schedules) >= len(one.plan.places)
    assert peaks[0] > peaks[1] > peaks[2]


def test_parts_suit_all_that_are_asked_for_them_together() -> None:
    """One network's layers lie across the columns of another, whose axes have other lengths."""
    shape = (32, 26, 20)
    one = a_pass(volume(*shape))
    route = Route.identity(shape).resized((12, 52, 40))
    other = a_pass(volume(12, 52, 40), route)

    def peak(parts: list[list[Box]]) -> int:
        return 4 * CLASSES * max(
            sum(order.schedule(each.plan, each.route, part).peak for each in (one, other))
            for part in parts
        )  # fmt: skip

    alone = one.parts(one.seen, 150_000)
    assert len(alone) == 1
    assert peak(alone) > 240_000
    for first, second in ((one, other), (other, one)):
        parts = first.parts(one.seen, 150_000, [second])
        assert peak(parts) <= 150_000
        assert sum(np.prod([s.stop - s.start for s in block]) for part in parts for block in part) \
            == np.prod(shape)  # fmt: skip


def test_a_longer_volume_needs_no_more_memory() -> None:
    peaks = []
    for length in (64, 256):
        one = a_pass(volume(length, 16, 24))
        (part,) = one.parts(one.seen, 1 << 30)
        peaks.append(order.schedule(one.plan, one.route, part).peak)
    assert peaks[0] == peaks[1]


def test_a_region_leaves_windows_out() -> None:
    roi = torch.zeros(40, 24, 26, dtype=torch.bool)
    roi[3:9, 2:5, 4:20] = True
    roi[30:33, 18:22, 20:25] = True
    one = a_pass(volume(40, 24, 26), roi=roi, overlap=0.25)
    found = together(one, one.parts(one.seen, 40_000), (40, 24, 26))
    expected = torch.zeros(CLASSES, 40, 24, 26)
    expected[(slice(None), *one.plan.box)] = at_once(one)
    assert torch.equal(found[1:, ~roi & ~found[0].isnan()].unique(), torch.tensor([0.0]))
    torch.testing.assert_close(found[:, roi], expected[:, roi])


AXES = [((0, 1, 2), (False, False, False)), ((2, 0, 1), (True, False, True)),
        ((1, 2, 0), (False, True, True))]  # fmt: skip


@pytest.mark.parametrize("reorient", AXES)
@pytest.mark.parametrize("network", [(30, 21, 17), (12, 40, 9), (24, 28, 20)])
@pytest.mark.parametrize("memory", [1 << 30, 30_000])
def test_the_way_back_in_blocks_is_the_way_back_at_once(
    reorient: Any, network: tuple[int, int, int], memory: int, rng: np.random.Generator
) -> None:
    turn = Reorient(*reorient)
    shape = (31, 27, 29)
    oriented = turn.shape(shape)
    box = tuple(slice(n, m - 2) for n, m in zip((1, 3, 2), oriented, strict=True))
    route = Route(shape, turn, box, network)  # type: ignore[arg-type]
    one = a_pass(volume(*network), route, overlap=0.4)
    blocks = one.parts(one.seen, memory)
    found = together(one, blocks, shape)
    found[:, found[0].isnan()] = torch.tensor([1.0, 0, 0])[:, None]
    torch.testing.assert_close(found, torch.from_numpy(route.back(at_once(one).numpy())))


def test_a_region_is_background_around_it_when_interpolated() -> None:
    roi = torch.zeros(20, 20, 20, dtype=torch.bool)
    roi[5:15, 6:12, 7:19] = True
    route = Route.identity((40, 30, 35)).resized((20, 20, 20))
    region = torch.ones(40, 30, 35, dtype=torch.bool)
    one = replace(a_pass(volume(20, 20, 20), route, roi=roi), roi=region)
    found = together(one, one.parts(one.seen, 1 << 30), (40, 30, 35))
    found[:, found[0].isnan()] = torch.tensor([1.0, 0, 0])[:, None]
    assert torch.allclose(found.sum(0), torch.tensor(1.0))
    whole = torch.zeros(CLASSES, 20, 20, 20)
    whole[0] = 1
    whole[:, 5:15, 6:12, 7:19] = at_once(one)
    torch.testing.assert_close(found, torch.from_numpy(route.back(whole.numpy())))


def test_taps_are_scipys() -> None:
    from scipy import ndimage

    values = np.random.default_rng(0).normal(size=29).astype(np.float32)
    for new in (29, 58, 40, 13, 5, 1):
        sigma = (29 / new - 1) / 2
        smooth = ndimage.gaussian_filter(values, sigma) if sigma > 0.25 else values
        expected = ndimage.zoom(smooth, new / 29, order=1, mode="nearest", grid_mode=True)
        found = Taps.linear(29, new)(torch.from_numpy(values)[None], 1)[0]
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_constant_windows_are_left_out() -> None:
    image = torch.zeros(1, 40, 4, 12)
    image[:, 30:, :, :] = volume(10, 4, 12)
    one = a_pass(image, overlap=0.5, skip_constant=True)
    assert [place[0] for place in one.plan.places] == [24, 28, 32]
    found = predict_volume(
        Net().eval(), image, settings(skip_constant=True), PATCH, (1, 1, 1), classes=CLASSES
    )
    assert (found[:, :24] == torch.tensor([1.0, 0, 0])[:, None, None, None]).all()
    everywhere = a_pass(image, overlap=0.5)
    assert len(everywhere.plan.places) == 9
    given = (net := Net().eval(), torch.ones(1, 40, 4, 12), settings(skip_constant=True))
    nothing = predict_volume(*given, PATCH, (1, 1, 1), classes=CLASSES)
    assert nothing[0].all() and not nothing[1:].any() and not net.calls


def test_labels_are_the_likeliest_of_probabilities() -> None:
    net, image = Net().eval(), volume(30, 22, 19)
    for options in ({}, {"mode": "resize"}, {"mode": "whole"}, {"flip": (0, 2)}):
        given = (net, image, settings(**options), PATCH, (1, 1, 1))
        shares = predict_volume(*given, classes=CLASSES)
        assert torch.equal(predict_labels(*given, classes=CLASSES).long(), shares.argmax(0))


def out_of_memory(kind: str) -> BaseException:
    return {
        "host": MemoryError(),
        "torch": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
        "allocator": RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't "
                                  "allocate memory: you tried to allocate 9 bytes."),
        "library": RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    }[kind]  # fmt: skip


def counted(net: Net, fails: Any, kind: str) -> Net:
    """A network that runs out of memory where `fails(call, windows)` says so."""
    forward, calls = net.forward, [0]

    def limited(x: Tensor) -> tuple[Tensor, ...]:
        calls[0] += 1
        if fails(calls[0], len(x)):
            raise out_of_memory(kind)
        return forward(x)

    net.forward = limited  # type: ignore[method-assign]
    return net


@pytest.mark.parametrize("kind", ["host", "torch", "allocator", "library"])
@pytest.mark.parametrize("overlap", [0.0, 0.5])
def test_memory_that_runs_out_at_any_window_costs_a_smaller_batch(
    kind: str, overlap: float
) -> None:
    image, chosen = volume(20, 8, 16), settings(batch=4, overlap=overlap)
    given = (image, chosen, PATCH, (1, 1, 1))
    expected = predict_volume(Net().eval(), *given, classes=CLASSES)
    plain = Net().eval()
    predict_volume(plain, *given, classes=CLASSES)
    for n in range(1, len(plain.calls) + 1):
        net = counted(Net().eval(), lambda call, size, n=n: call == n and size > 1, kind)
        torch.testing.assert_close(predict_volume(net, *given, classes=CLASSES), expected)
        if plain.calls[n - 1] > 1:
            assert max(net.calls[n - 1 :]) < 4


@pytest.mark.parametrize("most", [1, 2, 3])
def test_batches_shrink_to_what_there_is_room_for(most: int) -> None:
    image, chosen = volume(20, 8, 30), settings(batch=8)
    given = (image, chosen, PATCH, (1, 1, 1))
    net = counted(Net().eval(), lambda _, size: size > most, "torch")
    torch.testing.assert_close(
        predict_volume(net, *given, classes=CLASSES),
        predict_volume(Net().eval(), *given, classes=CLASSES),
    )
    assert max(net.calls) <= most


def test_sums_run_out_of_memory_at_any_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for a window's sums is made before anything is added: nothing is counted twice."""
    from medseg.inference import stitch

    image, chosen = volume(24, 9, 16), settings(batch=3)
    given = (image, chosen, PATCH, (1, 1, 1))
    expected = predict_volume(Net().eval(), *given, classes=CLASSES)
    make, calls = stitch._zeros, [0]

    def count(*arguments: Any) -> Tensor:
        calls[0] += 1
        if calls[0] == fails:
            raise MemoryError
        return make(*arguments)

    monkeypatch.setattr(stitch, "_zeros", count)
    fails = 0
    predict_volume(Net().eval(), *given, classes=CLASSES)
    for n in range(1, calls[0] + 1):
        calls[0], fails = 0, n
        try:
            found = predict_volume(Net().eval(), *given, classes=CLASSES)
        except OutOfMemoryError:  # of a window on its own
            continue
        torch.testing.assert_close(found, expected)


def test_a_block_finds_no_room_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whenever that is: its sums go on from where they are on the host, divided once."""
    from medseg.inference import stitch

    one = a_pass(volume(24, 9, 16))
    (part,) = one.parts(one.seen, 1 << 30)
    expected = [found.clone() for found in one._logits(part)]
    finish, assemble, calls = stitch.Stitcher._finish, stitch._assembled, [0]

    def limited(work: Any, *given: Any) -> Any:
        calls[0] += 1
        if calls[0] == fails:
            stitcher._home = torch.device("cuda")  # as if all this were there
            raise torch.OutOfMemoryError("CUDA out of memory")
        return work(*given)

    monkeypatch.setattr(stitch.Stitcher, "_finish", lambda *given: limited(finish, *given))
    monkeypatch.setattr(stitch, "_assembled", lambda *given: limited(assemble, *given))
    for fails in (1, 2, 5, 9, 20):
        calls[0], stitcher = 0, stitch.Stitcher(one.run, CLASSES, 1)
        found = stitcher(order.schedule(one.plan, one.route, part))
        for block, logits in zip(found, expected, strict=True):
            assert torch.equal(block, logits)
        assert calls[0] > fails
        assert stitcher._home == torch.device("cpu")


@pytest.mark.parametrize("memory", [1 << 30, 60_000])
@pytest.mark.parametrize("overlap", [0.3, 0.5])
def test_memory_that_is_kept_for_cells_to_come_is_bounded(memory: int, overlap: float) -> None:
    """Windows of a volume that they do not divide make cells of many sizes."""
    one = a_pass(volume(45, 13, 27), overlap=overlap)
    for part in one.parts(one.seen, memory):
        schedule = order.schedule(one.plan, one.route, part)
        cells = {cell for some in schedule.of_window for cell in some}
        for _ in one._stitcher(schedule):
            sums = [cell.total for cell in cells if cell.total is not None]
            spare = [some for kept in one._stitcher._spare.values() for some in kept]
            held = sum(tensor.numel() for tensor in sums + spare)
            assert held <= CLASSES * schedule.peak
            assert held == one._stitcher._taken


@pytest.mark.parametrize("n", [1, 2])
def test_a_trial_of_precision_that_finds_no_memory_costs_no_case(
    n: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from medseg.inference import precision

    monkeypatch.setattr(precision, "candidate", lambda _: "bf16")
    image = volume(30, 8, 16)
    given = (image, settings(precision="auto"), PATCH, (1, 1, 1))
    net = counted(Net().eval(), lambda call, _: call == n, "torch")
    expected = predict_volume(Net().eval(), image, settings(), *given[2:], classes=CLASSES)
    assert torch.equal(predict_volume(net, *given, classes=CLASSES), expected)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_one_window_that_does_not_fit_fails_the_case(n: int) -> None:
    net = counted(Net().eval(), lambda call, _: call >= n, "torch")
    with pytest.raises(OutOfMemoryError, match=r"one window of 8 x 4 x 12 voxels on cpu: "):
        predict_volume(net, volume(30, 8, 16), settings(), PATCH, (1, 1, 1), classes=CLASSES)


def test_other_errors_are_not_taken_for_memory() -> None:
    def broken(_: Tensor) -> tuple[Tensor, ...]:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    net = Net().eval()
    net.forward = broken  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="mat1"):
        predict_volume(net, volume(30, 8, 16), settings(), PATCH, (1, 1, 1), classes=CLASSES)


def test_sums_move_to_the_host_when_the_device_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    """The meta device stands for one that is full: the network runs, its sums find no room."""
    from medseg.inference import stitch

    image, chosen = volume(24, 9, 16), settings()
    one = Pass.of(Net().eval(), image, chosen, (1, 1, 1), CLASSES)
    (part,) = one.parts(one.seen, 1 << 30)
    stitcher = stitch.Stitcher(one.run, CLASSES, 1)
    stitcher._home = torch.device("meta")
    make = stitch._zeros

    def full(box: Box, like: Tensor, memory: Tensor | None = None) -> Tensor:
        if like.device.type == "meta":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return make(box, like, memory)

    monkeypatch.setattr(stitch, "_zeros", full)
    blocks = list(stitcher(order.schedule(one.plan, one.route, part)))
    expected = list(one._logits(part))
    assert all(map(torch.equal, blocks, expected))


def test_all_combinations_of_flips() -> None:
    flips = Runner(Net(), settings(flip=(0, 2)), torch.device("cpu"))._flips
    assert sorted(flips) == [[], [2], [2, 4], [4]]
    assert len({*product((0, 1), repeat=2)}) == len(flips)


def test_a_window_that_brings_hardly_any_overlap_is_saved() -> None:
    assert starts(146, 96, 0.5) == [0, 48, 50]
    assert starts(146, 96, 0.5, 0.05) == [0, 50]
    assert starts(161, 96, 0.5, 0.05) == [0, 48, 65]  # the overlap would be a third
    assert starts(240, 96, 0.5, 0.05) == starts(240, 96, 0.5) == [0, 48, 96, 144]
    assert starts(195, 96, 0.5, 0.05) == [0, 50, 99]  # evenly spaced
    for n, length, overlap in product(range(1, 60), (4, 7, 12), (0.0, 0.3, 0.5, 0.9)):
        if n >= length:
            found = starts(n, length, overlap, 0.05)
            assert found[0] == 0 and found[-1] == n - length
            assert all(0 < b - a <= length for a, b in pairwise(found))
            assert len(found) <= len(starts(n, length, overlap))
