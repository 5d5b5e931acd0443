"""The options of the encoder "inception": what each does, and what stays the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import medseg_plugins  # noqa: F401
from medseg.errors import ConfigError
from medseg.registry import ENCODERS
from medseg.testing import check_encoder
from medseg_plugins.googlenet import GoogLeNet
from medseg_plugins.inception import InceptionEncoder
from medseg_plugins.inception_modules import RESIDUAL_SCALE, ResidualInception

VARIANTS = ("inception", "naive", "residual", "factorised")
WHOLE_FIRST = [(1, 1, 1), (2, 2, 2), (1, 2, 2), (2, 1, 2), (1, 1, 1)]


def build(name: str = "inception", in_channels: int = 2, **options: Any) -> InceptionEncoder:
    torch.manual_seed(0)
    spec = {"name": name, "width": 0.05, **options}
    encoder = ENCODERS.build(spec, in_channels=in_channels)
    assert isinstance(encoder, InceptionEncoder)
    return encoder


@pytest.mark.parametrize(
    ("variant", "in_channels"),
    [("inception", 1), ("naive", 3), ("residual", 4), ("factorised", 1)],
)
def test_variants_keep_the_contract_with_all_options(variant: str, in_channels: int) -> None:
    encoder = build(
        variant=variant,
        in_channels=in_channels,
        torchvision=variant == "naive",
        lrn=True,
        auxiliary=True,
        strides=WHOLE_FIRST,
        kernels=[(1, 3, 3), (3, 3, 3), (1, 3, 1), (3, 3, 3), (1, 1, 1)],
        activation="prelu",
        checkpointing=True,
        dropout=0.2,
    )
    check_encoder(encoder, in_channels)


def test_one_voxel_may_be_left() -> None:
    levels = build(norm="batch").eval()(torch.rand(1, 2, 32, 32, 96))
    assert [tuple(x.shape[2:]) for x in levels] == [(n, n, 3 * n) for n in (16, 8, 4, 2, 1)]


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_flat_axis_is_left_alone(variant: str) -> None:
    """Each slice of a volume then has the features that it would have by itself."""
    flat: dict[str, Any] = {"kernels": [(1, 3, 3)] * 5, "strides": [(1, 2, 2)] * 5}
    encoder = build(variant=variant, norm="batch", **flat).eval()
    x = torch.rand(1, 2, 3, 32, 32)
    for whole, alone in zip(encoder(x), encoder(x[:, :, 1:2]), strict=True):
        torch.testing.assert_close(whole[:, :, 1:2], alone)
    lengths = {m.kernel_size[0] for m in encoder.modules() if isinstance(m, nn.Conv3d)}
    assert lengths == {1}


def test_factorised_filters_are_long_along_one_axis_only() -> None:
    encoder = build("inception_factorised", kernels=[(3, 3, 3)] * 4 + [(1, 3, 3)])
    for name, module in encoder.named_modules():
        if isinstance(module, nn.Conv3d) and ".branches." in name:
            assert sum(length > 1 for length in module.kernel_size) <= 1, name
    chains = [encoder.get_submodule(f"parts.{p}.branches.2.1") for p in ("3b.3a", "5b.5a")]
    kernels = [[layer[0].kernel_size for layer in chain] for chain in chains]  # type: ignore[index, union-attr]
    assert kernels == [[(5, 1, 1), (1, 5, 1), (1, 1, 5)], [(1, 5, 1), (1, 1, 5)]]


def test_residual_modules_add_scaled_branches_to_their_input() -> None:
    encoder = build("inception_residual", activation="leaky_relu")
    projected, plain = (encoder.get_submodule(f"parts.{n}") for n in ("3b.3b", "4d.4b"))
    assert isinstance(plain, ResidualInception)
    assert isinstance(projected, ResidualInception)
    assert isinstance(plain.shortcut, nn.Identity)
    assert not isinstance(projected.shortcut, nn.Identity)
    for module in (plain, projected):
        x = torch.randn(1, module.branches[0][0].in_channels, 6, 6, 6)  # type: ignore[index]
        branches = torch.cat([branch(x) for branch in module.branches], 1)
        total = module.shortcut(x) + RESIDUAL_SCALE * module.join(branches)
        torch.testing.assert_close(module(x), nn.functional.leaky_relu(total, 0.01))
        nn.init.zeros_(module.join.weight)
        nn.init.zeros_(module.join.bias)  # type: ignore[arg-type]
        torch.testing.assert_close(module(x), nn.functional.leaky_relu(module.shortcut(x), 0.01))


def test_auxiliary_maps_in_training_and_evaluation() -> None:
    encoder = build(auxiliary=True, width=0.1)
    assert (encoder.auxiliary_channels, encoder.auxiliary_weight) == ((13, 13), 0.3)
    x = torch.rand(2, 2, 64, 32, 32)
    for mode in (True, False):
        levels, maps = encoder.train(mode).with_auxiliary(x)
        assert [tuple(m.shape) for m in maps] == [(2, 13, 4, 2, 2)] * 2
        torch.testing.assert_close(levels, encoder(x))
    reached = set()
    for number in range(2):
        encoder.zero_grad()
        encoder.with_auxiliary(x)[1][number].square().sum().backward()
        reached |= {n.split(".")[1] for n, p in encoder.named_parameters() if p.grad is not None}
        assert ("4d" in reached) == (number == 1)
    assert reached == {"conv1", "conv2", "3b", "4a", "4d"}


def test_without_auxiliary_heads() -> None:
    encoder = build()
    assert encoder.auxiliary_channels == ()
    assert encoder.with_auxiliary(torch.rand(1, 2, 64, 32, 32))[1] == []


@pytest.mark.parametrize("variant", VARIANTS)
def test_checkpointing_changes_nothing(variant: str) -> None:
    x, results = torch.rand(2, 2, 32, 32, 64), []
    for checkpointing in (False, True):
        encoder = build(
            variant=variant, norm="batch", auxiliary=True, dropout=0.3, checkpointing=checkpointing
        ).train()
        calls: list[None] = []
        encoder.parts["3b"].register_forward_pre_hook(lambda *_, calls=calls: calls.append(None))
        torch.manual_seed(1)
        levels, maps = encoder.with_auxiliary(x)
        out = [*levels, *maps]
        torch.stack([(o * torch.ones_like(o).cumsum(1)).sum() for o in out]).sum().backward()
        gradients = {name: p.grad for name, p in encoder.named_parameters()}
        results.append((out, gradients, encoder.state_dict()))
        assert len(calls) == 1 + checkpointing
    torch.testing.assert_close(results[0], results[1])


def test_dropout_drops_maps_of_the_last_three_levels() -> None:
    levels = build(dropout=0.5, width=0.3).train()(torch.rand(1, 2, 64, 32, 32))
    dropped = [float((level == 0).all((0, 2, 3, 4)).float().mean()) for level in levels]
    assert dropped[:2] == [0, 0]
    assert all(0.3 < share < 0.7 for share in dropped[2:])


def test_local_response_normalisation() -> None:
    """As Caffe has it: x over (1 + 1e-4 / 5 * the sum of 5 channels' squares) ** .75."""
    encoder = build(lrn=True, width=0.2, norm="none")
    conv2 = encoder.parts["conv2"]
    kinds = [type(layer).__name__ for layer in conv2.children()]
    assert kinds == [
        "MaxPool3d", "LocalResponseNorm", "ConvNormAct", "ConvNormAct", "LocalResponseNorm"
    ]  # fmt: skip
    x = 100 * torch.randn(1, 9, 2, 3, 2)
    squares = nn.functional.pad(x**2, (0, 0, 0, 0, 0, 0, 2, 2))
    total = torch.stack([squares[:, c : c + 5].sum(1) for c in range(9)], 1)
    expected = x / (1 + 1e-4 / 5 * total) ** 0.75
    torch.testing.assert_close(conv2.get_submodule("1")(x), expected)
    assert not any(isinstance(m, nn.LocalResponseNorm) for m in build().modules())


def test_torchvisions_ways() -> None:
    encoder, paper = build(torchvision=True, norm="batch", auxiliary=True), build(norm="batch")
    for net, length, last, eps in ((encoder, 3, 2, 1e-3), (paper, 5, 3, 1e-5)):
        assert {m.eps for m in net.modules() if isinstance(m, nn.BatchNorm3d)} == {eps}
        assert net.get_submodule("parts.5b.5a.branches.2.1.0").kernel_size == (length,) * 3
        pool = net.get_submodule("parts.5b.pool")
        assert torch.Size(nn.modules.utils._triple(pool.kernel_size)) == (last,) * 3
        assert net.get_submodule("parts.4a.pool").kernel_size == (3, 3, 3)


def test_poolings_are_not_padded_at_the_start() -> None:
    """Voxel n of the pooled grid sees voxels 2n to 2n + 2, as in Caffe and in torchvision."""
    pool = build().get_submodule("parts.4a.pool")
    x = torch.arange(8.0).view(1, 1, 1, 1, 8).expand(1, 1, 2, 2, 8)
    assert pool(x).flatten().tolist() == [2, 4, 6, 7]


def test_without_norms_the_signal_stays_alive() -> None:
    for variant in VARIANTS:
        encoder = build(variant=variant, norm="none", width=0.3, strides=WHOLE_FIRST)
        last: Tensor = encoder(torch.randn(1, 2, 8, 8, 8))[-1]
        assert 0.1 < float(last.detach().std()) < 20, variant


def test_presets() -> None:
    encoder = build("googlenet")
    assert (len(encoder.auxiliary), encoder.norm) == (2, "none")
    assert isinstance(encoder.get_submodule("parts.conv2.1"), nn.LocalResponseNorm)
    assert build("googlenet", auxiliary=False, levels=2).channels == (3, 10)
    for variant in VARIANTS[1:]:
        assert build(f"inception_{variant}").variant == variant


def test_the_auxiliary_classifiers_pool_first() -> None:
    encoder = build("googlenet", kernels=[(1, 3, 3)] * 5, strides=[(1, 2, 2)] * 5)
    net = GoogLeNet(encoder, 3, kernel=(1, 2, 2)).eval()
    x = torch.rand(1, 2, 1, 128, 128)
    pooled = nn.functional.avg_pool3d(encoder.features(x)["4d"], (1, 5, 5), (1, 3, 3))
    expected = net.auxiliary_layers["4d"](encoder.auxiliary["4d"](pooled))
    scores, auxiliary = net.with_auxiliary(x)
    torch.testing.assert_close(auxiliary[1], expected)
    torch.testing.assert_close(scores, net(x))


def test_layouts_name_every_weight_once() -> None:
    encoder = build("googlenet_torchvision")
    with_weights = {n for n, m in encoder.named_modules() if list(m.parameters(recurse=False))}
    layouts = encoder.layouts()
    assert set(layouts["torchvision"]) == with_weights
    assert len(set(layouts["torchvision"].values())) == len(with_weights) == 2 * (57 + 2)
    plain = build("googlenet", activation="prelu").layouts()
    assert len(set(plain["caffe"].values())) == len(plain["caffe"]) == 57 + 2
    assert set(plain["torchvision"]) == set(plain["caffe"])  # no norms, no activations


@pytest.mark.parametrize(
    ("own", "torchvision", "caffe"),
    [
        ("parts.conv1.0", "conv1.conv", "conv1/7x7_s2"),
        ("parts.conv1.1", "conv1.bn", None),
        ("parts.conv2.2.0", "conv2.conv", "conv2/3x3_reduce"),
        ("parts.conv2.3.0", "conv3.conv", "conv2/3x3"),
        ("parts.3b.3a.branches.0.0", "inception3a.branch1.conv", "inception_3a/1x1"),
        ("parts.4d.4c.branches.1.0.1", "inception4c.branch2.0.bn", None),
        ("parts.4d.4c.branches.1.1.0", "inception4c.branch2.1.conv", "inception_4c/3x3"),
        ("parts.4e.4e.branches.2.0.0", "inception4e.branch3.0.conv", "inception_4e/5x5_reduce"),
        ("parts.5b.5b.branches.3.1.0", "inception5b.branch4.1.conv", "inception_5b/pool_proj"),
        ("auxiliary.4d.0", "aux2.conv.conv", "loss2/conv"),
    ],
)
def test_layouts(own: str, torchvision: str, caffe: str | None) -> None:
    layouts = build("googlenet_torchvision").layouts()
    assert layouts["torchvision"][own] == torchvision
    assert layouts["caffe"].get(own) == caffe


def test_layouts_of_the_classifiers() -> None:
    layouts = GoogLeNet(build("googlenet"), 5).layouts()
    assert layouts["torchvision"]["encoder.parts.conv1.0"] == "conv1.conv"
    assert layouts["torchvision"]["layers.1"] == "fc"
    assert layouts["torchvision"]["auxiliary_layers.4a.0"] == "aux1.fc1"
    assert layouts["caffe"]["auxiliary_layers.4d.3"] == "loss2/classifier"
    assert GoogLeNet(build("inception_naive"), 5).layouts() == build("inception_naive").layouts()
    assert build("inception_residual").layouts() == {}


@pytest.mark.parametrize(
    ("options", "option", "message"),
    [
        ({"auxiliary": True, "levels": 3}, "auxiliary", "set levels to 4 or 5"),
        ({"levels": 1}, "levels", "2 to 5"),
        ({"levels": 6}, "levels", "2 to 5"),
        ({"strides": [[2, 2, 2]]}, "strides", "5, got 1"),
        ({"variant": "inceptoin"}, "variant", "inceptoin"),
    ],
)
def test_bad_options(options: dict[str, Any], option: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        build(**options)
    assert caught.value.path[0] == option
