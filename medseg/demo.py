"""`medseg demo`: the whole road on a phantom, in minutes, with the commands one would type."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from medseg import api, tables
from medseg.config import load
from medseg.console import console
from medseg.files import write_text
from medseg.volumes import phantom

_TRAIN, _TEST = 20, 6
_SEED = 20_26


def run(output: Path, device: str, overrides: Sequence[str]) -> None:
    """Generate phantoms, train, predict the held-out ones, evaluate, and show the result.

    Args:
        output: Folder for data, run, masks and scores.
        device: "auto", "cpu", "cuda" or "cuda:N".
        overrides: Settings instead of the demo's own.

    Raises:
        MedsegError: As the steps do.
    """
    start = time.monotonic()
    data, trained, masks, scores = (output / name for name in ("data", "run", "masks", "scores"))
    console.rule("[bold]Phantoms: heads with lesions that no threshold can find")
    phantom.generate(data / "train", _TRAIN, _SEED)
    phantom.generate(data / "test", _TEST, _SEED + 1)
    text = files("medseg").joinpath("demo.yaml").read_text(encoding="utf-8")
    write_text(data / "demo.yaml", text)
    config = load(data / "demo.yaml", overrides)

    _say("train", "-c", data / "demo.yaml", "-o", trained)
    api.train(config, trained, device=device)
    _say("predict", "-m", trained, "-i", data / "test" / "imagesTr", "-o", masks)
    outcome = api.predict(trained, data / "test" / "imagesTr", masks, device=device)
    _say("evaluate", "-c", data / "demo.yaml", "-i", masks, "-o", scores,
         f"data.path={data / 'test'}")  # fmt: skip
    held_out = load(data / "demo.yaml", [*overrides, f"data.path={data / 'test'}"])
    summary = api.evaluate(masks, held_out, scores, ids=outcome.done + outcome.kept)

    console.rule()
    console.print(tables.scores(summary, f"{summary['cases']} held-out cases"))
    tables.paths({"Report": scores / "report.html", "Masks": masks, "Model": trained})
    console.print(f"Finished in {time.monotonic() - start:.0f} s.")


def _say(*words: str | Path) -> None:
    console.rule()
    console.print("[bold]$ medseg " + shlex.join(map(str, words)), markup=True)
