"""dataset.json of the Medical Segmentation Decathlon and of nnU-Net (v1 and v2).

Both are described where they come from: Antonelli et al. 2022 (doi 10.1038/s41467-022-30695-9), and
nnU-Net's documentation of its dataset format (Isensee et al. 2021, doi 10.1038/s41592-020-01008-z).
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from medseg import files
from medseg.config.schema import Data
from medseg.errors import ConfigError, DataError
from medseg.volumes.dataset import Labels
from medseg.volumes.layouts.files import fitting, found

Classes = dict[str, int | tuple[int, ...]]


def read(folder: Path, layout: str) -> dict[str, Any]:
    """Read a folder's dataset.json.

    Raises:
        DataError: It is missing or not a JSON mapping.
    """
    path = folder / "dataset.json"
    if not folder.is_dir():
        raise DataError(folder, "no such folder; set data.path to where dataset.json lies")
    if not path.is_file():
        hint = f"no dataset.json, which layout {layout!r} needs: {found(folder)}{fitting(folder)}"
        raise DataError(folder, hint)
    content = files.read_json(path)
    if not isinstance(content, dict):
        raise DataError(path, f"must hold a mapping, got a {type(content).__name__}")
    return content


def resolve(data: Data) -> Data:
    """Fill in from dataset.json what the config leaves out: channels, classes, ignore_label.

    Channels become {"flair": "0 of 4"}: their place among the file's, from 0. A config that names
    channels picks them, by the file's names or numbers.

    Raises:
        DataError: dataset.json is missing, or lacks channels or labels that make sense.
        ConfigError: The config picks a channel that is not there.
    """
    folder = Path(data.path)
    content = read(folder, data.layout)
    names = channel_names(content, folder)
    chosen = data.channels or {name: name for name in names}
    channels = {key: _position(value, names) for key, value in chosen.items()}
    classes, ignore = (data.classes, None) if data.classes else _labels(content, folder)
    ignore = ignore if data.ignore_label is None else data.ignore_label
    update = {"channels": channels, "classes": classes, "ignore_label": ignore}
    resolved = data.model_copy(update=update)
    try:
        Labels.of(resolved)
    except ConfigError as error:
        if data.classes:  # the mistake is the config's own
            raise
        raise DataError(folder / "dataset.json", f"labels: {error}") from error
    return resolved


def channel_names(content: dict[str, Any], folder: Path) -> list[str]:
    """The channels of a dataset.json, by their number."""
    key = "channel_names" if "channel_names" in content else "modality"
    channels = content.get(key)
    expected = [str(number) for number in range(len(channels))] if channels else []
    if not isinstance(channels, dict) or sorted(channels, key=str) != sorted(expected):
        raise DataError(
            folder / "dataset.json",
            f'needs "channel_names" (or "modality"), numbered from 0 as in {{"0": "T1"}}, '
            f"got {channels!r}",
        )
    return [str(channels[number]) for number in expected]


def _position(wanted: str, names: list[str]) -> str:
    numbers = [str(number) for number in range(len(names))]
    places = [f"{number} of {len(names)}" for number in numbers]
    for known in (names, numbers, places):
        if wanted in known:
            return places[known.index(wanted)]
    close = difflib.get_close_matches(wanted, names, 1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise ConfigError(
        f"no channel {wanted!r} in dataset.json{hint} (known: {', '.join(names)})",
        ("data", "channels"),
    )


def _labels(content: dict[str, Any], folder: Path) -> tuple[Classes, int | None]:
    """The classes and the ignored value, from {"1": "tumour"} or {"tumour": 1, "core": [1, 3]}."""
    labels = content.get("labels")
    classes: Classes = {}
    try:
        if not isinstance(labels, dict) or not labels:
            raise ValueError("missing or empty")
        if all(key.isdecimal() for key in labels):
            for value, name in labels.items():
                classes[str(name)] = (*_tuple(classes.get(str(name), ())), int(value))
        else:
            classes = {name: _tuple(value) for name, value in labels.items()}
    except ValueError as error:
        raise DataError(
            folder / "dataset.json",
            f'needs "labels" as {{"tumour": 1}} or {{"1": "tumour"}}: {error}',
        ) from error
    ignored = _tuple(classes.pop("ignore", ()))
    classes = {name: values for name, values in classes.items() if values != (0,)}
    return classes, ignored[0] if ignored else None


def _tuple(value: Any) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, list | tuple) else (value,)
    if not all(isinstance(item, int) and not isinstance(item, bool) for item in values):
        raise ValueError(f"{value!r} is not a label value or a list of them")
    return values
