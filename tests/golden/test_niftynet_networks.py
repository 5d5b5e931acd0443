"""NiftyNet's networks against their papers, MONAI and counts made by hand from the layer tables."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

import medseg_plugins  # noqa: F401
from medseg.networks.describe import parameter_count, receptive_field
from medseg.registry import ENCODERS, NETWORKS


def build(name: str, in_channels: int = 1, classes: int = 2, **options: Any) -> nn.Module:
    network = NETWORKS.build({"name": name, **options}, in_channels=in_channels, classes=classes)
    assert isinstance(network, nn.Module)
    return network


def count(name: str, in_channels: int = 1, classes: int = 2, **options: Any) -> int:
    with torch.device("meta"):
        return parameter_count(build(name, in_channels, classes, **options))


def weights(widths: Iterable[int], taps: int = 27) -> int:
    """Of convolutions without biases, one behind the other."""
    return sum(taps * before * after for before, after in pairwise(widths))


# Channels from convolution to convolution of Li et al. 2017, Figure 1: 19 of 3x3x3.
HIGHRES = (16, *[16] * 6, *[32] * 6, *[64] * 6)
# A norm of two numbers per channel stands behind the first and before each further convolution.
HIGHRES_NORMS = 2 * (16 + sum(HIGHRES[:-1]))


def test_highres3dnet_has_the_layers_and_parameters_of_its_paper() -> None:
    """0.81 M for 1 channel and 160 classes, 20 convolutions (section 3; Table 1)."""
    with torch.device("meta"):
        network = build("highres3dnet", 1, 160)
    convs = [m for m in network.modules() if isinstance(m, nn.Conv3d)]
    assert len(convs) == 20
    by_hand = weights((1, *HIGHRES)) + HIGHRES_NORMS + 64 * 160 + 160
    assert parameter_count(network) == by_hand
    assert round(by_hand / 1e6, 2) == 0.81


def test_highres3dnet_sees_as_far_as_in_its_paper() -> None:
    """87 voxels, by gradient; here along one axis, all being alike."""
    assert receptive_field(build("highres3dnet", width=0.1), 1, (95, 3, 3)) == (87, 3, 3)


def test_the_further_forms_of_highres3dnet() -> None:
    """With 80 maps for dropout (the paper's), and NiftyNet's small and large."""
    base = weights((1, *HIGHRES)) + HIGHRES_NORMS
    assert count("highres3dnet_dropout", 1, 160) == base + 64 * 80 + 2 * 80 + 80 * 160 + 160
    small = weights((64, 80, 80)) + 2 * 2 * 80  # a convolution, and one transposed
    assert count("highres3dnet_small", 1, 160) == base + small + 80 * 160 + 160
    large = weights((64, 64)) + 64 * 64 + 2 * 2 * 64
    assert count("highres3dnet_large", 1, 160) == base + large + 64 * 160 + 160


def test_highres3dnet_computes_what_monai_computes() -> None:
    """All but the last layer, behind which MONAI has a norm and a non-linearity."""
    nets = pytest.importorskip("monai.networks.nets")
    torch.manual_seed(0)
    theirs = nets.HighResNet(spatial_dims=3, in_channels=2, out_channels=3).eval()
    ours = build("highres3dnet", 2, 3, head=[80]).eval()
    features = nn.Sequential(ours.get_submodule("stem"), ours.get_submodule("stages"),
                             ours.get_submodule("head"))  # fmt: skip
    blocks = nn.Sequential(*list(theirs.blocks)[:-1])
    for norm in (m for m in blocks.modules() if isinstance(m, nn.BatchNorm3d)):
        nn.init.uniform_(norm.weight, 0.5, 2)
        nn.init.uniform_(norm.running_var, 0.5, 2)
    values = [*blocks.state_dict().values()]
    # MONAI's blocks start with their norms, ours too: the order is the same.
    features.load_state_dict(dict(zip(features.state_dict(), values, strict=True)))
    x = torch.randn(1, 2, 9, 10, 11)
    with torch.no_grad():
        torch.testing.assert_close(features(x), blocks(x), rtol=1e-4, atol=1e-4)


def test_unet3d_has_the_parameters_of_its_paper() -> None:
    """19,069,955 (section 2), without those of the norms, for 3 channels and 3 classes."""
    assert count("unet3d", 3, 3, norm="none") == 19_069_955
    # With norms, convolutions need no bias: 2 numbers a channel instead of 1.
    channels = 32 + 2 * 64 + 2 * 128 + 2 * 256 + 512 + 2 * (256 + 128 + 64) - 64 - 128 - 256 + 448
    assert channels == sum((32, 64, 64, 128, 128, 256, 256, 512, 256, 256, 128, 128, 64, 64))
    assert count("unet3d", 3, 3) == 19_069_955 + channels


def test_vnet_has_the_layers_of_its_paper() -> None:
    """Table 1 and Figure 2: 5x5x5 convolutions, 2x2x2 steps; channels doubled at each step."""
    down, convs = (16, 32, 64, 128, 256), (1, 2, 3, 3, 3)
    total = sum(125 * (n - (c == 16)) * c * c + n * c
                for n, c in zip(convs, down, strict=True))  # fmt: skip
    total += 125 * 16  # the first convolution sees one channel
    total += sum(125 * n * c * c + n * c for n, c in zip((3, 3, 2, 1), down[:0:-1], strict=True))
    total += sum(8 * a * b + b for a, b in pairwise(down))
    total += sum(8 * a * b + b for a, b in zip((256, 256, 128, 64), (128, 64, 32, 16), strict=True))
    activations = sum(convs) + 3 + 3 + 2 + 1 + 4 + 4  # PReLUs: one number each
    total += 32 * 2 + 2 + activations
    assert count("vnet") == total
    assert round(total / 1e6, 1) == 65.2


def test_dense_vnet_by_hand() -> None:
    """Growth 4, 8, 16; 5, 10, 10 convolutions; 12, 24, 24 maps for the scores."""
    classes = 9
    total, norms = 125 * 24 + 27 * 61 * classes + classes, 1 + 24
    width = 1 + 24
    for more, n, skip in ((4, 5, 12), (8, 10, 24), (16, 10, 24)):
        total += sum(27 * (width + more * k) * more for k in range(n))
        width += more * n
        total += 27 * width * skip
        norms += more * n + skip
        if more < 16:
            total += 27 * width * 24
            norms += 24
            width = 24
    assert count("dense_vnet", 1, classes) == total + 2 * norms
    assert round((total + 2 * norms) / 1e6, 2) == 0.88
    assert count("dense_vnet_prior", 1, classes) == total + 2 * norms + 12**3 * classes


@pytest.mark.parametrize("modalities", [2, 4])
def test_scalenet_by_hand(modalities: int) -> None:
    """16 features of each modality, one scalable layer, HighRes3DNet with 80 maps behind it."""
    m, f = modalities, 16
    stem = 27 * m * f + 2 * m * f
    over_modalities = f * (27 * m * m + m * m + 2 * 2 * m)
    over_features = m * (27 * f * f + f * f + 2 * 2 * f)
    front = count("highres3dnet", f, 3, head=[80])
    assert count("scalenet", m, 3, activation="relu") == (
        stem + over_modalities + over_features + front
    )
    prelus = 1 + 2 + 2 + 1 + 18 + 1  # one number each
    assert count("scalenet", m, 3) == count("scalenet", m, 3, activation="relu") + prelus


def test_holisticnet_by_hand() -> None:
    """70 maps throughout; 4 scales of 3 blocks of 2 convolutions; 140 maps before the scores."""
    classes = 5
    block = 2 * (27 * 70 * 70 + 2 * 70)
    score = 27 * 70 * 140 + 2 * 140 + 140 * classes + classes
    ups, balance = 2 * 8 * classes, 4 * classes
    total = 27 * 4 * 70 + 2 * 70 + 4 * (3 * block + score) + ups + balance
    assert count("holisticnet", 4, classes) == total


def test_nonewnet_by_hand() -> None:
    """30 to 480 channels, two convolutions a level; a level narrows before it goes up."""
    rows = [(4, 30, 30), (30, 60, 60), (60, 120, 120), (120, 240, 240), (240, 480, 240),
            (480, 240, 120), (240, 120, 60), (120, 60, 30), (60, 30, 30)]  # fmt: skip
    norms = sum(2 * (b + c) for _, b, c in rows)
    assert count("nonewnet", 4, 4) == sum(weights(row) for row in rows) + norms + 30 * 4 + 4


def test_se_resnet_by_hand_and_its_stages_are_the_encoders() -> None:
    """16, then bottlenecks of 64 and 128; as `resnet` with the options that the docstring names."""
    total = 27 * 16
    for before, width in ((16, 64), (64, 128)):
        inner, squeezed = width // 4, width // 16
        total += before * inner + 27 * inner * inner + inner * width + before * width
        total += 2 * (before + inner + inner)
        total += 2 * width * squeezed + width + squeezed
    stages = total
    assert count("se_resnet", 1, 3) == stages + 2 * 128 + 128 * 3 + 3
    options: dict[str, Any] = {"widths": [64, 128], "block": "bottleneck", "order": "v2"}
    options |= {"shortcut": "B", "se": True, "norm": "batch", "activation": "relu"}
    encoder = ENCODERS.build({"name": "resnet", **options}, in_channels=1)
    assert encoder.channels == (64, 128)
    assert parameter_count(encoder) == stages + 2 * (64 + 128)


def test_toynet_by_hand() -> None:
    assert count("toynet", 1, 3) == 27 * 10 + 2 * 10 + 10 * 3 + 3
