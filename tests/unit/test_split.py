"""Splits are seeded, even, and refuse files that do not fit."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medseg import files
from medseg.config.schema import Split
from medseg.errors import DataError, DataErrors
from medseg.volumes.cases import Case, Dataset, Labels
from medseg.volumes.split import split


def dataset(*ids: str) -> Dataset:
    cases = tuple(Case(name, ()) for name in ids)
    return Dataset(cases, ("a",), Labels({"x": (1,)}), Path("set"))


def numbered(count: int) -> Dataset:
    return dataset(*(f"c{n}" for n in range(count)))


@given(count=st.integers(2, 40), folds=st.integers(2, 7), seed=st.integers(0, 2**63 - 1))
def test_folds_cover_every_case_once_and_evenly(count, folds, seed):
    if count < folds:
        return
    cases = numbered(count)
    parts = [split(cases, Split(folds=folds, fold=n), seed) for n in range(folds)]
    validated = [name for part in parts for name in part.validation]
    assert sorted(validated) == sorted(case.id for case in cases.cases)
    assert max(len(p.validation) for p in parts) - min(len(p.validation) for p in parts) <= 1
    for part in parts:
        assert set(part.train) == set(validated) - set(part.validation)


def test_folds_depend_on_the_seed_and_not_on_the_order_of_cases():
    cases = numbered(20)
    turned = replace(cases, cases=cases.cases[::-1])
    first = split(cases, Split(), 7)
    assert split(turned, Split(), 7) == first
    assert split(cases, Split(), 8) != first


def test_a_written_split_reads_back(tmp_path):
    drawn = split(numbered(10), Split(), 0)
    path = tmp_path / "splits.json"
    files.write_json(path, asdict(drawn))
    assert split(numbered(10), Split(file=str(path)), 1) == drawn


def test_a_file_may_leave_cases_out(tmp_path):
    path = tmp_path / "s.json"
    path.write_text('{"train": ["b"], "validation": ["a"], "note": "mine"}')
    found = split(dataset("a", "b", "c"), Split(file=str(path)), 0)
    assert (found.train, found.validation) == (("b",), ("a",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"train": ["a"], "validation": ["z", "y"]}, r"'y' \(and 1 more\) is not a case"),
        ({"train": ["a", "b"], "validation": ["b"]}, "'b' is in both"),
        ({"train": [], "validation": ["b"]}, '"train" is empty'),
        ({"train": ["a"], "validation": []}, '"validation" is empty'),
        ({"train": ["a", "a"], "validation": ["b"]}, "'a' is named twice"),
        ({"train": ["a"]}, "must hold"),
        ({"train": "a", "validation": ["b"]}, "must hold"),
        (["a"], "must hold"),
    ],
)
def test_files_that_do_not_fit(tmp_path, content, message):
    path = tmp_path / "s.json"
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=rf"s\.json: .*{message}"):
        split(dataset("a", "b"), Split(file=str(path)), 0)


def test_all_that_is_wrong_with_a_file_is_said(tmp_path):
    path = tmp_path / "s.json"
    path.write_text('{"train": ["z"], "validation": []}')
    with pytest.raises(DataErrors) as caught:
        split(dataset("a", "b"), Split(file=str(path)), 0)
    assert len(caught.value.errors) == 2


def test_a_missing_file_and_too_few_cases(tmp_path):
    with pytest.raises(DataError, match=r"none\.json"):
        split(numbered(3), Split(file=str(tmp_path / "none.json")), 0)
    with pytest.raises(DataError, match=r"set: 3 case\(s\) for 5 folds"):
        split(numbered(3), Split(), 0)
