"""Augmentation: draws apart from applying, in mm, image and label together."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage

from medseg import plugins
from medseg.config.schema import Augment
from medseg.errors import ConfigError, PluginError
from medseg.registry import TRANSFORMS
from medseg.transforms import augment
from medseg.transforms.augment import Draw

plugins.load()

QUIET = {"brightness": 0.0, "contrast": 0.0, "noise": 0.0}
SPACING = torch.tensor([[1.0, 1.5, 3.0]])
ISOTROPIC = torch.ones(1, 3)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def scene(samples: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Two ellipsoids; channel 0 is bright in both, channel 1 in the second."""
    i, j, k = torch.meshgrid(torch.arange(36), torch.arange(30), torch.arange(16), indexing="ij")
    label = torch.zeros(samples, 36, 30, 16, dtype=torch.int64)
    label[:, ((i - 22) / 8.0) ** 2 + ((j - 12) / 6.0) ** 2 + ((k - 9) / 4.0) ** 2 < 1] = 1
    label[:, ((i - 10) / 5.0) ** 2 + ((j - 18) / 5.0) ** 2 + ((k - 6) / 3.0) ** 2 < 1] = 2
    return torch.stack([label > 0, label == 2], 1).float(), label


def dice(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def drawn(samples: int = 1, seed: int = 0, **options: Any) -> Draw:
    return augment.draw(Augment(**options), samples, 2, generator(seed))


def same(a: Draw, b: Draw) -> bool:
    return all(
        torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y
        for x, y in zip(vars(a).values(), vars(b).values(), strict=True)
    )


def test_a_draw_is_a_function_of_the_generator() -> None:
    options = {**EVERYTHING, "flip": (0, 1, 2)}
    assert same(drawn(3, seed=5, **options), drawn(3, seed=5, **options))
    assert not same(drawn(3, seed=5, **options), drawn(3, seed=6, **options))


EVERYTHING: dict[str, Any] = {
    "affine": 1.0, "elastic": 1.0, "bias_field": 1.0, "blur": 1.0, "low_resolution": 1.0,
    "gamma": 0.3, "noise": 0.5, "noise_probability": 1.0, "mix": 1.0, "channel_dropout": 0.5,
}  # fmt: skip


def test_the_draws_of_old_settings_are_what_they_were() -> None:
    """Recipes from before elastic, bias_field, blur, ... train with the same numbers as then."""
    change = drawn(
        2, seed=7, affine=0.5, rotate=20.0, scale=0.2, flip=(0, 2), brightness=0.3, contrast=0.25,
        gamma=0.4, noise=0.2, noise_probability=0.5,
    )  # fmt: skip
    assert change.is_moved.tolist() == [False, True]
    pinned = {
        "matrix": [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, -1.0, 1.1121665, -0.0909553, 0.2357327,
                   0.1010087, 1.1353738, -0.0384766, 0.2316031, -0.0583981, -1.1152160],
        "gain": [1.2349598, 0.8038933, 1.1914388, 0.9565864],
        "shift": [0.1543167, 0.1169085, 0.0125580, 0.0559387],
        "gamma": [1.3037634, 1.1028713, 1.2122190, 0.6905764],
        "noise": [0.1440761, 0.0146104],
    }  # fmt: skip
    for name, values in pinned.items():
        found = getattr(change, name).flatten()
        torch.testing.assert_close(found, torch.tensor(values), atol=1e-6, rtol=0)
    assert change.noise_seed == 2943980950862433724


def test_what_such_a_draw_does_is_what_it_was() -> None:
    change = drawn(
        2, seed=7, affine=0.5, rotate=20.0, scale=0.2, flip=(0, 2), brightness=0.3, contrast=0.25,
        gamma=0.4, noise=0.2, noise_probability=0.5,
    )  # fmt: skip
    image = torch.linspace(-1, 1, 2 * 2 * 6 * 5 * 4).view(2, 2, 6, 5, 4)
    spacing = torch.tensor([[1.0, 1.5, 3.0]] * 2)
    out, label = augment.apply(change, image, (image[:, 0] > 0).long(), spacing)
    flipped = torch.tensor([-0.9024673, -0.9995066, -0.7853284, -0.7163470])
    turned = torch.tensor([0.8855724, 0.9200332, 0.9478032, 0.9593253])
    torch.testing.assert_close(out[0, 0, 2, 3], flipped, atol=1e-5, rtol=0)
    torch.testing.assert_close(out[1, 1, 4, 1], turned, atol=1e-5, rtol=0)
    assert int(label.sum()) == 100


@pytest.mark.parametrize("setting", EVERYTHING)
def test_switching_one_on_leaves_the_draws_of_the_others(setting: str) -> None:
    own = {"affine": ("matrix", "is_moved"), "elastic": ("elastic",), "blur": ("blur",),
           "bias_field": ("bias_strength",), "low_resolution": ("coarseness",),
           "gamma": ("gamma",), "noise": ("noise",), "noise_probability": ("noise",),
           "mix": ("partner",), "channel_dropout": ("is_kept",)}[setting]  # fmt: skip
    off = {key: 0.0 for key in EVERYTHING if key not in ("noise", "noise_probability")}
    off |= {"noise": 0.1, "noise_probability": 0.5}
    before, after = (
        drawn(8, seed=1, **settings) for settings in (off, {**off, setting: EVERYTHING[setting]})
    )
    changed = {
        name
        for name, value in vars(before).items()
        if isinstance(value, torch.Tensor) and not torch.equal(value, getattr(after, name))
    }
    assert changed == set(own)


def test_the_same_draw_twice_gives_the_same() -> None:
    change = drawn(2, **EVERYTHING)
    image, label = scene(2)
    spacing = SPACING.repeat(2, 1)
    before = image.clone(), label.clone()
    first = augment.apply(change, image, label, spacing)
    second = augment.apply(change, image, label, spacing)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert torch.equal(image, before[0])
    assert torch.equal(label, before[1])
    assert not torch.equal(first[0], image)


def test_nothing_to_do_changes_nothing() -> None:
    change = drawn(affine=0.0, **QUIET)
    image, label = scene()
    moved = augment.apply(change, image, label, SPACING)
    assert torch.equal(moved[0], image)
    assert torch.equal(moved[1], label)


@pytest.mark.parametrize("seed", range(6))
def test_image_and_label_move_together(seed: int) -> None:
    change = drawn(seed=seed, affine=1.0, rotate=25.0, scale=0.2, flip=(0, 1, 2), **QUIET)
    image, label = scene()
    moved, target = augment.apply(change, image, label, SPACING)
    assert not torch.equal(target, label)
    assert dice(moved[0, 0] > 0.5, target[0] > 0) > 0.9
    assert dice(moved[0, 1] > 0.5, target[0] == 2) > 0.9
    assert dice(target > 0, label > 0) < 0.95  # they did move
    assert set(target.unique().tolist()) <= {0, 1, 2}


@pytest.mark.parametrize("axes", [(0,), (1,), (2,), (0, 2)])
def test_flips_are_exact(axes: tuple[int, ...], rng: np.random.Generator) -> None:
    image = torch.from_numpy(rng.normal(size=(8, 2, 5, 6, 7)).astype(np.float32))
    label = torch.from_numpy(rng.integers(0, 4, size=(8, 5, 6, 7)))
    change = drawn(8, affine=0.0, flip=axes, **QUIET)
    moved, target = augment.apply(change, image, label, SPACING.repeat(8, 1))
    seen = set()
    for n in range(8):
        flipped = [a for a in range(3) if change.matrix[n, a, a] < 0]
        seen.update(flipped)
        assert torch.equal(moved[n], image[n].flip([a + 1 for a in flipped]))
        assert torch.equal(target[n], label[n].flip(flipped))
    assert seen == set(axes)


def test_a_flip_beside_a_rotation_is_a_flip_too() -> None:
    """One rotated sample sends the batch through interpolation: the others must not notice."""
    image, label = scene(2)
    change = drawn(2, affine=0.0, **QUIET)
    matrix = torch.stack([torch.diag(torch.tensor([-1.0, 1, 1])), turn(2, 0.3)])
    change = Draw(**{**vars(change), "matrix": matrix, "is_moved": torch.tensor([False, True])})
    moved, target = augment.apply(change, image, label, SPACING.repeat(2, 1))
    torch.testing.assert_close(moved[0], image[0].flip(1), atol=1e-4, rtol=0)
    assert torch.equal(target[0], label[0].flip(0))


def turn(axis: int, radians: float) -> torch.Tensor:
    p, q = (axis + 1) % 3, (axis + 2) % 3
    matrix = torch.eye(3)
    matrix[p, p] = matrix[q, q] = math.cos(radians)
    matrix[p, q], matrix[q, p] = -math.sin(radians), math.sin(radians)
    return matrix


@pytest.mark.parametrize("seed", range(3))
def test_the_affine_map_is_scipys_in_millimetres(seed: int) -> None:
    change = drawn(seed=seed, affine=1.0, rotate=30.0, scale=0.2, flip=(1,), **QUIET)
    image, label = scene()
    image = torch.from_numpy(ndimage.gaussian_filter(image.numpy(), (0, 0, 1, 1, 1)))
    moved, _ = augment.apply(change, image, label, SPACING)
    spacing = np.diag(SPACING[0].numpy())
    matrix = np.linalg.inv(spacing) @ change.matrix[0].double().numpy() @ spacing  # of voxels
    centre = (np.array(image.shape[2:]) - 1) / 2
    peer = ndimage.affine_transform(
        image[0, 0].numpy(), matrix, centre - matrix @ centre, order=1, mode="nearest"
    )
    np.testing.assert_allclose(moved[0, 0].numpy(), peer, atol=2e-3)


def test_rotations_turn_by_at_most_what_was_asked() -> None:
    for seed in range(20):
        matrix = drawn(seed=seed, affine=1.0, rotate=10.0, scale=0.0, **QUIET).matrix[0]
        torch.testing.assert_close(matrix @ matrix.T, torch.eye(3), atol=1e-5, rtol=0)
        angle = math.degrees(math.acos(min(1.0, (float(matrix.trace()) - 1) / 2)))
        assert angle <= 10 * math.sqrt(3) + 0.1  # three turns of at most 10 degrees


def test_a_right_angle_keeps_the_shape_of_anisotropic_voxels() -> None:
    """A sphere in mm stays one however it is turned, though it is flat in voxels."""
    spacing = torch.tensor([[1.0, 1.0, 3.0]])
    i, j, k = torch.meshgrid(torch.arange(30), torch.arange(30), torch.arange(10), indexing="ij")
    inside = (i - 14.5) ** 2 + (j - 14.5) ** 2 + (3 * (k - 4.5)) ** 2 < 100
    label = inside[None].long()
    change = drawn(affine=0.0, **QUIET)
    change = Draw(
        **{**vars(change), "matrix": turn(0, math.pi / 2)[None], "is_moved": torch.tensor([True])}
    )
    _, target = augment.apply(change, label[:, None].float(), label, spacing)
    assert dice(target > 0, label > 0) > 0.93


def test_what_comes_from_outside_repeats_the_border_and_is_background() -> None:
    image, label = torch.full((1, 2, 8, 8, 8), 5.0), torch.ones(1, 8, 8, 8, dtype=torch.int64)
    change = drawn(affine=0.0, **QUIET)
    change = Draw(
        **{**vars(change), "matrix": 2 * torch.eye(3)[None], "is_moved": torch.tensor([True])}
    )
    moved, target = augment.apply(change, image, label, torch.ones(1, 3))
    torch.testing.assert_close(moved, image)
    assert target[0, 2:6, 2:6, 2:6].all()
    assert int(target.sum()) == 64


def test_ignored_voxels_move_as_such() -> None:
    image, label = scene()
    label[label == 2] = 255
    change = drawn(seed=3, affine=1.0, **QUIET)
    target = augment.apply(change, image, label, SPACING)[1]
    assert set(target.unique().tolist()) == {0, 1, 255}


def test_intensities_are_what_the_draw_says(rng: np.random.Generator) -> None:
    image = torch.from_numpy(rng.normal(size=(2, 2, 6, 6, 6)).astype(np.float32))
    change = drawn(2, affine=0.0, contrast=0.4, brightness=0.5, noise=0.0)
    out = augment.intensities(change, image, ISOTROPIC.repeat(2, 1))
    torch.testing.assert_close(out, image * change.gain + change.shift)
    assert (change.gain - 1).abs().max() <= 0.4
    assert change.gain.unique().numel() == 4


def test_gamma_keeps_the_range_and_the_order(rng: np.random.Generator) -> None:
    image = torch.from_numpy(rng.normal(size=(1, 2, 6, 6, 6)).astype(np.float32))
    out = augment.intensities(drawn(gamma=0.5, affine=0.0, **QUIET), image, ISOTROPIC)
    assert not torch.allclose(out, image)
    for channel, changed in zip(image[0], out[0], strict=True):
        assert float(changed.min()) == pytest.approx(float(channel.min()), abs=1e-4)
        assert float(changed.max()) == pytest.approx(float(channel.max()), abs=1e-4)
        assert torch.equal(channel.flatten().argsort(), changed.flatten().argsort())


def test_noise_has_the_strength_that_was_drawn() -> None:
    image = torch.zeros(4, 2, 20, 20, 20)
    change = drawn(4, affine=0.0, **{**QUIET, "noise": 0.5}, noise_probability=0.5)
    out = augment.intensities(change, image, ISOTROPIC)
    strengths = change.noise.flatten()
    assert 0 < int((strengths > 0).sum()) < 4  # some have it, some do not
    other = Draw(**{**vars(change), "noise_seed": change.noise_seed + 1})
    assert not torch.equal(augment.intensities(other, image, ISOTROPIC), out)
    for sample, strength in zip(out, strengths, strict=True):
        assert float(sample.std()) == pytest.approx(float(strength), rel=0.03)


@pytest.mark.parametrize(
    "transform, options",
    [
        ("RandAffined", {"prob": 1.0, "rotate_range": 0.4, "padding_mode": "zeros"}),
        ("Rand3DElasticd", {"prob": 1.0, "sigma_range": [3, 5], "magnitude_range": [40, 60]}),
        ("RandFlipd", {"prob": 1.0, "spatial_axis": 1}),
        ("RandZoomd", {"prob": 1.0, "min_zoom": 0.7, "max_zoom": 0.8}),
    ],
)
def test_monais_transforms_move_image_and_label_together(
    transform: str, options: dict[str, Any]
) -> None:
    image, label = scene()
    data = {"image": image[0].numpy(), "label": label.numpy()}
    component = TRANSFORMS.build({"name": "monai", "transform": transform, "options": options})
    draw = component.sample(np.random.default_rng(1))
    out = component(data, draw)
    assert out["label"].dtype == data["label"].dtype
    assert not np.array_equal(out["label"], data["label"])
    assert set(np.unique(out["label"])) <= {0, 1, 2}
    a, b = torch.from_numpy(out["image"][0] > 0.5), torch.from_numpy(out["label"][0] > 0)
    assert dice(a, b) > 0.9
    other = component(data, component.sample(np.random.default_rng(2)))
    np.testing.assert_array_equal(component(data, draw)["image"], out["image"])
    assert transform == "RandFlipd" or not np.array_equal(other["image"], out["image"])


def test_monais_intensity_transforms_leave_the_label() -> None:
    image, label = scene()
    data = {"image": image[0].numpy(), "label": label.numpy()}
    noisy = TRANSFORMS.build(
        {"name": "monai", "transform": "RandGaussianNoised", "options": {"prob": 1.0}}
    )
    out = noisy(data, 7)
    np.testing.assert_array_equal(out["label"], data["label"])
    assert not np.array_equal(out["image"], data["image"])


def test_a_transform_of_monai_that_mixes_labels_is_refused() -> None:
    image, label = scene()
    options = {"prob": 1.0, "rotate_range": 0.4, "mode": "bilinear"}
    mixing = TRANSFORMS.build({"name": "monai", "transform": "RandAffined", "options": options})
    with pytest.raises(PluginError, match=r"RandAffined.*mixes label values"):
        mixing({"image": image[0].numpy(), "label": label.numpy()}, 1)


@pytest.mark.parametrize(
    "spec, message",
    [
        ({"transform": "RandFlip"}, "did you mean 'RandFlipd'"),
        ({"transform": "SaveImaged"}, "unknown MONAI transform 'SaveImaged'"),
        ({"transform": "RandFlipd", "options": {"probe": 1}}, "did you mean 'prob'"),
        ({"transform": "RandGibbsNoised", "options": {"alpha": [2, 3]}}, "'RandGibbsNoised'"),
        ({"transform": "GaussianSmoothd"}, "needs the option 'sigma'"),
    ],
)
def test_mistakes_in_monais_transforms_are_told(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TRANSFORMS.build({"name": "monai", **spec})
