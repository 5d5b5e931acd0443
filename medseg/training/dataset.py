"""Patches for the training loop, made in any number of worker processes alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from medseg import plugins
from medseg.config.schema import ComponentSpec, Train
from medseg.errors import MedsegError, PluginError
from medseg.registry import TRANSFORMS
from medseg.training.cache import CachedCase
from medseg.training.sampling import Sampling, cut

Batch = dict[str, torch.Tensor]
_NO_VOXELS = np.zeros((0, 2), dtype=np.int64)


class Patches(Dataset[Any]):
    """The n-th training patch, for every n. Pickles as its configuration: objects are built later.

    Args:
        cases: What to cut from.
        sampling: Which patch is the n-th.
        transforms: Specs of further transforms of each patch.
        references: Plugins that those may come from.
    """

    def __init__(
        self,
        cases: Sequence[CachedCase],
        sampling: Sampling,
        transforms: Sequence[ComponentSpec] = (),
        references: Sequence[str] = (),
    ) -> None:
        self.cases, self.sampling = tuple(cases), sampling
        self.transforms, self.references = tuple(transforms), tuple(references)
        self._built: list[tuple[str, Any]] | None = None

    def __reduce__(self) -> tuple[type[Patches], tuple[Any, ...]]:
        return Patches, (self.cases, self.sampling, self.transforms, self.references)

    def __getitem__(self, n: int) -> Any:
        """Return a dict with "image" (C, I, J, K), "label" (I, J, K), "spacing" (3,), or an error.

        An error is returned, not raised: it would lose its type on the way from a worker.
        """
        try:
            return self._patch(n)
        except MedsegError as error:
            return error

    def _patch(self, n: int) -> Batch:
        case = self.cases[self.sampling.case(n, len(self.cases))]
        rng = self.sampling.generator(n)
        label = case.label()
        voxels = case.voxels() if self.sampling.foreground else _NO_VOXELS
        start = self.sampling.start(rng, label.shape, voxels)
        data: dict[str, Any] = {
            "image": cut(case.image(), start, self.sampling.patch, edge=True),
            "label": cut(label, start, self.sampling.patch, edge=False)[None],
        }
        for name, transform in self._transforms():
            data = _applied(name, transform, data, rng, case.id)
        return {
            "image": torch.from_numpy(np.array(data["image"], dtype=np.float32)),
            "label": torch.from_numpy(np.array(data["label"][0], dtype=np.int64)),
            "spacing": torch.tensor(case.spacing, dtype=torch.float32),
        }

    def _transforms(self) -> list[tuple[str, Any]]:
        if self._built is None:
            if self.transforms:
                plugins.load(self.references)
            self._built = [(spec.name, TRANSFORMS.build(spec.spec())) for spec in self.transforms]
        return self._built


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
