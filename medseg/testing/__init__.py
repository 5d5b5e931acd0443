"""The contracts of components, as code: a plugin author calls these in a test.

Each check is preceded by its contract in prose. It works on a copy, leaves the caller's random
state alone and raises `PluginError` with what was checked, what came and what was expected.
"""

from medseg.testing.functions import (
    check_loss,
    check_postprocessor,
    check_sampler,
    check_transform,
)
from medseg.testing.loggers import check_logger
from medseg.testing.networks import check_decoder, check_encoder, check_network

__all__ = [
    "check_decoder",
    "check_encoder",
    "check_logger",
    "check_loss",
    "check_network",
    "check_postprocessor",
    "check_sampler",
    "check_transform",
]
