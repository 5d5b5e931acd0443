"""From a file into a network: matching, head swap, what is said about each weight."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file
from torch import Tensor, nn

from medseg import plugins
from medseg.config.schema import Model
from medseg.errors import ConfigError, DataError
from medseg.networks import checkpoint
from medseg.networks.assembly import EncoderDecoder, Network, WholeNetwork, build_network
from medseg.networks.first_layer import FirstLayer, first_layers
from medseg.networks.load_report import LoadReport, Row
from medseg.networks.matching import best_match
from medseg.networks.pretrained import load_pretrained, other_classes

VGG = {"name": "vgg11", "width": 0.0625}  # 8 convolutions with biases and no norm


@pytest.fixture(autouse=True, scope="module")
def loaded() -> None:
    plugins.load(())


def model(encoder: dict[str, Any] = VGG, *, supervision: int = 0, **more: Any) -> Model:
    spec = {"encoder": encoder, "decoder": {"name": "unet"}, "deep_supervision": supervision}
    return Model.model_validate({**spec, **more})


def build(config: Model, channels: int = 1, classes: int = 2, seed: int = 0) -> Network:
    return build_network(config, channels, classes, seed)


def load(
    path: Path, encoder: dict[str, Any] = VGG, names: tuple[str, ...] = ("ct",), **pretrained: Any
) -> tuple[EncoderDecoder, LoadReport]:
    """An encoder's weights from a file."""
    config = model({**encoder, "pretrained": {"path": str(path), **pretrained}})
    network = build(config, len(names))
    report = load_pretrained(network, config, names)
    assert isinstance(network, EncoderDecoder)
    assert report is not None
    return network, report


def load_all(path: Path, network: Network, names: tuple[str, ...] = ("ct",)) -> LoadReport:
    """A whole network's weights from a file."""
    report = load_pretrained(network, model(pretrained={"path": str(path)}), names)
    assert report is not None
    return report


def encoder_of(encoder: dict[str, Any], channels: int = 1, seed: int = 1) -> nn.Module:
    network = build(model(encoder), channels, seed=seed)
    assert isinstance(network, EncoderDecoder)
    return network.encoder


def equal(first: nn.Module, second: nn.Module) -> bool:
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def renamed(module: nn.Module, layout: str, prefix: str = "") -> dict[str, Tensor]:
    """A module's state under foreign names."""
    names = module.layouts()[layout]
    return {
        f"{prefix}{names[key.rpartition('.')[0]]}.{key.rpartition('.')[2]}": tensor
        for key, tensor in module.state_dict().items()
    }


def rows(report: LoadReport, status: str) -> dict[str, str]:
    return {row.name or row.source: row.reason for row in report.rows if row.status == status}


def test_nothing_to_load() -> None:
    config = model()
    assert load_pretrained(build(config), config, ("ct",)) is None


ROUND_TRIPS = {
    "vgg16": {"name": "vgg16", "width": 0.0625},
    "vgg16_bn": {"name": "vgg16_bn", "width": 0.0625},
    "googlenet": {"name": "googlenet_torchvision", "width": 0.125},
    "resnet18": {"name": "resnet18", "width": 0.125},
    "resnet50": {"name": "resnet50", "width": 0.125},
    "medicalnet34": {"name": "medicalnet34", "width": 0.125},
}


def round_trip(path: Path, spec: dict[str, Any], layout: str, prefix: str) -> None:
    source = encoder_of(spec)
    torch.save({"state_dict": renamed(source, layout, prefix)}, path)
    network, report = load(path, spec)
    assert (report.layout, report.prefix) == (layout, prefix)
    assert equal(network.encoder, source)
    assert {row.status for row in report.rows} == {"kept"}
    kernels = sum(isinstance(m, nn.Conv3d) for m in source.modules())
    assert report.summary == f"{kernels} of {kernels} kernels taken: {kernels} kept"


@pytest.mark.parametrize("prefix", ["", "module.", "module.model.encoder."])
@pytest.mark.parametrize("family", ROUND_TRIPS)
def test_names_of_torchvision_behind_any_prefix(family: str, prefix: str, tmp_path: Path) -> None:
    round_trip(tmp_path / "w.pth", ROUND_TRIPS[family], "torchvision", prefix)


def test_names_of_caffe(tmp_path: Path) -> None:
    round_trip(tmp_path / "w.pth", {"name": "googlenet", "width": 0.125}, "caffe", "")


class Basic3D(nn.Module):
    """MedicalNet's basic block (Chen et al. 2019, arXiv:1904.00625), shortcut A."""

    def __init__(self, width_in: int, width: int, stride: int, dilation: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(width_in, width, 3, stride, dilation, dilation, bias=False)
        self.bn1 = nn.BatchNorm3d(width)
        self.conv2 = nn.Conv3d(width, width, 3, 1, dilation, dilation, bias=False)
        self.bn2 = nn.BatchNorm3d(width)
        self.stride, self.width = stride, width

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        x = nn.functional.avg_pool3d(x, 1, self.stride)
        zeros = x.new_zeros(x.shape[0], self.width - x.shape[1], *x.shape[2:])
        return (y + torch.cat([x, zeros], 1)).relu()


class MedicalNet18(nn.Module):
    """An eighth of its widths; the last two stages are dilated by 2 and 4 instead of strided."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(1, 8, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm3d(8)
        self.maxpool = nn.MaxPool3d(3, 2, 1)
        width_in = 8
        for n, (stride, dilation) in enumerate([(1, 1), (2, 1), (1, 2), (1, 4)]):
            width = 8 * 2**n
            first = Basic3D(width_in, width, stride, dilation)
            setattr(self, f"layer{n + 1}", nn.Sequential(first, Basic3D(width, width, 1, dilation)))
            width_in = width
        self.conv_seg = nn.Sequential(nn.ConvTranspose3d(64, 4, 2, 2), nn.Conv3d(4, 2, 1))

    def forward(self, x: Tensor) -> list[Tensor]:
        levels = [self.bn1(self.conv1(x)).relu()]
        x = self.maxpool(levels[0])
        for n in range(1, 5):
            x = getattr(self, f"layer{n}")(x)
            levels.append(x)
        return levels


@pytest.mark.parametrize("channels", [1, 2])
def test_medicalnet_gives_its_features(channels: int, tmp_path: Path) -> None:
    """Its file: `state_dict`, `module.`, one channel, a segmentation head. 2 channels share it."""
    torch.manual_seed(0)
    theirs = MedicalNet18().eval()
    for norm in (m for m in theirs.modules() if isinstance(m, nn.BatchNorm3d)):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        norm.running_mean.normal_(0, 0.1)
        norm.running_var.uniform_(0.5, 1.5)
    state = {f"module.{name}": tensor for name, tensor in theirs.state_dict().items()}
    torch.save({"epoch": 9, "state_dict": state, "optimizer": {}}, tmp_path / "resnet_18.pth")
    names = ("flair", "t1")[:channels]
    network, report = load(
        tmp_path / "resnet_18.pth", {"name": "medicalnet18", "width": 0.125}, names
    )
    assert (report.prefix, report.kernels["missing"]) == ("module.", 0)
    assert sum(report.kernels.values()) == 17
    head = "no such layer here (levels: 5)"
    assert {n: r for n, r in rows(report, "left out").items() if n.endswith("weight")} == {
        "module.conv_seg.0.weight": head,
        "module.conv_seg.1.weight": head,
    }
    x = torch.rand(1, 1, 32, 40, 32)
    with torch.no_grad():
        levels = network.eval().encoder(x.expand(-1, channels, -1, -1, -1))
        for level, wanted in zip(levels, theirs(x), strict=True):
            torch.testing.assert_close(level, wanted, rtol=1e-4, atol=1e-5)


def test_timm_s_vgg_with_its_own_classifier(tmp_path: Path) -> None:
    source = encoder_of(VGG, 3)
    state = renamed(source, "torchvision") | {
        "pre_logits.fc1.weight": torch.ones(4, 4, 7, 7),
        "pre_logits.fc1.bias": torch.ones(4),
        "head.fc.weight": torch.ones(10, 4),
        "head.fc.bias": torch.ones(10),
    }
    save_file(state, tmp_path / "vgg11.tv_in1k.safetensors")
    network, report = load(tmp_path / "vgg11.tv_in1k.safetensors", VGG, ("a", "b", "c"))
    assert equal(network.encoder, source)
    none, classifier = "no such layer here (levels: 5)", "a classifier is not part of the encoder"
    assert rows(report, "left out") == {
        "pre_logits.fc1.weight": none,
        "pre_logits.fc1.bias": none,
        "head.fc.weight": classifier,
        "head.fc.bias": classifier,
    }
    assert report.notes == ("input channels are the file's as they are: a = 0, b = 1, c = 2",)


def test_norms_that_the_file_lacks_say_what_they_start_from(tmp_path: Path) -> None:
    """A network without norms gives its kernels to one with them; biases have no place there."""
    torch.save(renamed(encoder_of(VGG), "torchvision"), tmp_path / "w.pt")
    network, report = load(tmp_path / "w.pt", {**VGG, "name": "vgg", "config": "A"})
    assert report.summary == "8 of 8 kernels taken: 8 kept"
    assert set(rows(report, "left out").values()) == {"the layer has no bias here"}
    lacking = rows(report, "missing")
    assert len(lacking) == 16
    assert lacking["stages.0.0.1.weight"] == "the file has no such layer: starts from 1"
    assert lacking["stages.0.0.1.bias"] == "the file has no such layer: starts from 0"
    assert not network.encoder.get_parameter("stages.0.0.1.bias").any()


def test_statistics_that_an_instance_norm_does_not_keep(tmp_path: Path) -> None:
    spec = {"name": "resnet18", "width": 0.125}
    source = encoder_of(spec)
    torch.save(renamed(source, "torchvision"), tmp_path / "w.pt")
    network, report = load(tmp_path / "w.pt", {**spec, "norm": "instance"})
    reasons = {n.rpartition(".")[2]: r for n, r in rows(report, "left out").items()}
    assert reasons == {k: f"the layer has no {k} here" for k in ("running_mean", "running_var")}
    assert not rows(report, "missing")
    mine, theirs = network.encoder.get_parameter, source.get_parameter
    assert torch.equal(mine("stem.1.weight"), theirs("stem.1.weight"))


def test_a_bias_that_the_file_s_layer_lacks_is_zero(tmp_path: Path) -> None:
    spec = {**VGG, "name": "vgg11_bn"}
    assert encoder_of(spec).get_parameter("stages.1.1.0.bias").any()
    state = renamed(encoder_of(spec), "torchvision")
    del state["features.4.bias"]
    torch.save(state, tmp_path / "w.pt")
    network, report = load(tmp_path / "w.pt", spec)
    assert rows(report, "missing") == {
        "stages.1.1.0.bias": "the file's layer has no bias: set to 0"
    }
    assert not network.encoder.get_parameter("stages.1.1.0.bias").any()


def test_fewer_levels_than_the_file(tmp_path: Path) -> None:
    torch.save(renamed(encoder_of(VGG), "torchvision"), tmp_path / "w.pt")
    _, report = load(tmp_path / "w.pt", {**VGG, "levels": 3})
    assert report.summary == "4 of 4 kernels taken: 4 kept"
    assert set(rows(report, "left out").values()) == {"no such layer here (levels: 3)"}


def test_half_precision_is_widened_before_it_is_divided(tmp_path: Path) -> None:
    flat = {
        name: tensor.mean(-1).bfloat16() if tensor.ndim == 5 else tensor.bfloat16()
        for name, tensor in renamed(encoder_of(VGG), "torchvision").items()
    }
    torch.save(flat, tmp_path / "w.pt")
    network, report = load(tmp_path / "w.pt")
    assert report.notes == ("cast to float32 from bfloat16",)
    kernel = network.encoder.get_parameter("stages.1.1.0.weight")
    assert torch.equal(kernel[..., 0], flat["features.3.weight"].float() / 3)


def write(path: Path, network: nn.Module) -> Path:
    save_file(network.state_dict(), path)
    return path


def test_a_model_of_ours_gives_its_encoder(model: Callable[..., Path]) -> None:
    """The file of a run, as training writes it."""
    path = model()
    stored = checkpoint.load(path)
    spec = stored.config.model.encoder
    assert spec is not None
    network, report = load(path, spec.spec(), ("flair", "t1c"))
    assert (report.layout, report.prefix) == ("medseg", "encoder.")
    for name, tensor in network.encoder.state_dict().items():
        assert torch.equal(tensor, stored.weights[f"encoder.{name}"])
    left = rows(report, "left out")
    assert set(left.values()) == {"not part of the encoder"}
    assert {name.partition(".")[0] for name in left} == {"decoder", "heads"}


def test_a_whole_network_with_other_heads(tmp_path: Path) -> None:
    """Another class count, and a deeper supervision than the file's."""
    source = build(model(supervision=1), classes=4, seed=1)
    path = write(tmp_path / "model.safetensors", source)
    network = build(model(supervision=2))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    report = load_all(path, network)
    assert isinstance(network, EncoderDecoder) and isinstance(source, EncoderDecoder)
    assert equal(network.encoder, source.encoder) and equal(network.decoder, source.decoder)
    for name in ("heads.0.weight", "heads.0.bias", "heads.1.bias", "heads.2.weight"):
        assert torch.equal(network.state_dict()[name], before[name])
    swapped = rows(report, "left out")
    assert {*swapped} == {f"heads.{n}.{kind}" for n in (0, 1) for kind in ("weight", "bias")}
    assert set(swapped.values()) == {"of another class count: starts from random"}
    assert set(rows(report, "missing").values()) == {
        "the file has no such head: starts from random"
    }


def test_as_many_classes_keep_their_heads(tmp_path: Path) -> None:
    source = build(model(), classes=2, seed=1)
    network = build(model())
    report = load_all(write(tmp_path / "m.safetensors", source), network)
    assert equal(network, source)
    assert not rows(report, "left out") and not rows(report, "missing")


class Tiny(nn.Module):
    """A whole network whose head is a transposed and a plain convolution."""

    def __init__(self, classes: int, width: int = 6) -> None:
        super().__init__()
        self.first = nn.Conv3d(1, width, 3, padding=1)
        self.up = nn.ConvTranspose3d(width, classes, 1)
        self.last = nn.Conv3d(classes, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.up(self.first(x)))


def test_a_whole_network_s_heads_are_told_by_shape(tmp_path: Path) -> None:
    source = WholeNetwork(Tiny(5), 1, 5)
    network = WholeNetwork(Tiny(2), 1, 2)
    report = load_all(write(tmp_path / "m.safetensors", source), network)
    assert report.prefix == "network."
    assert torch.equal(network.network.first.weight, source.network.first.weight)
    names = {"up.weight", "up.bias", "last.weight", "last.bias"}
    assert {*rows(report, "left out")} == names
    wider = WholeNetwork(Tiny(2, width=8), 1, 2)
    with pytest.raises(DataError, match=r"m\.safetensors.*first\.weight is \(6, .*\(8, "):
        load_all(tmp_path / "m.safetensors", wider)


@pytest.mark.parametrize(
    "ours, theirs, there",
    [
        ((2, 8, 1, 1, 1), (5, 8, 1, 1, 1), 5),
        ((8, 2, 1, 1, 1), (8, 5, 1, 1, 1), 5),
        ((2, 2, 1, 1, 1), (5, 5, 1, 1, 1), 5),
        ((2,), (5,), 5),
        ((2, 2, 1, 1, 1), (5, 4, 1, 1, 1), None),
        ((8, 8, 3, 3, 3), (16, 8, 3, 3, 3), None),
        ((2, 8, 3, 3, 3), (5, 8, 3, 3), None),
        ((2, 8, 1, 1, 1), (2, 8, 1, 1, 1), None),
    ],
)
def test_what_is_a_head(ours: tuple[int, ...], theirs: tuple[int, ...], there: int | None) -> None:
    assert other_classes(torch.Size(ours), torch.Size(theirs), 2) == there


def test_the_best_of_several_matches() -> None:
    """An average's copy has all names too, with a longer prefix; half of the names lose."""
    encoder = encoder_of(VGG)
    names = {
        *renamed(encoder, "torchvision", "model."),
        *renamed(encoder, "torchvision", "average.net."),
    }
    assert best_match(encoder, names).prefix == "model."
    half = [name for n, name in enumerate(sorted(names)) if not name.startswith("model") or n % 2]
    assert best_match(encoder, half).prefix == "average.net."
    assert best_match(encoder, ["other.weight"]).layout == "medseg"


def test_which_layers_see_the_input() -> None:
    def of(spec: dict[str, Any]) -> dict[str, FirstLayer]:
        encoder = encoder_of(spec, 2)
        return first_layers(encoder, 2, (32, 32, 32))

    assert of(VGG) == {"stages.0.0.0.weight": FirstLayer("stages.0.0.0", None)}
    narrow = {"name": "resnet18", "width": 0.125}
    assert of(narrow) == {"stem.0.weight": FirstLayer("stem.0", "stem.1")}
    assert of({"name": "resnet"}) == {"stem.weight": FirstLayer("stem", None)}
    assert first_layers(nn.Linear(3, 3), 2, (1, 1, 1)) == {}
    assert first_layers(Forked(), 2, (1, 1, 1)) == {
        "left.weight": FirstLayer("left", None),  # two modules see its output
        "right.weight": FirstLayer("right", "norm"),
    }


class Forked(nn.Module):
    """Two convolutions of the input; the output of one goes two ways."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv3d(2, 4, 1), nn.Conv3d(2, 4, 1)
        self.norm, self.other, self.way = (nn.InstanceNorm3d(4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        left = self.left(x)
        return self.norm(self.right(x)) + self.other(left) + self.way(left)


@pytest.mark.parametrize("norm, takes", [("batch", "mean"), ("instance", ""), ("group", None)])
def test_what_takes_the_constant_of_a_preprocessing(
    norm: str, takes: str | None, tmp_path: Path
) -> None:
    spec = {"name": "resnet18", "width": 0.25, "norm": norm}
    torch.save(renamed(encoder_of({**spec, "norm": "batch"}, 3), "torchvision"), tmp_path / "w.pt")
    if takes is None:
        with pytest.raises(ConfigError, match="norm to none, batch or instance") as caught:
            load(tmp_path / "w.pt", spec, preprocessing="caffe")
        assert caught.value.path == ("encoder", "pretrained", "preprocessing")
        return
    _, report = load(tmp_path / "w.pt", spec, preprocessing="caffe")
    assert ("stem.1.running_mean" in rows(report, "adapted")) is (takes == "mean")
    assert any("instance norm" in note and "removes" in note for note in report.notes) is not takes


def test_the_report_is_stored_and_fits_80_columns(tmp_path: Path) -> None:
    torch.save(renamed(encoder_of(VGG, 3), "torchvision", "module."), tmp_path / "vgg [11].pt")
    _, report = load(
        tmp_path / "vgg [11].pt", {**VGG, "name": "vgg", "config": "A"}, preprocessing="caffe"
    )
    stored = json.loads(json.dumps(report.as_json()))
    assert stored["summary"] == "8 of 8 kernels taken: 7 kept, 1 adapted"
    assert stored["kernels"] == {
        "kept": 7, "inflated": 0, "adapted": 1, "left out": 0, "missing": 0
    }  # fmt: skip
    assert stored["sha256"] == report.sha256
    assert len(stored["rows"]) == len(report.rows) == 24 + 8
    console = Console(width=80, soft_wrap=True, record=True, file=io.StringIO())
    console.print(report.table())
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 80
    text = " ".join(" ".join(lines).split())
    for words in (
        "vgg [11].pt", report.sha256[:16], "names of torchvision, behind 'module.'",
        report.summary, "caffe preprocessing folded in", "and 6 more",
    ):  # fmt: skip
        assert words in text


def test_rows_are_counted_by_kernel() -> None:
    kernels = [Row("kept", "a", "a", kernel=True), Row("missing", "b", "", "", kernel=True)]
    report = LoadReport("f", "0" * 64, "encoder", "x", "", (*kernels, Row("missing", "c")))
    assert report.summary == "1 of 2 kernels taken: 1 kept, 1 missing"
