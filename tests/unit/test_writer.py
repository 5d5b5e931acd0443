"""Writing: compression, volumes made one at a time, probabilities as integers, in little memory."""

from __future__ import annotations

import gzip
import tracemalloc
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK

from medseg.errors import DataError
from medseg.volumes import nifti, writer
from medseg.volumes.image import Array
from medseg.volumes.stack import Stack

SHAPE = (5, 6, 70)  # more slices than are turned at once
AFFINE = np.diag([-1.0, -1, 2, 1])
HEADER = nifti.new_header(SHAPE, AFFINE)
SHARES = np.random.default_rng(0).dirichlet(np.ones(3), SHAPE).transpose(3, 0, 1, 2)
LAYOUTS: dict[str, Callable[[Array], Array]] = {
    "slices fastest": np.ascontiguousarray,
    "slices slowest": np.asfortranarray,
    "mirrored": lambda a: np.ascontiguousarray(a[..., ::-1])[..., ::-1],
    "part of more": lambda a: np.pad(a, 1)[(slice(1, -1),) * a.ndim],
    "channels fastest": lambda a: np.ascontiguousarray(np.moveaxis(a, 0, -1)).transpose(3, 0, 1, 2),
    "big-endian": lambda a: a.astype(a.dtype.newbyteorder(">")),
}


class Made:
    """A stack whose volumes are made when asked for."""

    def __init__(self, make: Callable[[int], Array], shape: tuple[int, ...]) -> None:
        self.make, self.shape, self.turns = make, shape, 0

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[Array]:
        self.turns += 1
        return map(self.make, range(len(self)))


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_layout_in_memory_does_not_matter(layout: str, name: str, tmp_path: Path) -> None:
    for stored in ("float32", "uint8"):
        nifti.write(tmp_path / f"plain-{name}", SHARES, HEADER, stored=stored)
        data = LAYOUTS[layout](SHARES)
        nifti.write(tmp_path / name, data, HEADER, stored=stored)
        assert (tmp_path / name).read_bytes() == (tmp_path / f"plain-{name}").read_bytes()
    peer = nib.load(tmp_path / name).get_fdata()
    np.testing.assert_allclose(peer, SHARES.transpose(1, 2, 3, 0), atol=0.5 / 255 + 1e-6)


def test_each_level_of_compression_holds_the_same(tmp_path: Path) -> None:
    sizes, data = [], SHARES.round(1)
    for level in range(10):
        path = tmp_path / f"{level}.nii.gz"
        nifti.write(path, data, HEADER, stored="uint8", compression=level)
        sizes.append(path.stat().st_size)
        assert gzip.decompress(path.read_bytes()) == gzip.decompress(
            (tmp_path / "0.nii.gz").read_bytes()
        )
    assert sizes[0] > SHARES.size > 1.5 * max(sizes[1:])
    assert len(set(sizes)) > 3  # the level makes a difference
    for level in (-1, 10):
        with pytest.raises(DataError, match=rf"b\.nii\.gz: compression {level}"):
            nifti.write(tmp_path / "b.nii.gz", SHARES, HEADER, compression=level)


@pytest.mark.parametrize(("stored", "steps"), [("uint16", 65535), ("uint8", 255)])
@pytest.mark.parametrize("kind", [nib.Nifti1Header, nib.Nifti2Header])
def test_probabilities_as_integers(kind: type, stored: str, steps: int, tmp_path: Path) -> None:
    path, data = tmp_path / "p.nii.gz", SHARES.astype(np.float32)
    data[:, 0, 0, 0] = 0, 1, 0.5
    data[:, 0, 0, 1] = 0.4 / steps, 0.6 / steps, 1 - 0.6 / steps
    nifti.write(path, data, kind.from_header(HEADER), stored=stored)
    peer = nib.load(path)
    assert peer.header.get_data_dtype() == np.dtype(stored)
    np.testing.assert_array_equal(
        np.asarray(peer.dataobj.get_unscaled()).transpose(3, 0, 1, 2), np.rint(data * steps)
    )
    half = 0.5 / steps + 1e-7
    np.testing.assert_allclose(peer.get_fdata().transpose(3, 0, 1, 2), data, rtol=0, atol=half)
    back = nifti.read(path, volumes=True)
    np.testing.assert_allclose(back.data, data, rtol=0, atol=half)
    assert (back.data.min(), back.data.max(), back.notes) == (0, 1, ())
    if kind is nib.Nifti1Header:
        itk = SimpleITK.GetArrayFromImage(
            SimpleITK.ReadImage(str(path), SimpleITK.sitkVectorFloat32)
        )
        itk = itk if itk.shape[-1] == 3 else np.moveaxis(itk, 0, -1)
        np.testing.assert_allclose(itk.transpose(3, 2, 1, 0), data, rtol=0, atol=half)


@pytest.mark.parametrize("value", [-0.01, 1.01, np.nan, np.inf])
@pytest.mark.parametrize("lazy", [False, True])
def test_what_is_no_probability_is_not_stored_as_one(
    value: float, lazy: bool, tmp_path: Path
) -> None:
    data = SHARES.copy()
    data[2, 1, 2, 3] = value
    given = Made(lambda n: data[n], data.shape) if lazy else data
    for stored in ("uint16", "uint8"):
        with pytest.raises(DataError, match=rf"p\.nii\.gz: values from .* as {stored}"):
            nifti.write(tmp_path / "p.nii.gz", given, HEADER, stored=stored)
    assert not list(tmp_path.iterdir())


def test_a_sum_that_is_just_off_is_a_probability(tmp_path: Path) -> None:
    data = np.full(SHAPE, 1 + 2e-7, np.float32)
    data[0] = -2e-7
    for stored in ("uint16", "uint8"):
        nifti.write(tmp_path / "p.nii", data, HEADER, stored=stored)
        raw = np.asarray(nib.load(tmp_path / "p.nii").dataobj.get_unscaled())
        assert set(np.unique(raw)) == {0, np.iinfo(stored).max}


@pytest.mark.parametrize("stored", ["float32", "uint16", "uint8"])
def test_a_stack_gives_the_bytes_of_its_array_and_is_made_once(
    stored: writer.Stored, tmp_path: Path
) -> None:
    stack = Made(lambda n: SHARES[n], SHARES.shape)
    assert isinstance(stack, Stack)
    assert isinstance(SHARES, Stack)
    nifti.write(tmp_path / "lazy.nii.gz", stack, HEADER, stored=stored)
    nifti.write(tmp_path / "whole.nii.gz", SHARES, HEADER, stored=stored)
    whole = (tmp_path / "whole.nii.gz").read_bytes()
    assert (tmp_path / "lazy.nii.gz").read_bytes() == whole
    assert stack.turns == 1


@pytest.mark.parametrize("layout", ["slices fastest", "slices slowest"])
def test_one_volume_of_a_stack_is_alive_at_a_time(layout: str, tmp_path: Path) -> None:
    made: list[weakref.ref[Array]] = []

    def make(number: int) -> Array:
        assert not [ref for ref in made if ref() is not None]
        volume = LAYOUTS[layout](SHARES[number].astype(np.float32))
        made.append(weakref.ref(volume))
        return volume

    nifti.write(tmp_path / "p.nii.gz", Made(make, SHARES.shape), HEADER)
    assert len(made) == 3


WRONG: dict[str, tuple[Callable[[int], Array], str]] = {
    "a volume of another shape": (lambda n: SHARES[n, : 5 - n], r"volume 1 of a stack .*\(4, 6"),
    "integers": (lambda n: np.zeros(SHAPE, np.uint8), "volume 0 of a stack of floats .* uint8"),
    "NaN": (lambda n: np.full(SHAPE, np.nan), "finite float32"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_stack_that_is_wrong_leaves_what_was_there(kind: str, tmp_path: Path) -> None:
    make, text = WRONG[kind]
    nifti.write(tmp_path / "p.nii.gz", SHARES, HEADER)
    before = (tmp_path / "p.nii.gz").read_bytes()
    with pytest.raises(DataError, match=rf"p\.nii\.gz: .*{text}"):
        nifti.write(tmp_path / "p.nii.gz", Made(make, SHARES.shape), HEADER)
    assert [path.name for path in tmp_path.iterdir()] == ["p.nii.gz"]
    assert (tmp_path / "p.nii.gz").read_bytes() == before


@pytest.mark.parametrize("count", [2, 4])
def test_a_stack_of_another_length_than_it_says_is_refused(count: int, tmp_path: Path) -> None:
    class Wrong(Made):
        def __iter__(self) -> Iterator[Array]:
            return iter([SHARES[0]] * count)

    with pytest.raises(DataError, match=f"a stack of 3 volumes gave {count}"):
        nifti.write(tmp_path / "p.nii", Wrong(lambda n: SHARES[n], SHARES.shape), HEADER)
    with pytest.raises(DataError, match="for a grid of"):
        nifti.write(tmp_path / "p.nii", Made(lambda n: SHARES[n], (3, 5, 6, 71)), HEADER)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("stored", ["float32", "uint8"])
@pytest.mark.parametrize("layout", ["slices fastest", "slices slowest"])
def test_no_copy_of_the_volume_is_made(layout: str, stored: writer.Stored, tmp_path: Path) -> None:
    data = LAYOUTS[layout](np.zeros((128, 128, 256), np.float32))  # 16 MiB
    data[0, 0, 0] = 1
    header = nifti.new_header(data.shape, AFFINE)
    nifti.write(tmp_path / "first.nii.gz", SHARES, HEADER)  # once, for what a first call imports
    tracemalloc.start()
    nifti.write(tmp_path / "p.nii.gz", data, header, stored=stored)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 7 << 20


def test_large_slices_are_turned_in_bounded_memory(tmp_path: Path) -> None:
    data = np.zeros((1024, 1024, 12), np.uint8)
    data[5:9, 5:9, 5:9] = 1
    tracemalloc.start()
    nifti.write(tmp_path / "m.nii.gz", data, nifti.new_header(data.shape, AFFINE))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 << 20
    np.testing.assert_array_equal(nifti.read_label(tmp_path / "m.nii.gz").data, data)


@pytest.mark.parametrize("name", ["m.nii", "m.nii.gz"])
def test_a_sound_file_of_something_else_never_gets_the_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a disk or a network share returns in place of what was written."""
    mask = (SHARES[0] > 0.5).astype(np.uint8)
    nifti.write(tmp_path / name, mask, HEADER)
    sound = (tmp_path / name).read_bytes()
    store = writer._store
    others: list[bytes] = []
    for other in (1 - mask, np.roll(mask, 1, 2), mask * 2):
        nifti.write(tmp_path / f"other-{name}", other, HEADER)
        others.append((tmp_path / f"other-{name}").read_bytes())
    if name.endswith(".gz"):
        others.append(sound + gzip.compress(b"\0"))
    for content in others:

        def elsewhere(temporary: Path, *args: object, content: bytes = content) -> None:
            store(temporary, *args)
            temporary.write_bytes(content)

        monkeypatch.setattr(writer, "_store", elsewhere)
        with pytest.raises(DataError, match=f"{name}: what was read back is not what was written"):
            nifti.write(tmp_path / name, mask, HEADER)
        assert (tmp_path / name).read_bytes() == sound
        monkeypatch.setattr(writer, "_store", store)
