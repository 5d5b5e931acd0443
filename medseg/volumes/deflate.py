"""gzip data in and out: by igzip of ISA-L where there is a wheel of it, else by zlib.

Both verify gzip's checksum and length. Which is how fast: docs/decisions/0017-gzip-library.md.
"""

from __future__ import annotations

import zlib
from typing import Any, Protocol

from typing_extensions import Buffer

try:
    from isal import isal_zlib
except ImportError:  # no wheel for this machine
    isal_zlib = None  # type: ignore[assignment]

WBITS = 31  # zlib's word for: gzip's header and trailer around the data
FAST = {1: 1, 2: 2, 3: 2, 4: 2, 5: 2}
"""igzip's level for ours: its 0 is no faster than 1, its 3 slower and larger than 2."""


class Inflater(Protocol):
    """What `zlib.decompressobj` gives: one gzip member, unpacked piece by piece."""

    @property
    def eof(self) -> bool:
        """Whether the member has ended, and its checksum and length were right."""

    @property
    def unconsumed_tail(self) -> bytes:
        """Input that waits, since the output reached its limit."""

    @property
    def unused_data(self) -> bytes:
        """Input that follows the member."""

    def decompress(self, data: Buffer, max_length: int, /) -> bytes:
        """Unpack up to `max_length` bytes."""


class Deflater(Protocol):
    """What `zlib.compressobj` gives."""

    def compress(self, data: Buffer, /) -> bytes:
        """Take a piece; give what has been packed."""

    def flush(self) -> bytes:
        """Give the rest."""


def errors() -> tuple[type[Exception], ...]:
    """What an `Inflater` raises at damaged data."""
    igzip: Any = isal_zlib or zlib
    return zlib.error, igzip.error


def inflater() -> Inflater:
    """Begin to unpack a gzip member."""
    engine: Any = isal_zlib or zlib
    begun: Inflater = engine.decompressobj(wbits=WBITS)
    return begun


def deflater(level: int) -> Deflater:
    """Begin to pack a gzip member, its header without name or time.

    Args:
        level: 0 none, 1 fastest, 2 to 5 fast, 6 to 9 small: then always by zlib.
    """
    if isal_zlib is None or level not in FAST:
        return zlib.compressobj(level, wbits=WBITS)
    begun: Deflater = isal_zlib.compressobj(FAST[level], wbits=WBITS)
    return begun


def crc32(data: Buffer, before: int = 0) -> int:
    """The CRC-32 of gzip over bytes, going on from those before."""
    engine: Any = isal_zlib or zlib
    return int(engine.crc32(data, before))
