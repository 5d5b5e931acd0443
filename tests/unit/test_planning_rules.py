"""Each rule of a plan on figures where what it has to say is known."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import Any

import pytest

from medseg.errors import ConfigError
from medseg.planning import amounts, grid, intensities, network, outcome, patches, rules, schedule
from medseg.planning.choice import Choice, config_of, text_of
from medseg.planning.fingerprint import ChannelPrint, ClassPrint, Fingerprint, Intensities, Sides
from medseg.planning.trial import Measured, Seconds
from medseg.planning.words import Modality

Triple = tuple[float, float, float]


def channel(name: str = "t1", modality: Modality = "other", top: float = 100.0) -> ChannelPrint:
    steps = (0.5, 5.0, 50.0, 95.0, 99.0, 99.5)
    values = dict(zip(steps, (-37.5, 0.0, top / 2, top * 0.9, top, top * 1.01), strict=True))
    found = Intensities(values, top / 2, top / 5)
    return ChannelPrint(name, modality, "name", found, found, 0.1, 0.0, False, 0)


def lesion(name: str = "lesion", **changes: Any) -> ClassPrint:
    found = ClassPrint(name, 20, 0.02, (1, 10, 50), (1, 3, 9), (10, 500, 5000), 3000.0, 0.3)
    return replace(found, **changes)


def figures(size: Triple = (128, 160, 128), mm: Triple = (1, 1, 1), **changes: Any) -> Fingerprint:
    """A data set of 20 cases of one size and spacing."""
    length = tuple(n * step for n, step in zip(size, mm, strict=True))
    found = Fingerprint(
        cases=20, shape=(size,) * 3, spacing=(mm,) * 4, size_mm=(length,) * 2,
        content_mm=(length,) * 2, orientations={"LPS": 20}, unplaced=0, blank=0.01,
        is_corner_zero=True, outside=0.0, channels=(channel(),), classes=(lesion(),), sides=(),
        label_values={1: 20}, masked=0,
    )  # fmt: skip
    return replace(found, **changes)


# -- amounts --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, wanted", [("90s", 90), ("15m", 900), ("2h", 7200), ("1.5 h", 5400), ("1d", 86400)]
)
def test_times_are_read(text: str, wanted: float) -> None:
    assert amounts.seconds(text) == wanted


@pytest.mark.parametrize("text", ["", "15", "m", "-5m", "0s", "1e9h", "900d", "15 minutes", "nan"])
def test_absurd_times_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="as 90s, 15m, 2h"):
        amounts.seconds(text)


@pytest.mark.parametrize(
    "text, wanted", [("8GB", 8 << 30), ("800 mb", 800 << 20), ("1.5G", 3 << 29), ("2GiB", 2 << 30)]
)
def test_sizes_are_read(text: str, wanted: int) -> None:
    assert amounts.size(text) == wanted


@pytest.mark.parametrize("text", ["", "8", "GB", "-1GB", "0GB", "8 gigs", "all"])
def test_absurd_sizes_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="as 800MB or 8GB"):
        amounts.size(text)


# -- the grid -------------------------------------------------------------------------------------


def test_the_spacing_is_the_median() -> None:
    spacing = ((0.5, 0.5, 1.0), (0.6, 0.6, 1.0), (0.8, 0.8, 1.5), (1.0, 1.0, 2.0))
    made = grid.choose(figures(spacing=spacing))[1]["preprocess.spacing"]
    assert made.value == [0.8, 0.8, 1.5]
    assert "0.5 x 0.5 x 1" in made.why


def test_thick_slices_take_the_tenth_percentile() -> None:
    spacing = ((0.5, 0.5, 1.0), (0.5, 0.5, 2.5), (0.5, 0.5, 5.0), (0.5, 0.5, 7.0))
    thick = grid.target(figures(spacing=spacing))
    assert thick[0] == (0.5, 0.5, 2.5)
    assert "10 times" in thick[1]
    thin = ((0.5, 0.5, 0.2), (0.5, 0.5, 0.3), (0.5, 0.5, 5.0), (0.5, 0.5, 7.0))
    assert grid.target(figures(spacing=thin))[0] == (0.5, 0.5, 0.5)  # no finer than the others
    nearly = ((0.5, 0.5, 1.0), (0.5, 0.5, 1.0), (0.5, 0.5, 1.5), (0.5, 0.5, 7.0))
    assert grid.target(figures(spacing=nearly))[0] == (0.5, 0.5, 1.5)


def test_the_crop_has_to_be_worth_it() -> None:
    half = ((64.0, 160.0, 128.0), (64.0, 160.0, 128.0))
    found, made = grid.choose(figures(content_mm=half))
    assert made["preprocess.crop"].value == "foreground"
    assert found.size == (64, 160, 128)
    found, made = grid.choose(figures())
    assert made["preprocess.crop"].value == "none"


def test_axes_that_are_not_known_stay() -> None:
    made = grid.choose(figures(unplaced=1))[1]["preprocess.orientation"]
    assert made.value is None
    assert grid.choose(figures())[1]["preprocess.orientation"].value == "RAS"


# -- the network ----------------------------------------------------------------------------------


def shape(size: Triple, mm: Triple = (1, 1, 1), net: rules.Size = rules.SMALL) -> network.Shape:
    return network.shape(grid.choose(figures(size, mm))[0], net)


def test_hippocampus_gets_the_hand_made_network() -> None:
    found = shape((35, 50, 36))
    assert found.patch == (32, 48, 32)
    assert found.strides == ((2, 2, 2),) * 3
    assert found.kernels == ((3, 3, 3),) * 3


def test_a_large_volume_gets_a_cube_in_mm() -> None:
    assert shape((240, 240, 155)).patch == (48, 48, 48)
    assert shape((240, 240, 80), (1, 1, 2)).patch[2] * 2 in (56, 64)
    assert shape((400, 400, 60), net=rules.LARGE).patch[2] <= 64


def test_thick_slices_are_halved_later() -> None:
    """0.5 x 0.5 x 3 mm: in plane alone until 2 x 2 x 3."""
    found = shape((256, 256, 30), (0.5, 0.5, 3), rules.LARGE)
    assert found.strides[:4] == ((1, 1, 1), (2, 2, 1), (2, 2, 1), (2, 2, 2))
    assert found.kernels[:4] == ((3, 3, 1), (3, 3, 1), (3, 3, 3), (3, 3, 3))
    assert all(k == 3 or s == 1 for ks, ss in zip(found.kernels, found.strides, strict=True)
               for k, s in zip(ks, ss, strict=True))  # fmt: skip


@pytest.mark.parametrize("net", [rules.SMALL, rules.FINE, rules.MEDIUM, rules.LARGE])
@pytest.mark.parametrize("mm", [(1, 1, 1), (0.7, 0.7, 5), (5.5, 5.5, 3.3), (3, 0.5, 0.5)])
@pytest.mark.parametrize("size", [(32, 40, 27), (512, 512, 300), (9, 300, 300), (512, 512, 20)])
def test_any_volume_gets_a_patch_that_fits(size: Triple, mm: Triple, net: rules.Size) -> None:
    found = shape(size, mm, net)
    total = [prod(steps) for steps in zip(*found.strides, strict=True)]
    for length, step, whole in zip(found.patch, total, size, strict=True):
        assert length % step == 0
        assert length // step >= rules.LEAST_MAP - 1 or step == 1 or whole < 16
        assert length <= whole + step
    assert found.voxels <= 1.6 * net.voxels
    assert len(found.strides) <= len(net.widths)


def test_small_patches_come_in_larger_batches() -> None:
    assert network.batch_for(shape((16, 16, 16))) == 16
    assert network.batch_for(shape((32, 32, 32))) == 3
    assert network.batch_for(shape((48, 48, 48))) == 2


def test_small_lesions_are_not_halved_at_once() -> None:
    small = figures(classes=(lesion(mean_mm3=20.0),))
    assert network.sizes_for(small, grid.choose(small)[0])[0][1] is rules.FINE
    large = figures()
    assert network.sizes_for(large, grid.choose(large)[0])[0] == rules.SIZES


# -- intensities ----------------------------------------------------------------------------------


def normalised(found: Fingerprint) -> list[dict[str, Any]]:
    value: list[dict[str, Any]] = intensities.choices(found)["preprocess.normalise"].value
    return value


def test_mr_is_whitened() -> None:
    assert normalised(figures()) == [{"name": "zscore"}]


def test_stripped_mr_is_whitened_in_its_mask() -> None:
    blank = figures(blank=0.6)
    assert intensities.choices(blank)["preprocess.mask"].value == "nonzero"
    assert normalised(blank) == [{"name": "zscore", "region": "mask"}]
    shifted = figures(blank=0.6, is_corner_zero=False)
    assert intensities.choices(shifted)["preprocess.mask"].value == "not_corner"
    given = figures(masked=20)
    assert intensities.choices(given)["preprocess.mask"].value is None
    assert normalised(given) == [{"name": "zscore", "region": "mask"}]


def test_ct_gets_a_window_of_its_lesions() -> None:
    found = figures(channels=(channel("ct", "ct"),), blank=0.6)
    assert normalised(found) == [{"name": "window", "low": -40.0, "high": 105.0}]
    made = intensities.choices(found)
    assert made["preprocess.mask"].value is None
    assert made["augment.brightness"].value == 0.05


def test_pet_gets_a_window_from_0() -> None:
    assert normalised(figures(channels=(channel("pet", "pet", 15.0),))) == [
        {"name": "window", "low": 0.0, "high": 14.0}
    ]
    assert normalised(figures(channels=(channel("pet", "pet", 2.0),)))[0]["high"] == 5.0


def test_each_channel_by_its_modality() -> None:
    found = figures(channels=(channel("t1"), channel("pet", "pet", 10.5), channel("t2")))
    assert normalised(found) == [
        {"name": "window", "low": 0.0, "high": 10.0, "channels": [1]},
        {"name": "zscore", "channels": [0, 2]},
    ]


# -- patches and flips ----------------------------------------------------------------------------


def sampled(found: Fingerprint, patch: tuple[int, int, int]) -> dict[str, Choice]:
    return patches.sampling(found, grid.choose(found)[0], patch, intensities.region(found))


def test_a_patch_of_most_of_the_volume_lies_anywhere() -> None:
    made = sampled(figures((35, 50, 36)), (32, 48, 32))
    assert (made["train.sampler.name"].value, made["train.sampler.foreground"].value) == (
        "balanced", 0.0,
    )  # fmt: skip
    assert "inference.prior_correction" not in made


def test_rare_lesions_are_sought() -> None:
    made = sampled(figures(), (48, 48, 48))
    assert made["train.sampler.name"].value == "lesion"
    assert made["inference.prior_correction"].value == 0.25
    rare = figures(classes=(lesion(share=0.1), lesion("core", share=0.001)))
    assert sampled(rare, (48, 48, 48))["train.sampler.name"].value == "balanced"


def test_patches_keep_to_a_region_that_holds_the_lesions() -> None:
    assert sampled(figures(blank=0.5), (48, 48, 48))["train.roi"].value is True
    lost = figures(blank=0.5, outside=0.02)
    assert sampled(lost, (48, 48, 48))["train.roi"].value is False
    assert "train.roi" not in sampled(figures(), (48, 48, 48))


def flipped(found: Fingerprint) -> tuple[list[str], list[str]]:
    made = patches.flips(found, grid.choose(found)[0])
    return made["augment.flip"].value, made["inference.flip"].value


def test_lesions_are_mirrored_along_all_axes() -> None:
    assert flipped(figures((64, 64, 64))) == (["LR", "AP", "IS"], ["LR", "AP", "IS"])
    assert flipped(figures()) == (["LR", "AP", "IS"], ["LR"])  # a large volume takes long


def test_classes_that_are_known_by_their_place_are_not_mirrored() -> None:
    sides = Sides(("anterior", "posterior"), (3.0, 15.0, 1.0), (1.0, 2.0, 5.0), 20)
    found = figures((64, 64, 64), sides=(sides,))
    assert flipped(found) == (["LR", "IS"], ["LR", "IS"])
    why = patches.flips(found, grid.choose(found)[0])["augment.flip"].why
    assert "anterior always lies in front of posterior, 15.0 mm" in why


def test_sides_of_the_body_are_not_mirrored() -> None:
    named = figures((64, 64, 64), classes=(lesion("kidney_left"), lesion("kidney_right")))
    assert flipped(named)[0] == ["AP", "IS"]
    assert flipped(figures((64, 64, 64), unplaced=3)) == ([], [])


# -- outcome --------------------------------------------------------------------------------------


def test_deformations_are_by_the_voxel_and_move_thick_slices_together() -> None:
    def planned(mm: Triple) -> tuple[float, float]:
        made = patches.deformation(grid.choose(figures(mm=mm))[0])
        return made["augment.elastic_mm"].value, made["augment.elastic_grid_mm"].value

    assert planned((1, 1, 1)) == (3.0, 12.0)
    assert planned((0.5, 0.5, 8)) == (1.5, 16.0)


def outcomes(found: Fingerprint) -> dict[str, Any]:
    made = outcome.choices(found, grid.choose(found)[0])
    return {path: choice.value for path, choice in made.items()}


def test_volumes_are_predicted_in_windows() -> None:
    assert outcomes(figures((64, 64, 64)))["inference.mode"] == "window"
    assert outcomes(figures())["evaluation.tolerance_mm"] == 1.0


def test_a_single_component_is_kept_alone() -> None:
    one = lesion(count=(1, 1, 1), single=1.0)
    made = outcomes(figures(classes=(one,)))
    assert made["postprocess"] == [{"name": "largest_component"}]
    assert made["evaluation.lesions"] is False
    few = outcomes(figures(classes=(replace(one, cases=5),)))
    assert few["postprocess"] == []
    assert few["evaluation.lesions"] is True  # 15 cases have none
    several = outcomes(figures())
    assert several["postprocess"] == []
    assert several["evaluation.lesions"] is True


# -- schedule -------------------------------------------------------------------------------------


def measured(**changes: Any) -> Measured:
    found = Measured(
        "cpu", "bf16", 300 << 20, 600 << 20, 8 << 30, 4.0, Seconds(0.1, 0.2),
        Seconds(0.05, 0.1), 20.0,
    )  # fmt: skip
    return replace(found, **changes)


def scheduled(budget: float, *, cases: int = 10, threads: int | None = 1, **changes: Any) -> Any:
    made = schedule.make(budget, measured(**changes), 1.0, 1.0, threads=threads)
    chosen = schedule.choices(made, measured(**changes), shape((64, 64, 64)), cases, threads)
    return made, {path: choice.value for path, choice in chosen.items()}


def test_steps_are_what_the_budget_holds() -> None:
    plan, made = scheduled(100)
    assert plan.start_up == 4 + 2 * 1
    assert plan.steps == pytest.approx((90 - 6) / 0.105)
    assert made["train.budget"] == {"cpu_seconds": 100}
    assert made["train.threads"] == 1


def test_several_threads_and_gpus_count_the_clock() -> None:
    plan, made = scheduled(100, threads=4)
    assert plan.steps == pytest.approx((90 - 6) / 0.21)
    assert made["train.budget"] == {"wall_seconds": 100}
    _, made = scheduled(100, threads=None, device="cuda")
    assert made["train.budget"] == {"wall_seconds": 100}
    assert made["train.workers"] == rules.WORKERS


def test_the_average_reaches_back_an_eighth() -> None:
    decays = [scheduled(budget)[1]["train.ema"] for budget in (20, 90, 200, 900, 9000)]
    assert decays == sorted(decays)
    assert decays[0] == 0.98
    assert decays[-1] == 0.999


@pytest.mark.parametrize(
    "case, cases, every, wanted",
    [
        (0.5, None, None, "all ten times"),
        (1.5, 6, None, "fewer cases"),
        (5.0, 4, ..., "fewer times"),
        (60.0, 1, rules.NEVER, "once"),
    ],
)
def test_validations_take_a_tenth(case: float, cases: Any, every: Any, wanted: str) -> None:
    _, made = scheduled(1000, predict=Seconds(case, case))
    assert made["train.validation_cases"] == cases, wanted
    found = made.get("train.validate_every")
    assert found == every if every is not ... else 1000 < found < 10_000


# -- choices --------------------------------------------------------------------------------------


def test_choices_become_a_config_with_its_reasons() -> None:
    made = {
        "name": Choice("a"),
        "data.layout": Choice("msd", "because"),
        "data.path": Choice("x"),
        "model.encoder.name": Choice("resnet"),
        "model.encoder.widths": Choice([8, 16], "small\u2028is quick"),
        "model.decoder.name": Choice("unet"),
        "train.patch": Choice([8, 8, 8]),
        "train.budget": Choice({"steps": 2}),
    }
    text = text_of(made)
    assert "  # because\n  layout: msd" in text
    assert "    # small is quick\n    widths: [8, 16]" in text
    assert config_of(made).train.budget.steps == 2
