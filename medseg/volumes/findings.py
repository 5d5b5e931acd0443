"""What turns up while one file is checked."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

from medseg.errors import DataError


class Findings:
    """The oddities of one file, in the order in which they are met.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        """Keep an oddity that does not stop the file from being used."""
        self.notes.append(text)

    def refuse(self, reason: str) -> NoReturn:
        """End the checking.

        Raises:
            DataError: Always.
        """
        raise DataError(self.path, reason)
