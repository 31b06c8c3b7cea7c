"""Points to voxel features."""

import pytest
import torch
from torch.nn import functional as F

from sparse3d.models.encoders import DynamicEncoder, MeanEncoder
from sparse3d.models.norms import RowBatchNorm
from sparse3d.ops import backend
from sparse3d.registry import MODELS
from sparse3d.structures import VoxelGrid

from .parity import FEATURES, files_where, load, name

IMPLEMENTATIONS = ("reference", "native")
PILLARS = VoxelGrid.from_range((-4, -4, -1, 4, 4, 3), (0.5, 0.5, 4))
VOXELS = VoxelGrid.from_range((-4, -4, -1, 4, 4, 3), (0.5, 0.5, 0.5))


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request):
    with backend.forced(request.param):
        yield request.param


def cloud(count=400, columns=4, seed=0):
    random = torch.Generator().manual_seed(seed)
    points = torch.randn(count, columns, generator=random) * 2
    return points, torch.randint(0, 2, (count,), generator=random) * 2  # sample 1 is empty


def encoders():
    torch.manual_seed(0)
    return {
        "pillar": DynamicEncoder(PILLARS, 4, (16, 16), pillar=True),
        "voxel": DynamicEncoder(VOXELS, 4, (16, 8, 12)),
        "mean": MeanEncoder(VOXELS, 4),
    }


KINDS = tuple(encoders())


def encode_by_loops(encoder, points, batch):
    """The definition, voxel by voxel with concatenated features, in evaluation mode."""
    grid = encoder.grid
    size, origin = torch.tensor(grid.voxel_size), torch.tensor(grid.origin)
    cells = torch.floor((points[:, :3] - origin) / size)
    if encoder.pillar:
        cells[:, 2] = 0
    inside = ((cells >= 0) & (cells < torch.tensor(grid.shape))).all(1)
    cells = torch.cat([batch[:, None].float(), cells], 1)
    features = {}
    for cell in cells[inside].unique(dim=0):
        own = points[inside & (cells == cell).all(1)]
        xyz = own[:, :3]
        center = origin + (cell[1:] + 0.5) * size
        rows = torch.cat([own, xyz - xyz.mean(0), xyz - center], 1)
        for layer in encoder.layers:
            rows = F.relu(layer.norm(F.linear(rows, layer.linear.weight)))
            voxel = rows.amax(0)
            rows = torch.cat([rows, voxel.expand_as(rows)], 1)
        features[tuple(cell.int().tolist())] = voxel
    return features


@pytest.mark.parametrize("kind", ["pillar", "voxel"])
def test_dynamic_encoder_follows_its_definition(kind, implementation):
    encoder = encoders()[kind].eval()
    for layer in encoder.layers:
        torch.nn.init.normal_(layer.norm.bias)
        torch.nn.init.normal_(layer.norm.running_mean)
    points, batch = cloud()
    with torch.no_grad():
        voxels = encoder(points, batch, 3)
        expected = encode_by_loops(encoder, points, batch)
    assert [tuple(c) for c in voxels.coords.tolist()] == sorted(expected)
    torch.testing.assert_close(
        voxels.features, torch.stack([expected[c] for c in sorted(expected)])
    )
    assert voxels.shape == encoder.grid.shape and voxels.channels == encoder.out_channels


def test_pillars_keep_points_above_and_below_and_voxels_do_not():
    points = torch.tensor([[0.1, 0.1, 50.0, 1.0], [2.0, 2.0, -30.0, 1.0], [9.0, 0.0, 0.0, 1.0]])
    batch = torch.zeros(3).long()
    kinds = encoders()
    assert len(kinds["pillar"].eval()(points, batch, 1)) == 2
    assert len(kinds["voxel"].eval()(points, batch, 1)) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_order_of_points_leaves_no_trace(kind, implementation):
    points, batch = cloud(3000)
    points[1::7] = points[::7][: len(points[1::7])]  # equal points, too
    order = torch.randperm(len(points))
    results = []
    for p, b in ((points, batch), (points[order], batch[order])):
        encoder = encoders()[kind].train()
        voxels = encoder(p, b, 3)
        cotangent = torch.linspace(-1, 1, voxels.features.numel()).view_as(voxels.features)
        if voxels.features.requires_grad:
            (voxels.features * cotangent).sum().backward()
        gradients = [q.grad for q in encoder.parameters()]
        results.append((voxels.coords, voxels.features, *gradients, *encoder.buffers()))
    for mine, other in zip(*results):
        assert torch.equal(mine, other)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [0, 1])
@pytest.mark.parametrize("training", [True, False])
def test_few_points(kind, count, training, implementation):
    encoder = encoders()[kind].train(training)
    points = torch.full((count, 4), 0.2)
    voxels = encoder(points, torch.zeros(count).long(), 2)
    assert voxels.features.shape == (count, encoder.out_channels)
    assert torch.isfinite(voxels.features).all()
    assert voxels.batch_size == 2
    if voxels.features.requires_grad:
        voxels.features.sum().backward()
        assert all(torch.isfinite(p.grad).all() for p in encoder.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_bad_points_are_refused(kind, implementation):
    points, batch = cloud()
    points[5, 2] = float("nan")
    with pytest.raises(ValueError, match="NaN or infinite"):
        encoders()[kind](points, batch, 3)


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match=r"has 8.*4 m high"):
        DynamicEncoder(VOXELS, 4, pillar=True)
    with pytest.raises(ValueError, match="bounded 3-D grid"):
        DynamicEncoder(VoxelGrid((0.5,) * 3, (0.0,) * 3), 4)
    with pytest.raises(ValueError, match="must be even"):
        DynamicEncoder(VOXELS, 4, (15, 16))


def test_mean_encoder_takes_means(implementation):
    points, batch = cloud()
    voxels = encoders()["mean"](points, batch, 3)
    size, origin = torch.tensor(VOXELS.voxel_size), torch.tensor(VOXELS.origin)
    cells = torch.cat([batch[:, None].int(), torch.floor((points[:, :3] - origin) / size).int()], 1)
    for coords, feature in zip(voxels.coords, voxels.features):
        own = points[(cells == coords).all(1)]
        torch.testing.assert_close(feature, own.mean(0))


def test_capped_mean_takes_the_first_points(implementation):
    points = torch.tensor([[0.1, 0.1, 0.1, v] for v in (1.0, 3.0, 100.0)])
    points = torch.cat([points, torch.tensor([[1.1, 0.1, 0.1, 7.0]])])
    batch = torch.zeros(4).long()
    voxels = MeanEncoder(VOXELS, 4, max_points=2)(points, batch, 1)
    assert voxels.features[:, 3].tolist() == [2, 7]
    voxels = MeanEncoder(VOXELS, 4, max_points=5, max_voxels=1)(points, batch, 1)
    torch.testing.assert_close(voxels.features[:, 3], torch.tensor([104 / 3]))
    assert len(MeanEncoder(VOXELS, 4, max_voxels=1)(points, batch, 1)) == 1


def test_encoders_are_registered():
    options = {"grid": VOXELS, "point_channels": 4}
    assert MODELS.build({"type": "DynamicEncoder", **options}).out_channels == 64
    assert MODELS.build({"type": "MeanEncoder", **options}).out_channels == 4


@pytest.mark.parametrize("training", [True, False])
def test_row_norm_counts_repeated_rows(training):
    torch.manual_seed(0)
    rows = torch.randn(6, 3)
    counts = torch.tensor([1, 4, 2, 1, 1, 30])
    ours, plain = RowBatchNorm(3), torch.nn.BatchNorm1d(3)
    torch.nn.init.normal_(ours.weight)
    plain.load_state_dict(ours.state_dict())
    ours.train(training), plain.train(training)
    found = ours(rows, counts).repeat_interleave(counts, 0)
    torch.testing.assert_close(found, plain(rows.repeat_interleave(counts, 0)))
    for mine, other in zip(ours.buffers(), plain.buffers()):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("counts", [None, [1], [0]])
def test_row_norm_of_too_few_rows_uses_what_it_has_learned(counts):
    norm = RowBatchNorm(3).train()
    before = [b.clone() for b in norm.buffers()]
    rows = torch.randn(1, 3)
    out = norm(rows, None if counts is None else torch.tensor(counts))
    torch.testing.assert_close(out, norm.eval()(rows))
    assert all(torch.equal(a, b) for a, b in zip(before, norm.buffers()))


# ---------------------------------------------------------------------- published outputs


def _holds_means(fixture) -> bool:
    return {"points", "voxel_features", "voxel_coords"} <= set(fixture)


@pytest.mark.parity
@pytest.mark.parametrize("path", files_where(_holds_means), ids=name)
def test_mean_encoder_matches_the_published_one(path, implementation):
    fixture = load(path)
    config, points = fixture["config"], fixture["points"]
    grid = VoxelGrid.from_range(config["point_cloud_range"], config["voxel_size"])
    voxels = MeanEncoder(grid, points.shape[1] - 1)(
        points[:, 1:], points[:, 0].long(), fixture["batch_size"]
    )
    rows = fixture["voxel_coords"][:, [0, 3, 2, 1]].int()
    order = torch.tensor(sorted(range(len(rows)), key=rows.tolist().__getitem__))
    assert torch.equal(voxels.coords, rows[order])
    torch.testing.assert_close(voxels.features, fixture["voxel_features"][order], **FEATURES)


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_changes_nothing(kind, implementation):
    points, batch = cloud()
    exact = encoders()[kind].train()(points, batch, 3)
    with torch.autocast("cpu", torch.bfloat16):
        voxels = encoders()[kind].train()(points, batch, 3)
    assert torch.equal(voxels.features, exact.features)
