"""Triangulation, tracks and pairs of pictures."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse3d.models.relocalization.geometry import (
    Tracks,
    project,
    projections,
    rotation_angle,
    triangulate,
)
from sparse3d.models.relocalization.tracking import (
    Posed,
    check_poses,
    choose_pairs,
    fundamental,
    link,
)
from sparse3d.ops.guided import match_on_lines

K = torch.tensor([[500.0, 0, 320], [0, 500, 240], [0, 0, 1]]).double()


def turned(angles: torch.Tensor) -> torch.Tensor:
    """Rotations of [..., 3] rotation vectors."""
    zero = torch.zeros_like(angles[..., 0])
    x, y, z = angles.unbind(-1)
    rows = [torch.stack(r, -1) for r in ((zero, -z, y), (z, zero, -x), (-y, x, zero))]
    return torch.matrix_exp(torch.stack(rows, -2))


def cameras(count: int, seed: int = 0) -> Posed:
    """Cameras about two metres in front of the origin that look at it."""
    random = torch.Generator().manual_seed(seed)
    poses = torch.eye(4).double().repeat(count, 1, 1)
    poses[:, :3, :3] = turned(0.3 * torch.randn(count, 3, generator=random).double())
    poses[:, 2, 3] = 2
    poses[:, :2, 3] = 0.2 * torch.randn(count, 2, generator=random).double()
    return Posed(K.expand(count, 3, 3), poses, torch.tensor([[640, 480]]).expand(count, 2))


def observed(points, posed: Posed) -> Tracks:
    pixels, _ = project(posed.matrices, points[:, None])
    views = torch.arange(len(posed)).expand(len(points), -1)
    return Tracks(pixels, views, torch.ones_like(views, dtype=torch.bool))


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), wrong=st.integers(0, 7))
def test_exact_points_are_found_and_outliers_named(seed, wrong):
    posed = cameras(8, seed)
    random = torch.Generator().manual_seed(seed)
    points = 0.3 * torch.randn(5, 3, generator=random).double()
    tracks = observed(points, posed)
    found, errors = triangulate(posed.matrices, tracks)
    torch.testing.assert_close(found, points, rtol=0, atol=1e-6)
    tracks.points[:, wrong] += 90
    found, errors = triangulate(posed.matrices, tracks)
    torch.testing.assert_close(found, points, rtol=0, atol=5e-3)
    assert (errors.argmax(1) == wrong).all()


def test_absent_observations_have_no_say():
    posed = cameras(4)
    points = torch.zeros(1, 3).double()
    tracks = observed(points, posed)
    tracks.points[0, 2] = 1e4
    tracks.present[0, 2] = False
    found, errors = triangulate(posed.matrices, tracks)
    torch.testing.assert_close(found, points, rtol=0, atol=1e-6)
    assert errors[0, 2].isinf()


def test_no_tracks():
    none = torch.zeros(0, 0)
    tracks = Tracks(torch.zeros(0, 0, 2), none.long(), none.bool())
    assert triangulate(cameras(3).matrices, tracks)[0].shape == (0, 3)


def test_a_point_lies_on_its_epipolar_line():
    posed = cameras(2)
    points = 0.3 * torch.randn(6, 3).double()
    pixels = project(projections(posed.K, posed.world_to_cam)[:, None], points)[0]
    F, order = fundamental(posed, 0, 1), torch.tensor([3, 1, 5, 0, 2, 4])
    alike = torch.ones(6, 1)
    found = match_on_lines(torch.eye(6), torch.eye(6)[order], pixels[0], pixels[1][order], F, 1e-6)
    assert torch.equal(order[found[1]], torch.arange(6)) and (found[0] == 1).all()
    assert torch.equal(found[3], order) and (found[2] < 1).all()
    moved = pixels[1] + torch.tensor([1.0, 1.7])
    assert (match_on_lines(alike, alike, pixels[0], moved, F, 1e-6)[1] == -1).all()


def test_links_never_hold_two_points_of_a_picture():
    rows = torch.tensor([[0, 0]])
    sure, unsure = torch.tensor([0.9]), torch.tensor([0.8])
    matches = [
        (0, 1, rows, sure),
        (1, 2, rows, sure),
        (0, 2, torch.tensor([[1, 0]]), unsure),
    ]
    assert link([2, 1, 1], matches) == [[(0, 0), (1, 0), (2, 0)]]
    assert link([2, 2], []) == []


def test_few_pictures_are_all_paired_unless_they_look_apart():
    posed = cameras(5)
    assert len(choose_pairs(posed)) == 10
    posed.world_to_cam[0, :3, :3] = turned(torch.tensor([0.0, 3.1, 0.0]).double())
    assert all(0 not in pair for pair in choose_pairs(posed))


def test_pairs_of_many_pictures_stay_few():
    pairs = choose_pairs(cameras(60))
    assert len(pairs) < 60 * 15
    assert {i for pair in pairs for i in pair} == set(range(60))


@pytest.mark.parametrize("angle", [0.0, 1e-7, 0.5, 3.0])
def test_rotation_angle(angle):
    turn = turned(torch.tensor([0.0, angle, 0.0]).double())
    assert float(rotation_angle(torch.eye(3).double(), turn)) == pytest.approx(angle, abs=1e-9)


def test_poses_that_are_no_rotations_are_named():
    poses = cameras(3).world_to_cam
    poses[1, :3, :3] *= 1.2
    with pytest.raises(ValueError, match=r"1 of 3 poses are no rotations.*b\.png"):
        check_poses(poses, ["a.png", "b.png", "c.png"])
    poses[1] = torch.diag(torch.tensor([1.0, 1, -1, 1]))
    with pytest.raises(ValueError, match="no rotations"):
        check_poses(poses, ["a.png", "b.png", "c.png"])
