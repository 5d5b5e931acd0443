"""TensorFlow's checkpoints, made here as TensorFlow writes them, are read without it."""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medseg.config.schema import Pretrained
from medseg.errors import DataError
from medseg.networks.crc32c import crc32c, masked
from medseg.networks.tensorflow import read_checkpoint
from medseg.networks.weights_files import read

PUBLISHED = (
    Path(os.environ.get("MEDSEG_DATA", "data")) / "weights" / "deepmedic_captk"
    / "brainTumorSegmentation" / "model.ckpt.index"
)  # fmt: skip
TYPES = {"float32": 1, "float64": 2, "int32": 3, "uint8": 4, "int64": 9, "bool": 10, "float16": 19}
STRING = 7


def varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def field(number: int, value: int | bytes, *, fixed: bool = False) -> bytes:
    """A field of a protocol buffer: a number, four bytes, or bytes with their length."""
    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    if fixed:
        return varint(number << 3 | 5) + struct.pack("<I", value)
    return varint(number << 3) + varint(value)


def entry(kind: int, shape: tuple[int, ...], offset: int, data: bytes, shard: int = 0) -> bytes:
    dims = b"".join(field(2, field(1, n)) for n in shape)
    place = field(3, shard) if shard else b""  # zeros are not written
    place += field(4, offset) if offset else b""
    checksum = field(6, masked(crc32c(data)), fixed=True)
    return field(1, kind) + field(2, dims) + place + field(5, len(data)) + checksum


def block(pairs: Mapping[bytes, bytes], *, kind: int = 0) -> bytes:
    """Keys with shared beginnings, values, one restart, the kind and the checksum."""
    body, before = b"", b""
    for key, value in sorted(pairs.items()):
        pairs_of_bytes = zip(before, key, strict=False)
        shared = len([*takewhile(lambda pair: pair[0] == pair[1], pairs_of_bytes)])
        body += varint(shared) + varint(len(key) - shared) + varint(len(value))
        body += key[shared:] + value
        before = key
    body += struct.pack("<II", 0, 1)
    return body + bytes([kind]) + struct.pack("<I", masked(crc32c(body + bytes([kind]))))


def table(entries: Mapping[bytes, bytes], *, kind: int = 0) -> bytes:
    """An index of two blocks of entries, the metaindex, the index of blocks and the footer."""
    keys = sorted(entries)
    parts = [keys[: len(keys) // 2], keys[len(keys) // 2 :]]
    out, handles = b"", {}
    for part in filter(None, parts):
        made = block({key: entries[key] for key in part}, kind=kind)
        handles[part[-1]] = varint(len(out)) + varint(len(made) - 5)
        out += made
    meta, index = block({}), block(handles)
    footer = varint(len(out)) + varint(len(meta) - 5)
    footer += varint(len(out) + len(meta)) + varint(len(index) - 5)
    return out + meta + index + footer.ljust(40, b"\0") + bytes.fromhex("57fb808b247547db")


HEADER = field(1, 1) + field(3, field(1, 1))


def write(folder: Path, arrays: Mapping[str, np.ndarray[Any, Any]], name: str = "m.ckpt") -> Path:
    """A checkpoint of one data file, with a string among its tensors."""
    data, entries = b"", {b"": HEADER}
    for key, array in sorted(arrays.items()):
        here = array.tobytes()
        entries[key.encode()] = entry(TYPES[array.dtype.name], array.shape, len(data), here)
        data += here
    entries[b"_text"] = entry(STRING, (), len(data), b"\x04text")
    (folder / f"{name}.data-00000-of-00001").write_bytes(data + b"\x04text")
    index = folder / f"{name}.index"
    index.write_bytes(table(entries))
    return index


ARRAYS = {
    "net/W": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "net/W_1": np.linspace(0, 1, 6),
    "net/half": np.array([[1.5, -2]], np.float16),
    "net/flags": np.array([True, False]),
    "net/bytes": np.array([1, 255], np.uint8),
    "trainer/epochs": np.array(35, np.int64),
    "trainer/step": np.array([7], np.int32),
}


def test_tensors_come_back(tmp_path: Path) -> None:
    got = read_checkpoint(write(tmp_path, ARRAYS))
    assert got.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert got[name].dtype == array.dtype and np.array_equal(got[name], array)


def test_a_checkpoint_is_a_file_of_weights(tmp_path: Path) -> None:
    weights = read(Pretrained(path=str(write(tmp_path, ARRAYS))))
    assert weights.tensors.keys() == ARRAYS.keys()
    assert np.array_equal(weights.tensors["net/W"].numpy(), ARRAYS["net/W"])


def test_bfloat16(tmp_path: Path) -> None:
    data = np.array([1.0, -2.5], np.float32).view(np.uint32) >> 16
    here = data.astype("<u2").tobytes()
    (tmp_path / "m.data-00000-of-00001").write_bytes(here)
    index = tmp_path / "m.index"
    index.write_bytes(table({b"": HEADER, b"a": entry(14, (2,), 0, here)}))
    assert read_checkpoint(index)["a"].tolist() == [1.0, -2.5]


def test_several_data_files(tmp_path: Path) -> None:
    one, two = np.ones(2, np.float32).tobytes(), np.zeros(3, np.float32).tobytes()
    entries = {b"": field(1, 2), b"a": entry(1, (2,), 0, one), b"b": entry(1, (3,), 0, two, 1)}
    (tmp_path / "m.index").write_bytes(table(entries))
    (tmp_path / "m.data-00000-of-00002").write_bytes(one)
    with pytest.raises(DataError, match=r"m\.data-00001-of-00002: No such file.*m\.index"):
        read_checkpoint(tmp_path / "m.index")
    (tmp_path / "m.data-00001-of-00002").write_bytes(two)
    assert {k: v.tolist() for k, v in read_checkpoint(tmp_path / "m.index").items()} == {
        "a": [1.0, 1.0],
        "b": [0.0, 0.0, 0.0],
    }


# RFC 3720, appendix B.4, and the usual check value.
@pytest.mark.parametrize(
    ("data", "checksum"),
    [
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
        (b"", 0),
    ],
)
def test_crc32c(data: bytes, checksum: int) -> None:
    assert crc32c(data) == checksum


@pytest.mark.parametrize("length", [4095, 4096, 4097, 10_007])
def test_lanes_give_what_one_lane_gives(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    data = np.random.default_rng(length).bytes(length)
    side_by_side = crc32c(data)
    monkeypatch.setattr("medseg.networks.crc32c._LANES", length)
    assert crc32c(data) == side_by_side


@pytest.mark.skipif(not PUBLISHED.is_file(), reason="MEDSEG_DATA has no published checkpoint")
def test_a_published_checkpoint() -> None:
    got = read_checkpoint(PUBLISHED)
    assert len(got) == 408
    assert (
        got["net/W_24"].shape == (60, 75, 3, 3, 3) and int(got["trainer/num_epochs_trained"]) == 35
    )
    with np.load(PUBLISHED.parents[1] / "deepmedic_braintumour.npz") as exported:
        for name in ("W", "W_11", "gBn_23", "b_3"):
            assert np.array_equal(got[f"net/{name}"], exported[name])
        assert np.array_equal(got["net/muBnsForRollingAverage_5"].mean(0), exported["muBn_5"])
