import pytest
import torch

from sparse3d.models.scene_flow import SCTN
from sparse3d.models.votes import DisplacementVotes
from sparse3d.ops import backend
from sparse3d.structures import Batch, SweepPair


def rand(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def vehicle(seed):
    """Points [600, 3] on two sides of a box of 4.5 x 1.8 x 1.5 m."""
    along, across, up = rand(600, 3, seed=seed).unbind(1)
    side = torch.arange(600) < 400
    x, y = torch.where(side, 4.5 * along, 0.0), torch.where(side, 0.0, 1.8 * across)
    return torch.stack([x, y, 1.5 * up], 1)


def wall(seed):
    """Points [800, 3] of a wall 8 m aside."""
    along, _, up = rand(800, 3, seed=seed).unbind(1)
    return torch.stack([12 * along - 4, torch.full_like(along, 8.0), 2 * up], 1)


def street(move):
    """A vehicle that moves by ``move`` [3] and a wall that does not, both seen anew."""
    flow = torch.zeros(1400, 3)
    flow[:600] = move
    source = torch.cat([vehicle(1), wall(2)])
    return SweepPair(source, torch.cat([vehicle(3) + move, wall(4)]), flow)


@pytest.mark.parametrize("move", [(0.9, 0.0, 0.0), (-0.6, 0.5, 0.0), (0.0, -1.2, 0.0)])
@torch.no_grad()
def test_neighbours_together_find_what_moves_before_anything_is_learnt(move):
    pair = street(torch.tensor(move))
    alike = torch.ones(1400, 8)
    flow, evidence = DisplacementVotes(8)((pair.source, pair.target), (alike, alike))
    error = (flow - pair.flow).norm(dim=1)
    assert error[:600].mean() < 0.05 and error[600:].mean() < 0.2  # a bare wall may slide
    assert (evidence[:600, 0] > evidence[:600, 1]).float().mean() > 0.9


def test_a_vote_is_shared_among_the_steps_around_it():
    layer = DisplacementVotes(2, cell=0.5, steps=2)
    one = torch.ones(1, 2) / 2**0.5
    apart = torch.tensor([[0.6, -0.35, 0.0]])
    found = layer.votes((torch.zeros(1, 3), apart), (one, one))[0]
    moves = layer.displacements(apart)
    torch.testing.assert_close(found.sum(), torch.tensor(1.0))
    torch.testing.assert_close(found @ moves, apart[0])
    assert (found > 0).sum() == 4
    unlike = layer.votes((torch.zeros(1, 3), apart), (one, -one))[0]
    torch.testing.assert_close(unlike.sum(), torch.tensor(-2.0).exp())


def test_who_is_gathered_from_adds_up_and_is_near():
    layer, xyz = DisplacementVotes(4, pool=16), 3 * rand(40, 3)
    near, weights = layer.kin(xyz, torch.nn.functional.normalize(rand(40, 4, seed=1), dim=1))
    torch.testing.assert_close(weights.sum(1), torch.ones(40))
    assert torch.equal(near[:, 0], torch.arange(40)) and (weights >= 0).all()


@pytest.mark.parametrize("option", [{"cell": 0.0}, {"steps": 0}, {"pool": 0}, {"rounds": 0}])
def test_options_that_cannot_work_are_refused(option):
    with pytest.raises(ValueError, match="from 1 are needed"):
        DisplacementVotes(4, **option)


BACKBONE = {
    "type": "SparseUNet",
    "channels": [4, 8],
    "up_channels": [6],
    "blocks": 1,
}


def model():
    torch.manual_seed(0)
    made = SCTN(
        BACKBONE,
        voxel_size=0.3,
        neighbors=8,
        channels=(4, 4, 8),
        voxel_neighbors=3,
        absolute=False,
        votes={"pool": 32},
        transport_weight=1.0,
    )
    torch.nn.init.normal_(made.fc.weight, std=0.1)  # else there is nothing to compare
    return made


def test_everything_that_is_used_learns():
    made = model()
    losses = made.loss(Batch([street(torch.tensor([0.6, 0.0, 0.0]))]))
    assert losses.keys() == {"loss_flow", "loss_transport"}
    sum(losses.values()).backward()
    for name, parameter in made.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_native_and_reference_agree():
    batch = Batch([street(torch.tensor([0.6, 0.3, 0.0]))])
    found = []
    for implementation in ("reference", "native"):
        made = model()
        with backend.forced(implementation):
            sum(made.loss(batch).values()).backward()
            found.append([made.votes.rest.weight.grad, made.votes.reach.grad, made.fc.weight.grad])
    for one, other in zip(*found):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_clouds_of_any_sizes_and_empty_ones_are_legal():
    made = model().eval()
    sizes = [(30, 47), (5, 3), (0, 20), (20, 0), (1, 1), (0, 0)]
    batch = Batch([SweepPair(3 * rand(n, 3, seed=n), 3 * rand(m, 3, seed=m)) for n, m in sizes])
    for (count, _), flow, pair in zip(sizes, made.predict(batch), batch.samples):
        assert flow.flow.shape == (count, 3) and flow.flow.isfinite().all()
        alone = made.predict(Batch([pair]))[0].flow
        torch.testing.assert_close(flow.flow, alone, rtol=1e-4, atol=1e-4)


def test_rows_in_another_order_change_nothing():
    made, pair = model().eval(), street(torch.tensor([0.6, 0.3, 0.0]))
    order = torch.randperm(1400, generator=torch.Generator().manual_seed(5))
    flow = made.predict(Batch([pair]))[0].flow
    turned = made.predict(Batch([pair.select(order, order.flip(0))]))[0].flow
    torch.testing.assert_close(turned, flow[order], rtol=1e-3, atol=1e-3)


def test_where_the_scene_lies_does_not_matter():
    made, pair = model().eval(), street(torch.tensor([0.6, 0.3, 0.0]))
    shift = torch.tensor([9.6, -4.8, 0.0])  # whole cells, also of the coarser strides
    moved = SweepPair(pair.source + shift, pair.target + shift)
    flow, other = (made.predict(Batch([p]))[0].flow for p in (pair, moved))
    assert (flow - other).norm(dim=1).median() < 1e-3  # a point on an edge may change its cell
