"""A model with every subset of its channels: how much it loses when some are missing."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

from medseg.console import Tick
from medseg.errors import ConfigError, DataError
from medseg.evaluation.subsets import Key, Subset, dice, gathered
from medseg.inference.predictor import Predictor
from medseg.volumes.dataset import Dataset

MOST_CHANNELS = 5  # 31 subsets


def check_subsets(channels: int) -> None:
    """See that a model's subsets can be scored, for `evaluation.subsets`.

    Raises:
        ConfigError: There are none beside the whole, or too many.
    """
    where = ("evaluation", "subsets")
    if channels < 2:
        raise ConfigError("evaluation.subsets: one channel has no subsets; set it to false", where)
    if channels > MOST_CHANNELS:
        raise ConfigError(
            f"evaluation.subsets: {channels} channels have {2**channels - 1} subsets, each a "
            f"prediction of every validation case; at most {MOST_CHANNELS} channels are possible",
            where,
        )


def score_subsets(predictor: Predictor, dataset: Dataset, tick: Tick) -> tuple[Subset, ...]:
    """Predict cases with every subset of the channels, the others taken as missing, and score each.

    A case that lacks a channel itself counts for the subsets without it.

    Args:
        predictor: The model.
        dataset: The cases; each needs a label.
        tick: Called after each case.

    Returns:
        The subsets, the smallest first.

    Raises:
        DataError: A case cannot be read, or has no label.
    """

    def scores() -> Iterator[tuple[Key, dict[str, float]]]:
        for case in dataset.cases:
            loaded = predictor.load_case(case)
            if loaded.label is None:
                raise DataError(case.files[0], f"case {case.id!r} has no label")
            truth = labels.to_values(loaded.label)
            for missing in _missing(len(channels)):
                if set(loaded.missing) <= set(missing):
                    prediction = predictor.predict_case(loaded.without(missing))
                    values = labels.to_values(prediction.labels)
                    region = prediction.mask if predictor.config.evaluation.roi else None
                    key = (channels, tuple(channels[n] for n in missing))
                    yield key, dice(values, truth, labels.classes, labels.ignore, region)
            tick(case.id)

    channels, labels = predictor.checkpoint.channels, predictor.labels
    return gathered(scores())


def _missing(channels: int) -> Iterator[tuple[int, ...]]:
    """The channels that each non-empty subset lacks."""
    for size in range(channels - 1, -1, -1):
        yield from sorted(combinations(range(channels), size), reverse=True)
