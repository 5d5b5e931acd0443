"""How much memory a dense CRF says that it would take: before it takes it, and not too little."""

from __future__ import annotations

import re
import tracemalloc
from typing import Any

import numpy as np
import pytest

from medseg.errors import DataError
from medseg.postprocess.crf import DenseCRF3D
from medseg.postprocess.dense import brute


def scene(modalities: int = 2, classes: int = 3, shape: tuple[int, ...] = (6, 7, 8)) -> list[Any]:
    rng = np.random.default_rng(0)
    shares = np.moveaxis(rng.dirichlet(np.ones(classes), shape), -1, 0)
    image = rng.normal(size=(modalities, *shape))
    return [shares.astype(np.float32), image.astype(np.float32), (1, 1, 1)]


def peak(crf: DenseCRF3D, arguments: list[Any]) -> int:
    """The most bytes that numpy held at a time, beside what was there before."""
    tracemalloc.start()
    try:
        crf(*arguments)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def refused(arguments: list[Any], **options: Any) -> tuple[str, int]:
    """What it says, and what it had taken until then."""
    tracemalloc.start()
    try:
        with pytest.raises(DataError) as error:
            DenseCRF3D(**options)(*arguments)
        return str(error.value), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("modalities", [1, 2, 3, 5])
@pytest.mark.parametrize("engine", ["numba", "torch"])
def test_too_much_memory_is_said_before_it_is_taken(modalities: int, engine: Any) -> None:
    arguments = scene(modalities, shape=(20, 20, 20))
    DenseCRF3D(engine=engine)(*scene(modalities))  # whatever is loaded and compiled is no memory
    told, taken = refused(arguments, memory_gib=1e-4, engine=engine)
    assert re.match(r"CRF: would take 0\.\d+ GiB beside its input, but memory_gib is 0.0001", told)
    assert "allow more, cut outliers of the image, or take larger deviations" in told
    size = sum(array.nbytes for array in arguments[:2])
    assert taken < 6 * size
    assert peak(DenseCRF3D(engine="numba"), arguments) > 2 * taken


@pytest.mark.parametrize("modalities", [1, 2, 3])
def test_a_few_far_voxels_make_no_huge_grid(modalities: int) -> None:
    """Intensities that spread over many deviations: 10^6 cells a modality."""
    shares, image, spacing = scene(modalities)
    image[:, 0, 0, 0] = 1e5
    if modalities < 3:
        told, taken = refused([shares, image, spacing], appearance_intensity=1e-3)
        assert re.search(r"would take (\d{2,}|[\d.]+e\+\d+)", told)
        assert taken < 1e6
    else:  # a lattice takes as much whatever they are
        assert np.isfinite(DenseCRF3D(appearance_intensity=1e-3)(shares, image, spacing)).all()


@pytest.mark.parametrize("modalities", [1, 4])
def test_a_kernel_that_is_left_out_takes_no_memory(modalities: int) -> None:
    options = {"weights": (1, 0), "appearance_intensity": 1e-6, "memory_gib": 0.001}
    assert np.isfinite(DenseCRF3D(**options)(*scene(modalities))).all()


@pytest.mark.parametrize("modalities, intensity, options", [
    (1, 0.1, {"accuracy": "fast"}),
    (2, 1, {}),  # so that rows of the grid's planes are padded
    (2, 0.3, {"exclude_self": True}),
    (3, 0.3, {"accuracy": "high"}),
    (5, 0.5, {}),
])  # fmt: skip
def test_it_takes_no_more_than_it_says(
    modalities: int, intensity: float, options: dict[str, Any]
) -> None:
    """If that much were not allowed, it would have refused."""
    options = {"appearance_intensity": intensity, "weights": (1, 1), **options}
    arguments = scene(modalities, shape=(20, 18, 16))
    DenseCRF3D(**options)(*arguments)
    found = peak(DenseCRF3D(**options), arguments)
    beside = found - 4 * arguments[0].size  # the result is no part of it
    refused(arguments, **options, memory_gib=beside / 2**30)


def test_all_pairs_are_for_few_voxels() -> None:
    arguments = scene(1, 2, (41, 40, 31))
    told, taken = refused(arguments, accuracy="exact")
    assert told == (
        f"CRF: accuracy exact compares all pairs: at most {brute.MOST_VOXELS:,} voxels, got "
        "50,840; take high, or a smaller roi"
    )
    assert taken < 10 * sum(array.nbytes for array in arguments[:2])
