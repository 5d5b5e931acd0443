"""Imports go down the floors of docs/architecture.md only, and no module is long."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Lowest first. What stands on one floor may import from the floors below, and from itself.
FLOORS = (
    ("errors", "version", "memory"),
    ("files",),
    ("registry", "console"),
    ("signatures",),
    ("plugins",),
    ("config",),
    ("testing",),
    ("volumes",),
    ("networks",),
    ("transforms", "evaluation"),
    ("postprocess",),
    ("inference",),
    ("batch",),
    ("tuning",),
    ("training",),
    ("study", "planning"),
    ("api", "checking", "tables", "demo", "cli", "__main__", "__init__"),
)
TOP = FLOORS[-1]
HEIGHT = {room: height for height, floor in enumerate(FLOORS) for room in floor}
# A checkpoint holds what labels mean; apart from that, networks know nothing of volumes.
ONLY = {("networks", "volumes"): ("volumes.dataset",)}
FOR_PLUGINS = (
    "registry",
    "errors",
    "networks.blocks",
    "networks.stages",
    "testing",
    "volumes.dataset",
)
LONGEST = 300
HEAVY = {"torch", "monai", "matplotlib", "SimpleITK", "torchvision"}
LIGHT = ("errors", "version", "files", "registry", "console", "signatures", "plugins", "config",
         "volumes", "cli", "tables", "__init__", "__main__")  # fmt: skip


def module_of(file: Path, folder: Path) -> str:
    """`networks.blocks` for medseg/networks/blocks.py, `config.__init__` for a package itself."""
    return ".".join(file.relative_to(folder).with_suffix("").parts)


def imports(file: Path, package: str = "medseg") -> Iterator[tuple[int, str]]:
    """Each import of a package, wherever in the file: its line and the module below the package."""
    modules = {module_of(f, ROOT / "medseg") for f in (ROOT / "medseg").rglob("*.py")}
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: write imports in full"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            top, _, rest = name.partition(".")
            if top != package:
                continue
            is_module = any(m == rest or m.startswith(f"{rest}.") for m in modules)
            rest = rest if is_module or not rest else rest.rpartition(".")[0]  # a name inside
            yield node.lineno, rest or "__init__"


def broken(module: str, imported: str) -> bool:
    """Whether a module of medseg may not import another."""
    here, there = module.partition(".")[0], imported.partition(".")[0]
    if here == there:
        return False
    if (here, there) in ONLY:
        return imported not in ONLY[here, there]
    both_on_top = here in TOP and there in TOP
    return not both_on_top and HEIGHT[there] >= HEIGHT[here]


MODULES = sorted((ROOT / "medseg").rglob("*.py"))
PLUGINS = sorted((ROOT / "plugins" / "medseg_plugins").rglob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_go_down(path: Path) -> None:
    module = module_of(path, ROOT / "medseg")
    wrong = [f"{path}:{line}: {there}" for line, there in imports(path) if broken(module, there)]
    assert not wrong, f"{module} stands no higher than what it imports"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_no_module_knows_the_bundled_plugins(path: Path) -> None:
    """They come in as a third party's would: by their entry point."""
    assert not list(imports(path, "medseg_plugins"))


@pytest.mark.parametrize("path", PLUGINS, ids=name_of)
def test_plugins_import_what_is_offered_to_them(path: Path) -> None:
    wrong = [(line, there) for line, there in imports(path) if there not in FOR_PLUGINS]
    assert not wrong


@pytest.mark.parametrize(
    "path",
    [p for p in MODULES if module_of(p, ROOT / "medseg").split(".")[0] in LIGHT],
    ids=name_of,
)
def test_light_rooms_import_nothing_heavy(path: Path) -> None:
    """Not even inside a function."""
    wrong = [
        (node.lineno, name)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        for name in _roots(node)
        if name in HEAVY
    ]
    assert not wrong


def _roots(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name.partition(".")[0] for alias in node.names]
    return [str(node.module).partition(".")[0]] if isinstance(node, ast.ImportFrom) else []


@pytest.mark.parametrize("path", [*MODULES, *PLUGINS], ids=name_of)
def test_no_module_is_long(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= LONGEST, f"{path}: {lines} lines; split it along a seam a reader would expect"


def test_every_room_has_a_floor() -> None:
    rooms = {module_of(path, ROOT / "medseg").split(".")[0] for path in MODULES}
    assert rooms == set(HEIGHT)


@pytest.mark.parametrize(
    "module, imported, is_broken",
    [
        ("volumes.nifti", "errors", False),
        ("volumes.nifti", "volumes.header", False),
        ("volumes.nifti", "networks.blocks", True),
        ("networks.checkpoint", "volumes.dataset", False),
        ("networks.checkpoint", "volumes.nifti", True),
        ("evaluation.scores", "transforms.preprocess", True),
        ("transforms.preprocess", "evaluation.metrics", True),
        ("registry", "console", True),
        ("console", "registry", True),
        ("errors", "files", True),
        ("tuning.run", "inference.predictor", False),
        ("tuning.run", "training.run", True),
        ("training.loop", "cli", True),
        ("training.loop", "study.train", True),
        ("study.train", "training.loop", False),
        ("training.run", "__init__", True),
        ("training.run", "version", False),
        ("cli", "demo", False),
        ("api", "training.loop", False),
        ("config.load", "plugins", False),
        ("plugins", "config.paths", True),
    ],
)
def test_the_rule(module: str, imported: str, is_broken: bool) -> None:
    assert broken(module, imported) is is_broken


def test_every_way_to_import_is_seen(tmp_path: Path) -> None:
    file = tmp_path / "module.py"
    file.write_text(
        "import medseg\n"
        "import medseg.volumes.nifti as n\n"
        "from medseg import plugins\n"
        "from medseg import train\n"
        "from medseg import __version__\n"
        "def f():\n"
        "    from medseg.networks.blocks import Triple\n"
        "    import torch, medseg.config\n"
        "if TYPE_CHECKING:\n"
        "    from medseg.volumes import cases\n"
    )
    assert sorted(imports(file)) == [
        (1, "__init__"),
        (2, "volumes.nifti"),
        (3, "plugins"),
        (4, "__init__"),
        (5, "__init__"),
        (7, "networks.blocks"),
        (8, "config"),
        (10, "volumes.cases"),
    ]
