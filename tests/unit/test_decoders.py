"""Decoders against computations by hand and MONAI's, what they refuse, and their contract."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

import medseg_plugins  # noqa: F401
from medseg.config.schema import ComponentSpec, Model
from medseg.errors import ConfigError, PluginError
from medseg.networks.assembly import build_network
from medseg.registry import DECODERS
from medseg.testing import check_decoder, check_encoder

STRIDES = ((1, 1, 1), (2, 1, 2), (4, 2, 2))
CHANNELS = (3, 4, 5)


def build(name: str, channels: Any = CHANNELS, strides: Any = STRIDES, **options: Any) -> Any:
    return DECODERS.build({"name": name, **options}, channels=channels, strides=strides)


def maps(channels: Any = CHANNELS, strides: Any = STRIDES) -> list[Tensor]:
    return [
        torch.rand(2, c, 16 // i, 8 // j, 8 // k)
        for c, (i, j, k) in zip(channels, strides, strict=True)
    ]


def line(*values: float) -> Tensor:
    """A map of one channel along the first axis."""
    return torch.tensor(values, dtype=torch.float32).reshape(1, 1, -1, 1, 1)


def fill(decoder: nn.Module, **weights: float) -> None:
    """Set weights by name; all others become zero."""
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            parameter.fill_(weights.pop(name.replace(".", "_"), 0.0))
    assert not weights


def test_pixel_shuffle_starts_as_nearest_upsampling() -> None:
    decoder = build("unet", upsample="pixel_shuffle")
    for up, stride in zip(decoder.ups, ((2, 2, 1), (2, 1, 2)), strict=True):
        y = up(torch.rand(1, up.conv.in_channels, 4, 3, 5))
        i, j, k = stride
        assert y.shape[2:] == (4 * i, 3 * j, 5 * k)
        first = y[:, :, ::i, ::j, ::k]
        assert torch.equal(y, interpolate(first, scale_factor=stride, mode="nearest"))
        assert first.std() > 0.01


@pytest.mark.parametrize("upsample", ["transpose", "interpolate", "pixel_shuffle"])
def test_unet_levels(upsample: str) -> None:
    decoder = build("unet", upsample=upsample, widths=[6, 7], convs=2)
    assert [o.shape for o in decoder(maps())] == [(2, 6, 16, 8, 8), (2, 7, 8, 8, 4)]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [[25, 26, 35, 36], [0, 240]]),
        ({"upsample": "trilinear"}, [[25, 28, 33, 36], [0, 240]]),
        ({"levels": 1}, [[25, 26, 35, 36]]),
        ({"merge": True}, [[25, 86, 215, 276]]),
    ],
)
def test_fpn_by_hand(options: dict[str, Any], expected: list[list[float]]) -> None:
    """Laterals 1 and 2 (bias 5), smoothing 1 and 30: fine + 2 coarse, then 30 * 2 coarse."""
    strides = ((1, 1, 1), (2, 1, 1))
    decoder = build("fpn", (1, 1), strides, width=1, kernel=[1, 1, 1], linear=True, **options)
    weights = {"laterals_0_weight": 1, "laterals_0_bias": 5, "laterals_1_weight": 2}
    smooths = {"smooths_0_weight": 1, "smooths_1_weight": 30}
    fill(decoder, **weights, **dict(itertools.islice(smooths.items(), options.get("levels", 2))))
    out = decoder([line(20, 21, 22, 23), line(0, 4)])
    assert [o.flatten().tolist() for o in out] == expected


def test_fpn_against_monai() -> None:
    from monai.networks.blocks.feature_pyramid_network import FeaturePyramidNetwork

    ours = build("fpn", width=6, linear=True)
    theirs = FeaturePyramidNetwork(3, list(CHANNELS), 6)
    for mine, other in ((ours.laterals, theirs.inner_blocks), (ours.smooths, theirs.layer_blocks)):
        other.load_state_dict(mine.state_dict())
    levels = maps()
    expected = theirs({str(n): level for n, level in enumerate(levels)}).values()
    assert all(torch.allclose(a, b) for a, b in zip(ours(levels), expected, strict=True))


def test_deeplab_sees_the_image_level() -> None:
    torch.manual_seed(0)
    strides = ((1, 1, 1), (1, 1, 2), (1, 1, 4))
    decoder = build("deeplab", strides=strides, norm="none", rates=[1], width=4, low_width=2)
    levels = [torch.rand(1, c, 1, 1, 128 // k) for c, (_, _, k) in zip(CHANNELS, strides)]  # noqa: B905
    far = [level.clone() for level in levels]
    far[2][..., 0] += 1
    with torch.no_grad():
        assert (decoder(levels)[0] - decoder(far)[0])[..., -1].abs().max() > 1e-6
        for parameter in decoder.pyramid.image.parameters():
            parameter.zero_()
        assert torch.equal(decoder(levels)[0][..., -1], decoder(far)[0][..., -1])


@pytest.mark.parametrize("norm", ["instance", "batch", "group", "none"])
def test_no_norm_takes_the_image_level_out(norm: str) -> None:
    torch.manual_seed(0)
    decoder, levels = build("deeplab", norm=norm), maps()
    with torch.no_grad():
        (before,) = decoder(levels)
        decoder.pyramid.image[0].weight.mul_(-1)
        assert (decoder(levels)[0] - before).abs().max() > 0.01


def test_deeplab_dilates_and_stops_at_the_low_level() -> None:
    decoder = build("deeplab", width=8, low_width=3, rates=[2, 4], kernel=[1, 3, 3])
    convs = {name: m for name, m in decoder.named_modules() if isinstance(m, nn.Conv3d)}
    shapes = [(m.kernel_size, m.dilation[1], m.padding) for n, m in convs.items() if "branch" in n]
    flat = (1, 3, 3)
    assert shapes == [((1, 1, 1), 1, (0, 0, 0)), (flat, 2, (0, 2, 2)), (flat, 4, (0, 4, 4))]
    assert convs["pyramid.project.0"].in_channels == 3 * 8
    assert convs["refine.0.0"].in_channels == 8 + 3
    for low_level, size in ((None, (8, 8, 4)), (1, (8, 8, 4)), (0, (16, 8, 8))):
        decoder = build("deeplab", low_level=low_level)
        assert decoder.strides == (STRIDES[1 if low_level is None else low_level],)
        assert [o.shape for o in decoder(maps())] == [(2, 64, *size)]
    assert build("deeplab", (3, 4), STRIDES[:2]).strides == STRIDES[:1]


@pytest.mark.parametrize(
    ("skips", "expected"),
    [
        (0, [0, 80]),
        (1, [200, 220, 260, 280]),
        (2, [1202, 1208, 1219, 1235, 1256, 1272, 1283, 1289]),
    ],
)
def test_fcn_adds_skips(skips: int, expected: list[float]) -> None:
    """Weights 20, 100 and 1; the coarsest first, upsampled trilinearly."""
    strides = ((1, 1, 1), (2, 1, 1), (4, 1, 1))
    decoder = build("fcn", (1, 1, 1), strides, width=1, skips=skips)
    weights = {"projections_0_weight": 20, "projections_1_weight": 100, "projections_2_weight": 1}
    fill(decoder, **dict(itertools.islice(weights.items(), 1 + skips)))
    (out,) = decoder([line(*range(1002, 1010)), line(2, 2, 2, 2), line(0, 4)])
    assert out.flatten().tolist() == expected
    assert decoder.strides == (strides[2 - skips],)


def test_fcn_is_what_the_paper_does_in_another_order() -> None:
    """A head on the sum gives the sum of upsampled scores of each level."""
    decoder, head, levels = build("fcn", width=6), nn.Conv3d(6, 2, 1, bias=False), maps()
    scores = head(decoder.projections[0](levels[2]))
    for project, level in zip(decoder.projections[1:], levels[1::-1], strict=True):
        up = interpolate(scores, level.shape[2:], mode="trilinear")
        scores = head(project(level)) + up
    assert torch.allclose(head(decoder(levels)[0]), scores, atol=1e-6)


def test_fcn_hidden_part() -> None:
    decoder = build("fcn", hidden=[7, 9], kernel=[1, 5, 5], dropout=0.5, norm="none", skips=1)
    convs = [m for m in decoder.modules() if isinstance(m, nn.Conv3d)]
    assert [m.kernel_size for m in convs] == [(1, 5, 5), (1, 1, 1), (1, 1, 1), (1, 1, 1)]
    assert [(m.in_channels, m.out_channels) for m in convs] == [(5, 7), (7, 9), (9, 32), (4, 32)]
    assert sum(isinstance(m, nn.Dropout3d) for m in decoder.modules()) == 2
    assert build("fcn", (3,), STRIDES[:1]).strides == STRIDES[:1]


@pytest.mark.parametrize(
    "spec",
    [
        {"name": "unet", "upsample": "pixel_shuffle"},
        {"name": "fpn"},
        {"name": "fpn", "levels": 2},
        {"name": "fpn", "merge": True, "linear": True},
        {"name": "deeplab", "dropout": 0.2},
        {"name": "fcn"},
        {"name": "fcn", "hidden": [6, 7], "skips": 1, "dropout": 0.2},
    ],
)
def test_levels_of_one_size(spec: dict[str, Any]) -> None:
    """A dilated encoder repeats a stride."""
    strides = ((1, 1, 1), (2, 2, 2), (2, 2, 2))
    check_decoder(build(**spec, strides=strides), CHANNELS, strides)


@pytest.mark.parametrize("decoder", ["deeplab", "fcn"])
def test_logits_of_a_decoder_that_stops_early_have_the_size_of_the_input(decoder: str) -> None:
    encoder = ComponentSpec(name="resnet", widths=[4, 8, 8, 8], strides=[[2, 2, 1], *[[2] * 3] * 3])
    model = Model(encoder=encoder, decoder=ComponentSpec(name=decoder), deep_supervision=0)
    (logits,) = build_network(model, 1, 2, 0)(torch.rand(1, 1, 32, 16, 16))
    assert logits.shape == (1, 2, 32, 16, 16)
    with pytest.raises(ConfigError, match="set it to at most 0"):
        build_network(model.model_copy(update={"deep_supervision": 1}), 1, 2, 0)


@pytest.mark.parametrize(
    ("spec", "message", "path"),
    [
        ({"name": "unet", "upsample": "shuffle"}, "'pixel_shuffle'", ("upsample",)),
        ({"name": "fpn", "widht": 3}, "did you mean 'width'", ("widht",)),
        ({"name": "fpn", "width": 0}, "at least 1", ("width",)),
        ({"name": "fpn", "levels": 4}, "1 to 3 levels, got 4", ("levels",)),
        ({"name": "deeplab", "rate": [2]}, "did you mean 'rates'", ("rate",)),
        ({"name": "deeplab", "rates": [2, 0]}, "at least 1", ("rates",)),
        ({"name": "deeplab", "low_level": 2}, "0 to 1, got 2", ("low_level",)),
        ({"name": "deeplab", "kernel": [2, 3, 3]}, "odd", ()),
        ({"name": "fcn", "skip": 1}, "did you mean 'skips'", ("skip",)),
        ({"name": "fcn", "skips": 3}, "0 to 2 levels finer .* got 3", ("skips",)),
        ({"name": "fcn", "hidden": [8, 0]}, "at least 1", ("hidden",)),
    ],
)
def test_wrong_options_name_their_place(spec: Any, message: str, path: Any) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        DECODERS.build(spec, channels=CHANNELS, strides=STRIDES)
    assert caught.value.path == path


def test_deeplab_needs_two_levels() -> None:
    with pytest.raises(ConfigError, match="at least 2 levels, got 1; see 'fcn'"):
        build("deeplab", (3,), STRIDES[:1])


class Pick(nn.Module):
    """A decoder that returns one of its levels."""

    def __init__(self, level: int, **described: Any) -> None:
        super().__init__()
        self.level, self.channels = level, (CHANNELS[level],)
        for name, value in described.items():
            setattr(self, name, value)

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        return [levels[self.level]]


def test_the_contract_of_a_decoders_strides() -> None:
    check_decoder(Pick(0), CHANNELS, STRIDES)
    check_decoder(Pick(1, strides=STRIDES[1:2]), CHANNELS, STRIDES)
    for broken, message in (
        (Pick(1), r"shapes of the decoder's levels: got .* expected .*finest first"),
        (Pick(1, strides=STRIDES[2:]), "shapes of the decoder's levels"),
        (Pick(1, strides=STRIDES[1:]), "decoder.strides: .* three numbers for each of 1 levels"),
        (Pick(1, strides=[(3, 1, 1)]), r"divide the encoder's last, \(4, 2, 2\)"),
        (Pick(1, strides=[(0, 1, 1)]), "decoder.strides: .* multiples"),
        (Pick(1, strides=None), "decoder.strides: got None"),
        (Pick(1, channels=(4, 4), strides=STRIDES[1::-1]), "multiples of the level before"),
        (Pick(1, channels=(4,) * 4), "decoder.strides: .* for each of 4 levels"),
    ):
        with pytest.raises(PluginError, match=message):
            check_decoder(broken, CHANNELS, STRIDES)


class Auxiliary(nn.Module):
    """An encoder with one auxiliary map; each test below spoils one thing."""

    def __init__(self) -> None:
        super().__init__()
        self.channels, self.strides = (2, 3), ((1, 1, 1), (2, 2, 1))
        self.auxiliary_channels: Any = (4,)
        self.auxiliary_weight: Any = 0.4
        self.fine = nn.Conv3d(1, 2, 3, padding=1)
        self.coarse = nn.Conv3d(2, 3, 3, stride=(2, 2, 1), padding=1)
        self.auxiliary = nn.Sequential(nn.AdaptiveAvgPool3d(2), nn.Conv3d(2, 4, 1))
        self.drop = nn.Dropout3d(0.5)

    def forward(self, x: Tensor) -> list[Tensor]:
        return self.with_auxiliary(x)[0]

    def with_auxiliary(self, x: Tensor) -> Any:
        fine = self.fine(x)
        return [fine, self.drop(self.coarse(fine))], [self.auxiliary(fine)]


class OtherLevels(Auxiliary):
    def forward(self, x: Tensor) -> list[Tensor]:
        return [level + 1 for level in super().forward(x)]


class OneLevelAlone(Auxiliary):
    def forward(self, x: Tensor) -> list[Tensor]:
        return super().forward(x)[:1]


class TrainingOnly(Auxiliary):
    def with_auxiliary(self, x: Tensor) -> Any:
        levels, found = super().with_auxiliary(x)
        return levels, found if self.training else []


class Vectors(Auxiliary):
    def with_auxiliary(self, x: Tensor) -> Any:
        levels, found = super().with_auxiliary(x)
        return levels, [item.mean((2, 3, 4)) for item in found]


class InOneList(Auxiliary):
    def with_auxiliary(self, x: Tensor) -> Any:
        levels, found = super().with_auxiliary(x)
        return levels + found

    def forward(self, x: Tensor) -> list[Tensor]:
        return list(super().with_auxiliary(x)[0])


class Infinite(Auxiliary):
    def with_auxiliary(self, x: Tensor) -> Any:
        levels, found = super().with_auxiliary(x)
        return levels, [item / 0 for item in found]


class Idle(Auxiliary):
    def with_auxiliary(self, x: Tensor) -> Any:
        levels, found = super().with_auxiliary(x)
        return levels, [item.detach() for item in found]


class NotSaid(Auxiliary):
    def __init__(self) -> None:
        super().__init__()
        self.auxiliary_channels = ()


class OtherChannels(Auxiliary):
    def __init__(self) -> None:
        super().__init__()
        self.auxiliary_channels = (5,)


class NegativeWeight(Auxiliary):
    def __init__(self) -> None:
        super().__init__()
        self.auxiliary_weight = -0.3


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        (OtherLevels, "levels of with_auxiliary in eval mode: got others"),
        (OneLevelAlone, "shapes of forward in train mode"),
        (TrainingOnly, "shapes of the auxiliary maps: got \\[\\]"),
        (Vectors, r"shapes of the auxiliary maps: got \[\(2, 4\)\]"),
        (InOneList, "the result of with_auxiliary: got list"),
        (Infinite, "NaN or infinity"),
        (Idle, "without a gradient: got \\['auxiliary.1.weight'"),
        (NotSaid, "without a gradient: got \\['auxiliary.1.weight'"),
        (OtherChannels, r".auxiliary_channels = \(5,\)"),
        (NegativeWeight, "encoder.auxiliary_weight: got -0.3"),
    ],
)
def test_the_contract_of_auxiliary_maps(encoder: type[Auxiliary], message: str) -> None:
    check_encoder(Auxiliary(), 1)
    with pytest.raises(PluginError, match=message):
        check_encoder(encoder(), 1)
