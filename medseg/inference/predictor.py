"""A trained model, ready to predict: `Predictor.load(run).predict(volume)`."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medseg.config.data import Missing
from medseg.config.schema import Config
from medseg.errors import ConfigError, DataError
from medseg.inference.inputs import in_memory, needs_mask, with_region
from medseg.inference.steps import Crf, steps
from medseg.inference.window import autocast, check_patch, predict_volume
from medseg.networks.assembly import build_network
from medseg.networks.checkpoint import Checkpoint, load, restore
from medseg.postprocess.prediction import Prediction, needs_probabilities
from medseg.transforms.fitted import Fitted
from medseg.transforms.preprocess import Prepared, Preprocessor
from medseg.volumes.dataset import Case, Dataset, Labels, Policy
from medseg.volumes.image import Array
from medseg.volumes.layouts import files
from medseg.volumes.load import LoadedCase, load_case


@dataclass(frozen=True, eq=False)
class Ready:
    """A case as loaded, and on the network's grid."""

    case: LoadedCase
    prepared: Prepared


class Predictor:
    """A network with the way to it and back.

    Args:
        checkpoint: The trained model.
        device: Where it runs.
        crf: Whether the model's CRF runs: see `medseg.inference.steps.entries`.
        missing: What becomes of a case that lacks a channel; None: as in training.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        device: torch.device,
        *,
        crf: Crf = "model",
        missing: Missing | None = None,
    ) -> None:
        self.checkpoint, self.device, self.crf = checkpoint, device, crf
        self.config: Config = _allowing(checkpoint.config, missing)
        self.labels: Labels = checkpoint.labels
        classes = len(self.labels.values) + 1
        self.network = build_network(
            self.config.model, len(checkpoint.channels), classes, self.config.seed
        )
        check_patch(self.config, self.divisor)
        autocast(device, self.config.inference.precision)  # refuses what the device lacks
        restore(self.network, checkpoint)
        self.network.to(device).eval()
        self._preprocess = Preprocessor(
            self.config.preprocess,
            checkpoint.spacing,
            self.config.plugins,
            channels=checkpoint.channels,
            fitted=Fitted.of(checkpoint.fitted, checkpoint.channels, checkpoint.source),
        )
        self._steps = steps(checkpoint, crf)
        self._offsets = _offsets(checkpoint)
        self._is_warned = _knows_missing(checkpoint)

    @classmethod
    def load(
        cls,
        run: str | Path,
        *,
        device: str = "auto",
        plugins: Sequence[str] = (),
        overrides: Sequence[str] = (),
        crf: Crf = "model",
        missing: Missing | None = None,
    ) -> Predictor:
        """Load a run folder, or a model file.

        Args:
            run: The folder that `train` wrote, or a .safetensors file.
            device: "auto", "cpu", "cuda" or "cuda:N".
            plugins: References of plugins that the model needs and that are not installed.
            overrides: Settings instead of the model's own, e.g. `inference.overlap=0.25`.
            crf: "model": the CRF runs if the model has one that was found to help; "on": it runs;
                "off": it does not.
            missing: "refuse": a case that lacks a channel fails; "zero": the channel is taken as 0
                after normalisation; None: as in training.

        Raises:
            DataError: There is no readable model.
        """
        checkpoint = load(model_file(run), plugins, overrides)
        return cls(checkpoint, pick_device(device), crf=crf, missing=missing)

    def predict(self, volume: Any, *, mask: Any = None, probabilities: bool = False) -> Prediction:
        """Predict one volume.

        Args:
            volume: A path (or a list of them, one a channel, None for one that is missing), a
                nibabel image, or a tuple of an array (I, J, K) or (C, I, J, K) and its (4, 4)
                affine in mm.
            mask: The region of interest: a path, or an array (I, J, K); for a model that was
                trained with masks from files.
            probabilities: Whether to keep the class probabilities.

        Returns:
            The prediction on the volume's own grid; `labels` holds class indices, and
            `predictor.labels.to_values` turns them into label values.

        Raises:
            DataError: The volume cannot be read or has the wrong number of channels.
        """
        case = with_region(self._loaded(volume), mask)
        return self.predict_case(case, probabilities=probabilities)

    def predict_case(self, case: LoadedCase, *, probabilities: bool = False) -> Prediction:
        """Predict a case that has been loaded."""
        return self.postprocess(self.run(self.prepare(case)), probabilities=probabilities)

    def postprocess(self, prediction: Prediction, *, probabilities: bool = False) -> Prediction:
        """Take the steps of the model's config, and those tuned for it."""
        for n, step in enumerate(self._steps):
            if not (probabilities or any(map(needs_probabilities, self._steps[n:]))):
                prediction = replace(prediction, probabilities=None)
            prediction = step(prediction)
        return prediction if probabilities else replace(prediction, probabilities=None)

    def raw(self, case: LoadedCase) -> Prediction:
        """Predict a case that has been loaded, with probabilities and before any postprocessing."""
        return self.run(self.prepare(case))

    def prepare(self, case: LoadedCase) -> Ready:
        """Bring a case that has been loaded to the network's grid.

        Raises:
            DataError: It has other channels than the model, or no mask, and the model needs one.
        """
        if len(case.image) != len(self.checkpoint.channels):
            raise DataError(
                case.reference.path,
                f"{len(case.image)} channels, the model takes {len(self.checkpoint.channels)}: "
                + ", ".join(self.checkpoint.channels),
            )
        if case.mask is None and needs_mask(self.config):
            raise DataError(
                case.reference.path,
                "no mask is given with it, and this model was trained with masks: give one as in "
                "training (a folder named so, a .csv with a column for it, or mask= in Python), or "
                "preprocess.mask=otsu_plus or another rule to have it computed",
            )
        return Ready(case, self._preprocess(case))

    def run(self, ready: Ready) -> Prediction:
        """Predict a case that has been prepared, with probabilities, before any postprocessing.

        Raises:
            NonFiniteError: The network gave NaN or infinity.
        """
        case, prepared = ready.case, ready.prepared
        shares = prepared.route.back(self.probabilities(prepared))
        if self.config.inference.roi:
            assert prepared.region is not None
            shares[:, ~prepared.region] = 0
            shares[0, ~prepared.region] = 1
        return Prediction(
            labels=shares.argmax(0).astype(np.uint8),
            image=case.image,
            affine=case.reference.affine,
            probabilities=shares,
            mask=prepared.region,
        )

    def probabilities(self, prepared: Prepared) -> Array:
        """The class probabilities (classes, I, J, K) on the network's grid."""
        image = torch.from_numpy(prepared.image).to(self.device)
        settings, roi = self.config.numbered.inference, None
        if settings.roi:
            assert prepared.mask is not None  # the config has a source, and `raw` refused to go on
            roi = torch.from_numpy(prepared.mask).to(self.device)
        result = predict_volume(
            self.network, image, settings, self.config.train.patch, self.divisor,
            roi=roi, offsets=self._offsets,
        )  # fmt: skip
        array: Array = result.cpu().numpy()
        return array

    @property
    def divisor(self) -> tuple[int, int, int]:
        """What the network's input must be divisible by."""
        i, j, k = self.network.divisor
        return i, j, k

    def load_case(self, case: Case) -> LoadedCase:
        """Read a case of this model's channels, on the grid that its config says.

        Warns once where one is missing, and the model was trained with all.
        """
        if case.missing and not self._is_warned:
            self._is_warned = True
            warnings.warn(
                f"channels are missing, and this model was trained with all of them "
                f"({', '.join(self.checkpoint.channels)}): what it makes of the rest is untested",
                stacklevel=2,
            )
        policy = Policy.of(self.config.data)
        channels = self.checkpoint.channels
        return load_case(case, Dataset((case,), channels, self.labels, policy=policy))

    def _loaded(self, volume: Any) -> LoadedCase:
        if isinstance(volume, str | Path):
            volume = [volume]
        if isinstance(volume, list):
            paths = [None if path is None else Path(path) for path in volume]
            source = next((path for path in paths if path is not None), Path("volume"))
            channels = files.channels_of(paths, self.config.data, source)
            return self.load_case(Case(files.stem(source), channels))
        return in_memory(volume)


def _offsets(checkpoint: Checkpoint) -> torch.Tensor | None:
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


def _allowing(config: Config, missing: Missing | None) -> Config:
    """The config with what is to become of missing channels in place of its own."""
    if missing is None:
        return config
    return config.model_copy(update={"data": config.data.model_copy(update={"missing": missing})})


def _knows_missing(checkpoint: Checkpoint) -> bool:
    """Whether a model was trained with channels missing, be it by file or by augmentation."""
    config = checkpoint.config
    is_own = "data.missing" not in checkpoint.overridden
    return config.augment.channel_dropout > 0 or (is_own and config.data.missing == "zero")


def model_file(run: str | Path) -> Path:
    """The model of a run folder, or the file itself."""
    run = Path(run)
    return run / "model.safetensors" if run.is_dir() else run


def pick_device(name: str) -> torch.device:
    """The device of a name; "auto" is CUDA where there is one.

    Raises:
        DataError: There is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise DataError(f"--device {name}", str(error).splitlines()[0]) from error
    return device
