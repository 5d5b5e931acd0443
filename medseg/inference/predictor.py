"""A trained model, ready to predict: `Predictor.load(run).predict(volume)`."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch

from medseg.config.data import Missing
from medseg.config.schema import Config
from medseg.errors import ConfigError, DataError
from medseg.inference import ensembles
from medseg.inference.collect import Wanted, collect
from medseg.inference.inputs import in_memory, needs_mask, with_region
from medseg.inference.member import Member, allowing, knows_missing, prepare
from medseg.inference.spool import Spool
from medseg.inference.steps import Crf, steps
from medseg.networks.checkpoint import Checkpoint, load
from medseg.postprocess.prediction import Prediction, Step, is_pointwise, needs_probabilities
from medseg.transforms.preprocess import Prepared
from medseg.volumes.dataset import Case, Dataset, Labels, Policy
from medseg.volumes.layouts import files
from medseg.volumes.load import LoadedCase, load_case


@dataclass(frozen=True, eq=False)
class Ready:
    """A case as loaded, and on the grid of each network and scale."""

    case: LoadedCase
    prepared: tuple[tuple[Prepared, ...], ...]


class Predictor:
    """One or several networks with the way to them and back.

    It may be used from several threads at once. Of an ensemble, probabilities are averaged; the
    first model says what happens then.

    Args:
        checkpoint: The trained model, or several.
        device: Where it runs.
        crf: Whether the model's CRF runs: see `medseg.inference.steps.entries`.
        missing: What becomes of a case that lacks a channel; None: as in training.
        weights: Of each model in the mean, summing to 1; None: all the same.

    Raises:
        ConfigError: A setting does not suit the model.
        DataError: The models of an ensemble differ in channels or classes.
    """

    def __init__(
        self,
        checkpoint: Checkpoint | Sequence[Checkpoint],
        device: torch.device,
        *,
        crf: Crf = "model",
        missing: Missing | None = None,
        weights: Sequence[float] | None = None,
    ) -> None:
        found = [checkpoint] if isinstance(checkpoint, Checkpoint) else list(checkpoint)
        ensembles.check_alike(found)
        self.weights = weights
        self.checkpoint, self.device, self.crf = found[0], device, crf
        self.members = [Member(one, allowing(one.config, missing), device) for one in found]
        self.config: Config = self.members[0].config
        self.labels: Labels = self.checkpoint.labels
        if self.config.inference.uncertainty == "spread" and self.passes < 2:
            raise ConfigError(
                "inference.uncertainty: a spread needs several predictions: give more than one "
                "model, or inference.scales; or ask for entropy",
                ("inference", "uncertainty"),
            )
        self._first, self._steps = _divided(steps(self.checkpoint, crf))
        self._is_warned, self._warning = all(map(knows_missing, found)), Lock()

    @classmethod
    def load(
        cls,
        run: str | Path | Sequence[str | Path],
        *,
        device: str = "auto",
        plugins: Sequence[str] = (),
        overrides: Sequence[str] = (),
        crf: Crf = "model",
        missing: Missing | None = None,
    ) -> Predictor:
        """Load a run folder, or a model file; or several: an ensemble.

        Args:
            run: The folder that `train` wrote (of a study: the ensemble of its runs), a
                .safetensors file, or an `ensemble.json`; or a list of these, which count the same.
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
        runs = [run] if isinstance(run, str | Path) else list(run)
        sources = [ensembles.find(one) for one in runs]
        found = [load(model, plugins, overrides) for one in sources for model in one.models]
        if sources and sources[0].tuned is not None:
            found[0] = replace(found[0], tuned=sources[0].tuned)
        weights = ensembles.together(sources)
        return cls(found, pick_device(device), crf=crf, missing=missing, weights=weights)

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
        case = with_region(self.read(volume), mask)
        return self.predict_case(case, probabilities=probabilities)

    def read(self, volume: Any) -> LoadedCase:
        """Read what `predict` takes, for `predict_case`.

        Args:
            volume: As of `predict`.

        Returns:
            The case. Its `notes` say what was odd about the files, and `medseg.volumes.nifti.write`
            writes a mask in the geometry of its `reference`.

        Raises:
            DataError: The volume cannot be read or has the wrong number of channels.
            DataErrors: Several of its files cannot be read.
        """
        if isinstance(volume, str | Path):
            volume = [volume]
        if isinstance(volume, list):
            paths = [None if path is None else Path(path) for path in volume]
            source = next((path for path in paths if path is not None), Path("volume"))
            channels = files.channels_of(paths, self.config.data, source)
            return self.load_case(Case(files.stem(source), channels))
        return in_memory(volume)

    def predict_case(self, case: LoadedCase, *, probabilities: bool = False) -> Prediction:
        """Predict a case that has been loaded."""
        prediction = self.run(self.prepare(case), probabilities=probabilities)
        return self.postprocess(prediction, probabilities=probabilities)

    def raw(self, case: LoadedCase) -> Prediction:
        """Predict a case that has been loaded, with probabilities and before any postprocessing."""
        return self._collect(self.prepare(case), Wanted(probabilities=True))

    def prepare(self, case: LoadedCase) -> Ready:
        """Bring a case that has been loaded to the networks' grids.

        Raises:
            DataError: It has other channels than the model, or no mask, and the model needs one.
        """
        if len(case.image) != len(self.checkpoint.channels):
            raise DataError(
                case.reference.path,
                f"{len(case.image)} channels, the model takes {len(self.checkpoint.channels)}: "
                + ", ".join(self.checkpoint.channels),
            )
        if case.mask is None and any(needs_mask(member.config) for member in self.members):
            raise DataError(
                case.reference.path,
                "no mask is given with it, and this model was trained with masks: give one as in "
                "training (a folder named so, a .csv with a column for it, or mask= in Python), or "
                "preprocess.mask=otsu_plus or another rule to have it computed",
            )
        return Ready(case, prepare(self.members, case))

    def run(
        self, ready: Ready, *, probabilities: bool = False, spool: Path | None = None
    ) -> Prediction:
        """Predict a case that has been prepared, up to the first step that looks at a whole volume.

        Args:
            ready: The case.
            probabilities: Whether to keep the class probabilities, be it for the steps to come.
            spool: A folder: where no step needs them, they go into a temporary file there, and
                become the prediction's `stack`.

        Raises:
            NonFiniteError: A network gave NaN or infinity.
            OutOfMemoryError: There is not enough memory for one window at a time.
        """
        settings = self.config.inference
        in_memory = any(map(needs_probabilities, self._steps)) or (probabilities and spool is None)
        to_disk = None
        if probabilities and not in_memory and spool is not None:
            to_disk = partial(Spool, spool, stored=settings.probability_type)
        wanted = Wanted(in_memory, to_disk, settings.uncertainty, self._first)
        return self._collect(ready, wanted)

    def postprocess(self, prediction: Prediction, *, probabilities: bool = False) -> Prediction:
        """Take the steps that are left: those of the model's config, and those tuned for it."""
        for n, step in enumerate(self._steps):
            if not (probabilities or any(map(needs_probabilities, self._steps[n:]))):
                prediction = replace(prediction, probabilities=None)
            prediction = step(prediction)
        return prediction if probabilities else replace(prediction, probabilities=None)

    @property
    def passes(self) -> int:
        """How many predictions are averaged (mirrored ones aside)."""
        return sum(len(member.config.inference.scales or (1,)) for member in self.members)

    def load_case(self, case: Case) -> LoadedCase:
        """Read a case of this model's channels, on the grid that its config says.

        Warns once where one is missing, and the model was trained with all.
        """
        if case.missing and self._is_first_to_warn():
            warnings.warn(
                f"channels are missing, and this model was trained with all of them "
                f"({', '.join(self.checkpoint.channels)}): what it makes of the rest is untested",
                stacklevel=2,
            )
        policy = Policy.of(self.config.data)
        channels = self.checkpoint.channels
        return load_case(case, Dataset((case,), channels, self.labels, policy=policy))

    def _is_first_to_warn(self) -> bool:
        with self._warning:
            first, self._is_warned = not self._is_warned, True
        return first

    def _collect(self, ready: Ready, wanted: Wanted) -> Prediction:
        case = ready.case
        passes = [
            member.over(prepared)
            for member, some in zip(self.members, ready.prepared, strict=True)
            for prepared in some
        ]
        whole = Prediction(
            labels=np.zeros(case.reference.shape, dtype=np.uint8),
            image=case.image,
            affine=case.reference.affine,
            mask=ready.prepared[0][0].region,
        )
        return collect(passes, whole, wanted, self.config.inference.memory, self._shares(ready))

    def _shares(self, ready: Ready) -> list[float] | None:
        """Of each pass in the mean; None: all the same."""
        if self.weights is None:
            return None
        pairs = zip(self.weights, ready.prepared, strict=True)
        return [weight / len(some) for weight, some in pairs for _ in some]


def _divided(found: Sequence[Step]) -> tuple[list[Step], list[Step]]:
    """The leading steps that look at each voxel alone, and the others."""
    n = next((n for n, step in enumerate(found) if not is_pointwise(step)), len(found))
    return [*found[:n]], [*found[n:]]


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
