"""ResNets against the papers, torchvision, timm and MedicalNet: parameters, layers, sizes, names.

The papers' networks are 2D. With kernels one voxel deep the 3D networks have the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import nn

import medseg_plugins  # noqa: F401
from medseg.networks.describe import parameter_count, receptive_field
from medseg.registry import ENCODERS
from medseg_plugins.classifier import Classifier

NAMES = [name for name in ENCODERS.presets if name.startswith(("resnet", "plain", "se_resnet"))]
BLOCKS = {
    "10": (1, 1, 1, 1),
    "18": (2, 2, 2, 2),
    "34": (3, 4, 6, 3),
    "50": (3, 4, 6, 3),
    "101": (3, 4, 23, 3),
    "152": (3, 8, 36, 3),
    "200": (3, 24, 36, 3),
}


def build(name: str, **options: object) -> nn.Module:
    with torch.device("meta"):
        encoder = ENCODERS.build({"name": name, **options}, in_channels=3)
    assert isinstance(encoder, nn.Module)
    return encoder


def flat(name: str, **options: object) -> nn.Module:
    steps = {"strides": [(1, 2, 2)] * 5, "kernels": [(1, 3, 3)] * 5}
    return build(name, **(steps | options))


def depth(name: str) -> str:
    return name.lstrip("abcdefghijklmnopqrstuvwxyz_")


# torchvision's resnet18 to resnet152, timm's seresnet50 (1000 classes).
@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("resnet18", 11_689_512),
        ("resnet34", 21_797_672),
        ("resnet50", 25_557_032),
        ("resnet101", 44_549_160),
        ("resnet152", 60_192_808),
        ("se_resnet50", 28_088_024),
    ],
)
def test_parameters_with_the_classifier(name: str, parameters: int) -> None:
    with torch.device("meta"):
        assert parameter_count(Classifier(flat(name), 1000)) == parameters


@pytest.mark.parametrize("name", NAMES)
def test_parameters_by_hand(name: str) -> None:
    assert parameter_count(flat(name)) == by_hand(name)


def by_hand(name: str) -> int:
    """Table 1 of the 2015 paper: weights of convolutions, two numbers per channel of a norm."""
    long = int(depth(name)) >= 50
    width_in, count = 64, 3 * 49 * 64 + 2 * 64
    for n, blocks in enumerate(BLOCKS[depth(name)]):
        inner = 64 * 2**n
        width = 4 * inner if long else inner
        for block in range(blocks):
            if long:
                count += width_in * inner + 9 * inner**2 + inner * width + 4 * inner + 2 * width
            else:
                count += 9 * width_in * width + 9 * width**2 + 4 * width
            if block == 0 and width_in != width and not name.startswith("plain"):
                count += width_in * width + 2 * width
            if name.startswith("se_"):
                count += 2 * width * (width // 16) + width + width // 16
            width_in = width
    return count


def test_preactivation_has_the_parameters_of_timm() -> None:
    """25,549,352 of resnetv2_50, which has one norm behind the last stage, none behind others."""
    net = flat("resnet50", order="v2")
    assert isinstance(net.ends, nn.ModuleList)
    others = sum(parameter_count(end) for end in net.ends[:-1])
    with torch.device("meta"):
        assert parameter_count(Classifier(net, 1000)) - others == 25_549_352


# The authors' table, in millions; it counts the running statistics too.
@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("medicalnet10", 14.36),
        ("medicalnet18", 32.99),
        ("medicalnet34", 63.31),
        ("medicalnet50", 46.21),
        ("medicalnet101", 85.31),
        ("medicalnet152", 117.51),
        ("medicalnet200", 126.74),
    ],
)
def test_medicalnet(name: str, millions: float) -> None:
    with torch.device("meta"):
        net = ENCODERS.build({"name": name}, in_channels=1)
    numbers = sum(v.numel() for v in net.state_dict().values() if v.ndim)
    assert round(numbers / 1e6, 2) == millions
    assert [s[0] for s in net.strides] == [2, 4, 8, 8, 8]
    rates = [
        {m.dilation for m in stage.modules() if isinstance(m, nn.Conv3d) and m.kernel_size[0] == 3}
        for stage in net.stages
    ]
    assert rates == [{(1,) * 3}, {(1,) * 3}, {(2,) * 3}, {(4,) * 3}]
    steps = {m.stride for s in net.stages[2:] for m in s.modules() if isinstance(m, nn.Conv3d)}
    assert steps == {(1, 1, 1)}


@pytest.mark.parametrize("name", NAMES)
def test_layers_along_the_longest_path(name: str) -> None:
    with torch.device("meta"):
        net = Classifier(flat(name), 1000)
    aside = ("shortcut", "reduce", "expand")
    convs = [n for n, m in net.named_modules() if isinstance(m, nn.Conv3d)]
    assert sum(not any(word in n for word in aside) for n in convs) == int(depth(name))


@pytest.mark.parametrize("name", ["resnet18", "plain34", "resnet50"])
@pytest.mark.parametrize("order", ["v1", "v1b", "v2"])
def test_sizes_of_table_1(name: str, order: str) -> None:
    net = flat(name, order=order)
    levels = net(torch.empty(1, 3, 1, 224, 224, device="meta"))
    widths = (256, 512, 1024, 2048) if name == "resnet50" else (64, 128, 256, 512)
    expected = zip((64, *widths), (112, 56, 28, 14, 7), strict=True)
    assert [tuple(x.shape[1:]) for x in levels] == [(c, 1, n, n) for c, n in expected]
    assert [s[0] for s in build(name, order=order).strides] == [2, 4, 8, 16, 32]  # not given
    sizes = net.pool(levels[0]).shape, net.stages[0](net.pool(levels[0])).shape
    assert [s[3:] for s in sizes] == [(56, 56), (56, 56)]


# Known of torchvision's networks: 435 (18 layers), 899 (34) and 427 (50, "v1b").
@pytest.mark.parametrize(
    ("name", "options", "last"),
    [
        pytest.param("resnet18", {}, 435, marks=pytest.mark.slow),
        ("resnet18", {"order": "v2", "shortcut": "A"}, 435),
        pytest.param("plain34", {}, 899, marks=pytest.mark.slow),
        pytest.param("resnet50", {"order": "v1b"}, 427, marks=pytest.mark.slow),
        pytest.param("resnet50", {"order": "v1"}, None, marks=pytest.mark.slow),
        ("medicalnet10", {}, None),
        ("medicalnet18", {}, None),
    ],
)
def test_receptive_fields(name: str, options: dict[str, str], last: int | None) -> None:
    """Along one axis only: the other two are flat, so that it is quick."""
    net = along_j(name, options)
    expected = list(fields(name, options.get("order", "v1b")))
    assert last in (None, expected[-1])
    size = (1, 32 * math.ceil(expected[-1] / 32 + 2), 1)
    found = [receptive_field(net, 1, size, level) for level in range(5)]
    assert found == [(1, n, 1) for n in expected]


def along_j(name: str, options: dict[str, str]) -> nn.Module:
    steps = ENCODERS.signature(name).parameters["strides"].default or [(2, 2, 2)] * 5
    strides = [(1, step[1], 1) for step in steps]
    spec = {"name": name, "width": 0.03, "kernels": [(1, 3, 1)] * 5, "strides": strides}
    net = ENCODERS.build(spec | options, in_channels=1)
    assert isinstance(net, nn.Module)
    return net


def fields(name: str, order: str) -> Iterator[int]:
    """Each layer adds its length less 1, times its dilation, in voxels of its input."""
    medical, long = name.startswith("medical"), int(depth(name)) >= 50
    field, step = 7, 2
    yield field
    field, step = field + 2 * step, 2 * step
    for n, blocks in enumerate(BLOCKS[depth(name)]):
        rate = (1, 1, 2, 4)[n] if medical else 1
        for block in range(blocks):
            stride = 2 if block == 0 and n > 0 and rate == 1 else 1
            if long:
                early, late = (stride, 1) if order == "v1" else (1, stride)
                field, step = field + 2 * rate * step * early, step * early * late
            else:
                field, step = field + 2 * rate * step * (1 + stride), step * stride
        yield field


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "plain34", "se_resnet50", "medicalnet34"])
@pytest.mark.parametrize("order", ["v1", "v1b"])
def test_names_in_torchvision(name: str, order: str) -> None:
    net = build(name, order=order)
    names = net.layouts()["torchvision"]
    assert set(names.values()) == torchvision_names(name)
    assert len(set(names.values())) == len(names)
    weighted = [n for n, m in net.named_modules() if list(m.parameters(recurse=False))]
    assert sorted(names) == sorted(weighted)
    modules = {names[n]: m for n, m in net.named_modules() if n in names}
    for theirs, module in modules.items():
        assert isinstance(module, nn.BatchNorm3d if is_norm(theirs) else nn.Conv3d)
    assert modules["layer2.0.conv1"].weight.shape[1] == net.channels[1]
    if name.startswith("se"):
        assert modules["layer1.0.se.fc1"].weight.shape[:2] == (16, 256)
    assert modules["layer4.2.bn2" if name != "resnet18" else "layer4.1.bn2"].weight.numel() == 512


def is_norm(name: str) -> bool:
    return "bn" in name or name.endswith("downsample.1")


def torchvision_names(name: str) -> set[str]:
    convs = 3 if int(depth(name)) >= 50 else 2
    found = {"conv1", "bn1"}
    for n, blocks in enumerate(BLOCKS[depth(name)], start=1):
        for block in range(blocks):
            parts = [f"{kind}{m}" for kind in ("conv", "bn") for m in range(1, convs + 1)]
            if block == 0 and (n > 1 or convs == 3) and name.startswith(("resnet", "se")):
                parts += ["downsample.0", "downsample.1"]
            parts += ["se.fc1", "se.fc2"] if name.startswith("se") else []
            found |= {f"layer{n}.{block}.{part}" for part in parts}
    return found


def test_what_torchvision_does_not_have_has_no_names_there() -> None:
    assert build("resnet18", order="v2").layouts() == {}
    assert build("resnet18", shortcut="pool").layouts() == {}
    assert build("resnet", shortcut="B").layouts() == {}
    assert build("resnet", shortcut="B", stem_norm=True).layouts() != {}
    without = build("resnet18", norm="none", activation="prelu").layouts()["torchvision"]
    assert set(without.values()) == {n for n in torchvision_names("resnet18") if not is_norm(n)}
