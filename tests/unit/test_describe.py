"""Description of networks: against real passes, against perturbing, against sums by hand."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import medseg_plugins  # noqa: F401
from medseg.config.schema import ComponentSpec, Model
from medseg.networks.assembly import WholeNetwork, build_network
from medseg.networks.describe import (
    activation_memory,
    multiply_adds,
    output_shapes,
    parameter_count,
    receptive_field,
)
from medseg.registry import ENCODERS

PARTS = Model(
    encoder=ComponentSpec(name="resnet", widths=[4, 8, 8], blocks=[1, 1, 1]),
    decoder=ComponentSpec(name="unet"),
    deep_supervision=1,
)
WHOLE = Model(
    network=ComponentSpec(name="monai", net="UNet", options={"channels": [4, 8], "strides": [2]})
)


def test_parameter_count_leaves_out_frozen_weights() -> None:
    layer = nn.Conv3d(2, 3, 3)
    assert parameter_count(layer) == 2 * 3 * 27 + 3
    layer.bias.requires_grad_(False)  # type: ignore[union-attr]
    assert parameter_count(layer) == 2 * 3 * 27


@pytest.mark.parametrize("spec", [PARTS, WHOLE], ids=["parts", "whole"])
def test_output_shapes_are_those_of_a_real_pass(spec: Model) -> None:
    network = build_network(spec, 2, 3, 0)
    real = [tuple(o.shape) for o in network(torch.rand(1, 2, 8, 16, 12))]
    assert output_shapes(network, 2, (8, 16, 12)) == real


@pytest.mark.parametrize("spec", [PARTS, WHOLE], ids=["parts", "whole"])
def test_activation_memory_is_what_a_real_step_keeps(spec: Model) -> None:
    network = build_network(spec, 2, 3, 0)
    weights = {p.data_ptr() for p in network.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        network(torch.rand(2, 2, 16, 16, 16))
    real = sum(t.untyped_storage().nbytes() for t in kept.values())
    assert activation_memory(network, (2, 2, 16, 16, 16)) == pytest.approx(real, rel=0.02)


def seen_by_perturbing(network: nn.Module, size: tuple[int, int, int]) -> tuple[int, ...]:
    """Which positions along each axis change the central output, by moving one input at a time."""
    network = copy.deepcopy(network).double().eval()
    centre = tuple(n // 2 for n in size)
    x = torch.rand(1, 1, *size, dtype=torch.float64)
    at = (0, slice(None), *centre)
    extents = []
    with torch.no_grad():
        before = network(x)[0][at]
        for axis in range(3):
            others = [a for a in range(3) if a != axis]
            seen = []
            for n in range(size[axis]):
                moved = x.clone()
                moved.select(2 + axis, n).add_(torch.rand(size[others[0]], size[others[1]]))
                if not torch.equal(network(moved)[0][at], before):
                    seen.append(n)
            extents.append(max(seen) - min(seen) + 1)
    return tuple(extents)


def test_receptive_field_is_what_perturbing_finds() -> None:
    kernels = [[3, 3, 1], [3, 3, 3]]
    spec = Model(
        encoder=ComponentSpec(
            name="resnet", widths=[2, 2], blocks=[1, 1], kernels=kernels, norm="none"
        ),
        decoder=ComponentSpec(name="unet", norm="none"),
        deep_supervision=0,
    )
    network = build_network(spec, 1, 2, 0)
    size = (24, 28, 20)
    found = receptive_field(network, 1, size)
    assert found == seen_by_perturbing(network, size)
    assert 20 > found[0] == found[1] > found[2]


def test_receptive_field_ignores_norms_and_signs() -> None:
    # Three 3x3x3, a pooling by 2, two 3x3x3: 7, then 8, then 8 + 2 * 2 * 2 = 16.
    layers: list[nn.Module] = []
    for _ in range(3):
        layers += [nn.Conv3d(1, 1, 3, padding=1), nn.InstanceNorm3d(1), nn.ReLU(inplace=True)]
    layers += [nn.MaxPool3d(2), nn.Conv3d(1, 1, 3, padding=1), nn.Conv3d(1, 1, 3, padding=1)]
    network = nn.Sequential(*layers)
    before = copy.deepcopy(network.state_dict())
    assert receptive_field(network, 1, (24, 24, 20)) == (16, 16, 16)
    assert receptive_field(network, 1, (24, 24, 8)) == (16, 16, 8)
    assert all(
        torch.equal(a, b)
        for a, b in zip(before.values(), network.state_dict().values(), strict=True)
    )


def test_receptive_field_of_a_deep_network_does_not_round_to_nothing() -> None:
    layers = [nn.Conv3d(4, 4, (1, 1, 3), padding=(0, 0, 1)) for _ in range(100)]
    assert receptive_field(nn.Sequential(*layers), 4, (1, 1, 256)) == (1, 1, 201)


def test_receptive_field_of_each_vgg_level() -> None:
    vgg = ENCODERS.build({"name": "vgg", "config": "A", "width": 0.05, "levels": 3}, in_channels=1)
    # One convolution: 3; pooled (4), one at stride 2: 8; pooled (10), two at stride 4: 26.
    fields = [receptive_field(vgg, 1, (48, 48, 48), output=level)[0] for level in range(3)]
    assert fields == [3, 8, 26]


def test_multiply_adds_are_those_of_the_convolutions() -> None:
    network = nn.Sequential(
        nn.Conv3d(2, 4, 3, padding=1), nn.ReLU(), nn.MaxPool3d(2), nn.ConvTranspose3d(4, 3, 2, 2)
    )
    by_hand = 8**3 * 4 * 2 * 27 + 4**3 * 4 * 3 * 8
    assert multiply_adds(network, 2, (8, 8, 8)) == by_hand


@pytest.mark.parametrize("name", ["vgg", "googlenet_torchvision", "resnet18"])
@pytest.mark.parametrize("size", [32, 192])
def test_a_receptive_field_on_thin_slabs(name: str, size: int) -> None:
    """Poolings three long meet maps of two voxels there."""
    parts = {"encoder": ComponentSpec(name=name, width=0.02), "decoder": ComponentSpec(name="unet")}
    network = build_network(Model(**parts, deep_supervision=0), 1, 2, seed=0)
    size = size if size > 32 else 2 * network.divisor[0]
    assert receptive_field(network, 1, (size, size, size)) == (size, size, size)


class Context(nn.Module):
    """Three valid convolutions of 9: a voxel sees 25, twelve of them beyond on each side."""

    margin = (12, 12, 12)

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv3d(1, 1, 9), nn.Conv3d(1, 1, 9), nn.Conv3d(1, 2, 9))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.layers(x)
        return logits


def test_the_receptive_field_of_a_network_with_a_margin() -> None:
    network = WholeNetwork(Context(), 1, 2)
    assert network.margin == (12, 12, 12)
    assert receptive_field(network, 1, (40, 40, 64)) == (25, 25, 25)
