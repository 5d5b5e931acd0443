"""The model file: it holds all that a prediction needs, and says what is wrong with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from medseg.errors import ConfigError, DataError, MedsegError
from medseg.inference.predictor import Predictor
from medseg.networks import checkpoint
from medseg.networks.checkpoint import Tuned
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


TUNED = Tuned(
    "crf", {"weights": [1.0, 2.0], "iterations": 5}, ("lesion",), True, {"dice": [0.5, None]}
)


def contents(path: Path) -> dict[str, bytes]:
    """The bytes of every weight, read by nobody else's code than json's."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header.pop("__metadata__")
    return {
        name: json.dumps([about["dtype"], about["shape"]]).encode()
        + data[8 + size :][slice(*about["data_offsets"])]
        for name, about in header.items()
    }


def test_a_tuned_step_goes_into_the_file_and_the_rest_stays(model: Model) -> None:
    path = model()
    weights, about = contents(path), metadata(path)
    assert checkpoint.load(path).tuned == ()
    checkpoint.set_tuned(path, TUNED)
    assert checkpoint.load(path).tuned == (TUNED,)
    assert contents(path) == weights
    assert {**metadata(path), "tuned": []} == {**about, "tuned": []}
    assert [item.name for item in path.parent.iterdir() if "partial" in item.name] == []


def test_a_tuned_step_replaces_the_one_of_its_name(model: Model) -> None:
    path = model()
    other = replace(TUNED, name="min_volume", options={"mm3": 3.0}, protect=(), accepted=False)
    newer = replace(TUNED, accepted=False)
    for item in (TUNED, other, newer):
        checkpoint.set_tuned(path, item)
    assert checkpoint.load(path).tuned == (other, newer)


def test_tuned_steps_travel_with_the_model(model: Model, tmp_path: Path) -> None:
    path = model()
    checkpoint.set_tuned(path, TUNED)
    checkpoint.save(tmp_path / "again.safetensors", checkpoint.load(path))
    assert checkpoint.load(tmp_path / "again.safetensors").tuned == (TUNED,)


def test_a_model_of_before_there_was_tuning_is_read(model: Model) -> None:
    path = model()
    rewrite(path, tuned="gone")
    assert "tuned" not in metadata(path)
    assert checkpoint.load(path).tuned == ()
    checkpoint.set_tuned(path, TUNED)
    assert checkpoint.load(path).tuned == (TUNED,)


def test_what_transforms_learnt_travels_with_the_model(model: Model, tmp_path: Path) -> None:
    path, learnt = model(), {"channels": ["t1"], "cases": 3, "transforms": {"0 x": {"a": [1.5]}}}
    checkpoint.save(path, replace(checkpoint.load(path), fitted=learnt))
    checkpoint.set_tuned(path, TUNED)
    assert checkpoint.load(path).fitted == learnt
    rewrite(path, fitted="gone")
    assert checkpoint.load(path).fitted == {}
    rewrite(path, fitted=7)
    with pytest.raises(DataError, match=r"model\.safetensors: not a readable model"):
        checkpoint.load(path)


@pytest.mark.parametrize(
    "value", [7, [7], [{"name": "crf"}], {"crf": 1}, [{**asdict(TUNED), "options": 7}]]
)
def test_tuned_steps_that_make_no_sense_are_refused(value: Any, model: Model) -> None:
    path = model()
    rewrite(path, tuned=value)
    with pytest.raises(DataError, match=r"model\.safetensors: not a readable model"):
        checkpoint.load(path)
    with pytest.raises(DataError, match=r"model\.safetensors: not a readable model"):
        checkpoint.set_tuned(path, replace(TUNED, name="other"))


def test_only_a_model_can_be_given_a_tuned_step(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with pytest.raises(DataError, match="not a readable model"):
        checkpoint.set_tuned(path, TUNED)
    save_file({"a": torch.zeros(2)}, path)
    before = path.read_bytes()
    with pytest.raises(DataError, match="not a model of medseg"):
        checkpoint.set_tuned(path, TUNED)
    assert path.read_bytes() == before
