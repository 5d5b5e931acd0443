"""Intensity components against numpy, scipy and MONAI."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from medseg import plugins
from medseg.errors import PluginError
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


@pytest.mark.parametrize("region", ["all", "nonzero", "mask"])
@pytest.mark.parametrize("value", [0.0, 7.0])
def test_constant_channels_stay_finite(region: Any, value: float) -> None:
    data = {"image": np.full((1, 4, 4, 4), value, np.float32), "mask": np.ones((4, 4, 4), bool)}
    for transform in (intensity.ZScore(region), intensity.Percentiles(region=region)):
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
