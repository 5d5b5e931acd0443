"""Files of weights, read to tensors by name. Nothing that a file holds is ever run (promise 10)."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from medseg.config.schema import Pretrained
from medseg.errors import ConfigError, DataError, MedsegError
from medseg.files import sha256
from medseg.networks.tensorflow import read_checkpoint

_DEEPEST = 3  # entries within entries that are looked through for weights
_REMEDY = "save `model.state_dict()` with torch.save or as .safetensors, and load that"
_PAGE = "is a web page, not weights: download the file itself"
_NO_WEIGHTS = {  # how other things that lie about under such names begin
    b"<!doctype": _PAGE,
    b"<html": _PAGE,
    b"<?xml": _PAGE,
    b"version https://git-lfs": "is a pointer of Git LFS, not weights: run `git lfs pull`",
}


@dataclass(frozen=True, eq=False)
class Weights:
    """What a file of weights holds.

    Args:
        path: The file.
        sha256: What it hashes to.
        tensors: Its weights by name, on the CPU, all finite, of the file's own types.
    """

    path: Path
    sha256: str
    tensors: Mapping[str, Tensor]


def read(settings: Pretrained) -> Weights:
    """Read the file that the settings name: .safetensors, .pt, .pth, .npz, .onnx or .index.

    The last is that of a TensorFlow checkpoint, whose data files lie beside it.

    A given hash is checked before anything is read. Where weights lie within entries such as
    `state_dict`, that entry is taken if it is the only one with weights.

    Raises:
        DataError: The file is missing, of another kind or hash, damaged, holds code, several sets
            of weights or none, or a number that is not finite.
        ConfigError: It needs an extra that is not installed; the path is within the settings.
    """
    wanted = settings.sha256
    path = _fetch(settings.url, str(wanted)) if settings.url else Path(str(settings.path))
    reader = _reader(path)
    found = sha256(path)
    if wanted not in (None, found):
        raise DataError(
            path,
            f"has sha256 {found}, the config asks for {wanted}: another or a damaged file; "
            "get the right one, or set pretrained.sha256 to that of the file you trust",
        )
    try:
        content = reader(path)
    except MedsegError:
        raise
    except Exception as error:  # what a damaged file makes a parser raise is not documented
        first = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise DataError(
            path, f"damaged, or not a {path.suffix} file ({first}): get it again"
        ) from error
    tensors = _entry(path, content, settings.key)
    for name, tensor in tensors.items():
        _check(path, name, tensor)
    return Weights(path, found, tensors)


def _reader(path: Path) -> Callable[[Path], Any]:
    """How to read a file, from its name and first bytes."""
    if not path.is_file():
        raise DataError(path, "is a folder, not a file" if path.is_dir() else "no such file")
    # Old scripts of PyTorch write `.pth.tar`, which is no archive but what torch.save writes.
    suffix = ".pth" if path.name.endswith(".pth.tar") else path.suffix.lower()
    if suffix not in _READERS:
        raise DataError(
            path,
            f"weights of the kind {suffix or '(no ending)'} are not read, only "
            f"{', '.join(_READERS)}: convert it, e.g. Keras's .h5 to .npz with kernels as "
            "(out, in, *size)",
        )
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as error:
        raise DataError(path, error.strerror or str(error)) from error
    if not start:
        raise DataError(path, "is empty: download or copy it again")
    for sign, reason in _NO_WEIGHTS.items():
        if start.strip(b"\xef\xbb\xbf \t\r\n").lower().startswith(sign):
            raise DataError(path, reason)
    return _READERS[suffix]


def _fetch(url: str, wanted: str) -> Path:
    """Download a file, or find it in the cache of an earlier time, and check its hash."""
    try:
        import pooch
    except ImportError as error:
        raise ConfigError(
            'a url needs pooch: pip install "medseg[hub]", or download the file and set path',
            ("url",),
        ) from error
    pooch.get_logger().setLevel("WARNING")
    name = f"{wanted[:16]}-{PurePosixPath(urlsplit(url).path).name}"
    try:
        return Path(pooch.retrieve(url, f"sha256:{wanted}", name, pooch.os_cache("medseg")))
    except (OSError, ValueError) as error:  # those of requests are OSErrors; a wrong hash, a value
        raise DataError(
            url, f"cannot be fetched ({error}): check url and sha256, or set path instead"
        ) from error


def _safetensors(path: Path) -> Mapping[str, Tensor]:
    tensors: dict[str, Tensor] = load_file(path)
    return tensors


def _torch(path: Path) -> Any:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(PurePosixPath(name).name == "constants.pkl" for name in archive.namelist()):
                raise DataError(path, f"is a TorchScript archive, that is a program: {_REMEDY}")
            broken = archive.testzip()  # torch does not look at the checksums
        if broken:
            raise DataError(path, f"damaged: the checksum of {broken} is wrong; get it again")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        wants = re.search(r"GLOBAL (\w\S*)", str(error))
        if wants is None:
            raise DataError(path, f"damaged, or not written by torch.save: {_REMEDY}") from error
        raise DataError(
            path,
            f"is more than weights: it asks for {wants[1]}, and code from a file is never run; "
            f"{_REMEDY}",
        ) from error
    except RuntimeError as error:
        if "legacy .tar format" not in str(error):
            raise
        raise DataError(path, f"is a tar archive of an ancient PyTorch: {_REMEDY}") from error


def _npz(path: Path) -> Mapping[str, Tensor]:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    return {name: _tensor(array) for name, array in arrays.items() if _is_number(array)}


def _onnx(path: Path) -> Mapping[str, Tensor]:
    try:
        import onnx
    except ImportError as error:
        raise ConfigError(
            'an .onnx file needs onnx: pip install "medseg[onnx]"', ("path",)
        ) from error
    tensors = {}
    for weight in onnx.load(path, load_external_data=False).graph.initializer:
        if onnx.external_data_helper.uses_external_data(weight):
            raise DataError(
                path,
                f"keeps {weight.name} in another file, which is not followed: save the model with "
                "its data inside, onnx.save(model, path, save_as_external_data=False)",
            )
        array = onnx.numpy_helper.to_array(weight)
        if array.dtype.name == "bfloat16":  # which NumPy itself does not know
            array = array.astype(np.float32)
        if _is_number(array):
            tensors[weight.name] = _tensor(array)
    return tensors


def _tensorflow(path: Path) -> Mapping[str, Tensor]:
    return {name: _tensor(array) for name, array in read_checkpoint(path).items()}


_READERS: dict[str, Callable[[Path], Any]] = {
    ".safetensors": _safetensors,
    ".pt": _torch,
    ".pth": _torch,
    ".npz": _npz,
    ".onnx": _onnx,
    ".index": _tensorflow,
}


def _is_number(array: np.ndarray[Any, Any]) -> bool:
    return array.dtype.kind in "biuf"


def _tensor(array: np.ndarray[Any, Any]) -> Tensor:
    return torch.from_numpy(np.array(array, array.dtype.newbyteorder("="), order="C"))


def _entry(path: Path, content: Any, key: str | None) -> dict[str, Tensor]:
    """The tensors of the entry that `key` names, or of the only one with weights."""
    if not isinstance(content, Mapping):
        raise DataError(path, f"holds a {type(content).__name__}, not weights by name: {_REMEDY}")
    entries = dict(_entries(content))
    if not entries:
        raise DataError(path, f"holds no weights by name: {_REMEDY}")
    listed = ", ".join(name or "the file itself" for name in entries)
    if key is not None and key not in entries:
        named = ", ".join(filter(None, entries))
        remedy = f"set pretrained.key to one of {named}" if named else "leave pretrained.key null"
        raise DataError(path, f"has no weights under {key!r}: {remedy}")
    if key is None and len(entries) > 1:
        raise DataError(path, f"has several sets of weights: set pretrained.key, out of {listed}")
    entry = entries[next(iter(entries)) if key is None else key]
    return {
        name: tensor.detach()
        for name, tensor in entry.items()
        if isinstance(name, str) and isinstance(tensor, Tensor)
    }


def _entries(
    content: Mapping[Any, Any], name: str = "", depth: int = 0
) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """Each mapping with weights, by its dotted name. An optimiser's, numbered, are passed over."""
    if any(isinstance(item, Tensor) and item.ndim > 1 for item in content.values()):
        yield name, content
    if depth < _DEEPEST:
        for key, item in content.items():
            if isinstance(key, str) and isinstance(item, Mapping):
                yield from _entries(item, f"{name}.{key}" if name else key, depth + 1)


def _check(path: Path, name: str, tensor: Tensor) -> None:
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
        raise DataError(
            path, f"{name} is a sparse, quantised or empty (meta) tensor: save plain weights"
        )
    if not bool(tensor.float().isfinite().all()):
        raise DataError(
            path, f"{name} holds NaN or infinity: the training it is from broke; take another file"
        )
