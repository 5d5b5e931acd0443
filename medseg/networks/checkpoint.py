"""A trained model in one file: weights and all that a prediction needs, in safetensors.

The metadata hold the config as YAML text, channel names, classes, the resolved spacing, what
transforms learnt from the training cases, and which plugins were used. A checkpoint never makes a
plugin run: a plugin that is not installed must be named by the user again.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialised
from torch import Tensor, nn

from medseg import plugins
from medseg.config import Config, dump, loads
from medseg.config.source import parse
from medseg.errors import ConfigError, DataError
from medseg.files import atomic
from medseg.version import VERSION
from medseg.volumes.dataset import Labels

_FORMAT = 1


@dataclass(frozen=True)
class Tuned:
    """A postprocessor as `medseg tune` left it.

    Args:
        name: Of the postprocessor.
        options: Its options, plain values.
        protect: Classes whose masks it may not change.
        accepted: Whether it passed the gate, and so runs by itself.
        figures: What the gate saw; plain values.
    """

    name: str
    options: dict[str, Any]
    protect: tuple[str, ...]
    accepted: bool
    figures: dict[str, Any]


@dataclass(frozen=True)
class Priors:
    """How common each class is, background first; each sums to 1.

    Args:
        true: In the training volumes.
        seen: In the patches that the network was trained on.
        roi: Whether `true` is of the volumes' regions of interest alone.
    """

    true: tuple[float, ...]
    seen: tuple[float, ...]
    roi: bool = False

    def offsets(self, strength: float) -> tuple[float, ...]:
        """What to add to the logits so that they expect the true priors (strength 1).

        The logarithm of the ratio of priors (Saerens, Latinne and Decaestecker 2002,
        doi:10.1162/089976602753284446, equation 2.4), times the strength.
        """
        pairs = zip(self.true, self.seen, strict=True)
        return tuple(strength * math.log(true / seen) for true, seen in pairs)


_TUNED = TypeAdapter(tuple[Tuned, ...])


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What a model file holds.

    Args:
        config: The run's configuration.
        channels: Names of the input channels, in order.
        labels: What the label values mean.
        spacing: Voxel size in mm that the network works at; None for that of each volume.
        weights: The network's state.
        plugins: Reference, file and sha256 of each plugin at training; never a reason to run one.
        source: The file it was read from; for messages.
        tuned: Postprocessors tuned after the training, at most one of a name.
        priors: How common the classes are in volumes and patches; None: not known.
        overridden: Settings that the user gave instead of the model's, e.g. `inference.overlap`.
        fitted: What transforms of its preprocessing learnt from the training cases, in plain
            values, as `medseg.transforms.fitted.Fitted` reads them.
        settled: A lower precision in which validation volumes got the labels of float32; empty:
            none is known to do.
    """

    config: Config
    channels: tuple[str, ...]
    labels: Labels
    spacing: tuple[float, float, float] | None
    weights: Mapping[str, Tensor]
    plugins: Sequence[Mapping[str, str]] = ()
    source: Path = Path("model")
    tuned: tuple[Tuned, ...] = ()
    priors: Priors | None = None
    overridden: tuple[str, ...] = ()
    fitted: Mapping[str, Any] = field(default_factory=dict)
    settled: str = ""


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint, atomically.

    Raises:
        DataError: It cannot be written.
    """
    about = {
        "format": _FORMAT,
        "medseg": VERSION,
        "config": dump(checkpoint.config.model_copy(update={"plugins": ()})),
        "channels": checkpoint.channels,
        "classes": checkpoint.labels.classes,
        "ignore": checkpoint.labels.ignore,
        "spacing": checkpoint.spacing,
        "plugins": plugins.provenance(checkpoint.config.plugins),
        "tuned": [asdict(tuned) for tuned in checkpoint.tuned],
        "priors": None if checkpoint.priors is None else asdict(checkpoint.priors),
        "fitted": dict(checkpoint.fitted),
        "settled": checkpoint.settled,
    }
    weights = {
        name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.weights.items()
    }
    _write(path, about, weights)


def set_tuned(path: Path, tuned: Tuned) -> None:
    """Put a tuned postprocessor into a model file, atomically, in place of one of the same name.

    All else in the file stays as it is.

    Raises:
        DataError: The file is no model, or cannot be written.
    """
    about, weights = _read(path)
    known = [item for item in _tuned(path, about) if item.name != tuned.name]
    _write(path, {**about, "tuned": [asdict(item) for item in (*known, tuned)]}, weights)


def set_settled(path: Path, precision: str) -> None:
    """Put `settled` into a model file, atomically. All else in the file stays as it is.

    Raises:
        DataError: The file is no model, or cannot be written.
    """
    about, weights = _read(path)
    _write(path, {**about, "settled": precision}, weights)


def load(path: Path, references: Sequence[str] = (), overrides: Sequence[str] = ()) -> Checkpoint:
    """Read a checkpoint.

    Args:
        path: The .safetensors file.
        references: Plugins that the user names, beside the installed ones.
        overrides: Settings that take the place of the model's own, e.g. `inference.overlap=0.25`.

    Raises:
        DataError: The file is missing, damaged or not medseg's.
        ConfigError: It needs a plugin that is neither installed nor named.
    """
    about, weights = _read(path)
    plugins.load(references)
    try:
        channels = tuple(about["channels"])
        used = [dict(plugin) for plugin in about["plugins"]]
        classes = {name: tuple(values) for name, values in about["classes"].items()}
        return Checkpoint(
            config=_ordered(_config(path, about["config"], references, overrides, used), channels),
            channels=channels,
            labels=Labels(classes, about["ignore"]),
            spacing=None if about["spacing"] is None else tuple(about["spacing"]),
            weights=weights,
            plugins=used,
            source=path,
            tuned=_tuned(path, about),
            priors=_priors(about, 1 + len(Labels(classes, about["ignore"]).values)),
            overridden=tuple(text.partition("=")[0].strip() for text in overrides),
            fitted=dict(about.get("fitted", {})),  # files of before there were any lack the key
            settled=str(about.get("settled", "")),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(path, f"not a readable model (its metadata: {error!r})") from error


def restore(network: nn.Module, checkpoint: Checkpoint) -> None:
    """Give a network the weights of a checkpoint.

    Raises:
        DataError: They are of another network.
    """
    try:
        network.load_state_dict(dict(checkpoint.weights))
    except RuntimeError as error:
        first = str(error).splitlines()[1:2] or [str(error)]
        raise DataError(
            checkpoint.source,
            "the weights are not of the network that its settings describe: "
            f"{first[0].strip()} Leave out overrides of the model",
        ) from error


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The metadata and the weights of a model file."""
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get("medseg", "null"))
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError) as error:
        raise DataError(path, f"not a readable model ({error})") from error
    if not isinstance(about, dict) or about.get("format") != _FORMAT:
        raise DataError(path, f"not a model of medseg {VERSION}")
    return about, weights


def _write(path: Path, about: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    with atomic(path) as temporary:
        # Not `save_file`, which would report a full disk as something else than an OSError.
        temporary.write_bytes(serialised(dict(weights), {"medseg": json.dumps(about)}))


def _tuned(path: Path, about: Mapping[str, Any]) -> tuple[Tuned, ...]:
    """The tuned postprocessors of a file; files of before there were any lack the key."""
    try:
        return _TUNED.validate_python(about.get("tuned", ()))
    except ValidationError as error:
        reason = f"not a readable model (its tuned postprocessors: {error.errors()[0]['msg']})"
        raise DataError(path, reason) from error


def _ordered(config: Config, channels: Sequence[str]) -> Config:
    """The config with its channels in the model's order, wherever their files now are.

    Raises:
        ConfigError: They are other channels.
    """
    given = config.data.channels
    if given is None:
        return config
    if set(given) != set(channels):
        raise ConfigError(
            f"data.channels: {', '.join(given)}; this model was trained with "
            f"{', '.join(channels)}: name these, each with the pattern or column of its files",
            ("data", "channels"),
        )
    ordered = {name: given[name] for name in channels}
    return config.model_copy(update={"data": config.data.model_copy(update={"channels": ordered})})


def _priors(about: Mapping[str, Any], classes: int) -> Priors | None:
    """The priors of a file; files of before there were any lack the key."""
    found = about.get("priors")
    if found is None:
        return None
    true, seen = (tuple(map(float, found[key])) for key in ("true", "seen"))
    priors = Priors(true, seen, bool(found.get("roi", False)))
    if not len(priors.true) == len(priors.seen) == classes or min(*priors.true, *priors.seen) <= 0:
        raise ValueError(f"priors of {classes} classes expected, above 0, got {found}")
    return priors


def _config(
    path: Path,
    text: str,
    references: Sequence[str],
    overrides: Sequence[str],
    used: Sequence[Mapping[str, Any]],
) -> Config:
    if (parse(text, str(path)).values or {}).get("plugins"):
        raise DataError(path, "asks for plugins to be run, which no model may: not used")
    try:
        name = f"{path} (config)"
        return loads(text, path.parent, overrides, references, name=name, to_train=False)
    except ConfigError as error:
        named = [p for p in used if " = " not in p["plugin"]]
        if not named:
            raise
        words = " ".join(f"--plugin {shlex.quote(p['file'])}" for p in named)
        hashes = "\n".join(f"    sha256 {p['sha256'][:12]}  {p['file']}" for p in named)
        hint = f"trained with a plugin; if you trust it, name it: {words}\n{hashes}"
        raise ConfigError(f"{error}\n{hint}") from error
