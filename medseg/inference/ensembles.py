"""Several models that predict together, with weights: `ensemble.json`, and who belongs together."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from medseg.errors import DataError
from medseg.files import read_json, write_json
from medseg.networks.checkpoint import Checkpoint, Tuned
from medseg.version import VERSION

MODEL, ENSEMBLE, STUDY = "model.safetensors", "ensemble.json", "study.json"
_FORMAT = 1
_CHUNK = 1 << 20  # bytes read at once
_LONGEST_HEADER = 100_000_000  # bytes, as safetensors has it


@dataclass(frozen=True)
class Member:
    """One model of an ensemble.

    Args:
        model: Its file.
        weight: Its share of the mean; those of all members sum to 1.
        weights_sha256: Of its weights, whatever is tuned or settled beside them.
        run: The run or study that it came with; what is chosen is chosen for all of these at once.
    """

    model: Path
    weight: float
    weights_sha256: str
    run: str = ""


@dataclass(frozen=True)
class Ensemble:
    """What `ensemble.json` holds. Paths in it are relative to its folder.

    Args:
        members: At least one.
        tuned: What was tuned for all of them together; None: the first member's own counts.
        figures: How they were chosen; plain values.
    """

    members: tuple[Member, ...]
    tuned: tuple[Tuned, ...] | None = None
    figures: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Source:
    """What a model given by a user stands for.

    Args:
        path: What was given, or found in it.
        models: The model files.
        weights: Of each; they sum to 1.
        tuned: As of `Ensemble`.
    """

    path: Path
    models: tuple[Path, ...]
    weights: tuple[float, ...] = (1.0,)
    tuned: tuple[Tuned, ...] | None = None


_TUNED = TypeAdapter(tuple[Tuned, ...] | None)


def find(run: str | Path) -> Source:
    """The models of a run or study folder, of an `ensemble.json`, or the model file itself.

    Raises:
        DataError: It is an ensemble that is damaged or not complete, or whose models have changed.
    """
    run = Path(run)
    if run.is_dir():
        if (run / ENSEMBLE).is_file() and not (run / MODEL).exists():
            return find(run / ENSEMBLE)
        if (run / STUDY).is_file():
            raise DataError(
                run,
                "is a study of which not all runs are trained yet: give one of its runs, or train "
                "the others first (medseg train ... --all-folds, or --seeds)",
            )
        return Source(run / MODEL, (run / MODEL,))
    if run.suffix != ".json":
        return Source(run, (run,))
    found = read(run)
    for member in found.members:
        if weights_sha256(member.model) != member.weights_sha256:
            raise DataError(
                member.model,
                f"has other weights than when {run} was written: restore it, or write the ensemble "
                "anew (medseg train of the study, or medseg ensemble)",
            )
    models, weights = zip(*((m.model, m.weight) for m in found.members), strict=True)
    return Source(run, models, weights, found.tuned)


def model_files(runs: Sequence[str | Path]) -> list[Path]:
    """The model files of what a user gives, in order."""
    return [model for run in runs for model in find(run).models]


def together(sources: Sequence[Source]) -> tuple[float, ...] | None:
    """The weights of all models of several sources, each source counting the same.

    Returns:
        They sum to 1. None: all are equal.
    """
    found = [weight / len(sources) for source in sources for weight in source.weights]
    is_even = max(found, default=0.0) - min(found, default=0.0) < 1e-9
    return None if is_even else tuple(found)


def read(path: Path) -> Ensemble:
    """Read an `ensemble.json`.

    Raises:
        DataError: It is missing, damaged or of another kind.
    """
    content = read_json(path)
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise DataError(path, f"not an ensemble of medseg {VERSION}")
    try:
        members = tuple(
            Member(
                Path(os.path.normpath(path.parent / item["model"])), float(item["weight"]),
                str(item["weights_sha256"]), str(item["run"]),
            )
            for item in content["members"]
        )  # fmt: skip
        found = Ensemble(
            members, _TUNED.validate_python(content["tuned"]), dict(content["figures"])
        )
    except (KeyError, TypeError, ValueError, ValidationError) as error:
        raise DataError(path, f"not a readable ensemble ({error!r})") from error
    total = sum(member.weight for member in members)
    if not members or min(m.weight for m in members) <= 0 or abs(total - 1) > 1e-6:
        raise DataError(path, "not a readable ensemble: weights must be above 0 and sum to 1")
    return found


def write(path: Path, ensemble: Ensemble) -> None:
    """Write an `ensemble.json`, atomically.

    Raises:
        DataError: It cannot be written.
    """
    folder = path.parent.resolve()
    members = [
        {**asdict(m), "model": Path(os.path.relpath(m.model.resolve(), folder)).as_posix()}
        for m in ensemble.members
    ]
    tuned = None if ensemble.tuned is None else [asdict(item) for item in ensemble.tuned]
    about = {"format": _FORMAT, "medseg": VERSION, "members": members, "tuned": tuned}
    write_json(path, {**about, "figures": dict(ensemble.figures)})


def set_tuned(path: Path, tuned: Tuned) -> None:
    """Put a tuned postprocessor into an ensemble's file, in place of one of the same name.

    Raises:
        DataError: The file is no ensemble, or cannot be written.
    """
    found = read(path)
    known = [item for item in found.tuned or () if item.name != tuned.name]
    write(path, replace(found, tuned=(*known, tuned)))


def weights_sha256(path: Path) -> str:
    """A hash of a model's weights alone: tuning and settling a model leave it as it is.

    Raises:
        DataError: The file cannot be read, or is no safetensors file.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if size > _LONGEST_HEADER:
                raise ValueError(f"a header of {size} bytes")
            header = json.loads(file.read(size))
            header.pop("__metadata__", None)
            digest.update(json.dumps(header, sort_keys=True).encode())
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    except OSError as error:
        raise DataError(path, error.strerror or str(error)) from error
    except (ValueError, AttributeError) as error:
        raise DataError(path, f"not a readable model ({error})") from error
    return digest.hexdigest()


def check_alike(checkpoints: Sequence[Checkpoint]) -> None:
    """See that models can predict together.

    Raises:
        DataError: There is none, or they differ in channels or classes.
    """
    if not checkpoints:
        raise DataError("model", "none is given")
    first = checkpoints[0]
    for other in checkpoints[1:]:
        for what in ("channels", "labels"):
            mine, its = getattr(first, what), getattr(other, what)
            if mine != its:
                raise DataError(
                    other.source,
                    f"its {what} are {its}, those of {first.source} {mine}: no ensemble can be "
                    "made of them",
                )
