"""The Python API of prediction: every way to hand over a volume gives the same labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

import medseg
from medseg import plugins as medseg_plugins
from medseg.config.postprocess import PostprocessorSpec
from medseg.errors import DataError, MedsegError
from medseg.inference.predictor import Predictor, pick_device
from medseg.networks.checkpoint import Tuned, load, set_tuned
from medseg.postprocess.prediction import Prediction
from medseg.registry import POSTPROCESSORS
from medseg.transforms.foreground import foreground
from medseg.volumes.dataset import Case, Channel

Model = Callable[..., Path]


@pytest.fixture(scope="module")
def network(model: Model) -> Path:
    """A model. Do not change."""
    return model()


@pytest.fixture
def files(heads: Path) -> list[Path]:
    """The channels of a head in voxels of 4 x 4 x 6 mm, stored LPS or RAS."""
    return [heads / "imagesTr" / f"head_002_{n:04d}.nii.gz" for n in range(2)]


def stacked(files: list[Path]) -> nib.Nifti1Image:
    volumes = [nib.load(file) for file in files]
    data = np.stack([volume.get_fdata() for volume in volumes], -1)
    return nib.Nifti1Image(data, volumes[0].affine)


def test_every_way_in_gives_the_same(network: Path, files: list[Path]) -> None:
    predictor = medseg.Predictor.load(network)
    image = stacked(files)
    array = np.moveaxis(image.get_fdata(), -1, 0)
    by_list = predictor.predict(files)
    assert by_list.labels.shape == image.shape[:3]
    assert 0 < by_list.labels.mean() < 1
    for volume in ([str(file) for file in files], image, (array, image.affine)):
        other = predictor.predict(volume)
        np.testing.assert_array_equal(other.labels, by_list.labels)
        np.testing.assert_allclose(other.affine, by_list.affine, atol=1e-5)


@pytest.mark.slow
def test_a_single_channel_may_come_by_itself(
    model: Model, files: list[Path], tmp_path: Path
) -> None:
    data = {"layout": "folder", "path": str(files[0].parent.parent)}
    data |= {"channels": {"flair": "imagesTr/{id}_0000.nii.gz"}, "classes": {"lesion": 1}}
    data |= {"label": "labelsTr/{id}.nii.gz", "split": {"folds": 3}}
    predictor = Predictor.load(model(data=data))
    image = nib.load(files[0])
    expected = predictor.predict(files[0]).labels
    assert expected.any()
    for volume in (str(files[0]), [files[0]], image, (image.get_fdata(), image.affine)):
        np.testing.assert_array_equal(predictor.predict(volume).labels, expected)


@pytest.mark.slow
def test_a_4d_file_holds_the_channels_of_layout_msd(
    model: Model, files: list[Path], tmp_path: Path
) -> None:
    import json

    for folder in ("imagesTr", "labelsTr"):
        (tmp_path / "msd" / folder).mkdir(parents=True)
    pairs = []
    for n in range(3):
        nib.save(stacked(files), tmp_path / f"msd/imagesTr/a{n}.nii.gz")
        label = nib.load(files[0].parent.parent / "labelsTr" / "head_002.nii.gz")
        nib.save(label, tmp_path / f"msd/labelsTr/a{n}.nii.gz")
        pairs.append({"image": f"imagesTr/a{n}.nii.gz", "label": f"labelsTr/a{n}.nii.gz"})
    content = {
        "modality": {"0": "flair", "1": "t1c"},
        "labels": {"0": "background", "1": "lesion"},
        "training": pairs,
    }
    (tmp_path / "msd" / "dataset.json").write_text(json.dumps(content))
    data = {"layout": "msd", "path": str(tmp_path / "msd"), "split": {"folds": 3}}
    predictor = Predictor.load(model(data=data))
    by_path = predictor.predict(tmp_path / "msd" / "imagesTr" / "a0.nii.gz")
    np.testing.assert_array_equal(by_path.labels, predictor.predict(stacked(files)).labels)


def test_labels_are_the_likeliest_of_probabilities_that_sum_to_one(
    network: Path, files: list[Path]
) -> None:
    prediction = Predictor.load(network).predict(files, probabilities=True)
    shares = prediction.probabilities
    assert shares is not None
    assert shares.shape == (2, *prediction.labels.shape)
    np.testing.assert_allclose(shares.sum(0), 1, atol=1e-5)
    np.testing.assert_array_equal(shares.argmax(0), prediction.labels)
    assert Predictor.load(network).predict(files).probabilities is None


def test_postprocessing_is_applied(network: Path, files: list[Path]) -> None:
    from scipy import ndimage

    plain = Predictor.load(network).predict(files).labels
    options = "postprocess=[{name: largest_component, connectivity: 6}]"
    one = Predictor.load(network, overrides=[options]).predict(files).labels
    parts, count = ndimage.label(plain)
    assert count > 1
    largest = parts == 1 + np.bincount(parts.ravel())[1:].argmax()
    np.testing.assert_array_equal(one > 0, largest)


class Half:
    """A CRF of a test: foreground is what was none, or what is bright."""

    needs_probabilities = True

    def __init__(self, by_image: bool = False) -> None:
        self.by_image = by_image

    def __call__(self, prediction: Prediction) -> Prediction:
        prediction.need_probabilities()
        bright = prediction.image[0] > prediction.image[0].mean()
        foreground = bright if self.by_image else prediction.labels == 0
        shares = np.stack([~foreground, foreground]).astype(np.float32)
        return prediction.with_probabilities(shares)


@pytest.fixture
def crf(monkeypatch: pytest.MonkeyPatch) -> None:
    medseg_plugins.load()
    monkeypatch.setitem(POSTPROCESSORS._components, "crf", Half)


def test_raw_is_the_prediction_before_any_step(network: Path, files: list[Path]) -> None:
    plain = Predictor.load(network).predict(files, probabilities=True)
    predictor = Predictor.load(network, overrides=["postprocess=[{name: min_volume, mm3: 1.0e+9}]"])
    case = predictor.load_case(Case("a", tuple(map(Channel, files))))
    raw = predictor.raw(case)
    np.testing.assert_array_equal(raw.labels, plain.labels)
    np.testing.assert_array_equal(raw.probabilities, plain.probabilities)
    assert raw.mask is None
    assert not predictor.predict_case(case).labels.any()


def test_the_region_of_interest_reaches_the_steps(network: Path, files: list[Path]) -> None:
    predictor = Predictor.load(network)
    case = predictor.load_case(Case("a", tuple(map(Channel, files))))
    mask = case.image[0] > case.image[0].mean()
    assert predictor.predict_case(replace(case, mask=mask)).mask is mask


def test_a_computed_region_reaches_the_steps_on_the_inputs_grid(
    model: Model, files: list[Path]
) -> None:
    predictor = Predictor.load(model(**{"preprocess.mask": "otsu_plus"}))
    case = predictor.load_case(Case("a", tuple(map(Channel, files))))
    mask = predictor.predict_case(case).mask
    assert mask is not None
    np.testing.assert_array_equal(mask, foreground(case.image, "otsu_plus"))


def test_steps_that_need_probabilities_get_them(
    network: Path, files: list[Path], crf: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nobody else; what is handed out is what the last step made."""
    seen = []

    class Look:
        def __init__(self) -> None:
            pass

        def __call__(self, prediction: Prediction) -> Prediction:
            seen.append(prediction.probabilities is not None)
            return prediction

    monkeypatch.setitem(POSTPROCESSORS._components, "look", Look)
    stored = load(network)
    steps = tuple(PostprocessorSpec(name=name) for name in ("look", "crf", "look"))
    config = stored.config.model_copy(update={"postprocess": steps})
    predictor = Predictor(replace(stored, config=config), torch.device("cpu"))
    plain = predictor.predict(files)
    full = predictor.predict(files, probabilities=True)
    assert seen == [True, False, True, True]
    assert plain.probabilities is None
    assert full.probabilities is not None
    assert set(np.unique(full.probabilities)) == {0.0, 1.0}
    np.testing.assert_array_equal(full.probabilities[1], plain.labels)


def test_the_crf_can_be_switched(model: Model, files: list[Path], crf: None) -> None:
    path = model()
    plain = Predictor.load(path).predict(files).labels
    for mode, expected in (("model", plain), ("off", plain), ("on", 1 - plain)):
        got = Predictor.load(path, crf=mode).predict(files).labels
        np.testing.assert_array_equal(got, expected)
    set_tuned(path, Tuned("crf", {"by_image": True}, (), True, {}))
    by_image = Predictor.load(path).predict(files).labels
    assert not np.array_equal(by_image, plain)
    assert not np.array_equal(by_image, 1 - plain)
    np.testing.assert_array_equal(Predictor.load(path, crf="off").predict(files).labels, plain)


@pytest.mark.parametrize("way", ["path", "list", "nibabel", "array"])
def test_the_wrong_number_of_channels_is_named(way: str, network: Path, files: list[Path]) -> None:
    predictor = Predictor.load(network)
    image = nib.load(files[0])
    volumes: dict[str, Any] = {
        "path": files[0],
        "list": [*files, files[0]],
        "nibabel": image,
        "array": (image.get_fdata(), image.affine),
    }
    with pytest.raises(DataError, match=r"(1|3) .*2.*flair, t1c"):
        predictor.predict(volumes[way])


@pytest.mark.parametrize(
    "volume, message",
    [
        ((np.zeros((4, 4)), np.eye(4)), r"got \(4, 4\)"),
        ((np.full((2, 4, 4, 4), np.nan), np.eye(4)), "finite"),
        ((np.zeros((2, 4, 4, 4)), np.zeros((4, 4))), "affine"),
        ((np.zeros((2, 4, 4, 4)), np.eye(3)), "affine"),
        ((np.zeros((2, 4, 4, 4)), np.full((4, 4), np.nan)), "affine"),
        ((np.zeros((2, 0, 4, 4)), np.eye(4)), r"got \(2, 0, 4, 4\)"),
        (["/no/such.nii.gz", "/no/other.nii.gz"], "no such file"),
        ([], "0 file"),
        (7, "path"),
    ],
)
def test_what_is_no_volume_is_refused(volume: Any, message: str, network: Path) -> None:
    predictor = Predictor.load(network)
    with pytest.raises(MedsegError, match=message):
        predictor.predict(volume)


def test_settings_that_cannot_work_are_refused_at_once(network: Path) -> None:
    with pytest.raises(MedsegError, match=r"inference\.patch \[10, 16, 16\] must be divisible"):
        Predictor.load(network, overrides=["inference.patch=[10,16,16]"])
    with pytest.raises(MedsegError, match="fp16 needs a CUDA device"):
        Predictor.load(network, device="cpu", overrides=["inference.precision=fp16"])


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"model\.safetensors"):
        Predictor.load(tmp_path)


def test_devices() -> None:
    assert pick_device("cpu").type == "cpu"
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    for wrong in ("cuda:99", "gpu", ""):
        with pytest.raises(DataError, match=f"--device {wrong}: "):
            pick_device(wrong)
