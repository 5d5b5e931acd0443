"""The pages and figures of docs/encoders/, from all results."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

from encoder_parts.results import Result, Results, difference, interval

mpl.use("Agg")
from matplotlib import pyplot as plt

SETS = {"hippocampus": "Hippocampus (MR)", "sts": "Sarcoma (PET)"}
MATCHES = {"parameters": "equal parameters", "multiply_adds": "equal multiply-adds"}
KINDS = {"plain": ("#c2571a", "--"), "residual": ("#1b6ca8", "-")}
STARTS = {"random": "#777777", "fine-tuned": "#1b6ca8", "fixed": "#c2571a"}
FIRST = "ResNet-18"  # what the others are compared with


def write(results: Results, docs: Path) -> None:
    """Write the page and the figure of each part that has results."""
    docs.mkdir(parents=True, exist_ok=True)
    for part, (text, figure) in {"compare": (compare_text, compare_figure),
                                 "depth": (depth_text, depth_figure),
                                 "transfer": (transfer_text, transfer_figure)}.items():  # fmt: skip
        if results.of(part=part):
            machines = "; ".join(results.values("machine", part=part))
            lines = [*text(results), "", f"Measured on {machines}.", ""]
            (docs / f"{part}.md").write_text("\n".join(lines), encoding="utf-8")
            drawn = figure(results)
            drawn.savefig(docs / f"{part}.png", dpi=120, bbox_inches="tight")
            plt.close(drawn)


def compare_text(results: Results) -> Iterator[str]:
    """A table for each set of data."""
    yield "# Encoders under the same conditions\n"
    first = results.of(part="compare")[0]
    seeds = len(results.values("seed", part="compare"))
    yield (
        f"Same U-Net decoder, data, patches, {first['seconds']} CPU seconds and {seeds} seeds; "
        "widths scaled. Intervals are 95 % bootstraps over seeds and cases; the last column is the "
        f"difference of Dice from {FIRST} on the same seeds and cases. On the sarcoma set a seed "
        "also draws which 7 of the 35 cases are scored.\n\n"
        "![Dice by encoder](compare.png)"
    )
    for data, title in SETS.items():
        for match, told in MATCHES.items():
            about = {"part": "compare", "data": data, "match": match}
            names = results.values("name", **about)
            found = {name: results.of(name=name, **about) for name in names}
            if not found:
                continue
            yield f"\n## {title}, {told}\n"
            yield (
                "| encoder | width | parameters | G multiply-adds | steps | Dice | HD95 mm "
                f"| Dice - {FIRST} |"
            )
            yield "|---|---|---|---|---|---|---|---|"
            for name, runs in found.items():
                yield _compare_row(name, runs, found.get(FIRST, []))


def _compare_row(name: str, runs: Sequence[Result], first: Sequence[Result]) -> str:
    run = runs[0]
    steps = np.mean([r["steps"] for r in runs])
    against = "" if name == FIRST or len(first) != len(runs) else _told(*difference(runs, first))
    return (
        f"| {name} | {run['width']} | {run['parameters'] / 1e6:.2f} M "
        f"| {run['multiply_adds'] / 1e9:.2f} | {steps:.0f} | {_told(*interval(runs, 'dice'))} "
        f"| {_told(*interval(runs, 'hd95'), decimals=2)} | {against} |"
    )


def compare_figure(results: Results) -> Any:
    """Dice with intervals: a panel for each set of data."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    for axis, (data, title) in zip(axes, SETS.items(), strict=True):
        for n, (match, told) in enumerate(MATCHES.items()):
            about = {"part": "compare", "data": data, "match": match}
            names = results.values("name", **about)
            rows = [interval(results.of(name=name, **about), "dice") for name in names]
            at = np.arange(len(names)) + (n - 0.5) * 0.25
            _points(axis, at, rows, ("#1b6ca8", "#c2571a")[n], told)
            axis.set_yticks(range(len(names)), names)
        axis.invert_yaxis()
        axis.set(title=title, xlabel="Dice (95 % interval)")
        axis.grid(axis="x", alpha=0.3)
    axes[0].legend(frameon=False, loc="best")
    return figure


def _points(axis: Any, at: Any, rows: Sequence[tuple[float, float, float]], colour: str,
            label: str) -> None:  # fmt: skip
    if rows:
        middle, low, high = np.array(rows).T
        axis.errorbar(middle, at, xerr=[middle - low, high - middle], fmt="o", ms=4, capsize=2,
                      color=colour, label=label)  # fmt: skip


def depth_text(results: Results) -> Iterator[str]:
    """Final training error by depth."""
    yield "# Training error as depth grows\n"
    run = results.of(part="depth")[0]
    yield (
        "He et al. 2015 (arXiv:1512.03385), Figure 6, in 3D on hippocampus: 6 n + 2 layers in "
        f"three stages, an FCN head, no augmentation, SGD, {run['steps']} steps. The error is "
        "1 - Dice on whole volumes that the network was trained on; one number a seed.\n\n"
        "![Training error by step and by depth](depth.png)\n"
    )
    yield "| layers | plain: error | residual: error | plain: loss | residual: loss |"
    yield "|---|---|---|---|---|"
    for layers in results.values("layers", part="depth"):
        runs = [results.of(part="depth", layers=layers, name=kind) for kind in KINDS]
        errors = [_range([1 - r["validated"][-1][1] for r in of]) for of in runs]
        losses = [_range([r["curve"][-1][1] for r in of]) for of in runs]
        yield f"| {layers} | {' | '.join(errors + losses)} |"


def depth_figure(results: Results) -> Any:
    """Two panels of curves, then the end against the depth."""
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained", sharey=True)
    depths = sorted(results.values("layers", part="depth"))
    colours = plt.cm.viridis(np.linspace(0, 0.85, len(depths)))
    for axis, kind in zip(axes, KINDS, strict=False):
        for layers, colour in zip(depths, colours, strict=True):
            runs = results.of(part="depth", layers=layers, name=kind)
            steps = [step for step, _ in runs[0]["validated"]]
            errors = 1 - np.mean([[dice for _, dice in r["validated"]] for r in runs], 0)
            axis.plot(steps, errors, color=colour, label=f"{layers} layers")
        axis.set(title=kind, xlabel="step")
        axis.legend(frameon=False)
    for kind, (colour, style) in KINDS.items():
        ends = [[1 - r["validated"][-1][1] for r in results.of(part="depth", layers=n, name=kind)]
                for n in depths]  # fmt: skip
        axes[2].plot(depths, [np.mean(e) for e in ends], style, marker="o", color=colour,
                     label=kind)  # fmt: skip
        for n, found in zip(depths, ends, strict=True):
            axes[2].plot([n] * len(found), found, ".", color=colour, alpha=0.5)
    axes[2].set(title="at the end", xlabel="layers", xticks=depths)
    axes[2].legend(frameon=False)
    axes[0].set_ylabel("training error (1 - Dice)")
    for axis in axes:
        axis.grid(alpha=0.3)
    return figure


def transfer_text(results: Results) -> Iterator[str]:
    """Dice by number of cases."""
    yield "# What ImageNet weights are worth\n"
    run = results.of(part="transfer")[0]
    yield (
        f"VGG-16 on hippocampus, {run['seconds']} CPU seconds: all weights random; ImageNet's, "
        "fine-tuned (`configs/vgg16_fine_tune.yaml`); ImageNet's, fixed "
        "(`configs/vgg16_feature_extractor.yaml`). 26 cases that nobody trained on, Dice with 95 % "
        "intervals over seeds and cases.\n\n![Dice by training cases](transfer.png)\n"
    )
    yield "| cases | random | fine-tuned | fixed | fine-tuned - random | fixed - random |"
    yield "|---|---|---|---|---|---|"
    for cases in sorted(results.values("cases", part="transfer")):
        found = [results.of(part="transfer", cases=cases, name=name) for name in STARTS]
        told = [_told(*interval(runs, "dice")) for runs in found]
        told += [_told(*difference(runs, found[0])) for runs in found[1:]]
        yield f"| {cases} | {' | '.join(told)} |"


def transfer_figure(results: Results) -> Any:
    """Dice against the number of cases."""
    figure, axis = plt.subplots(figsize=(5.5, 3.6), layout="constrained")
    for name, colour in STARTS.items():
        cases = sorted(results.values("cases", part="transfer", name=name))
        rows = [interval(results.of(part="transfer", name=name, cases=n), "dice") for n in cases]
        middle, low, high = np.array(rows).T
        axis.errorbar(cases, middle, yerr=[middle - low, high - middle], marker="o", capsize=3,
                      color=colour, label=name)  # fmt: skip
    axis.set(xscale="log", xlabel="training cases", ylabel="Dice (95 % interval)")
    axis.set_xticks(cases, [str(n) for n in cases])
    axis.minorticks_off()
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)
    return figure


def _told(middle: float, low: float, high: float, decimals: int = 3) -> str:
    return f"{middle:.{decimals}f} ({low:.{decimals}f} to {high:.{decimals}f})"


def _range(values: Sequence[float]) -> str:
    return " / ".join(f"{value:.3f}" for value in values)
