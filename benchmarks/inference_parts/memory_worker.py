"""Worker: one prediction of a made-up volume by a voxelwise network, in a fresh process."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from inference_parts import peers
from inference_parts.process import measured, told
from medseg import plugins
from medseg.config import loads
from medseg.inference.inputs import in_memory
from medseg.inference.predictor import Predictor
from medseg.memory import keep_freed
from medseg.networks.assembly import build_network
from medseg.networks.checkpoint import Checkpoint
from medseg.volumes.dataset import Labels
from medseg.volumes.image import Array

HERE = Path(__file__).parent
CONFIG = """
name: memory
data:
  layout: folder
  path: .
  channels: {{x: "{{id}}.nii.gz"}}
  label: "{{id}}_label.nii.gz"
  classes: {classes}
preprocess: {{orientation: null, normalise: []}}
model: {{network: {{name: benchmark_voxelwise, kind: {kind}}}}}
loss: {{name: dice_ce}}
train: {{patch: {patch}, budget: {{steps: 1}}}}
inference: {{precision: fp32, overlap: {overlap}, memory: {memory}}}
"""


def main(job: dict[str, Any]) -> None:
    """Measure, and hold the labels against those of slab after slab."""
    torch.set_num_threads(job["threads"])
    predictor = _predictor(job)
    image = volume(job["shape"], job["classes"])
    call = _ours(predictor, image) if job["who"] == "medseg" else _peer(job, predictor, image)
    labels, cost = measured(call)
    wrong = int((labels != nearest(image, job)).sum())
    told(cost, output_mb=labels.nbytes / 1e6, input_mb=image.nbytes / 1e6, wrong=wrong)


def volume(shape: list[int], classes: int) -> Array:
    """(1, I, J, K) float32: blocks of all classes, and noise that changes none of them."""
    generator = np.random.default_rng(0)
    blocks = generator.integers(0, classes, [-(-n // 16) for n in shape], dtype=np.int16)
    image = np.empty((1, *shape), np.float32)
    i, j = (np.arange(n) // 16 for n in shape[:2])
    for k in range(shape[2]):
        noise = generator.random(shape[:2], dtype=np.float32) / 2 - 0.25
        image[0, :, :, k] = blocks[np.ix_(i, j)][:, :, k // 16] + noise
    return image


def nearest(image: Array, job: dict[str, Any]) -> Array:
    """The labels, by all logits of one slice after the other."""
    labels = np.zeros(image.shape[1:], np.uint8)
    if job["kind"] == "view":  # all alike: the first class
        return labels
    centres = np.arange(job["classes"], dtype=np.float32)[:, None, None]
    for k in range(labels.shape[2]):
        labels[:, :, k] = (2 * centres * image[0, :, :, k] - centres**2).argmax(0)
    return labels


def _predictor(job: dict[str, Any]) -> Predictor:
    classes = {f"class{n}": n for n in range(1, job["classes"])}
    text = CONFIG.format(**{**job, "classes": json.dumps(classes)})
    plugin = str(HERE / "voxelwise.py")
    config = loads(text, HERE, plugin=[plugin])
    labels = Labels.of(config.data)
    plugins.load(config.plugins)
    weights = build_network(config.model, 1, job["classes"], 0).state_dict()
    return Predictor(Checkpoint(config, ("x",), labels, None, weights), torch.device("cpu"))


def _ours(predictor: Predictor, image: Array) -> Callable[[], Array]:
    keep_freed()  # as medseg's commands do
    part = np.ascontiguousarray(image[:, :104, :104, :104])
    predictor.predict((part, np.eye(4)))
    ready = predictor.prepare(in_memory((image, np.eye(4))))
    return lambda: predictor.run(ready).labels


def _peer(job: dict[str, Any], predictor: Predictor, image: Array) -> Callable[[], Array]:
    network = peers.Finest.of(predictor.checkpoint)
    x, patch, classes = torch.from_numpy(image), job["patch"], job["classes"]

    def call(x: Tensor) -> Array:
        if job["who"] == "nnU-Net":
            logits = peers.nnunet(network, x, patch, classes)
        else:
            logits = peers.monai(network, x, patch, job["overlap"])
        if "softmax" in job["who"]:
            logits = logits.softmax(0)
        labels: Array = logits.argmax(0).to(torch.uint8).numpy()
        return labels

    call(x[:, :104, :104, :104])
    return lambda: call(x)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
