"""One folder of cases shared out among processes that know nothing of each other."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from medseg.errors import MedsegError
from medseg.volumes.dataset import Case

_LEDGER = re.compile(r"ledger(?:-(\d+)of(\d+))?\.jsonl")


@dataclass(frozen=True)
class Shard:
    """Part `number` of `of`, from 1.

    Case n (from 0) of the complete list, in natural order of the ids, belongs to shard
    n modulo `of` + 1: no case to two of them, and each to one.
    """

    number: int = 1
    of: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read "K/N".

        Raises:
            MedsegError: It is not that, or K is not among 1 to N.
        """
        found = re.fullmatch(r"(\d+)/(\d+)", text.strip())
        if found is None or not 1 <= int(found[1]) <= int(found[2]):
            raise MedsegError(
                f"--shard {text}: K/N with K from 1 to N expected, as 2/3 for the second of three"
            )
        return cls(int(found[1]), int(found[2]))

    def take(self, cases: Sequence[Case]) -> tuple[Case, ...]:
        """Those of all cases, in natural order, that belong to this shard."""
        return tuple(cases[self.number - 1 :: self.of])

    @property
    def ledger(self) -> str:
        """The file name of its ledger."""
        return "ledger.jsonl" if self.of == 1 else f"ledger-{self.number}of{self.of}.jsonl"

    @classmethod
    def of_ledger(cls, name: str) -> Shard | None:
        """The shard of a ledger, by its file name; None: it is the name of none."""
        found = _LEDGER.fullmatch(name)
        if found is None:
            return None
        return cls(int(found[1] or 1), int(found[2] or 1))

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"


WHOLE = Shard()
"""All cases in one go."""
