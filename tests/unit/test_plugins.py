"""Three ways in for a plugin, and no others; what goes wrong is told with the plugin's name."""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from medseg import plugins
from medseg.config import loads
from medseg.errors import ConfigError, PluginError
from medseg.registry import ENCODERS, REGISTRIES

RUN = """
name: a
data: {layout: nnunet, path: x}
model: {encoder: mine, decoder: unet}
train: {patch: [8, 8, 8], budget: {steps: 1}}
"""

plugins.load()


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    """Leave registries, modules and the search path as they were."""
    before = {kind: dict(registry._components) for kind, registry in REGISTRIES.items()}
    modules, path = set(sys.modules), list(sys.path)
    yield
    assert sys.path == path
    for kind, components in before.items():
        REGISTRIES[kind]._components.clear()
        REGISTRIES[kind]._components.update(components)
    for name in set(sys.modules) - modules:
        if "plugin" in name or name.startswith("ours_"):
            del sys.modules[name]
    for cached in (plugins._load_one, plugins._import_file):
        cached.cache_clear()


def encoder(name: str = "mine", option: str = "width: int = 8") -> str:
    return inspect.cleandoc(
        f"""
        from medseg.registry import ENCODERS

        @ENCODERS.register("{name}")
        def {name}(in_channels: int, {option}): ...
        """
    )


def write(path: Path, text: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(encoder() if text is None else text)
    return path


def test_a_file(tmp_path: Path) -> None:
    plugins.load([str(write(tmp_path / "plugin.py"))])
    assert list(ENCODERS.signature("mine").parameters) == ["in_channels", "width"]


def test_a_file_is_run_once(tmp_path: Path) -> None:
    trace = "from pathlib import Path\nPath(__file__).with_name('ran').mkdir()"
    path = write(tmp_path / "plugin.py", f"{encoder()}\n{trace}")
    for _ in range(2):
        plugins.load([str(path)])
    assert (tmp_path / "ran").exists()


def test_two_files_of_one_name(tmp_path: Path) -> None:
    files = [write(tmp_path / name / "plugin.py", encoder(name)) for name in ("one", "two")]
    plugins.load(map(str, files))
    assert {"one", "two"} <= set(ENCODERS.names())


def test_a_folder_of_files(tmp_path: Path) -> None:
    write(tmp_path / "one.py", encoder("one"))
    write(tmp_path / "two.py", encoder("two"))
    write(tmp_path / "_helper.py", "raise RuntimeError")
    write(tmp_path / "sub" / "deep.py", "raise RuntimeError")
    plugins.load([str(tmp_path)])
    assert {"one", "two"} <= set(ENCODERS.names())
    declared, _ = plugins.declared([str(tmp_path)])
    assert {name for kind, name in declared if kind == "encoder"} >= {"one", "two"}


def test_a_folder_that_is_a_package(tmp_path: Path) -> None:
    package = tmp_path / "plugin_package"
    write(package / "__init__.py", "from . import inner")
    write(package / "inner.py", encoder())
    plugins.load([str(package)])
    assert "mine" in ENCODERS
    declared, complete = plugins.declared([str(package)])
    assert ("encoder", "mine") in declared
    assert complete


def test_an_installed_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "ours_single.py")
    with monkeypatch.context() as patch:
        patch.syspath_prepend(str(tmp_path))
        plugins.load(["ours_single"])
    assert "mine" in ENCODERS


def test_an_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "ours_installed.py")
    points = [*plugins._points(), EntryPoint("ours", "ours_installed", plugins.GROUP)]
    with monkeypatch.context() as patch:
        patch.syspath_prepend(str(tmp_path))
        patch.setattr(plugins, "_points", lambda: points)
        assert ("encoder", "mine") in plugins.declared()[0]
        plugins._load_installed.__wrapped__()
    assert "mine" in ENCODERS


def test_an_entry_point_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [EntryPoint("ours", "ours_missing", plugins.GROUP)]
    monkeypatch.setattr(plugins, "_points", lambda: points)
    with pytest.raises(PluginError, match=r"^plugin ours = ours_missing: ModuleNotFoundError"):
        plugins._load_installed.__wrapped__()


def test_medseg_comes_in_through_its_own_entry_points() -> None:
    values = {point.value for point in plugins._points()}
    assert "medseg_plugins" in values


def test_yaml_paths_start_at_the_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "there" / "plugin.py")
    monkeypatch.chdir(tmp_path)
    for reference in ("plugin.py", "./plugin.py", "../there/plugin.py", "./"):
        config = loads(RUN + f"plugins: [{reference}]", tmp_path / "there")
        assert config.plugins == (str(path if reference.endswith(".py") else path.parent),)
    with pytest.raises(ConfigError, match="no such file"):
        loads(RUN + "plugins: [plugin.py]", tmp_path)


def test_flags_start_at_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "here" / "plugin.py")
    monkeypatch.chdir(path.parent)
    config = loads(RUN, tmp_path, plugin=["plugin.py"])
    assert config.plugins == (str(path),)
    assert loads(RUN, tmp_path, ["plugins=[plugin.py]"]).plugins == (str(path),)
    both = loads(RUN + "plugins: [here/plugin.py]", tmp_path, plugin=["plugin.py"])
    assert both.plugins == (str(path), str(path))
    plugins.load(both.plugins)


def test_the_current_folder_is_never_searched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A word without / or .py is an installed module, even where a file or folder is called so."""
    write(tmp_path / "ours_local.py")
    write(tmp_path / "ours_folder" / "one.py")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(tmp_path))])
    with pytest.raises(ConfigError, match="unknown encoder 'mine'"):
        loads(RUN, tmp_path)
    for name in ("ours_local", "ours_folder"):
        for kind in ("flag", "yaml"):
            with pytest.raises(ConfigError, match=f"'{name}': no such module; .* a folder is ./"):
                loads(
                    RUN + (f"plugins: [{name}]" if kind == "yaml" else ""),
                    tmp_path,
                    plugin=[name] if kind == "flag" else [],
                )


def test_options_of_a_named_plugin_are_checked(tmp_path: Path) -> None:
    path = write(tmp_path / "plugin.py")
    text = RUN.replace("mine", "{name: mine, widht: 3}") + "plugins: [plugin.py]"
    with pytest.raises(ConfigError, match="'widht'; did you mean 'width'"):
        loads(text, tmp_path)
    assert "mine" not in ENCODERS  # it was only read
    assert path.exists()


def test_what_cannot_be_read_is_imported(tmp_path: Path) -> None:
    dynamic = """
        from medseg.registry import ENCODERS

        def make(name):
            def component(in_channels: int, width: int = 8): ...
            component.__qualname__ = name
            return component

        for name in ("mine", "yours"):
            ENCODERS.register(name)(make(name))
        """
    write(tmp_path / "plugin.py", inspect.cleandoc(dynamic))
    loads(RUN + "plugins: [plugin.py]", tmp_path)
    assert "yours" in ENCODERS
    with pytest.raises(ConfigError, match="encoder 'mine': unknown option 'x'"):
        loads(RUN.replace("mine", "{name: mine, x: 3}") + "plugins: [plugin.py]", tmp_path)
    with pytest.raises(ConfigError, match="unknown encoder 'mien'; did you mean 'mine'"):
        loads(RUN.replace("mine", "mien") + "plugins: [plugin.py]", tmp_path)


def test_a_plugin_that_only_imports_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "site" / "ours_library.py")
    write(tmp_path / "plugin.py", "import ours_library")
    with monkeypatch.context() as patch:
        patch.syspath_prepend(str(tmp_path / "site"))
        loads(RUN + "plugins: [plugin.py]", tmp_path)


@pytest.mark.parametrize(
    "reference, message",
    [
        ("./gone.py", "gone.py: no such file"),
        ("./gone", "gone: no such folder"),
        ("./notes.txt", "notes.txt: give a .py file, a folder or a module"),
        ("./empty/", "empty: holds no .py file"),
        ("./broken.py", "broken.py, line 2: invalid syntax"),
        ("gone", "'gone': no such module"),
        ("ours.gone", "'ours.gone': no such module"),
        ("", "'': no such module"),
    ],
)
def test_a_reference_that_leads_nowhere(tmp_path: Path, reference: str, message: str) -> None:
    write(tmp_path / "notes.txt")
    write(tmp_path / "broken.py", "x = 1\ndef (:\n")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError) as caught:
        loads(RUN + f"plugins: ['{reference}']", tmp_path)
    assert f"plugins[0]: plugin {'' if message[0] == chr(39) else tmp_path}" in str(caught.value)
    assert message in str(caught.value)
    absolute = str(tmp_path / reference) if "./" in reference else reference
    with pytest.raises(PluginError, match="plugin "):
        plugins.load([absolute])


@pytest.mark.parametrize(
    "code, message",
    [
        ("x = 1\nx / 0", "line 2: ZeroDivisionError: division by zero"),
        ("import no_such_xyz", "line 1: ModuleNotFoundError: No module named 'no_such_xyz'"),
        ("raise SystemExit('bye')", "line 1: SystemExit: bye"),
    ],
)
def test_a_plugin_that_fails(tmp_path: Path, code: str, message: str) -> None:
    path = write(tmp_path / "plugin.py", code)
    for _ in range(2):  # the second time as the first
        with pytest.raises(PluginError) as caught:
            plugins.load([str(path)])
        assert str(caught.value) == f"plugin {path}, {message}"
        assert not any(name.startswith("medseg_plugin_plugin_") for name in sys.modules)


def test_a_name_that_is_taken(tmp_path: Path) -> None:
    path = write(tmp_path / "plugin.py", encoder("resnet"))
    before = ENCODERS.get("resnet")
    with pytest.raises(PluginError) as caught:
        plugins.load([str(path)])
    assert str(caught.value).startswith(
        f"plugin {path}, line 3: encoder 'resnet' is defined twice: medseg_plugins.resnet."
    )
    assert ENCODERS.get("resnet") is before


def test_provenance_names_and_hashes_each_file(tmp_path: Path) -> None:
    path = write(tmp_path / "plugin.py")
    found = plugins.provenance([str(path)])
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert found[-1] == {"plugin": str(path), "file": str(path), "sha256": digest}
    named = {Path(entry["file"]).name for entry in found if entry["plugin"].startswith("bundled")}
    assert {"__init__.py", "resnet.py", "vgg.py"} <= named
    folder = plugins.provenance([str(tmp_path)])
    assert folder[-1] == found[-1] | {"plugin": str(tmp_path)}
