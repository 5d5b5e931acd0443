"""Cases and what their labels mean: the values that every other room passes around."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from medseg.config.data import Data, Grids, Missing
from medseg.errors import ConfigError, DataError

IGNORE_INDEX = 255
"""The index of voxels that neither train nor score."""

Indices = npt.NDArray[np.uint8]
_BLOCK = 1 << 16  # voxels looked up at once: what comes in between stays in the cache


@dataclass(frozen=True)
class Channel:
    """One modality of a case.

    Args:
        path: The NIfTI file.
        index: Which volume of a 4D file, from 0; None: the file is 3D.
        volumes: How many volumes the 4D file must hold, where that is known.
    """

    path: Path
    index: int | None = None
    volumes: int | None = None


@dataclass(frozen=True)
class Case:
    """The files of one subject. A path is where the file has to be: `load_case` says if it is not.

    Args:
        id: Unique; it becomes the name of output files.
        channels: One for each channel of the dataset, in its order; None: it is missing.
        label: The label map, or None where the layout names none.
        mask: A region of interest, or None.
        weights: A map of where patches are drawn, or None.
    """

    id: str
    channels: tuple[Channel | None, ...]
    label: Path | None = None
    mask: Path | None = None
    weights: Path | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file of the case, once."""
        paths = [channel.path for channel in self.channels if channel is not None]
        others = (self.label, self.mask, self.weights)
        paths += [path for path in others if path is not None]
        return tuple(dict.fromkeys(paths))

    @property
    def missing(self) -> tuple[int, ...]:
        """The numbers of the channels that are missing, from 0."""
        return tuple(n for n, channel in enumerate(self.channels) if channel is None)


@dataclass(frozen=True)
class Labels:
    """What the values of a label map mean. The value 0 is background.

    Args:
        classes: Class (or region, which may overlap others): the label values that belong to it.
        ignore: The label value that neither trains nor scores.

    Raises:
        ConfigError: A value is out of range, or a class holds the ignored value.
    """

    classes: dict[str, tuple[int, ...]]
    ignore: int | None = None

    def __post_init__(self) -> None:
        if not self.values or min(self.values) < 1 or max(self.values) > 65535:
            raise ConfigError(
                f"label values must lie in 1 to 65535, got {list(self.values)}", ("data", "classes")
            )
        if len(self.values) >= IGNORE_INDEX:
            raise ConfigError(
                f"{len(self.values)} label values; at most {IGNORE_INDEX - 1} are possible",
                ("data", "classes"),
            )
        if self.ignore in (0, *self.values):
            raise ConfigError(
                f"the ignored label value {self.ignore} is also background or in a class; "
                "choose another",
                ("data", "ignore_label"),
            )

    @classmethod
    def of(cls, data: Data) -> Labels:
        """Read them from a config whose classes are given or resolved."""
        classes = {
            name: (values,) if isinstance(values, int) else tuple(values)
            for name, values in (data.classes or {}).items()
        }
        return cls(classes, data.ignore_label)

    @property
    def values(self) -> tuple[int, ...]:
        """All label values, ascending: the model's class i + 1 is `values[i]`."""
        return tuple(sorted({value for values in self.classes.values() for value in values}))

    @property
    def regions(self) -> tuple[tuple[int, ...], ...]:
        """For each class, or region, the model's classes that make it up."""
        return tuple(
            tuple(self.values.index(value) + 1 for value in values)
            for values in self.classes.values()
        )

    def to_indices(self, labels: npt.NDArray[np.integer], source: str | Path = "label") -> Indices:
        """Turn label values into class indices: 0, 1 to len(values), and IGNORE_INDEX.

        Args:
            labels: Label values, any shape.
            source: The file they came from; for the message.

        Raises:
            DataError: A value is neither background, in a class, nor the ignored one.
        """
        table = np.full(int(max(self.values[-1], self.ignore or 0)) + 1, -1, np.int16)
        table[[0, *self.values]] = np.arange(len(self.values) + 1)
        if self.ignore is not None:
            table[self.ignore] = IGNORE_INDEX
        order: Literal["F", "C"] = "F" if labels.flags.f_contiguous else "C"
        indices = np.empty(labels.shape, np.uint8, order=order)
        flat, out = labels.reshape(-1, order=order), indices.reshape(-1, order=order)
        for start in range(0, flat.size, _BLOCK):
            block = flat[start : start + _BLOCK]
            found = table.take(block, mode="clip")
            if block.min() < 0 or block.max() >= len(table) or found.min() < 0:
                raise DataError(source, self._unknown(labels))
            out[start : start + _BLOCK] = found
        return indices

    def to_values(self, indices: npt.NDArray[np.integer]) -> npt.NDArray[np.uint8 | np.uint16]:
        """Turn class indices back into label values (uint8, or uint16 where one exceeds 255)."""
        largest = max(self.values[-1], self.ignore or 0)
        table = np.zeros(IGNORE_INDEX + 1, np.uint8 if largest < 256 else np.uint16)
        table[1 : len(self.values) + 1] = self.values
        table[IGNORE_INDEX] = self.ignore or 0
        values: npt.NDArray[np.uint8 | np.uint16] = table[indices]
        return values

    def _unknown(self, labels: npt.NDArray[np.integer]) -> str:
        known = {0, *self.values} | ({self.ignore} if self.ignore is not None else set())
        all_values, all_counts = np.unique(labels, return_counts=True)
        wrong = ~np.isin(all_values, sorted(known))
        values, counts = all_values[wrong].tolist(), all_counts[wrong].tolist()
        got = [f"{v} ({n} voxels)" for v, n in zip(values[:5], counts[:5], strict=True)]
        got += [f"{len(values) - 5} more"] if len(values) > 5 else []
        listed = ", ".join(str(value) for value in (0, *self.values))
        listed += f" and {self.ignore} (ignored)" if self.ignore is not None else ""
        return (
            f"unknown label value {', '.join(got)}; known are {listed}: "
            "add it to data.classes or set data.ignore_label"
        )


@dataclass(frozen=True)
class Policy:
    """What a case may lack, or bring on another grid, and still be used: see docs/data.md.

    Args:
        reference: Name of the channel whose grid is the case's; None: the first.
        grids: Whether a channel on another grid is refused or resampled.
        missing: Whether a missing channel is refused or taken as zero.
    """

    reference: str | None = None
    grids: Grids = "refuse"
    missing: Missing = "refuse"

    @classmethod
    def of(cls, data: Data) -> Policy:
        """Read it from a config."""
        return cls(data.reference, data.grids, data.missing)


@dataclass(frozen=True)
class Dataset:
    """The cases of a run.

    Args:
        cases: In natural order of their ids.
        channels: Names of the channels, in the order the network sees them.
        labels: What label values mean.
        source: The folder or file that lists the cases; for messages.
        policy: What a case may lack, or bring on another grid.
    """

    cases: tuple[Case, ...]
    channels: tuple[str, ...]
    labels: Labels
    source: Path = Path()
    policy: Policy = Policy()

    def reference(self, case: Case) -> int:
        """The number of the channel whose grid is the case's: the policy's, or the first there is.

        Raises:
            DataError: The case has no channel.
        """
        there = [n for n in range(len(case.channels)) if n not in case.missing]
        if not there:
            raise DataError(case.id, "has no channels")
        wanted = self.policy.reference
        named = there[0] if wanted is None else self.channels.index(wanted)
        return named if named in there else there[0]

    def missing(self, case: Case) -> tuple[str, ...]:
        """The names of the channels that a case lacks."""
        return tuple(self.channels[n] for n in case.missing)

    def only(self, ids: Collection[str]) -> Dataset:
        """The same dataset with these cases alone."""
        wanted = set(ids)
        return replace(self, cases=tuple(case for case in self.cases if case.id in wanted))


def natural(text: str) -> tuple[object, ...]:
    """Sort key under which case_2 comes before case_10."""
    parts = re.split(r"([0-9]+)", text)
    return (*(int(part) if n % 2 else part.casefold() for n, part in enumerate(parts)), text)
