"""How a training went, drawn once for both: progress.png, and the report's page.

Small panels over the steps: loss and Dice large, what explains them below. Lines are named where
they end, the elapsed time stands above the steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from medseg.evaluation.figures import INK, SERIES, STYLE, Curve, Log, short, svg
from medseg.evaluation.progress_axes import Label, beside, clock, elapsed, ink, marked, steps, trend

Panel = Callable[[Any, dict[str, Curve]], None]
_PAPER, _PEN = "#ffffff", "#1c2430"  # of the PNG: the report's, in its light colours
_MANY = len(SERIES)  # classes; of more, only the worst have a colour and a name
_WORST = 3
_HEIGHTS = (2.9, 1.75)  # of the two rows, in inches
_LOSS, _RATE, _NORM, _DATA = SERIES[0], SERIES[2], SERIES[3], SERIES[1]


def training_curves(log: Log) -> str:
    """The picture as SVG in the page's text colour; nothing where the log holds nothing.

    Args:
        log: Records with `step`, and some of `loss`, `validation` (Dice by name), `lr`,
            `grad_norm`, `outside` and `seconds`.
    """
    import matplotlib as mpl

    with mpl.rc_context(STYLE):
        figure = _figure(log, "")
        return svg(figure, "Training curves") if figure else ""


def write_png(path: Path, log: Log, title: str) -> None:
    """The picture as a PNG.

    Args:
        path: The file.
        log: As of `training_curves`.
        title: What stands above, the run's name.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    style = {key: _PEN if value == INK else value for key, value in STYLE.items()}
    with mpl.rc_context(style | {"figure.facecolor": _PAPER, "axes.facecolor": _PAPER}):
        figure = _figure(log, title) or _blank(title)
        FigureCanvasAgg(figure)
        figure.savefig(path, format="png", dpi=120)


def mean_dice(scores: Mapping[str, float | None]) -> float:
    """The mean Dice of one validation, as the log has it; -1 where no class could be scored."""
    value = scores.get("mean", next(iter(scores.values()), None))
    return -1.0 if value is None or not isfinite(value) else float(value)


def _figure(log: Log, title: str) -> Any:
    """Each panel has its place, whatever else there is; a panel without values is left out."""
    from matplotlib.figure import Figure

    known = {key: _series(log, key) for row in (_LARGE, _SMALL) for key in row}
    rows = [row for row in (_LARGE, _SMALL) if any(known[key] for key in row)]
    if not rows:
        return None
    last = max(1, *(record["step"] for record in log))
    times = _series(log, "seconds").get("seconds", [])
    heights = [_HEIGHTS[row is _SMALL] for row in rows]
    figure = Figure(figsize=(11, sum(heights) + (0.4 if title else 0)), layout="constrained")
    grid = figure.add_gridspec(len(rows), 6, height_ratios=heights)
    for place, row in enumerate(rows):
        width = 6 // len(row)
        for n, (key, draw) in enumerate(row.items()):
            axes = figure.add_subplot(grid[place, n * width : (n + 1) * width])
            if not known[key]:
                axes.set_axis_off()
                continue
            draw(axes, known[key])
            steps(axes, last)
            if row is _LARGE:
                elapsed(axes, times)
            else:
                axes.set_xlabel("step")
    if title:
        _head(figure, title, _facts(log))
    return figure


def _head(figure: Any, title: str, facts: str) -> None:
    figure.suptitle(short(title, 60), x=0.006, ha="left", fontsize=11, weight="bold")
    figure.text(0.994, 0.988, facts, ha="right", va="top", fontsize=9, alpha=0.75)


def _blank(title: str) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 1), layout="constrained")
    _head(figure, title, "no records yet")
    return figure


def _loss(axes: Any, series: dict[str, Curve]) -> None:
    trend(axes, series["loss"], _LOSS, "{:.3f}")
    axes.set_title("Training loss", loc="left")


def _dice(axes: Any, series: dict[str, Curve]) -> None:
    whole = series.get("mean", next(iter(series.values())))
    step, score = max(reversed(whole), key=lambda point: point[1])
    classes = {name: curve for name, curve in series.items() if name != "mean"}
    worst = sorted(classes, key=lambda name: dict(classes[name]).get(step, 2.0))[:_WORST]
    named = list(classes) if len(classes) <= _MANY else worst
    colours = dict(zip(named, SERIES, strict=False))
    labels = []
    for name, curve in classes.items():
        style = {"color": colours[name]} if name in colours else {"color": ink(), "alpha": 0.2}
        least = 30 if name in colours else 2
        marked(axes, curve, linewidth=1.4 if name in colours else 0.9, least=least, **style)
        if name in colours:
            labels.append(Label(curve[-1][1], _named(name, curve), colours[name]))
    if "mean" in series:
        marked(axes, whole, linewidth=2.2, color=ink(), zorder=3)
        labels.append(Label(whole[-1][1], _named("mean", whole), ink(), "bold"))
    axes.axvline(step, color=ink(), alpha=0.45, linewidth=1, linestyle=(0, (4, 3)))
    axes.plot(step, score, "o", markersize=8, mfc="none", mec=ink(), mew=1.4, zorder=4)
    axes.set_ylim(*_dice_limits([y for curve in series.values() for _, y in curve]))
    more = f"; worst {_WORST} of {len(classes)}" if len(named) < len(classes) else ""
    axes.set_title(f"Dice in validation: best {score:.3f} at step {step:,}{more}", loc="left")
    beside(axes, labels)


def _rate(axes: Any, series: dict[str, Curve]) -> None:
    curve = series["lr"]
    most = max(y for _, y in curve)
    marked(axes, curve, color=_RATE, linewidth=1.8, least=3)
    axes.set_ylim(0, 1.1 * most or 1)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_title(f"Learning rate: peak {most:.3g}", loc="left")


def _norm(axes: Any, series: dict[str, Curve]) -> None:
    values = [y for _, y in series["grad_norm"]]
    low, high = np.percentile(values, (1, 99))
    is_wide = min(values) > 0 and bool(high > 10 * low)
    trend(axes, series["grad_norm"], _NORM, "{:.2g}", is_log=is_wide)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_title("Gradient norm, before clipping", loc="left")


def _outside(axes: Any, series: dict[str, Curve]) -> None:
    curve = [(step, 100 * share) for step, share in series["outside"]]
    x, y = np.array(curve, dtype=float).T
    trend(axes, curve, _DATA, "{:.2g} %")
    axes.fill_between(x, y, color=_DATA, alpha=0.2, linewidth=0)
    axes.set_ylim(0, max(5.0, min(100.0, 1.3 * float(np.percentile(y, 98)))))
    axes.yaxis.set_major_formatter("{x:g} %")
    axes.set_title(f"Data time: median {np.median(y):.2g} % of a step", loc="left")


def _named(name: str, curve: Curve) -> str:
    return f"{short(name)} {curve[-1][1]:.3f}"


def _dice_limits(values: Sequence[float]) -> tuple[float, float]:
    """Whole tenths around the values, at least two of them, within 0 to 1."""
    low, high = np.floor(10 * min(values)) / 10, np.ceil(10 * max(values)) / 10
    low, high = max(0.0, min(low, high - 0.2)), min(1.0, max(high, low + 0.2))
    return low - 0.02 * (high - low), high + 0.02 * (high - low)


def _facts(log: Log) -> str:
    last = log[-1]
    told = [f"step {last['step']:,}"]
    if last.get("seconds") is not None:
        told.append(clock(last["seconds"]))
    rates = [r["samples_per_second"] for r in log if r.get("samples_per_second") is not None]
    if rates:
        told.append(f"{np.median(rates):.3g} patches/s")
    return ",  ".join(told)


def _series(log: Log, key: str) -> dict[str, Curve]:
    """The finite values of one entry of a log by name; an entry may itself hold several by name."""
    found: dict[str, Curve] = {}
    for record in log:
        entry = record.get(key)
        for name, value in (entry if isinstance(entry, Mapping) else {key: entry}).items():
            if value is not None and isfinite(value):
                found.setdefault(name, []).append((record["step"], value))
    return found


_LARGE: dict[str, Panel] = {"loss": _loss, "validation": _dice}
_SMALL: dict[str, Panel] = {"lr": _rate, "grad_norm": _norm, "outside": _outside}
