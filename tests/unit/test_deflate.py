"""gzip by igzip or by zlib: the same strictness, and any gzip reads what was packed."""

from __future__ import annotations

import gzip
import importlib.metadata
import random
import zlib
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medseg.volumes import deflate

IGZIP = deflate.isal_zlib
DATA = np.random.default_rng(0).integers(0, 40, 100_000).astype("<i2").tobytes()
quick = settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(params=["igzip", "zlib"], autouse=True)
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Both ways, whichever this machine takes."""
    if request.param == "igzip" and IGZIP is None:
        pytest.skip("isal is not installed")
    monkeypatch.setattr(deflate, "isal_zlib", IGZIP if request.param == "igzip" else None)
    yield request.param


def packed(data: bytes, level: int, piece: int = 1 << 16) -> bytes:
    work = deflate.deflater(level)
    pieces = [work.compress(data[n : n + piece]) for n in range(0, len(data), piece)]
    return b"".join([*pieces, work.flush()])


def unpacked(data: bytes, source: int, limit: int) -> tuple[bytes, bytes]:
    """All that a gzip member holds, and what follows it.

    Raises:
        EOFError: It ends early.
    """
    work, begun, out = deflate.inflater(), 0, b""
    while not work.eof:
        piece = work.unconsumed_tail
        if not piece:
            piece, begun = data[begun : begun + source], begun + source
        got = work.decompress(piece, limit)
        assert len(got) <= limit
        if not got and not piece and not work.eof:
            raise EOFError
        out += got
    return out, work.unused_data + data[begun:]


def test_igzip_is_used_where_it_is_a_dependency() -> None:
    needs = importlib.metadata.requires("medseg") or []
    if not any(need.startswith("isal") for need in needs):
        pytest.skip("the installed metadata of medseg is older than this dependency")
    assert IGZIP is not None


@quick
@given(data=st.binary(max_size=5000), level=st.integers(0, 9), piece=st.integers(1, 6000))
def test_any_gzip_reads_what_was_packed(data: bytes, level: int, piece: int) -> None:
    made = packed(data, level, piece)
    assert gzip.decompress(made) == data
    assert made == packed(data, level, piece)
    assert made[3:8] == bytes(5)  # no name, no time


@quick
@given(
    data=st.binary(max_size=3000), level=st.integers(0, 9), behind=st.binary(max_size=30),
    source=st.sampled_from([1, 7, 100, 1 << 16]), limit=st.sampled_from([1, 13, 1000, 1 << 18]),
)  # fmt: skip
def test_what_any_gzip_packed_is_read(
    data: bytes, level: int, behind: bytes, source: int, limit: int
) -> None:
    made = gzip.compress(data, level, mtime=0) + behind
    assert unpacked(made, source, limit) == (data, behind)


def test_every_bit_of_checksum_and_length_counts() -> None:
    for level in (0, 4, 9):
        made = packed(DATA[:2000], level)
        for bit in range(64):
            wrong = bytearray(made)
            wrong[-8 + bit // 8] ^= 1 << bit % 8
            with pytest.raises(deflate.errors()):
                unpacked(bytes(wrong), 1 << 16, 1 << 18)


def test_damage_is_an_error_or_does_no_harm() -> None:
    chance, refused = random.Random(0), 0
    for turn in range(1500):
        data = DATA[: chance.choice([10, 500, 4000])]
        made = bytearray(packed(data, turn % 10))
        if turn % 3:
            made[chance.randrange(len(made))] ^= 1 << chance.randrange(8)
        else:
            del made[chance.randrange(len(made)) :]
        try:
            out, _ = unpacked(bytes(made), chance.choice([9, 1 << 16]), 1 << 18)
        except (*deflate.errors(), EOFError):
            refused += 1
        else:
            assert out == data
    assert refused > 1300


def test_levels_go_from_stored_to_small() -> None:
    stored, fastest, default, smallest = (len(packed(DATA, level)) for level in (0, 1, 4, 9))
    assert stored > len(DATA) > 2 * fastest
    assert fastest > max(default, smallest)


def test_the_checksum_is_that_of_gzip() -> None:
    assert deflate.crc32(DATA[50:], deflate.crc32(DATA[:50])) == zlib.crc32(DATA)
    assert deflate.crc32(memoryview(DATA)) == zlib.crc32(DATA)
