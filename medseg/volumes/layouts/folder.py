"""Layout folder: one file pattern per channel, e.g. `images/{id}.nii.gz` or `{id}/flair.nii.gz`.

With `**/` in front of all of them, cases may lie in any folder below, e.g. in one for each site.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from medseg.config.schema import Data
from medseg.errors import DataError, raise_all
from medseg.volumes.dataset import Case, Channel
from medseg.volumes.layouts import files

ID = "{id}"
ANYWHERE = "**/"


@dataclass(frozen=True)
class Pattern:
    """A file name relative to a folder, with {id} in one part of it (or again, the same, later)."""

    text: str

    def path(self, folder: Path, name: str) -> Path:
        """The file of one case."""
        return folder / self._text.replace(ID, name)

    @property
    def anywhere(self) -> bool:
        """Whether the folder may be any below the data's."""
        return self.text.startswith(ANYWHERE)

    @property
    def _text(self) -> str:
        return self.text.removeprefix(ANYWHERE)

    def matches(self, folder: Path) -> dict[str, Path]:
        """Ids and files that exist. Hidden files are passed over."""
        parts = PurePosixPath(self._text).parts
        level = next(n for n, part in enumerate(parts) if ID in part)
        base = folder.joinpath(*parts[:level])
        regex = _regex(parts[level])
        names = [path.name for path in base.iterdir()] if base.is_dir() else []
        hits = [regex.fullmatch(name) for name in names if not name.startswith(".")]
        files_by_id = {hit["id"]: self.path(folder, hit["id"]) for hit in hits if hit}
        return {name: path for name, path in files_by_id.items() if path.is_file()}

    def name_of(self, path: Path) -> str | None:
        """The id for which the pattern ends a path, if any."""
        depth = len(PurePosixPath(self._text).parts)
        hit = _regex(self._text).fullmatch("/".join(path.parts[-depth:]))
        return hit["id"] if hit else None


def find(data: Data) -> list[Case]:
    """Cases with an image or a label.

    Raises:
        DataError: The folder is missing or no file fits the patterns.
    """
    folder = Path(data.path)
    if not folder.is_dir():
        raise DataError(folder, "no such folder; set data.path")
    channels = [Pattern(text) for text in (data.channels or {}).values()]
    label, mask, weights = (
        Pattern(text) if text else None for text in (data.label, data.mask, data.weights)
    )
    halves = [*channels, label] if label else channels
    places = _places(folder, halves, [other for other in (mask, weights) if other])
    if not places:
        texts = ", ".join(pattern.text for pattern in channels)
        hint = f"{files.found(folder)}{files.fitting(folder)}"
        raise DataError(folder, f"no file fits {texts}: {hint}")
    return [
        Case(
            name,
            _channels(place, name, channels, data),
            label.path(place, name) if label else None,
            mask.path(place, name) if mask else None,
            weights.path(place, name) if weights else None,
        )
        for name, place in sorted(places.items())
    ]


def inputs(folder: Path, data: Data) -> list[Case]:
    """Cases with a channel file, by the patterns or by their last parts directly in the folder."""
    channels = [Pattern(text) for text in (data.channels or {}).values()]
    mask = Pattern(data.mask) if data.mask else None
    others = [Pattern(text) for text in (data.label, data.mask, data.weights) if text]
    places = _places(folder, channels, others)
    if not places:
        channels, others = _flat(channels), _flat(others)
        mask = None if mask is None else next(iter(_flat([mask])), None)
        if mask in channels:  # told apart by folders only, of which there is none here
            mask = None
        others = [other for other in others if other not in channels]
        places = _places(folder, channels, others)
    return [
        Case(
            name,
            _channels(place, name, channels, data),
            mask=mask.path(place, name) if mask else None,
        )
        for name, place in sorted(places.items())
    ]


def _places(folder: Path, wanted: list[Pattern], others: list[Pattern]) -> dict[str, Path]:
    """Ids, and the folder that each one's files are named from.

    Raises:
        DataError: Several folders below have the same id: image and label of one case could be of
            two patients.
    """
    places: dict[str, Path] = {}
    errors = []
    for place in _below(folder) if any(p.anywhere for p in wanted) else (folder,):
        for name in _ids(place, wanted, others):
            if name in places:
                reason = f"id {name!r} is also in {places[name]}: rename one"
                errors.append(DataError(place, reason))
            places[name] = place
    raise_all(errors)
    return places


def _below(folder: Path) -> Iterator[Path]:
    """A folder and all below it, each once whatever links lead to it; hidden ones are passed over.

    In the order of their names.
    """
    seen: set[Path] = set()
    waiting = [folder]
    while waiting:
        place = waiting.pop()
        if place.resolve() in seen:
            continue
        seen.add(place.resolve())
        yield place
        inner = [path for path in place.iterdir() if path.is_dir() and path.name[0] != "."]
        waiting += sorted(inner, reverse=True)


def _ids(folder: Path, wanted: list[Pattern], others: list[Pattern]) -> set[str]:
    """Ids of files that fit a wanted pattern and no pattern better.

    `{id}.nii.gz` fits a_flair.nii.gz too, but where `{id}_flair.nii.gz` is a pattern as well, the
    shorter id is meant.
    """
    matches = {pattern: pattern.matches(folder) for pattern in (*wanted, *others)}
    shortest: dict[Path, int] = {}
    for found in matches.values():
        for name, path in found.items():
            shortest[path] = min(len(name), shortest.get(path, len(name)))
    return {
        name
        for pattern in wanted
        for name, path in matches[pattern].items()
        if len(name) == shortest[path]
    }


def _channels(
    folder: Path, name: str, patterns: list[Pattern], data: Data
) -> tuple[Channel | None, ...]:
    return files.known([Channel(pattern.path(folder, name)) for pattern in patterns], data)


def _flat(patterns: list[Pattern]) -> list[Pattern]:
    last = [PurePosixPath(pattern.text).name for pattern in patterns]
    return [Pattern(text) for text in last if ID in text]


def _regex(text: str) -> re.Pattern[str]:
    first, *rest = (re.escape(piece) for piece in text.split(ID))
    return re.compile(first + "(?P<id>[^/]+?)" + "(?P=id)".join(rest))
