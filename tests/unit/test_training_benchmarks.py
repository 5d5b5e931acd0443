"""What the benchmarks of training run, keep and tell: accuracy, throughput, steps on a device."""

from __future__ import annotations

import importlib
import json
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.fixture
def run(benchmarks):
    """A run of medseg on a data set of two folds, of which there is nothing but the names."""
    from accuracy_parts.runs import Run
    from accuracy_parts.sets import DataSet, Fold

    case = {"id": "a", "image": "a.nii.gz", "label": "a_label.nii.gz"}
    folds = (Fold((case,), ({**case, "id": "b"},)), Fold((case,), ({**case, "id": "c"},)))
    data = DataSet(
        "hippocampus", "hippocampus.yaml", Path("nowhere"), folds, (60,), "T1",
        ("anterior", "posterior"), {},
    )  # fmt: skip
    return Run(data, "medseg", 60, 0, 0)


def result(run, dice, hd95, **more):
    """A result of one case of two classes."""
    scores = {"b": {"anterior": [dice, hd95], "posterior": [0.5, None]}}
    return {"key": run.key, "steps": 10, "cpu_s": 60.5, "scores": scores, **more}


def test_the_key_of_a_run_tells_all_that_it_depends_on(run):
    others = [
        replace(run, seconds=61), replace(run, seed=1), replace(run, fold=1),
        replace(run, overrides=("train.ema=0",)), replace(run, tool="monai"),
        replace(run, data=replace(run.data, config="sts_pet.yaml")),
    ]  # fmt: skip
    keys = {run.key, *(other.key for other in others)}
    assert len(keys) == 1 + len(others)
    elsewhere = replace(run, data=replace(run.data, path=Path("elsewhere")))
    assert elsewhere.key == run.key


@pytest.mark.parametrize("name", ["hippocampus", "sts_pet"])
def test_without_augmentation_nothing_that_a_config_adds_stays(run, name):
    from accuracy_parts.runs import ablated, config

    from medseg.config.schema import Augment

    data = replace(run.data, name=name, config=f"{name}.yaml")
    runs, _ = ablated(data, 60, [0], ["no augmentation", "by sample"])
    names = {mine.change: yaml.safe_load(config(mine))["augment"] for mine in runs}
    nothing = json.loads(
        Augment(affine=0, flip=(), brightness=0, contrast=0, noise_probability=0).model_dump_json()
    )
    assert names["no augmentation"] == nothing
    assert {**names["augmentation by sample"], "transforms": []} == nothing
    assert names["as shipped"]["elastic"] > 0  # so that there is something to take away


@pytest.mark.parametrize("name", ["hippocampus", "sts_pet"])
def test_every_ablation_is_run_or_told(run, name):
    from accuracy_parts.ablations import ABLATIONS
    from accuracy_parts.runs import ablated

    data = replace(run.data, name=name, config=f"{name}.yaml")
    wanted = {a.name for a in ABLATIONS if a.data in ("", name)}
    runs, left_out = ablated(data, 150, [0], [""])
    assert {one.change for one in runs} | set(left_out) == wanted
    assert not {one.change for one in runs} & set(left_out)
    assert len({one.key for one in runs}) == len(runs)
    allowed = {"constant learning rate"}  # not in every version
    refused = {key for key, why in left_out.items() if why.startswith("refused")}
    assert refused <= allowed
    assert "as shipped" in {one.change for one in runs}


def test_an_ablation_by_name_comes_with_the_shipped_config(run):
    from accuracy_parts.runs import ablated

    runs, _ = ablated(run.data, 150, [0], ["EMA"])
    assert {one.change for one in runs} == {"as shipped", "no averaged weights (EMA)"}


def test_figures_of_a_seed_count_every_case_once(run):
    from accuracy_parts.tables import line, of_seed, rows

    first, second = run, replace(run, fold=1)
    results = [result(first, 0.9, 2.0, outside=0.1), result(second, 0.7, None, outside=0.3)]
    told = of_seed(results)
    assert told["dice"] == pytest.approx((0.8 + 0.5) / 2)
    assert told["hd95"] == 2.0
    assert told["worst"] == 0.5
    assert told["missed"] == 3
    assert told["outside"] == pytest.approx(0.2)
    by_key = {one["key"]: one for one in results}
    assert rows([first, second], by_key)["medseg", 60, ""] == [told]
    assert rows([first, second, replace(run, seed=1)], by_key).keys() == {("medseg", 60, "")}
    assert rows([first, second], {first.key: results[0]}) == {}
    other = {**told, "dice": 0.75, "outside": float("nan")}
    words = "| 0.700 (0.650-0.750) | 2.00 (2.00-2.00), 3.0 without |"
    assert words in line("medseg", 60, [told, other])
    assert line("medseg", 60, [told, other]).endswith("| 10 (10-10) | - | 60 (60-60) |")


def test_a_killed_benchmark_goes_on(run, tmp_path, monkeypatch):
    import accuracy
    from encoder_parts.results import Results

    runs, done = [run, replace(run, fold=1)], []

    def execute(one, work, python):
        assert (work, python) == (tmp_path, None)
        if done and one is runs[1] and not told:
            raise KeyboardInterrupt
        done.append(one.key)
        return result(one, 0.9, 1.0)

    told: list[str] = []
    monkeypatch.setattr(accuracy.jobs, "execute", execute)
    options = Namespace(work=tmp_path, peer_python=None)
    file = tmp_path / "results.jsonl"
    with pytest.raises(KeyboardInterrupt):
        accuracy._work_off(runs, Results(file), options)
    told.append("again")
    accuracy._work_off(runs, Results(file), options)
    assert done == [one.key for one in runs]
    assert [json.loads(text)["key"] for text in file.read_text().splitlines()] == done


def test_the_rate_of_a_log_leaves_out_what_came_before_its_first_record(benchmarks):
    from training_parts.ours import rate

    records = [
        {"step": 25, "seconds": 20.0, "outside": 0.9},
        {"step": 50, "seconds": 25.0, "outside": 0.1},
        {"step": 60, "seconds": 30.0, "outside": 0.2},
    ]
    told = rate(records, 2)
    assert told["rate"] == 7
    assert told["outside"] == pytest.approx(0.15)
    with pytest.raises(RuntimeError, match="more --seconds"):
        rate(records[:1], 2)


def test_all_methods_of_throughput_share_one_recipe(benchmarks):
    from training_parts.methods import BRIGHTNESS, METHODS, SETS

    assert len({method.name for method in METHODS}) == len(METHODS)
    assert {(m.tool, m.precision) for m in METHODS} == {
        (tool, precision)
        for tool in ("medseg", "floor", "nnunet", "monai")
        for precision in ("fp32", "bf16")
    }
    for data in SETS.values():
        config = data.load("/nowhere", "fp32")
        assert config.train.precision == "fp32"
        assert tuple(config.augment.flip) == data.flip
        assert config.augment.brightness == BRIGHTNESS
        assert config.augment.elastic == config.augment.blur == 0


@pytest.mark.slow
def test_medsegs_loop_and_its_floor_are_measured(benchmarks, recipe, tmp_path, monkeypatch):
    from training_parts import ours
    from training_parts.worker import measured

    from medseg.config import load
    from medseg.training.setup import set_up

    monkeypatch.setattr(ours, "_START_UP", 1)
    config = load(recipe())
    told = ours.train(config, {"seconds": 4, "prepared": str(tmp_path)})
    assert told["rate"] > 0
    assert told["samples"] % config.train.batch == 0
    floor = measured(ours.floor(set_up(config)), config.train.batch, 0.5)
    assert floor["samples"] >= config.train.batch
    assert floor["cpu_s"] >= 0.5


def test_steps_on_a_device_are_told(benchmarks, monkeypatch, capsys):
    import gpu_training

    monkeypatch.setattr(sys, "argv", ["gpu_training.py", "--device", "cpu", "--tiny"])
    gpu_training.main()
    lines = capsys.readouterr().out.splitlines()
    table = [text for text in lines if text.startswith("|")]
    assert [text.split("|")[1].strip() for text in table] == ["network", "---", "tiny", "tiny"]
    assert len({text.count("|") for text in table}) == 1
    assert float(table[-1].split("|")[-2]) > 0  # of the ceiling


def test_a_machine_without_a_gpu_is_told(benchmarks, monkeypatch, capsys):
    import gpu_training

    monkeypatch.setattr(sys, "argv", ["gpu_training.py"])
    monkeypatch.setattr(gpu_training.torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as error:
        gpu_training.main()
    assert error.value.code == 2
    assert "no CUDA device" in capsys.readouterr().err


def test_memory_that_runs_out_is_a_line_of_the_table(benchmarks, monkeypatch):
    import gpu_training

    def full(*_):
        raise gpu_training.torch.OutOfMemoryError("full")

    monkeypatch.setattr(gpu_training, "measured", full)
    way = gpu_training.Way("large", [8], 8, True, False)
    told = gpu_training.row(way, Namespace(), gpu_training.torch.device("cpu"), 1e12)
    assert "out of memory" in told
    assert told.count("|") == len(gpu_training.HEADS) + 1


@pytest.mark.parametrize("script", ["accuracy", "training", "gpu_training"])
def test_benchmarks_tell_how_they_are_called(benchmarks, monkeypatch, capsys, script):
    monkeypatch.setattr(sys, "argv", [f"{script}.py", "--help"])
    with pytest.raises(SystemExit) as error:
        importlib.import_module(script).main()
    assert error.value.code == 0
    assert f"usage: {script}.py" in capsys.readouterr().out
