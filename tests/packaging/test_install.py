"""A stranger's plugin, from a YAML outside the checkout, in a wheel and in an editable install."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import nibabel as nib
import pytest

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "tiny_encoder.py"
# A transform is what data workers build, so that they too must find the plugin.
SHIFT = '''
import numpy as np

from medseg.registry import TRANSFORMS


@TRANSFORMS.register("shift")
class Shift:
    """Add a number drawn for each patch."""

    def __init__(self, most: float = 0.1) -> None:
        self.most = most

    def sample(self, rng: np.random.Generator) -> float:
        return float(rng.uniform(-self.most, self.most))

    def __call__(self, data: dict, by: float) -> dict:
        return {**data, "image": data["image"] + np.float32(by)}
'''

pytestmark = pytest.mark.slow


def call(
    *words: str | Path, cwd: Path, exit_code: int = 0, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """Run a command with one thread, and see how it ends."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        list(map(str, words)),
        cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout, check=False,
    )  # fmt: skip
    assert done.returncode == exit_code, f"{words}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    here = ["--no-isolation"] if find_spec("hatchling") else []
    call(sys.executable, "-m", "build", "--wheel", *here, "-o", folder, ROOT, cwd=folder)
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripts of a fresh environment: the wheel, over the libraries that are here already."""
    folder = tmp_path_factory.mktemp("environment") / "venv"
    call(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
    python = folder / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python)
    call(*pip, "install", "--quiet", "--no-deps", "--no-index", wheel, cwd=folder)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python.parent


@pytest.fixture(scope="session")
def editable() -> Path:
    return Path(sys.executable).parent


@pytest.fixture(params=["wheel", "editable"])
def scripts(request: pytest.FixtureRequest) -> Path:
    found: Path = request.getfixturevalue("installed" if request.param == "wheel" else "editable")
    return found


@pytest.fixture
def elsewhere(recipe: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """A folder outside the checkout: a run that uses two plugins beside it, one of them ours."""
    (tmp_path / "mine").mkdir()
    shutil.copy(EXAMPLE, tmp_path / "mine")
    (tmp_path / "mine" / "shift.py").write_text(SHIFT)

    def write(**settings: Any) -> Path:
        recipe(
            plugins=["mine/tiny_encoder.py", "./mine/shift.py"],
            **{
                "model.encoder": {"name": "tiny", "widths": [4, 8]},
                "augment.transforms": [{"name": "shift", "most": 0.2}],
                "train.budget": {"steps": 3},
                "train.validation_cases": 1,
                "train.workers": 2,
            },
            **settings,
        )
        return tmp_path

    return write


def test_the_wheel_holds_all_that_runs_and_no_more(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"medseg", "medseg_plugins"}
    assert {"medseg/demo.yaml", "medseg/py.typed", "medseg_plugins/resnet.py"} <= names
    for package, folder in (("medseg", ROOT), ("medseg_plugins", ROOT / "plugins")):
        ours = {p.relative_to(folder).as_posix() for p in (folder / package).rglob("*.py")}
        assert {n for n in names if n.startswith(f"{package}/") and n.endswith(".py")} == ours
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_the_environment_holds_the_wheel(installed: Path, tmp_path: Path) -> None:
    code = "import medseg, medseg_plugins, torch; print(medseg.__file__, medseg_plugins.__file__)"
    places = call(installed / "python", "-c", code, cwd=tmp_path).stdout.split()
    assert all(place.startswith(str(installed.parent)) for place in places)
    listed = call(installed / "medseg", "plugins", cwd=tmp_path).stdout
    assert "  resnet  " in listed
    assert str(ROOT) not in listed


@pytest.mark.parametrize("start_method", ["fork", "forkserver", "spawn"])
def test_a_plugin_trains_and_predicts(
    scripts: Path, elsewhere: Callable[..., Path], heads: Path, start_method: str
) -> None:
    folder = elsewhere(**{"train.start_method": start_method})
    cwd = folder / "cwd"
    cwd.mkdir()
    medseg = scripts / "medseg"
    call(medseg, "train", "-c", "../run.yaml", "-o", "run", "--device", "cpu", cwd=cwd)
    used = json.loads((cwd / "run" / "environment.json").read_text())["plugins"]
    names = [Path(entry["file"]).name for entry in used if "=" not in entry["plugin"]]
    assert names == ["tiny_encoder.py", "shift.py"]
    assert list((cwd / "run" / "validation").glob("*.nii.gz"))

    predict = (medseg, "predict", "-m", "run", "-i", heads / "imagesTr", "-o", "masks")
    refused = call(*predict, cwd=cwd, exit_code=2)
    for plugin in ("tiny_encoder.py", "shift.py"):
        assert f"--plugin {folder / 'mine' / plugin}" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not (cwd / "masks").exists()

    named = ("--plugin", "../mine/tiny_encoder.py", "--plugin", "../mine/")
    call(*predict, *named[:2], "--plugin", "../mine/shift.py", "--device", "cpu", cwd=cwd)
    masks = sorted(path.name for path in (cwd / "masks").glob("*.nii.gz"))
    labels = sorted(path.name for path in (heads / "labelsTr").glob("*.nii.gz"))
    assert masks == labels
    for name in masks:
        mask, label = nib.load(cwd / "masks" / name), nib.load(heads / "labelsTr" / name)
        assert mask.shape == label.shape


def test_the_start_method_changes_nothing(elsewhere: Callable[..., Path], editable: Path) -> None:
    """Data workers of any kind, and none, end with the same weights."""
    import hashlib

    found = set()
    for n, settings in enumerate(
        ({"workers": 0}, {"start_method": "fork"}, {"start_method": "spawn"})
    ):
        folder = elsewhere(**{f"train.{key}": value for key, value in settings.items()})
        call(editable / "medseg", "train", "-c", "run.yaml", "-o", f"run{n}", "--device", "cpu",
             cwd=folder)  # fmt: skip
        from safetensors import safe_open

        with safe_open(folder / f"run{n}" / "model.safetensors", framework="numpy") as file:
            digest = hashlib.sha256()
            for name in sorted(file.keys()):
                digest.update(file.get_tensor(name).tobytes())
        found.add(digest.hexdigest())
    assert len(found) == 1
