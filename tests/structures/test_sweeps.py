import pytest
import torch

from sparse3d.structures import Flow, SweepPair
from sparse3d.structures.sweeps import check_rigid


def moved(x=0.0, scale=1.0):
    pose = torch.eye(4, dtype=torch.float64) * scale
    pose[3, 3] = 1
    pose[0, 3] = x
    return pose


def test_ego_flow_and_residual():
    points = torch.rand(5, 3)
    pair = SweepPair(points, points, ego_motion=moved(0.5))
    flow = Flow(pair.ego_flow + torch.tensor([0.0, 0.2, 0.0]), pair.ego_flow, pair)
    torch.testing.assert_close(pair.ego_flow, torch.tensor([[0.5, 0, 0]]).expand(5, 3))
    torch.testing.assert_close(flow.residual, torch.tensor([[0, 0.2, 0]]).expand(5, 3))
    assert flow.dynamic().all() and not flow.dynamic(3.0).any()


@pytest.mark.parametrize(
    "matrix",
    [
        moved(scale=1000.0),
        torch.diag(torch.tensor([1.0, 1, -1, 1])),
        moved(float("nan")),
        torch.eye(3),
    ],
    ids=["scaled", "mirrored", "nan", "3x3"],
)
def test_poses_that_are_not_rigid_are_refused(matrix):
    with pytest.raises(ValueError, match=r"ego_motion is .* not rigid"):
        SweepPair(torch.rand(3, 3), torch.rand(3, 3), ego_motion=matrix)
    with pytest.raises(ValueError, match="A is"):
        check_rigid(matrix, "A")


def test_what_does_not_fit_is_refused():
    cloud = torch.rand(3, 3)
    with pytest.raises(ValueError, match="target must come after the source"):
        SweepPair(cloud, cloud, interval=-0.1)
    with pytest.raises(ValueError, match="flow of pair 'unnamed' has 2 rows for 3 points"):
        SweepPair(cloud, cloud, flow=cloud[:2])
    with pytest.raises(ValueError, match=r"source .* float \[N, 3\]"):
        SweepPair(cloud[:, :2], cloud)


def test_select_takes_masks_and_rows():
    cloud = torch.rand(4, 3)
    pair = SweepPair(cloud, cloud, flow=cloud, target_ground=torch.tensor([True, False] * 2))
    part = pair.select(torch.tensor([3, 0]), torch.tensor([True, False, False, True]))
    assert torch.equal(part.flow, cloud[[3, 0]]) and part.target_ground.tolist() == [True, False]
