"""Fixed levels, thawing and learning rates by level."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import nn

from medseg import plugins
from medseg.config.schema import Model, Train
from medseg.errors import ConfigError
from medseg.networks.assembly import Network, build_network
from medseg.registry import ENCODERS
from medseg.training.finetune import FineTuning, levels_of

plugins.load()


def model(**encoder: Any) -> Model:
    spec = {"name": "resnet", "widths": [4, 8, 8], "norm": "batch", "dropout": 0.5, **encoder}
    return Model.model_validate_json(
        json.dumps({"encoder": spec, "decoder": "unet", "deep_supervision": 1})
    )


def train(**settings: Any) -> Train:
    values = {"patch": [8, 8, 8], "budget": {"steps": 10}, **settings}
    return Train.model_validate_json(json.dumps(values))


def tuned(**settings: Any) -> tuple[Network, FineTuning]:
    network = build_network(model(), in_channels=1, classes=2, seed=0)
    return network, FineTuning(network, 1, train(**settings))


def fixed(network: Network) -> set[str]:
    """Which children of the encoder have no parameter that trains."""
    encoder = network.get_submodule("encoder")
    parts = [encoder.get_submodule("stem"), *encoder.get_submodule("stages").children()]
    states = [{p.requires_grad for p in part.parameters()} for part in parts]
    assert all(len(state) == 1 for state in states)
    return {name for name, state in zip(("stem", "0", "1", "2"), states, strict=True)
            if state == {False}}  # fmt: skip


def test_a_level_is_what_it_needs_and_no_finer_one_does() -> None:
    encoder = build_network(model(), 1, 2, seed=0).get_submodule("encoder")
    names = {id(p): name for name, p in encoder.named_parameters()}
    found = [{names[id(p)] for p in level} for level in levels_of(encoder, 1, (4, 4, 4))]
    stages = [{n for n in names.values() if n.startswith(f"stages.{i}.")} for i in range(3)]
    stem = {n for n in names.values() if n.startswith("stem.")}
    assert found == [stages[0] | stem, stages[1], stages[2]]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", ["vgg", "inception", "resnet"])
def test_every_parameter_is_of_one_level(name: str, checkpointing: bool) -> None:
    spec = {"name": name, "width": 0.05, "checkpointing": checkpointing}
    encoder = ENCODERS.build(spec, in_channels=1)
    found = [id(p) for level in levels_of(encoder, 1, encoder.strides[-1]) for p in level]
    assert sorted(found) == sorted(id(p) for p in encoder.parameters())


def test_nothing_is_fixed_by_default_and_all_is_one_group() -> None:
    network, tuning = tuned()
    tuning.rest(0.0)
    assert fixed(network) == set()
    assert all(module.training for module in network.modules())
    (group,) = tuning.groups()
    assert group["factor"] == 1.0
    assert [id(p) for p in group["params"]] == [id(p) for p in network.parameters()]


def test_the_whole_encoder_fixed() -> None:
    network, tuning = tuned(freeze={"levels": "all"})
    tuning.rest(1.0)
    assert fixed(network) == {"stem", "0", "1", "2"}
    assert not any(m.training for m in network.get_submodule("encoder").modules())
    assert all(m.training for m in network.get_submodule("decoder").modules())
    assert all(p.requires_grad for p in network.get_submodule("decoder").parameters())


def test_a_step_moves_neither_weights_nor_statistics_of_what_is_fixed() -> None:
    network, tuning = tuned(freeze={"levels": 2})
    before = {key: value.clone() for key, value in network.state_dict().items()}
    optimiser = torch.optim.AdamW(tuning.groups(), 0.1)
    for _ in range(2):
        tuning.rest(0.0)
        optimiser.zero_grad()
        sum(out.square().mean() for out in network(torch.rand(2, 1, 8, 8, 8))).backward()
        optimiser.step()
    moved = {k for k, value in network.state_dict().items() if not torch.equal(value, before[k])}
    at_rest = ("encoder.stem", "encoder.stages.0", "encoder.stages.1")
    assert not [key for key in moved if key.startswith(at_rest)]
    still = {key for key in before if key not in moved and not key.startswith(at_rest)}
    assert not still
    assert any(k.startswith("encoder.stages.2") and k.endswith("running_mean") for k in moved)


def test_levels_thaw_one_after_the_other_coarsest_first() -> None:
    network, tuning = tuned(freeze={"levels": "all", "thaw": [0.2, 0.6]})
    told = {}
    for fraction in (0.0, 0.19, 0.2, 0.39, 0.41, 0.59, 0.6, 1.0):
        tuning.rest(fraction)
        told[fraction] = len(fixed(network) - {"stem"})
        encoder = network.get_submodule("encoder")
        at_rest = [not stage.training for stage in encoder.get_submodule("stages").children()]
        assert sum(at_rest) == told[fraction]
        assert at_rest == sorted(at_rest, reverse=True)
    assert told == {0.0: 3, 0.19: 3, 0.2: 2, 0.39: 2, 0.41: 1, 0.59: 1, 0.6: 0, 1.0: 0}


def test_levels_thaw_together() -> None:
    network, tuning = tuned(freeze={"levels": 2, "thaw": [0.5, 0.5]})
    tuning.rest(0.49)
    assert fixed(network) == {"stem", "0", "1"}
    tuning.rest(0.5)
    assert fixed(network) == set()


def test_rates_fall_towards_the_input() -> None:
    network, tuning = tuned(encoder_lr=0.5, level_decay=0.1)
    groups = tuning.groups()
    assert [group["factor"] for group in groups] == pytest.approx([0.005, 0.05, 0.5, 1.0])
    ids = [id(p) for group in groups for p in group["params"]]
    assert sorted(ids) == sorted(id(p) for p in network.parameters())
    others = {id(p) for p in network.get_submodule("encoder").parameters()}
    assert not others & {id(p) for p in groups[-1]["params"]}


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"freeze": {"levels": "all"}}, "freeze.levels"),
        ({"encoder_lr": 0.1}, "encoder_lr"),
        ({"level_decay": 0.5}, "level_decay"),
    ],
)
def test_a_whole_network_shows_no_levels(settings: dict[str, Any], key: str) -> None:
    options = {"channels": [4, 8], "strides": [2]}
    spec = {"network": {"name": "monai", "net": "UNet", "options": options}}
    network = build_network(Model.model_validate_json(json.dumps(spec)), 1, 2, seed=0)
    with pytest.raises(ConfigError, match="this is for the levels of an encoder") as caught:
        FineTuning(network, 1, train(**settings))
    assert ".".join(map(str, caught.value.path)) == key


def test_more_levels_than_there_are() -> None:
    with pytest.raises(ConfigError, match="the encoder has 3 levels, got 4"):
        tuned(freeze={"levels": 4})


def test_a_fixed_encoder_keeps_no_activations() -> None:
    """What makes a feature extractor cheap: no gradient reaches the fixed levels."""
    network, tuning = tuned(freeze={"levels": "all"})
    tuning.rest(0.0)
    level = network.get_submodule("encoder")(torch.rand(1, 1, 8, 8, 8))[-1]
    assert not level.requires_grad
    assert isinstance(network, nn.Module)
