"""What names of files, columns and classes give away: labels, masks, modalities, sides."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

Role = Literal["label", "mask", "channel"]
Modality = Literal["ct", "pet", "other"]

_LABEL = {
    "label", "labels", "labelstr", "lbl", "seg", "segs", "segmentation", "segmentations", "gt",
    "groundtruth", "truth", "annotation", "annotations", "lesion", "lesions", "manual", "consensus",
    "gtv", "multiclass",
}  # fmt: skip
_MASK = {"mask", "masks", "brainmask", "roi", "bodymask", "headmask", "lungmask"}
_MODALITIES: dict[str, Modality] = {
    "ct": "ct", "cbct": "ct", "cect": "ct", "ncct": "ct", "hu": "ct",
    "pet": "pet", "suv": "pet", "fdg": "pet",
}  # fmt: skip
_SIDES = {"left", "right", "l", "r", "lh", "rh", "sinister", "dexter"}


_GENERIC = {"image", "images", "imagestr", "img", "imgs", "volume", "volumes", "nii", "tr", "train"}


def words(name: str) -> list[str]:
    """The words of a name, lower case: T1cCoreg_v2 is t1c, coreg, v2."""
    spaced = re.sub(r"([a-z])([A-Z])", r"\1 \2", name)
    return [word.lower() for word in re.findall(r"[A-Za-z0-9]+", spaced)]


def role(name: str) -> Role:
    """What a file or a column seems to be, by its name. A label's word beats a mask's."""
    found = {re.sub(r"\d+$", "", word) for word in words(name)}
    found |= {word.lower() for word in re.findall(r"[A-Za-z]+", name)}
    if found & _LABEL:
        return "label"
    return "mask" if found & _MASK else "channel"


def modality(name: str) -> Modality:
    """The modality that the name of a channel tells, if it is one whose numbers have a unit."""
    return next((_MODALITIES[word] for word in words(name) if word in _MODALITIES), "other")


def are_sides(classes: Sequence[str]) -> bool:
    """Whether names of classes tell left from right."""
    return any(_SIDES & set(words(name)) for name in classes)


def short(names: Sequence[str]) -> list[str]:
    """Names of channels from those of files: without what all end with, and without `image`.

    `Flair_subtrMeanDivStd` and `T1c_subtrMeanDivStd` are flair and t1c.
    """
    parts = [words(name) for name in names]
    while len(parts) > 1 and all(len(part) > 1 for part in parts):
        if len({part[-1] for part in parts}) > 1:
            break
        parts = [part[:-1] for part in parts]
    parts = [[word for word in part if word not in _GENERIC] for part in parts]
    joined = ["_".join(part) or "image" for part in parts]
    return joined if len(set(joined)) == len(joined) else list(names)
