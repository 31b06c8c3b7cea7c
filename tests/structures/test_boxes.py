import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparse3d.structures import Boxes, wrap_angle


def some_boxes(n: int = 5) -> Boxes:
    torch.manual_seed(0)
    tensor = torch.randn(n, 9)
    tensor[:, 3:6] = tensor[:, 3:6].abs() + 0.5
    return Boxes(tensor)


def test_corners_of_a_turned_box():
    box = Boxes(torch.tensor([[1.0, 2.0, 3.0, 4.0, 2.0, 1.0, math.pi / 2]]))
    front_left = box.corners()[0, 0]
    # Heading +y: the front is at larger y, the left side at smaller x.
    torch.testing.assert_close(front_left, torch.tensor([0.0, 4.0, 2.5]))


def test_contains_is_strict_and_follows_the_heading():
    box = Boxes(torch.tensor([[0.0, 0.0, 0.0, 4.0, 2.0, 2.0, math.pi / 2]]))
    points = torch.tensor([[0.0, 1.9, 0.0], [1.9, 0.0, 0.0], [0.0, 0.0, 1.01]])
    assert box.contains(points).tolist() == [[True, False, False]]


@given(st.floats(-7, 7))
def test_corners_turn_with_the_box(angle):
    boxes = some_boxes()
    cos, sin = math.cos(angle), math.sin(angle)
    turn = torch.tensor([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
    torch.testing.assert_close(
        boxes.rotate(angle).corners(), boxes.corners() @ turn.T, atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("axis,sign", [("x", [1, -1, 1]), ("y", [-1, 1, 1])])
def test_flip_mirrors_the_volume_and_the_velocity(axis, sign):
    boxes, sign = some_boxes(), torch.tensor(sign)
    flipped = boxes.flip(axis)
    inside = boxes.centers + 0.1
    torch.testing.assert_close(
        flipped.contains(inside * sign).diagonal(), boxes.contains(inside).diagonal()
    )
    torch.testing.assert_close(flipped.velocity, boxes.velocity * sign[:2])
    back = flipped.flip(axis).tensor
    torch.testing.assert_close(wrap_angle(back[:, 6]), wrap_angle(boxes.yaw))


def test_scale_and_translate():
    boxes = some_boxes()
    moved = boxes.scale(2.0).translate(torch.tensor([1.0, 0.0, -1.0]))
    torch.testing.assert_close(moved.centers, boxes.centers * 2 + torch.tensor([1.0, 0.0, -1.0]))
    torch.testing.assert_close(moved.sizes, boxes.sizes * 2)
    torch.testing.assert_close(moved.velocity, boxes.velocity * 2)


def test_wrong_shape_and_axis_are_named():
    with pytest.raises(ValueError, match=r"\(3, 8\)"):
        Boxes(torch.zeros(3, 8))
    with pytest.raises(ValueError, match="'z'"):
        some_boxes().flip("z")


def test_no_boxes():
    empty = Boxes.empty()
    assert empty.corners().shape == (0, 8, 3)
    assert empty.contains(torch.zeros(4, 3)).shape == (0, 4)
    assert len(Boxes.cat([])) == 0
