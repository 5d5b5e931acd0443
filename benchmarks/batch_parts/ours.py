"""Driver: `medseg predict`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from batch_parts.driver import Job, serve


def prepare(job: Job) -> Callable[[], Any]:
    """Import what the command line imports; the model is loaded within the call."""
    from medseg import api
    from medseg.memory import keep_freed

    keep_freed()
    return lambda: api.predict(
        job["run"], Path(job["inputs"]), Path(job["output"]), device="cpu",
        overrides=job["overrides"], quiet=True,
    )  # fmt: skip


if __name__ == "__main__":
    serve(prepare)
