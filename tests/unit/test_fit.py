"""Transforms that learn: from whom, what they see, and where what they learnt is kept."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from safetensors import safe_open

from medseg.config import load
from medseg.config.schema import ComponentSpec
from medseg.errors import ConfigError, DataError, MedsegError, PluginError
from medseg.inference.predictor import Predictor
from medseg.networks import checkpoint
from medseg.registry import TRANSFORMS
from medseg.training import cache, casefile, loop
from medseg.training.fit import fitted
from medseg.training.run import RunFolder
from medseg.training.setup import Setup, set_up
from medseg.transforms.fitted import Fitted, build, fit
from medseg.volumes.load import load_case

Recipe = Callable[..., Path]
LANDMARKS: list[Any] = [
    {"name": "clip_percentiles", "region": "mask"},
    {"name": "histogram_landmarks", "region": "mask"},
    {"name": "zscore", "region": "mask"},
]
SETTINGS: dict[str, Any] = {
    "preprocess.mask": "otsu_plus",
    "preprocess.normalise": LANDMARKS,
    "train.budget": {"steps": 2},
    "train.save_every": 1,
    "train.validation_cases": 1,
}
KEY = "1 histogram_landmarks"


class Mean:
    """Learns the mean of all it sees, and how many cases there were."""

    seen: ClassVar[list[dict[str, Any]]] = []

    def __init__(self) -> None:
        pass

    def fit(self, samples: Iterable[dict[str, Any]]) -> dict[str, float]:
        Mean.seen = list(samples)
        return {"mean": float(np.mean([s["image"].mean() for s in Mean.seen]))}

    def use(self, values: dict[str, float]) -> Mean:
        other = Mean()
        other.mean = values["mean"]  # type: ignore[attr-defined]
        return other

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        return {**data, "image": data["image"] - np.float32(self.mean)}  # type: ignore[attr-defined]


@pytest.fixture
def mean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TRANSFORMS._components, "mean", Mean)


def normalised(path: Path, *names: str) -> Setup:
    """A run's setup with transforms that no source declares."""
    config = load(path)
    specs = tuple(ComponentSpec(name=name) for name in names)
    changed = {"preprocess": config.preprocess.model_copy(update={"normalise": specs})}
    return set_up(config.model_copy(update=changed))


def learn(setup: Setup, tmp_path: Path) -> Setup:
    return fitted(setup, RunFolder(tmp_path / "run"), resume=False, quiet=True)


@pytest.fixture(scope="module")
def trained(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A recipe with landmarks, and its finished run. Do not change."""
    path, run = recipe(**SETTINGS), tmp_path_factory.mktemp("runs") / "run"
    loop.train(load(path), run, device="cpu", quiet=True)
    return path, run


def test_each_learns_from_training_cases_as_those_before_it_leave_them(
    recipe: Recipe, tmp_path: Path, mean: None
) -> None:
    setup = normalised(recipe(), "mean", "mean")
    done = learn(setup, tmp_path)
    assert done.fitted is not None
    assert len(Mean.seen) == len(setup.ids.train) == done.fitted.cases
    by_id = {case.id: case for case in setup.dataset.cases}
    plain = normalised(recipe())
    expected = [
        plain.preprocessor(load_case(by_id[case], setup.dataset)).image for case in setup.ids.train
    ]
    learnt = {name: values["mean"] for name, values in done.fitted.transforms.items()}
    assert list(learnt) == ["0 mean", "1 mean"]
    assert learnt["0 mean"] == pytest.approx(np.mean([image.mean() for image in expected]))
    assert learnt["1 mean"] == pytest.approx(0, abs=1e-3 * learnt["0 mean"])
    for seen, image in zip(Mean.seen, expected, strict=True):
        np.testing.assert_allclose(seen["image"], image - np.float32(learnt["0 mean"]), atol=1e-3)
        assert "mask" not in seen
    assert not (tmp_path / "run").exists()


def test_a_region_of_interest_is_shown(recipe: Recipe, tmp_path: Path, mean: None) -> None:
    learn(normalised(recipe(**{"preprocess.mask": "otsu_plus"}), "mean"), tmp_path)
    assert all(seen["mask"].dtype == bool and seen["mask"].any() for seen in Mean.seen)


def test_what_is_learnt_makes_another_cache_entry(
    recipe: Recipe, tmp_path: Path, mean: None
) -> None:
    setup = learn(normalised(recipe(), "mean"), tmp_path)
    assert setup.fitted is not None
    other = replace(setup, fitted=replace(setup.fitted, transforms={"0 mean": {"mean": 5.0}}))
    places = []
    for each in (setup, other):
        cases = each.dataset.cases[:1]
        (stored,) = cache.fill(tmp_path, cases, each.dataset, each.preprocessor, lambda: None)
        places.append(stored.path)
    assert places[0] != places[1]


@pytest.mark.slow
def test_it_is_kept_with_the_run_and_in_the_model(trained: tuple[Path, Path]) -> None:
    _, run = trained
    stored = json.loads((run / "fitted.json").read_text())
    assert stored["channels"] == ["flair", "t1c"]
    assert stored["cases"] == 4
    landmarks = np.array(stored["transforms"][KEY]["landmarks"])
    assert landmarks.shape == (2, 13)
    assert (np.diff(landmarks) > 0).all()
    np.testing.assert_allclose(landmarks[:, [0, -1]], [[0, 100]] * 2, atol=1e-9)
    for name in ("model.safetensors", "last.safetensors"):
        assert checkpoint.load(run / name).fitted == stored


@pytest.mark.slow
def test_a_prediction_is_prepared_as_the_training_was(trained: tuple[Path, Path]) -> None:
    path, run = trained
    setup = set_up(load(path))
    (file,) = (run / "cache").glob("head_001-*")
    predictor = Predictor.load(run, device="cpu")
    (case,) = [case for case in setup.dataset.cases if case.id == "head_001"]
    ((prepared,),) = predictor.prepare(load_case(case, setup.dataset)).prepared
    cached = casefile.read(file).arrays
    np.testing.assert_array_equal(prepared.image, cached["image"])
    np.testing.assert_array_equal(prepared.mask, cached["mask"])


@pytest.mark.slow
def test_a_run_to_resume_goes_by_what_it_has_learnt(
    recipe: Recipe, tmp_path: Path, trained: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, whole = trained
    run = RunFolder(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(loop, "save", broken_off)
        with pytest.raises(KeyboardInterrupt):
            loop.train(load(path), run.path, device="cpu", quiet=True)
    stored = run.fitted.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("medseg.training.fit._samples", None)  # calling it would fail
        loop.train(load(path), run.path, device="cpu", quiet=True, resume=True)
    assert run.fitted.read_bytes() == stored == (whole / "fitted.json").read_bytes()
    assert run.model.read_bytes() == (whole / "model.safetensors").read_bytes()
    run.fitted.unlink()
    with pytest.raises(DataError, match=r"fitted\.json: .*restore it, or start anew"):
        loop.train(load(path), run.path, device="cpu", quiet=True, resume=True)
    run.fitted.write_text(json.dumps({**json.loads(stored), "channels": ["t1c", "flair"]}))
    with pytest.raises(DataError, match=r"fitted\.json: .*trained on the channels t1c, flair"):
        loop.train(load(path), run.path, device="cpu", quiet=True, resume=True)


def broken_off(*_: Any) -> None:
    raise KeyboardInterrupt


@pytest.fixture(scope="module")
def untrained(model: Callable[..., Path]) -> Path:
    return model(**SETTINGS)


def with_landmarks(untrained: Path, folder: Path, **fitted: Any) -> Path:
    """A model whose preprocessing has learnt."""
    row = np.linspace(0, 100, 13).tolist()
    values: dict[str, Any] = {
        "percentiles": [1, 10, 20, 25, 30, 40, 50, 60, 70, 75, 80, 90, 99],
        "region": "mask",
        "scale": [0, 100],
    }
    about = {
        "channels": ["flair", "t1c"],
        "cases": 4,
        "transforms": {KEY: {**values, "landmarks": [row, row]}},
        **fitted,
    }
    path = folder / "model.safetensors"
    checkpoint.save(path, replace(checkpoint.load(untrained), fitted=about))
    return path


def test_a_model_says_so_in_plain_words(untrained: Path, tmp_path: Path) -> None:
    path = with_landmarks(untrained, tmp_path)
    with safe_open(path, framework="pt") as file:
        about = json.loads(file.metadata()["medseg"])
    assert about["fitted"]["transforms"][KEY]["landmarks"][0][6] == 50
    Predictor.load(path, device="cpu")


@pytest.mark.parametrize(
    "stored, overrides, message",
    [
        ({"channels": ["t1c", "flair"]}, (), "was trained on the channels t1c, flair, and this "
         "model has flair, t1c"),
        ({"channels": ["flair"]}, (), "was trained on the channels flair, and this model has"),
        ({"transforms": {}}, (), r"1: histogram_landmarks learns .*learnt is nothing"),
        ({"transforms": {KEY: {}}}, (), "1: histogram_landmarks cannot use what was learnt"),
        ({"transforms": {KEY: 3}}, (), "1: histogram_landmarks cannot use what was learnt"),
        ({"cases": "many"}, (), "what its transforms learnt cannot be read"),
        ({"transforms": 3}, (), "what its transforms learnt cannot be read"),
        ({}, ("preprocess.normalise=[histogram_landmarks]",), r"learnt is '1 histogram_land"),
        ({}, ("preprocess.normalise.1.cutoff=[2.0, 98.0]",), r"learnt at \[1, .*asked for \[2"),
    ],
)  # fmt: skip
def test_landmarks_of_something_else_are_refused(
    stored: Any, overrides: tuple[str, ...], message: str, untrained: Path, tmp_path: Path
) -> None:
    path = with_landmarks(untrained, tmp_path, **stored)
    with pytest.raises(DataError, match=rf"model\.safetensors: .*{message}"):
        Predictor.load(path, device="cpu", overrides=overrides)


def test_a_model_that_was_never_fitted(untrained: Path) -> None:
    path = untrained
    assert checkpoint.load(path).fitted == {}
    with pytest.raises(DataError, match="learns from the training cases"):
        Predictor.load(path, device="cpu")
    assert Fitted.of({}, ("a", "b"), path) == Fitted(("a", "b"), source=path)


def test_what_cannot_be_learnt_names_the_place(recipe: Recipe, tmp_path: Path) -> None:
    spec = {"name": "histogram_landmarks", "region": "mask"}
    flat = {"name": "window", "low": 1.0e6, "high": 2.0e6}
    path = recipe(**{"preprocess.normalise": [flat, spec]})
    with pytest.raises(ConfigError, match=r"^preprocess\.normalise\.1: histogram_land.*constant"):
        learn(set_up(load(path)), tmp_path)


def test_a_channel_that_is_not_there_is_told_before_the_data_are_read(recipe: Recipe) -> None:
    spec = {"name": "zscore", "channels": [0, 2]}
    with pytest.raises(ConfigError, match=r"^preprocess\.normalise\.0: zscore: channels \[2\] of"):
        set_up(load(recipe(**{"preprocess.normalise": [spec]})))


def test_values_that_no_file_can_hold_are_refused(mean: None) -> None:
    class Odd(Mean):
        def fit(self, samples: Any) -> Any:
            return {"mean": np.float32(3)}

    with pytest.raises(PluginError, match="'odd': fit gave what is no plain JSON"):
        fit(Odd(), 0, "odd", iter([]))


def test_unfitted_transforms_are_built_for_a_check(mean: None) -> None:
    specs = [ComponentSpec(name="mean")]
    (built,) = build(specs, ("t1",))
    assert isinstance(built, Mean)
    with pytest.raises(MedsegError, match="learns from the training cases"):
        build(specs, ("t1",), Fitted(("t1",)))
