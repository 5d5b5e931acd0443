"""A case that ends the process that predicts it, as a full memory or a fault in a library does."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medseg import plugins
from medseg.batch.job import Job
from medseg.registry import POSTPROCESSORS
from medseg.volumes.dataset import Case, Channel

FATAL = """
import os
import sys
import time
from pathlib import Path

from medseg.postprocess.prediction import Prediction
from medseg.registry import POSTPROCESSORS


@POSTPROCESSORS.register("fatal")
class Fatal:
    '''Note the process; where the patient lies far right, end it, or wait to be ended.'''

    def __init__(
        self, classes: int, folder: str, ends: tuple[int, ...] = (), times: tuple[int, ...] = ()
    ) -> None:
        self.folder, self.ends, self.times = Path(folder), ends, times

    def __call__(self, prediction: Prediction) -> Prediction:
        far = int(prediction.affine[0, 3] // 1000)
        calls = len(list(self.folder.glob(f"{far}-*")))
        (self.folder / f"{far}-{calls}-{os.getpid()}-{time.monotonic_ns()}").touch()
        if far > 0 and calls < self.times[far - 1]:
            number = self.ends[far - 1]
            if number == 0:
                time.sleep(60)
            elif number < 0:
                sys.exit(-number)
            else:
                os.kill(os.getpid(), number)
        return prediction
"""


class Lab:
    """Cases, a job, and what the plugin of the job noted."""

    def __init__(self, folder: Path, model: Path, heads: Path) -> None:
        self.folder, self._model, self._heads = folder, model, heads
        self.notes, self.plugin = folder / "notes", folder / "fatal.py"
        self.notes.mkdir()
        self.plugin.write_text(FATAL)

    def job(self, *ends: tuple[int, int], output: str = "out") -> Job:
        """A job whose last step is the plugin's.

        Args:
            ends: For each of the cases that lie far, how its process ends (a signal; 0: it waits
                for a minute; below 0: by `exit`), and how often before it does well.
            output: Name of the folder for what is written.
        """
        numbers, times = [int(end) for end, _ in ends], [count for _, count in ends]
        told = f'folder: "{self.notes}", ends: {numbers}, times: {times}'
        path = self.folder / output
        path.mkdir(exist_ok=True)
        return Job(
            (self._model,),
            path,
            device="cpu",
            plugins=(str(self.plugin),),
            overrides=(f"postprocess=[{{name: fatal, {told}}}]",),
        )

    def cases(self, count: int, *far: int) -> list[Case]:
        """So many cases, named a, b, c...; the numbered ones lie 1, 2, 3... m to the right."""
        folder = self.folder / "in"
        folder.mkdir(exist_ok=True)
        found = []
        for n in range(count):
            paths = [folder / f"{chr(97 + n)}_{channel}.nii.gz" for channel in ("0000", "0001")]
            for path in paths:
                source = self._heads / "imagesTr" / f"head_00{1 + n % 6}{path.name[1:]}"
                if n in far:
                    image = nib.load(source)
                    affine = image.affine.copy()
                    affine[0, 3] = 1000 * (1 + far.index(n)) + 500
                    nib.save(nib.Nifti1Image(np.asanyarray(image.dataobj), affine), path)
                else:
                    shutil.copy(source, path)
            found.append(Case(chr(97 + n), tuple(Channel(path) for path in paths)))
        return found

    def pids(self, far: int = 0) -> list[int]:
        """The processes that predicted such a case, in order."""
        notes = sorted(self.notes.glob(f"{far}-*"), key=lambda note: int(note.name.split("-")[3]))
        return [int(note.name.split("-")[2]) for note in notes]


@pytest.fixture
def copied(heads: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Make a folder of small cases, one for each letter."""

    def copy(names: str) -> Path:
        folder = tmp_path / "in"
        folder.mkdir()
        for n, name in enumerate(names):
            for channel in ("0000", "0001"):
                source = heads / "imagesTr" / f"head_00{1 + n % 6}_{channel}.nii.gz"
                shutil.copy(source, folder / f"{name}_{channel}.nii.gz")
        return folder

    return copy


@pytest.fixture(scope="session")
def untrained(model: Callable[..., Path]) -> Path:
    """A model. Do not change."""
    return model()


@pytest.fixture
def lab(tmp_path: Path, untrained: Path, heads: Path) -> Iterator[Lab]:
    yield Lab(tmp_path, untrained, heads)
    POSTPROCESSORS._components.pop("fatal", None)  # this process may have loaded it, too
    plugins._load_one.cache_clear()
    plugins._import_file.cache_clear()


@pytest.fixture
def masks() -> Callable[[Job], dict[str, bytes]]:
    """What lies in a job's folder beside records, by name."""

    def read(job: Job) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in sorted(job.output.glob("*.nii.gz"))}

    return read
