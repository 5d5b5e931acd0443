"""Which patch is the n-th: a pure function of seed and n."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.errors import ConfigError, PluginError
from medseg.registry import SAMPLERS
from medseg.training.samplers import Balanced, Grid, Lesion, PerClass, Site, Start, Weighted
from medseg.training.sampling import Sampler, Sampling, cut, spread

SHAPE = (20, 24, 16)
NONE = np.zeros((0, 2), np.int64)


def starts(
    patch: tuple[int, int, int],
    sampler: Sampler,
    voxels: np.ndarray = NONE,
    *,
    count: int,
    seed: int = 0,
    **site: Any,
) -> list[Start]:
    """The first patches of a case."""
    label = np.zeros(SHAPE, np.uint8)
    label.flat[voxels[:, 1]] = voxels[:, 0]
    sampling = Sampling(patch, seed)
    return [
        sampling.start(
            sampler, sampling.generator(n), Site(SHAPE, patch, voxels, label, turn=n, **site)
        )
        for n in range(count)
    ]


def voxels(*places: tuple[int, int, int, int]) -> np.ndarray:
    """(class, flat index) of (class, i, j, k), sorted."""
    return np.array(sorted((c, np.ravel_multi_index(at, SHAPE)) for c, *at in places))


def test_each_case_comes_once_an_epoch_in_a_new_order() -> None:
    sampling = Sampling((8, 8, 8), 7)
    epochs = [[sampling.case(10 * e + n, 10) for n in range(10)] for e in range(5)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 5


@pytest.mark.parametrize("name", SAMPLERS.names())
def test_the_nth_patch_depends_on_seed_and_n_alone(name: str) -> None:
    sampler = SAMPLERS.build({"name": name}, classes=2)
    given = {"voxels": voxels((1, 10, 12, 8)), "weighted": np.arange(999), "count": 20}
    once, again = (starts((8, 8, 8), sampler, seed=3, **given) for _ in range(2))
    assert once == again
    if name not in ("grid", "resize"):  # these draw nothing
        assert once != starts((8, 8, 8), sampler, seed=4, **given)
        assert len(set(once)) > 5


@pytest.mark.parametrize("name", SAMPLERS.names())
def test_every_sampler_stays_in_the_volume(name: str) -> None:
    sampler = SAMPLERS.build({"name": name}, classes=2)
    places = voxels((1, 0, 0, 0), (1, 19, 23, 15))
    for patch in ((4, 6, 8), (20, 24, 16), (30, 5, 40)):
        for start in starts(patch, sampler, places, weighted=np.arange(9), count=30):
            for s, p, size in zip(start, patch, SHAPE, strict=True):
                assert (0 <= s <= size - p) if p <= size else (s <= 0 and s + p >= size)


@settings(max_examples=60, deadline=None)
@given(
    patch=st.tuples(*[st.integers(1, 24)] * 3),
    at=st.tuples(*[st.integers(0, n - 1) for n in SHAPE]),
    n=st.integers(0, 1 << 40),
)
def test_a_foreground_patch_holds_its_voxel(
    patch: tuple[int, int, int], at: tuple[int, int, int], n: int
) -> None:
    (start,) = starts(patch, Balanced(1.0), voxels((1, *at)), count=1, seed=n)
    for s, p, size, c in zip(start, patch, SHAPE, at, strict=True):
        assert s <= c < s + p
        assert (0 <= s <= size - p) if p <= size else (s <= 0 and s + p >= size)


def test_the_share_of_foreground_patches_is_what_was_asked() -> None:
    found = starts((3, 3, 3), Balanced(0.3), voxels((1, 0, 0, 0)), count=2000, seed=1)
    assert np.mean([start == (0, 0, 0) for start in found]) == pytest.approx(0.3, abs=0.03)


def test_rare_classes_are_drawn_as_often_as_common_ones() -> None:
    places = voxels((2, 1, 1, 1), *[(1, i, j, 14) for i in range(20) for j in range(24)])
    # A patch of one voxel is where its voxel is.
    found = starts((1, 1, 1), Balanced(1.0), places, count=1000, seed=1)
    assert np.mean([start[2] == 1 for start in found]) == pytest.approx(0.5, abs=0.05)


def test_lesion_and_background_come_in_their_ratio() -> None:
    """Lesions by volume, whatever their class; background never a lesion voxel."""
    places = voxels(*[(1, i, j, 14) for i in range(20) for j in range(24)], (2, 1, 1, 1))
    found = starts((1, 1, 1), Lesion(0.25), places, count=2000)
    lesion = [start[2] == 14 or start == (1, 1, 1) for start in found]
    assert np.mean(lesion) == pytest.approx(0.25, abs=0.03)
    assert sum(start == (1, 1, 1) for start in found) < 10
    alone = starts((1, 1, 1), Lesion(0.25), count=500)
    assert len(set(alone)) > 400


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        (None, (1 / 3, 1 / 3, 1 / 3)),
        ((0.0, 3.0, 1.0), (0, 0.75, 0.25)),
        ((2.0, 0.0, 2.0), (0.5, 0, 0.5)),
    ],
)
def test_classes_come_in_their_proportions(weights: Any, expected: tuple[float, ...]) -> None:
    places = voxels((2, 1, 1, 1), *[(1, i, j, 14) for i in range(20) for j in range(24)])
    found = starts((1, 1, 1), PerClass(3, weights), places, count=2000)
    kinds = Counter(1 if s[2] == 14 else 2 if s == (1, 1, 1) else 0 for s in found)
    assert [kinds[c] / 2000 for c in range(3)] == pytest.approx(expected, abs=0.04)


def test_a_class_that_a_case_lacks_leaves_its_part_to_the_others() -> None:
    found = starts((1, 1, 1), PerClass(3, (1.0, 1.0, 8.0)), voxels((1, 3, 4, 5)), count=1000)
    assert np.mean([start == (3, 4, 5) for start in found]) == pytest.approx(0.5, abs=0.05)
    assert len(set(starts((1, 1, 1), PerClass(3, (0.0, 0.0, 1.0)), count=200))) > 150


def test_a_map_of_weights_decides() -> None:
    weights = np.zeros(SHAPE, np.float32)
    weights[2, 3, 4], weights[5, 6, 7] = 1, 3
    found = starts((1, 1, 1), Weighted(), weighted=spread(weights, 1000), count=2000)
    assert set(found) == {(2, 3, 4), (5, 6, 7)}
    assert np.mean([start == (5, 6, 7) for start in found]) == pytest.approx(0.75, abs=0.03)
    with pytest.raises(ConfigError, match=r"data\.weights"):
        starts((1, 1, 1), Weighted(), count=1)


def test_a_grid_comes_round() -> None:
    found = starts((10, 8, 8), Grid(), count=24)
    assert Counter(found) == dict.fromkeys(
        [(i, j, k) for i in (0, 10) for j in (0, 8, 16) for k in (0, 8)], 2
    )
    assert sorted(found[:12]) == sorted(found[12:])
    assert {start[0] for start in starts((10, 24, 16), Grid(0.5), count=9)} == {0, 5, 10}


def test_with_a_region_patches_are_centred_in_it() -> None:
    inside = np.ravel_multi_index(([4, 5, 6], [7, 8, 9], [3, 3, 3]), SHAPE)
    for name in ("uniform", "balanced", "lesion", "per_class"):
        sampler = SAMPLERS.build({"name": name}, classes=2)
        found = starts((1, 1, 1), sampler, inside=inside, count=50)
        assert set(found) == {(4, 7, 3), (5, 8, 3), (6, 9, 3)}


@pytest.mark.parametrize("shape", [(200, 100, 100), (250, 200, 40), (160, 160, 160)])
def test_what_is_picked_does_not_follow_the_rows(shape: tuple[int, int, int]) -> None:
    """At even steps all of 20,000 voxels of 200 x 100 x 100 would lie in one slice."""
    for weights in (np.ones(shape, bool), np.ones(shape, np.float32)):
        picked = spread(weights, 20_000)
        assert len(picked) == 20_000
        for places, n in zip(np.unravel_index(picked, shape), shape, strict=True):
            counts = np.bincount(places, minlength=n)
            assert counts.min() > 0.5 * 20_000 / n
        np.testing.assert_array_equal(picked, spread(weights, 20_000))


def test_voxels_of_a_region_are_spread_evenly() -> None:
    mask = np.zeros(SHAPE, bool)
    mask[3:9] = True
    assert np.array_equal(spread(mask, 10**6), np.flatnonzero(mask))
    few = spread(mask, 100)
    assert 50 < len(few) <= 100
    assert mask.flat[few].all()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "balanced", "foreground": 1.5}, "foreground must be from 0 to 1, got 1.5"),
        ({"name": "lesion", "share": -0.1}, "share must be from 0 to 1"),
        ({"name": "per_class", "weights": [1.0]}, "weights needs 3 values, background first"),
        ({"name": "per_class", "weights": [0.0, 0.0, 0.0]}, "not all 0"),
        ({"name": "grid", "overlap": 1.0}, "overlap must be at least 0 and below 1"),
        ({"name": "ballanced"}, "did you mean 'balanced'"),
    ],
)
def test_options_that_make_no_sense_are_refused(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SAMPLERS.build(spec, classes=3)


def test_a_case_without_foreground_is_sampled_anywhere() -> None:
    found = set(starts((4, 4, 4), Balanced(1.0), count=300, seed=2))
    for axis, size in enumerate(SHAPE):
        seen = {start[axis] for start in found}
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


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (lambda *_: (1, 2), r"sampler .* gave \[1, 2\]; expected a"),
        (lambda *_: (1.5, 2, 3), r"sampler .* failed: TypeError"),
        (lambda *_: 1 / 0, r"sampler .* failed: ZeroDivisionError"),
    ],
)
def test_a_sampler_that_makes_no_sense_is_named(place: Any, message: str) -> None:
    with pytest.raises(PluginError, match=message):
        starts((4, 4, 4), place, count=1)
