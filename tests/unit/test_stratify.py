"""Folds are alike in classes and lesion volumes, even in size, and depend on what they should."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medseg import files
from medseg.config.schema import Split
from medseg.errors import DataError
from medseg.volumes.check import CaseReport, CheckReport
from medseg.volumes.dataset import Case, Dataset, Labels
from medseg.volumes.split import Folds, draw, split
from medseg.volumes.stratify import Stratum, deal, strata


def dataset(ids: Sequence[str]) -> Dataset:
    cases = tuple(Case(name, ()) for name in ids)
    return Dataset(cases, ("a",), Labels({"x": (1,)}), Path("set"))


def drawn(known: dict[str, Stratum], folds: int, seed: int = 0) -> Folds:
    return draw(dataset(list(known)), folds, seed, known)


@given(
    held=st.lists(st.sets(st.sampled_from("abc")), min_size=2, max_size=40),
    folds=st.integers(2, 5),
    seed=st.integers(0, 2**63 - 1),
)
def test_every_case_is_in_one_fold_and_folds_are_even(held, folds, seed):
    if len(held) < folds:
        return
    known = {f"c{n}": Stratum(frozenset(names), float(n)) for n, names in enumerate(held)}
    found = drawn(known, folds, seed).folds
    assert sorted(name for ids in found for name in ids) == sorted(known)
    assert max(map(len, found)) - min(map(len, found)) <= 1


@pytest.mark.parametrize("seed", range(12))
def test_every_fold_has_its_share_of_every_class(seed: int):
    """Of five classes that come and go by themselves: by chance, folds differ by 3 and 4 cases."""
    rng = np.random.default_rng(seed)
    known = {
        f"c{n}": Stratum(frozenset(name for name in "abcde" if rng.random() < 0.3), rng.random())
        for n in range(60)
    }
    for name in "abcde":
        counts = [sum(name in known[case].classes for case in ids) for ids in drawn(known, 5).folds]
        assert max(counts) - min(counts) <= 2


def test_the_few_cases_of_a_rare_class_are_spread():
    known = {f"c{n}": Stratum(frozenset("ab" if n < 5 else "b"), 1.0) for n in range(50)}
    for seed in range(5):
        found = drawn(known, 5, seed)
        assert all(sum(known[case].classes > {"b"} for case in ids) == 1 for ids in found.folds)


def test_each_fold_has_small_and_large_lesions():
    known = {f"c{n}": Stratum(frozenset("a"), float(n)) for n in range(20)}
    for seed in range(5):
        for ids in drawn(known, 4, seed).folds:
            assert sorted(int(known[case].volume) // 4 for case in ids) == [0, 1, 2, 3, 4]


def test_folds_depend_on_ids_seed_number_and_strata_alone():
    known = {f"c{n}": Stratum(frozenset("a"), float(n)) for n in range(20)}
    turned = dict(reversed(known.items()))
    assert drawn(turned, 4, 7) == drawn(known, 4, 7)
    assert drawn(known, 4, 8) != drawn(known, 4, 7)
    assert drawn({name: Stratum() for name in known}, 4, 7) != drawn(known, 4, 7)


def test_what_is_dealt_is_frozen():
    """The folds of a study must be the same in the next version: other folds, other results."""
    known = {f"c{n}": Stratum(frozenset("ab" if n % 3 else "b"), n * 1.5) for n in range(9)}
    dealt = deal(known, 3, np.random.default_rng(1))
    assert [sorted(part) for part in dealt] == [
        ["c3", "c4", "c8"],
        ["c0", "c2", "c7"],
        ["c1", "c5", "c6"],
    ]


def test_strata_are_read_off_the_labels():
    report = CaseReport("x", (2, 2, 2), (1.0, 2.0, 3.0), "RAS", {0: 3, 1: 4, 5: 1})
    labels = Labels({"whole": (1, 2), "core": (2,), "other": (5,)})
    empty = replace(report, id="y", voxels={0: 8})
    found = strata(CheckReport((report, empty)), labels)
    assert found == {"x": Stratum(frozenset({"whole", "other"}), 30.0), "y": Stratum()}


def test_folds_written_read_back_as_a_split_file(tmp_path):
    known = {f"c{n}": Stratum(frozenset("a"), float(n)) for n in range(10)}
    found = drawn(known, 4)
    path = tmp_path / "splits.json"
    files.write_json(path, asdict(found))
    for fold in range(4):
        assert split(dataset(list(known)), Split(file=str(path), fold=fold), 9) == found.split(fold)
    with pytest.raises(DataError, match=r"has 4 folds, counted from 0: there is no fold 4"):
        split(dataset(list(known)), Split(file=str(path), fold=4), 0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([["a"], ["z"]], "'z' is not a case"),
        ([["a"], ["b"], ["a"]], "'a' is in both one fold and another"),
        ([["a", "a"], ["b"]], "'a' is named twice"),
        ([["a"], []], "fold 1 is empty"),
        ([["a", "b"]], "two or more lists"),
        ("ab", "two or more lists"),
        ([["a"], [1]], "two or more lists"),
    ],
)
def test_files_of_folds_that_do_not_fit(tmp_path, content, message):
    path = tmp_path / "s.json"
    path.write_text(json.dumps({"folds": content}))
    with pytest.raises(DataError, match=rf"s\.json: .*{message}"):
        split(dataset("ab"), Split(file=str(path)), 0)
