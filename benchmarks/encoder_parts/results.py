"""Results of runs, one JSON line each, with every case: what tables and intervals are made from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

Result = dict[str, Any]


class Results:
    """A file of results that grows run by run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        self.all: list[Result] = [json.loads(line) for line in lines]

    def __contains__(self, key: str) -> bool:
        return any(result["key"] == key for result in self.all)

    def add(self, result: Result) -> None:
        """Keep a result."""
        self.all.append(result)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(result) + "\n")

    def of(self, **about: Any) -> list[Result]:
        """The results with these values, by seed."""
        found = [r for r in self.all if all(r.get(key) == value for key, value in about.items())]
        return sorted(found, key=lambda result: result["seed"])

    def values(self, key: str, **about: Any) -> list[Any]:
        """The different values that some results have, as they came."""
        return list(dict.fromkeys(result[key] for result in self.of(**about)))

    @staticmethod
    def told(result: Result) -> str:
        """A result on one line."""
        return f"{result['key']}  Dice {mean_dice(result):.3f}  {result['steps']} steps"


def mean_dice(result: Result) -> float:
    """Mean over classes of the mean over cases."""
    return float(np.mean([np.mean(values) for values in result["dice"].values()]))


def interval(results: Sequence[Result], key: str) -> tuple[float, float, float]:
    """The mean over seeds, classes and cases, and its 95 % interval.

    Bootstrap (Efron 1979, doi:10.1214/aos/1176344552) over seeds and over cases; the cases that
    are drawn are the same for all seeds and classes. Infinite distances (nothing predicted) are
    left out.
    """
    names = list(results[0][key])
    table = np.array([[result[key][name] for name in names] for result in results], float)
    table = np.ma.masked_invalid(table)  # seeds x classes x cases
    rng = np.random.default_rng(0)
    seeds, _, cases = table.shape
    means = [
        table[rng.integers(seeds, size=seeds)][:, :, rng.integers(cases, size=cases)].mean()
        for _ in range(2000)
    ]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(table.mean()), float(low), float(high)


def difference(ours: Sequence[Result], theirs: Sequence[Result]) -> tuple[float, float, float]:
    """Mean difference of Dice between two sets of runs with the same seeds and cases, and its 95 %.

    The same seeds and cases are drawn for both: what both find hard cancels.
    """
    a, b = (np.array([list(r["dice"].values()) for r in results]) for results in (ours, theirs))
    paired = (a - b).mean(1)  # seeds x cases
    rng = np.random.default_rng(0)
    seeds, cases = paired.shape
    means = [
        paired[rng.integers(seeds, size=seeds)][:, rng.integers(cases, size=cases)].mean()
        for _ in range(2000)
    ]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(paired.mean()), float(low), float(high)
