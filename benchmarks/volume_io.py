"""What reading and writing .nii.gz costs beside nibabel, in the same run.

    python benchmarks/volume_io.py DATA [--rounds 7] [--part read write case strict libraries]

DATA holds brats2015/, glioma_case/, hippocampus/ and sts_sarcoma/; what is missing is left out, as
are libraries that are not installed (SimpleITK, zlib-ng). Rounds take turns; medians of CPU and of
clock seconds are compared with nibabel's. nibabel and SimpleITK check less than medseg (see the
part `strict`), and medseg reads back what it has written.
"""

from __future__ import annotations

import argparse
import gzip
import importlib
import statistics
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from warnings import simplefilter

import nibabel as nib
import numpy as np
from common import machine
from scipy import ndimage

from medseg.errors import DataError
from medseg.volumes import deflate, nifti, reading
from medseg.volumes.dataset import Case, Channel, Dataset, Labels
from medseg.volumes.load import load_case

Work = Callable[[], Any]
BRATS = "brats2015/brats_2013_pat0003_1"
VOLUMES = {
    "MR float32, 240 x 240 x 155": f"{BRATS}/Flair_subtrMeanDivStd.nii.gz",
    "MR int16, 240 x 240 x 155": "glioma_case/t1c.nii.gz",
    "PET float32, 30 x 27 x 48": "sts_sarcoma/STS_002/PET_image.nii.gz",
    "MR float32, 35 x 51 x 35": "hippocampus/images/hippocampus_001.nii.gz",
}
MASKS = {
    "mask float32, 240 x 240 x 155": f"{BRATS}/OTMultiClass.nii.gz",
    "mask int16, 240 x 240 x 155": "glioma_case/seg-BraTS23_1.nii.gz",
}
ISAL = deflate.isal_zlib


def found(module: str) -> Any:
    """A module, or None where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError:
        return None


ITK, ZLIB_NG, THREADED = found("SimpleITK"), found("zlib_ng.zlib_ng"), found("isal.igzip_threaded")
LIBRARIES = {"zlib": zlib, "isal": ISAL, "zlib-ng": ZLIB_NG}


def main() -> None:
    """Measure."""
    parts = {"read": read, "write": write, "case": case, "strict": strict, "libraries": libraries}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--part", nargs="*", choices=parts, default=list(parts))
    options = parser.parse_args()
    simplefilter("ignore", nifti.VolumeWarning)
    if ITK is not None:
        ITK.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    print(machine().replace("one thread used", f"{reading.cores()} for this process"))
    for name in options.part:
        parts[name](options.data.resolve(), options.rounds)


@contextmanager
def engine(module: Any) -> Iterator[None]:
    """Let medseg use igzip, or (None) zlib."""
    before, deflate.isal_zlib = deflate.isal_zlib, module
    try:
        yield
    finally:
        deflate.isal_zlib = before


def with_zlib(work: Work) -> Work:
    """The same, by zlib."""

    def done() -> Any:
        with engine(None):
            return work()

    return done


def measured(works: dict[str, Work], rounds: int) -> dict[str, tuple[float, float]]:
    """Median CPU and clock seconds of each, taking turns."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
    for _ in range(rounds + 1):  # the first warms up
        for name, work in works.items():
            cpu, wall = time.process_time(), time.perf_counter()
            work()
            times[name].append((time.process_time() - cpu, time.perf_counter() - wall))
    return {
        name: (
            statistics.median(cpu for cpu, _ in seen[1:]),
            statistics.median(wall for _, wall in seen[1:]),
        )
        for name, seen in times.items()
    }


def table(title: str, works: dict[str, Work], rounds: int, sizes: Callable[[], dict[str, int]]):
    """Print one, nibabel first."""
    times = measured(works, rounds)
    base_cpu, base_wall = times["nibabel"]
    size = sizes()
    print(f"\n### {title}\n")
    print("| with | CPU ms | nibabel's / its | clock ms | nibabel's / its | kB |")
    print("|---|---|---|---|---|---|")
    for name, (cpu, wall) in times.items():
        kilobytes = f"{size[name] / 1000:.0f}" if name in size else ""
        print(
            f"| {name} | {1e3 * cpu:.1f} | {base_cpu / cpu:.1f} "
            f"| {1e3 * wall:.1f} | {base_wall / wall:.1f} | {kilobytes} |"
        )


def read(data: Path, rounds: int) -> None:
    """Volumes as float32, masks as integers."""
    for title, name in {**VOLUMES, **MASKS}.items():
        if not (path := data / name).is_file():
            continue
        if title in VOLUMES:
            works: dict[str, Work] = {
                "nibabel": lambda path=path: nib.load(path).get_fdata(dtype=np.float32)
            }
        else:
            works = {
                "nibabel": lambda path=path: np.asanyarray(nib.load(path).dataobj).astype("i4")
            }
        reader = nifti.read if title in VOLUMES else nifti.read_label
        ours = partial(reader, path)
        if ITK is not None:
            works["SimpleITK"] = lambda path=path: ITK.GetArrayFromImage(ITK.ReadImage(str(path)))
        works |= {"medseg, zlib": with_zlib(ours), "medseg": ours}
        table(f"reading, {title}", works, rounds, lambda path=path: {"medseg": path.stat().st_size})


def examples(data: Path) -> tuple[Any, dict[str, np.ndarray]]:
    """A grid; a mask and a class probability as a network would give it."""
    image = nifti.read(data / BRATS / "Flair_subtrMeanDivStd.nii.gz")
    mask = nifti.read_label(data / BRATS / "OTMultiClass.nii.gz").data.astype(np.uint8)
    brain = image.data != image.data[0, 0, 0]
    noise = np.random.default_rng(0).normal(0, 1e-3, mask.shape) * brain
    share = np.clip(ndimage.gaussian_filter((mask > 0).astype(np.float32), 3) + noise, 0, 1)
    arrays = {"mask": mask, "probability": share.astype(np.float32)}
    return image, {name: np.ascontiguousarray(array) for name, array in arrays.items()}


def write(data: Path, rounds: int) -> None:
    """A mask and a probability; medseg's with the check that reads them back."""
    if not (data / BRATS).is_dir():
        return
    image, arrays = examples(data)
    with tempfile.TemporaryDirectory() as folder:
        for title, array in arrays.items():
            works, paths = {}, {}

            def add(name: str, work: Callable[[Path], Any]) -> None:
                paths[name] = Path(folder) / f"{len(paths)}.nii.gz"  # noqa: B023
                works[name] = lambda path=paths[name]: work(path)  # noqa: B023

            peer = nib.Nifti1Image(array, image.affine)
            add("nibabel", lambda path, peer=peer: nib.save(peer, path))
            if ITK is not None:
                volume = ITK.GetImageFromArray(np.ascontiguousarray(array.T))
                add("SimpleITK", lambda path, v=volume: ITK.WriteImage(v, str(path), True))
            for level in (0, 1, 4, 6, 9):
                ours = _writer(array, image, level, "float32")
                add(f"medseg, {level}", ours)
                if level == 4:
                    add("medseg, 4, zlib", _by_zlib(ours))
            if title == "probability":
                for stored in ("uint16", "uint8"):
                    add(f"medseg, 4, {stored}", _writer(array, image, 4, stored))
            sizes = lambda paths=paths: {n: p.stat().st_size for n, p in paths.items()}  # noqa: E731
            table(f"writing, {title}, 240 x 240 x 155", works, rounds, sizes)


def _writer(array: np.ndarray, image: Any, level: int, stored: Any) -> Callable[[Path], None]:
    return lambda path: nifti.write(path, array, image, compression=level, stored=stored)


def _by_zlib(work: Callable[[Path], None]) -> Callable[[Path], None]:
    return lambda path: with_zlib(lambda: work(path))()


def case(data: Path, rounds: int) -> None:
    """Two channels, with and without a label, to one array (C, I, J, K)."""
    folder = data / BRATS
    if not folder.is_dir():
        return
    paths = [folder / f"{name}_subtrMeanDivStd.nii.gz" for name in ("Flair", "T1c")]
    channels = tuple(Channel(path) for path in paths)
    labelled = Case("case", channels, label=folder / "OTMultiClass.nii.gz")
    labels = Labels({"whole": (1, 2, 3, 4)})
    for title, each in (("label", labelled), ("no label", replace(labelled, label=None))):
        dataset = Dataset((each,), ("flair", "t1c"), labels)
        files = [*paths, each.label] if each.label else paths
        works: dict[str, Work] = {
            "nibabel": lambda files=files: [
                np.stack([nib.load(p).get_fdata(dtype=np.float32) for p in files[:2]]),
                *[np.asanyarray(nib.load(p).dataobj).astype(np.uint8) for p in files[2:]],
            ],
            "medseg, one thread": _alone(lambda e=each, d=dataset: load_case(e, d)),
            "medseg": lambda e=each, d=dataset: load_case(e, d),
        }
        table(f"a case, two channels, {title}", works, rounds, dict)


def _alone(work: Work) -> Work:
    def done() -> Any:
        before, reading.cores = reading.cores, lambda: 1
        try:
            return work()
        finally:
            reading.cores = before

    return done


def libraries(data: Path, rounds: int) -> None:
    """The libraries alone: unpacking and packing in memory, 256 KiB at a time."""
    if not (data / BRATS).is_dir():
        return
    _, arrays = examples(data)
    volumes = {title: data / name for title, name in {**VOLUMES, **MASKS}.items()}
    for title, path in volumes.items():
        if not path.is_file():
            continue
        works: dict[str, Work] = {
            "nibabel": lambda path=path: np.asanyarray(nib.load(path).dataobj)
        }
        works |= {
            name: lambda path=path, library=library: _unpacked(library, path.read_bytes())
            for name, library in LIBRARIES.items()
            if library is not None
        }
        if THREADED is not None:
            works["isal, threaded"] = lambda path=path: _drained(THREADED.open(path, threads=1))
        table(f"unpacking, {title}", works, rounds, dict)
    for title, array in arrays.items():
        raw, sizes = array.tobytes(order="F"), {}

        def packed(library: Any, level: int, name: str, raw=raw, sizes=sizes) -> None:
            work = library.compressobj(level, wbits=31)
            done = sum(len(work.compress(raw[n : n + 2**20])) for n in range(0, len(raw), 2**20))
            sizes[name] = done + len(work.flush())

        works = {}
        for name, library in {"nibabel": zlib, **LIBRARIES}.items():
            levels = {"nibabel": (1,), "isal": (0, 1, 2, 3), "zlib-ng": (1, 2, 4, 6, 9)}
            for level in levels.get(name, (0, 1, 4, 6)) if library is not None else ():
                label = name if name == "nibabel" else f"{name}, {level}"
                works[label] = lambda lib=library, at=level, n=label, p=packed: p(lib, at, n)
        table(f"packing, {title} (nibabel: zlib at its level 1)", works, rounds, sizes.copy)


def _unpacked(library: Any, data: bytes) -> None:
    work, piece = library.decompressobj(wbits=31), 1 << 16
    for start in range(0, len(data), piece):
        rest = data[start : start + piece]
        while rest and not work.eof:
            work.decompress(rest, 1 << 18)
            rest = work.unconsumed_tail
    while not work.eof:
        if not work.decompress(b"", 1 << 18) and not work.eof:
            raise EOFError


def _drained(file: Any) -> None:
    with file:
        while file.read(1 << 18):
            pass


def strict(data: Path, _: int) -> None:
    """Who notices what is wrong with a file."""
    if not (source := data / "glioma_case/seg-BraTS23_1.nii.gz").is_file():
        return
    sound = source.read_bytes()
    kinds = {
        "wrong checksum": sound[:-8] + bytes([sound[-8] ^ 1]) + sound[-7:],
        "wrong length": sound[:-4] + bytes([sound[-4] ^ 1]) + sound[-3:],
        "no trailer": sound[:-8],
        "half": sound[: len(sound) // 2],
        "another byte within": gzip.compress(_changed(gzip.decompress(sound)))[:-8] + sound[-8:],
    }
    readers: dict[str, Callable[[Path], Any]] = {
        "nibabel": lambda path: np.asanyarray(nib.load(path).dataobj),
        "medseg": nifti.read_label,
        "medseg, zlib": lambda path: with_zlib(lambda: nifti.read_label(path))(),
    }
    if ITK is not None:
        readers["SimpleITK"] = lambda path: ITK.GetArrayFromImage(ITK.ReadImage(str(path)))
    for name, library in LIBRARIES.items():
        if library is not None:
            readers[name] = lambda path, lib=library: _unpacked(lib, path.read_bytes())
    print(f"\n### who refuses\n\n| | {' | '.join(kinds)} |\n|---|{'---|' * len(kinds)}")
    with tempfile.TemporaryDirectory() as folder:
        for name, reader in readers.items():
            verdicts = []
            for number, content in enumerate(kinds.values()):
                path = Path(folder) / f"{number}.nii.gz"
                path.write_bytes(content)
                verdicts.append(_verdict(reader, path))
            print(f"| {name} | {' | '.join(verdicts)} |")


def _changed(data: bytes) -> bytes:
    return data[:-1000] + bytes([data[-1000] ^ 1]) + data[-999:]


def _verdict(reader: Callable[[Path], Any], path: Path) -> str:
    if ITK is not None:
        ITK.ProcessObject.GlobalWarningDisplayOff()
    own = tuple(library.error for library in LIBRARIES.values() if library is not None)
    try:
        reader(path)
    except (DataError, OSError, EOFError, RuntimeError, ValueError, *own):
        return "refused"
    return "taken"


if __name__ == "__main__":
    main()
