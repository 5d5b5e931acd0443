"""Every registered component keeps its contract: a new one is tested as it is registered."""

from __future__ import annotations

import importlib.util
import inspect
import itertools
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medseg import plugins
from medseg.config.schema import ComponentSpec, Model
from medseg.errors import ConfigError
from medseg.networks.assembly import EncoderDecoder, build_network
from medseg.networks.stages import cumulative
from medseg.postprocess.prediction import Prediction
from medseg.registry import (
    DECODERS,
    ENCODERS,
    LOGGERS,
    LOSSES,
    NETWORKS,
    POSTPROCESSORS,
    SAMPLERS,
    TRANSFORMS,
)
from medseg.testing import (
    check_decoder,
    check_encoder,
    check_logger,
    check_loss,
    check_network,
    check_postprocessor,
    check_sampler,
    check_transform,
)
from medseg.training.samplers import Site

plugins.load()

# Steps from level to level, the finest's first; they come round again where there are more levels.
STEPS = {
    "isotropic": [(1, 1, 1), (2, 2, 2)],
    "anisotropic": [(1, 1, 1), (2, 2, 1), (2, 1, 2)],
    "dilated": [(1, 1, 1), (2, 2, 2), (1, 1, 1)],
}
# Small options for names known to be large. A name that is not here is tested with its defaults;
# encoders and networks with an option `width` or `levels` are narrowed and shortened by it.
SMALL: dict[str, dict[str, Any]] = {
    "decoder deeplab": {"width": 4, "low_width": 3},
    "decoder fcn": {"width": 4, "hidden": [6]},
    "decoder fpn": {"width": 4},
    "network dense_vnet": {"convs": [3, 2, 2]},
    "network deepmedic": {"widths": [3] * 8, "hidden": [5, 5]},
    "network deepmedic_paper": {"widths": [3] * 8, "hidden": [5, 5]},
    "network deepmedic_wide": {"widths": [3] * 8, "hidden": [5, 5]},
    "network highres3dnet": {"blocks": [1, 1, 1]},
    "network holisticnet": {"blocks": 1},
    "network monai": {"net": "UNet", "options": {"channels": [4, 8, 8], "strides": [2, 2]}},
    "transform monai": {"transform": "RandAffined", "options": {"prob": 1.0, "rotate_range": 0.3}},
    "loss monai": {"loss": "DiceCELoss"},
}
NARROW = {"width": 0.05, "levels": 3}
# Values for options that have no default, by name.
REQUIRED: dict[str, Any] = {"low": -1.0, "high": 1.0, "mm3": 2.0, "regions": [[1, 2], [2]]}
# Presets are these components with other defaults.
ENCODER_NAMES = [name for name in ENCODERS.names() if name not in ENCODERS.presets]
NETWORK_NAMES = [name for name in NETWORKS.names() if name not in NETWORKS.presets]
LEVELS_OF_PRESETS = 4  # those of GoogLeNet have heads there


def small(registry: Any, name: str) -> dict[str, Any]:
    """A name with options that make it small, and what it cannot do without."""
    parameters = registry.signature(name).parameters
    needed = {
        key: value
        for key, value in REQUIRED.items()
        if key in parameters and parameters[key].default is inspect.Parameter.empty
    }
    narrow = NARROW if registry in (ENCODERS, NETWORKS) else {}
    if name in registry.presets:
        narrow = narrow | {"levels": LEVELS_OF_PRESETS}
    fitting = {key: value for key, value in narrow.items() if key in parameters}
    return {"name": name, **needed, **fitting, **SMALL.get(f"{registry.kind} {name}", {})}


def steps(kind: str, levels: int) -> list[tuple[int, int, int]]:
    first, *others = STEPS[kind]
    return [first, *itertools.islice(itertools.cycle(others), levels - 1)]


def stepped(spec: dict[str, Any], kind: str) -> dict[str, Any]:
    """Give an encoder other steps than its own, if it has the option."""
    if kind == "isotropic" or "strides" not in ENCODERS.signature(spec["name"]).parameters:
        return spec
    with torch.device("meta"):
        levels = len(ENCODERS.build(spec, in_channels=1).strides)
    return spec | {"strides": [list(step) for step in steps(kind, levels)]}


@pytest.mark.parametrize("kind", ["isotropic", "anisotropic"])
@pytest.mark.parametrize("name", ENCODER_NAMES)
def test_encoder(name: str, kind: str) -> None:
    encoder = ENCODERS.build(stepped(small(ENCODERS, name), kind), in_channels=2)
    check_encoder(encoder, in_channels=2)


@pytest.mark.slow
@pytest.mark.parametrize("name", ENCODERS.presets)
def test_preset(name: str) -> None:
    encoder = ENCODERS.build(stepped(small(ENCODERS, name), "anisotropic"), in_channels=2)
    check_encoder(encoder, in_channels=2)


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
@pytest.mark.parametrize("name", ENCODER_NAMES)
def test_encoder_norms(name: str, norm: str) -> None:
    if "norm" not in ENCODERS.signature(name).parameters:
        pytest.skip(f"{name} has no option norm")
    encoder = ENCODERS.build(small(ENCODERS, name) | {"norm": norm}, in_channels=1)
    check_encoder(encoder, in_channels=1)


@pytest.mark.parametrize("kind", STEPS)
@pytest.mark.parametrize("name", DECODERS.names())
def test_decoder(name: str, kind: str) -> None:
    channels = (3, 4, 5, 6)
    strides = cumulative(steps(kind, len(channels)))
    decoder = DECODERS.build(small(DECODERS, name), channels=channels, strides=strides)
    check_decoder(decoder, channels, strides)


def network_of(encoder: str, decoder: str, kind: str) -> EncoderDecoder:
    """Two parts put together, with heads on all of the decoder's levels."""
    parts = stepped(small(ENCODERS, encoder), kind), small(DECODERS, decoder)
    with torch.device("meta"):
        built = ENCODERS.build(parts[0], in_channels=1)
        levels = {"channels": built.channels, "strides": built.strides}
        outputs = len(DECODERS.build(parts[1], **levels).channels)
    model = Model(
        encoder=ComponentSpec(**parts[0]),
        decoder=ComponentSpec(**parts[1]),
        deep_supervision=outputs - 1,
    )
    network = build_network(model, in_channels=2, classes=3, seed=1)
    assert isinstance(network, EncoderDecoder)
    return network


@pytest.mark.parametrize("kind", ["isotropic", "anisotropic"])
@pytest.mark.parametrize("decoder", DECODERS.names())
@pytest.mark.parametrize("encoder", ENCODER_NAMES)
def test_every_encoder_with_every_decoder(encoder: str, decoder: str, kind: str) -> None:
    network = network_of(encoder, decoder, kind)
    i, j, k = network.divisor
    check_network(network, 2, 3, sizes=[(2 * i, 2 * j, 2 * k), (2 * i, 3 * j, 2 * k)])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["isotropic", "anisotropic"])
@pytest.mark.parametrize("decoder", DECODERS.names())
@pytest.mark.parametrize("encoder", ENCODERS.presets)
def test_every_preset_with_every_decoder(encoder: str, decoder: str, kind: str) -> None:
    """Forward and backward; whether it keeps all of its contract is asked of its component."""
    network = network_of(encoder, decoder, kind)
    i, j, k = network.divisor
    out = network(torch.rand(2, 2, i, 2 * j, k))
    assert out[0].shape == (2, 3, i, 2 * j, k)
    assert len(out) == len(network.output_weights)
    torch.stack([(logits * torch.rand_like(logits)).sum() for logits in out]).sum().backward()
    idle = [
        n for n, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all()
    ]
    assert not idle


def sizes_of(network: torch.nn.Module) -> dict[str, Any]:
    """Short patches for a network whose margin makes its input large; else the check's own."""
    return {"sizes": [(5, 6, 7), (15, 5, 6)]} if any(getattr(network, "margin", ())) else {}


@pytest.mark.parametrize("name", NETWORK_NAMES)
def test_network(name: str) -> None:
    network = NETWORKS.build(small(NETWORKS, name), in_channels=2, classes=3)
    check_network(network, 2, 3, **sizes_of(network))


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS.presets)
def test_network_preset(name: str) -> None:
    network = NETWORKS.build(small(NETWORKS, name), in_channels=1, classes=2)
    check_network(network, 1, 2, **sizes_of(network))


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["instance", "none"])
@pytest.mark.parametrize("name", NETWORK_NAMES)
def test_network_norms(name: str, norm: str) -> None:
    if "norm" not in NETWORKS.signature(name).parameters:
        pytest.skip(f"{name} has no option norm")
    network = NETWORKS.build(small(NETWORKS, name) | {"norm": norm}, in_channels=1, classes=2)
    check_network(network, 1, 2)


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


@pytest.mark.parametrize("name", SAMPLERS.names())
def test_sampler(name: str) -> None:
    label = np.zeros((9, 12, 10), np.uint8)
    label[2:4, 3:5, 1:3], label[6, 7, 8] = 1, 2
    flat = np.flatnonzero(label)
    voxels = np.stack([label.ravel()[flat], flat], axis=1).astype(np.int64)
    region, everywhere = np.arange(300, 800, 3), np.arange(label.size)
    for patch in ((4, 4, 4), (16, 3, 10)):
        for inside in (None, region):
            site = Site(label.shape, patch, voxels, label, inside, everywhere, turn=3)
            check_sampler(SAMPLERS.build(small(SAMPLERS, name), classes=3), site)


@pytest.mark.filterwarnings("default:.*:FutureWarning")  # of MLflow, of its own store of files
@pytest.mark.parametrize("name", LOGGERS.names())
def test_logger(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    make = partial(LOGGERS.build, small(LOGGERS, name))
    try:
        make()
    except ConfigError as error:  # its library is an extra
        pytest.skip(str(error))
    (tmp_path / "run").mkdir()
    check_logger(make, tmp_path / "run")


def test_the_logger_of_the_page_keeps_the_contract(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "logging.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    before = dict(LOGGERS._components)
    try:
        exec(page.partition("```python\n")[2].partition("```")[0], names)
    finally:
        LOGGERS._components = before
    check_logger(names["Csv"], tmp_path)
    rows = (tmp_path / "log.csv").read_text().split()
    assert rows == ["25,0.04,", "50,0.02,0.5", "60,0.0166667,0.5"]


@pytest.mark.parametrize("name", TRANSFORMS.names())
def test_transform(name: str) -> None:
    check_transform(TRANSFORMS.build(small(TRANSFORMS, name)))


@pytest.mark.parametrize("name", POSTPROCESSORS.names())
def test_postprocessor(name: str) -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random((12, 11, 10)) < 0.3).astype(np.uint8)
    labels[2:6, 3:7, 4:8] = 2
    image = rng.normal(size=(2, *labels.shape)).astype(np.float32)
    shares = rng.dirichlet(np.ones(3), size=labels.shape).astype(np.float32)
    affine, mask = np.diag([1.0, 1.0, 3.0, 1.0]), image[0] > -2
    prediction = Prediction(labels, image, affine, np.moveaxis(shares, 3, 0), mask)
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
