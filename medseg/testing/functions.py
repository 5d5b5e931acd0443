"""The contracts of losses, samplers, transforms and postprocessors."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from medseg.testing.common import broken, equal, seeded


@seeded
def check_loss(
    loss: Callable[[Tensor, Tensor], Tensor], classes: int, ignore_index: int = 255
) -> None:
    """Check a loss, made as `loss(classes=..., **options)`.

    It maps raw logits (N, classes, I, J, K) and class indices (N, I, J, K), int64, to one finite
    number with a gradient. Perfect logits cost less than wrong ones, an absent class is no
    accident, and voxels whose target is `ignore_index` count nowhere.

    Raises:
        PluginError: It breaks the contract.
    """
    target = torch.randint(classes, (2, 4, 5, 6))
    logits = torch.randn(2, classes, 4, 5, 6, requires_grad=True)
    value = loss(logits, target)
    if not isinstance(value, Tensor) or value.shape != () or not value.isfinite():
        broken("the loss", value, "one finite number")
    value.backward()  # type: ignore[no-untyped-call]
    if logits.grad is None or not logits.grad.isfinite().all() or not logits.grad.any():
        broken("the gradient of the loss", logits.grad, "finite and not zero everywhere")
    perfect = 20 * nn.functional.one_hot(target, classes).movedim(-1, 1).float()
    costs = float(loss(perfect, target)), float(loss(-perfect, target))
    if not costs[0] < costs[1]:
        broken("loss of perfect and of wrong logits", costs, "the first below the second")
    if not loss(perfect, torch.zeros_like(target)).isfinite():
        broken("loss where the foreground is absent", "not finite", "a finite number")
    target[:, 0] = ignore_index
    kept = logits.detach()
    changed = kept.clone()
    changed[:, :, 0] += torch.randn_like(changed[:, :, 0])
    values = float(loss(kept, target)), float(loss(changed, target))
    if abs(values[0] - values[1]) > 1e-5 * max(1.0, abs(values[0])):
        broken("loss before and after a change of ignored voxels", values, "the same")


def check_sampler(sampler: Callable[[Any, Any], Any], site: Any) -> None:
    """Check a sampler, made as `sampler(classes=..., **options)`.

    It maps a `numpy.random.Generator` and a `Site` (`medseg.training.samplers`), which is a case
    as a sampler sees it, to the wanted first voxel (i, j, k) of a patch: three ints, which may lie
    outside the volume. All chance comes from the generator: the same state gives the same place.
    The site stays as it was. A sampler that resizes the whole volume to the patch says so by a
    class attribute `resizes = True`, one that cannot do without `data.weights` by
    `needs_weights = True`.

    Raises:
        PluginError: It breaks the contract.
    """
    before = copy.deepcopy(vars(site))
    for seed in range(20):
        start = sampler(np.random.default_rng(seed), site)
        if not isinstance(start, tuple) or [type(at) for at in start] != [int] * 3:
            broken("a sampler's result", start, "three ints (i, j, k)")
        if start != sampler(np.random.default_rng(seed), site):
            broken("a sampler's result", "another place", "the same for the same generator")
    if not equal(before, vars(site)):
        broken("the site a sampler was given", "changed in place", "left as it was")


def check_transform(transform: Callable[..., dict[str, Any]]) -> None:
    """Check a transform, made as `transform(**options)`.

    It maps a dict with "image" (C, I, J, K) float32 and, where there is one, "label" (1, I, J, K)
    integer to such a dict: image finite, label of the same grid and without new values, other
    keys kept. The dict and the arrays it was given stay as they were. A random transform draws in
    `sample(rng: numpy.random.Generator)` and applies in `__call__(data, drawn)`, so that the same
    draw gives the same result. One that learns from the training cases (in
    `preprocess.normalise`) does so in `fit(samples)`, given one dict after the other, and returns
    plain JSON values; `use(values)` returns the transform ready to apply.

    Raises:
        PluginError: It breaks the contract.
    """
    rng = np.random.default_rng(0)
    image = rng.normal(size=(2, 8, 9, 10)).astype(np.float32)
    full = {"image": image, "label": rng.integers(0, 3, size=(1, 8, 9, 10)), "other": "kept"}
    if hasattr(transform, "fit"):
        transform = _fitted(transform, [full, {"image": 2 * image}])
    sample = getattr(transform, "sample", None)
    for data in (full, {"image": image}):
        drawn = () if sample is None else (sample(rng),)
        before = copy.deepcopy(data)
        out = transform(data, *drawn)
        if not equal(before, data):
            broken("the data a transform was given", "changed in place", "left as it was")
        if not isinstance(out, dict) or set(data) - set(out):
            broken("a transform's result", out, f"a dict with {', '.join(data)}")
        if not equal(out, transform(data, *drawn)):
            broken("a transform's result", "another one each time", "drawn in sample(rng)")
        _check_sample(data, out)


def _fitted(transform: Any, samples: list[dict[str, Any]]) -> Any:
    """A transform that learns, with what it has learnt on its way through a file."""
    before = copy.deepcopy(samples)
    values = transform.fit(iter(samples))
    if not equal(before, samples):
        broken("the samples a transform learnt from", "changed in place", "left as they were")
    try:
        stored = json.loads(json.dumps(values, allow_nan=False))
    except (TypeError, ValueError):
        broken("what fit of a transform gives", values, "plain JSON values")
    if not equal(values, transform.fit(iter(samples))):
        broken("what fit of a transform gives", "another result each time", "the same")
    return transform.use(stored)


def check_postprocessor(postprocessor: Callable[[Any], Any], prediction: Any) -> None:
    """Check a postprocessor, made as `postprocessor(classes=..., **options)`.

    It maps a `Prediction` to another one on the same grid: labels of the same shape and type,
    below the number of classes; the same each time. The prediction it was given, arrays included,
    stays as it was. With a class attribute `needs_probabilities = True` it may give any class to a
    voxel; without, it does with labels alone, and gives background or a label that was there. If
    it gives other probabilities, they are finite, not negative, and sum to 1.

    Args:
        postprocessor: The postprocessor.
        prediction: A `medseg.postprocess.prediction.Prediction` with probabilities to try it on.

    Raises:
        PluginError: It breaks the contract.
    """
    labels, shares = prediction.labels, prediction.probabilities
    allowed: Sequence[int] = range(len(shares))
    if not getattr(postprocessor, "needs_probabilities", False):
        prediction = replace(prediction, probabilities=None)
        allowed = [0, *np.unique(labels)]
    before = copy.deepcopy(vars(prediction))
    out = postprocessor(prediction)
    if not isinstance(out, type(prediction)):
        broken("a postprocessor's result", type(out).__name__, type(prediction).__name__)
    if not equal(before, vars(prediction)):
        broken("the prediction a postprocessor was given", "changed in place", "left as it was")
    got = (out.labels.shape, out.labels.dtype)
    if got != (labels.shape, labels.dtype):
        broken("shape and type of the labels", got, (labels.shape, labels.dtype))
    if not np.isin(out.labels, allowed).all():
        broken("the labels", np.unique(out.labels), f"some of {[*map(int, allowed)]}")
    if out.probabilities is not None:
        _check_probabilities(out.probabilities, shares.shape)
    if not equal(vars(out), vars(postprocessor(prediction))):
        broken("a postprocessor's result", "another one each time", "the same")


def _check_probabilities(shares: Any, shape: tuple[int, ...]) -> None:
    if (shares.shape, shares.dtype) != (shape, np.float32):
        broken("probabilities", (shares.shape, shares.dtype), (shape, "float32"))
    if not np.isfinite(shares).all() or shares.min() < 0:
        broken("probabilities", "some negative or not finite", "none")
    worst = float(np.abs(shares.sum(0) - 1).max())
    if worst > 1e-4:
        broken("the sum of a voxel's probabilities", f"one that is {worst:.2g} off", "1")


def _check_sample(data: dict[str, Any], out: dict[str, Any]) -> None:
    image = np.asarray(out["image"])
    if image.ndim != 4 or image.dtype != np.float32 or not np.isfinite(image).all():
        broken("image of a transform", (image.shape, image.dtype), "finite float32 (C, I, J, K)")
    if "label" not in data:
        return
    label = np.asarray(out["label"])
    if label.shape != (1, *image.shape[1:]) or label.dtype.kind not in "iu":
        broken("label of a transform", (label.shape, label.dtype), "integers on the image's grid")
    if set(np.unique(label)) - {0, *np.unique(data["label"])}:
        broken("label of a transform", np.unique(label), "no new values")
