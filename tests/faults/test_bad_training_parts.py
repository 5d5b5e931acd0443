"""Parts that cannot train are refused in set-up, and what trained is not asked for to predict."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from medseg.config import load
from medseg.errors import ConfigError, PluginError
from medseg.inference.predictor import Predictor
from medseg.registry import LOSSES, SAMPLERS, TRANSFORMS
from medseg.training import loop
from medseg.training.setup import set_up

Recipe = Callable[..., Path]
PLUGIN = """
from medseg.registry import LOSSES, SAMPLERS, TRANSFORMS
from medseg.training.losses import DiceCrossEntropy

@SAMPLERS.register("corner_of_a_test")
class Corner:
    def __init__(self, places: int = 3) -> None:
        self.places = places

    def __call__(self, rng, site):
        return (0,) * self.places

@LOSSES.register("loss_of_a_test")
class Loss(DiceCrossEntropy):
    def __init__(self, classes: int) -> None:
        super().__init__(classes)

@TRANSFORMS.register("transform_of_a_test")
class Same:
    def __init__(self) -> None:
        pass

    def __call__(self, data):
        return data
"""


@pytest.fixture
def plugin(tmp_path: Path) -> Iterator[str]:
    registries: list[Any] = [LOSSES, SAMPLERS, TRANSFORMS]
    before = [dict(registry._components) for registry in registries]
    path = tmp_path / "parts.py"
    path.write_text(PLUGIN)
    yield str(path)
    for registry, known in zip(registries, before, strict=True):
        registry._components = known


def test_a_patch_that_leaves_one_voxel_is_refused_in_words(recipe: Recipe) -> None:
    path = recipe(**{"model": {"network": "nonewnet"}})
    with pytest.raises(ConfigError, match=r"train\.patch: .*\[16, 16, 16\] voxels: .*larger"):
        set_up(load(path))


def test_a_sampler_is_tried_before_anything_is_written(recipe: Recipe, plugin: str) -> None:
    sampler = {"name": "corner_of_a_test", "places": 2}
    config = load(recipe(**{"plugins": [plugin], "train.sampler": sampler}))
    with pytest.raises(PluginError, match=r"sampler Corner gave \[0, 0\]; expected"):
        set_up(config)


def test_what_served_training_alone_is_not_needed_to_predict(
    recipe: Recipe, plugin: str, heads: Path, tmp_path: Path
) -> None:
    settings = {
        "plugins": [plugin],
        "train.sampler": "corner_of_a_test",
        "loss": "loss_of_a_test",
        "augment.transforms": ["transform_of_a_test"],
        "train.budget": {"steps": 1},
        "train.validation_cases": 1,
    }
    run = loop.train(load(recipe(**settings)), tmp_path / "run", device="cpu", quiet=True)
    for registry in (LOSSES, SAMPLERS, TRANSFORMS):
        registry._components = {
            name: part for name, part in registry._components.items() if "of_a_test" not in name
        }
    channels = [heads / "imagesTr" / f"head_002_{n:04d}.nii.gz" for n in range(2)]
    assert Predictor.load(run.path, device="cpu").predict(channels).labels.ndim == 3
