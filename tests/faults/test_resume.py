"""Promise 6: a training killed at any moment goes on as if nothing had happened."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from medseg.config import load
from medseg.errors import ConfigError, DataError
from medseg.training import loop
from medseg.training.run import RunFolder
from medseg.training.state import State

pytestmark = pytest.mark.slow
Recipe = Callable[..., Path]

LONG: dict[str, Any] = {
    "train.budget": {"steps": 40},
    "train.save_every": 3,
    "train.validate_every": 20,
    "train.validation_cases": 1,
    # Running statistics and the random numbers of a dropout have to come back too.
    "model": {
        "network": {
            "name": "monai",
            "net": "UNet",
            "options": {"channels": [4, 8], "strides": [2], "dropout": 0.2, "norm": "batch"},
        }
    },
}
SHORT: dict[str, Any] = {
    "train.budget": {"steps": 6},
    "train.save_every": 2,
    "train.validate_every": 3,
    "train.validation_cases": 1,
}


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def train(recipe: Path, run: Path, *overrides: str, resume: bool = False) -> RunFolder:
    return loop.train(load(recipe, overrides), run, device="cpu", resume=resume, quiet=True)


def kill_after(saves: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make training break off after some states were saved."""
    save, done = State.save, [0]

    def counted(self: State, path: Path) -> None:
        save(self, path)
        done[0] += 1
        if done[0] == saves:
            raise KeyboardInterrupt

    monkeypatch.setattr(State, "save", counted)


@pytest.fixture(scope="module")
def runs(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same short run twice: whole, and broken off at step 4 of 6, with the states of 3 and 4.

    Do not change: the fixtures below give copies.
    """
    folder = tmp_path_factory.mktemp("runs")
    recipe(**SHORT).rename(folder / "run.yaml")
    train(folder / "run.yaml", folder / "whole")
    with pytest.MonkeyPatch.context() as patch:
        kill_after(3, patch)
        with pytest.raises(KeyboardInterrupt):
            train(folder / "run.yaml", folder / "interrupted")
    return folder


@pytest.fixture
def interrupted(runs: Path, tmp_path: Path) -> tuple[Path, Path]:
    """The recipe, and the run that broke off."""
    return runs / "run.yaml", shutil.copytree(runs / "interrupted", tmp_path / "run")


@pytest.fixture
def whole(runs: Path, tmp_path: Path) -> Path:
    """The run that was not interrupted."""
    return shutil.copytree(runs / "whole", tmp_path / "whole")


def same_end(run: Path, whole: Path) -> None:
    for name in ("last.safetensors", "model.safetensors"):
        assert digest(run / name) == digest(whole / name)
    steps = [record["step"] for record in RunFolder(run).records()]
    assert steps == [record["step"] for record in RunFolder(whole).records()]


def test_killed_at_random_moments_it_ends_with_the_same_weights(
    recipe: Recipe, tmp_path: Path
) -> None:
    path, run = recipe(**LONG), tmp_path / "run"
    whole = train(path, tmp_path / "whole").path
    moments = random.Random(4)
    command = [sys.executable, "-m", "medseg", "train", "-c", str(path), "-o", str(run)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    steps = []
    for kill in range(3):
        with subprocess.Popen(
            [*command, *["--resume"] * (kill > 0)],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        ) as process:
            # The first goes before there is any state, the others after one or two new ones.
            wanted = [run / "config.yaml", *[run / "last.pt"] * moments.randint(1, 2)]
            for file in wanted[kill > 0 : 1 if kill == 0 else None]:
                changed(process, file)
            time.sleep(moments.uniform(0, 0.1))
            process.kill()
            assert process.wait() == -9, process.stderr.read().decode()  # type: ignore[union-attr]
        steps.append(at_step(run))
    assert steps[0] < steps[1] < steps[2] < 40
    done = subprocess.run([*command, "--resume"], env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    same_end(run, whole)
    lines = (run / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [20, 25, 40]
    ours, theirs = RunFolder(run).records()[-1], RunFolder(whole).records()[-1]
    assert (ours["lr"], ours["validation"]) == (theirs["lr"], theirs["validation"])
    left = [file for file in run.rglob("*") if file.name.startswith(".partial-")]
    assert len(left) <= 3  # at most what each kill interrupted, never under a final name
    assert (run / "report.html").exists()


def changed(process: subprocess.Popen[bytes], file: Path, patience: float = 120) -> None:
    """Wait until a file is written (again)."""
    before, start = modified(file), time.monotonic()
    while modified(file) == before:
        assert process.poll() is None, process.stderr.read().decode()  # type: ignore[union-attr]
        assert time.monotonic() - start < patience
        time.sleep(0.002)


def modified(file: Path) -> int:
    try:
        return file.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def at_step(run: Path) -> int:
    """The step from which a run would go on. What a kill leaves must be readable."""
    files = [file for file in (run / "last.pt", run / "previous.pt") if file.exists()]
    return int(torch.load(files[0], weights_only=True)["step"]) if files else 0


@pytest.mark.parametrize("saves", [1, 2])
def test_it_goes_on_before_and_after_levels_thawed(
    saves: int, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The levels thaw at steps 3 and 5 of 6; the run breaks off after 2, or after 3."""
    settings = {"levels": "all", "thaw": [0.5, 0.8]}
    path = recipe(**SHORT, **{"train.freeze": settings, "train.level_decay": 0.5})
    whole, run = tmp_path / "whole", tmp_path / "run"
    train(path, whole)
    kill_after(saves, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        train(path, run)
    monkeypatch.undo()
    train(path, run, resume=True)
    same_end(run, whole)


def test_it_goes_on_where_it_was(interrupted: tuple[Path, Path], whole: Path) -> None:
    path, run = interrupted
    assert at_step(run) == 4
    train(path, run, resume=True)
    same_end(run, whole)


def test_the_last_but_one_state_steps_in(interrupted: tuple[Path, Path], whole: Path) -> None:
    path, run = interrupted
    state = run / "last.pt"
    state.write_bytes(state.read_bytes()[:-100])
    train(path, run, resume=True)
    same_end(run, whole)


def test_a_kill_between_two_renames_loses_one_state(
    interrupted: tuple[Path, Path], whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, run = interrupted
    (run / "last.pt").replace(run / "previous.pt")
    with pytest.raises(DataError, match="holds a run already; give --resume"):
        train(path, run)  # it is a run all the same, and is not written over
    half = run / ".partial-0123456789abcdef.pt"
    half.touch()
    seen: list[int] = []
    restore = State.restore

    def watched(self: State, file: Path) -> None:
        restore(self, file)
        seen.append(self.step)

    monkeypatch.setattr(State, "restore", watched)
    train(path, run, resume=True)
    assert seen == [4]
    assert not half.exists()
    same_end(run, whole)


def test_without_any_whole_state_it_says_so(interrupted: tuple[Path, Path]) -> None:
    path, run = interrupted
    for name in ("last.pt", "previous.pt"):
        (run / name).write_bytes(b"nothing")
    with pytest.raises(
        DataError, match=r"last\.pt: no state to resume from \(last\.pt: .*previous"
    ):
        train(path, run, resume=True)


def test_a_state_is_no_way_to_run_code(interrupted: tuple[Path, Path], tmp_path: Path) -> None:
    path, run = interrupted

    class Bomb:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "exploded",)

    for name in ("last.pt", "previous.pt"):
        torch.save({"network": Bomb()}, run / name)
    with pytest.raises(DataError, match="no state to resume from"):
        train(path, run, resume=True)
    assert not (tmp_path / "exploded").exists()


def test_a_state_of_another_network_is_refused(interrupted: tuple[Path, Path]) -> None:
    path, run = interrupted
    values = torch.load(run / "last.pt", weights_only=True)
    values["network"].popitem()
    torch.save(values, run / "last.pt")
    with pytest.raises(DataError, match=r"last\.pt: belongs to another run"):
        train(path, run, resume=True)


def test_a_finished_run_stays_as_it_is(runs: Path, whole: Path) -> None:
    before = {file.name: digest(file) for file in whole.glob("*.safetensors")}
    log = (whole / "log.jsonl").read_text()
    train(runs / "run.yaml", whole, resume=True)
    assert {file.name: digest(file) for file in whole.glob("*.safetensors")} == before
    assert (whole / "log.jsonl").read_text() == log


def test_a_log_line_cut_short_is_dropped(interrupted: tuple[Path, Path], whole: Path) -> None:
    path, run = interrupted
    with (run / "log.jsonl").open("a") as log:
        log.write('{"step": 5, "lo')
    train(path, run, resume=True)
    same_end(run, whole)
    assert all(json.loads(line) for line in (run / "log.jsonl").read_text().splitlines())


@pytest.mark.parametrize(
    "override, there, now",
    [
        ("train.lr=0.5", "lr: 0.0025", "lr: 0.5"),
        ("seed=3", "seed: 0", "seed: 3"),
        ("evaluation.lesions=true", "lesions: false", "lesions: true"),
        ("postprocess=[{name: fill_holes}]", "postprocess: []", "postprocess:"),
    ],
)
def test_another_config_is_refused_with_the_line(
    override: str, there: str, now: str, interrupted: tuple[Path, Path]
) -> None:
    path, run = interrupted
    before = digest(run / "last.pt")
    with pytest.raises(ConfigError, match="started with another config") as caught:
        train(path, run, override, resume=True)
    lines = [line.strip() for line in str(caught.value).splitlines()]
    assert f"there: {there}" in lines
    assert any(line.split(maxsplit=1)[1:] == [now] for line in lines if line.startswith("now:"))
    assert digest(run / "last.pt") == before


@pytest.mark.parametrize("change", ["changed", "gone", "new"])
def test_other_inputs_are_refused(
    change: str, recipe: Recipe, heads: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    shutil.copytree(heads, data)
    path, run = recipe(**SHORT, **{"data.path": str(data)}), tmp_path / "run"
    with monkeypatch.context() as patch:
        kill_after(1, patch)
        with pytest.raises(KeyboardInterrupt):
            train(path, run)
    for part in ("imagesTr/head_001_0000", "imagesTr/head_001_0001", "labelsTr/head_001"):
        file = data / f"{part}.nii.gz"
        if change == "gone":
            file.unlink()
        elif change == "new":
            shutil.copy(file, str(file).replace("head_001", "head_009"))
        else:
            shutil.copy(str(file).replace("head_001", "head_003"), file)
    manifest = data / "dataset.json"
    counted = {"gone": 5, "new": 7}.get(change, 6)
    manifest.write_text(
        manifest.read_text().replace('"numTraining": 6', f'"numTraining": {counted}')
    )
    with pytest.raises(DataError, match=f"head_00[19].*: {change} since the run"):
        train(path, run, resume=True)


def test_a_run_is_not_started_twice(runs: Path, whole: Path) -> None:
    before = {file: digest(file) for file in whole.glob("*.*")}
    with pytest.raises(DataError, match="holds a run already; give --resume"):
        train(runs / "run.yaml", whole)
    assert {file: digest(file) for file in whole.glob("*.*")} == before


def test_there_must_be_a_run_to_resume(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no run to resume; leave --resume out"):
        train(runs / "run.yaml", tmp_path / "none", resume=True)


def test_a_start_that_was_cut_off_may_be_started_again(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """config.yaml says that there is a run; whatever it needs is there before."""
    path, run = runs / "run.yaml", tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr("medseg.training.run.environment", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(path, run)
    assert not (run / "config.yaml").exists()
    train(path, run)
    assert RunFolder(run).split().train


HOLDER = """
import sys, time
from medseg.training.run import RunFolder
with RunFolder(sys.argv[1]).lock():
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("resume", [False, True])
def test_two_processes_do_not_train_in_one_folder(
    resume: bool, interrupted: tuple[Path, Path]
) -> None:
    path, run = interrupted
    command = [sys.executable, "-c", HOLDER, str(run)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        try:
            with pytest.raises(DataError, match="another process is training here"):
                train(path, run, resume=resume)
        finally:
            other.kill()
    train(path, run, resume=True)  # the lock ended with its holder


@pytest.mark.parametrize("kind", ["last.pt", "model.safetensors"])
def test_a_full_disk_leaves_the_state_before(
    kind: str, interrupted: tuple[Path, Path], whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, run = interrupted
    before = digest(run / kind)
    write = Path.write_bytes

    def full(self: Path, data: Any) -> int:
        if self.suffix == Path(kind).suffix:
            write(self, bytes(data)[:1000])
            raise OSError(28, "No space left on device")
        return write(self, data)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(DataError, match="the disk is full"):
            train(path, run, resume=True)
    assert digest(run / kind) == before
    assert not list(run.glob(".partial-*"))
    train(path, run, resume=True)
    same_end(run, whole)
