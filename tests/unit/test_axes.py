"""Axes of flips by their anatomical name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from medseg.config import dump, load, loads
from medseg.config.axes import numbers
from medseg.config.schema import Augment
from medseg.errors import ConfigError
from medseg.inference.predictor import Predictor
from medseg.inference.window import predict_volume
from medseg.training.loop import train
from medseg.transforms import augment

TEXT = """\
name: a
data: {layout: msd, path: x}
model: {encoder: vgg, decoder: unet}
train: {patch: [8, 8, 8], budget: {steps: 1}}
"""


@pytest.mark.parametrize(
    "axes, orientation, expected",
    [
        (("LR", "AP", "IS"), "RAS", (0, 1, 2)),
        (("LR", "AP", "IS"), "LPS", (0, 1, 2)),
        (("LR", "AP", "IS"), "ASL", (2, 0, 1)),
        (("RL", "PA", "SI"), "ASL", (2, 0, 1)),
        (("IS", 0), "PLI", (2, 0)),
        ((2, 0), None, (2, 0)),
        ((), None, ()),
    ],
)
def test_a_name_is_an_axis_of_the_orientation(
    axes: Any, orientation: str | None, expected: tuple[int, ...]
) -> None:
    assert numbers(axes, orientation) == expected


@pytest.mark.parametrize(
    "axes, orientation, message",
    [
        (("LR",), None, "'LR' needs to know where the axes point, and preprocess.orientation is"),
        (("LR", "RL"), "RAS", r"each axis once, got \['LR', 'RL'\], which is \[0, 0\] in RAS"),
        (("AP", 1), "RAS", r"each axis once, got \['AP', 1\], which is \[1, 1\] in RAS"),
        ((1, 1), None, r"each axis once, got \[1, 1\]$"),
    ],
)
def test_axes_that_lead_nowhere_are_told(axes: Any, orientation: str | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        numbers(axes, orientation)


@pytest.mark.parametrize("section", ["augment", "inference"])
@pytest.mark.parametrize(
    "more, message",
    [
        ("preprocess: {orientation: null}\n%s: {flip: [LR]}", "config:6:%d: %s: flip: 'LR' needs"),
        ("%s: {flip: [LR, 0]}", "config:5:%d: %s: flip: each axis once"),
    ],
)
def test_a_config_says_where(section: str, more: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        loads(TEXT + more % section, "/")
    assert str(caught.value).startswith(message % (len(section) + 3, section))


def test_an_unknown_name_is_told_with_the_known() -> None:
    with pytest.raises(ConfigError, match=r"augment\.flip\[0\]: .*'LR', 'RL', 'AP', 'PA', 'IS'"):
        loads(TEXT + "augment: {flip: [XY]}", "/")


def test_a_config_keeps_the_names_and_numbers_them_when_asked() -> None:
    more = "preprocess: {orientation: ASL}\naugment: {flip: [LR, AP]}\ninference: {flip: [IS]}"
    config = loads(TEXT + more, "/")
    assert config.augment.flip == ("LR", "AP")
    assert "flip: [LR, AP] " in dump(config)
    assert loads(dump(config), "/") == config
    assert config.numbered.augment.flip == (2, 0)
    assert config.numbered.inference.flip == (1,)
    assert config.numbered.numbered == config.numbered
    turned = loads(
        dump(config), "/", ["preprocess.orientation=RAS"]
    )  # names follow, numbers do not
    assert turned.numbered.augment.flip == (0, 1)


def test_named_axes_are_drawn_as_their_numbers() -> None:
    config = loads(TEXT + "augment: {flip: [LR, IS]}", "/")
    named, numbered = (
        augment.draw(settings, 8, 1, torch.Generator().manual_seed(0))
        for settings in (config.numbered.augment, Augment(flip=(0, 2)))
    )
    assert torch.equal(named.matrix, numbered.matrix)
    with pytest.raises(ConfigError, match="'LR' needs to know"):  # never taken for another axis
        augment.draw(config.augment, 8, 1, torch.Generator())


def test_prediction_flips_the_axis_that_is_named() -> None:
    """A network that answers by place: averaged with its mirror along axis 1 only."""

    class Place(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
            i, j, k = torch.meshgrid(*(torch.arange(4.0),) * 3, indexing="ij")
            return (torch.stack([x[0, 0], i + 10 * j + 100 * k])[None],)

    more = "preprocess: {orientation: PRS}\ninference: {flip: [LR], mode: whole, precision: fp32}"
    config = loads(TEXT + more, "/")
    by_number = loads(TEXT + more.replace("LR", "1"), "/")
    image = torch.rand(1, 4, 4, 4, generator=torch.Generator().manual_seed(0)) * 100
    found, expected, plain = (
        predict_volume(Place(), image, settings, (4, 4, 4), (1, 1, 1), classes=2)
        for settings in (
            config.numbered.inference,
            by_number.inference,
            config.inference.model_copy(update={"flip": ()}),
        )
    )
    assert torch.equal(found, expected)
    assert not torch.equal(found, plain)
    with pytest.raises(ConfigError, match="'LR' needs to know"):
        predict_volume(Place(), image, config.inference, (4, 4, 4), (1, 1, 1), classes=2)


def test_a_mix_needs_a_batch() -> None:
    with pytest.raises(ConfigError, match=r"train: augment\.mix takes .* batch is 1, give 2"):
        loads(TEXT + "augment: {mix: 0.3}", "/", ["train.batch=1"])
    loads(TEXT + "augment: {mix: 0.3}", "/")


@pytest.mark.slow
def test_a_run_with_names_is_the_run_with_numbers(
    recipe: Callable[..., Path], tmp_path: Path
) -> None:
    """Training, validation and prediction each ask for the numbers."""
    shares: list[Any] = []
    for name, axes in (("names", ["LR", "IS"]), ("numbers", [0, 2])):
        config = load(
            recipe(
                **{"augment.flip": axes, "inference.flip": [*axes], "train.budget": {"steps": 3}}
            )
        )
        run = train(config, tmp_path / name, device="cpu", quiet=True)
        predictor = Predictor.load(run.path, device="cpu")
        volume = np.random.default_rng(0).normal(size=(2, 20, 20, 20))
        found = predictor.predict((volume, np.diag([4.0, 4, 4, 1])), probabilities=True)
        shares.append(found.probabilities)
        shares.append([r["validation"] for r in run.records() if "validation" in r])
    np.testing.assert_array_equal(shares[0], shares[2])
    assert shares[1] == shares[3] != []
