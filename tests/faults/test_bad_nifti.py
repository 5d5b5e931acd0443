"""Promise 1: no damaged file is used. Each ends in an error that names the file and the cause."""

import gzip
import os
import struct
import time
import tracemalloc
import warnings
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medseg.errors import DataError
from medseg.volumes import nifti

SHAPE = (5, 6, 7)
VOXELS = np.random.default_rng(0).integers(0, 1000, SHAPE).astype("<i2")
FORGED = {"dim": [3, 2000, 2000, 1000, 1, 1, 1, 1]}


def header_of(version=1, **fields):
    """The bytes of a sound header, some of its fields changed."""
    header = (nib.Nifti1Header if version == 1 else nib.Nifti2Header)(endianness="<")
    header.set_data_shape(SHAPE)
    header.set_data_dtype("<i2")
    header.set_sform(np.diag([-1.0, -1, 2, 1]), code=1)
    header.set_qform(np.diag([-1.0, -1, 2, 1]), code=1)
    header["scl_slope"], header["scl_inter"] = 1, 0
    header["vox_offset"] = 352 if version == 1 else 544
    for name, value in fields.items():
        header[name] = value
    return header.binaryblock


def plain(voxels=VOXELS, extension=bytes(4), **fields):
    """The bytes of a .nii file."""
    return header_of(**fields) + extension + voxels.tobytes(order="F")


def packed(data):
    return gzip.compress(data, mtime=0)


def flipped(data, position, bit=0):
    changed = bytearray(data)
    changed[position] ^= 1 << bit
    return bytes(changed)


def extension(size):
    return b"\1\0\0\0" + struct.pack("<ii", size, 6) + bytes(8)


def only_qform(**fields):
    return plain(sform_code=0, **fields)


GOOD = plain()
NAN = np.full(SHAPE, np.nan, "<f4")
FLOATS = {"datatype": 16, "bitpix": 32}
BAD = {
    # the file
    "empty": (b"", "empty"),
    "text": (b"this is no image, only a line of text\n", "not a NIfTI file"),
    "dicom": (bytes(128) + b"DICM" + bytes(400), "not a NIfTI file"),
    "short header": (GOOD[:200], "truncated: 200 of 348 header bytes"),
    "no voxels": (GOOD[:352], "truncated or forged"),
    "one voxel byte short": (GOOD[:-1], "truncated or forged"),
    "zeros": (bytes(1000), "not a NIfTI file"),
    # gzip
    "gz, half": (packed(GOOD)[: len(packed(GOOD)) // 2], "truncated: the gzip data ends early"),
    "gz, no checksum": (packed(GOOD)[:-8], "truncated: the gzip data ends early"),
    "gz, half a length": (packed(GOOD)[:-2], "truncated: the gzip data ends early"),
    "gz, only its magic": (packed(GOOD)[:2], "truncated: the gzip data ends early"),
    "gz, wrong checksum": (flipped(packed(GOOD), -8), "damaged gzip data"),
    "gz, wrong length": (flipped(packed(GOOD), -4), "damaged gzip data"),
    "gz, flipped bit": (flipped(packed(GOOD), len(packed(GOOD)) // 2), "gzip data"),
    "gz of a truncated file": (packed(GOOD[:-10]), "truncated: 410 of 420 voxel bytes"),
    "gz, second member damaged": (packed(GOOD[:400]) + flipped(packed(GOOD[400:]), -8), "damaged"),
    "gz, second member truncated": (packed(GOOD[:400]) + packed(GOOD[400:])[:-9], "truncated"),
    # what the header promises
    "forged size": (plain(**FORGED), "forged"),
    "forged size, gz": (packed(plain(**FORGED)), "forged"),
    "largest size": (plain(dim=[3, 32767, 32767, 32767, 1, 1, 1, 1]), "forged"),
    "largest NIfTI-2 size": (plain(version=2, dim=[4, *[2**62] * 4, 1, 1, 1]), "forged"),
    "no size": (plain(dim=[3, 5, 0, 7, 1, 1, 1, 1]), "5 x 0 x 7"),
    "negative size": (plain(dim=[3, 5, -6, 7, 1, 1, 1, 1]), "5 x -6 x 7"),
    "no dimensions": (plain(dim=[0, 5, 6, 7, 1, 1, 1, 1]), "0 dimensions"),
    "nine dimensions": (plain(dim=[9, 5, 6, 7, 1, 1, 1, 1]), "9 dimensions"),
    "2D": (plain(dim=[2, 30, 7, 1, 1, 1, 1, 1]), "2D image of 30 x 7"),
    "4D": (plain(dim=[4, 5, 6, 1, 7, 1, 1, 1]), "4D image of 5 x 6 x 1 x 7"),
    "5D": (plain(dim=[5, 5, 6, 1, 1, 7, 1, 1]), "5D image"),
    # voxel types
    "bits": (plain(datatype=1, bitpix=1), "bits"),
    "complex": (plain(datatype=32, bitpix=64), "complex"),
    "double complex": (plain(datatype=1792, bitpix=128), "complex"),
    "RGB": (plain(datatype=128, bitpix=24), "RGB"),
    "RGBA": (plain(datatype=2304, bitpix=32), "RGBA"),
    "long double": (plain(datatype=1536, bitpix=128), "128-bit float"),
    "no type": (plain(datatype=0), "voxel type 0"),
    "made-up type": (plain(datatype=77), "voxel type 77"),
    # values
    "all NaN": (plain(NAN, **FLOATS), "no voxel is finite"),
    "slope without intercept": (plain(scl_slope=2, scl_inter=np.nan), "scl_inter nan"),
    # geometry
    "singular sform": (plain(srow_y=[-1, 0, 0, 0]), "singular"),
    "parallel axes": (plain(srow_x=[-1, -1, 0, 0], srow_y=[1, 1, 0, 0]), "singular"),
    "empty sform": (plain(srow_x=0, srow_y=0, srow_z=0), "singular"),
    "NaN sform": (plain(srow_x=np.nan), "affine is not finite"),
    "infinite sform": (plain(srow_x=[1, 0, 0, np.inf]), "affine is not finite"),
    "infinite qform": (only_qform(qoffset_x=np.inf), "affine is not finite"),
    "NaN quaternion": (only_qform(quatern_b=np.nan), "affine is not finite"),
    "no rotation": (only_qform(quatern_b=0.9, quatern_c=0.9), "no rotation"),
    "NaN pixdim": (plain(pixdim=[1, 1, np.nan, 2, 0, 0, 0, 0]), "pixdim is not finite"),
    "no pixdim": (only_qform(pixdim=[1, 1, 0, 2, 0, 0, 0, 0]), "voxel size (1, 0, 2)"),
    # where the voxels are
    "early voxels": (plain(vox_offset=100), "vox_offset 100"),
    "half an offset": (plain(vox_offset=352.5), "vox_offset 352.5"),
    "NaN offset": (plain(vox_offset=np.nan), "vox_offset nan"),
    "negative offset": (plain(vox_offset=-352), "vox_offset -352"),
    "offset beyond the file": (plain(vox_offset=1e9), "forged"),
    "offset beyond the gz file": (packed(plain(vox_offset=2e5)), "truncated"),
    "extension too small": (plain(extension=extension(8), vox_offset=368), "extension of 8"),
    "extension too large": (plain(extension=extension(4096), vox_offset=368), "extension of 4096"),
    "extension negative": (plain(extension=extension(-16), vox_offset=368), "extension of -16"),
    "extension uneven": (plain(extension=extension(17), vox_offset=384), "extension of 17"),
    # other formats
    "pair": (plain(magic=b"ni1"), ".hdr/.img pair"),
    "Analyze": (plain(magic=b""), "Analyze"),
    "future version": (plain(magic=b"n+9"), "not a NIfTI file"),
    "NIfTI-2 sent as text": (plain(version=2, eol_check=[10, 10, 26, 10]), "line-end"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_is_refused(kind, tmp_path):
    data, cause = BAD[kind]
    path = tmp_path / f"case 7{'.nii.gz' if data[:2] == packed(b'')[:2] else '.nii'}"
    path.write_bytes(data)
    for reader in (nifti.read, nifti.read_label):
        if (kind, reader) == ("all NaN", nifti.read_label):
            cause = "210 of 210 voxels"
        with pytest.raises(DataError) as caught:
            reader(path)
        assert str(caught.value).startswith(f"{path}: ")
        assert cause in str(caught.value)


def test_there_are_many_kinds():
    assert len(BAD) >= 50


def test_the_sound_file_behind_them_is_accepted(tmp_path):
    for name, data in (("a.nii", GOOD), ("a.nii.gz", packed(GOOD))):
        (tmp_path / name).write_bytes(data)
        image = nifti.read(tmp_path / name)
        assert image.notes == ()
        np.testing.assert_array_equal(image.data, VOXELS)


def test_things_that_are_no_files_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.nii")
    (tmp_path / "folder.nii.gz").mkdir()
    (tmp_path / "pair.img").write_bytes(GOOD)
    causes = {"pipe.nii": "regular", "folder.nii.gz": "regular", "pair.img": "pairs"}
    for name, cause in (causes | {"missing.nii": "No such file"}).items():
        for reader in (nifti.read, nifti.read_label, nifti.read_header):
            with pytest.raises(DataError, match=f"{name}: .*{cause}"):
                reader(tmp_path / name)


def test_every_truncation_is_refused(tmp_path):
    for name, data in (("a.nii", GOOD), ("a.nii.gz", packed(GOOD))):
        for length in range(0, len(data), 3):
            (tmp_path / name).write_bytes(data[:length])
            with pytest.raises(DataError):
                nifti.read(tmp_path / name)


def test_every_flipped_bit_of_gzip_data_is_refused_or_harmless(tmp_path):
    path, data, refused = tmp_path / "a.nii.gz", packed(GOOD), 0
    for position in range(len(data)):
        path.write_bytes(flipped(data, position, bit=position % 8))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", nifti.VolumeWarning)
                image = nifti.read(path)
        except DataError:
            refused += 1
        else:  # the date, the system, a padding bit: nothing that the checksum covers
            np.testing.assert_array_equal(image.data, VOXELS)
    assert refused > 0.98 * len(data)


@pytest.mark.parametrize("version", [1, 2])
def test_a_random_header_is_read_or_refused_and_nothing_else(version, tmp_path):
    rng, path, good = np.random.default_rng(version), tmp_path / "a.nii", plain(version=version)
    outcomes = {"read": 0, "refused": 0}
    for _ in range(1500):
        data = good
        for position in rng.integers(0, 352 if version == 1 else 544, rng.integers(1, 5)):
            data = flipped(data, position, int(rng.integers(8)))
        path.write_bytes(data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", nifti.VolumeWarning)
            try:
                image = nifti.read(path)
            except DataError:
                outcomes["refused"] += 1
                continue
        outcomes["read"] += 1
        assert np.isfinite(image.data).all()
        assert np.isfinite(image.affine).all()
        assert image.data.dtype == np.float32
    assert min(outcomes.values()) > 50


@pytest.mark.parametrize("reader", [nifti.read, nifti.read_label, nifti.read_header])
def test_a_forged_size_is_refused_before_memory_is_taken(reader, tmp_path):
    for name, data in (("a.nii", plain(**FORGED)), ("a.nii.gz", packed(plain(**FORGED)))):
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(DataError, match="forged"):
            reader(path)  # once, for what a first call imports
        tracemalloc.start()
        with pytest.raises(DataError, match="forged"):
            reader(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 1 << 20


def test_a_size_over_the_limit_is_refused_before_memory_is_taken(tmp_path):
    path = tmp_path / "zeros.nii.gz"
    path.write_bytes(
        packed(plain(np.zeros((200, 200, 200), "<i2"), dim=[3, 200, 200, 200, *[1] * 4]))
    )
    tracemalloc.start()
    with pytest.raises(DataError, match="32000000 bytes of voxels; the limit is 31999999"):
        nifti.read(path, max_bytes=31_999_999)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
    with pytest.warns(nifti.VolumeWarning, match="every voxel is 0"):
        nifti.read(path, max_bytes=32_000_000)


def test_a_bomb_behind_the_voxels_is_refused_in_little_memory(tmp_path):
    path = tmp_path / "bomb.nii.gz"
    path.write_bytes(packed(GOOD + bytes(50_000_000)))
    tracemalloc.start()
    start = time.monotonic()
    with pytest.raises(DataError, match="bytes follow the voxels"):
        nifti.read(path, max_bytes=10_000_000)
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()
    assert time.monotonic() - start < 30


def test_a_million_tiny_gzip_members_end_in_time(tmp_path):
    path = tmp_path / "members.nii.gz"
    path.write_bytes(packed(GOOD) + packed(b"") * 50_000)
    start = time.monotonic()
    assert nifti.read(path).notes == ()
    assert time.monotonic() - start < 30


def test_a_read_error_names_the_file(tmp_path, monkeypatch):
    path = tmp_path / "a.nii"
    path.write_bytes(GOOD)

    def broken(self: Path, mode: str = "r"):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "open", broken)
    with pytest.raises(DataError, match=r"a\.nii: cannot be read: Input/output error"):
        nifti.read(path)


def test_zlib_verifies_what_we_rely_on():
    for position in (-1, -5):  # length, checksum
        with pytest.raises(zlib.error, match="incorrect"):
            zlib.decompressobj(wbits=31).decompress(flipped(packed(GOOD), position))
