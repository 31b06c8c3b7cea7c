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
