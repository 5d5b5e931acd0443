"""Several predictions of a volume: ensembles, scales, uncertainty; and what is kept of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medseg.errors import ConfigError, DataError
from medseg.inference.predictor import Predictor
from medseg.postprocess.prediction import Prediction
from medseg.volumes.dataset import Case, Channel
from medseg.volumes.load import LoadedCase

Model = Callable[..., Path]
WINDOWS = {"inference.mode": "window", "inference.patch": [16, 16, 16]}


@pytest.fixture(scope="module")
def models(model: Model) -> list[Path]:
    """Three models that see other grids, axes and crops. Do not change."""
    other = {"preprocess.spacing": [5, 5, 5], "preprocess.orientation": "LPS", **WINDOWS}
    cropped = {"preprocess.crop": "foreground", "seed": 5, **WINDOWS}
    return [model(**WINDOWS), model(seed=3, **other), model(**cropped)]


@pytest.fixture(scope="module")
def files(heads: Path) -> list[Path]:
    return [heads / "imagesTr" / f"head_002_{n:04d}.nii.gz" for n in range(2)]


def loaded(predictor: Predictor, files: list[Path]) -> LoadedCase:
    return predictor.load_case(Case("a", tuple(map(Channel, files))))


def shares(found: Prediction) -> np.ndarray:
    return found.need_probabilities()


def entropy(found: np.ndarray) -> np.ndarray:
    logs = np.log(found, where=found > 0, out=np.zeros_like(found))
    return -(found * logs).sum(0) / np.log(len(found))


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 2), (2, 0)])
def test_an_ensemble_is_the_mean_of_its_members(
    models: list[Path], files: list[Path], order: tuple[int, ...]
) -> None:
    chosen = [models[n] for n in order]
    alone = [Predictor.load(path).predict(files, probabilities=True) for path in chosen]
    together = Predictor.load(chosen).predict(files, probabilities=True)
    expected = np.mean([shares(found) for found in alone], 0)
    np.testing.assert_allclose(shares(together), expected, atol=2e-6)
    np.testing.assert_array_equal(together.labels, shares(together).argmax(0))
    np.testing.assert_array_equal(Predictor.load(chosen).predict(files).labels, together.labels)
    assert len({found.labels.tobytes() for found in alone}) == len(alone)


@pytest.mark.slow
def test_an_ensemble_in_little_memory_is_the_same(models: list[Path], files: list[Path]) -> None:
    small = ["train.patch=[8,8,8]", "inference.patch=[8,8,8]", "inference.overlap=0.2"]
    windows = Predictor.load(models[1:], overrides=small).predict(files, probabilities=True)
    assert windows.made["parts"] == 1
    predictor = Predictor.load(models[1:], overrides=small)
    predictor.members[0].config.inference.__dict__["memory"] = 0  # below the least that is allowed
    divided = predictor.predict(files, probabilities=True)
    assert divided.made["parts"] > 1
    np.testing.assert_allclose(shares(divided), shares(windows), atol=2e-6)


def test_a_case_is_prepared_once_for_members_that_prepare_alike(
    models: list[Path], model: Model, files: list[Path]
) -> None:
    twin = model(seed=11, **WINDOWS)
    predictor = Predictor.load([models[0], models[1], twin, models[2]])
    one, other, two, cropped = predictor.prepare(loaded(predictor, files)).prepared
    assert one is two
    assert len({id(prepared) for (prepared,) in (one, other, cropped)}) == 3
    scaled = Predictor.load([models[0], twin])
    scaled.members[1].config.inference.__dict__["scales"] = (0.5,)
    assert not scaled.members[0].prepares_like(scaled.members[1])


def test_members_must_have_the_same_channels_and_classes(models: list[Path], model: Model) -> None:
    data = {"layout": "nnunet", "split": {"folds": 3}, "classes": {"spot": 1}}
    with pytest.raises((DataError, ConfigError), match=r"no ensemble can be made|classes"):
        Predictor.load([models[0], model(data=data)])
    with pytest.raises(DataError, match="none is given"):
        Predictor.load([])


def test_scales_are_averaged(models: list[Path], files: list[Path]) -> None:
    def scaled(*scales: float) -> np.ndarray:
        predictor = Predictor.load(models[0], overrides=[f"inference.scales={list(scales)}"])
        assert predictor.passes == max(len(scales), 1)
        return shares(predictor.predict(files, probabilities=True))

    np.testing.assert_array_equal(scaled(1.0), scaled())
    small, large = scaled(0.75), scaled(1.5)
    assert not np.allclose(small, large, atol=0.05)
    np.testing.assert_allclose(scaled(0.75, 1.5), (small + large) / 2, atol=2e-6)


def test_entropy_is_that_of_the_mean(models: list[Path], files: list[Path]) -> None:
    for chosen in (models[:1], models):
        predictor = Predictor.load(chosen, overrides=["inference.uncertainty=entropy"])
        found = predictor.predict(files, probabilities=True)
        assert found.uncertainty is not None
        np.testing.assert_allclose(found.uncertainty, entropy(shares(found)), atol=1e-5)
        assert 0 <= found.uncertainty.min() < found.uncertainty.max() <= 1


def test_spread_is_that_of_the_members(models: list[Path], files: list[Path]) -> None:
    settings = ["inference.uncertainty=spread"]
    alone = [shares(Predictor.load(path).predict(files, probabilities=True)) for path in models]
    found = Predictor.load(models, overrides=settings).predict(files)
    assert found.uncertainty is not None
    np.testing.assert_allclose(found.uncertainty, np.std(alone, 0).max(0), atol=1e-5)
    with pytest.raises(ConfigError, match=r"uncertainty: a spread needs several predictions"):
        Predictor.load(models[0], overrides=settings)
    Predictor.load(models[0], overrides=[*settings, "inference.scales=[1, 1.2]"])
    assert Predictor.load(models[0]).predict(files).uncertainty is None


@pytest.mark.parametrize(("stored", "step"), [("float32", 0), ("uint16", 65535), ("uint8", 255)])
def test_probabilities_on_disk_are_those_in_memory(
    models: list[Path], files: list[Path], tmp_path: Path, stored: str, step: int
) -> None:
    predictor = Predictor.load(models[2], overrides=[f"inference.probability_type={stored}"])
    ready = predictor.prepare(loaded(predictor, files))
    in_memory = shares(predictor.run(ready, probabilities=True))
    found = predictor.run(ready, probabilities=True, spool=tmp_path)
    assert found.probabilities is None
    assert found.stack is not None
    assert (len(found.stack), found.stack.shape) == (len(in_memory), in_memory.shape)
    for _ in range(2):
        on_disk = np.stack([*found.stack])
        np.testing.assert_allclose(on_disk, in_memory, atol=0.5 / step + 1e-7 if step else 0)
    np.testing.assert_array_equal(found.labels, in_memory.argmax(0))
    assert predictor.run(ready, spool=tmp_path).stack is None  # nobody asked
    del found
    assert not [*tmp_path.iterdir()]


def test_a_step_that_needs_probabilities_gets_them_in_memory(
    models: list[Path], files: list[Path], tmp_path: Path
) -> None:
    predictor = Predictor.load(models[0], overrides=["postprocess=[{name: hysteresis}]"])
    found = predictor.run(predictor.prepare(loaded(predictor, files)), spool=tmp_path)
    assert found.stack is None
    assert found.probabilities is not None


STEPS = [
    "[{name: prior_correction, log_odds: 1.0}]",
    "[{name: prior_correction, log_odds: 1.0}, {name: regions, regions: [[1]], threshold: 0.7}]",
    "[{name: operating_point, threshold: 0.8}, {name: largest_component}]",
    "[{name: prior_correction, log_odds: -1.0}, {name: hysteresis, low: 0.3, high: 0.6}]",
    "[{name: regions, regions: [[1]], threshold: 0.3, protect: [lesion]}]",
]


@pytest.mark.parametrize("steps", STEPS)
def test_steps_taken_block_by_block_are_those_of_the_whole(
    models: list[Path], files: list[Path], steps: str
) -> None:
    predictor = Predictor.load(models[0], overrides=[f"postprocess={steps}"])
    case = loaded(predictor, files)
    whole = predictor.raw(case)
    for step in (*predictor._first, *predictor._steps):
        whole = step(whole)
    assert len(predictor._first) == (2 if steps.count("name") == 2 and "regions" in steps else 1)
    for wanted in (True, False):
        found = predictor.predict_case(case, probabilities=wanted)
        np.testing.assert_array_equal(found.labels, whole.labels)
    found = predictor.predict_case(case, probabilities=True)
    np.testing.assert_array_equal(shares(found), shares(whole))
    plain = Predictor.load(models[0]).predict(files)
    assert ("protect" in steps) == np.array_equal(plain.labels, found.labels)


def test_precision_is_settled_for_each_volume(
    models: list[Path], files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from medseg.inference import precision

    monkeypatch.setattr(precision, "candidate", lambda _: "bf16")

    class Of(torch.nn.Module):
        """Foreground where the first channel is bright, with logits about a number."""

        divisor = (1, 1, 1)

        def __init__(self, number: float) -> None:
            super().__init__()
            self.conv = torch.nn.Conv3d(2, 2, 1)
            torch.nn.init.constant_(self.conv.bias, number)
            with torch.no_grad():
                self.conv.weight.copy_(torch.eye(2)[:, :, None, None, None].flip(0))
                self.conv.weight[0] = 0

        def forward(self, x: Any) -> Any:
            return (self.conv(x),)

    auto = Predictor.load(models[0], overrides=["inference.precision=auto"])
    exact = Predictor.load(models[0], overrides=["inference.precision=fp32"])
    for number, settled in ((0, "bf16"), (1000, "fp32")):  # in bf16, 1000 is 1000 to 1003
        auto.members[0].network = exact.members[0].network = Of(number).eval()  # type: ignore[assignment]
        found = auto.predict(files)
        assert found.made["precision"] == settled
        np.testing.assert_array_equal(found.labels, exact.predict(files).labels)
    monkeypatch.setattr(precision, "candidate", lambda _: "fp32")
    auto.members[0].network = Of(0).eval()  # type: ignore[assignment]
    assert auto.predict(files).made["precision"] == "fp32"


def test_a_model_knows_what_it_has_tried(
    model: Model, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from medseg.inference import member, settle, window
    from medseg.networks.checkpoint import load

    path = model(**{"inference.precision": "auto", "inference.mode": "window"})
    case = Case("a", tuple(map(Channel, files)))
    for module in (member, settle):
        monkeypatch.setattr(module, "candidate", lambda _: "bf16")
    for verdict in ("fp32", "bf16"):
        monkeypatch.setattr(window, "settled", lambda *_, verdict=verdict: verdict)
        settle.settle(path, Predictor.load(path), [case, case])
        assert load(path).settled == ("bf16" if verdict == "bf16" else "")
    monkeypatch.setattr(window, "settled", lambda *_: pytest.fail("tried again"))
    assert Predictor.load(path).predict(files).made["precision"] == "bf16"
    exact = Predictor.load(path, overrides=["inference.precision=fp32"])
    assert exact.predict(files).made["precision"] == "fp32"
    monkeypatch.setattr(window, "settled", lambda *_: "fp32")
    other = Predictor.load(path, overrides=["inference.overlap=0.25"])  # as it was not tried
    assert other.predict(files).made["precision"] == "fp32"
    monkeypatch.setattr(member, "candidate", lambda _: "fp16")  # on another device
    monkeypatch.setattr(window, "settled", lambda *_: "fp32")
    assert Predictor.load(path).predict(files).made["precision"] == "fp32"
