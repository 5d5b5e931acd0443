"""Patches for the training loop, made in any number of worker processes alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from medseg import plugins
from medseg.config.schema import ComponentSpec, Config, Train
from medseg.errors import MedsegError, PluginError
from medseg.registry import SAMPLERS, TRANSFORMS
from medseg.training.cache import CachedCase
from medseg.training.samplers import Site, Start
from medseg.training.sampling import Sampling, cut, spread
from medseg.volumes.image import Array

Batch = dict[str, torch.Tensor]
_PLACES = 20_000  # voxels of a region or map that are known to a sampler


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

    def __getitem__(self, n: int) -> Any:
        """Return a dict of a patch, or an error.

        The dict has "image" (C, I, J, K), "label" (I, J, K), "spacing" (3,), and "present" (C,),
        false for a channel that is missing.
        Both have the margin of the network around the patch. An error is returned, not raised: it
        would lose its type on the way from a worker.
        """
        try:
            return self._patch(n)
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
        return self.sampling.start(sampler, rng, site)

    def _patch(self, n: int) -> Batch:
        case, rng = self._case(n), self.sampling.generator(n)
        sampler, transforms = self._components()
        if getattr(sampler, "resizes", False):
            data = _resized(case, self.sampling)
        else:
            start, size = self.sampling.grown(self._start(case, rng, n))
            data = {
                "image": cut(case.image(), start, size, edge=True),
                "label": cut(case.label(), start, size, edge=False)[None],
            }
        for name, transform in transforms:
            data = _applied(name, transform, data, rng, case.id)
        return {
            "image": torch.from_numpy(np.array(data["image"], dtype=np.float32)),
            "label": torch.from_numpy(np.array(data["label"][0], dtype=np.int64)),
            "spacing": torch.tensor(case.spacing, dtype=torch.float32),
            "present": torch.tensor([n not in case.missing for n in range(len(data["image"]))]),
        }

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


def _resized(case: CachedCase, sampling: Sampling) -> dict[str, Any]:
    """A whole case at the size of a patch; around it its edge, as the margin."""
    image = torch.from_numpy(np.array(case.image()))[None]
    small = functional.interpolate(image, sampling.patch, mode="trilinear")[0].numpy()
    start, size = sampling.grown((0, 0, 0))
    return {
        "image": cut(small, start, size, edge=True),
        "label": cut(_small_label(case, sampling), start, size, edge=False),
    }


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


def batches(patches: Patches, settings: Train, first_step: int, *, pin: bool) -> Iterator[Batch]:
    """Batches from a step on, without end.

    Raises:
        MedsegError: A patch could not be made; the message names the case.
    """
    loader: DataLoader[Any] = DataLoader(
        patches,
        batch_size=settings.batch,
        sampler=range(first_step * settings.batch, 1 << 62),
        num_workers=settings.workers,
        multiprocessing_context=settings.start_method if settings.workers else None,
        collate_fn=_collate,
        pin_memory=pin,
    )
    for batch in loader:
        if isinstance(batch, MedsegError):
            raise batch
        yield batch


def _collate(items: list[Any]) -> Any:
    for item in items:
        if isinstance(item, MedsegError):
            return item
    return {key: torch.stack([item[key] for item in items]) for key in items[0]}
