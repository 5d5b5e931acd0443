"""A NIfTI header, read strictly: what voxels a file holds, of which type and where in it.

NIfTI-1: Cox et al., 2004; NIfTI-2: 2011; both at https://nifti.nimh.nih.gov. nibabel names the
fields. Its own checks mend much in silence, so they stay off.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header

from medseg.volumes.findings import Findings
from medseg.volumes.geometry import voxel_size
from medseg.volumes.image import Affine
from medseg.volumes.placement import place
from medseg.volumes.stream import Stream

LENGTHS = {348: Nifti1Header, 540: Nifti2Header}
MAGIC = {348: b"n+1", 540: b"n+2"}
LINE_ENDS = (13, 10, 26, 10)  # in NIfTI-2: a transfer as text would change them
TYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8"}
TYPES |= {256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}
OTHER_TYPES = {0: "unknown", 1: "bits", 32: "complex", 128: "RGB", 1536: "128-bit float"}
OTHER_TYPES |= {1792: "complex", 2048: "complex", 2304: "RGBA"}


@dataclass(frozen=True, eq=False)
class HeaderInfo:
    """A header that passed all checks.

    Args:
        path: The file it came from; for messages.
        header: The raw header (nibabel's class, nothing mended).
        shape: Voxels (I, J, K), or (I, J, K, C); further axes of length 1 are left out.
        affine: (4, 4), voxel index (i, j, k) to RAS+ millimetres.
        dtype: Voxel type on disk.
        offset: Where in the (unpacked) file the voxels begin, in bytes.
        scaling: (slope, intercept) of the values, or None.
        notes: What was odd but accepted, with figures.
    """

    path: Path
    header: Any
    shape: tuple[int, ...]
    affine: Affine
    dtype: np.dtype[Any]
    offset: int
    scaling: tuple[float, float] | None
    notes: tuple[str, ...]

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size in mm along (i, j, k)."""
        return voxel_size(self.affine)

    @property
    def bytes(self) -> int:
        """Bytes of the voxels, unpacked."""
        return math.prod(self.shape) * self.dtype.itemsize


@np.errstate(all="ignore")  # a damaged header may hold any number: it is judged by the result
def parse(stream: Stream, found: Findings) -> HeaderInfo:
    """Read and check a header. The stream then stands at the first voxel.

    Raises:
        DataError: It is not that of a NIfTI-1 or NIfTI-2 file with 3D or 4D real voxels.
    """
    header = _raw(stream, found)
    shape = _shape(header, found)
    dtype = _dtype(header, found)
    offset = _offset(header, found)
    affine = place(header, shape, found)
    scaling = _scaling(header, found)
    _skip_extensions(stream, header, offset, found)
    return HeaderInfo(found.path, header, shape, affine, dtype, offset, scaling, tuple(found.notes))


def _raw(stream: Stream, found: Findings) -> Any:
    start = stream.read(4)
    for endian in "<>":
        length = _integer(start, endian)
        if length in LENGTHS:
            break
    else:
        found.refuse(f"not a NIfTI file (it begins with {start!r}); convert it to .nii.gz")
    head = start + stream.read(length - 4)
    if len(head) < length:
        found.refuse(f"truncated: {len(head)} of {length} header bytes; copy it again")
    header = LENGTHS[length](head, endianness=endian, check=False)
    magic = bytes(header["magic"]).rstrip(b"\0")
    if magic in (b"ni1", b"ni2"):
        found.refuse("one half of a .hdr/.img pair; convert it to a single .nii.gz file")
    if magic != MAGIC[length]:
        found.refuse(f"not a NIfTI file (magic {magic!r}; Analyze 7.5 has none); convert it")
    if length == 540 and tuple(header["eol_check"]) != LINE_ENDS:
        found.refuse("damaged: the line-end bytes of the header were changed; copy it as binary")
    return header


def _shape(header: Any, found: Findings) -> tuple[int, ...]:
    count, *dim = (int(size) for size in header["dim"])
    if not 1 <= count <= 7:
        found.refuse(f"damaged header: {count} dimensions")
    shape = dim[:count]
    text = " x ".join(map(str, shape))
    if min(shape) < 1:
        found.refuse(f"damaged header: {text} voxels")
    while len(shape) > 3 and shape[-1] == 1:
        shape.pop()
    if len(shape) not in (3, 4):
        found.refuse(f"{len(shape)}D image of {text} voxels; a 3D volume is needed")
    if min(shape[:3]) == 1:
        found.note(f"only one slice: {text} voxels")
    return tuple(shape)


def _dtype(header: Any, found: Findings) -> np.dtype[Any]:
    code, bits = int(header["datatype"]), int(header["bitpix"])
    if code not in TYPES:
        name = OTHER_TYPES.get(code, "unknown")
        found.refuse(f"voxel type {code} ({name}); real numbers of up to 64 bits are needed")
    dtype: np.dtype[Any] = np.dtype(header.endianness + TYPES[code])
    if bits != dtype.itemsize * 8:
        found.note(f"bitpix is {bits}, but voxels of type {code} have {dtype.itemsize * 8} bits")
    return dtype


def _offset(header: Any, found: Findings) -> int:
    offset, least = float(header["vox_offset"]), int(header["sizeof_hdr"]) + 4
    if offset == 0:
        found.note(f"vox_offset is 0, taken as {least}")
        return least
    if not (least <= offset < 2**31 and offset.is_integer()):
        found.refuse(f"damaged header: vox_offset {offset:g}, at least {least} is needed")
    return int(offset)


def _scaling(header: Any, found: Findings) -> tuple[float, float] | None:
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if not math.isfinite(slope):
        found.note(f"scl_slope {slope:g} and scl_inter {intercept:g} are ignored")
        return None
    if slope == 0 or (slope, intercept) == (1, 0):
        return None
    if not math.isfinite(intercept):
        found.refuse(f"damaged header: scl_slope {slope:g}, but scl_inter {intercept:g}")
    return slope, intercept


def _skip_extensions(stream: Stream, header: Any, offset: int, found: Findings) -> None:
    """Walk the chain of extensions; each opens with its own length."""
    has_extensions = stream.read(4)[:1] not in (b"", b"\0")
    left = offset - int(header["sizeof_hdr"]) - 4
    while has_extensions and left >= 8:
        head = stream.read(8)
        size = _integer(head[:4], header.endianness)
        if size < 16 or size % 16 or size > left:
            found.refuse(f"damaged header extension of {size} bytes ({left} are left)")
        stream.skip(size - 8)
        left -= size
    stream.skip(left)


def _integer(data: bytes, endian: str) -> int:
    return int.from_bytes(data, "little" if endian == "<" else "big", signed=True)
