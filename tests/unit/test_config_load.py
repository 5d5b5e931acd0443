"""From YAML, overrides and --plugin to a checked `Config`."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest

from medseg.config import Config, load, loads
from medseg.errors import ConfigError

RUN = """\
name: a
data: {layout: nnunet, path: heads}
model: {encoder: resnet, decoder: unet}
train: {patch: [32, 32, 32], budget: {steps: 10}}
"""


def run(*overrides: str, more: str = "") -> Config:
    return loads(RUN + more, "/base", overrides)


def told(*overrides: str, more: str = "", text: str | None = None) -> list[str]:
    """The first lines of the problems, in order, without the texts and carets below them."""
    with pytest.raises(ConfigError) as caught:
        loads(RUN + more if text is None else text, "/base", overrides)
    lines = str(caught.value).split("\n")
    assert len(lines) % 3 == 0
    for head, shown, caret in zip(lines[::3], lines[1::3], lines[2::3], strict=True):
        assert len(shown) < 120
        assert caret.index("^") == int(head.split(":")[2]) + 3
    return lines[::3]


def test_defaults_are_filled_in() -> None:
    config = run()
    assert config.train.lr == 2.5e-3
    assert config.loss.spec() == {"name": "dice_ce"}
    assert config.model.encoder is not None
    assert config.model.encoder.spec() == {"name": "resnet"}


def test_a_config_does_not_change() -> None:
    with pytest.raises(Exception, match="frozen"):
        run().train.lr = 1.0  # type: ignore[misc]


def test_paths_start_at_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "there").mkdir()
    path = tmp_path / "there" / "run.yaml"
    path.write_text(RUN.replace("heads}", "../heads, split: {file: split.json}}"))
    monkeypatch.chdir(tmp_path)
    for given in (path, "there/run.yaml"):
        config = load(given)
        assert config.data.path == str(tmp_path / "heads")
        assert config.data.split.file == str(tmp_path / "there" / "split.json")
    assert config.train.cache is None


def test_classes_stand_protected_beside_the_options_of_a_step() -> None:
    more = "postprocess: [fill_holes, {name: min_volume, mm3: 3, protect: [lesion]}]"
    plain, entry = run(more=more).postprocess
    assert plain.protect == ()
    assert entry.protect == ("lesion",)
    assert entry.spec() == {"name": "min_volume", "mm3": 3}
    assert run("postprocess.0.protect=[lesion]", more=more).postprocess[0].protect == ("lesion",)


@pytest.mark.parametrize(
    "entry, expected",
    [
        ("{name: fill_holes, protect: [lesoin]}", "config:5:14: postprocess: [0].protect: unknown "
                                                  "class 'lesoin'; did you mean 'lesion'"),
        ("{name: fill_holes, protect: lesion}", "config:5:43: postprocess[0].protect: should be a "
                                                "list, got 'lesion'"),
        ("{name: fill_holes, protect: [3]}", "config:5:44: postprocess[0].protect[0]: should be a "
                                             "valid string, got 3"),
        ("{name: fill_holes, protct: [lesion]}", "config:5:34: postprocess[0].protct: postprocess"
                                                 "or 'fill_holes': unknown option 'protct'"),
    ],
)  # fmt: skip
def test_mistakes_of_protection(entry: str, expected: str) -> None:
    (found,) = told("data.classes={lesion: 1}", more=f"postprocess: [{entry}]")
    assert found.startswith(expected)


def test_classes_that_the_data_will_tell_may_be_protected() -> None:
    more = "postprocess: [{name: fill_holes, protect: [anything]}]"
    config = run("data.layout=msd", "data.classes=null", "data.channels=null", more=more)
    assert config.postprocess[0].protect == ("anything",)


def test_paths_of_overrides_start_at_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = run("data.path=x", "train.cache=./y", "data.split.file=../z.json")
    assert config.data.path == str(tmp_path / "x")
    assert config.train.cache == str(tmp_path / "y")
    assert config.data.split.file == str(tmp_path.parent / "z.json")
    assert run("data={layout: nnunet, path: x}").data.path == str(tmp_path / "x")


def test_home_and_absolute_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/homes/me")
    assert run("data.path=~/x").data.path == "/homes/me/x"
    assert run("data.path=/abs/x").data.path == "/abs/x"
    assert run("data.path=~no-such-user/x").data.path.endswith("/~no-such-user/x")


def test_options_are_no_paths() -> None:
    config = run(more="postprocess: [{name: min_volume, mm3: 3}]")
    assert config.postprocess[0].spec() == {"name": "min_volume", "mm3": 3}


@pytest.mark.parametrize(
    "override, get, value",
    [
        ("train.lr=1e-3", lambda c: c.train.lr, 1e-3),
        ("seed=7", lambda c: c.seed, 7),
        ("train.patch=[8,16,24]", lambda c: c.train.patch, (8, 16, 24)),
        ("train.patch.1=64", lambda c: c.train.patch, (32, 64, 32)),
        ("model.encoder.widths=[8,16]", lambda c: c.model.encoder.widths, [8, 16]),
        ("model.encoder=vgg", lambda c: c.model.encoder.spec(), {"name": "vgg"}),
        ("model.encoder.name=vgg", lambda c: c.model.encoder.name, "vgg"),
        ("loss={name: dice, smooth: 2}", lambda c: c.loss.spec(), {"name": "dice", "smooth": 2}),
        ("inference.flip=[0, 2]", lambda c: c.inference.flip, (0, 2)),
        ("evaluation.lesions=true", lambda c: c.evaluation.lesions, True),
        ("data.label=no", lambda c: c.data.label, "no"),
        ("train.clip=null", lambda c: c.train.clip, None),
        ("train.clip=", lambda c: c.train.clip, None),
        (" train.lr = 0.5", lambda c: c.train.lr, 0.5),
        ("data.label='a=b'", lambda c: c.data.label, "a=b"),
        ("preprocess.spacing=median", lambda c: c.preprocess.spacing, "median"),
        ("train.budget={epochs: 3}", lambda c: c.train.budget.epochs, 3),
        ("data.classes.1=3", lambda c: c.data.classes, {"1": 3}),
    ],
)
def test_overrides(override: str, get: Any, value: Any) -> None:
    assert get(run(override)) == value


def test_overrides_reach_into_lists() -> None:
    more = "postprocess: [fill_holes, {name: min_volume, mm3: 3}, largest_component]"
    config = run("postprocess.1.mm3=4", "postprocess.2.connectivity=6", more=more)
    assert [spec.spec() for spec in config.postprocess] == [
        {"name": "fill_holes"},
        {"name": "min_volume", "mm3": 4},
        {"name": "largest_component", "connectivity": 6},
    ]
    assert run("postprocess.0=fill_holes", more="postprocess: [largest_component]").postprocess[
        0
    ].spec() == {"name": "fill_holes"}


def test_overrides_add_up() -> None:
    config = run("model.encoder=vgg", "model.encoder.width=0.5", "model.encoder.levels=3")
    assert config.model.encoder is not None
    assert config.model.encoder.spec() == {"name": "vgg", "width": 0.5, "levels": 3}
    assert run("seed=1", "seed=2").seed == 2


def test_an_override_takes_the_place_of_a_mistake() -> None:
    more = "loss: {name: dice, smoth: 1}\nseed: abc"
    assert run("seed=1", "loss=dice", more=more).seed == 1
    message = "command line:1:20: loss.smoth: loss 'dice': unknown option 'smoth'"
    assert told("loss={name: dice,  smoth: 2}", "seed=1", more=more)[0].startswith(message)


@pytest.mark.parametrize(
    "override, expected",
    [
        ("train.lr=fast", "1:10: train.lr: should be a valid number, got 'fast'"),
        ("train.lr= [", "1:12: train.lr: not valid YAML: "),
        ("train.foo=1", "1:7: train.foo: unknown key 'foo' (known: "),
        ("trian.lr=1", "1:1: trian: unknown key 'trian'; did you mean 'train'? (known: "),
        ("train.lr", "1:1: an override has the form key.subkey=value"),
        ("=3", "1:1: an override has the form key.subkey=value"),
        ("train..lr=3", "1:1: an override has the form key.subkey=value"),
        (".=3", "1:1: an override has the form key.subkey=value"),
        ("", "1:1: an override has the form key.subkey=value"),
        ("train.patch.3=8", "1:13: train.patch.3: there is no such entry; give the whole "),
        ("train.patch.x=8", "1:13: train.patch.x: there is no such entry; give the whole "),
        ("train.patch.-1=8", "1:13: train.patch.-1: there is no such entry; give the whole "),
        ("train.patch.0.x=8", "1:15: train.patch[0].x: there is no such entry; give the whole "),
        ("train.²=8", "1:7: train.²: unknown key '²'"),
        ("train.patch=[8, 8, x]", "1:20: train.patch[2]: should be a valid integer, got 'x'"),
        ("train.patch=[8, 8]", "1:13: train.patch: needs more values"),
        ("model.encoder.widht=8", "1:15: model.encoder.widht: encoder 'resnet': unknown option "),
        ("model.encoder.norm=x", "1:20: model.encoder.norm: encoder 'resnet': should be "),
        ("model.encoder=resnt", "1:15: model.encoder: unknown encoder 'resnt'; did you mean "),
        ("name=!!python/name:os.system x", "1:6: name: the tag 'tag:yaml.org,2002:python/name:"),
        ("data.label=!foo x", "1:12: data.label: the tag '!foo' is not allowed"),
        ("data.classes={a: 1, a: 2}", "1:21: data.classes: key 'a' is given twice"),
        ("data.channels={a: [&x 1]}", "1:20: data.channels: not valid YAML: anchors (&)"),
        ("train.patch=[8, 8, .nan]", "1:20: train.patch[2]: a finite number expected"),
        ("train.lr=\x1b[31m", "1:10: train.lr: not valid YAML: a character that no text has"),
    ],
)
def test_mistakes_in_overrides_point_into_the_command_line(override: str, expected: str) -> None:
    assert told(override)[0].startswith(f"command line:{expected}")


def test_mistakes_in_overrides_come_with_all_others() -> None:
    found = told("train.lr=[", "seed=x", "nokey", more="infrence: {}")
    assert len(found) == 4
    assert sum(line.startswith("command line:") for line in found) == 3
    assert "config:5:1: infrence: unknown key 'infrence'; did you mean 'inference'?" in found[-1]


def test_overrides_of_something_that_is_no_mapping() -> None:
    for text in ("- a\n", "", "text"):
        expected = ["config:1:1: a mapping with name, data, model, ... expected"]
        assert told("name=b", text=text) == expected


def test_the_place_of_a_value_that_an_override_replaced_is_forgotten() -> None:
    found = told("model.encoder={name: vgg, width: x}", more="")
    assert found == [
        "command line:1:34: model.encoder.width: encoder 'vgg': should be a valid number, got 'x'"
    ]


@pytest.mark.parametrize(
    "more, expected",
    [
        ("seed: -1", "config:5:7: seed: should be greater than or equal to 0, got -1"),
        ("seed: 1.0", "config:5:7: seed: should be a valid integer, got 1.0"),
        ("seed: true", "config:5:7: seed: should be a valid integer, got True"),
        ("seed: '1'", "config:5:7: seed: should be a valid integer, got '1'"),
        ("inference: {flip: [3]}", "config:5:20: inference.flip[0]: should be less than or "),
        ("inference: []", "config:5:12: inference: should be a mapping, got []"),
        ("plugins: foo.py", "config:5:10: plugins: should be a list, got 'foo.py'"),
        ("loss: [dice]", "config:5:7: loss: should be a mapping, got ['dice']"),
        ("loss: {name: 3}", "config:5:14: loss.name: should be a valid string, got 3"),
        ("loss: {smooth: 3}", "config:5:7: loss: needs the key 'name'"),
        ("loss: dise", "config:5:7: loss: unknown loss 'dise'; did you mean 'dice'? (known: "),
        ("loss: {name: dise}", "config:5:14: loss.name: unknown loss 'dise'; did you mean "),
        ("postprocess: [min_volume]", "config:5:15: postprocess[0]: postprocessor 'min_volume' "
                                      "needs the option 'mm3'"),
        ("preprocess: {spacing: [1, 2]}", "config:5:23: preprocess.spacing: needs more values; "),
        ("preprocess: {spacing: mean}", "config:5:23: preprocess.spacing: should be a list, got "
                                        "'mean'; or should be 'median', got 'mean'"),
        ("preprocess: {orientation: RRS}", "config:5:27: preprocess.orientation: "),
        ("inference: {overlap: 1}", "config:5:22: inference.overlap: should be less than 1, got 1"),
    ],
)  # fmt: skip
def test_mistakes_of_the_schema(more: str, expected: str) -> None:
    (found,) = told(more=more)
    assert found.startswith(expected)


def test_missing_keys_are_told_one_by_one() -> None:
    assert told(text="seed: 1\ntrain: {lr: 1}") == [
        "config:1:1: needs the key 'name'",
        "config:1:1: needs the key 'data'",
        "config:1:1: needs the key 'model'",
        "config:2:8: train: needs the key 'patch'",
        "config:2:8: train: needs the key 'budget'",
    ]


def test_a_model_is_made_in_one_way() -> None:
    text = RUN.replace("decoder: unet", "network: {name: monai, net: UNet}")
    assert told(text=text) == [
        "config:3:8: model: give either encoder and decoder, or network, not both"
    ]
    text = RUN.replace(", decoder: unet", "")
    assert told(text=text) == ["config:3:8: model: give encoder and decoder, or network"]


def test_the_name_of_the_file_is_told(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(RUN + "seed: x\n")
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}:5:7: seed: ")


def test_plugins_in_the_file_and_on_the_command_line(tmp_path: Path) -> None:
    for name in ("one", "two"):
        code = f"""
            from medseg.registry import LOSSES

            @LOSSES.register("{name}")
            def {name}(classes: int, power: float = 2.0): ...
            """
        (tmp_path / f"{name}.py").write_text(inspect.cleandoc(code))
    text = RUN + "plugins: [one.py]\nloss: {name: two, power: 3}\n"
    config = loads(text, tmp_path, plugin=[str(tmp_path / "two.py")])
    assert config.plugins == (str(tmp_path / "one.py"), str(tmp_path / "two.py"))
    with pytest.raises(ConfigError, match="unknown loss 'two'"):
        loads(text, tmp_path)
    with pytest.raises(ConfigError, match=r"command line:1:10: plugins\[1\]: plugin .*no such"):
        loads(text, tmp_path, plugin=["gone.py"])
