"""Each lesion on record: worked out by hand, split and merged, at corners, in the files."""

from __future__ import annotations

import csv

import nibabel as nib
import numpy as np
import pytest

from medseg.config.schema import Evaluation
from medseg.errors import MedsegError
from medseg.evaluation.evaluate import Job, evaluate
from medseg.evaluation.lesion_records import (
    BEYOND,
    COLUMNS,
    FALSE,
    FOUND,
    MISSED,
    UNCOUNTED,
    folder_names,
    harmless,
    painted,
    records,
)
from medseg.evaluation.lesions import Rule, match
from medseg.evaluation.scores import Beside, score_case, write
from medseg.volumes.dataset import Case, Channel, Dataset, Labels

ROWS = ("one_to_one", "any_overlap")


def line(*runs, length=40):
    """A row of voxels with lesions at the given (start, stop)."""
    mask = np.zeros((length, 1, 1), bool)
    for start, stop in runs:
        mask[start:stop] = True
    return mask


def found(prediction, truth, rule="one_to_one", overlap=0.1, min_mm3=0.0, probability=None):
    return match(prediction, truth, (1, 1, 1), Rule(26, min_mm3, overlap, rule), probability)


def told(matching, affine=None):
    """Kinds and partners, by map: ("found", 1) or ("false", None)."""
    lesions = records(matching, np.eye(4) if affine is None else affine)
    return tuple(
        [(item.kind, item.matched) for item in lesions if item.map == name]
        for name in ("truth", "prediction")
    )


SPLIT = line((0, 3), (4, 9)), line((0, 9))  # one true lesion, two predicted
MERGED = line((0, 20)), line((0, 8), (10, 20))  # two true lesions, one predicted


def test_a_split_lesion():
    one = found(*SPLIT)
    assert told(one) == ([("found", 2)], [("false", None), ("found", 1)])  # IoU 5/9 before 3/9
    assert (one.scores.tp, one.scores.fn, one.scores.fp) == (1, 0, 1)
    assert (one.scores.split, one.scores.merged, one.scores.f1) == (1, 0, 2 / 3)
    several = found(*SPLIT, rule="any_overlap")
    assert told(several) == ([("found", 2)], [("found", 1), ("found", 1)])
    assert (several.scores.tp, several.scores.fn, several.scores.fp) == (1, 0, 0)
    assert len(several.scores.right_mm3) == 2
    assert (several.scores.split, several.scores.merged, several.scores.f1) == (1, 0, 1)


def test_merged_lesions():
    one = found(*MERGED)
    assert told(one) == ([("missed", None), ("found", 1)], [("found", 2)])
    assert (one.scores.split, one.scores.merged, one.scores.f1) == (0, 1, 2 / 3)
    several = found(*MERGED, rule="any_overlap")
    assert told(several) == ([("found", 1), ("found", 1)], [("found", 2)])
    assert (several.scores.tp, several.scores.fp, several.scores.f1) == (2, 0, 1)
    assert (several.scores.split, several.scores.merged) == (0, 1)


def test_any_overlap_asks_for_a_share_of_each():
    """2 of 10 true voxels covered by two predictions together; 1 of 11 and 1 of 1 true."""
    prediction, truth = line((0, 11), (19, 20)), line((10, 20))
    at = {o: found(prediction, truth, "any_overlap", o).scores for o in (0.0, 0.1, 0.2, 0.21)}
    assert [(s.tp, s.fn, s.fp) for s in at.values()] == [(1, 0, 0), (1, 0, 1), (1, 0, 1), (0, 1, 1)]
    assert at[0.1].sensitivity == 1
    assert at[0.1].precision == 0.5
    assert at[0.1].f1 == 2 / 3
    assert at[0.21].f1 == 0
    assert found(line((10, 12)), line((0, 10)), "any_overlap", 0).scores.tp == 0  # they only touch


@pytest.mark.parametrize("rule", ROWS)
def test_a_minimum_size_leaves_small_ones_out(rule):
    truth, prediction = line((0, 2), (10, 20)), line((0, 4), (10, 15), (30, 32), (35, 39))
    small = found(prediction, truth, rule, min_mm3=3)
    assert told(small) == (
        [("not counted", None), ("found", 2)],
        [("not counted", None), ("found", 2), ("not counted", None), ("false", None)],
    )
    assert (small.scores.split, small.scores.merged) == (0, 0)
    both = line((0, 8))  # over a small and a large true lesion: it merges one that counts
    assert found(both, line((0, 1), (3, 8)), rule, min_mm3=3).scores.merged == 0


def test_a_minimum_size_that_voxels_just_make():
    mask = line((0, 4))
    just = match(mask, mask, (0.1, 3.0, 1.0), Rule(26, 1.2, 0.1))  # 4 x 0.3, a trifle above 1.2
    assert just.scores.tp == 1
    just = match(mask, mask, (0.7, 0.1, 1.0), Rule(26, 0.28, 0.1))  # and 4 x 0.07 a trifle below
    assert 4 * float(np.prod((0.7, 0.1, 1.0))) != 0.28
    assert just.scores.tp == 1


@pytest.mark.parametrize("rule", ROWS)
def test_nothing_there(rule):
    empty, full = line(), line((3, 5))
    assert told(found(empty, empty, rule)) == ([], [])
    assert told(found(empty, full, rule)) == ([("missed", None)], [])
    assert told(found(full, empty, rule)) == ([], [("false", None)])
    scores = [found(a, b, rule).scores for a, b in ((empty, empty), (empty, full), (full, empty))]
    assert [s.f1 for s in scores] == [1, 0, 0]
    assert painted(found(empty, empty, rule), (40, 1, 1)).sum() == 0


@pytest.mark.parametrize(("connectivity", "lesions"), [(6, 3), (18, 2), (26, 1)])
def test_lesions_that_touch_at_edges_and_corners(connectivity, lesions):
    """The truth is one cube; the prediction one of its voxels, one at an edge, one at a corner."""
    truth = np.zeros((7, 7, 7), bool)
    truth[1:6, 1:6, 1:6] = True
    prediction = np.zeros((7, 7, 7), bool)
    prediction[2, 2, 2] = prediction[3, 3, 2] = prediction[4, 4, 3] = True
    one = match(prediction, truth, (1, 1, 1), Rule(connectivity, 0, 0)).scores
    assert (one.tp, one.fp, one.split) == (1, lesions - 1, int(lesions > 1))
    several = match(prediction, truth, (1, 1, 1), Rule(connectivity, 0, 0, "any_overlap")).scores
    assert (several.tp, several.fp, len(several.right_mm3)) == (1, 0, lesions)


def test_the_numbers_of_a_record():
    truth, prediction = np.zeros((2, 10, 8, 6), bool)
    truth[2:6, 3:5, 1:3] = True
    prediction[4:8, 3:5, 1:3] = True
    probability = np.full(truth.shape, 0.25)
    probability[4:6] = 0.75
    affine = np.array([[0, -2.0, 0, 5], [1, 0, 0, -7], [0, 0, 3, 1], [0, 0, 0, 1]])
    matching = match(prediction, truth, (1, 2, 3), Rule(26, 0, 0.1), probability)
    true, predicted = records(matching, affine)
    assert (true.map, true.number, true.kind, true.matched) == ("truth", 1, "found", 1)
    assert true.centroid_mm == (5 - 2 * 3.5, -7 + 3.5, 1 + 3 * 1.5)
    assert predicted.centroid_mm == (5 - 2 * 3.5, -7 + 5.5, 1 + 3 * 1.5)
    assert true.volume_mm3 == predicted.volume_mm3 == 16 * 6
    assert true.extent_mm == (4 * 1, 2 * 2, 2 * 3)
    assert (true.iou, true.dice) == (8 / 24, 16 / 32)
    assert predicted.confidence == true.confidence == 0.5
    assert (true.touches, predicted.touches) == (1, 1)
    row = predicted.row()
    assert set(row) | {"case", "class"} == set(COLUMNS)
    assert (row["centroid_a_mm"], row["extent_j_mm"], row["iou"]) == (-1.5, 4.0, 0.3333)


def test_the_surest_take_their_partners_first():
    """A sure part of a split lesion is its find, though a less sure one has the greater IoU."""
    probability = np.zeros((40, 1, 1))
    probability[0:3], probability[4:9] = 0.9, 0.6
    one = found(*SPLIT, probability=probability)
    assert told(one) == ([("found", 1)], [("found", 1), ("false", None)])
    (true, *_) = records(one, np.eye(4))
    assert true.confidence == pytest.approx(0.9)


def test_a_lesion_once_found_stays_found_below():
    """A less sure prediction gets the lesion of a surer one, which moves to its other choice."""
    truth = line((0, 10), (11, 17))
    prediction = line((0, 2), (3, 15))  # the first can only have the first
    probability = np.zeros((40, 1, 1))
    probability[0:2], probability[3:15] = 0.6, 0.9
    one = found(prediction, truth, probability=probability)
    assert told(one) == ([("found", 1), ("found", 2)], [("found", 1), ("found", 2)])
    at = [lesion.confidence for lesion in records(one, np.eye(4))[:2]]
    assert at == pytest.approx([0.9, 0.6])  # at .9 the first is found, at .6 both are


def test_any_overlap_is_found_when_enough_is_covered():
    truth, prediction = line((0, 10)), line((0, 1), (2, 4), (5, 9))
    probability = np.zeros((40, 1, 1))
    probability[0:1], probability[2:4], probability[5:9] = 0.9, 0.8, 0.7
    at = {}
    for overlap in (0.0, 0.1, 0.11, 0.31):
        matching = found(prediction, truth, "any_overlap", overlap, probability=probability)
        at[overlap] = records(matching, np.eye(4))[0].confidence
    assert list(at.values()) == pytest.approx([0.9, 0.9, 0.8, 0.7])


def test_the_painted_map_hides_no_error():
    truth = line((0, 6), (10, 14), (20, 21), (25, 30))
    prediction = line((0, 2), (3, 8), (12, 30), (35, 37), (38, 39))
    matching = found(prediction, truth, min_mm3=2, overlap=0.3)
    map_ = painted(matching, truth.shape).ravel()
    expected = np.zeros(40, int)
    expected[0:2] = FALSE  # a crumb of a found lesion: the other part is its partner
    expected[2:6], expected[6:8] = FOUND, BEYOND
    expected[12:30] = FALSE
    expected[10:14] = MISSED
    expected[25:30] = MISSED
    expected[35:37] = FALSE
    expected[38:39] = UNCOUNTED
    np.testing.assert_array_equal(map_, expected)
    small = painted(found(line(), line((3, 4)), min_mm3=2), truth.shape)
    assert small.sum() == UNCOUNTED


@pytest.mark.parametrize("text", ["=1+1", "+1", "-x", "@sum", "\tx", "\rx", "  =cmd|' /C calc'!A0"])
def test_a_cell_is_never_a_formula(text):
    assert harmless(text) == f"'{text}"


def test_other_cells_stay():
    for value in ("head_001", "a=b", "", None, -3.5, 7, "x-1"):
        assert harmless(value) == value


def test_names_in_the_table_are_harmless(tmp_path):
    prediction, truth = (mask.astype(np.uint8) for mask in SPLIT)
    settings = Evaluation(lesions=True)
    case = score_case("=evil", prediction, truth, (1, 1, 1), {"@class": (1,)}, settings)
    write(tmp_path, [case], settings)
    for name in ("lesions.csv", "scores.csv"):
        with (tmp_path / name).open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert {(row["case"], row["class"]) for row in rows} == {("'=evil", "'@class")}
    plain = Evaluation()
    masks = prediction, truth
    write(tmp_path, [score_case("a", *masks, (1, 1, 1), {"c": (1,)}, plain)], plain)
    assert not (tmp_path / "lesions.csv").exists()  # of an earlier evaluation


def test_folders_of_classes_are_apart():
    names = folder_names(["whole tumour", "whole/tumour", "../x", "肿瘤", "Core", "core"])
    assert list(names.values()) == [
        "whole_tumour", "whole_tumour-2", "x", "class", "Core", "core-6",
    ]  # fmt: skip


@pytest.fixture
def scene(tmp_path):
    """Two cases with truth and masks on disk; classes whole (1, 2) and core (2)."""
    affine = np.array([[-1.5, 0, 0, 20], [0, 0, 2, -3], [0, 1, 0, 8], [0, 0, 0, 1.0]])
    rng = np.random.default_rng(0)
    cases = []
    for name in "ab":
        truth, prediction = np.zeros((2, 12, 10, 8), np.uint8)
        truth[2:6, 2:6, 2:6], truth[3:5, 3:5, 3:5] = 1, 2
        prediction[3:7, 2:6, 2:6], prediction[9:11, 8:9, 1:2] = 1, 2
        image = rng.normal(size=truth.shape).astype(np.float32)
        for folder, data in (("t", truth), ("p", prediction), ("i", image)):
            (tmp_path / folder).mkdir(exist_ok=True)
            nib.save(nib.Nifti1Image(data, affine), tmp_path / folder / f"{name}.nii.gz")
        places = (Channel(tmp_path / "i" / f"{name}.nii.gz"),)
        cases.append(Case(name, places, tmp_path / "t" / f"{name}.nii.gz"))
    labels = Labels({"whole": (1, 2), "core": (2,)})
    return tmp_path, Dataset(tuple(cases), ("image",), labels), affine


def shares(folder, name, affine, values=(0.2, 0.5, 0.3), shape=(12, 10, 8)):
    data = np.broadcast_to(np.float32(values), (*shape, len(values)))
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    nib.save(nib.Nifti1Image(np.ascontiguousarray(data), affine), path)
    return path


def run(scene, **settings):
    folder, dataset, _ = scene
    job = Job(dataset, Evaluation(lesions=True, **settings))
    return evaluate(folder / "p", job, folder / "out", lambda *_: None)


def test_an_evaluation_writes_table_and_maps(scene):
    folder, _, affine = scene
    shares(folder / "p", "a_probabilities.nii.gz", affine)
    summary = run(scene)
    with (folder / "out" / "lesions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == list(COLUMNS)
    assert len(rows) == 2 * (3 + 2)  # whole: one true, two predicted; core: one and one
    first, second, third = rows[:3]
    assert (first["case"], first["class"], first["map"], first["kind"]) == (
        "a", "whole", "truth", "found",
    )  # fmt: skip
    centre = affine @ [3.5, 3.5, 3.5, 1]
    assert [float(first[f"centroid_{axis}_mm"]) for axis in "ras"] == pytest.approx(centre[:3])
    assert float(first["volume_mm3"]) == 64 * 3
    assert float(second["confidence"]) == pytest.approx(0.8)  # a region: the sum of its labels
    assert (third["kind"], third["matched"], third["dice"]) == ("false", "", "")
    assert [row["confidence"] for row in rows[5:]] == [""] * 5  # nothing known of case b
    assert "froc" not in summary["classes"]["whole"]
    for name in ("whole", "core"):
        image = nib.load(folder / "out" / "lesions" / name / "a.nii.gz")
        np.testing.assert_allclose(image.affine, affine)
        assert image.get_data_dtype() == np.uint8
    values = np.asarray(nib.load(folder / "out/lesions/whole/a.nii.gz").dataobj)
    assert np.bincount(values.ravel(), minlength=5).tolist() == [960 - 82, 64, 0, 2, 16]


def test_confidences_of_all_cases_give_froc(scene):
    folder, _, affine = scene
    shares(folder / "p", "a_probabilities.nii.gz", affine)
    shares(folder / "p", "confidence/b.nii.gz", affine, (0.1, 0.6, 0.3))
    found = run(scene, lesion_maps=False)["classes"]["whole"]["froc"]
    assert found["curve"] == [[0.5, 0.5], [1.0, 1.0]]  # b at .9, then a at .8: a find and an alarm
    assert found["thresholds"] == pytest.approx([0.9, 0.8])
    assert not (folder / "out" / "lesions").exists()


def test_one_class_needs_no_folder_of_its_own(scene):
    folder, dataset, _ = scene
    one = Dataset(dataset.cases, dataset.channels, Labels({"all": (1, 2)}))
    job = Job(one, Evaluation(lesions=True))
    evaluate(folder / "p", job, folder / "out", lambda *_: None)
    assert sorted(p.name for p in (folder / "out/lesions").iterdir()) == ["a.nii.gz", "b.nii.gz"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"values": (0.5, 0.5)}, "2 volumes for 3 classes, background included"),
        ({"values": (-3.0, 1.0, 4.0)}, "values from -3 to 4 are no probabilities"),
        ({"shape": (12, 10, 7)}, "not on the grid of .*12 x 10 x 8 voxels"),
    ],
)
def test_probabilities_that_do_not_fit_are_refused(scene, change, told):
    folder, _, affine = scene
    path = shares(folder / "p", "a_probabilities.nii.gz", affine, **change)
    with pytest.raises(MedsegError, match=told) as error:
        run(scene)
    assert str(path) in str(error.value)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(MedsegError, match="a_probabilities"):
        run(scene)


def test_lesions_off_ask_for_no_probabilities(scene):
    folder, dataset, _ = scene
    (folder / "p" / "a_probabilities.nii.gz").write_bytes(b"no volume")
    evaluate(folder / "p", Job(dataset, Evaluation()), folder / "out", lambda *_: None)
    assert not (folder / "out" / "lesions.csv").exists()


def test_the_centroid_needs_the_affine():
    settings, seen = Evaluation(lesions=True), []
    affine = np.diag([2.0, 2, 2, 1])
    affine[:3, 3] = 100
    beside = Beside(affine, paint=lambda name, found: seen.append(name))
    masks = [mask.astype(np.uint8) for mask in SPLIT]
    case = score_case("x", *masks, (2, 2, 2), {"l": (1,)}, settings, beside=beside)
    assert case.each["l"][0].centroid_mm == (108, 100, 100)
    assert seen == ["l"]
