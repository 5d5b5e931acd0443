"""progress.png: how loss, validation Dice and learning rate went."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medseg.files import atomic


def draw(path: Path, records: Sequence[dict[str, Any]]) -> None:
    """Draw the log of a run.

    Args:
        path: The PNG to write.
        records: Lines of log.jsonl.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    steps = [record["step"] for record in records]
    left.plot(steps, [record["loss"] for record in records], color="#3b6ea5", linewidth=1)
    left.set(xlabel="step", ylabel="training loss", title="Loss")
    rate = left.twinx()
    rate.plot(steps, [record["lr"] for record in records], color="#b0b0b0", linewidth=1)
    rate.set_ylabel("learning rate", color="#808080")
    rate.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    validated = [record for record in records if "validation" in record]
    for name in validated[0]["validation"] if validated else ():
        values = [record["validation"][name] for record in validated]
        right.plot(
            [r["step"] for r in validated],
            values,
            marker="o",
            markersize=3,
            label=f"{name} {values[-1]:.3f}",
        )
    right.set(xlabel="step", ylabel="mean Dice", title="Validation", ylim=(0, 1))
    if validated:
        right.legend(loc="lower right", frameon=False)
    for axes in (left, right):
        axes.grid(alpha=0.25)
    with rc_context({"text.parse_math": False}), atomic(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
