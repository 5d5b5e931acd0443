"""The log of a batch run: `ledger.jsonl`, one JSON line an event, only ever appended to.

It tells what became of each case, and when. Whether a mask is stale is not decided by it, but by
the hashes in the record beside the mask. A line that was torn when its process was killed is left
out by readers. During a run its process holds a lock on it, so that no other does the same work.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import socket
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from medseg.batch.entry import Entry, now
from medseg.batch.shard import Shard
from medseg.errors import DataError, MedsegError
from medseg.files import write_json, write_text
from medseg.volumes.dataset import Case

FAILURES, FAILURES_TABLE = "failures.json", "failures.csv"
_START, _END = "start", "end"  # the events beside those of cases
_ATTEMPTS, _PAUSE = 10, 0.05  # at a lock; seconds between them


class Ledger:
    """The ledger of one shard, open and locked: `with Ledger(folder, shard, cases) as ledger`.

    Args:
        folder: The output folder; it exists.
        shard: Which part of the cases is done here.
        cases: All cases, of every shard.

    Raises:
        MedsegError: On entering: another process does the same shard, or others do the cases in
            another number of shards, or in other shards of other cases.
    """

    def __init__(self, folder: Path, shard: Shard, cases: Sequence[Case]) -> None:
        self.path = folder / shard.ledger
        self._folder, self._shard = folder, shard
        names = "\n".join(case.id for case in cases)
        self._about = {
            "shard": str(shard),
            "cases": len(cases),
            "ids": hashlib.sha256(names.encode("utf-8", "surrogateescape")).hexdigest(),
        }
        self._file = -1

    def __enter__(self) -> Ledger:
        """Lock the ledger, and write that a run begins."""
        try:
            self._file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        except OSError as error:
            raise DataError(self.path, f"cannot be written: {error.strerror}") from error
        try:
            if not _lock(self._file, self.path):
                raise MedsegError(
                    f"{self.path}: {_who(self.path)} does this already; wait for it, or give each "
                    "process a shard of its own (--shard K/N)"
                )
            self._write({"event": _START, **self._about, "time": now(), **_here()})
            self._refuse_others()  # who may look for what was just written
        except BaseException:
            os.close(self._file)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give the lock back."""
        os.close(self._file)

    def append(self, entry: Entry) -> None:
        """Add what became of a case. It is on the disk when this returns.

        Raises:
            OSError: It cannot be written.
        """
        self._write({"event": "case", **entry.plain()})

    def end(self, **told: Any) -> None:
        """Add that the run has ended, and how.

        Raises:
            OSError: It cannot be written.
        """
        self._write({"event": _END, "shard": str(self._shard), "time": now(), **told})

    def _write(self, event: dict[str, Any]) -> None:
        """Append one line in one go; after a torn one, on a line of its own."""
        line = json.dumps(event, ensure_ascii=True).encode() + b"\n"
        size = os.fstat(self._file).st_size
        os.lseek(self._file, max(0, size - 1), os.SEEK_SET)  # writing is at the end all the same
        if size and os.read(self._file, 1) != b"\n":
            line = b"\n" + line
        written = os.write(self._file, line)
        while written < len(line):  # a full disk: the next attempt says so
            written += os.write(self._file, line[written:])
        os.fsync(self._file)

    def _refuse_others(self) -> None:
        """Refuse to run beside shards that together with this one are no partition of the cases.

        The own ledger is locked by now, so of two that begin at once one at least sees the other.
        """
        outdated = []
        for path, shard in ledgers(self._folder):
            if path == self.path:
                continue
            if not _is_locked(path):
                if shard.of == self._shard.of and not self._is_of_same(_last(path, _START)):
                    outdated.append(str(shard))
                continue
            if shard.of != self._shard.of:
                raise MedsegError(
                    f"{path}: {_who(path)} does shard {shard} of these cases now; a shard "
                    f"{self._shard} beside it would do some twice: give the same N to all, or wait"
                )
            other = self._begun(path)
            if not self._is_of_same(other):
                raise MedsegError(
                    f"{path}: {_who(path)} does shard {shard} of {other.get('cases')} cases, and "
                    f"here are {self._about['cases']}, or others: all shards must find the same "
                    "inputs"
                )
        if outdated:
            warnings.warn(
                f"{self._folder}: shard {', '.join(outdated)} had other inputs when it ran last "
                "than are here now, and cases are counted off: run it again, or some are left out",
                stacklevel=4,
            )

    def _begun(self, path: Path) -> dict[str, Any]:
        """What a process wrote when it began: it has the lock for a moment before it does."""
        other = _last(path, _START)
        for _ in range(_ATTEMPTS):
            if self._is_of_same(other):
                break
            time.sleep(_PAUSE)
            other = _last(path, _START)
        return other

    def _is_of_same(self, start: dict[str, Any]) -> bool:
        """Whether a run that began so has the same cases."""
        return bool(start.get("ids") == self._about["ids"])


def ledgers(folder: Path) -> list[tuple[Path, Shard]]:
    """Every ledger in a folder, with its shard."""
    found = ((path, Shard.of_ledger(path.name)) for path in sorted(folder.glob("ledger*.jsonl")))
    return [(path, shard) for path, shard in found if shard is not None]


def events(path: Path) -> Iterator[dict[str, Any]]:
    """The events of a ledger, in order, without lines that were torn.

    Raises:
        DataError: It cannot be read.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise DataError(path, error.strerror or str(error)) from error
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict):
            yield event


def latest(folder: Path) -> dict[str, dict[str, Any]]:
    """What last became of each case, by id, over all ledgers of a folder.

    Within a ledger its order counts; between ledgers, as of runs with other numbers of shards, the
    time does.
    """
    found: dict[str, dict[str, Any]] = {}
    for path, _ in ledgers(folder):
        mine = {str(e.get("id")): e for e in events(path) if e.get("event") == "case"}
        for name, event in mine.items():
            if name not in found or str(event.get("time")) >= str(found[name].get("time")):
                found[name] = event
    return found


def write_failures(folder: Path) -> None:
    """Write failures.json and failures.csv, or remove them where no case has failed last.

    Other shards may do the same at the same time. Whoever writes looks afterwards whether what it
    was made from is still all there is: so the last to write has seen everything.

    Raises:
        DataError: They cannot be written.
    """
    seen = None
    while seen != (seen := _sizes(folder)):
        found = [event for event in latest(folder).values() if event.get("status") == "failed"]
        found.sort(key=lambda event: str(event["id"]))
        if not found:
            for name in (FAILURES, FAILURES_TABLE):
                (folder / name).unlink(missing_ok=True)
            continue
        keys = ("id", "reason", "time", "worker")
        rows = [{key: event.get(key, "") for key in keys} for event in found]
        write_json(folder / FAILURES, {"failed": rows})
        text = io.StringIO()
        table = csv.DictWriter(text, keys, lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
        write_text(folder / FAILURES_TABLE, text.getvalue())


def _sizes(folder: Path) -> list[tuple[str, int]]:
    return [(path.name, path.stat().st_size) for path, _ in ledgers(folder)]


def _last(path: Path, kind: str) -> dict[str, Any]:
    return next((e for e in reversed(list(events(path))) if e.get("event") == kind), {})


def _who(path: Path) -> str:
    """Which process runs with a ledger, by what it wrote when it began."""
    start = _last(path, _START)
    if "pid" not in start:
        return "another process"
    return f"process {start['pid']} on {start.get('host', 'another host')}"


def _here() -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": os.getpid()}


def _lock(file: int, path: Path) -> bool:
    """Lock a file for this process alone; False: another has it.

    Another shard that looks whether this one runs holds the lock for a moment, hence the attempts.
    Where there are no locks (Windows, some network file systems), this warns and goes on.
    """
    for _ in range(_ATTEMPTS):
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_PAUSE)
            continue
        except (ImportError, OSError) as error:
            warnings.warn(
                f"{path}: cannot be locked here ({error}): see to it yourself that no two "
                "processes predict the same shard",
                stacklevel=2,
            )
        return True
    return False


def _is_locked(path: Path) -> bool:
    """Whether a process holds the lock of a ledger now."""
    try:
        import fcntl

        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except (ImportError, OSError):
        return False
    return False
