"""Files that are complete under their final name, or not there at all (promise 5)."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex
from typing import Any

from medseg.errors import DataError


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Give a temporary path in the same folder; on leaving, flush it to disk and rename it.

    Whatever goes wrong in between, `path` keeps what it held before, and the temporary file goes.
    The temporary name ends like `path`, because writers choose the format by the ending.

    Raises:
        DataError: The folder cannot be written or the disk is full.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".partial-{token_hex(8)}{''.join(path.suffixes[-2:])}")
        temporary.touch(exist_ok=False)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise DataError(path, _write_failure(error)) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def check_writable(folder: Path) -> None:
    """Find out before long work, not after it, that its results can be kept. Leaves no trace.

    Raises:
        DataError: The folder cannot be written.
    """
    is_new, trial = not folder.exists(), folder / ".writable"
    with atomic(trial):
        pass
    trial.unlink()
    if is_new:
        folder.rmdir()


def write_text(path: str | Path, text: str) -> None:
    """Write a text file atomically, in UTF-8."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write plain values as indented JSON, atomically. NaN and infinities become null."""
    text = json.dumps(finite(value), indent=2, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n")


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises:
        DataError: It is missing, unreadable or not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(path, error.strerror or str(error)) from error
    except ValueError as error:
        raise DataError(path, f"not valid JSON: {error}") from error


def sha256(path: str | Path) -> str:
    """Hash a file's bytes.

    Raises:
        DataError: It cannot be read.
    """
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(path, error.strerror or str(error)) from error


def finite(value: Any) -> Any:
    """Plain values as JSON can hold them: NaN and infinities become None."""
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _write_failure(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full; nothing was left under this name"
    if error.errno == errno.EFBIG:
        return "the file size limit was reached; nothing was left under this name"
    return f"cannot be written: {error.strerror or error}"


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
