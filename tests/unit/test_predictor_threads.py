"""One predictor, several threads at once: each gets what it would get alone."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from medseg.inference.predictor import Predictor
from medseg.postprocess.dense import blurs, kernels, updates
from medseg.postprocess.prediction import Prediction
from medseg.volumes.dataset import Case, Channel

THREADS = 6
STEPS = "postprocess=[{name: crf, accuracy: fast}, {name: min_volume, mm3: 200}]"


@pytest.fixture(scope="module")
def network(model: Callable[..., Path]) -> Path:
    """A model. Do not change."""
    return model()


@pytest.fixture
def volumes(heads: Path) -> list[Any]:
    """A head each, as files, as a nibabel image, as an array with its affine, and again."""
    given: list[Any] = []
    for n in range(1, THREADS + 1):
        files = [heads / "imagesTr" / f"head_{n:03d}_{channel:04d}.nii.gz" for channel in (0, 1)]
        loaded = [nib.load(file) for file in files]
        data = np.stack([volume.get_fdata() for volume in loaded], -1)
        image = nib.Nifti1Image(data, loaded[0].affine)
        array = np.moveaxis(data, -1, 0), image.affine
        given.append((files, image, array)[n % 3])
    return given


def at_once(work: Callable[[Any], Any], arguments: Sequence[Any]) -> list[Any]:
    """Call a function in a thread for each argument, all of which begin together."""
    barrier = Barrier(len(arguments))

    def begin(argument: Any) -> Any:
        barrier.wait(60)
        return work(argument)

    with ThreadPoolExecutor(len(arguments)) as pool:
        return list(pool.map(begin, arguments))


def same(ours: Prediction, theirs: Prediction) -> None:
    np.testing.assert_array_equal(ours.labels, theirs.labels)
    np.testing.assert_array_equal(ours.affine, theirs.affine)
    np.testing.assert_array_equal(ours.probabilities, theirs.probabilities)


@pytest.mark.parametrize("overrides", [[], [STEPS], ["inference.scales=[0.8,1]"]])
def test_threads_get_what_one_gets(overrides: list[str], network: Path, volumes: list[Any]) -> None:
    predictor = Predictor.load(network, device="cpu", overrides=overrides)
    alone = [predictor.predict(volume, probabilities=True) for volume in volumes]
    assert len({prediction.labels.tobytes() for prediction in alone}) == THREADS
    together = at_once(lambda volume: predictor.predict(volume, probabilities=True), volumes)
    for ours, theirs in zip(together, alone, strict=True):
        same(ours, theirs)


def test_a_volume_may_be_shared(network: Path, volumes: list[Any]) -> None:
    """By all threads; and it stays as it was."""
    predictor = Predictor.load(network, device="cpu", overrides=[STEPS])
    array, affine = next(volume for volume in volumes if isinstance(volume, tuple))
    before = array.copy()
    shared = array.astype(np.float32), affine  # which is used as it is, not copied
    alone = predictor.predict(shared, probabilities=True)
    for other in at_once(lambda given: predictor.predict(given, probabilities=True), [shared] * 4):
        same(other, alone)
    np.testing.assert_array_equal(shared[0], before.astype(np.float32))


class Late(Predictor):
    """A predictor that takes its time between looking whether it has warned, and warning."""

    @property
    def _is_warned(self) -> bool:
        known: bool = self.__dict__["known"]
        time.sleep(0.05)
        return known

    @_is_warned.setter
    def _is_warned(self, value: bool) -> None:
        self.__dict__["known"] = value


def test_a_missing_channel_is_warned_of_once(network: Path, heads: Path) -> None:
    predictor = Late.load(network, device="cpu", missing="zero")
    file = Channel(heads / "imagesTr" / "head_001_0000.nii.gz")
    case = Case("head", (file, None))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        at_once(predictor.load_case, [case] * THREADS)
    assert [str(one.message) for one in said if "are missing" in str(one.message)] == [
        "channels are missing, and this model was trained with all of them (flair, t1c): what it "
        "makes of the rest is untested"
    ]


def test_no_kernel_of_the_crf_brings_threads_of_its_own() -> None:
    """Numba's simplest layer of threads ends the process when two threads enter it at once."""
    compiled = [
        function
        for module in (blurs, kernels, updates)
        for function in vars(module).values()
        if hasattr(function, "targetoptions")
    ]
    assert len(compiled) > 10
    assert not any(function.targetoptions.get("parallel") for function in compiled)
