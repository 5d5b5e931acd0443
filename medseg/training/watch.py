"""What a training's validations tell of it, said at its end where it should not go unseen."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

from medseg.training.budget import Clock

_MUCH = 0.5  # of the budget


class Watch:
    """Entered for each validation; `scores` is what the last one gave.

    Args:
        clock: Of the run.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.scores: Mapping[str, float] = {}
        self._seconds, self._times, self._start = 0.0, 0, 0.0

    def __enter__(self) -> None:
        self._start = self.clock.elapsed()

    def __exit__(self, *_: object) -> None:
        self._seconds += self.clock.elapsed() - self._start
        self._times += 1

    def tell(self) -> None:
        """Warn of validations that took most of the budget, and of classes never found."""
        self._tell_of_time()
        never = [name for name, dice in self.scores.items() if name != "mean" and not dice]
        if never and len(never) == len(self.scores) - ("mean" in self.scores):
            warnings.warn(
                "the last validation found no voxel of any class (Dice 0), as of a model that "
                "calls everything background; train longer, raise the share of foreground patches "
                "(train.sampler), or see by `medseg check` that images and labels are right",
                stacklevel=2,
            )
        elif never:
            warnings.warn(
                f"the last validation found no voxel of {', '.join(never)} (Dice 0); train longer, "
                "or with more patches of what is rare (train.sampler)",
                stacklevel=2,
            )

    def _tell_of_time(self) -> None:
        spent, budget = self._seconds, self.clock.budget
        seconds = budget.cpu_seconds or budget.wall_seconds
        if seconds is not None and spent > _MUCH * seconds:
            warnings.warn(
                f"validation took {spent:.0f} s ({self._times} times) of a budget of {seconds:.0f} "
                f"s, and the run {self.clock.elapsed():.0f} s; raise train.budget or "
                "train.validate_every, or lower train.validation_cases",
                stacklevel=3,
            )
