"""NIfTI files, written atomically in another file's own geometry."""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header

from medseg.errors import DataError
from medseg.files import atomic
from medseg.version import VERSION
from medseg.volumes.findings import Findings
from medseg.volumes.geometry import corner_distance, same_grid
from medseg.volumes.header import HeaderInfo, parse
from medseg.volumes.image import Affine, Array, Image
from medseg.volumes.stream import Stream, opened

GEOMETRY = (
    *("dim_info", "pixdim", "xyzt_units", "qform_code", "sform_code"),
    *("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    *("srow_x", "srow_y", "srow_z"),
)
LEVEL = 4  # of gzip
SLICES = 16  # converted at once


def write(
    path: str | Path, data: Array, like: Image | HeaderInfo | Any, *, affine: Affine | None = None
) -> None:
    """Write a mask or class probabilities atomically, in the raw geometry of `like`.

    The header's geometry fields are copied as they are (units, codes, both transforms); nothing
    else is, so nothing about the patient. The file is read back and compared before it gets its
    name. The same data give the same bytes.

    Args:
        path: Ends in .nii.gz or .nii.
        data: (I, J, K), or (C, I, J, K) for a 4D file (I, J, K, C). Integers and bools are stored
            in the smallest unsigned type that holds them, floats as float32.
        like: The volume whose grid `data` is on, or its header.
        affine: Where the caller believes `data` to lie; it must agree with `like`.

    Raises:
        DataError: `data` is on another grid, negative (integers) or not finite (floats), or the
            file cannot be written.
    """
    path, raw = Path(path), getattr(like, "header", like)
    if not path.name.lower().endswith((".nii", ".nii.gz")):
        raise DataError(path, "the name must end in .nii.gz or .nii")
    _check_shape(path, data, raw)
    dtype = _voxel_type(path, data)
    head = _head(raw, data, dtype)
    info = parse(Stream(io.BytesIO(head), len(head)), Findings(path))
    differ = None if affine is None else same_grid(info.shape, info.affine, info.shape, affine)
    if differ:
        raise DataError(path, f"the prediction and its input differ in place: {differ}")
    with atomic(path) as temporary:
        _store(temporary, head, data, dtype)
        _verify(path, temporary, head, data, dtype)


def new_header(shape: tuple[int, int, int], affine: Affine) -> Any:
    """Make a NIfTI-1 header for a volume that came from no file, for `write`.

    Args:
        shape: Voxels (I, J, K).
        affine: (4, 4), voxel index to RAS+ millimetres.
    """
    header = Nifti1Header(endianness="<")
    header.set_data_shape(shape)
    header.set_xyzt_units("mm")
    header.set_qform(affine, code=1)
    header.set_sform(affine, code=1)
    if corner_distance(shape, header.get_qform(), affine) > 1e-2:  # sheared: no qform can hold it
        header["qform_code"] = 0
    return header


def _check_shape(path: Path, data: Array, raw: Any) -> None:
    expected = tuple(int(size) for size in raw["dim"][1:4])
    if data.ndim not in (3, 4) or data.shape[-3:] != expected or not data.size:
        raise DataError(path, f"data of shape {data.shape} for a grid of {expected}")


def _voxel_type(path: Path, data: Array) -> np.dtype[Any]:
    low, high = data.min(), data.max()
    if data.dtype.kind in "bui":
        if low < 0 or high > np.iinfo(np.int32).max:
            raise DataError(path, f"labels from {low} to {high}; 0 to 2147483647 can be stored")
        return np.min_scalar_type(int(high)).newbyteorder("<")
    if data.dtype.kind != "f":
        raise DataError(path, f"data of type {data.dtype}; integers or floats can be stored")
    largest = np.finfo(np.float32).max
    if not (low >= -largest and high <= largest):
        raise DataError(path, f"values from {low} to {high}; finite float32 values can be stored")
    return np.dtype("<f4")


def _head(raw: Any, data: Array, dtype: np.dtype[Any]) -> bytes:
    """The header's bytes, and four more that say: no extensions."""
    header = (Nifti2Header if int(raw["sizeof_hdr"]) == 540 else Nifti1Header)(endianness="<")
    for field in GEOMETRY:
        header[field] = raw[field]
    dim = raw["dim"].copy()
    if data.ndim == 4 or (dim[4 : dim[0] + 1] != 1).any():
        dim[0], dim[4:] = data.ndim, 1
        dim[4] = data.shape[0] if data.ndim == 4 else 1
    header["dim"] = dim
    header.set_data_dtype(dtype)
    header["vox_offset"] = int(header["sizeof_hdr"]) + 4
    header["descrip"] = f"medseg {VERSION}"
    return bytes(header.binaryblock) + bytes(4)


def _pieces(head: bytes, data: Array, dtype: np.dtype[Any]) -> Iterator[bytes]:
    """The file's bytes, a few slices at a time: probabilities may be many times the volume."""
    yield head
    for volume in data if data.ndim == 4 else data[None]:
        for start in range(0, volume.shape[2], SLICES):
            yield volume[..., start : start + SLICES].astype(dtype).tobytes(order="F")


def _store(temporary: Path, head: bytes, data: Array, dtype: np.dtype[Any]) -> None:
    with temporary.open("wb") as file:
        if not temporary.name.lower().endswith(".gz"):
            file.writelines(_pieces(head, data, dtype))
            return
        deflate = zlib.compressobj(LEVEL, wbits=31)  # a gzip header without name or time
        for piece in _pieces(head, data, dtype):
            file.write(deflate.compress(piece))
        file.write(deflate.flush())


def _verify(path: Path, temporary: Path, head: bytes, data: Array, dtype: np.dtype[Any]) -> None:
    try:
        with opened(temporary) as stream:
            same = all(stream.read(len(piece)) == piece for piece in _pieces(head, data, dtype))
            same = same and stream.skip(1) == 0 and not stream.tail
    except DataError as error:
        raise DataError(path, f"read back after writing: {error.reason}") from error
    if not same:
        raise DataError(path, "what was read back is not what was written; check the disk")
