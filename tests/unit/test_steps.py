"""Which postprocessing steps a model takes: those of its config and those tuned, and the CRF's."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from medseg import plugins
from medseg.config import Config
from medseg.errors import ConfigError
from medseg.inference.steps import Crf, entries, steps
from medseg.networks.checkpoint import Checkpoint, Tuned
from medseg.postprocess.prediction import Prediction
from medseg.postprocess.protect import Protected
from medseg.registry import POSTPROCESSORS
from medseg.volumes.dataset import Labels

CLASSES = {"whole": (1, 2), "core": (2,)}


class Stub:
    """A CRF that says with which options it was made."""

    needs_probabilities = True

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


def test_what_decides_from_probabilities_goes_before_what_changes_labels_alone() -> None:
    """Else the CRF would bring back the crumbs that min_volume had removed."""
    for before, place in (
        (["fill_holes"], 0),
        (["hysteresis", "fill_holes"], 1),
        (["fill_holes", "hysteresis", "largest_component"], 2),
        ([], 0),
    ):
        expected = [*before[:place], "crf core", *before[place:]]
        assert told(checkpoint(*before, tuned=(tuned(),))) == expected
    last = checkpoint("hysteresis", "fill_holes", tuned=(tuned("largest_component"),))
    assert told(last) == ["hysteresis", "fill_holes", "largest_component core"]


def test_what_was_rejected_runs_only_when_asked_for_and_without_its_protection() -> None:
    rejected = (tuned(accepted=False, weight=2.0), tuned("fill_holes", accepted=False))
    model = checkpoint("largest_component", tuned=rejected)
    assert told(model) == told(model, "off") == ["largest_component"]
    assert told(model, "on") == ["crf 2.0", "largest_component"]
    own = checkpoint({"name": "crf", "weight": 3.0}, tuned=rejected)
    assert told(own) == ["crf 3.0"]
    assert told(own, "on") == ["crf 2.0"]


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
