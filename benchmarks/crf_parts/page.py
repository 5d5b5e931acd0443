"""The page, the figure and the file of results of docs/crf/."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib as mpl

from crf_parts.jobs import ALL, BRAIN, DEVIATIONS, FAST, HIGH, PAIR, TWO

mpl.use("Agg")
from matplotlib import pyplot as plt

Results = dict[str, Any]
RESULTS = "results.json"
_COLOURS = {FAST.name: "#8fbcdb", PAIR.name: "#1b6ca8", HIGH.name: "#0b3d63", BRAIN.name: "#c2571a"}
_MARKERS = dict(zip(DEVIATIONS, "os^", strict=True))


def write(results: Results, docs: Path) -> None:
    """Write results.json, README.md and, if there is what it shows, crf.png."""
    docs.mkdir(parents=True, exist_ok=True)
    text = json.dumps(results, indent=1)
    (docs / RESULTS).write_text(f"{text}\n", encoding="utf-8")
    lines = [*_introduction(results), *tables(results), "", *_measured_on(results), ""]
    (docs / "README.md").write_text("\n".join(lines), encoding="utf-8")
    if not (results["speed"] and results["accuracy"]):
        return
    drawn = _figure(results)
    drawn.savefig(docs / "crf.png", dpi=120, bbox_inches="tight")
    plt.close(drawn)


def tables(results: Results) -> list[str]:
    """All tables, as markdown."""
    return [*_speed(results), "", *_memory(results), "", *_accuracy(results), "", *_others(results)]


def _introduction(results: Results) -> Iterator[str]:
    border, shape = results["border"], " x ".join(map(str, results["shape"]))
    yield "# The dense CRF beside its peers\n"
    yield "```\npython benchmarks/crf.py --data $MEDSEG_DATA/brats2015\n```\n"
    yield (
        "writes this page; read `--help` for other data and devices. One BraTS 2015 case "
        f"({results['case']}, Flair and T1c, {shape} voxels, {results['brain_voxels']:,} of them "
        f"brain), probabilities {results['source']}, in two classes and in all. Weights 3 "
        "and 5, spatial deviation 3 voxels, appearance 17, 12 and 10 voxels, five iterations, "
        "symmetric normalisation; intensities, cut at -3.1 and 3.1 beforehand, are spread over 0 "
        "to 254, where their deviations are "
        + ", ".join(f"{a:g}/{b:g} ({name})" for name, (a, b) in DEVIATIONS.items())
        + ".\n"
    )
    yield (
        "Times run from volumes in memory to marginals in a volume, preparation included, after a "
        f"first small call; medians of {results['repeats']}, methods taking turns. Memory is the "
        "highest above that with the inputs loaded, in a process of its own. pydensecrf2 is "
        "measured twice: on all voxels, its own way for volumes, and on a list of the brain's, "
        "which a user must write. The two solve different problems where the brain ends.\n"
    )
    yield (
        f"The truth is brute force over all pairs of the {border['brain_voxels']:,} brain voxels "
        f"in a cube of {border['side']} voxels around the tumour's outermost voxel (the first in "
        "its last plane along i), in double precision. Marginals of all classes are compared.\n"
    )
    yield "![Difference from brute force against time](crf.png)\n"


def _measured_on(results: Results) -> Iterator[str]:
    versions = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    yield (
        f"Measured on {results['machine']}; {versions}; the peer in an environment of its own "
        f"({', '.join(results['peer'])}). The ratios hold for this case, these parameters and such "
        "a machine; [results.json](results.json) has every repeat."
    )


def _settings(results: Results) -> list[tuple[int, str]]:
    """Number of classes and name of the deviations, as they were measured."""
    return list(dict.fromkeys((row["classes"], row["deviations"]) for row in results["speed"]))


def _of(results: Results, setting: tuple[int, str], method: str, key: str) -> float | None:
    """The median over repeats; None if not measured."""
    for row in results["speed"]:
        if (row["classes"], row["deviations"], row["method"]) == (*setting, method):
            values = [run[key] for run in row["runs"]]
            return None if None in values else median(values)
    return None


def _speed(results: Results) -> Iterator[str]:
    yield "## Time\n"
    yield (
        "| classes | deviations | medseg pair, one thread: CPU s | two threads: wall s "
        "| pydensecrf2 all: CPU s | brain: CPU s | all / medseg | brain / medseg "
        "| brain / medseg on two threads (wall) |"
    )
    yield "|---|---|---|---|---|---|---|---|---|"
    for setting in _settings(results):
        one, everything, brain = (
            _of(results, setting, method.name, "cpu_s") for method in (PAIR, ALL, BRAIN)
        )
        two, waited = (_of(results, setting, m.name, "wall_s") for m in (TWO, BRAIN))
        ratios = (everything / one, brain / one, waited / two)
        yield (
            f"| {setting[0]} | {setting[1]} | {one:.2f} | {two:.2f} | {everything:.2f} "
            f"| {brain:.2f} | " + " | ".join(f"{ratio:.1f}x" for ratio in ratios) + " |"
        )


def _memory(results: Results) -> Iterator[str]:
    methods = (PAIR, TWO, ALL, BRAIN)
    yield "## Memory above the inputs, MiB\n"
    yield f"| classes | deviations | {' | '.join(method.name for method in methods)} |"
    yield "|---|---|" + "---|" * len(methods)
    for setting in _settings(results):
        found = [_of(results, setting, method.name, "peak_mib") for method in methods]
        told = ["-" if peak is None else f"{peak:.0f}" for peak in found]
        yield f"| {setting[0]} | {setting[1]} | {' | '.join(told)} |"


def _accuracy(results: Results) -> Iterator[str]:
    yield "## Against brute force\n"
    yield (
        "| classes | deviations | method | mean difference | largest | labels that differ "
        "| CPU s (full volume) |"
    )
    yield "|---|---|---|---|---|---|---|"
    for row in results["accuracy"]:
        seconds = _of(results, (row["classes"], row["deviations"]), row["method"], "cpu_s")
        told = "-" if seconds is None else f"{seconds:.2f}"
        yield (
            f"| {row['classes']} | {row['deviations']} | {row['method']} | {row['mean']:.1e} "
            f"| {row['max']:.3f} | {row['labels']} | {told} |"
        )


def _others(results: Results) -> Iterator[str]:
    yield "## Others, once, two classes, sd 15\n"
    yield "| machine | method | CPU s | wall s | wall / medseg pair |"
    yield "|---|---|---|---|---|"
    rows = results["others"]
    pair = {row["machine"]: row["run"]["wall_s"] for row in rows if row["method"] == PAIR.name}
    for row in rows:
        start = f"| {row['machine']} | {row['method']} "
        if "skipped" in row:
            yield f"{start}| - | not measured: {row['skipped']} | - |"
            continue
        cpu, wall = row["run"]["cpu_s"], row["run"]["wall_s"]
        yield f"{start}| {cpu:.2f} | {wall:.2f} | {wall / pair[row['machine']]:.1f}x |"
    yield (
        f"\nThe first call after an install compiles for {results['compile_s']:.0f} s more; "
        "what it compiled is kept."
    )


def _figure(results: Results) -> Any:
    """Mean difference from brute force against CPU seconds: a point for each method and setting."""
    figure, axis = plt.subplots(figsize=(6.5, 4), layout="constrained")
    for row in results["accuracy"]:
        seconds = _of(results, (row["classes"], row["deviations"]), row["method"], "cpu_s")
        if row["classes"] == 2 and seconds is not None:
            axis.plot(seconds, row["mean"], _MARKERS[row["deviations"]], ms=8,
                      color=_COLOURS[row["method"]])  # fmt: skip
    for name, colour in _COLOURS.items():
        axis.plot([], [], "o", color=colour, label=name)
    for name, marker in _MARKERS.items():
        axis.plot([], [], marker, color="#777777", label=name)
    axis.set(xscale="log", yscale="log", xlabel="CPU seconds on the full volume, one thread",
             ylabel="mean difference from brute force")  # fmt: skip
    axis.set_title("Two classes; lower and further left is better", fontsize=10)
    axis.grid(alpha=0.3, which="both")
    axis.legend(frameon=False, fontsize=8, ncols=2)
    return figure
