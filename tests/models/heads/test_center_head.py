import math

import pytest
import torch

from sparse3d.engine.published import convert_state
from sparse3d.models.heads.center_head import CenterHead
from sparse3d.models.heads.center_targets import MapFrame, assign_centers, decode, encode
from sparse3d.ops import backend
from sparse3d.registry import MODELS
from sparse3d.structures import Boxes, VoxelGrid
from tests.models.parity import (
    FEATURES,
    LAST_BITS,
    LOSS,
    assert_detections,
    files_where,
    load,
    name,
    truth,
)
from tests.published_configs import center_head

GRID = VoxelGrid((0.5, 0.5, 1.0), (-8.0, -4.0, -2.0), (32, 16, 4))
NAMES = ("car", "pedestrian")
BOX = [1.3, -0.4, 0.2, 4.0, 1.8, 1.5, 0.7]
implementations = pytest.mark.parametrize("implementation", ["reference", "native"])


def head(**options):
    torch.manual_seed(0)
    return CenterHead(4, GRID, 2, NAMES, **{"shared_channels": 8, **options})


def assign(boxes, labels, **options):
    frame = MapFrame.of(GRID, 2)
    boxes = Boxes(torch.tensor(boxes).reshape(len(labels), -1) if labels else torch.zeros(0, 7))
    labels = torch.tensor(labels, dtype=torch.int64)
    return assign_centers([boxes], [labels], torch.tensor([0, 1]), frame, (16, 8), **options)


def test_one_box_makes_one_bump():
    target = assign([BOX], [1])
    column, row = 9, 3  # (1.3 + 8) / 1, (-.4 + 4) / 1
    assert target.cell.tolist() == [[column, row]]
    assert target.heatmap[0, 0].max() == 0
    bump = target.heatmap[0, 1]
    assert bump[row, column] == 1
    assert (bump == 1).sum() == 1
    sigma = 5 / 6  # the least radius of 2
    assert bump[row + 1, column + 2] == pytest.approx(math.exp(-5 / (2 * sigma**2)))
    assert bump[row, column + 3] == 0
    assert bump[row, column - 1] == bump[row, column + 1] == bump[row + 1, column]


def test_bumps_merge_by_maximum():
    far = [2.3, *BOX[1:]]
    both = assign([BOX, far], [0, 0]).heatmap
    single = [assign([box], [0]).heatmap for box in (BOX, far)]
    assert torch.equal(both, torch.maximum(*single))


def test_decoding_inverts_the_code():
    torch.manual_seed(1)
    boxes = torch.rand(50, 9) * torch.tensor([15.9, 7.9, 3, 5, 3, 2, 6, 4, 4])
    boxes += torch.tensor([-8, -4, -2, 0.1, 0.1, 0.1, -3.1, -2, -2])
    frame = MapFrame.of(GRID, 2)
    cells = frame.to_cells(boxes[:, :2])
    cell = cells.long()
    back = decode(encode(boxes, cells - cell), cell, frame)
    torch.testing.assert_close(back, boxes, rtol=1e-5, atol=1e-5)


def test_neighbouring_cells_learn_the_nearest_box():
    near = [2.9, *BOX[1:]]  # two cells further along x
    target = assign([BOX, near, [-7.9, -3.9, *BOX[2:]]], [0, 1, 0], reach=1)
    boxes = decode(target.code, target.cell, MapFrame.of(GRID, 2))
    torch.testing.assert_close(boxes, target.boxes)
    columns = sorted(zip(*target.cell.T.tolist(), target.boxes[:, 0].tolist()))
    assert [(x, y) for x, y, owner in columns if owner < 0] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    middle = [(x, owner) for x, y, owner in columns if y == 3]
    # column 10 lies between both: its middle is 1.2 cells from the first, 0.4 from the second
    assert middle == [(x, pytest.approx(o)) for x, o in [(8, 1.3), (9, 1.3), (10, 2.9), (11, 2.9)]]
    assert assign([BOX, BOX], [0, 1], reach=1).cell.tolist().count([9, 3]) == 2
    plain = assign([BOX, near], [0, 1])
    assert torch.equal(plain.heatmap, assign([BOX, near], [0, 1], reach=2).heatmap)


@pytest.mark.parametrize(
    ("x", "y", "cell"), [(-50.0, 0.0, [0, 4]), (50.0, 50.0, [15, 7]), (8.0, -4.0, [15, 0])]
)
def test_a_box_outside_the_map_lands_on_its_border(x, y, cell):
    target = assign([[x, y, *BOX[2:]]], [0])
    assert target.cell.tolist() == [cell]
    assert target.heatmap[0, 0, cell[1], cell[0]] == 1


def test_boxes_without_a_size_and_ignored_labels_are_left_out():
    flat, negative = [*BOX[:3], 4.0, 0.0, *BOX[5:]], [*BOX[:3], -4.0, *BOX[4:]]
    target = assign([flat, BOX, negative, BOX], [0, 1, 0, -1])
    assert len(target.boxes) == 1
    assert target.boxes[0].tolist() == pytest.approx(BOX)
    assert target.heatmap[0, 0].max() == 0


def test_a_box_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="box 1 of sample 0"):
        assign([BOX, [float("nan"), *BOX[1:]]], [0, 0])


def test_missing_velocities_are_refused():
    with pytest.raises(ValueError, match="velocity=False"):
        assign([BOX], [0], velocity=True)


@pytest.mark.parametrize("options", [{}, {"iou": True, "diou": True}, {"velocity": True}])
def test_nothing_to_learn_from_gives_a_finite_loss_with_gradients(options):
    model = head(**options)
    raw = model(torch.randn(2, 4, 8, 16))
    losses = model.loss(raw, [Boxes.empty()] * 2, [torch.zeros(0, dtype=torch.int64)] * 2)
    total = sum(losses.values())
    total.backward()
    assert torch.isfinite(total)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@implementations
def test_training_finds_the_boxes_again(implementation):
    boxes = torch.tensor([[*BOX, 1.0, -2.0], [-5.2, 2.2, 0.0, 0.8, 0.8, 1.7, -2.5, 0.0, 0.5]])
    labels = torch.tensor([0, 1])
    model = head(velocity=True, iou=True, diou=True)
    # any features do: the maps themselves are learnt
    target = model.targets([Boxes(boxes)], [labels], torch.zeros(1, 1, 8, 16))[0]
    code = torch.zeros(1, 10, 8, 16)
    code[0, :, target.cell[:, 1], target.cell[:, 0]] = target.code.T
    parts = dict(zip(("center", "center_z", "dim", "rot", "vel"), code.split([2, 1, 3, 2, 2], 1)))
    raw = [{**parts, "iou": torch.ones(1, 1, 8, 16), "hm": 20 * target.heatmap - 10}]
    with backend.forced(implementation):
        losses = model.loss(raw, [Boxes(boxes)], [labels])
        found = model.predict(raw)[0].above(0.5)
    assert float(losses["loss_box"]) == 0
    assert float(losses["loss_iou"]) == pytest.approx(0, abs=1e-5)
    assert float(losses["loss_diou"]) == pytest.approx(0, abs=1e-5)
    order = found.labels.argsort()
    torch.testing.assert_close(found.boxes[order].tensor, boxes, rtol=1e-4, atol=1e-4)
    assert found.labels[order].tolist() == [0, 1]


@implementations
def test_predictions_obey_the_settings(implementation):
    limit = [-8, -4, -3, 0, 4, 3]
    decoding = {"score_threshold": 0.05, "max_objects": 40, "center_limit": limit}
    model = head(groups=[["pedestrian"], ["car"]], decoding=decoding).eval()
    with backend.forced(implementation), torch.no_grad():
        found = model.predict(model(torch.randn(2, 4, 8, 16)))
    for one in found:
        assert 0 < len(one) <= 80
        assert (one.scores > 0.05).all()
        assert (one.scores.diff() <= 0).all()
        centers = one.boxes.centers
        assert ((centers >= torch.tensor(limit[:3])) & (centers <= torch.tensor(limit[3:]))).all()
        assert set(one.labels.tolist()) <= {0, 1}


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(ValueError, match="exactly once"):
        head(groups=[["car"]])
    with pytest.raises(ValueError, match="code_weights has 8"):
        head(velocity=True, code_weights=[1.0] * 8)
    with pytest.raises(ValueError, match="iou=True"):
        head(decoding={"iou_rectifier": [0.5, 0.5]})
    with pytest.raises(ValueError, match="one number for each"):
        head(decoding={"nms_threshold": [0.7]})


def holds_head(stored):
    return (
        "spatial_features_2d" in stored["eval"]
        and stored["config"]["dense_head"]["NAME"] == "CenterHead"
    )


def holds_training_maps(stored):
    return holds_head(stored) and "pred_dicts" in stored["train"]


def published_head(stored):
    config = stored["config"]
    names = config["class_names"]
    grid = VoxelGrid.from_range(config["point_cloud_range"], config["voxel_size"])
    derived = {
        "in_channels": stored["eval"]["spatial_features_2d"].shape[1],
        "grid": grid,
        "stride": config["dense_head"]["TARGET_ASSIGNER_CONFIG"]["FEATURE_MAP_STRIDE"],
        "class_names": names,
    }
    model = MODELS.build({**center_head(config["dense_head"], len(names)), **derived})
    state = convert_state("dense_head", stored["state_dict"]["dense_head"], model)
    model.load_state_dict(state)
    return model


@pytest.mark.parity
@pytest.mark.parametrize("path", files_where(holds_head), ids=name)
@implementations
def test_published_maps_and_boxes(path, implementation):
    stored = load(path)["eval"]
    model = published_head(load(path)).eval()
    with backend.forced(implementation), torch.no_grad():
        raw = model(stored["spatial_features_2d"])
        found = model.predict(raw)
    for maps, reference in zip(raw, stored["pred_dicts"], strict=True):
        assert maps.keys() == reference.keys()
        for key, value in reference.items():
            torch.testing.assert_close(maps[key], value, **FEATURES)
    assert_detections(found, stored["final_box_dicts"])


@pytest.mark.parity
@pytest.mark.parametrize("path", files_where(holds_head), ids=name)
def test_published_targets(path):
    stored = load(path)
    model = published_head(stored)
    boxes, labels = truth(stored["gt_boxes"], 9 if model.velocity else 7)
    targets = model.targets(boxes, labels, stored["eval"]["spatial_features_2d"])
    reference = stored["train"]["targets"]
    for index, target in enumerate(targets):
        keep = reference["masks"][index] > 0
        assert torch.equal(target.heatmap, reference["heatmaps"][index])
        assert torch.equal(target.sample, keep.nonzero()[:, 0])
        width = target.heatmap.shape[-1]
        inds = target.cell[:, 1] * width + target.cell[:, 0]
        assert torch.equal(inds, reference["inds"][index][keep])
        code = reference["target_boxes"][index][keep]
        torch.testing.assert_close(target.code, code, **LAST_BITS)
        source = reference["target_boxes_src"][index][keep]
        assert torch.equal(target.boxes, source[:, : target.boxes.shape[1]])


@pytest.mark.parity
@pytest.mark.parametrize("path", files_where(holds_training_maps), ids=name)
@implementations
def test_published_losses_of_stored_maps(path, implementation):
    stored = load(path)
    model = published_head(stored)
    boxes, labels = truth(stored["gt_boxes"], 9 if model.velocity else 7)
    raw = stored["train"]["pred_dicts"]
    names = {"hm": "heatmap", "loc": "box", "iou": "iou", "iou_reg": "diou"}
    with backend.forced(implementation):
        for index, target in enumerate(model.targets(boxes, labels, raw[0]["hm"])):
            losses = model.group_loss(raw[index], target)
            for theirs, ours in names.items():
                value = stored["train"]["tb_dict"].get(f"{theirs}_loss_head_{index}", 0.0)
                got = float(losses.get(f"loss_{ours}", 0.0))
                assert got == pytest.approx(value, rel=LOSS["rtol"], abs=LOSS["atol"])
