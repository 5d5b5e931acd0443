"""Each breach of a contract is found, and named."""

from __future__ import annotations

import threading
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from medseg.errors import PluginError
from medseg.postprocess.prediction import Prediction
from medseg.testing import (
    check_decoder,
    check_encoder,
    check_logger,
    check_loss,
    check_network,
    check_postprocessor,
    check_transform,
)


class Good(nn.Module):
    """An encoder that keeps the contract; each test below spoils one thing."""

    def __init__(self) -> None:
        super().__init__()
        self.channels: Any = (2, 3)
        self.strides: Any = ((1, 1, 1), (2, 2, 1))
        self.fine = nn.Conv3d(1, 2, 3, padding=1)
        self.coarse = nn.Conv3d(2, 3, 3, stride=(2, 2, 1), padding=1)

    def forward(self, x: Tensor) -> list[Tensor]:
        fine = self.fine(x)
        return [fine, self.coarse(fine)]


def no_channels(e: Good) -> None:
    del e.channels


def wrong_channels(e: Good) -> None:
    e.channels = (2, 4)


def wrong_strides(e: Good) -> None:
    e.strides = ((1, 1, 1), (2, 2, 2))


def strides_of_one_number(e: Good) -> None:
    e.strides = ((1,), (2,))


def strides_that_do_not_nest(e: Good) -> None:
    e.strides = ((2, 2, 2), (3, 3, 3))


def idle_weight(e: Good) -> None:
    e.idle = nn.Parameter(torch.zeros(1))


def weight_saved_twice(e: Good) -> None:
    e.alias = e.fine


def random_in_eval(e: Good) -> None:
    e.register_forward_hook(lambda _m, _x, out: [o + torch.rand_like(o) for o in out])


def fewer_levels_in_eval(e: Good) -> None:
    e.register_forward_hook(lambda m, _x, out: out if m.training else out[:1])


def nan(e: Good) -> None:
    e.register_forward_hook(lambda _m, _x, out: [o * float("nan") for o in out])


def changes_its_input(e: Good) -> None:
    e.register_forward_pre_hook(lambda _m, x: (x[0].mul_(2),))


def needs_a_batch_of_two(e: Good) -> None:
    e.register_forward_hook(lambda _m, x, out: out if len(x[0]) > 1 else [o[0] for o in out])


def copy_shares_weights(e: Good) -> None:
    e.__deepcopy__ = lambda _memo: e  # type: ignore[attr-defined]


def state_left_out(e: Good) -> None:
    e.register_state_dict_post_hook(
        lambda _m, state, *_: state.update(fine_bias=state.pop("fine.bias"))
    )


def views_a_layout(e: Good) -> None:
    e.register_forward_hook(lambda _m, _x, out: [o.view(len(o), -1).view(o.shape) for o in out])


def not_a_list(e: Good) -> None:
    e.register_forward_hook(lambda _m, _x, out: {"levels": out})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (no_channels, r"Good.channels: got None"),
        (wrong_channels, r"shapes that Good gives in train mode: got .*expected .*\(2, 4,"),
        (wrong_strides, "shapes that Good gives"),
        (strides_of_one_number, "encoder.strides"),
        (strides_that_do_not_nest, "multiples of the level before"),
        (idle_weight, r"without a gradient: got \['idle'\]"),
        (weight_saved_twice, "saved twice: got fine.weight and alias.weight"),
        (random_in_eval, "others each time"),
        (fewer_levels_in_eval, "in eval mode"),
        (nan, "NaN or infinity"),
        (changes_its_input, "changed in place"),
        (needs_a_batch_of_two, "shapes that Good gives"),
        (copy_shares_weights, "after a change of its copy"),
        (state_left_out, "after loading a saved state"),
        (not_a_list, "got dict"),
        (views_a_layout, r"in channels-last layout: got view size is not compatible"),
    ],
)
def test_broken_encoders(spoil: Any, message: str) -> None:
    encoder = Good()
    check_encoder(encoder, 1)
    spoil(encoder)
    with pytest.raises(PluginError, match=message):
        check_encoder(encoder, 1)


def test_checks_leave_the_module_and_the_random_state() -> None:
    encoder = Good().train()
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    check_encoder(encoder, 1)
    assert torch.equal(torch.rand(2), expected)
    assert encoder.training
    assert all(p.grad is None for p in encoder.parameters())
    assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items())


class Decoder(nn.Module):
    def __init__(self, channels: tuple[int, ...], coarse_first: bool = False) -> None:
        super().__init__()
        self.channels = channels
        self.coarse_first = coarse_first

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        return levels[::-1] if self.coarse_first else levels


def test_broken_decoders() -> None:
    strides = ((1, 1, 1), (2, 2, 2))
    check_decoder(Decoder((2, 2)), (2, 2), strides)
    with pytest.raises(PluginError, match="channels of the decoder's levels"):
        check_decoder(Decoder((2, 3)), (2, 2), strides)
    with pytest.raises(PluginError, match="finest first"):
        check_decoder(Decoder((2, 2), coarse_first=True), (2, 2), strides)


def test_broken_networks() -> None:
    size = ((4, 4, 4), (6, 4, 4))
    check_network(nn.Conv3d(1, 3, 1), 1, 3, size)
    with pytest.raises(PluginError, match="shape of the logits"):
        check_network(nn.Conv3d(1, 2, 1), 1, 3, size)
    with pytest.raises(PluginError, match="shape of the logits"):
        check_network(nn.Conv3d(1, 3, 1, stride=2), 1, 3, size)
    with pytest.raises(PluginError, match="got probabilities; expected raw logits"):
        check_network(nn.Sequential(nn.Conv3d(1, 3, 1), nn.Softmax(1)), 1, 3, size)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda x, y: nn.functional.cross_entropy(x, y, reduction="none"), "one finite number"),
        (lambda x, y: x.sum() * 0, "gradient of the loss"),
        (lambda x, y: -nn.functional.cross_entropy(x, y.clamp(max=2)), "first below the second"),
        (lambda x, y: nn.functional.cross_entropy(x, y.clamp(max=2)), "ignored voxels"),
        (
            lambda x, y: nn.functional.cross_entropy(x, y, ignore_index=255) / (y > 0).any(),
            "foreground is absent",
        ),
    ],
)
def test_broken_losses(loss: Any, message: str) -> None:
    check_loss(lambda x, y: nn.functional.cross_entropy(x, y, ignore_index=255), 3)
    with pytest.raises(PluginError, match=message):
        check_loss(loss, 3)


def in_place(data: dict[str, Any]) -> dict[str, Any]:
    data["image"] *= 2
    return data


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (in_place, "changed in place"),
        (lambda d: {"image": d["image"]}, "a dict with image, label"),
        (
            lambda d: d | {"image": np.random.rand(2, 8, 9, 10).astype(np.float32)},
            "drawn in sample",
        ),
        (lambda d: d | {"image": d["image"].astype(np.float64)}, "finite float32"),
        (lambda d: d | {"image": d["image"][:, :4]}, "integers on the image's grid"),
        (lambda d: d | ({"label": d["label"] + 1} if "label" in d else {}), "no new values"),
    ],
)
def test_broken_transforms(transform: Any, message: str) -> None:
    check_transform(lambda d: d | {"image": d["image"] + 1})
    with pytest.raises(PluginError, match=message):
        check_transform(transform)


class Shift:
    """A random transform that draws apart from applying."""

    def sample(self, rng: np.random.Generator) -> float:
        return float(rng.random())

    def __call__(self, data: dict[str, Any], drawn: float) -> dict[str, Any]:
        return data | {"image": data["image"] + np.float32(drawn)}


def test_a_random_transform_passes() -> None:
    check_transform(Shift())


class Brightest:
    """A transform that learns; what it learns, and how, can be spoilt."""

    def __init__(self, learn: Any = lambda images: max(float(i.max()) for i in images)) -> None:
        self.learn, self.learnt = learn, None

    def fit(self, samples: Any) -> Any:
        return self.learn(data["image"] for data in samples)

    def use(self, values: Any) -> Brightest:
        other = Brightest(self.learn)
        other.learnt = values
        return other

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        return data | {"image": data["image"] / np.float32(self.learnt)}


def brighten(images: Any) -> float:
    for image in images:
        image[:] = 1
    return 1.0


@pytest.mark.parametrize(
    "learn, message",
    [
        (lambda images: np.array(3.0), "plain JSON"),
        (lambda images: float("nan"), "plain JSON"),
        (lambda images: float(np.random.rand()), "the same"),
        (brighten, "left as they were"),
    ],
)
def test_broken_learning(learn: Any, message: str) -> None:
    check_transform(Brightest())
    with pytest.raises(PluginError, match=message):
        check_transform(Brightest(learn))


def relabel(change: Any) -> Any:
    return lambda p: p.with_labels(change(p.labels))


@pytest.fixture
def prediction(rng: np.random.Generator) -> Prediction:
    """Two classes of the three have labels."""
    labels = np.zeros((4, 4, 4), np.uint8)
    labels[1, 1, 1] = 1
    shares = np.full((3, 4, 4, 4), 1 / 3, np.float32)
    image = rng.normal(size=(1, 4, 4, 4)).astype(np.float32)
    return Prediction(labels, image, np.eye(4), shares, labels > 0)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda x: x + 1, "the labels"),
        (lambda x: x[:2], "shape and type"),
        (lambda x: x.astype(float), "shape and type"),
        (lambda x: np.random.randint(0, 2, x.shape).astype(np.uint8), "another one each time"),
    ],
)
def test_broken_labels(change: Any, message: str, prediction: Prediction) -> None:
    check_postprocessor(relabel(lambda x: x * 0), prediction)
    with pytest.raises(PluginError, match=message):
        check_postprocessor(relabel(change), prediction)


@pytest.mark.parametrize("spoilt", ["labels", "image", "affine", "mask", "probabilities"])
def test_arrays_changed_in_place(spoilt: str, prediction: Prediction) -> None:
    class Spoil:
        needs_probabilities = True

        def __call__(self, p: Prediction) -> Prediction:
            getattr(p, spoilt)[0] = 1 - getattr(p, spoilt)[0]
            return p

    with pytest.raises(PluginError, match="changed in place"):
        check_postprocessor(Spoil(), prediction)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda x: np.float32(0.9) * x, "the sum"),
        (lambda x: x * np.array([-1, 1, 3], np.float32).reshape(3, 1, 1, 1), "negative"),
        (lambda x: x * np.float32(np.nan), "not finite"),
        (lambda x: x.astype(np.float64), "probabilities"),
        (lambda x: x[:2] * np.float32(1.5), "probabilities"),
    ],
)
def test_broken_probabilities(change: Any, message: str, prediction: Prediction) -> None:
    class Other:
        needs_probabilities = True

        def __init__(self, change: Any) -> None:
            self.change = change

        def __call__(self, p: Prediction) -> Prediction:
            return p.with_probabilities(self.change(p.need_probabilities()))

    check_postprocessor(Other(lambda x: x[::-1]), prediction)
    with pytest.raises(PluginError, match=message):
        check_postprocessor(Other(change), prediction)


def test_new_labels_are_for_steps_that_see_probabilities(prediction: Prediction) -> None:
    class Decide:
        def __call__(self, p: Prediction) -> Prediction:
            return p.with_labels(np.full_like(p.labels, 2))

    with pytest.raises(PluginError, match="the labels"):
        check_postprocessor(Decide(), prediction)
    Decide.needs_probabilities = True  # type: ignore[attr-defined]
    check_postprocessor(Decide(), prediction)
    with pytest.raises(PluginError, match="the labels"):
        check_postprocessor(
            Decide(), replace(prediction, probabilities=np.full((2, 4, 4, 4), 0.5, np.float32))
        )


class Quiet:
    """A logger that keeps its contract."""

    def start(self, folder: Path, config: dict[str, Any], step: int) -> None:
        self.folder = folder

    def record(self, step: int, values: dict[str, float]) -> None:
        pass

    def finish(self, status: str, best: dict[str, float], files: list[Path]) -> None:
        pass


class WritesWhenMade(Quiet):
    def __init__(self, folder: Path) -> None:
        (folder / "log.txt").touch()


class Renames(Quiet):
    def record(self, step: int, values: dict[str, float]) -> None:
        values["train/loss"] = values.pop("loss")


class Tidies(Quiet):
    def finish(self, status: str, best: dict[str, float], files: list[Path]) -> None:
        for file in files:
            file.write_bytes(b"")


class KnowsOneEnd(Quiet):
    def finish(self, status: str, best: dict[str, float], files: list[Path]) -> None:
        assert status == "finished"


class RunsOn(Quiet):
    def start(self, folder: Path, config: dict[str, Any], step: int) -> None:
        self.over = threading.Event()
        threading.Thread(target=self.over.wait, args=(2,), name="uploads", daemon=True).start()


@pytest.mark.parametrize(
    "logger, message",
    [
        (WritesWhenMade, r"left in the run folder: got .*log\.txt"),
        (Renames, "`record` of a logger was given: got changed in place"),
        (Tidies, "which a logger was told of: got changed"),
        (KnowsOneEnd, "`finish` of a logger: got AssertionError"),
        (RunsOn, r"after `finish`: got \['uploads'"),
    ],
)
def test_broken_loggers(logger: Any, message: str, tmp_path: Path) -> None:
    (tmp_path / "good").mkdir()
    check_logger(Quiet, tmp_path / "good")
    (tmp_path / "bad").mkdir()
    make = partial(logger, tmp_path / "bad") if logger is WritesWhenMade else logger
    with pytest.raises(PluginError, match=message):
        check_logger(make, tmp_path / "bad")
