"""Reading weights: each kind of file gives the same tensors, and entries are found."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from medseg.config.schema import Pretrained
from medseg.errors import ConfigError, DataError
from medseg.networks.weights_files import read

WEIGHTS = {"a.weight": torch.arange(24.0).reshape(2, 3, 2, 2), "a.bias": torch.tensor([0.5, -1.0])}


def write_npz(path: Path) -> None:
    np.savez(path, **{name: tensor.numpy() for name, tensor in WEIGHTS.items()})


def write_onnx(path: Path) -> None:
    initialisers = [onnx.numpy_helper.from_array(t.numpy(), name) for name, t in WEIGHTS.items()]
    graph = onnx.helper.make_graph([], "g", [], [], initialisers)
    onnx.save(onnx.helper.make_model(graph), path)


WRITERS: dict[str, Callable[[Path], None]] = {
    "w.safetensors": partial(save_file, WEIGHTS),
    "w.pt": partial(torch.save, WEIGHTS),
    "w.pth": partial(torch.save, WEIGHTS, _use_new_zipfile_serialization=False),
    "w.pth.tar": partial(torch.save, WEIGHTS),
    "w.npz": write_npz,
    "w.onnx": write_onnx,
}


def settings(path: Path, **more: object) -> Pretrained:
    return Pretrained.model_validate({"path": str(path), **more})


def check(tensors: object) -> None:
    assert isinstance(tensors, dict)
    assert tensors.keys() == WEIGHTS.keys()
    for name, tensor in WEIGHTS.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)


@pytest.mark.parametrize("name", WRITERS)
def test_each_kind_gives_the_same(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    WRITERS[name](path)
    weights = read(settings(path))
    check(weights.tensors)
    assert weights.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    check(read(settings(path, sha256=weights.sha256)).tensors)


def test_bfloat16_in_onnx(tmp_path: Path) -> None:
    """NumPy has no such type: it is widened, which changes nothing."""
    exact = torch.tensor([[1.5, -0.0078125]])
    weight = onnx.helper.make_tensor("w", onnx.TensorProto.BFLOAT16, (1, 2), exact.tolist()[0])
    graph = onnx.helper.make_graph([], "g", [], [], [weight])
    onnx.save(onnx.helper.make_model(graph), tmp_path / "w.onnx")
    assert torch.equal(read(settings(tmp_path / "w.onnx")).tensors["w"], exact)


def test_strings_and_other_byte_orders_in_npz(tmp_path: Path) -> None:
    big = np.arange(4.0, dtype=">f4").reshape(2, 2)
    np.savez(tmp_path / "w.npz", w=big, about=np.array("by someone"))
    tensors = read(settings(tmp_path / "w.npz")).tensors
    assert {name: tensor.tolist() for name, tensor in tensors.items()} == {"w": big.tolist()}


def test_a_header_that_begins_like_a_page(tmp_path: Path) -> None:
    """A .safetensors begins with its header's length, here 15392: the bytes of " <"."""
    path = tmp_path / "w.safetensors"
    save_file(WEIGHTS, path, metadata={"x": "x"})
    header = int.from_bytes(path.read_bytes()[:8], "little")
    save_file(WEIGHTS, path, metadata={"x": "x" * (0x3C20 - header + 1)})
    assert path.read_bytes()[:2] == b" <"
    check(read(settings(path)).tensors)


OPTIMISER = {"state": {0: {"exp_avg": torch.ones(2, 2)}}, "param_groups": [{"lr": 0.1}]}


@pytest.mark.parametrize(
    "content",
    [
        {"state_dict": WEIGHTS, "epoch": 3, "optimizer": OPTIMISER},
        {"model": {"model_state_dict": WEIGHTS, "loss": torch.tensor(0.5)}},
        {"net": WEIGHTS, "scale": torch.tensor([1.0, 2.0])},
        WEIGHTS | {"epoch": 7},
    ],
    ids=["optimiser", "nested", "net", "flat"],
)
def test_the_only_entry_with_weights_is_found(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pth")
    check(read(settings(tmp_path / "w.pth")).tensors)


@pytest.mark.parametrize("key", ["model", "ema.model"])
def test_a_key_chooses(key: str, tmp_path: Path) -> None:
    other = {"model": {"b": torch.zeros(2, 2)}, "ema.model": {"b": torch.zeros(2, 2)}}
    torch.save(other | {key: WEIGHTS}, tmp_path / "w.pth")
    check(read(settings(tmp_path / "w.pth", key=key)).tensors)


def test_several_entries_are_listed(tmp_path: Path) -> None:
    torch.save({"model": WEIGHTS, "ema": {"model": WEIGHTS}}, tmp_path / "w.pth")
    with pytest.raises(DataError, match=r"w\.pth.*pretrained\.key, out of model, ema\.model"):
        read(settings(tmp_path / "w.pth"))
    with pytest.raises(DataError, match=r"no weights under 'net'.*model, ema\.model"):
        read(settings(tmp_path / "w.pth", key="net"))


def test_a_mapping_that_holds_itself_ends(tmp_path: Path) -> None:
    content: dict[str, object] = {"model": WEIGHTS}
    content["self"] = content
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(DataError, match=r"pretrained\.key"):
        read(settings(tmp_path / "w.pth"))


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *words: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server of the folder tmp_path/there; downloads are kept in tmp_path/cache."""
    (tmp_path / "there").mkdir()
    monkeypatch.setattr("pooch.os_cache", lambda name: tmp_path / "cache" / name)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    handler = partial(Quiet, directory=str(tmp_path / "there"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()
        thread.join()


def by_url(url: str, sha256: str) -> Pretrained:
    return Pretrained.model_validate({"url": url, "sha256": sha256})


def put(folder: Path, tensors: dict[str, Tensor]) -> str:
    torch.save(tensors, folder / "w.pth")
    return hashlib.sha256((folder / "w.pth").read_bytes()).hexdigest()


def test_a_url_is_fetched_once(server: str, tmp_path: Path) -> None:
    wanted = by_url(f"{server}/w.pth?download=1", put(tmp_path / "there", WEIGHTS))
    first = read(wanted)
    check(first.tensors)
    assert first.path.is_relative_to(tmp_path / "cache" / "medseg")
    (tmp_path / "there" / "w.pth").unlink()
    check(read(wanted).tensors)


def test_a_url_gives_what_was_hashed_or_nothing(server: str, tmp_path: Path) -> None:
    put(tmp_path / "there", WEIGHTS)
    with pytest.raises(DataError, match=rf"{server}/w\.pth: cannot be fetched.*0000.*sha256"):
        read(by_url(f"{server}/w.pth", "0" * 64))
    assert not [*(tmp_path / "cache").rglob("*.pth")]


def test_network_errors_name_the_url(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=rf"{server}/none\.pth: cannot be fetched.*404"):
        read(by_url(f"{server}/none.pth", "0" * 64))
    with pytest.raises(DataError, match=r"http://127\.0\.0\.1:1/w\.pth: cannot be fetched"):
        read(by_url("http://127.0.0.1:1/w.pth", "0" * 64))


@pytest.mark.parametrize(
    "module, extra, given",
    [
        ("pooch", "hub", {"url": "https://example.org/w.pth", "sha256": "0" * 64}),
        ("onnx", "onnx", {"path": "w.onnx"}),
    ],
)
def test_an_extra_that_is_lacking_is_named(
    module: str,
    extra: str,
    given: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_onnx(tmp_path / "w.onnx")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(ConfigError, match=rf'pip install "medseg\[{extra}\]"') as caught:
        read(Pretrained.model_validate(given))
    assert caught.value.path == (next(iter(given)),)
