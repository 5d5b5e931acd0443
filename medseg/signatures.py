"""Component signatures read from source text, so that a config is checked without importing torch.

A plugin module imports torch, which takes seconds; its decorated classes and functions can be
read in milliseconds. What cannot be read this way (a component made in a loop, an annotation that
is computed) is simply not found here, and the caller imports the module instead.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Optional, Union

from medseg import registry

_KINDS = {
    name: item.kind for name, item in vars(registry).items() if isinstance(item, registry.Registry)
}
_PLAIN: dict[str, Any] = {
    "int": int, "float": float, "str": str, "bool": bool, "None": None, "Any": Any,
    "tuple": tuple, "list": list, "dict": dict, "Sequence": Sequence, "Mapping": Mapping,
}  # fmt: skip
_GENERIC: dict[str, Any] = {**_PLAIN, "Optional": Optional, "Union": Union}


@dataclass(frozen=True)
class Declared:
    """A component as its source declares it."""

    kind: str
    name: str
    signature: inspect.Signature
    file: Path
    line: int


class _UnreadableError(Exception):
    """The source says it in a way that only running it would tell."""


@dataclass(frozen=True)
class _Source:
    """A default that is an expression: shown as it is written."""

    text: str

    def __repr__(self) -> str:
        return self.text


def scan(path: Path) -> Iterator[Declared]:
    """Find the components that a file, or the files of a folder, declare: decorated, or presets."""
    for file in files(path):
        here: dict[tuple[str, str], Declared] = {}
        for node in _tree(file).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                found = _declared(node, file)
            elif isinstance(node, ast.Expr):
                found = _preset(node.value, here)
            else:
                continue
            here |= {(item.kind, item.name): item for item in found}
        yield from here.values()


def is_readable(path: Path) -> bool:
    """Whether `scan` finds everything that importing the file or folder would register.

    A plugin that declares nothing registers in some other way, such as by an import.
    """
    registrations = sum(
        isinstance(node, ast.Attribute) and node.attr in ("register", "preset")
        for file in files(path)
        for node in ast.walk(_tree(file))
    )
    return 0 < registrations == len(list(scan(path)))


def syntax_problem(path: Path) -> str | None:
    """The first file that is no Python, with the line and what is wrong there; None: all are."""
    for file in files(path):
        if file.suffix != ".py":  # a compiled module
            continue
        try:
            ast.parse(file.read_bytes(), filename=str(file))
        except (OSError, SyntaxError, ValueError) as error:
            line = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
            return f"{file}{line}: {getattr(error, 'msg', error)}"
    return None


def files(path: Path) -> list[Path]:
    """The sources of a plugin: a file, all files of a package, or the files beside each other."""
    if not path.is_dir():
        return [path]
    is_package = (path / "__init__.py").exists()
    return sorted(path.rglob("*.py") if is_package else path.glob("[!_]*.py"))


def module_file(name: str) -> Path | None:
    """Where a module's source lies (a package: its folder), without importing it or its parents."""
    top, *rest = name.split(".")
    try:
        spec = find_spec(top)
    except ValueError:  # no name at all, or that of the running script
        return None
    if spec is None:
        return None
    if spec.submodule_search_locations is None:
        return Path(spec.origin) if spec.has_location and spec.origin and not rest else None
    for root in spec.submodule_search_locations:
        place = Path(root, *rest)
        if place.is_dir():
            return place
        if rest and place.with_suffix(".py").exists():
            return place.with_suffix(".py")
    return None


def _declared(node: ast.ClassDef | ast.FunctionDef, file: Path) -> Iterator[Declared]:
    for decorator in node.decorator_list:
        match decorator:
            case ast.Call(
                func=ast.Attribute(value=ast.Name(id=holder), attr="register"),
                args=[ast.Constant(value=str(name))],
            ) if holder in _KINDS:
                try:
                    signature = _signature(node, file)
                except _UnreadableError:
                    continue
                yield Declared(_KINDS[holder], name, signature, file, node.lineno)


def _preset(call: ast.expr, known: Mapping[tuple[str, str], Declared]) -> Iterator[Declared]:
    """A call of `Registry.preset` for a component of the same file, with literal options."""
    match call:
        case ast.Call(
            func=ast.Attribute(value=ast.Name(id=holder), attr="preset"),
            args=[ast.Constant(value=str(name)), ast.Constant(value=str(of))],
            keywords=keywords,
        ) if (_KINDS.get(holder, ""), of) in known:
            base = known[_KINDS[holder], of]
            try:
                options = {str(item.arg): ast.literal_eval(item.value) for item in keywords}
            except ValueError:
                return
            parameters = [
                p.replace(default=options.get(p.name, p.default))
                for p in base.signature.parameters.values()
            ]
            yield replace(
                base, name=name, signature=inspect.Signature(parameters), line=call.lineno
            )


def _signature(node: ast.ClassDef | ast.FunctionDef, file: Path) -> inspect.Signature:
    if isinstance(node, ast.FunctionDef):
        return _from_arguments(node.args, file, skip=0)
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and item.name == "__init__":
            return _from_arguments(item.args, file, skip=1)
    if any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
        return _from_fields(node, file)
    if not node.bases:  # nothing that could be constructed with options
        return inspect.Signature()
    raise _UnreadableError


def _from_arguments(arguments: ast.arguments, file: Path, *, skip: int) -> inspect.Signature:
    plain = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(plain) - len(arguments.defaults)) + list(arguments.defaults)
    pairs = [*list(zip(plain, defaults, strict=True))[skip:]]
    pairs += list(zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True))
    return inspect.Signature([_parameter(a.arg, a.annotation, d, file) for a, d in pairs])


def _from_fields(node: ast.ClassDef, file: Path) -> inspect.Signature:
    return inspect.Signature(
        [
            _parameter(item.target.id, item.annotation, item.value, file)
            for item in node.body
            if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
        ]
    )


def _parameter(
    name: str, annotation: ast.expr | None, default: ast.expr | None, file: Path
) -> inspect.Parameter:
    try:
        kind = Any if annotation is None else _type(annotation, file)
    except (_UnreadableError, SyntaxError, TypeError, RecursionError):
        kind = Any
    value: Any = inspect.Parameter.empty
    if default is not None:
        try:
            value = ast.literal_eval(default)
        except (ValueError, TypeError):
            value = _Source(ast.unparse(default))
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=value, annotation=kind)


def _type(node: ast.expr, file: Path) -> Any:  # noqa: PLR0911
    """Turn an annotation's syntax into the type it names. Nothing is evaluated."""
    match node:
        case ast.Constant(value=None):
            return None
        case ast.Constant(value=builtins) if builtins is ...:
            return ...
        case ast.Constant(value=str(text)):
            return _type(ast.parse(text, mode="eval").body, file)
        case ast.Name(id=name):
            return _PLAIN[name] if name in _PLAIN else _alias(name, file)
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return Union[_type(left, file), _type(right, file)]  # noqa: UP007
        case ast.Subscript(value=ast.Name(id="Literal"), slice=inner):
            return Literal[_literals(inner)]
        case ast.Subscript(value=ast.Name(id=name), slice=inner) if name in _GENERIC:
            if isinstance(inner, ast.Tuple):
                return _GENERIC[name][tuple(_type(item, file) for item in inner.elts)]
            return _GENERIC[name][_type(inner, file)]
    raise _UnreadableError


def _literals(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:
        raise _UnreadableError from None


def _alias(name: str, file: Path) -> Any:
    """Follow a module-level alias such as `Norm = Literal[...]`, also to where it comes from."""
    for node in _tree(file).body:
        match node:
            case ast.Assign(targets=[ast.Name(id=target)], value=value) if target == name:
                return _type(value, file)
            case ast.AnnAssign(target=ast.Name(id=target), value=ast.expr() as value) if (
                target == name
            ):
                return _type(value, file)
            case ast.ImportFrom(module=str(module), names=names, level=0):
                for item in names:
                    home = module_file(module) if (item.asname or item.name) == name else None
                    if home is not None and home.is_file():
                        return _alias(item.name, home)
    raise _UnreadableError


@cache
def _tree(file: Path) -> ast.Module:
    try:
        return ast.parse(file.read_bytes(), filename=str(file))
    except (OSError, SyntaxError, ValueError):  # `syntax_problem` says what is wrong
        return ast.Module(body=[], type_ignores=[])
