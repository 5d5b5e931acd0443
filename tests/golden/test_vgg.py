"""VGG against its paper (arXiv:1409.1556) and torchvision: parameters, layers, sizes, names.

The paper's networks are 2D. With kernels and poolings flat along the first axis the 3D networks
have the same numbers.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import medseg_plugins  # noqa: F401
from medseg.networks.describe import output_shapes, parameter_count, receptive_field
from medseg.registry import ENCODERS
from medseg_plugins.classifier import Classifier

FLAT = {"kernels": [(1, 3, 3)] * 5, "strides": [(1, 1, 1), *[(1, 2, 2)] * 4]}
# Convolutions 3 long in each stage: the columns of the paper's Table 1.
TABLE = {
    "vgg11": (1, 1, 2, 2, 2),
    "vgg11_lrn": (1, 1, 2, 2, 2),
    "vgg13": (2, 2, 2, 2, 2),
    "vgg16_c": (2, 2, 2, 2, 2),
    "vgg16": (2, 2, 3, 3, 3),
    "vgg19": (2, 2, 4, 4, 4),
}
# Torchvision's `vgg.py`, "M" for a pooling.
TORCHVISION = {
    "vgg11": "64 M 128 M 256 256 M 512 512 M 512 512 M",
    "vgg13": "64 64 M 128 128 M 256 256 M 512 512 M 512 512 M",
    "vgg16": "64 64 M 128 128 M 256 256 256 M 512 512 512 M 512 512 512 M",
    "vgg19": "64 64 M 128 128 M 256 256 256 256 M 512 512 512 512 M 512 512 512 512 M",
}
VGG16 = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
VGG16_BN = (0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40)


def build(name: str, in_channels: int = 3, **options: Any) -> nn.Module:
    encoder = ENCODERS.build({"name": name, **options}, in_channels=in_channels)
    assert isinstance(encoder, nn.Module)
    return encoder


def classifier(encoder: nn.Module, classes: int, width: int = 4096) -> Classifier:
    """The paper's classifier, flat along the first axis."""
    return Classifier(
        encoder, classes, hidden=(width, width), kernel=(1, 7, 7), pool=(1, 2, 2), dropout=0.5
    )


def whole(name: str) -> Classifier:
    """The paper's network for ImageNet, without memory."""
    with torch.device("meta"):
        return classifier(build(name, **FLAT), 1000)


def convolutions(network: nn.Module) -> list[nn.Conv3d]:
    return [m for m in network.modules() if isinstance(m, nn.Conv3d)]


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("vgg11", 132_863_336),
        ("vgg13", 133_047_848),
        ("vgg16", 138_357_544),
        ("vgg19", 143_667_240),
        ("vgg11_bn", 132_868_840),
        ("vgg13_bn", 133_053_736),
        ("vgg16_bn", 138_365_992),
        ("vgg19_bn", 143_678_248),
    ],
)
def test_parameters_are_those_of_torchvision(name: str, parameters: int) -> None:
    assert parameter_count(whole(name)) == parameters


@pytest.mark.parametrize(
    ("name", "millions", "layers"),
    [
        ("vgg11", 133, 11),
        ("vgg11_lrn", 133, 11),
        ("vgg13", 133, 13),
        ("vgg16_c", 134, 16),
        ("vgg16", 138, 16),
        ("vgg19", 144, 19),
    ],
)
def test_millions_and_weight_layers_are_those_of_the_paper(
    name: str, millions: int, layers: int
) -> None:
    network = whole(name)  # Table 2, and the head of Table 1
    assert round(parameter_count(network) / 1e6) == millions
    assert len(convolutions(network)) == layers  # all in a row


@pytest.mark.parametrize("name", TABLE)
def test_sizes_and_channels_of_each_stage(name: str) -> None:
    network, pooled = whole(name), []
    network.pool.register_forward_hook(lambda _m, _x, out: pooled.append(tuple(out.shape)))
    network(torch.empty(1, 3, 1, 224, 224, device="meta"))
    sizes = zip((64, 128, 256, 512, 512), (224, 112, 56, 28, 14), strict=True)
    stages = output_shapes(network.encoder, 3, (1, 224, 224))
    assert stages == [(1, channels, 1, n, n) for channels, n in sizes]
    assert pooled == [(1, 512, 1, 7, 7)]
    assert output_shapes(network, 3, (1, 224, 224)) == [(1, 1000, 1, 1, 1)]


def test_c_ends_its_last_three_stages_with_a_convolution_of_one_voxel() -> None:
    lengths = [m.kernel_size for m in convolutions(build("vgg16_c", width=0.02))]
    three, one = (3, 3, 3), (1, 1, 1)
    assert lengths == [*[three] * 4, *[three, three, one] * 3]


@pytest.mark.parametrize("name", TABLE)
def test_receptive_field_of_each_level(name: str) -> None:
    options = {"kernels": [(1, 1, 3)] * 5, "strides": [(1, 1, 1), *[(1, 1, 2)] * 4]}
    vgg = build(name, 1, width=0.02, **options)
    seen = [receptive_field(vgg, 1, (1, 1, 544), output=level) for level in range(5)]
    assert seen == [(1, 1, length) for length in field(TABLE[name])]


def test_receptive_field_is_the_same_along_all_axes() -> None:
    vgg = build("vgg16", 1, width=0.02, levels=3)
    assert receptive_field(vgg, 1, (48, 48, 48), output=2) == (40, 40, 40)
    assert field(TABLE["vgg16"])[2] == 40


def field(convs: tuple[int, ...]) -> list[int]:
    """The field of each stage's last convolution: each layer adds (length - 1) * step so far."""
    fields, length, step = [], 1, 1
    for stage, count in enumerate(convs):
        if stage:
            length, step = length + step, 2 * step  # the pooling, 2 long
        length += count * 2 * step
        fields.append(length)
    return fields


def test_response_norm_is_that_of_the_formula() -> None:
    x = 30 * torch.randn(2, 7, 2, 3, 4)
    (norm,) = (
        m for m in build("vgg11_lrn", width=0.02).modules() if "ResponseNorm" in repr(type(m))
    )
    expected = torch.empty_like(x)
    for i in range(7):
        near = x[:, max(0, i - 2) : min(7, i + 3)]
        expected[:, i] = x[:, i] / (2 + 1e-4 * near.square().sum(1)) ** 0.75
    assert torch.allclose(norm(x), expected, rtol=1e-5)


def test_response_norm_follows_the_first_activation() -> None:
    stage = build("vgg11_lrn", width=0.02).get_submodule("stages.0")
    kinds = [type(m).__name__ for m in stage.modules() if not list(m.children())]
    assert kinds == ["Conv3d", "ReLU", "LocalResponseNorm"]


def reference(name: str, width: float, classes: int, hidden: int) -> nn.ModuleDict:
    """The same network in 2D, its modules numbered by torchvision's rule."""
    plan, _, batch = name.partition("_")
    layers: list[nn.Module] = []
    channels = 3
    for item in TORCHVISION[plan].split():
        if item == "M":
            layers.append(nn.MaxPool2d(2))
            continue
        before, channels = channels, round(width * int(item))
        layers.append(nn.Conv2d(before, channels, 3, padding=1))
        layers.extend([nn.BatchNorm2d(channels)] if batch else [])
        layers.append(nn.ReLU())
    head = [
        nn.Linear(channels * 49, hidden), nn.ReLU(), nn.Dropout(),
        nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout(), nn.Linear(hidden, classes),
    ]  # fmt: skip
    return nn.ModuleDict({"features": nn.Sequential(*layers), "classifier": nn.Sequential(*head)})


def take_over(network: nn.Module, state: dict[str, Tensor], names: dict[str, str]) -> set[str]:
    """Load 2D weights into the flat 3D network; the names that were used."""
    own, used = network.state_dict(), set()
    for mine, theirs in names.items():
        for suffix in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            if f"{mine}.{suffix}" in own:
                used.add(f"{theirs}.{suffix}")
                own[f"{mine}.{suffix}"].copy_(
                    state[f"{theirs}.{suffix}"].reshape(own[f"{mine}.{suffix}"].shape)
                )
    return used


@pytest.mark.parametrize("name", [*TORCHVISION, *[f"{name}_bn" for name in TORCHVISION]])
def test_a_torchvision_network_taken_over_gives_the_same_scores(name: str) -> None:
    torch.manual_seed(3)
    theirs = reference(name, 0.05, classes=5, hidden=9).eval()
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.weight, 1, 2)
    ours = classifier(build(name, width=0.05, **FLAT), 5, width=9).eval()
    state = theirs.state_dict()
    assert take_over(ours, state, ours.layouts()["torchvision"]) == set(state)
    x = torch.rand(2, 3, 224, 224)
    with torch.no_grad():
        expected = theirs["classifier"](theirs["features"](x).flatten(1))
        got = ours(x.unsqueeze(2)).flatten(1)
    assert expected.std() > 1e-3
    assert torch.allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize(("name", "numbers"), [("vgg16", VGG16), ("vgg16_bn", VGG16_BN)])
@pytest.mark.parametrize("levels", [5, 3, 1])
def test_names_are_those_of_torchvision(name: str, numbers: tuple[int, ...], levels: int) -> None:
    vgg = build(name, width=0.02, levels=levels, strides=[(1, 1, 2)] * levels, dropout=0.1)
    layout = vgg.layouts()["torchvision"]
    kernels = [k for k in layout if isinstance(vgg.get_submodule(k), nn.Conv3d)]
    norms = [k for k in layout if isinstance(vgg.get_submodule(k), nn.BatchNorm3d)]
    used = numbers[: {5: 13, 3: 7, 1: 2}[levels]]
    assert [layout[k] for k in kernels] == [f"features.{n}" for n in used]
    assert [layout[k] for k in norms] == [f"features.{n + 1}" for n in used if name.endswith("bn")]
    assert len(kernels) + len(norms) == len(layout)


def test_response_norm_does_not_change_the_names() -> None:
    a, lrn = build("vgg11", width=0.02), build("vgg11_lrn", width=0.02)
    assert list(a.layouts()["torchvision"].values()) == list(lrn.layouts()["torchvision"].values())
    assert list(a.state_dict()) == list(lrn.state_dict())


def test_the_imagenet_weights_are_taken_over_whole() -> None:
    folder = Path(os.environ.get("MEDSEG_DATA", "/nowhere")) / "weights" / "vgg16_imagenet"
    files = sorted(folder.glob("*.pt"))
    if not files:
        pytest.skip("MEDSEG_DATA has no weights/vgg16_imagenet")
    state = torch.load(files[0], weights_only=True)
    vgg = build("vgg16", **FLAT)
    assert take_over(vgg, state, vgg.layouts()["torchvision"]) == set(state)
    assert sum(key.endswith("weight") for key in state) == 13
    theirs = reference("vgg16", 1.0, classes=1, hidden=1)["features"][:-1]
    theirs.load_state_dict({k.removeprefix("features."): v.float() for k, v in state.items()})
    x = 50 * torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        expected, got = theirs(x), vgg(x.unsqueeze(2))[-1].squeeze(2)
    assert torch.allclose(got, expected, rtol=1e-4, atol=1e-4 * float(expected.max()))
