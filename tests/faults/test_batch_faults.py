"""Promises 5, 7, 8: a bad case costs one case, a file is whole or not there, reruns are cheap."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from medseg import api, plugins
from medseg.batch.ledger import latest
from medseg.errors import DataError, MedsegError
from medseg.inference.predictor import Predictor, Ready
from medseg.inference.steps import Crf
from medseg.registry import POSTPROCESSORS
from medseg.volumes import nifti

Model = Callable[..., Path]
Cli = Callable[..., tuple[int, str]]
LOGS = {"ledger.jsonl", "failures.json", "failures.csv"}


@pytest.fixture(scope="module")
def network(model: Model) -> Path:
    """A model. Do not change."""
    return model()


@pytest.fixture
def inputs(copied: Callable[[str], Path]) -> Path:
    """Eight small cases, a to h."""
    return copied("abcdefgh")


@pytest.fixture
def few(inputs: Path) -> Path:
    """Only a, b and c of them."""
    for file in inputs.iterdir():
        if file.name[0] > "c":
            file.unlink()
    return inputs


def predict(
    network: Path, inputs: Path, output: Path, *overrides: str, crf: Crf = "model"
) -> tuple[str, str, str]:
    """Predict, and give the ids that were done, kept and failed."""
    outcome = api.predict(
        network, inputs, output, device="cpu", overrides=list(overrides), crf=crf, quiet=True
    )
    done, kept, failed = outcome.done, outcome.kept, outcome.failed
    return "".join(sorted(done)), "".join(sorted(kept)), "".join(sorted(failed))


def failures(output: Path) -> dict[str, str]:
    content = json.loads((output / "failures.json").read_text())
    return {item["id"]: item["reason"] for item in content["failed"]}


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def fill_with_nan(path: Path) -> None:
    image = nib.load(path)
    nib.save(nib.Nifti1Image(np.full(image.shape, np.nan, np.float32), image.affine), path)


def fail_on(errors: dict[str, Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the prediction of some cases raise."""
    run = Predictor.run

    def faulty(self: Predictor, ready: Ready, **options: Any) -> Any:
        name = ready.case.reference.path.name[0]
        if name in errors:
            raise errors[name]
        return run(self, ready, **options)

    monkeypatch.setattr(Predictor, "run", faulty)


def test_bad_cases_are_named_and_the_others_predicted(
    network: Path, inputs: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    truncate(inputs / "b_0001.nii.gz")
    fill_with_nan(inputs / "d_0000.nii.gz")
    out_of_memory = RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB")
    with monkeypatch.context() as patch:
        fail_on({"e": MemoryError(), "g": out_of_memory}, patch)
        code, said = cli("predict", "-m", network, "-i", inputs, "-o", output, "--device", "cpu")
    assert code == 3
    assert "4 predicted" in said
    assert "4 failed" in said
    masks = sorted(file.name for file in output.glob("*.nii.gz"))
    assert masks == ["a.nii.gz", "c.nii.gz", "f.nii.gz", "h.nii.gz"]
    for mask in masks:
        nifti.read_label(output / mask)
    reasons = failures(output)
    assert sorted(reasons) == ["b", "d", "e", "g"]
    assert "b_0001.nii.gz" in reasons["b"]
    assert "d_0000.nii.gz: no voxel is finite" in reasons["d"]
    assert reasons["e"].startswith("MemoryError")
    assert reasons["g"] == f"RuntimeError: {out_of_memory}"
    for case, reason in reasons.items():
        assert f"failed: {case}: {reason}" in said

    # A rerun does what is missing alone; the list then holds only what still fails.
    assert predict(network, inputs, output) == ("eg", "acfh", "bd")
    assert sorted(failures(output)) == ["b", "d"]
    for channel in ("0000", "0001"):
        shutil.copy(inputs / f"c_{channel}.nii.gz", inputs / f"b_{channel}.nii.gz")
        shutil.copy(inputs / f"c_{channel}.nii.gz", inputs / f"d_{channel}.nii.gz")
    done, kept, failed = predict(network, inputs, output)
    assert (done, failed) == ("bd", "")
    assert kept == "acefgh"
    assert not (output / "failures.json").exists()
    code, said = cli("predict", "-m", network, "-i", inputs, "-o", output, "--device", "cpu")
    assert code == 0
    assert "0 predicted, 8 were up to date, 0 failed" in said


@pytest.mark.slow
def test_any_case_fails_the_same_in_whatever_place(
    network: Path, few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_on({name: ValueError("no") for name in "abc"}, monkeypatch)
    assert predict(network, few, tmp_path / "out") == ("", "", "abc")
    assert failures(tmp_path / "out") == dict.fromkeys("abc", "ValueError: no")


@pytest.mark.slow
def test_an_interrupt_is_no_bad_case(
    network: Path, few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_on({"b": KeyboardInterrupt()}, monkeypatch)  # type: ignore[dict-item]
    with pytest.raises(KeyboardInterrupt):
        predict(network, few, tmp_path / "out")
    monkeypatch.undo()
    assert predict(network, few, tmp_path / "out") == ("bc", "a", "")


@pytest.mark.parametrize("damage", ["truncated", "gone", "edited", "no record", "torn record"])
@pytest.mark.slow
def test_a_damaged_output_is_made_again(
    damage: str, network: Path, few: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    assert predict(network, few, output) == ("abc", "", "")
    mask, record = output / "b.nii.gz", output / "b.json"
    before = mask.read_bytes()
    if damage == "truncated":
        truncate_to(mask, 100)
    elif damage == "gone":
        mask.unlink()
    elif damage == "edited":
        shutil.copy(output / "a.nii.gz", mask)
    elif damage == "no record":
        record.unlink()
    else:
        truncate_to(record, 50)
    assert predict(network, few, output) == ("b", "ac", "")
    assert mask.read_bytes() == before
    assert predict(network, few, output) == ("", "abc", "")


def truncate_to(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


@pytest.mark.slow
def test_damaged_probabilities_are_made_again(network: Path, few: Path, tmp_path: Path) -> None:
    output, wanted = tmp_path / "out", "inference.probabilities=true"
    assert predict(network, few, output, wanted) == ("abc", "", "")
    truncate_to(output / "b_probabilities.nii.gz", 100)
    assert predict(network, few, output, wanted) == ("b", "ac", "")
    (output / "c_probabilities.nii.gz").unlink()
    assert predict(network, few, output, wanted) == ("c", "ab", "")
    shares = nib.load(output / "b_probabilities.nii.gz")
    assert shares.shape == (*nib.load(few / "b_0000.nii.gz").shape, 2)
    np.testing.assert_allclose(shares.get_fdata().sum(-1), 1, atol=1e-5)
    mask = nib.load(output / "b.nii.gz")
    np.testing.assert_array_equal(shares.get_fdata().argmax(-1), mask.get_fdata())
    np.testing.assert_array_equal(shares.affine, mask.affine)


def test_a_changed_input_is_predicted_again(network: Path, few: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    predict(network, few, output)
    shutil.copy(few / "c_0001.nii.gz", few / "a_0001.nii.gz")
    assert predict(network, few, output) == ("a", "bc", "")


@pytest.mark.slow
def test_exchanged_channels_are_another_input(network: Path, few: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    predict(network, few, output)
    first, second = few / "b_0000.nii.gz", few / "b_0001.nii.gz"
    first.rename(few / "x")
    second.rename(first)
    (few / "x").rename(second)
    assert predict(network, few, output) == ("b", "ac", "")


@pytest.mark.slow
def test_inputs_may_move(network: Path, few: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    predict(network, few, output)
    moved = few.rename(tmp_path / "moved")
    assert predict(network, moved, output) == ("", "abc", "")


@pytest.mark.slow
def test_another_model_predicts_all_again(
    network: Path, model: Model, few: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    predict(network, few, output)
    assert predict(model(seed=7), few, output) == ("abc", "", "")


@pytest.mark.parametrize(
    "override",
    [
        "inference.overlap=0.25",
        "inference.flip=[1]",
        "inference.probabilities=true",
        "postprocess=[{name: largest_component}]",
        "preprocess.normalise=[{name: zscore}]",
        "train.patch=[8,8,8]",  # the window, where inference.patch names none
    ],
)
@pytest.mark.slow
def test_other_settings_predict_all_again(
    override: str, network: Path, few: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    (few / "c_0000.nii.gz").unlink()
    (few / "c_0001.nii.gz").unlink()
    predict(network, few, output)
    assert predict(network, few, output, override) == ("ab", "", "")
    same = ("evaluation.tolerance_mm=2", "inference.memory=512", "inference.batch=2")
    assert predict(network, few, output, override, *same) == ("", "ab", "")


@pytest.mark.slow
def test_lesions_need_the_confidence_beside_the_mask(
    network: Path, few: Path, tmp_path: Path
) -> None:
    output, lesions, all_of_them = (
        tmp_path / "out",
        "evaluation.lesions=true",
        ("inference.probabilities=true"),
    )
    for name in "bc":
        (few / f"{name}_0000.nii.gz").unlink()
        (few / f"{name}_0001.nii.gz").unlink()
    predict(network, few, output)
    assert not (output / "confidence").exists()
    assert predict(network, few, output, lesions) == ("a", "", "")
    assert predict(network, few, output, lesions) == ("", "a", "")
    mask = nib.load(output / "a.nii.gz").get_fdata()
    sure = nib.load(output / "confidence" / "a.nii.gz").get_fdata()
    assert sure.shape == (*mask.shape, 2)
    assert (sure[mask == 0] == 0).all()
    np.testing.assert_allclose(sure[mask > 0].sum(-1), 1, atol=1e-5)
    assert (sure[mask > 0][:, 1] >= 0.5).all()
    assert predict(network, few, output, lesions, all_of_them) == ("a", "", "")
    assert (output / "a_probabilities.nii.gz").exists()
    assert not (output / "confidence" / "a.nii.gz").exists()  # of an earlier mask: stale
    assert predict(network, few, output) == ("a", "", "")
    assert not (output / "a_probabilities.nii.gz").exists()


def test_masks_made_with_another_crf_are_stale(
    network: Path, few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without any CRF, "off" takes the same steps as "model": nothing is stale."""
    plugins.load()
    monkeypatch.setitem(POSTPROCESSORS._components, "crf", POSTPROCESSORS.get("hysteresis"))
    for name in "bc":
        for file in few.glob(f"{name}_*"):
            file.unlink()
    output = tmp_path / "out"
    assert predict(network, few, output) == ("a", "", "")
    assert predict(network, few, output, crf="off") == ("", "a", "")
    assert predict(network, few, output, crf="on") == ("a", "", "")
    assert predict(network, few, output, crf="on") == ("", "a", "")
    assert predict(network, few, output) == ("a", "", "")


@pytest.mark.slow
def test_a_case_that_fails_has_no_mask_of_before(
    network: Path, few: Path, tmp_path: Path, cli: Cli
) -> None:
    """A mask of an older input under the name would be taken for that of the new one."""
    output = tmp_path / "out"
    predict(network, few, output, "inference.probabilities=true")
    truncate(few / "b_0000.nii.gz")
    (few / "c_0001.nii.gz").unlink()
    _, _, failed = predict(network, few, output, "inference.probabilities=true")
    assert failed == "bc"
    left = {file.name for file in output.iterdir()}
    assert left == {"a.json", "a.nii.gz", "a_probabilities.nii.gz", *LOGS}


@pytest.mark.slow
def test_what_others_left_under_the_name_is_kept_when_a_case_fails(
    network: Path, few: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "b.nii.gz").write_text("mine")
    truncate(few / "b_0000.nii.gz")
    assert predict(network, few, output) == ("ac", "", "b")
    assert (output / "b.nii.gz").read_text() == "mine"
    (output / "b.json").write_text('{"Modality": "MR"}')  # as BIDS has it beside a volume
    assert predict(network, few, output) == ("", "ac", "b")
    assert (output / "b.nii.gz").read_text() == "mine"
    assert json.loads((output / "b.json").read_text()) == {"Modality": "MR"}


def test_an_input_is_never_overwritten(network: Path, few: Path, cli: Cli) -> None:
    for file in few.iterdir():
        if file.name[0] != "a":
            file.unlink()
    before = {}
    for channel in ("0000", "0001"):
        plain = few / f"a{channel}.nii.gz"
        (few / f"a_{channel}.nii.gz").rename(plain)
        before[plain] = plain.read_bytes()
    (few / "list.txt").write_text("a0000.nii.gz,a0001.nii.gz\n")
    code, said = cli("predict", "-m", network, "-i", few / "list.txt", "-o", few)
    assert code == 2
    assert "a0000.nii.gz: an input has this name; give another output folder" in said
    assert {file: file.read_bytes() for file in before} == before
    assert sorted(file.name for file in few.iterdir()) == [
        "a0000.nii.gz",
        "a0001.nii.gz",
        "list.txt",
    ]


def test_a_duplicate_id_is_refused_before_work(network: Path, few: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(few, other)
    lines = [f"{folder / 'a_0000.nii.gz'},{folder / 'a_0001.nii.gz'}\n" for folder in (few, other)]
    (tmp_path / "list.txt").write_text("".join(lines))
    with pytest.raises(DataError, match=r"id 'a' is also that of .*: rename one"):
        predict(network, tmp_path / "list.txt", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("place", ["file", "below"])
def test_an_output_that_cannot_be_written_is_refused(
    place: str, network: Path, few: Path, tmp_path: Path, cli: Cli
) -> None:
    (tmp_path / "file").write_text("mine")
    output = tmp_path / "file" if place == "file" else tmp_path / "file" / "below"
    code, said = cli("predict", "-m", network, "-i", few, "-o", output)
    assert code == 2
    assert "cannot be written" in said
    assert str(output) in said
    assert (tmp_path / "file").read_text() == "mine"


GEOMETRY = [
    *("pixdim", "qform_code", "sform_code", "xyzt_units"),
    *("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    *("srow_x", "srow_y", "srow_z"),
]


def test_the_mask_has_the_raw_geometry_of_its_input(
    network: Path, few: Path, tmp_path: Path
) -> None:
    from scipy.spatial.transform import Rotation

    turn = Rotation.from_euler("xyz", (0.3, -0.2, 0.4)).as_matrix()
    for channel in ("0000", "0001"):
        file = few / f"b_{channel}.nii.gz"
        voxels = np.asanyarray(nib.load(file).dataobj)
        affine = np.eye(4)
        affine[:3, :3], affine[:3, 3] = turn @ np.diag([-4, 4, 6]), (31, -7, 2.5)
        image = nib.Nifti1Image(voxels, affine)
        image.set_qform(affine, 2)
        image.set_sform(affine, 4)
        image.header.set_xyzt_units("mm", "sec")
        nib.save(image, file)
    predict(network, few, tmp_path / "out")
    for name in "abc":
        mine = nib.load(tmp_path / "out" / f"{name}.nii.gz")
        source = nib.load(few / f"{name}_0000.nii.gz")
        assert mine.shape == source.shape
        assert mine.get_data_dtype() == np.uint8
        for key in GEOMETRY:
            np.testing.assert_array_equal(mine.header[key], source.header[key], err_msg=key)


def test_the_record_beside_a_mask_says_where_it_is_from(
    network: Path, few: Path, tmp_path: Path
) -> None:
    import hashlib

    predict(network, few, tmp_path / "out")
    record = json.loads((tmp_path / "out" / "a.json").read_text())
    mask = nib.load(tmp_path / "out" / "a.nii.gz")
    assert record["model"] == hashlib.sha256(network.read_bytes()).hexdigest()
    assert record["outputs"] == {
        "a.nii.gz": hashlib.sha256((tmp_path / "out" / "a.nii.gz").read_bytes()).hexdigest()
    }
    assert len(record["inputs"]) == 2
    assert record["shape"] == list(mask.shape)
    voxel = float(np.prod(mask.header.get_zooms()))
    expected = np.count_nonzero(mask.get_fdata()) * voxel / 1000
    assert record["volume_ml"] == {"lesion": pytest.approx(expected)}


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)),) * 2)
from medseg.cli import main
main()
"""


@pytest.mark.slow
def test_a_size_limit_leaves_nothing_unreadable(network: Path, few: Path, tmp_path: Path) -> None:
    """Masks of a few kB pass, probabilities do not: each case says why, and none is half there."""
    output = tmp_path / "out"
    command = [sys.executable, "-c", LIMITED, "20000", "predict"]
    command += ["-m", str(network), "-i", str(few), "-o", str(output)]
    done = subprocess.run(
        [*command, "inference.probabilities=true"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 3, done.stderr
    reasons = failures(output)
    assert sorted(reasons) == ["a", "b", "c"]
    for reason in reasons.values():
        assert reason == f"{output}: class probabilities cannot be kept there: File too large"
    assert {file.name for file in output.iterdir()} == LOGS
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for case in "abc":
        nifti.read_label(output / f"{case}.nii.gz")
    assert not (output / "failures.json").exists()


@pytest.mark.slow
def test_sigkill_leaves_whole_masks_alone(network: Path, inputs: Path, tmp_path: Path) -> None:
    import random
    import time

    output = tmp_path / "out"
    words = ["predict", "-m", str(network), "-i", str(inputs), "-o", str(output)]
    moments = random.Random(1)
    for kill in range(3):
        with subprocess.Popen(
            [sys.executable, "-m", "medseg", *words],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as process:
            while process.poll() is None and len(list(output.glob("*.json"))) <= 2 * kill:
                time.sleep(0.001)
            time.sleep(moments.uniform(0, 0.05))
            process.kill()
        for mask in output.glob("*.nii.gz"):
            if not mask.name.startswith(".partial-"):
                nifti.read_label(mask)
    done, kept, failed = predict(network, inputs, output)
    assert failed == ""
    assert sorted(done + kept) == list("abcdefgh")
    fresh = tmp_path / "fresh"
    predict(network, inputs, fresh)
    for name in "abcdefgh":
        mask = f"{name}.nii.gz"
        assert (output / mask).read_bytes() == (fresh / mask).read_bytes()
        assert lasting(output / f"{name}.json") == lasting(fresh / f"{name}.json")
    told = latest(output)
    assert {name: told[name]["status"] for name in told} == {
        **dict.fromkeys(done, "done"),
        **dict.fromkeys(kept, "kept"),
    }


def lasting(record: Path) -> dict[str, Any]:
    """A record without what is of one run."""
    found = json.loads(record.read_text())
    return {k: v for k, v in found.items() if k not in ("seconds", "time", "worker")}


def test_nothing_to_predict_is_an_error(network: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(MedsegError, match="no input file"):
        predict(network, tmp_path / "empty", tmp_path / "out")
    with pytest.raises(MedsegError, match="no such file or folder"):
        predict(network, tmp_path / "none", tmp_path / "out")
    assert not (tmp_path / "out").exists()
