from dataclasses import replace

import pytest
import torch

from sparse3d.models.backbones.mink_resnet import MinkResNet
from sparse3d.models.heads import tsp3d_losses as losses
from sparse3d.models.heads.tsp3d_fusion import Parts, RowAttention, scattered
from sparse3d.models.heads.tsp3d_head import TSP3DHead
from sparse3d.ops import backend
from sparse3d.registry import MODELS
from sparse3d.structures import Batch, Boxes, Sample, SparseVoxels, VoxelGrid
from tests.voxel_cases import IMPLEMENTATIONS, random_coords

NAMES = ("red", "blue")


DECISION = dict(candidates=8, classes=2, heads=2, hidden=16, layers=1)
DECISIONS = pytest.mark.parametrize("decision", [None, DECISION], ids=["best voxel", "decision"])


def model(seed=0, decision=None, guiding=None, **head):
    """Small; with a decision the backbone has one more, finer stage."""
    torch.manual_seed(seed)
    finer = decision is not None
    config = dict(
        type="TextGrounder",
        voxel_size=0.05 if finer else 0.1,
        guiding=guiding,
        text=dict(type="HashedWords", channels=16, buckets=64),
        encoder=dict(type="PlacedEncoder"),
        backbone=dict(
            type="MinkResNet",
            depth=(1,) * (3 + finer),
            channels=(8,) * finer + (16, 16, 16),
            stem_channels=8,
            stem_stride=1,
            pool=False,
        ),
        head=dict(
            type="TSP3DHead",
            heads=2,
            hidden=16,
            dropout=0.0,
            layers=1,
            attended=(100, 100),
            completion_limit=100,
            keep_most=(200, 100),
            nearest=8,
            decision=decision,
            **head,
        ),
        teacher=dict(type="ObjectTeacher", class_names=NAMES),
    )
    return MODELS.build(config)


def scene(text="the red box", seed=0, points=600) -> Sample:
    """A floor, a red and a blue box of half a metre."""
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.tensor(
        [[-0.8, 0.3, 0.25, 0.5, 0.5, 0.5, 0.0], [0.9, -0.2, 0.25, 0.5, 0.5, 0.5, 0.0]]
    )
    floor = torch.rand(points, 3, generator=generator) * torch.tensor([4, 3, 0.02])
    parts = [torch.cat([floor - torch.tensor([2, 1.5, 0.02]), torch.full((points, 3), 0.5)], 1)]
    for box, color in zip(boxes, ((0.9, 0.1, 0.1), (0.1, 0.1, 0.9))):
        inside = (torch.rand(points // 2, 3, generator=generator) - 0.5) * 0.5 + box[:3]
        parts.append(torch.cat([inside, torch.tensor(color).expand(points // 2, 3)], 1))
    return Sample(
        torch.cat(parts),
        boxes=Boxes(boxes),
        labels=torch.tensor([0, 1]),
        names=list(NAMES),
        text=text,
        meta={"target": [int("blue" in text)], "anchors": []},
    )


def same(one, other) -> bool:
    return all(
        torch.equal(a.boxes.tensor, b.boxes.tensor) and torch.equal(a.scores, b.scores)
        for a, b in zip(one, other, strict=True)
    )


@DECISIONS
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_modes(implementation, decision):
    net, batch = model(decision=decision), Batch([scene(), scene("a blue box", 1)])
    with backend.forced(implementation):
        found = net(batch, "loss")
        sum(found.values()).backward()
        net.eval()
        (one, other), raw = net(batch, "predict"), net(batch, "tensor")
    decided = ("loss_quality", "loss_second_box", "loss_choice", "loss_beside", "loss_names")
    assert set(found) == {
        *("loss_box", "loss_class", "loss_keep", "loss_completion"),
        *("loss_object_class", "loss_object_box", "loss_sentence_class"),
        *(decided if decision else ()),
    }
    assert all(value.isfinite() for value in found.values())
    silent = [n for n, p in net.named_parameters() if p.grad is None]
    assert not silent
    assert len(one) == len(other) == 1 and one.sample is batch.samples[0]
    assert one.boxes.tensor.shape == (1, 7) and 0 <= float(one.scores[0]) <= 1
    assert len(raw.boxes) == len(raw.voxels)
    with pytest.raises(ValueError, match="'loss', 'predict' or 'tensor'"):
        net(batch, "train")


def test_it_learns_which_box_is_meant():
    net = model(dense_boxes=True, cut_first=True, matching=True)
    optimizer = torch.optim.AdamW(net.parameters(), 5e-3)
    batch = Batch([scene(), replace(scene("the blue box"), points=scene().points)])
    for _ in range(40):
        optimizer.zero_grad()
        sum(net(batch, "loss").values()).backward()
        optimizer.step()
    net.eval()
    for text, row in (("the red box", 0), ("the blue box", 1)):
        sample = scene(text, seed=5)
        found = net(Batch([sample]), "predict")[0]
        away = (found.boxes.centers[0] - sample.boxes.centers[row]).abs().max()
        assert float(away) < 0.6  # the two are 1.7 m apart


def close(one, other) -> bool:
    """The same up to rounding, which in torch's matrix products depends on the number of rows."""
    return all(
        torch.allclose(a.boxes.tensor, b.boxes.tensor, atol=1e-4)
        and torch.allclose(a.scores, b.scores, atol=1e-5)
        for a, b in zip(one, other, strict=True)
    )


@DECISIONS
def test_the_order_of_points_leaves_no_trace_and_company_changes_nothing(decision):
    net = model(decision=decision).eval()
    one, other = scene(), scene("the blue one", 3)
    mixed = replace(one, points=one.points[torch.randperm(len(one.points))])
    together = net(Batch([one, other]), "predict")
    assert same(together, net(Batch([mixed, other]), "predict"))
    assert close(together, [net(Batch([s]), "predict")[0] for s in (one, other)])


@DECISIONS
def test_sentences_about_one_tensor_of_points_share_its_voxels(decision):
    net = model(decision=decision).eval()
    one = scene()
    both = [one, replace(one, text="the blue box")]
    apart = [replace(s, points=s.points.clone()) for s in both]
    assert len(set(net.voxels(Batch(both)).batch_index.tolist())) == 1
    assert len(set(net.voxels(Batch(apart)).batch_index.tolist())) == 2
    assert close(net(Batch(both), "predict"), net(Batch(apart), "predict"))


def test_sentences_that_do_not_guide_learn_from_the_true_boxes():
    one = scene()
    samples = [
        one,
        *(replace(one, text=text) for text in ("the blue box", "a box", "that red box")),
    ]
    net = model(decision=DECISION)
    whole = net(Batch(samples), "loss")
    net.guiding = 1
    given, choose = [], net.head.decision.choose
    net.head.decision.choose = lambda found, *words: given.append(found) or choose(found, *words)
    losses = net(Batch(samples), "loss")
    assert set(losses) == set(whole)
    assert [found.there.shape[0] for found in given] == [1, 3]
    assert given[1].there.tolist() == [[True, True]] * 3
    sum(losses.values()).backward()
    assert [len(one) for one in net.eval()(Batch(samples), "predict")] == [1] * 4


@pytest.mark.parametrize("guiding, decision", [(0, DECISION), (2, None)])
def test_guides_need_a_decision(guiding, decision):
    with pytest.raises(ValueError, match=f"guiding is {guiding}"):
        model(decision=decision, guiding=guiding)


def test_where_everything_is_pruned_the_best_voxels_stay():
    net, batch = model(thresholds=(2.0, 2.0), fallback=3).eval(), Batch([scene(), scene()])
    raw = net(batch, "tensor")
    assert torch.bincount(raw.remaining[2].batch_index).tolist() == [3, 3]
    assert all(len(found) == 1 for found in net(batch, "predict"))


def test_no_more_stay_than_may():
    net = model(thresholds=(-1.0, -1.0), keep_limits=(20, 10)).eval()
    raw = net(Batch([scene(), scene(seed=1)]), "tensor")
    assert torch.bincount(raw.remaining[2].batch_index).tolist() == [10, 10]
    assert torch.bincount(raw.remaining[1].batch_index).tolist() == [20, 20]


def test_without_pruning_everything_stays_and_completion_adds_what_is_missing():
    net = model(prune=False, completion_threshold=-1.0).eval()
    raw = net(Batch([scene()]), "tensor")
    assert len(raw.remaining[2]) == len(raw.kept[2].voxels)
    assert (raw.voxels.lookup(raw.completion.voxels.coords) >= 0).all()
    pruned = model(completion_threshold=2.0, thresholds=(0.99, 0.99)).eval()
    assert len(pruned(Batch([scene()]), "tensor").voxels) < len(raw.voxels)


@DECISIONS
def test_an_empty_scene_and_a_single_point_are_answered(decision):
    net = model(decision=decision).eval()
    full, single = scene(), scene()
    nothing = replace(full, points=full.points[:0])
    single = replace(full, points=full.points[:1])
    found = net(Batch([nothing, full, single]), "predict")
    assert [len(one) for one in found] == [0, 1, 1]
    assert close(found[1:2], net(Batch([full]), "predict"))
    net.train()
    losses = net(Batch([nothing, full, single]), "loss")
    assert all(value.isfinite() for value in losses.values())


@DECISIONS
def test_an_explanation_names_the_words_and_the_stages(decision):
    found = model(decision=decision).eval().explain(scene("the red box"))
    assert [scene().text[b:e] for b, e in found.spans[1:]] == ["the", "red", "box"]
    assert float(found.words.sum()) == pytest.approx(1, abs=1e-5) and len(found.words) == 4
    assert found.sizes == pytest.approx([0.8, 0.4, 0.2])
    assert all(len(centers) for centers in found.kept) and len(found.detections) == 1


def test_a_decision_s_words_count_by_what_the_answer_loses_without_them():
    net = model(decision=DECISION).eval()
    score = net.head.decision.choose

    def by_length(candidates, words, padding):  # the fewer words, the less likely the first box
        found = score(candidates, words, padding)
        place = torch.arange(candidates.there.shape[1])
        found.logits[-1] = -(~padding).sum(1)[:, None] * place.float()
        return found

    net.head.decision.choose = by_length
    found = net.explain(scene("the red box"))
    assert found.words.tolist() == pytest.approx([0, 1 / 3, 1 / 3, 1 / 3])
    assert net.explain(scene("box")).words.tolist() == pytest.approx([0.5, 0.5])


# ---------------------------------------------------------------------- what is not as it should be


def test_a_decision_needs_a_finer_stage():
    with pytest.raises(ValueError, match="four stages"):
        TSP3DHead((16, 16, 16), VoxelGrid((0.1,) * 3, (0.0,) * 3), 16, decision=DECISION)


@pytest.mark.parametrize("change", [{"looks": 0}, {"layers": 0}, {"heads": 3}])
def test_a_decision_s_numbers_are_checked(change):
    with pytest.raises(ValueError, match="one look and one layer"):
        model(decision={**DECISION, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": None}, "has no text"),
        ({"text": "  "}, "has no word"),
        ({"points": torch.rand(5, 4)}, "4 columns"),
        ({"points": torch.rand(5, 6) * 255}, "divide them by 255"),
        ({"points": torch.full((5, 6), torch.nan)}, "not finite|NaN"),
    ],
)
def test_bad_scenes_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        model().eval()(Batch([replace(scene(), **change)]), "predict")


def test_a_batch_without_samples_is_refused():
    with pytest.raises(ValueError, match="no samples"):
        model()(Batch([]), "predict")


@pytest.mark.parametrize("target", [None, [], [0, 1], [2]])
def test_learning_needs_one_target(target):
    with pytest.raises(ValueError, match="target"):
        model()(Batch([replace(scene(), meta={"target": target})]), "loss")


def test_no_colours_and_other_units_are_warned_of():
    net, one = model().eval(), scene()
    with pytest.warns(UserWarning, match="no colours"):
        assert len(net(Batch([replace(one, points=one.points[:, :3])]), "predict")[0]) == 1
    scale = torch.tensor([1000.0] * 3 + [1.0] * 3)
    with pytest.warns(UserWarning, match="millimetres"):
        net(Batch([replace(one, points=one.points * scale)]), "predict")


def test_words_of_no_known_object_and_very_many_words_are_answered():
    net = model().eval()
    assert len(net(Batch([scene("xyzzy quux 42")]), "predict")[0]) == 1
    with pytest.warns(UserWarning, match="its end is ignored"):
        assert len(net(Batch([scene("the red box " * 3000)]), "predict")[0]) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(depth=35), r"\[14, 18, 34\]"),
        (dict(depth=(1, 1), channels=(8, 8, 8)), "per stage"),
        (dict(depth=(1, 0), channels=(8, 8)), "positive"),
    ],
)
def test_a_backbone_that_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        MinkResNet(4, **options)


def test_a_head_over_unequal_stages_is_refused():
    with pytest.raises(ValueError, match="same width"):
        MODELS.build(
            dict(
                type="TSP3DHead",
                in_channels=(8, 16, 16),
                grid=VoxelGrid((1.0,) * 3, (0.0,) * 3),
                text_channels=4,
            )
        )


# ---------------------------------------------------------------------- parts


def test_attention_is_that_of_torch_scene_by_scene():
    torch.manual_seed(0)
    ours, theirs = RowAttention(8, 2, 0.0), torch.nn.MultiheadAttention(8, 2, batch_first=True)
    theirs.load_state_dict(ours.state_dict())
    query, key = torch.randn(5, 8), torch.randn(7, 8)
    parts = Parts([2, 0, 3], torch.tensor([0, 1, 3, 6]), [3, 0, 1])
    out = ours(query, key, key, parts)
    first = theirs(query[None, :2], key[None, [0, 1, 3]], key[None, [0, 1, 3]])
    torch.testing.assert_close(out[:2], first[0][0])
    torch.testing.assert_close(ours.weights(query[:2], key[[0, 1, 3]]), first[1][0])
    last = theirs(query[None, 2:], key[None, 6:], key[None, 6:])[0][0]
    torch.testing.assert_close(out[2:], last)


def test_scattered_voxels_depend_on_coordinates_alone():
    grid = VoxelGrid((1.0,) * 3, (0.0,) * 3)
    coords = random_coords((9, 8, 7), 2, 0.5, seed=1)
    voxels = SparseVoxels(torch.zeros(len(coords), 1), coords, grid, 2)
    mask = scattered(voxels, 40)
    assert torch.bincount(coords[mask, 0].long()).tolist() == [40, 40]
    second = voxels.samples_at([1])
    assert torch.equal(scattered(second, 40), mask[coords[:, 0] == 1])
    # strewn: every eighth of the grid has about an eighth of them
    octants = (coords[mask, 1:] > torch.tensor([4, 4, 3])).long() @ torch.tensor([4, 2, 1])
    assert torch.bincount(octants, minlength=8).min() >= 2


def test_a_point_goes_to_the_nearest_box_that_takes_it():
    points = torch.tensor([[0.0, 0, 0], [1, 0, 0], [2, 0, 0], [9, 0, 0]])
    centers = torch.tensor([[0.0, 0, 0], [2.2, 0, 0]])
    assert losses.assign(points, centers, 2).tolist() == [0, 0, 1, -1]
    assert losses.assign(points[:0], centers, 2).tolist() == []
    assert losses.assign(points, centers[:0], 2).tolist() == [-1] * 4
    boxes = torch.tensor([[0.0, 0, 0, 4, 4, 4], [0, 0, 0, 1, 1, 1]])
    assert losses.smallest_box(points, boxes, 0.0).tolist() == [1, 0, -1, -1]
    assert losses.smallest_box(points, boxes, 0.6).tolist() == [1, 1, 0, -1]
    assert losses.near_boxes(points, centers, 2.4).tolist() == [True, True, True, False]


def test_focal_loss_of_known_numbers():
    logits, target = torch.tensor([0.0, 0.0]), torch.tensor([True, False])
    half = 0.25 * torch.log(torch.tensor(2.0))
    assert float(losses.focal_loss(logits, target)) == pytest.approx(float(half))
    near = torch.tensor([True, True, False])
    one = losses.keep_loss(torch.zeros(3), near)
    assert float(one) == pytest.approx(float(half) * (2 * 0.75 + 0.25) / 2 / 3)


def test_under_equal_shares_objects_count_alike():
    weights = losses.equal_shares(torch.tensor([0, 0, 0, 1, -1, 2, 2]))
    assert torch.allclose(weights, torch.tensor([2 / 3, 2 / 3, 2 / 3, 2, 1, 1, 1]))
    assert torch.equal(losses.equal_shares(torch.tensor([-1, -1])), torch.ones(2))
    crowd = torch.cat([torch.zeros(1000, dtype=torch.int64), torch.tensor([1])])
    assert float(losses.equal_shares(crowd).max()) == 8
