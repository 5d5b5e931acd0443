"""Which of the processes of a training this one is, as torchrun tells; without torch."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from medseg.errors import MedsegError, ToldElsewhereError

_NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


@dataclass(frozen=True)
class World:
    """A process among those that train one model together.

    Args:
        rank: Its number, from 0 on.
        size: How many there are.
        local_rank: Its number on its machine.
        local_size: How many there are on its machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @classmethod
    def here(cls, environment: Mapping[str, str] | None = None) -> World:
        """The world that torchrun set up for this process; without torchrun it is alone.

        Raises:
            MedsegError: The environment contradicts itself.
        """
        given = os.environ if environment is None else environment
        if "WORLD_SIZE" not in given:
            return cls()
        try:
            rank, size, local_rank, local_size = (int(given[name]) for name in _NAMES)
        except (KeyError, ValueError) as error:
            raise _contradictory(given) from error
        if not (0 <= rank < size and 0 <= local_rank < local_size <= size):
            raise _contradictory(given)
        return cls(rank, size, local_rank, local_size)

    @property
    def is_first(self) -> bool:
        """Whether it is the one that writes and tells."""
        return self.rank == 0


@contextmanager
def told_once_a_machine() -> Iterator[None]:
    """Let one process of each machine alone tell what is wrong before the processes have met.

    Raises:
        ToldElsewhereError: Something is wrong, and another process of this machine tells what.
    """
    try:
        yield
    except MedsegError as error:
        if World.here().local_rank:
            raise ToldElsewhereError(str(error)) from error
        raise


def refuse_several(what: str) -> None:
    """Refuse to be one of several processes, where only one training at a time is shared.

    Raises:
        MedsegError: There are several.
    """
    world = World.here()
    if world.size > 1:
        raise MedsegError(
            f"{what} are not shared by several processes: start them one by one without torchrun, "
            f"as one for each GPU (this is process {world.rank} of {world.size})"
        )


def _contradictory(given: Mapping[str, str]) -> MedsegError:
    told = ", ".join(f"{name}={given.get(name, '(not set)')}" for name in _NAMES)
    return MedsegError(
        f"the environment says that this is one process of several, but not which: {told}; start "
        "with torchrun, which sets them all, or unset WORLD_SIZE"
    )
