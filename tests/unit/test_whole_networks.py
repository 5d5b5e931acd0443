"""What is special about each of NiftyNet's and DLTK's networks, and what they refuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import medseg_plugins  # noqa: F401
from medseg.config.schema import ComponentSpec, Model
from medseg.errors import ConfigError
from medseg.networks.assembly import WholeNetwork, build_network
from medseg.networks.describe import receptive_field
from medseg.registry import NETWORKS
from medseg.testing import check_network
from medseg_plugins.dense_vnet import DenseStack, SpatialPrior
from medseg_plugins.highres_blocks import HighResBlock, Style
from medseg_plugins.scalenet import ScalableLayer
from medseg_plugins.vnet import VNet

FLAT = [[1, 1, 1], [2, 2, 1], [2, 2, 1], [2, 2, 2], [2, 2, 2]]


def build(name: str, in_channels: int = 2, classes: int = 3, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    network = NETWORKS.build({"name": name, **options}, in_channels=in_channels, classes=classes)
    assert isinstance(network, nn.Module)
    return network


def whole(name: str, **options: Any) -> WholeNetwork:
    spec = ComponentSpec(name=name, width=0.05, **options)
    network = build_network(Model(network=spec), in_channels=1, classes=2, seed=0)
    assert isinstance(network, WholeNetwork)
    return network


@pytest.mark.parametrize(
    ("name", "options", "divisor"),
    [
        ("highres3dnet", {}, (1, 1, 1)),
        ("highres3dnet_small", {}, (2, 2, 2)),
        ("highres3dnet", {"stride": [1, 4, 2]}, (1, 4, 2)),
        ("scalenet", {}, (1, 1, 1)),
        ("holisticnet", {}, (2, 2, 2)),
        ("holisticnet", {"stride": [2, 2, 1]}, (2, 2, 1)),
        ("dense_vnet_prior", {}, (8, 8, 8)),
        ("dense_vnet", {"strides": [[2, 2, 1], [2, 2, 2], [2, 2, 2]]}, (8, 8, 4)),
        ("vnet", {}, (16, 16, 16)),
        ("vnet", {"strides": FLAT}, (16, 16, 4)),
        ("unet3d", {}, (8, 8, 8)),
        ("unet3d", {"strides": FLAT[:4]}, (8, 8, 2)),
        ("nonewnet", {"strides": FLAT}, (16, 16, 4)),
        ("se_resnet", {}, (2, 2, 2)),
        ("residual_unet", {}, (8, 8, 8)),
        ("residual_unet", {"strides": [[2, 2, 1], *FLAT[1:4]]}, (16, 16, 2)),
        ("residual_fcn", {"strides": [[2, 2, 1], *FLAT[1:4]]}, (16, 16, 2)),
    ],
    ids=str,
)
def test_sizes_that_fit(name: str, options: dict[str, Any], divisor: tuple[int, ...]) -> None:
    assert whole(name, **options).divisor == divisor


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("highres3dnet", {"stride": [2, 2, 1], "kernel": [3, 3, 1], "widths": [8, 4]}
            | {"blocks": [1, 1], "dilations": [1, 3]}),
        ("scalenet", {"merge": "max", "layers": 2, "activation": "elu"}),
        ("holisticnet", {"stride": [2, 1, 1], "activation": "prelu", "blocks": 1}),
        ("holisticnet", {"stride": [1, 1, 1], "blocks": 1}),
        ("dense_vnet", {"strides": [[2, 2, 1]] * 3, "prior": [4, 4, 2], "kernel": [3, 3, 1]}),
        ("vnet", {"strides": FLAT, "kernels": [[5, 5, 1], *[[3, 3, 3]] * 4], "norm": "instance"}),
        ("vnet", {"widths": [16, 32], "convs": [2, 1], "up_convs": [3]}),
        ("unet3d", {"strides": FLAT[:4], "kernels": [[3, 3, 1], *[[3, 3, 3]] * 3], "dropout": 0.2}),
        ("nonewnet", {"widths": [60, 120], "activation": "prelu"}),
        ("se_resnet", {"blocks": [2, 1], "strides": [[2, 2, 1], [2, 2, 2]], "dropout": 0.2}),
        ("residual_unet", {"units": 2, "up_units": 1, "strides": [[2, 2, 1], *FLAT[1:4]]}),
        ("residual_fcn", {"units": 2, "dropout": 0.2, "activation": "prelu"}),
    ],
    ids=str,
)  # fmt: skip
def test_options_keep_the_contract(name: str, options: dict[str, Any]) -> None:
    check_network(build(name, 1, 2, width=0.05, **options), 1, 2)


def test_flat_kernels_see_one_slice() -> None:
    network = build("highres3dnet", 1, 2, width=0.1, kernel=[3, 3, 1])
    assert receptive_field(network, 1, (5, 5, 9)) == (5, 5, 1)


def test_a_highres_block_without_weights_is_its_shortcut() -> None:
    style = Style("batch", "relu")
    block = HighResBlock(2, 5, ((3, 3, 3),) * 2, style, dilation=2)
    for parameter in block.parameters():
        nn.init.zeros_(parameter)
    x = torch.randn(1, 2, 3, 4, 5)
    out = block(x)
    torch.testing.assert_close(out[:, 1:3], x)
    assert not out[:, [0, 3, 4]].any()
    assert HighResBlock(5, 2, ((3, 3, 3),), style)(out).shape == x.shape


def test_scalenet_mixes_modalities_feature_by_feature_and_then_features() -> None:
    """Gradients of one entry of the table of 3 modalities by 4 features: its column, then all."""
    layer = ScalableLayer(3, 4, (1, 1, 1), Style("none", "elu"))
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, 0.1, 1)
    only_features = ScalableLayer(3, 4, (1, 1, 1), Style("none", "elu"))
    only_features.load_state_dict(layer.state_dict())
    for parameter in only_features.over_modalities.parameters():
        nn.init.zeros_(parameter)
    assert seen(layer, 1, 2).all()
    assert seen(only_features, 1, 2).nonzero()[:, 0].tolist() == [1] * 4  # all of its modality
    for parameter in layer.over_features.parameters():
        nn.init.zeros_(parameter)
    assert seen(layer, 1, 2).nonzero().tolist() == [[0, 2], [1, 2], [2, 2]]  # all of its feature


def seen(layer: ScalableLayer, modality: int, feature: int) -> Tensor:
    """Which entries of the table one entry of the output depends on."""
    x = torch.rand(1, 12, 1, 1, 1, requires_grad=True)
    layer(x)[0, 4 * modality + feature].sum().backward()
    assert x.grad is not None
    return x.grad.view(3, 4) != 0


def test_modalities_stay_apart_in_the_stem_of_scalenet() -> None:
    network = build("scalenet", 2, features=3).eval()
    x = torch.randn(1, 2, 4, 4, 4)
    other = x.clone()
    other[:, 1] += 1
    stem = network.get_submodule("stem")
    assert torch.equal(stem(x)[:, :3], stem(other)[:, :3])
    assert not torch.equal(stem(x)[:, 3:], stem(other)[:, 3:])


def test_holisticnet_gives_the_average_of_its_scales() -> None:
    network = build("holisticnet", width=0.05).eval()
    x = torch.randn(1, 2, 8, 8, 8)
    fused, *scales = network(x)
    assert [item.shape for item in scales] == [fused.shape] * 4
    average = torch.stack([scale.softmax(1) for scale in scales]).mean(0)
    torch.testing.assert_close(fused.exp(), average)
    with torch.no_grad():
        network.get_parameter("balance")[2] = 40.0
    torch.testing.assert_close(network(x)[0].softmax(1), scales[2].softmax(1))
    coarse = scales[3]  # at first, the step back up repeats voxels
    torch.testing.assert_close(coarse[:, :, ::2, ::2, ::2], coarse[:, :, 1::2, 1::2, 1::2])


def test_dense_vnet_drops_the_same_maps_for_the_whole_batch() -> None:
    torch.manual_seed(0)
    stack = DenseStack([nn.Conv3d(2, 40, 1), nn.Conv3d(42, 5, 1)], dropout=0.5)
    x = torch.rand(3, 2, 4, 4, 4)
    dropped = (stack(x)[:, 2:42] == 0).all((2, 3, 4))
    assert torch.equal(dropped, dropped[:1].expand(3, -1))
    assert 10 < dropped[0].sum() < 30
    assert not torch.equal(dropped, (stack(x)[:, 2:42] == 0).all((2, 3, 4)))
    assert (stack(x)[:, 42:] != 0).all()
    assert torch.equal(stack(x)[:, :2], x)
    assert torch.equal(stack.eval()(x), stack(x))


def test_the_spatial_prior_is_neutral_at_first_and_then_knows_places() -> None:
    prior = SpatialPrior(2, (4, 4, 4))
    scores = torch.randn(1, 2, 16, 16, 16)
    torch.testing.assert_close(prior(scores).softmax(1), scores.softmax(1))
    with torch.no_grad():
        prior.logits[:, 1, 0, 0, 0] = 50.0
        prior.logits[:, 0, 3, 3, 3] = 500.0
    found = prior(torch.zeros_like(scores))
    assert found.isfinite().all()
    assert found.argmax(1)[0, 0, 0, 0] == 1
    assert found.argmax(1)[0, 15, 15, 15] == 0


def test_the_first_shortcut_of_vnet_repeats_the_channels() -> None:
    network = build("vnet", 2, 2, widths=[5, 8], convs=[1, 1])
    assert isinstance(network, VNet)
    stage = network.down_stages[0]
    for parameter in stage.get_submodule("body").parameters():
        nn.init.zeros_(parameter)
    x = torch.rand(1, 2, 4, 4, 4)
    torch.testing.assert_close(stage(x), x[:, [0, 1, 0, 1, 0]])


def test_vnet_without_norms_starts_with_a_signal_in_every_stage() -> None:
    """Neither vanishing nor exploding through 23 convolutions: each stage varies as the input."""
    network = build("vnet", 1, 2, width=0.25)
    assert isinstance(network, VNet)
    spreads: list[float] = []
    for stage in (*network.down_stages, *network.up_stages):
        stage.register_forward_hook(lambda _, __, out: spreads.append(float(out.std())))
    with torch.no_grad():
        network(torch.randn(1, 1, 32, 32, 32))
    assert len(spreads) == 9
    assert 0.5 < min(spreads) < max(spreads) < 5


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("highres3dnet", {"kernel": [3, 3, 2]}, "must be odd"),
        ("highres3dnet", {"blocks": [1, 1]}, "blocks needs one positive number per stage: 3"),
        ("highres3dnet", {"stride": [0, 1, 1]}, "stride must be at least 1"),
        ("scalenet", {"layers": 0}, "layers must be at least 1"),
        ("holisticnet", {"width": 0.0}, "width must be above 0"),
        ("dense_vnet", {"skips": [12, 24]}, "skips needs one positive number per stage: 3"),
        ("dense_vnet", {"prior": [12, 12, 0]}, "prior must be at least 1"),
        ("vnet", {"widths": [16], "convs": [1]}, "at least 2 levels"),
        ("vnet", {"strides": [[2, 2, 2]] * 5}, r"its step is \(1, 1, 1\), got \(2, 2, 2\)"),
        ("unet3d", {"strides": [[2, 2, 2]] * 4}, r"its step is \(1, 1, 1\), got \(2, 2, 2\)"),
        ("nonewnet", {"kernels": [[3, 3, 3]]}, "one triple per level: 5, got 1"),
        ("se_resnet", {"widths": [64, 30]}, "multiples of 4"),
        ("residual_unet", {"up_units": 0}, "up_units must be at least 1"),
        ("residual_fcn", {"units": 0}, "units must be at least 1"),
        ("toynet", {"features": 0}, "features must be at least 1"),
    ],
)
def test_what_is_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(name, **options)
