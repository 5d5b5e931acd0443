"""Histogram landmarks against their definition, and what they are for: scanners that agree."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.errors import ConfigError, PluginError
from medseg.transforms.intensity import HistogramLandmarks

DECILES = tuple(float(n) for n in range(10, 100, 10))


def brain(rng: np.random.Generator, shape: tuple[int, ...] = (16, 16, 16)) -> np.ndarray:
    """Three tissues within a margin of zeros."""
    tissue = rng.choice([20.0, 50.0, 80.0], p=[0.2, 0.5, 0.3], size=shape)
    volume = np.clip(tissue + rng.normal(0, 6, size=shape), 1, None)
    volume[:2] = 0
    return volume


def scanned(volume: np.ndarray, gain: float, offset: float, gamma: float) -> np.ndarray:
    """The same head from another scanner; zeros stay."""
    return np.where(volume > 0, offset + gain * (volume / 100) ** gamma, 0)


def sample(*channels: np.ndarray, **more: Any) -> dict[str, Any]:
    return {"image": np.stack(channels).astype(np.float32), **more}


def fitted(samples: list[dict[str, Any]], **options: Any) -> HistogramLandmarks:
    transform = HistogramLandmarks(**options)
    return transform.use(json.loads(json.dumps(transform.fit(iter(samples)))))


def test_what_is_learnt_is_the_mean_of_percentiles_on_the_scale() -> None:
    """By hand: ramps whose percentiles are known."""
    linear = np.linspace(100, 300, 101).reshape(1, 1, 101)
    square = (np.linspace(0, 1, 101) ** 2 + 1).reshape(1, 1, 101)
    learnt = HistogramLandmarks((0.0, 100.0), (25.0, 50.0, 75.0)).fit(
        iter([sample(linear), sample(square)])
    )
    assert learnt["percentiles"] == [0, 25, 50, 75, 100]
    expected = [0, (25 + 6.25) / 2, (50 + 25) / 2, (75 + 56.25) / 2, 100]
    np.testing.assert_allclose(learnt["landmarks"][0], expected, atol=1e-4)


@pytest.mark.parametrize("landmarks", [(25.0, 50.0, 75.0), DECILES, (50.0,)])
def test_it_is_the_published_method(landmarks: Any, rng: np.random.Generator) -> None:
    """As published and as NiftyNet has it, in a few lines: means of lines, then pieces of lines."""
    at = [1, *landmarks, 99]
    cases = [scanned(brain(rng), *how) for how in ((300, 5, 1.2), (90, 40, 0.8), (900, 1, 1.0))]
    own = np.array([np.percentile(c[c != 0].astype(np.float32), at) for c in cases])
    slopes = 100 / (own[:, -1] - own[:, 0])
    mean = np.mean(slopes[:, None] * own - (slopes * own[:, 0])[:, None], axis=0)
    out = fitted([sample(c) for c in cases], landmarks=landmarks)(sample(cases[1]))["image"][0]
    place = np.digitize(cases[1], own[1, 1:-1])
    gain = np.diff(mean) / np.diff(own[1])
    expected = gain[place] * cases[1] + (mean[:-1] - gain * own[1, :-1])[place]
    np.testing.assert_allclose(out, np.where(cases[1] != 0, expected, 0), atol=2e-3)
    assert out.dtype == np.float32


def test_scanners_agree_after_it(rng: np.random.Generator) -> None:
    """Two patients from a scanner each, unseen in training, and the same patient from both."""
    scanners = ((300, 5, 1.3), (2000, 150, 0.8), (50, 400, 1.0))
    transform = fitted([sample(scanned(brain(rng), *how)) for how in scanners])
    head, tissue = brain(rng), [(10, 30), (40, 60), (70, 90)]
    views = [transform(sample(scanned(head, *how)))["image"][0] for how in scanners]
    for view in views[1:]:
        assert np.percentile(np.abs(view - views[0])[head > 0], 98) < 1.5  # of 100
    other = transform(sample(scanned(brain(rng), 700, 0, 1.1)))["image"][0]
    for q in (20, 50, 80):
        assert np.percentile(other[other != 0], q) == pytest.approx(
            np.percentile(views[0][views[0] != 0], q), abs=3
        )
    means = [[v[(head > low) & (head < high)].mean() for low, high in tissue] for v in views]
    np.testing.assert_allclose(means[1:], [means[0]] * 2, atol=1.5)
    raw = [scanned(head, *how)[(head > 40) & (head < 60)].mean() for how in scanners]
    assert max(raw) > 2 * min(raw)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999), levels=st.integers(2, 200), gamma=st.floats(0.3, 3))
def test_the_order_of_intensities_stays(seed: int, levels: int, gamma: float) -> None:
    """Also where few levels make percentiles equal, and far beyond the cutoffs."""
    rng = np.random.default_rng(seed)
    volume = np.round(rng.gamma(2, 1, size=(10, 10, 10)) ** gamma * levels / 4) + 1
    transform = fitted([sample(rng.gamma(3, 10, size=(10, 10, 10))), sample(volume)])
    if volume.min() == volume.max():
        return
    out = transform(sample(volume))["image"][0]
    assert np.isfinite(out).all()
    order = np.argsort(volume.ravel(), kind="stable")
    assert (np.diff(out.ravel()[order]) >= -1e-4).all()


REST = {"region": "nonzero", "scale": [0, 100]}


def test_equal_percentiles_take_the_place_of_the_highest() -> None:
    values = np.array([1.0] * 50 + [2.0] * 50 + [3.0]).reshape(1, 1, 101)
    transform = HistogramLandmarks((0.0, 100.0), (25.0, 50.0, 75.0))
    transform = transform.use(
        {"percentiles": [0, 25, 50, 75, 100], **REST, "landmarks": [[0, 10, 20, 60, 100]]}
    )
    out = transform(sample(values))["image"].ravel()
    assert sorted(set(out.tolist())) == [10, 60, 100]  # 1: up to the 25th; 2: from the 50th on


def test_beyond_the_cutoffs_the_outer_pieces_go_on() -> None:
    ramp = np.linspace(10, 110, 101).reshape(1, 1, 101)
    transform = HistogramLandmarks((10.0, 90.0), (50.0,))
    transform = transform.use({"percentiles": [10, 50, 90], **REST, "landmarks": [[0, 20, 100]]})
    out = transform(sample(ramp))["image"].ravel()
    np.testing.assert_allclose(out[[0, 10, 50, 90, 100]], [-5, 0, 20, 100, 120], atol=1e-4)


def test_a_constant_case_neither_teaches_nor_breaks(rng: np.random.Generator) -> None:
    head, flat = sample(brain(rng)), sample(np.full((16, 16, 16), 7.0))
    assert HistogramLandmarks().fit(iter([head, flat])) == HistogramLandmarks().fit(iter([head]))
    empty = sample(np.zeros((16, 16, 16)))
    for data in (flat, empty):
        assert not fitted([head])(data)["image"].any()
    with pytest.raises(ValueError, match=r"channel 0 .* constant .* all training cases"):
        HistogramLandmarks().fit(iter([flat, empty]))


def test_few_voxels(rng: np.random.Generator) -> None:
    few = np.zeros((4, 4, 4))
    few[0, 0, :2] = (3, 5)
    out = fitted([sample(brain(rng))])(sample(few))["image"][0]
    assert np.isfinite(out).all()
    assert out[0, 0, 0] < out[0, 0, 1]
    assert np.count_nonzero(out) == 2


def test_it_goes_by_the_region(rng: np.random.Generator) -> None:
    head, mask = brain(rng), np.zeros((16, 16, 16), bool)
    mask[4:12, 4:12, 4:12] = True
    spoilt = np.where(mask, head, 5000)  # a table, say
    within = fitted([sample(head, mask=mask)], region="mask")
    out = within(sample(spoilt, mask=mask))["image"][0]
    np.testing.assert_array_equal(out, within(sample(head, mask=mask))["image"][0])
    assert not out[~mask].any()
    assert out[mask].all()


def test_channels_are_learnt_apart(rng: np.random.Generator) -> None:
    first, second = brain(rng), brain(rng) ** 2
    both = fitted([sample(first, second)])(sample(first, second))["image"]
    for n, channel in enumerate((first, second)):
        np.testing.assert_array_equal(
            both[n], fitted([sample(channel)])(sample(channel))["image"][0]
        )
    one = fitted([sample(first, second)], channels=(1,))
    out = one(sample(first, second))["image"]
    np.testing.assert_array_equal(out[0], first.astype(np.float32))
    np.testing.assert_array_equal(out[1], both[1])
    with pytest.raises(ConfigError, match=r"channels \[2\] of 2"):
        HistogramLandmarks(channels=(2,)).fit(iter([sample(first, second)]))


def test_the_original_stays_without_what_was_learnt(rng: np.random.Generator) -> None:
    transform, data = HistogramLandmarks(), sample(brain(rng))
    transform.use(transform.fit(iter([data])))(data)
    with pytest.raises(PluginError, match="learnt nothing yet"):
        transform(data)


GOOD = {"percentiles": [10, 50, 90], **REST, "landmarks": [[0, 20, 100], None]}


@pytest.mark.parametrize(
    "channels, change, message",
    [
        ((0,), {"percentiles": [10, 40, 90]}, r"learnt at \[10, 40, 90\]"),
        ((0,), {"region": "mask"}, "learnt with region mask, asked for nonzero"),
        ((0,), {"scale": [0, 1]}, r"learnt with scale \[0, 1\], asked for"),
        ((0,), {"landmarks": [[0, 20], None]}, "3 rising values"),
        ((0,), {"landmarks": [[0, 200, 100], None]}, "3 rising values"),
        ((0,), {"landmarks": [[0, float("nan"), 100], None]}, "3 rising values"),
        (None, {}, r"nothing was learnt of channels \[1\]"),
        ((2,), {}, r"nothing was learnt of channels \[2\]"),
    ],
)
def test_what_does_not_fit_is_refused(channels: Any, change: Any, message: str) -> None:
    transform = HistogramLandmarks((10.0, 90.0), (50.0,), channels=channels)
    with pytest.raises(ValueError, match=message):
        transform.use({**GOOD, **change})


@pytest.mark.parametrize(
    "options, message",
    [
        ({"cutoff": (99.0, 1.0)}, "cutoff: 0 <= low < high <= 100"),
        ({"landmarks": (50.0, 25.0)}, "must rise"),
        ({"landmarks": (0.5, 25.0)}, "within the cutoffs"),
        ({"scale": (1.0, 1.0)}, "scale"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HistogramLandmarks(**options)
