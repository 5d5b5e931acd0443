"""Training patches: the same from any number of workers, and errors that keep their names."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medseg.config.schema import ComponentSpec, Train
from medseg.errors import DataError, PluginError
from medseg.registry import TRANSFORMS
from medseg.training import casefile
from medseg.training.cache import CachedCase
from medseg.training.dataset import Patches, Recipe, batches
from medseg.training.sampling import Sampling

PLUGIN = """
import numpy as np
from medseg.registry import TRANSFORMS


@TRANSFORMS.register("jitter")
class Jitter:
    def __init__(self, reach: float = 1.0) -> None:
        self.reach = reach

    def sample(self, rng):
        return rng.uniform(-self.reach, self.reach)

    def __call__(self, data, shift):
        return {**data, "image": data["image"] + np.float32(shift)}


@TRANSFORMS.register("faulty")
class Faulty:
    def __init__(self, fault: str = "raises") -> None:
        self.fault = fault

    def __call__(self, data):
        if self.fault == "raises":
            raise ZeroDivisionError("by chance")
        if self.fault == "crops":
            return {key: value[..., 1:] for key, value in data.items()}
        return {"image": data["image"]} if self.fault == "drops" else None
"""


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    before = dict(TRANSFORMS._components)
    path = tmp_path_factory.mktemp("plugin") / "jitter_plugin.py"
    path.write_text(PLUGIN)
    yield str(path)
    TRANSFORMS._components = before


@pytest.fixture
def cases(tmp_path: Path, rng: np.random.Generator) -> tuple[CachedCase, ...]:
    made = []
    for n in range(5):
        image = rng.normal(n, 1, size=(2, 14, 12, 6 + n)).astype(np.float32)
        label = np.zeros(image.shape[1:], np.uint8)
        label[3:6, 4:8, 2:4] = 1
        voxels = np.stack([np.ones(24, np.int64), np.flatnonzero(label)], 1)
        path = tmp_path / f"case{n}.safetensors"
        casefile.write(path, {"image": image, "label": label, "voxels": voxels}, {})
        made.append(CachedCase(f"case{n}", path, (1.0, 1.0, 2.0 + n)))
    return tuple(made)


def patches(
    cases: Any,
    *transforms: ComponentSpec,
    plugin: str = "",
    sampler: str = "balanced",
    options: dict[str, Any] | None = None,
    **sampling: Any,
) -> Patches:
    given = {"patch": (8, 8, 8), "seed": 3, **sampling}
    spec = ComponentSpec(name=sampler, **options or {})
    references = (plugin,) if plugin else ()
    return Patches(cases, Recipe(Sampling(**given), spec, 2, transforms, references))


def settings(workers: int = 0, method: str = "fork", **options: Any) -> Train:
    values = {"patch": (8, 8, 8), "batch": 3, "budget": {"steps": 1}, **options}
    return Train.model_validate(
        {**values, "workers": workers, "start_method": method}, strict=False
    )


def first(
    data: Patches, train: Train, steps: int = 4, start: int = 0, stride: int = 1
) -> list[dict[str, Any]]:
    stream = batches(data, train, start, stride=stride, pin=False)
    taken = list(islice(stream, steps))
    stream.close()  # type: ignore[attr-defined]
    return taken


def equal(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> bool:
    return all(
        torch.equal(x[key], y[key]) if torch.is_tensor(x[key]) else x[key] == y[key]
        for x, y in zip(a, b, strict=True)
        for key in x
    )


def test_a_patch_is_what_was_cached(cases: Any) -> None:
    data = patches(cases)
    for n in range(10):
        patch = data[n]
        case = cases[data.sampling.case(n, 5)]
        assert patch["image"].shape == (2, 8, 8, 8)
        assert patch["label"].shape == (8, 8, 8)
        assert patch["label"].dtype == torch.uint8
        assert patch["spacing"].tolist() == list(case.spacing)
        whole, found = case.image(), patch["image"].numpy()
        corner = np.argwhere(whole[0] == found[0, 4, 4, 4])
        assert len(corner) == 1  # noise: every voxel is its own name
        assert case.label()[tuple(corner[0])] == patch["label"][4, 4, 4]


@pytest.mark.parametrize("workers", [0, 1])
def test_processes_share_the_batches_of_one(workers: int, cases: Any) -> None:
    data, alone = patches(cases), settings()
    one = first(data, alone, 9, start=2)
    for rank in range(3):
        assert equal(first(data, settings(workers), 3, start=2 + rank, stride=3), one[rank::3])


def test_small_volumes_are_filled_up(cases: Any) -> None:
    data = patches(cases, patch=(16, 16, 16))
    for n in range(5):
        patch, case = data[n], cases[data.sampling.case(n, 5)]
        assert int(patch["label"].sum()) == 24
        assert set(np.unique(patch["image"][0])) == set(np.unique(case.image()[0]))


def test_the_margin_is_the_volumes_own_context(cases: Any) -> None:
    """What lies around a patch is what lies around it in the volume; beyond that its edge."""
    plain, wide = patches(cases), patches(cases, margin=(3, 0, 5))
    for n in range(10):
        inner, outer = plain[n], wide[n]
        assert outer["image"].shape == (2, 14, 8, 18)
        assert outer["label"].shape == (14, 8, 18)
        middle = (slice(3, -3), slice(None), slice(5, -5))
        assert torch.equal(outer["image"][:, *middle], inner["image"])
        assert torch.equal(outer["label"][middle], inner["label"])
        assert np.array_equal(wide.target(n), inner["label"])
        whole = cases[plain.sampling.case(n, 5)].image()
        padded = np.pad(whole, ((0, 0), (20, 20), (20, 20), (20, 20)), mode="edge")
        (i, j, k), *_ = np.argwhere(whole[0] == outer["image"][0, 6, 4, 9].numpy()) + 20
        context = padded[:, i - 6 : i + 8, j - 4 : j + 4, k - 9 : k + 9]
        np.testing.assert_array_equal(outer["image"], context)


def test_a_case_is_resized_to_the_patch(cases: Any) -> None:
    data = patches(cases, sampler="resize", patch=(7, 6, 8))
    for n in range(5):
        patch, case = data[n], cases[data.sampling.case(n, 5)]
        assert patch["image"].shape == (2, 7, 6, 8)
        assert patch["image"].mean() == pytest.approx(case.image().mean(), abs=0.2)
        assert 0 < patch["label"].double().mean() < 4 * case.label().mean()
        assert np.array_equal(data.target(n), patch["label"])


def test_regions_and_maps_of_a_case_are_sampled(cases: Any) -> None:
    for case in cases:
        mask = np.zeros(case.label().shape, bool)
        mask[10, 9, 1:3] = True
        weights = np.where(case.label() > 0, 2.5, 0).astype(np.float32)
        arrays = casefile.read(case.path).arrays
        casefile.write(case.path, {**arrays, "mask": mask, "weights": weights}, {})
    inside = patches(cases, sampler="uniform", patch=(1, 1, 1), roi=True)
    weighted = patches(cases, sampler="weighted", patch=(1, 1, 1))
    for n in range(20):
        case = cases[inside.sampling.case(n, 5)]
        assert inside[n]["image"][0, 0, 0, 0].item() in case.image()[0, 10, 9, 1:3]
        assert weighted[n]["label"].all()


def test_each_case_comes_once_an_epoch(cases: Any) -> None:
    data = patches(cases)
    for epoch in range(3):
        slices = [float(data[5 * epoch + n]["spacing"][2]) for n in range(5)]
        assert sorted(slices) == [2, 3, 4, 5, 6]


def test_the_share_of_foreground_is_what_was_asked(cases: Any) -> None:
    shares = []
    for foreground in (0.0, 1.0):
        data = patches(cases, patch=(4, 4, 4), options={"foreground": foreground})
        shares.append(np.mean([bool(data[n]["label"].any()) for n in range(200)]))
    assert shares[1] == 1
    assert shares[0] < 0.7


def test_the_stream_may_be_entered_anywhere(cases: Any) -> None:
    """This is what makes a resumed run see what an uninterrupted one sees."""
    data = patches(cases)
    assert equal(first(data, settings(), 6)[4:], first(data, settings(), 2, start=4))


def test_random_transforms_draw_from_the_nth_generator(cases: Any, plugin: str) -> None:
    data = patches(cases, ComponentSpec(name="jitter", reach=5.0), plugin=plugin)
    plain = patches(cases)
    shifts = [float((data[n]["image"] - plain[n]["image"]).mean()) for n in range(8)]
    assert len({round(shift, 3) for shift in shifts}) == 8
    assert equal([data[3]], [pickle.loads(pickle.dumps(data))[3]])


def test_it_pickles_as_its_configuration(cases: Any, plugin: str) -> None:
    data = patches(cases, ComponentSpec(name="jitter"), plugin=plugin)
    data[0]
    text = pickle.dumps(data)
    assert b"Jitter" not in text
    assert pickle.loads(text)._built is None


# A worker that torch ends while it is still starting may abort; torch says so when it cleans up.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_any_number_of_workers_gives_the_same(method: str, cases: Any, plugin: str) -> None:
    data = patches(cases, ComponentSpec(name="jitter"), plugin=plugin)
    alone = first(data, settings(), 5, start=2)
    for workers in (1, 2):
        fresh = pickle.loads(pickle.dumps(data))
        assert equal(first(fresh, settings(workers, method), 5, start=2), alone)


@pytest.mark.parametrize(
    "fault, message",
    [
        ("raises", r"transform 'faulty' failed on case 'case\d': ZeroDivisionError\('by chance'\)"),
        ("crops", r"transform 'faulty' changed the shape of a patch of case 'case\d'"),
        ("drops", r"transform 'faulty' .*case 'case\d'"),
        ("nothing", r"transform 'faulty' .*case 'case\d'"),
    ],
)
def test_a_faulty_transform_names_itself_and_the_case(
    fault: str, message: str, cases: Any, plugin: str
) -> None:
    data = patches(cases, ComponentSpec(name="faulty", fault=fault), plugin=plugin)
    with pytest.raises(PluginError, match=message):
        first(data, settings())


@pytest.mark.parametrize("workers", [0, 1])
def test_a_data_error_keeps_its_type_and_file(workers: int, cases: Any) -> None:
    cases[2].path.write_bytes(b"")
    with pytest.raises(DataError, match=r"case2\.safetensors: case 'case2'.*empty") as caught:
        first(patches(cases), settings(workers))
    assert caught.value.source.endswith("case2.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_a_plugin_error_keeps_its_type_from_a_worker(method: str, cases: Any, plugin: str) -> None:
    data = patches(cases, ComponentSpec(name="faulty"), plugin=plugin)
    with pytest.raises(PluginError, match="'faulty' failed on case"):
        first(pickle.loads(pickle.dumps(data)), settings(1, method))


def test_monais_transforms_run_on_patches(cases: Any) -> None:
    from medseg import plugins

    plugins.load()
    assert "monai" in TRANSFORMS
    options = {"prob": 1.0, "spatial_axis": 2}
    data = patches(cases, ComponentSpec(name="monai", transform="RandFlipd", options=options))
    plain = patches(cases)
    for n in range(3):
        assert torch.equal(data[n]["image"], plain[n]["image"].flip(3))
        assert torch.equal(data[n]["label"], plain[n]["label"].flip(2))
