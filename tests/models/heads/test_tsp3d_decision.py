import numpy as np
import pytest
import torch

from sparse3d.evaluation.grounding import aligned_iou
from sparse3d.models.heads.tsp3d_decision import (
    BoxLook,
    Decision,
    choice_loss,
    overlaps,
    pair_features,
    quality_loss,
    shifted,
)
from sparse3d.structures import SparseVoxels, VoxelGrid

GRID = VoxelGrid((0.1, 0.1, 0.1), (0.0, 0.0, 0.0))


def boxes(count, generator):
    center = torch.rand(count, 3, generator=generator) * 4
    return torch.cat([center, torch.rand(count, 3, generator=generator) + 0.2], 1)


def case(scenes=(40, 25), channels=8, seed=0):
    """Voxels, finer voxels, boxes, scores and words of scenes."""
    generator = torch.Generator().manual_seed(seed)
    coords = []
    for scene, count in enumerate(scenes):
        cells = torch.randperm(1000, generator=generator)[:count].sort().values
        xyz = torch.stack([cells // 100, cells // 10 % 10, cells % 10], 1) * 2
        coords.append(torch.cat([torch.full((count, 1), scene), xyz], 1).int())
    coords = torch.cat(coords)
    fine = torch.cat([coords, coords + torch.tensor([0, 1, 0, 0], dtype=torch.int32)])

    def voxels(at, stride):
        features = torch.randn(len(at), channels, generator=generator)
        return SparseVoxels.from_coords(at, features, GRID, len(scenes), (stride,) * 3)[0]

    coarse = voxels(coords, 4)
    given = boxes(len(coords), generator), torch.randn(len(coords), generator=generator)
    words = torch.randn(len(scenes), 5, channels, generator=generator)
    padding = torch.zeros(len(scenes), 5, dtype=torch.bool)
    padding[-1, 3:] = True
    return coarse, voxels(fine, 2), *given, words, padding


def decision(**options):
    torch.manual_seed(1)
    made = Decision(8, 8, classes=3, heads=2, hidden=16, candidates=6, **options)
    for shift in made.shifts:
        torch.nn.init.normal_(shift.weight, std=0.1)
    return made


def test_overlaps_are_the_metric_s():
    generator = torch.Generator().manual_seed(0)
    one, other = boxes(20, generator), boxes(20, generator)
    mine = overlaps(one, other).diagonal()
    assert np.allclose(mine, aligned_iou(one.numpy(), other.numpy()), atol=1e-6)
    assert torch.allclose(overlaps(one, one).diagonal(), torch.ones(20))
    wider = [box + torch.tensor([0.0, 0, 0, 0.1, 0.1, 0.1]) for box in (one, other)]
    assert torch.allclose(overlaps(one, other, 0.1), overlaps(*wider))


def test_shifts_move_faces():
    box = torch.tensor([[1.0, 2.0, 3.0, 2.0, 4.0, 0.02]])
    assert torch.allclose(shifted(box, torch.zeros(1, 6)), box)
    moved = shifted(box, torch.tensor([[0.0, 0, 0, 0.5, 0, 0.5]]))
    assert torch.allclose(moved, torch.tensor([[1.25, 2.0, 3.025, 2.5, 4.0, 0.07]]))
    assert (shifted(box, torch.full((1, 6), -9.0))[:, 3:] > 0).all()


def test_candidates_are_apart_and_the_best():
    voxels, _, given, _, _, _ = case()
    quality = torch.randn(len(given), generator=torch.Generator().manual_seed(3))
    made = decision()
    rows, there = made._candidates(voxels, given, quality)
    assert rows.shape == there.shape and rows.shape[1] <= 6
    for scene in range(2):
        mine = rows[scene][there[scene]]
        assert (voxels.coords[mine, 0] == scene).all()
        assert (quality[mine].diff() <= 0).all()
        rest = overlaps(given[mine], given[mine]).fill_diagonal_(0)
        assert (rest <= made.overlap).all()
        best = quality.masked_fill(voxels.coords[:, 0] != scene, -torch.inf).argmax()
        assert mine[0] == best


def test_a_scene_answers_as_it_does_alone():
    voxels, fine, given, logits, words, padding = case()
    made = decision().eval()
    both = made(voxels, fine, given, logits, words, padding)
    for scene in range(2):
        mine = voxels.coords[:, 0] == scene
        alone = made(
            voxels.samples_at([scene]),
            fine.samples_at([scene]),
            given[mine],
            logits[mine],
            words[scene : scene + 1],
            padding[scene : scene + 1],
        )
        there = both.there[scene]
        assert torch.allclose(both.logits[scene][there], alone.logits[0], atol=1e-5)
        assert torch.allclose(both.boxes[scene][there], alone.boxes[0], atol=1e-5)


@pytest.mark.parametrize("scenes", [(0, 4), (0, 0)])
def test_empty_scenes_have_no_candidate(scenes):
    voxels, fine, given, logits, words, padding = case(scenes)
    choice = decision()(voxels, fine, given, logits, words, padding)
    assert not choice.there[0].any()
    assert choice.logits.isneginf().equal(~choice.there)
    assert not choice.boxes.isnan().any()


def test_padding_words_say_nothing():
    voxels, fine, given, logits, words, padding = case()
    made = decision().eval()
    before = made(voxels, fine, given, logits, words, padding).logits
    words[-1, 3:] = 100.0
    assert torch.equal(made(voxels, fine, given, logits, words, padding).logits, before)


def test_looking_sees_voxels_where_they_are():
    at = torch.tensor([[0, 5, 5, 5], [0, 15, 5, 5]], dtype=torch.int32)
    voxels = SparseVoxels.from_coords(at, torch.tensor([[1.0], [2.0]]), GRID, 1, (2,) * 3)[0]
    look = BoxLook(1, 4, 8)
    with torch.no_grad():
        look.narrow.weight.fill_(1.0)
        look.narrow.bias.zero_()
    seen = []
    look.layers.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    look(voxels, torch.tensor([[[1.05, 1.05, 1.05, 0.3, 0.3, 0.3], [9.0, 9, 9, 1, 1, 1]]]))
    assert seen[0][0, 0].max() == 1 and not seen[0][0, 1].any()


def test_pairs_are_seen_from_both_sides():
    pairs = pair_features(boxes(4, torch.Generator().manual_seed(0))[None])[0]
    assert torch.allclose(pairs[..., :3], -pairs[..., :3].transpose(0, 1))
    assert torch.allclose(pairs[..., 3:7], pairs[..., 3:7].transpose(0, 1))
    assert torch.allclose(pairs[..., 7], -pairs[..., 7].T)


def test_losses_prefer_the_truth():
    truth = torch.tensor([[0.0, 0, 0, 1, 1, 1]])
    given = torch.tensor([[0.1, 0, 0, 1, 1, 1], [3.0, 0, 0, 1, 1, 1]])
    right = choice_loss(torch.tensor([4.0, 0.0]), given, truth)
    wrong = choice_loss(torch.tensor([0.0, 4.0]), given, truth)
    assert right < 0.1 < 3 < wrong
    assert choice_loss(torch.tensor([0.0]), given[1:], truth) == 0
    assert choice_loss(torch.zeros(0), given[:0], truth) == 0
    wanted = torch.tensor([0.8, 0.0])
    good = quality_loss(torch.tensor([1.4, -5.0]), wanted, torch.ones(2))
    assert good < quality_loss(torch.tensor([-5.0, 1.4]), wanted, torch.ones(2))
