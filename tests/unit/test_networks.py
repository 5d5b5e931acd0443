"""Blocks and assembly of networks, and what they refuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import medseg_plugins  # noqa: F401
from medseg.config.schema import ComponentSpec, Model
from medseg.errors import ConfigError, PluginError
from medseg.networks import blocks
from medseg.networks.assembly import EncoderDecoder, WholeNetwork, build_network
from medseg.networks.sizes import check_size
from medseg.registry import DECODERS, ENCODERS, NETWORKS
from medseg_plugins.unet import UNetDecoder

TINY = {"widths": [4, 8, 8], "blocks": [1, 1, 1]}
DEEP = {"widths": [4, 4, 8, 8], "blocks": [1, 1, 1, 1]}


def model(
    deep_supervision: int = 1, decoder: dict[str, Any] | None = None, **encoder: Any
) -> Model:
    return Model(
        encoder=ComponentSpec(name="resnet", **(TINY | encoder)),
        decoder=ComponentSpec(name="unet", **(decoder or {})),
        deep_supervision=deep_supervision,
    )


def whole(net: str, **options: Any) -> Model:
    return Model(network=ComponentSpec(name="monai", net=net, options=options))


UNET = whole("UNet", channels=[4, 8, 8], strides=[2, 2])


def test_outputs_are_the_same_tuple_in_train_and_eval() -> None:
    network = build_network(model(), in_channels=2, classes=3, seed=0)
    x = torch.rand(1, 2, 8, 16, 12)
    for mode in (True, False):
        out = network.train(mode)(x)
        assert isinstance(out, tuple)
        assert [o.shape for o in out] == [(1, 3, 8, 16, 12), (1, 3, 4, 8, 6)]


def test_the_seed_decides_the_weights_and_the_callers_state_stays() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, again, other = (build_network(model(), 1, 2, seed) for seed in (7, 7, 8))
    assert torch.equal(torch.rand(3), expected)
    pairs = list(zip(first.parameters(), again.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b, _ in pairs)
    assert not all(torch.equal(a, c) for a, _, c in pairs)


def test_logits_come_back_at_the_inputs_size_when_the_encoder_starts_coarse() -> None:
    network = build_network(model(strides=[[2, 2, 1], [2, 2, 2], [1, 2, 2]]), 1, 2, 0)
    assert network.divisor == (4, 8, 4)
    out = network(torch.rand(1, 1, 8, 16, 8))
    assert [o.shape[2:] for o in out] == [(8, 16, 8), (2, 4, 4)]


def test_a_size_that_does_not_divide_is_refused_with_the_next_that_does() -> None:
    network = build_network(model(), 1, 2, 0)
    with pytest.raises(ConfigError, match=r"\(8, 10, 12\).*\(4, 4, 4\).*\(8, 12, 12\)"):
        network(torch.rand(1, 1, 8, 10, 12))
    check_size((8, 12, 16), (4, 4, 4))


def test_one_voxel_at_the_coarsest_level_is_refused_for_instance_norm_only() -> None:
    x = torch.rand(2, 1, 4, 4, 4)
    with pytest.raises(ConfigError, match="one voxel"):
        build_network(model(), 1, 2, 0)(x)
    build_network(model(norm="batch", decoder={"norm": "batch"}), 1, 2, 0)(x)


def test_too_much_deep_supervision_is_refused() -> None:
    assert len(build_network(model(1), 1, 2, 0)(torch.rand(1, 1, 8, 8, 8))) == 2
    with pytest.raises(
        ConfigError, match="needs 3 decoder levels, got 2; set it to at most 1"
    ) as e:
        build_network(model(2), 1, 2, 0)
    assert e.value.path == ("deep_supervision",)


def test_outputs_weigh_what_the_config_says() -> None:
    given = {"supervision_weights": (1.0, 0.25, 0.0)}
    assert build_network(model(2, **DEEP), 1, 2, 0).output_weights == (1.0, 0.5, 0.25)
    weighed = model(2, **DEEP).model_copy(update=given)
    assert build_network(weighed, 1, 2, 0).output_weights == (1.0, 0.25, 0.0)
    assert build_network(UNET.model_copy(update=given), 1, 2, 0).output_weights == (1.0, 0.25, 0.0)
    with pytest.raises(ConfigError, match=r"each of the network's 2 outputs.*got 3") as e:
        build_network(model(1).model_copy(update=given), 1, 2, 0)
    assert e.value.path == ("supervision_weights",)


@pytest.mark.parametrize(
    ("wrong", "message", "path"),
    [
        ({"wide": 3}, "unknown option 'wide'", ("encoder", "wide")),
        (
            {"blocks": [1, 1]},
            "blocks needs one positive number per stage: 3",
            ("encoder", "blocks"),
        ),
        ({"strides": [[1, 1, 1]]}, "one triple per level: 3, got 1", ("encoder", "strides")),
        ({"width": 0.0}, "width must be above 0, got 0", ("encoder", "width")),
        ({"strides": [[1, 1, 0]] * 3}, "must be positive", ("encoder", "strides")),
        ({"kernels": [[2, 3, 3]] * 3}, r"odd, got \(2, 3, 3\)", ("encoder",)),
        ({"block": "bottleneck", "widths": [6, 8, 8]}, "multiples of 4", ("encoder", "widths")),
    ],
)
def test_wrong_options_name_their_place(wrong: Any, message: str, path: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        build_network(model(**wrong), 1, 2, 0)
    assert caught.value.path == path


def test_a_decoder_needs_two_levels() -> None:
    with pytest.raises(ConfigError, match="at least 2 levels, got 1"):
        build_network(model(0, widths=[4], blocks=[1]), 1, 2, 0)


def test_bf16_autocast_trains() -> None:
    network = build_network(model(), 1, 2, 0)
    with torch.autocast("cpu", torch.bfloat16):
        out = network(torch.rand(1, 1, 8, 8, 8))
    sum(o.float().square().mean() for o in out).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("upsample", ["transpose", "interpolate"])
def test_decoder_options(upsample: str) -> None:
    spec = {"name": "unet", "upsample": upsample, "convs": 2, "widths": [3, 5], "dropout": 0.1}
    levels = [torch.rand(1, c, n, n, n) for c, n in ((4, 8), (6, 4), (8, 2))]
    decoder = DECODERS.build(spec, channels=(4, 6, 8), strides=((1,) * 3, (2,) * 3, (4,) * 3))
    assert [o.shape for o in decoder(levels)] == [(1, 3, 8, 8, 8), (1, 5, 4, 4, 4)]
    assert (
        sum(isinstance(m, nn.Conv3d) and m.kernel_size == (3,) * 3 for m in decoder.modules()) == 4
    )


def test_a_residual_block_starts_as_its_shortcut() -> None:
    encoder = ENCODERS.build({"name": "resnet", "widths": [4], "blocks": [2]}, in_channels=1)
    x = torch.rand(1, 1, 6, 6, 6)
    stem = encoder.stem(x)
    twice = torch.where(stem < 0, stem * 0.01 * 0.01, stem)  # two blocks' activations
    assert torch.allclose(encoder(x)[0], twice)


def test_monai_network_finds_its_divisor_and_one_form() -> None:
    network = build_network(UNET, in_channels=2, classes=3, seed=0)
    assert isinstance(network, WholeNetwork)
    assert network.divisor == (4, 4, 4)
    out = network(torch.rand(1, 2, 8, 12, 8))
    assert isinstance(out, tuple)
    assert [o.shape for o in out] == [(1, 3, 8, 12, 8)]
    with pytest.raises(ConfigError, match="multiple of"):
        network(torch.rand(1, 2, 8, 10, 8))


def test_monai_auxiliary_outputs_come_in_evaluation_too() -> None:
    spec = whole(
        "DynUNet",
        kernel_size=[3, 3, 3],
        strides=[1, [1, 2, 2], 2],
        upsample_kernel_size=[[1, 2, 2], 2],
        filters=[4, 4, 8],
        deep_supervision=True,
    )
    network = build_network(spec, 1, 2, 0)
    assert network.divisor == (2, 4, 4)
    x = torch.rand(2, 1, 4, 8, 8)
    trained, evaluated = network.train()(x), network.eval()(x)
    assert [o.shape for o in trained] == [o.shape for o in evaluated] == [(2, 2, 4, 8, 8)] * 2
    # DynUNet holds its layers twice; they are saved once and still load.
    state = network.state_dict()
    assert len({v.data_ptr() for v in state.values()}) == len(state)
    other = build_network(spec, 1, 2, 1)
    other.load_state_dict(state)
    assert torch.equal(other.eval()(x)[0], evaluated[0])


@pytest.mark.parametrize(
    ("spec", "message", "path"),
    [
        (whole("Unet"), "unknown MONAI network 'Unet'; did you mean 'UNet'", ("network", "net")),
        (whole("UNet", chanels=[4]), "did you mean 'channels'", ("network", "options", "chanels")),
        (whole("UNet", channels=[4, 8]), "needs the option 'strides'", ("network", "options")),
        (whole("UNet", in_channels=3), "medseg sets 'in_channels'", None),
        (whole("UNet", channels=[4], strides=[]), "channels", ("network", "options")),
    ],
)
def test_monai_options_are_checked(spec: Model, message: str, path: Any) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        build_network(spec, 1, 2, 0)
    assert path is None or caught.value.path == path


def test_a_network_that_does_not_segment_is_named() -> None:
    network = build_network(whole("DenseNet", block_config=[1]), 1, 2, 0)
    with pytest.raises(PluginError, match=r"shapes \[\(1, 2\)\]; expected logits \(1, 2, 32"):
        network.eval()(torch.rand(1, 1, 32, 32, 32))


def test_parts_without_a_description_are_refused() -> None:
    with pytest.raises(PluginError, match="channels is None"):
        EncoderDecoder(nn.Conv3d(1, 2, 1), nn.Conv3d(1, 2, 1), classes=2)


def test_norms() -> None:
    x = 3 + 5 * torch.randn(2, 12, 4, 4, 4)
    for norm in ("instance", "batch", "group"):
        y = blocks.norm_layer(norm, 12)(x)  # type: ignore[arg-type]
        assert y.mean().abs() < 0.01
        assert abs(y.std() - 1) < 0.01
    assert blocks.norm_layer("none", 12)(x) is x
    group = blocks.norm_layer("group", 12)
    assert isinstance(group, nn.GroupNorm)
    assert group.num_groups == 4


def test_networks_registry_lists_what_is_shipped() -> None:
    assert {"resnet", "vgg", "inception"} <= set(ENCODERS.names())
    assert "unet" in DECODERS
    assert "monai" in NETWORKS


class Tapped(nn.Module):
    """An encoder with two levels and a map for a loss of its own."""

    channels, strides = (2, 3), ((1, 1, 1), (2, 2, 2))
    auxiliary_channels, auxiliary_weight = (4,), 0.2

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse = nn.Conv3d(1, 2, 1), nn.Conv3d(2, 3, 2, 2)
        self.tap = nn.Conv3d(2, 4, 4, 4)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return self.with_auxiliary(x)[0]

    def with_auxiliary(self, x: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        fine = self.fine(x)
        return [fine, self.coarse(fine)], [self.tap(fine)]


class Stopping(nn.Module):
    """A decoder that stops at the encoder's second level."""

    def __init__(self, strides: Any) -> None:
        super().__init__()
        self.channels, self.strides = (3,), strides

    def forward(self, levels: list[torch.Tensor]) -> list[torch.Tensor]:
        return [levels[-1]]


def test_auxiliary_maps_become_outputs_with_their_weight() -> None:
    encoder = Tapped()
    network = EncoderDecoder(encoder, UNetDecoder(encoder.channels, encoder.strides), 5)
    x = torch.rand(2, 1, 8, 8, 8)
    for mode in (True, False):
        sizes = [tuple(out.shape) for out in network.train(mode)(x)]
        assert sizes == [(2, 5, 8, 8, 8), (2, 5, 2, 2, 2)]
    assert network.output_weights == (1.0, 0.2)
    network(x)[1].sum().backward()
    assert encoder.tap.weight.grad is not None
    assert encoder.coarse.weight.grad is None  # not on the way to the auxiliary map


def test_logits_come_back_from_where_the_decoder_stops() -> None:
    encoder = Tapped()
    network = EncoderDecoder(encoder, Stopping(((2, 2, 2),)), 2)
    head = network.heads[0]
    assert isinstance(head, nn.Sequential)
    out = network(torch.rand(1, 1, 8, 6, 4))[0]
    assert out.shape == (1, 2, 8, 6, 4)
    coarse = head[0](encoder(torch.rand(1, 1, 8, 6, 4))[-1])
    expected = nn.functional.interpolate(coarse, scale_factor=2, mode="trilinear")
    torch.testing.assert_close(head[1](coarse), expected)
