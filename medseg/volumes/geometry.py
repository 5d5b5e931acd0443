"""Where voxels lie in the patient: orientation, voxel size, and whether two grids agree.

An affine here is (4, 4) and takes a voxel index (i, j, k) to RAS+ millimetres: x grows towards the
patient's Right, y towards Anterior, z towards Superior.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations, product

import numpy as np

from medseg.volumes.image import Affine, Array

AXES = ("LR", "PA", "IS")  # the negative and the positive end of x, y, z
Triple = tuple[int, int, int]
TOLERANCE_MM = 1e-3
"""How far apart the voxels of two files may lie that are on one grid."""


def voxel_size(affine: Affine) -> tuple[float, float, float]:
    """Voxel size in mm along (i, j, k)."""
    with np.errstate(over="ignore"):
        i, j, k = np.sqrt((affine[:3, :3] ** 2).sum(axis=0)).tolist()
    return i, j, k


def orientation(affine: Affine) -> str:
    """Name the directions in which i, j and k grow, e.g. "LPS".

    Of all ways to pair the voxel axes with x, y, z, the one with the largest sum of |cosines|.
    """
    cosines = affine[:3, :3] / np.asarray(voxel_size(affine))
    pairing = max(permutations(range(3)), key=lambda p: sum(abs(cosines[p, range(3)])))
    return "".join(AXES[x][int(cosines[x, i] > 0)] for i, x in enumerate(pairing))


@dataclass(frozen=True)
class Reorient:
    """A permutation and mirroring of voxel axes, which moves no voxel in the patient.

    Args:
        axes: For each new axis, the old axis that it takes.
        flips: For each new axis, whether it runs backwards.
    """

    axes: Triple
    flips: tuple[bool, bool, bool]

    @classmethod
    def to(cls, affine: Affine, codes: str | None) -> Reorient:
        """Find the turn after which the axes grow most nearly towards `codes`.

        Args:
            affine: Of the array as it is.
            codes: Three directions, e.g. "RAS"; None: as they are.

        Raises:
            ValueError: `codes` does not name one end of each of left-right, posterior-anterior and
                inferior-superior.
        """
        now = orientation(affine)
        wanted = now if codes is None else codes
        if sorted(map(_axis, wanted)) != [0, 1, 2]:
            raise ValueError(
                f"orientation {codes!r}: name one of each of L/R, P/A, I/S, as RAS does"
            )
        old = [_axis(code) for code in now]
        i, j, k = (old.index(_axis(code)) for code in wanted)
        flip_i, flip_j, flip_k = (code not in now for code in wanted)
        return cls((i, j, k), (flip_i, flip_j, flip_k))

    def shape(self, shape: Triple) -> Triple:
        """Voxels (I, J, K) of the turned array, from those of the array as it was."""
        i, j, k = (shape[axis] for axis in self.axes)
        return i, j, k

    def apply(self, array: Array) -> Array:
        """Turn the last three axes. The result is a view."""
        lead = array.ndim - 3
        turned = array.transpose(*range(lead), *(lead + axis for axis in self.axes))
        return self._flip(turned)

    def undo(self, array: Array) -> Array:
        """Turn the last three axes back. The result is a view."""
        lead = array.ndim - 3
        return self._flip(array).transpose(
            *range(lead), *(lead + self.axes.index(axis) for axis in range(3))
        )

    def affine(self, affine: Affine, shape: Triple) -> Affine:
        """Give the affine of the turned array.

        Args:
            affine: Of the array as it was.
            shape: Voxels (I, J, K) of the array as it was.
        """
        old_index = np.zeros((4, 4))  # takes a new index to an old one
        old_index[3, 3] = 1
        for new, (old, flip) in enumerate(zip(self.axes, self.flips, strict=True)):
            old_index[old, new] = -1 if flip else 1
            old_index[old, 3] = shape[old] - 1 if flip else 0
        return np.asarray(affine @ old_index, dtype=np.float64)

    def _flip(self, array: Array) -> Array:
        i, j, k = (slice(None, None, -1 if flip else 1) for flip in self.flips)
        return array[..., i, j, k]


def same_grid(
    shape_a: tuple[int, ...],
    affine_a: Affine,
    shape_b: tuple[int, ...],
    affine_b: Affine,
    tolerance_mm: float = TOLERANCE_MM,
) -> str | None:
    """Compare two grids.

    Args:
        shape_a: Voxels (I, J, K) of the first grid.
        affine_a: Affine of the first grid.
        shape_b: Voxels (I, J, K) of the second grid.
        affine_b: Affine of the second grid.
        tolerance_mm: How far apart, in mm, the centres of corner voxels may lie.

    Returns:
        None where the grids agree, else a clause with figures that says how they differ.
    """
    if tuple(shape_a) != tuple(shape_b):
        return f"{_size(shape_a)} voxels against {_size(shape_b)}"
    distance = corner_distance(shape_a, affine_a, affine_b)
    if distance <= tolerance_mm:
        return None
    codes_a, codes_b = orientation(affine_a), orientation(affine_b)
    turned = f" ({codes_a} against {codes_b})" if codes_a != codes_b else ""
    return f"the grids lie up to {distance:.4g} mm apart{turned}"


def corner_distance(shape: tuple[int, ...], affine_a: Affine, affine_b: Affine) -> float:
    """Largest distance in mm between the places two affines give to a volume's corner voxels."""
    corners = np.array([*product(*((0, size - 1) for size in shape[:3]))], dtype=np.float64).T
    with np.errstate(over="ignore", invalid="ignore"):  # infinitely far is far
        differ = affine_a - affine_b
        apart = differ[:3, :3] @ corners + differ[:3, 3:]
        return float(np.sqrt((apart**2).sum(axis=0)).max())


def _axis(code: str) -> int:
    return next((axis for axis, ends in enumerate(AXES) if code in ends), -1)


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
