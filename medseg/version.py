"""Which medseg this is, as its distribution says."""

from importlib.metadata import version

VERSION = version("medseg")
