"""One trained network with its way from a case and back: a predictor has one, or an ensemble."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from medseg.config.data import Missing
from medseg.config.schema import Config
from medseg.errors import ConfigError
from medseg.inference.precision import candidate
from medseg.inference.runner import autocast
from medseg.inference.window import Pass, check_patch
from medseg.networks.assembly import build_network
from medseg.networks.checkpoint import Checkpoint, restore
from medseg.networks.layers import channels_last
from medseg.transforms.fitted import Fitted
from medseg.transforms.preprocess import Prepared, Preprocessor
from medseg.volumes.load import LoadedCase


class Member:
    """A network, ready to predict.

    Args:
        checkpoint: The trained model.
        config: Its config, as it is to be used.
        device: Where it runs.

    Raises:
        ConfigError: A setting does not suit the network or the model.
    """

    def __init__(self, checkpoint: Checkpoint, config: Config, device: torch.device) -> None:
        self.checkpoint, self.config, self.device = checkpoint, config, device
        self.classes = len(checkpoint.labels.values) + 1
        channels = checkpoint.channels
        self.network = build_network(config.model, len(channels), self.classes, config.seed)
        check_patch(config, self.divisor)
        autocast(device, config.inference.precision)  # refuses what the device lacks
        restore(self.network, checkpoint)
        self.network.to(device).eval()
        channels_last(self.network)
        self._preprocess = Preprocessor(
            config.preprocess,
            checkpoint.spacing,
            config.plugins,
            channels=channels,
            fitted=Fitted.of(checkpoint.fitted, channels, checkpoint.source),
        )
        self._offsets = _offsets(checkpoint)

    @property
    def divisor(self) -> tuple[int, int, int]:
        """What the network's input must be divisible by."""
        i, j, k = self.network.divisor
        return i, j, k

    @property
    def _is_settled(self) -> bool:
        """Whether the model knows its precision, as it is used now."""
        others = ("preprocess", "model", "inference.patch", "inference.mode", "inference.overlap")
        is_as_trained = not any(key.startswith(others) for key in self.checkpoint.overridden)
        return is_as_trained and self.checkpoint.settled == candidate(self.device)

    def prepare(self, case: LoadedCase) -> list[Prepared]:
        """Bring a case to the network's grid, once for each of `inference.scales`."""
        return [self._preprocess(case, scale) for scale in self.config.inference.scales or (1.0,)]

    def prepares_like(self, other: Member) -> bool:
        """Whether it brings cases to the same grids, with the same values, as another."""
        mine, its = self.config, other.config
        return (
            (mine.preprocess, mine.inference.scales, mine.plugins)
            == (its.preprocess, its.inference.scales, its.plugins)
            and self.checkpoint.spacing == other.checkpoint.spacing
            and self.checkpoint.fitted == other.checkpoint.fitted
        )

    def over(self, prepared: Prepared) -> Pass:
        """The network over a case that has been prepared."""
        settings = self.config.numbered.inference
        changes: dict[str, Any] = {"patch": settings.patch or self.config.train.patch}
        if settings.precision == "auto" and self._is_settled:
            changes["precision"] = self.checkpoint.settled
        roi = region = None
        if settings.roi:
            assert prepared.mask is not None  # the config has a source, and a mask was asked for
            assert prepared.region is not None
            roi, region = torch.from_numpy(prepared.mask), torch.from_numpy(prepared.region)
        return Pass.of(
            self.network, torch.from_numpy(prepared.image),
            settings.model_copy(update=changes), self.divisor, self.classes,
            route=prepared.route, roi=roi, region=region, offsets=self._offsets,
        )  # fmt: skip


def prepare(members: Sequence[Member], case: LoadedCase) -> tuple[tuple[Prepared, ...], ...]:
    """Bring a case to the grids of several: once, and held once, for those that prepare alike."""
    done: list[tuple[Prepared, ...]] = []
    for n, member in enumerate(members):
        twin = next(m for m, other in enumerate(members) if member.prepares_like(other))
        done.append(done[twin] if twin < n else tuple(member.prepare(case)))
    return tuple(done)


def _offsets(checkpoint: Checkpoint) -> Tensor | None:
    """What `inference.prior_correction` adds to the logits.

    Raises:
        ConfigError: The model does not know how common its classes are.
    """
    strength = checkpoint.config.inference.prior_correction
    if not strength:
        return None
    if checkpoint.priors is None:
        raise ConfigError(
            f"inference.prior_correction: {checkpoint.source} does not say how common its classes "
            "were in training; set it to 0, or use the postprocessor prior_correction",
            ("inference", "prior_correction"),
        )
    if checkpoint.priors.roi != checkpoint.config.inference.roi:
        counted = "regions of interest" if checkpoint.priors.roi else "whole volumes"
        raise ConfigError(
            f"inference.prior_correction: {checkpoint.source} knows how common its classes are in "
            f"{counted}; leave inference.roi as it was trained, or set prior_correction to 0",
            ("inference", "prior_correction"),
        )
    return torch.tensor(checkpoint.priors.offsets(strength))


def allowing(config: Config, missing: Missing | None) -> Config:
    """The config with what is to become of missing channels in place of its own."""
    if missing is None:
        return config
    return config.model_copy(update={"data": config.data.model_copy(update={"missing": missing})})


def knows_missing(checkpoint: Checkpoint) -> bool:
    """Whether a model was trained with channels missing, be it by file or by augmentation."""
    config = checkpoint.config
    is_own = "data.missing" not in checkpoint.overridden
    return config.augment.channel_dropout > 0 or (is_own and config.data.missing == "zero")
