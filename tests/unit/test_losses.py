"""Deep supervision, and what a loss refuses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from medseg import plugins
from medseg.errors import MedsegError
from medseg.registry import LOSSES
from medseg.training.losses import CrossEntropy, DeepSupervision

plugins.load()


class Recorder(nn.Module):
    """A loss that gives prepared values and keeps the targets it sees."""

    def __init__(self, *values: float) -> None:
        super().__init__()
        self.values, self.targets = list(values), list[Tensor]()

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        assert target.shape[1:] == logits.shape[2:]
        self.targets.append(target)
        return torch.tensor(self.values[len(self.targets) - 1])


def outputs(*sizes: int) -> tuple[Tensor, ...]:
    return tuple(torch.zeros(1, 2, n, n, n) for n in sizes)


def test_each_coarser_level_weighs_half() -> None:
    loss = DeepSupervision(Recorder(1.0, 10.0, 100.0))
    target = torch.zeros(1, 8, 8, 8, dtype=torch.int64)
    expected = (1 + 0.5 * 10 + 0.25 * 100) / 1.75
    assert float(loss(outputs(8, 4, 2), target)) == pytest.approx(expected)


def test_outputs_may_have_weights_of_their_own() -> None:
    loss = DeepSupervision(Recorder(1.0, 10.0, 100.0), weights=(1.0, 0.5, 0.3))
    target = torch.zeros(1, 8, 8, 8, dtype=torch.int64)
    expected = (1 + 0.5 * 10 + 0.3 * 100) / 1.8
    assert float(loss(outputs(8, 4, 2), target)) == pytest.approx(expected)


def test_one_output_alone_is_the_loss() -> None:
    target = torch.zeros(1, 8, 8, 8, dtype=torch.int64)
    assert float(DeepSupervision(Recorder(3.0))(outputs(8), target)) == 3


def test_coarse_targets_are_picked_not_mixed() -> None:
    recorder = Recorder(0, 0)
    target = torch.zeros(1, 8, 8, 8, dtype=torch.int64)
    target[:, 4:] = 255
    target[:, :, 4:] = 3
    DeepSupervision(recorder)(outputs(8, 4), target)
    assert recorder.targets[0] is target
    assert torch.equal(recorder.targets[1], target[:, ::2, ::2, ::2])


def test_all_levels_get_a_gradient() -> None:
    levels = tuple(level.requires_grad_() for level in outputs(8, 4))
    target = torch.ones(1, 8, 8, 8, dtype=torch.int64)
    DeepSupervision(CrossEntropy(2))(levels, target).backward()
    fine, coarse = (float(level.grad.abs().sum()) for level in levels if level.grad is not None)
    assert fine == pytest.approx(2 * coarse, rel=1e-4)


def test_weights_of_another_number_of_classes_are_refused() -> None:
    with pytest.raises(MedsegError, match=r"2 class_weights for 3 classes"):
        LOSSES.build({"name": "cross_entropy", "class_weights": [1.0, 2.0]}, classes=3)


def test_the_weights_are_no_part_of_a_state() -> None:
    assert not CrossEntropy(2, (1.0, 2.0)).state_dict()
