"""A YAML text as plain values, with the place where each one stands.

YAML 1.2 scalars (`1e-3` is a number, `no` a string), no tags, anchors or aliases, no key twice.
Values are made from the parsed nodes by this module alone: no constructor of PyYAML runs.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from medseg.errors import ConfigError

Where = tuple[str | int, ...]
LARGEST = 1 << 20  # bytes; a config is a page or two


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
        caret = " " * (self.place.column - 1) + "^"
        return f"{head}\n    {self.place.text}\n    {caret}"


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
        ConfigError: It cannot be read, or is no YAML at all.
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
    """Parse YAML text; `file` is the name for messages.

    Raises:
        ConfigError: The text is no YAML, or nests too deeply.
    """
    lines = text.splitlines() or [""]
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line, mark.column) if mark else (0, 0)
        what = error.problem or error.context or "unreadable"
        shown = lines[line] if line < len(lines) else ""
        message = str(
            Problem(Place(file, line + 1, column + 1, shown), "", f"not valid YAML: {what}")
        )
        raise ConfigError(message) from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{file}: not valid YAML: {error}") from error
    except RecursionError as error:
        raise ConfigError(f"{file}: nested too deeply") from error
    walk = _Walk(file, lines)
    values = None if node is None else walk.value(node, ())
    walk.source.places.setdefault((), Place(file, 1, 1, lines[0]))
    walk.source.values = values
    return walk.source


class _Loader(yaml.SafeLoader):
    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(problem="aliases are not allowed", problem_mark=mark)
        return super().compose_node(parent, index)


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
_Loader.yaml_implicit_resolvers = {}
for _name, _pattern, _first in (
    ("null", _NULL, ["~", "n", "N", ""]),
    ("bool", _BOOL, list("tTfF")),
    ("int", _INT, list("-+0123456789")),
    ("float", _FLOAT, list("-+.0123456789")),
):
    _Loader.add_implicit_resolver(_TAG + _name, _pattern, _first)

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
        convert = _SCALARS.get(node.tag.removeprefix(_TAG))
        if isinstance(node, yaml.ScalarNode) and convert is not None:
            try:
                return convert(node.value)
            except ValueError:
                pass
        self.problem(node, where, f"the tag {node.tag!r} is not allowed; write plain values")
        return None

    def mapping(self, node: yaml.MappingNode, where: Where) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key, item in node.value:
            if not isinstance(key, yaml.ScalarNode):
                self.problem(key, where, "a key must be a plain word")
                continue
            here = (*where, key.value)
            if key.value in values:
                first = self.source.keys[here].line
                self.problem(key, here, f"key {key.value!r} is given twice (first on line {first})")
                continue
            self.source.keys[here] = self.place(key)
            values[key.value] = self.value(item, here)
        return values


def dotted(where: Where) -> str:
    """A path as people write it: `model.encoder.widths[1]`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in where)
    return text.removeprefix(".")
