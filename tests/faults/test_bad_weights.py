"""Files of weights that cannot be used: each a clean error, no code run, the network untouched."""

from __future__ import annotations

import io
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from medseg import plugins
from medseg.config.schema import Model
from medseg.errors import ConfigError, DataError
from medseg.networks.assembly import EncoderDecoder, Network, build_network
from medseg.networks.load_report import LoadReport
from medseg.networks.pretrained import load_pretrained

ENCODER = {"name": "vgg11", "width": 0.0625}
KERNELS = 8


@pytest.fixture(autouse=True, scope="module")
def loaded() -> None:
    plugins.load(())


def config(path: Path, encoder: dict[str, Any] = ENCODER, **given: Any) -> Model:
    spec = {**encoder, "pretrained": {"path": str(path), **given}}
    return Model.model_validate(
        {"encoder": spec, "decoder": {"name": "unet"}, "deep_supervision": 0}
    )


def built(model: Model, channels: int = 1) -> EncoderDecoder:
    network: Network = build_network(model, channels, 2, 0)
    assert isinstance(network, EncoderDecoder)
    return network


def good(encoder: dict[str, Any] = ENCODER) -> dict[str, Tensor]:
    """The encoder's own weights by torchvision's names."""
    module = built(config(Path("w.pth"), encoder)).encoder
    names = module.layouts()["torchvision"]
    return {
        f"{names[key.rpartition('.')[0]]}.{key.rpartition('.')[2]}": tensor
        for key, tensor in module.state_dict().items()
    }


def refusal(path: Path, channels: int = 1, **given: Any) -> str:
    """The error's text: it names the file, is short, and the network is as it was."""
    model = config(path, **given)
    network = built(model, channels)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(DataError) as caught:
        load_pretrained(network, model, [f"c{n}" for n in range(channels)])
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert len(text) < 700 and "\n" not in text and "weights_only" not in text
    assert all(torch.equal(before[name], now) for name, now in network.state_dict().items())
    return text


def accepted(path: Path, **given: Any) -> LoadReport:
    model = config(path, **given)
    report = load_pretrained(built(model), model, ["c0"])
    assert report is not None
    return report


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.trace),)


def dump(content: object, path: Path) -> None:
    path.write_bytes(pickle.dumps(content, protocol=2))


SAVERS: dict[str, Callable[[Any, Path], None]] = {
    "zip": torch.save,
    "legacy": partial(torch.save, _use_new_zipfile_serialization=False),
    "pickle": dump,
}


@pytest.mark.parametrize("ending", [".pt", ".pth"])
@pytest.mark.parametrize("saver", SAVERS)
def test_code_is_never_run(saver: str, ending: str, tmp_path: Path) -> None:
    trace, path = tmp_path / "ran", (tmp_path / "evil").with_suffix(ending)
    SAVERS[saver]({"extra": Payload(trace), **good()}, path)
    text = refusal(path)
    assert "mkdir" in text and "code from a file is never run" in text
    assert "save `model.state_dict()`" in text
    assert not trace.exists()
    with pytest.raises(DataError):  # nor where only an entry is asked for
        accepted(path, key="state_dict", allow_partial=True)
    assert not trace.exists()
    pickle.loads(pickle.dumps(Payload(trace)))
    assert trace.exists(), "the payload itself works"


def test_code_in_npz_is_never_run(tmp_path: Path) -> None:
    trace, path = tmp_path / "ran", tmp_path / "evil.npz"
    arrays = {name: tensor.numpy() for name, tensor in good().items()}
    np.savez(path, extra=np.array([Payload(trace)], dtype=object), **arrays)
    assert "allow_pickle=False" in refusal(path)
    dump(Payload(trace), tmp_path / "plain.npz")
    refusal(tmp_path / "plain.npz")
    assert not trace.exists()


def test_a_whole_pickled_module_is_refused(tmp_path: Path) -> None:
    torch.save(nn.Conv3d(1, 1, 1), tmp_path / "m.pth")
    assert "asks for torch.nn.modules.conv.Conv3d" in refusal(tmp_path / "m.pth")


def write_npz(weights: dict[str, Tensor], path: Path) -> None:
    np.savez(path, **{name: tensor.numpy() for name, tensor in weights.items()})


def write_onnx(weights: dict[str, Tensor], path: Path) -> None:
    initialisers = [onnx.numpy_helper.from_array(t.numpy(), name) for name, t in weights.items()]
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [], initialisers)), path)


WRITERS: dict[str, Callable[[Any, Path], None]] = {
    "w.pth": torch.save,
    "legacy.pth": partial(torch.save, _use_new_zipfile_serialization=False),
    "w.safetensors": save_file,
    "w.npz": write_npz,
    "w.onnx": write_onnx,
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_truncated_file(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    WRITERS[name](good(), path)
    assert accepted(path).summary == f"{KERNELS} of {KERNELS} kernels taken: {KERNELS} kept"
    whole = path.read_bytes()
    for length in (1, 3, 8, 100, 1000, len(whole) // 3, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        refusal(path)
    path.write_bytes(b"")
    assert "is empty" in refusal(path)


@pytest.mark.parametrize("name", ["w.pth", "w.npz"])
def test_a_flipped_bit(name: str, tmp_path: Path) -> None:
    """Both are zip archives with checksums; torch itself does not look at them."""
    path = tmp_path / name
    WRITERS[name](good(), path)
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 16
    path.write_bytes(damaged)
    assert "damaged" in refusal(path)


def test_other_things_under_such_a_name(tmp_path: Path) -> None:
    (tmp_path / "folder.pth").mkdir()
    assert "is a folder" in refusal(tmp_path / "folder.pth")
    assert "no such file" in refusal(tmp_path / "none.pth")
    page, pointer, text = (tmp_path / f"{name}.pth" for name in ("page", "pointer", "text"))
    page.write_text("\n <!DOCTYPE html><html><body>Sign in</body></html>")
    assert "web page" in refusal(page)
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert "git lfs pull" in refusal(pointer)
    text.write_text("these are not weights " * 100)
    assert "damaged, or not a .pth file" in refusal(text)
    with tarfile.open(tmp_path / "old.pth", "w") as archive:
        archive.addfile(tarfile.TarInfo("storages"), io.BytesIO())
    assert "tar archive" in refusal(tmp_path / "old.pth")
    with zipfile.ZipFile(tmp_path / "other.pth", "w") as archive:
        archive.writestr("readme.txt", "hello")
    refusal(tmp_path / "other.pth")
    np.save(tmp_path / "a", np.ones((2, 2)))
    (tmp_path / "a.npy").rename(tmp_path / "array.npz")
    refusal(tmp_path / "array.npz")


def test_a_torchscript_archive(tmp_path: Path) -> None:
    torch.jit.trace(nn.Conv3d(1, 1, 1), torch.zeros(1, 1, 2, 2, 2)).save(tmp_path / "s.pt")
    assert "TorchScript" in refusal(tmp_path / "s.pt")


@pytest.mark.parametrize("name", ["w.h5", "w.pb", "w.ckpt", "weights"])
def test_an_unknown_kind_names_the_known(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"\0" * 100)
    assert ".safetensors, .pt, .pth, .npz, .onnx" in refusal(tmp_path / name)


@pytest.mark.parametrize("content", [[torch.ones(2, 2)], {}, {"epoch": 3}, torch.ones(2, 2), None])
def test_no_weights_by_name(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pth")
    assert "weights by name: save `model.state_dict()`" in refusal(tmp_path / "w.pth")


def test_a_wrong_hash_comes_before_reading(tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(b"anything")
    text = refusal(tmp_path / "w.pth", sha256="0" * 64)
    assert (
        "0" * 64 in text
        and "ee0874170b7f6f32b8c2ac9573c428d35b575270a66b757c2c0185d2bd09718d" in text
    )


def test_onnx_with_its_data_elsewhere(tmp_path: Path) -> None:
    """The place is the file's to name, so it could be any file of the reader's."""
    (tmp_path / "secret").write_bytes(bytes(4 * 4 * 27))
    weight = onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT, dims=[4, 1, 3, 3, 3])
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="secret")
    graph = onnx.helper.make_graph([], "g", [], [], [weight])
    onnx.save(onnx.helper.make_model(graph), tmp_path / "w.onnx")
    assert "keeps w in another file" in refusal(tmp_path / "w.onnx")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_none(value: float, tmp_path: Path) -> None:
    weights = good()
    weights["features.6.bias"][1] = value
    torch.save(weights, tmp_path / "w.pth")
    assert "features.6.bias holds NaN or infinity" in refusal(
        tmp_path / "w.pth", allow_partial=True
    )


def test_a_number_too_large_for_single_precision(tmp_path: Path) -> None:
    weights = good()
    weights["features.6.bias"] = weights["features.6.bias"].double() + 1e300
    torch.save(weights, tmp_path / "w.pth")
    assert "features.6.bias holds NaN or infinity" in refusal(tmp_path / "w.pth")


def test_sparse_meta_and_quantised_tensors(tmp_path: Path) -> None:
    name, weights = "features.0.weight", good()
    for strange in (weights[name].to_sparse(), weights[name].to("meta")):
        torch.save({**weights, name: strange}, tmp_path / "w.pth")
        assert f"{name} is a sparse" in refusal(tmp_path / "w.pth")
    torch.save({**weights, name: weights[name].to(torch.int8)}, tmp_path / "w.pth")
    assert f"{name} is of torch.int8: quantised" in refusal(tmp_path / "w.pth")


def test_another_network_s_file(tmp_path: Path) -> None:
    """No kernel at all: the message shows names of both sides."""
    torch.save({"blocks.0.attn.qkv.weight": torch.ones(8, 8)}, tmp_path / "vit.pth")
    text = refusal(tmp_path / "vit.pth")
    for words in (f"none of the {KERNELS} kernels", "blocks.0.attn.qkv.weight", "allow_partial"):
        assert words in text
    report = accepted(tmp_path / "vit.pth", allow_partial=True)
    assert report.summary == f"0 of {KERNELS} kernels taken: {KERNELS} missing"


def test_missing_kernels(tmp_path: Path) -> None:
    weights = good()
    del weights["features.3.weight"], weights["features.18.weight"]
    torch.save(weights, tmp_path / "w.pth")
    text = refusal(tmp_path / "w.pth")
    for words in ("6 of the 8 kernels", "lacks features.3.weight, features.18.weight",
                  "pretrained.allow_partial: true"):  # fmt: skip
        assert words in text
    report = accepted(tmp_path / "w.pth", allow_partial=True)
    assert report.summary == "6 of 8 kernels taken: 6 kept, 2 missing"
    missing = {row.name: row.reason for row in report.rows if row.status == "missing"}
    assert missing["stages.1.1.0.weight"].endswith("starts from random")


def test_deeper_than_the_file(tmp_path: Path) -> None:
    """VGG-11's file for VGG-16: some names are there, but the layers do not correspond."""
    torch.save(good(), tmp_path / "vgg11.pth")
    text = refusal(tmp_path / "vgg11.pth", encoder={**ENCODER, "name": "vgg16"})
    assert "vgg11.pth" in text


def test_other_widths(tmp_path: Path) -> None:
    """Also where other input channels alone would be no obstacle: the file's own shape is told."""
    torch.save(good({**ENCODER, "width": 0.125}), tmp_path / "w.pth")
    text = refusal(tmp_path / "w.pth", channels=2)
    assert "features.0.weight is (8, 1, 3, 3, 3), stages.0.0.0.weight here is (4, 2, 3, 3" in text
    text = refusal(tmp_path / "w.pth")
    for words in ("features.0.weight is (8, 1, 3, 3, 3)", "stages.0.0.0.weight here is (4, 1, 3",
                  "set the model's widths", "and 13 more", "allow_partial"):  # fmt: skip
        assert words in text
    report = accepted(tmp_path / "w.pth", allow_partial=True)
    assert report.summary == f"0 of {KERNELS} kernels taken: {KERNELS} left out"


def test_3d_kernels_of_another_size(tmp_path: Path) -> None:
    flat = [[1, 3, 3], *[[3, 3, 3]] * 4]
    torch.save(good({**ENCODER, "kernels": flat}), tmp_path / "w.pth")
    text = refusal(tmp_path / "w.pth")
    assert "is (4, 1, 1, 3, 3)" in text and "here is (4, 1, 3, 3, 3)" in text
    assert "set the model's kernels, or its variant" in text


def test_2d_kernels_along_the_wrong_axis(tmp_path: Path) -> None:
    flat = {n: w.mean(-1) if w.ndim == 5 else w for n, w in good().items()}
    torch.save(flat, tmp_path / "w.pth")
    plane = {**ENCODER, "kernels": [[1, 3, 3]] * 5}
    text = refusal(tmp_path / "w.pth", encoder=plane)
    assert "features.0.weight is (4, 1, 3, 3)" in text and "set pretrained.axis to 0" in text
    report = accepted(tmp_path / "w.pth", encoder=plane, axis=0)
    assert report.summary == f"{KERNELS} of {KERNELS} kernels taken: {KERNELS} inflated"


def test_settings_of_the_first_layer_that_do_not_fit(tmp_path: Path) -> None:
    torch.save(good(), tmp_path / "w.pth")
    for given, place in (
        ({"channels": {"t9": 0}}, ("channels", "t9")),
        ({"preprocessing": "caffe"}, ("preprocessing",)),
    ):
        model = config(tmp_path / "w.pth", **given)
        with pytest.raises(ConfigError) as caught:
            load_pretrained(built(model), model, ["ct"])
        assert caught.value.path == ("encoder", "pretrained", *place)


def test_an_encoder_s_file_is_no_whole_network(tmp_path: Path) -> None:
    save_file(good(), tmp_path / "w.safetensors")
    given = {"path": str(tmp_path / "w.safetensors")}
    model = Model.model_validate(
        {"encoder": ENCODER, "decoder": {"name": "unet"}, "pretrained": given,
         "deep_supervision": 0}
    )  # fmt: skip
    with pytest.raises(DataError, match=r"w\.safetensors.*encoder alone under model\.encoder"):
        load_pretrained(built(model), model, ["ct"])
