"""Which postprocessing steps a model takes: those of its config and those tuned, and the CRF's."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medseg import plugins
from medseg.config import Config
from medseg.errors import ConfigError
from medseg.inference.steps import Crf, entries, steps
from medseg.networks.checkpoint import Checkpoint, Tuned, load, set_tuned
from medseg.postprocess.prediction import Prediction
from medseg.postprocess.protect import Protected
from medseg.registry import POSTPROCESSORS
from medseg.tuning.place import Place
from medseg.volumes.dataset import Labels

CLASSES = {"whole": (1, 2), "core": (2,)}


class Stub:
    """A CRF that says with which options it was made."""

    needs_probabilities = True
    gives_probabilities = True

    def __init__(self, weight: float = 1.0) -> None:
        self.weight = weight

    def __call__(self, prediction: Prediction) -> Prediction:
        return prediction.with_labels(np.full_like(prediction.labels, 2))


@pytest.fixture(autouse=True)
def crf(monkeypatch: pytest.MonkeyPatch) -> None:
    plugins.load()
    monkeypatch.setitem(POSTPROCESSORS._components, "crf", Stub)


def checkpoint(*postprocess: Any, tuned: tuple[Tuned, ...] = ()) -> Checkpoint:
    values = {
        "name": "a",
        "data": {"layout": "msd", "path": "/x"},
        "model": {"encoder": "vgg", "decoder": "unet"},
        "train": {"patch": [8, 8, 8], "budget": {"steps": 1}},
        "postprocess": postprocess,
    }
    config = Config.model_validate_json(json.dumps(values))
    return Checkpoint(config, ("t1",), Labels(CLASSES), None, {}, tuned=tuned)


def tuned(name: str = "crf", accepted: bool = True, **options: Any) -> Tuned:
    return Tuned(name, options, ("core",), accepted, {"score": 0.5})


def told(model: Checkpoint, crf: Crf = "model") -> list[str]:
    """Each step in words: its name, its options, what it protects."""
    words = []
    for entry in entries(model, crf):
        options = {key: value for key, value in entry.spec().items() if key != "name"}
        words.append(" ".join([entry.name, *map(str, options.values()), *entry.protect]))
    return words


def test_without_tuning_the_steps_are_the_configs() -> None:
    model = checkpoint({"name": "min_volume", "mm3": 3}, "crf", "fill_holes")
    assert told(model) == ["min_volume 3", "crf", "fill_holes"]
    assert told(model, "on") == told(model)
    assert told(model, "off") == ["min_volume 3", "fill_holes"]
    assert told(checkpoint()) == []


def test_what_was_accepted_takes_the_place_of_its_name() -> None:
    plain = ("crf", {"name": "min_volume", "mm3": 3}, "fill_holes")
    model = checkpoint(*plain, tuned=(tuned(weight=2.0), tuned("min_volume", mm3=50.0)))
    assert told(model) == ["crf 2.0 core", "min_volume 50.0 core", "fill_holes"]
    assert told(model, "on") == told(model)
    assert told(model, "off") == ["min_volume 50.0 core", "fill_holes"]


@pytest.mark.parametrize(
    "name, before, place",
    [
        ("crf", [], 0),
        ("crf", ["fill_holes"], 0),
        ("crf", ["regions", "fill_holes"], 0),
        ("crf", ["hysteresis", "fill_holes"], 0),
        ("crf", ["prior_correction", "smooth_surface", "hysteresis", "fill_holes"], 2),
        ("crf", ["fill_holes", "hysteresis", "largest_component"], 0),
        ("prior_correction", ["crf", "regions"], 1),
        ("smooth_surface", ["hysteresis"], 0),
        ("hysteresis", [], 0),
        ("hysteresis", ["crf", "fill_holes"], 1),
        ("hysteresis", ["crf", "regions", "fill_holes"], 2),
        ("hysteresis", ["fill_holes", "largest_component"], 0),
        ("hysteresis", ["fill_holes", "crf", "largest_component"], 2),
        ("fill_holes", ["crf", "hysteresis", "largest_component"], 3),
    ],
)
def test_a_tuned_step_goes_where_no_other_undoes_it(
    name: str, before: list[str], place: int
) -> None:
    """What gives probabilities, what decides labels from them, what changes labels alone."""
    expected = [*before[:place], f"{name} core", *before[place:]]
    assert told(checkpoint(*before, tuned=(tuned(name),))) == expected


def test_a_tuned_step_has_its_effect_before_one_that_decides_labels() -> None:
    shares = np.array([[0.6, 0.4], [0.4, 0.6]], np.float32).T.reshape(2, 2, 1, 1)
    shares = np.concatenate([shares, np.zeros_like(shares[:1])])
    given = Prediction(shares.argmax(0).astype(np.uint8), shares[:1], np.eye(4), shares)
    prior = Tuned("prior_correction", {"log_odds": -3.0}, (), True, {})
    for decides in ({"name": "regions", "regions": [[1, 2], [2]]}, {"name": "hysteresis"}):
        found = given
        for step in steps(checkpoint(decides, tuned=(prior,))):
            found = step(found)
        assert not found.labels.any()


def test_what_was_rejected_runs_only_when_asked_for_and_protects_what_the_config_says() -> None:
    rejected = (tuned(accepted=False, weight=2.0), tuned("fill_holes", accepted=False))
    model = checkpoint("largest_component", tuned=rejected)
    assert told(model) == told(model, "off") == ["largest_component"]
    assert told(model, "on") == ["crf 2.0", "largest_component"]
    own = checkpoint({"name": "crf", "weight": 3.0}, tuned=rejected)
    assert told(own) == ["crf 3.0"]
    assert told(own, "on") == ["crf 2.0"]
    protecting = checkpoint({"name": "crf", "weight": 3.0, "protect": ["whole"]}, tuned=rejected)
    assert told(protecting, "on") == ["crf 2.0 whole"]


def test_what_the_user_gives_instead_of_the_models_settings_stays_as_given() -> None:
    given: tuple[Any, ...] = ({"name": "crf", "weight": 5.0}, {"name": "min_volume", "mm3": 3})
    accepted = (tuned(weight=2.0), tuned("min_volume", mm3=50.0), tuned("fill_holes"))
    model = checkpoint(*given, tuned=accepted)
    assert told(model) == ["crf 2.0 core", "min_volume 50.0 core", "fill_holes core"]
    for keys, crf, least in (
        (("inference.overlap",), "crf 2.0 core", "min_volume 50.0 core"),
        (("postprocess",), "crf 5.0", "min_volume 3"),
        (("postprocess.0.weight",), "crf 5.0", "min_volume 50.0 core"),
        (("inference.overlap", "postprocess.1.mm3"), "crf 2.0 core", "min_volume 3"),
    ):
        overridden = replace(model, overridden=keys)
        assert told(overridden) == told(overridden, "on") == [crf, least, "fill_holes core"]
    wrong = checkpoint({"name": "min_volume", "mm3": -3}, tuned=(tuned("min_volume", mm3=50.0),))
    steps(wrong)
    with pytest.raises(ConfigError, match=r"postprocess\[0\]\.mm3: mm3 must be at least 0"):
        steps(replace(wrong, overridden=("postprocess",)))
    rejected = checkpoint(given[0], tuned=(tuned(accepted=False, weight=2.0),))
    assert told(replace(rejected, overridden=("postprocess",)), "on") == ["crf 5.0"]


def test_a_model_file_knows_which_settings_the_user_gave(
    model: Callable[..., Path], tmp_path: Path
) -> None:
    path = tmp_path / "model.safetensors"
    shutil.copy(model(), path)
    set_tuned(path, Tuned("min_volume", {"mm3": 50.0}, (), True, {}))
    assert told(load(path)) == ["min_volume 50.0"]
    override = "postprocess=[{name: min_volume, mm3: 2}]"
    assert told(load(path, overrides=[override])) == ["min_volume 2"]
    assert told(load(path, overrides=["inference.overlap=0.25"])) == ["min_volume 50.0"]


def test_tuning_finds_the_configs_entry_under_the_name_of_a_preset(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(POSTPROCESSORS, "_components", dict(POSTPROCESSORS._components))
    monkeypatch.setattr(POSTPROCESSORS, "presets", dict(POSTPROCESSORS.presets))
    POSTPROCESSORS.preset("soft", of="crf", weight=0.1)
    soft = {"name": "soft", "protect": ["core"]}
    model = checkpoint("prior_correction", soft, "fill_holes", "largest_component")
    for tuned_before in ((), (tuned("crf"),), (tuned("soft"),), (tuned(accepted=False),)):
        place = Place.find(replace(model, tuned=tuned_before), "crf")
        assert (place.protect, len(place.earlier), len(place.later)) == (("core",), 1, 2)
    plain = Place.find(checkpoint("hysteresis", "fill_holes"), "crf")
    assert (plain.protect, len(plain.earlier), len(plain.later)) == ((), 0, 2)
    own = Place.find(checkpoint({"name": "min_volume", "mm3": 3}), "min_volume")
    assert (own.given, own.earlier, own.later) == ({"mm3": 3}, (), ())


def test_on_without_any_crf_takes_the_defaults() -> None:
    model = checkpoint("fill_holes")
    assert told(model, "on") == ["crf", "fill_holes"]
    first, _ = steps(model, "on")
    assert isinstance(first, Stub)
    assert first.weight == 1.0


def test_steps_are_built_with_their_options_and_protection() -> None:
    model = checkpoint("fill_holes", tuned=(tuned(weight=0.5),))
    crf, _ = steps(model)
    assert isinstance(crf, Protected)
    assert crf.needs_probabilities
    assert isinstance(crf.step, Stub)
    assert crf.step.weight == 0.5
    labels = np.array([0, 1, 2], np.uint8).reshape(3, 1, 1)
    given = Prediction(labels, np.zeros((1, 3, 1, 1), np.float32), np.eye(4))
    assert crf(given).labels.ravel().tolist() == [0, 1, 2]  # 1 may not become core
    free, _ = steps(checkpoint("crf", "fill_holes"))
    assert free(given).labels.ravel().tolist() == [2, 2, 2]


@pytest.mark.parametrize(
    "entry, message",
    [
        ({"name": "crf", "protect": ["edge"]}, r"postprocess\[1\]\.protect: unknown class 'edge'"),
        ({"name": "min_volume", "mm3": -2}, r"postprocess\[1\]\.mm3: mm3 must be at least 0"),
        ({"name": "nothing"}, r"postprocess\[1\]\.name: unknown postprocessor 'nothing'"),
    ],
)
def test_an_entry_that_cannot_be_is_placed(entry: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        steps(checkpoint("fill_holes", entry))


def test_a_preset_of_the_crf_is_a_crf(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(POSTPROCESSORS, "_components", dict(POSTPROCESSORS._components))
    monkeypatch.setattr(POSTPROCESSORS, "presets", dict(POSTPROCESSORS.presets))
    POSTPROCESSORS.preset("soft", of="crf", weight=0.1)
    assert told(checkpoint("fill_holes", tuned=(tuned("soft"),))) == ["soft core", "fill_holes"]
    configured = checkpoint("fill_holes", "soft")
    assert told(configured, "off") == ["fill_holes"]
    assert told(configured, "on") == ["fill_holes", "soft"]
    both = (tuned("soft"), tuned(accepted=False))
    assert told(checkpoint("soft", tuned=both[1:]), "on") == ["crf"]
    for order in (both, both[::-1]):
        assert told(checkpoint(tuned=order), "on") == ["soft core"]
