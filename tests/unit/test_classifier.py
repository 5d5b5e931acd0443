"""A classifier on an encoder: its two forms, maps of scores, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from medseg.errors import ConfigError
from medseg_plugins.classifier import Classifier


class Halving(nn.Module):
    """Two levels; the coarser one is a 1x1x1 convolution of the averaged input."""

    channels, strides = (2, 3), ((1, 1, 1), (2, 2, 2))

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(2, 3, 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [x, self.conv(nn.functional.avg_pool3d(x, 2))]


def test_the_average_form_is_a_linear_layer_on_the_mean() -> None:
    network = Classifier(Halving(), 5, dropout=0.4).eval()
    x = torch.rand(2, 2, 6, 8, 4)
    last = network.layers[-1]
    mean = network.encoder(x)[-1].mean((2, 3, 4))
    expected = nn.functional.linear(mean, last.weight.flatten(1), last.bias)
    got = network(x)
    assert got.shape == (2, 5, 1, 1, 1)
    assert torch.allclose(got.flatten(1), expected, atol=1e-6)


def test_a_larger_input_gives_a_map_of_the_scores_of_its_parts() -> None:
    options = {"hidden": (7, 6), "kernel": (1, 2, 3), "pool": (1, 2, 1), "dropout": 0.5}
    network = Classifier(Halving(), 5, **options).eval()  # type: ignore[arg-type]
    x = torch.rand(1, 2, 4, 12, 8)
    scores = network(x)
    assert scores.shape == (1, 5, 2, 2, 2)
    part = network(x[:, :, 2:4, 4:12, 2:8])  # 1 x 2 x 3 voxels of 2 x 4 x 2
    assert part.shape == (1, 5, 1, 1, 1)
    assert torch.allclose(part[..., 0, 0, 0], scores[..., 1, 1, 1], atol=1e-6)


def test_dropout_stands_before_every_layer_but_a_hidden_first() -> None:
    def kinds(network: Classifier) -> list[str]:
        return [type(m).__name__ for m in network.layers]

    assert kinds(Classifier(Halving(), 5, dropout=0.4)) == ["Dropout", "Conv3d"]
    hidden = ["Conv3d", "ReLU", "Dropout"]
    assert kinds(Classifier(Halving(), 5, hidden=(8, 8))) == [*hidden, *hidden, "Conv3d"]
    assert Classifier(Halving(), 5, dropout=0.4).layers[0].p == 0.4


def test_an_input_too_small_for_the_kernel_is_refused() -> None:
    network = Classifier(Halving(), 5, kernel=(3, 3, 3), pool=(2, 2, 2))
    with pytest.raises(ConfigError, match=r"\(8, 16, 16\) voxels leaves \(2, 4, 4\)"):
        network(torch.rand(1, 2, 8, 16, 16))


def test_a_module_that_is_no_encoder_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"ReLU has no \.channels"):
        Classifier(nn.ReLU(), 5)


def test_names_in_torchvision_follow_the_encoders() -> None:
    encoder = Halving()
    assert Classifier(encoder, 5).layouts() == {}
    encoder.layouts = lambda: {"torchvision": {"conv": "conv1"}, "other": {"conv": "c"}}
    assert Classifier(encoder, 5).layouts() == {
        "torchvision": {"encoder.conv": "conv1", "layers.1": "fc"},
        "other": {"encoder.conv": "c"},
    }
