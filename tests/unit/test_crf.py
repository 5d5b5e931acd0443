"""The dense CRF: what it may be given, and that its ways agree; also see test_crf_region."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.special import log_softmax, softmax

from medseg.postprocess.crf import DenseCRF3D

SHAPE = (13, 11, 9)
SPACING = (0.9, 1.0, 2.0)
COSTS = [[0, 1, 2], [1, 0, 0.3], [2, 0.3, 0]]

STATM = Path("/proc/self/statm")

Scene = tuple[np.ndarray, np.ndarray]


def scene(modalities: int = 2, classes: int = 3, sure: float = 1.0) -> Scene:
    """Probabilities of a network, `sure` times as sure as usual, and z-scores with noise."""
    rng = np.random.default_rng(0)
    labels = gaussian_filter(rng.normal(size=(classes, *SHAPE)), (0, 3, 3, 3)).argmax(0)
    image = np.stack(
        [
            2 * gaussian_filter(((m + 1) * labels % classes).astype(float), 0.7)
            + 0.15 * rng.normal(size=SHAPE)
            for m in range(modalities)
        ]
    )
    logits = 2 * np.moveaxis(np.eye(classes)[labels], 3, 0) + rng.normal(size=(classes, *SHAPE))
    return softmax(sure * logits, 0).astype(np.float32), image.astype(np.float32)


def half() -> np.ndarray:
    """A region that is no box and whose box is not the volume."""
    i, j, k = np.indices(SHAPE)
    region: np.ndarray = (i + k > 6) & (j > 1) & (i < 11)
    return region


def held() -> int:
    """Bytes of memory that this process holds now."""
    return int(STATM.read_text().split()[1]) * resource.getpagesize()


def test_it_does_something() -> None:
    given, image = scene()
    found = DenseCRF3D()(given, image, SPACING)
    assert (found.shape, found.dtype) == (given.shape, np.float32)
    np.testing.assert_allclose(found.sum(0), 1, atol=1e-6)
    assert found.min() >= 0
    assert (found.argmax(0) != given.argmax(0)).mean() > 0.1


def test_its_input_is_left_as_it_was() -> None:
    given, image = scene()
    before, seen = given.copy(), image.copy()
    roi, ignore = half(), ~half()[::-1]
    masks = roi.copy(), ignore.copy()
    DenseCRF3D()(given, image, SPACING, roi=roi, ignore=ignore)
    for was, now in zip((before, seen, *masks), (given, image, roi, ignore), strict=True):
        np.testing.assert_array_equal(was, now)


@pytest.mark.parametrize("spoil", [
    np.asfortranarray,
    lambda x: np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 0, 3)), 3, 0),
    lambda x: np.repeat(x, 2, axis=2)[:, :, ::2],
    lambda x: x.astype(np.float64),
])  # fmt: skip
@pytest.mark.parametrize("logits", [False, True])
def test_how_arrays_lie_in_memory_does_not_matter(spoil: Any, logits: bool) -> None:
    given, image = scene()
    given = np.log(given) if logits else given
    crf = DenseCRF3D()
    expected = crf(given, image, SPACING, roi=half(), logits=logits)
    found = crf(
        spoil(given), spoil(image), SPACING, roi=np.asfortranarray(half()), logits=logits
    )  # fmt: skip
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("engine", ["numba", "torch"])
@pytest.mark.parametrize("accuracy", ["pair", "exact"])
def test_zero_weights_give_softmax(engine: Any, accuracy: Any) -> None:
    logits = np.random.default_rng(0).normal(size=(4, *SHAPE)).astype(np.float32)
    crf = DenseCRF3D(weights=(0, 0), engine=engine, accuracy=accuracy, temperature=1.5)
    found = crf(logits, scene()[1], SPACING, logits=True)
    np.testing.assert_allclose(found, softmax(logits / 1.5, 0), atol=1e-6)


def test_no_iterations_give_softmax() -> None:
    given, image = scene()
    np.testing.assert_allclose(DenseCRF3D(iterations=0)(given, image, SPACING), given, atol=1e-6)


def test_logits_are_probabilities_otherwise_written() -> None:
    given, image = scene()
    crf = DenseCRF3D(temperature=1.3)
    expected = crf(given, image, SPACING, roi=half())
    found = crf(np.log(given) + 7, image, SPACING, roi=half(), logits=True)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_the_temperature_divides_logits() -> None:
    given, image = scene()
    expected = DenseCRF3D()(log_softmax(np.log(given) / 2, 0), image, SPACING, logits=True)
    found = DenseCRF3D(temperature=2)(given, image, SPACING)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"accuracy": "exact"}, {"engine": "torch"}])
def test_two_classes_are_many_without_a_probability(options: dict[str, Any]) -> None:
    given, image = scene(classes=2)
    more = np.concatenate([given[:1], np.zeros((2, *SHAPE), np.float32), given[1:]])
    found = DenseCRF3D(**options)(more, image, SPACING)
    expected = DenseCRF3D(**options)(given, image, SPACING)
    np.testing.assert_allclose(found[[0, 3]], expected, atol=1e-4)
    assert found[1:3].max() < 1e-3


@pytest.mark.parametrize("sure", [0.5, 1, 3, 8])
@pytest.mark.parametrize("options", [
    {}, {"exclude_self": True}, {"compatibility": COSTS}, {"weights": (3.0, 5.0), "iterations": 10},
])  # fmt: skip
def test_what_has_not_moved_need_not_be_sent(options: dict[str, Any], sure: float) -> None:
    """Of no great effect, whether the network doubts or is sure."""
    given, image = scene(sure=sure)
    full = DenseCRF3D(**options, tolerance=0)(given, image, SPACING)
    delta = DenseCRF3D(**options)(given, image, SPACING)
    np.testing.assert_allclose(delta, full, atol=2e-3)
    if sure == 3 and not options:
        assert not np.array_equal(delta, full)  # some were not sent


@pytest.mark.parametrize("costs, weights", [
    (None, (3, 3)),
    ([[0, 0.5, 0.5], [0.5, 0, 1], [0.5, 1, 0]], (3, 3)),
    ([[0, 9, 9], [9, 0, 9], [9, 9, 0]], (1, 1)),
])  # fmt: skip
def test_a_sure_voxel_hears_the_others(costs: Any, weights: Any) -> None:
    """How sure it may be before it is left alone depends on what they can do to it."""
    image = np.zeros((1, *SHAPE), np.float32)
    options = {"compatibility": costs, "weights": weights}
    for lead in range(6, 14):
        logits = np.zeros((3, *SHAPE), np.float32)
        logits[2] = 20
        logits[:, 6, 5, 4] = 0, lead, 0
        found = DenseCRF3D(**options)(logits, image, SPACING, logits=True)
        full = DenseCRF3D(**options, engine="torch")(logits, image, SPACING, logits=True)
        np.testing.assert_allclose(found, full, atol=2e-3)


@pytest.mark.parametrize("sure", [1, 3])
@pytest.mark.parametrize("modalities, options", [
    (1, {}),
    (2, {}),
    (3, {}),
    (4, {}),
    (2, {"exclude_self": True}),
    (2, {"compatibility": COSTS}),
    (2, {"weights": (0.0, 3.0)}),
    (2, {"weights": (3.0, 0.0)}),
    (2, {"accuracy": "fast"}),
    (2, {"accuracy": "high"}),
    (5, {"exclude_self": True, "compatibility": COSTS}),
])  # fmt: skip
def test_torch_gives_what_numba_gives(
    modalities: int, options: dict[str, Any], sure: float
) -> None:
    given, image = scene(modalities, sure=sure)
    arguments = {"spacing": SPACING, "roi": half(), "ignore": ~half()[::-1, ::-1]}
    numba = DenseCRF3D(**options, tolerance=0)(given, image, **arguments)
    torch = DenseCRF3D(**options, engine="torch")(given, image, **arguments)
    np.testing.assert_allclose(torch, numba, atol=1e-4)


@pytest.mark.parametrize("weights, sure", [((20.0, 0.0), 1), ((1.0, 2.0), 6), ((1.0, 2.0), 10)])
def test_nothing_is_left_out_without_a_tolerance(weights: Any, sure: float) -> None:
    given, image = scene(sure=sure)
    options = {"weights": weights, "iterations": 10}
    numba = DenseCRF3D(**options, tolerance=0)(given, image, SPACING)
    torch = DenseCRF3D(**options, engine="torch")(given, image, SPACING)
    np.testing.assert_allclose(torch, numba, atol=1e-4)


@pytest.mark.parametrize("sure", [1, 2])
def test_strong_weights_turn_voxels_that_were_sure(sure: float) -> None:
    given, image = scene(sure=sure)
    options = {"weights": (20.0, 0.0), "iterations": 10}
    found = DenseCRF3D(**options)(given, image, SPACING)
    full = DenseCRF3D(**options, engine="torch")(given, image, SPACING)
    assert (found.argmax(0) != full.argmax(0)).sum() <= 1


@pytest.mark.parametrize("tolerance", [0, 1e-3])
@pytest.mark.parametrize("modalities", [2, 4])
def test_threads_change_nothing(modalities: int, tolerance: float) -> None:
    given, image = scene(modalities)
    one, two, many = (
        DenseCRF3D(threads=n, tolerance=tolerance)(given, image, SPACING) for n in (1, 2, 8)
    )
    np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(one, many)


@pytest.mark.parametrize("accuracy", ["pair", "exact"])
def test_a_second_call_gives_the_same(accuracy: Any) -> None:
    """Also after another case: nothing is left over."""
    given, image = scene()
    crf = DenseCRF3D(accuracy=accuracy)
    first = crf(given, image, SPACING)
    crf(given[::-1].copy(), 3 * image[:, ::-1], SPACING, roi=half())
    np.testing.assert_array_equal(crf(given, image, SPACING), first)


@pytest.mark.skipif(not STATM.exists(), reason="needs Linux to say what a process holds")
@pytest.mark.parametrize("engine, modalities", [("numba", 2), ("numba", 4), ("torch", 2)])
def test_memory_stays_flat(engine: Any, modalities: int) -> None:
    """Ten calls more do not take half of what the input takes, each."""
    given, image = (np.tile(x, (1, 3, 3, 3)) for x in scene(modalities))
    crf = DenseCRF3D(engine=engine, iterations=1, appearance_intensity=0.8)
    for _ in range(3):
        crf(given, image, SPACING)
    before = held()
    for _ in range(10):
        crf(given, image, SPACING)
    assert held() - before < 5 * (given.nbytes + image.nbytes)
