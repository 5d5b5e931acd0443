"""From a data set in any layout to a config that loads, passes the checks and trains as it is."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from medseg.config import load
from medseg.planning import run
from medseg.planning.amounts import MIB
from medseg.planning.options import Options
from medseg.planning.trial import Measured, Request, Seconds

CLI = Callable[..., tuple[int, str]]
MEASURED = Measured(
    "cpu", "fp32", 300 * MIB, 500 * MIB, 8 << 30, 4.0, Seconds(0.1, 0.1),
    Seconds(0.1, 0.1), 50.0,
)  # fmt: skip


def untried(_request: Request) -> Measured:
    return MEASURED


def as_folder(heads: Path, root: Path) -> None:
    for label in sorted((heads / "labelsTr").glob("*.nii.gz")):
        name = label.name.removesuffix(".nii.gz")
        place = root / name
        place.mkdir(parents=True)
        shutil.copy(heads / "imagesTr" / f"{name}_0000.nii.gz", place / "flair.nii.gz")
        shutil.copy(heads / "imagesTr" / f"{name}_0001.nii.gz", place / "t1c.nii.gz")
        shutil.copy(label, place / "seg.nii.gz")


def as_csv(heads: Path, root: Path) -> None:
    as_folder(heads, root)
    with (root / "cases.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "flair", "t1c", "seg"])
        for place in sorted(path for path in root.iterdir() if path.is_dir()):
            files = [f"{place.name}/{name}.nii.gz" for name in ("flair", "t1c", "seg")]
            writer.writerow([place.name, *files])


def as_msd(heads: Path, root: Path) -> None:
    as_folder(heads, root)
    entries = [
        {
            "image": [f"{place.name}/flair.nii.gz", f"{place.name}/t1c.nii.gz"],
            "label": f"labels/{place.name}.nii.gz",
        }
        for place in sorted(root.iterdir())
    ]
    (root / "labels").mkdir()
    for entry in entries:
        name = Path(str(entry["label"])).name.removesuffix(".nii.gz")
        shutil.copy(root / name / "seg.nii.gz", root / str(entry["label"]))
    content = {
        "modality": {"0": "FLAIR", "1": "T1c"}, "labels": {"0": "background", "1": "lesion"},
        "training": entries,
    }  # fmt: skip
    (root / "dataset.json").write_text(json.dumps(content))


def as_nnunet(heads: Path, root: Path) -> None:
    shutil.copytree(heads, root, dirs_exist_ok=True)


LAYOUTS = {"folder": as_folder, "csv": as_csv, "msd": as_msd, "nnunet": as_nnunet}


@pytest.fixture(scope="module")
def laid_out(heads: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The heads in some layout. Do not change."""
    made: dict[str, Path] = {}

    def lay(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            LAYOUTS[name](heads, made[name])
        return made[name]

    return lay


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gets_a_config_that_loads(
    laid_out: Callable[[str], Path], tmp_path: Path, layout: str
) -> None:
    planned = run.init(laid_out(layout), tmp_path / "a.yaml", quiet=True, attempt=untried)
    config = load(planned.config)
    assert config.data.layout == layout
    assert config.train.budget.cpu_seconds == 900
    assert planned.figures == tmp_path / "a.fingerprint.json"
    figures = json.loads(planned.figures.read_text())
    assert figures["cases"] == 6
    assert [found["name"] for found in figures["classes"]] == ["lesion"]
    assert len(figures["channels"]) == 2
    text = planned.config.read_text()
    for key in (
        "spacing",
        "patch",
        "batch",
        "strides",
        "normalise",
        "flip",
        "budget",
        "lr",
        "mode",
    ):
        place = next(n for n, line in enumerate(text.splitlines()) if f" {key}:" in line)
        assert text.splitlines()[place - 1].lstrip().startswith("# "), key


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_it_passes_the_checks_and_trains_as_it_is(
    laid_out: Callable[[str], Path], tmp_path: Path, cli: CLI, layout: str
) -> None:
    run.init(laid_out(layout), tmp_path / "a.yaml", quiet=True, attempt=untried)
    code, said = cli("check", "-c", tmp_path / "a.yaml")
    assert code == 0
    assert "Ready to train" in said
    steps = ["train.budget={steps: 2}", "inference.flip=[]", "evaluation.lesion_maps=false"]
    code, said = cli("train", "-c", tmp_path / "a.yaml", "-o", tmp_path / "run", *steps)
    assert code == 0, said
    assert (tmp_path / "run" / "report.html").is_file()


@pytest.mark.slow
def test_a_step_is_tried_in_a_process_of_its_own(
    laid_out: Callable[[str], Path], tmp_path: Path, cli: CLI
) -> None:
    data, config = laid_out("nnunet"), tmp_path / "a.yaml"
    code, said = cli("init", data, "-o", config, "--budget", "60s", "--memory", "2GB",
                     "--device", "cpu")  # fmt: skip
    assert code == 0, said
    assert "measured" in said
    assert "of 2,048 MiB" in " ".join(config.read_text().split())
    assert load(config).train.threads == 1
    code, said = cli("init", data, "-o", config, "--memory", "50MB", "--device", "cpu", "--force")
    assert code == 2
    assert "50 MiB of memory is too little" in said


def test_a_split_names_those_that_train(laid_out: Callable[[str], Path], tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(laid_out("folder"), data)
    split = {"train": ["head_001", "head_002"], "validation": ["head_003"]}
    (data / "split.json").write_text(json.dumps(split))
    planned = run.init(data, tmp_path / "a.yaml", quiet=True, attempt=untried)
    assert planned.fingerprint.cases == 2
    assert load(planned.config).data.split.file == str(data / "split.json")


def test_paths_that_were_given_as_relative_stay_so(
    laid_out: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(laid_out("folder"), tmp_path / "here" / "data")
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    run.init("data", "../there/a.yaml", quiet=True, attempt=untried)
    written = yaml.safe_load((tmp_path / "there" / "a.yaml").read_text())
    assert written["data"]["path"] == "../here/data"
    assert load(tmp_path / "there" / "a.yaml").data.path == str(tmp_path / "here" / "data")


def test_what_is_said_stands_in_the_config(laid_out: Callable[[str], Path], tmp_path: Path) -> None:
    known = Options(
        channels={"T2-FLAIR": "{id}/flair.nii.gz"}, label="{id}/seg.nii.gz", classes={"wmh": 1}
    )
    data = laid_out("folder")
    config = tmp_path / "a.yaml"
    run.init(data, config, options=known, name="mine", threads=3, quiet=True, attempt=untried)
    loaded = load(config)
    assert loaded.name == "mine"
    assert loaded.data.channels == {"T2-FLAIR": "{id}/flair.nii.gz"}
    assert loaded.data.classes == {"wmh": 1}
    assert (loaded.train.threads, loaded.train.budget.wall_seconds) == (3, 900)
