"""What happens to a model's predictions: the config's postprocessors, and those tuned for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from medseg.config.postprocess import PostprocessorSpec
from medseg.config.source import dotted
from medseg.errors import ConfigError
from medseg.networks.checkpoint import Checkpoint, Tuned
from medseg.postprocess.prediction import Prediction, Step, needs_probabilities
from medseg.postprocess.protect import Protected
from medseg.registry import POSTPROCESSORS
from medseg.volumes.dataset import Labels

Crf = Literal["on", "off", "model"]
CRF = "crf"  # the one postprocessor that the command line can switch


def steps(checkpoint: Checkpoint, crf: Crf = "model") -> list[Step]:
    """Build what `entries` gives; with `inference.roi`, none of it leaves the region.

    Raises:
        ConfigError: As of `build_all`.
    """
    return [*build_all(entries(checkpoint, crf), checkpoint.labels), *last(checkpoint)]


def last(checkpoint: Checkpoint) -> list[Step]:
    """What comes after all steps, whatever they are."""
    return [_inside] if checkpoint.config.inference.roi else []


def _inside(prediction: Prediction) -> Prediction:
    """Background outside the region of interest, which a step may have filled or smoothed over."""
    if prediction.mask is None:
        return prediction
    return prediction.with_labels(np.where(prediction.mask, prediction.labels, np.uint8(0)))


def build_all(found: Sequence[PostprocessorSpec], labels: Labels) -> list[Step]:
    """Build the entries of `postprocess`.

    Raises:
        ConfigError: An entry is of no known postprocessor, or it refuses its options.
    """
    built = []
    for n, entry in enumerate(found):
        try:
            built.append(build(entry, labels))
        except ConfigError as error:
            where = ("postprocess", n, *error.path)
            raise ConfigError(f"{dotted(where)}: {error}", where) from error
    return built


def build(entry: PostprocessorSpec, labels: Labels) -> Step:
    """Build one postprocessor, which leaves alone the classes that its entry protects.

    Raises:
        ConfigError: It is not known, refuses its options, or protects a class that is none.
    """
    step: Step = POSTPROCESSORS.build(entry.spec(), classes=len(labels.values) + 1)
    return Protected(step, entry.protect, labels) if entry.protect else step


def entries(checkpoint: Checkpoint, crf: Crf = "model") -> list[PostprocessorSpec]:
    """The steps in order: those of the config, with what was tuned and accepted in their places.

    Where a tuned step belongs, `place` says. What the user gave instead of the model's settings
    stays as given, whatever was tuned.

    Args:
        checkpoint: The model.
        crf: "model": as said above; "off": without any CRF; "on": with the tuned CRF, even if it
            was rejected (then it protects what the config's own protects), or else with that of the
            config, or else with its defaults.
    """
    found = list(checkpoint.config.postprocess)
    given = _given(checkpoint)
    for tuned in sorted(checkpoint.tuned, key=lambda tuned: tuned.accepted):  # the last has its way
        wanted = tuned.accepted or (crf == "on" and _is_crf(tuned.name))
        if wanted and component(tuned.name) not in given:
            _put(found, _entry(tuned, found))
    if crf == "off":
        return [entry for entry in found if not _is_crf(entry.name)]
    if crf == "on" and not any(_is_crf(entry.name) for entry in found):
        _put(found, PostprocessorSpec(name=CRF))
    return found


def place(found: Sequence[PostprocessorSpec], name: str) -> int:
    """Where among the steps a tuned one belongs: its index.

    It takes the place of its own entry (`own`). Where there is none, what is decided from
    probabilities undoes what earlier steps did to labels alone, therefore:

    - a step that gives probabilities goes before the first that does not give any;
    - one that needs them, but decides labels alone, goes before the first that needs none, and
      after all that give them;
    - one that needs none comes last.
    """
    entry = own(found, name)
    if entry is not None:
        return list(found).index(entry)
    needs = [needs_probabilities(component(other.name)) for other in found]
    gives = [_gives_probabilities(component(other.name)) for other in found]
    if _gives_probabilities(component(name)):
        return [*gives, False].index(False)
    if needs_probabilities(component(name)):
        after = max((n + 1 for n, does in enumerate(gives) if does), default=0)
        return max([*needs, False].index(False), after)
    return len(found)


def own(found: Sequence[PostprocessorSpec], name: str) -> PostprocessorSpec | None:
    """The first entry of a postprocessor's component, by this name or that of a preset."""
    return next((entry for entry in found if component(entry.name) == component(name)), None)


def component(name: str) -> object:
    """What a name, be it of a preset, stands for; one that building will refuse, for itself."""
    if name not in POSTPROCESSORS:
        return name
    found = POSTPROCESSORS.get(name)
    return getattr(found, "func", found)  # a preset is a partial


def _given(checkpoint: Checkpoint) -> set[object]:
    """The components of the entries that the user gave, all of them or single ones."""
    keys = {".".join(key.split(".")[:2]) for key in checkpoint.overridden}
    return {
        component(entry.name)
        for n, entry in enumerate(checkpoint.config.postprocess)
        if keys & {"postprocess", f"postprocess.{n}"}
    }


def _entry(tuned: Tuned, found: Sequence[PostprocessorSpec]) -> PostprocessorSpec:
    protect = tuned.protect
    if not tuned.accepted:
        configured = own(found, tuned.name)
        protect = configured.protect if configured else ()
    return PostprocessorSpec(name=tuned.name, protect=protect, **tuned.options)


def _put(found: list[PostprocessorSpec], entry: PostprocessorSpec) -> None:
    at = place(found, entry.name)
    found[at : at + (own(found, entry.name) is not None)] = [entry]


def _gives_probabilities(step: object) -> bool:
    return bool(getattr(step, "gives_probabilities", False))


def _is_crf(name: str) -> bool:
    return component(name) == component(CRF)
