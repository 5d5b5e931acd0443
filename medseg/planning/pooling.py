"""From cases to a fingerprint: one pass, of each case only figures and a sample stay."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations

import numpy as np

from medseg.errors import DataError, DataErrors, raise_all
from medseg.planning.casework import CaseWork, measure
from medseg.planning.fingerprint import (
    PERCENTS,
    ChannelPrint,
    ClassPrint,
    Fingerprint,
    Intensities,
    Sides,
    Triple,
)
from medseg.planning.words import modality
from medseg.volumes.dataset import Case, Dataset
from medseg.volumes.image import Array

# Air is -1000 HU and the densest bone below 3100: an image that shows both is one of CT.
_CT_AIR, _CT_BONE, _CT_MOST = -900.0, 150.0, 4100.0


def take(
    dataset: Dataset,
    tick: Callable[[], None] | None = None,
    *,
    classes: bool = True,
    threads: int = 2,
) -> Fingerprint:
    """Measure every case of a dataset.

    Args:
        dataset: The cases.
        tick: Called after each.
        classes: Whether the dataset knows the classes; else each label value found is one.
        threads: Cases read at the same time; decompression runs beside Python.

    Raises:
        DataError: A case cannot be used or has no label, or no case has anything labelled.
        DataErrors: All that is wrong, file by file.
    """
    unlabelled = [case for case in dataset.cases if case.label is None]
    raise_all([_without_label(case) for case in unlabelled])
    works: list[CaseWork] = []
    errors: list[DataError] = []

    def work(numbered: tuple[int, Case]) -> CaseWork | Exception:
        try:
            return measure(numbered[1], dataset, numbered[0], classes)
        except (DataError, DataErrors) as error:
            return error

    with ThreadPoolExecutor(threads) as pool:
        for found in pool.map(work, enumerate(dataset.cases)):
            if isinstance(found, CaseWork):
                works.append(found)
            elif isinstance(found, DataErrors):
                errors += found.errors
            elif isinstance(found, DataError):
                errors.append(found)
            if tick is not None:
                tick()
    raise_all(errors)
    if not any(found.counts for found in works):
        raise DataError(
            dataset.source,
            f"none of {len(works)} cases has a labelled voxel: nothing could be learnt; give "
            "--label, or --mask for what is no label",
        )
    return pooled(works, dataset.channels)


def _without_label(case: Case) -> DataError:
    return DataError(case.files[0], f"case {case.id!r} has no label: give --label PATTERN")


def pooled(works: Sequence[CaseWork], channels: Sequence[str]) -> Fingerprint:
    """One fingerprint of what was found in each case."""
    shapes = np.array([work.shape for work in works], dtype=float)
    spacings = np.array([work.spacing for work in works])
    sizes = shapes * spacings
    contents = np.array([work.content for work in works]) * spacings
    found = dict.fromkeys(name for work in works for name in work.regions)
    names = sorted(found, key=_in_order)
    values = Counter(value for work in works for value in work.counts)
    return Fingerprint(
        cases=len(works),
        shape=(_triple(shapes.min(0)), _triple(np.median(shapes, 0)), _triple(shapes.max(0))),
        spacing=(
            _triple(spacings.min(0)), _triple(np.percentile(spacings, 10, 0)),
            _triple(np.median(spacings, 0)), _triple(spacings.max(0)),
        ),
        size_mm=(_triple(np.median(sizes, 0)), _triple(sizes.max(0))),
        content_mm=(_triple(np.median(contents, 0)), _triple(contents.max(0))),
        orientations=dict(Counter(work.orientation for work in works).most_common()),
        unplaced=sum(not work.is_placed for work in works),
        blank=float(np.median([work.blank for work in works])),
        is_corner_zero=all(work.is_corner_zero for work in works),
        outside=max(work.outside for work in works),
        channels=tuple(_channel(name, n, works) for n, name in enumerate(channels)),
        classes=tuple(_class(name, works) for name in names),
        sides=tuple(_sides(one, other, works) for one, other in combinations(names, 2)),
        label_values=dict(sorted(values.items())),
        masked=sum(work.has_mask for work in works),
    )  # fmt: skip


def _channel(name: str, number: int, works: Sequence[CaseWork]) -> ChannelPrint:
    found = [work.channels[number] for work in works]
    there = [values for values in found if values is not None]
    if not there:
        raise DataError(name, "this channel is missing in every case: leave it out, or correct it")
    everywhere = _intensities(np.concatenate([values.everywhere for values in there]))
    inside = np.concatenate([values.foreground for values in there])
    is_whole = all(values.is_whole for values in there)
    named = modality(name)
    by_values = "ct" if named == "other" and is_whole and _is_ct(everywhere) else named
    return ChannelPrint(
        name=name,
        modality=by_values,
        told_by="name" if named != "other" else "values",
        everywhere=everywhere,
        foreground=_intensities(inside) if inside.size else None,
        zero=float(np.median([values.zero for values in there])),
        negative=float(np.median([values.negative for values in there])),
        is_whole=is_whole,
        missing=len(found) - len(there),
    )


def _is_ct(values: Intensities) -> bool:
    low, high = values.percentiles[0.5], values.percentiles[99.5]
    return low <= _CT_AIR and _CT_BONE <= high <= _CT_MOST


def _intensities(values: Array) -> Intensities:
    found = np.percentile(values, PERCENTS).tolist()
    mean, sd = float(values.mean(dtype=np.float64)), float(values.std(dtype=np.float64))
    return Intensities(dict(zip(PERCENTS, found, strict=True)), mean, sd)


def _class(name: str, works: Sequence[CaseWork]) -> ClassPrint:
    there = [work for work in works if name in work.regions]
    regions = [work.regions[name] for work in there]
    counts = np.array([len(region.sizes) for region in regions])
    ml = np.array([region.sizes.sum() / 1000 for region in regions])
    share = [r.voxels / np.prod(w.shape) for r, w in zip(regions, there, strict=True)]
    sizes = np.concatenate([region.sizes for region in regions])
    return ClassPrint(
        name=name,
        cases=len(there),
        share=float(np.median(share)),
        ml=_triple((ml.min(), np.median(ml), ml.max())),
        count=_triple((counts.min(), np.median(counts), counts.max())),
        size_mm3=_triple(np.percentile(sizes, (5, 50, 95))),
        mean_mm3=float(sizes.mean()),
        single=float((counts == 1).mean()),
    )


def _sides(one: str, other: str, works: Sequence[CaseWork]) -> Sides:
    both = [work.regions for work in works if {one, other} <= set(work.regions)]
    if not both:
        return Sides((one, other), (0.0, 0.0, 0.0), (0.0, 0.0, 0.0), 0)
    apart = np.array([np.subtract(r[one].centre, r[other].centre) for r in both])
    return Sides((one, other), _triple(apart.mean(0)), _triple(apart.std(0)), len(both))


def _in_order(name: str) -> tuple[bool, int]:
    """Label values by number; names stay in the order in which the config has them."""
    return (False, int(name)) if name.isdecimal() else (True, 0)


def _triple(values: Iterable[float]) -> Triple:
    i, j, k = (float(value) for value in values)
    return i, j, k
