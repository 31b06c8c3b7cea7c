import numpy as np
import pytest
import torch

from sparse3d.evaluation.grounding import aligned_iou
from sparse3d.models.heads.room_boxes import (
    BoxLook,
    BoxMean,
    inside,
    overlaps,
    pair_features,
    shifted,
)
from sparse3d.models.heads.tsp3d_decision import (
    Decision,
    beside_loss,
    choice_loss,
    names_loss,
    quality_loss,
)
from sparse3d.structures import SparseVoxels, VoxelGrid

GRID = VoxelGrid((0.1, 0.1, 0.1), (0.0, 0.0, 0.0))


def boxes(count, generator):
    center = torch.rand(count, 3, generator=generator) * 4
    return torch.cat([center, torch.rand(count, 3, generator=generator) + 0.2], 1)


def case(scenes=(40, 25), channels=8, seed=0):
    """Voxels, the backbone's, finer voxels, the input in these, and the boxes of scenes."""
    generator = torch.Generator().manual_seed(seed)
    coords = []
    for scene, count in enumerate(scenes):
        cells = torch.randperm(1000, generator=generator)[:count].sort().values
        xyz = torch.stack([cells // 100, cells // 10 % 10, cells % 10], 1) * 2
        coords.append(torch.cat([torch.full((count, 1), scene), xyz], 1).int())
    coords = torch.cat(coords)
    fine = torch.cat([coords, coords + torch.tensor([0, 1, 0, 0], dtype=torch.int32)])

    def voxels(at, stride, width=channels):
        features = torch.randn(len(at), width, generator=generator)
        return SparseVoxels.from_coords(at, features, GRID, len(scenes), (stride,) * 3)[0]

    given = boxes(len(coords), generator)
    return voxels(coords, 4), voxels(coords, 4), voxels(fine, 2), voxels(fine, 2, 5), given


def sentences(scenes=2, channels=8):
    """Words of sentences and where there are none."""
    words = torch.randn(scenes, 5, channels, generator=torch.Generator().manual_seed(7))
    padding = torch.zeros(scenes, 5, dtype=torch.bool)
    padding[-1, 3:] = True
    return words, padding


def decision(**options):
    torch.manual_seed(1)
    made = Decision(8, 8, 5, classes=3, heads=2, hidden=16, candidates=6, **options)
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
    voxels, _, _, _, given = case()
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
    voxels, backbone, fine, inputs, given = case()
    words, padding = sentences()
    made = decision().eval()
    both = made.choose(made.find(voxels, backbone, fine, inputs, given), words, padding)
    for scene in range(2):
        mine = [part.samples_at([scene]) for part in (voxels, backbone, fine, inputs)]
        found = made.find(*mine, given[voxels.coords[:, 0] == scene])
        alone = made.choose(found, words[scene : scene + 1], padding[scene : scene + 1])
        there = both.candidates.there[scene]
        assert torch.allclose(both.candidates.boxes[scene][there], found.boxes[0], atol=1e-5)
        for one, other in zip(both.logits, alone.logits, strict=True):
            assert torch.allclose(one[scene][there], other[0], atol=1e-5)
        assert torch.allclose(both.beside[scene][there], alone.beside[0], atol=1e-5)


def test_any_sentence_can_be_answered_with_the_candidates_of_another():
    words, padding = sentences()
    made = decision().eval()
    found = made.find(*case())
    twice = made.choose(found.of(torch.tensor([0, 0])), words, padding)
    for scene in range(2):
        alone = made.choose(
            found.of(torch.tensor([0])), words[scene : scene + 1], padding[scene : scene + 1]
        )
        assert torch.allclose(twice.logits[-1][scene], alone.logits[-1][0], atol=1e-5)
    assert not torch.allclose(twice.logits[-1][0], twice.logits[-1][1], atol=1e-3)


@pytest.mark.parametrize("scenes", [(0, 4), (0, 0)])
def test_empty_scenes_have_no_candidate(scenes):
    made = decision()
    choice = made.choose(made.find(*case(scenes)), *sentences())
    assert not choice.candidates.there[0].any()
    assert choice.logits[-1].isneginf().equal(~choice.candidates.there)
    assert not choice.candidates.boxes.isnan().any()


def test_padding_words_say_nothing():
    words, padding = sentences()
    made = decision().eval()
    found = made.find(*case())
    before = made.choose(found, words, padding).logits[-1]
    words[-1, 3:] = 100.0
    assert torch.equal(made.choose(found, words, padding).logits[-1], before)


def test_colours_are_averaged_in_the_box():
    at = torch.tensor([[0, 5, 5, 5], [0, 6, 5, 5], [0, 15, 5, 5]], dtype=torch.int32)
    colors = torch.tensor([[1.0], [3.0], [9.0]])
    voxels = SparseVoxels.from_coords(at, colors, GRID, 1, (2,) * 3)[0]
    mean = BoxMean(1, 1, hidden=1)
    with torch.no_grad():
        for layer in (mean.first, mean.last):
            layer.weight.fill_(1.0)
            layer.bias.zero_()
    asked = torch.tensor(
        [[[1.2, 1.1, 1.1, 0.4, 0.2, 0.2], [3.1, 1.1, 1.1, 0.2, 0.2, 0], [9.0] * 6]]
    )
    assert mean(voxels, asked)[0, :, 0].tolist() == pytest.approx([2.0, 9.0, 0.0])
    assert mean(voxels, asked[:, :1] + 50).tolist() == [[[0.0]]]


def test_inside_is_what_no_face_leaves_out():
    generator = torch.Generator().manual_seed(0)
    points, around = torch.rand(200, 3, generator=generator) * 4, boxes(5, generator)
    away = (points[None] - around[:, None, :3]).abs() - around[:, None, 3:] / 2
    assert torch.equal(inside(points, around), (away < 0).all(2))


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
    there = torch.ones(1, 4, dtype=torch.bool)
    pairs = pair_features(boxes(4, torch.Generator().manual_seed(0))[None], there)[0]
    assert torch.allclose(pairs[..., :3], -pairs[..., :3].transpose(0, 1))
    assert torch.allclose(pairs[..., 3:7], pairs[..., 3:7].transpose(0, 1))
    assert torch.allclose(pairs[..., 7], -pairs[..., 7].T)


def test_bearings_grow_to_the_left_of_who_looks_at_the_middle():
    at = torch.tensor([[0.0, 0, 0], [4, 2, 0], [4, 0, 0], [4, -2, 0], [90, 90, 0]])
    given = torch.cat([at, torch.ones(5, 3)], 1)[None]
    there = torch.tensor([[True, True, True, True, False]])
    sine, cosine = pair_features(given, there)[0, 1:4, 0, 8:].unbind(1)  # seen from the first
    assert sine.tolist() == pytest.approx([5**-0.5, 0, -(5**-0.5)], abs=1e-6)
    assert (cosine > 0.8).all()


def test_losses_prefer_the_truth():
    overlap = torch.tensor([0.8, 0.0])
    right = choice_loss(torch.tensor([4.0, 0.0]), overlap)
    wrong = choice_loss(torch.tensor([0.0, 4.0]), overlap)
    assert right < 0.1 < 3 < wrong
    assert choice_loss(torch.tensor([0.0]), overlap[1:]) == 0
    assert choice_loss(torch.zeros(0), overlap[:0]) == 0
    good = quality_loss(torch.tensor([1.4, -5.0]), overlap, torch.ones(2))
    assert good < quality_loss(torch.tensor([-5.0, 1.4]), overlap, torch.ones(2))


def test_what_is_named_beside_is_learnt_where_it_is_known():
    overlap = torch.tensor([[0.8], [0.0]])
    right = beside_loss(torch.tensor([4.0, -4.0]), overlap)
    assert right < 0.1 < 3 < beside_loss(torch.tensor([-4.0, 4.0]), overlap)
    assert beside_loss(torch.tensor([4.0, 4.0]), overlap[:, :0]) == 0


def test_candidates_learn_the_class_of_what_they_overlap():
    overlap = torch.tensor([[0.8, 0.1], [0.1, 0.6], [0.2, 0.1]])
    labels = torch.tensor([1, -1])  # the second object is of no known class
    right = torch.tensor([[0.0, 9, 0], [0, 0, 9], [0, 0, 9]])
    assert names_loss(right, overlap, labels) < 0.01
    assert names_loss(right.flip(1), overlap, labels) > 3
    assert names_loss(right, overlap[:, :0], labels[:0]) == 0


def test_known_boxes_are_candidates_that_any_sentence_may_ask_of():
    _, *seen, _ = case()
    given = [boxes(3, torch.Generator().manual_seed(1)), boxes(1, torch.Generator().manual_seed(2))]
    torch.manual_seed(1)
    made = Decision(8, 8, 5, heads=2, hidden=16)  # whose looks do not move boxes yet
    given[0][:, 3:] += 6  # so that voxels lie in each
    found = made.known(given, *seen)
    assert found.there.tolist() == [[True] * 3, [True, False, False]]
    near = overlaps(found.looks[0][0].detach(), given[0], 0.1).diagonal()
    assert (near > 0.1).all()
    choice = made.choose(found.of(torch.tensor([0, 0, 1])), *sentences(3))
    assert choice.logits[-1].isneginf().sum(1).tolist() == [0, 0, 2]
    choice.logits[-1][0].sum().backward()
    assert made.around.first.weight.grad.abs().sum() > 0
