"""The log as a run of MLflow: the config as parameters, records as metrics, the picture beside."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from medseg.errors import ConfigError
from medseg.registry import LOGGERS

_STATUS = {"finished": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}
_LONGEST, _MOST = 6000, 100  # characters of a parameter, and parameters of one request: MLflow's
# A server that is down is asked twice within seconds, not eight times within minutes.
_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}


@LOGGERS.register("mlflow")
class MLflow:
    """Keeps a run of MLflow; its id lies in `mlflow.json`, so that a resumed run goes on with it.

    Args:
        experiment: The experiment that the run belongs to; made where there is none.
        uri: The tracking server or store; None: what MLFLOW_TRACKING_URI says, or MLflow's own.
        files: Whether progress.png, log.jsonl and config.yaml are uploaded at the end.

    Raises:
        ConfigError: mlflow is not installed.
    """

    def __init__(
        self, experiment: str = "medseg", uri: str | None = None, files: bool = True
    ) -> None:
        if find_spec("mlflow") is None:
            raise ConfigError('logger mlflow: pip install "medseg[mlflow]"')
        self.experiment, self.uri, self.files = experiment, uri, files

    def start(self, folder: Path, config: dict[str, Any], step: int) -> None:
        """Make a run, or take up the one of a run that is resumed."""
        from mlflow.tracking import MlflowClient

        for name, value in _PATIENCE.items():
            os.environ.setdefault(name, value)
        self._client, note, self._last = MlflowClient(tracking_uri=self.uri), folder / _NOTE, step
        if step and note.exists():
            self._run = json.loads(note.read_text(encoding="utf-8"))["run_id"]
            # MLflow forgets no metric: what it has already is not sent again.
            known = self._client.get_metric_history(self._run, "loss")
            self._last = max((metric.step for metric in known), default=0)
            self._client.update_run(self._run, status="RUNNING")
            return
        found = self._client.get_experiment_by_name(self.experiment)
        where = found.experiment_id if found else self._client.create_experiment(self.experiment)
        self._run = self._client.create_run(where, run_name=config["name"]).info.run_id
        note.write_text(json.dumps({"run_id": self._run}) + "\n", encoding="utf-8")
        self._parameters(dict(_flat(config)))

    def record(self, step: int, values: dict[str, float]) -> None:
        """Add a point to each metric."""
        if step > self._last:
            self._metrics(step, values)

    def finish(self, status: str, best: dict[str, float], files: list[Path]) -> None:
        """Add the best scores and the files, and end the run."""
        self._metrics(self._last, {f"best/{name}": value for name, value in best.items()})
        for file in files if self.files else ():
            self._client.log_artifact(self._run, str(file))
        self._client.set_terminated(self._run, _STATUS[status])

    def _parameters(self, values: dict[str, str]) -> None:
        from mlflow.entities import Param

        told = [Param(_name(key), value[:_LONGEST]) for key, value in values.items()]
        for first in range(0, len(told), _MOST):
            self._client.log_batch(self._run, params=told[first : first + _MOST])

    def _metrics(self, step: int, values: dict[str, float]) -> None:
        from mlflow.entities import Metric

        now, self._last = int(1000 * time.time()), step
        told = [Metric(_name(name), value, now, step) for name, value in values.items()]
        self._client.log_batch(self._run, metrics=told)


_NOTE = "mlflow.json"


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """A nest of plain values as dotted names with texts: (train.lr, 0.0025)."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _flat(item, f"{name}.{key}" if name else key)
    else:
        yield name, value if isinstance(value, str) else json.dumps(value)


def _name(name: str) -> str:
    """A name that MLflow takes: other characters become their number, so that none coincide."""
    return re.sub(r"[^\w\-./ ]", lambda found: f"U{ord(found[0]):04X}", name)
