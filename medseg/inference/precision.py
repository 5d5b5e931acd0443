"""Reduced precision where the device gains by it and the labels stay what they are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from medseg.config.schema import Inference
from medseg.inference.plan import Plan
from medseg.inference.runner import NonFiniteError, Runner, is_out_of_memory

ENOUGH = 0.998  # of the trial's voxels must get the same label; where all is border, few do not


def settled(
    network: nn.Module,
    plan: Plan,
    settings: Inference,
    divisor: Sequence[int],
    device: torch.device,
) -> str:
    """Choose the precision of a volume: "fp32", or a lower one that gives the same labels.

    Two windows of half the size, in the middle of what is predicted, are predicted in both. The
    choice depends on the volume, the network and the device alone, never on time or on chance.

    Args:
        network: In eval mode.
        plan: The volume's windows.
        settings: What flips and `precision` say does not count.
        divisor: What a window's size must be divisible by, per axis.
        device: Where the network runs.
    """
    lower = candidate(device)
    if lower == "fp32":
        return lower
    trial = plan.middle(divisor)
    labels = []
    for precision in ("fp32", lower):
        chosen = settings.model_copy(update={"precision": precision, "flip": ()})
        try:
            labels.append(Runner(network, chosen, device)(trial, trial.places).argmax(1))
        except NonFiniteError:
            return "fp32"  # which will tell, or do better
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            return "fp32"  # likewise, with smaller batches
    same = float((labels[0] == labels[1]).double().mean())
    return lower if same >= ENOUGH else "fp32"


def candidate(device: torch.device) -> str:
    """The lower precision in which a device multiplies faster; "fp32" where there is none."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    is_fast = device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
    return "bf16" if is_fast else "fp32"
