"""Patches for the training loop, made in any number of worker processes alike."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from medseg import plugins
from medseg.config.schema import ComponentSpec, Config, Train
from medseg.errors import MedsegError, PluginError
from medseg.registry import SAMPLERS, TRANSFORMS
from medseg.training.cache import CachedCase
from medseg.training.orphans import end_with_parent
from medseg.training.samplers import Site, Start
from medseg.training.sampling import Sampling, copy_patch, cut, spread
from medseg.training.workers import death
from medseg.volumes.image import Array

_PLACES = 20_000  # voxels of a region or map that are known to a sampler


class Batch(TypedDict):
    """Patches of one step, N, with the margin of the network around them.

    Keys:
        image: (N, C, I, J, K) float32.
        label: (N, I, J, K) uint8 class indices.
        spacing: (N, 3) voxel size in mm.
        present: (N, C) bool, false for a channel that is missing.
        case: The N cases' names.
    """

    image: Tensor
    label: Tensor
    spacing: Tensor
    present: Tensor
    case: list[str]


@dataclass(frozen=True)
class Recipe:
    """What is done to make a patch: plain values, so that every worker can build the same.

    Args:
        sampling: Which patch is the n-th.
        sampler: Where it lies.
        classes: Of the model, background included.
        transforms: Further transforms of each patch.
        references: Plugins that these may come from.
    """

    sampling: Sampling
    sampler: ComponentSpec
    classes: int
    transforms: tuple[ComponentSpec, ...] = ()
    references: tuple[str, ...] = ()


def recipe(config: Config, margin: tuple[int, int, int], classes: int) -> Recipe:
    """The recipe of a config for a network's margin and number of classes."""
    train = config.train
    return Recipe(
        Sampling(train.patch, config.seed, margin, train.roi),
        train.sampler,
        classes,
        config.augment.transforms,
        config.plugins,
    )


class Patches(Dataset[Any]):
    """The n-th training patch, for every n. Pickles as its configuration: objects are built later.

    Args:
        cases: What to cut from.
        recipe: How.
    """

    def __init__(self, cases: Sequence[CachedCase], recipe: Recipe) -> None:
        self.cases, self.recipe = tuple(cases), recipe
        self.sampling = recipe.sampling
        self._built: tuple[Any, list[tuple[str, Any]]] | None = None

    def __reduce__(self) -> tuple[type[Patches], tuple[Any, ...]]:
        return Patches, (self.cases, self.recipe)

    def __getitem__(self, n: int) -> dict[str, Any] | MedsegError:
        """A `Batch` of the n-th patch alone, without its first axis."""
        batch = self.__getitems__([n])
        return batch if isinstance(batch, MedsegError) else {k: v[0] for k, v in batch.items()}  # type: ignore[index]

    def __getitems__(self, numbers: Sequence[int]) -> Batch | MedsegError:
        """Return a batch of patches, or an error.

        An error is returned, not raised: it would lose its type on the way from a worker.
        """
        try:
            return self._batch(numbers)
        except MedsegError as error:
            return error

    def target(self, n: int) -> Array:
        """The label (i, j, k) of the n-th patch alone, before any change: for counting classes."""
        case, rng = self._case(n), self.sampling.generator(n)
        sampler, _ = self._components()
        if getattr(sampler, "resizes", False):
            whole: Array = _small_label(case, self.sampling)[0]
            return whole
        start = self._start(case, rng, n)
        return cut(case.label(), start, self.sampling.patch, edge=False)

    def _case(self, n: int) -> CachedCase:
        return self.cases[self.sampling.case(n, len(self.cases))]

    def _start(self, case: CachedCase, rng: np.random.Generator, n: int) -> Start:
        label = case.label()
        site = Site(
            shape=label.shape,
            patch=self.sampling.patch,
            voxels=case.voxels(),
            label=label,
            inside=_inside(case) if self.sampling.roi else None,
            weighted=_weighted(case),
            turn=n // len(self.cases),
        )
        sampler, _ = self._components()
        try:
            return self.sampling.start(sampler, rng, site)
        except PluginError as error:
            raise PluginError(f"case {case.id!r}: {error}") from error

    def _batch(self, numbers: Sequence[int]) -> Batch:
        cases = [self._case(n) for n in numbers]
        _, size = self.sampling.grown((0, 0, 0))
        channels = len(cases[0].image())
        image = torch.empty(len(cases), channels, *size)
        label = torch.empty(len(cases), *size, dtype=torch.uint8)
        for n, case, x, y in zip(numbers, cases, image.numpy(), label.numpy(), strict=True):
            try:
                self._patch(n, case, x, y)
            except MemoryError as error:
                raise MedsegError(
                    f"case {case.id!r}: no memory to make a patch of it; set fewer train.workers"
                ) from error
        return {
            "image": image,
            "label": label,
            "spacing": torch.tensor([case.spacing for case in cases]),
            "present": torch.tensor(
                [[channel not in case.missing for channel in range(channels)] for case in cases]
            ),
            "case": [case.id for case in cases],
        }

    def _patch(self, n: int, case: CachedCase, image: Array, label: Array) -> None:
        """Write the n-th patch into an image (C, I, J, K) and a label (I, J, K)."""
        rng = self.sampling.generator(n)
        sampler, transforms = self._components()
        if getattr(sampler, "resizes", False):
            whole, start = _resized(case, self.sampling), (0, 0, 0)
        else:
            whole, start = (case.image(), case.label()), self._start(case, rng, n)
        start, _ = self.sampling.grown(start)
        copy_patch(image, whole[0], start, edge=True)
        copy_patch(label, whole[1], start, edge=False)
        data = {"image": image, "label": label[None]}
        for name, transform in transforms:
            data = _applied(name, transform, data, rng, case.id)
        if transforms:
            image[...], label[...] = data["image"], data["label"][0]

    def _components(self) -> tuple[Any, list[tuple[str, Any]]]:
        if self._built is None:
            recipe = self.recipe
            if recipe.transforms or recipe.references:
                plugins.load(recipe.references)
            sampler = SAMPLERS.build(recipe.sampler.spec(), classes=recipe.classes)
            built = [(spec.name, TRANSFORMS.build(spec.spec())) for spec in recipe.transforms]
            self._built = sampler, built
        return self._built


@lru_cache(maxsize=512)
def _inside(case: CachedCase) -> Array | None:
    """Some voxels of a case's region of interest, spread evenly."""
    mask = case.mask()
    return None if mask is None else spread(np.asarray(mask), _PLACES)


@lru_cache(maxsize=512)
def _weighted(case: CachedCase) -> Array | None:
    """Some voxels of a case, as often as its map of weights has them."""
    weights = case.weights()
    return None if weights is None else spread(np.asarray(weights), _PLACES)


def _resized(case: CachedCase, sampling: Sampling) -> tuple[Array, Array]:
    """A whole case at the size of a patch: image and label."""
    image = torch.from_numpy(np.array(case.image()))[None]
    small = functional.interpolate(image, sampling.patch, mode="trilinear")[0].numpy()
    return small, _small_label(case, sampling)[0]


def _small_label(case: CachedCase, sampling: Sampling) -> Array:
    label = torch.from_numpy(np.array(case.label()))[None, None].float()
    small = functional.interpolate(label, sampling.patch, mode="nearest-exact")[0]
    return small.numpy().astype(np.uint8)


def _applied(
    name: str, transform: Any, data: dict[str, Any], rng: np.random.Generator, case: str
) -> dict[str, Any]:
    try:
        given = (transform.sample(rng),) if hasattr(transform, "sample") else ()
        result: dict[str, Any] = transform(data, *given)
        shapes = [(data[key].shape, result[key].shape) for key in ("image", "label")]
    except Exception as error:
        raise PluginError(f"transform {name!r} failed on case {case!r}: {error!r}") from error
    if any(before != after for before, after in shapes):
        raise PluginError(f"transform {name!r} changed the shape of a patch of case {case!r}")
    return result


def batches(
    patches: Patches, settings: Train, first: int, *, stride: int = 1, pin: bool
) -> Generator[Batch]:
    """Batches from a number on, without end.

    Args:
        patches: Whose n-th belongs to batch n // `settings.batch`.
        settings: The `train` section.
        first: The number of the first batch.
        stride: From one number to the next: other processes take the batches between.
        pin: Whether to give them in pinned memory.

    Raises:
        MedsegError: A patch could not be made; the message names the case.
    """
    loader: DataLoader[Any] = DataLoader(
        patches,
        batch_size=settings.batch,
        sampler=_numbers(first, stride, settings.batch),
        num_workers=settings.workers,
        multiprocessing_context=settings.start_method if settings.workers else None,
        collate_fn=_as_it_is,
        worker_init_fn=end_with_parent,
        pin_memory=pin,
    )
    stream = iter(loader)
    try:
        for batch in stream:
            if isinstance(batch, MedsegError):
                raise batch
            yield batch
    except (RuntimeError, EOFError, OSError) as error:
        died = death(stream._workers, settings) if settings.workers else None  # type: ignore[attr-defined]
        if died is None:
            raise
        raise died from error
    finally:  # an error on its way would keep the workers as long as itself
        if settings.workers:
            stream._shutdown_workers()  # type: ignore[attr-defined]


def _numbers(first: int, stride: int, size: int) -> Iterator[int]:
    """The numbers of the patches of each stride-th batch."""
    for batch in count(first, stride):
        yield from range(batch * size, (batch + 1) * size)


def _as_it_is(batch: Any) -> Any:
    """A batch is made as a whole (`Patches.__getitems__`)."""
    return batch
