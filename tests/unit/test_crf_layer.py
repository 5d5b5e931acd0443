"""The dense CRF as a layer: gradients, agreement with mean field, and a network trained with it."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from medseg.errors import ConfigError, DataError
from medseg.postprocess.dense import torch_field
from medseg.postprocess.dense.layer import DenseCRFLayer
from medseg.postprocess.dense.problem import Problem
from medseg.postprocess.dense.settings import Settings
from medseg.registry import NETWORKS
from medseg.testing import check_network

EXAMPLE = Path(__file__).parents[2] / "examples" / "crf_rnn.py"
SIZE = (6, 5, 7)


def layer(**options: Any) -> DenseCRFLayer:
    given = {"classes": 3, "spacing": (1.0, 1.0, 2.0), "spatial_mm": 2.0, "appearance_mm": 4.0}
    return DenseCRFLayer(**{**given, "appearance_intensity": 0.5, **options})


def sample(batch: int = 2, modalities: int = 2, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(batch, 3, *SIZE, generator=rng, dtype=dtype)
    return [logits, torch.rand(batch, modalities, *SIZE, generator=rng)]


@pytest.fixture
def networks() -> Iterator[None]:
    """What the example registers goes when the test ends."""
    before = dict(NETWORKS._components)
    yield
    NETWORKS._components.clear()
    NETWORKS._components.update(before)


def example(**options: Any) -> nn.Module:
    spec = importlib.util.spec_from_file_location("crf_rnn_of_a_test", EXAMPLE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    network = NETWORKS.build({"name": "crf_rnn", **options}, in_channels=2, classes=3)
    assert isinstance(network, nn.Module)
    return network


@pytest.mark.parametrize("exclude_self", [False, True])
def test_its_softmax_is_the_mean_field(exclude_self: bool) -> None:
    logits, image = sample()
    out = layer(exclude_self=exclude_self)(logits, image)
    for u, x, refined in zip(logits, image, out, strict=True):
        flat = u.flatten(1).numpy()
        problem = Problem(
            SIZE,
            np.indices(SIZE, np.int32).reshape(3, -1),
            x.flatten(1).numpy() / np.float32(0.5),
            flat[1:] - flat[0],
            (2.0, 2.0, 1.0),
            (4.0, 4.0, 2.0),
        )
        settings = Settings((1.0, 2.0), 5, exclude_self=exclude_self)
        expected = torch_field.mean_field(problem, settings, torch.device("cpu"))
        got = refined.detach().softmax(0).flatten(1).numpy()
        np.testing.assert_allclose(got, expected, atol=1e-6)
    assert (out.softmax(1) - logits.softmax(1)).abs().max() > 0.1


def test_potts_is_where_learning_of_the_compatibility_starts() -> None:
    plain, learnt = layer(), layer(learn_compatibility=True)
    a, b = (one(*sample()).softmax(1) for one in (plain, learnt))
    torch.testing.assert_close(a, b)
    assert [name for name, _ in plain.named_parameters()] == ["weights"]
    assert [name for name, _ in learnt.named_parameters()] == ["weights", "compatibility"]


def test_gradients_are_those_of_finite_differences() -> None:
    module = layer(learn_compatibility=True, iterations=2).double()
    logits, image = sample(batch=1, dtype=torch.float64)
    logits, image = logits[..., :3, :2, :3], image[:, :1, :3, :2, :3]
    weights, costs = (p.detach().clone().requires_grad_() for p in module.parameters())

    def run(logits: Tensor, weights: Tensor, costs: Tensor) -> Tensor:
        given = {"weights": weights, "compatibility": costs}
        out: Tensor = torch.func.functional_call(module, given, (logits, image))
        return out

    assert torch.autograd.gradcheck(run, (logits.clone().requires_grad_(), weights, costs))


def test_a_batch_is_its_volumes_one_by_one() -> None:
    module, (logits, image) = layer(), sample(batch=3)
    alone = [module(logits[n : n + 1], image[n : n + 1]) for n in range(3)]
    torch.testing.assert_close(module(logits, image), torch.cat(alone), rtol=0, atol=0)


def test_autocast_changes_nothing() -> None:
    module, (logits, image) = layer(learn_compatibility=True), sample()
    results = []
    for enabled in (False, True):
        module.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            out = module(logits, image)
        out.square().mean().backward()
        results.append((out, *(p.grad for p in module.parameters())))
    assert results[1][0].dtype == torch.float32
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)
    half = module(logits.bfloat16(), image.bfloat16())
    assert half.dtype == torch.float32
    assert half.isfinite().all()


@pytest.mark.parametrize("option, value", [
    ("classes", 1), ("iterations", -1), ("spacing", (1.0, 0.0, 1.0)), ("spatial_mm", -2.0),
    ("appearance_mm", (1.0, 2.0)), ("appearance_intensity", float("nan")),
    ("appearance_intensity", ()), ("memory_gib", 0.0),
])  # fmt: skip
def test_options_out_of_range_are_named(option: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=option) as error:
        layer(**{option: value})
    assert error.value.path == (option,)


@pytest.mark.parametrize("change, told", [
    (lambda u, x: (u[:, :2], x), r"logits: \(N, 3, I, J, K\) expected, got \(2, 2, 6, 5, 7\)"),
    (lambda u, x: (u[0], x), "logits"),
    (lambda u, x: (u, x[:1]), r"image: \(2, M, 6, 5, 7\) expected .* got \(1, 2, 6, 5, 7\)"),
    (lambda u, x: (u, x[..., 1:]), "image"),
    (lambda u, x: (u, x.repeat(1, 3, 1, 1, 1)), "1 to 5 modalities expected, got 6"),
    (lambda u, x: (u, x * torch.nan), "image has NaN"),
    (lambda u, x: (u, x * 1e5), "would take .* GiB"),
])  # fmt: skip
def test_inputs_that_do_not_fit_are_told(change: Any, told: str) -> None:
    with pytest.raises(DataError, match=told):
        layer()(*change(*sample()))


def test_one_deviation_for_each_modality() -> None:
    logits, image = sample()
    both = layer(appearance_intensity=(0.25, 0.5))(logits, image)
    scaled = image * torch.tensor([2.0, 1.0]).view(1, 2, 1, 1, 1)
    torch.testing.assert_close(both, layer()(logits, scaled))
    with pytest.raises(ConfigError, match="2 values for 1 modalities"):
        layer(appearance_intensity=(0.25, 0.5))(logits, image[:, :1])


def test_a_lattice_serves_many_modalities() -> None:
    logits, image = sample(modalities=5)
    logits.requires_grad_()
    module = layer()
    out = module(logits, image)
    out.square().mean().backward()
    assert (out.softmax(1) - logits.softmax(1)).abs().max() > 0.1
    assert module.weights.grad is not None and module.weights.grad.all()
    assert logits.grad is not None and logits.grad.isfinite().all()


def test_shapes_can_be_had_without_arithmetic() -> None:
    logits, image = (x.to("meta") for x in sample())
    assert layer().to("meta")(logits, image).shape == logits.shape


@pytest.mark.parametrize("learn", [False, True])
def test_the_example_keeps_the_contract(networks: None, learn: bool) -> None:
    network = example(width=4, spacing=(2.0, 2.0, 2.0), learn_compatibility=learn)
    check_network(network, in_channels=2, classes=3, sizes=[(10, 9, 8)])
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) <= 75


def test_its_kernel_weights_are_learnt(networks: None) -> None:
    torch.manual_seed(0)
    network = example(width=4, spacing=(2.0, 2.0, 2.0), learn_compatibility=True)
    target = (torch.arange(10)[:, None, None] + torch.zeros(2, 10, 9, 8)).div(4).long()
    image = torch.stack([target, target % 2], 1) + 0.5 * torch.randn(2, 2, 10, 9, 8)
    before = {n: p.detach().clone() for n, p in network.named_parameters()}
    adam, costs = torch.optim.Adam(network.parameters(), 0.02), []
    for _ in range(12):
        cost = nn.functional.cross_entropy(network(image), target)
        adam.zero_grad()
        cost.backward()
        adam.step()
        costs.append(float(cost.detach()))
    assert costs[-1] < 0.8 * costs[0]
    after = dict(network.named_parameters())
    for name in ("crf.weights", "crf.compatibility"):
        assert after[name].grad is not None and after[name].grad.all()
        assert ((after[name] - before[name]).abs() > 0.01).any()


@pytest.mark.slow
def test_a_config_names_it(networks: None, recipe: Any, cli: Any, tmp_path: Path) -> None:
    """From the YAML to a trained model and its masks."""
    config = recipe(**{
        "plugins": [str(EXAMPLE)],
        "model": {"network": {"name": "crf_rnn", "width": 4, "spacing": [4, 4, 4]}},
        "train.budget": {"steps": 2},
        "train.validation_cases": 1,
    })  # fmt: skip
    code, told = cli("train", "-c", config, "-o", tmp_path / "run", "--device", "cpu")
    assert code == 0, told
    assert list((tmp_path / "run" / "validation").glob("*.nii.gz"))
