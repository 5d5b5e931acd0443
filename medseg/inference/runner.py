"""A network over windows: precision, mirroring, and what it must never do unnoticed."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn

from medseg.config.axes import numbers
from medseg.config.schema import Inference
from medseg.errors import MedsegError
from medseg.inference.boxes import Triple
from medseg.inference.plan import Plan

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_CPU_VOXELS, _GPU_VOXELS, _MOST_WINDOWS = 200_000, 2_000_000, 8  # of a pass
_SAID = (  # by torch's RuntimeErrors
    *("out of memory", "can't allocate memory", "not enough memory", "bad_alloc"),
    *("CUDNN_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_ALLOC_FAILED"),
)


class NonFiniteError(MedsegError):
    """A network gave NaN or infinity: never taken for background (promise 4)."""


class OutOfMemoryError(MedsegError):
    """A case needs more memory than there is, however small the pieces."""


class Runner:
    """A network, ready for windows.

    Args:
        network: In eval mode; gives a tuple of logits, finest first.
        settings: Flips (axes by number), precision.
        device: Where it runs.

    Raises:
        MedsegError: The device lacks the precision.
    """

    def __init__(self, network: nn.Module, settings: Inference, device: torch.device) -> None:
        self.network, self.device, self.precision = network, device, settings.precision
        self._flips = _flips(numbers(settings.flip, None))
        autocast(device, self.precision)

    @torch.inference_mode()
    def __call__(self, plan: Plan, places: Sequence[Triple]) -> Tensor:
        """Give the logits (N, classes, i, j, k) float32 of windows, averaged over the flips.

        Args:
            plan: Of the volume.
            places: Some of the plan's, N.

        Raises:
            NonFiniteError: A logit is not finite.
        """
        windows = plan.windows(places)
        if self.device.type == "cuda" and not windows.is_cuda:
            windows = windows.pin_memory()
        windows = windows.to(self.device, non_blocking=True)
        total: Tensor | None = None
        with autocast(self.device, self.precision):
            for axes in self._flips:
                logits = self.network(windows.flip(axes) if axes else windows)[0].float()
                _check_finite(logits)
                logits = logits.flip(axes) if axes else logits
                total = logits if total is None else total.add_(logits)
        assert total is not None
        return total if len(self._flips) == 1 else total.div_(len(self._flips))


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Autocast of a precision by its name in the config ("auto" is settled for each volume).

    Raises:
        MedsegError: fp16 on a CPU, where convolutions lack it.
    """
    if precision == "fp16" and device.type == "cpu":
        raise MedsegError("precision fp16 needs a CUDA device; use bf16 or fp32 on a CPU")
    dtype = _DTYPES.get(precision, torch.float32)
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def windows_at_once(settings: Inference, window: Triple, device: torch.device) -> int:
    """How many windows make a pass: `inference.batch`, or as many as keep the device busy."""
    if settings.batch is not None:
        return settings.batch
    voxels = _GPU_VOXELS if device.type == "cuda" else _CPU_VOXELS
    return max(1, min(voxels // prod(window), _MOST_WINDOWS))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether host or device ran out of memory: torch says so in several ways."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(said in str(error) for said in _SAID)


def free_memory(device: torch.device) -> None:
    """Give back what torch keeps of a device's memory for later."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _check_finite(logits: Tensor) -> None:
    low, high = logits.aminmax()
    if not (bool(torch.isfinite(low)) and bool(torch.isfinite(high))):
        bad = int((~torch.isfinite(logits)).sum())
        raise NonFiniteError(
            f"the network gave {bad} non-finite logits of {logits.numel()}; lower train.lr or use "
            "precision fp32"
        )


def _flips(axes: Sequence[int]) -> list[list[int]]:
    """The axes of (N, C, I, J, K) that are mirrored: all combinations of `axes`, none first."""
    combinations: list[list[int]] = [[]]
    for axis in axes:
        combinations += [[*done, axis + 2] for done in combinations]
    return combinations
