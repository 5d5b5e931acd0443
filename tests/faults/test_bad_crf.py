"""What users give a dense CRF that it cannot use: one error that names it and the remedy."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from medseg import plugins
from medseg.errors import ConfigError, DataError
from medseg.postprocess.crf import DenseCRF3D
from medseg.postprocess.dense import checks
from medseg.postprocess.prediction import Prediction
from medseg.registry import POSTPROCESSORS

plugins.load()

SHAPE = (6, 7, 8)
ONE = (1.0, 1.0, 1.0)
INF, NAN = float("inf"), float("nan")


def scene(modalities: int = 2, classes: int = 3, shape: tuple[int, ...] = SHAPE) -> list[Any]:
    rng = np.random.default_rng(0)
    shares = np.moveaxis(rng.dirichlet(np.ones(classes), shape), -1, 0)
    image = rng.normal(size=(modalities, *shape))
    return [shares.astype(np.float32), image.astype(np.float32), ONE]


# ---- options


@pytest.mark.parametrize("option", [
    "spatial_mm", "appearance_mm", "appearance_intensity", "temperature", "memory_gib",
])  # fmt: skip
@pytest.mark.parametrize("value", [0, -1.5, NAN, INF])
def test_deviations_that_are_none(option: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"^{option} must be .*above 0, got {value}") as error:
        DenseCRF3D(**{option: value})
    assert error.value.path == (option,)


@pytest.mark.parametrize("option", ["spatial_mm", "appearance_mm", "appearance_intensity"])
@pytest.mark.parametrize("values", [(1, 0, 1), (1, 1, -2), (NAN, 1, 1), ()])
def test_one_deviation_of_several_is_none(option: str, values: Any) -> None:
    with pytest.raises(ConfigError, match=rf"^{option} must be .*above 0, got \(") as error:
        DenseCRF3D(**{option: values})
    assert error.value.path == (option,)


@pytest.mark.parametrize("option, value, allowed", [
    ("weights", (-1, 2), "finite and at least 0, got -1"),
    ("weights", (1, -2), "finite and at least 0, got -2"),
    ("weights", (1, NAN), "finite and at least 0, got nan"),
    ("weights", (INF, 1), "finite and at least 0, got"),
    ("iterations", -1, "at least 0, got -1"),
    ("tolerance", -1e-3, "0 to 1, got -0.001"),
    ("tolerance", 1.5, "0 to 1, got 1.5"),
    ("threads", 0, "at least 1, got 0"),
    ("accuracy", "best", "one of fast, pair, high, exact, got 'best'"),
    ("engine", "cupy", "one of auto, numba, torch, got 'cupy'"),
])  # fmt: skip
def test_options_out_of_range(option: str, value: Any, allowed: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"{option} must be {allowed}")) as error:
        DenseCRF3D(**{option: value})
    assert error.value.path == (option,)


def test_numba_has_no_other_device() -> None:
    with pytest.raises(ConfigError, match="numba runs on the cpu, not on cuda") as error:
        DenseCRF3D(engine="numba", device="cuda")
    assert error.value.path == ("device",)


@pytest.mark.parametrize("option, value", [
    ("weights", (1,)), ("weights", (1, 2, 3)), ("temperature", (1, 2)),
])  # fmt: skip
def test_too_few_or_too_many_numbers(option: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"^{option} must be") as error:
        DenseCRF3D(**{option: value})(*scene())
    assert error.value.path == (option,)


@pytest.mark.parametrize("device", ["gpu", "cuda:99"])
def test_a_device_that_is_not_there(device: str) -> None:
    with pytest.raises(ConfigError, match="device") as error:
        DenseCRF3D(device=device)(*scene())
    assert error.value.path == ("device",)


@pytest.mark.parametrize("matrix", [
    [[0, 1], [2, 0]], [[0, NAN], [NAN, 0]], [[0, INF], [INF, 0]], [[0, 1, 1], [1, 0, 1]], [0, 1],
    [[[0.0]]],
])  # fmt: skip
def test_costs_that_are_none(matrix: Any) -> None:
    with pytest.raises(ConfigError, match=r"^compatibility must be a finite, symmetric") as error:
        DenseCRF3D(compatibility=matrix)
    assert error.value.path == ("compatibility",)


@pytest.mark.parametrize("options, told", [
    ({"spatial_mm": (1, 2)}, "spatial_mm has 2 values for 3 axes; give one, or 3"),
    ({"appearance_mm": (1, 2, 3, 4)}, "appearance_mm has 4 values for 3 axes; give one, or 3"),
    ({"appearance_intensity": (1, 2, 3)}, "has 3 values for 2 modalities; give one, or 2"),
])  # fmt: skip
def test_too_few_or_too_many_deviations(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told) as error:
        DenseCRF3D(**options)(*scene())
    assert error.value.path == tuple(options)


# ---- arrays


def refuse(told: str, arguments: list[Any], options: Any = (), **more: Any) -> None:
    """All ways of running must refuse it, and each with the same words."""
    for way in ({}, {"engine": "torch"}, {"accuracy": "exact"}):
        with pytest.raises(DataError, match=told) as error:
            DenseCRF3D(**{**way, **dict(options)})(*arguments, **more)
        assert str(error.value).startswith("CRF: ")


@pytest.mark.parametrize("shape", [(3, 6, 7), (1, *SHAPE), (2, *SHAPE, 1)])
def test_probabilities_of_another_kind(shape: tuple[int, ...]) -> None:
    _, image, spacing = scene()
    told = re.escape(f"probabilities must be (classes >= 2, I, J, K), got {shape}")
    refuse(told, [np.full(shape, 0.5, np.float32), image, spacing])


@pytest.mark.parametrize("shape", [SHAPE, (0, *SHAPE), (6, *SHAPE), (1, 1, *SHAPE)])
def test_an_image_of_another_kind(shape: tuple[int, ...]) -> None:
    """More modalities than supported, among them."""
    shares, _, spacing = scene()
    told = f"image must be (1 to {checks.MOST_MODALITIES} modalities, I, J, K), got {shape}"
    refuse(re.escape(told), [shares, np.zeros(shape, np.float32), spacing])


def test_arrays_on_different_grids() -> None:
    shares, image, spacing = scene()
    told = r"image has the grid \(5, 7, 8\), probabilities have \(6, 7, 8\)"
    refuse(told, [shares, image[:, 1:], spacing])
    turned = np.ones(SHAPE[::-1], bool)
    for name in ("roi", "ignore"):
        told = rf"{name} has the grid \(8, 7, 6\), probabilities have \(6, 7, 8\)"
        refuse(told, [shares, image, spacing], **{name: turned})
    with pytest.raises(DataError, match="roi has the grid"):
        DenseCRF3D().messages(shares, image, spacing, roi=turned)


@pytest.mark.parametrize("spacing", [(1, 1), (1, 1, 0), (1, -1, 1), (1, NAN, 1), (INF, 1, 1)])
def test_a_spacing_that_is_none(spacing: Any) -> None:
    shares, image, _ = scene()
    refuse(r"spacing must be three lengths in mm, got \(", [shares, image, spacing])


def test_costs_for_other_classes() -> None:
    costs = {"compatibility": np.ones((4, 4))}
    refuse("compatibility is for 4 classes, got 3", scene(), costs)


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_values_that_are_not_finite(value: float) -> None:
    """Within the region; elsewhere they do not matter."""
    shares, image, spacing = scene()
    spoilt, dark = shares.copy(), image.copy()
    spoilt[1, 2, 3, 4] = dark[1, 2, 3, 4] = value
    refuse("1 probabilities are not finite", [spoilt, image, spacing])
    refuse("image has NaN or infinite values in the region", [shares, dark, spacing])
    elsewhere = np.ones(SHAPE, bool)
    elsewhere[2, 3, 4] = False
    DenseCRF3D()(spoilt, dark, spacing, roi=elsewhere)


@pytest.mark.parametrize("value", [NAN, -INF, INF])
def test_logits_that_are_not_finite(value: float) -> None:
    shares, image, spacing = scene()
    shares[1, 2, 3, 4] = value
    refuse("logits has NaN or infinite values in the region", [shares, image, spacing], logits=True)


@pytest.mark.parametrize("spoil, least, sums", [
    (lambda x: 1.1 * x, "", "1.1 to 1.1"),
    (lambda x: x[:2], "", " to 1"),
    (np.log, "the least is -", ""),
    (lambda x: x + np.array([0.5, 0, -0.5])[:, None, None, None], "the least is -0.", "1 to 1"),
])  # fmt: skip
def test_probabilities_that_are_none(spoil: Any, least: str, sums: str) -> None:
    """The message tells their range, and what to do if they are logits."""
    shares, image, spacing = scene()
    told = rf"sum to 1: .*{least}.* sums are .*{sums}.*; for logits, say logits=True"
    refuse(told, [spoil(shares), image, spacing])


def test_probabilities_of_half_precision_are_fine() -> None:
    shares, image, spacing = scene(classes=5)
    found = DenseCRF3D()(shares.astype(np.float16), image, spacing)
    assert found.dtype == np.float32


def test_intensities_beyond_all_numbers() -> None:
    """In deviations they are more than float32 holds."""
    shares, image, spacing = scene()
    with pytest.raises(DataError, match=r"memory_gib|image"):
        DenseCRF3D(appearance_intensity=1e-10)(shares, 1e30 * image, spacing)


# ---- as a component


def prediction(probabilities: bool = True) -> Prediction:
    shares, image, _ = scene()
    labels = shares.argmax(0).astype(np.uint8)
    return Prediction(labels, image, np.eye(4), shares if probabilities else None)


@pytest.mark.parametrize("options, told", [
    ({"spatial_mm": 0.0}, "spatial_mm must be finite and above 0"),
    ({"appearance_mm": [1.0, -1.0, 1.0]}, "appearance_mm must be finite and above 0"),
    ({"appearance_intensity": -0.3}, "appearance_intensity must be finite and above 0"),
    ({"spatial_weight": -1.0}, "spatial_weight must be at least 0, got -1.0"),
    ({"appearance_weight": -2.0}, "appearance_weight must be at least 0, got -2.0"),
    ({"iterations": -1}, "iterations must be at least 0"),
    ({"temperature": 0.0}, "temperature must be finite and above 0"),
    ({"clip": 0.0}, "clip must be finite and above 0"),
    ({"memory_gib": 0.0}, "memory_gib must be finite and above 0"),
])  # fmt: skip
def test_a_config_with_a_wrong_option(options: dict[str, Any], told: str) -> None:
    """The path is that of the component's own option."""
    with pytest.raises(ConfigError, match=told) as error:
        POSTPROCESSORS.build({"name": "crf", **options}, classes=3)
    assert error.value.path[-1] == next(iter(options))


def test_a_step_without_probabilities() -> None:
    with pytest.raises(DataError, match="has no class probabilities, which this step needs"):
        POSTPROCESSORS.build({"name": "crf"}, classes=3)(prediction(probabilities=False))


def test_a_preset_for_other_channels() -> None:
    step = POSTPROCESSORS.build({"name": "crf_deepmedic_example"}, classes=3)
    given = prediction()
    wrong = Prediction(given.labels, given.image[:1], given.affine, given.probabilities)
    with pytest.raises(ConfigError, match="appearance_intensity has 2 values for 1 modalities"):
        step(wrong)
