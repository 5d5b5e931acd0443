"""The processes of one training, and what they tell each other: plain values, errors, tensors.

A training of one process goes the same way, alone. What is sent is JSON and raw tensors: nothing
that arrives from another machine is unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from medseg.errors import ToldElsewhereError
from medseg.training.world import World

T = TypeVar("T")


class Link(Protocol):
    """What carries bytes between processes."""

    def exchange(self, data: bytes) -> list[bytes]:
        """Give each process what every process gave, in order of rank."""
        ...

    def broadcast(self, tensor: Tensor) -> None:
        """Overwrite a tensor by that of the first process, which has the same shape and type."""
        ...


class Alone:
    """The link of a process that has nobody to talk to."""

    def exchange(self, data: bytes) -> list[bytes]:
        """Give back what was given."""
        return [data]

    def broadcast(self, tensor: Tensor) -> None:
        """Leave it."""


class Ranks:
    """The processes of a training, seen from one of them.

    Whatever is asked here, all processes must ask, in the same order. An error within `together`,
    `each` or `first` is told by the lowest process that has one, and ends all of them.

    Args:
        world: Which process this is.
        link: What connects it to the others.
    """

    def __init__(self, world: World | None = None, link: Link | None = None) -> None:
        self.world, self._link = world or World(), link or Alone()
        self.rank, self.size, self.is_first = (
            self.world.rank,
            self.world.size,
            self.world.is_first,
        )
        self._is_told = False  # that a process has failed

    def gather(self, value: Any) -> list[Any]:
        """Give a plain value (as JSON has them, NaN too) to all; get those of all, by rank.

        Raises:
            ToldElsewhereError: Another process has failed.
        """
        return self._exchanged(value, None)

    def each(self, job: Callable[[], T]) -> list[T]:
        """Do something in every process, and get its results, plain values, by rank.

        Raises:
            ToldElsewhereError: It failed in a process of lower rank, or in another alone.
        """
        try:
            value = job()
        except Exception as error:
            self._fail(error)
            raise
        return self._exchanged(value, None)

    def first(self, job: Callable[[], T]) -> T:
        """Do something in the first process alone, and give its result, a plain value, to all.

        Raises:
            ToldElsewhereError: It failed there.
        """
        value: T = self.each(lambda: job() if self.is_first else None)[0]  # type: ignore[assignment]
        return value

    @contextmanager
    def together(self) -> Iterator[None]:
        """Go on only when all are through, and none of them has failed.

        Raises:
            ToldElsewhereError: Another process has failed.
        """
        try:
            yield
        except Exception as error:
            self._fail(error)
            raise
        self._exchanged(None, None)

    def same(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite tensors, of any device, by those of the first process."""
        if self.size > 1:
            for tensor in tensors:
                self._link.broadcast(tensor)

    def share(self, data: bytes) -> bytes:
        """Give the bytes of the first process to all; those of the others do not matter."""
        length = self.gather(len(data))[0]
        if self.size == 1:
            return data
        carrier = torch.zeros(length, dtype=torch.uint8)
        if self.is_first:
            carrier = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        self._link.broadcast(carrier)
        return carrier.numpy().tobytes()

    def _fail(self, error: Exception) -> None:
        """Tell the others of an error, unless all know of one already.

        Raises:
            ToldElsewhereError: A process of lower rank has failed, too.
        """
        if not self._is_told and self.size > 1:
            self._exchanged(None, f"process {self.rank} of {self.size}: {error}")

    def _exchanged(self, value: Any, problem: str | None) -> list[Any]:
        message = json.dumps({"value": value, "problem": problem}).encode()
        messages = [json.loads(data) for data in self._link.exchange(message)]
        failed = [rank for rank, told in enumerate(messages) if told["problem"] is not None]
        if not failed:
            return [told["value"] for told in messages]
        self._is_told = True
        if failed[0] == self.rank:
            return []
        raise ToldElsewhereError(messages[failed[0]]["problem"])


ALONE = Ranks()
