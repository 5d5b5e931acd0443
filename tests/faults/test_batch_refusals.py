"""What cannot come out right is refused before any work, with exit code 2 and what to do."""

from __future__ import annotations

import os
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medseg import api
from medseg.batch import refusals
from medseg.batch.refusals import refuse_clashes
from medseg.errors import DataError, DataErrors
from medseg.inference.predictor import Predictor
from medseg.volumes.dataset import Case, Channel

Model = Callable[..., Path]
Cli = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def network(model: Model) -> Path:
    """A model of two channels. Do not change."""
    return model()


@pytest.fixture(autouse=True)
def nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: object, **__: object) -> None:
        raise AssertionError("this should have been refused")

    monkeypatch.setattr(Predictor, "run", run)


@pytest.fixture
def inputs(heads: Path, tmp_path: Path) -> Path:
    """Two cases, a and b, in a folder of their own."""
    folder = tmp_path / "in"
    folder.mkdir()
    put(heads, folder, "a", "b")
    return folder


def put(heads: Path, folder: Path, *names: str) -> None:
    """Put copies of a head under other names."""
    for name in names:
        for channel in ("0000", "0001"):
            source = heads / "imagesTr" / f"head_001_{channel}.nii.gz"
            shutil.copy(source, folder / f"{name}_{channel}.nii.gz")


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


@pytest.mark.parametrize("below", ["", "masks", "deep/masks"])
@pytest.mark.parametrize("how", ["plain", "relative", "link"])
def test_an_output_in_the_input_folder(
    below: str, how: str, network: Path, inputs: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, source, output = files(inputs), inputs, inputs / below
    if how == "relative":
        monkeypatch.chdir(inputs)
        output = Path(below)
    if how == "link":
        source = inputs.with_name("link")
        source.symlink_to(inputs)
    code, said = cli("predict", "-m", network, "-i", source, "-o", output)
    assert code == 2
    assert f"{'lies inside' if below else 'is'} the input folder" in said
    assert "give a folder beside it, such as" in said
    assert str(inputs.with_name("in_masks")) in said
    assert files(inputs) == before


def test_an_output_beside_a_single_input_is_no_such_thing(
    network: Path, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is a list's own folder, or one that holds the inputs."""
    monkeypatch.undo()
    (inputs / "list.txt").write_text("a_0000.nii.gz,a_0001.nii.gz\n")
    assert api.predict(network, inputs / "list.txt", inputs, quiet=True).done == ["a"]
    assert api.predict(network, inputs, tmp_path, quiet=True).kept == []


def cases(*names: str) -> list[Case]:
    return [Case(name, (Channel(Path(f"{name}_0000.nii.gz")),)) for name in names]


@pytest.mark.parametrize(
    "one, other",
    [
        ("a", "a_probabilities"),
        ("a_probabilities", "a"),
        ("a", "a_uncertainty"),
        (unicodedata.normalize("NFC", "é"), unicodedata.normalize("NFD", "é")),
    ],
)
def test_two_cases_of_one_output_name(one: str, other: str) -> None:
    with pytest.raises(DataError, match=r"would write .*, and so would case .*: rename one"):
        refuse_clashes(cases("x", one, "y", other), Path("out"))


def test_all_clashes_are_told_at_once() -> None:
    with pytest.raises(DataErrors) as caught:
        refuse_clashes(cases("a", "a_probabilities", "b", "b_probabilities"), Path("out"))
    assert len(caught.value.errors) == 2


def test_names_that_differ_by_case(
    network: Path, heads: Path, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_clashes(cases("a", "A"), Path("out"))
    with pytest.raises(DataError, match=r"case 'A' would write a\.nii\.gz, and so would case 'a'"):
        refuse_clashes(cases("a", "A"), Path("out"), folds_case=True)
    assert not refusals._folds_case(tmp_path)
    put(heads, inputs, "A")
    monkeypatch.setattr(refusals, "_folds_case", lambda _: True)
    with pytest.raises(DataError, match="rename one"):
        api.predict(network, inputs, tmp_path / "out", quiet=True)


def test_a_file_system_that_ignores_case_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exists = Path.exists
    there = lambda path: exists(path) or exists(path.with_name(path.name.lower()))  # noqa: E731
    monkeypatch.setattr(Path, "exists", there)
    assert refusals._folds_case(tmp_path)
    assert files(tmp_path) == set()


@pytest.mark.parametrize("place", ["/proc/self", "/sys/kernel"])
def test_an_output_that_even_root_cannot_write(
    place: str, network: Path, inputs: Path, cli: Cli
) -> None:
    if not Path(place).is_dir():
        pytest.skip("not this system")
    for output in (place, f"{place}/masks"):
        code, said = cli("predict", "-m", network, "-i", inputs, "-o", output)
        assert code == 2
        assert f"error: {output}" in said
        assert "cannot be written" in said


def test_a_read_only_output(network: Path, inputs: Path, tmp_path: Path, cli: Cli) -> None:
    output = tmp_path / "out"
    output.mkdir(mode=0o555)
    if os.access(output, os.W_OK):
        pytest.skip("root may write anywhere")
    code, said = cli("predict", "-m", network, "-i", inputs, "-o", output)
    assert code == 2
    assert "cannot be written: Permission denied" in said


def test_a_channel_that_no_case_has(network: Path, inputs: Path, tmp_path: Path, cli: Cli) -> None:
    for file in inputs.glob("*_0001.nii.gz"):
        file.unlink()
    code, said = cli("predict", "-m", network, "-i", inputs, "-o", tmp_path / "out")
    assert code == 2
    assert "no file for channel t1c, as have all 2 cases" in said
    assert "trained with 2 channels (flair, t1c)" in said
    assert not (tmp_path / "out").exists()


def test_4d_files_for_a_model_of_3d_ones(
    network: Path, inputs: Path, tmp_path: Path, cli: Cli
) -> None:
    def stack(*names: str) -> None:
        for name in names:
            image = nib.load(inputs / name)
            voxels = np.stack([image.get_fdata(dtype=np.float32)] * 3, -1)
            nib.save(nib.Nifti1Image(voxels, image.affine), inputs / name)

    stack("a_0000.nii.gz")
    words = ("predict", "-m", network, "-i", inputs, "-o", tmp_path / "out")
    code, said = cli(*words)
    assert (code, "this should have been refused" in said) == (3, True)  # one alone fails alone
    shutil.rmtree(tmp_path / "out")
    stack("b_0000.nii.gz")
    code, said = cli(*words)
    assert code == 2
    assert "3 volumes in one file, where 1 are needed, as have all 2 cases" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("shard", ["0/2", "3/2", "half"])
def test_what_is_no_shard(
    shard: str, network: Path, inputs: Path, tmp_path: Path, cli: Cli
) -> None:
    words = ("-m", network, "-i", inputs, "-o", tmp_path / "out", "--shard", shard)
    code, said = cli("predict", *words)
    assert code == 2
    assert "K/N with K from 1 to N expected" in said
