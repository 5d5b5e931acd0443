"""The example of a service: what clients get, whatever they send, and that nothing of it stays."""

from __future__ import annotations

import gzip
import importlib.util
import json
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from threading import Barrier, Event
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from fastapi.testclient import TestClient

from medseg.inference.predictor import Predictor
from medseg.inference.window import NonFiniteError, OutOfMemoryError
from medseg.postprocess.prediction import Prediction
from medseg.volumes.load import LoadedCase
from medseg.volumes.writer import GEOMETRY

EXAMPLE = Path(__file__).parents[2] / "examples" / "serve.py"
Upload = tuple[str, bytes]


@pytest.fixture(scope="module")
def predictor(model: Callable[..., Path]) -> Predictor:
    return Predictor.load(model(), device="cpu")


@pytest.fixture
def serve() -> Any:
    """The example as a module."""
    spec = importlib.util.spec_from_file_location("serve_of_a_test", EXAMPLE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def start(
    serve: Any, predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., TestClient]]:
    """Start the service with other limits; in the end no temporary file is left."""
    clients: list[TestClient] = []
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def begin(**limits: int) -> TestClient:
        for name, limit in limits.items():
            monkeypatch.setattr(serve, name, limit)
        client = TestClient(serve.service(predictor), raise_server_exceptions=False)
        clients.append(client.__enter__())
        return client

    yield begin
    for client in clients:
        client.__exit__(None, None, None)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def client(start: Callable[..., TestClient]) -> TestClient:
    return start()


@pytest.fixture
def paths(heads: Path) -> list[Path]:
    """The channels of a head in voxels of 4 x 4 x 6 mm, in the model's order."""
    return [heads / "imagesTr" / f"head_002_{n:04d}.nii.gz" for n in range(2)]


@pytest.fixture
def case(paths: list[Path]) -> list[Upload]:
    """The same, as a client sends them."""
    return [("flair.nii.gz", paths[0].read_bytes()), ("t1c.nii.gz", paths[1].read_bytes())]


def post(client: TestClient, uploads: list[Upload], **query: Any) -> Any:
    return client.post("/predict", files=[("files", one) for one in uploads], params=query)


def mask(answer: Any) -> nib.Nifti1Image:
    assert answer.status_code == 200, answer.text
    return nib.Nifti1Image.from_bytes(gzip.decompress(answer.content))


def refused(answer: Any, status: int = 422) -> str:
    assert answer.status_code == status, answer.text
    said: str = answer.json()["detail"]
    assert "medseg-" not in said  # a temporary path
    return said


def test_a_mask_as_predict_gives_it_where_the_first_file_is(
    client: TestClient, predictor: Predictor, case: list[Upload], paths: list[Path]
) -> None:
    answer = post(client, case)
    assert answer.headers["content-type"] == "application/gzip"
    assert answer.headers["content-disposition"] == "attachment; filename=mask.nii.gz"
    assert json.loads(answer.headers["medseg-notes"]) == []
    got, given = mask(answer), nib.load(paths[0])
    labels = predictor.labels.to_values(predictor.predict(paths).labels)
    assert 0 < labels.mean() < 1
    np.testing.assert_array_equal(np.asarray(got.dataobj), labels)
    for field in GEOMETRY:
        np.testing.assert_array_equal(got.header[field], given.header[field])


def test_a_summary_in_millilitres(
    client: TestClient, predictor: Predictor, case: list[Upload], paths: list[Path]
) -> None:
    about = post(client, case, summary=True).json()
    labels = predictor.predict(paths).labels
    assert about["shape"] == list(labels.shape)
    assert about["spacing_mm"] == pytest.approx([4, 4, 6])
    assert about["volume_ml"] == {"lesion": pytest.approx(labels.sum() * 4 * 4 * 6 / 1000)}
    assert (about["precision"], about["notes"]) == ("fp32", [])


@pytest.mark.filterwarnings("ignore::medseg.volumes.nifti.VolumeWarning")
def test_what_is_odd_is_told_by_the_clients_names(client: TestClient, case: list[Upload]) -> None:
    case[1] = ("t1c – odd.nii", case[1][1])
    expected = ["t1c – odd.nii: gzip data, though not named .gz"]
    assert post(client, case, summary=True).json()["notes"] == expected
    assert json.loads(post(client, case).headers["medseg-notes"]) == expected


@pytest.mark.parametrize(
    "name",
    ["../../x.nii.gz", "/etc/passwd.nii.gz", "..\\x.nii.gz", "0.nii.gz", "1.nii.gz", ".nii.gz",
     "übung 腦.nii.gz", "x" * 1000 + ".nii.gz", "mask.nii.gz", "x/../y\0.gz"],
)  # fmt: skip
def test_names_lead_nowhere(name: str, client: TestClient, case: list[Upload]) -> None:
    given = [(name, content) for _, content in case]
    np.testing.assert_array_equal(
        np.asarray(mask(post(client, given)).dataobj), np.asarray(mask(post(client, case)).dataobj)
    )
    assert ": truncated" in refused(post(client, [given[0], (name, case[1][1][:-200])]))


def mirrored(content: bytes) -> bytes:
    image = nib.Nifti1Image.from_bytes(gzip.decompress(content))
    return gzip.compress(nib.Nifti1Image(image.get_fdata()[::-1], image.affine).to_bytes())


def damaged(what: str, content: bytes) -> bytes:
    if what == "shifted":
        image = nib.Nifti1Image.from_bytes(gzip.decompress(content))
        image.affine[:3, 3] += 20
        moved = nib.Nifti1Image(image.get_fdata(), image.affine)
        return gzip.compress(moved.to_bytes())
    made: dict[str, bytes] = {
        "truncated": content[: len(content) // 2],
        "flipped": content[:-6] + bytes([content[-6] ^ 1]) + content[-5:],
        "no nifti": gzip.compress(b"%PDF-1.7 " * 200),
        "empty": b"",
    }
    return made[what]


@pytest.mark.parametrize(
    "what, message",
    [
        ("truncated", "t1c.nii.gz: truncated: the gzip data ends early; copy it again"),
        ("flipped", "t1c.nii.gz: damaged gzip data"),
        ("no nifti", "t1c.nii.gz: not a NIfTI file"),
        ("empty", "t1c.nii.gz: the file is empty (0 bytes)"),
        ("shifted", "t1c.nii.gz: not on the grid of flair.nii.gz: "),
    ],
)
def test_a_file_that_cannot_be_used_is_the_clients_error(
    what: str, message: str, client: TestClient, case: list[Upload]
) -> None:
    case[1] = (case[1][0], damaged(what, case[1][1]))
    for query in ({}, {"summary": True}):
        assert refused(post(client, case, **query)).startswith(message)


def test_the_wrong_number_of_channels_is_told(client: TestClient, case: list[Upload]) -> None:
    for given in (case[:1], [*case, case[0]]):
        said = refused(post(client, given))
        assert f"flair.nii.gz: {len(given)} file(s) for a case of 2 channels (flair, t1c)" in said
    assert client.post("/predict").status_code == 422


def test_a_request_that_is_too_large_is_not_kept(start: Callable[..., TestClient]) -> None:
    answer = post(start(MEGABYTES=1), [("x.nii.gz", bytes(1 << 20))])
    assert answer.status_code == 413


def test_a_volume_that_is_too_large_is_not_unpacked(
    start: Callable[..., TestClient], case: list[Upload]
) -> None:
    """Be it by its voxels, or by those that it would have on the network's grid."""
    coarse = nib.Nifti1Image(np.ones((8, 8, 8), np.uint8), np.diag([400, 400, 400, 1]))
    uploads = [("coarse.nii.gz", gzip.compress(coarse.to_bytes()))] * 2
    assert refused(post(start(), uploads)) == (
        "coarse.nii.gz: 5.1e+08 voxels to predict; the limit is 3e+08"
    )
    assert "flair.nii.gz: " in refused(post(start(VOXELS=1000), case))


@pytest.mark.parametrize(
    "error, message",
    [
        (NonFiniteError("the network gave 7 non-finite logits"), "7 non-finite logits"),
        (OutOfMemoryError("out of memory with one window"), "out of memory with one window"),
        (MemoryError(), "out of memory"),
    ],
)
def test_a_failure_of_ours_is_no_error_of_the_client(
    error: Exception,
    message: str,
    client: TestClient,
    case: list[Upload],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(Predictor, "run", fail)
    assert message in refused(post(client, case), 500)


def test_two_at_once(
    start: Callable[..., TestClient], case: list[Upload], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Side by side, if told so, and each gets its own."""
    client, both = start(AT_ONCE=2), Barrier(2, timeout=60)
    other = [(name, mirrored(content)) for name, content in case]
    alone = [np.asarray(mask(post(client, given)).dataobj) for given in (case, other)]
    assert not np.array_equal(*alone)
    plain = Predictor.predict_case

    def together(self: Predictor, loaded: LoadedCase) -> Prediction:
        both.wait()
        return plain(self, loaded)

    monkeypatch.setattr(Predictor, "predict_case", together)
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda given: post(client, given), (case, other)))
    for answer, expected in zip(answers, alone, strict=True):
        np.testing.assert_array_equal(np.asarray(mask(answer).dataobj), expected)


def test_those_who_would_wait_too_long_are_sent_away(
    start: Callable[..., TestClient], case: list[Upload], monkeypatch: pytest.MonkeyPatch
) -> None:
    client, go, running = start(AT_ONCE=1, WAITING=1), Event(), []
    plain = Predictor.predict_case

    def wait(self: Predictor, loaded: LoadedCase) -> Prediction:
        running.append(1)
        assert go.wait(60)
        assert len(running) == 1
        prediction = plain(self, loaded)
        running.pop()
        return prediction

    monkeypatch.setattr(Predictor, "predict_case", wait)
    with ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(post, client, case) for _ in range(3)]
        first = next(as_completed(asked, timeout=60)).result()
        go.set()
        answers = sorted(one.result().status_code for one in asked)
    assert refused(first, 503) == "too many cases are waiting"
    assert first.headers["retry-after"] == "60"
    assert answers == [200, 200, 503]
