"""Checkpoints of TensorFlow that are damaged, forged, foreign or incomplete."""

from __future__ import annotations

import importlib.util
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import medseg_plugins  # noqa: F401
from medseg import api
from medseg.errors import ConfigError, DataError
from medseg.networks.tensorflow import read_checkpoint
from medseg.registry import NETWORKS


def _maker() -> ModuleType:
    """How tests/unit/test_tensorflow.py writes checkpoints."""
    path = Path(__file__).parents[1] / "unit" / "test_tensorflow.py"
    spec = importlib.util.spec_from_file_location("tensorflow_maker", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["tensorflow_maker"] = module
    spec.loader.exec_module(module)
    return module


make = _maker()
DATA = np.ones(4, np.float32).tobytes()


def write(folder: Path, entries: dict[bytes, bytes], data: bytes = DATA, **given: Any) -> Path:
    (folder / "m.data-00000-of-00001").write_bytes(data)
    index: Path = folder / "m.index"
    index.write_bytes(make.table({b"": make.HEADER, **entries}, **given))
    return index


def refusal(index: Path) -> str:
    with pytest.raises(DataError) as caught:
        read_checkpoint(index)
    text = str(caught.value)
    assert text.startswith(str(index.with_suffix(""))) and "\n" not in text and len(text) < 300
    return text


def entry(kind: int = 1, shape: tuple[int, ...] = (4,), **changed: Any) -> bytes:
    given = {"offset": 0, "data": DATA, **changed}
    made: bytes = make.entry(kind, shape, **given)
    return made


FORGED: dict[str, tuple[dict[bytes, bytes], str]] = {
    "a shape that is too large": ({b"a": entry(shape=(1 << 20, 1 << 20))}, "cannot have 16 bytes"),
    "a negative axis": ({b"a": entry(shape=((1 << 64) - 1,))}, "cannot have 16 bytes"),
    "an endless axis beside none": ({b"a": entry(shape=(0, 1 << 62), data=b"")}, "cannot have 0"),
    "too many axes": ({b"a": entry(shape=(1,) * 9 + (4,))}, "cannot have 16 bytes"),
    "an offset beyond the end": ({b"a": entry(offset=1 << 62)}, "ends before the end of a"),
    "a tensor past the end": ({b"a": entry(offset=8)}, "ends before the end of a"),
    "tensors upon each other": ({b"a": entry(), b"b": entry()}, "fewer than m.index lists"),
    "another checksum": ({b"a": entry(data=DATA[::-1])}, "checksum of a is wrong"),
    "slices": ({b"a": entry() + make.field(7, b"")}, "slices"),
    "a shape that is a number": ({b"a": make.field(1, 1) + make.field(2, 5)}, "number where"),
    "a type that is text": ({b"a": make.field(1, b"x")}, "text where a number"),
    "a field of no kind": ({b"a": b"\x0b"}, "unknown kind 3"),
    "a field cut short": ({b"a": make.varint(1 << 3 | 2) + b"\x7fxx"}, "cut short"),
    "a number without end": ({b"a": b"\xff" * 11}, "longer than 64 bits"),
    "a name that is no text": ({b"\xff\xfe": entry()}, "not UTF-8"),
    "another byte order": ({b"": make.field(1, 1) + make.field(2, 1)}, "big-endian"),
}


@pytest.mark.parametrize("name", FORGED)
def test_forged(name: str, tmp_path: Path) -> None:
    entries, said = FORGED[name]
    assert said in refusal(write(tmp_path, entries))


def test_compressed(tmp_path: Path) -> None:
    assert "compressed (kind 1)" in refusal(write(tmp_path, {b"a": entry()}, kind=1))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "its end is not that of an index"),
        (b"\0" * 100, "its end is not that of an index"),
        (b"\xff" * 40 + bytes.fromhex("57fb808b247547db"), "64 bits"),
        (b"\0" * 40 + bytes.fromhex("57fb808b247547db"), "checksum of a block"),
        (b"\0\0" + b"\xff" * 9 + b"\x01" + b"\x05" + b"\0" * 27 + bytes.fromhex("57fb808b247547db"),
         "beyond the end"),
    ],
    ids=["empty", "zeros", "wild numbers", "wrong checksum", "far away"],
)  # fmt: skip
def test_not_an_index(content: bytes, said: str, tmp_path: Path) -> None:
    index = tmp_path / "m.index"
    index.write_bytes(content)
    assert said in refusal(index)


def test_no_data_file(tmp_path: Path) -> None:
    index = write(tmp_path, {b"a": entry()})
    (tmp_path / "m.data-00000-of-00001").unlink()
    assert "copy it along" in refusal(index)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: Path = make.write(tmp_path_factory.mktemp("good"), make.ARRAYS)
    return made


def test_every_cut_is_seen(good: Path, tmp_path: Path) -> None:
    data = good.with_name("m.ckpt.data-00000-of-00001")
    for path in (good, data):
        whole = path.read_bytes()
        try:
            for length in range(len(whole) - 5 if path == data else len(whole)):  # 5: the string
                path.write_bytes(whole[:length])
                refusal(good)
        finally:
            path.write_bytes(whole)
    read_checkpoint(good)


def test_every_flipped_bit_is_seen_or_harmless(good: Path) -> None:
    """Checksums guard all but the footer's padding, the metaindex and what is no number."""
    expected = read_checkpoint(good)
    whole = good.read_bytes()
    silent = 0
    tracemalloc.start()
    try:
        for place in range(len(whole)):
            good.write_bytes(
                whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :]
            )
            try:
                got = read_checkpoint(good)
            except DataError:
                continue
            silent += 1
            assert got.keys() == expected.keys()
            assert all(np.array_equal(got[key], expected[key]) for key in expected)
        assert tracemalloc.get_traced_memory()[1] < 1 << 24
    finally:
        tracemalloc.stop()
        good.write_bytes(whole)
    assert silent < 80


def small(**options: Any) -> Any:
    """A network as small as they come, and a checkpoint of DeepMedic's that fits it."""
    spec = {"name": "deepmedic", "widths": [3, 4], "residual": [], "hidden": [6, 7], **options}
    torch.manual_seed(0)
    return NETWORKS.build(spec, in_channels=2, classes=3)


def checkpoint(network: Any) -> dict[str, np.ndarray[Any, Any]]:
    """A network's weights as DeepMedic would have stored them."""
    layers = [layer for path in network.pathways for layer in path.layers] + [*network.joint.layers]
    found: dict[str, list[torch.Tensor]] = {}
    for layer in layers:
        found.setdefault("W", []).append(layer.conv.weight / (1 - layer.dropout.p))
        if layer.raw:
            found.setdefault("b", []).append(layer.bias)
        else:
            rolled = {"mu": layer.norm.running_mean, "var": layer.norm.running_var + layer.norm.eps}
            for name, value in rolled.items():
                slots = value + torch.linspace(-0.1, 0.1, 60)[:, None]
                found.setdefault(f"{name}BnsForRollingAverage", []).append(slots)
            found.setdefault("gBn", []).append(layer.norm.weight)
            found.setdefault("bBn", []).append(layer.norm.bias)
            found.setdefault("aPrelu", []).append(layer.activation.weight)
    found["b"].append(layers[-1].conv.bias)
    return {
        f"net/{kind}{f'_{n}' if n else ''}": item.detach().numpy().copy()
        for kind, items in found.items()
        for n, item in enumerate(items)
    } | {"trainer/velocities_for_mom": np.zeros(3, np.float32)}


Change = Callable[[dict[str, Any]], Any]
CHANGES: dict[str, tuple[Change, str]] = {
    "another program's": (lambda w: [w.pop(k) for k in list(w) if "W" in k], "not a checkpoint of"),
    "a kernel is missing": (lambda w: w.pop("net/W_3"), "lacks W_3"),
    "a norm is missing": (lambda w: w.pop("net/gBn_1"), "lacks gBn_1"),
    "statistics are missing": (lambda w: w.pop("net/varBnsForRollingAverage_2"), "lacks varBn_2"),
    "a bias is missing": (lambda w: w.pop("net/b_1"), "lacks b_1"),
    "no bias": (lambda w: [w.pop(k) for k in list(w) if "/b" in k and "Bn" not in k], "lacks b"),
    "two of a name": (lambda w: w.update({"W_2": w["net/W_2"]}), "two tensors that could be W_2"),
    "2D kernels": (lambda w: w.update({"net/W_4": np.ones((3, 3, 3, 3), np.float32)}), "of 3D"),
    "a chain that breaks": (
        lambda w: w.update({"net/W_1": np.ones((4, 9, 3, 3, 3), np.float32)}),
        "do not follow one another",
    ),
    "a norm of another width": (
        lambda w: w.update({"net/gBn_1": np.ones(99, np.float32)}), "norm.weight would start anew"
    ),
    "not finite": (lambda w: w.update({"net/b": np.full(2, np.nan, np.float32)}), "NaN"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_checkpoints_that_do_not_fit(name: str, tmp_path: Path) -> None:
    change, said = CHANGES[name]
    weights = checkpoint(small())
    change(weights)
    index = make.write(tmp_path, weights)
    with pytest.raises(DataError) as caught:
        api.import_model("deepmedic", index, tmp_path / "model.safetensors")
    assert str(caught.value).startswith(f"{index}: ") and said in str(caught.value)
    assert not (tmp_path / "model.safetensors").exists()


@pytest.mark.parametrize("rates", [[0.0, 0.5, 0.5], [0.2, 0.3, 0.4]], ids=str)
def test_a_checkpoint_that_fits(rates: list[float], tmp_path: Path) -> None:
    """Names, statistics and dropout: the imported network computes what the first did."""
    network = small(dropout=rates).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm3d):
            module.running_mean.normal_()  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    from medseg.networks.importing import import_network

    index = make.write(tmp_path, checkpoint(network))
    found, report = import_network("deepmedic", index, [f"model.network.dropout={rates}"])
    assert report.kernels["kept"] == 9 and "residual=[]" in " ".join(report.notes)
    assert found.channels == ("channel_1", "channel_2") and found.labels.values == (1, 2)
    twin = small(dropout=rates).eval()
    twin.load_state_dict({k.removeprefix("network."): v for k, v in found.weights.items()})
    x = torch.randn(1, 2, *(15 + 2 * m for m in network.margin))
    with torch.no_grad():
        assert torch.allclose(twin(x), network(x), atol=1e-4)


def test_settings_of_an_import(tmp_path: Path) -> None:
    index = make.write(tmp_path, checkpoint(small()))
    model = tmp_path / "model.safetensors"
    with pytest.raises(ConfigError, match=r"'monai' cannot take over.*these can: deepmedic"):
        api.import_model("monai", index, model)
    with pytest.raises(ConfigError, match=r"unknown network 'deepmedik'.*'deepmedic'"):
        api.import_model("deepmedik", index, model)
    with pytest.raises(DataError, match=r"ends in \.safetensors"):
        api.import_model("deepmedic", index, tmp_path / "model.pt")
    with pytest.raises(ConfigError, match=r"leave model\.pretrained out"):
        api.import_model("deepmedic", index, model, overrides=["model.pretrained.path=x.npz"])
    with pytest.raises(ConfigError, match="unknown option 'depth'"):
        api.import_model("deepmedic", index, model, overrides=["model.network.depth=3"])
    with pytest.raises(DataError, match="has 9 kernels"):
        api.import_model(
            "deepmedic", index, model,
            overrides=["model.network.hidden=[6]", "model.network.dropout=[0, 0]",
                       "model.network.hidden_residual=[]"],
        )  # fmt: skip
    assert not model.exists()


def test_the_command(cli: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    index = make.write(tmp_path, checkpoint(small()))
    model = tmp_path / "model.safetensors"
    code, said = cli("import", "deepmedic", index, "-o", model, "data.classes={a: 3, b: 7}")
    assert code == 0 and "9 of 9 kernels" in said and model.is_file()
    code, said = cli("import", "deepmedic", tmp_path / "none.index", "-o", model)
    assert code == 2 and "no such file" in said
