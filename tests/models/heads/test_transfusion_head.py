import pytest
import torch

from sparse3d.engine.published import convert_state
from sparse3d.models.heads.transfusion_decoder import QueryDecoder, QueryDecoding, window_cells
from sparse3d.models.heads.transfusion_head import TransFusionHead
from sparse3d.models.heads.transfusion_targets import decode_queries, encode_queries
from sparse3d.ops import backend
from sparse3d.registry import MODELS
from sparse3d.structures import Boxes, VoxelGrid
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
from tests.published_configs import transfusion_head

GRID = VoxelGrid((0.5, 0.5, 1.0), (-8.0, -4.0, -2.0), (32, 16, 4))
NAMES = ("car", "pedestrian")
BOXES = torch.tensor(
    [[1.3, -0.4, 0.2, 4.0, 1.8, 1.5, 0.7, 1.0, -2.0], [-5.2, 2.2, 0.0, 0.8, 0.8, 1.7, -2.5, 0, 0.5]]
)
LABELS = torch.tensor([0, 1])
NOTHING = (Boxes.empty(9), torch.zeros(0, dtype=torch.int64))
implementations = pytest.mark.parametrize("implementation", ["reference", "native"])


def head(**options):
    torch.manual_seed(0)
    sizes = {"channels": 8, "queries": 12, "heads": 2, "ffn_channels": 16, "dropout": 0.0}
    return TransFusionHead(4, GRID, 2, NAMES, **{**sizes, **options})


def test_decoding_inverts_the_code():
    frame = head().frame
    back = decode_queries(encode_queries(BOXES, frame), frame)
    torch.testing.assert_close(back, BOXES, rtol=1e-5, atol=1e-5)


def test_peaks_are_local_maxima_off_the_border():
    heatmap = torch.full((1, 2, 8, 16), 0.1)
    heatmap[0, :, 3, 9], heatmap[0, :, 3, 10], heatmap[0, :, 0, 5] = 0.9, 0.8, 0.7
    peaks = head(point_classes=["pedestrian"]).peaks(heatmap)
    assert peaks[0, 0, 3, 9] == pytest.approx(0.9)
    assert peaks[0, 0, 3, 10] == peaks[0, 0, 0, 5] == 0
    assert torch.equal(peaks[0, 1], heatmap[0, 1])  # every cell of a point class is one


def test_queries_of_an_oblong_map_stand_at_their_cells():
    model = head(queries=1).eval()
    with torch.no_grad():
        model.heatmap_head[-1].weight.zero_()
        model.shared_conv.weight.zero_()
        model.class_encoding.weight.zero_()
    peak = torch.zeros(1, 2, 8, 16)
    peak[0, 1, 5, 12] = 3
    model.heatmap_head = torch.nn.Identity()
    model.shared_conv = torch.nn.Conv2d(4, 8, 1)
    model.heatmap_head.forward = lambda features: peak
    for branch in model.prediction_head.values():
        torch.nn.init.zeros_(branch[-1].weight)
        torch.nn.init.zeros_(branch[-1].bias)
    with torch.no_grad():
        raw = model(torch.randn(1, 4, 8, 16))
        found = model.predict(raw)[0]
    assert raw["center"][0, :, 0].tolist() == [12.5, 5.5]
    assert found.labels.tolist() == [1]
    assert found.boxes.tensor[0, :2].tolist() == [4.5, 1.5]  # -8 + 12.5, -4 + 5.5


@implementations
def test_the_match_prefers_the_query_that_fits(implementation):
    model = head()
    raw = model(torch.randn(1, 4, 8, 16))
    raw = {key: value.detach().clone() for key, value in raw.items()}
    code = encode_queries(BOXES, model.frame)
    for row, query in enumerate((7, 2)):
        parts = zip(("center", "height", "dim", "rot", "vel"), code[row].split([2, 1, 3, 2, 2]))
        for key, value in parts:
            raw[key][0, :, query] = value
        raw["heatmap"][0, LABELS[row], query] = 4
    with backend.forced(implementation):
        target = model.targets(raw, [Boxes(BOXES)], [LABELS])
    assert target.matched[0].nonzero()[:, 0].tolist() == [2, 7]
    assert target.labels[0, [7, 2]].tolist() == [0, 1]
    torch.testing.assert_close(target.code[0, [7, 2]], code)
    torch.testing.assert_close(target.iou[0, [7, 2]], torch.ones(2))


@implementations
def test_empty_scenes_train_and_predict(implementation):
    model = head()
    with backend.forced(implementation):
        raw = model(torch.randn(2, 4, 8, 16))
        for boxes, labels in [
            ([NOTHING[0]] * 2, [NOTHING[1]] * 2),
            ([Boxes(BOXES), NOTHING[0]], [LABELS, NOTHING[1]]),
        ]:
            total = sum(model.loss(raw, boxes, labels).values())
            assert torch.isfinite(total)
        total.backward()
        assert len(model.predict(raw)) == 2
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_more_queries_than_cells_and_more_boxes_than_queries():
    many = Boxes(BOXES.repeat(10, 1)), LABELS.repeat(10)
    model = head(queries=500)
    raw = model(torch.randn(1, 4, 3, 4))
    assert raw["center"].shape == (1, 2, 24)
    raw = head(queries=5)(torch.randn(1, 4, 8, 16))
    target = model.targets(raw, [many[0]], [many[1]])
    assert target.matched.all()


def test_windows_stop_at_the_border_of_the_map():
    cells, inside = window_cells(torch.tensor([0, 17, 31]), (4, 8), 3)
    assert cells[0][inside[0]].tolist() == [0, 1, 8, 9]
    assert cells[1].tolist() == [8, 9, 10, 16, 17, 18, 24, 25, 26]
    assert cells[2][inside[2]].tolist() == [22, 23, 30, 31]


def test_a_query_sees_its_window_and_nothing_else():
    torch.manual_seed(0)
    decoder = QueryDecoder(8, 2, 16, 0.0, window=3).eval()
    query, features = torch.randn(1, 8, 2), torch.randn(1, 8, 6, 7)
    cells = torch.tensor([[9, 33]])  # (1, 2) and (4, 5)
    base = decoder(query, features, cells)
    far = features.clone()
    far[:, :, 3, 2] += 1  # two rows below the first query, three columns before the second
    assert torch.equal(decoder(query, far, cells), base)
    near = features.clone()
    near[:, :, 2, 3] += 1
    changed = (decoder(query, near, cells) != base).any(1)[0]
    assert changed.tolist() == [True, False]
    other = query.clone()
    other[:, :, 1] += 1
    assert torch.equal(decoder(other, features, cells)[:, :, 0], base[:, :, 0])


def test_one_query_sees_the_same_through_a_window_of_the_whole_map():
    torch.manual_seed(0)
    whole = QueryDecoder(8, 2, 16, 0.0, window=None).eval()
    windowed = QueryDecoder(8, 2, 16, 0.0, window=13).eval()
    windowed.load_state_dict(whole.state_dict())
    query, features = torch.randn(2, 8, 1), torch.randn(2, 8, 6, 7)
    cells = torch.tensor([[9], [40]])
    expected = whole(query, features, cells)
    torch.testing.assert_close(windowed(query, features, cells), expected)


def test_the_windowed_head_with_quality_trains():
    model = head(window=5, iou=True)
    raw = model(torch.randn(2, 4, 8, 16))
    losses = model.loss(raw, [Boxes(BOXES), NOTHING[0]], [LABELS, NOTHING[1]])
    sum(losses.values()).backward()
    assert set(losses) == {"loss_heatmap", "loss_class", "loss_box", "loss_iou"}
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert all((one.scores.diff() <= 0).all() for one in model.predict(raw))


@implementations
def test_the_choice_of_boxes(implementation):
    boxes = BOXES[:1].repeat(6, 1)
    boxes[5, 0] = 90
    scores = torch.tensor([0.2, 0.4, 0.3, 0.5, 0.0, 0.9])
    labels = torch.tensor([0, 0, 1, 1, 1, 1])
    quality = torch.tensor([1.0, 0.0, 1.0, -0.5, 1.0, 1.0])  # IoU 1, .5, 1, .25, 1, 1
    limit = [-8, -4, -2, 8, 4, 2]
    decoding = QueryDecoding(center_limit=limit, iou_power=0.5, nms_threshold=[None, 0.1])
    with backend.forced(implementation):
        found = decoding.choose(boxes, scores, labels, quality)
    # the second pedestrian's .5 * .25 is less than the first's .3 * 1, and it overlaps it
    assert found.labels.tolist() == [1, 0, 0]
    assert found.scores.tolist() == pytest.approx([0.3**0.5, 0.2**0.5, 0.2**0.5])


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(ValueError, match="cone"):
        head(point_classes=["cone"])
    with pytest.raises(ValueError, match="for each"):
        head(decoding={"nms_threshold": [0.2]})
    with pytest.raises(ValueError, match="window is 4"):
        head(window=4)
    with pytest.raises(ValueError, match="code_weights has 8"):
        head(losses={"code_weights": [1.0] * 8})


def holds_head(stored):
    config = stored["config"].get("dense_head", stored["config"])
    return config.get("NAME") == "TransFusionHead" and "spatial_features_2d" in stored


def published_head(stored):
    config = stored["config"]
    options = config.get("dense_head", config)
    derived = {
        "in_channels": stored["spatial_features_2d"].shape[1],
        "grid": VoxelGrid.from_range(config["point_cloud_range"], config["voxel_size"]),
        "stride": options["TARGET_ASSIGNER_CONFIG"]["FEATURE_MAP_STRIDE"],
        "class_names": config["class_names"],
    }
    model = MODELS.build({**transfusion_head(options, config["class_names"]), **derived})
    state = convert_state("dense_head", stored["state_dict"]["dense_head"], model)
    model.load_state_dict(state)
    return model


@pytest.mark.parity
@pytest.mark.parametrize("path", files_where(holds_head), ids=name)
@implementations
def test_published_queries_and_boxes(path, implementation):
    stored = load(path)
    model = published_head(stored).eval()
    with backend.forced(implementation), torch.no_grad():
        raw = model(stored["spatial_features_2d"])
        found = model.predict(raw)
    assert torch.equal(raw["query_labels"], stored["eval"]["query_labels"].long())
    for key, value in stored["eval"]["pred"].items():
        torch.testing.assert_close(raw[key], value, **FEATURES)
    assert_detections(found, stored["eval"]["final_box_dicts"])


@pytest.mark.parity
@pytest.mark.parametrize("path", files_where(holds_head), ids=name)
@implementations
def test_published_targets_and_losses(path, implementation):
    stored = load(path)
    train, reference = stored["train"], stored["train"]["targets"]
    model = published_head(stored).train()
    boxes, labels = truth(stored["gt_boxes"], 9 if model.velocity else 7)
    with backend.forced(implementation):
        raw = model(stored["spatial_features_2d"])
        target = model.targets(raw, boxes, labels)
        losses = model.loss(raw, boxes, labels)
    assert torch.equal(target.labels, reference["labels"])
    assert torch.equal(target.matched, reference["bbox_weights"].any(-1))
    torch.testing.assert_close(target.code, reference["bbox_targets"], **LAST_BITS)
    assert int(target.matched.sum()) == reference["num_pos"]
    heatmap = model.target_heatmap(raw, boxes, labels)
    assert torch.equal(heatmap, reference["heatmap"])
    for theirs, ours in {"heatmap": "heatmap", "cls": "class", "bbox": "box"}.items():
        value = train["tb_dict"][f"loss_{theirs}"]
        got = losses[f"loss_{ours}"].item()
        assert got == pytest.approx(value, rel=LOSS["rtol"], abs=LOSS["atol"])


class TrainingStep:
    """Forward and backward of a stored head."""

    def __init__(self, stored):
        self.stored, self.model = stored, published_head(stored).train()

    def __call__(self):
        """Errors of the loss and all gradients, over what is allowed."""
        stored, train = self.stored, self.stored["train"]
        self.model.zero_grad()
        boxes, labels = truth(stored["gt_boxes"], 9 if self.model.velocity else 7)
        x = stored["spatial_features_2d"].clone().requires_grad_()
        total = sum(self.model.loss(self.model(x), boxes, labels).values())
        total.backward()
        allowed = LOSS["atol"] + LOSS["rtol"] * abs(train["loss"])
        grad = train["grad_spatial_features_2d"]
        difference = float((x.grad - grad).abs().max() / grad.abs().max())
        return {
            "loss": abs(total.item() - train["loss"]) / allowed,
            "input": difference / GRADIENT,
            **gradient_errors("dense_head", self.model, train),
        }


@pytest.mark.parity
@pytest.mark.parametrize("path", files_where(holds_head), ids=name)
@implementations
def test_published_training_step(path, implementation):
    with backend.forced(implementation):
        errors, _ = errors_up_to_kinks(TrainingStep(load(path)))
    assert len(errors) > 50
    wrong = {name: error for name, error in errors.items() if not error <= 1}
    assert not wrong, f"times what is allowed: {wrong}"
