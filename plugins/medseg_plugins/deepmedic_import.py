"""Checkpoints of DeepMedic itself (github.com/deepmedic/deepmedic, 0.8.4): names and numbers.

In a checkpoint, kernels are `W`, `W_1`, ... in the order in which layers were made: pathway after
pathway, then the joint layers. So are the norms (`gBn`, `bBn` and their statistics), the PReLUs
(`aPrelu`) and the biases (`b`), each counted for itself. Norms keep the statistics of their last 60
batches, and are used with the means of these.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

_ROLLING = {"muBnsForRollingAverage": "muBn", "varBnsForRollingAverage": "varBn"}
_NAME = re.compile(rf"(?:.*/)?(W|b|gBn|bBn|aPrelu|muBn|varBn|{'|'.join(_ROLLING)})(?:_(\d+))?")
_FACTORS = ((1, 1, 1), (3, 3, 3), (5, 5, 5))  # what a file does not tell, as 0.8.4 has it
_RESIDUAL = (4, 6, 8)

Parts = dict[str, list[Tensor]]


def parts(tensors: Mapping[str, Tensor]) -> Parts | None:
    """The tensors of each kind in order; None: they are not of a checkpoint of DeepMedic.

    Raises:
        ValueError: One is missing, or there are two of a name.
    """
    found: dict[str, dict[int, Tensor]] = {}
    for name, tensor in tensors.items():
        match = _NAME.fullmatch(name)
        if match is None:
            continue
        kind, number = match[1], int(match[2] or 0)
        value = tensor.double().mean(0).float() if kind in _ROLLING else tensor
        here = found.setdefault(_ROLLING.get(kind, kind), {})
        if number in here:
            raise ValueError(f"holds two tensors that could be {kind}_{number}")
        here[number] = value
    kinds = ("W", "gBn", "bBn", "aPrelu", "muBn", "varBn")
    if any(kind not in found for kind in kinds[:2]):
        return None
    for kind in (*kinds, "b"):
        here = found.get(kind, {})
        wanted = len(found[kind if kind in ("W", "b") else "gBn"]) if here else 1
        lacking = [n for n in range(wanted) if n not in here]
        if lacking:
            raise ValueError(f"lacks {kind}{f'_{lacking[0]}' if lacking[0] else ''}")
    return {kind: [here[n] for n in sorted(here)] for kind, here in found.items()}


def described(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """A config for the network of a checkpoint, in plain values, and what it had to assume.

    Raises:
        ValueError: It is of another program, or incomplete.
    """
    found = parts(tensors)
    if found is None:
        raise ValueError("has no tensors W, gBn, ...: not a checkpoint of DeepMedic")
    kernels = found["W"]
    if any(kernel.ndim != 5 for kernel in kernels):
        raise ValueError("holds kernels that are not of 3D convolutions")
    paths = len(found["b"]) - 1  # one for each pathway's first layer, and the last layer's
    layers = _layers_of_a_pathway(kernels, paths)
    if paths > len(_FACTORS):
        raise ValueError(f"has {paths} pathways; at most {len(_FACTORS)} can be told apart")
    widths = [[len(k) for k in kernels[n * layers : (n + 1) * layers]] for n in range(paths)]
    joint = kernels[paths * layers :]
    is_plain = max(joint[0].shape[2:]) == 1  # as in the paper, which has no residual layers
    options = {
        "name": "deepmedic",
        "factors": [list(factor) for factor in _FACTORS[:paths]],
        "widths": widths[0],
        "coarse_widths": widths[1:],
        "kernels": [list(kernel.shape[2:]) for kernel in kernels[:layers]],
        "residual": [] if is_plain else [n for n in _RESIDUAL if n <= layers],
        "hidden": [len(kernel) for kernel in joint[:-1]],
        "hidden_kernel": list(joint[0].shape[2:]),
        "hidden_residual": [2] if not is_plain and len(joint) > 2 else [],
        "dropout": [0.0, *[0.5] * (len(joint) - 1)],
    }
    channels = [f"channel_{n}" for n in range(1, kernels[0].shape[1] + 1)]
    values = {
        "name": "deepmedic",
        "data": {
            "layout": "folder",
            "path": ".",
            "channels": {name: f"{{id}}_{name}.nii.gz" for name in channels},
            "classes": {f"class_{n}": n for n in range(1, len(joint[-1]))},
        },
        "preprocess": {
            "mask": "nonzero",
            "orientation": None,
            "normalise": [{"name": "zscore", "region": "nonzero"}],
        },
        "model": {"network": options},
        "train": {"patch": [21, 21, 21], "batch": 10, "budget": {"epochs": 35}},
        "inference": {
            "patch": [45, 45, 45], "overlap": 0.0, "roi": True, "precision": "fp32"
        },
    }  # fmt: skip
    told = ", ".join(
        f"{key}={options[key]}" for key in ("factors", "residual", "hidden_residual", "dropout")
    )
    return values, (f"the file does not tell, and 0.8.4 has unless you set it: {told}",)


def state(tensors: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor] | None:
    """A checkpoint's weights by the names of a network; None: it is of another program.

    Their dropout does not scale what it keeps in training, and multiplies by the share kept in
    prediction. Ours does neither in prediction, so that factor goes into the kernel behind it.

    Raises:
        ValueError: The checkpoint is incomplete, or its layers are not as many as the network's.
    """
    found = parts(tensors)
    if found is None:
        return None
    layers = {
        f"{place}.layers.{n}": layer
        for place, module in network.named_modules()
        if hasattr(module, "residual") and place
        for n, layer in enumerate(module.layers)
    }
    have, want = (len(found["W"]), len(found["gBn"]), len(found["b"])), _counts(layers)
    if have != want:
        raise ValueError(
            f"has {have[0]} kernels, {have[1]} norms and {have[2]} biases, the network "
            f"{want[0]}, {want[1]} and {want[2]}: set factors, widths, hidden to those of the file"
        )
    queues = {kind: iter(items) for kind, items in found.items()}
    weights = {}
    for name, layer in layers.items():
        weights[f"{name}.conv.weight"] = next(queues["W"]) * (1 - layer.dropout.p)
        if layer.raw:
            weights[f"{name}.bias"] = next(queues["b"])
            continue
        weights[f"{name}.norm.weight"] = next(queues["gBn"])
        weights[f"{name}.norm.bias"] = next(queues["bBn"])
        weights[f"{name}.norm.running_mean"] = next(queues["muBn"])
        # They divide by the root of the variance, and add nothing to it.
        weights[f"{name}.norm.running_var"] = (next(queues["varBn"]) - layer.norm.eps).clamp_min(0)
        weights[f"{name}.activation.weight"] = next(queues["aPrelu"])
        if layer.conv.bias is not None:
            weights[f"{name}.conv.bias"] = next(queues["b"])
    return weights


def _counts(layers: Mapping[str, nn.Module]) -> tuple[int, int, int]:
    raw = sum(bool(layer.raw) for layer in layers.values())
    biases = sum(layer.conv.bias is not None for layer in layers.values())  # type: ignore[union-attr]
    return len(layers), len(layers) - raw, raw + biases


def _layers_of_a_pathway(kernels: Sequence[Tensor], paths: int) -> int:
    """How many layers a pathway has, from which kernels can follow one another.

    Raises:
        ValueError: No number fits.
    """
    if paths > 0:
        for layers in range(1, len(kernels) // paths + 1):
            chains = [kernels[n * layers : (n + 1) * layers] for n in range(paths)]
            ends = sum(len(chain[-1]) for chain in chains)
            joint = [torch.empty(ends, 0), *kernels[paths * layers :]]
            starts = {chain[0].shape[1] for chain in chains}
            if len(joint) > 1 and len(starts) == 1 and all(map(_is_chain, (*chains, joint))):
                return layers
    raise ValueError(
        f"has {len(kernels)} kernels that do not follow one another as those of {max(paths, 0)} "
        "pathways and joint layers do"
    )


def _is_chain(kernels: Sequence[Tensor]) -> bool:
    return all(after.shape[1] == len(before) for before, after in pairwise(kernels))
