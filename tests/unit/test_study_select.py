"""Greedy selection against brute force, and what is kept of cases against whole volumes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medseg.errors import DataError
from medseg.inference.ensembles import Ensemble, Member, write
from medseg.networks.checkpoint import Tuned
from medseg.study.ensemble import ensemble
from medseg.study.select import choose, greedy
from medseg.study.votes import Cases, Votes
from medseg.volumes.dataset import IGNORE_INDEX

REGIONS = ((1, 2), (2,))
SHAPE = (4, 5, 6)


def shares(rng: np.random.Generator, truth: np.ndarray, noise: float) -> np.ndarray:
    """Probabilities (3, I, J, K) that are right up to noise."""
    logits = np.stack([truth == n for n in range(3)]) + noise * rng.normal(size=(3, *SHAPE))
    found = np.exp(logits)
    return (found / found.sum(0)).astype(np.float16)


def dice(labels: np.ndarray, truth: np.ndarray) -> np.ndarray:
    known = truth != IGNORE_INDEX
    found = []
    for region in REGIONS:
        p, t = np.isin(labels, region) & known, np.isin(truth, region)
        size = p.sum() + t.sum()
        found.append(2 * (p & t).sum() / size if size else 1.0)
    return np.array(found)


@given(seed=st.integers(0, 2**32), noise=st.floats(0.05, 3), weights=st.lists(
    st.integers(0, 4), min_size=3, max_size=3).filter(any))  # fmt: skip
def test_dice_of_a_mean_needs_only_where_models_differ(seed, noise, weights):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 3, SHAPE).astype(np.uint8)
    truth[rng.random(SHAPE) < 0.1] = IGNORE_INDEX
    models = [shares(rng, truth, noise) for _ in range(3)]
    shared = np.array(weights) / sum(weights)
    mean = sum(
        np.float32(w) * m.astype(np.float32) for w, m in zip(shared, models, strict=True) if w
    )
    votes = Votes.of(models, truth, REGIONS)
    np.testing.assert_allclose(votes.dice(shared, REGIONS), dice(mean.argmax(0), truth))


def test_where_models_agree_nothing_is_kept():
    truth = np.zeros(SHAPE, np.uint8)
    truth[0] = 2
    one = shares(np.random.default_rng(0), truth, 0.01)
    votes = Votes.of([one, one, one], truth, REGIONS)
    assert votes.shares.shape == (3, 3, 0)
    np.testing.assert_array_equal(votes.dice(np.ones(3) / 3, REGIONS), [1, 1])


def test_classes_that_are_nowhere_agree_perfectly():
    truth = np.zeros(SHAPE, np.uint8)
    one = shares(np.random.default_rng(0), truth, 0.01)
    np.testing.assert_array_equal(Votes.of([one], truth, REGIONS).dice(np.ones(1), REGIONS), [1, 1])


def toy(tmp_path: Path, noises: Sequence[float], cases: int = 6) -> Cases:
    rng = np.random.default_rng(3)
    kept = Cases(tmp_path / "cache", len(noises), REGIONS)
    for n in range(cases):
        truth = rng.integers(0, 3, SHAPE).astype(np.uint8)
        models = [shares(rng, truth, noise) for noise in noises]
        kept.add(f"c{n}", models.__getitem__, truth)
    return kept


def test_cases_are_scored_from_disk_by_the_ratio_of_counts(tmp_path: Path):
    kept = toy(tmp_path, [0.5, 1.0])
    assert kept.scores([2, 1]) is kept.scores([4, 2])
    assert (kept.scores([2, 1]) != kept.scores([1, 2])).any()
    assert not list((tmp_path / "cache").glob("whole*"))
    assert kept.ids == [f"c{n}" for n in range(6)]


@pytest.mark.parametrize("noises", [[0.7, 0.8, 0.9], [0.3, 2.0, 2.0], [2.0, 0.9, 0.9], [1.0] * 3])
def test_greedy_selection_against_brute_force(tmp_path: Path, noises: list[float]):
    """It never loses to a single model, and hardly to the best of all weights of its size."""
    kept, rounds = toy(tmp_path, noises), 5
    found = greedy(kept.scores, 3, range(6), rounds)
    best = max(
        float(kept.scores(counts).mean())
        for counts in product(range(rounds + 1), repeat=3)
        if 0 < sum(counts) <= rounds
    )
    score = float(kept.scores(found).mean())
    assert 0 < sum(found) <= rounds
    assert score >= max(float(kept.scores(one).mean()) for one in np.eye(3, dtype=int).tolist())
    assert best >= score >= best - 0.01


def test_each_pick_is_the_best_and_the_end_goes_back_to_the_best():
    values = {(1, 0): 0.5, (0, 1): 0.6, (1, 1): 0.8, (0, 2): 0.6, (2, 1): 0.7, (1, 2): 0.75}

    def scores(counts: Sequence[int]) -> np.ndarray:
        return np.full(1, values[tuple(counts)])

    assert greedy(scores, 2, [0], 1) == [0, 1]
    assert greedy(scores, 2, [0], 2) == greedy(scores, 2, [0], 3) == [1, 1]


def test_ties_go_to_what_came_first():
    assert greedy(lambda counts: np.ones(2), 3, [0, 1]) == [1, 0, 0]


def test_a_model_that_is_worse_counts_nothing(tmp_path: Path):
    found = choose(toy(tmp_path, [0.2, 3.0]).scores, 2, 6, 0)
    assert found.weights == (1.0, 0.0)
    assert found.is_selection
    assert found.held_out == found.selected == max(found.alone)
    assert found.over_mean is not None
    assert found.over_mean[0] == pytest.approx(found.held_out - found.mean)


def test_each_case_is_judged_by_a_choice_made_without_it():
    """Each model is right on one case alone: what suits the others never suits the one left out."""
    right = np.eye(3)

    def scores(counts: Sequence[int]) -> np.ndarray:
        weights = np.array(counts) / sum(counts)
        return (weights > 0.34) @ right + 0.1 * (weights > 0).all()

    found = choose(scores, 3, 3, 0)
    assert found.held_out < found.selected


def test_a_selection_that_is_no_gain_on_cases_left_out_gives_way_to_equal_weights():
    def scores(counts: Sequence[int]) -> np.ndarray:
        weights = np.array(counts) / sum(counts)
        if len(set(weights)) == 1:
            return np.full(3, 0.5)
        return np.where(weights == weights.max(), 0.9, 0.35)

    found = choose(scores, 3, 3, 0)
    assert not found.is_selection
    assert found.weights == (1 / 3,) * 3
    assert found.held_out < found.mean == 0.5
    assert found.each == (0.5, 0.5, 0.5)


def test_nothing_is_written_over_that_is_no_ensemble_or_was_tuned(tmp_path: Path) -> None:
    other, tuned, plain = (tmp_path / name for name in ("split.json", "tuned.json", "plain.json"))
    other.write_text('{"train": [], "validation": []}')
    made = Ensemble((Member(tmp_path / "model.safetensors", 1.0, "0", "a"),))
    write(plain, made)
    write(tuned, replace(made, tuned=(Tuned("crf", {}, (), True, {}),)))
    for path, told in (
        (other, "split.json: is there already, and not an ensemble of medseg .*: name another"),
        (tuned, "tuned.json: crf was tuned for it and would be lost: name another by -o"),
        (plain, "no run is given"),
        (tmp_path / "new.json", "no run is given"),
    ):
        before = path.read_bytes() if path.exists() else None
        with pytest.raises(DataError, match=told):
            ensemble([], path, quiet=True)
        assert (path.read_bytes() if path.exists() else None) == before
