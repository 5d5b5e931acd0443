"""Kernels made to fit, against torch's own 2D convolutions on prepared pictures."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d, conv3d

from medseg.config.schema import Pretrained
from medseg.errors import ConfigError
from medseg.networks.inflate import first_kernel, fit, inflate

CAFFE_BGR = (103.939, 116.779, 123.68)
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RGB = ("red", "green", "blue")
COLOURS = {name: name for name in RGB}


def settings(**given: object) -> Pretrained:
    return Pretrained.model_validate({"path": "w.pth", **given})


def kernel(width_in: int = 3, size: tuple[int, ...] = (3, 3)) -> Tensor:
    return torch.randn(4, width_in, *size, generator=torch.Generator().manual_seed(1)).double()


def picture(width: int = 3) -> Tensor:
    """From 0 to 1, red first."""
    return torch.rand(1, width, 9, 8, generator=torch.Generator().manual_seed(2)).double()


def caffe(image: Tensor) -> Tensor:
    return 255 * image.flip(1) - torch.tensor(CAFFE_BGR, dtype=torch.double).view(1, 3, 1, 1)


def torchvision(image: Tensor) -> Tensor:
    mean, deviation = (
        torch.tensor(v, dtype=torch.double).view(1, 3, 1, 1) for v in (MEAN, DEVIATION)
    )
    return (image - mean) / deviation


@pytest.mark.parametrize("how", ["mean", "centre"])
@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("length", [1, 3, 5])
def test_a_constant_axis_gives_the_2d_answer(how: str, axis: int, length: int) -> None:
    flat, image = kernel(), picture()
    volume = image.unsqueeze(2 + axis).repeat_interleave(length, 2 + axis)
    answer = conv3d(volume, inflate(flat, length, axis, how))
    assert answer.shape[2 + axis] == 1
    torch.testing.assert_close(answer.squeeze(2 + axis), conv2d(image, flat))


def test_centre_looks_at_one_plane_and_mean_at_all() -> None:
    flat = kernel()
    centre, mean = inflate(flat, 3, 0, "centre"), inflate(flat, 3, 0, "mean")
    assert torch.equal(centre[:, :, 1], flat)
    assert not centre[:, :, [0, 2]].any()
    assert torch.equal(mean, torch.stack([flat / 3] * 3, 2))


def test_what_fits_and_what_was_done() -> None:
    given, five = settings(axis=0), torch.Size([4, 3, 5, 3, 3])
    same = kernel(size=(5, 3, 3))
    assert fit(same, five, given) == (same, "")
    inflated = fit(kernel(), five, given)
    assert inflated is not None
    assert inflated[0].shape == five
    assert inflated[1] == "2D to 3D: mean of 5 along axis 0"
    connected = fit(torch.ones(4, 3), torch.Size([4, 3, 1, 1, 1]), given)
    assert connected is not None
    assert connected[0].shape == (4, 3, 1, 1, 1)
    for wrong in (torch.Size([4, 3, 3, 5, 3]), torch.Size([4, 2, 5, 3, 3]), torch.Size([4])):
        assert fit(kernel(), wrong, given) is None
    assert fit(torch.ones(4, 3), torch.Size([4, 3, 3, 1, 1]), given) is None
    assert fit(same, torch.Size([4, 3, 3, 3, 5]), given) is None


def answer(flat: Tensor, ours: Tensor, names: tuple[str, ...], **given: object) -> Tensor:
    """What the adapted layer answers to our channels, with its constant."""
    adapted, constant, _ = first_kernel(flat, settings(**given), names)
    return conv2d(ours, adapted, constant)


def test_as_many_channels_stay_as_they_are() -> None:
    adapted, constant, words = first_kernel(kernel(), settings(), ("flair", "t1", "t2"))
    assert torch.equal(adapted, kernel())
    assert not constant.any()
    assert words == ""


@pytest.mark.parametrize("prepare, name", [(caffe, "caffe"), (torchvision, "torchvision")])
def test_colours_find_their_channels(prepare: object, name: str) -> None:
    """The file's network sees the prepared picture, ours the picture itself, in any order."""
    flat, image = kernel(), picture()
    wanted = conv2d(prepare(image), flat)
    got = answer(flat, image, RGB, channels=COLOURS, preprocessing=name)
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)
    got = answer(flat, image.flip(1), RGB[::-1], channels=COLOURS, preprocessing=name)
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("prepare, name", [(caffe, "caffe"), (torchvision, "torchvision")])
@pytest.mark.parametrize("width", [1, 4])
def test_a_grey_picture_in_all_channels(prepare: object, name: str, width: int) -> None:
    flat, grey = kernel(), picture(1)
    names = ("flair", "t1", "t1c", "t2")[:width]
    wanted = conv2d(prepare(grey.repeat(1, 3, 1, 1)), flat)
    got = answer(flat, grey.repeat(1, width, 1, 1), names, preprocessing=name)
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)


def test_intensities_of_a_ct() -> None:
    """Air at -1000 HU is black, 400 HU is white."""
    flat, grey = kernel(), picture(1)
    wanted = conv2d(caffe(grey.repeat(1, 3, 1, 1)), flat)
    got = answer(
        flat, 1400 * grey - 1000, ("ct",), preprocessing="caffe", intensity=[-1000.0, 400.0]
    )
    torch.testing.assert_close(got, wanted, rtol=1e-8, atol=1e-8)


def test_the_order_says_which_channel_is_red() -> None:
    flat = kernel()
    for order, red in (("rgb", 0), ("bgr", 2), (None, 0)):
        adapted, _, words = first_kernel(
            flat, settings(order=order, channels={"pet": "red", "ct": "zero"}), ("pet", "ct")
        )
        assert torch.equal(adapted[:, 0], 3 * flat[:, red])
        assert not adapted[:, 1].any()
        assert words == f"pet = {red}; ct = zero of the file, times 3"
    adapted, _, _ = first_kernel(
        flat, settings(preprocessing="torchvision", order="bgr", channels={"pet": "red"}), ("pet",)
    )
    torch.testing.assert_close(adapted[:, 0], 3 * flat[:, 2] / DEVIATION[0])


def test_numbers_means_and_the_factor() -> None:
    flat = kernel(4, (3, 3, 3))
    mapping = {"a": 3, "b": "mean", "c": "zero"}
    adapted, _, words = first_kernel(flat, settings(channels=mapping), ("c", "b", "a"))
    assert not adapted[:, 0].any()
    torch.testing.assert_close(adapted[:, 1], 2 * flat.mean(1))
    torch.testing.assert_close(adapted[:, 2], 2 * flat[:, 3])
    assert words == "c = zero; b = mean of 0, 1, 2, 3; a = 3 of the file, times 2"


@pytest.mark.parametrize(
    "given, width, message, path",
    [
        ({"channels": {"t9": 0}}, 3, "unknown 't9'; map each of t1, t2", ("channels", "t9")),
        ({"channels": {"t1": 0}}, 3, "'t2' is not mapped; map each of t1, t2", ("channels",)),
        ({"channels": {"t1": "zero", "t2": "zero"}}, 3, "all zero", ("channels",)),
        ({"channels": {"t1": 0, "t2": 3}}, 3, "to be 3.*3 input.*0 to 2", ("channels", "t2")),
        ({"channels": {"t1": 0, "t2": "red"}}, 1, "'red'.*1 input", ("channels", "t2")),
        ({"preprocessing": "caffe"}, 1, "1 input channels: set preproc", ("preprocessing",)),
    ],
)
def test_settings_that_do_not_fit(
    given: dict[str, object], width: int, message: str, path: tuple[str, ...]
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        first_kernel(kernel(width), settings(**given), ("t1", "t2"))
    assert caught.value.path == path
