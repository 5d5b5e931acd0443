"""NIfTI files, written atomically in another file's own geometry."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header

from medseg.errors import DataError
from medseg.files import atomic
from medseg.version import VERSION
from medseg.volumes import deflate
from medseg.volumes.findings import Findings
from medseg.volumes.geometry import corner_distance, same_grid
from medseg.volumes.header import HeaderInfo, parse
from medseg.volumes.image import Affine, Array, Image
from medseg.volumes.stack import Stack
from medseg.volumes.stream import Stream, opened

Stored = Literal["float32", "uint16", "uint8"]
GEOMETRY = (
    *("dim_info", "pixdim", "xyzt_units", "qform_code", "sform_code"),
    *("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    *("srow_x", "srow_y", "srow_z"),
)
SLICES = 32  # turned at once: whole cache lines of an array whose slices run fastest
SLAB = 16 << 20  # bytes that these may take
SLACK = 1e-6  # that sums of probabilities may be off by


def write(
    path: str | Path,
    data: Array | Stack,
    like: Image | HeaderInfo | Any,
    *,
    affine: Affine | None = None,
    compression: int = 4,
    stored: Stored = "float32",
) -> None:
    """Write a mask or class probabilities atomically, in the raw geometry of `like`.

    The header's geometry fields are copied as they are (units, codes, both transforms); nothing
    else is, so nothing about the patient. The file is read back and its checksum compared with
    that of what was to be written before it gets its name. On one machine the same data give the
    same bytes.

    Args:
        path: Ends in .nii.gz or .nii.
        data: (I, J, K), or (C, I, J, K) for a 4D file (I, J, K, C), or a `Stack` of C volumes of
            floats, which are made one at a time. Integers and bools are stored in the smallest
            unsigned type that holds them, floats as `stored` says.
        like: The volume whose grid `data` is on, or its header.
        affine: Where the caller believes `data` to lie; it must agree with `like`.
        compression: Of .nii.gz: 0 none, 1 fastest, to 9 smallest.
        stored: How floats are stored. "uint16" and "uint8" are for values from 0 to 1, in steps
            of 1/65535 and 1/255, rounded to the nearest; the header's slope says so. (NIfTI has
            no float16.)

    Raises:
        DataError: `data` is on another grid, negative (integers), not finite (floats), or beyond 0
            to 1 (floats stored as integers); or the file cannot be written.
    """
    path, raw = Path(path), getattr(like, "header", like)
    if not path.name.lower().endswith((".nii", ".nii.gz")):
        raise DataError(path, "the name must end in .nii.gz or .nii")
    if compression not in range(10):
        raise DataError(path, f"compression {compression}; 0 (none) to 9 (smallest) there are")
    _check_shape(path, data.shape, raw)
    form = _form(path, data, stored)
    head = _head(raw, data.shape, form)
    info = parse(Stream(io.BytesIO(head), len(head)), Findings(path))
    differ = None if affine is None else same_grid(info.shape, info.affine, info.shape, affine)
    if differ:
        raise DataError(path, f"the prediction and its input differ in place: {differ}")
    content = _Content(path, head, data, form)
    with atomic(path) as temporary:
        _store(temporary, content, compression)
        _verify(path, temporary, content)


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


@dataclass(frozen=True)
class _Form:
    """How voxels are stored.

    Args:
        dtype: Their type on disk.
        steps: How many of them make 1, where probabilities are stored as integers; else None.
    """

    dtype: np.dtype[Any]
    steps: int | None = None

    def bytes_of(self, slab: Array) -> memoryview:
        """Take (k, j, i) to what the file holds of it, in one piece."""
        plain = self.dtype if self.steps is None else np.dtype(np.float32)
        if not slab.flags.c_contiguous:
            turned = np.empty(slab.shape, plain)
            for j in range(slab.shape[1]):  # a row of all slices fits into the cache
                turned[:, j] = slab[:, j]
            slab = turned
        if self.steps is None:
            return slab.astype(self.dtype, copy=False).data
        scaled = np.multiply(slab, self.steps, dtype=np.float32)
        return np.rint(scaled, out=scaled).astype(self.dtype).data


class _Content:
    """A file's bytes, a few slices at a time, and the checksum of those that were given out.

    Args:
        path: For messages.
        head: The header's bytes.
        data: The volume, or volumes.
        form: How they are stored.
    """

    def __init__(self, path: Path, head: bytes, data: Array | Stack, form: _Form) -> None:
        self._path, self._head, self._data, self._form = path, head, data, form
        self.checksum = (0, 0)  # CRC-32 and length, as `Stream.checksum` gives them

    def __iter__(self) -> Iterator[memoryview]:
        self.checksum = (0, 0)
        yield self._counted(memoryview(self._head))
        for volume in self._volumes():
            i, j, k = volume.shape
            depth = max(1, min(SLICES, SLAB // (4 * i * j)))
            for start in range(0, k, depth):
                yield self._counted(self._form.bytes_of(volume[..., start : start + depth].T))
            del volume  # let go of, before the next is made

    def _counted(self, piece: memoryview) -> memoryview:
        crc, size = self.checksum
        self.checksum = deflate.crc32(piece, crc), size + piece.nbytes
        return piece

    def _volumes(self) -> Iterator[Array]:
        if isinstance(self._data, np.ndarray):
            yield from self._data if self._data.ndim == 4 else self._data[None]
            return
        count, *shape = self._data.shape
        given = 0
        for volume in self._data:
            if volume.shape != tuple(shape) or volume.dtype.kind != "f":
                kind = f"{volume.dtype} {volume.shape}"
                raise DataError(self._path, f"volume {given} of a stack of floats {shape}: {kind}")
            _check_floats(self._path, volume, self._form)
            given += 1
            yield volume
            del volume
        if given != count:
            raise DataError(self._path, f"a stack of {count} volumes gave {given}")


def _check_shape(path: Path, shape: tuple[int, ...], raw: Any) -> None:
    expected = tuple(int(size) for size in raw["dim"][1:4])
    if len(shape) not in (3, 4) or shape[-3:] != expected or 0 in shape:
        raise DataError(path, f"data of shape {shape} for a grid of {expected}")


def _form(path: Path, data: Array | Stack, stored: Stored) -> _Form:
    """How `data` is to be stored; what is in memory is checked before a file is begun."""
    if not isinstance(data, np.ndarray):
        return _floats(stored)
    if data.dtype.kind == "f":
        form = _floats(stored)
        _check_floats(path, data, form)
        return form
    if data.dtype.kind not in "bui":
        raise DataError(path, f"data of type {data.dtype}; integers or floats can be stored")
    low, high = data.min(), data.max()
    if low < 0 or high > np.iinfo(np.int32).max:
        raise DataError(path, f"labels from {low} to {high}; 0 to 2147483647 can be stored")
    return _Form(np.min_scalar_type(int(high)).newbyteorder("<"))


def _floats(stored: Stored) -> _Form:
    if stored == "float32":
        return _Form(np.dtype("<f4"))
    dtype = np.dtype(stored).newbyteorder("<")
    return _Form(dtype, int(np.iinfo(dtype).max))


def _check_floats(path: Path, data: Array, form: _Form) -> None:
    low, high = data.min(), data.max()
    if form.steps is not None:
        if not (low >= -SLACK and high <= 1 + SLACK):
            raise DataError(
                path, f"values from {low} to {high}; 0 to 1 can be stored as {form.dtype.name}"
            )
        return
    largest = np.finfo(np.float32).max
    if not (low >= -largest and high <= largest):
        raise DataError(path, f"values from {low} to {high}; finite float32 values can be stored")


def _head(raw: Any, shape: tuple[int, ...], form: _Form) -> bytes:
    """The header's bytes, and four more that say: no extensions."""
    header = (Nifti2Header if int(raw["sizeof_hdr"]) == 540 else Nifti1Header)(endianness="<")
    for field in GEOMETRY:
        header[field] = raw[field]
    dim = raw["dim"].copy()
    if len(shape) == 4 or (dim[4 : dim[0] + 1] != 1).any():
        dim[0], dim[4:] = len(shape), 1
        dim[4] = shape[0] if len(shape) == 4 else 1
    header["dim"] = dim
    header.set_data_dtype(form.dtype)
    if form.steps is not None:
        header["scl_slope"], header["scl_inter"] = 1 / form.steps, 0
    header["vox_offset"] = int(header["sizeof_hdr"]) + 4
    header["descrip"] = f"medseg {VERSION}"
    return bytes(header.binaryblock) + bytes(4)


def _store(temporary: Path, content: _Content, compression: int) -> None:
    with temporary.open("wb") as file:
        if not temporary.name.lower().endswith(".gz"):
            file.writelines(content)
            return
        pack = deflate.deflater(compression)
        for piece in content:
            file.write(pack.compress(piece))
            del piece  # it may hold its volume
        file.write(pack.flush())


def _verify(path: Path, temporary: Path, content: _Content) -> None:
    """Read all of the file, whose own checksum `opened` verifies, and compare it with ours."""
    try:
        with opened(temporary) as stream:
            same = stream.checksum() == content.checksum and not stream.tail
    except DataError as error:
        raise DataError(path, f"read back after writing: {error.reason}") from error
    if not same:
        raise DataError(path, "what was read back is not what was written; check the disk")
