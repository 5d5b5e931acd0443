"""Classes that a step may not change: neither their labels nor what later steps make of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from medseg import plugins
from medseg.errors import ConfigError
from medseg.postprocess.prediction import Prediction
from medseg.postprocess.protect import Protected
from medseg.registry import POSTPROCESSORS
from medseg.volumes.dataset import Labels

plugins.load()

AFFINE = np.diag([0.5, 0.7, 4.0, 1.0])
LABELS = Labels({"whole": (1, 2, 4), "core": (1, 4), "enhancing": (4,)})  # classes 1, 2, 3


def noise(rng: np.random.Generator) -> np.ndarray:
    """Probabilities of 4 classes that hang together, as a network's do."""
    shares = np.exp(20 * ndimage.gaussian_filter(rng.normal(size=(4, 24, 20, 18)), (0, 2, 2, 2)))
    return (shares / shares.sum(0)).astype(np.float32)


def predicted(shares: np.ndarray) -> Prediction:
    labels = shares.argmax(0).astype(np.uint8)
    return Prediction(labels, np.zeros((1, *labels.shape), np.float32), AFFINE, shares)


@pytest.mark.parametrize(
    "protect, allowed",
    [
        (["whole"], {(1, 2), (1, 3), (2, 3)}),
        (["core"], {(0, 2), (1, 3)}),
        (["enhancing"], {(0, 1), (0, 2), (1, 2)}),
        (["whole", "enhancing"], {(1, 2)}),
        (["whole", "core", "enhancing"], set()),
    ],
)
def test_changes_that_touch_a_protected_class_are_undone(
    protect: list[str], allowed: set[tuple[int, int]]
) -> None:
    old, new = (grid.astype(np.uint8)[:, :, None] for grid in np.mgrid[:4, :4])
    shares = np.full((4, 4, 4, 1), 0.25, np.float32)
    step = Protected(lambda p: p.with_probabilities(shares).with_labels(new), protect, LABELS)
    earlier = np.zeros_like(shares)
    given = Prediction(old, np.zeros((1, 4, 4, 1), np.float32), AFFINE, earlier)
    out = step(given)
    free = (old == new) | np.isin(
        4 * np.minimum(old, new) + np.maximum(old, new), [4 * a + b for a, b in allowed]
    )
    np.testing.assert_array_equal(out.labels, np.where(free, new, old))
    assert out.labels.dtype == np.uint8
    assert out.probabilities is not None
    np.testing.assert_array_equal(out.probabilities, np.where(free, shares, earlier))
    for name in protect:
        values = LABELS.classes[name]
        np.testing.assert_array_equal(
            np.isin(LABELS.to_values(out.labels), values), np.isin(LABELS.to_values(old), values)
        )


@pytest.mark.parametrize("name", ["core", "whole"])
def test_protection_lasts_when_a_later_step_decides_from_probabilities(
    name: str, rng: np.random.Generator
) -> None:
    given = predicted(noise(rng))
    changed = noise(rng)
    protected = Protected(lambda p: p.with_probabilities(changed), [name], LABELS)
    later = POSTPROCESSORS.build({"name": "prior_correction"}, classes=4)
    out = later(protected(given))
    before, after = (
        np.isin(LABELS.to_values(labels), LABELS.classes[name])
        for labels in (given.labels, out.labels)
    )
    np.testing.assert_array_equal(after, before)
    assert (out.labels != given.labels).any()


def test_a_protected_step_that_gives_no_probabilities_leaves_them_alone(
    rng: np.random.Generator,
) -> None:
    step = Protected(POSTPROCESSORS.build({"name": "fill_holes"}, classes=4), ["core"], LABELS)
    given = predicted(noise(rng))
    assert step(given).probabilities is given.probabilities
    assert step(replace(given, probabilities=None)).probabilities is None


def test_a_protected_step_needs_what_it_needs() -> None:
    for name, needs in (("hysteresis", True), ("fill_holes", False)):
        step = POSTPROCESSORS.build({"name": name}, classes=4)
        assert Protected(step, ["core"], LABELS).needs_probabilities is needs


def test_only_classes_that_exist_can_be_protected() -> None:
    step = POSTPROCESSORS.build({"name": "fill_holes"}, classes=4)
    with pytest.raises(ConfigError, match="unknown class 'cor'; did you mean 'core'") as caught:
        Protected(step, ["cor"], LABELS)
    assert caught.value.path == ("protect",)
