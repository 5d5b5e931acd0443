"""Every registered component keeps its contract: a new one is tested as it is registered."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medseg import plugins
from medseg.config.schema import ComponentSpec, Model
from medseg.networks.assembly import build_network
from medseg.postprocess.prediction import Prediction
from medseg.registry import DECODERS, ENCODERS, LOSSES, NETWORKS, POSTPROCESSORS, TRANSFORMS
from medseg.testing import (
    check_decoder,
    check_encoder,
    check_loss,
    check_network,
    check_postprocessor,
    check_transform,
)

plugins.load()

ISOTROPIC = ((1, 1, 1), (2, 2, 2), (2, 2, 2))
ANISOTROPIC = ((1, 1, 1), (2, 2, 1), (2, 1, 2))
# Small options for names known to be large. A name that is not here is tested with its defaults.
SMALL: dict[str, dict[str, Any]] = {
    "encoder resnet": {"widths": [4, 8, 8], "blocks": [1, 2, 1]},
    "encoder vgg": {"width": 0.05, "levels": 3, "config": "C"},
    "encoder inception": {"width": 0.05, "levels": 3},
    "network monai": {"net": "UNet", "options": {"channels": [4, 8, 8], "strides": [2, 2]}},
    "transform monai": {"transform": "RandAffined", "options": {"prob": 1.0, "rotate_range": 0.3}},
    "loss monai": {"loss": "DiceCELoss"},
}
# Values for options that have no default, by name.
REQUIRED: dict[str, Any] = {"low": -1.0, "high": 1.0, "mm3": 2.0}


def small(registry: Any, name: str) -> dict[str, Any]:
    parameters = registry.signature(name).parameters.values()
    needed = {p.name: REQUIRED[p.name] for p in parameters if p.name in REQUIRED}
    needed = {
        key: value
        for key, value in needed.items()
        if registry.signature(name).parameters[key].default is registry.signature(name).empty
    }
    return {"name": name, **needed, **SMALL.get(f"{registry.kind} {name}", {})}


def with_strides(spec: dict[str, Any], strides: Any) -> dict[str, Any]:
    """Give an encoder these strides, if it has the option."""
    has_option = "strides" in ENCODERS.signature(spec["name"]).parameters
    return spec | {"strides": [list(s) for s in strides]} if has_option else spec


@pytest.mark.parametrize("strides", [ISOTROPIC, ANISOTROPIC], ids=["isotropic", "anisotropic"])
@pytest.mark.parametrize("name", ENCODERS.names())
def test_encoder(name: str, strides: Any) -> None:
    encoder = ENCODERS.build(with_strides(small(ENCODERS, name), strides), in_channels=2)
    check_encoder(encoder, in_channels=2)


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
@pytest.mark.parametrize(
    "name", [n for n in ENCODERS.names() if "norm" in ENCODERS.signature(n).parameters]
)
def test_encoder_norms(name: str, norm: str) -> None:
    encoder = ENCODERS.build(small(ENCODERS, name) | {"norm": norm}, in_channels=1)
    check_encoder(encoder, in_channels=1)


@pytest.mark.parametrize("strides", [ISOTROPIC, ANISOTROPIC], ids=["isotropic", "anisotropic"])
@pytest.mark.parametrize("name", DECODERS.names())
def test_decoder(name: str, strides: Any) -> None:
    levels = ((1, 1, 1), strides[1], tuple(a * b for a, b in zip(*strides[1:], strict=True)))
    decoder = DECODERS.build(small(DECODERS, name), channels=(3, 4, 5), strides=levels)
    check_decoder(decoder, (3, 4, 5), levels)


@pytest.mark.parametrize("strides", [ISOTROPIC, ANISOTROPIC], ids=["isotropic", "anisotropic"])
@pytest.mark.parametrize("decoder", DECODERS.names())
@pytest.mark.parametrize("encoder", ENCODERS.names())
def test_every_encoder_with_every_decoder(encoder: str, decoder: str, strides: Any) -> None:
    model = Model(
        encoder=ComponentSpec(**with_strides(small(ENCODERS, encoder), strides)),
        decoder=ComponentSpec(**small(DECODERS, decoder)),
        deep_supervision=0,
    )
    network = build_network(model, in_channels=2, classes=3, seed=1)
    size = tuple(2 * d for d in network.divisor)
    check_network(network, 2, 3, sizes=[size, (size[0], 2 * size[1], size[2])])


@pytest.mark.parametrize("name", NETWORKS.names())
def test_network(name: str) -> None:
    network = NETWORKS.build(small(NETWORKS, name), in_channels=2, classes=3)
    check_network(network, 2, 3)


MONAI = {
    "BasicUNet": {"features": [4, 4, 4, 4, 4, 4]},
    "BasicUNetPlusPlus": {"features": [4, 4, 4, 4, 4, 4], "deep_supervision": True},
    "DynUNet": {
        "kernel_size": [3, 3, 3],
        "strides": [1, 2, 2],
        "upsample_kernel_size": [2, 2],
        "filters": [4, 4, 8],
        "deep_supervision": True,
        "deep_supr_num": 1,
    },
    "SegResNet": {"init_filters": 8},
    "SegResNetDS": {"init_filters": 8, "dsdepth": 2, "blocks_down": [1, 1, 1]},
    "AttentionUnet": {"channels": [4, 8], "strides": [2]},
}


@pytest.mark.slow
@pytest.mark.parametrize("net", MONAI)
def test_monai_networks(net: str) -> None:
    spec = {"name": "monai", "net": net, "options": MONAI[net]}
    check_network(NETWORKS.build(spec, in_channels=1, classes=2), 1, 2)


@pytest.mark.parametrize("name", LOSSES.names())
def test_loss(name: str) -> None:
    check_loss(LOSSES.build(small(LOSSES, name), classes=3), 3)


@pytest.mark.parametrize("name", TRANSFORMS.names())
def test_transform(name: str) -> None:
    check_transform(TRANSFORMS.build(small(TRANSFORMS, name)))


@pytest.mark.parametrize("name", POSTPROCESSORS.names())
def test_postprocessor(name: str) -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random((12, 11, 10)) < 0.3).astype(np.uint8)
    labels[2:6, 3:7, 4:8] = 2
    image = rng.normal(size=(1, *labels.shape)).astype(np.float32)
    shares = rng.dirichlet(np.ones(3), size=labels.shape).astype(np.float32)
    prediction = Prediction(labels, image, np.diag([1.0, 1.0, 3.0, 1.0]), np.moveaxis(shares, 3, 0))
    postprocessor = POSTPROCESSORS.build(small(POSTPROCESSORS, name), classes=3)
    check_postprocessor(postprocessor, prediction)


def test_the_example_encoder_is_short_and_keeps_the_contract() -> None:
    path = Path(__file__).parents[2] / "examples" / "tiny_encoder.py"
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 40
    before = dict(ENCODERS._components)
    spec = importlib.util.spec_from_file_location("tiny_encoder_of_a_test", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        encoder = ENCODERS.build({"name": "tiny", "widths": [2, 4]}, in_channels=3)
    finally:
        ENCODERS._components.clear()
        ENCODERS._components.update(before)
    check_encoder(encoder, in_channels=3)
    assert isinstance(encoder, torch.nn.Module)
