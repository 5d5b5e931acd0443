"""Classes that a postprocessing step may not change."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from medseg.errors import ConfigError
from medseg.postprocess.prediction import Prediction, Step, is_pointwise, needs_probabilities
from medseg.registry import unknown
from medseg.volumes.dataset import Labels


class Protected:
    """A postprocessor that leaves the masks of some classes exactly as they were.

    A voxel's change from label a to b is undone unless each of these classes, which may overlap,
    holds both labels or neither. There the probabilities, too, become again what they were, or a
    later step that decides from them would make the change after all.

    Args:
        step: The postprocessor.
        protect: Names of the classes.
        labels: What the labels mean.

    Raises:
        ConfigError: There is no class of a name.
    """

    def __init__(self, step: Step, protect: Iterable[str], labels: Labels) -> None:
        self.step, self.needs_probabilities = step, needs_probabilities(step)
        self.pointwise = is_pointwise(step)
        columns = []
        for name in protect:
            if name not in labels.classes:
                raise ConfigError(unknown("class", name, labels.classes), ("protect",))
            columns.append(np.isin([0, *labels.values], labels.classes[name]))
        held = np.stack(columns, axis=1)  # (labels, protected classes)
        self._kind = np.unique(held, axis=0, return_inverse=True)[1].ravel()

    def __call__(self, prediction: Prediction) -> Prediction:
        """Take the step, and undo what it did to the protected classes."""
        after = self.step(prediction)
        is_free = self._kind[after.labels] == self._kind[prediction.labels]
        labels = np.where(is_free, after.labels, prediction.labels)
        shares, earlier = after.probabilities, prediction.probabilities
        if shares is not None and earlier is not None and shares is not earlier:
            shares = np.where(is_free, shares, earlier)
        return replace(after, labels=labels, probabilities=shares)
