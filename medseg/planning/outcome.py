"""How a volume is predicted, what happens to the prediction, and what is measured of it."""

from __future__ import annotations

from medseg.planning import rules
from medseg.planning.choice import Choice, Choices
from medseg.planning.fingerprint import Fingerprint
from medseg.planning.grid import Grid


def choices(fingerprint: Fingerprint, grid: Grid) -> Choices:
    """Inference mode, postprocessing and evaluation."""
    coarsest = max(grid.spacing)
    return {
        "inference.mode": Choice("window", rules.WINDOWS),
        "postprocess": _single(fingerprint),
        "evaluation.tolerance_mm": Choice(
            round(coarsest, 2), "the longest edge of a voxel: no finer is seen"
        ),
        "evaluation.lesions": _lesions(fingerprint),
    }


def _single(fingerprint: Fingerprint) -> Choice:
    classes = fingerprint.classes
    least = min(found.single for found in classes)
    most = f"{min(found.cases for found in classes)} cases"
    if least < rules.SINGLE:
        why = f"a class is one component in {least:.0%} of its cases: nothing is taken away"
        return Choice([], why)
    if min(found.cases for found in classes) < rules.SINGLE_CASES:
        return Choice([], f"each class is one component, but {most} are too few to rely on it")
    return Choice(
        [{"name": "largest_component"}],
        f"each class is one component in {100 * least:.3g} % of its cases, at least {most}",
    )


def _lesions(fingerprint: Fingerprint) -> Choice:
    several = max(found.count[2] for found in fingerprint.classes)
    without = fingerprint.cases - max(found.cases for found in fingerprint.classes)
    if several > 1 and min(found.single for found in fingerprint.classes) < rules.SINGLE:
        return Choice(True, f"a case has up to {several:.0f} components of a class")
    if without:
        return Choice(True, f"{without} of {fingerprint.cases} cases have none")
    return Choice(False, "a case has one component of a class: the Dice tells of it")
