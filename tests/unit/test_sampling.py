"""Which patch is the n-th: a pure function of seed and n."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.training.sampling import Sampling, cut

SHAPE = (20, 24, 16)


def voxels(*places: tuple[int, int, int, int]) -> np.ndarray:
    """(class, flat index) of (class, i, j, k)."""
    return np.array([(c, np.ravel_multi_index(at, SHAPE)) for c, *at in places])


def test_each_case_comes_once_an_epoch_in_a_new_order() -> None:
    sampling = Sampling((8, 8, 8), 0.5, 7)
    epochs = [[sampling.case(10 * e + n, 10) for n in range(10)] for e in range(5)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 5


def test_the_nth_patch_depends_on_seed_and_n_alone() -> None:
    def start(seed: int, n: int) -> tuple[int, int, int]:
        sampling = Sampling((8, 8, 8), 0.5, seed)
        return sampling.start(sampling.generator(n), SHAPE, voxels((1, 10, 12, 8)))

    forwards = [start(3, n) for n in range(20)]
    assert forwards == [start(3, n) for n in reversed(range(20))][::-1]
    assert forwards != [start(4, n) for n in range(20)]
    assert len(set(forwards)) > 10


@settings(max_examples=60, deadline=None)
@given(
    patch=st.tuples(*[st.integers(1, 24)] * 3),
    at=st.tuples(*[st.integers(0, n - 1) for n in SHAPE]),
    n=st.integers(0, 1 << 40),
)
def test_a_foreground_patch_holds_its_voxel(
    patch: tuple[int, int, int], at: tuple[int, int, int], n: int
) -> None:
    sampling = Sampling(patch, 1.0, 0)
    start = sampling.start(sampling.generator(n), SHAPE, voxels((1, *at)))
    for s, p, size, c in zip(start, patch, SHAPE, at, strict=True):
        assert s <= c < s + p
        assert (0 <= s <= size - p) if p <= size else (s <= 0 and s + p >= size)


def test_the_share_of_foreground_patches_is_what_was_asked() -> None:
    sampling, corner = Sampling((3, 3, 3), 0.3, 1), voxels((1, 0, 0, 0))
    hits = [sampling.start(sampling.generator(n), SHAPE, corner) == (0, 0, 0) for n in range(2000)]
    assert np.mean(hits) == pytest.approx(0.3, abs=0.03)


def test_rare_classes_are_drawn_as_often_as_common_ones() -> None:
    places = voxels((2, 1, 1, 1), *[(1, i, j, 14) for i in range(20) for j in range(24)])
    sampling = Sampling((1, 1, 1), 1.0, 1)
    # A patch of one voxel is where its voxel is.
    drawn = Counter(
        int(sampling.start(sampling.generator(n), SHAPE, places)[2] == 1) for n in range(1000)
    )
    assert drawn[1] / 1000 == pytest.approx(0.5, abs=0.05)


def test_a_case_without_foreground_is_sampled_anywhere() -> None:
    sampling, none = Sampling((4, 4, 4), 1.0, 2), np.zeros((0, 2), np.int64)
    starts = {sampling.start(sampling.generator(n), SHAPE, none) for n in range(300)}
    for axis, size in enumerate(SHAPE):
        seen = {start[axis] for start in starts}
        assert (min(seen), max(seen)) == (0, size - 4)


def test_a_patch_within_is_a_view_of_the_volume(rng: np.random.Generator) -> None:
    volume = rng.normal(size=(2, *SHAPE))
    part = cut(volume, (2, 3, 4), (5, 6, 7), edge=True)
    np.testing.assert_array_equal(part, volume[:, 2:7, 3:9, 4:11])
    assert np.shares_memory(part, volume)


@pytest.mark.parametrize("edge", [True, False])
def test_what_overhangs_repeats_the_edge_or_is_zero(edge: bool, rng: np.random.Generator) -> None:
    volume = 1 + rng.random((2, 4, 9, 5))
    part = cut(volume, (-3, 2, -1), (10, 4, 8), edge=edge)
    assert part.shape == (2, 10, 4, 8)
    np.testing.assert_array_equal(part[:, 3:7, :, 1:6], volume[:, :, 2:6])
    if edge:
        np.testing.assert_array_equal(part[:, 0, :, 1:6], volume[:, 0, 2:6])
        np.testing.assert_array_equal(part[:, -1, :, -1], volume[:, -1, 2:6, -1])
    else:
        assert part.sum() == pytest.approx(volume[:, :, 2:6].sum())
