"""Worker: one method over one case, in a fresh process; its cost, and its labels in a file.

A small prediction of the brain's middle comes first, which does what is done once a process.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from inference_parts import peers
from inference_parts.methods import EVERY, FP32, METHODS, Method
from inference_parts.process import measured, told
from medseg.inference.predictor import Predictor, Ready
from medseg.inference.window import predict_volume
from medseg.memory import keep_freed
from medseg.volumes import cases
from medseg.volumes.geometry import Reorient
from medseg.volumes.image import Array

Box = tuple[slice, slice, slice]
_SCALE = 8  # logits divided by it do not underflow in a softmax


class Scaled(nn.Module):
    """The same logits, smaller by a power of two."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> tuple[Tensor]:
        """Map (N, C, I, J, K) to (logits / 8,)."""
        return (self.network(x)[0] / _SCALE,)


def main(job: dict[str, Any]) -> None:
    """Measure a method, or what fp32 differs from MONAI."""
    torch.set_num_threads(job["threads"])
    if job["method"] == "difference":
        predictor, ready = _loaded(job, (*EVERY, FP32))
        print(json.dumps(_difference(predictor, ready)))
        return
    method = next(method for method in METHODS if method.name == job["method"])
    predictor, ready = _loaded(job, method.overrides)
    run = _peer if method.peer else _ours
    counted = _count(predictor.members[0].network)
    call = run(method, predictor, ready)
    seen = counted[0]
    labels, cost = measured(call)
    np.save(job["labels"], labels)
    told(cost, windows=counted[0] - seen)


def _loaded(job: dict[str, Any], overrides: tuple[str, ...]) -> tuple[Predictor, Ready]:
    predictor = Predictor.load(job["run"], device="cpu", overrides=overrides, crf="off")
    found = cases.find(predictor.config.data).only([job["case"]])
    return predictor, predictor.prepare(predictor.load_case(found.cases[0]))


def _count(network: nn.Module) -> list[int]:
    """The windows that networks of this class have seen, from now on."""
    counted, forward = [0], type(network).forward

    def counting(self: nn.Module, x: Tensor) -> Any:
        counted[0] += len(x)
        return forward(self, x)

    type(network).forward = counting  # type: ignore[method-assign]
    return counted


def _ours(method: Method, predictor: Predictor, ready: Ready) -> Callable[[], Array]:
    keep_freed()  # as medseg's commands do
    if "compile" in method.options:
        member = predictor.members[0]
        member.network = torch.compile(member.network)  # type: ignore[assignment]
    case = ready.case
    middle = _middle(case.mask, predictor)
    predictor.predict(
        (case.image[(slice(None), *middle)], case.reference.affine),
        mask=None if case.mask is None else case.mask[middle],
    )
    return lambda: predictor.run(ready).labels


def _peer(method: Method, predictor: Predictor, ready: Ready) -> Callable[[], Array]:
    ((prepared,),) = ready.prepared
    image, mask = torch.from_numpy(prepared.image), prepared.mask
    patch = predictor.config.train.patch
    box = _bounds(mask, patch) if "box" in method.options else _everything(image)
    network = peers.Finest.of(predictor.checkpoint)
    if "bf16" in method.options:
        network = network.to(memory_format=torch.channels_last_3d)
    infer: Callable[[Tensor], Tensor]
    if method.peer == "nnunet":
        classes = len(predictor.labels.values) + 1
        infer = partial(peers.nnunet, network, patch=patch, classes=classes)
    else:
        infer = partial(peers.monai, network, patch=patch)

    def labels(part: Tensor) -> Array:
        with torch.autocast("cpu", torch.bfloat16, enabled="bf16" in method.options):
            return infer(image=part).argmax(0).to(torch.uint8).numpy()

    labels(image[(slice(None), *_middle(mask, predictor))])
    reorient = Reorient.to(ready.case.reference.affine, predictor.config.preprocess.orientation)

    def call() -> Array:
        whole = np.zeros(image.shape[1:], np.uint8)
        whole[box] = labels(image[(slice(None), *box)])
        return np.ascontiguousarray(reorient.undo(whole))

    return call


def _difference(predictor: Predictor, ready: Ready) -> dict[str, float]:
    """The largest differences between MONAI's logits and shares and ours, on the same windows.

    Our logits are found from the softmax of their eighths, up to a constant a voxel, which is set
    so that their mean is MONAI's.
    """
    ((prepared,),), (member,) = ready.prepared, predictor.members
    image, patch = torch.from_numpy(prepared.image), predictor.config.train.patch
    theirs = peers.monai(peers.Finest.of(predictor.checkpoint), image, patch)
    small, settings = Scaled(member.network).eval(), predictor.config.numbered.inference
    ours = predict_volume(
        small, image, settings, patch, member.divisor, classes=member.classes
    ).log()
    ours = ours * _SCALE
    shares = (ours.softmax(0) - theirs.softmax(0)).abs().max()
    labels = (ours.argmax(0) != theirs.argmax(0)).sum()
    ours = ours + (theirs.mean(0) - ours.mean(0))
    return {
        "logits": float((ours - theirs).abs().max()),
        "largest_logit": float(theirs.abs().max()),
        "shares": float(shares),
        "labels": int(labels),
    }


def _middle(mask: Array | None, predictor: Predictor) -> Box:
    """A window's size about the middle of the region."""
    patch = predictor.config.inference.patch or predictor.config.train.patch
    assert mask is not None
    parts = []
    for part, n, p in zip(_bounds(mask, (1, 1, 1)), mask.shape, patch, strict=True):
        start = min(max((part.start + part.stop - p) // 2, 0), max(n - p, 0))
        parts.append(slice(start, start + p))
    i, j, k = parts
    return i, j, k


def _bounds(mask: Array | None, least: tuple[int, int, int]) -> Box:
    """The region's bounding box, of a window's size at least."""
    assert mask is not None
    parts = []
    for axis in range(3):
        inside = np.flatnonzero(mask.any(tuple(a for a in range(3) if a != axis)))
        start, stop = int(inside[0]), int(inside[-1]) + 1
        start = max(min(start, mask.shape[axis] - least[axis]), 0)
        parts.append(slice(start, max(stop, start + least[axis])))
    i, j, k = parts
    return i, j, k


def _everything(image: Tensor) -> Box:
    i, j, k = (slice(0, n) for n in image.shape[1:])
    return i, j, k


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
