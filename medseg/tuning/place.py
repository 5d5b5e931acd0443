"""Where in a model's postprocessing the step stands that is tuned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from medseg.config.schema import PostprocessorSpec
from medseg.inference.steps import build, component, entries, last, own, place
from medseg.networks.checkpoint import Checkpoint
from medseg.postprocess.prediction import Prediction, Step
from medseg.tuning.result import Candidate, Options
from medseg.volumes.dataset import Labels


@dataclass(frozen=True)
class Place:
    """The steps around the one that is tuned: what counts is what it adds to them.

    Args:
        name: The postprocessor.
        given: Its options in the config, be it under the name of a preset.
        protect: Classes that the config protects from it.
        earlier: The model's steps before it.
        later: Those after it.
        labels: What the labels mean.
        in_config: The config's own entry of the same component, which runs by itself if the step is
            rejected: its name. None: there is none.
        was_accepted: Whether the model holds the step from an earlier tuning.
    """

    name: str
    given: Options
    protect: tuple[str, ...]
    earlier: tuple[Step, ...]
    later: tuple[Step, ...]
    labels: Labels
    in_config: str | None = None
    was_accepted: bool = False

    @classmethod
    def find(cls, checkpoint: Checkpoint, name: str) -> Place:
        """Find where prediction would put the step, whether the model has it already or not."""
        labels, sequence = checkpoint.labels, around(checkpoint, name)
        configured, at = own(sequence, name), place(sequence, name)
        earlier = tuple(build(entry, labels) for entry in sequence[:at])
        rest = sequence[at + bool(configured) :]
        later = (*(build(entry, labels) for entry in rest), *last(checkpoint))
        in_config = configured.name if configured else None
        held = any(tuned.name == name and tuned.accepted for tuned in checkpoint.tuned)
        configured = configured or PostprocessorSpec(name=name)
        given, protect = configured.model_extra or {}, configured.protect
        return cls(name, given, protect, earlier, later, labels, in_config, held)

    def before(self, prediction: Prediction) -> Prediction:
        """Take the earlier steps."""
        return _applied(self.earlier, prediction)

    def onwards(self, candidate: Candidate, protect: Sequence[str]) -> Step:
        """The step with these options, unless it is left out, and the later ones."""
        first = []
        if candidate is not None:
            entry = PostprocessorSpec(name=self.name, protect=tuple(protect), **candidate)
            first.append(build(entry, self.labels))
        return lambda prediction: _applied([*first, *self.later], prediction)


def around(checkpoint: Checkpoint, name: str) -> list[PostprocessorSpec]:
    """A model's steps as they are without what was tuned for the component of a name."""
    kind = component(name)
    others = tuple(tuned for tuned in checkpoint.tuned if component(tuned.name) != kind)
    return entries(replace(checkpoint, tuned=others))


def _applied(steps: Sequence[Step], prediction: Prediction) -> Prediction:
    for step in steps:
        prediction = step(prediction)
    return prediction
