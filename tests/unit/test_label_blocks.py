"""Label maps of more than one block: every block is checked, and lands in its place."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medseg.errors import DataError
from medseg.volumes import dataset, nifti
from medseg.volumes.dataset import IGNORE_INDEX, Labels
from medseg.volumes.image import Array

SHAPE = (50, 60, 70)
VALUES = np.random.default_rng(0).choice([0, 2, 5, 9], SHAPE)
LABELS = Labels({"a": (2,), "b": (5,)}, ignore=9)
assert VALUES.size > 2 * max(nifti.BLOCK, dataset._BLOCK)


def stored(path: Path, voxels: Array, slope: float = 1, inter: float = 0) -> Path:
    image = nib.Nifti1Image(voxels, np.diag([-1.0, -1, 2, 1]))
    image.header.set_slope_inter(slope, inter)
    image.to_filename(path)
    return path


@pytest.mark.parametrize("dtype", ["u1", "i2", "i4", "f4", "f8"])
@pytest.mark.parametrize("scaling", [(1, 0), (0.5, -1)])
def test_every_type_gives_the_same_labels(
    dtype: str, scaling: tuple[float, float], tmp_path: Path
) -> None:
    slope, inter = scaling
    raw = ((VALUES - inter) / slope).astype(dtype)
    image = nifti.read_label(stored(tmp_path / "a.nii", raw, slope, inter))
    assert image.data.dtype == np.int32
    np.testing.assert_array_equal(image.data, VALUES)


@pytest.mark.parametrize("value", [2.01, -1, 2.0**31, np.nan, np.inf])
@pytest.mark.parametrize("place", [(0, 0, 0), (7, 8, 69)])
def test_what_is_no_label_is_found_in_any_block(
    value: float, place: tuple[int, int, int], tmp_path: Path
) -> None:
    raw = VALUES.astype(np.float64)
    raw[place] = value
    text = rf"1 of {raw.size} voxels are no whole number .* at voxel \({place[0]}, {place[1]}"
    with pytest.raises(DataError, match=text):
        nifti.read_label(stored(tmp_path / "a.nii", raw))


@pytest.mark.parametrize("value", [-1, 2**31])
def test_an_integer_that_is_no_label_is_found(value: int, tmp_path: Path) -> None:
    header = nifti.new_header(SHAPE, np.eye(4))
    header.set_data_dtype(np.int64)
    raw = VALUES.astype(np.int64)
    raw[1, 2, 68] = value
    (tmp_path / "a.nii").write_bytes(header.binaryblock + bytes(4) + raw.tobytes(order="F"))
    content = bytearray((tmp_path / "a.nii").read_bytes())
    content[108:112] = np.float32(352).tobytes()  # vox_offset
    (tmp_path / "a.nii").write_bytes(content)
    with pytest.raises(DataError, match=re.escape(f"e.g. {value:g} at voxel (1, 2, 68)")):
        nifti.read_label(tmp_path / "a.nii")


@pytest.mark.parametrize("layout", [np.ascontiguousarray, np.asfortranarray, lambda a: a[::-1]])
@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64])
def test_indices_are_in_place(layout: Callable[[Array], Array], dtype: type) -> None:
    values = layout(VALUES.astype(dtype))
    expected = np.select([values == 2, values == 5, values == 9], [1, 2, IGNORE_INDEX], 0)
    indices = LABELS.to_indices(values)
    assert indices.dtype == np.uint8
    np.testing.assert_array_equal(indices, expected)
    np.testing.assert_array_equal(LABELS.to_values(indices), values)


@pytest.mark.parametrize("value", [-3, 1, 10, 2**31 - 1])
def test_unknown_values_are_counted_in_all_blocks(value: int) -> None:
    values = np.asfortranarray(VALUES.astype(np.int32))
    values[0, 0, 1] = values[49, 59, 69] = value
    with pytest.raises(DataError, match=rf"label: unknown label value {value} \(2 voxels\); known"):
        LABELS.to_indices(values)
