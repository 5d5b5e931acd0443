"""medseg: 3D medical lesion segmentation. Names below are imported when they are first used."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from medseg.version import VERSION

__version__ = VERSION

if TYPE_CHECKING:
    from medseg.api import ensemble, evaluate, predict, train, train_study, tune
    from medseg.config.load import load as load_config
    from medseg.config.schema import Config
    from medseg.errors import ConfigError, DataError, MedsegError, PluginError
    from medseg.inference.predictor import Predictor
    from medseg.plugins import load as load_plugins
    from medseg.registry import (
        DECODERS,
        ENCODERS,
        LOGGERS,
        LOSSES,
        NETWORKS,
        POSTPROCESSORS,
        SAMPLERS,
        TRANSFORMS,
    )
    from medseg.volumes.dataset import Case
    from medseg.volumes.image import Image

_HOMES = {
    "Case": "medseg.volumes.dataset",
    "Config": "medseg.config.schema",
    "ConfigError": "medseg.errors",
    "DECODERS": "medseg.registry",
    "DataError": "medseg.errors",
    "ENCODERS": "medseg.registry",
    "Image": "medseg.volumes.image",
    "LOGGERS": "medseg.registry",
    "LOSSES": "medseg.registry",
    "MedsegError": "medseg.errors",
    "NETWORKS": "medseg.registry",
    "POSTPROCESSORS": "medseg.registry",
    "PluginError": "medseg.errors",
    "Predictor": "medseg.inference.predictor",
    "SAMPLERS": "medseg.registry",
    "TRANSFORMS": "medseg.registry",
    "ensemble": "medseg.api",
    "evaluate": "medseg.api",
    "load_config": "medseg.config.load",
    "load_plugins": "medseg.plugins",
    "predict": "medseg.api",
    "train": "medseg.api",
    "train_study": "medseg.api",
    "tune": "medseg.api",
}

__all__ = [
    "DECODERS",
    "ENCODERS",
    "LOGGERS",
    "LOSSES",
    "NETWORKS",
    "POSTPROCESSORS",
    "SAMPLERS",
    "TRANSFORMS",
    "Case",
    "Config",
    "ConfigError",
    "DataError",
    "Image",
    "MedsegError",
    "PluginError",
    "Predictor",
    "__version__",
    "ensemble",
    "evaluate",
    "load_config",
    "load_plugins",
    "predict",
    "train",
    "train_study",
    "tune",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'medseg' has no attribute {name!r}")
    inside = "load" if name.startswith("load_") else name
    return getattr(import_module(_HOMES[name]), inside)


def __dir__() -> list[str]:
    return __all__
