"""Patterns with {id} that the files of a folder follow: which part of their names tells the case.

A case is told either by a folder of its own (`{id}/flair.nii.gz`, `{id}/{id}_flair.nii.gz`) or by
the file's name in a folder of many (`images/{id}.nii.gz`, `{id}_flair.nii.gz`). Of the ways to read
the names, the one that takes the fewest patterns and ids together is meant.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from medseg.planning.words import role, words
from medseg.volumes.layouts.files import ENDINGS

ID = "{id}"
_DEPTH = 4  # parts of a path, the file's name included
_SEPARATORS = re.compile(r"([_\-.])")


@dataclass(frozen=True)
class Files:
    """Files of one pattern.

    Args:
        text: The pattern, relative to the folder.
        ids: The cases that have such a file.
    """

    text: str
    ids: frozenset[str]

    @property
    def name(self) -> str:
        """What tells these files from those of other patterns: the pattern without {id}."""
        path = re.sub(r"\.nii(\.gz)?$", "", self.text).replace(ID, "")
        parts = [part.strip("_-. ") for part in path.split("/")]
        return next((part for part in reversed(parts) if part), "image")

    def path(self, folder: Path, name: str | None = None) -> Path:
        """The file of a case; of the first one where none is named."""
        return folder / self.text.replace(ID, min(self.ids) if name is None else name)


def find(folder: Path) -> list[Files]:
    """The patterns of a folder's NIfTI files, those of most cases first."""
    paths = sorted(_volumes(folder))
    if not paths:
        return []
    ways = [_grouped(paths, _by_folder), _grouped(paths, _by_name(paths))]
    best = min([way for way in ways if way], key=_cost)
    return sorted(best, key=lambda files: (-len(files.ids), files.text))


def _volumes(folder: Path) -> Iterator[PurePosixPath]:
    """Paths of NIfTI files relative to a folder; hidden ones are passed over."""
    for path in folder.rglob("*.nii*"):
        inner = path.relative_to(folder)
        is_hidden = any(part.startswith(".") for part in inner.parts)
        if path.name.endswith(ENDINGS) and len(inner.parts) <= _DEPTH and not is_hidden:
            yield PurePosixPath(inner.as_posix())


def _grouped(
    paths: list[PurePosixPath], read: Callable[[PurePosixPath], tuple[str, str] | None]
) -> list[Files]:
    """The patterns of a way to read paths; none if it cannot read one of them."""
    found: dict[str, set[str]] = defaultdict(set)
    for path in paths:
        told = read(path)
        if told is None:
            return []
        found[told[0]].add(told[1])
    return [Files(text, frozenset(ids)) for text, ids in found.items()]


def _by_folder(path: PurePosixPath) -> tuple[str, str] | None:
    """Pattern and id where the first folder is the case's."""
    if len(path.parts) < 2:
        return None
    name, *rest = path.parts
    word = re.compile(rf"(?<![A-Za-z0-9]){re.escape(name)}(?![A-Za-z0-9])")
    return "/".join([ID, *(word.sub(ID, part) for part in rest)]), name


def _by_name(paths: list[PurePosixPath]) -> Callable[[PurePosixPath], tuple[str, str]]:
    """How to read pattern and id where the name of the file begins with the case's."""
    beside: dict[PurePosixPath, list[str]] = defaultdict(list)
    for path in paths:
        beside[path.parent].append(path.name)
    length = {parent: _id_length(names) for parent, names in beside.items()}

    def read(path: PurePosixPath) -> tuple[str, str]:
        name, tail = _cut(path.name, length[path.parent])
        return (path.parent / f"{ID}{tail}").as_posix(), name

    return read


def _id_length(names: list[str]) -> int:
    """How many pieces of the names of one folder are the id."""
    most = max(len(_SEPARATORS.split(_stem(name))) for name in names)

    def cost(length: int) -> tuple[int, int, int]:
        pairs = [_cut(name, length) for name in names]
        tails = {tail for _, tail in pairs}
        return len({name for name, _ in pairs}) + len(tails), len(tails), length

    return min(range(1, most + 1, 2), key=cost)


def _cut(name: str, length: int) -> tuple[str, str]:
    stem = _stem(name)
    pieces = _SEPARATORS.split(stem)
    head = "".join(pieces[:length])
    return head, name[len(head) :]


def _stem(name: str) -> str:
    return re.sub(r"\.nii(\.gz)?$", "", name)


def _cost(way: list[Files]) -> tuple[int, int, bool]:
    """Patterns and ids; of equals, the way in which no {id} stands for `labels` or `images`."""
    ids = {name for files in way for name in files.ids}
    takes_a_role = any(role(name) != "channel" or "images" in words(name) for name in ids)
    return len(way) + len(ids), takes_a_role, len(way) > len(ids)
