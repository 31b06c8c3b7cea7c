from dataclasses import replace
from functools import lru_cache

import pytest
import torch

from sparse3d.engine.published import convert_state
from sparse3d.models.backbones.bev import to_bev
from sparse3d.models.backbones.sparse_resnet import (
    BasicBlock,
    SparseResNet,
    VoxelNeXtBackbone,
    flatten_height,
)
from sparse3d.ops import backend
from sparse3d.registry import MODELS
from sparse3d.structures import SparseVoxels, VoxelGrid
from tests.models.kinks import errors_up_to_kinks
from tests.models.parity import (
    FEATURES,
    GRADIENT,
    LOSS,
    files_where,
    gradient_errors,
    load,
    name,
    truth,
)
from tests.published_configs import bev_backbone, center_head, sparse_backbone

GRID = VoxelGrid((0.5, 0.5, 0.25), (-8.0, -4.0, -2.0), (32, 16, 24))
implementations = pytest.mark.parametrize("implementation", ["reference", "native", "cuda"])
NETS = {
    "plain": lambda: SparseResNet(3, GRID, (4, 4, 8, 8), 8),
    "residual": lambda: SparseResNet(3, GRID, (4, 4, 8, 8), 8, residual=True, bias=False),
    "voxelnext": lambda: VoxelNeXtBackbone(3, GRID, (4, 4, 8, 8, 8), 8, (5, 3, 3, 3)),
}
networks = pytest.mark.parametrize("net", NETS)


def build(net):
    torch.manual_seed(0)
    model = NETS[net]()
    for part in model.modules():
        if isinstance(part, torch.nn.BatchNorm1d):
            torch.nn.init.normal_(part.running_mean, std=0.1)
            torch.nn.init.normal_(part.bias, std=0.1)
    return model.eval()


def voxels_at(coords, batch_size, features=None):
    coords = torch.tensor(coords, dtype=torch.int64).reshape(-1, 4)
    if features is None:
        features = torch.randn(len(coords), 3, generator=torch.Generator().manual_seed(1))
    return SparseVoxels.from_coords(coords, features, GRID, batch_size)[0]


def random_voxels(batch_size=2, per_sample=60, seed=0):
    generator = torch.Generator().manual_seed(seed)
    cells = torch.rand(batch_size * per_sample, 3, generator=generator) * torch.tensor(GRID.shape)
    sample = torch.arange(batch_size).repeat_interleave(per_sample)
    coords = torch.cat([sample[:, None], cells.long()], 1).unique(dim=0)
    return voxels_at(coords.tolist(), batch_size)


@networks
def test_declared_output_is_the_output(net):
    model = build(net)
    stages = model(random_voxels())
    last, dims = stages[-1], len(model.out_shape)
    assert last.shape == model.out_shape
    assert last.stride == model.out_stride
    assert last.channels == model.out_channels
    assert last.dims == dims
    assert [stage.stride[0] for stage in stages[:4]] == [1, 2, 4, 8]


@networks
@implementations
def test_a_batch_is_its_samples(net, implementation):
    model, voxels = build(net), random_voxels()
    with backend.forced(implementation), torch.no_grad():
        whole = model(voxels)[-1].split()
        single = [model(sample)[-1] for sample in voxels.split()]
    for one, other in zip(whole, single, strict=True):
        assert torch.equal(one.coords, other.coords)
        torch.testing.assert_close(one.features, other.features)


@networks
def test_moving_by_the_largest_stride_moves_the_output(net):
    # far from the borders, where the grid cuts nothing off
    model, step = build(net), 32 if net == "voxelnext" else 16
    coords = [[0, 5, 6, 9], [0, 6, 6, 9], [0, 8, 7, 8]]
    wide = VoxelGrid(GRID.voxel_size, GRID.origin, (128, 64, 24))
    model.in_shape = (128, 64, 25)
    outputs = []
    for shift in (32, 32 + step):
        moved = torch.tensor(coords) + torch.tensor([0, shift, 16, 0])
        voxels = replace(voxels_at(coords, 1), coords=moved.int(), grid=wide)
        outputs.append(model(voxels)[-1])
    first, second = outputs
    offset = torch.zeros_like(first.coords[0])
    offset[1] = step // 8
    assert torch.equal(first.coords + offset, second.coords)
    torch.testing.assert_close(first.features, second.features)


@networks
@implementations
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    "coords", [[], [[1, 3, 4, 5]], [[1, 3, 4, 5], [1, 30, 14, 23]]], ids=["none", "one", "two"]
)
def test_few_voxels_and_empty_samples(net, implementation, training, coords):
    model = build(net).train(training)
    features = torch.randn(len(coords), 3, requires_grad=True)
    with backend.forced(implementation):
        stages = model(voxels_at(coords, 3, features))
        sum(stage.features.sum() for stage in stages).backward()
    assert all(stage.features.isfinite().all() and stage.batch_size == 3 for stage in stages)
    assert features.grad.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert all(b.isfinite().all() for b in model.buffers())


@networks
def test_bad_features_stay_within_their_sample(net):
    voxels = random_voxels()
    features = voxels.features.clone()
    features[voxels.batch_index == 0] = float("nan")
    model = build(net)
    clean, spoilt = model(voxels)[-1], model(voxels.replace(features))[-1]
    assert spoilt.features[spoilt.batch_index == 0].isnan().any()
    own = clean.batch_index == 1
    assert torch.equal(clean.features[own], spoilt.features[own])


def test_basic_block_adds_its_input():
    block = BasicBlock(3, bias=True).eval()
    torch.nn.init.zeros_(block.bn2.weight)
    voxels = random_voxels()
    torch.testing.assert_close(block(voxels).features, voxels.features.relu())


def test_flattening_sums_the_column_and_the_coarser_cells():
    fine = voxels_at([[0, 2, 3, 1], [0, 2, 3, 7], [0, 4, 6, 0]], 1, torch.tensor([[1.0], [2], [4]]))
    half = voxels_at([[0, 1, 1, 0], [0, 2, 3, 0]], 1, torch.tensor([[8.0], [16]]))
    half = replace(half, stride=(2, 2, 2))
    flat = flatten_height(fine, [half])
    assert flat.coords.tolist() == [[0, 2, 2], [0, 2, 3], [0, 4, 6]]
    assert flat.features[:, 0].tolist() == [8, 3, 20]
    assert flat.shape == GRID.shape[:2]


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(ValueError, match="24 cells or more"):
        SparseResNet(3, VoxelGrid((1.0,) * 3, (0.0,) * 3, (32, 32, 23)))
    with pytest.raises(ValueError, match="bounded"):
        SparseResNet(3, VoxelGrid((1.0,) * 3, (0.0,) * 3))
    with pytest.raises(ValueError, match="4 positive widths"):
        SparseResNet(3, GRID, (16, 32, 64))
    with pytest.raises(ValueError, match="four odd"):
        VoxelNeXtBackbone(3, GRID, kernel_sizes=(3, 4, 3, 3))
    with pytest.raises(ValueError, match="must be equal"):
        VoxelNeXtBackbone(3, GRID, (16, 32, 64, 128, 64))


# ---------------------------------------------------------------- published outputs


def holds_backbone(stored):
    return "encoded" in stored.get("eval", {})


def holds_dense_detector(stored):
    dense = "spatial_features" in stored.get("eval", {})
    return (
        holds_backbone(stored) and dense and stored["config"]["dense_head"]["NAME"] == "CenterHead"
    )


def grid_of(stored):
    config = stored["config"]
    return VoxelGrid.from_range(config["point_cloud_range"], config["voxel_size"])


def published(role, stored, config):
    model = MODELS.build(config)
    model.load_state_dict(convert_state(role, stored["state_dict"][role], model))
    return model


def published_backbone(stored):
    config = sparse_backbone(stored["config"]["backbone_3d"])
    channels = stored["voxel_features"].shape[1]
    return published(
        "backbone_3d", stored, {**config, "grid": grid_of(stored), "in_channels": channels}
    )


def published_voxels(stored, features=None):
    features = stored["voxel_features"] if features is None else features
    coords = stored["voxel_coords"][:, [0, 3, 2, 1]]
    return SparseVoxels.from_coords(coords, features, grid_of(stored), stored["batch_size"])[0]


def assert_voxels(voxels, stored):
    """Compare with indices (batch, [z,] y, x) in any order."""
    indices = stored["indices"]
    coords = torch.cat([indices[:, :1], indices[:, 1:].flip(1)], 1)
    rows = voxels.lookup(coords)
    assert len(voxels) == len(rows) == len(rows.unique())
    assert (rows >= 0).all()
    assert list(voxels.shape) == stored["spatial_shape"][::-1]
    torch.testing.assert_close(voxels.features[rows], stored["features"], **FEATURES)


@pytest.mark.parity
@pytest.mark.parametrize("path", files_where(holds_backbone), ids=name)
@implementations
def test_published_stages(path, implementation):
    stored = load(path)
    model = published_backbone(stored).eval()
    with backend.forced(implementation), torch.no_grad():
        stages = model(published_voxels(stored))
    expected = stored["eval"].get("multi_scale", {})
    for number, reference in enumerate(expected.values()):
        assert_voxels(stages[number], reference)
    assert_voxels(stages[-1], stored["eval"]["encoded"])
    if "spatial_features" in stored["eval"]:
        torch.testing.assert_close(
            to_bev(stages[-1]), stored["eval"]["spatial_features"], **FEATURES
        )


class TrainingStep:
    """Forward and backward of a stored detector, from voxels to the loss."""

    def __init__(self, stored):
        config, names = stored["config"], stored["config"]["class_names"]
        self.stored = stored
        self.backbone = published_backbone(stored).train()
        bev = {
            **bev_backbone(config["backbone_2d"]),
            "in_channels": self.backbone.out_channels * self.backbone.out_shape[2],
        }
        self.bev = published("backbone_2d", stored, bev).train()
        head = {
            **center_head(config["dense_head"], len(names)),
            "in_channels": self.bev.out_channels,
            "grid": grid_of(stored),
            "stride": self.backbone.out_stride[0] * self.bev.out_stride,
            "class_names": names,
        }
        self.head = published("dense_head", stored, head).train()

    def __call__(self):
        """Errors of the loss and all gradients, over what is allowed."""
        parts = {"backbone_3d": self.backbone, "backbone_2d": self.bev, "dense_head": self.head}
        for part in parts.values():
            part.zero_grad()
        features = self.stored["voxel_features"].clone().requires_grad_()
        boxes, labels = truth(self.stored["gt_boxes"], 9 if self.head.velocity else 7)
        voxels = self.backbone(published_voxels(self.stored, features))[-1]
        total = sum(self.head.loss(self.head(self.bev(to_bev(voxels))), boxes, labels).values())
        total.backward()
        train = self.stored["train"]
        allowed = LOSS["atol"] + LOSS["rtol"] * abs(train["loss"])
        reference = train["grad_voxel_features"]
        difference = float((features.grad - reference).abs().max() / reference.abs().max())
        errors = {
            "loss": abs(total.item() - train["loss"]) / allowed,
            "input": difference / GRADIENT,
        }
        for role, part in parts.items():
            own = gradient_errors(role, part, train)
            errors.update({f"{role}.{name}": error for name, error in own.items()})
        return errors


@lru_cache
def kinks_of(path):
    """The sides on which the reference fell."""
    with backend.forced("native"):
        return errors_up_to_kinks(TrainingStep(load(path)))[1]


@pytest.mark.parity
@pytest.mark.parametrize("path", files_where(holds_dense_detector), ids=name)
@implementations
def test_published_training_step(path, implementation):
    """Loss and gradients of the backbone and its input, through 2-D network and head."""
    step = TrainingStep(load(path))
    with backend.forced(implementation):
        assert step()["loss"] <= 1
        errors, _ = errors_up_to_kinks(step, kinks_of(path))
    assert len(errors) > 100
    wrong = {name: error for name, error in errors.items() if not error <= 1}
    assert not wrong, f"times what is allowed: {wrong}"
