"""How candidates are listed, chosen without the case they are judged on, and judged."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from medseg import plugins
from medseg.config.schema import Evaluation
from medseg.errors import ConfigError
from medseg.evaluation.scores import score_case
from medseg.postprocess.prediction import Prediction, Step
from medseg.tuning.candidates import MOST, grid, tunable
from medseg.tuning.gate import Judgement, chance, interval, judge, passes
from medseg.tuning.place import Place
from medseg.tuning.result import MEAN, Candidate, Interval
from medseg.tuning.scoring import SCORES, Scorer
from medseg.tuning.select import choose, leave_one_out
from medseg.tuning.store import Store
from medseg.tuning.summary import verdict
from medseg.tuning.trials import Trials
from medseg.volumes.dataset import Labels

plugins.load()

LABELS = Labels({"whole": (1, 2), "core": (2,)})


def test_the_best_candidate_is_chosen_if_it_surely_is() -> None:
    scores = np.array([[0.5, 0.6, 0.7, 0.8], [0.6, 0.7, 0.8, 0.9], [0.61, 0.71, 0.81, 0.91]])
    assert choose(scores) == 2
    scores[2] = [0.4, 0.9, 0.8, 0.92]  # a better mean, by luck
    assert scores.mean(1).argmax() == 2
    assert choose(scores) == 1


def test_the_simplest_wins_a_tie_and_silence() -> None:
    assert choose(np.full((4, 5), 0.7)) == 0
    assert choose(np.full((4, 5), np.nan)) == 0
    assert choose(np.array([[0.5], [0.7], [0.7]])) == 1
    assert choose(np.array([[0.5, 0.9, np.nan], [0.6, 1.0, 0.0]])) == 1


def test_one_standard_error_is_that_of_the_paired_differences() -> None:
    loss = np.array([0.0, 0.1, 0.2, 0.3])
    scores = np.stack([0.5 - loss + 0.001, np.full(4, 0.5)])
    error = stats.sem(loss - 0.001)
    assert loss.mean() - 0.001 > error
    assert choose(scores) == 1
    scores[0] += loss.mean() - error  # now exactly one standard error below, give or take
    assert choose(scores) == 0


class Planted:
    """Trials whose scores are given; notes which cases each proposal and choice looked at."""

    def __init__(self, scores: np.ndarray) -> None:
        self.scores, self.asked = scores, list[tuple[int, ...]]()
        self.cases = scores.shape[1]

    def run(self, pairs: object) -> None:
        pass

    def means(self, offer: Sequence[Candidate], cases: Sequence[int]) -> np.ndarray:
        self.asked.append(tuple(cases))
        rows = [0 if c is None else c["row"] for c in offer]
        return self.scores[rows][:, list(cases)]


def test_no_case_has_a_say_in_its_own_options() -> None:
    """Candidate n + 1 ruins every case but n, where it is perfect."""
    cases = 5
    scores = np.full((cases + 1, cases), 0.6)
    for n in range(cases):
        scores[n + 1] = 0.1
        scores[n + 1, n] = 1.0
    trials = Planted(scores)
    proposed: list[tuple[int, ...]] = []

    def propose(fold: Sequence[int]) -> list[Candidate]:
        proposed.append(tuple(fold))
        return [None, *({"row": n + 1} for n in range(cases))]

    assert leave_one_out(propose, trials) == [None] * cases  # type: ignore[arg-type]
    folds = [tuple(m for m in range(cases) if m != n) for n in range(cases)]
    assert proposed == trials.asked == folds


def test_proposals_show_their_progress(capsys: pytest.CaptureFixture[str]) -> None:
    def told(*, quiet: bool) -> str:
        leave_one_out(lambda cases: [None], Planted(np.ones((1, 3))), quiet=quiet)  # type: ignore[arg-type]
        return capsys.readouterr().out

    assert "Fit" in told(quiet=False)
    assert told(quiet=True) == ""


def test_the_interval_is_that_of_scipy() -> None:
    differences = np.random.default_rng(3).normal(0.02, 0.05, 12)
    found = interval(differences, 7)
    assert found is not None
    theirs = stats.bootstrap(
        (differences,), np.mean, n_resamples=20_000, method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval  # fmt: skip
    spread = differences.std() / np.sqrt(12)
    assert found[0] == pytest.approx(differences.mean())
    assert found[1:] == pytest.approx((theirs.low, theirs.high), abs=0.08 * spread)
    assert interval(differences, 7) == found
    assert interval(np.append(differences, np.nan), 7) == found
    assert interval(np.array([np.nan]), 7) is None


def test_the_gate_wants_a_sure_gain_and_six_cases() -> None:
    gains = np.linspace(0.1, 0.2, 6)
    assert passes(gains, 0)
    assert passes(np.append(gains, np.nan), 0)
    assert not passes(gains[:5], 0)
    assert not passes(np.append(gains[:5], np.nan), 0)
    assert not passes(np.append(gains[:5], -0.3), 0)
    assert not passes(np.append(gains[:5], 0.0), 0)  # five that speak, one that says nothing
    assert not passes(np.zeros(9), 0)
    assert not passes(np.full(9, np.nan), 0)


@pytest.mark.parametrize("cases", [2, 6, 12, 13, 40])
def test_the_sign_flip_test_is_that_of_scipy(cases: int) -> None:
    differences = np.random.default_rng(cases).normal(0.1, 0.3, cases)
    theirs = stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", alternative="greater",
        n_resamples=np.inf if cases <= 13 else 50_000, rng=np.random.default_rng(1),
    )  # fmt: skip
    ours = chance(differences, 5)
    assert ours == pytest.approx(theirs.pvalue, abs=1e-12 if cases <= 12 else 0.015)
    assert chance(differences, 5) == ours
    assert chance(np.full(cases, 0.1), 0) == pytest.approx(2.0**-cases, abs=5e-4)


def test_few_cases_pass_seldom_where_there_is_nothing_to_find() -> None:
    """The interval alone passes one in ten of these."""
    drawn = np.random.default_rng(4).normal(size=(500, 6))
    assert np.mean([passes(differences, 0) for differences in drawn]) <= 0.04
    found = [interval(differences, 0) for differences in drawn[:200]]
    assert np.mean([bounds is not None and bounds[1] > 0 for bounds in found]) > 0.05


def test_classes_are_judged_one_by_one_and_then_together() -> None:
    asked = []

    def held_out(protect: Sequence[str]) -> np.ndarray:
        asked.append(tuple(protect))
        before = np.full((6, 3), 0.5)
        after = before + np.array([0.1, -0.1, 0.0])
        after[:, [n for n, name in enumerate("abc") if name in protect]] = 0.5
        return np.stack([before, after])

    found = judge(held_out, tuple("abc"), ("c",), 0)
    assert asked == [("c",), ("b", "c")]
    assert found.protect == ("b", "c")
    assert found.accepted
    assert found.intervals["b"] == pytest.approx((-0.1, -0.1, -0.1))
    assert found.intervals["mean"] == pytest.approx((0.1, 0.1, 0.1))
    assert found.after[0] == pytest.approx([0.6, 0.5, 0.5])


def test_protection_may_cost_the_gain() -> None:
    """A class that passes alone, but not once its neighbour is held still."""

    def held_out(protect: Sequence[str]) -> np.ndarray:
        before = np.full((6, 2), 0.5)
        after = before + ([0.1, -0.1] if not protect else [-0.01, 0])
        return np.stack([before, after])

    found = judge(held_out, tuple("ab"), (), 0)
    assert found.protect == ("b",)
    assert not found.accepted
    nothing = judge(lambda protect: np.full((2, 6, 2), 0.5), tuple("ab"), (), 0)
    assert (nothing.accepted, nothing.protect) == (False, ())


def test_candidates_come_in_order_of_their_distance_from_the_defaults() -> None:
    values = tunable("fill_holes")["max_mm3"]
    assert grid("fill_holes", {}, {}, 2) == [None, *({"max_mm3": v} for v in values)]
    from_config = grid("min_volume", {"mm3": 30.0}, {}, 2)
    nearest = [c["mm3"] for c in from_config[1:4] if c is not None]
    assert (nearest[0], sorted(nearest[1:])) == (30.0, [10.0, 100.0])
    odd = [c["mm3"] for c in grid("min_volume", {"mm3": 17.0}, {}, 2)[1:] if c is not None]
    assert odd[0] == 17.0
    assert set(odd) == {17.0, *tunable("min_volume")["mm3"]}


def test_fixed_options_are_not_varied() -> None:
    assert grid("min_volume", {}, {"mm3": 20.0, "together": False}, 2) == [
        None,
        {"mm3": 20.0, "together": False},
    ]


def test_keys_of_the_configs_entry_are_no_options() -> None:
    for key, value, told in (
        ("name", "fill_holes", "'name' is no option of min_volume"),
        ("protect", ["core"], "protect a class .* in the config's `postprocess`, as in"),
        ("classes", 3, "classes"),
    ):
        with pytest.raises(ConfigError, match=told) as refused:
            grid("min_volume", {}, {key: value}, 2)
        assert refused.value.path == (key,)


def test_combinations_that_make_no_sense_are_left_out() -> None:
    lows, highs = tunable("hysteresis")["low"], tunable("hysteresis")["high"]
    found = grid("hysteresis", {}, {}, 2)[1:]
    allowed = {(low, high) for low in lows for high in highs if low <= high}
    assert {(c["low"], c["high"]) for c in found if c is not None} <= allowed
    with pytest.raises(ConfigError, match="high"):
        grid("hysteresis", {}, {"high": 1.5}, 2)


def test_there_are_not_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    from medseg.postprocess.components import MinVolume

    monkeypatch.setattr(MinVolume, "tunable", {"mm3": tuple(float(n) for n in range(100))})
    with pytest.warns(UserWarning, match="100 combinations; the 64 nearest"):
        found = grid("min_volume", {}, {}, 2)
    assert len(found) == MOST + 1
    assert found[-1] == {"mm3": 63.0}


@pytest.mark.parametrize("score", SCORES)
def test_scores_are_those_of_the_evaluation(score: str, rng: np.random.Generator) -> None:
    truth = (rng.random((12, 10, 8)) < 0.2).astype(np.uint8)
    truth[3:7, 3:7, 2:6] = 2
    prediction = np.roll(truth, 1, 0)
    settings = Evaluation(lesions=True)
    truth[4, 2:6] = 255  # in the midst, where the prediction has something
    spacing = (1.0, 2.0, 3.0)
    theirs = score_case("a", prediction, truth, spacing, LABELS.classes, settings, 255)
    ours = Scorer(score, LABELS, settings)(prediction, truth, spacing)
    assert ours == pytest.approx([theirs.row(name)[score] for name in LABELS.classes])
    assert 0 < ours.min() < ours.max() <= 1


def test_scores_by_name() -> None:
    with pytest.raises(ConfigError, match="unknown score 'dise'; did you mean 'dice'"):
        Scorer("dise", LABELS, Evaluation())


def blank(labels: np.ndarray, shares: np.ndarray) -> Prediction:
    return Prediction(labels, np.ones((1, *labels.shape), np.float32), np.eye(4), shares)


@pytest.fixture
def store(tmp_path: Path, rng: np.random.Generator) -> Store:
    """Three cases: both classes, none, and none with a false alarm."""
    kept = Store(tmp_path)
    for n, (true, predicted) in enumerate([(2, 2), (0, 0), (0, 1)]):
        truth, labels = np.zeros((2, 8, 8, 8), np.uint8)
        truth[2:6, 2:6, 2:6], labels[2:6, 2:6, 2:5] = true, predicted
        shares = np.moveaxis(rng.dirichlet(np.ones(3), labels.shape), 3, 0).astype(np.float32)
        kept.add(f"case_{n}", blank(labels, shares), truth)
    return kept


def test_cases_come_back_from_disk(tmp_path: Path, rng: np.random.Generator) -> None:
    kept = Store(tmp_path)
    labels = rng.integers(0, 3, (4, 5, 6)).astype(np.uint8)
    shares = np.moveaxis(rng.dirichlet(np.ones(3), labels.shape), 3, 0).astype(np.float32)
    mask = rng.random(labels.shape) < 0.5
    given = Prediction(labels, rng.normal(size=(2, 4, 5, 6)).astype(np.float32), np.eye(4) * 2,
                       shares, mask)  # fmt: skip
    kept.add("a", blank(labels, shares), labels)
    kept.add("b", given, labels)
    found = kept.prediction(1)
    for name in ("labels", "image", "affine", "mask"):
        np.testing.assert_array_equal(getattr(found, name), getattr(given, name))
    assert found.probabilities is not None
    np.testing.assert_allclose(found.probabilities, shares, atol=5e-4)
    np.testing.assert_allclose(found.probabilities.sum(0), 1, atol=1e-6)
    assert kept.prediction(0).mask is None
    np.testing.assert_array_equal(kept.truth(1), labels)


def test_each_pair_is_scored_once_and_silent_classes_are_left_out(store: Store) -> None:
    made = []

    def build(candidate: Candidate, protect: Sequence[str]) -> Step:
        def step(prediction: Prediction) -> Prediction:
            made.append((candidate, tuple(protect)))
            empty = np.zeros_like(prediction.labels)
            return prediction if candidate is None else prediction.with_labels(empty)

        return step

    trials = Trials(store, Scorer("dice", LABELS, Evaluation()), build, quiet=True)
    block = trials.block([None, {"wipe": 1}], [0, 1, 2])
    silent = np.nan  # neither in the truth nor in any prediction
    dice = 6 / 7
    expected = [
        [[dice, dice], [silent, silent], [0, silent]],
        [[0, 0], [silent, silent], [1, silent]],
    ]
    np.testing.assert_allclose(block, expected)
    np.testing.assert_allclose(trials.means([None], [0, 1, 2]), [[dice, silent, 0]])
    assert len(made) == 6
    trials.block([None, {"wipe": 1}], [0, 1, 2])
    assert len(made) == 6
    trials.pairs([(0, {"wipe": 1}), (1, None), (2, {"wipe": 1})], ("core",))
    assert made[6:] == [({"wipe": 1}, ("core",))] * 2


@pytest.mark.parametrize(
    "cases, mean, passed, accepted, told",
    [
        (8, (0.012, 0.004, 0.021), True, True,
         "crf is part of the model now: on 8 held-out cases it changed mean Dice by +0.0120 "
         "(95 % +0.0040 to +0.0210). It may not change core: not surely improved."),
        (8, (-0.004, -0.01, 0.001), False, False,
         "by -0.0040 (95 % -0.0100 to +0.0010), no sure gain. The model predicts as before."),
        (8, (0.01, 0.001, 0.02), True, False, "yet all cases together would leave it out."),
        (5, (0.01, 0.001, 0.02), False, False, "6 cases are needed to tell gain from chance."),
        (8, (0.01, 0.001, 0.02), False, False, "yet no gain is beyond chance by the sign-flip"),
        (8, (-0.01, -0.02, -0.001), False, False, "-0.0010), a sure loss. The model predicts"),
        (8, (0.0, 0.0, 0.0), False, False, "it changed none of 8 held-out cases."),
        (8, None, False, False, "none of 8 cases has a class to score"),
    ],
)  # fmt: skip
def test_the_verdict_in_words(
    cases: int, mean: Interval | None, passed: bool, accepted: bool, told: str
) -> None:
    scores = np.zeros((cases, 2))
    intervals = {} if mean is None else {MEAN: mean}
    found = Judgement(scores, scores, ("core",), intervals, passed)
    said = verdict(place(), "dice", found, accepted)
    assert told in said
    assert said.startswith("crf is part" if accepted else "crf was rejected")


@pytest.mark.parametrize("mean", [None, (0.0, 0.0, 0.0), (-0.01, -0.02, -0.001)])
def test_the_verdict_says_what_runs_after_a_rejection(mean: Interval | None) -> None:
    scores = np.zeros((8, 2))
    found = Judgement(scores, scores, (), {} if mean is None else {MEAN: mean}, False)
    out = " The crf that was accepted earlier was taken out of the model."
    runs = " The config's own deepmedic still runs; take it out of `postprocess` to switch it off."
    for where, told in (
        (place(), ". The model predicts as before."),
        (place(was_accepted=True), out),
        (place(in_config="deepmedic"), runs),
        (place(in_config="deepmedic", was_accepted=True), out + runs),
    ):
        said = verdict(where, "dice", found, accepted=False)
        assert said.endswith(told)
        assert said.count("as before") == told.count("as before")


def place(in_config: str | None = None, *, was_accepted: bool = False) -> Place:
    return Place("crf", {}, (), (), (), LABELS, in_config, was_accepted)
