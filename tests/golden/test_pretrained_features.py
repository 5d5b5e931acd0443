"""Features from 2D weights: on a volume constant along one axis they equal the 2D network's.

The 2D networks are built here from torch's own 2D layers, under torchvision's names, which are
written out by hand.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.networks.nets.resnet import ResNet, ResNetBottleneck
from torch import Tensor, nn

from medseg import plugins
from medseg.config.schema import Model
from medseg.networks.assembly import EncoderDecoder, build_network
from medseg.networks.load_report import LoadReport
from medseg.networks.pretrained import load_pretrained

RGB = ("red", "green", "blue")
VGG16 = "vgg16_imagenet/vgg16_caffe_bgr_features_fp16.pt"
Weights = dict[str, Tensor]


class BasicConv(nn.Sequential):
    """Convolution without bias, batch norm and ReLU, as torchvision's GoogLeNet names them."""

    def __init__(self, width_in: int, width: int, **options: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width_in, width, bias=False, **options)
        self.bn = nn.BatchNorm2d(width, eps=0.001)
        self.relu = nn.ReLU()


class Inception(nn.Module):
    def __init__(self, width_in: int, one: int, three: tuple[int, int], five: tuple[int, int],
                 pool: int) -> None:  # fmt: skip
        super().__init__()
        self.branch1 = BasicConv(width_in, one, kernel_size=1)
        self.branch2 = nn.Sequential(
            BasicConv(width_in, three[0], kernel_size=1),
            BasicConv(*three, kernel_size=3, padding=1),
        )
        self.branch3 = nn.Sequential(
            BasicConv(width_in, five[0], kernel_size=1),
            BasicConv(*five, kernel_size=3, padding=1),
        )
        self.branch4 = nn.Sequential(
            nn.MaxPool2d(3, 1, 1, ceil_mode=True), BasicConv(width_in, pool, kernel_size=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], 1)


# The paper's Table 1, as in torchvision; the stages end with 3b, 4e and 5b.
TABLE_1 = {
    "3a": (64, (96, 128), (16, 32), 32),
    "3b": (128, (128, 192), (32, 96), 64),
    "4a": (192, (96, 208), (16, 48), 64),
    "4b": (160, (112, 224), (24, 64), 64),
    "4c": (128, (128, 256), (24, 64), 64),
    "4d": (112, (144, 288), (32, 64), 64),
    "4e": (256, (160, 320), (32, 128), 128),
    "5a": (256, (160, 320), (32, 128), 128),
    "5b": (384, (192, 384), (48, 128), 128),
}


class Auxiliary(nn.Module):
    def __init__(self, width_in: int) -> None:
        super().__init__()
        self.conv = BasicConv(width_in, 16, kernel_size=1)
        self.fc1, self.fc2 = nn.Linear(256, 128), nn.Linear(128, 10)


class GoogLeNet2D(nn.Module):
    """The levels conv1, conv2, 3b, 4e and 5b; an eighth of the paper's widths."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = BasicConv(3, 8, kernel_size=7, stride=2, padding=3)
        self.conv2 = BasicConv(8, 8, kernel_size=1)
        self.conv3 = BasicConv(8, 24, kernel_size=3, padding=1)
        self.pool = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.last_pool = nn.MaxPool2d(2, 2, ceil_mode=True)
        width_in = 24
        for name, (one, three, five, pool) in TABLE_1.items():
            reduced = [(a // 8, b // 8) for a, b in (three, five)]
            module = Inception(width_in, one // 8, *reduced, pool // 8)
            setattr(self, f"inception{name}", module)
            width_in = (one + three[1] + five[1] + pool) // 8
        self.aux1, self.aux2 = Auxiliary(64), Auxiliary(66)
        self.fc = nn.Linear(width_in, 10)

    def forward(self, x: Tensor) -> list[Tensor]:
        levels = [self.conv1(x)]
        x = self.conv3(self.conv2(self.pool(levels[0])))
        for name in TABLE_1:
            if name.endswith("a"):
                levels.append(x)
                x = (self.last_pool if name == "5a" else self.pool)(x)
            x = getattr(self, f"inception{name}")(x)
        return [*levels, x]


class Basic(nn.Module):
    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = shortcut(width_in, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (y + (x if self.downsample is None else self.downsample(x))).relu()


class Bottleneck(nn.Module):
    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        inner = width // 4
        self.conv1 = nn.Conv2d(width_in, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.downsample = shortcut(width_in, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())).relu()
        return (
            self.bn3(self.conv3(y)) + (x if self.downsample is None else self.downsample(x))
        ).relu()


def shortcut(width_in: int, width: int, stride: int) -> nn.Module | None:
    if width_in == width and stride == 1:
        return None
    return nn.Sequential(nn.Conv2d(width_in, width, 1, stride, bias=False), nn.BatchNorm2d(width))


class ResNet2D(nn.Module):
    """Stem, then the four layers; an eighth of the paper's widths."""

    def __init__(self, block: type[nn.Module], counts: tuple[int, ...], factor: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        width_in = 8
        for n, count in enumerate(counts):
            width = 8 * factor * 2**n
            first = block(width_in, width, 1 if n == 0 else 2)
            rest = [block(width, width, 1) for _ in range(count - 1)]
            setattr(self, f"layer{n + 1}", nn.Sequential(first, *rest))
            width_in = width
        self.fc = nn.Linear(width_in, 10)

    def forward(self, x: Tensor) -> list[Tensor]:
        levels = [self.bn1(self.conv1(x)).relu()]
        x = self.maxpool(levels[0])
        for n in range(1, 5):
            x = getattr(self, f"layer{n}")(x)
            levels.append(x)
        return levels


class VGG2D(nn.Module):
    """All convolutions of configuration A in a row, with poolings; a level before each pooling."""

    def __init__(self, widths: tuple[int, ...], counts: tuple[int, ...], norm: bool) -> None:
        super().__init__()
        self.features, width_in = nn.Sequential(), 3
        for width, count in zip(widths, counts, strict=True):
            for _ in range(count):
                self.features.append(nn.Conv2d(width_in, width, 3, padding=1))
                self.features.extend([nn.BatchNorm2d(width)] if norm else [])
                self.features.append(nn.ReLU())
                width_in = width
            self.features.append(nn.MaxPool2d(2))
        self.classifier = nn.Sequential(nn.Linear(width_in * 49, 16), nn.ReLU(), nn.Linear(16, 10))

    def forward(self, x: Tensor) -> list[Tensor]:
        levels = []
        for layer in self.features:
            if isinstance(layer, nn.MaxPool2d):
                levels.append(x)
            x = layer(x)
        return levels


FAMILIES: dict[str, tuple[dict[str, Any], Any]] = {
    "vgg11": (
        {"name": "vgg11", "width": 0.125},
        lambda: VGG2D((8, 16, 32, 64, 64), (1, 1, 2, 2, 2), norm=False),
    ),
    "vgg11_bn": (
        {"name": "vgg11_bn", "width": 0.125},
        lambda: VGG2D((8, 16, 32, 64, 64), (1, 1, 2, 2, 2), norm=True),
    ),
    "googlenet": (
        {"name": "googlenet_torchvision", "width": 0.125},
        GoogLeNet2D,
    ),
    "resnet18": (
        {"name": "resnet18", "width": 0.125},
        lambda: ResNet2D(Basic, (2, 2, 2, 2), 1),
    ),
    "resnet50": (
        {"name": "resnet50", "width": 0.125},
        lambda: ResNet2D(Bottleneck, (3, 4, 6, 3), 4),
    ),
}


# So long that the middle of the coarsest level sees no border along the inflated axis.
LENGTHS = {"vgg11": 160, "vgg11_bn": 160, "googlenet": 448, "resnet18": 448, "resnet50": 448}
CLASSIFIERS = {"classifier", "fc", "aux1", "aux2"}


@pytest.fixture(autouse=True, scope="module")
def loaded() -> None:
    plugins.load(())


def alive(network: nn.Module) -> nn.Module:
    """With random norms and running statistics, such that features neither die nor explode."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1)
            nn.init.uniform_(module.bias, -0.2, 0.2)
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    return network.eval()


def load(
    encoder: dict[str, Any], path: Path, names: tuple[str, ...], **pretrained: Any
) -> tuple[EncoderDecoder, LoadReport]:
    spec = {**encoder, "pretrained": {"path": str(path), **pretrained}}
    model = Model.model_validate(
        {"encoder": spec, "decoder": {"name": "unet"}, "deep_supervision": 0}
    )
    network = build_network(model, len(names), 2, 0)
    assert isinstance(network, EncoderDecoder)
    report = load_pretrained(network, model, names)
    assert report is not None
    return network.eval(), report


def picture(channels: int, size: int = 64) -> Tensor:
    """Smooth, from 0 to 1."""
    coarse = torch.rand(1, channels, 9, 9, generator=torch.Generator().manual_seed(3))
    return nn.functional.interpolate(coarse, (size, size), mode="bilinear")


def compare(encoder: nn.Module, flat: list[Tensor], image: Tensor, axis: int, length: int) -> None:
    """Levels of a volume that repeats the image along an axis, in its middle, against 2D ones."""
    volume = image.unsqueeze(2 + axis).repeat_interleave(length, 2 + axis)
    with torch.no_grad():
        levels = encoder(volume)
    assert len(levels) == len(flat)
    for level, wanted in zip(levels, flat, strict=True):
        assert wanted.abs().mean() > 1e-3, "dead features would be equal, too"
        middle = level.select(2 + axis, level.shape[2 + axis] // 2)
        error = (middle - wanted).abs().max() / wanted.abs().max()
        assert error < 1e-4


@pytest.mark.parametrize("axis", [*(pytest.param(n, marks=pytest.mark.slow) for n in (0, 1)), 2])
@pytest.mark.parametrize("how", ["mean", "centre"])
@pytest.mark.parametrize("family", FAMILIES)
def test_3d_features_equal_the_2d_ones(family: str, how: str, axis: int, tmp_path: Path) -> None:
    encoder, build = FAMILIES[family]
    network = alive(build())
    torch.save(network.state_dict(), tmp_path / "flat.pth")
    ours, report = load(encoder, tmp_path / "flat.pth", RGB, inflate=how, axis=axis)
    assert report.layout == "torchvision"
    assert report.kernels["missing"] == report.kernels["left out"] == 0
    assert {row.source.split(".")[0] for row in report.rows if not row.name} <= CLASSIFIERS
    image = picture(3)
    with torch.no_grad():
        flat = network(image)
    compare(ours.encoder, flat, image, axis, LENGTHS[family])


@pytest.fixture(scope="module")
def vgg16() -> Path:
    path = Path(os.environ.get("MEDSEG_DATA", "/nonexistent")) / "weights" / VGG16
    if not path.is_file():
        pytest.skip(f"MEDSEG_DATA names no folder with weights/{VGG16}")
    return path


def vgg16_levels(path: Path, image: Tensor, *, padded_with_black: bool = False) -> list[Tensor]:
    """VGG-16 in 2D, from red, green and blue between 0 and 1, as Caffe's weights want it.

    The paper pads the prepared picture with 0, the mean colour. `padded_with_black` pads the
    picture itself, which is what the folded first layer sees.
    """
    weights = iter(torch.load(path, weights_only=True).values())
    caffe_bgr = torch.tensor([103.939, 116.779, 123.68]).view(1, 3, 1, 1)
    pad = 1 if padded_with_black else 0
    x = 255 * nn.functional.pad(image, (pad,) * 4).flip(1) - caffe_bgr
    levels = []
    for stage, count in enumerate((2, 2, 3, 3, 3)):
        x = nn.functional.max_pool2d(x, 2) if stage else x
        for _ in range(count):
            x = nn.functional.conv2d(
                x, next(weights).float(), next(weights).float(), padding=1 - pad
            )
            x, pad = x.relu(), 0
        levels.append(x)
    assert next(weights, None) is None
    return levels


COLOURS: dict[str, dict[str, Any]] = {
    "colours": {"channels": {name: name for name in RGB}},
    "grey": {},
}


@pytest.mark.slow
@pytest.mark.parametrize("how", ["mean", "centre"])
@pytest.mark.parametrize("kind", COLOURS)
def test_the_real_vgg16_in_3d(kind: str, how: str, vgg16: Path) -> None:
    names = RGB if kind == "colours" else ("ct",)
    ours, report = load(
        {"name": "vgg16"}, vgg16, names, preprocessing="caffe", inflate=how, **COLOURS[kind]
    )
    assert report.summary == "13 of 13 kernels taken: 12 inflated, 1 adapted"
    assert {row.status for row in report.rows if row.name.endswith("bias")} == {"kept", "adapted"}
    assert not [row for row in report.rows if row.status in ("left out", "missing")]
    image = picture(len(names), 32)
    flat = vgg16_levels(vgg16, image.expand(1, 3, -1, -1), padded_with_black=True)
    compare(ours.encoder, flat, image, 2, 208 if how == "mean" else 32)


@pytest.mark.slow
@pytest.mark.parametrize("kind", COLOURS)
def test_the_real_vgg16_away_from_the_picture_s_border(kind: str, vgg16: Path) -> None:
    """One plane and kernels flat across it: a picture large enough to have an inside."""
    names = RGB if kind == "colours" else ("ct",)
    plane = {"kernels": [[3, 3, 1]] * 5, "strides": [[1, 1, 1], *[[2, 2, 1]] * 4]}
    ours, report = load(
        {"name": "vgg16", **plane}, vgg16, names, preprocessing="caffe", **COLOURS[kind]
    )
    assert report.kernels["missing"] == 0
    image = picture(len(names), 288)
    with torch.no_grad():
        levels = ours.encoder(image.unsqueeze(-1))
    margin = slice(8, -8)  # in voxels of each level; its receptive field is 5 to 196 long
    for level, flat in zip(levels, vgg16_levels(vgg16, image.expand(1, 3, -1, -1)), strict=True):
        inside, wanted = level[..., margin, margin, 0], flat[..., margin, margin]
        assert wanted.numel() and (inside - wanted).abs().max() < 1e-4 * wanted.abs().max()
    assert not torch.allclose(level[..., 0], flat, rtol=1e-3), "at the border they differ"


def test_flat_kernels_are_only_unsqueezed(tmp_path: Path) -> None:
    network = alive(VGG2D((8, 16, 32, 64, 64), (1, 1, 2, 2, 2), norm=True))
    torch.save(network.state_dict(), tmp_path / "flat.pth")
    plane = {"kernels": [[3, 3, 1]] * 5, "strides": [[1, 1, 1], *[[2, 2, 1]] * 4]}
    ours, _ = load({"name": "vgg11_bn", "width": 0.125, **plane}, tmp_path / "flat.pth", RGB)
    image = picture(3)
    with torch.no_grad():
        flat = network(image)
    compare(ours.encoder, flat, image, 2, 1)


@pytest.mark.parametrize("family", ["resnet18", "googlenet", "vgg11_bn"])
def test_preprocessing_goes_where_it_can(family: str, tmp_path: Path) -> None:
    """Into the mean of the batch norm, or into the bias of the convolution before it."""
    encoder, build = FAMILIES[family]
    network = alive(build())
    torch.save(network.state_dict(), tmp_path / "flat.pth")
    ours, report = load(encoder, tmp_path / "flat.pth", ("ct",), preprocessing="torchvision")
    adapted = [row.name.rpartition(".")[2] for row in report.rows if row.status == "adapted"]
    assert adapted == ["weight", "bias" if family == "vgg11_bn" else "running_mean"]
    image = picture(1)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
    deviation = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
    with torch.no_grad():
        wanted = network((image - mean) / deviation)[0]
        level = ours.encoder(image.unsqueeze(-1).expand(-1, -1, -1, -1, 32))[0]
    inside = (..., slice(4, -4), slice(4, -4))
    got = level[..., level.shape[-1] // 2][inside]
    assert (got - wanted[inside]).abs().max() < 1e-4 * wanted.abs().max()


@pytest.mark.parametrize("dimensions", [2, 3])
def test_monai_s_resnet_gives_its_features(dimensions: int, tmp_path: Path) -> None:
    """Someone else's code, with torchvision's names in 2D and MedicalNet's in 3D."""
    torch.manual_seed(0)
    theirs = ResNet(
        ResNetBottleneck, [3, 4, 6, 3], [8, 16, 32, 64], spatial_dims=dimensions,
        n_input_channels=1, conv1_t_stride=2, bias_downsample=False, num_classes=5,
    ).eval()  # fmt: skip
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    ours, report = load(
        {"name": "resnet50", "width": 0.125}, tmp_path / "w.pth", ("ct",), inflate="centre"
    )
    assert {row.source for row in report.rows if not row.name} == {"fc.weight", "fc.bias"}
    assert report.summary.startswith("53 of 53 kernels taken")
    image = picture(1)
    x = image if dimensions == 2 else image.unsqueeze(-1).repeat_interleave(64, -1)
    with torch.no_grad():
        x = theirs.act(theirs.bn1(theirs.conv1(x)))
        wanted, x = [x], theirs.maxpool(x)
        for n in range(1, 5):
            x = getattr(theirs, f"layer{n}")(x)
            wanted.append(x)
    if dimensions == 2:
        compare(ours.encoder, wanted, image, 2, 64)
        return
    with torch.no_grad():
        levels = ours.encoder(image.unsqueeze(-1).repeat_interleave(64, -1))
    for level, theirs_level in zip(levels, wanted, strict=True):
        assert (level - theirs_level).abs().max() < 1e-4 * theirs_level.abs().max()
