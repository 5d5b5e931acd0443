"""Options of the VGG encoder: contract, dropout, first weights and gradient checkpointing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import medseg_plugins  # noqa: F401
from medseg.errors import ConfigError
from medseg.networks.blocks import Triple
from medseg.networks.describe import activation_memory, output_shapes
from medseg.registry import ENCODERS
from medseg.testing import check_encoder


def build(name: str, in_channels: int = 3, **options: Any) -> nn.Module:
    encoder = ENCODERS.build({"name": name, **options}, in_channels=in_channels)
    assert isinstance(encoder, nn.Module)
    return encoder


@pytest.mark.parametrize(
    "name", ["vgg11", "vgg11_lrn", "vgg13", "vgg16_c", "vgg16", "vgg19", "vgg16_bn"]
)
def test_every_configuration_keeps_the_contract(name: str) -> None:
    strides = [(1, 1, 1), (1, 2, 2), (2, 1, 2)]
    kernels = [(1, 3, 3), (3, 3, 3), (3, 1, 5)]
    options = {"dropout": 0.2, "checkpointing": True, "strides": strides, "kernels": kernels}
    vgg = build(name, 4, width=0.05, levels=3, **options)
    check_encoder(vgg, in_channels=4)
    assert vgg.strides == ((1, 1, 1), (1, 2, 2), (2, 2, 4))


def test_dropout_ends_each_stage() -> None:
    vgg = build("vgg16", width=0.02, dropout=0.3)
    for stage in vgg.get_submodule("stages").children():
        kinds = [type(m).__name__ for m in stage.modules() if not list(m.children())]
        assert kinds[-2:] == ["ReLU", "Dropout3d"]
        assert kinds.count("Dropout3d") == 1


def test_without_norm_the_signal_keeps_its_strength() -> None:
    torch.manual_seed(0)
    vgg = build("vgg19", width=0.1, kernels=[(1, 1, 3)] * 5, strides=[(1, 1, 1)] * 5)
    with torch.no_grad():
        levels = vgg(torch.randn(2, 3, 1, 1, 256))
    assert all(0.1 < float(level.square().mean()) < 10 for level in levels)


def step(checkpointing: bool, size: Triple) -> dict[str, Tensor]:
    """Outputs, gradients and statistics of one training step."""
    torch.manual_seed(1)
    vgg = build("vgg16_bn", 2, width=0.05, dropout=0.3, checkpointing=checkpointing).train()
    x = torch.rand(2, 2, *size, requires_grad=True)
    levels = vgg(x)
    sum(level.square().sum() for level in levels).backward()
    found = {f"level {n}": level.detach() for n, level in enumerate(levels)}
    found |= {f"gradient {n}": p.grad for n, p in [("x", x), *vgg.named_parameters()]}
    return found | dict(vgg.named_buffers())


def test_checkpointing_changes_no_result() -> None:
    kept, found_again = (step(checkpointing, (16, 32, 32)) for checkpointing in (False, True))
    assert kept.keys() == found_again.keys()
    for key, value in kept.items():
        assert torch.allclose(value, found_again[key], rtol=1e-4, atol=1e-6), key


def test_checkpointing_keeps_the_stages_inputs_alone() -> None:
    shape = (2, 3, 32, 32, 32)
    vgg = build("vgg16", width=0.1, checkpointing=True)
    levels = output_shapes(vgg, 3, shape[2:])
    inputs = [shape[1:], *[level[1:] for level in levels[:-1]]]
    kept = activation_memory(vgg, shape)
    assert kept == sum(2 * 4 * torch.Size(size).numel() for size in inputs)
    assert kept < 0.5 * activation_memory(build("vgg16", width=0.1), shape)


@pytest.mark.parametrize(
    ("wrong", "path"),
    [
        ({"levels": 6}, ("levels",)),
        ({"levels": 0}, ("levels",)),
        ({"strides": [(1, 1, 1)] * 4}, ("strides",)),
        ({"kernels": [(3, 3, 3)] * 6}, ("kernels",)),
        ({"config": "F"}, ("config",)),
    ],
)
def test_wrong_options_name_their_place(wrong: dict[str, Any], path: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        build("vgg", **wrong)
    assert caught.value.path == path
