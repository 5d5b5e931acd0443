"""A fingerprint's figures against volumes whose figures are known."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medseg.errors import DataError, DataErrors
from medseg.planning import pooling, start
from medseg.planning.fingerprint import Fingerprint
from medseg.planning.layout import find
from medseg.planning.options import Options
from medseg.volumes.dataset import Labels

SHAPE = (12, 10, 8)
SPACING = (1.0, 2.0, 3.0)


def write(path: Path, data: np.ndarray, codes: str = "RAS") -> None:
    """Write an array given in R, A, S, stored in another order of axes if asked."""
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([*SPACING, 1.0])
    image = nib.Nifti1Image(data, affine)
    if codes != "RAS":
        turn = nib.orientations.ornt_transform(
            nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(codes)
        )
        image = image.as_reoriented(turn)
    nib.save(image, path)


def case(root: Path, name: str, label: np.ndarray, codes: str = "RAS", scale: float = 1.0) -> None:
    """A ramp in a frame of zeros, 2 voxels wide, labelled somewhere."""
    image = np.zeros(SHAPE, np.float32)
    inner = image[2:-2, 2:-2, 2:-2]
    inner[:] = scale * (1 + np.arange(inner.size).reshape(inner.shape))
    write(root / "images" / f"{name}.nii.gz", image, codes)
    write(root / "labels" / f"{name}.nii.gz", label.astype(np.uint8), codes)


def two_boxes(*, apart: int = 3, value: int = 2) -> np.ndarray:
    """Class 1: a box of 2 x 2 x 2; class 2: two single voxels, one of them above it."""
    label = np.zeros(SHAPE)
    label[4:6, 4:6, 2:4] = 1
    label[4, 4, 2 + apart] = value
    label[8, 4, 2 + apart] = value
    return label


def taken(root: Path) -> Fingerprint:
    begun = start.begin(find(root, Options()))
    found = pooling.take(begun.dataset, classes=begun.knows_classes)
    return start.named(found, start.labels(begun, found))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for n, codes in enumerate(("RAS", "LPS", "SRA", "RAS", "RAS", "PIR")):
        case(tmp_path, f"c{n}", two_boxes(), codes)
    return tmp_path


def test_space_is_measured_along_r_a_s(root: Path) -> None:
    found = taken(root)
    assert found.cases == 6
    assert found.shape == (SHAPE, SHAPE, SHAPE)
    assert np.allclose(found.spacing, [SPACING] * 4)
    assert found.size_mm[0] == pytest.approx((12, 20, 24))
    assert found.content_mm[0] == pytest.approx((8, 12, 12))
    assert found.orientations == {"RAS": 3, "LPS": 1, "SRA": 1, "PIR": 1}
    assert found.unplaced == 0


def test_the_blank_background_is_seen(root: Path) -> None:
    found = taken(root)
    inside = 8 * 6 * 4
    assert found.blank == pytest.approx(1 - inside / np.prod(SHAPE))
    assert found.is_corner_zero
    assert found.outside == 0
    label = two_boxes()
    label[0, 0, 0] = 1
    case(root, "c9", label)
    assert taken(root).outside == pytest.approx(1 / 11)


def test_a_mask_says_what_is_blank(root: Path) -> None:
    mask = np.zeros(SHAPE, np.uint8)
    mask[:6] = 1
    for n, codes in enumerate(("RAS", "LPS", "SRA", "RAS", "RAS", "PIR")):
        write(root / "brainmask" / f"c{n}.nii.gz", mask, codes)
    found = taken(root)
    assert found.masked == 6
    assert found.blank == 0.5
    assert found.outside == pytest.approx(1 / 10)  # one of the single voxels
    assert found.content_mm[0] == pytest.approx((6, 20, 24))


def test_intensities(root: Path) -> None:
    (channel,) = taken(root).channels
    assert (channel.name, channel.modality, channel.missing) == ("image", "other", 0)
    assert channel.zero == pytest.approx(1 - 192 / 960)
    assert channel.negative == 0
    assert channel.is_whole
    assert channel.everywhere.percentiles[99.5] == pytest.approx(188, abs=2)
    assert channel.foreground is not None
    assert channel.foreground.percentiles[50.0] > channel.everywhere.percentiles[50.0] == 0
    assert channel.foreground.mean == pytest.approx(79, abs=3)


def test_classes_are_found_and_measured(root: Path) -> None:
    one, two = taken(root).classes
    assert (one.name, two.name) == ("label_1", "label_2")
    assert one.cases == two.cases == 6
    assert one.share == pytest.approx(8 / 960)
    assert one.ml == pytest.approx((0.048,) * 3)
    assert one.count == (1, 1, 1)
    assert two.count == (2, 2, 2)
    assert two.size_mm3 == pytest.approx((6, 6, 6))
    assert (one.single, two.single) == (1, 0)
    assert (one.mean_mm3, two.mean_mm3) == pytest.approx((48, 6))


def test_which_class_lies_where(root: Path) -> None:
    (sides,) = taken(root).sides
    assert sides.classes == ("label_1", "label_2")
    assert sides.mm == pytest.approx((4.5 - 6, 1, (2.5 - 5) * 3))
    assert sides.cases == 6
    assert sides.tells(2, 2.0)
    assert not replace(sides, cases=4).tells(2, 2.0)
    assert not replace(sides, spread=(9.0, 9.0, 9.0)).tells(2, 2.0)


def test_regions_may_overlap(root: Path) -> None:
    options = Options(classes={"whole": (1, 2), "core": 2})
    begun = start.begin(find(root, options))
    assert begun.knows_classes
    whole, core = pooling.take(begun.dataset).classes
    assert (whole.name, core.name) == ("whole", "core")
    assert whole.share == pytest.approx(10 / 960)


def test_a_single_value_is_lesion_and_255_is_ignored(tmp_path: Path) -> None:
    for n in range(3):
        case(tmp_path, f"c{n}", two_boxes(value=255 if n == 2 else 1))
    begun = start.begin(find(tmp_path, Options()))
    found = pooling.take(begun.dataset, classes=False)
    assert start.labels(begun, found) == Labels({"lesion": (1,)}, 255)
    assert found.label_values == {1: 3, 255: 1}


def test_255_alone_is_a_lesion(tmp_path: Path) -> None:
    for n in range(3):
        case(tmp_path, f"c{n}", two_boxes(value=1) * 255)
    begun = start.begin(find(tmp_path, Options()))
    assert begun.dataset.labels == Labels({"lesion": (255,)})
    (lesion,) = pooling.take(begun.dataset).classes
    assert lesion.share == pytest.approx(10 / 960)


def test_ct_is_seen_by_its_values(tmp_path: Path, rng: np.random.Generator) -> None:
    for n in range(2):
        label = two_boxes()
        image = rng.integers(-1000, 1500, SHAPE).astype(np.int16)
        write(tmp_path / "images" / f"c{n}.nii.gz", image)
        write(tmp_path / "labels" / f"c{n}.nii.gz", label.astype(np.uint8))
    (channel,) = taken(tmp_path).channels
    assert (channel.modality, channel.told_by) == ("ct", "values")


def test_a_split_file_leaves_out_those_that_validate(root: Path) -> None:
    split = {"train": ["c0", "c1"], "validation": ["c2", "c3", "c5"]}
    (root / "split.json").write_text(json.dumps(split))
    begun = start.begin(find(root, Options()))
    assert [one.id for one in begun.dataset.cases] == ["c0", "c1"]
    assert (begun.train, begun.validate) == (2, 3)


def test_it_does_not_depend_on_the_threads(root: Path) -> None:
    begun = start.begin(find(root, Options()))
    one, two = (pooling.take(begun.dataset, classes=False, threads=n) for n in (1, 3))
    assert one == two
    assert json.loads(json.dumps(one.plain()))["cases"] == 6


def test_every_bad_file_is_told(root: Path) -> None:
    for name in ("c1", "c4"):
        (root / "images" / f"{name}.nii.gz").write_bytes(b"no")
    begun = start.begin(find(root, Options()))
    with pytest.raises(DataErrors, match=r"(?s)c1\.nii\.gz.*c4\.nii\.gz"):
        pooling.take(begun.dataset, classes=False)


@pytest.mark.filterwarnings("ignore:.*every voxel has the label 0")
def test_nothing_labelled_is_an_error(tmp_path: Path) -> None:
    for n in range(2):
        case(tmp_path, f"c{n}", np.zeros(SHAPE))
    begun = start.begin(find(tmp_path, Options()))
    with pytest.raises(DataError, match="none of 2 cases has a labelled voxel"):
        pooling.take(begun.dataset, classes=False)
