import pytest
import torch

from sparse3d.structures import Camera


def camera() -> Camera:
    K = torch.tensor([[100.0, 0.0, 50.0], [0.0, 100.0, 40.0], [0.0, 0.0, 1.0]])
    world_to_cam = torch.eye(4)
    world_to_cam[2, 3] = 1.0  # the camera stands one metre behind the world's origin
    return Camera(K, world_to_cam, (100, 80))


def test_project():
    pixel, depth = camera().project(torch.tensor([[0.0, 0.0, 1.0], [1.0, -0.5, 3.0]]))
    torch.testing.assert_close(depth, torch.tensor([2.0, 4.0]))
    torch.testing.assert_close(pixel, torch.tensor([[50.0, 40.0], [75.0, 27.5]]))


def test_sees_only_what_is_in_front_and_inside():
    points = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, -3.0], [9.0, 0.0, 1.0]])
    assert camera().sees(points).tolist() == [True, False, False]


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match=r"\(4, 4\)"):
        Camera(torch.eye(4), torch.eye(4), (1, 1))


def test_a_camera_counts_pixels_from_the_corner_for_others():
    K = torch.tensor([[50.0, 0, 32], [0, 50, 24], [0, 0, 1]])
    pose = torch.eye(4)
    pose[:3, 3] = torch.tensor([0.1, 0.2, 0.3])
    camera = Camera.from_corner_K(K, pose, (64, 48))
    assert torch.equal(camera.corner_K, K)
    torch.testing.assert_close(camera.center, -pose[:3, 3])
    assert camera.axis.tolist() == [0, 0, 1]
    # The middle of the picture stays where it is when the picture is reduced.
    half = camera.resized((32, 24))
    torch.testing.assert_close(half.corner_K[:2], K[:2] / 2)
    point = torch.tensor([[0.4, -0.3, 2.0]])
    full, small = (c.project(point)[0] + 0.5 for c in (camera, half))
    torch.testing.assert_close(small, full / 2)
