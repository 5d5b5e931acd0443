"""A YAML text as plain values, with the place where each one stands.

YAML 1.2 scalars (`1e-3` is a number, `no` a string); no anchors, aliases or foreign tags, no key
twice, no numbers that are not finite.
Values are made from the parsed nodes by this module alone: no constructor of PyYAML runs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from medseg.errors import ConfigError

Where = tuple[str | int, ...]
LARGEST = 1 << 20  # bytes; a config is a page or two
DEEPEST = 32  # levels of nesting
_SHOWN = 120  # characters of a long line, around the caret
# Not for file names, JSON or a terminal: control characters and halves of surrogate pairs.
_UNSAFE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\ud800-\udfff]")


@dataclass(frozen=True)
class Place:
    """A position in a file, both counted from 1, and the text of its line."""

    file: str
    line: int
    column: int
    text: str


@dataclass(frozen=True)
class Problem:
    """One mistake: where it stands and what is wrong."""

    place: Place
    where: str
    message: str

    def __str__(self) -> str:
        head = f"{self.place.file}:{self.place.line}:{self.place.column}: "
        head += f"{self.where}: {self.message}" if self.where else self.message
        start = max(0, min(self.place.column - 1 - _SHOWN // 2, len(self.place.text) - _SHOWN))
        text = _UNSAFE.sub("?", self.place.text[start : start + _SHOWN])
        before = text[: self.place.column - 1 - start]
        caret = re.sub(r"[^\t]", " ", before) + "^"
        return f"{head}\n    {text}\n    {caret}"


@dataclass
class Source:
    """Plain values with their places; `problems` holds what was wrong with the text itself."""

    values: Any
    places: dict[Where, Place]
    keys: dict[Where, Place] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def place(self, where: Where, *, key: bool = False) -> Place:
        """The place of a value (or its key), or of the nearest thing around it."""
        if key and where in self.keys:
            return self.keys[where]
        while where not in self.places:
            where = where[:-1]
        return self.places[where]

    def known(self, where: Where) -> Where:
        """The longest leading part of a path that the text contains."""
        while where not in self.places:
            where = where[:-1]
        return where


def read(path: Path) -> Source:
    """Read and parse a YAML file.

    Raises:
        ConfigError: It cannot be read, or is no text.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from error
    if len(raw) > LARGEST:
        raise ConfigError(f"{path}: {len(raw)} bytes; a config has at most {LARGEST}")
    try:
        return parse(raw.decode("utf-8-sig"), str(path))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text ({error.reason})") from error


def parse(text: str, file: str) -> Source:
    """Parse YAML text; `file` is its name in messages. If it is no YAML, the values are None."""
    lines = text.splitlines() or [""]
    walk = _Walk(file, lines)
    try:
        node = yaml.compose(text, Loader=Loader)
        walk.source.values = None if node is None else walk.value(node, ())
    except yaml.YAMLError as error:
        line, column, what = _syntax(error, text)
        place = Place(file, line + 1, column + 1, lines[line] if line < len(lines) else "")
        walk.source.problems.append(Problem(place, "", f"not valid YAML: {what}"))
    walk.source.places.setdefault((), Place(file, 1, 1, lines[0]))
    return walk.source


def _syntax(error: yaml.YAMLError, text: str) -> tuple[int, int, str]:
    """Line and column, from 0, and what is wrong there."""
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line, mark.column) if mark else (0, 0)
        what = error.problem or error.context or "unreadable"
        return line, column, f"{error.context} {what}" if what.startswith("but ") else what
    before = text[: getattr(error, "position", 0)].splitlines() or [""]
    return len(before) - 1, len(before[-1]), "a character that no text has"


class Loader(yaml.SafeLoader):
    """Composes nodes, and constructs nothing of them."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Refuse what a config has no use for before it can cost anything."""
        event = self.peek_event()  # type: ignore[no-untyped-call]
        problem = None
        if getattr(event, "anchor", None) is not None:
            problem = "anchors (&) and aliases (*) are not allowed"
        elif self.depth >= DEEPEST:
            problem = f"nested deeper than {DEEPEST} levels"
        if problem:
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


_TAG = "tag:yaml.org,2002:"
_NULL, _BOOL, _INT, _FLOAT = (
    re.compile(pattern)
    for pattern in (
        r"^(~|null|Null|NULL|)$",
        r"^(true|True|TRUE|false|False|FALSE)$",
        r"^[-+]?[0-9]+$",
        r"^([-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$",
    )
)
Loader.yaml_implicit_resolvers = {}
for _name, _pattern, _first in (
    ("null", _NULL, ["~", "n", "N", ""]),
    ("bool", _BOOL, list("tTfF")),
    ("int", _INT, list("-+0123456789")),
    ("float", _FLOAT, list("-+.0123456789")),
):
    Loader.add_implicit_resolver(_TAG + _name, _pattern, _first)

_SCALARS: dict[str, Callable[[str], Any]] = {
    "null": lambda text: None,  # noqa: ARG005
    "bool": lambda text: text.lower() == "true",
    "int": int,
    "float": lambda text: float(text.lower().replace(".inf", "inf").replace(".nan", "nan")),
    "str": str,
}


class _Walk:
    """Turns nodes into values, noting places and problems on the way."""

    def __init__(self, file: str, lines: list[str]) -> None:
        self.file, self.lines = file, lines
        self.source = Source(None, {})

    def place(self, node: yaml.Node) -> Place:
        mark = node.start_mark
        text = self.lines[mark.line] if mark.line < len(self.lines) else ""
        return Place(self.file, mark.line + 1, mark.column + 1, text)

    def problem(self, node: yaml.Node, where: Where, message: str) -> None:
        self.source.problems.append(Problem(self.place(node), dotted(where), message))

    def value(self, node: yaml.Node, where: Where) -> Any:
        self.source.places[where] = self.place(node)
        if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
            return self.mapping(node, where)
        if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
            return [self.value(item, (*where, n)) for n, item in enumerate(node.value)]
        kind = node.tag.removeprefix(_TAG)
        if not isinstance(node, yaml.ScalarNode) or kind not in _SCALARS:
            self.problem(node, where, f"the tag {node.tag!r} is not allowed; write plain values")
            return None
        return self.scalar(node, where, kind)

    def scalar(self, node: yaml.ScalarNode, where: Where, kind: str) -> Any:
        try:
            value = _SCALARS[kind](node.value)
        except ValueError:
            self.problem(node, where, f"cannot be read as {kind}")
            return None
        if isinstance(value, float) and not math.isfinite(value):
            self.problem(node, where, f"a finite number expected, got {node.value}")
            return None
        if isinstance(value, str) and _UNSAFE.search(value):
            self.problem(node, where, "a line of text without control characters expected")
            return None
        return value

    def mapping(self, node: yaml.MappingNode, where: Where) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key, item in node.value:
            if not isinstance(key, yaml.ScalarNode) or _UNSAFE.search(key.value):
                self.problem(key, where, "a key must be a plain word")
                continue
            here = (*where, key.value)
            if key.value in values:
                first = self.source.keys[here].line
                self.problem(
                    key, where, f"key {key.value!r} is given twice (first on line {first})"
                )
                continue
            self.source.keys[here] = self.place(key)
            values[key.value] = self.value(item, here)
        return values


def dotted(where: Where) -> str:
    """A path as people write it: `model.encoder.widths[1]`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in where)
    return text.removeprefix(".")
