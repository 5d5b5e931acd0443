"""How common classes are in volumes and in patches, and what prediction makes of it."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from medseg.config.schema import ComponentSpec
from medseg.networks.checkpoint import Priors
from medseg.training import casefile
from medseg.training.cache import CachedCase
from medseg.training.dataset import Patches, Recipe
from medseg.training.priors import measure
from medseg.training.sampling import Sampling


@pytest.fixture
def case(tmp_path: Path) -> CachedCase:
    label = np.zeros((20, 20, 20), np.uint8)
    label[5:9, 5:9, 5:9] = 1
    label[12:14, 12:14, 12:14] = 2
    label[0] = 255
    mask = np.zeros(label.shape, bool)
    mask[1:, 4:16, 4:16] = True
    places = np.argsort(label, axis=None, kind="stable")  # by class
    flat = places[np.isin(label.ravel()[places], (1, 2))]
    voxels = np.stack([label.ravel()[flat], flat], axis=1).astype(np.int64)
    image = label[None].astype(np.float32)
    counts = np.stack([np.bincount(part.ravel(), minlength=256) for part in (label, label[mask])])
    arrays = {"image": image, "label": label, "voxels": voxels, "mask": mask, "counts": counts}
    casefile.write(tmp_path / "case.safetensors", arrays, {})
    return CachedCase("case", tmp_path / "case.safetensors", (1.0, 1.0, 1.0))


def patches(case: CachedCase, sampler: str, **options: float) -> Patches:
    spec = ComponentSpec(name=sampler, **options)
    return Patches([case], Recipe(Sampling((1, 1, 1), 0, margin=(2, 2, 2)), spec, 3))


def test_ignored_voxels_are_no_class(case: CachedCase) -> None:
    found = measure(patches(case, "grid"), [case], roi=False)
    assert found.true == pytest.approx((7600 - 72, 64, 8) / np.float64(7600), rel=1e-6)


def test_in_a_region_only_its_voxels_count(case: CachedCase) -> None:
    found = measure(patches(case, "grid"), [case], roi=True)
    assert found.true == pytest.approx((2736 - 72, 64, 8) / np.float64(2736), rel=1e-6)


def test_patches_are_counted_as_they_are_drawn(case: CachedCase) -> None:
    data = patches(case, "per_class")
    found = measure(data, [case], roi=False)
    assert found.seen == pytest.approx((1 / 3, 1 / 3, 1 / 3), abs=0.1)
    assert found == measure(data, [case], roi=False)
    assert sum(found.seen) == pytest.approx(1)


def test_a_class_that_no_patch_shows_counts_as_one_voxel(case: CachedCase) -> None:
    found = measure(patches(case, "lesion", share=0.0), [case], roi=False)
    assert found.seen[1] == found.seen[2] == pytest.approx(1 / 258)
    assert all(math.isfinite(value) for value in found.offsets(1.0))


def test_offsets_take_odds_from_patches_to_volumes() -> None:
    priors = Priors((0.9, 0.1), (0.5, 0.5))
    offsets = priors.offsets(1.0)
    odds = math.exp(offsets[1] - offsets[0])
    assert odds == pytest.approx(1 / 9)
    assert priors.offsets(0.5) == pytest.approx([half / 2 for half in offsets])
