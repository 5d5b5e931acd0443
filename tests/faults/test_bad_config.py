"""Config mistakes come first, all at once, with place and remedy, without torch (promise 9).

And reading a config runs nothing that stands in it (promise 10).
"""

# ruff: noqa: E501  (carets stand below the columns that they mean)
from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from medseg.config import load
from medseg.errors import ConfigError

PLUGIN = """
    import torch  # a plugin may cost what it likes: it is only read
    from torch import nn
    from typing import Literal
    from medseg.registry import ENCODERS

    @ENCODERS.register("mine")
    class Mine(nn.Module):
        def __init__(
            self,
            in_channels: int,
            depth: int,
            mode: Literal["Fast", "slow"] = "Fast",
            rates: tuple[float, ...] = (),
        ) -> None: ...
    """
# Each mistake is followed by what is told of it; `^` stands below the column.
MISTAKES = """\
seed: -1
      ^ seed: should be greater than or equal to 0, got -1
plugins: [mine.py, gone.py]
                   ^ plugins[1]: plugin FOLDER/gone.py: no such file
infrence: {}
^ infrence: unknown key 'infrence'; did you mean 'inference'? (known: about, augment,
data:
  layout: nnunetraw
          ^ data.layout: should be 'folder', 'csv', 'msd' or 'nnunet', got 'nnunetraw'
  path: heads
  clases: {tumour: 1}
  ^ data.clases: unknown key 'clases'; did you mean 'classes'? (known: channels, classes,
  split: {folds: 3, fold: "1"}
                          ^ data.split.fold: should be a valid integer, got '1'
preprocess:
  spacing: [2, 2, .nan]
                  ^ preprocess.spacing[2]: a finite number expected, got .nan
  normalise: [{name: zscore, regoin: nonzero}, {name: window, low: 0}, zscroe]
                             ^ preprocess.normalise[0].regoin: transform 'zscore': unknown option 'regoin'; did you mean 'region'? (known: channels, clip, region, trim)
                                               ^ preprocess.normalise[1]: transform 'window' needs the option 'high'
                                                                       ^ preprocess.normalise[2]: unknown transform 'zscroe'; did you mean 'zscore'? (known:
model:
  encoder: {name: mine, mode: fast, rates: [0.1, x], widht: 3}
           ^ model.encoder: encoder 'mine' needs the option 'depth'
                              ^ model.encoder.mode: encoder 'mine': should be 'Fast' or 'slow', got 'fast'
                                                 ^ model.encoder.rates[1]: encoder 'mine': should be a valid number, got 'x'
                                                     ^ model.encoder.widht: encoder 'mine': unknown option 'widht' (known: depth, mode, rates)
  decoder: unnet
           ^ model.decoder: unknown decoder 'unnet'; did you mean 'unet'? (known: deeplab, fcn, fpn, unet)
  deep_supervision: 9
                    ^ model.deep_supervision: should be less than or equal to 5, got 9
train:
^ needs the key 'name'
  patch: [32, 32]
         ^ train.patch: needs more values
  budget: {epochs: 3, steps: 10}
          ^ train.budget: give exactly one of epochs, steps, wall_seconds, cpu_seconds
  lr: 1e-3x
      ^ train.lr: should be a valid number, got '1e-3x'
  clip: yes
        ^ train.clip: should be a valid number, got 'yes'
  batch: 2
  batch: 4
  ^ train: key 'batch' is given twice (first on line LINE)
  workers: !!python/object/apply:os.system ["touch ran"]
           ^ train.workers: the tag 'tag:yaml.org,2002:python/object/apply:os.system' is not allowed
"""
OVERRIDES = {
    "train.momentum=big": "command line:1:16: train.momentum: should be a valid number, got 'big'",
    "train.ema=[": "command line:1:12: train.ema: not valid YAML: ",
    "nonsense": "command line:1:1: an override has the form key.subkey=value",
}


def lay_out(folder: Path) -> tuple[str, list[str]]:
    """Write the config and its plugin; return the text and what must be told, by line."""
    (folder / "mine.py").write_text(inspect.cleandoc(PLUGIN))
    lines: list[str] = []
    expected = []
    for line in MISTAKES.splitlines():
        match = re.match(r" *\^ ", line)
        if match is None:
            lines.append(line)
            continue
        message = line[match.end() :].replace("FOLDER", str(folder.resolve()))
        column, number = match.end() - 1, len(lines)
        if message.startswith("needs the key"):  # the file as a whole: its first key
            column, number = 1, 1
        message = message.replace("LINE", str(len(lines) - 1))
        expected.append(f"run.yaml:{number}:{column}: {message}")
    text = "\n".join(lines) + "\n"
    (folder / "run.yaml").write_text(text)
    return text, expected


def check_report(report: str, text: str, expected: list[str]) -> None:
    lines = report.splitlines()
    heads = [line for line in lines if re.match(r"(run\.yaml|command line):\d+:\d+: ", line)]
    for message in expected:
        assert any(head.startswith(message) for head in heads), message
    assert len(heads) == len(expected), "\n".join(heads)
    for n, line in enumerate(lines):
        if line in heads and line.startswith("run.yaml"):
            row, column = map(int, line.split(":")[1:3])
            assert lines[n + 1] == "    " + text.splitlines()[row - 1]
            assert lines[n + 2] == " " * (column + 3) + "^"


def medseg(*words: str, cwd: Path) -> tuple[int, str, set[str]]:
    """Run the command line; return its exit code, its error stream and what it has imported."""
    code = f"""
        import sys
        from medseg.cli import main
        sys.argv = ["medseg", *{words!r}]
        try:
            main()
        finally:
            print("imported", *{{name.split(".")[0] for name in sys.modules}})
        """
    done = subprocess.run(
        [sys.executable, "-c", inspect.cleandoc(code)], env=os.environ | {"COLUMNS": "80"},
        capture_output=True, text=True, timeout=120, cwd=cwd, check=False,
    )  # fmt: skip
    return done.returncode, done.stderr, set(done.stdout.split("imported")[-1].split())


COMMANDS = {"check": (), "train": ("-o", "out"), "evaluate": ("-i", "masks", "-o", "out")}


@pytest.mark.parametrize("command", COMMANDS)
def test_all_mistakes_are_told_at_once_without_torch(tmp_path: Path, command: str) -> None:
    text, expected = lay_out(tmp_path)
    assert len(expected) > 20
    start = time.monotonic()
    code, report, imported = medseg(
        command, "-c", "run.yaml", *COMMANDS[command], *OVERRIDES, cwd=tmp_path
    )
    assert time.monotonic() - start < 30  # seconds: some tenfold of what it takes
    assert code == 2
    check_report(report.removeprefix("error: "), text, [*expected, *OVERRIDES.values()])
    assert "pydantic" in imported
    assert not {"torch", "monai", "matplotlib", "mine"} & imported
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.py", "run.yaml"]


def test_a_good_config_needs_no_torch_either(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(inspect.cleandoc(PLUGIN))
    (tmp_path / "run.yaml").write_text(
        "name: a\nplugins: [mine.py]\ndata: {layout: nnunet, path: x}\n"
        "model: {encoder: {name: mine, depth: 3}, decoder: unet}\n"
        "train: {patch: [8, 8, 8], budget: {steps: 1}}\n"
    )
    code = "import sys; from medseg.config import load; load('run.yaml'); print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, timeout=120, cwd=tmp_path, check=True,
    )  # fmt: skip
    assert "pydantic" in done.stdout.split()
    assert not {"torch", "monai"} & set(done.stdout.split())


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "run.yaml:1:1: a mapping with name, data, model, ... expected"),
        (b"- a\n- b\n", "run.yaml:1:1: a mapping with name, data, model, ... expected"),
        (b"name: [1, 2\n", "run.yaml:2:1: not valid YAML: expected ',' or ']'"),
        (b"name: \xff\n", "run.yaml: not UTF-8 text"),
        (b"a" * (2 << 20), "run.yaml: 2097152 bytes; a config has at most 1048576"),
        (b"a: " + b"[" * 1_000_000, "run.yaml:1:35: not valid YAML: nested deeper than 32 levels"),
        (b"a: &a [1]\nb: *a\n", "run.yaml:1:4: not valid YAML: anchors (&) and aliases (*) are "),
        (b"name: \x1b[31mred\n", "run.yaml:1:7: not valid YAML: a character that no text has"),
        (b"\x89PNG\r\n\x1a\n", "run.yaml: not UTF-8 text"),
    ],
    ids=["empty", "list", "open", "latin", "huge", "deep", "alias", "escape", "png"],
)
def test_what_is_no_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load("run.yaml")
    assert str(caught.value).startswith(message)
    assert len(str(caught.value)) < 1000
    assert "\x1b" not in str(caught.value)


def test_many_mistakes_take_no_time_out_of_proportion(tmp_path: Path) -> None:
    """Thousands of them: every one told, in seconds."""
    lines = [f"unknown_{n}: {{a: 1}}" for n in range(3_000)]
    (tmp_path / "run.yaml").write_text("\n".join(lines))
    start = time.process_time()
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / "run.yaml")
    assert time.process_time() - start < 60
    assert str(caught.value).count("unknown key 'unknown_") >= 3_000


def test_a_missing_file(tmp_path: Path) -> None:
    code, report, _ = medseg("check", "-c", "gone.yaml", cwd=tmp_path)
    assert (code, report) == (2, "error: gone.yaml: No such file or directory\n")
