from dataclasses import replace

import pytest
import torch

from sparse3d.models.heads.sps_decoder import best_rows
from sparse3d.registry import MODELS
from sparse3d.structures import Batch
from tests.models.test_grounder import NAMES, close, same, scene


def model(seed=0):
    torch.manual_seed(seed)
    return MODELS.build(
        dict(
            type="TextGrounder",
            voxel_size=0.1,
            text=dict(type="HashedWords", channels=16, buckets=64),
            encoder=dict(type="PlacedEncoder"),
            backbone=dict(type="SparseUNet", channels=(8, 16), up_channels=(16,), blocks=1),
            head=dict(
                type="SPSHead",
                class_names=NAMES,
                channels=16,
                heads=2,
                hidden=16,
                dropout=0.0,
                layers=3,
                seeds=128,
                keypoints=(64, 32),
            ),
        )
    )


def test_losses_answers_and_how_objects_become_fewer():
    net, batch = model(), Batch([scene(), scene("the blue box", 1)])
    losses = net(batch, "loss")
    sum(losses.values()).backward()
    assert set(losses) == {
        *("loss_keypoints", "loss_present", "loss_box", "loss_meant"),
        *("loss_mined_class", "loss_mined_sentence"),
    }
    # the words after the last layer matter only to the class of the sentence
    assert not [name for name, p in net.named_parameters() if p.grad is None]
    assert [stage.counts for stage in net(batch).stages] == [[32, 32]] * 3 + [[16, 16]]
    found = net.eval()(batch, "predict")
    assert [len(one) for one in found] == [1, 1] and found[0].sample is batch.samples[0]


def test_it_learns():
    net = model()
    optimizer = torch.optim.AdamW(net.parameters(), 5e-3)
    one = scene()
    batch = Batch([one, replace(scene("the blue box"), points=one.points)])
    history = []
    for _ in range(25):
        optimizer.zero_grad()
        losses = net(batch, "loss")
        history.append({name: float(value.detach()) for name, value in losses.items()})
        sum(losses.values()).backward()
        optimizer.step()
    for name in ("loss_keypoints", "loss_box", "loss_mined_sentence", "loss_mined_class"):
        assert history[-1][name] < 0.8 * history[0][name], name


def test_the_order_of_points_leaves_no_trace_and_company_changes_nothing():
    net, one, other = model().eval(), scene(), scene("blue", 3)
    mixed = replace(one, points=one.points[torch.randperm(len(one.points))])
    together = net(Batch([one, other]), "predict")
    assert same(together, net(Batch([mixed, other]), "predict"))
    assert close(together, [net(Batch([s]), "predict")[0] for s in (one, other)])


def test_an_empty_scene_and_a_single_point_are_answered():
    net, full = model(), scene()
    batch = Batch([replace(full, points=full.points[:n]) for n in (0, len(full.points), 1)])
    assert all(value.isfinite() for value in net(batch, "loss").values())
    assert [len(one) for one in net.eval()(batch, "predict")] == [0, 1, 1]


def test_an_explanation_names_words_and_keypoints():
    found = model().eval().explain(scene())
    assert len(found.words) == 4 and float(found.words.sum()) == pytest.approx(1, abs=1e-5)
    assert [len(centers) for centers in found.kept] == [128, 32, 16]


def test_best_rows_go_by_scene_and_ties_to_the_first():
    scores = torch.tensor([1.0, 3.0, 3.0, 0.0, 5.0])
    rows, counts = best_rows(scores, [3, 0, 2], [1, 2, 5])
    assert rows.tolist() == [1, 3, 4] and counts == [1, 0, 2]
