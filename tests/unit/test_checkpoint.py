"""The model file: it holds all that a prediction needs, and says what is wrong with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from medseg.errors import ConfigError, DataError, MedsegError
from medseg.inference.predictor import Predictor
from medseg.networks import checkpoint
from medseg.registry import TRANSFORMS

Model = Callable[..., Path]

PLUGIN = """
from pathlib import Path
from medseg.registry import TRANSFORMS

(Path(__file__).parent / "was_run").touch()


@TRANSFORMS.register("own")
class Own:
    def __init__(self) -> None:
        pass

    def __call__(self, data):
        return data
"""


def metadata(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["medseg"])


def rewrite(path: Path, **about: Any) -> None:
    """Write a model file again with other metadata."""
    with safe_open(path, framework="pt") as file:
        known = json.loads(file.metadata()["medseg"])
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    changed = {key: value for key, value in {**known, **about}.items() if value != "gone"}
    save_file(weights, path, metadata={"medseg": json.dumps(changed)})


def test_it_gives_back_what_it_got(model: Model) -> None:
    stored = checkpoint.load(model(**{"train.lr": 0.125, "evaluation": {"lesions": True}}))
    assert stored.channels == ("flair", "t1c")
    assert stored.labels.classes == {"lesion": (1,)}
    assert stored.spacing == (4, 4, 4)
    assert stored.config.train.lr == 0.125
    assert stored.config.evaluation.lesions
    assert all(weight.dtype == torch.float32 for weight in stored.weights.values())


def test_it_is_the_same_after_a_second_journey(model: Model, tmp_path: Path) -> None:
    first = checkpoint.load(model())
    checkpoint.save(tmp_path / "again.safetensors", first)
    second = checkpoint.load(tmp_path / "again.safetensors")
    assert second.config == first.config
    assert second.labels == first.labels
    assert second.weights.keys() == first.weights.keys()
    assert all(torch.equal(second.weights[name], first.weights[name]) for name in first.weights)


def test_the_data_need_not_be_where_it_was(model: Model, tmp_path: Path) -> None:
    """dataset.json is not needed either: classes and channels travel in the file."""
    path = model()
    assert "data" in metadata(path)["config"]
    moved = tmp_path / "elsewhere" / "m.safetensors"
    moved.parent.mkdir()
    path.rename(moved)
    rewrite(moved, config=metadata(moved)["config"].replace("heads", "gone_heads"))
    assert checkpoint.load(moved).labels.classes == {"lesion": (1,)}


def test_overrides_take_the_place_of_settings(model: Model) -> None:
    stored = checkpoint.load(model(), overrides=["inference.overlap=0.25"])
    assert stored.config.inference.overlap == 0.25
    with pytest.raises(ConfigError, match="overlap"):
        checkpoint.load(model(), overrides=["inference.overlap=2"])


@pytest.mark.parametrize(
    "damage", ["missing", "empty", "truncated", "header", "folder", "not ours", "pickle"]
)
def test_a_file_that_is_no_model_is_named(damage: str, model: Model, tmp_path: Path) -> None:
    path = model()
    data = path.read_bytes()
    if damage in ("missing", "folder"):
        path.unlink()
        if damage == "folder":
            path.mkdir()
    elif damage == "not ours":
        save_file({"a": torch.zeros(2)}, path)
    elif damage == "pickle":
        torch.save({"a": torch.zeros(2)}, path)
    else:
        kept = {"empty": b"", "truncated": data[:-20], "header": b"\xff" * 8 + data[8:]}
        path.write_bytes(kept[damage])
    with pytest.raises(DataError, match=r"model\.safetensors: not a") as caught:
        checkpoint.load(path)
    assert caught.value.source == str(path)


@pytest.mark.parametrize("key", ["config", "channels", "classes", "ignore", "spacing", "plugins"])
@pytest.mark.parametrize("value", ["gone", 7])
def test_metadata_that_make_no_sense_are_refused(key: str, value: Any, model: Model) -> None:
    path = model()
    rewrite(path, **{key: value})
    if (key, value) == ("ignore", 7):
        assert checkpoint.load(path).labels.ignore == 7
        return
    with pytest.raises(MedsegError, match=r"model\.safetensors"):
        checkpoint.load(path)


def test_weights_of_another_network_are_refused(model: Model) -> None:
    path = model()
    text = metadata(path)["config"]
    with pytest.raises(DataError, match=r"model\.safetensors.*weights"):
        Predictor.load(path, overrides=["model.encoder.widths=[8,8,8]"])
    rewrite(path, config=text.replace("deep_supervision: 1", "deep_supervision: 0"))
    with pytest.raises(DataError, match=r"model\.safetensors.*weights"):
        Predictor.load(path)


def test_a_plugin_is_named_but_never_run(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TRANSFORMS, "_components", dict(TRANSFORMS._components))
    plugin = tmp_path / "own_transform.py"
    plugin.write_text(PLUGIN)
    path = model(**{"plugins": [str(plugin)], "preprocess.normalise": [{"name": "own"}]})
    monkeypatch.setattr(
        TRANSFORMS, "_components", {k: v for k, v in TRANSFORMS._components.items() if k != "own"}
    )
    (tmp_path / "was_run").unlink()
    with pytest.raises(ConfigError, match=r"if you trust it.*--plugin .*own_transform\.py"):
        checkpoint.load(path)
    assert not (tmp_path / "was_run").exists()
    moved = tmp_path / "moved_plugin.py"
    plugin.rename(moved)
    stored = checkpoint.load(path, references=[str(moved)])
    assert (tmp_path / "was_run").exists()
    assert stored.config.plugins == (str(moved),)


def test_a_model_that_cannot_be_written_leaves_the_one_before(model: Model) -> None:
    path = model()
    before = path.read_bytes()
    stored = checkpoint.load(path)
    with pytest.raises(DataError, match=r"model\.safetensors"):
        checkpoint.save(path / "below", stored)
    with pytest.raises(DataError, match="cannot be written"):
        checkpoint.save(path.parent / "no" / ".." / "model.safetensors" / "x", stored)
    assert path.read_bytes() == before
    assert replace(stored).weights is stored.weights
