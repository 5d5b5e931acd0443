"""One YAML file describes a run: its schema, how it is read and how it is written."""

from medseg.config.load import load, loads
from medseg.config.schema import Config
from medseg.config.write import dump

__all__ = ["Config", "dump", "load", "loads"]
