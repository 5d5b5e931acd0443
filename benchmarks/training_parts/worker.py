"""One method in a process of its own: samples per CPU second once it is under way.

The argument is a job (JSON): "data" (a name), "folder" of the data sets, "prepared" (a folder for
the preprocessed cases), "tool", "precision", "seconds". Tool "prepare" fills that folder. Prints
JSON on its last line.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from training_parts.methods import SETS

Job = dict[str, Any]
_WARM_UP = 3  # steps


def main() -> None:
    """Do the job."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    job = json.loads(sys.argv[1])
    config = SETS[job["data"]].load(job["folder"], job["precision"])
    if job["tool"] == "medseg":
        from training_parts.ours import train

        told = train(config, job)
    else:
        from medseg.training.setup import set_up

        setup = set_up(config)
        if job["tool"] == "prepare":
            from training_parts.prepared import store

            told = {"cases": store(setup, Path(job["prepared"]))}
        else:
            told = measured(_steps(job, setup), config.train.batch, job["seconds"])
    print(json.dumps(told), flush=True)


def _steps(job: Job, setup: Any) -> Callable[[], Any]:
    """What takes a step, with the next batch."""
    if job["tool"] == "floor":
        from training_parts.ours import floor

        return floor(setup)
    if job["tool"] == "nnunet":
        from training_parts.nnunet_trainer import trainer

        mine = trainer(setup, job)
        return lambda: mine.train_step(next(mine.dataloader_train))
    from training_parts.monai_pipeline import steps

    return steps(setup, job)


def measured(step: Callable[[], Any], batch: int, seconds: float) -> dict[str, float]:
    """Take steps for a number of CPU seconds, all threads of the process counted."""
    for _ in range(_WARM_UP):
        step()
    start, count = time.process_time(), 0
    while (spent := time.process_time() - start) < seconds or not count:
        step()
        count += 1
    return {"samples": count * batch, "cpu_s": spent, "rate": count * batch / spent}


if __name__ == "__main__":
    main()
