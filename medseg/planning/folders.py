"""Which patterns of a folder's files are channels, label and mask."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from medseg.errors import ConfigError, DataError
from medseg.planning import patterns
from medseg.planning.options import Options
from medseg.planning.patterns import Files
from medseg.planning.words import role, short
from medseg.volumes import nifti
from medseg.volumes.layouts.files import found

Described = tuple[dict[str, Any], dict[str, str]]
_FEW = 64  # different values; a label map has no more
_OFTEN = 0.5  # share of the cases of a label in which a channel has to be
_TOLD = 8


def describe(folder: Path, options: Options) -> Described:
    """The section `data` of a folder, and how its parts were found.

    Raises:
        DataError: It holds no volume, or what its files are could be read in several ways.
        ConfigError: A pattern that was given does not name the case.
    """
    _check_patterns(options)
    if options.channels and options.label:
        data = {"channels": dict(options.channels), "label": options.label, "mask": options.mask}
        return data, dict.fromkeys(("channels", "label"), "as asked")
    every = patterns.find(folder)
    if not every:
        raise DataError(folder, f"no .nii.gz or .nii file in it: {found(folder)}")
    said = {*options.channels.values(), options.label, options.mask}
    left = [files for files in every if files.text not in said]
    label, how = (options.label, "as asked") if options.label else _label(folder, left, every)
    ids = next((files.ids for files in every if files.text == label), frozenset[str]())
    left = [f for f in left if f.text != label and len(f.ids & ids) >= _OFTEN * len(ids)]
    masks = [files for files in left if role(files.name) == "mask"]
    others = [files for files in left if role(files.name) == "label"]
    if others:
        raise _ambiguous(folder, [label, *(files.text for files in others)], "the label", every)
    if len(masks) > 1 and options.mask is None:
        raise _ambiguous(folder, [files.text for files in masks], "the mask", every)
    images = [files for files in left if files not in masks]
    names = short([files.name for files in images])
    channels = dict(options.channels) or {
        name: files.text for name, files in zip(names, images, strict=True)
    }
    if not channels:
        raise DataError(
            folder,
            f"no images beside {label}: {_listed(every)}: give --channel t1=images/{{id}}.nii.gz",
        )
    mask = options.mask or (masks[0].text if masks else None)
    data = {"channels": channels, "label": label, "mask": mask}
    why = {"channels": "patterns that the files follow", "label": how}
    if mask is not None:
        why["mask"] = "as asked" if options.mask else "by its name"
    return data, why


def _check_patterns(options: Options) -> None:
    named = {f"--channel {name}": text for name, text in options.channels.items()}
    for option, text in {**named, "--label": options.label, "--mask": options.mask}.items():
        if text is not None and patterns.ID not in text:
            raise ConfigError(
                f"{option} is a pattern that must contain {{id}}, as labels/{{id}}.nii.gz, got "
                f"{text!r}"
            )


def _label(folder: Path, left: list[Files], every: list[Files]) -> tuple[str, str]:
    """The pattern of the labels: by its name, else by what is in the files, else a lone mask."""
    named = [files for files in left if role(files.name) == "label"]
    if len(named) == 1:
        return named[0].text, "by its name"
    if named:
        raise _ambiguous(folder, [files.text for files in named], "the label", every)
    images = [files for files in left if role(files.name) == "channel"]
    like = [files for files in images if _is_label(files.path(folder))]
    if len(like) == 1 and len(images) > 1:
        return like[0].text, "the only one of whole numbers and few of them"
    if len(like) > 1:
        raise _ambiguous(folder, [files.text for files in like], "the label", every)
    masks = [files for files in left if role(files.name) == "mask"]
    if len(masks) == 1:
        return masks[0].text, "a mask, and nothing else is a label"
    raise DataError(
        folder,
        f"nothing seems to be the label: {_listed(every)}: give --label 'labels/{{id}}.nii.gz'",
    )


def _is_label(path: Path) -> bool:
    """Whether a volume holds whole numbers from 0, and few different ones."""
    data = nifti.read(path, volumes=True, warn=False).data
    if len(data) > 1 or data.min() < 0:
        return False
    values = np.unique(data)
    return len(values) <= _FEW and bool((values == np.round(values)).all())


def _ambiguous(folder: Path, texts: list[str], what: str, every: list[Files]) -> DataError:
    option = {"the label": "--label", "the mask": "--mask"}[what]
    return DataError(
        folder,
        f"{' or '.join(texts)} may be {what}: give {option} 'PATTERN' and, for the channels, "
        f"--channel t1='PATTERN'; {_listed(every)}",
    )


def _listed(every: list[Files]) -> str:
    told = [f"{files.text} ({len(files.ids)})" for files in every[:_TOLD]]
    more = f" and {len(every) - _TOLD} more" if len(every) > _TOLD else ""
    return f"the files follow {', '.join(told)}{more}"
