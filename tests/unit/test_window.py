"""Whole-volume inference: windows as MONAI's, one pass, flips, precision."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from monai.inferers import sliding_window_inference
from torch import Tensor, nn

from medseg.config.schema import Config, Inference
from medseg.errors import ConfigError, MedsegError
from medseg.inference.window import autocast, check_patch, predict_volume

PATCH = (8, 8, 8)


class Net(nn.Module):
    """A network of one convolution that counts its calls and takes multiples of 4 alone."""

    def __init__(self, *, symmetric: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv3d(1, 3, 3, padding=1)
        if symmetric:
            nn.init.constant_(self.conv.weight, 0.1)
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        assert all(n % 4 == 0 for n in x.shape[2:])
        self.shapes.append(tuple(x.shape))
        return self.conv(x), torch.full_like(x, torch.nan)  # auxiliary outputs count nowhere


def settings(**options: Any) -> Inference:
    values = {"precision": "fp32", "mode": "window", "batch": 1, **options}
    return Inference.model_validate(values, strict=False)


def predict(net: nn.Module, image: Tensor, roi: Tensor | None = None, **options: Any) -> Tensor:
    chosen = settings(**options)
    return predict_volume(net.eval(), image, chosen, PATCH, (4, 4, 4), classes=3, roi=roi)


def volume(*shape: int) -> Tensor:
    return torch.randn(1, *shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("shape", [(20, 17, 13), (8, 30, 9), (5, 6, 21)])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5])
@pytest.mark.parametrize("batch", [1, 3])
def test_windows_are_monais(shape: tuple[int, ...], overlap: float, batch: int) -> None:
    net, image = Net(), volume(*shape)
    peer = sliding_window_inference(
        image[None],
        PATCH,
        1,
        net.conv,
        overlap=overlap,
        mode="gaussian",
        padding_mode="replicate",
    )
    out = predict(net, image, overlap=overlap, batch=batch)
    torch.testing.assert_close(out, peer[0].detach().softmax(0))
    assert out.shape == (3, *shape)
    assert max(s[0] for s in net.shapes) == batch or len(net.shapes) == 1
    assert {s[2:] for s in net.shapes} == {PATCH}


def test_the_windows_may_be_larger_than_those_of_training() -> None:
    net = Net()
    predict(net, volume(20, 20, 20), patch=(12, 16, 8))
    assert {s[2:] for s in net.shapes} == {(12, 16, 8)}


def test_one_window_is_the_whole_volume() -> None:
    net, image = Net(), volume(*PATCH)
    torch.testing.assert_close(predict(net, image), predict(net, image, mode="whole"))
    assert len(net.shapes) == 2


def test_a_whole_pass_is_the_networks_own() -> None:
    net, image = Net(), volume(12, 8, 16)
    out = predict(net, image, mode="whole")
    torch.testing.assert_close(out, net.conv(image[None])[0].detach().softmax(0))


def test_a_whole_pass_repeats_the_end_up_to_a_size_that_fits() -> None:
    net, image = Net(), volume(11, 6, 13)
    out = predict(net, image, mode="whole")
    assert net.shapes == [(1, 1, 12, 8, 16)]
    assert out.shape == (3, 11, 6, 13)
    inside = (slice(None), slice(0, -1), slice(0, -1), slice(0, -1))
    expected = net.conv(image[None])[0].detach().softmax(0)
    torch.testing.assert_close(out[inside], expected[inside])


def test_auto_takes_one_pass_up_to_the_limit() -> None:
    net, image = Net(), volume(12, 12, 12)
    predict(net, image, mode="auto", whole_voxels=12**3)
    assert net.shapes == [(1, 1, 12, 12, 12)]
    net.shapes.clear()
    predict(net, image, mode="auto", whole_voxels=12**3 - 1)
    assert {s[2:] for s in net.shapes} == {PATCH}


@pytest.mark.parametrize("mode", ["window", "whole"])
@pytest.mark.parametrize("axes", [(0,), (2,), (0, 1), (0, 1, 2)])
def test_flips_are_averaged_as_logits(mode: str, axes: tuple[int, ...]) -> None:
    net, image = Net(), volume(12, 8, 16)
    expected = torch.zeros(3, 12, 8, 16)
    for bits in range(2 ** len(axes)):
        chosen = [axis + 1 for n, axis in enumerate(axes) if bits >> n & 1]
        expected += predict(net, image.flip(chosen), mode=mode).flip(chosen).log()
    out = predict(net, image, mode=mode, flip=axes)
    torch.testing.assert_close(out, (expected / 2 ** len(axes)).softmax(0))
    assert not torch.allclose(out, predict(net, image, mode=mode))
    torch.testing.assert_close(out.sum(0), torch.ones(12, 8, 16))


def test_flips_of_a_symmetric_network_change_nothing() -> None:
    net, image = Net(symmetric=True), volume(12, 8, 16)
    torch.testing.assert_close(
        predict(net, image, mode="whole", flip=(0, 1, 2)), predict(net, image, mode="whole")
    )


def test_half_precision_stays_near() -> None:
    net, image = Net(), volume(12, 12, 12)
    exact = predict(net, image)
    half = predict(net, image, precision="bf16")
    assert half.dtype == torch.float32
    assert 0 < float((exact - half).abs().max()) < 0.02


def test_fp16_on_a_cpu_is_refused() -> None:
    with pytest.raises(MedsegError, match="fp16 needs a CUDA device; use bf16 or fp32"):
        autocast(torch.device("cpu"), "fp16")
    net = Net()
    with pytest.raises(MedsegError, match="fp16"):
        predict(net, volume(8, 8, 8), precision="fp16")
    assert not net.shapes


def test_a_window_that_the_strides_do_not_divide_is_refused() -> None:
    config = Config.model_validate(
        {
            "name": "x",
            "data": {"layout": "msd", "path": "x"},
            "model": {"network": "y"},
            "train": {"patch": (8, 8, 8), "budget": {"steps": 1}},
            "inference": {"patch": (8, 10, 16)},
        },
        strict=False,
    )
    check_patch(config, (8, 2, 4))
    with pytest.raises(ConfigError, match=r"inference\.patch \[8, 10, 16\].*\[8, 4, 4\].*try") as e:
        check_patch(config, (8, 4, 4))
    assert e.value.path == ("inference", "patch")


class Valid(nn.Module):
    """Two convolutions without padding: logits are shorter than the input at each end."""

    margin = (2, 2, 1)

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv3d(1, 4, (3, 3, 1)), nn.Conv3d(4, 3, 3)
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        self.shapes.append(tuple(x.shape))
        return (self.second(self.first(x).tanh()),)


@pytest.mark.parametrize("mode", ["window", "whole"])
@pytest.mark.parametrize("shape", [(20, 17, 13), (5, 6, 21)])
@pytest.mark.parametrize("flip", [(), (0, 2)])
def test_a_margin_is_read_from_the_volume(mode: str, shape: Any, flip: Any) -> None:
    """Windows of a network that pads nothing, put together, are its pass over the whole volume."""
    net, image = Valid(), volume(*shape)
    padded = nn.functional.pad(image[None], (1, 1, 2, 2, 2, 2), mode="replicate")
    with torch.no_grad():
        expected = net(padded)[0][0].softmax(0)
    out = predict(net, image, mode=mode, overlap=0.25)
    torch.testing.assert_close(out, expected)
    if mode == "window":
        assert set(net.shapes[1:]) == {(1, 1, 12, 12, 10)}
    assert predict(net, image, mode=mode, flip=flip).sum(0).allclose(torch.ones(shape))


def region(*shape: int, box: tuple[slice, ...]) -> Tensor:
    roi = torch.zeros(shape, dtype=torch.bool)
    roi[box] = True
    return roi


@pytest.mark.parametrize("make", [Net, Valid])
@pytest.mark.parametrize("mode", ["window", "whole"])
def test_a_region_is_predicted_and_the_rest_is_background(make: Any, mode: str) -> None:
    net, image = make(), volume(40, 36, 32)
    roi = region(40, 36, 32, box=(slice(13, 23), slice(3, 30), slice(20, 29)))
    roi[15:20, 10:20] = False
    out = predict_volume(
        net.eval(), image, settings(mode=mode), PATCH, (4, 4, 4), classes=3, roi=roi
    )
    count = len(net.shapes)
    everywhere = predict(net, image, mode=mode)
    assert torch.equal(out[:, ~roi], torch.eye(3)[0][:, None].expand(3, int((~roi).sum())))
    inner = roi & ~region(40, 36, 32, box=(slice(13, 14), ...)) if make is Net else roi
    if make is Valid:  # what a voxel gets does not depend on where its window lies
        torch.testing.assert_close(out[:, inner], everywhere[:, inner])
    assert out[:, roi].argmax(0).bool().any()
    if mode == "window":
        assert count < (len(net.shapes) - count) / 3


def test_windows_without_a_voxel_of_the_region_are_left_out() -> None:
    net, image = Net(), volume(32, 8, 8)
    roi = region(32, 8, 8, box=(slice(0, 3), ...)) | region(32, 8, 8, box=(slice(29, 32), ...))
    out = predict(net, image, roi, overlap=0)
    assert len(net.shapes) == 2
    alone = predict(net, image[:, :8])
    torch.testing.assert_close(out[:, :3], alone[:, :3])
    assert predict(net, image, roi, overlap=0, flip=(0,)).isfinite().all()


class Placed(nn.Module):
    """The logits tell where in its window a voxel lies; there is a margin of one voxel."""

    margin = (1, 1, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        places = torch.arange(x.shape[2] - 2.0)[:, None, None].expand(x.shape[2] - 2, *PATCH[1:])
        return (torch.stack([places, torch.zeros_like(places)])[None].expand(len(x), 2, *PATCH),)


def test_windows_with_a_margin_lie_side_by_side_without_overlap() -> None:
    """From the region's first voxel on; the last one reaches beyond it, and beyond the volume."""
    roi = region(22, 9, 8, box=(slice(3, 22), ...))
    out = predict_volume(
        Placed(), volume(22, 9, 8), settings(overlap=0), PATCH, (1, 1, 1), classes=2, roi=roi
    )
    places = (out[0] / out[1]).log()[3:, 0, 0].round().int().tolist()
    assert places == [*range(8), *range(8), *range(3)]


def test_a_region_smaller_than_a_window_gets_its_context() -> None:
    net, image = Net(), volume(32, 32, 32)
    roi = region(32, 32, 32, box=(slice(16, 18), slice(31, 32), slice(0, 1)))
    out = predict(net, image, roi)
    torch.testing.assert_close(
        out[:, 16:18, 31, 0], predict(net, image[:, 13:21, 24:, :8])[:, 3:5, 7, 0]
    )


def test_a_volume_resized_to_the_window_comes_back_at_its_size() -> None:
    net, image = Net(), nn.functional.interpolate(volume(4, 4, 4)[None], (16, 12, 20))[0]
    out = predict(net, image, mode="resize")
    assert net.shapes == [(1, 1, *PATCH)]
    assert out.shape == (3, 16, 12, 20)
    small = nn.functional.interpolate(image[None], PATCH, mode="trilinear")
    shares = net.conv(small).detach().softmax(1)  # probabilities are interpolated, not logits
    back = nn.functional.interpolate(shares, (16, 12, 20), mode="trilinear")
    torch.testing.assert_close(out, back[0])


def test_offsets_move_the_odds() -> None:
    net, image = Net(), volume(8, 8, 8)
    offsets = torch.tensor([0.0, 1.5, -2.0])
    plain, moved = predict(net, image), predict_volume(
        net, image, settings(), PATCH, (4, 4, 4), classes=3, offsets=offsets
    )  # fmt: skip
    expected = plain * offsets.exp()[:, None, None, None]
    torch.testing.assert_close(moved, expected / expected.sum(0))
