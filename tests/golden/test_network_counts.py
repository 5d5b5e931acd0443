"""Networks against the figures of their papers and of torchvision: parameters, channels, layers.

The papers' networks are 2D. With kernels one voxel deep the 3D networks have the same numbers.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

import medseg_plugins  # noqa: F401
from medseg.config.schema import ComponentSpec, Model
from medseg.networks.assembly import build_network
from medseg.networks.describe import output_shapes, parameter_count
from medseg.registry import ENCODERS

FLAT = (1, 3, 3)


def build(name: str, **options: object) -> nn.Module:
    with torch.device("meta"):
        encoder = ENCODERS.build({"name": name, **options}, in_channels=3)
    assert isinstance(encoder, nn.Module)
    return encoder


# Weights and biases of the convolutions of torchvision's vgg11, 13, 16, 19; layers as in the name.
@pytest.mark.parametrize(
    ("config", "parameters", "layers"),
    [("A", 9_220_480, 8), ("B", 9_404_992, 10), ("D", 14_714_688, 13), ("E", 20_024_384, 16)],
)
def test_vgg(config: str, parameters: int, layers: int) -> None:
    vgg = build("vgg", config=config, norm="none", kernels=[FLAT] * 5)
    assert parameter_count(vgg) == parameters
    assert sum(isinstance(m, nn.Conv3d) for m in vgg.modules()) == layers
    assert vgg.channels == (64, 128, 256, 512, 512)
    assert [s[0] for s in vgg.strides] == [1, 2, 4, 8, 16]


def test_vgg_c_has_three_convolutions_of_one_voxel() -> None:
    vgg = build("vgg", config="C", norm="none", kernels=[FLAT] * 5)
    convs = [m for m in vgg.modules() if isinstance(m, nn.Conv3d)]
    assert len(convs) == 13
    assert sum(m.kernel_size == (1, 1, 1) for m in convs) == 3
    assert parameter_count(vgg) == 9_404_992 + (256 + 1) * 256 + 2 * (512 + 1) * 512


def test_googlenet_channels_and_layers() -> None:
    net = build("inception", norm="none", kernels=[FLAT] * 5, strides=[(1, 2, 2)] * 5)
    modules = [m for m in net.modules() if type(m).__name__ == "Inception"]
    seen = []
    for module in modules:
        module.register_forward_hook(lambda _m, _x, out: seen.append(tuple(out.shape[1:])))
    net(torch.empty(1, 3, 1, 224, 224, device="meta"))
    channels = (256, 480, 512, 512, 512, 528, 832, 832, 1024)
    sizes = (28, 28, 14, 14, 14, 14, 14, 7, 7)
    assert seen == [(c, 1, n, n) for c, n in zip(channels, sizes, strict=True)]
    assert net.channels == (64, 192, 480, 832, 1024)
    convs = [n for n, m in net.named_modules() if isinstance(m, nn.Conv3d)]
    assert len(convs) == 3 + 6 * 9


def test_googlenet_parameters() -> None:
    # 6,998,552 of the reference Caffe model without auxiliary heads, less its classifier.
    net = build("inception", norm="none", kernels=[FLAT] * 5)
    assert parameter_count(net) == 6_998_552 - (1024 + 1) * 1000


# torchvision's totals less their classifiers.
@pytest.mark.parametrize(
    ("blocks", "block", "parameters"),
    [
        ((2, 2, 2, 2), "basic", 11_689_512 - 513 * 1000),
        ((3, 4, 6, 3), "basic", 21_797_672 - 513 * 1000),
        ((3, 4, 6, 3), "bottleneck", 25_557_032 - 2049 * 1000),
        ((3, 4, 23, 3), "bottleneck", 44_549_160 - 2049 * 1000),
        ((3, 8, 36, 3), "bottleneck", 60_192_808 - 2049 * 1000),
    ],
)
def test_resnet(blocks: tuple[int, ...], block: str, parameters: int) -> None:
    widths = [64 * 2**n * (4 if block == "bottleneck" else 1) for n in range(4)]
    net = build(
        "resnet",
        widths=widths,
        blocks=blocks,
        block=block,
        shortcut="projection",
        norm="batch",
        kernels=[FLAT] * 4,
        stem_kernel=(1, 7, 7),
        stem_norm=True,
    )
    assert parameter_count(net) == parameters
    shortcuts = {m for n, m in net.named_modules() if ".shortcut" in n}
    layers = [m for m in net.modules() if isinstance(m, nn.Conv3d) and m not in shortcuts]
    convs_per_block = 3 if block == "bottleneck" else 2
    assert len(layers) == 1 + convs_per_block * sum(blocks)


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
