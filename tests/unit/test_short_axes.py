"""Convolutions of maps shorter than their kernel: the same gradients each time, and right ones."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from medseg.networks.blocks import recomputed
from medseg.training.short_axes import ShortAxesInFloat32


def layer(width: int, kernel: int) -> nn.Conv3d:
    network = nn.Sequential(nn.Conv3d(width, width, kernel, padding=kernel // 2))
    ShortAxesInFloat32.adopt(network)
    assert isinstance(network[0], ShortAxesInFloat32)
    return network[0]


def gradient(conv: nn.Conv3d, x: Tensor, *, recompute: bool) -> Tensor:
    """The kernel's gradient in bfloat16, with a heap full of NaN."""
    dirt = [torch.full((10**n,), float("nan")) for n in range(2, 7)]
    del dirt
    conv.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        y = recomputed(conv, x, recompute)
    y.float().square().sum().backward()
    assert conv.weight.grad is not None
    return conv.weight.grad.clone()


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(("length", "kernel"), [(2, 3), (3, 5), (4, 5), (1, 3)])
def test_gradients_are_the_same_each_time(length: int, kernel: int, recompute: bool) -> None:
    torch.manual_seed(0)
    conv, x = layer(16, kernel), torch.randn(2, 16, length, 4, 4)
    first = gradient(conv, x, recompute=recompute)
    for _ in range(4):
        assert torch.equal(gradient(conv, x, recompute=recompute), first)
    conv.zero_grad()
    conv(x).square().sum().backward()
    torch.testing.assert_close(first, conv.weight.grad)  # float32 arithmetic


def test_only_short_maps_are_computed_in_float32() -> None:
    conv = layer(4, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert conv(torch.rand(1, 4, 3, 4, 5)).dtype == torch.bfloat16
        assert conv(torch.rand(1, 4, 2, 4, 5)).dtype == torch.float32
        assert conv(torch.rand(1, 4, 4, 4, 2)).dtype == torch.float32
        assert conv(torch.rand(1, 4, 2, 2, 2).bfloat16()).dtype == torch.float32


def test_weights_and_results_stay() -> None:
    plain = nn.Sequential(nn.Conv3d(2, 3, 3, padding=1), nn.ConvTranspose3d(3, 2, 2, 2))
    before, x = {k: v.clone() for k, v in plain.state_dict().items()}, torch.rand(1, 2, 4, 4, 4)
    y = plain(x)
    ShortAxesInFloat32.adopt(plain)
    assert torch.equal(plain(x), y)
    assert all(torch.equal(v, before[k]) for k, v in plain.state_dict().items())
    assert type(plain[1]) is nn.ConvTranspose3d
