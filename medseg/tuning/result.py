"""What a tuning found out: shown on its page, kept as JSON, summed up in the model file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Options = Mapping[str, Any]
Candidate = Options | None
"""Options of a step; None: the step left out."""
Scores = Mapping[str, float | None]
Interval = tuple[float, float, float]
MEAN = "mean"


@dataclass(frozen=True)
class CaseResult:
    """One validation case, judged by options that were chosen without it.

    Args:
        case_id: The case.
        before: Class name to score without the step. None: the class is neither in the truth nor in
            any prediction of the case, which says nothing and is left out.
        after: The same with the step, its options `chosen` without this case, and the result's
            `protect` applied: what the model would do to a new patient.
        chosen: Those options; None: chosen was to leave the step out, so `after` is `before`.
    """

    case_id: str
    before: Scores
    after: Scores
    chosen: Candidate

    @property
    def change(self) -> float:
        """Mean of after minus before over the classes that count; 0 where none does."""
        changes = [
            after - before
            for before, after in zip(self.before.values(), self.after.values(), strict=True)
            if before is not None and after is not None
        ]
        return sum(changes) / len(changes) if changes else 0.0


@dataclass(frozen=True)
class Point:
    """Where a candidate lies on the FROC curve of a class, over all cases together.

    Args:
        class_name: The class.
        options: The candidate.
        sensitivity: Found of all true lesions; None: there is none.
        false_per_case: False lesions per case.
    """

    class_name: str
    options: Candidate
    sensitivity: float | None
    false_per_case: float


@dataclass(frozen=True)
class Result:
    """The outcome of `medseg tune NAME`.

    Args:
        name: The postprocessor.
        options: Chosen on all cases, and stored; where the choice was to leave the step out, the
            best others.
        default_options: Every option of the postprocessor that has a default, with it.
        protect: Classes whose masks the step may not change, since it did not surely improve them;
            empty too where no class passed.
        accepted: Whether the step now is part of the model.
        still_runs: Rejected, but in the config's own `postprocess`, and so run with its options.
        verdict: All of it in a few sentences.
        score_name: "dice", "iou", "nsd" or "lesion_f1"; higher is better, 1 is perfect.
        classes: Names, in the order of the config.
        cases: In natural order of their ids.
        intervals: Mean difference after - before on held-out cases and the bounds of its 95 %
            interval. By class name: without protection, which is what protection is decided on; a
            class that no case has is missing. "mean": of the classes that passed, with the others
            protected; of all classes where none passed.
        candidates: What was tried for the final choice with its mean score over cases and classes,
            simplest first; options None: the step left out.
        seconds: How long the tuning took.
        points: Of an operating point: the chosen size with each threshold, and the step left out.
    """

    name: str
    options: Options
    default_options: Options
    protect: tuple[str, ...]
    accepted: bool
    still_runs: bool
    verdict: str
    score_name: str
    classes: tuple[str, ...]
    cases: tuple[CaseResult, ...]
    intervals: Mapping[str, Interval]
    candidates: tuple[tuple[Candidate, float], ...]
    seconds: float
    points: tuple[Point, ...] = ()
