"""Each lesion by itself: where it lies, how large it is, what became of it; as a table and painted.

`docs/lesions.md` has the columns of the table and the values of the map.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from medseg import files
from medseg.evaluation.lesion_matching import NOBODY, Integers, Labels
from medseg.evaluation.lesions import Matching
from medseg.volumes.geometry import voxel_size
from medseg.volumes.image import Affine

Kind = Literal["found", "missed", "false", "not counted"]
Triple = tuple[float, float, float]

FOUND, MISSED, FALSE, BEYOND, UNCOUNTED = 1, 2, 3, 4, 5
"""Values of a painted map: found (the truth), missed, false, the part of a prediction that found
something beyond the truth, and not counted."""
COLUMNS = (
    *("case", "class", "map", "lesion", "kind", "centroid_r_mm", "centroid_a_mm", "centroid_s_mm"),
    *("volume_mm3", "extent_i_mm", "extent_j_mm", "extent_k_mm"),
    *("matched", "iou", "dice", "confidence", "touches"),
)
_DIGITS = 4  # after the point: a tenth of a micrometre is enough


@dataclass(frozen=True)
class Lesion:
    """A true or a predicted lesion of one class of one case.

    Args:
        map: Whether it is of the truth or of the prediction.
        number: In its map, from 1, in the order of its first voxel (k fastest).
        kind: "found": a true lesion that was found, or a predicted one that found one.
        centroid_mm: Mean place of its voxels' centres in the patient, (R, A, S).
        volume_mm3: Its volume.
        extent_mm: Of the box around its voxels, along (i, j, k).
        matched: The number of its partner in the other map; None: it has none.
        iou: With the partner.
        dice: With the partner.
        confidence: Of a predicted lesion the mean probability of the class in it; of a true one the
            highest threshold on that at which it is found. None: unknown, or not found.
        touches: How many lesions of the other map share voxels with it, true ones that are not
            counted left out; two or more: it was split (true) or merges several (predicted).
    """

    map: Literal["truth", "prediction"]
    number: int
    kind: Kind
    centroid_mm: Triple
    volume_mm3: float
    extent_mm: Triple
    matched: int | None
    iou: float | None
    dice: float | None
    confidence: float | None
    touches: int

    def row(self) -> dict[str, Any]:
        """Its part of a line of the table, by column; None: blank."""
        numbers = {
            **dict(zip(COLUMNS[5:8], self.centroid_mm, strict=True)),
            "volume_mm3": self.volume_mm3,
            **dict(zip(COLUMNS[9:12], self.extent_mm, strict=True)),
            "iou": self.iou,
            "dice": self.dice,
            "confidence": self.confidence,
        }
        return {
            "map": self.map,
            "lesion": self.number,
            "kind": self.kind,
            "matched": self.matched,
            "touches": self.touches,
            **{k: None if value is None else round(value, _DIGITS) for k, value in numbers.items()},
        }


def records(found: Matching, affine: Affine) -> tuple[Lesion, ...]:
    """Describe all lesions, the true ones first.

    Args:
        found: The lesions.
        affine: (4, 4), voxel index of the whole volume to RAS+ mm.
    """
    touched, touching = found.touched
    partners = found.partners
    kinds = [
        "found" if hit else "missed" if counts else "not counted"
        for hit, counts in zip(partners.found, found.counted, strict=True)
    ]
    true = _described(
        "truth", found, affine, kinds, partners.of_true, partners.found_at.tolist(), touched
    )
    kinds = [
        "found" if hit else "false" if wrong else "not counted"
        for hit, wrong in zip(partners.right, found.false, strict=True)
    ]
    sure = [np.nan] * len(kinds) if found.confidence is None else found.confidence.tolist()
    predicted = _described(
        "prediction", found, affine, kinds, partners.of_predicted, sure, touching
    )
    return (*true, *predicted)


def painted(found: Matching, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """A map (I, J, K) of what became of each lesion, with the values above.

    Where several are true of a voxel, a missed lesion goes over a false one, that over a found one,
    and that over all else: what is wrong is never hidden.
    """
    true = np.where(found.partners.found, FOUND, np.where(found.counted, MISSED, UNCOUNTED))
    predicted = np.where(found.false, FALSE, np.where(found.partners.right, BEYOND, UNCOUNTED))
    rank = np.array([0, 3, 5, 4, 2, 1], dtype=np.uint8)  # of background and the values in order
    codes = [np.append(0, kinds).astype(np.uint8) for kinds in (true, predicted)]
    ranks = np.maximum(rank[codes[0]][found.true], rank[codes[1]][found.predicted])
    painting = np.zeros(shape, dtype=np.uint8)
    painting[found.box] = np.argsort(rank).astype(np.uint8)[ranks]
    return painting


def write_table(path: Path, rows: Iterable[dict[str, Any]], columns: Sequence[str]) -> None:
    """Write rows as CSV, atomically; no text in it is a formula to a spreadsheet.

    Raises:
        DataError: It cannot be written.
    """
    with (
        files.atomic(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows({key: harmless(value) for key, value in row.items()} for row in rows)


def harmless(value: Any) -> Any:
    """A cell that no spreadsheet will run: text that begins as a formula does gets an apostrophe.

    As OWASP advises against CSV injection; numbers stay what they are.
    """
    is_formula = isinstance(value, str) and value.lstrip(" ").startswith(
        tuple("=+-@\t\r\n＝＋－＠")
    )
    return f"'{value}" if is_formula else value


def folder_names(classes: Iterable[str]) -> dict[str, str]:
    """A folder for each class: its name in letters that every system takes, each once."""
    names: dict[str, str] = {}
    for number, name in enumerate(classes, start=1):
        plain = re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._") or "class"
        is_taken = plain.lower() in {other.lower() for other in names.values()}
        names[name] = f"{plain}-{number}" if is_taken else plain
    return names


def _described(
    of: Literal["truth", "prediction"],
    found: Matching,
    affine: Affine,
    kinds: Sequence[Any],
    partner: Integers,
    confidence: Sequence[float],
    touches: Integers,
) -> Iterator[Lesion]:
    """One record for each lesion of a map."""
    labels = found.true if of == "truth" else found.predicted
    overlaps = found.overlaps
    voxels, others = overlaps.true_voxels, overlaps.predicted_voxels
    pairs = zip(overlaps.true.tolist(), overlaps.predicted.tolist(), strict=True)
    common = dict(zip(pairs, overlaps.common.tolist(), strict=True))
    if of == "prediction":
        voxels, others = others, voxels
    places = _centroids(labels, voxels, found.box, affine)
    extents = _extents(labels, voxel_size(affine))
    for n, kind in enumerate(kinds):
        other = int(partner[n])
        iou = dice = None
        if other != NOBODY:
            shared = common[(n, other) if of == "truth" else (other, n)]
            both = int(voxels[n] + others[other])
            iou, dice = shared / (both - shared), 2 * shared / both
        yield Lesion(
            map=of,
            number=n + 1,
            kind=kind,
            centroid_mm=places[n],
            volume_mm3=float(voxels[n] * found.voxel_mm3),
            extent_mm=extents[n],
            matched=None if other == NOBODY else other + 1,
            iou=iou,
            dice=dice,
            confidence=None if np.isnan(confidence[n]) else float(confidence[n]),
            touches=int(touches[n]),
        )


def _centroids(
    labels: Labels, voxels: Integers, box: tuple[slice, ...], affine: Affine
) -> list[Triple]:
    """The mean place of each lesion in RAS+ mm."""
    inside = np.nonzero(labels)
    number = labels[inside]
    sums = [np.bincount(number, axis, voxels.size + 1)[1:] for axis in inside]
    means = np.stack(sums) / voxels + np.array([[part.start] for part in box])
    places: list[Triple] = list(map(tuple, (affine[:3, :3] @ means + affine[:3, 3:]).T.tolist()))
    return places


def _extents(labels: Labels, spacing: Triple) -> list[Triple]:
    """The size of the box around each lesion, in mm along (i, j, k)."""
    return [
        (
            (i.stop - i.start) * spacing[0],
            (j.stop - j.start) * spacing[1],
            (k.stop - k.start) * spacing[2],
        )
        for i, j, k in (ndimage.find_objects(labels) if labels.size else ())
    ]
