"""progress.png: how a training goes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medseg.evaluation.progress import write_png
from medseg.files import atomic


def draw(path: Path, records: Sequence[dict[str, Any]], title: str) -> None:
    """Draw the log of a run.

    Args:
        path: The PNG to write.
        records: Lines of log.jsonl.
        title: The run's name.
    """
    with atomic(path) as temporary:
        write_png(temporary, records, title)
