from dataclasses import replace
from functools import lru_cache

import pytest
import torch

from sparse3d.engine.published import convert_state
from sparse3d.models.heads.center_targets import MapFrame, decode
from sparse3d.models.heads.voxelnext_head import VoxelMaps, VoxelNeXtHead, assign_voxels
from sparse3d.ops import backend
from sparse3d.registry import MODELS
from sparse3d.structures import Boxes, SparseVoxels, VoxelGrid
from tests.models.kinks import errors_up_to_kinks
from tests.models.parity import (
    FEATURES,
    GRADIENT,
    LAST_BITS,
    LOSS,
    assert_detections,
    files_where,
    gradient_errors,
    load,
    name,
    truth,
)
from tests.published_configs import sparse_backbone, voxelnext_head

GRID = VoxelGrid((0.5, 0.5, 1.0), (-8.0, -4.0, -2.0), (32, 16, 4))
FLAT = VoxelGrid(GRID.voxel_size[:2], GRID.origin[:2], GRID.shape[:2])
NAMES = ("car", "pedestrian")
BOX = [1.3, -0.4, 0.2, 4.0, 1.8, 1.5, 0.7]
NONE = torch.zeros(0, dtype=torch.int64)
implementations = pytest.mark.parametrize("implementation", ["reference", "native", "cuda"])


def head(**options):
    torch.manual_seed(0)
    return VoxelNeXtHead(4, GRID, 2, NAMES, **options)


def sparse_map(cells, batch_size=1):
    """Cells of stride 2 (1 m) of a map of 16 x 8, with random features."""
    coords = torch.tensor(cells, dtype=torch.int64).reshape(-1, 3)
    features = torch.randn(len(coords), 4, generator=torch.Generator().manual_seed(1))
    return SparseVoxels.from_coords(coords, features, FLAT, batch_size, (2, 2), (16, 8))[0]


def full_map():
    return sparse_map([[0, x, y] for x in range(16) for y in range(8)])


def assign(voxels, boxes, labels, **options):
    frame = MapFrame.of(GRID, 2)
    boxes = [Boxes(torch.tensor(one).reshape(-1, 7)) for one in boxes]
    labels = [torch.tensor(one, dtype=torch.int64) for one in labels]
    return assign_voxels(boxes, labels, torch.tensor([0, 1]), voxels, frame, **options)


def test_a_box_is_learnt_at_the_nearest_voxel():
    voxels = sparse_map([[0, 3, 1], [0, 9, 4], [0, 12, 2]])
    target = assign(voxels, [[BOX]], [[1]])
    assert voxels.coords[target.row].tolist() == [[0, 9, 4]]
    offset = target.code[0, :2]  # centre at cell 9.3, 3.6
    torch.testing.assert_close(offset, torch.tensor([0.3, -0.4]))
    assert (target.heatmap[:, 0] == 0).all()
    assert target.heatmap[target.row, 1] == 1
    boxes = decode(target.code, voxels.coords[target.row, 1:], MapFrame.of(GRID, 2))
    torch.testing.assert_close(boxes, torch.tensor([BOX]))


def test_heat_is_the_larger_of_two_gaussians():
    voxels = sparse_map([[0, 9, 4], [0, 11, 4], [0, 7, 3], [0, 0, 0]])
    heat = assign(voxels, [[BOX]], [[0]]).heatmap[:, 0]
    sigma = 5 / 6  # the least radius of 2
    cells = voxels.coords[:, 1:].double()
    center, nearest = torch.tensor([[9.3, 3.6], [9.0, 4.0]]).double()
    squared = torch.minimum(((cells - center) ** 2).sum(1), ((cells - nearest) ** 2).sum(1))
    expected = torch.exp(-squared / (2 * sigma**2)).float()
    torch.testing.assert_close(heat, expected, rtol=1e-4, atol=1e-7)
    assert (heat > 0).all()  # the whole plane, no square is cut


def test_equally_near_voxels_give_the_first_in_coordinate_order():
    middle = [[1.5, -0.5, *BOX[2:]]]  # cell 9.5, 3.5
    voxels = sparse_map([[0, 10, 4], [0, 9, 4], [0, 10, 3], [0, 9, 3]])
    target = assign(voxels, [middle], [[0]])
    assert voxels.coords[target.row].tolist() == [[0, 9, 3]]


def test_samples_do_not_share_voxels():
    voxels = sparse_map([[0, 9, 4], [2, 1, 1]], batch_size=3)
    target = assign(voxels, [[BOX], [BOX], [BOX]], [[0], [0], [0]])
    assert voxels.coords[target.row].tolist() == [[0, 9, 4], [2, 1, 1]]
    assert len(target.boxes) == len(target.code) == 2  # the second sample has no voxel
    assert target.heatmap[:, 0].tolist() == [1, 1]


@pytest.mark.parametrize("options", [{}, {"iou": True, "diou": True}, {"velocity": True}])
@pytest.mark.parametrize("cells", [[], [[1, 3, 4]], [[0, 1, 1], [2, 3, 4], [2, 4, 4]]])
@implementations
def test_little_to_learn_from_gives_a_finite_loss(options, cells, implementation):
    model = head(**options)
    boxes = [Boxes(torch.tensor([[*BOX, 1.0, 0.0]])), Boxes.empty(9), Boxes.empty(9)]
    labels = [torch.tensor([0]), NONE, NONE]
    with backend.forced(implementation):
        losses = model.loss(model(sparse_map(cells, 3)), boxes, labels)
        total = sum(losses.values())
        total.backward()
    assert torch.isfinite(total)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@implementations
def test_perfect_maps_give_the_boxes_back(implementation):
    boxes = torch.tensor([[*BOX, 1.0, -2.0], [-5.2, 2.2, 0.0, 0.8, 0.8, 1.7, -2.5, 0.0, 0.5]])
    labels = torch.tensor([0, 1])
    model, voxels = head(velocity=True, iou=True, diou=True), full_map()
    target = model.targets([Boxes(boxes)], [labels], voxels)[0]
    code = torch.zeros(len(voxels), 10)
    code[target.row] = target.code
    parts = dict(zip(("center", "center_z", "dim", "rot", "vel"), code.split([2, 1, 3, 2, 2], 1)))
    maps = {**parts, "iou": torch.ones(len(voxels), 1), "hm": 200 * target.heatmap - 190}
    raw = VoxelMaps(voxels, [maps])
    with backend.forced(implementation):
        losses = model.loss(raw, [Boxes(boxes)], [labels])
        found = model.predict(raw)[0].above(0.9)
    for part in ("box", "iou", "diou"):
        assert float(losses[f"loss_{part}"]) == pytest.approx(0, abs=1e-5)
    order = found.labels.argsort()
    torch.testing.assert_close(found.boxes[order].tensor, boxes, rtol=1e-4, atol=1e-4)
    assert found.labels[order].tolist() == [0, 1]


@implementations
def test_fewer_voxels_than_boxes_asked_for(implementation):
    options = {"score_threshold": 0.0, "max_objects": 500, "nms_threshold": 1.0}
    model = head(decoding=options).eval()
    voxels = sparse_map([[0, 3, 1], [0, 9, 4], [2, 1, 1]], batch_size=3)
    with backend.forced(implementation), torch.no_grad():
        found = model.predict(model(voxels))
    # every voxel gives each class once
    assert [len(one) for one in found] == [4, 0, 2]
    assert sorted(found[0].labels.tolist()) == [0, 0, 1, 1]
    assert all(one.boxes.tensor.shape[1] == 7 for one in found)
    assert all((one.scores.diff() <= 0).all() for one in found)


def test_row_order_of_the_coordinates_does_not_matter():
    model, cells = head().eval(), full_map()
    order = torch.randperm(len(cells), generator=torch.Generator().manual_seed(2))
    shuffled, _ = SparseVoxels.from_coords(
        cells.coords[order], cells.features[order], FLAT, 1, (2, 2), (16, 8)
    )
    with torch.no_grad():
        one, other = (model.predict(model(voxels))[0] for voxels in (cells, shuffled))
    assert torch.equal(one.boxes.tensor, other.boxes.tensor)
    assert torch.equal(one.scores, other.scores)


def test_bad_features_are_refused_and_do_not_pass_as_boxes():
    model, voxels = head().eval(), full_map()
    raw = model(voxels.replace(torch.full_like(voxels.features, float("nan"))))
    assert len(model.predict(raw)[0]) == 0


# ---------------------------------------------------------------- published outputs


def holds_head(stored):
    config = stored.get("config", {})
    return "dense_head" in config and config["dense_head"]["NAME"] == "VoxelNeXtHead"


def published(stored):
    """Backbone and head with the stored weights."""
    config, parts = stored["config"], []
    names = config["class_names"]
    grid = VoxelGrid.from_range(config["point_cloud_range"], config["voxel_size"])
    backbone = MODELS.build(
        {
            **sparse_backbone(config["backbone_3d"]),
            "in_channels": stored["voxel_features"].shape[1],
            "grid": grid,
        }
    )
    model = MODELS.build(
        {
            **voxelnext_head(config["dense_head"], len(names)),
            "in_channels": backbone.out_channels,
            "grid": grid,
            "stride": backbone.out_stride[0],
            "class_names": names,
        }
    )
    for role, part in (("backbone_3d", backbone), ("dense_head", model)):
        part.load_state_dict(convert_state(role, stored["state_dict"][role], part))
        parts.append(part)
    return parts


def published_voxels(stored, features):
    config = stored["config"]
    grid = VoxelGrid.from_range(config["point_cloud_range"], config["voxel_size"])
    coords = stored["voxel_coords"][:, [0, 3, 2, 1]]
    return SparseVoxels.from_coords(coords, features, grid, stored["batch_size"])[0]


def rows_of(voxels, indices):
    """Row of ``voxels`` for each of the reference's ``indices`` (batch, y, x)."""
    rows = voxels.lookup(indices[:, [0, 2, 1]])
    assert len(voxels) == len(rows) == len(rows.unique())
    assert (rows >= 0).all()
    return rows


@pytest.mark.parity
@pytest.mark.parametrize("path", files_where(holds_head), ids=name)
@implementations
def test_published_maps_and_boxes(path, implementation):
    stored = load(path)
    backbone, model = (part.eval() for part in published(stored))
    with backend.forced(implementation), torch.no_grad():
        raw = model(backbone(published_voxels(stored, stored["voxel_features"]))[-1])
        found = model.predict(raw)
    rows = rows_of(raw.voxels, stored["eval"]["encoded"]["indices"])
    for maps, reference in zip(raw.groups, stored["eval"]["pred_dicts"], strict=True):
        assert maps.keys() == reference.keys()
        for key, value in reference.items():
            torch.testing.assert_close(maps[key][rows], value, **FEATURES)
    assert_detections(found, stored["eval"]["final_box_dicts"])


def stored_sample_order(indices):
    """The reference stacks heat maps sample by sample, while its voxels' rows are in no order."""
    return indices[:, 0].argsort(stable=True)


@pytest.mark.parity
@pytest.mark.parametrize("path", files_where(holds_head), ids=name)
def test_published_targets(path):
    stored = load(path)
    backbone, model = published(stored)
    boxes, labels = truth(stored["gt_boxes"], 9 if model.velocity else 7)
    with torch.no_grad():
        voxels = backbone.eval()(published_voxels(stored, stored["voxel_features"]))[-1]
    train = stored["train"]
    indices, reference = train["encoded_indices"], train["targets"]
    rows = rows_of(voxels, indices)
    order = stored_sample_order(indices)
    first_row = torch.searchsorted(indices[order, 0].contiguous(), torch.arange(len(boxes)))
    for group, target in enumerate(model.targets(boxes, labels, voxels)):
        heat = target.heatmap[rows[order]]
        # exp of the same squared distance, but for its last bits
        torch.testing.assert_close(heat, reference["heatmaps"][group], rtol=0, atol=1e-6)
        assert torch.equal(heat == 1, reference["heatmaps"][group] == 1)
        keep = reference["masks"][group] > 0
        sample = keep.nonzero()[:, 0]
        stored_row = rows[order[first_row[sample] + reference["inds"][group][keep]]]
        assert torch.equal(target.row, stored_row)
        code = reference["target_boxes"][group][keep]
        torch.testing.assert_close(target.code, code, **LAST_BITS)


class TrainingStep:
    """Forward and backward of a stored detector, from voxels to the loss."""

    def __init__(self, stored):
        self.stored = stored
        self.backbone, self.head = (part.train() for part in published(stored))
        self.order = stored_sample_order(stored["train"]["encoded_indices"])

    def losses(self, features):
        """The losses of each group."""
        boxes, labels = truth(self.stored["gt_boxes"], 9 if self.head.velocity else 7)
        raw = self.head(self.backbone(published_voxels(self.stored, features))[-1])
        rows = rows_of(raw.voxels, self.stored["train"]["encoded_indices"])
        losses = []
        for maps, target in zip(raw.groups, self.head.targets(boxes, labels, raw.voxels)):
            # where rows of several samples mix, the reference compares a voxel with another's heat
            heat = torch.empty_like(target.heatmap)
            heat[rows] = target.heatmap[rows[self.order]]
            losses.append(self.head.group_loss(raw.voxels, maps, replace(target, heatmap=heat)))
        return losses

    def __call__(self):
        """Errors of the losses and all gradients, over what is allowed."""
        train, parts = (
            self.stored["train"],
            {"backbone_3d": self.backbone, "dense_head": self.head},
        )
        for part in parts.values():
            part.zero_grad()
        features = self.stored["voxel_features"].clone().requires_grad_()
        losses = self.losses(features)
        total = sum(value for group in losses for value in group.values())
        total.backward()
        reference = train["grad_voxel_features"]
        difference = float((features.grad - reference).abs().max() / reference.abs().max())
        errors = {"loss": loss_error(total, train["loss"]), "input": difference / GRADIENT}
        for index, group in enumerate(losses):
            for theirs, ours in PARTS.items():
                value = train["tb_dict"].get(f"{theirs}_loss_head_{index}", 0.0)
                own = group.get(f"loss_{ours}", torch.zeros(()))
                errors[f"{theirs} of group {index}"] = loss_error(own, value)
        for role, part in parts.items():
            own = gradient_errors(role, part, train)
            errors.update({f"{role}.{name}": error for name, error in own.items()})
        return errors


PARTS = {"hm": "heatmap", "loc": "box", "iou": "iou", "iou_reg": "diou"}


def loss_error(found, stored):
    return abs(found.item() - stored) / (LOSS["atol"] + LOSS["rtol"] * abs(stored))


@lru_cache
def kinks_of(path):
    """The sides on which the reference fell."""
    with backend.forced("native"):
        return errors_up_to_kinks(TrainingStep(load(path)))[1]


@pytest.mark.parity
@pytest.mark.parametrize("path", files_where(holds_head), ids=name)
@implementations
def test_published_training_step(path, implementation):
    step = TrainingStep(load(path))
    with backend.forced(implementation):
        assert step()["loss"] <= 1
        errors, _ = errors_up_to_kinks(step, kinks_of(path))
    assert len(errors) > 100
    wrong = {name: error for name, error in errors.items() if not error <= 1}
    assert not wrong, f"times what is allowed: {wrong}"
