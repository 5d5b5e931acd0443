"""DLTK's networks (arXiv:1711.06853) against counts made by hand from its layers."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

import medseg_plugins  # noqa: F401
from medseg.networks.describe import parameter_count
from medseg.registry import NETWORKS
from medseg_plugins.residual_blocks import ResidualUnit, Style

WIDTHS = (16, 32, 64, 128)


def build(name: str, in_channels: int = 1, classes: int = 2, **options: Any) -> nn.Module:
    network = NETWORKS.build({"name": name, **options}, in_channels=in_channels, classes=classes)
    assert isinstance(network, nn.Module)
    return network


def count(name: str, **options: Any) -> int:
    return parameter_count(build(name, 4, 3, **options))


def unit(before: int, after: int, taps: int = 27) -> int:
    """Two convolutions behind norms; a unit that narrows has a third on its shortcut."""
    body = taps * before * after + 27 * after * after + 2 * (before + after)
    return body + (27 * before * after if after < before else 0)


def down(units: int) -> int:
    """The first convolution of a unit that steps by 2 is 4 long."""
    total = 27 * 4 * WIDTHS[0]
    for before, after in pairwise(WIDTHS):
        total += unit(before, after, taps=64) + (units - 1) * unit(after, after)
    return total


def up(units: int) -> int:
    total = 0
    for fine, coarse in pairwise(WIDTHS):
        total += unit(fine + coarse, fine) + (units - 1) * unit(fine, fine)
    return total


@pytest.mark.parametrize("units", [1, 3])
def test_the_residual_unets_by_hand(units: int) -> None:
    head = WIDTHS[0] * 3 + 3
    assert count("residual_unet", units=units) == down(units) + up(units) + head
    assert count("asymmetric_residual_unet", units=units) == down(units) + up(1) + head
    with_norm = count("residual_unet", units=units, end_norm=True)
    assert with_norm == down(units) + up(units) + head + 2 * WIDTHS[0]


@pytest.mark.parametrize("units", [1, 2])
def test_the_residual_fcn_by_hand(units: int) -> None:
    scores = sum(3 * width for width in WIDTHS) + 3 * 2 * 3 + 3 * 3 + 3
    assert count("residual_fcn", units=units) == down(units) + scores


def test_a_unit_without_weights_is_its_shortcut() -> None:
    """The maximum over a step, with half of the new channels before the old ones."""
    residual = ResidualUnit(2, 5, (3, 3, 3), (2, 1, 3), Style("batch", "leaky_relu")).eval()
    for parameter in residual.parameters():
        nn.init.zeros_(parameter)
    x = torch.randn(1, 2, 4, 3, 6)
    expected = x.view(1, 2, 2, 2, 3, 2, 3).amax((3, 6))
    out = residual(x)
    assert out.shape == (1, 5, 2, 3, 2)
    torch.testing.assert_close(out[:, 1:3], expected)
    assert not out[:, [0, 3, 4]].any()


def test_convolutions_start_uniform_with_variance_one_over_fan_in() -> None:
    network = build("residual_unet")
    weight = network.get_parameter("down.levels.3.0.body.6.weight")
    fan_in = weight[0].numel()
    assert weight.abs().max() <= (3 / fan_in) ** 0.5
    assert weight.var().item() == pytest.approx(1 / fan_in, rel=0.03)
