"""A step of training: accumulated gradients, the precision it chooses, the layout it runs in."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from medseg import plugins
from medseg.config import load
from medseg.config.schema import Config
from medseg.networks.layers import channels_last
from medseg.registry import LOSSES
from medseg.training import loop, precision
from medseg.training.finetune import FineTuning
from medseg.training.losses.supervision import DeepSupervision
from medseg.training.setup import build_network
from medseg.training.state import State
from medseg.training.step import Step
from medseg.training.trouble import Part

Recipe = Callable[..., Path]
SGD = {"train.optimiser": "sgd"}  # whose steps are as exact as their gradients


def step_of(config: Config) -> Step:
    plugins.load(())
    network = build_network(config.model, 1, 2, 0)
    state = State(network, config.train, FineTuning(network, 1, config.train))
    state.precision = "fp32"
    loss = LOSSES.build({"name": "dice_ce", "batch": False}, classes=2, regions=((1,),))
    return Step(state, DeepSupervision(loss, network.output_weights), config.numbered)


def part(image: Tensor, label: Tensor) -> Part:
    return Part(image, label, ["case"] * len(image))


def weights(step: Step) -> list[Tensor]:
    return [p.detach() for p in step.state.network.parameters()]


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(4, 1, 16, 16, 16, generator=generator)
    return image, (image[:, 0] > 0.5).long()


def test_accumulated_batches_make_the_step_of_one_large_batch(
    recipe: Recipe, batch: tuple[Tensor, Tensor]
) -> None:
    image, label = batch
    whole = step_of(load(recipe(**{"train.batch": 4, **SGD})))
    parts = step_of(load(recipe(**{"train.accumulate": 2, **SGD})))
    one = whole([part(image, label)], 1e-2)
    two = parts([part(image[:2], label[:2]), part(image[2:], label[2:])], 1e-2)
    assert one == pytest.approx(two, rel=1e-5)
    for mine, theirs in zip(weights(parts), weights(whole), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)
    only_first = step_of(load(recipe(**SGD)))
    only_first([part(image[:2], label[:2])], 1e-2)
    differ = [not torch.allclose(a, b, rtol=1e-3, atol=1e-5)
              for a, b in zip(weights(only_first), weights(whole), strict=True)]  # fmt: skip
    assert any(differ)


def test_batches_of_one_step_are_augmented_apart(recipe: Recipe) -> None:
    step = step_of(load(recipe(**{"train.accumulate": 2, "augment.noise_probability": 1})))
    given = {
        "image": torch.zeros(1, 1, 16, 16, 16), "label": torch.zeros(1, 16, 16, 16).long(),
        "spacing": torch.ones(1, 3), "present": torch.ones(1, 1, dtype=torch.bool), "case": ["a"],
    }  # fmt: skip
    first, second = (step.prepare(given, n)[0] for n in range(2))
    assert not torch.equal(first, second)
    assert torch.equal(first, step.prepare(given, 0)[0])
    step.state.batches = 1
    assert torch.equal(second, step.prepare(given, 0)[0])
    step.state.batches = 2
    assert not torch.equal(second, step.prepare(given, 0)[0])


def test_the_layout_changes_no_step(recipe: Recipe, batch: tuple[Tensor, Tensor]) -> None:
    plain, turned = step_of(load(recipe())), step_of(load(recipe()))
    for step in (plain, turned):
        step.state.precision = "bf16"
    channels_last(turned.state.network)
    kernel = next(p for p in weights(turned) if p.dim() == 5 and min(p.shape) > 1)
    assert kernel.is_contiguous(memory_format=torch.channels_last_3d)
    losses = [[step([part(*batch)], 1e-3) for _ in range(3)] for step in (plain, turned)]
    assert losses[0] == pytest.approx(losses[1], rel=2e-2)
    assert losses[1][2] < losses[1][0]
    assert kernel.is_contiguous(memory_format=torch.channels_last_3d)


@pytest.mark.parametrize("seconds, chosen", [((1.0, 2.0), "fp32"), ((2.0, 1.0), "bf16")])
def test_the_faster_precision_is_chosen(
    seconds: tuple[float, float], chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "candidate", lambda device: "bf16")
    told = dict(zip(("fp32", "bf16"), seconds, strict=True))
    monkeypatch.setattr(precision, "_fastest", lambda network, image, name: told[name])
    assert precision.measured(nn.Conv3d(1, 1, 1), torch.zeros(1, 1, 4, 4, 4)) == chosen


@pytest.mark.parametrize("fails, chosen", [({"fp32"}, "bf16"), ({"bf16"}, "fp32"),
                                           ({"fp32", "bf16"}, "bf16")])  # fmt: skip
def test_what_memory_does_not_suffice_for_is_not_chosen(
    fails: set[str], chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Hungry(nn.Conv3d):
        def forward(self, x: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
            if ("bf16" if torch.is_autocast_enabled("cpu") else "fp32") in fails:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return (super().forward(x),)

    monkeypatch.setattr(precision, "candidate", lambda device: "bf16")
    assert precision.measured(Hungry(1, 1, 1), torch.zeros(1, 1, 4, 4, 4)) == chosen


def test_measuring_leaves_no_trace(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "candidate", lambda device: "bf16")
    plugins.load(())
    network = build_network(load(recipe()).model, 1, 2, 0).train()
    before = copy.deepcopy(network.state_dict())
    random = torch.get_rng_state()
    assert precision.measured(network, torch.zeros(2, 1, 16, 16, 16)) in ("fp32", "bf16")
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters())
    assert torch.equal(random, torch.get_rng_state())


def test_without_instructions_for_it_nothing_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "candidate", lambda device: "fp32")
    monkeypatch.setattr(precision, "_fastest", lambda *_: pytest.fail("tried"))
    assert precision.measured(nn.Conv3d(1, 1, 1), torch.zeros(1, 1, 4, 4, 4)) == "fp32"


@pytest.mark.slow
def test_a_resumed_run_keeps_the_precision_that_was_measured(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load(recipe(**{"train.precision": "auto", "train.budget": {"steps": 2}}))
    monkeypatch.setattr(loop, "measured", lambda network, image: "bf16")
    run = loop.train(config, tmp_path / "run", device="cpu", quiet=True)
    monkeypatch.setattr(loop, "measured", lambda network, image: pytest.fail("measured again"))
    loop.train(config, tmp_path / "run", device="cpu", resume=True, quiet=True)
    assert torch.load(run.state, weights_only=True)["precision"] == "bf16"


def test_a_network_is_compiled_where_that_is_asked_for(
    recipe: Recipe, batch: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda network: compiled.append(network) or network)
    step_of(load(recipe()))
    assert not compiled
    step = step_of(load(recipe(**{"train.compile": True})))
    assert compiled == [step.state.network]
    step([part(*batch)], 1e-3)
