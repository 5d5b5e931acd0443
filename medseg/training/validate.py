"""Validation on whole volumes, on the network's own grid."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from medseg.config.schema import Config
from medseg.inference.window import NonFiniteError, predict_volume
from medseg.networks.assembly import Network
from medseg.training.cache import CachedCase
from medseg.volumes.dataset import IGNORE_INDEX, Labels
from medseg.volumes.image import Array


def validate(
    network: Network, cases: Sequence[CachedCase], config: Config, labels: Labels
) -> dict[str, float]:
    """Mean Dice of each class over the cases that have it; a class that none has is left out.

    Raises:
        NonFiniteError: The network gave NaN or infinity; the message names the case.
    """
    device = next(network.parameters()).device
    divisor, settings = network.divisor, config.numbered.inference
    scores: dict[str, list[float]] = {name: [] for name in labels.classes}
    for case in cases:
        image = torch.from_numpy(np.array(case.image())).to(device)
        try:
            shares = predict_volume(network, image, settings, config.train.patch, divisor)
        except NonFiniteError as error:
            raise NonFiniteError(f"validation case {case.id!r}: {error}") from error
        predicted, truth = shares.argmax(0).cpu().numpy(), np.asarray(case.label())
        for name, dice in _dice(predicted, truth, labels).items():
            if dice is not None:
                scores[name].append(dice)
    return {name: float(np.mean(values)) for name, values in scores.items() if values}


def _dice(predicted: Array, truth: Array, labels: Labels) -> dict[str, float | None]:
    known = truth != IGNORE_INDEX
    result: dict[str, float | None] = {}
    for name, values in labels.classes.items():
        indices = [labels.values.index(value) + 1 for value in values]
        p, t = np.isin(predicted, indices) & known, np.isin(truth, indices) & known
        total = int(p.sum()) + int(t.sum())
        result[name] = 2 * int((p & t).sum()) / total if t.any() else None
    return result
