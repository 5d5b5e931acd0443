"""What happens to a model's predictions: the config's postprocessors, and those tuned for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from medseg.config.postprocess import PostprocessorSpec
from medseg.config.source import dotted
from medseg.errors import ConfigError
from medseg.networks.checkpoint import Checkpoint, Tuned
from medseg.postprocess.prediction import Step, needs_probabilities
from medseg.postprocess.protect import Protected
from medseg.registry import POSTPROCESSORS
from medseg.volumes.dataset import Labels

Crf = Literal["on", "off", "model"]
CRF = "crf"  # the one postprocessor that the command line can switch


def steps(checkpoint: Checkpoint, crf: Crf = "model") -> list[Step]:
    """Build what `entries` gives.

    Raises:
        ConfigError: As of `build_all`.
    """
    return build_all(entries(checkpoint, crf), checkpoint.labels)


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

    A tuned step takes the place of the config's first of its name, or of a preset of the same
    component. Where the config has none it comes last; but one that needs probabilities goes before
    those that need none, since it decides all labels anew and would undo what they did.

    Args:
        checkpoint: The model.
        crf: "model": as said above; "off": without any CRF; "on": with the tuned CRF, even if it
            was rejected (then nothing is protected from it), or else with that of the config, or
            else with its defaults.
    """
    found = list(checkpoint.config.postprocess)
    for tuned in sorted(checkpoint.tuned, key=lambda tuned: tuned.accepted):  # the last has its way
        if tuned.accepted or (crf == "on" and _is_crf(tuned.name)):
            _place(found, _entry(tuned))
    if crf == "off":
        return [entry for entry in found if not _is_crf(entry.name)]
    if crf == "on" and not any(_is_crf(entry.name) for entry in found):
        _place(found, PostprocessorSpec(name=CRF))
    return found


def _entry(tuned: Tuned) -> PostprocessorSpec:
    protect = tuned.protect if tuned.accepted else ()
    return PostprocessorSpec(name=tuned.name, protect=protect, **tuned.options)


def _place(found: list[PostprocessorSpec], entry: PostprocessorSpec) -> None:
    components = [_component(other.name) for other in found]
    component = _component(entry.name)
    if component in components:
        found[components.index(component)] = entry
        return
    deciding = [n for n, other in enumerate(components) if needs_probabilities(other)]
    after = 1 + max(deciding, default=-1)
    found.insert(after if needs_probabilities(component) else len(found), entry)


def _is_crf(name: str) -> bool:
    return _component(name) == _component(CRF)


def _component(name: str) -> object:
    """What a name, be it of a preset, stands for; one that building will refuse, for itself."""
    if name not in POSTPROCESSORS:
        return name
    component = POSTPROCESSORS.get(name)
    return getattr(component, "func", component)  # a preset is a partial
