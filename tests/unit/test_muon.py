"""Muon's steps against their definition."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from medseg.training.muon import Muon, is_matrix, orthogonalised

SHAPES = [(8, 8), (8, 200), (200, 8), (64, 1728)]


def by_definition(matrix: Tensor) -> Tensor:
    """Jordan et al. 2024: the iteration on the matrix itself, in float64."""
    x = matrix.double() / matrix.double().norm()
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x


@pytest.mark.parametrize("shape", SHAPES)
def test_all_directions_become_alike(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = orthogonalised(matrix)
    values = torch.linalg.svdvals(found[:, : min(shape)] if shape[0] == shape[1] else found)
    if shape[0] != shape[1]:  # a square one has singular values near 0, which five turns leave
        assert values.min() > 0.6
    assert values.max() < 1.25
    wide = matrix if shape[0] <= shape[1] else matrix.T
    expected = by_definition(wide)
    expected = expected if shape[0] <= shape[1] else expected.T
    assert (found - expected).norm() / expected.norm() < 0.01


def test_a_matrix_with_one_strong_direction_gets_strong_weak_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    strong = torch.randn(16, 1, generator=generator) @ torch.randn(1, 400, generator=generator)
    matrix = strong + 0.1 * torch.randn(16, 400, generator=generator)
    assert torch.linalg.svdvals(matrix)[0] / torch.linalg.svdvals(matrix)[-1] > 30
    values = torch.linalg.svdvals(orthogonalised(matrix))
    assert values[0] / values[-1] < 2


def test_a_step_is_as_large_as_adams_and_the_rest_is_adams() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv3d(1, 8, 3), nn.Conv3d(8, 16, 3), nn.Conv3d(16, 3, 1))
    peer = copy.deepcopy(network)
    before = [p.detach().clone() for p in network.parameters()]
    mine = Muon(network.parameters(), 0.01)
    theirs = torch.optim.AdamW(peer.parameters(), 0.01, betas=(0.9, 0.99), weight_decay=0)
    gradients = [torch.randn_like(p) for p in network.parameters()]
    for model, optimiser in ((network, mine), (peer, theirs)):
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            parameter.grad = gradient.clone()
        optimiser.step()
    moved = [p.detach() - b for p, b in zip(network.parameters(), before, strict=True)]
    names = [name for name, _ in network.named_parameters()]
    matrices = [n for n, p in network.named_parameters() if is_matrix(p)]
    assert matrices == ["1.weight"]  # not the input's, not the classes'
    step = moved[names.index("1.weight")]
    assert step.square().mean().sqrt() == pytest.approx(0.2 * 0.01, rel=0.2)
    for name, mine_now, peer_now in zip(
        names, network.parameters(), peer.parameters(), strict=True
    ):
        if name not in matrices:
            torch.testing.assert_close(mine_now, peer_now)


def test_momentum_is_nesterovs() -> None:
    weight = nn.Parameter(torch.zeros(4, 8, 1, 1, 1))
    optimiser = Muon([weight], 1.0, momentum=0.5)
    gradients = [torch.randn(4, 8, 1, 1, 1, generator=torch.Generator().manual_seed(n))
                 for n in range(2)]  # fmt: skip
    for gradient in gradients:
        weight.grad = gradient.clone()
        optimiser.step()
    first, second = gradients
    looked_ahead = second + 0.5 * (second + 0.5 * first)
    expected = sum(orthogonalised(g.reshape(4, 8)) for g in (first + 0.5 * first, looked_ahead))
    torch.testing.assert_close(weight.detach().view(4, 8), -0.2 * 8**0.5 * expected)


def test_weights_decay_apart_from_the_gradient() -> None:
    weight = nn.Parameter(torch.ones(4, 4, 1, 1, 1))
    optimiser = Muon([weight], 0.1, weight_decay=0.5)
    weight.grad = torch.zeros_like(weight)
    optimiser.step()
    torch.testing.assert_close(weight.detach(), torch.full_like(weight, 0.95))


def test_a_state_goes_on_where_it_was() -> None:
    def run(steps: range, weight: nn.Parameter, optimiser: Muon) -> None:
        for n in steps:
            weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(n))
            optimiser.step()

    def start() -> tuple[nn.Parameter, Muon]:
        weight = nn.Parameter(torch.ones(4, 8, 3, 3, 3))
        return weight, Muon([weight], 0.1)

    whole, optimiser = start()
    run(range(6), whole, optimiser)
    half, first = start()
    run(range(3), half, first)
    other, second = start()
    with torch.no_grad():
        other.copy_(half)
    second.load_state_dict(first.state_dict())
    run(range(3, 6), other, second)
    assert torch.equal(other, whole)


def test_infinite_gradients_of_fp16_move_nothing() -> None:
    weight = nn.Parameter(torch.ones(4, 8, 1, 1, 1))
    optimiser = Muon([weight], 0.1, weight_decay=0.5)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(weight.sum() * float("inf")).backward()
    scaler.step(optimiser)
    scaler.update()
    assert torch.equal(weight.detach(), torch.ones_like(weight))
    assert scaler.get_scale() == 2.0
