"""How fast DeepMedic predicts a brain, against the scheme of the original; one thread, CPU time.

    python benchmarks/deepmedic.py --data DIR

DIR has glioma_case/ and weights/deepmedic_captk/. The original's scheme: segments that give tiles
of 45^3 voxels side by side, those without brain in the segment left out, batches of 10, fp32,
coarse maps repeated, put together and convolved. Ours: `predict_labels` with the brain as region of
interest, and freed memory kept, as medseg's commands do. Both lay tiles from the brain's first
voxel, as the original did for the case's labels. The 0.8.4 default has random weights and
statistics of noise.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from common import machine
from torch import Tensor, nn

from medseg.config.schema import Inference
from medseg.inference.window import predict_labels
from medseg.memory import keep_freed
from medseg.networks.assembly import WholeNetwork
from medseg.networks.importing import import_network
from medseg.registry import NETWORKS
from medseg.transforms.intensity.zscore import ZScore

TILE, BATCH = 45, 10
FILES = ("t1n", "t1c", "t2w", "t2f")


def main() -> None:
    """Measure both networks in several settings and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--patch", type=int, nargs="*", default=[45, 75])
    parser.add_argument("--edges", nargs="*", default=["reflect", "context"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    image, brain, expected = case(options.data / "glioma_case")
    print(machine())
    networks = {"published": published(options.data), "default": default(image.shape[0])}
    runs: dict[tuple[str, str], Callable[[], Tensor]] = {}
    for name, network in networks.items():
        runs[name, "original"] = lambda n=network: naive(n, image, brain)
        for edges, side, precision in product(options.edges, options.patch, ("fp32", "bf16")):
            twin = with_edges(network, edges)
            runs[name, f"{edges} {side} {precision}"] = lambda a=(twin, side, precision): ours(
                *a, image, brain
            )
    times: dict[tuple[str, str], list[float]] = {key: [] for key in runs}
    labels: dict[tuple[str, str], Tensor] = {}

    def measure(some: list[tuple[str, str]]) -> None:
        for key in some * options.repeats:
            start = time.process_time()
            labels[key] = runs[key]()
            times[key].append(time.process_time() - start)
            print(f"  {' '.join(key)}: {times[key][-1]:.1f} s", flush=True)

    measure([key for key in runs if key[1] == "original"])
    keep_freed()  # for good, so the original comes first
    measure([key for key in runs if key[1] != "original"])
    for (name, key), seconds in times.items():
        reference, slow = labels[name, "original"], times[name, "original"]
        same = (labels[name, key] == reference)[brain].double().mean()
        ratio = statistics.median(slow) / statistics.median(seconds)
        print(
            f"{name:10} {key:18} {statistics.median(seconds):7.1f} s {ratio:5.2f} times"
            f" as fast, {100 * same:.4f} % equal labels in the brain"
        )
    equal = (labels["published", "original"].numpy() == expected)[brain.numpy()].mean()
    print(f"published  original scheme against the original's labels: {100 * equal:.4f} %")


def case(folder: Path) -> tuple[Tensor, Tensor, np.ndarray[Any, Any]]:
    """The brain's box of the case: image, brain and the original's labels."""
    volumes = [nib.load(folder / f"{name}.nii.gz").get_fdata(dtype=np.float32) for name in FILES]
    image = ZScore(region="nonzero", trim=(5, 95))({"image": np.stack(volumes)})["image"]
    brain = volumes[0] != 0
    labels = np.asanyarray(nib.load(folder / "deepmedic_captk_prediction.nii.gz").dataobj)
    return torch.from_numpy(image.astype(np.float32)), torch.from_numpy(brain), labels


def published(data: Path) -> nn.Module:
    """The published network with its weights."""
    file = data / "weights" / "deepmedic_captk" / "brainTumorSegmentation" / "model.ckpt.index"
    found, _ = import_network("deepmedic", file, ["model.network.dropout=[0, 0.3, 0.3]"])
    spec = found.config.model.network
    assert spec is not None
    network = WholeNetwork(NETWORKS.build(spec.spec(), in_channels=4, classes=5), 4, 5)
    network.load_state_dict(dict(found.weights))
    network.spec = spec.spec()  # type: ignore[assignment]
    return network.eval()


def default(channels: int) -> nn.Module:
    """The default of 0.8.4 with weights and statistics as training might have left them."""
    torch.manual_seed(0)
    built = NETWORKS.build({"name": "deepmedic"}, in_channels=channels, classes=5)
    network = WholeNetwork(built, channels, 5)
    network.spec = {"name": "deepmedic"}  # type: ignore[assignment]
    with torch.no_grad():  # statistics of noise, as the first batches would leave them
        network(torch.randn(2, channels, *(21 + 2 * m for m in network.margin)))
        network.train()
        for module in network.modules():
            if isinstance(module, nn.BatchNorm3d):
                module.momentum = 1.0
        network(torch.randn(2, channels, *(21 + 2 * m for m in network.margin)))
    return network.eval()


def with_edges(network: nn.Module, edges: str) -> nn.Module:
    """A network that has the same weights and other edges."""
    spec = {**network.spec, "edges": edges}  # type: ignore[dict-item]
    channels = network.network.pathways[0].layers[0].bias.numel()  # type: ignore[union-attr,index]
    twin = WholeNetwork(NETWORKS.build(spec, in_channels=channels, classes=5), channels, 5)
    twin.load_state_dict(network.state_dict())
    return twin.eval()


@torch.inference_mode()
def naive(network: nn.Module, image: Tensor, brain: Tensor) -> Tensor:
    """The labels by the original's scheme."""
    net, margin = network.network, network.margin[0]  # type: ignore[index,union-attr]
    inside = brain.nonzero()
    lo, hi = inside.amin(0).tolist(), (inside.amax(0) + 1).tolist()
    room = margin + TILE
    padded = nn.functional.pad(image[None], [room] * 6, mode="replicate")[0]
    mask = nn.functional.pad(brain, [room] * 6)
    places, labels = [], torch.zeros(brain.shape, dtype=torch.uint8)
    full = nn.functional.pad(labels, [room] * 6)
    for i in range(lo[0], hi[0], TILE):
        for j in range(lo[1], hi[1], TILE):
            for k in range(lo[2], hi[2], TILE):
                seen = tuple(slice(a + room - 8, a + room + TILE + 8) for a in (i, j, k))
                if mask[seen].any():
                    places.append((i, j, k))
    for n in range(0, len(places), BATCH):
        batch = [
            padded[(slice(None), *(slice(a + TILE, a + 2 * TILE + 2 * margin) for a in place))]
            for place in places[n : n + BATCH]
        ]
        for place, out in zip(places[n:], as_drawn(net, torch.stack(batch)), strict=False):
            full[tuple(slice(a + room, a + room + TILE) for a in place)] = out.argmax(0).byte()
    i, j, k = (slice(room, room + n) for n in brain.shape)
    return torch.where(brain, full[i, j, k], 0)


def as_drawn(net: Any, x: Tensor) -> Tensor:
    """The network of the original: repeat coarse maps, put all together, convolve."""
    maps = []
    for factor, pathway in zip(net.factors, net.pathways, strict=True):
        f = factor[0]
        start = net.margin[0] - 8 * f
        count = -(-TILE // f) + 16
        part = slice(start, start + (count - 1) * f + 1, f)
        out = pathway(x[:, :, part, part, part].contiguous())
        for axis in (2, 3, 4) if f > 1 else ():
            out = out.repeat_interleave(f, axis).narrow(axis, 0, TILE)
        maps.append(out)
    entered = torch.cat(maps, 1)
    first, second, last = net.joint.layers
    y = first.conv(nn.functional.pad(first.before(entered), [1] * 6, mode="reflect"))
    y = second(y)
    width = min(y.shape[1], entered.shape[1])
    y[:, :width] += entered[:, :width]
    logits: Tensor = last(y)
    return logits


def ours(network: nn.Module, side: int, precision: Any, image: Tensor, brain: Tensor) -> Tensor:
    """The labels by medseg's windows."""
    patch = (side,) * 3
    settings = Inference(patch=patch, overlap=0.0, precision=precision, roi=True)
    network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    return predict_labels(network, image, settings, patch, (1, 1, 1), classes=5, roi=brain)


if __name__ == "__main__":
    main()
