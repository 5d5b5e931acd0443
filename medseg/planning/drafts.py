"""The choices that need no trial, and those of a network of some size among them."""

from __future__ import annotations

from dataclasses import dataclass

from medseg.planning import grid as grids
from medseg.planning import intensities, network, outcome, patches
from medseg.planning.choice import Choice, Choices
from medseg.planning.fingerprint import Fingerprint
from medseg.planning.grid import Grid
from medseg.planning.network import Shape
from medseg.planning.rules import Size


@dataclass(frozen=True)
class Basis:
    """What all drafts of a plan share.

    Args:
        fingerprint: Of the data.
        grid: That the network sees.
        choices: For the data and what is done to them.
        sizes: Of networks to consider, the cheapest first.
        lesions: What the lesions say to the sizes.
    """

    fingerprint: Fingerprint
    grid: Grid
    choices: Choices
    sizes: tuple[Size, ...]
    lesions: str

    @classmethod
    def of(cls, fingerprint: Fingerprint, data: Choices) -> Basis:
        """Decide what depends on the data alone.

        Args:
            fingerprint: Of the data.
            data: The choices for name and data.
        """
        grid, made = grids.choose(fingerprint)
        made = data | made | intensities.choices(fingerprint)
        made |= patches.flips(fingerprint, grid) | patches.deformation(grid)
        made |= outcome.choices(fingerprint, grid)
        sizes, lesions = network.sizes_for(fingerprint, grid)
        return cls(fingerprint, grid, made, sizes, lesions)

    def draft(self, shape: Shape, batch: int) -> Choices:
        """All choices but the schedule's, for one network."""
        region = intensities.region(self.fingerprint)
        made = self.choices | network.choices(shape, self.grid, batch)
        made |= patches.sampling(self.fingerprint, self.grid, shape.patch, region)
        why = made["model.encoder.widths"].why
        made["model.encoder.widths"] = Choice(
            made["model.encoder.widths"].value, f"{why}; {self.lesions}"
        )
        return made
