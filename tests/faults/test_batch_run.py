"""A batch run that is started on Friday and trusted on Monday, whatever happens at the weekend."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from medseg import api
from medseg.batch import job as job_module
from medseg.batch import place
from medseg.batch.ledger import events, latest
from medseg.batch.run import Outcome
from medseg.errors import DataError
from medseg.inference.predictor import Predictor, Ready
from medseg.volumes import nifti

Model = Callable[..., Path]
Cli = Callable[..., tuple[int, str]]
PER_RUN = ("seconds", "time", "worker")  # what a record says of the run, not of the mask


@pytest.fixture(scope="module")
def network(model: Model) -> Path:
    """A model. Do not change."""
    return model()


@pytest.fixture(scope="module")
def tiny(model: Model) -> Path:
    """One of a single channel and voxels as they are, for volumes of any size. Do not change."""
    return model(**{"preprocess.spacing": None, "preprocess.normalise": [{"name": "zscore"}]})


@pytest.fixture
def inputs(copied: Callable[[str], Path]) -> Path:
    """Six cases, a to f."""
    return copied("abcdef")


def predict(network: Path, inputs: Path, output: Path, *overrides: str, **more: Any) -> Outcome:
    return api.predict(
        network, inputs, output, device="cpu", overrides=overrides, quiet=True, **more
    )


def on(name: str, action: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Have something happen while the network has a case."""
    run = Predictor.run

    def eventful(self: Predictor, ready: Ready, **options: Any) -> Any:
        if ready.case.reference.path.name.startswith(name):
            action()
        return run(self, ready, **options)

    monkeypatch.setattr(Predictor, "run", eventful)


def records(output: Path) -> dict[str, dict[str, Any]]:
    """Every record, without what is of one run alone."""
    found = {}
    for path in output.glob("*.json"):
        if path.name != "failures.json":
            record = json.loads(path.read_text())
            found[path.stem] = {k: v for k, v in record.items() if k not in PER_RUN}
    return found


def masks(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in output.glob("*.nii.gz")}


def statuses(output: Path) -> dict[str, str]:
    return {name: event["status"] for name, event in latest(output).items()}


# What is written down


def test_the_record_and_the_ledger_agree(network: Path, inputs: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    told: list[Any] = []
    predict(network, inputs, output, tell=told.append)
    record = json.loads((output / "a.json").read_text())
    event = latest(output)["a"]
    assert {*record["seconds"]} == {"read", "prepare", "predict", "postprocess", "write"}
    assert record["versions"].keys() >= {"python", "torch", "numpy", "nibabel"}
    assert (record["device"], record["precision"]) == ("cpu", "fp32")
    assert record["worker"].endswith(f"-{os.getpid()}")
    for key in ("seconds", "inputs", "model", "settings", "outputs", "worker"):
        assert event[key] == record[key]
    assert [entry.id for entry in told] == list("abcdef")
    assert json.loads(json.dumps(told[0].plain())) == {k: event[k] for k in told[0].plain()}
    kinds = [e["event"] for e in events(output / "ledger.jsonl")]
    assert kinds == ["start", *["case"] * 6, "end"]
    predict(network, inputs, output)
    assert set(statuses(output).values()) == {"kept"}
    assert latest(output)["a"]["outputs"] == record["outputs"]


@pytest.mark.slow
def test_seconds_and_the_like_make_no_mask_stale(
    network: Path, inputs: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    predict(network, inputs, output)
    path = output / "a.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in record.items() if k not in PER_RUN}))
    assert len(predict(network, inputs, output).kept) == 6


@pytest.mark.slow
@pytest.mark.parametrize("line", ["torn", "gone", "nonsense"])
def test_a_damaged_ledger_harms_no_mask(
    line: str, network: Path, inputs: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    predict(network, inputs, output)
    ledger = output / "ledger.jsonl"
    if line == "gone":
        ledger.unlink()
    elif line == "torn":
        ledger.write_bytes(ledger.read_bytes()[:-30])
    else:
        ledger.write_bytes(b'\xff\x00[1, 2]\n"text"\n{"event": "case"')
    assert predict(network, inputs, output).kept == list("abcdef")
    assert all(statuses(output)[name] == "kept" for name in "abcdef")


def test_geometry_that_is_odd_is_told(network: Path, inputs: Path, tmp_path: Path) -> None:
    file = inputs / "b_0000.nii.gz"
    image = nib.load(file)
    voxels = image.get_fdata(dtype=np.float32)
    voxels[5, 5, 5] = np.nan
    nib.save(nib.Nifti1Image(voxels, image.affine), file)
    with pytest.warns(nifti.VolumeWarning, match="1 of .* voxels are NaN or infinite"):
        predict(network, inputs, tmp_path / "out")
    note = json.loads((tmp_path / "out" / "b.json").read_text())["notes"][0]
    assert "b_0000.nii.gz: 1 of" in note
    assert latest(tmp_path / "out")["b"]["notes"] == [note]


def test_json_lines_and_nothing_else(
    network: Path, inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], cli: Cli
) -> None:
    (inputs / "c_0000.nii.gz").write_bytes(b"no volume")
    words = ["predict", "-m", network, "-i", inputs, "-o", tmp_path / "out"]
    code, said = cli(*words, "--json")
    assert code == 3
    lines = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    assert [line["event"] for line in lines] == [*["case"] * 6, "summary"]
    assert [line["id"] for line in lines[:6]] == list("abcdef")
    case = latest(tmp_path / "out")["b"]
    assert lines[1] == case
    assert lines[-1]["done"] == list("abdef")
    assert lines[-1]["failed"]["c"].startswith(str(inputs / "c_0000.nii.gz"))
    rest = [line for line in said.splitlines() if not line.startswith("{")]
    assert [line for line in rest if not line.startswith("failed: c: ")] == []
    code, said = cli(*words, "--quiet")
    assert (code, said.splitlines()) == (3, rest)
    (inputs / "c_0000.nii.gz").unlink()
    (inputs / "c_0001.nii.gz").unlink()
    assert cli(*words, "--quiet") == (0, "")


@pytest.mark.slow
def test_an_ensemble_with_all_that_can_be_written(
    network: Path, model: Model, inputs: Path, tmp_path: Path
) -> None:
    output, both = tmp_path / "out", [network, model(seed=7)]
    wanted = (
        *("inference.probabilities=true", "inference.probability_type=uint8"),
        *("inference.uncertainty=spread", "inference.compression=1"),
    )
    assert api.predict(both, inputs, output, overrides=wanted, quiet=True).is_complete
    record = json.loads((output / "a.json").read_text())
    assert [*record["outputs"]] == ["a_probabilities.nii.gz", "a_uncertainty.nii.gz", "a.nii.gz"]
    assert record["model"].count("+") == 1
    shares = nib.load(output / "a_probabilities.nii.gz")
    assert shares.get_data_dtype() == np.uint8
    mask = nib.load(output / "a.nii.gz").get_fdata()
    sure = np.abs(np.diff(shares.get_fdata(), axis=-1)[..., 0]) > 2 / 255
    np.testing.assert_array_equal(shares.get_fdata().argmax(-1)[sure], mask[sure])
    spread = nib.load(output / "a_uncertainty.nii.gz").get_fdata()
    assert 0 < spread.max() <= 0.5 + 1 / 255
    assert len(api.predict(both, inputs, output, overrides=wanted, quiet=True).kept) == 6
    again = api.predict(both[::-1], inputs, output, overrides=wanted, quiet=True)
    assert len(again.done) == 6
    assert api.predict(network, inputs, output, quiet=True).is_complete
    assert not (output / "a_uncertainty.nii.gz").exists()  # of the earlier mask: stale
    assert [*output.glob(".partial*")] == []


# Shards


@pytest.mark.slow
def test_shards_make_the_masks_of_one_run(network: Path, inputs: Path, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    predict(network, inputs, whole)
    (inputs / "b_0001.nii.gz").write_bytes(b"no volume")
    done = [predict(network, inputs, parts, shard=f"{k}/4").done for k in (3, 1, 2, 4)]
    assert done == [["c"], ["a", "e"], ["f"], ["d"]]
    assert "b" in (parts / "failures.csv").read_text()
    for channel in ("0000", "0001"):
        shutil.copy(inputs.parent / "in" / f"a_{channel}.nii.gz", inputs / f"b_{channel}.nii.gz")
    (whole / "b.nii.gz").unlink()
    predict(network, inputs, whole)
    assert predict(network, inputs, parts, shard="2/4").done == ["b"]
    assert not (parts / "failures.csv").exists()
    assert masks(parts) == masks(whole)
    assert records(parts) == records(whole)
    assert predict(network, inputs, parts).kept == list("abcdef")


@pytest.mark.slow
def test_shards_in_processes_at_once(network: Path, inputs: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    words = [sys.executable, "-m", "medseg", "predict", "-m", network, "-i", inputs, "-o", output]
    started = [
        subprocess.Popen([*words, "--json", "--shard", f"{k}/3"], stdout=subprocess.PIPE, text=True)
        for k in (1, 2, 3)
    ]
    lines = [
        json.loads(line)
        for process in started
        for line in process.communicate()[0].split("\n")
        if line
    ]
    assert [process.returncode for process in started] == [0, 0, 0]
    done = sorted(line["id"] for line in lines if line["event"] == "case")
    assert done == list("abcdef")
    predict(network, inputs, tmp_path / "whole")
    assert masks(output) == masks(tmp_path / "whole")


# Killed, interrupted


@pytest.mark.slow
def test_ctrl_c_stops_cleanly(network: Path, inputs: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    slow = ("inference.mode=window", "inference.overlap=0.8")
    words = [sys.executable, "-m", "medseg", "predict", "-m", network, "-i", inputs, "-o", output]
    with subprocess.Popen(
        [*words, *slow], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        while process.poll() is None and not (output / "a.json").exists():
            time.sleep(0.001)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said == "interrupted: the same command goes on with what is missing\n"
    assert list(output.glob(".partial*")) == []
    last = list(events(output / "ledger.jsonl"))[-1]
    assert last["event"] == "end"
    assert last["untried"] > 0
    assert {*statuses(output)} == {path.stem for path in output.glob("*.json")}
    outcome = predict(network, inputs, output, *slow)
    assert sorted(outcome.done + outcome.kept) == list("abcdef")
    assert "a" in outcome.kept


# Places that vanish, disks that fill up


@pytest.mark.parametrize("how", ["gone", "replaced"])
def test_an_output_folder_that_vanishes_stops_the_run(
    how: str, network: Path, inputs: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, aside = tmp_path / "out", tmp_path / "aside"

    def vanish() -> None:
        output.rename(aside)
        if how == "replaced":
            output.mkdir()

    with monkeypatch.context() as patch:
        on("c", vanish, patch)
        code, said = cli("predict", "-m", network, "-i", inputs, "-o", output)
    assert code == 3
    told = "the folder is gone" if how == "gone" else "another folder has taken its place"
    assert f"stopped: {output}: {told}" in said
    untried = said.partition("not tried: ")[2].split("\n")[0].split(", ")
    assert untried in (list("cdef"), list("bcdef"))  # b may have been on its way to the disk
    for mask in aside.glob("[a-z].nii.gz"):
        nifti.read_label(mask)
    if how == "gone":
        assert not output.exists()
    else:
        assert list(output.iterdir()) == []
        output.rmdir()
    aside.rename(output)  # mounted again
    outcome = predict(network, inputs, output)
    assert outcome.kept + outcome.done == list("abcdef")
    assert outcome.done[-4:] == list("cdef")


@pytest.mark.parametrize("how", ["gone", "replaced"])
def test_an_input_folder_that_vanishes_stops_the_run(
    how: str, network: Path, inputs: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, aside = tmp_path / "out", tmp_path / "aside"
    once: list[int] = []

    def vanish() -> None:
        if not once:
            once.append(1)
            inputs.rename(aside)
            if how == "replaced":
                inputs.mkdir()

    with monkeypatch.context() as patch:
        on("b", vanish, patch)
        code, said = cli("predict", "-m", network, "-i", inputs, "-o", output)
    assert code == 3
    assert f"stopped: {inputs}: " in said
    untried = said.partition("not tried: ")[2].split("\n")[0].split(", ")
    assert untried[-3:] == ["d", "e", "f"]  # c may have been read already
    assert not (output / "failures.json").exists()  # no case has failed
    assert {"a", "b"} <= {*statuses(output)}
    if how == "replaced":
        inputs.rmdir()
    aside.rename(inputs)
    outcome = predict(network, inputs, output)
    assert outcome.done == untried


def test_a_file_that_vanishes_costs_its_case_alone(
    network: Path, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on("a", (inputs / "d_0000.nii.gz").unlink, monkeypatch)
    outcome = predict(network, inputs, tmp_path / "out")
    assert (outcome.done, [*outcome.failed], outcome.stopped) == (list("abcef"), ["d"], "")


def test_when_nothing_can_be_written_any_more_the_run_stops(
    network: Path, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A limit on the size of files stands for a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    on("c", lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard)), monkeypatch)
    try:
        outcome = predict(network, inputs, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "nothing can be written any more" in outcome.stopped
    assert outcome.done[:1] == ["a"]
    assert outcome.untried[-3:] == ["d", "e", "f"]
    monkeypatch.undo()
    assert [*(tmp_path / "out").glob(".*")] == []
    outcome = predict(network, inputs, tmp_path / "out")
    assert sorted(outcome.done + outcome.kept) == list("abcdef")


@pytest.mark.slow
@pytest.mark.parametrize("is_full", [True, False])
def test_a_disk_is_full_if_a_try_says_so(
    is_full: bool, network: Path, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Someone may have made room meanwhile: then only that case has failed."""
    write, try_writing = job_module.write, place.try_writing
    sizes: list[int] = []

    def full(path: Path, *rest: Any, **more: Any) -> None:
        if path.name.startswith("b"):
            raise DataError(path, "the disk is full") from OSError(28, "No space left on device")
        write(path, *rest, **more)

    def once_more(folder: Path, size: int = 0) -> None:
        sizes.append(size)
        if size and is_full:
            raise DataError(folder, "the disk is full") from OSError(28, "No space left on device")
        try_writing(folder)

    monkeypatch.setattr(job_module, "write", full)
    monkeypatch.setattr(place, "try_writing", once_more)
    outcome = predict(network, inputs, tmp_path / "out")
    assert sizes == [1 << 20]
    if is_full:
        assert "No space left on device" in outcome.stopped
        assert outcome.untried[0] == "b"
    else:
        assert ([*outcome.failed], outcome.stopped) == (["b"], "")
        assert outcome.done == list("acdef")


# Names and shapes


def volume(path: Path, shape: tuple[int, int, int], seed: int = 0) -> Path:
    voxels = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    nib.save(nib.Nifti1Image(voxels, np.diag([1, 1, 1, 1])), path)
    return path


@pytest.mark.slow
def test_unicode_names(network: Path, inputs: Path, tmp_path: Path, cli: Cli) -> None:
    names = {"a": "läsion ß", "b": "病变 ①", "c": "[bold]x {0} %s", "d": 'it\'s "q" ; $(x)'}
    for old, new in names.items():
        for channel in ("0000", "0001"):
            (inputs / f"{old}_{channel}.nii.gz").rename(inputs / f"{new}_{channel}.nii.gz")
    output = tmp_path / "ausgänge 出"
    code, said = cli("predict", "-m", network, "-i", inputs, "-o", output)
    assert code == 0
    assert "6 predicted" in said
    assert {*masks(output)} == {f"{name}.nii.gz" for name in [*names.values(), "e", "f"]}
    assert {*statuses(output)} == {*names.values(), "e", "f"}
    assert len(predict(network, inputs, output).kept) == 6


def test_a_name_that_is_too_long_fails_alone_and_first(
    network: Path, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    longest = 255 - len("_probabilities.nii.gz")
    names = {"a": "x" * longest, "b": "é" * longest, "c": "z" * 4000}
    rows = [f"{name},{file}_0000.nii.gz,{file}_0001.nii.gz" for file, name in names.items()]
    (inputs / "list.csv").write_text("\n".join(["id,flair,t1c", *rows]))
    for name in "bc":
        on(name, lambda: pytest.fail("computed"), monkeypatch)
    outcome = predict(network, inputs / "list.csv", tmp_path / "out")
    assert outcome.done == ["x" * longest]
    assert [*outcome.failed] == ["z" * 4000, "é" * longest]
    for reason in outcome.failed.values():
        assert reason.endswith("and this file system takes 255: shorten the id")
    assert len((tmp_path / "out" / "failures.csv").read_text().splitlines()) == 3


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*(only one slice|every voxel (is|has))")
@pytest.mark.parametrize("mode", ["window", "whole"])
@pytest.mark.parametrize("shape", [(5, 7, 3), (24, 30, 1), (1, 9, 1), (6, 6, 2000)])
def test_volumes_of_any_size(
    shape: tuple[int, int, int], mode: str, tiny: Path, tmp_path: Path
) -> None:
    for channel in range(2):
        volume(tmp_path / f"v{channel}.nii.gz", shape, channel)
    (tmp_path / "list.txt").write_text("v0.nii.gz,v1.nii.gz\n")
    overrides = (f"inference.mode={mode}", "inference.overlap=0")
    outcome = predict(tiny, tmp_path / "list.txt", tmp_path / "out", *overrides)
    assert outcome.is_complete, outcome.failed
    assert nifti.read_label(tmp_path / "out" / "v0.nii.gz").shape == shape


@pytest.mark.slow
def test_a_hundred_cases_three_of_them_bad(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for n in range(100):
        for channel in range(2):
            volume(folder / f"case{n}_{channel:04d}.nii.gz", (8, 9, 7), 2 * n + channel)
    whole = folder / "case17_0001.nii.gz"
    whole.write_bytes(whole.read_bytes()[:-50])
    nib.save(
        nib.Nifti1Image(np.full((8, 9, 7), np.nan, np.float32), np.eye(4)),
        folder / "case42_0000.nii.gz",
    )

    def out_of_memory() -> None:
        raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB")

    on("case77_", out_of_memory, monkeypatch)
    outcome = predict(tiny, folder, tmp_path / "one")
    assert [*outcome.failed] == ["case17", "case42", "case77"]
    assert len(outcome.done) == 97
    for k in (1, 2, 3):
        predict(tiny, folder, tmp_path / "three", shard=f"{k}/3")
    assert masks(tmp_path / "one") == masks(tmp_path / "three")
    assert len(masks(tmp_path / "one")) == 97
    lists = [(tmp_path / run / "failures.json").read_text() for run in ("one", "three")]
    listed = [[(row["id"], row["reason"]) for row in json.loads(text)["failed"]] for text in lists]
    assert listed[0] == listed[1]
    monkeypatch.undo()
    outcome = predict(tiny, folder, tmp_path / "one")
    assert (outcome.done, len(outcome.kept), len(outcome.failed)) == (["case77"], 97, 2)
