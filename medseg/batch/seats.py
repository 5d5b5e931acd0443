"""Where the workers of a batch sit: the device of each, and its share of the CPU's threads."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from medseg.errors import DataError
from medseg.inference.predictor import pick_device


@dataclass(frozen=True)
class Seat:
    """A place for one process.

    Args:
        device: "auto", "cpu", "cuda" or "cuda:N".
        threads: How many threads it computes with on the CPU.
    """

    device: str
    threads: int


def seats(device: str, workers: int | None = None) -> tuple[Seat, ...]:
    """Share devices and threads out.

    Args:
        device: One device, several with commas between ("cuda:0,cuda:1"), or "cuda:all".
        workers: How many processes; None: one for each device. More than there are devices go
            round: of 4 with 2 GPUs, two sit at each.

    Returns:
        One for each worker. The threads that one process would have are divided among them.

    Raises:
        DataError: There is no such device here, or there are more of them than workers.
    """
    devices = _named(device)
    count = len(devices) if workers is None else workers
    if count < len(devices):
        raise DataError(
            f"--workers {count}", f"{len(devices)} devices are named ({', '.join(devices)}): "
            "each needs a worker of its own; name fewer, or leave --workers out",
        )  # fmt: skip
    threads = max(1, torch.get_num_threads() // count)
    return tuple(Seat(devices[n % len(devices)], threads) for n in range(count))


def _named(text: str) -> list[str]:
    if text == "cuda:all":
        count = torch.cuda.device_count()
        if not count:
            raise DataError("--device cuda:all", "torch finds no CUDA device here")
        return [f"cuda:{n}" for n in range(count)]
    devices = [name.strip() for name in text.split(",")]
    if len(set(devices)) < len(devices):
        raise DataError(
            f"--device {text}", "a device comes twice; --workers says how many processes there are"
        )
    for name in devices:
        pick_device(name)
    return devices
