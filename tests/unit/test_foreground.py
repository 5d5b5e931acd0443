"""Computed regions of interest: Otsu's threshold against ITK's, and the rules built on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from medseg.errors import DataError
from medseg.transforms.foreground import Rule, foreground, otsu, with_mask
from medseg.volumes.image import Image
from medseg.volumes.load import LoadedCase
from medseg.volumes.writer import new_header

COMPUTED: list[Rule] = ["nonzero", "not_corner", "otsu_plus", "otsu_largest", "mean_plus"]


def case(image: np.ndarray, mask: Any = None) -> LoadedCase:
    affine = np.eye(4)
    reference = Image(image[0], affine, new_header(image.shape[1:], affine), Path("head.nii"))
    return LoadedCase(image.astype(np.float32), None, mask, reference, ())


@pytest.fixture
def two_groups(rng: np.random.Generator) -> np.ndarray:
    volume = rng.normal(20, 8, size=(20, 18, 16))
    volume[6:14, 5:13, 4:12] += 60
    return volume.astype(np.float32)


@pytest.mark.parametrize("shift, gain", [(0.0, 1.0), (-500.0, 1.0), (3.0, 1e-4), (0.0, 40.0)])
def test_otsu_is_itks(two_groups: np.ndarray, shift: float, gain: float) -> None:
    import SimpleITK as sitk  # noqa: N813

    volume = (two_groups * gain + shift).astype(np.float32)
    peer = sitk.OtsuThresholdImageFilter()
    peer.SetNumberOfHistogramBins(256)
    peer.Execute(sitk.GetImageFromArray(volume))
    bin_width = float(volume.max() - volume.min()) / 256
    assert otsu(volume) == pytest.approx(peer.GetThreshold(), abs=1.01 * bin_width)


def test_otsu_is_the_best_of_all_cuts(rng: np.random.Generator) -> None:
    """The definition, cut by cut: the greatest variance between the groups."""
    values = rng.integers(0, 256, size=4000).astype(float) ** 1.5
    cuts = np.histogram_bin_edges(values, 256)[1:-1]

    def between(cut: float) -> float:
        low, high = values[values < cut], values[values >= cut]
        return float(low.size * high.size * (low.mean() - high.mean()) ** 2)

    best = max(between(cut) for cut in cuts)
    assert between(otsu(values)) == pytest.approx(best, rel=1e-3)


def test_otsu_plus_is_niftynets_recipe(two_groups: np.ndarray) -> None:
    """Above the threshold of each channel, two dilations, holes filled, and all put together."""
    second = np.roll(two_groups, 5, axis=0)
    second[10:12, 8:10, 7:9] = 20  # a hole, wider than what dilation closes
    image = np.stack([two_groups, second])
    expected = np.zeros(two_groups.shape, bool)
    for channel in image:
        inside = channel > otsu(channel)
        for _ in range(2):
            inside = ndimage.binary_dilation(inside)
        expected |= ndimage.binary_fill_holes(inside)
    np.testing.assert_array_equal(foreground(image, "otsu_plus"), expected)
    assert expected[10, 9, 8]
    assert expected.mean() < 0.5


def test_mean_plus_cuts_at_the_mean() -> None:
    volume = np.zeros((1, 16, 16, 16), np.float32)
    volume[0, 5:11, 5:11, 5:11] = 1
    volume[0, 8, 8, 8] = 1000  # mean 0.3; Otsu's threshold leaves this voxel alone above
    cube = ndimage.binary_dilation(volume[0] > 0.5, iterations=2)
    point = ndimage.binary_dilation(volume[0] > 500, iterations=2)
    np.testing.assert_array_equal(foreground(volume, "mean_plus"), cube)
    np.testing.assert_array_equal(foreground(volume, "otsu_plus"), point)


def test_the_largest_part_leaves_the_table_out() -> None:
    volume = np.full((1, 24, 24, 24), -1000, np.float32)
    volume[0, 6:18, 4:14, 6:18] = 30  # a head
    volume[0, :, 21:23, :] = 40  # a table
    whole, largest = foreground(volume, "otsu_plus"), foreground(volume, "otsu_largest")
    assert whole[:, 21].all()
    assert not largest[:, 19:].any()
    np.testing.assert_array_equal(largest[:, :17], whole[:, :17])


def test_nonzero_is_any_channel(two_groups: np.ndarray) -> None:
    image = np.zeros((2, *two_groups.shape), np.float32)
    image[0, 3, 3, 3], image[1, 4, 4, 4] = -1, 2
    assert np.argwhere(foreground(image, "nonzero")).tolist() == [[3, 3, 3], [4, 4, 4]]


@pytest.mark.parametrize("rule", COMPUTED)
def test_a_constant_channel_adds_nothing(rule: Rule, two_groups: np.ndarray) -> None:
    alone = foreground(two_groups[None], rule)
    both = foreground(np.stack([two_groups, np.zeros_like(two_groups)]), rule)
    np.testing.assert_array_equal(both, alone)


@pytest.mark.parametrize("rule", COMPUTED)
def test_an_image_without_foreground_is_named(rule: Rule) -> None:
    with pytest.raises(DataError, match=rf"head\.nii: preprocess\.mask: {rule} .*data\.mask"):
        with_mask(case(np.zeros((2, 6, 6, 6))), rule)


def test_whose_mask_it_is(two_groups: np.ndarray) -> None:
    own = two_groups > 70
    without, with_own = case(two_groups[None]), case(two_groups[None], own)
    assert with_mask(with_own, None).mask is own
    assert with_mask(with_own, "file").mask is own
    assert with_mask(without, None).mask is None
    computed = with_mask(with_own, "otsu_plus").mask
    np.testing.assert_array_equal(computed, foreground(two_groups[None], "otsu_plus"))
    with pytest.raises(DataError, match=r"head\.nii: .*preprocess\.mask: file.*set data\.mask"):
        with_mask(without, "file")


def test_not_corner_finds_what_is_stripped_whatever_its_background() -> None:
    image = np.stack([np.full((6, 7, 8), -3.5), np.full((6, 7, 8), 2.0)])
    image[0, 2:4, 3, 5], image[1, 1, 1, 1] = 0, -1
    found = foreground(image, "not_corner")
    assert np.argwhere(found).tolist() == [[1, 1, 1], [2, 3, 5], [3, 3, 5]]
    assert not foreground(np.full((2, 4, 4, 4), 7.0), "not_corner").any()
