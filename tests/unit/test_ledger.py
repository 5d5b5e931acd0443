"""Shards lose no case and do none twice; a ledger outlives whatever kills its process."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medseg.batch import ledger as module
from medseg.batch.entry import Entry
from medseg.batch.ledger import Ledger, events, latest, write_failures
from medseg.batch.shard import WHOLE, Shard
from medseg.errors import MedsegError
from medseg.volumes.dataset import Case

CASES = [Case(name, ()) for name in "abcdefg"]


@given(st.integers(0, 40), st.integers(1, 50))
def test_shards_are_a_partition(count: int, of: int) -> None:
    cases = [Case(str(n), ()) for n in range(count)]
    taken = [case for k in range(1, of + 1) for case in Shard(k, of).take(cases)]
    assert sorted(taken, key=lambda case: int(case.id)) == cases
    sizes = [len(Shard(k, of).take(cases)) for k in range(1, of + 1)]
    assert max(sizes) - min(sizes) <= 1


def test_case_n_belongs_to_shard_n_modulo_the_number() -> None:
    assert [case.id for case in Shard(2, 3).take(CASES)] == ["b", "e"]
    assert WHOLE.take(CASES) == tuple(CASES)


@pytest.mark.parametrize("text", ["", "3", "0/3", "4/3", "1/0", "a/b", "1/3/5", "-1/3", "1.5/3"])
def test_what_is_no_shard(text: str) -> None:
    with pytest.raises(MedsegError, match="K/N with K from 1 to N expected"):
        Shard.parse(text)


def test_a_ledger_has_the_name_of_its_shard() -> None:
    for shard, name in ((WHOLE, "ledger.jsonl"), (Shard(2, 3), "ledger-2of3.jsonl")):
        assert shard.ledger == name
        assert Shard.of_ledger(name) == shard
    assert Shard.of_ledger("ledger-x.jsonl") is None
    assert Shard.parse(" 2/3 ") == Shard(2, 3)


def entry(case: str, status: str, time: str = "2026") -> Entry:
    return Entry(case, status, "because" if status == "failed" else "", time)  # type: ignore[arg-type]


def statuses(folder: Path) -> dict[str, str]:
    return {name: event["status"] for name, event in latest(folder).items()}


def test_it_is_appended_to_and_the_last_word_counts(tmp_path: Path) -> None:
    with Ledger(tmp_path, WHOLE, CASES) as ledger:
        ledger.append(entry("a", "failed"))
        ledger.append(entry("ä, \n", "done"))
    before = (tmp_path / "ledger.jsonl").read_bytes()
    with Ledger(tmp_path, WHOLE, CASES) as ledger:
        ledger.append(entry("a", "kept"))
        ledger.end(failed=0)
    assert (tmp_path / "ledger.jsonl").read_bytes().startswith(before)
    assert statuses(tmp_path) == {"a": "kept", "ä, \n": "done"}
    kinds = [event["event"] for event in events(tmp_path / "ledger.jsonl")]
    assert kinds == ["start", "case", "case", "start", "case", "end"]
    assert before.count(b"\n") == 3


@pytest.mark.parametrize("left", [1, 5, 40, 100])
def test_a_torn_line_costs_that_line_alone(left: int, tmp_path: Path) -> None:
    with Ledger(tmp_path, WHOLE, CASES) as ledger:
        ledger.append(entry("a", "done"))
        ledger.append(entry("b", "failed"))
    file = tmp_path / "ledger.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:-1]) + lines[-1][:left])
    assert statuses(tmp_path) == {"a": "done"}
    with Ledger(tmp_path, WHOLE, CASES) as ledger:
        ledger.append(entry("c", "done"))
    assert statuses(tmp_path) == {"a": "done", "c": "done"}
    assert file.read_bytes().splitlines()[2] == lines[-1][:left]


def test_a_write_in_parts_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = module.os.write
    monkeypatch.setattr(module.os, "write", lambda file, data: write(file, data[:7]))
    with Ledger(tmp_path, WHOLE, CASES) as ledger:
        ledger.append(entry("a", "done"))
    assert statuses(tmp_path) == {"a": "done"}


def test_the_latest_word_of_several_ledgers(tmp_path: Path) -> None:
    with Ledger(tmp_path, WHOLE, CASES) as ledger:
        ledger.append(entry("a", "failed", "2026-01-01"))
        ledger.append(entry("b", "done", "2026-01-03"))
    with Ledger(tmp_path, Shard(1, 2), CASES) as ledger:
        ledger.append(entry("a", "done", "2026-01-02"))
        ledger.append(entry("b", "failed", "2026-01-02"))
    assert statuses(tmp_path) == {"a": "done", "b": "done"}


def test_failures_are_a_view_over_all_ledgers(tmp_path: Path) -> None:
    shards = [Shard(1, 2), Shard(2, 2)]
    for shard, name in zip(shards, "ab", strict=True):
        with Ledger(tmp_path, shard, CASES) as ledger:
            ledger.append(entry(name, "failed"))
    write_failures(tmp_path)
    with (tmp_path / "failures.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["id"], row["reason"]) for row in rows] == [("a", "because"), ("b", "because")]
    listed = json.loads((tmp_path / "failures.json").read_text())["failed"]
    assert [row["id"] for row in listed] == ["a", "b"]
    for shard, name in zip(shards, "ab", strict=True):
        assert (tmp_path / "failures.csv").exists()
        with Ledger(tmp_path, shard, CASES) as ledger:
            ledger.append(entry(name, "done"))
        write_failures(tmp_path)
    assert not (tmp_path / "failures.csv").exists()
    assert not (tmp_path / "failures.json").exists()


def test_what_another_shard_adds_meanwhile_is_in_the_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its list was written first and is overwritten by an older one: that must not stay."""
    write_text = module.write_text

    def late(path: Path, text: str) -> None:
        monkeypatch.setattr(module, "write_text", write_text)
        with Ledger(tmp_path, Shard(2, 2), CASES) as ledger:
            ledger.append(entry("b", "failed"))
        write_failures(tmp_path)
        write_text(path, text)

    with Ledger(tmp_path, Shard(1, 2), CASES) as ledger:
        ledger.append(entry("a", "failed"))
    monkeypatch.setattr(module, "write_text", late)
    write_failures(tmp_path)
    text = (tmp_path / "failures.csv").read_text()
    assert [line.split(",")[0] for line in text.splitlines()] == ["id", "a", "b"]


HOLDER = """
import fcntl, sys
file = open(sys.argv[1], "a")
fcntl.flock(file, fcntl.LOCK_EX)
print("locked", flush=True)
sys.stdin.read()
"""


@contextmanager
def running(path: Path, cases: list[Case] = CASES) -> Iterator[int]:
    """A process that has the lock of a ledger, as one that predicts has."""
    shard = Shard.of_ledger(path.name)
    assert shard is not None
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        process.stdout.readline()
        about = Ledger(path.parent, shard, cases)._about
        line = {"event": "start", **about, "host": "far", "pid": process.pid}
        with path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        try:
            yield process.pid
        finally:
            process.stdin.close()


def test_a_second_process_is_refused_by_name(tmp_path: Path) -> None:
    with running(tmp_path / "ledger.jsonl") as pid:
        before = (tmp_path / "ledger.jsonl").read_bytes()
        with pytest.raises(MedsegError, match=f"process {pid} on far does this already"):
            Ledger(tmp_path, WHOLE, CASES).__enter__()
        assert (tmp_path / "ledger.jsonl").read_bytes() == before
    with Ledger(tmp_path, WHOLE, CASES) as ledger:  # it has ended, and its lock with it
        ledger.append(entry("a", "done"))


@pytest.mark.parametrize("other", [WHOLE, Shard(1, 2), Shard(3, 4)])
def test_other_numbers_of_shards_do_not_run_together(other: Shard, tmp_path: Path) -> None:
    with (
        running(tmp_path / other.ledger),
        pytest.raises(MedsegError, match=rf"process \d+ on far does shard {other} of these"),
    ):
        Ledger(tmp_path, Shard(1, 3), CASES).__enter__()
    with Ledger(tmp_path, Shard(1, 3), CASES):
        pass


def test_shards_of_other_cases_do_not_run_together(tmp_path: Path) -> None:
    with (
        running(tmp_path / "ledger-1of2.jsonl", [*CASES, Case("late", ())]),
        pytest.raises(MedsegError, match=r"shard 1/2 of 8 cases, and here are 7.*same inputs"),
    ):
        Ledger(tmp_path, Shard(2, 2), CASES).__enter__()


def test_shards_of_the_same_cases_run_together(tmp_path: Path) -> None:
    with (
        running(tmp_path / "ledger-1of2.jsonl"),
        Ledger(tmp_path, Shard(2, 2), CASES) as ledger,
    ):
        ledger.append(entry("b", "done"))


@pytest.mark.parametrize("before", [[], [*CASES, Case("gone", ())]])
def test_shards_that_begin_at_once_wait_for_each_others_word(
    before: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the lock of another and its word lies a moment; what is there is of an older run."""
    import fcntl

    path, mine = tmp_path / "ledger-1of2.jsonl", tmp_path / "ledger-2of2.jsonl"

    def start(cases: list[Case]) -> None:
        about = Ledger(tmp_path, Shard(1, 2), cases)._about
        with path.open("a") as file:
            file.write(json.dumps({"event": "start", **about}) + "\n")

    def meanwhile(_: float) -> None:
        assert '"start"' in mine.read_text()  # the other waits for it likewise
        start(CASES)

    if before:
        start(before)
    monkeypatch.setattr(module.time, "sleep", meanwhile)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with Ledger(tmp_path, Shard(2, 2), CASES):
            pass


def test_shards_that_counted_other_cases_off_are_told_of(tmp_path: Path) -> None:
    late = [Case("b2", ()), *CASES]
    for number in (1, 3):
        with Ledger(tmp_path, Shard(number, 3), CASES):
            pass
    with pytest.warns(UserWarning, match=r"shard 1/3, 3/3 had other inputs.*run it again"):
        Ledger(tmp_path, Shard(2, 3), late).__enter__().__exit__(None, None, None)
    with Ledger(tmp_path, Shard(1, 4), late):
        pass  # other parts


def test_a_look_at_the_lock_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another shard that looks whether this one runs is not taken for one that does the same."""
    import fcntl

    file = (tmp_path / "ledger.jsonl").open("w")
    fcntl.flock(file, fcntl.LOCK_SH)
    monkeypatch.setattr(module.time, "sleep", lambda _: file.close())
    with Ledger(tmp_path, WHOLE, CASES):
        pass


def test_without_locks_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with (
        pytest.warns(UserWarning, match="cannot be locked here"),
        Ledger(tmp_path, WHOLE, CASES) as ledger,
    ):
        ledger.append(entry("a", "done"))
    assert statuses(tmp_path) == {"a": "done"}
