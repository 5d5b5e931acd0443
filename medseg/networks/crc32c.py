"""CRC-32C, the checksum of Castagnoli's polynomial (RFC 3720, appendix B.4), in NumPy."""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt

_POLYNOMIAL = 0x82F63B78  # bits mirrored
_LANES = 1024
_ONES = 0xFFFFFFFF

Words = npt.NDArray[np.uint32]


def crc32c(data: bytes) -> int:
    """The checksum of some bytes.

    Long data are cut into lanes of equal length, which are run through side by side. Without the
    start and end of all ones, the checksum is linear: a lane's share in the whole is its own
    checksum moved on by as many zeros as follow it.
    """
    if len(data) < 4 * _LANES:
        state = _ONES
        table = _table().tolist()
        for byte in data:
            state = table[(state ^ byte) & 255] ^ (state >> 8)
        return state ^ _ONES
    length = -(-len(data) // _LANES)
    bytes_ = np.zeros(_LANES * length, np.uint8)  # zeros before the data change nothing
    start = len(bytes_) - len(data)
    bytes_[start:] = np.frombuffer(data, np.uint8)
    bytes_[start : start + 4] ^= 255
    lanes = bytes_.reshape(_LANES, length).T
    # Beside the lanes: what `length` zeros make of each byte of a state.
    values = np.arange(256, dtype=np.uint32)
    moved = np.concatenate([values << shift for shift in (0, 8, 16, 24)])
    state_ = np.concatenate([np.zeros(_LANES, np.uint32), moved])
    table_ = _table()
    for row in lanes:
        state_[:_LANES] ^= row
        state_ = table_[state_ & 255] ^ (state_ >> 8)
    first, second, third, fourth = state_[_LANES:].reshape(4, 256).tolist()
    whole = 0
    for lane in state_[:_LANES].tolist():
        whole = (
            first[whole & 255]
            ^ second[whole >> 8 & 255]
            ^ third[whole >> 16 & 255]
            ^ fourth[whole >> 24]
            ^ lane
        )
    return int(whole) ^ _ONES


def masked(checksum: int) -> int:
    """A checksum as LevelDB and TensorFlow store it, so that one of data with one is not odd."""
    turned = (checksum >> 15 | checksum << 17) & _ONES
    return (turned + 0xA282EAD8) & _ONES


@cache
def _table() -> Words:
    """What each byte does to a state."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, table >> 1 ^ np.uint32(_POLYNOMIAL), table >> 1)
    return table.astype(np.uint32)
