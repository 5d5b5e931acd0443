"""Intensity components against numpy, scipy and MONAI."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from medseg import plugins
from medseg.errors import ConfigError, PluginError
from medseg.registry import TRANSFORMS
from medseg.transforms import intensity

plugins.load()


@pytest.fixture
def data(rng: np.random.Generator) -> dict[str, Any]:
    image = rng.gamma(2, 300, size=(2, 12, 10, 8)).astype(np.float32)
    image[:, :3] = 0
    mask = np.zeros(image.shape[1:], bool)
    mask[4:9, 2:8, 1:6] = True
    return {"image": image, "mask": mask}


def test_zscore_of_all_is_scipys(data: dict[str, Any]) -> None:
    out = intensity.ZScore()(data)["image"]
    assert out.dtype == np.float32
    for mine, channel in zip(out, data["image"], strict=True):
        expected = stats.zscore(channel.astype(np.float64), axis=None)
        np.testing.assert_allclose(mine, expected, atol=1e-5)


def test_zscore_of_nonzero_is_monais(data: dict[str, Any]) -> None:
    from monai.transforms import NormalizeIntensity

    out = intensity.ZScore("nonzero")(data)["image"]
    peer = NormalizeIntensity(nonzero=True, channel_wise=True)(data["image"].copy())
    np.testing.assert_allclose(out, np.asarray(peer), atol=1e-5)
    assert (out[data["image"] == 0] == 0).all()


def test_zscore_of_the_mask(data: dict[str, Any]) -> None:
    out = intensity.ZScore("mask")(data)["image"]
    for mine, channel in zip(out, data["image"], strict=True):
        expected = stats.zscore(channel[data["mask"]].astype(np.float64))
        np.testing.assert_allclose(mine[data["mask"]], expected, atol=1e-5)
        assert (mine[~data["mask"]] == 0).all()


def test_zscore_of_a_mask_that_a_case_lacks_is_that_of_all(data: dict[str, Any]) -> None:
    alone = {"image": data["image"]}
    np.testing.assert_array_equal(
        intensity.ZScore("mask")(alone)["image"], intensity.ZScore()(alone)["image"]
    )


def test_zscore_clips_first(data: dict[str, Any]) -> None:
    out = intensity.ZScore("nonzero", clip=(5.0, 95.0))(data)["image"]
    channel = data["image"][0].astype(np.float64)
    inside = channel != 0
    low, high = np.percentile(channel[inside], (5, 95))
    clipped = stats.mstats.zscore(np.clip(channel[inside], low, high))
    np.testing.assert_allclose(out[0][inside], clipped, atol=1e-4)
    assert (out[0][~inside] == 0).all()


def test_zscore_trims_its_statistics_alone(data: dict[str, Any]) -> None:
    """DeepMedic's inputs: mean and deviation of the middle, no value clipped, 0 outside."""
    out = intensity.ZScore("mask", trim=(5.0, 95.0))(data)["image"]
    mask = data["mask"]
    for mine, channel in zip(out, data["image"].astype(np.float64), strict=True):
        low, high = np.percentile(channel[mask], (5, 95))
        kept = channel[mask & (channel >= low) & (channel <= high)]
        assert len(kept) < mask.sum()
        expected = (channel - kept.mean()) / kept.std()
        np.testing.assert_allclose(mine[mask], expected[mask], atol=1e-4)
        assert (mine[~mask] == 0).all()
        assert mine.max() > 1.2 * (high - kept.mean()) / kept.std()


def test_an_outlier_moves_trimmed_statistics_no_further(data: dict[str, Any]) -> None:
    spoilt = data["image"].copy()
    spoilt[:, 5, 5, 3] = 1e6
    trimmed, plain = intensity.ZScore("mask", trim=(5.0, 95.0)), intensity.ZScore("mask")
    for transform, is_robust in ((trimmed, True), (plain, False)):
        before = transform(data)["image"][0, 6, 6, 2]
        after = transform({**data, "image": spoilt})["image"][0, 6, 6, 2]
        assert bool(abs(after - before) < 0.05) is is_robust


def test_whitening_in_a_mask_is_monais_of_the_cut_out_voxels(data: dict[str, Any]) -> None:
    """NiftyNet's and DLTK's whitening: mean and deviation of the mask's voxels."""
    from monai.transforms import NormalizeIntensity

    inside = data["image"][:, data["mask"]]
    peer = NormalizeIntensity(channel_wise=True)(inside.copy())
    out = intensity.ZScore("mask")(data)["image"][:, data["mask"]]
    np.testing.assert_allclose(out, np.asarray(peer), atol=1e-5)


@pytest.mark.parametrize("region", ["all", "nonzero", "mask"])
def test_clipping_alone_keeps_the_scale(region: Any, data: dict[str, Any]) -> None:
    out = intensity.ClipPercentiles(10.0, 90.0, region)(data)["image"]
    for mine, channel in zip(out, data["image"], strict=True):
        voxels = {"all": channel == channel, "nonzero": channel != 0, "mask": data["mask"]}[region]
        low, high = np.percentile(channel[voxels], (10, 90))
        np.testing.assert_array_equal(mine, np.clip(channel, low, high).astype(np.float32))


def test_clipping_to_an_empty_region_changes_nothing() -> None:
    data = {"image": np.zeros((1, 4, 4, 4), np.float32)}
    out = intensity.ClipPercentiles(region="nonzero")(data)["image"]
    np.testing.assert_array_equal(out, data["image"])


@pytest.mark.parametrize(
    "name, centre, width",
    [
        ("ct_brain", 40, 80),
        ("ct_stroke", 40, 40),
        ("ct_subdural", 80, 200),
        ("ct_bone", 400, 1800),
        ("ct_lung", -600, 1500),
        ("ct_mediastinum", 50, 350),
        ("ct_soft_tissue", 50, 400),
        ("ct_liver", 30, 150),
    ],
)
def test_named_windows(name: str, centre: float, width: float) -> None:
    """Radiopaedia's centres and widths in HU."""
    ends = [centre - width, centre - width / 2, centre, centre + width / 2, centre + width]
    image = np.array(ends, np.float32).reshape(1, 1, 1, 5)
    out = TRANSFORMS.build({"name": name})({"image": image})["image"].ravel()
    np.testing.assert_allclose(out, [-1, -1, 0, 1, 1], atol=1e-6)


@pytest.mark.parametrize(
    "spec",
    [
        {"name": "zscore"},
        {"name": "ct_brain"},
        {"name": "percentiles"},
        {"name": "clip_percentiles"},
    ],
    ids=lambda spec: spec["name"],
)
def test_some_channels_only(spec: dict[str, Any], data: dict[str, Any]) -> None:
    every = TRANSFORMS.build(spec)(data)["image"]
    out = TRANSFORMS.build({**spec, "channels": [1]})(data)["image"]
    np.testing.assert_array_equal(out[0], data["image"][0])
    np.testing.assert_array_equal(out[1], every[1])
    assert not np.array_equal(out[1], data["image"][1])
    with pytest.raises(ConfigError, match=r"channels \[2\] of 2: they count from 0"):
        TRANSFORMS.build({**spec, "channels": [0, 2]})(data)


@pytest.mark.parametrize("option", ["clip", "trim"])
@pytest.mark.parametrize("pair", [(95.0, 5.0), (-1.0, 50.0), (0.5, 101.0)])
def test_percentiles_out_of_order_are_refused(option: str, pair: Any) -> None:
    with pytest.raises(ValueError, match=rf"{option}: 0 <= low < high <= 100"):
        intensity.ZScore(**{option: pair})


@pytest.mark.parametrize("region", ["all", "nonzero", "mask"])
@pytest.mark.parametrize("value", [0.0, 7.0])
def test_constant_channels_stay_finite(region: Any, value: float) -> None:
    data = {"image": np.full((1, 4, 4, 4), value, np.float32), "mask": np.ones((4, 4, 4), bool)}
    for transform in (
        intensity.ZScore(region),
        intensity.ZScore(region, trim=(5.0, 95.0)),
        intensity.Percentiles(region=region),
    ):
        assert np.isfinite(transform(data)["image"]).all()


def test_window_is_monais(data: dict[str, Any]) -> None:
    from monai.transforms import ScaleIntensityRange

    out = intensity.Window(-100.0, 900.0)(data)["image"]
    peer = ScaleIntensityRange(-100, 900, -1, 1, clip=True)(data["image"])
    np.testing.assert_allclose(out, np.asarray(peer), atol=1e-5)
    assert out.dtype == np.float32


def test_percentiles_are_monais(data: dict[str, Any]) -> None:
    from monai.transforms import ScaleIntensityRangePercentiles

    out = intensity.Percentiles(2.0, 90.0)(data)["image"]
    peer = ScaleIntensityRangePercentiles(2, 90, 0, 1, clip=True, channel_wise=True)(data["image"])
    np.testing.assert_allclose(out, np.asarray(peer), atol=1e-4)


def test_percentiles_of_a_region(data: dict[str, Any]) -> None:
    out = intensity.Percentiles(10.0, 80.0, "mask")(data)["image"]
    inside = out[1][data["mask"]]
    assert (inside == 0).mean() == pytest.approx(0.1, abs=0.02)
    assert (inside == 1).mean() == pytest.approx(0.2, abs=0.02)


@pytest.mark.parametrize("low, high", [(2.0, 1.0), (1.0, 1.0)])
def test_an_empty_range_is_refused(low: float, high: float) -> None:
    for component in (intensity.Window, intensity.Percentiles):
        with pytest.raises(ValueError, match="low"):
            component(low, high)


def test_monais_transform_by_name_is_monais(data: dict[str, Any]) -> None:
    from monai.transforms import NormalizeIntensity

    spec = {
        "name": "monai",
        "transform": "NormalizeIntensityd",
        "options": {"nonzero": True, "channel_wise": True},
    }
    out = TRANSFORMS.build(spec)(data)
    peer = NormalizeIntensity(nonzero=True, channel_wise=True)(data["image"].copy())
    np.testing.assert_array_equal(out["image"], np.asarray(peer))
    assert out["mask"] is data["mask"]


def test_a_random_transform_of_monai_is_refused_where_nothing_is_drawn(
    data: dict[str, Any],
) -> None:
    transform = TRANSFORMS.build({"name": "monai", "transform": "RandGaussianNoised"})
    with pytest.raises(PluginError, match=r"RandGaussianNoised.*augment\.transforms"):
        transform(data)
