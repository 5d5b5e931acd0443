"""The names of `import medseg`: frozen, each there, none of them costly before it is used."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys

import pytest

import medseg

# Whoever takes a name away breaks someone's code: change this list with a line in the CHANGELOG.
NAMES = [
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
HEAVY = ("torch", "monai", "matplotlib", "pydantic", "numpy", "scipy", "nibabel", "rich", "yaml")


def imported_by(code: str) -> set[str]:
    """Which heavy packages a fresh interpreter has after running some code."""
    asked = f"{code}\nimport sys, json; print(json.dumps([n for n in {HEAVY} if n in sys.modules]))"
    done = subprocess.run(
        [sys.executable, "-c", asked], capture_output=True, text=True, check=True, timeout=120
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_names_are_frozen() -> None:
    assert sorted(medseg.__all__) == sorted(NAMES)
    assert dir(medseg) == sorted(medseg.__all__)


@pytest.mark.parametrize("name", NAMES)
def test_each_name_is_there(name: str) -> None:
    found = getattr(medseg, name)
    if name not in ("__version__",) and not name.isupper():
        assert callable(found)
        home = importlib.import_module(found.__module__)
        assert home.__name__.startswith("medseg.")
        assert getattr(home, found.__name__) is found


def test_other_names_are_not() -> None:
    with pytest.raises(AttributeError, match="module 'medseg' has no attribute 'trian'"):
        medseg.trian  # noqa: B018


def test_import_costs_nothing() -> None:
    assert imported_by("import medseg; medseg.__version__; dir(medseg)") == set()


def test_errors_and_registries_need_no_torch() -> None:
    names = "medseg.ConfigError, medseg.ENCODERS, medseg.Config, medseg.load_config, medseg.Image"
    found = imported_by(f"import medseg; {names}, medseg.Case, medseg.load_plugins")
    assert not found & {"torch", "monai", "matplotlib"}


def test_finding_and_checking_data_needs_no_torch() -> None:
    code = "import medseg.volumes.cases, medseg.volumes.check, medseg.volumes.phantom"
    assert not imported_by(code) & {"torch", "monai", "matplotlib"}


def test_the_probe_sees_what_is_imported() -> None:
    assert "yaml" in imported_by("import medseg; medseg.load_config")
