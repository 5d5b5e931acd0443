"""NIfTI files, read strictly: a damaged file is refused, an odd one is used and named.

`write` (in `writer`) belongs here for those who call it: `nifti.read`, `nifti.write`.
"""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import numpy as np

from medseg.volumes.findings import Findings
from medseg.volumes.header import HeaderInfo, parse
from medseg.volumes.image import Array, Image
from medseg.volumes.stack import Stack
from medseg.volumes.stream import Stream, opened
from medseg.volumes.writer import new_header, write

__all__ = [
    "HeaderInfo",
    "Stack",
    "VolumeWarning",
    "new_header",
    "read",
    "read_header",
    "read_label",
    "say",
    "write",
]

MAX_BYTES = 8 << 30
BLOCK = 1 << 16  # voxels converted at once: what comes in between stays in the cache
HUGE = 1e30
EXACT = 2**24  # float32 holds every integer up to here
INTEGER_SLACK = 1e-3
_LARGEST = int(np.iinfo(np.int32).max)


class VolumeWarning(UserWarning):
    """A volume that was used, though something about it is odd."""


def read(
    path: str | Path,
    *,
    volumes: bool = False,
    finite: bool = False,
    max_bytes: int = MAX_BYTES,
    warn: bool = True,
) -> Image:
    """Read one volume as float32, scaled by scl_slope and scl_inter.

    A voxel that is NaN, infinite or beyond float32 becomes 0, with a note. Every note is also a
    `VolumeWarning`.

    Args:
        path: A .nii or .nii.gz file, NIfTI-1 or NIfTI-2.
        volumes: Take a 4D file (I, J, K, C) too, and give (C, I, J, K) in any case.
        finite: Refuse a volume with such a voxel instead.
        max_bytes: Refuse a volume that needs more memory than this, before taking any.
        warn: False where the caller will `say` the notes, as after reading in a thread.

    Raises:
        DataError: The file is damaged, not what was asked for, too large, or has a volume
            without a finite voxel.
    """
    info, stored, found = _load(Path(path), volumes, max_bytes)
    data = _float32(stored, info)
    _check_values(data, info, found, finite)
    grid = _grid(data, info)
    image = _image(grid if volumes else grid[0], info, found)
    if warn:
        say(image)
    return image


def read_label(path: str | Path, *, max_bytes: int = MAX_BYTES, warn: bool = True) -> Image:
    """Read one label map as int32. It may be stored in any type.

    Args:
        path: As of `read`.
        max_bytes: As of `read`.
        warn: As of `read`.

    Raises:
        DataError: As `read`; or a voxel is not finite, not within 1e-3 of an integer, below 0 or
            beyond int32.
    """
    info, stored, found = _load(Path(path), False, max_bytes)
    labels = _integers(stored, info, found)
    if labels.min() == labels.max():
        found.note(f"every voxel has the label {labels.min()}")
    image = _image(_grid(labels, info)[0], info, found)
    if warn:
        say(image)
    return image


def say(image: Image) -> None:
    """Warn of all that is odd about a volume, as coming from the caller's caller."""
    for note in image.notes:
        warnings.warn(f"{image.path}: {note}", VolumeWarning, stacklevel=3)


def read_header(path: str | Path) -> HeaderInfo:
    """Read and check a header alone. Its notes are not warned of; the voxels may yet be damaged.

    Raises:
        DataError: The header is damaged, or promises more voxels than the file can hold.
    """
    found = Findings(Path(path))
    with opened(found.path) as stream:
        return _begin(stream, found)


def _begin(stream: Stream, found: Findings) -> HeaderInfo:
    name = found.path.name.lower()
    if name.endswith((".hdr", ".img")):
        found.refuse(".hdr/.img pairs are not read; convert it to a single .nii.gz file")
    if stream.gzip != name.endswith(".gz"):
        found.note("gzip data, though not named .gz" if stream.gzip else "named .gz, but not gzip")
    info = parse(stream, found)
    if info.offset + info.bytes > stream.room:
        found.refuse(
            f"truncated or forged: the header promises {info.bytes} bytes of voxels from byte "
            f"{info.offset}, the file's {stream.size} bytes cannot hold them; copy it again"
        )
    return info


def _load(path: Path, volumes: bool, max_bytes: int) -> tuple[HeaderInfo, Array, Findings]:
    """The voxels as stored, (C, I * J * K), and all that the file's outside tells."""
    found = Findings(path)
    with opened(path) as stream:
        info = _begin(stream, found)
        if len(info.shape) == 4 and not volumes:
            text = " x ".join(map(str, info.shape))
            found.refuse(f"4D image of {text} voxels; one 3D volume is needed: split it")
        needed = max(info.bytes, 4 * math.prod(info.shape))
        if needed > max_bytes:
            found.refuse(f"{needed} bytes of voxels; the limit is {max_bytes}")
        buffer = np.empty(info.bytes, dtype=np.uint8)
        got = stream.fill(buffer.data)
        if got < info.bytes:
            found.refuse(f"truncated: {got} of {info.bytes} voxel bytes; copy it again")
        _finish(stream, max_bytes, found)
    return info, buffer.view(info.dtype).reshape(-1, math.prod(info.shape[:3])), found


def _finish(stream: Stream, max_bytes: int, found: Findings) -> None:
    """Read to the end, where a gzip stream verifies its checksum."""
    trailing = stream.skip(max_bytes)
    if trailing == max_bytes:
        found.refuse(f"at least {trailing} bytes follow the voxels; the limit is {max_bytes}")
    if trailing:
        found.note(f"{trailing} bytes follow the voxels")
    if stream.tail:
        found.note("something other than gzip follows the gzip data")


@np.errstate(over="ignore", invalid="ignore")  # beyond float32 is infinite, and gets counted
def _float32(stored: Array, info: HeaderInfo) -> Array:
    if info.scaling is None:
        return stored.astype(np.float32, copy=False)
    slope, intercept = (np.float64(value) for value in info.scaling)
    scaled = np.empty(stored.size, dtype=np.float32)
    flat = stored.reshape(-1)
    for start in range(0, flat.size, BLOCK):
        block = slice(start, start + BLOCK)
        scaled[block] = flat[block] * slope + intercept
    return scaled.reshape(stored.shape)


@np.errstate(invalid="ignore")  # signalling NaNs
def _check_values(data: Array, info: HeaderInfo, found: Findings, finite: bool) -> None:
    """Note what is odd about each volume of (C, I * J * K), and replace non-finite voxels by 0."""
    for index, values in enumerate(data):
        where = f"volume {index}: " if len(data) > 1 else ""
        low, high = float(values.min()), float(values.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            low, high = _replace(values, where, found, finite)
        if low == high:
            found.note(f"{where}every voxel is {low:g}")
        largest = max(abs(low), abs(high))
        if largest > HUGE:
            found.note(f"{where}values of up to {largest:.3g}")
        if largest > EXACT and info.dtype.kind in "iu" and info.scaling is None:
            found.note(f"{where}integers of up to {largest:.9g} are rounded to float32")


def _replace(values: Array, where: str, found: Findings, finite: bool) -> tuple[float, float]:
    wrong = ~np.isfinite(values)
    count = int(wrong.sum())
    if finite:
        found.refuse(f"{where}{count} of {values.size} voxels are NaN or infinite; mend them")
    if count == values.size:
        found.refuse(f"{where}no voxel is finite: all {count} are NaN or infinite")
    found.note(f"{where}{count} of {values.size} voxels are NaN or infinite, replaced by 0")
    values[wrong] = 0
    return float(values.min()), float(values.max())


@np.errstate(over="ignore", invalid="ignore")
def _integers(stored: Array, info: HeaderInfo, found: Findings) -> Array:
    labels = np.empty(stored.shape, dtype=np.int32)
    flat, out = stored.reshape(-1), labels.reshape(-1)
    for start in range(0, flat.size, BLOCK):
        block = flat[start : start + BLOCK]
        if not _exact(block, out[start : start + BLOCK], info):
            _refuse_values(flat, info, found)
    return labels


def _exact(stored: Array, out: Array, info: HeaderInfo) -> bool:
    """Turn stored values into labels; whether each was one, within 1e-3."""
    if info.scaling is None and info.dtype.kind in "iu":
        np.copyto(out, stored, casting="unsafe")
        return bool(stored.min() >= 0 and stored.max() <= _LARGEST)
    values = _scaled(stored, info)
    nearest = np.rint(values)
    np.copyto(out, nearest, casting="unsafe")
    right = nearest.min() >= 0 and nearest.max() <= _LARGEST
    return bool(right and np.abs(values - nearest).max() <= INTEGER_SLACK)


def _scaled(stored: Array, info: HeaderInfo) -> Array:
    slope, intercept = info.scaling or (1.0, 0.0)
    return stored.astype(np.float64) * slope + intercept


def _refuse_values(stored: Array, info: HeaderInfo, found: Findings) -> None:
    values = _scaled(stored, info)
    nearest = np.rint(values)
    right = np.abs(values - nearest) <= INTEGER_SLACK
    right &= (nearest >= 0) & (nearest <= _LARGEST)
    first = int(np.argmin(right))
    place = tuple(map(int, np.unravel_index(first, info.shape[:3], order="F")))
    found.refuse(
        f"not a label map: {int((~right).sum())} of {right.size} voxels are no whole number "
        f"from 0 to {_LARGEST}, e.g. {values[first]:g} at voxel {place}"
    )


def _grid(data: Array, info: HeaderInfo) -> Array:
    """Fold (C, I * J * K), i running fastest, to (C, I, J, K)."""
    i, j, k = info.shape[:3]
    return data.reshape(-1, k, j, i).transpose(0, 3, 2, 1)


def _image(data: Array, info: HeaderInfo, found: Findings) -> Image:
    return Image(data, info.affine, info.header, info.path, tuple(found.notes))
