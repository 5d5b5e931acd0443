"""Prediction inside a region of interest, and with the priors of whole volumes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from medseg.errors import ConfigError, DataError
from medseg.inference.predictor import Predictor
from medseg.networks.checkpoint import Priors, load, save
from medseg.volumes.dataset import Case, Channel

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


@pytest.mark.parametrize(
    "setting",
    ["preprocess.normalise=[{name: zscore, region: mask}]", "preprocess.crop=foreground",
     "inference.roi=true"],
)  # fmt: skip
def test_a_model_that_was_trained_with_masks_asks_for_one(
    model: Model, heads: Path, setting: str
) -> None:
    """Without it the same voxels would be normalised, cropped or predicted in another way."""
    path, channels = model(), head(heads)
    predictor = Predictor.load(path, overrides=["data.mask='{id}_mask.nii.gz'", setting])
    with pytest.raises(DataError, match=r"_0000\.nii\.gz: no mask is given.*trained with masks"):
        predictor.predict(channels)
    loaded = predictor.load_case(Case("a", tuple(Channel(file) for file in channels)))
    mask = loaded.image[0] > loaded.image[0].mean()
    given = predictor.predict(channels, mask=mask)
    assert given.mask is not None
    np.testing.assert_array_equal(given.mask, mask)
    computed = ["preprocess.mask=mean_plus"]
    Predictor.load(path, overrides=["data.mask='{id}_m.nii'", setting, *computed]).predict(channels)
    with pytest.raises(DataError, match=r"voxels of \(3, 3, 3\); some of"):
        predictor.predict(channels, mask=np.ones((3, 3, 3)))
    with pytest.raises(DataError, match="0 voxels"):
        predictor.predict(channels, mask=mask & False)
    plain = Predictor.load(path, overrides=["data.mask='{id}_mask.nii.gz'"])
    plain.predict(channels)  # nothing that it does depends on the mask


def test_channels_are_those_of_the_model(model: Model, heads: Path) -> None:
    """However a person orders the files, a channel goes where it was in training."""
    path = model()
    names = load(path).channels
    layout = ["data.layout=folder", f"data.path={heads / 'imagesTr'}", "data.classes={lesion: 1}"]
    turned = {name: f"{{id}}_000{n}.nii.gz" for n, name in reversed(list(enumerate(names)))}
    written = ", ".join(f'{name}: "{pattern}"' for name, pattern in turned.items())
    config = load(path, overrides=[*layout, f"data.channels={{{written}}}"]).config
    assert tuple(config.data.channels or ()) == names
    with pytest.raises(ConfigError, match=r"data\.channels: t9, flair; .*trained with flair, t1c"):
        load(path, overrides=[*layout, 'data.channels={t9: "{id}.nii", flair: "{id}_1.nii"}'])


def test_no_step_leaves_the_region(model: Model, heads: Path) -> None:
    settings = {"preprocess.mask": "otsu_largest", "inference.roi": True}
    path = model(**settings, postprocess=[{"name": "smooth_surface", "mm": 12.0}])
    found = Predictor.load(path).predict(head(heads))
    assert found.mask is not None
    assert found.labels.any()
    assert not found.labels[~found.mask].any()


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


def test_priors_of_volumes_are_not_those_of_regions(model: Model, tmp_path: Path) -> None:
    known = load(model())
    priors = Priors((0.9, 0.1), (0.5, 0.5), roi=True)
    save(tmp_path / "m.safetensors", type(known)(**{**vars(known), "priors": priors}))
    assert load(tmp_path / "m.safetensors").priors == priors
    with pytest.raises(ConfigError, match=r"in regions of interest; leave inference\.roi"):
        Predictor.load(tmp_path / "m.safetensors", overrides=["inference.prior_correction=1.0"])


def test_a_model_without_priors_cannot_correct_them(model: Model) -> None:
    with pytest.raises(ConfigError, match=r"inference\.prior_correction: .* does not say how"):
        Predictor.load(model(), overrides=["inference.prior_correction=1.0"])
