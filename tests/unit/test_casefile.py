"""One file a case: what it holds comes back, other programs read it, no damage goes unseen."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from medseg.errors import DataError
from medseg.training import casefile

ABOUT = {"key": "a key", "spacing": [1.0, 2.0, 0.1], "missing": [1]}


@pytest.fixture
def arrays(rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {
        "mask": rng.random((3, 5, 7)) < 0.5,
        "label": rng.integers(0, 9, (3, 5, 7)).astype(np.uint8),
        "image": np.asfortranarray(rng.normal(size=(2, 3, 5, 7)).astype(np.float32)),
        "voxels": rng.integers(0, 9, (11, 2)),
        "none": np.zeros((0, 2), np.int64),
    }


@pytest.fixture
def path(arrays: dict[str, np.ndarray], tmp_path: Path) -> Path:
    path = tmp_path / "case.safetensors"
    casefile.write(path, arrays, ABOUT)
    return path


def test_what_was_written_comes_back(path: Path, arrays: dict[str, np.ndarray]) -> None:
    for case in (casefile.read(path), casefile.check(path)):
        assert case.about == ABOUT
        assert case.version == casefile.VERSION
        assert set(case.arrays) == set(arrays)
        for name, array in arrays.items():
            np.testing.assert_array_equal(case.arrays[name], array)
            assert case.arrays[name].dtype == array.dtype
            assert not case.arrays[name].flags.writeable
            assert case.arrays[name].flags.aligned


def test_other_programs_read_it(path: Path, arrays: dict[str, np.ndarray]) -> None:
    found = load_file(path)
    assert set(found) == set(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)


def test_a_map_is_made_once_and_follows_the_file(path: Path) -> None:
    first = casefile.read(path)
    assert casefile.read(path) is first
    casefile.write(path, {"image": np.ones(3, np.float32)}, ABOUT)
    assert set(casefile.read(path).arrays) == {"image"}
    assert set(first.arrays) > {"image"}  # who has the old one open keeps it


def test_maps_leave_handles_for_others(tmp_path: Path) -> None:
    """More files than a process may have open."""
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (80, 80))\n"
        "import sys, numpy as np; from pathlib import Path; from medseg.training import casefile\n"
        "for n in range(100):\n"
        "    path = Path(sys.argv[1]) / f'{n}.safetensors'\n"
        "    casefile.write(path, {'image': np.full(3, n, np.float32)}, {})\n"
        "    assert casefile.read(path).arrays['image'][0] == n\n"
    )
    import subprocess
    import sys

    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert done.returncode == 0


@pytest.mark.parametrize("share", [0, 0.001, 0.02, 0.5, 0.999])
def test_a_file_cut_short_is_no_case(share: float, path: Path) -> None:
    os.truncate(path, int(share * path.stat().st_size))
    with pytest.raises(DataError, match=r"case\.safetensors: not a whole case: ") as caught:
        casefile.read(path)
    assert caught.value.source == str(path)


def test_no_flipped_bit_goes_unseen(path: Path, rng: np.random.Generator) -> None:
    """The header says what its own padding is for: nothing. All other bits count."""
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    padding = header - len(whole[8:header].rstrip(b" "))
    for place in [*range(16), *rng.integers(0, len(whole), 300).tolist(), len(whole) - 1]:
        if header - padding <= place < header:
            continue
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        with pytest.raises(DataError):
            casefile.check(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": {"dtype": "U8", "shape": [3, 5, 8], "data_offsets": [0, 120]}}, "does not fit"),
        ({"label": {"dtype": "U8", "shape": [-3, 5, 7], "data_offsets": [0, 105]}}, "not a whole"),
        ({"label": {"dtype": "OBJ", "shape": [3], "data_offsets": [0, 3]}}, "not a whole case"),
        ({"label": None}, "not a whole case"),
        ({"__metadata__": {"format": "pt"}}, "of the format 'pt'"),
        ({"__metadata__": None}, "not a whole case"),
    ],
)
def test_a_forged_header_is_refused(change: dict[str, Any], message: str, path: Path) -> None:
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = json.dumps({**json.loads(whole[8 : 8 + length]), **change}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + whole[8 + length :])
    with pytest.raises(DataError, match=message):
        casefile.read(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.safetensors: No such file"):
        casefile.read(tmp_path / "none.safetensors")
