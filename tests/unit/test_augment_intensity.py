"""Bias field, blur and low resolution: each does what its name says, by as much as was drawn."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from monai.networks.layers import GaussianFilter
from scipy import ndimage
from torch import Tensor

from medseg.config.schema import Augment
from medseg.transforms import augment
from medseg.transforms.augment import Draw
from medseg.transforms.augment.intensity import blurring

SPACING = torch.tensor([[1.0, 1.0, 3.0]])
QUIET = {"affine": 0.0, "brightness": 0.0, "contrast": 0.0, "noise": 0.0}


def drawn(samples: int = 1, channels: int = 2, seed: int = 0, **options: Any) -> Draw:
    settings = Augment(**{**QUIET, **options})
    return augment.draw(settings, samples, channels, torch.Generator().manual_seed(seed))


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def changed(change: Draw, image: Tensor, spacing: Tensor = SPACING) -> Tensor:
    before = image.clone()
    out = augment.intensities(change, image, spacing.expand(len(image), 3))
    assert torch.equal(image, before)
    return out


def energy(image: Tensor, axis: int) -> float:
    """Mean square of neighbours' differences: what is at high frequencies."""
    return float(image.diff(dim=axis).square().mean())


def test_a_bias_field_is_smooth_and_multiplies_what_is_above_the_lowest() -> None:
    image = noise(1, 2, 24, 20, 16).abs()
    image[:, :, 0, 0, 0] = 0
    out = changed(drawn(bias_field=1.0, bias_field_strength=0.5), image)
    gain = (out / image.clamp_min(1e-3)).log()[:, :, 1:, 1:, 1:]
    flat = image[:, :, 1:, 1:, 1:] < 0.05
    assert float(out[0, 0, 0, 0, 0]) == 0
    smooth = gain.masked_fill(flat, 0)
    assert float(smooth.abs().max()) <= 0.5 + 1e-3
    for axis in (2, 3, 4):  # a polynomial of degree 3: its fourth differences are 0
        steps = gain.double()
        for _ in range(4):
            steps = steps.diff(dim=axis)
        valid = ~ndimage.binary_dilation(flat.numpy(), iterations=4)
        shape = [slice(0, n) for n in steps.shape]
        assert float(steps[torch.from_numpy(valid[tuple(shape)])].abs().max()) < 2e-3
    assert not torch.allclose(gain[0, 0], gain[0, 1], atol=0.05)  # a field for each channel


def test_the_largest_logarithm_of_the_field_is_what_was_drawn() -> None:
    change = drawn(3, bias_field=1.0, bias_field_strength=0.4)
    image = torch.ones(3, 2, 12, 12, 12)
    image[..., 0] = 0  # the lowest value: what is above it is 1
    gain = changed(change, image)[..., 1:].log().abs().amax((2, 3, 4))
    assert bool((gain <= change.bias_strength + 1e-5).all())
    assert bool((gain > 0.5 * change.bias_strength).all())
    assert float(change.bias_strength.max()) <= 0.4


def test_a_constant_channel_stays_under_a_bias_field() -> None:
    image = torch.full((1, 2, 8, 8, 8), -0.7)
    torch.testing.assert_close(changed(drawn(bias_field=1.0), image), image)


def test_blur_lowers_what_is_at_high_frequencies_and_keeps_the_mean() -> None:
    image = noise(1, 2, 30, 28, 26)
    change = replace(drawn(blur=1.0), blur=torch.tensor([[1.5, 0.0]]))
    out = changed(change, image)
    assert torch.equal(out[0, 1], image[0, 1])  # strengths are of each channel
    assert energy(out[:, :1], 2) < 0.1 * energy(image[:, :1], 2)
    assert float(out[0, 0].mean()) == pytest.approx(float(image[0, 0].mean()), abs=0.02)


def test_blur_is_in_millimetres() -> None:
    image = torch.zeros(1, 1, 31, 31, 31)
    image[..., 15, 15, 15] = 1
    change = replace(drawn(channels=1, blur=1.0), blur=torch.tensor([[3.0]]))
    out = changed(change, image)[0, 0].double()
    for axis, size in enumerate((1.0, 1.0, 3.0)):
        profile = out.sum(tuple(a for a in range(3) if a != axis))
        place = (torch.arange(31) - 15) * size
        variance = float((profile * place**2).sum() / profile.sum())
        # A voxel's own width widens it: size^2 / 12, as integrals over voxels do.
        assert variance == pytest.approx(3.0**2 + size**2 / 12, rel=0.01)


def test_blur_is_monais_away_from_the_border() -> None:
    image = noise(1, 1, 30, 30, 30)
    change = replace(drawn(channels=1, blur=1.0), blur=torch.tensor([[1.2]]))
    peer = GaussianFilter(3, 1.2, truncated=6.0, approx="erf")(image)
    inner = (..., *(slice(8, -8),) * 3)
    out = changed(change, image, torch.ones(1, 3))
    torch.testing.assert_close(out[inner], peer[inner], atol=1e-5, rtol=0)


def test_blur_repeats_the_border() -> None:
    image = noise(1, 1, 9, 8, 7)
    change = replace(drawn(channels=1, blur=1.0), blur=torch.tensor([[1.5]]))
    out = changed(change, image, torch.ones(1, 3))
    padded = np.pad(image[0, 0].double().numpy(), 12, mode="edge")
    kernel = blurring(torch.tensor([1.5]), 25)[0, 12].double().numpy()
    for axis in range(3):
        padded = ndimage.convolve1d(padded, kernel, axis=axis, mode="nearest")
    np.testing.assert_allclose(out[0, 0].numpy(), padded[12:-12, 12:-12, 12:-12], atol=1e-5)


@pytest.mark.parametrize("length", [1, 7, 24])
def test_no_blur_is_the_identity(length: int) -> None:
    torch.testing.assert_close(blurring(torch.zeros(1), length)[0], torch.eye(length))


def test_patches_of_one_slice_are_taken() -> None:
    image = noise(1, 2, 12, 10, 1)
    out = changed(drawn(bias_field=1.0, blur=1.0, low_resolution=1.0), image)
    assert out.shape == image.shape
    assert bool(torch.isfinite(out).all())


@pytest.mark.parametrize("factor", [1.3, 2.0, 3.7, 50.0])
def test_low_resolution_has_as_many_voxels_as_fit(factor: float) -> None:
    image = noise(1, 1, 12, 12, 12)
    change = replace(drawn(channels=1), coarseness=torch.tensor([[factor]]))
    out = changed(change, image, torch.ones(1, 3))[0, 0]
    for axis in range(3):  # what lies along one axis spans as many dimensions as voxels were left
        rank = torch.linalg.matrix_rank(out.movedim(axis, 0).flatten(1), rtol=1e-4)
        assert int(rank) == max(1, round(12 / factor))


def test_a_lesion_of_one_voxel_fades_and_does_not_go() -> None:
    """Its label stays, so what is left of it must be seen, wherever it lies."""
    change = replace(drawn(channels=1), coarseness=torch.tensor([[2.0]]))
    for place in (5, 6):
        image = torch.zeros(1, 1, 12, 12, 12)
        image[..., place, place, place] = 8
        out = changed(change, image, torch.ones(1, 3))
        assert float(out.sum()) == pytest.approx(8)
        assert 0.2 < float(out[..., place, place, place]) < 1


def test_low_resolution_leaves_axes_that_are_coarser_already() -> None:
    """Twice the edge of 1 mm is 2 mm: slices of 3 mm are no thinner."""
    image = noise(1, 2, 24, 24, 12)
    change = replace(drawn(low_resolution=1.0), coarseness=torch.tensor([[2.0, 1.0]]))
    out = changed(change, image)
    assert torch.equal(out[0, 1], image[0, 1])
    small = torch.nn.functional.interpolate(image[:, :1], (12, 12, 12), mode="area")
    peer = torch.nn.functional.interpolate(
        small, (24, 24, 12), mode="trilinear", align_corners=False
    )
    torch.testing.assert_close(out[:, :1], peer, atol=1e-5, rtol=0)
    assert energy(out[:, :1], 2) < 0.2 * energy(image[:, :1], 2)
    assert energy(out[:, :1], 4) > 0.1 * energy(image[:, :1], 4)


@pytest.mark.parametrize(
    "setting, name, off",
    [
        ("bias_field", "bias_strength", 0),
        ("blur", "blur", 0),
        ("low_resolution", "coarseness", 1),
    ],
)
def test_it_happens_to_the_share_of_channels_that_was_asked(
    setting: str, name: str, off: float
) -> None:
    strength = getattr(drawn(200, 2, **{setting: 0.25}), name)
    assert 0.18 < float((strength != off).float().mean()) < 0.32
    assert bool((getattr(drawn(20, 2), name) == off).all())


@pytest.mark.parametrize("setting", ["bias_field", "blur", "low_resolution"])
def test_the_result_does_not_depend_on_the_rest_of_the_batch(setting: str) -> None:
    image = noise(3, 2, 10, 9, 8)
    change = drawn(3, **{setting: 1.0})
    second = {k: v[1:2] if isinstance(v, Tensor) else v for k, v in vars(change).items()}
    torch.testing.assert_close(changed(Draw(**second), image[1:2]), changed(change, image)[1:2])
