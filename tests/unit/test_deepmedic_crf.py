"""DeepMedic's parameters of its CRF, as ours."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from medseg import plugins
from medseg.errors import ConfigError
from medseg.postprocess.crf import DenseCRF3D
from medseg.postprocess.deepmedic import PRESETS, from_deepmedic, preset
from medseg.postprocess.prediction import Prediction
from medseg.registry import POSTPROCESSORS

plugins.load()


def scene(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    given = np.moveaxis(rng.dirichlet([1, 1], (6, 7, 8)), 3, 0).astype(np.float32).copy()
    return given, rng.normal(size=(2, 6, 7, 8)).astype(np.float32)


def kernel(voxels: np.ndarray, values: np.ndarray, deviations: Any, steps: Any) -> np.ndarray:
    """exp(-d^2 / 2) between all pairs of (N, 3) places and (N, M) values."""
    features = np.hstack([voxels / deviations, values / steps])
    squares = ((features[:, None] - features[None]) ** 2).sum(2)
    return np.exp(-0.5 * squares)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.5, 0.75, 3.0)])
@pytest.mark.parametrize("intensity_range", [(-3.1, 3.1), (0.0, 254.0), (-2.0, 5.0)])
def test_the_kernels_stay_the_same(
    spacing: tuple[float, float, float], intensity_range: tuple[float, float], rng: Any
) -> None:
    """In voxels and levels of 0 to 254 as in mm and z-scores."""
    voxels = rng.integers(0, 30, (40, 3))
    low, high = intensity_range
    levels = 254 * rng.random((40, 2))
    values = low + levels / 254 * (high - low)
    found = from_deepmedic(
        (3, 2, 1), (17, 12, 10), (4.5, 3.5), (3, 5), 2,
        spacing=spacing, intensity_range=intensity_range,
    )  # fmt: skip
    nothing = np.zeros((40, 0))
    np.testing.assert_allclose(
        kernel(voxels * spacing, nothing, found["spatial_mm"], ()),
        kernel(voxels, nothing, (3, 2, 1), ()),
    )
    np.testing.assert_allclose(
        kernel(voxels * spacing, values, found["appearance_mm"], found["appearance_intensity"]),
        kernel(voxels, levels, (17, 12, 10), (4.5, 3.5)),
    )
    assert (found["weights"], found["iterations"]) == ((3, 5), 2)


def test_the_published_figures() -> None:
    """The example's for Flair and T1c, and those that its code falls back to."""
    example, default = PRESETS["deepmedic_example"], PRESETS["deepmedic_default"]
    assert example["positions"] == default["positions"] == (3, 3, 3)
    assert (example["bilateral"], example["intensities"]) == ((17, 12, 10), (4.5, 3.5))
    assert (default["bilateral"], default["intensities"]) == ((5, 5, 5), 3)
    assert example["weights"] == default["weights"] == (3, 5)
    assert (example["iterations"], default["iterations"]) == (2, 5)


@pytest.mark.parametrize("name", PRESETS)
def test_the_component_of_that_name_does_the_same(name: str, rng: Any) -> None:
    given, image = scene(rng)
    built = POSTPROCESSORS.build({"name": f"crf_{name}", "normalise": False}, classes=2)
    affine = np.diag([2.0, 1.0, 1.0, 1.0])
    found = built(Prediction(given.argmax(0).astype(np.uint8), image, affine, given))
    expected = DenseCRF3D(**preset(name))(given, image, (2, 1, 1))
    np.testing.assert_allclose(found.probabilities, expected, atol=1e-4)
    assert np.abs(expected - given).max() > 0.1


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_runs(name: str, rng: Any) -> None:
    given, image = scene(rng)
    found = DenseCRF3D(**preset(name, (1, 1, 2)))(given, image, (1, 1, 2))
    assert np.abs(found - given).max() > 0.1
    np.testing.assert_allclose(found.sum(0), 1, atol=1e-5)


def test_a_preset_follows_the_voxels_that_it_was_chosen_for() -> None:
    assert preset("deepmedic_example", (1, 1, 3))["appearance_mm"] == (17, 12, 30)


def test_an_unknown_preset_names_those_that_are_known() -> None:
    with pytest.raises(ConfigError, match="deepmedic_example, deepmedic_default") as error:
        preset("brats")
    assert error.value.path == ("preset",)


@pytest.mark.parametrize("ends", [(1.0, 1.0), (3.1, -3.1), (float("nan"), 1.0)])
def test_an_empty_range_is_refused(ends: tuple[float, float]) -> None:
    with pytest.raises(ConfigError, match="must rise") as error:
        from_deepmedic((3, 3, 3), (5, 5, 5), 3, (3, 5), 5, intensity_range=ends)
    assert error.value.path == ("intensity_range",)
