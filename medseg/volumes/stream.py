"""The bytes of a file, plain or gzip, piece by piece. gzip's checksum and length are verified."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from medseg.errors import DataError
from medseg.volumes import deflate

PIECE = 1 << 18  # bytes given out at once: they are copied while they are in the cache
SOURCE = 1 << 16  # bytes of gzip data taken at once
GZIP_MAGIC = b"\x1f\x8b"
DEFLATE_RATIO = 1032  # deflate never expands further: 258 bytes from 2 bits, RFC 1951


class Stream:
    """A file read once from front to back.

    Args:
        file: Open at its first byte.
        size: Its length in bytes.
    """

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self.size = size
        self.gzip = file.read(2) == GZIP_MAGIC
        file.seek(0)
        self._inflate = deflate.inflater()
        self._ended = False
        self.tail = False  # something other than gzip follows the gzip data

    @property
    def room(self) -> int:
        """The most bytes that can ever come out of it."""
        return self.size * DEFLATE_RATIO + 1024 if self.gzip else self.size

    def read(self, size: int) -> bytes:
        """Read `size` bytes, or what is left of them."""
        buffer = bytearray(size)
        return bytes(buffer[: self.fill(memoryview(buffer))])

    def fill(self, view: memoryview) -> int:
        """Read into all of `view` and return how many bytes there were."""
        done = 0
        while done < len(view):
            piece = self._some(min(len(view) - done, PIECE))
            if not piece:
                break
            view[done : done + len(piece)] = piece
            done += len(piece)
        return done

    def skip(self, size: int) -> int:
        """Read past `size` bytes, or what is left of them, and return how many there were."""
        done = 0
        while done < size and (piece := self._some(min(size - done, PIECE))):
            done += len(piece)
        return done

    def checksum(self) -> tuple[int, int]:
        """Read to the end: the CRC-32 of what was left, and how many bytes there were."""
        crc = done = 0
        while piece := self._some(PIECE):
            crc, done = deflate.crc32(piece, crc), done + len(piece)
        return crc, done

    def _some(self, size: int) -> bytes:
        """One to `size` bytes; none at the end, and then the gzip checksum has been verified."""
        if not self.gzip:
            return self._file.read(size)
        while not self._inflate.eof or self._next_member():
            source = self._inflate.unconsumed_tail or self._file.read(SOURCE)
            piece = self._inflate.decompress(source, size)
            if piece:
                return piece
            if not source and not self._inflate.eof:
                raise EOFError
        return b""

    def _next_member(self) -> bool:
        """Begin the next gzip member, after zeros that pad (as tapes did) or at once."""
        if self._ended:
            return False
        rest = self._inflate.unused_data.lstrip(b"\0")
        while len(rest) < len(GZIP_MAGIC) and (more := self._file.read(SOURCE)):
            rest = (rest + more).lstrip(b"\0")
        if not rest.startswith(GZIP_MAGIC):
            self._ended, self.tail = True, bool(rest)
            return False
        self._file.seek(-len(rest), 1)
        self._inflate = deflate.inflater()
        return True


@contextmanager
def opened(path: Path) -> Iterator[Stream]:
    """Open a regular file that is not empty.

    Raises:
        DataError: It is missing, unreadable, a folder, empty, truncated or damaged.
    """
    try:
        if path.exists() and not path.is_file():
            raise DataError(path, "not a regular file; give a .nii or .nii.gz file")
        with path.open("rb") as file:
            size = path.stat().st_size
            if not size:
                raise DataError(path, "the file is empty (0 bytes); copy it again")
            yield Stream(file, size)
    except OSError as error:
        raise DataError(path, f"cannot be read: {error.strerror or error}") from error
    except EOFError as error:
        raise DataError(path, "truncated: the gzip data ends early; copy it again") from error
    except deflate.errors() as error:
        raise DataError(path, f"damaged gzip data ({error}); copy it again") from error
