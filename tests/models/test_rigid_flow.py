"""Rigid groups: what may move, how far, and what a guess of another method is good for."""

import pytest
import torch

from sparse3d.models.rigid_flow import RigidFlow


def block(x: float, y: float, length: float, seed: int) -> torch.Tensor:
    """[1000, 3] points on a box 2 m wide whose lower corner is (x, y)."""
    points = torch.rand(1000, 3, generator=torch.Generator().manual_seed(seed))
    side = torch.arange(1000) % 2
    points[torch.arange(1000), side] = (points[torch.arange(1000), side] > 0.5).float()
    return points * torch.tensor([length, 2.0, 1.5]) + torch.tensor([x, y, 0.0])


@pytest.mark.parametrize("guided", [False, True])
def test_things_that_nearly_touch_move_apart(guided):
    still, goes = block(0, 0, 4, 0), block(0, 2.45, 5, 1)
    shift = torch.tensor([0.9, 0.0, 0.0])
    source = torch.cat([still, goes])
    guess = torch.cat([torch.zeros(1000, 3), shift.expand(1000, 3) / 2]) if guided else None
    found = RigidFlow().residual(source, torch.cat([still, goes + shift]), 0.1, guess)
    assert found[:1000].abs().max() < 0.1
    missed = (found[1000:] - shift).norm(dim=1) > 0.1
    assert missed.sum() <= 4  # points that touch no others are of no group


def test_nothing_moves_farther_than_the_fastest_thing():
    source = block(0, 0, 4, 0)
    away = source + torch.tensor([4.0, 0.0, 0.0])
    assert not RigidFlow(fastest=20).residual(source, away, 0.1).any()
    assert RigidFlow(fastest=60).residual(source, away, 0.1)[:, 0].median() > 3


@pytest.mark.parametrize(
    "share, flat, moves",
    [(0.5, True, True), (0.0, True, False), (-0.5, True, False), (0.0, False, True)],
)
def test_against_its_guess_only_what_is_solid_moves(share, flat, moves):
    source, shift = block(0, 0, 4, 0), torch.tensor([1.0, 0.0, 0.0])
    source[:, 1] *= 0.2 if flat else 1.0
    guess = (share * shift).expand(1000, 3)
    found = RigidFlow().residual(source, source + shift, 0.1, guess)
    assert torch.allclose(
        found, shift.expand(1000, 3) if moves else torch.zeros(1000, 3), atol=0.05
    )


def test_what_is_too_wide_to_move_stays_whatever_is_guessed():
    hedge = torch.cat([block(8 * i, 0, 8, i) for i in range(4)])
    found = RigidFlow(part=10**6).residual(hedge, hedge + 0.5, 0.1, torch.full((4000, 3), 0.5))
    assert not found.any()
