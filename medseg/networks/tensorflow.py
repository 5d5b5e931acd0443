"""Weights out of TensorFlow's checkpoints (`X.index` and `X.data-...`), without TensorFlow.

The index is a sorted string table as LevelDB writes it (github.com/google/leveldb,
doc/table_format.md) of protocol buffers (tensorflow/core/protobuf/tensor_bundle.proto) that say of
each tensor its type, shape, place in a data file and checksum. Nothing in them can be run. All
numbers are checked before they are used, and all checksums are compared.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from medseg.errors import DataError
from medseg.networks.crc32c import crc32c, masked

_FOOTER, _TRAILER = 48, 5
_MAGIC = bytes.fromhex("57fb808b247547db")
_LARGEST_INDEX = 1 << 26  # bytes; a real one has some hundred per tensor
_MOST_AXES, _LONGEST_AXIS = 8, 1 << 31
# types.proto; bfloat16 (14) has no NumPy type. Others hold no weights.
_TYPES = {
    1: "<f4", 2: "<f8", 3: "<i4", 4: "u1", 5: "<i2", 6: "i1", 9: "<i8", 10: "?", 14: "<u2",
    19: "<f2",
}  # fmt: skip
_BFLOAT16 = 14

Proto = dict[int, list[Any]]


@dataclass(frozen=True)
class _Entry:
    """Where a tensor lies."""

    kind: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    checksum: int


class _BrokenError(Exception):
    """The bytes cannot be what they should be."""


def read_checkpoint(index: Path) -> dict[str, npt.NDArray[Any]]:
    """Read all tensors of numbers.

    Args:
        index: The file `X.index`; the data files `X.data-00000-of-00001` and so on lie beside it.

    Raises:
        DataError: A file is missing, damaged, compressed, or written on a big-endian machine.
    """
    try:
        header, entries = _index(index)
        shards = _number(header, 1)
        if _number(header, 2):
            raise _BrokenError("is of a big-endian machine, which is not read")
    except _BrokenError as error:
        raise DataError(index, f"not a readable TensorFlow checkpoint: {error}") from error
    tensors: dict[str, npt.NDArray[Any]] = {}
    for shard in sorted({entry.shard for entry in entries.values()}):
        path = index.with_name(f"{index.stem}.data-{shard:05d}-of-{shards:05d}")
        here = {name: entry for name, entry in entries.items() if entry.shard == shard}
        tensors.update(_shard(path, index, here))
    return {name: tensors[name] for name in entries if name in tensors}


def _index(path: Path) -> tuple[Proto, dict[str, _Entry]]:
    """The header and all entries that hold numbers."""
    try:
        size = path.stat().st_size
        data = path.read_bytes() if size <= _LARGEST_INDEX else b""
    except OSError as error:
        raise DataError(path, error.strerror or str(error)) from error
    if size > _LARGEST_INDEX:
        raise _BrokenError(f"its index has {size} bytes, no index is larger than {_LARGEST_INDEX}")
    if len(data) < _FOOTER or data[-8:] != _MAGIC:
        raise _BrokenError("its end is not that of an index: cut short, or another kind of file")
    footer = data[-_FOOTER:-8]
    place = _varint(footer, _varint(footer, 0)[1])[1]  # past the handle of the metaindex
    header: Proto | None = None
    entries: dict[str, _Entry] = {}
    for _, handle in _pairs(_block(data, footer[place:])):
        for key, value in _pairs(_block(data, handle)):
            if not key:
                header = _proto(value)
                continue
            entry = _entry(key, _proto(value))
            if entry is not None:
                entries[_text(key)] = entry
    if header is None:
        raise _BrokenError("its index has no header")
    return header, entries


def _shard(
    path: Path, index: Path, entries: dict[str, _Entry]
) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    """The tensors of one data file."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            if sum(entry.size for entry in entries.values()) > size:
                raise DataError(
                    path, f"has {size} bytes, fewer than {index.name} lists: copy both again"
                )
            for name, entry in entries.items():
                yield name, _tensor(file, size, path, name, entry)
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(
            path, f"{reason}: the weights of {index.name} are in it, copy it along"
        ) from error


def _tensor(file: BinaryIO, size: int, path: Path, name: str, entry: _Entry) -> npt.NDArray[Any]:
    data = b""
    if entry.offset + entry.size <= size:
        file.seek(entry.offset)
        data = file.read(entry.size)
    if len(data) != entry.size:
        raise DataError(path, f"ends before the end of {name}: it is cut short, copy it again")
    if masked(crc32c(data)) != entry.checksum:
        raise DataError(path, f"damaged: the checksum of {name} is wrong; copy it again")
    array: npt.NDArray[Any] = np.frombuffer(data, _TYPES[entry.kind]).reshape(entry.shape)
    if entry.kind == _BFLOAT16:
        array = (array.astype(np.uint32) << 16).view(np.float32)
    return array


def _entry(key: bytes, proto: Proto) -> _Entry | None:
    """A tensor's place; None for strings and other things that are no numbers."""
    if 7 in proto:
        raise _BrokenError(f"{_text(key)} is stored in slices, which are not read: save it whole")
    kind = _number(proto, 1)
    if kind not in _TYPES:
        return None
    shape = tuple(
        _number(_proto(axis), 1)
        for item in _messages(proto, 2)
        for axis in _messages(_proto(item), 2)
    )
    entry = _Entry(
        kind, shape, _number(proto, 3), _number(proto, 4), _number(proto, 5), _number(proto, 6)
    )
    wanted = math.prod(shape) * np.dtype(_TYPES[kind]).itemsize
    is_sane = len(shape) <= _MOST_AXES and all(n < _LONGEST_AXIS for n in shape)
    if not is_sane or wanted != entry.size:
        raise _BrokenError(f"{_text(key)} of shape {shape} cannot have {entry.size} bytes")
    return entry


def _block(data: bytes, handle: bytes) -> bytes:
    """A block of the table, without its trailer, its checksum compared."""
    offset, place = _varint(handle, 0)
    size, _ = _varint(handle, place)
    end = offset + size
    if end + _TRAILER > len(data):
        raise _BrokenError("a block lies beyond the end of its index: it is cut short")
    kind = data[end]
    if masked(crc32c(data[offset : end + 1])) != int.from_bytes(data[end + 1 : end + 5], "little"):
        raise _BrokenError("damaged: the checksum of a block of its index is wrong")
    if kind:
        raise _BrokenError(
            f"its index is compressed (kind {kind}), which is not read: save the checkpoint again "
            "with TensorFlow's own Saver"
        )
    return data[offset:end]


def _pairs(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of a block; each key shares its beginning with the one before."""
    if len(block) < 4:
        raise _BrokenError("a block of its index is too short")
    end = len(block) - 4 * (int.from_bytes(block[-4:], "little") + 1)
    place, key = 0, b""
    while place < end:
        shared, place = _varint(block, place)
        own, place = _varint(block, place)
        length, place = _varint(block, place)
        if shared > len(key) or place + own + length > end:
            raise _BrokenError("an entry of its index runs out of its block")
        key = key[:shared] + block[place : place + own]
        place += own
        yield key, block[place : place + length]
        place += length
    if place != end:
        raise _BrokenError("a block of its index has no end")


def _proto(data: bytes) -> Proto:
    """The fields of a protocol buffer by number: integers, or bytes."""
    fields: Proto = {}
    place = 0
    while place < len(data):
        tag, place = _varint(data, place)
        wire = tag & 7
        value: int | bytes
        if wire == 0:
            value, place = _varint(data, place)
        elif wire in (1, 2, 5):
            length = {1: 8, 5: 4}.get(wire, 0)
            if wire == 2:
                length, place = _varint(data, place)
            value = data[place : place + length]
            if len(value) != length:
                raise _BrokenError("an entry of its index is cut short")
            place += length
            value = value if wire == 2 else int.from_bytes(value, "little")
        else:
            raise _BrokenError(f"an entry of its index has a field of the unknown kind {wire}")
        fields.setdefault(tag >> 3, []).append(value)
    return fields


def _number(fields: Proto, field: int) -> int:
    value = fields.get(field, [0])[-1]
    if not isinstance(value, int):
        raise _BrokenError("an entry of its index has text where a number belongs")
    return value


def _messages(fields: Proto, field: int) -> list[bytes]:
    values = fields.get(field, [])
    if not all(isinstance(value, bytes) for value in values):
        raise _BrokenError("an entry of its index has a number where a message belongs")
    return values


def _varint(data: bytes, place: int) -> tuple[int, int]:
    """A number of 7 bits a byte, at most 64 in all, and the place behind it."""
    value = 0
    for shift in range(0, 64, 7):
        if place >= len(data):
            raise _BrokenError("a number of its index is cut short")
        byte = data[place]
        place += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place
    raise _BrokenError("a number of its index is longer than 64 bits")


def _text(key: bytes) -> str:
    try:
        return key.decode()
    except UnicodeDecodeError as error:
        raise _BrokenError("a name in its index is not UTF-8") from error
