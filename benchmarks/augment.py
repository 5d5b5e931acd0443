"""What each part of augmentation costs beside MONAI's transform of the same kind, in the same run.

    python benchmarks/augment.py [--patch 96 96 96] [--batch 2] [--channels 2] [--rounds 9]
    python benchmarks/augment.py --device cuda
    python benchmarks/augment.py --picture docs/images/augment.png

Both sides get the same batch in memory, on the same device, with one CPU thread and every
probability 1; spatial parts move a label too. MONAI's transforms take one sample, so that they go
through the batch one by one, without metadata. Rounds take turns; medians of CPU seconds (on CUDA
of the clock) are compared. --picture draws what each part does to a phantom, and measures nothing.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import machine
from matplotlib import pyplot as plt
from monai import transforms as monai
from monai.data import set_track_meta
from PIL import Image
from torch import Tensor

from medseg.config.schema import Augment
from medseg.transforms import augment
from medseg.volumes import phantom

Work = Callable[[Tensor, Tensor], Any]
OFF: dict[str, Any] = {"affine": 0.0, "brightness": 0.0, "contrast": 0.0, "noise": 0.0}
PARTS: dict[str, dict[str, Any]] = {
    "affine": {"affine": 1.0},
    "elastic": {"elastic": 1.0},
    "affine + elastic": {"affine": 1.0, "elastic": 1.0},
    "flip, 3 axes": {"flip": (0, 1, 2)},
    "bias field": {"bias_field": 1.0},
    "blur": {"blur": 1.0},
    "low resolution": {"low_resolution": 1.0},
    "blur + low resolution": {"blur": 1.0, "low_resolution": 1.0},
    "gamma": {"gamma": 0.3},
    "shift and scale": {"brightness": 0.15, "contrast": 0.2},
    "noise": {"noise": 0.1, "noise_probability": 1.0},
    "channel dropout": {"channel_dropout": 0.5},
    "mix": {"mix": 1.0},
}


def main() -> None:
    """Measure, or draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--patch", type=int, nargs=3, default=[96, 96, 96])
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--channels", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.picture:
        draw_picture(options.picture)
        return
    set_track_meta(False)
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(options.batch, options.channels, *options.patch, generator=generator)
    label = (image[:, 0] > 1).long()
    image, label = image.to(options.device), label.to(options.device)
    print(
        f"{machine()}; {options.batch} x {options.channels} x {options.patch} on {options.device}"
    )
    print("\n| part | medseg, ms | MONAI, ms | MONAI / medseg | MONAI's transform |")
    print("|---|---|---|---|---|")
    for part, settings in PARTS.items():
        name, peer = peers(options.device).get(part, ("none", None))
        works = [ours(settings, options)] + ([peer] if peer else [])
        seconds = [1e3 * s for s in timed(works, image, label, options.rounds)]
        theirs = f"{seconds[1]:.1f} | {seconds[1] / seconds[0]:.1f}" if peer else "- | -"
        print(f"| {part} | {seconds[0]:.1f} | {theirs} | {name} |", flush=True)


def ours(settings: dict[str, Any], options: argparse.Namespace) -> Work:
    """Draw and apply; a new draw each time."""
    generator = torch.Generator().manual_seed(0)
    spacing = torch.ones(options.batch, 3)

    def work(image: Tensor, label: Tensor) -> Any:
        change = augment.draw(
            Augment(**{**OFF, **settings}), options.batch, options.channels, generator
        )
        return augment.apply(change, image, label, spacing)

    return work


def peers(device: str) -> dict[str, tuple[str, Work]]:
    """MONAI's transform of each kind, with settings of the same strength."""
    rotate, scale = [0.26] * 3, [0.15] * 3
    modes: dict[str, Any] = {"mode": ["bilinear", "nearest"], "padding_mode": ["border", "zeros"]}
    both = {"keys": ["image", "label"], "prob": 1.0}
    elastic = {"sigma_range": (8, 8), "magnitude_range": (50, 50), "device": device}
    spatial = {
        "affine": monai.RandAffined(
            **both, rotate_range=rotate, scale_range=scale, **modes, device=device
        ),
        "elastic": monai.Rand3DElasticd(**both, **elastic, **modes),
        "affine + elastic": monai.Rand3DElasticd(
            **both, **elastic, rotate_range=rotate, scale_range=scale, **modes
        ),
        "flip, 3 axes": monai.Compose(
            [monai.RandFlipd(keys=["image", "label"], prob=0.5, spatial_axis=a) for a in range(3)]
        ),
    }
    tone = {
        "bias field": monai.RandBiasField(prob=1.0, coeff_range=(-0.3, 0.3)),
        "blur": monai.RandGaussianSmooth((0.1, 1), (0.1, 1), (0.1, 1), prob=1.0),
        "low resolution": monai.RandSimulateLowResolution(prob=1.0, zoom_range=(0.5, 1.0)),
        "blur + low resolution": monai.Compose(
            [
                monai.RandGaussianSmooth((0.1, 1), (0.1, 1), (0.1, 1), prob=1.0),
                monai.RandSimulateLowResolution(prob=1.0, zoom_range=(0.5, 1.0)),
            ]
        ),
        "gamma": monai.RandAdjustContrast(prob=1.0, gamma=(0.7, 1.3)),
        "shift and scale": monai.Compose(
            [
                monai.RandScaleIntensity(0.2, prob=1.0, channel_wise=True),
                monai.RandShiftIntensity(0.15, prob=1.0, channel_wise=True),
            ]
        ),
        "noise": monai.RandGaussianNoise(prob=1.0, std=0.1),
    }
    result = {part: (names(t), each(t, is_spatial=True)) for part, t in spatial.items()}
    return result | {part: (names(t), each(t, is_spatial=False)) for part, t in tone.items()}


def names(transform: Any) -> str:
    """The class, or those of a composition, each once."""
    inner = transform.transforms if isinstance(transform, monai.Compose) else [transform]
    return ", ".join(dict.fromkeys(type(t).__name__ for t in inner))


def each(transform: Any, *, is_spatial: bool) -> Work:
    """Go through a batch sample by sample, as MONAI's loaders do."""

    def work(image: Tensor, label: Tensor) -> Any:
        if not is_spatial:
            return torch.stack([torch.as_tensor(transform(sample)) for sample in image])
        done = [
            transform({"image": x, "label": y[None].float()})
            for x, y in zip(image, label, strict=True)
        ]
        return torch.stack([d["image"] for d in done]), torch.stack([d["label"] for d in done])

    return work


def timed(works: list[Work], image: Tensor, label: Tensor, rounds: int) -> list[float]:
    """Median seconds of each, taking turns; the first round does not count."""
    clock = time.perf_counter if image.is_cuda else time.process_time
    seconds: list[list[float]] = [[] for _ in works]
    for n in range(rounds + 1):
        for work, found in zip(works, seconds, strict=True):
            wait(image)
            start = clock()
            work(image, label)
            wait(image)
            if n:
                found.append(clock() - start)
    return [statistics.median(found) for found in seconds]


def wait(image: Tensor) -> None:
    """Until the device has done its work."""
    if image.is_cuda:
        torch.cuda.synchronize(image.device)


def draw_picture(path: Path) -> None:
    """One slice of a phantom under each part, at strengths that the eye sees."""
    head = phantom.draw(np.random.default_rng([0, 1]), (1.5, 1.5, 1.5))
    other = phantom.draw(np.random.default_rng([3, 2]), (1.5, 1.5, 1.5))
    images = np.stack([head.channels, other.channels]).astype(np.float32)
    mean, deviation = (f(images, axis=(2, 3, 4), keepdims=True) for f in (np.mean, np.std))
    image = torch.from_numpy((images - mean) / deviation)
    label = torch.from_numpy(np.stack([head.label, other.label]).astype(np.int64))
    spacing = torch.full((2, 3), 1.5)
    plain = augment.draw(Augment(**OFF), 2, 2, torch.Generator().manual_seed(0))
    centre = torch.tensor([[0.3, 0.7]] * 3).repeat(2, 1, 1)
    shown = {
        "as it is": plain,
        "flip LR": replace(plain, matrix=torch.diag(torch.tensor([-1.0, 1, 1])).repeat(2, 1, 1)),
        "rotate 15°, scale 1.15": replace(
            plain, matrix=turned(15) / 1.15, is_moved=torch.ones(2, dtype=torch.bool)
        ),
        "elastic 8 mm, grid 24 mm": replace(plain, elastic=torch.tensor([8.0, 0.0])),
        "bias field 0.7": replace(plain, bias_strength=torch.full((2, 2), 0.7)),
        "blur 2 mm": replace(plain, blur=torch.full((2, 2), 2.0)),
        "low resolution 3": replace(plain, coarseness=torch.full((2, 2), 3.0)),
        "gamma 0.6": replace(plain, gamma=torch.full_like(plain.gamma, 0.6)),
        "contrast 1.3, brightness 0.3": replace(
            plain, gain=plain.gain * 1.3, shift=plain.shift + 0.3
        ),
        "noise 0.3": replace(plain, noise=torch.full_like(plain.noise, 0.3)),
        "mix": replace(plain, partner=torch.tensor([1, 1]), box=centre),
        "channel dropout": replace(plain, is_kept=torch.tensor([[False, True]] * 2)),
    }
    figure, axes = plt.subplots(3, 4, figsize=(9.6, 8.4), layout="constrained")
    for (name, change), panel in zip(shown.items(), axes.flat, strict=True):
        moved, target = augment.apply(change, image, label, spacing)
        plane = int(label[0].sum((0, 1)).argmax())
        panel.imshow(moved[0, 0, :, :, plane].T, cmap="gray", vmin=-1.2, vmax=3.2, origin="lower")
        if bool(target[0, :, :, plane].any()):
            panel.contour(target[0, :, :, plane].T > 0, [0.5], colors="#ff8c42", linewidths=1)
        if name == "mix":
            i, j = (0.3 * n for n in image.shape[2:4])
            panel.add_patch(plt.Rectangle((i, j), 4 * i / 3, 4 * j / 3, fill=False, ls=":", ec="w"))
        panel.set_title(name, fontsize=9)
        panel.set_axis_off()
    figure.savefig(path, dpi=80)
    Image.open(path).convert("P", palette=Image.Palette.ADAPTIVE, colors=64).save(path)


def turned(degrees: float) -> Tensor:
    """(2, 3, 3) a rotation in the plane that is shown."""
    angle = torch.deg2rad(torch.tensor(degrees))
    matrix = torch.eye(3)
    matrix[0, 0] = matrix[1, 1] = angle.cos()
    matrix[0, 1], matrix[1, 0] = -angle.sin(), angle.sin()
    return matrix.repeat(2, 1, 1)


if __name__ == "__main__":
    main()
