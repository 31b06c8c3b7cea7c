"""What wrong tensors meet in Python: an error that names them; poor scenes train and predict.

Files, configs and the command line: tests/tools/test_mistakes.py.
"""

import copy

import pytest
import torch

from sparse3d.models.detector import VoxelDetector
from sparse3d.models.layers import SubMConv, VoxelBatchNorm
from sparse3d.ops import backend
from sparse3d.ops.set_attention import set_attention
from sparse3d.ops.voxelize import canonical_order, segment_expand, segment_reduce, unique_keys
from sparse3d.ops.windows import pool_cells, window_sets
from sparse3d.structures import Batch, Boxes, Sample, SparseVoxels, VoxelGrid

implementations = pytest.mark.parametrize("implementation", ["reference", "native"])
INF, NAN = float("inf"), float("nan")
BOUNDED = VoxelGrid.from_range([-8, -8, -2, 8, 8, 2], [1, 1, 1])
UNBOUNDED = VoxelGrid((1.0, 1.0, 1.0), (0.0, 0.0, 0.0))

# ---------------------------------------------------------------------- voxels


def points(value=0.5, column=0, rows=6):
    cloud = torch.rand(rows, 4, generator=torch.Generator().manual_seed(0))
    cloud[3, column] = value
    return cloud


def voxels_of(cloud, grid=BOUNDED, batch=None, batch_size=1):
    batch = torch.zeros(len(cloud), dtype=torch.int64) if batch is None else batch
    return SparseVoxels.from_points(cloud, batch, grid, batch_size)[0]


CORNERS = torch.tensor([[-2e9, -2e9, -2e9, 0], [2e9, 2e9, 2e9, 0]])
WRONG_POINTS = {
    "NaN": (lambda: voxels_of(points(NAN)), r"1 of 6 points .* first row 3.*remove"),
    "infinite": (lambda: voxels_of(points(-INF), UNBOUNDED), r"1 of 6 points .* first row 3"),
    "32-bit cell": (lambda: voxels_of(points(3e9), UNBOUNDED), r"point 3 .*does not fit 32 bits"),
    "64-bit key": (lambda: voxels_of(CORNERS, UNBOUNDED), r"64-bit key.*Remove far outliers"),
    "two columns": (lambda: voxels_of(points()[:, :2]), r"shape \(6, 2\)"),
    "no columns": (lambda: voxels_of(points()[:, 0]), r"shape \(6,\)"),
    "batch < 0": (lambda: voxels_of(points(), batch=torch.full((6,), -1)), r"\[0\] is -1"),
    "batch of none": (lambda: voxels_of(points(), batch=torch.full((6,), 5)), "up to 5 .* is 1"),
    "float batch": (lambda: voxels_of(points(), batch=torch.zeros(6)), "type torch.float32"),
    "short batch": (lambda: voxels_of(points(), batch=torch.zeros(2).long()), r"shape \(2,\)"),
}


@implementations
@pytest.mark.parametrize("case", WRONG_POINTS)
def test_points_that_make_no_voxels_are_refused(case, implementation):
    make, message = WRONG_POINTS[case]
    with backend.forced(implementation), pytest.raises(ValueError, match=message):
        make()


@implementations
@pytest.mark.parametrize("cloud", [points(rows=6)[:0], points() + 100, points() * 1e30])
def test_clouds_without_a_point_in_range_make_no_voxel(cloud, implementation):
    with backend.forced(implementation):
        found = voxels_of(cloud)
        convolved = VoxelBatchNorm(8)(SubMConv(4, 8)(found))
    assert len(found) == len(convolved) == 0 and found.dense().abs().sum() == 0


@implementations
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_types_and_layouts_of_points_make_the_same_voxels(dtype, implementation):
    cloud = (points() * 8).round() / 8 * 4  # exact in every type
    expected = voxels_of(cloud)
    scattered = torch.empty(2, 6, 8).permute(1, 2, 0)[:, ::2, 0].copy_(cloud)
    batch = torch.zeros(12, dtype=torch.int64)[::2]
    with backend.forced(implementation):
        for other in (cloud.to(dtype), scattered):
            found = voxels_of(other, batch=batch)
            assert torch.equal(found.coords, expected.coords)
            torch.testing.assert_close(found.features.float(), expected.features, atol=0.05, rtol=0)


def from_coords(rows, **options):
    rows = torch.as_tensor(rows)
    return SparseVoxels.from_coords(rows, torch.ones(len(rows), 2), BOUNDED, 1, **options)


WRONG_COORDS = {
    "float": (lambda: from_coords([[0.0, 1, 2, 3]]), "float32; they must be integers"),
    "one axis": (lambda: from_coords([0, 1, 2, 3]), "rows|shape"),
    "batch < 0": (lambda: from_coords([[-1, 1, 2, 3]]), r"row 0 .* batch -1 is outside \[0, 1\)"),
    "outside": (lambda: from_coords([[0, 1, 2, 3], [0, 99, 0, 0]]), "row 1 .*outside the grid"),
    "wide": (lambda: from_coords([[0, 2**33, 2, 3]]), "int32 cannot hold"),
    "twice": (lambda: from_coords([[0, 1, 2, 3]] * 2), "given 2 times; say duplicates="),
    "int64 made by hand": (
        lambda: SubMConv(2, 3)(
            SparseVoxels(torch.ones(1, 2), torch.zeros(1, 4).long(), BOUNDED, 1)
        ),
        "coords are torch.int64; they must be int32",
    ),
    "unsorted made by hand": (
        lambda: SubMConv(2, 3)(
            SparseVoxels(
                torch.ones(2, 2), torch.tensor([[0, 2, 0, 0], [0, 1, 0, 0]]).int(), BOUNDED, 1
            )
        ),
        "row 1 .* follows .*from_coords sorts them",
    ),
    "flat features": (
        lambda: SparseVoxels(torch.ones(1), torch.zeros(1, 4).int(), BOUNDED, 1),
        r"\[N, C\]",
    ),
}


@implementations
@pytest.mark.parametrize("case", WRONG_COORDS)
def test_coordinates_that_are_no_voxels_are_refused(case, implementation):
    make, message = WRONG_COORDS[case]
    with backend.forced(implementation), pytest.raises(ValueError, match=message):
        make()


VALUES, INDEX = torch.rand(4, 24), torch.tensor([0, 1, 0, 1])
SETS = {"position_index": INDEX, "order": torch.arange(4), "offsets": torch.tensor([0, 2, 4])}
CELLS = torch.tensor([[0, 1, 2, 0], [0, 2, 2, 0]])


def attend(**changes):
    return set_attention(VALUES, torch.rand(2, 16), **{**SETS, **changes}, heads=2)


UNSAFE = {
    "expand past the end": lambda: segment_expand(VALUES, INDEX + 10**7),
    "expand by int32": lambda: segment_expand(VALUES, INDEX.int()),
    "reduce past the end": lambda: segment_reduce(VALUES, INDEX + 10**7, 2, "sum"),
    "reduce by a long index": lambda: segment_reduce(VALUES, INDEX.repeat(10**5), 2, "sum"),
    "order past the end": lambda: canonical_order(VALUES, INDEX + 10**7, 2),
    "keys of another type": lambda: unique_keys(VALUES[:, 0]),
    "position past the end": lambda: attend(position_index=INDEX + 10**7),
    "rows past the end": lambda: attend(order=SETS["order"] + 10**7),
    "sets past the end": lambda: attend(offsets=SETS["offsets"] * 10**6),
    "sets that end early": lambda: attend(offsets=SETS["offsets"] // 2),
    "int32 rows": lambda: attend(order=SETS["order"].int()),
    "windows below the grid": lambda: window_sets(CELLS - 5, (8, 8, 1), (4, 4, 1), (0, 0, 0), 4),
    "pools below the grid": lambda: pool_cells(CELLS - 5, (8, 8, 1), (2, 2, 1)),
}


@pytest.mark.parametrize("case", UNSAFE)
def test_a_kernel_is_not_led_past_its_tensors(case):
    with backend.forced("native"), pytest.raises(ValueError, match=r"must|needed|begin at"):
        UNSAFE[case]()


@pytest.mark.parametrize(
    ("point_range", "voxel_size", "message"),
    [
        ([0, 0, 0, 1, 1, 1.05], [0.1] * 3, r"nearest range that is: \[0, 0, 0, 1.0, 1.0, 1.0\]"),
        ([1, 0, 0, 0, 1, 1], [0.1] * 3, "high end must lie above"),
        ([0, 0, 0, NAN, 1, 1], [0.1] * 3, "point_range is"),
        ([0, 0, 0, INF, 1, 1], [0.1] * 3, "point_range is"),
        ([0, 0, 0, 1, 1], [0.1] * 3, "point_range is"),
        ([0, 0, 0, 1, 1, 1], [0.0, 0.1, 0.1], "be positive"),
        ([0, 0, 0, 1e9, 1, 1], [0.1] * 3, "cells along an axis"),
    ],
)
def test_grids_that_cannot_be_are_refused(point_range, voxel_size, message):
    with pytest.raises(ValueError, match=message):
        VoxelGrid.from_range(point_range, voxel_size)


# ---------------------------------------------------------------------- detectors

RANGE = (-4.0, -4.0, -2.0, 4.0, 4.0, 2.0)
NAMES = ("car", "pedestrian")
MAP = {
    "type": "BEVBackbone",
    **{"layer_nums": (1,), "strides": (1,), "channels": (8,)},
    **{"up_strides": (1,), "up_channels": (8,)},
}
PILLAR = {
    "voxel_size": (0.5, 0.5, 4.0),
    "encoder": {"type": "DynamicEncoder", "channels": (8, 8), "pillar": True},
    "backbone": {"type": "DSVT", "channels": 8, "blocks": 2, "heads": 2, "set_size": 8},
    "bev_backbone": MAP,
    "head": {"type": "CenterHead", "shared_channels": 8, "iou": True, "diou": True},
}
POOLED = {
    **{"type": "DSVT", "channels": 8, "blocks": 1, "heads": 2, "set_size": 8},
    **{"window": (4, 4, 4), "strides": [(1, 1, 4), (1, 1, 4)], "reduction": "attention"},
}
SPARSE = {
    "voxel_size": (0.25, 0.25, 0.125),
    "encoder": {"type": "MeanEncoder"},
    "backbone": {"type": "SparseResNet", "channels": (4, 4, 8, 8), "out_channels": 8},
    "bev_backbone": MAP,
    "head": {"type": "CenterHead", "shared_channels": 8},
}
QUERIES = {"type": "TransFusionHead", "channels": 8, "queries": 5, "heads": 2, "velocity": False}
FAMILIES = {
    "DSVT pillars": PILLAR,
    "DSVT voxels": {
        **PILLAR,
        "voxel_size": (0.5, 0.5, 0.25),
        "encoder": {"type": "DynamicEncoder", "channels": (8, 8)},
        "backbone": POOLED,
    },
    "plain sparse": SPARSE,
    "residual sparse": {**SPARSE, "backbone": {**SPARSE["backbone"], "residual": True}},
    "VoxelNeXt": {
        "voxel_size": (0.25, 0.25, 0.125),
        "encoder": {"type": "MeanEncoder"},
        "backbone": {"type": "VoxelNeXtBackbone", "channels": (4, 4, 4, 4, 4), "out_channels": 8},
        "head": {"type": "VoxelNeXtHead", "iou": True, "diou": True},
    },
    "TransFusion": {**PILLAR, "head": {**QUERIES, "iou": True}},
    "TransFusion in windows": {**PILLAR, "head": {**QUERIES, "window": 3}},
}
families = pytest.mark.parametrize("family", FAMILIES)


def build(family, **changes):
    torch.manual_seed(0)
    return VoxelDetector(RANGE, class_names=NAMES, **{**copy.deepcopy(FAMILIES[family]), **changes})


def scene(**changes):
    draw = torch.Generator().manual_seed(1)
    cloud = torch.rand(200, 4, generator=draw) * torch.tensor([8, 8, 4, 1])
    cloud -= torch.tensor([4, 4, 2, 0])
    boxes = torch.tensor([[0.0, 1, 0, 3, 2, 1.5, 0.3], [2, -2, 0, 0.8, 0.8, 1.7, 1]])
    parts = {"points": cloud, "boxes": Boxes(boxes), "labels": torch.tensor([0, 1])}
    return Sample(**{**parts, **changes}, meta={"sample_id": "a scene"})


def boxes_with(column, value):
    tensor = scene().boxes.tensor.clone()
    tensor[1, column] = value
    return Boxes(tensor)


NOTHING = scene(points=torch.zeros(0, 4))
FAR = scene(points=scene().points + 100)
UNLABELLED = scene(boxes=Boxes.empty(), labels=torch.zeros(0, dtype=torch.int64))
SCENES = {
    "one empty": ([scene(), NOTHING], [0]),
    "all empty": ([NOTHING, NOTHING], [0, 1]),
    "out of range": ([FAR, scene()], [1]),
    "one voxel": ([scene(points=torch.full((3, 4), 0.1))], []),
    "no boxes": ([UNLABELLED, scene()], []),
    "double": ([scene(points=scene().points.double())], []),
    "half": ([scene(points=scene().points.half())], []),
}


@families
@pytest.mark.parametrize("case", SCENES)
def test_poor_scenes_train_and_predict(family, case):
    samples, _ = SCENES[case]
    model = build(family)
    total = sum(model(Batch(samples), mode="loss").values())
    total.backward()
    assert total.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    assert all(buffer.isfinite().all() for buffer in model.buffers())
    found = model.eval()(Batch(samples), mode="predict")
    assert [one.sample for one in found] == samples
    for one, sample in zip(found, samples):
        assert one.boxes.tensor.isfinite().all()
        if sample is NOTHING or sample is FAR:
            assert len(one) == len(one.boxes) == len(one.labels) == 0


def test_a_sample_without_points_changes_no_other():
    model = build("DSVT pillars").eval()
    alone, beside = (model(Batch(s), mode="predict") for s in ([scene()], [NOTHING, scene()]))
    assert len(alone[0]) == len(beside[1]) > 0
    torch.testing.assert_close(alone[0].scores, beside[1].scores, rtol=1e-4, atol=1e-5)


WRONG_SCENES = {
    "NaN": (lambda: scene(points=points(NAN)), "1 points of sample 'a scene' .* row 3"),
    "infinite": (lambda: scene(points=points(INF, 2)), "1 points of sample 'a scene' .* row 3"),
    "NaN intensity": (lambda: scene(points=points(NAN, 3)), "1 points of .* row 3"),
    "immense": (lambda: scene(points=points(1e30, 3)), r"beyond 1e\+15, first row 3"),
    "three columns": (lambda: scene(points=points()[:, :3]), "3 columns; the model takes 4"),
    "flat size": (lambda: scene(boxes=boxes_with(5, 0)), "1 boxes .*not positive.* box 1.*drop"),
    "negative size": (lambda: scene(boxes=boxes_with(4, -1)), "1 boxes of .*first box 1"),
    "NaN box": (lambda: scene(boxes=boxes_with(0, NAN)), "1 boxes of .*first box 1"),
    "unknown label": (lambda: scene(labels=torch.tensor([0, 2])), r"labels \[0, 2\].*same class"),
    "missing boxes": (lambda: scene(boxes=None), "'a scene' has no boxes"),
    "numpy": (lambda: scene(points=points().numpy()), "ndarray .*from_numpy"),
    "integers": (lambda: scene(points=points().int()), "float tensor"),
    "bare boxes": (lambda: scene(boxes=scene().boxes.tensor), r"Boxes\(tensor\)"),
    "too few labels": (lambda: scene(labels=torch.tensor([0])), "one int64 per box"),
    "float labels": (lambda: scene(labels=torch.zeros(2)), "one int64 per box"),
}


@pytest.mark.parametrize("case", WRONG_SCENES)
def test_scenes_that_would_spoil_the_weights_are_refused(case):
    make, message = WRONG_SCENES[case]
    model = build("plain sparse")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        model(Batch([scene(), make()]), mode="loss")
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_an_empty_batch_and_other_classes_are_refused():
    with pytest.raises(ValueError, match="no samples"):
        build("DSVT pillars")(Batch([]), mode="predict")
    sample = scene()
    sample.meta["class_names"] = ["pedestrian", "car"]
    with pytest.raises(ValueError, match="same order"):
        build("DSVT pillars")(Batch([sample]), mode="loss")


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("DSVT pillars", {"voxel_size": (0.3, 0.5, 4)}, "nearest range that is"),
        ("DSVT pillars", {"bev_backbone": {**MAP, "up_strides": (2, 1)}}, "one entry per level"),
        ("DSVT voxels", {"backbone": {**POOLED, "strides": [(1, 1, 3)]}}, "nearest that does"),
        ("DSVT voxels", {"backbone": {**POOLED, "window": (0, 4, 4)}}, "must be 1 or more"),
        ("plain sparse", {"voxel_size": (0.25, 0.25, 1.0)}, "z needs 24 cells or more"),
    ],
)
def test_settings_that_do_not_fit_the_grid_are_refused(family, changes, message):
    with pytest.raises(ValueError, match=message):
        build(family, **changes)
