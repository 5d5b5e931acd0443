"""All that can be wrong is found here, before the first step and before a file is written."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
from torch import nn

from medseg import plugins
from medseg.config.schema import Config
from medseg.config.source import dotted
from medseg.errors import ConfigError
from medseg.inference.steps import build_all
from medseg.inference.subsets import check_subsets
from medseg.inference.window import check_patch
from medseg.networks.assembly import Network, build_network, check_output_weights
from medseg.networks.describe import output_shapes
from medseg.networks.load_report import LoadReport
from medseg.networks.pretrained import load_pretrained
from medseg.networks.sizes import beyond
from medseg.registry import LOGGERS, LOSSES, SAMPLERS, TRANSFORMS
from medseg.training.finetune import FineTuning
from medseg.training.losses import DeepSupervision
from medseg.training.samplers import Site
from medseg.training.sampling import Sampler, Sampling
from medseg.training.short_axes import ShortAxesInFloat32
from medseg.transforms import foreground
from medseg.transforms.fitted import Fitted, build
from medseg.transforms.preprocess import Preprocessor, Spacing
from medseg.volumes import cases
from medseg.volumes.check import CheckReport, check_cases, judged
from medseg.volumes.dataset import Dataset
from medseg.volumes.split import SplitIds, chosen, given, split
from medseg.volumes.stratify import strata

_AXES = {"L": 0, "R": 0, "P": 1, "A": 1, "I": 2, "S": 2}


@dataclass(frozen=True, eq=False)
class Setup:
    """A run that is ready to start.

    Args:
        config: The run's configuration.
        dataset: All cases found, those of the split only.
        ids: Who trains and who validates.
        report: What was found in each file.
        spacing: Voxel size in mm to resample to; None: each volume's own.
        network: Freshly initialised, on the CPU, or with the weights to start from.
        loss: Of all the network's outputs.
        tuning: Which levels of the network train, and how fast.
        pretrained: What was taken from a file of weights; None: nothing was to be.
        fitted: What transforms learnt from the training cases; None: they have not yet.
    """

    config: Config
    dataset: Dataset
    ids: SplitIds
    report: CheckReport
    spacing: Spacing | None
    network: Network
    loss: nn.Module
    tuning: FineTuning
    pretrained: LoadReport | None
    fitted: Fitted | None = None

    @property
    def classes(self) -> int:
        """Channels of the network's output, background included."""
        return len(self.dataset.labels.values) + 1

    @property
    def preprocessor(self) -> Preprocessor:
        """What happens to each case first."""
        return Preprocessor(
            self.config.preprocess,
            self.spacing,
            self.config.plugins,
            channels=self.dataset.channels,
            fitted=self.fitted,
        )


def set_up(
    config: Config,
    tick: Callable[[], None] | None = None,
    *,
    take_weights: bool = True,
    ids: SplitIds | None = None,
) -> Setup:
    """Find and check the cases, build the network, and see that they fit together.

    Args:
        config: Of the run.
        tick: Called after each checked case.
        take_weights: Whether the network takes the weights that the config names, if it does; a
            run to resume has its own.
        ids: Who trains and who validates; None: as the config says.

    Raises:
        ConfigError: The model or the patch does not fit, or a component refuses its options.
        DataErrors: All that is wrong with the data, file by file.
        DataError: The weights to start from cannot be used.
        PluginError: A plugin cannot be loaded.
    """
    plugins.load(config.plugins)
    config = config.model_copy(update={"data": cases.resolve(config.data)})
    dataset = cases.find(config.data)
    if ids is None:
        found = given(dataset, config.data.split)
        ids = None if found is None else chosen(found, config.data.split)
    if ids is not None:
        dataset = dataset.only((*ids.train, *ids.validation))
    classes = len(dataset.labels.values) + 1
    channels = len(dataset.channels)
    if config.evaluation.subsets:
        check_subsets(channels)
    with _errors_within("model"):
        network = build_network(config.model, channels, classes, config.seed)
    ShortAxesInFloat32.adopt(network)
    with _errors_within("train"):
        tuning = FineTuning(network, channels, config.train)
    check_patch(config, network.divisor)
    with _errors_within("loss"):
        regions = dataset.labels.regions
        loss = LOSSES.build(config.loss.spec(), classes=classes, regions=regions)
    loss = DeepSupervision(loss, network.output_weights)
    _try_components(config, dataset)
    _try_patch(config, network, channels)
    with _errors_within("model"):
        pretrained = (
            load_pretrained(network, config.model, dataset.channels) if take_weights else None
        )
    region = partial(foreground.with_mask, rule=config.preprocess.mask)
    train = None if ids is None else ids.train
    report = check_cases(dataset, need_labels=True, train=train, progress=tick, region=region)
    report.raise_problems()
    if ids is None:  # drawn by what the labels hold
        ids = split(dataset, config.data.split, config.seed, strata(report, dataset.labels))
        report = judged(report, dataset, ids.train)
        report.raise_problems()
    for note in report.notes:
        warnings.warn(note, stacklevel=2)
    spacing = _spacing(config, report, ids)
    return Setup(config, dataset, ids, report, spacing, network, loss, tuning, pretrained)


@contextmanager
def _errors_within(section: str) -> Iterator[None]:
    """Say where in the config the errors of one of its sections are."""
    try:
        yield
    except ConfigError as error:
        where = (section, *error.path)
        raise ConfigError(f"{dotted(where)}: {error}", where) from error


def _try_patch(config: Config, network: Network, channels: int) -> None:
    """See that the network takes the patch, by shapes alone."""
    patch = config.train.patch
    try:
        size = beyond(patch, network.margin)
        shapes = output_shapes(network, channels, size, config.train.batch)
    except NotImplementedError:  # of an operation that cannot be tried without computing
        return
    except (ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"train.patch: the network cannot be trained on {list(patch)} voxels: {reason}; try a "
            "larger patch",
            ("train", "patch"),
        ) from error
    with _errors_within("model"):
        check_output_weights(network.output_weights, len(shapes))


def _try_components(config: Config, dataset: Dataset) -> None:
    """Build what would otherwise be built only in workers, or after the training."""
    with _errors_within("train"):
        _try_sampler(config, dataset)
        _try_loggers(config)
    build(config.preprocess.normalise, dataset.channels)
    for spec in config.augment.transforms:
        TRANSFORMS.build(spec.spec())
    build_all(config.postprocess, dataset.labels)


def _try_sampler(config: Config, dataset: Dataset) -> None:
    name, classes = config.train.sampler.name, len(dataset.labels.values) + 1
    try:
        sampler = SAMPLERS.build(config.train.sampler.spec(), classes=classes)
    except ConfigError as error:
        raise ConfigError(str(error), ("sampler", *error.path)) from error
    if getattr(sampler, "needs_weights", False) and config.data.weights is None:
        raise ConfigError(
            f"sampler {name!r} needs data.weights, a map for each case that says where to sample",
            ("sampler",),
        )
    _drawn_once(sampler, config)
    resizes = getattr(sampler, "resizes", False)
    if resizes != (config.inference.mode == "resize"):
        told = "resizes" if resizes else "does not resize"
        raise ConfigError(
            f"sampler {name!r} {told} volumes to the patch, so that prediction must do the same: "
            f"inference.mode is {config.inference.mode!r}",
            ("sampler",),
        )


def _try_loggers(config: Config) -> None:
    for n, spec in enumerate(config.train.loggers):
        try:
            LOGGERS.build(spec.spec())
        except ConfigError as error:
            raise ConfigError(str(error), ("loggers", n, *error.path)) from error


def _drawn_once(sampler: Sampler, config: Config) -> None:
    """Let a sampler place one patch in a made-up case, so that it fails here if it fails at all."""
    patch = config.train.patch
    shape = [2 * n for n in patch]
    label = np.zeros(shape, dtype=np.uint8)
    label[-1, -1, -1] = 1
    last = label.size - 1
    voxels, some = np.array([[1, last]]), np.array([0, last])
    site = Site(shape, patch, voxels, label, some if config.train.roi else None, some)
    sampling = Sampling(patch, config.seed)
    sampling.start(sampler, sampling.generator(0), site)


def _spacing(config: Config, report: CheckReport, ids: SplitIds) -> Spacing | None:
    wanted = config.preprocess.spacing
    if wanted != "median":
        return wanted
    found = []
    for case in report.cases:
        if case.id in ids.train and case.spacing is not None:
            wanted_axes = config.preprocess.orientation or case.orientation
            along = {
                _AXES[code]: mm for code, mm in zip(case.orientation, case.spacing, strict=True)
            }
            found.append([along[_AXES[code]] for code in wanted_axes])
    i, j, k = np.median(found, axis=0).tolist()
    return i, j, k
