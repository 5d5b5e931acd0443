"""A stranger's plugin, from a YAML outside the checkout, in a wheel and in an editable install."""

from __future__ import annotations

import hashlib
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

import nibabel as nib
import pytest
from safetensors import safe_open

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
def elsewhere(recipe: Callable[..., Path], tmp_path: Path) -> Path:
    """A YAML outside the checkout that uses two plugins beside it, one of them ours."""
    (tmp_path / "mine").mkdir()
    shutil.copy(EXAMPLE, tmp_path / "mine")
    (tmp_path / "mine" / "shift.py").write_text(SHIFT)
    ours = {
        "plugins": ["mine/tiny_encoder.py", "./mine/shift.py"],
        "model.encoder": {"name": "tiny", "widths": [4, 8]},
        "model.deep_supervision": 0,
        "augment.transforms": [{"name": "shift", "most": 0.2}],
        "train.budget": {"steps": 3},
        "train.validation_cases": 1,
        "train.workers": 2,
    }

    return Path(shutil.copy(recipe(**ours), tmp_path))


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


def test_a_plugin_trains_and_predicts(
    scripts: Path, elsewhere: Path, heads: Path, tmp_path: Path
) -> None:
    """Data workers of any kind find the plugins, and end with the same weights."""
    medseg, cwd = scripts / "medseg", tmp_path / "cwd"
    cwd.mkdir()
    weights = set()
    for method in ("fork", "forkserver", "spawn"):
        call(medseg, "train", "-c", elsewhere, "-o", method, "--device", "cpu",
             f"train.start_method={method}", cwd=cwd)  # fmt: skip
        used = json.loads((cwd / method / "environment.json").read_text())["plugins"]
        names = [Path(entry["file"]).name for entry in used if "=" not in entry["plugin"]]
        assert names == ["tiny_encoder.py", "shift.py"]
        assert list((cwd / method / "validation").glob("*.nii.gz"))
        weights.add(digest(cwd / method / "model.safetensors"))
    assert len(weights) == 1

    predict = (medseg, "predict", "-m", "spawn", "-i", heads / "imagesTr", "-o", "masks")
    refused = call(*predict, cwd=cwd, exit_code=2)
    for plugin in ("tiny_encoder.py", "shift.py"):
        assert f"--plugin {elsewhere.parent / 'mine' / plugin}" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not (cwd / "masks").exists()

    call(*predict, "--plugin", "../mine/tiny_encoder.py", "--plugin", "../mine/shift.py", cwd=cwd)
    masks = sorted(path.name for path in (cwd / "masks").glob("*.nii.gz"))
    assert masks == sorted(path.name for path in (heads / "labelsTr").glob("*.nii.gz"))
    for name in masks:
        mask, label = nib.load(cwd / "masks" / name), nib.load(heads / "labelsTr" / name)
        assert mask.shape == label.shape


def digest(model: Path) -> str:
    """A hash of the weights, without what the file says about the run."""
    found = hashlib.sha256()
    with safe_open(model, framework="numpy") as file:
        for name in sorted(file.keys()):
            found.update(file.get_tensor(name).tobytes())
    return found.hexdigest()
