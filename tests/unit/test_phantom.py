"""The phantom is reproducible, has the lesions it promises, and no threshold segments it."""

from __future__ import annotations

import hashlib

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from medseg.config.schema import Data
from medseg.volumes import cases, phantom
from medseg.volumes.check import check_cases


def heads(count: int, seed: int = 0) -> list[phantom.Head]:
    protocols = phantom.PROTOCOLS
    return [
        phantom.draw(np.random.default_rng([seed, n]), protocols[n % len(protocols)])
        for n in range(count)
    ]


def lesion_volumes(head: phantom.Head) -> np.ndarray:
    """Volumes in mm3 of the 26-connected lesions."""
    parts, _ = ndimage.label(head.label, np.ones((3, 3, 3)))
    return np.bincount(parts.ravel())[1:] * np.prod(head.spacing)


def best_dice(image: np.ndarray, label: np.ndarray, levels: int = 200) -> float:
    """The Dice of the best band low <= value < high; one-sided thresholds are bands too."""
    edges = np.unique(np.quantile(image, np.linspace(0, 1, levels + 1)))
    edges[-1] = np.nextafter(edges[-1], np.inf)
    everything = np.r_[0, np.histogram(image, edges)[0].cumsum()]
    lesion = np.r_[0, np.histogram(image[label > 0], edges)[0].cumsum()]
    low, high = np.triu_indices(len(edges), 1)
    dice = 2 * (lesion[high] - lesion[low]) / (everything[high] - everything[low] + label.sum())
    return float(dice.max())


def digest(folder, pattern: str) -> list[str]:
    return [hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob(pattern))]


@pytest.fixture(scope="module")
def dozen() -> list[phantom.Head]:
    return heads(12)


def test_best_dice_finds_a_band():
    image = np.arange(1000.0).reshape(10, 10, 10)
    assert best_dice(image, (image >= 300) & (image < 400)) == pytest.approx(1, abs=0.02)


def test_no_threshold_of_one_modality_segments_it(dozen):
    dice = np.array([[best_dice(c, head.label) for c in head.channels] for head in dozen])
    assert dice.max() < 0.5, dice.round(2)


def test_both_modalities_together_tell_lesions_apart(dozen):
    """Inside a lesion both are bright; of other tissue, one is dark."""
    for head in dozen:
        inner = ndimage.binary_erosion(head.label)
        dark, bright = np.percentile(
            np.minimum(*(c / c[inner].mean() for c in head.channels))[inner], [5, 95]
        )
        assert dark > 0.8
        assert bright < 1.2
        other = np.minimum(*(c / c[inner].mean() for c in head.channels))
        surround = ~ndimage.binary_dilation(head.label, iterations=2)
        assert (other[surround] > 0.85).mean() < 0.05


def test_lesions_have_the_sizes_promised(dozen):
    volumes = [lesion_volumes(head) for head in dozen]
    assert all(1 <= len(sizes) <= 6 for sizes in volumes)
    assert len({len(sizes) for sizes in volumes}) > 2
    assert all(sizes.max() >= 500 for sizes in volumes)
    everything = np.concatenate(volumes)
    assert everything.min() < 60
    assert everything.max() > 2500
    assert everything.max() <= 5010  # rounded to voxels


@pytest.mark.slow
def test_at_fine_spacing_lesions_range_from_five_to_five_thousand_mm3():
    fine = [phantom.draw(np.random.default_rng(n), (1, 1, 1)) for n in range(12)]
    volumes = np.concatenate([lesion_volumes(head) for head in fine])
    assert 5 <= volumes.min() < 20
    assert 4000 < volumes.max() <= 5000


def test_small_lesions_are_the_exception(dozen):
    voxels = np.concatenate([lesion_volumes(h) / np.prod(h.spacing) for h in dozen])
    assert (voxels >= 8).mean() > 0.7


def test_files_are_a_dataset_that_passes_the_check(tmp_path):
    phantom.generate(tmp_path, 4, 3, held_out=1)
    dataset = cases.find(Data(layout="nnunet", path=str(tmp_path)))
    report = check_cases(dataset, need_labels=True)
    report.raise_problems()
    assert not any(case.notes for case in report.cases)
    assert dataset.channels == ("flair", "t1c")
    assert {case.spacing for case in report.cases} == set(map(tuple, phantom.PROTOCOLS))
    inputs = cases.find_inputs(tmp_path, Data(layout="nnunet", path=str(tmp_path)))
    assert [case.id for case in inputs] == ["head_005"]
    assert (tmp_path / "labelsTs" / "head_005.nii.gz").is_file()


def test_a_seed_gives_the_same_bytes_however_many_cases(tmp_path):
    few, many, other = tmp_path / "few", tmp_path / "many", tmp_path / "other"
    phantom.generate(few, 1, 5)
    phantom.generate(many, 2, 5)
    phantom.generate(other, 1, 6)
    assert digest(few, "head_001*") == digest(many, "head_001*")
    assert not set(digest(few, "*_0000.nii.gz")) & set(digest(other, "*_0000.nii.gz"))


def test_both_orientations_show_the_same_patient(tmp_path):
    phantom.generate(tmp_path, 6, 0)
    codes = set()
    for number in range(6):
        stored = nib.load(tmp_path / "imagesTr" / f"head_{number + 1:03d}_0000.nii.gz")
        codes.add("".join(nib.aff2axcodes(stored.affine)))
        head = phantom.draw(np.random.default_rng([0, number]), phantom.PROTOCOLS[number % 4])
        turned = nib.as_closest_canonical(stored)
        assert np.array_equal(turned.get_fdata(), head.channels[0].astype(np.int16))
        centre = (np.array(turned.shape) - 1) / 2
        assert np.allclose(turned.affine @ [*centre, 1], [0, 0, 0, 1], atol=1e-4)
    assert codes == {"RAS", "LPS"}
