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


def lorry(seed: int) -> torch.Tensor:
    """[N, 3] points of a lorry of 8 x 2.5 x 3 m, seen from beside its middle: few at its ends."""
    generator = torch.Generator().manual_seed(seed)
    x = 4 + 0.8 * torch.randn(20_000, generator=generator)
    y, z = 2.5 * torch.rand(2, 20_000, generator=generator)
    side = torch.stack([x, torch.zeros(20_000), 1.2 * z], 1)
    ends = torch.rand(300, 3, generator=generator) * torch.tensor([8.0, 0.0, 3.0])
    face = torch.stack([torch.zeros(60), y[:60], 1.2 * z[:60]], 1)
    return torch.cat([side.clamp(max=8), ends, face]) + torch.tensor([-4.0, 3.0, 0.0])


def test_what_is_near_shows_its_motion_by_its_ends():
    """Nearly all of its points lie on a wall that fits where it was."""
    shift = torch.tensor([1.1, 0.0, 0.0])
    source, target = lorry(0), lorry(1) + shift
    for guess in (None, torch.zeros_like(source)):
        found = RigidFlow().residual(source, target, 0.1, guess)
        assert (found - shift).norm(dim=1).median() < 0.15


@pytest.mark.parametrize("way, moves", [([1.1, 0.0, 0.0], True), ([0.0, 1.1, 0.0], False)])
def test_what_is_flat_moves_against_its_guess_across_itself(way, moves):
    generator = torch.Generator().manual_seed(0)
    rear = torch.rand(2000, 3, generator=generator) * torch.tensor([0.1, 2.2, 2.0])
    rear, shift = rear + torch.tensor([5.0, -1.1, 0.0]), torch.tensor(way)
    found = RigidFlow().residual(rear, rear + shift, 0.1, torch.zeros_like(rear))
    assert ((found - shift).norm(dim=1) < 0.1).all() == moves
    assert moves or not found.any()


def test_what_drives_up_to_a_thing_that_stands_still_fits_there():
    """The points of what stands there are no misfit of what comes."""
    shift = torch.tensor([1.2, 0.0, 0.0])
    comes, stands = block(0, 0, 4, 0), block(5.3, -1.0, 4, 1)
    again = block(5.3, -1.0, 4, 2)
    source = torch.cat([comes, stands])
    found = RigidFlow().residual(
        source, torch.cat([comes + shift, again]), 0.1, torch.zeros_like(source)
    )
    assert (found[:1000] - shift).norm(dim=1).median() < 0.1
    assert found[1000:].norm(dim=1).median() < 0.05
