"""DeepMedic against its paper, its code and its published weights.

The published network is that of CaPTk for brain tumours; `deepmedic_captk_prediction.nii.gz` is
what the original gave for the case beside it.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import medseg_plugins  # noqa: F401
from medseg.errors import ConfigError
from medseg.inference.predictor import Predictor, Ready
from medseg.networks.describe import parameter_count
from medseg.registry import NETWORKS
from medseg.testing import check_network
from medseg.volumes.dataset import Case, Channel
from medseg_plugins.deepmedic_blocks import add_centre
from medseg_plugins.deepmedic_joint import repeated

DATA = Path(os.environ.get("MEDSEG_DATA", "data"))
CASE = DATA / "glioma_case"
WEIGHTS = DATA / "weights" / "deepmedic_captk" / "brainTumorSegmentation" / "model.ckpt.index"
FILES = {"t1": "t1n", "t1c": "t1c", "t2": "t2w", "flair": "t2f"}
SMALL = {"widths": [4, 4, 5], "residual": [3], "hidden": [7, 12], "dropout": [0.0, 0.2, 0.2]}
needs_data = pytest.mark.skipif(
    not (CASE.is_dir() and WEIGHTS.is_file()), reason="MEDSEG_DATA has no glioma_case or weights"
)


def build(name: str = "deepmedic", channels: int = 2, **options: Any) -> Any:
    return NETWORKS.build({"name": name, **options}, in_channels=channels, classes=5)


def lived_in(network: nn.Module) -> nn.Module:
    """Weights and statistics as training might have left them."""
    torch.manual_seed(1)
    for parameter in network.parameters():
        nn.init.normal_(parameter, 0.1, 0.4)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.running_mean.normal_()  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    return network.eval()


# The figures of the configurations in millions; exactly: kernels, biases of the first and the last
# layers, two numbers per channel of a norm, one per channel of a PReLU.
@pytest.mark.parametrize(
    ("name", "millions", "exact"),
    [
        ("deepmedic_paper", 0.66, 659_919),
        ("deepmedic", 2.01, 2_008_901),
        ("deepmedic_wide", 5.14, 5_141_051),
    ],
)
def test_parameters(name: str, millions: float, exact: int) -> None:
    with torch.device("meta"):
        count = parameter_count(build(name))
    assert (round(count / 1e6, 2), count) == (millions, exact)


def field(network: nn.Module) -> tuple[list[int], int]:
    """Extent per axis of the voxels of which one logit has a gradient, and how many they are."""
    size = tuple(15 + 2 * m for m in network.margin)
    x = torch.rand(1, 2, *size, requires_grad=True)
    network(x)[0, 0, 7, 7, 7].backward()
    assert x.grad is not None
    places = x.grad[0].abs().sum(0).nonzero()
    return (places.amax(0) - places.amin(0) + 1).tolist(), len(places)


@pytest.mark.parametrize(("factor", "extent"), [(1, 17), (3, 51), (5, 85)])
def test_receptive_field_of_a_pathway(factor: int, extent: int) -> None:
    """With means of blocks each pathway sees all of its field, and a lone one no more than that."""
    torch.manual_seed(0)
    options: dict[str, Any] = {"widths": [3] * 8, "hidden": [4], "dropout": [0.0, 0.0]}
    network = build(
        **options,
        hidden_kernel=[1, 1, 1],
        hidden_residual=[],
        sampling="mean",
        factors=[[1, 1, 1], [factor] * 3],
    ).eval()
    with torch.no_grad():  # only the second pathway counts
        network.joint.layers[0].conv.weight[:, :3] = 0
    assert field(network) == ([extent] * 3, extent**3)


@pytest.mark.parametrize(("factor", "extent"), [(3, 49), (5, 81)])
def test_picking_sees_one_voxel_of_each_block(factor: int, extent: int) -> None:
    torch.manual_seed(0)
    network = build(
        widths=[3] * 8, hidden=[4], dropout=[0.0, 0.0], hidden_kernel=[1, 1, 1],
        hidden_residual=[], factors=[[1, 1, 1], [factor] * 3],
    ).eval()  # fmt: skip
    with torch.no_grad():
        network.joint.layers[0].conv.weight[:, :3] = 0
    assert field(network) == ([extent] * 3, 17**3)


@pytest.mark.parametrize(
    ("name", "margin"), [("deepmedic_paper", 24), ("deepmedic", 40), ("deepmedic_wide", 40)]
)
def test_the_margin_is_what_the_widest_pathway_sees(name: str, margin: int) -> None:
    assert build(name).margin == (margin,) * 3


def plain(network: Any, x: Tensor) -> Tensor:
    """The network as it is drawn in the paper: upsample by repeating, put together, convolve."""
    size = tuple(n - 2 * m for n, m in zip(x.shape[2:], network.margin, strict=True))
    seen = network.seen
    whole = tuple(n + 2 * s for n, s in zip(size, seen, strict=True))
    maps = []
    for factor, pathway in zip(network.factors, network.pathways, strict=True):
        firsts, counts = [], []
        for axis in range(3):
            start = network.margin[axis] - (network.reach[axis] + seen[axis]) * factor[axis]
            firsts.append(slice(start, None, factor[axis]))
            blocks = -(-(size[axis] + seen[axis]) // factor[axis]) + seen[axis]
            counts.append(slice(0, blocks + 2 * network.reach[axis]))
        if network.sampling == "mean":
            starts = [slice(part.start, None) for part in firsts]
            part = nn.functional.avg_pool3d(x[(..., *starts)], factor)
        else:
            part = x[(..., *firsts)]
        first = tuple((f - 1) * s for f, s in zip(factor, seen, strict=True))
        maps.append(repeated(pathway(part[(..., *counts)]), factor, first, whole))
    entered = torch.cat(maps, 1)
    join, *others = network.joint.layers
    y = join.before(entered)
    if not any(seen):
        y = nn.functional.pad(y, [r for r in join.rim[::-1] for _ in (0, 1)], mode="reflect")
    y = join.conv(y)
    inputs = [entered, y]
    for layer in others:
        y = layer(y)
        if len(inputs) in network.joint.residual:
            y = add_centre(y, inputs[-2])
        inputs.append(y)
    return y


@pytest.mark.parametrize("size", [(15, 30, 15), (7, 6, 10), (3, 4, 5)])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"edges": "context"},
        {"sampling": "mean"},
        {"edges": "context", "sampling": "mean"},
        {"hidden_kernel": [3, 1, 3]},
        {"factors": [[1, 1, 1], [3, 3, 1]]},
        {"factors": [[1, 1, 1], [3, 1, 2], [5, 2, 1]], "edges": "context"},
        {"factors": [[1, 1, 1]], "hidden": [], "dropout": [0.1], "hidden_residual": []},
        {"hidden": [12, 8], "hidden_residual": [2]},
    ],
    ids=str,
)
def test_evaluation_is_the_plain_network(options: dict[str, Any], size: tuple[int, ...]) -> None:
    """Coarse maps that are never repeated in full, and any size of patch."""
    network = lived_in(build(**(SMALL | options)))
    x = torch.randn(2, 2, *(n + 2 * m for n, m in zip(size, network.margin, strict=True)))
    with torch.no_grad():
        expected, got = plain(network, x), network(x)
    assert got.shape == (2, 5, *size)
    assert float((got - expected).abs().max()) < 1e-5 * float(expected.abs().max())
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        rough = network(x).float()
    assert float((rough - expected).abs().mean()) < 0.03 * float(expected.std())


@pytest.mark.parametrize("edges", ["reflect", "context"])
def test_windows_at_multiples_of_the_factors_agree(edges: str) -> None:
    """Where the joint kernel sees context, or does not reach the border, windows do not matter."""
    network = lived_in(build(**SMALL, edges=edges))
    x = torch.randn(1, 2, *(30 + 2 * m for m in network.margin))
    with torch.no_grad():
        whole = network(x)
        part = network(x[:, :, 15:, 15:, : x.shape[4] - 15])
    inner = (..., slice(16, None), slice(16, None), slice(None, 14))
    same = torch.allclose(whole[inner], part[..., 1:, 1:, :14], atol=1e-4)
    assert same or edges == "reflect"
    far = (..., slice(16, 29), slice(16, 29), slice(1, 14))
    assert torch.allclose(whole[far], part[..., 1:14, 1:14, 1:14], atol=1e-4)


def test_training_and_evaluation_differ_by_norm_and_dropout_alone() -> None:
    network = lived_in(build(**(SMALL | {"dropout": [0.0, 0.0, 0.0]})))
    x = torch.randn(1, 2, *(15 + 2 * m for m in network.margin))
    with torch.no_grad():
        expected = network(x)
        network.train()
        for module in network.modules():
            if isinstance(module, nn.BatchNorm3d):
                module.eval()
        assert torch.allclose(network(x), expected, atol=1e-4)


@pytest.mark.parametrize("options", [{}, {"edges": "context", "sampling": "mean"}], ids=str)
def test_the_contract(options: dict[str, Any]) -> None:
    check_network(build(**(SMALL | options)), 2, 5, sizes=((9, 9, 9), (15, 15, 15)))


def test_it_starts_as_he_et_al_draw_weights() -> None:
    torch.manual_seed(0)
    network = build()
    kernel = network.pathways[1].layers[4].conv.weight.detach()
    assert float(kernel.std()) == pytest.approx((2 / (40 * 27)) ** 0.5, rel=0.02)
    slopes = network.joint.layers[0].activation.weight.detach()
    assert torch.equal(slopes, torch.full((150,), 0.01))


@pytest.mark.parametrize(
    ("options", "where", "said"),
    [
        ({"factors": [[3, 3, 3]]}, "factors", "begin with (1, 1, 1)"),
        ({"factors": [[1, 1, 1], [0, 3, 3]]}, "factors", "at least 1"),
        ({"residual": [1]}, "residual", "layers from 2"),
        ({"residual": [9]}, "residual", "to 8"),
        ({"hidden_residual": [3]}, "hidden_residual", "to 2"),
        ({"hidden_kernel": [5, 5, 5]}, "hidden_kernel", "1 or 3"),
        ({"hidden_kernel": [2, 2, 2]}, "hidden_kernel", "odd"),
        ({"kernels": [[3, 3, 3]]}, "kernels", "one triple per level: 8"),
        ({"coarse_widths": [[4] * 8]}, "coarse_widths", "each of 2 pathways"),
        ({"dropout": [0.5]}, "dropout", "each of 3 layers"),
        ({"dropout": [0.0, 0.5, 1.0]}, "dropout", "below 1"),
        ({"widths": [4, 0]}, "widths", "at least 1"),
    ],
    ids=str,
)
def test_options_that_cannot_be(options: dict[str, Any], where: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(**options)
    assert said in str(caught.value)
    assert caught.value.path[0] == where


def test_an_input_no_larger_than_the_margins_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"margin of \(10, 10, 10\)|margins of \(10, 10, 10\)"):
        build(widths=[3, 3], residual=[], hidden=[12, 12])(torch.zeros(1, 2, 20, 30, 30))


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The published weights as a model of ours."""
    from medseg import api

    path = tmp_path_factory.mktemp("deepmedic") / "glioma.safetensors"
    patterns = ", ".join(f'{name}: "{{id}}_{name}.nii.gz"' for name in FILES)
    report = api.import_model(
        "deepmedic",
        WEIGHTS,
        path,
        overrides=[
            "model.network.dropout=[0, 0.3, 0.3]",
            f"data.channels={{{patterns}}}",
            "data.classes={necrosis: 1, oedema: 2, unused: 3, enhancing: 4}",
            "preprocess.orientation=LPS",
            "preprocess.normalise=[{name: zscore, region: nonzero, trim: [5, 95]}]",
        ],
    )
    assert report.kernels["kept"] == 27 and report.kernels["missing"] == 0
    return path


@needs_data
@pytest.mark.slow
def test_published_weights_give_the_published_labels(imported: Path) -> None:
    """All labels are those of the original, and Dice scores are those it has.

    Only the tiles with some of its lesion are predicted: benchmarks/deepmedic.py does the others.
    """
    predictor = Predictor.load(imported, device="cpu")
    files = tuple(Channel(CASE / f"{name}.nii.gz") for name in FILES.values())
    loaded = predictor.load_case(Case("glioma", files))
    ((prepared,),) = predictor.prepare(loaded).prepared
    expected, truth = (
        np.asanyarray(nib.load(CASE / f"{name}.nii.gz").dataobj)  # type: ignore[attr-defined]
        for name in ("deepmedic_captk_prediction", "seg-BraTS23_1")
    )
    brain = prepared.mask
    assert brain is not None
    tiles = tiles_with(expected > 0, brain)
    found = predictor.run(Ready(loaded, ((replace(prepared, mask=tiles, region=tiles & brain),),)))
    got = predictor.labels.to_values(found.labels)
    assert (got == expected)[brain].mean() >= 0.9999
    groups = {"whole": ((1, 2, 4), (1, 2, 3)), "core": ((1, 4), (1, 3)), "enhancing": ((4,), (3,))}
    dice = {}
    for name, (ours, theirs) in groups.items():
        a, b = np.isin(got, ours), np.isin(truth, theirs)
        dice[name] = 2 * int((a & b).sum()) / int(a.sum() + b.sum())
    assert dice == pytest.approx({"whole": 0.931, "core": 0.954, "enhancing": 0.893}, abs=0.005)


def tiles_with(lesion: Any, brain: Any) -> Any:
    """The tiles of 45 voxels, laid from the brain's first voxel on, that hold some of a lesion."""
    first = [np.flatnonzero(brain.any(tuple({0, 1, 2} - {axis})))[0] for axis in range(3)]
    tiles = np.zeros(brain.shape, bool)
    for place in np.ndindex(4, 5, 4):
        box = tuple(slice(f + 45 * p, f + 45 * p + 45) for f, p in zip(first, place, strict=True))
        tiles[box] = lesion[box].any()
    return tiles
