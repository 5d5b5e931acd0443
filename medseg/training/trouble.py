"""What stops a step: numbers that are not finite, and memory that runs out. Neither goes unseen."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save as serialised
from torch import Tensor

from medseg.config.schema import Train
from medseg.errors import DataError, MedsegError
from medseg.files import atomic
from medseg.inference.runner import NonFiniteError, free_memory, is_out_of_memory

_REMEDY = "lower train.lr, lengthen train.warmup or set train.precision to fp32"


class Part(NamedTuple):
    """One batch of a step, on the device, augmented.

    Args:
        image: (N, C, I, J, K).
        label: (N, I, J, K) int64, without the margin.
        cases: The N cases' names.
    """

    image: Tensor
    label: Tensor
    cases: list[str]


def refuse_non_finite(
    parts: Sequence[Part], losses: Sequence[float], norm: float, step: int, file: Path | None
) -> None:
    """Stop where a loss or the gradient is not finite, and keep the batch.

    Args:
        parts: The step's batches.
        losses: One of each.
        norm: Of the gradient.
        step: Its number.
        file: Where to keep the batch; None: nowhere.

    Raises:
        NonFiniteError: With the cases' names, the step and where the batch is.
    """
    bad = next((n for n, loss in enumerate(losses) if not math.isfinite(loss)), None)
    if bad is None and math.isfinite(norm):
        return
    what = f"the gradient's norm is {norm}" if bad is None else f"the loss is {losses[bad]}"
    part, loss = (_joined(parts), sum(losses)) if bad is None else (parts[bad], losses[bad])
    kept = "" if file is None else f" ({_kept(part, step, loss, norm, file)})"
    voxels = int((~part.image.isfinite()).sum())
    cause = f"its image has {voxels} values that are not finite: mend the transforms"
    cases = ", ".join(dict.fromkeys(part.cases))
    raise NonFiniteError(
        f"{what} at step {step}, of a batch of the cases {cases}{kept}; "
        f"{cause if voxels else _REMEDY}"
    )


def _joined(parts: Sequence[Part]) -> Part:
    images, labels, cases = zip(*parts, strict=True)
    return Part(torch.cat(images), torch.cat(labels), [case for some in cases for case in some])


def _kept(part: Part, step: int, loss: float, norm: float, file: Path) -> str:
    """Write a batch, and say where it is, or why it is not there: what stops the run is another."""
    tensors = {"image": part.image, "label": part.label.to(torch.uint8)}
    about = {
        "cases": json.dumps(part.cases),
        "step": str(step),
        "loss": str(loss),
        "gradient_norm": str(norm),
    }
    try:
        content = serialised(
            {name: t.detach().cpu().contiguous() for name, t in tensors.items()}, about
        )
        with atomic(file) as temporary:
            temporary.write_bytes(content)
    except (DataError, MemoryError) as error:
        return f"which could not be saved: {error}"
    return f"saved as {file}"


def out_of_memory(
    said: str, parts: Sequence[Part], settings: Train, attempt: Callable[[Sequence[Part]], object]
) -> MedsegError:
    """The error of a step that memory did not suffice for, with the batch that it suffices for.

    Args:
        said: What torch says.
        parts: The step's batches.
        settings: The `train` section.
        attempt: Takes a step. Whatever it makes of the weights, the run is over.
    """
    device, patches = parts[0].image.device, len(parts[0].image)
    fits = _largest(parts[0], device, attempt)
    if fits:
        more = settings.accumulate * patches // fits
        remedy = (
            f"{fits} would fit: start anew with train.batch={fits} train.accumulate={more}, whose "
            "steps are of as many patches"
        )
    else:
        remedy = "not even 1 would fit: set a smaller train.patch or a narrower network"
    return MedsegError(
        f"out of memory on {device} in a step with {patches} patches of {list(settings.patch)} "
        f"voxels at once; {remedy} ({said})"
    )


def _largest(part: Part, device: torch.device, attempt: Callable[[Sequence[Part]], object]) -> int:
    """The largest divisor of the batch with which a step succeeds; 0: none."""
    patches = len(part.image)
    for size in range(patches - 1, 0, -1):
        if patches % size == 0 and _succeeds(part, size, device, attempt):
            return size
    return 0


def _succeeds(
    part: Part, size: int, device: torch.device, attempt: Callable[[Sequence[Part]], object]
) -> bool:
    free_memory(device)
    try:
        attempt([Part(part.image[:size], part.label[:size], part.cases[:size])])
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return False
    return True
