"""Validation on whole volumes, on the network's own grid."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from medseg.config.schema import Config
from medseg.inference.window import NonFiniteError, predict_labels
from medseg.networks.assembly import Network
from medseg.networks.checkpoint import Priors
from medseg.training.cache import CachedCase
from medseg.training.ranks import ALONE, Ranks
from medseg.volumes.dataset import IGNORE_INDEX, Labels
from medseg.volumes.image import Array


def validate(
    network: Network,
    cases: Sequence[CachedCase],
    config: Config,
    labels: Labels,
    priors: Priors | None = None,
    ranks: Ranks = ALONE,
) -> dict[str, float]:
    """Mean Dice of each class over the cases that have it; a class that none has is left out.

    With `evaluation.roi` only what lies in the region of interest counts. Several processes share
    the cases, and all get the scores that one would find.

    Raises:
        NonFiniteError: The network gave NaN or infinity; the message names the case.
    """
    mine = cases[ranks.rank :: ranks.size]
    parts = ranks.each(lambda: list(_scored(network, mine, config, labels, priors)))
    scores: dict[str, list[float]] = {name: [] for name in labels.classes}
    for n in range(len(cases)):
        for name, dice in parts[n % ranks.size][n // ranks.size].items():
            if dice is not None:
                scores[name].append(dice)
    return {name: float(np.mean(values)) for name, values in scores.items() if values}


def _scored(
    network: Network,
    cases: Sequence[CachedCase],
    config: Config,
    labels: Labels,
    priors: Priors | None,
) -> Iterator[dict[str, float | None]]:
    """The Dice of each class in one case after the other; None: the case has none of it."""
    device, classes = next(network.parameters()).device, len(labels.values) + 1
    settings, divisor = config.numbered.inference, network.divisor
    offsets = None
    if priors is not None and settings.prior_correction:
        offsets = torch.tensor(priors.offsets(settings.prior_correction))
    for case in cases:
        image = torch.from_numpy(np.array(case.image())).to(device)
        mask = case.mask()
        region = None if mask is None else torch.from_numpy(np.array(mask)).to(device)
        try:
            found = predict_labels(
                network, image, settings, config.train.patch, divisor,
                classes=classes, roi=region if settings.roi else None, offsets=offsets,
            )  # fmt: skip
        except NonFiniteError as error:
            raise NonFiniteError(f"validation case {case.id!r}: {error}") from error
        predicted, truth = found.cpu().numpy(), np.asarray(case.label())
        if config.evaluation.roi and mask is not None:
            truth = np.where(mask, truth, IGNORE_INDEX)
        yield _dice(predicted, truth, labels)


def _dice(predicted: Array, truth: Array, labels: Labels) -> dict[str, float | None]:
    known = truth != IGNORE_INDEX
    result: dict[str, float | None] = {}
    for name, indices in zip(labels.classes, labels.regions, strict=True):
        p, t = np.isin(predicted, indices) & known, np.isin(truth, indices) & known
        total = int(p.sum()) + int(t.sum())
        result[name] = 2 * int((p & t).sum()) / total if t.any() else None
    return result
