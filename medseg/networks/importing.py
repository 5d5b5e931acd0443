"""Networks that other programs trained, made models of medseg.

A network component that can take them over keeps two things:

- a class method `described(tensors)` that gives a config for the network of a file, in plain
  values as a YAML file holds them, and notes on what the file does not tell and was assumed;
- a method `translated(tensors)` that gives the file's weights by its own names, or None if the file
  is not of that program. `medseg.networks.pretrained` uses it too, so that training can start from
  such a file.

Both raise ValueError, with the reason, for a file that is incomplete or does not fit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from medseg import plugins
from medseg.config import Config, loads
from medseg.config.schema import Pretrained
from medseg.errors import ConfigError, DataError
from medseg.networks.assembly import build_network
from medseg.networks.checkpoint import Checkpoint
from medseg.networks.load_report import LoadReport
from medseg.networks.pretrained import load_pretrained
from medseg.networks.weights_files import read
from medseg.registry import NETWORKS
from medseg.volumes.dataset import Labels


def import_network(
    name: str, path: Path, overrides: Sequence[str] = (), references: Sequence[str] = ()
) -> tuple[Checkpoint, LoadReport]:
    """Read another program's file of weights as a model of medseg.

    Args:
        name: The network, as registered, e.g. "deepmedic".
        path: The file, of a kind that `medseg.networks.weights_files` reads.
        overrides: `key.subkey=value` strings that change the config made for the file, such as
            `data.channels` and `data.classes`.
        references: Plugins that the network may come from.

    Raises:
        ConfigError: There is no such network, it cannot take weights over, or a setting is wrong.
        DataError: The file cannot be used.
    """
    plugins.load(references)
    component = NETWORKS.get(name)
    kind = component.func if isinstance(component, partial) else component
    if not hasattr(kind, "described"):
        able = [n for n in NETWORKS.names() if hasattr(NETWORKS.get(n), "described")]
        raise ConfigError(
            f"network {name!r} cannot take over weights of another program; these can: "
            f"{', '.join(able) or 'none'}"
        )
    tensors = read(Pretrained(path=str(path))).tensors
    try:
        values, notes = kind.described(tensors)
    except ValueError as error:
        raise DataError(path, str(error)) from error
    config = _config(values, overrides, references)
    channels = tuple(config.data.channels or ())
    labels = Labels.of(config.data)
    model = config.model.model_copy(update={"pretrained": Pretrained(path=str(path))})
    network = build_network(model, len(channels), len(labels.values) + 1, config.seed)
    report = load_pretrained(network, model, channels)
    assert report is not None
    anew = [row for row in report.rows if row.name and row.status in ("missing", "left out")]
    if anew:  # as training may start a head of another class count
        raise DataError(
            path, f"{anew[0].name} would start anew: {anew[0].reason}; a model must be whole"
        )
    checkpoint = Checkpoint(config, channels, labels, None, network.state_dict(), source=path)
    return checkpoint, replace(report, notes=(*report.notes, *notes))


def _config(
    values: Mapping[str, Any], overrides: Sequence[str], references: Sequence[str]
) -> Config:
    """The config of plain values; the model must not name weights, for it will hold them."""
    config = loads(json.dumps(values), Path(), overrides, references, name="config of the file")
    if config.model.pretrained is not None or config.preprocess.spacing == "median":
        raise ConfigError(
            "leave model.pretrained out, the file is given; and give preprocess.spacing in mm"
        )
    return config
