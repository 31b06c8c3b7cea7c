import pytest
import torch

from sparse3d.models.delta_flow import DeltaFlow
from sparse3d.models.flow_losses import balanced_error
from sparse3d.models.rigid_flow import RigidFlow, components
from sparse3d.ops.ground import ground_mask
from sparse3d.ops.registration import register
from sparse3d.structures import Batch, SweepPair
from sparse3d.structures.sweeps import transform
from tests.conftest import real_data

BACKBONE = {"type": "SparseUNet", "channels": [4, 8, 8], "up_channels": [8, 4], "blocks": 1}


def pose(x, y, yaw):
    matrix = torch.eye(4, dtype=torch.float64)
    angle = torch.tensor(yaw, dtype=torch.float64)
    matrix[:2, :2] = torch.tensor([[angle.cos(), -angle.sin()], [angle.sin(), angle.cos()]])
    matrix[:2, 3] = torch.tensor([x, y], dtype=torch.float64)
    return matrix


def box(count, middle, size, generator):
    """Points on the sides of a box."""
    points = torch.rand(count, 3, generator=generator) - 0.5
    side = torch.randint(0, 2, (count,), generator=generator)
    points[torch.arange(count), side] = points[torch.arange(count), side].sign() * 0.5
    return points * torch.tensor(size) + torch.tensor(middle)


def scene(seed=0, motion=None, ground=400):
    """Two sweeps of walls, a parked car and one that drives 0.9 m; the truth of the source."""
    generator = torch.Generator().manual_seed(seed)
    motion = pose(-0.4, 0.05, 0.01) if motion is None else motion
    sweeps, shift = [], torch.tensor([0.9, 0.0, 0.0])
    for time in (0, 1):
        floor = torch.rand(ground, 3, generator=generator) * torch.tensor([60.0, 60, 0.02]) - 30
        floor[:, 2] = floor[:, 2] + 30 - 1.7
        walls = [box(1500, (0.0, y, 0.5), (50.0, 0.3, 4.0), generator) for y in (-9.0, 9.0)]
        walls.append(box(600, (20.0, 0.0, 0.5), (0.3, 16.0, 4.0), generator))
        parked = box(400, (-6.0, 4.0, -0.9), (4.2, 1.8, 1.4), generator)
        driving = box(400, (3.0, -3.0, -0.9), (4.2, 1.8, 1.4), generator) + time * shift
        sweeps.append(torch.cat([floor, *walls, parked, driving]))
    back = torch.linalg.inv(motion)
    source = transform(sweeps[0], back).float()
    flow = sweeps[0] - source
    flow[-400:] += shift
    return SweepPair(source, sweeps[1], flow=flow, ego_motion=motion)


def small(**options):
    torch.manual_seed(0)
    return DeltaFlow(BACKBONE, voxel_size=(0.5, 0.5, 0.5), channels=4, hidden=8, **options)


def test_registration_and_ground_are_found():
    pair = scene(ground=4000)
    found = register(pair.source, pair.target)
    difference = torch.linalg.inv(pair.ego_motion) @ found
    assert difference[:3, 3].norm() < 0.05 and (difference - torch.eye(4)).abs().max() < 0.05
    ground = ground_mask(pair.target)
    assert ground[:4000].float().mean() > 0.95 and ground[4000:].float().mean() < 0.2
    with pytest.raises(ValueError, match="too few"):
        register(pair.source[:5], pair.target)


def test_rigid_groups_find_what_drives_and_leave_the_rest():
    pair = scene(ground=4000)
    flow = RigidFlow().predict(Batch([pair]))[0]
    error = (flow.flow - pair.flow).norm(dim=1)
    assert error[-400:].mean() < 0.1
    assert (flow.residual[:-400].norm(dim=1) > 0).float().mean() < 0.02
    bare = SweepPair(pair.source, pair.target)
    assert (RigidFlow().predict(Batch([bare]))[0].flow - pair.flow).norm(dim=1).mean() < 0.1


def test_groups_are_what_touches():
    points = torch.tensor([[0.0, 0, 0], [0.3, 0, 0], [5, 0, 0], [0.6, 0.3, 0], [5.2, 0, 0]])
    group = components(points, 0.4)
    assert group[[0, 1, 3]].unique().numel() == 1 and group[2] == group[4] != group[0]


@pytest.mark.parametrize("history", [0, 1, 3])
def test_more_sweeps_are_taken(history):
    pair = scene()
    pair.history = [(pair.source[::2], pair.ego_motion @ pair.ego_motion)] * history
    losses = small().loss(Batch([pair, scene(1)]))
    losses["loss_flow"].backward()
    assert losses["loss_flow"].isfinite()


def test_differences_decay_and_count_sweeps():
    model = small()
    features = torch.ones(4, 4)
    frame, index = torch.tensor([0, 1, 2, 2]), torch.tensor([0, 0, 1, 1])
    found = model.differences(features, frame, index, 2)[:, 0]
    torch.testing.assert_close(found, torch.tensor([(1.4 - 1.0) / 2, -0.4 / 2]))


def test_learns_and_predicts_with_ego_motion_included():
    pair, model = scene(), small(absolute=False)
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    losses = []
    for _ in range(12):
        loss = model.loss(Batch([pair]))["loss_flow"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    flow = model.eval().predict(Batch([pair]))[0]
    unseen = ~flow.seen
    assert unseen[:380].float().mean() > 0.9  # the ground
    torch.testing.assert_close(flow.flow[unseen], pair.ego_flow[unseen])


def test_self_supervision_needs_no_truth_and_prefers_the_true_flow():
    pair = scene()
    unlabelled = SweepPair(pair.source, pair.target, ego_motion=pair.ego_motion)
    model = small(loss="self_supervised", cycle_weight=0.5)
    losses = model.loss(Batch([unlabelled]))
    assert set(losses) == {"loss_near", "loss_smooth", "loss_cycle"}
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    with pytest.raises(ValueError, match="has no true flow"):
        small().loss(Batch([unlabelled]))


def test_range_and_batch():
    model = small(point_range=(-15, -15, -3, 15, 15, 3)).eval()
    pairs = [scene(0), scene(1)]
    together = model.predict(Batch(pairs))
    for pair, flow in zip(pairs, together):
        assert not flow.seen[pair.source[:, 0].abs() > 17].any()
        alone = model.predict(Batch([pair]))[0].flow
        torch.testing.assert_close(alone, flow.flow, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("model", [RigidFlow(), small().eval()], ids=["groups", "network"])
@pytest.mark.parametrize("sizes", [(0, 0), (0, 900), (900, 0)])
def test_empty_clouds_are_legal(model, sizes):
    source, target = (scene().target[:n] for n in sizes)
    flow = model.predict(Batch([SweepPair(source, target)]))[0]
    assert flow.flow.shape == (sizes[0], 3) and flow.flow.isfinite().all()


def test_balanced_error_counts_groups_alike():
    truth = torch.zeros(100, 3)
    truth[:2, 0] = 1.0
    found = torch.zeros(100, 3)
    assert balanced_error(found, truth, torch.ones(100).bool(), 0.1) == pytest.approx(1.0)


def test_options_that_cannot_be():
    with pytest.raises(ValueError, match="must be one of balanced"):
        small(loss="l2")
    with pytest.raises(ValueError, match="six numbers"):
        small(point_range=(0, 1))


@pytest.mark.parametrize("path", real_data("argoverse2/pair.npz"), ids=lambda p: "pair")
def test_real_sweeps_are_much_better_than_ego_motion_alone(path):
    from sparse3d.datasets.flow import read_npz_pair
    from sparse3d.evaluation.flow import argoverse2_scores
    from sparse3d.evaluation.flow_metric import frame_of

    flow = RigidFlow().predict(Batch([read_npz_pair(path)]))[0]
    assert argoverse2_scores([frame_of(flow)])["EPE 3-Way Average"] < 0.09
