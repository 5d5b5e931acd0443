"""Prediction inside a region of interest, and with the priors of whole volumes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from medseg.errors import ConfigError, DataError
from medseg.inference.predictor import Predictor
from medseg.networks.checkpoint import Priors, load, save

Model = Callable[..., Path]


def head(heads: Path) -> list[Path]:
    """The channels of a head in voxels of 4 x 4 x 6 mm, which the network sees in 4 mm."""
    return [heads / "imagesTr" / f"head_002_{n:04d}.nii.gz" for n in range(2)]


def test_outside_a_computed_region_is_background(model: Model, heads: Path) -> None:
    path = model(**{"preprocess.mask": "otsu_largest", "inference.roi": True})
    inside = Predictor.load(path).predict(head(heads), probabilities=True)
    assert inside.mask is not None
    assert 0 < inside.mask.mean() < 1
    everywhere = Predictor.load(path, overrides=["inference.roi=false"]).predict(head(heads))
    assert everywhere.labels[~inside.mask].any()
    shares = inside.need_probabilities()
    assert not inside.labels[~inside.mask].any()
    assert (shares[0, ~inside.mask] == 1).all()
    assert shares.sum(0) == pytest.approx(1, abs=1e-5)
    assert inside.labels[inside.mask].any()


def test_a_model_of_a_region_asks_for_the_mask(model: Model, heads: Path) -> None:
    path = model(**{"preprocess.mask": "nonzero", "inference.roi": True})
    predictor = Predictor.load(path, overrides=["preprocess.mask=null", "data.mask=null",
                                                "inference.roi=false"])  # fmt: skip
    predictor.config = load(path).config
    with pytest.raises(DataError, match=r"no mask is given.*inference\.roi=false"):
        predictor.predict(head(heads))


def test_priors_move_the_decision(model: Model, heads: Path, tmp_path: Path) -> None:
    known = load(model())
    classes = len(known.labels.values) + 1
    even, rare = (1 / classes,) * classes, (1 - 1e-3 * (classes - 1), *[1e-3] * (classes - 1))
    checkpoint = type(known)(**{**vars(known), "priors": Priors(rare, even)})
    path = tmp_path / "model.safetensors"
    save(path, checkpoint)
    assert load(path).priors == Priors(rare, even)
    plain, half, full = (
        Predictor.load(path, overrides=[f"inference.prior_correction={strength}"])
        .predict(head(heads), probabilities=True)
        for strength in (0.0, 0.5, 1.0)
    )  # fmt: skip
    counts = [np.count_nonzero(found.labels) for found in (plain, half, full)]
    assert counts[0] > counts[1] > counts[2]


def test_a_model_without_priors_cannot_correct_them(model: Model) -> None:
    with pytest.raises(ConfigError, match=r"inference\.prior_correction: .* does not say how"):
        Predictor.load(model(), overrides=["inference.prior_correction=1.0"])
