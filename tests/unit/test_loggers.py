"""TensorBoard and MLflow: what they hold of a run, also of one that was resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from medseg import plugins
from medseg.registry import LOGGERS

plugins.load()
CONFIG: dict[str, Any] = {
    "name": "tiny",
    "train": {"lr": 0.0025, "patch": [8, 8, 8], "loggers": []},
    "data": {"classes": {"a": 1}},
    "about": "x" * 10_000,
}
CURVE = {25: 1.5, 50: 0.5, 60: 0.25}


def lives(spec: dict[str, Any], folder: Path) -> None:
    """A run that records two steps, is killed, and goes on from step 25 to its end at 60."""
    first = LOGGERS.build(spec)
    first.start(folder, CONFIG, 0)
    for step in (25, 50):
        first.record(step, {"loss": CURVE[step]})
    if spec["name"] == "tensorboard":
        first._writer.close()  # as the end of its process would
    second = LOGGERS.build(spec)
    second.start(folder, CONFIG, 25)
    second.record(50, {"loss": CURVE[50]})
    second.record(60, {"loss": CURVE[60], "validation/a+b": 0.5, "validation/a-b": 0.75})
    (folder / "progress.png").write_bytes(b"picture")
    second.finish("finished", {"a+b": 0.5}, [folder / "progress.png"])


def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    lives({"name": "tensorboard"}, tmp_path)
    found = EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    told = {
        name: [(e.step, e.value) for e in found.Scalars(name)] for name in found.Tags()["scalars"]
    }
    assert told == {
        "loss": list(CURVE.items()),
        "validation/a+b": [(60, 0.5)],
        "validation/a-b": [(60, 0.75)],
        "best/a+b": [(60, 0.5)],
    }
    assert b'"lr": 0.0025' in found.Tensors("config/text_summary")[0].tensor_proto.string_val[0]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    return (tmp_path / "mlruns").as_uri()


@pytest.mark.filterwarnings("default:.*:FutureWarning")  # of MLflow, of its own store of files
def test_mlflow(tmp_path: Path, store: str) -> None:
    from mlflow.tracking import MlflowClient

    lives({"name": "mlflow", "uri": store, "experiment": "heads"}, tmp_path)
    client = MlflowClient(store)
    experiment = client.get_experiment_by_name("heads")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("tiny", "FINISHED")
    parameters = run.data.params
    assert (parameters["train.lr"], parameters["train.patch"]) == ("0.0025", "[8, 8, 8]")
    assert len(parameters["about"]) <= 6000
    told = {
        name: [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)]
        for name in run.data.metrics
    }
    assert told == {
        "loss": list(CURVE.items()),
        "validation/aU002Bb": [(60, 0.5)],
        "validation/a-b": [(60, 0.75)],
        "best/aU002Bb": [(60, 0.5)],
    }
    assert [item.path for item in client.list_artifacts(run.info.run_id)] == ["progress.png"]


@pytest.mark.filterwarnings("default:.*:FutureWarning")
@pytest.mark.parametrize("status, theirs", [("failed", "FAILED"), ("stopped", "KILLED")])
def test_mlflow_is_told_how_it_ended(tmp_path: Path, store: str, status: str, theirs: str) -> None:
    from mlflow.tracking import MlflowClient

    logger = LOGGERS.build({"name": "mlflow", "uri": store, "files": False})
    logger.start(tmp_path, CONFIG, 0)
    logger.finish(status, {}, [tmp_path / "gone.png"])
    client = MlflowClient(store)
    (run,) = client.search_runs([client.get_experiment_by_name("medseg").experiment_id])
    assert run.info.status == theirs
    assert client.list_artifacts(run.info.run_id) == []
