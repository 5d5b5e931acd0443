"""Where in a model's postprocessing the step stands that is tuned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from medseg.config.schema import PostprocessorSpec
from medseg.inference.steps import build, entries
from medseg.networks.checkpoint import Checkpoint, Tuned
from medseg.postprocess.prediction import Prediction, Step
from medseg.tuning.result import Candidate, Options
from medseg.volumes.dataset import Labels


@dataclass(frozen=True)
class Place:
    """The steps around the one that is tuned: what counts is what it adds to them.

    Args:
        name: The postprocessor.
        given: Its options in the config.
        protect: Classes that the config protects from it.
        earlier: The model's steps before it.
        later: Those after it.
        labels: What the labels mean.
    """

    name: str
    given: Options
    protect: tuple[str, ...]
    earlier: tuple[Step, ...]
    later: tuple[Step, ...]
    labels: Labels

    @classmethod
    def find(cls, checkpoint: Checkpoint, name: str) -> Place:
        """Find where prediction would put the step, whether the model has it already or not."""
        plain = PostprocessorSpec(name=name)
        own = next((e for e in checkpoint.config.postprocess if e.name == name), plain)
        others = tuple(tuned for tuned in checkpoint.tuned if tuned.name != name)
        this = Tuned(name, {}, (), True, {})
        sequence = entries(replace(checkpoint, tuned=(*others, this)))
        at = [entry.name for entry in sequence].index(name)
        labels = checkpoint.labels
        earlier = tuple(build(entry, labels) for entry in sequence[:at])
        later = tuple(build(entry, labels) for entry in sequence[at + 1 :])
        return cls(name, own.model_extra or {}, own.protect, earlier, later, labels)

    def before(self, prediction: Prediction) -> Prediction:
        """Take the earlier steps."""
        return _applied(self.earlier, prediction)

    def onwards(self, candidate: Candidate, protect: Sequence[str]) -> Step:
        """The step with these options, unless it is left out, and the later ones."""
        own = []
        if candidate is not None:
            entry = PostprocessorSpec(name=self.name, protect=tuple(protect), **candidate)
            own.append(build(entry, self.labels))
        return lambda prediction: _applied([*own, *self.later], prediction)


def _applied(steps: Sequence[Step], prediction: Prediction) -> Prediction:
    for step in steps:
        prediction = step(prediction)
    return prediction
