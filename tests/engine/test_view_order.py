from itertools import islice

import numpy as np
import pytest
import torch

from sparse3d.engine.splatting import ViewSampler
from sparse3d.engine.view_order import spread_order


def ring(number: int, scale: float = 1.0) -> np.ndarray:
    """[number, 4, 4] cameras on a circle that look at its middle, one after the other.

    Not quite evenly: where two were equally far, rounding would decide.
    """
    row = np.arange(number)
    angle = 2 * np.pi * (row + 0.3 * np.sin(row**2)) / number
    forward = np.stack([-np.cos(angle), -np.sin(angle), 0 * angle], 1)
    right = np.stack([-np.sin(angle), np.cos(angle), 0 * angle], 1)
    turn = np.stack([right, np.cross(forward, right), forward], 1)
    poses = np.tile(np.eye(4), (number, 1, 1))
    poses[:, :3, :3] = turn
    poses[:, :3, 3] = -np.einsum("nij,nj->ni", turn, -scale * forward)
    return poses


def order_of(poses: np.ndarray, count: int, seed: int = 0) -> list[int]:
    return list(islice(spread_order(poses, torch.Generator().manual_seed(seed)), count))


@pytest.mark.parametrize("number", [1, 2, 3, 16, 31])
def test_every_pass_has_every_view_once(number):
    order = np.array(order_of(ring(number), 4 * number)).reshape(4, number)
    assert (np.sort(order, 1) == np.arange(number)).all()


def test_steps_in_a_row_are_far_apart():
    number = 24
    order = np.array(order_of(ring(number), 10 * number))
    gap = np.abs(np.diff(order))
    gap = np.minimum(gap, number - gap)
    # At random a quarter of a circle would be the mean, and a sixth of all gaps below three views.
    assert gap.mean() > number / 3.6
    assert (gap < 3).mean() < 0.05


def test_the_world_s_unit_and_where_it_begins_change_nothing():
    moved = ring(17, 250.0)
    moved[:, :3, 3] -= moved[:, :3, :3] @ np.array([4e3, -7e2, 30.0])
    assert order_of(moved, 100) == order_of(ring(17), 100)


def test_equal_cameras_are_all_taken():
    assert sorted(order_of(np.tile(np.eye(4), (5, 1, 1)), 5)) == list(range(5))


def test_another_seed_has_another_order():
    orders = {tuple(order_of(ring(16), 16, seed)) for seed in range(8)}
    assert len(orders) > 3
    assert order_of(ring(16), 50, 3) == order_of(ring(16), 50, 3)


class Views:
    """What the sampler asks of a dataset."""

    def __init__(self, poses: np.ndarray):
        self.views = [type("View", (), {"world_to_cam": pose}) for pose in poses]

    def __len__(self) -> int:
        return len(self.views)


def test_an_epoch_depends_on_seed_and_number_alone():
    sampler = ViewSampler(Views(ring(12)), steps=40, seed=1)
    first = list(sampler)
    assert len(first) == len(sampler) == 40
    sampler.set_epoch(5)
    fifth = list(sampler)
    again = ViewSampler(Views(ring(12)), steps=40, seed=1)
    again.set_epoch(5)
    assert list(again) == fifth != first
