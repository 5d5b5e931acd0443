"""Promises 2 and 4: what is read equals nibabel's, what is odd is named, geometry is kept."""

import gzip
import os
import re
import struct
import warnings
from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from medseg.errors import DataError
from medseg.volumes import nifti
from medseg.volumes.geometry import Reorient
from medseg.volumes.nifti import VolumeWarning

SHAPE = (5, 6, 7)
AFFINE = np.diag([-1.0, -1, 2, 1])
DTYPES = ["u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"]
RNG = np.random.default_rng(0)
VOXELS = RNG.integers(0, 1000, SHAPE).astype("<i2")
FLOATS = VOXELS.astype("<f4")
GEOMETRY = [
    *("dim", "dim_info", "pixdim", "xyzt_units", "qform_code", "sform_code"),
    *("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    *("srow_x", "srow_y", "srow_z"),
]


def file_of(voxels=VOXELS, kind=nib.Nifti1Header, endian="<", tail=b"", extension=b"", **fields):
    """The bytes of a .nii file, any header field set by name."""
    header = kind(endianness=endian)
    header.set_data_shape(voxels.shape)
    header.set_data_dtype(voxels.dtype)
    header.set_sform(AFFINE, code=1)
    header.set_qform(AFFINE, code=1)
    header.set_xyzt_units("mm")
    header["scl_slope"], header["scl_inter"] = 1, 0
    header["vox_offset"] = int(header["sizeof_hdr"]) + 4 + len(extension)
    for name, value in fields.items():
        header[name] = value
    flag = b"\1\0\0\0" if extension else bytes(4)
    stored = voxels.astype(header.get_data_dtype()).tobytes(order="F")
    return header.binaryblock + flag + extension + stored + tail


def save(folder: Path, data: bytes, name="case.nii") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def quietly(reader, *args, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", VolumeWarning)
        return reader(*args, **kwargs)


def with_nan(value=np.nan):
    voxels = FLOATS.copy()
    voxels[1, 2, 3] = value
    return voxels


ODD = {
    "qform and sform differ": (file_of(qoffset_x=30), "differ by up to 30 mm"),
    "qform is no rotation": (file_of(quatern_b=0.9, quatern_c=0.9), "no rotation"),
    "pixdim and sform differ": (file_of(pixdim=[1, 1, 1, 5, 0, 0, 0, 0]), r"pixdim \(1, 1, 5\)"),
    "no orientation": (file_of(sform_code=0, qform_code=0), "left and right are unknown"),
    "shear": (file_of(srow_x=[-1, 0.3, 0, 0]), "sheared"),
    "metres": (file_of(xyzt_units=1), "metres"),
    "microns": (file_of(xyzt_units=3 | 8), "microns"),
    "unknown unit": (file_of(xyzt_units=5), r"unknown \(code 5\)"),
    "negative pixdim": (file_of(pixdim=[1, -1, 1, 2, 0, 0, 0, 0]), r"negative voxel size \(-1"),
    "qfac 0": (file_of(sform_code=0, pixdim=[0, 1, 1, 2, 0, 0, 0, 0]), r"pixdim\[0\] is 0"),
    "huge voxels": (file_of(srow_z=[0, 0, 1e5, 0]), "implausible"),
    "gzip not named so": (gzip.compress(file_of()), "not named .gz"),
    "trailing data": (file_of(tail=bytes(10)), "10 bytes follow"),
    "NaN": (file_of(with_nan()), "1 of 210 voxels are NaN"),
    "infinity": (file_of(with_nan(-np.inf)), "1 of 210 voxels are NaN or infinite"),
    "signalling NaN": (
        file_of(with_nan(np.array([0x7FA00000], "u4").view("f4")[0])),
        "1 of 210 voxels are NaN",
    ),
    "beyond float32": (file_of(with_nan(1e6).astype("f8") * 1e34), "1 of 210 voxels"),
    "huge values": (file_of(with_nan(1e35)), "values of up to 1e[+]35"),
    "constant": (file_of(VOXELS * 0 + 7), "every voxel is 7"),
    "long integers": (file_of(VOXELS.astype("i4") + 2**30), "rounded to float32"),
    "bitpix": (file_of(bitpix=8), "bitpix is 8"),
    "no vox_offset": (file_of(vox_offset=0), "vox_offset is 0"),
    "no slope": (file_of(scl_slope=np.nan, scl_inter=np.nan), "scl_slope nan"),
    "one slice": (file_of(VOXELS[:, :, :1]), "one slice"),
}


@pytest.mark.parametrize("kind", ODD)
def test_an_odd_file_is_read_with_a_warning_that_names_it(kind, tmp_path):
    data, text = ODD[kind]
    path = save(tmp_path, data)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", VolumeWarning)
        image = nifti.read(path)
    assert any(re.search(text, note) for note in image.notes), image.notes
    assert {w.category for w in caught} == {VolumeWarning}
    assert [str(w.message) for w in caught] == [f"{path}: {note}" for note in image.notes]
    assert caught[0].filename == __file__
    assert np.isfinite(image.data).all()
    header = nifti.read_header(path)
    assert set(header.notes) <= set(image.notes)
    np.testing.assert_array_equal(header.affine, image.affine)


FINE = {
    "plain": file_of(),
    "gzip": gzip.compress(file_of()),
    "several gzip members": gzip.compress(file_of()[:99]) + gzip.compress(file_of()[99:]),
    "gzip padded with zeros": gzip.compress(file_of()) + bytes(2000),
    "NIfTI-2": file_of(kind=nib.Nifti2Header),
    "big-endian": file_of(endian=">"),
    "big-endian NIfTI-2": file_of(endian=">", kind=nib.Nifti2Header),
    "extension": file_of(extension=struct.pack("<ii", 32, 6) + b"a comment".ljust(24, b"\0")),
    "two extensions": file_of(extension=2 * (struct.pack("<ii", 16, 6) + b"comments")),
    "axes of length 1": file_of(VOXELS[..., None, None]),
    "slope 0": file_of(scl_slope=0, scl_inter=3),
    "no unit": file_of(xyzt_units=0),
    "only qform": file_of(sform_code=0),
    "only sform": file_of(qform_code=0),
}


@pytest.mark.parametrize("kind", FINE)
def test_a_sound_file_is_read_without_a_word(kind, tmp_path):
    data = FINE[kind]
    image = nifti.read(save(tmp_path, data, "a.nii.gz" if data[:2] == b"\x1f\x8b" else "a.nii"))
    np.testing.assert_array_equal(image.data, VOXELS)
    np.testing.assert_allclose(image.affine, AFFINE)
    assert image.data.dtype == np.float32
    assert (image.shape, image.spacing) == (SHAPE, (1, 1, 2))
    assert image.notes == ()


def test_gzip_in_name_only_and_rubbish_after_gzip_are_noted(tmp_path):
    for data, text in ((file_of(), "but not gzip"), (gzip.compress(file_of()) + b"!", "follows")):
        with pytest.warns(VolumeWarning, match=text):
            image = nifti.read(save(tmp_path, data, "a.nii.gz"))
        np.testing.assert_array_equal(image.data, VOXELS)


def test_non_finite_voxels_become_0_and_others_stay(tmp_path):
    image = quietly(nifti.read, save(tmp_path, file_of(with_nan())))
    assert image.data[1, 2, 3] == 0
    image.data[1, 2, 3] = FLOATS[1, 2, 3]
    np.testing.assert_array_equal(image.data, FLOATS)


def test_the_sform_counts_and_lengths_become_mm(tmp_path):
    metres = quietly(nifti.read, save(tmp_path, file_of(xyzt_units=1, qoffset_x=30)))
    np.testing.assert_allclose(metres.affine, np.diag([-1e3, -1e3, 2e3, 1]))
    microns = quietly(nifti.read, save(tmp_path, file_of(xyzt_units=3)))
    assert microns.spacing == pytest.approx((1e-3, 1e-3, 2e-3))


def test_4d_volumes_come_channel_first(tmp_path):
    voxels = RNG.random((*SHAPE, 3)).astype("<f4")
    path = save(tmp_path, file_of(voxels))
    np.testing.assert_array_equal(nifti.read(path, volumes=True).data, np.moveaxis(voxels, 3, 0))
    assert nifti.read_header(path).shape == (*SHAPE, 3)
    one = nifti.read(save(tmp_path, file_of()), volumes=True)
    np.testing.assert_array_equal(one.data, VOXELS[None])
    voxels[..., 1] = np.nan
    with pytest.raises(DataError, match="volume 1: no voxel is finite"):
        nifti.read(save(tmp_path, file_of(voxels)), volumes=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_label_map_may_be_stored_in_any_type(dtype, tmp_path):
    labels = RNG.integers(0, 5, SHAPE)
    image = nifti.read_label(save(tmp_path, file_of(labels.astype(dtype))))
    np.testing.assert_array_equal(image.data, labels)
    assert image.data.dtype == np.int32


def test_a_scaled_label_map_is_scaled(tmp_path):
    stored = RNG.integers(0, 3, SHAPE).astype("u1") * 100
    image = nifti.read_label(save(tmp_path, file_of(stored, scl_slope=0.01)))
    np.testing.assert_array_equal(image.data, stored // 100)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.5, "e.g. 0.5"), (np.nan, "e.g. nan"), (np.inf, "e.g. inf"), (-1, "e.g. -1"), (3e9, "3e")],
)
def test_what_is_no_label_is_refused_with_its_place(value, text, tmp_path):
    path = save(tmp_path, file_of(with_nan(value)))
    with pytest.raises(DataError, match="1 of 210 voxels") as caught:
        nifti.read_label(path)
    assert text in str(caught.value)
    assert "at voxel (1, 2, 3)" in str(caught.value)


def test_negative_integers_are_no_labels(tmp_path):
    with pytest.raises(DataError, match=r"210 of 210 voxels.*-7"):
        nifti.read_label(save(tmp_path, file_of(VOXELS * 0 - 7)))


def test_an_empty_label_map_is_noted(tmp_path):
    with pytest.warns(VolumeWarning, match="every voxel has the label 0"):
        nifti.read_label(save(tmp_path, file_of(VOXELS * 0)))


def turned(axes, signs, quaternion, size, origin):
    affine = np.eye(4)
    rotation = Rotation.from_quat(np.asarray(quaternion) / np.linalg.norm(quaternion)).as_matrix()
    affine[:3, :3] = rotation @ (np.eye(3)[:, axes] * signs) * size
    affine[:3, 3] = origin
    return affine


affines = st.builds(
    turned,
    st.sampled_from([list(p) for p in permutations(range(3))]),
    st.sampled_from(list(product((-1, 1), repeat=3))),
    st.tuples(*[st.floats(-1, 1)] * 3, st.floats(0.1, 1)),
    st.tuples(*[st.floats(0.3, 6)] * 3),
    st.tuples(*[st.floats(-200, 200)] * 3),
)
kinds = st.sampled_from([nib.Nifti1Header, nib.Nifti2Header])


@settings(deadline=None, max_examples=200)
@given(
    affine=affines,
    dtype=st.sampled_from(DTYPES),
    slope=st.sampled_from([0, 1, 0.5, -2, 1.7e-3, 300]) | st.floats(2**-10, 1e3, width=32),
    inter=st.sampled_from([0, -1024, 0.1]) | st.floats(-1e3, 1e3, width=32),
    kind=kinds, endian=st.sampled_from("<>"), codes=st.sampled_from([(0, 1), (1, 0), (2, 4)]),
    packed=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_reading_equals_nibabel(
    tmp_path_factory, affine, dtype, slope, inter, kind, endian, codes, packed, seed
):
    rng, info = np.random.default_rng(seed), np.dtype(dtype)
    if info.kind == "f":
        voxels = rng.normal(0, 1e3, SHAPE).astype(info)
    else:
        limits = np.iinfo(info)
        voxels = rng.integers(limits.min, limits.max, SHAPE, dtype=info, endpoint=True)
    plain = kind()
    plain.set_qform(affine, code=1)
    fields = {name: plain[name] for name in GEOMETRY if name[0] == "q" or name == "pixdim"}
    fields |= {f"srow_{axis}": affine[row] for row, axis in enumerate("xyz")}
    fields |= {"qform_code": codes[0], "sform_code": codes[1]}
    data = file_of(voxels, kind, endian, scl_slope=slope, scl_inter=inter, **fields)
    name = "a.nii.gz" if packed else "a.nii"
    path = save(tmp_path_factory.mktemp("nibabel"), gzip.compress(data) if packed else data, name)
    image, peer = quietly(nifti.read, path), nib.load(path)
    np.testing.assert_array_equal(image.data, peer.get_fdata().astype(np.float32))
    np.testing.assert_array_equal(image.affine, peer.affine)
    np.testing.assert_allclose(image.affine, affine, rtol=1e-4, atol=1e-4)


RAW = {
    "plain": {},
    "NIfTI-2": {"kind": nib.Nifti2Header},
    "big-endian": {"endian": ">"},
    "odd": {
        "xyzt_units": 1 | 16, "qform_code": 4, "sform_code": 2, "qoffset_y": 12.3,
        "pixdim": [-1, -1.5, 1, 7, 2.5, 0, 0, 3], "dim_info": 57, "descrip": b"Jane Doe",
        "db_name": b"secret", "aux_file": b"jane.xml", "intent_name": b"t-test", "cal_max": 7,
    },
    "no orientation": {"sform_code": 0, "qform_code": 0, "srow_x": np.nan, "quatern_b": 9},
    "scaled": {"scl_slope": 3, "scl_inter": -5},
    "zeros behind the dimensions": {"dim": [3, *SHAPE, 0, 0, 0, 0]},
    "axes of length 1": {"dim": [5, *SHAPE, 1, 1, 1, 1]},
}  # fmt: skip


@pytest.mark.parametrize("name", ["mask.nii", "mask.nii.gz"])
@pytest.mark.parametrize("kind", RAW)
def test_a_mask_has_the_raw_geometry_of_its_input(kind, name, tmp_path):
    raw = file_of(**RAW[kind])
    image = quietly(nifti.read, save(tmp_path, raw))
    mask = RNG.integers(0, 4, SHAPE)
    nifti.write(tmp_path / name, mask, image)
    written = quietly(nifti.read_label, tmp_path / name)
    np.testing.assert_array_equal(written.data, mask)
    np.testing.assert_array_equal(written.affine, image.affine)
    before = type(image.header)(raw[: image.header.sizeof_hdr], check=False).as_byteswapped("<")
    for field in GEOMETRY:
        assert written.header[field].tobytes() == before[field].tobytes(), field
    assert type(written.header) is type(image.header)
    assert written.header.get_data_dtype() == np.uint8
    assert (written.header["scl_slope"], written.header["scl_inter"]) == (1, 0)
    assert bytes(written.header["descrip"]).startswith(b"medseg ")
    content = (tmp_path / name).read_bytes()
    content = gzip.decompress(content) if name.endswith(".gz") else content
    for private in (b"Jane", b"secret", b"jane", b"t-test"):
        assert private not in content


def test_other_readers_see_the_same_mask(tmp_path):
    image = nifti.read(save(tmp_path, file_of()))
    mask = RNG.integers(0, 4, SHAPE).astype(np.int64)
    nifti.write(tmp_path / "mask.nii.gz", mask, image)
    peer = nib.load(tmp_path / "mask.nii.gz")
    np.testing.assert_array_equal(peer.get_fdata(), mask)
    np.testing.assert_array_equal(peer.affine, image.affine)
    itk = SimpleITK.ReadImage(str(tmp_path / "mask.nii.gz"))
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(itk).T, mask)
    assert itk.GetSpacing() == (1, 1, 2)


@pytest.mark.parametrize(
    ("highest", "dtype"), [(1, "u1"), (255, "u1"), (256, "u2"), (65536, "u4"), (2**31 - 1, "u4")]
)
def test_labels_take_the_smallest_type(highest, dtype, tmp_path):
    image = nifti.read(save(tmp_path, file_of()))
    mask = np.zeros(SHAPE, np.int64)
    mask[1, 2, 3] = highest
    nifti.write(tmp_path / "mask.nii.gz", mask, image)
    written = nifti.read_label(tmp_path / "mask.nii.gz")
    assert written.header.get_data_dtype() == np.dtype(dtype)
    np.testing.assert_array_equal(written.data, mask)


def test_probabilities_are_written_in_4d(tmp_path):
    image = nifti.read(save(tmp_path, file_of(pixdim=[1, 1, 1, 2, 9, 0, 0, 0])))
    probabilities = RNG.random((3, *SHAPE))
    nifti.write(tmp_path / "p.nii.gz", probabilities, image)
    back = nifti.read(tmp_path / "p.nii.gz", volumes=True)
    np.testing.assert_array_equal(back.data, probabilities.astype(np.float32))
    assert nib.load(tmp_path / "p.nii.gz").shape == (*SHAPE, 3)
    np.testing.assert_array_equal(back.header["pixdim"], image.header["pixdim"])


def test_a_mask_of_a_4d_input_is_3d(tmp_path):
    image = nifti.read(save(tmp_path, file_of(np.stack([VOXELS] * 2, -1))), volumes=True)
    nifti.write(tmp_path / "mask.nii.gz", VOXELS, image)
    assert nib.load(tmp_path / "mask.nii.gz").shape == SHAPE


def test_what_gives_the_grid_may_be_an_image_or_a_header(tmp_path):
    path = save(tmp_path, file_of())
    likes = (nifti.read(path), nifti.read_header(path), nib.load(path), nib.load(path).header)
    for number, like in enumerate(likes):
        nifti.write(tmp_path / f"{number}.nii.gz", VOXELS, like)
        assert (tmp_path / f"{number}.nii.gz").read_bytes() == (tmp_path / "0.nii.gz").read_bytes()


@given(affine=affines, kind=st.just(None))
@settings(deadline=None, max_examples=30)
def test_a_new_header_holds_any_affine(tmp_path_factory, affine, kind):
    path = tmp_path_factory.mktemp("new") / "a.nii.gz"
    nifti.write(path, VOXELS, nifti.new_header(SHAPE, affine), affine=affine)
    image = nifti.read(path)
    assert image.notes == ()
    np.testing.assert_allclose(image.affine, affine, rtol=1e-5, atol=1e-4)


def test_a_new_header_of_a_sheared_affine_has_no_qform(tmp_path):
    affine = np.eye(4)
    affine[0, 1] = 0.4
    header = nifti.new_header(SHAPE, affine)
    nifti.write(tmp_path / "a.nii", VOXELS, header)
    with pytest.warns(VolumeWarning, match="sheared"):
        image = nifti.read(tmp_path / "a.nii")
    np.testing.assert_allclose(image.affine, affine, rtol=1e-6)
    assert len(image.notes) == 1  # and no qform to differ from


REFUSED = {
    "shape": (np.zeros((5, 6, 8), int), "for a grid of"),
    "two dimensions": (np.zeros((5, 6), int), "for a grid of"),
    "no channel": (np.zeros((0, *SHAPE)), "for a grid of"),
    "negative": (np.full(SHAPE, -1), "labels from -1"),
    "too high": (np.full(SHAPE, 2**31), "2147483647"),
    "NaN": (with_nan(), "values from nan"),
    "infinity": (with_nan(np.inf), "to inf"),
    "beyond float32": (np.full(SHAPE, 1e39), "finite float32"),
    "complex": (np.zeros(SHAPE, complex), "complex"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_written_leaves_nothing(kind, tmp_path):
    image = nifti.read(save(tmp_path, file_of()))
    data, text = REFUSED[kind]
    with pytest.raises(DataError, match=text) as caught:
        nifti.write(tmp_path / "out" / "mask.nii.gz", data, image)
    assert "mask.nii.gz" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_another_affine_or_ending_is_refused(tmp_path):
    image = nifti.read(save(tmp_path, file_of()))
    nifti.write(tmp_path / "a.nii", VOXELS, image, affine=image.affine)
    with pytest.raises(DataError, match="differ in place: the grids lie up to"):
        nifti.write(tmp_path / "b.nii", VOXELS, image, affine=np.eye(4))
    with pytest.raises(DataError, match=r"must end in \.nii\.gz or \.nii"):
        nifti.write(tmp_path / "b.mha", VOXELS, image)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.nii", "case.nii"]


def test_equal_data_give_equal_bytes(tmp_path):
    image = nifti.read(save(tmp_path, file_of()))
    nifti.write(tmp_path / "a.nii.gz", VOXELS, image)
    nifti.write(tmp_path / "b.nii.gz", np.asfortranarray(VOXELS), image)
    content = (tmp_path / "a.nii.gz").read_bytes()
    assert content == (tmp_path / "b.nii.gz").read_bytes()
    assert content[3:8] == bytes(5)  # no name, no time


@settings(deadline=None, max_examples=150)
@given(
    affine=affines, place=st.tuples(*[st.floats(0, 1)] * 3), kind=kinds,
    codes=st.sampled_from([(0, 1), (1, 0), (1, 1)]), to=st.sampled_from(["RAS", "LPS", "SLA"]),
)  # fmt: skip
def test_a_lesion_stays_within_half_a_voxel(tmp_path_factory, affine, place, kind, codes, to):
    folder = tmp_path_factory.mktemp("lesion")
    header = kind()
    header.set_qform(affine, code=1)
    fields = {name: header[name] for name in GEOMETRY if name[0] == "q" or name == "pixdim"}
    fields |= {f"srow_{axis}": affine[row] for row, axis in enumerate("xyz")}
    fields |= {"qform_code": codes[0], "sform_code": codes[1]}
    image = nifti.read(save(folder, file_of(kind=kind, **fields)))
    lesion = affine @ [*(np.array(SHAPE) - 1) * place, 1]  # mm
    turn = Reorient.to(image.affine, to)
    mask = np.zeros(turn.shape(SHAPE), np.uint8)
    seen = np.linalg.inv(turn.affine(image.affine, SHAPE)) @ lesion
    mask[tuple(np.clip(np.rint(seen[:3]).astype(int), 0, np.array(mask.shape) - 1))] = 1
    nifti.write(folder / "mask.nii.gz", turn.undo(mask), image)
    peer = nib.load(folder / "mask.nii.gz")
    (voxel,) = np.argwhere(np.asarray(peer.dataobj))
    away = np.linalg.inv(peer.affine) @ lesion - [*voxel, 1]
    assert np.abs(away).max() <= 0.5 + 1e-3


@pytest.mark.slow
def test_real_files_equal_nibabel():
    folder = os.environ.get("MEDSEG_DATA")
    if not folder:
        pytest.skip("MEDSEG_DATA is not set")
    files = sorted(Path(folder).rglob("*.nii.gz"))
    for path in files:
        image, peer = quietly(nifti.read, path), nib.load(path)
        np.testing.assert_array_equal(image.data, peer.get_fdata(dtype=np.float32), str(path))
        np.testing.assert_array_equal(image.affine, peer.affine, str(path))
    assert files
