"""Losses over regions: sums of labels, entropies without small probabilities, what is refused."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from medseg import plugins
from medseg.config import load
from medseg.errors import ConfigError
from medseg.registry import LOSSES
from medseg.testing import check_loss
from medseg.training.losses.distances import by_torch
from medseg.training.losses.parts import Parts
from medseg.training.setup import set_up
from medseg.volumes.dataset import IGNORE_INDEX, Labels

plugins.load()

OVER = [name for name in LOSSES.names() if "over" in LOSSES.signature(name).parameters]
OVERLAPS = [
    "boundary", "dice", "focal_tversky", "generalised_dice", "hausdorff",
    "sensitivity_specificity", "tversky", "volume_enforcement",
]  # fmt: skip
NESTED = ((1, 2, 3), (1, 3), (3,))  # whole, core, enhancing


def build(name: str, classes: int, regions: Any = None, **options: Any) -> Any:
    return LOSSES.build({"name": name, **options}, classes=classes, regions=regions)


def pair(classes: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    logits = 2 * torch.randn(2, classes, 4, 5, 6, generator=generator)
    target = torch.randint(classes, (2, 4, 5, 6), generator=generator)
    target[:, 0] = IGNORE_INDEX
    return logits, target


def test_the_page_of_losses_tells_of_each_and_its_options() -> None:
    page = Path(__file__).parents[2].joinpath("docs", "losses.md").read_text(encoding="utf-8")
    rows = {row.split("`")[1]: row for row in page.splitlines() if row.startswith("| `")}
    assert sorted(rows) == LOSSES.names()
    for name, row in rows.items():
        options = set(LOSSES.signature(name).parameters) - {"classes", "regions", "over"}
        told = set(re.findall(r"`(\w+)`", row.rsplit("|", 2)[1]))
        assert told == options or (name == "focal_tversky" and told == {"tversky"}), name


def test_all_but_two_can_be_taken_over_regions() -> None:
    assert set(LOSSES.names()) - set(OVER) == {"monai", "wasserstein_dice"}
    assert set(OVERLAPS) < set(OVER)


@pytest.mark.parametrize("name", OVER)
def test_a_loss_over_regions_keeps_the_contract(name: str) -> None:
    check_loss(build(name, 4, NESTED, over="regions"), 4)


@pytest.mark.parametrize("name", OVERLAPS)
def test_regions_of_one_label_each_are_the_labels(name: str) -> None:
    logits, target = pair()
    options = {"base": "dice"} if "base" in LOSSES.signature(name).parameters else {}
    over_labels = build(name, 4, ((1,), (2,), (3,)), **options)(logits, target)
    for regions in (((1,), (2,), (3,)), ((3,), (1,), (2,)), None):
        over_regions = build(name, 4, regions, over="regions", **options)(logits, target)
        torch.testing.assert_close(over_regions, over_labels)


@pytest.mark.parametrize("name", OVER)
def test_nested_regions_are_not_the_labels(name: str) -> None:
    logits, target = pair()
    values = [float(build(name, 4, NESTED, over=o)(logits, target)) for o in ("labels", "regions")]
    assert abs(values[0] - values[1]) > 1e-5
    assert values[0] == float(build(name, 4)(logits, target))


@pytest.mark.parametrize("name", ["cross_entropy", "focal", "topk"])
def test_the_entropy_of_one_region_of_two_classes_is_that_of_the_labels(name: str) -> None:
    logits, target = pair(2)
    over_labels, over_regions = (build(name, 2, over=o) for o in ("labels", "regions"))
    torch.testing.assert_close(over_regions(logits, target), over_labels(logits, target))


def test_cross_entropy_over_regions_is_the_mean_of_their_binary_ones() -> None:
    logits, target = pair()
    shares = logits.double().softmax(1)
    found = []
    for region in NESTED:
        share, inside = shares[:, list(region)].sum(1), torch.isin(target, torch.tensor(region))
        found.append(-torch.where(inside, share, 1 - share).log()[target != IGNORE_INDEX].mean())
    value = build("cross_entropy", 4, NESTED, over="regions")(logits, target)
    torch.testing.assert_close(value, torch.stack(found).mean().float())


def test_a_region_that_is_far_off_still_has_an_entropy_and_a_slope() -> None:
    """Its probability, e^-300, is 0 in float32."""
    logits = torch.zeros(1, 3, 1, 1, 1)
    logits[:, 0] = 300
    logits.requires_grad_()
    target = torch.full((1, 1, 1, 1), 2)
    loss = build("cross_entropy", 3, ((1, 2), (2,)), over="regions")(logits, target)
    loss.backward()
    # Inside, log(2) and 0; outside 300 both times.
    assert float(loss.detach()) == pytest.approx(300 - math.log(2) / 2, rel=1e-6)
    assert logits.grad is not None
    assert logits.grad.flatten().tolist() == pytest.approx([1.0, -0.25, -0.75])


def test_the_sum_is_that_of_the_probabilities() -> None:
    logits, target = pair()
    predicted, truth = Parts.of(4, "regions", NESTED, include_background=True).soft(logits, target)
    shares = logits.softmax(1)
    known = target != IGNORE_INDEX
    assert predicted.shape == truth.shape == (2, 4, 4, 5, 6)
    torch.testing.assert_close(predicted[:, 0], shares[:, 0] * known)
    torch.testing.assert_close(predicted[:, 2], (shares[:, 1] + shares[:, 3]) * known)
    assert torch.equal(truth[:, 0] == 1, target == 0)
    assert torch.equal(truth[:, 2] == 1, (target == 1) | (target == 3))


@pytest.mark.parametrize(
    ("name", "second"),
    [("dice_ce", "cross_entropy"), ("dice_topk", "topk"), ("dice_focal", "focal")],
)
def test_both_parts_of_a_sum_are_taken_over_regions(name: str, second: str) -> None:
    logits, target = pair()
    options = {"regions": NESTED, "over": "regions"}
    dice, other = (build(part, 4, **options)(logits, target) for part in ("dice", second))
    torch.testing.assert_close(build(name, 4, **options)(logits, target), dice + other)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
def test_focal_of_a_small_exponent_has_a_finite_slope(gamma: float) -> None:
    logits = torch.tensor([200.0, 0.0]).view(1, 2, 1, 1, 1).requires_grad_()
    build("focal", 2, gamma=gamma)(logits, torch.zeros(1, 1, 1, 1, dtype=torch.int64)).backward()
    assert logits.grad is not None
    assert logits.grad.tolist() == torch.zeros(1, 2, 1, 1, 1).tolist()


@pytest.mark.parametrize("voxel", [(1.0, 1.0, 1.0), (0.9, 1.3, 5.0)])
def test_distances_of_other_devices_are_scipys(voxel: tuple[float, float, float]) -> None:
    generator = torch.Generator().manual_seed(0)
    goals = torch.rand(2, 2, 7, 9, 11, generator=generator) < 0.02
    goals[1, 1] = False
    expected = [ndimage.distance_transform_edt(~goal.numpy(), sampling=voxel) for goal in goals[0]]
    found = by_torch(goals, voxel)
    torch.testing.assert_close(found[0], torch.from_numpy(np.stack(expected)).float())
    assert found[1, 1].isinf().all()


@pytest.mark.parametrize("name", ["boundary", "hausdorff"])
def test_losses_of_distance_are_the_same_there(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    logits, target = pair()
    target[1][target[1] == 2] = 0
    value = build(name, 4)(logits, target)
    monkeypatch.setattr("medseg.training.losses.distances._by_scipy", by_torch)
    torch.testing.assert_close(build(name, 4)(logits, target), value)


@pytest.mark.parametrize("name", [n for n in LOSSES.names() if n != "monai"])
@pytest.mark.parametrize("label", [0, 1, IGNORE_INDEX])
def test_one_label_everywhere_and_sure_logits_are_no_accident(name: str, label: int) -> None:
    """Absent classes, full ones, nothing known; probabilities that are 0 and 1 in float32."""
    target = torch.full((2, 3, 3, 3), label)
    for sure in (1, 2):
        logits = torch.zeros(2, 3, 3, 3, 3)
        logits[:, sure] = 200
        logits.requires_grad_()
        value = build(name, 3)(logits, target)
        value.backward()
        assert value.isfinite()
        assert logits.grad is not None
        assert logits.grad.isfinite().all()


@pytest.mark.parametrize(
    ("regions", "message"),
    [
        (((1, 2, 3), ()), r"holds classes of 1 to 3, each once, got \(\)"),
        (((1, 2, 3), (1, 4)), r"holds classes of 1 to 3, each once, got \(1, 4\)"),
        (((0, 1), (2,), (3,)), r"holds classes of 1 to 3, each once, got \(0, 1\)"),
        (((1, 1), (2,), (3,)), r"holds classes of 1 to 3, each once, got \(1, 1\)"),
    ],
)
def test_regions_of_classes_that_there_are_not_are_refused(regions: Any, message: str) -> None:
    for name in ("dice", "cross_entropy"):
        with pytest.raises(ConfigError, match=f"loss '{name}': .*{message}"):
            build(name, 4, regions, over="regions")
        build(name, 4, regions)  # over labels, they do not matter


@pytest.mark.parametrize(
    ("regions", "further"),
    [
        (NESTED, ()),
        (((1, 2, 3, 4), (1, 3, 4), (4,)), ((1,), (3,))),  # BraTS 2015: necrosis, non-enhancing
        (((1, 2, 3),), ((1,), (2,), (3,))),
        (((1,), (2,)), ((3,),)),  # in no region, like background
    ],
)
def test_labels_that_no_region_tells_apart_are_parts_too(regions: Any, further: Any) -> None:
    """Or nothing would decide which of them a voxel is."""
    classes = 1 + max(4 if 4 in region else 3 for region in regions)
    assert Parts.of(classes, "regions", regions).members == (*regions, *further)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "dice", "smooth": 0.0}, "smooth must be above 0, got 0.0"),
        ({"name": "dice", "over": "region"}, "should be 'labels' or 'regions'"),
        ({"name": "dice", "regions": [[1]]}, "unknown option 'regions'"),
        ({"name": "dice_ce", "ce_weight": -1.0}, "ce_weight must be at least 0, got -1.0"),
        ({"name": "boundary", "weight": -1.0}, "weight must be at least 0, got -1.0"),
        ({"name": "boundary", "voxel": [1.0, 1.0, 0.0]}, "voxel must be above 0, got 0.0"),
        ({"name": "hausdorff", "exponent": 0.0}, "exponent must be above 0, got 0.0"),
        ({"name": "focal", "gamma": -1.0}, "gamma must be at least 0, got -1.0"),
        ({"name": "topk", "share": 0.0}, "share must be above 0 and at most 1, got 0.0"),
        ({"name": "topk", "share": 10.0}, "share must be above 0 and at most 1, got 10.0"),
        ({"name": "tversky", "beta": -0.1}, "beta must be at least 0, got -0.1"),
        ({"name": "sensitivity_specificity", "ratio": 2.0}, "ratio must lie in 0 to 1, got 2.0"),
        (
            {"name": "cross_entropy", "over": "regions", "class_weights": [1.0, 2.0, 3.0]},
            "class_weights are of labels: leave them out over regions",
        ),
        (
            {"name": "wasserstein_dice", "distances": [[0.0, 1.0], [1.0, 0.0]]},
            r"needs 3 rows of 3 numbers .* got rows of \[2, 2\]",
        ),
        (
            {"name": "wasserstein_dice", "distances": [[0, 1, 1], [1, 0, 0.5], [1, 0.4, 0]]},
            "must be symmetric",
        ),
    ],
)
def test_options_that_make_no_sense_are_refused(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LOSSES.build(spec, classes=3)


def test_labels_say_which_classes_make_up_a_region() -> None:
    labels = Labels({"core": (4,), "whole": (4, 2, 300)}, ignore=9)
    assert labels.regions == ((2,), (2, 1, 3))


def test_a_run_gives_its_loss_the_regions(
    recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The files hold label 1 only.
    monkeypatch.setattr("medseg.volumes.check.CheckReport.raise_problems", lambda _: None)
    classes = {"whole": [1, 5, 7], "core": [7, 5], "enhancing": [7]}
    path = recipe(**{"loss": {"name": "dice", "over": "regions"}, "data.classes": classes})
    loss: Any = set_up(load(path)).loss
    assert set(loss.loss.parts.members) == {(1, 2, 3), (3, 2), (3,)}
