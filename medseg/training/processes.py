"""torch.distributed, made at the start of a training of several processes, and gone at its end."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import lru_cache

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from medseg.errors import DataError, MedsegError, ToldElsewhereError
from medseg.inference.predictor import pick_device
from medseg.training.ranks import Ranks
from medseg.training.world import World

# A process that ends is noticed at once, by its closed connections. Only one that hangs, or whose
# machine lost its power, is waited for so long; learning transforms and checks may take hours.
_PATIENCE = timedelta(hours=3)
_MEETING = timedelta(minutes=15)
_FRAME = 1024  # bytes that nearly every message fits into
_ENDED, _LOST = "ended", "lost"
_trainings = itertools.count()


@contextmanager
def joined() -> Iterator[Ranks]:
    """The processes of this training; a process that is alone starts nothing.

    Raises:
        MedsegError: The processes do not find each other, or one is gone.
        ToldElsewhereError: Another process has failed.
    """
    world = World.here()
    if world.size == 1:
        yield Ranks(world)
        return
    store = _met(world)
    with warnings.catch_warnings():
        if not world.is_first:  # all see the same data and config: the first warns for all
            warnings.simplefilter("ignore", UserWarning)
        # Of kernels of one voxel, whose layout has two names; nothing comes of it.
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
        try:
            yield Ranks(world, _Group(world))
        except ToldElsewhereError:
            raise
        except RuntimeError as error:
            if not _is_lost(error):
                _note(store)
                raise
            raise _why(error, store, world) from error
        except BaseException:
            _note(store)
            raise
        finally:
            dist.destroy_process_group()


def own_device(name: str, world: World) -> torch.device:
    """The device of a name; of several processes on CUDA, each has its own.

    Raises:
        DataError: There is no such device here, or there are fewer than processes.
    """
    if world.size == 1:
        return pick_device(name)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda:") and world.local_size > 1:
        raise DataError(
            f"--device {name}",
            f"{world.local_size} processes of a machine would share it: give --device cuda, and "
            "each takes its own",
        )
    if name == "cuda" and world.local_size > torch.cuda.device_count():
        raise DataError(
            "--device cuda",
            f"{world.local_size} processes on this machine, where torch finds "
            f"{torch.cuda.device_count()} CUDA devices: start no more processes than devices, or "
            "give --device cpu",
        )
    device = pick_device(f"cuda:{world.local_rank}" if name == "cuda" else name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


class _Group:
    """The link between processes: gloo on CPUs, whatever the gradients go over."""

    def __init__(self, world: World) -> None:
        self._size = world.size

    def exchange(self, data: bytes) -> list[bytes]:
        """Give each process what every process gave: in one frame, or two where that is small."""
        head = len(data).to_bytes(8, "big") + data
        heads = self._gathered(head[:_FRAME], _FRAME)
        lengths = [int.from_bytes(told[:8], "big") for told in heads]
        longest = max(lengths) + 8 - _FRAME
        tails = self._gathered(head[_FRAME:], longest) if longest > 0 else [b""] * self._size
        whole = (a + b for a, b in zip(heads, tails, strict=True))
        return [told[8 : 8 + length] for told, length in zip(whole, lengths, strict=True)]

    def broadcast(self, tensor: Tensor) -> None:
        """Overwrite a tensor by the first process's."""
        dist.broadcast(tensor, 0)

    def _gathered(self, data: bytes, length: int) -> list[bytes]:
        mine = torch.frombuffer(bytearray(data.ljust(length, b"\0")), dtype=torch.uint8)
        all_of_them = [torch.empty_like(mine) for _ in range(self._size)]
        dist.all_gather(all_of_them, mine)
        return [one.numpy().tobytes() for one in all_of_them]


def _met(world: World) -> Store:
    """Find the other processes.

    Raises:
        MedsegError: They are not there.
    """
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        # A later training of the same processes must not meet the addresses of an earlier one.
        store = PrefixStore(f"training {next(_trainings)}", _meeting_point())
        dist.init_process_group(
            backend, store=store, rank=world.rank, world_size=world.size, timeout=_PATIENCE
        )
    except (RuntimeError, ValueError) as error:
        raise MedsegError(
            f"process {world.rank} of {world.size} did not find the others: {_first_line(error)}; "
            "torchrun must run on every machine, with the same rendezvous and number of machines"
        ) from error
    return store


@lru_cache(maxsize=1)
def _meeting_point() -> Store:
    """The store that torchrun keeps; found once in the life of a process."""
    store: Store = next(iter(rendezvous("env://", timeout=_MEETING)))[0]
    store.set_timeout(_PATIENCE)
    return store


def _note(store: Store) -> None:
    """Tell those who lose contact that this process ends with an error of its own."""
    with suppress(RuntimeError):
        store.set(_ENDED, "1")


def _is_lost(error: RuntimeError) -> bool:
    """Whether an error of torch means that another process answers no more."""
    return isinstance(error, dist.DistError) or "/gloo/" in str(error)


def _why(error: RuntimeError, store: Store, world: World) -> MedsegError:
    """What to tell of a lost contact: nothing, where another process has told why."""
    message = (
        "another process of this training is gone: it was killed, or its machine or the network "
        f"failed ({_first_line(error)}); --resume goes on from the last state, with any number of "
        "processes"
    )
    try:
        is_told = store.check([_ENDED]) or store.add(_LOST, 1) > 1
    except RuntimeError:  # the store is gone with the machine that kept it
        is_told = world.local_rank > 0
    return ToldElsewhereError(message) if is_told else MedsegError(message)


def _first_line(error: Exception) -> str:
    """What torch says, without its own place in the source and its advice."""
    line = str(error).splitlines()[0] if str(error) else type(error).__name__
    return line.rpartition("] ")[2].partition(". This is")[0] if "/gloo/" in line else line
