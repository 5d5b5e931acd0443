"""What is run: each job is one training of a shipped config with another network."""

from __future__ import annotations

import csv
import json
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from math import isfinite
from pathlib import Path
from typing import Any

from common import CONFIGS, machine
from common import run as run_python

from medseg import plugins
from medseg.config.schema import Model
from medseg.networks.assembly import build_network
from medseg.networks.describe import multiply_adds, parameter_count

plugins.load()

# The five levels of all papers, at the same strides. Papers begin with a step of 2 where images
# are large (GoogLeNet, ResNet); volumes of 36 to 65 voxels keep their first level whole.
FIVE = [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2], [2, 2, 2]]
COMMON: dict[str, Any] = {"norm": "instance", "strides": FIVE}
ENCODERS: dict[str, dict[str, Any]] = {
    "VGG-D": {"name": "vgg16", **COMMON},
    "GoogLeNet": {"name": "inception", **COMMON},
    "ResNet-18": {"name": "resnet18", **COMMON},
    "ResNet-34": {"name": "resnet34", **COMMON},
    "plain-18": {"name": "plain18", **COMMON},
    "plain-34": {"name": "plain34", **COMMON},
}
DECODER: dict[str, Any] = {"name": "unet", "widths": [8, 16, 32, 64]}
PARAMETERS, MULTIPLY_ADDS = 1_000_000, 600_000_000  # of encoder and decoder; per 32 x 48 x 32
MEASURED_ON = (32, 48, 32)
# The sarcoma volumes are coarser here than in their recipe, so that a patch sees all of a volume.
GRIDS: dict[str, dict[str, Any]] = {
    "hippocampus": {},
    "sts": {"preprocess.spacing": [6.0, 6.0, 6.0], "train.patch": [32, 32, 32]},
}
NO_AUGMENTATION = {"affine": 0.0, "brightness": 0.0, "contrast": 0.0, "noise": 0.0}
LAYERS = (20, 32, 44, 56)
CASES = (8, 32, 180)


@dataclass(frozen=True)
class Job:
    """One training."""

    key: str
    about: dict[str, Any]
    config: str
    settings: dict[str, Any]
    output: Path


def compare(options: Namespace, scratch: Path) -> Iterator[Job]:
    """Every encoder at equal parameters and at equal multiply-adds, on both sets of data."""
    seconds = 12 if options.quick else 45
    for seed in options.seeds:  # interleaved: a slower hour slows all
        for data in ("hippocampus", "sts"):
            for match in ("parameters", "multiply_adds"):
                for name in ENCODERS:
                    model, size = matched(name, match)
                    about = {"part": "compare", "data": data, "match": match, "name": name,
                             "seed": seed, "seconds": seconds, **size}  # fmt: skip
                    settings = {"model": model, "train.lr": 3e-3, "inference.flip": [],
                                "train.budget": {"cpu_seconds": seconds},
                                **GRIDS[data]}  # fmt: skip
                    yield job(about, settings, options, scratch)


@cache
def matched(name: str, match: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The model whose width brings it nearest to the common size, and its sizes."""
    target = PARAMETERS if match == "parameters" else MULTIPLY_ADDS
    found = []
    for thousandth in range(30, 400, 5):
        width = thousandth / 1000
        model: dict[str, Any] = {"encoder": {**ENCODERS[name], "width": width}, "decoder": DECODER}
        model["deep_supervision"] = 1
        network = build_network(Model.model_validate_json(json.dumps(model)), 1, 3, seed=0)
        size = {"width": width, "parameters": parameter_count(network),
                "multiply_adds": multiply_adds(network, 1, MEASURED_ON)}  # fmt: skip
        found.append((abs(size[match] - target), model, size))
        if size[match] > 1.5 * target:
            break
    _, model, size = min(found, key=lambda item: item[0])
    return model, size


def depth(options: Namespace, scratch: Path) -> Iterator[Job]:
    """6 n + 2 layers in three stages, as in section 4.2 of the paper; scored on training cases."""
    data = training_twice(options.hippocampus.resolve(), scratch, train=24, scored=12)
    for seed in options.seeds[:2]:
        for layers in LAYERS[:: 3 if options.quick else 1]:
            for kind in ("plain", "residual"):
                blocks = [(layers - 2) // 6] * 3
                encoder = {
                    "name": "resnet", "widths": [8, 16, 32], "blocks": blocks, "norm": "batch",
                    "residual": kind == "residual", "shortcut": "A", "activation": "relu",
                    "strides": [[2, 2, 2], [1, 1, 1], [2, 2, 2]], "stem_norm": True,
                }  # fmt: skip
                model = {"encoder": encoder, "decoder": {"name": "fcn", "width": 32},
                         "deep_supervision": 0}  # fmt: skip
                about = {"part": "depth", "name": kind, "layers": layers, "seed": seed}
                steps = 30 if options.quick else 250
                settings = {
                    **data, "model": model, "train.budget": {"steps": steps}, "train.batch": 4,
                    "train.optimiser": "sgd", "train.lr": 0.1, "train.weight_decay": 1e-4,
                    "train.ema": 0.0, "train.validate_every": steps // 10,
                    "train.validation_cases": None, "augment": NO_AUGMENTATION,
                    "inference.flip": [],
                }  # fmt: skip
                yield job(about, settings, options, scratch)


def training_twice(data: Path, scratch: Path, *, train: int, scored: int) -> dict[str, Any]:
    """Settings that score a network on cases it was trained on: they are listed under two names."""
    ids = json.loads((data / "split.json").read_text())["train"][:train]
    again = [f"{name}-again" for name in ids[:scored]]
    rows = ["id,t1,label"] + [
        f"{name},{data}/images/{file}.nii.gz,{data}/labels/{file}.nii.gz"
        for name, file in [*zip(ids, ids, strict=True), *zip(again, ids, strict=False)]
    ]
    (scratch / "cases.csv").write_text("\n".join(rows))
    (scratch / "cases.json").write_text(json.dumps({"train": ids, "validation": again}))
    return {"data.layout": "csv", "data.path": str(scratch / "cases.csv"),
            "data.channels": {"t1": "t1"}, "data.label": "label",
            "data.split.file": str(scratch / "cases.json")}  # fmt: skip


def transfer(options: Namespace, scratch: Path) -> Iterator[Job]:
    """VGG-16 three ways on three numbers of cases."""
    data = options.hippocampus.resolve()
    split = json.loads((data / "split.json").read_text())
    seconds = 15 if options.quick else 100
    for seed in options.seeds[:2]:
        for cases in CASES[:: 2 if options.quick else 1]:
            file = scratch / f"{cases}.json"
            file.write_text(json.dumps({**split, "train": split["train"][:cases]}))
            for name in ("random", "fine-tuned", "fixed"):
                config = {"random": "vgg16_fine_tune", "fine-tuned": "vgg16_fine_tune",
                          "fixed": "vgg16_feature_extractor"}[name]  # fmt: skip
                start: dict[str, Any] = {"model.encoder.pretrained.path": str(options.vgg16)}
                if name == "random":
                    start = {"model.encoder.pretrained": None, "train.encoder_lr": 1.0,
                             "train.level_decay": 1.0}  # fmt: skip
                about = {"part": "transfer", "name": name, "cases": cases, "seed": seed,
                         "seconds": seconds}  # fmt: skip
                settings = {**start, "train.budget": {"cpu_seconds": seconds}}
                made = job(about, settings, options, scratch, config=f"{config}.yaml")
                made.settings["data.split.file"] = str(file)
                yield made


def job(
    about: dict[str, Any],
    settings: dict[str, Any],
    options: Namespace,
    scratch: Path,
    config: str | None = None,
) -> Job:
    """Fill in where data are and what all runs share."""
    words = [about["part"], about.get("data"), about.get("match"), about["name"],
             about.get("layers"), about.get("cases"), about["seed"]]  # fmt: skip
    key = " ".join(str(word) for word in words if word is not None)
    is_sts = about.get("data") == "sts"
    if is_sts:
        where = {"data.path": str(options.sts.resolve() / "manifest.csv")}
    else:
        folder = options.hippocampus.resolve()
        where = {"data.path": str(folder), "data.split.file": str(folder / "split.json")}
    shared = {"seed": about["seed"], "train.threads": 1, "train.validate_every": 10**9,
              "train.cache": str(scratch / "cache")}  # fmt: skip
    config = config or ("sts_pet.yaml" if is_sts else "hippocampus.yaml")
    return Job(key, about, config, {**where, **shared, **settings}, scratch / key.replace(" ", "-"))


def run(job: Job) -> dict[str, Any]:
    """Train, predict and score; returns the result with the scores of every case."""
    overrides = [f"{key}={json.dumps(value)}" for key, value in job.settings.items()]
    train = ["-m", "medseg", "train", "-c", CONFIGS / job.config, "-o", job.output]
    run_python(*train, *overrides)
    records = [json.loads(line) for line in (job.output / "log.jsonl").read_text().splitlines()]
    with (job.output / "validation" / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    return {
        "key": job.key, **job.about, "steps": records[-1]["step"],
        "trained_seconds": round(records[-1]["seconds"], 1),
        "dice": by_class(rows, "dice"), "hd95": by_class(rows, "hd95_mm"),
        "curve": [(r["step"], round(r["loss"], 4)) for r in records],
        "validated": [(r["step"], round(mean_of(r["validation"]), 4)) for r in records
                      if "validation" in r],
        "machine": machine(),
    }  # fmt: skip


def mean_of(scores: dict[str, float]) -> float:
    """The mean Dice of a validation; with one class it is that one."""
    return scores.get("mean", next(iter(scores.values())))


def warming(todo: list[Job]) -> list[Job]:
    """Jobs that preprocess every case once, so that no run pays for it and others not."""
    last = {job.config: job for job in todo}.values()  # of each config: it has most cases
    return [
        replace(
            job,
            output=job.output.with_name(f"warm-{job.output.name}"),
            settings=job.settings | {"train.budget": {"steps": 1}},
        )
        for job in last
    ]


def by_class(rows: list[dict[str, str]], key: str) -> dict[str, list[float | None]]:
    """A measure of every case, in their order, by class; None where it is infinite."""
    found: dict[str, list[float | None]] = {}
    for row in rows:
        value = float(row[key])
        found.setdefault(row["class"], []).append(round(value, 4) if isfinite(value) else None)
    return found
