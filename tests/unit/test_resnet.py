"""ResNets: what each option changes, and what it leaves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import medseg_plugins  # noqa: F401
from medseg.errors import ConfigError
from medseg.networks.blocks import Residual, SqueezeExcite
from medseg.registry import ENCODERS
from medseg.testing import check_encoder
from medseg_plugins.resnet_blocks import PaddedShortcut

SMALL: dict[str, Any] = {"widths": [4, 8, 12], "blocks": [1, 2, 1]}


def build(seed: int = 0, **options: Any) -> nn.Module:
    torch.manual_seed(seed)
    encoder = ENCODERS.build({"name": "resnet", **(SMALL | options)}, in_channels=2)
    assert isinstance(encoder, nn.Module)
    return encoder


def convs(module: nn.Module) -> list[nn.Conv3d]:
    return [m for m in module.modules() if isinstance(m, nn.Conv3d)]


@pytest.mark.parametrize(
    "options",
    [
        {"shortcut": "A", "norm": "batch", "stem_norm": True, "stem_pool": True,
         "strides": [[1, 1, 1], [2, 2, 2], [1, 1, 1]]},
        {"shortcut": "B", "order": "v1", "block": "bottleneck", "se": True},
        {"shortcut": "C", "order": "v2", "stem_norm": True},
        {"shortcut": "A", "order": "v2", "norm": "none", "block": "bottleneck"},
        {"shortcut": "pool", "order": "v2", "norm": "group", "dropout": 0.3, "se": True},
        {"residual": False, "order": "v2", "checkpointing": True},
        {"residual": False, "block": "bottleneck", "activation": "prelu"},
        {"dilations": [1, 2], "strides": [[2, 1, 1], [1, 2, 2]]},
    ],
    ids=str,
)  # fmt: skip
def test_every_kind_keeps_the_contract(options: dict[str, Any]) -> None:
    check_encoder(build(**({"widths": [4, 8], "blocks": [1, 2]} | options)), in_channels=2)


@pytest.mark.parametrize("shortcut", ["A", "B", "C"])
@pytest.mark.parametrize("block", ["basic", "bottleneck"])
def test_a_plain_twin_has_the_same_layers_and_no_shortcuts(block: str, shortcut: str) -> None:
    for order in ("v1", "v1b", "v2"):
        options = {"block": block, "order": order, "shortcut": shortcut}
        residual, plain = build(**options), build(**options, residual=False)
        aside = {m for n, m in residual.named_modules() if ".shortcut" in n}
        kept = [repr(m) for m in convs(residual) if m not in aside]
        assert kept == [repr(m) for m in convs(plain)]
        assert sum(isinstance(m, Residual) for m in residual.modules()) == 4
        assert not any(isinstance(m, Residual) for m in plain.modules())


def test_only_a_residual_block_starts_at_zero() -> None:
    def zeros(**options: Any) -> int:
        norms = [m for m in build(**options).modules() if isinstance(m, nn.InstanceNorm3d)]
        return sum(bool((m.weight == 0).all()) for m in norms)

    assert zeros() == zeros(order="v1", block="bottleneck") == zeros(se=True) == 4
    assert zeros(residual=False) == zeros(order="v2") == 0


def test_shortcut_a_picks_voxels_and_adds_zeros() -> None:
    shortcut = PaddedShortcut(3, 5, (2, 1, 3))
    assert not list(shortcut.parameters())
    x = torch.rand(2, 3, 4, 5, 6)
    y = shortcut(x)
    assert y.shape == (2, 5, 2, 5, 2)
    assert torch.equal(y[:, :3], x[:, :, ::2, :, ::3])
    assert not y[:, 3:].any()
    net = build(shortcut="A")
    assert [len(list(block.shortcut.parameters())) for s in net.stages for block in s] == [0] * 4
    kinds = [type(block.shortcut) for stage in net.stages for block in stage]
    assert kinds == [nn.Identity, PaddedShortcut, nn.Identity, PaddedShortcut]


def test_shortcuts_b_and_c_project_where_shapes_change_and_everywhere() -> None:
    def projections(shortcut: str, **options: Any) -> list[int]:
        net = build(shortcut=shortcut, **options)
        return [len(convs(block.shortcut)) for stage in net.stages for block in stage]

    assert projections("B") == [0, 1, 0, 1]
    assert projections("C") == [1, 1, 1, 1]
    strided = [block.shortcut[0].stride for block in (build(shortcut="C").stages[1])]
    assert strided == [(2, 2, 2), (1, 1, 1)]


def test_where_a_bottleneck_steps() -> None:
    def steps(**options: Any) -> list[int]:
        return [m.stride[0] for m in convs(build(**options).stages[1][0].body)]

    assert steps(block="bottleneck", order="v1") == [2, 1, 1]
    assert steps(block="bottleneck", order="v1b") == steps(block="bottleneck") == [1, 2, 1]
    assert steps(order="v1") == steps(order="v1b") == [2, 1]


@pytest.mark.parametrize("shortcut", ["pool", "A", "B"])
@pytest.mark.parametrize("norm", ["batch", "none"])
def test_the_identity_path_of_v2_is_clean(norm: str, shortcut: str) -> None:
    """Without what the bodies add, a sum passes through a stage as it came."""
    net = build(order="v2", norm=norm, shortcut=shortcut)
    for stage in net.stages:
        for block in stage:
            last = convs(block.body if isinstance(block, Residual) else block[-1].body)[-1]
            for parameter in last.parameters():
                nn.init.zeros_(parameter)
    x = torch.randn(1, 4, 4, 4, 4)
    assert torch.equal(net.stages[0](x.clone()), x)
    projected = net.stages[1][0](x.clone())
    assert torch.equal(net.stages[1](x.clone()), projected)


def test_v2_is_figure_4e_of_the_paper() -> None:
    net = build(order="v2", norm="batch", activation="relu", dropout=0.1, shortcut="B")
    unit = net.stages[1][1]
    kinds = [type(m).__name__ for m in unit.body]
    assert kinds == ["BatchNorm3d", "ReLU", "Conv3d", "BatchNorm3d", "ReLU", "Dropout3d", "Conv3d"]
    norm, activation, both = net.stages[1][0]
    assert (type(norm), type(activation)) == (nn.BatchNorm3d, nn.ReLU)  # shared by both paths
    assert isinstance(both.body[0], nn.Conv3d)
    assert isinstance(both.shortcut[1], nn.Identity)  # no norm behind the projection
    assert isinstance(build(order="v2", stem_norm=True).stages[0][0].body[0], nn.Conv3d)
    assert isinstance(build(order="v2").stages[0][0].body[0], nn.InstanceNorm3d)


@pytest.mark.parametrize("norm", ["instance", "none"])
def test_v2_hands_out_activated_levels_and_goes_on_with_the_sums(norm: str) -> None:
    net = build(order="v2", norm=norm, activation="relu").eval()
    x = torch.randn(1, 2, 8, 8, 8)
    levels, expected = net(x), []
    y = net.stem(x)
    for stage, end in zip(net.stages, net.ends, strict=True):
        y = stage(y.clone())
        assert y.min() < 0
        expected.append(nn.functional.relu(end[0](y.clone())))
    assert all(torch.equal(a, b) for a, b in zip(levels, expected, strict=True))


def test_squeeze_and_excitation_ends_the_body() -> None:
    for order in ("v1b", "v2"):
        net = build(order=order, se=True, shortcut="A")
        assert all(isinstance(b.body[-1], SqueezeExcite) for stage in net.stages for b in stage)
        assert net.stages[1][0].body[-1].reduce.in_channels == 8


@pytest.mark.parametrize("order", ["v1b", "v2"])
def test_checkpointing_changes_nothing_but_memory(order: str) -> None:
    options = {"order": order, "norm": "batch", "dropout": 0.3, "shortcut": "B"}
    x = torch.randn(2, 2, 8, 8, 8)

    def step(net: nn.Module) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        torch.manual_seed(1)
        for norm in (m for m in net.modules() if isinstance(m, nn.BatchNorm3d)):
            nn.init.uniform_(norm.weight)  # none is zero, which would hide the bodies
        levels = net(x)
        torch.stack([level.square().sum() for level in levels]).sum().backward()
        return levels, [p.grad for p in net.parameters()], list(net.buffers())

    kept, again = step(build(**options)), step(build(**options, checkpointing=True))
    for ours, theirs in zip(kept, again, strict=True):
        assert all(torch.allclose(a, b) for a, b in zip(ours, theirs, strict=True))


def test_checkpointing_keeps_less(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[int] = []
    for checkpointing in (False, True):
        numbers: list[int] = []
        net = build(checkpointing=checkpointing)
        pack = lambda t, into=numbers: into.append(t.numel()) or t  # noqa: E731
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            net(torch.randn(1, 2, 8, 8, 8))
        kept.append(sum(numbers))
    assert kept[1] < kept[0] / 2


def test_the_stem_and_its_pooling_are_flat_where_their_kernels_are() -> None:
    options = {"stem_kernel": [5, 7, 7], "stem_norm": True, "stem_pool": True}
    kernels = [[3, 3, 1], [1, 3, 3], [3, 1, 3], [3, 3, 3]]
    strides = [[1, 2, 1], [1, 2, 2], [2, 1, 1], [2, 2, 1]]
    net = build(**options, kernels=kernels, strides=strides)
    assert net.stem[0].kernel_size == (5, 7, 1)
    assert net.pool.kernel_size == (1, 3, 3)
    assert [convs(stage)[0].kernel_size for stage in net.stages] == [(1, 3, 3), (3, 1, 3), (3,) * 3]
    assert net.channels == (4, 4, 8, 12)
    assert net.strides == ((1, 2, 1), (1, 4, 2), (2, 4, 2), (4, 8, 2))
    levels = net(torch.rand(1, 2, 8, 8, 4))
    assert [x.shape[2:] for x in levels] == [(8, 4, 4), (8, 2, 2), (4, 2, 2), (2, 1, 2)]


def test_the_pooling_is_padded_on_both_sides() -> None:
    options = {"stem_norm": True, "stem_pool": True, "kernels": [[1, 1, 3]] * 4}
    net = build(**options, strides=[[1, 1, 2]] * 4)
    row = torch.tensor([9.0, 8, 1, 2, 3, 4]).view(1, 1, 1, 1, 6)
    assert net.pool(row).flatten().tolist() == [9, 8, 4]


def test_the_level_before_the_pooling_stays_as_it_is() -> None:
    net = build(stem_norm=True, stem_pool=True, norm="none").eval()
    x = torch.rand(1, 2, 16, 16, 16)
    assert torch.equal(net(x)[0], net.stem(x))


def test_width_is_a_factor_on_all_widths() -> None:
    assert build(width=0.5).channels == (2, 4, 6)
    assert build(width=0.4, block="bottleneck", widths=[8, 16, 32]).channels == (4, 8, 12)
    assert build(width=0.01).channels == (1, 1, 1)


def test_dilation_widens_the_stage_and_keeps_its_grid() -> None:
    net = build(dilations=[1, 2, 3], block="bottleneck", strides=[[1, 1, 1]] * 3)
    rates = [[m.dilation[0] for m in convs(stage[0].body)] for stage in net.stages]
    assert rates == [[1, 1, 1], [1, 2, 1], [1, 3, 1]]
    assert [x.shape[2:] for x in net(torch.rand(1, 2, 6, 6, 6))] == [(6, 6, 6)] * 3


@pytest.mark.parametrize(
    ("options", "message", "path"),
    [
        ({"stem_pool": True}, "set stem_norm to true", ("stem_norm",)),
        ({"widths": [8, 4, 4], "shortcut": "A"}, "goes from 8 to 4; use 'B'", ("shortcut",)),
        ({"dilations": [1, 2]}, "one positive number per stage: 3", ("dilations",)),
        ({"dilations": [1, 0, 1]}, "dilations needs one positive", ("dilations",)),
        ({"stem_pool": True, "stem_norm": True, "kernels": [[3, 3, 3]] * 3}, "4, got 3",
         ("kernels",)),
        ({"shortcut": "projection"}, "should be 'pool', 'A', 'B' or 'C'", ("shortcut",)),
    ],
)  # fmt: skip
def test_wrong_options_name_their_place(
    options: dict[str, Any], message: str, path: tuple[str, ...]
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        build(**options)
    assert caught.value.path == path
