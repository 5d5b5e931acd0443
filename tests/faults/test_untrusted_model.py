"""Loading a model runs no code from it (promise 10)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import save_file

from medseg.errors import DataError
from medseg.networks.checkpoint import load


def test_a_model_that_asks_for_a_plugin_is_refused(
    model: Callable[..., Path], tmp_path: Path
) -> None:
    ran = tmp_path / "ran"
    (tmp_path / "payload.py").write_text(f"open({str(ran)!r}, 'w').close()")
    with safe_open(model(), framework="pt") as file:
        about = json.loads(file.metadata()["medseg"])
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    about["config"] = about["config"].replace("plugins: []", "plugins: [payload.py]", 1)
    assert "payload.py" in about["config"]
    evil = tmp_path / "evil.safetensors"
    save_file(weights, evil, metadata={"medseg": json.dumps(about)})
    with pytest.raises(DataError, match=r"evil\.safetensors.*plugins"):
        load(evil)
    assert not ran.exists()
