"""Where a NIfTI header places its voxels: the rule that chooses, and what it warns of.

The sform counts where its code is above 0, else the qform where its code is above 0, else the voxel
size alone: the rule of nibabel. Lengths in metres or microns become mm.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from medseg.volumes.findings import Findings
from medseg.volumes.geometry import corner_distance, voxel_size
from medseg.volumes.image import Affine

UNITS = {0: ("no unit", 1.0), 1: ("metres", 1e3), 2: ("mm", 1.0), 3: ("microns", 1e-3)}
SINGULAR = 1e-3  # volume of the box spanned by the three unit axes
SHEAR = 1e-2  # cosine of the angle between two axes
SIZE_SLACK = 1e-2  # relative difference of pixdim and sform
PLAUSIBLE = (1e-3, 1e3)  # voxel size in mm
PLACE_SLACK = 0.5  # difference of qform and sform, in voxels


def place(header: Any, shape: tuple[int, ...], found: Findings) -> Affine:
    """Choose the affine, voxel index to RAS+ millimetres, and note what is odd about it.

    Raises:
        DataError: The voxel sizes or the affine are not finite, or the affine is singular.
    """
    size = _pixdim(header, found)
    sform, qform = _sform(header), _qform(header, size, found)
    if sform is None and qform is None:
        found.note(
            f"no orientation in the header (qform_code {int(header['qform_code'])}, sform_code "
            f"{int(header['sform_code'])}): left and right are unknown, i is taken to run leftwards"
        )
    affine = sform if sform is not None else qform
    if affine is None:
        affine = np.asarray(_plain(header, size).get_base_affine(), dtype=np.float64)
    _refuse_singular(affine, found)
    if sform is not None:
        _compare(sform, qform, size, shape, found)
    affine = _in_mm(affine, header, found)
    if not all(PLAUSIBLE[0] <= size <= PLAUSIBLE[1] for size in voxel_size(affine)):
        found.note(f"implausible voxel size {_text(voxel_size(affine))} mm")
    return affine


def _pixdim(header: Any, found: Findings) -> Affine:
    size = np.asarray(header["pixdim"][1:4], dtype=np.float64)
    if not np.isfinite(size).all():
        found.refuse(f"voxel size {_text(size)} in pixdim is not finite; mend the header")
    if _sform(header) is None and (size == 0).any():
        found.refuse(f"voxel size {_text(size)} in pixdim, and no sform; mend the header")
    if (size < 0).any():
        found.note(f"negative voxel size {_text(size)} in pixdim; its sign is ignored")
    return np.abs(size)


def _sform(header: Any) -> Affine | None:
    if int(header["sform_code"]) <= 0:
        return None
    rows = [header["srow_x"], header["srow_y"], header["srow_z"], [0, 0, 0, 1]]
    return np.array(rows, dtype=np.float64)


def _qform(header: Any, size: Affine, found: Findings) -> Affine | None:
    """The qform's affine; None where its code or (beside a valid sform) its values say so."""
    if int(header["qform_code"]) <= 0:
        return None
    quaternion = np.array([header[f"quatern_{axis}"] for axis in "bcd"], dtype=np.float64)
    handedness = float(header["pixdim"][0])
    if handedness not in (-1, 1):
        found.note(f"pixdim[0] is {handedness:g}, not 1 or -1; its sign counts")
    try:
        return np.asarray(_plain(header, size).get_qform(), dtype=np.float64)
    except ValueError:
        text = f"the qform's quaternion (b, c, d) = {_text(quaternion)} is no rotation"
    if _sform(header) is None:
        found.refuse(f"{text}, and no sform; mend the header")
    found.note(f"{text}; the sform counts")
    return None


def _plain(header: Any, size: Affine) -> Any:
    """A copy of which nibabel can compute affines: positive sizes, pixdim[0] 1 or -1."""
    plain = header.copy()
    plain["pixdim"][0] = -1 if plain["pixdim"][0] < 0 else 1
    plain["pixdim"][1:4] = size
    return plain


def _refuse_singular(affine: Affine, found: Findings) -> None:
    if not np.isfinite(affine).all():
        found.refuse(f"the affine is not finite ({_text(affine[:3].ravel())}); mend the header")
    size = np.asarray(voxel_size(affine))
    volume = abs(np.linalg.det(affine[:3, :3] / np.where(size > 0, size, 1)))
    if not (np.isfinite(size).all() and size.all() and volume > SINGULAR):
        found.refuse(
            f"the affine is singular: voxel axes {_text(affine[:3, :3].ravel())} span no volume; "
            "mend the header's sform"
        )


def _compare(
    sform: Affine, qform: Affine | None, size: Affine, shape: tuple[int, ...], found: Findings
) -> None:
    sform_size = np.asarray(voxel_size(sform))
    cosines = sform[:3, :3] / sform_size
    shear = np.abs(cosines.T @ cosines - np.eye(3)).max()
    if shear > SHEAR:
        found.note(f"the sform is sheared: cosines of up to {shear:.3g} between voxel axes")
    if not np.allclose(size, sform_size, rtol=SIZE_SLACK, atol=0):
        found.note(
            f"voxel sizes differ: pixdim {_text(size)}, sform {_text(sform_size)}; the sform counts"
        )
    if qform is None:
        return
    distance = corner_distance(shape, sform, qform)
    if not distance <= PLACE_SLACK * sform_size.min():
        found.note(f"qform and sform differ by up to {distance:.4g} mm; the sform counts")


def _in_mm(affine: Affine, header: Any, found: Findings) -> Affine:
    code = int(header["xyzt_units"]) & 7
    name, scale = UNITS.get(code, (f"unknown (code {code}) and taken as mm", 1.0))
    if scale != 1 or code not in UNITS:
        found.note(f"the length unit is {name}; the affine is multiplied by {scale:g}")
    return np.asarray(np.diag([scale, scale, scale, 1]) @ affine, dtype=np.float64)


def _text(values: Iterable[float]) -> str:
    return "(" + ", ".join(f"{value:.6g}" for value in values) + ")"
