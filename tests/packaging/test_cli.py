"""The command line as a user meets it: help without torch, exit codes, the list of components."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import medseg

COMMANDS = ("demo", "init", "check", "train", "predict", "evaluate", "tune", "plugins")
HEAVY = {"torch", "monai", "matplotlib", "scipy", "nibabel"}
EXAMPLE = Path(__file__).parents[2] / "examples" / "tiny_encoder.py"


def run(*words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run `medseg` as its console script does; what it has imported stands on the last line."""
    code = (
        "import sys\nfrom medseg.cli import main\n"
        f"sys.argv = ['medseg', *{words!r}]\n"
        "try:\n    main()\n"
        "finally:\n    print('imported', *{name.split('.')[0] for name in sys.modules})\n"
    )
    environment = {**os.environ, "COLUMNS": "80", "TERM": "dumb", "NO_COLOR": "1"}
    return subprocess.run(
        [sys.executable, "-P", "-c", code],
        capture_output=True, text=True, timeout=120, cwd=cwd, env=environment, check=False,
    )  # fmt: skip


def imported(done: subprocess.CompletedProcess[str]) -> set[str]:
    return set(done.stdout.splitlines()[-1].split()[1:])


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_needs_no_torch(command: str) -> None:
    done = run(*filter(None, [command]), "--help")
    assert done.returncode == 0
    assert "typer" in imported(done)
    assert not HEAVY & imported(done)
    wanted = COMMANDS if not command else ("Usage: medseg " + command,)
    assert all(word in done.stdout for word in wanted)


@pytest.mark.parametrize(
    "command, flags",
    [
        ("demo", ("--output", "-o", "--device", "KEY=VALUE")),
        ("check", ("--config", "-c", "--plugin", "KEY=VALUE")),
        ("train", ("--config", "-c", "--output", "-o", "--device", "--resume", "--plugin")),
        ("predict", ("--model", "-m", "--input", "-i", "--output", "-o", "--device", "--plugin")),
        ("predict", ("--crf", "on|off|model", "--shard", "K/N", "--quiet", "-q", "--json")),
        ("tune", ("NAME", "--model", "-m", "--score", "--device", "--plugin", "KEY=VALUE")),
        ("evaluate", ("--config", "-c", "--input", "-i", "--output", "-o", "--plugin")),
        ("init", ("DATA", "--output", "-o", "--budget", "--memory", "--channel", "--class")),
        ("plugins", ("--plugin",)),
    ],
)
def test_flags(command: str, flags: tuple[str, ...]) -> None:
    text = run(command, "--help").stdout
    assert [flag for flag in flags if flag not in text] == []


def test_version() -> None:
    done = run("--version")
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, f"medseg {medseg.__version__}")
    assert not HEAVY & imported(done)


@pytest.mark.parametrize(
    "words, told",
    [
        (("trian",), "No such command 'trian'"),
        (("train", "--config", "run.yaml", "-o", "x", "--resme"), "No such option"),
        (("train",), "Missing option"),
        (("check", "-c", "gone.yaml"), "gone.yaml: No such file or directory"),
        (("train", "-c", "gone.yaml", "-o", "out"), "gone.yaml: No such file or directory"),
        (("tune", "crf", "-m", "gone", "mm3=[1"), "not valid YAML"),
        (("tune", "crf"), "Missing option"),
        (("plugins", "--plugin", "gone.py"), "gone.py: no such file"),
        (("plugins", "--plugin", "gone"), "plugin 'gone': no such module"),
    ],
)
def test_what_cannot_be_done_ends_with_2(tmp_path: Path, words: tuple[str, ...], told: str) -> None:
    done = run(*words, cwd=tmp_path)
    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_predict_without_a_model(tmp_path: Path) -> None:
    done = run("predict", "-m", "gone", "-i", ".", "-o", "out", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: gone: not a readable model (")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_tune_without_a_run(tmp_path: Path) -> None:
    done = run("tune", "crf", "-m", "gone", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: gone: not a readable model (")
    assert list(tmp_path.iterdir()) == []


def test_errors_are_shown_as_they_are(tmp_path: Path) -> None:
    """File names may look like markup."""
    name = "[bold]a[red] :car: [x].yaml"
    (tmp_path / name).write_text("name: [a\n")
    done = run("check", "-c", name, cwd=tmp_path)
    assert done.stderr.startswith(f"error: {name}:2:1: not valid YAML")


def test_plugins_lists_every_component(tmp_path: Path) -> None:
    done = run("plugins", "--plugin", str(EXAMPLE), cwd=tmp_path)
    assert done.returncode == 0
    lines = done.stdout.splitlines()[:-1]
    headings = [line for line in lines if not line.startswith(" ")]
    kinds = ["encoder", "decoder", "network", "loss", "sampler", "logger", "transform",
             "postprocessor"]  # fmt: skip
    assert headings == kinds
    at = lines.index(f"  tiny  {EXAMPLE}")
    assert lines[at + 1] == "    widths: tuple[int, ...] = (8, 16, 32)"
    assert lines.index("encoder") < at < lines.index("decoder")
    names = [line.split()[0] for line in lines if re.match(r"  \S", line)]
    assert {"resnet", "unet", "monai", "dice_ce", "zscore", "min_volume"} <= set(names)
    assert not any("in_channels" in line for line in lines)  # medseg supplies it
    assert "    mm3: float" in lines


def test_plugins_fits_a_terminal() -> None:
    lines = run("plugins", cwd=EXAMPLE.parents[1]).stdout.splitlines()[:-1]
    assert [line for line in lines if len(line) > 80] == []
    assert "  resnet  plugins/medseg_plugins/resnet.py" in lines


def test_the_module_is_the_command(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "medseg", "--version"],
        capture_output=True, text=True, timeout=120, cwd=tmp_path, check=True,
    )  # fmt: skip
    assert done.stdout == f"medseg {medseg.__version__}\n"
