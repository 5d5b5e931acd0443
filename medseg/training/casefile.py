"""One file a case: arrays under a header that says what they are, read as a map of the file.

The format is that of safetensors, so that other programs read it too: the length of the header, the
header (JSON), the arrays without gaps. Its writer would hold a case in memory twice, and its reader
copies; these do neither.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import resource
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from medseg.errors import DataError
from medseg.files import atomic
from medseg.volumes.image import Array

VERSION = 5  # raise when what a case's file holds changes
_FORMAT = "medseg case"
# Files a process keeps open: each holds a handle, of which other things need some too.
_MAPS = max(16, min(1024, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4))
_ALIGNED = 64  # bytes
_LONGEST = 1 << 20  # bytes of a header
_TYPES = {"I64": "<i8", "F32": "<f4", "U8": "|u1", "BOOL": "|b1"}
_CODES = {np.dtype(name): code for code, name in _TYPES.items()}


@dataclass(frozen=True, eq=False)
class CaseFile:
    """A file that was opened.

    Args:
        arrays: By name; read-only.
        about: Plain values.
        version: Of what wrote it.
        header: As it stands in the file.
    """

    arrays: Mapping[str, Array]
    about: Mapping[str, Any]
    version: int
    header: Mapping[str, Any]


def write(path: Path, arrays: Mapping[str, Array], about: Mapping[str, Any]) -> None:
    """Write a case's file, whole or not at all.

    Args:
        path: Where.
        arrays: int64, float32, uint8 or bool.
        about: Plain values.

    Raises:
        DataError: It cannot be written.
    """
    names = sorted(arrays, key=lambda name: (-arrays[name].itemsize, name))  # aligned, without gaps
    whole = [np.ascontiguousarray(arrays[name]) for name in names]
    ends = np.cumsum([0, *(array.nbytes for array in whole)]).tolist()
    header: dict[str, Any] = {
        name: {"dtype": _CODES[array.dtype], "shape": array.shape, "data_offsets": span}
        for name, array, span in zip(names, whole, pairwise(ends), strict=True)
    }
    known = {"format": _FORMAT, "version": str(VERSION), "about": json.dumps(dict(about))}
    header["__metadata__"] = known
    known["sha256"] = _digest(header, whole)
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNED)
    with atomic(path) as temporary, temporary.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in whole:
            file.write(array.data)


def read(path: Path) -> CaseFile:
    """Open a case's file; a map that is open already is given again.

    Raises:
        DataError: It cannot be opened, or its structure is not that of a whole file.
    """
    try:
        state = os.stat(path)  # noqa: PTH116  (of each patch: a third of the time of Path.stat)
        return _mapped(path, (state.st_ino, state.st_size, state.st_mtime_ns))
    except OSError as error:
        raise DataError(path, error.strerror or str(error)) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(path, f"not a whole case: {error}") from error


def check(path: Path) -> CaseFile:
    """Open a case's file and read all of it.

    Raises:
        DataError: As `read`, or its content is not what was written.
    """
    case = read(path)
    if _digest(case.header, list(case.arrays.values())) != case.header["__metadata__"]["sha256"]:
        raise DataError(path, "its content is not what was written: the disk or a copy damaged it")
    return case


@lru_cache(maxsize=_MAPS)
def _mapped(path: Path, state: tuple[int, int, int]) -> CaseFile:  # noqa: ARG001  (another file, another map)
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if not size:
            raise ValueError("it is empty")
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    length = int.from_bytes(content[:8], "little")
    start = 8 + length
    if length > _LONGEST or start > size:
        raise ValueError(f"a header of {length} bytes in a file of {size}")
    header = json.loads(content[8:start])
    known = header["__metadata__"]
    if known["format"] != _FORMAT:
        raise ValueError(f"of the format {known['format']!r}")
    arrays, end = {}, 0
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        shape, dtype = tuple(entry["shape"]), np.dtype(_TYPES[entry["dtype"]])
        begin, end = end, end + dtype.itemsize * prod(shape)
        if entry["data_offsets"] != [begin, end] or start + end > size:
            raise ValueError(f"{name} does not fit into its {size} bytes")
        arrays[name] = np.frombuffer(content, dtype, prod(shape), start + begin).reshape(shape)
    if start + end != size:
        raise ValueError(f"{size} bytes instead of {start + end}")
    return CaseFile(arrays, json.loads(known["about"]), int(known["version"]), header)


def _digest(header: Mapping[str, Any], arrays: Sequence[Array]) -> str:
    known = {key: value for key, value in header["__metadata__"].items() if key != "sha256"}
    content = json.dumps({**header, "__metadata__": known}, sort_keys=True).encode()
    digest = hashlib.sha256(content)
    for array in arrays:
        digest.update(array.data)
    return digest.hexdigest()
