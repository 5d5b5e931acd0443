"""The picture of a training: readable with one record or a thousand, one class or thirty."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medseg.evaluation import figures
from medseg.evaluation.progress import mean_dice, training_curves, write_png
from medseg.evaluation.progress_axes import _apart, clock

Log = list[dict[str, Any]]


def log(records: int, classes: list[str], every: int = 10) -> Log:
    """A training that goes well."""
    found: Log = []
    for n in range(1, records + 1):
        record: dict[str, Any] = {
            "step": 25 * n,
            "lr": 1e-3 * (1 - n / (records + 1)),
            "loss": 1 / n,
            "grad_norm": 1000 / n**2,
            "outside": 0.03,
            "samples_per_second": 20.0,
            "seconds": 30.0 * n,
        }
        if n % every == 0 or n == records:
            dice = {name: (1 - 1 / (n + 1)) * (1 - k / 50) for k, name in enumerate(classes)}
            mean = {"mean": sum(dice.values()) / len(dice)} if len(dice) > 1 else {}
            record["validation"] = mean | dice
        found.append(record)
    return found


ODD: Log = [
    {"step": 25, "loss": None, "lr": 0.0, "grad_norm": float("nan"), "seconds": 1.0},
    {"step": 50, "loss": -0.5, "lr": 0.0, "validation": {}, "grad_norm": 0.0, "outside": 0.0},
    {"step": 75, "loss": float("inf"), "validation": {"a": None, "b": 0.0}, "seconds": 0.5},
]


@pytest.mark.parametrize(
    "records",
    [
        log(1, ["lesion"]),
        log(2, ["left", "right"], every=5)[:1],
        log(1000, ["core $x^2$", "whole & <b>", "œdème\n"]),
        log(60, [f"organ number {n} with a long name" for n in range(30)]),
        ODD,
        [],
    ],
    ids=["one", "not validated", "long", "thirty classes", "NaN", "empty"],
)
def test_it_is_drawn(records: Log, tmp_path: Path) -> None:
    """Any warning, such as that there is no room, is an error here."""
    write_png(tmp_path / "a.png", records, "a_run-of.$1$" + "x" * 200)
    image = np.asarray(Image.open(tmp_path / "a.png").convert("L"))
    assert image.shape[1] == 1320
    assert image.std() > 3
    for edge in (image[0], image[-1], image[:, 0], image[:, -1]):
        assert edge.min() == 255  # nothing is cut off


def test_the_page_and_the_file_show_the_same() -> None:
    svg = training_curves(log(40, ["core", "whole"]))
    assert "currentColor" in svg  # dark on a light page, light on a dark one
    assert figures.INK not in svg
    for text in (
        ">Training loss<", ">Learning rate: peak", ">Gradient norm, before clipping<",
        ">Data time: median 3 % of a step<", ">core 0.976<", ">whole 0.956<", ">mean 0.966<",
        "best 0.966 at step 1,000<", ">5 min<",
    ):  # fmt: skip
        assert text in svg, text


def test_what_the_log_lacks_is_left_out() -> None:
    assert training_curves([]) == ""
    assert training_curves([{"step": 1, "loss": float("nan")}]) == ""
    svg = training_curves([{"step": 1, "loss": 0.5, "lr": None, "lr_scale": 2.0}])
    assert "Training loss" in svg
    for text in ("Learning rate", "Dice", "Gradient", "Data time"):
        assert text not in svg


def test_of_many_classes_the_worst_are_named() -> None:
    svg = training_curves(log(20, [f"c{n}" for n in range(30)]))
    assert "worst 3 of 30" in svg
    named = {f"c{n}" for n in range(30) if f">c{n} " in svg}
    assert named == {"c27", "c28", "c29"}


def test_the_last_of_the_best_validations_is_marked() -> None:
    """It is what training keeps: model.safetensors is of the later one."""
    records = log(40, ["lesion"])
    for record, dice in zip(records[9::10], (0.5, 0.75, 0.75, 0.6), strict=True):
        record["validation"] = {"lesion": dice}
    svg = training_curves(records)
    assert "best 0.750 at step 750<" in svg
    assert ">lesion 0.600<" in svg


@pytest.mark.parametrize(
    "wanted", [[0.5] * 5, [0.99, 1.0, 1.0], [0.0, 0.0, 0.01], [0.1, 0.12, 0.5, 0.9], [0.3]]
)
def test_names_keep_apart_and_inside(wanted: list[float]) -> None:
    places = _apart(wanted, 0.06)
    assert len(places) == len(wanted)
    assert np.diff(places).min(initial=1) > 0.0599
    assert min(places) >= -1e-9
    assert max(places) <= 1 + 1e-9
    assert abs(np.mean(places) - np.mean(wanted)) < 0.07
    assert _apart([0.1, 0.5], 0.06) == [0.1, 0.5]


def test_times_are_short() -> None:
    times = {0.0: "0", 12.0: "12 s", 90.0: "1.5 min", 5400.0: "1.5 h", 2 * 86400.0: "2 d"}
    assert {seconds: clock(seconds) for seconds in times} == times


def test_mean_dice() -> None:
    assert mean_dice({"mean": 0.5, "a": 0.2, "b": 0.8}) == 0.5
    assert mean_dice({"a": 0.2}) == 0.2
    assert mean_dice({}) == mean_dice({"a": None}) == mean_dice({"a": math.nan}) == -1
