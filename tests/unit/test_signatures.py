"""Signatures read from source are those that an import would show."""

from __future__ import annotations

import importlib.util
import inspect
import re
import sys
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest

from medseg import plugins
from medseg.registry import REGISTRIES, Registry
from medseg.signatures import files, is_readable, module_file, scan, syntax_problem

plugins.load()


def made_by(registry: Registry, name: str) -> Any:
    """The class or function behind a name, of a preset too."""
    component = registry.get(name)
    return component.func if isinstance(component, partial) else component


REGISTERED = [
    (registry, name)
    for registry in REGISTRIES.values()
    for name in registry.names()
    if made_by(registry, name).__module__.split(".")[0] in ("medseg", "medseg_plugins")
]


def write(folder: Path, text: str, name: str = "plugin.py") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("from __future__ import annotations\n" + inspect.cleandoc(text) + "\n")
    return path


def parameters(signature: inspect.Signature) -> dict[str, tuple[Any, Any]]:
    return {p.name: (p.annotation, p.default) for p in signature.parameters.values()}


def only(path: Path) -> dict[str, tuple[Any, Any]]:
    (found,) = scan(path)
    return parameters(found.signature)


@pytest.mark.parametrize(
    "registry, name", REGISTERED, ids=[f"{registry.kind}-{name}" for registry, name in REGISTERED]
)
def test_source_shows_what_import_shows(registry: Registry, name: str) -> None:
    declared, complete = plugins.declared()
    assert complete
    shown, live = declared[registry.kind, name], registry.signature(name)
    assert parameters(shown.signature) == parameters(live)
    component = made_by(registry, name)
    assert shown.file == Path(inspect.getsourcefile(component) or "")
    declares = rf"^(class|def) {component.__name__}\b"
    if name in registry.presets:
        declares = rf'^\w+\.preset\(\s*("{name}"|$)'
    assert re.search(declares, _line(shown.file, shown.line))


def _line(file: Path, number: int) -> str:
    return file.read_text().splitlines()[number - 1]


def test_every_component_of_medseg_is_compared() -> None:
    declared, _ = plugins.declared()
    assert {(registry.kind, name) for registry, name in REGISTERED} == set(declared)
    assert len(REGISTERED) >= 15


@pytest.mark.parametrize(
    "annotation, expected",
    [
        ("int", int),
        ("float | None", float | None),
        ("Optional[int]", int | None),
        ("Union[int, str]", int | str),
        ("tuple[int, ...]", tuple[int, ...]),
        ("list[tuple[int, int]]", list[tuple[int, int]]),
        ("dict[str, Any]", dict[str, Any]),
        ('Literal["A", 2]', Literal["A", 2]),
        ("'int | None'", int | None),
        ("Size", tuple[int, int]),
        ("Size | None", tuple[int, int] | None),
        ("Mode", Literal["a", "b"]),
        ("Tensor", Any),
        ("torch.dtype", Any),
        ("Undefined", Any),
        ("Circle", Any),
        ("Optional[int, str]", Any),
        ("'not a type'", Any),
        ("", Any),
    ],
)
def test_annotations(tmp_path: Path, annotation: str, expected: Any) -> None:
    path = write(
        tmp_path,
        f"""
        from torch import Tensor
        from medseg.registry import ENCODERS
        Size = tuple[int, int]
        Mode: TypeAlias = Literal["a", "b"]
        Circle = Circle

        @ENCODERS.register("x")
        def x(a{": " if annotation else ""}{annotation}): ...
        """,
    )
    assert only(path) == {"a": (expected, inspect.Parameter.empty)}


@pytest.mark.parametrize(
    "default, shown",
    [("3", "3"), ("-1e-3", "-0.001"), ("(1, 2)", "(1, 2)"), ("None", "None"), ("'x'", "'x'"),
     ("SIZE * 2", "SIZE * 2"), ("-'x'", "-'x'"), ("{[]: 1}", "{[]: 1}")],
)  # fmt: skip
def test_defaults_are_values_or_shown_as_written(tmp_path: Path, default: str, shown: str) -> None:
    path = write(
        tmp_path,
        f"""
        @ENCODERS.register("x")
        def x(a: int = {default}): ...
        """,
    )
    assert repr(only(path)["a"][1]) == shown


def test_an_alias_is_followed_across_files() -> None:
    """`Norm` and `Triple` of medseg's networks come from another module."""
    declared, _ = plugins.declared()
    signature = declared["encoder", "resnet"].signature
    expected = Literal["instance", "batch", "group", "none"]
    assert signature.parameters["norm"].annotation == expected
    assert signature.parameters["stem_kernel"].annotation == tuple[int, int, int]


def test_keyword_only_arguments_and_dataclasses(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """
        @LOSSES.register("a")
        class A:
            def __init__(self, x: int, *, y: float = 2.0, z: str): ...

        @dataclass(frozen=True)
        @TRANSFORMS.register("b")
        class B:
            x: int
            y: tuple[float, ...] = (1.0,)
            z: list[int] = field(default_factory=list)
        """,
    )
    a, b = scan(path)
    empty = inspect.Parameter.empty
    assert (a.kind, a.name, b.kind, b.name) == ("loss", "a", "transform", "b")
    assert parameters(a.signature) == {"x": (int, empty), "y": (float, 2.0), "z": (str, empty)}
    shown = parameters(b.signature)
    assert shown["x"] == (int, empty)
    assert shown["y"] == (tuple[float, ...], (1.0,))
    assert shown["z"][0] == list[int]
    assert repr(shown["z"][1]) == "field(default_factory=list)"
    assert is_readable(path)


def test_a_preset_is_its_component_with_other_defaults(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """
        @ENCODERS.register("net")
        class Net:
            def __init__(self, in_channels: int, depth: int = 1, wide: bool = False): ...

        ENCODERS.preset("net3", "net", depth=3)
        """,
    )
    _, preset = scan(path)
    assert (preset.kind, preset.name, preset.line) == ("encoder", "net3", 6)
    empty = inspect.Parameter.empty
    expected = {"in_channels": (int, empty), "depth": (int, 3), "wide": (bool, False)}
    assert parameters(preset.signature) == expected
    assert is_readable(path)


@pytest.mark.parametrize(
    "source",
    [
        "for name in ('a', 'b'):\n    ENCODERS.register(name)(make(name))",
        "from medseg.registry import ENCODERS as E\n@E.register('a')\ndef a(): ...",
        "import medseg.registry as r\n@r.ENCODERS.register('a')\ndef a(): ...",
        "NAME = 'a'\n@ENCODERS.register(NAME)\ndef a(): ...",
        "@ENCODERS.register('a')\nclass A(Base):\n    pass",
        "if True:\n    @ENCODERS.register('a')\n    def a(): ...",
        "@ENCODERS.register('a')\ndef a(): ...\nENCODERS.register('b')(a)",
        "ENCODERS.preset('b', 'resnet', width=2.0)",
        "@ENCODERS.register('a')\ndef a(x: int = 1): ...\nENCODERS.preset('b', 'a', x=2 + X)",
        "import my_encoders",
        "",
        "def (:",
    ],
)
def test_what_cannot_be_read_is_said_to_be_so(tmp_path: Path, source: str) -> None:
    path = tmp_path / "plugin.py"
    path.write_text(source)
    assert not is_readable(path)


def test_nothing_is_run(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """
        (Path(__file__).parent / "ran").touch()
        @ENCODERS.register("x")
        def x(a: int = open("ran", "w")): ...
        """,
    )
    assert [item.name for item in scan(path)] == ["x"]
    assert list(tmp_path.iterdir()) == [path]


def test_a_syntax_error_is_told_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "plugin.py"
    path.write_text("x = 1\ndef (:\n")
    assert list(scan(path)) == []
    assert syntax_problem(path) == f"{path}, line 2: invalid syntax"
    assert syntax_problem(write(tmp_path, "x = 1", "good.py")) is None
    path.write_bytes(b"x = '\xff'\n")
    assert str(path) in str(syntax_problem(path))


def test_files_of_a_folder_and_of_a_package(tmp_path: Path) -> None:
    for name in ("b.py", "a.py", "_private.py", "sub/c.py", "note.txt"):
        write(tmp_path, "", name)
    assert files(tmp_path) == [tmp_path / "a.py", tmp_path / "b.py"]
    write(tmp_path, "", "__init__.py")
    assert [f.relative_to(tmp_path).as_posix() for f in files(tmp_path)] == [
        "__init__.py", "_private.py", "a.py", "b.py", "sub/c.py"
    ]  # fmt: skip


def test_module_file_finds_without_importing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "raise RuntimeError", "single_xyz.py")
    write(tmp_path, "raise RuntimeError", "package_xyz/__init__.py")
    write(tmp_path, "raise RuntimeError", "package_xyz/inner.py")
    write(tmp_path, "raise RuntimeError", "spaces_xyz/inner.py")  # a namespace package
    monkeypatch.syspath_prepend(str(tmp_path))
    assert module_file("single_xyz") == tmp_path / "single_xyz.py"
    assert module_file("single_xyz.inner") is None
    assert module_file("package_xyz") == tmp_path / "package_xyz"
    assert module_file("package_xyz.inner") == tmp_path / "package_xyz" / "inner.py"
    assert module_file("package_xyz.missing") is None
    assert module_file("spaces_xyz.inner") == tmp_path / "spaces_xyz" / "inner.py"
    assert not any("_xyz" in name for name in sys.modules)


@pytest.mark.parametrize("name", ["", ".", "..a", "a b", "no_such_module_xyz", "sys", "__main__.x"])
def test_module_file_of_nothing(name: str) -> None:
    assert module_file(name) is None


def test_reading_is_what_importing_gives(tmp_path: Path) -> None:
    """The example encoder: read, then imported, and both compared."""
    example = Path(__file__).parents[2] / "examples" / "tiny_encoder.py"
    (shown,) = scan(example)
    spec = importlib.util.spec_from_file_location("tiny_encoder_example", example)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    registered = REGISTRIES["encoder"]._components
    before = dict(registered)
    try:
        spec.loader.exec_module(module)
        assert parameters(shown.signature) == parameters(REGISTRIES["encoder"].signature("tiny"))
    finally:
        registered.clear()
        registered.update(before)
