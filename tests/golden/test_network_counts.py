"""The default network against numbers counted by hand."""

from __future__ import annotations

import medseg_plugins  # noqa: F401
from medseg.config.schema import ComponentSpec, Model
from medseg.networks.assembly import build_network
from medseg.networks.describe import output_shapes, parameter_count

RECIPE = Model(
    encoder=ComponentSpec(name="resnet"), decoder=ComponentSpec(name="unet"), deep_supervision=2
)


def test_the_recipe_has_the_parameters_it_was_measured_with() -> None:
    """Widths 16 to 128, one block a stage, transposed convolutions, three heads, 3 classes."""
    network = build_network(RECIPE, in_channels=1, classes=3, seed=0)
    assert parameter_count(network) == by_hand() == 1_273_769


def by_hand() -> int:
    f = (16, 32, 64, 128)
    norm = {c: 2 * c for c in f}
    count = 27 * f[0]  # stem, no bias, no norm
    for before, c in zip((f[0], *f[:-1]), f, strict=True):
        count += 27 * before * c + 27 * c * c + 2 * norm[c]
        count += before * c if before != c else 0  # shortcut, 1x1x1
    for coarse, c in zip(f[1:], f[:-1], strict=True):
        count += 8 * coarse * c + 27 * 2 * c * c + norm[c]  # up, level
        count += (c + 1) * 3  # head
    return count


def test_the_recipe_gives_three_resolutions() -> None:
    network = build_network(RECIPE, in_channels=1, classes=3, seed=0)
    shapes = output_shapes(network, 1, (40, 56, 40))
    assert shapes == [(1, 3, 40, 56, 40), (1, 3, 20, 28, 20), (1, 3, 10, 14, 10)]
    assert network.divisor == (8, 8, 8)
