import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse3d.ops import backend, rotated
from tests.conftest import fixture_files

IMPLEMENTATIONS = ("reference", "native")
each = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)


def with_parity(key: str):
    """Parametrises a test over every npz file that holds ``key``, whatever the file's name."""
    found = fixture_files("detect/*.npz")
    found = [path for path in found if not hasattr(path, "stem") or key in np.load(path).files]

    def decorate(test):
        for mark in (pytest.mark.parity, each):
            test = mark(test)
        return pytest.mark.parametrize("path", found, ids=lambda path: path.stem)(test)

    return decorate


def _boxes(count: int, seed: int, spread: float = 8.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.rand(count, 7, generator=generator, dtype=torch.float64)
    low = torch.tensor([0, 0, -1, 0.1, 0.1, 0.5, -7], dtype=torch.float64)
    high = torch.tensor([spread, spread, 1, 5, 3, 2, 7], dtype=torch.float64)
    return low + boxes * (high - low)


@with_parity("bev_overlap")
def test_overlaps_agree_with_published_clipper(path, implementation):
    data = {name: torch.from_numpy(value) for name, value in np.load(path).items() if value.ndim}
    a, b = data["a"].double(), data["b"].double()
    with backend.forced(implementation):
        for name in ("bev_overlap", "bev_iou", "iou3d"):
            result = getattr(rotated, name)(a, b)
            torch.testing.assert_close(result, data[name], rtol=0, atol=1e-12)
            result = getattr(rotated, name)(data["a"], data["b"])
            torch.testing.assert_close(result, data[name].float(), rtol=1e-6, atol=1e-7)


@with_parity("pair_bev_overlap")
def test_paired_overlaps_agree_with_published_clipper(path, implementation):
    data = {name: torch.from_numpy(value) for name, value in np.load(path).items() if value.ndim}
    a, b = data["pair_a"].double(), data["pair_b"].double()
    with backend.forced(implementation):
        for name in ("bev_overlap", "bev_iou", "iou3d"):
            result = getattr(rotated, f"paired_{name}")(a, b)
            torch.testing.assert_close(result, data[f"pair_{name}"], rtol=0, atol=1e-12)


@with_parity("nms0_boxes")
def test_nms_agrees_with_published_keep(path, implementation):
    data = np.load(path)
    numbers = [
        name[3:-6] for name in data.files if name.startswith("nms") and name.endswith("_boxes")
    ]
    assert numbers
    for number in numbers:
        case = {key: data[f"nms{number}_{key}"] for key in ("boxes", "scores", "thresh", "pre_max")}
        pre_max = int(case["pre_max"])
        with backend.forced(implementation):
            keep = rotated.nms(
                torch.from_numpy(case["boxes"]),
                torch.from_numpy(case["scores"]),
                float(case["thresh"]),
                pre_max if pre_max >= 0 else None,
            )
        assert keep.tolist() == data[f"nms{number}_keep"].tolist()


@with_parity("pib_mask")
def test_points_in_boxes_agree_with_published_mask(path, implementation):
    data = np.load(path)
    with backend.forced(implementation):
        mask = rotated.points_in_boxes(
            torch.from_numpy(data["pib_points"]), torch.from_numpy(data["pib_boxes"])
        )
    assert torch.equal(mask, torch.from_numpy(data["pib_mask"]))


HARD = {
    "identical": ((0, 0, 4, 2, 0.3), (0, 0, 4, 2, 0.3), 8.0),
    "half turn": ((0, 0, 4, 2, 0.3), (0, 0, 4, 2, 0.3 + math.pi), 8.0),
    "touching edge": ((0, 0, 2, 2, 0), (2, 0, 2, 2, 0), 0.0),
    "touching corner": ((0, 0, 2, 2, 0), (1 + 2**0.5, 0, 2, 2, math.pi / 4), 0.0),
    "contained": ((0, 0, 6, 6, 0.2), (0.5, -0.4, 1, 0.5, 1.1), 0.5),
    "thin, at right angles": ((0, 0, 20, 1e-4, 0.4), (0, 0, 20, 1e-4, 0.4 + math.pi / 2), 1e-8),
    "far away": ((0, 0, 4, 2, 0.4), (1e5, 1e5, 4, 2, 0.4), 0.0),
    "far from the origin": ((1e5, -1e5, 4, 2, 0), (1e5 + 1, -1e5, 4, 2, 0), 6.0),
    "octagon": ((0, 0, 2, 2, 0.1), (0, 0, 2, 2, 0.1 + math.pi / 4), 8 * (2**0.5 - 1)),
    "near-equal angles": ((0, 0, 4, 2, 0.5), (0, 0, 4, 2, 0.5 + 1e-15), 8.0),
    "cross": ((0, 0, 4, 2, 0), (0, 0, 4, 2, math.pi / 2), 4.0),
    "no extent": ((0, 0, 0, 0, 0), (0, 0, 4, 2, 0), 0.0),
}


@each
@pytest.mark.parametrize("name", HARD)
def test_hard_overlaps_have_their_exact_area(name, implementation):
    first, second, area = HARD[name]
    a, b = (
        torch.tensor([[x, y, 0, dx, dy, 1, yaw]], dtype=torch.float64)
        for x, y, dx, dy, yaw in (first, second)
    )
    with backend.forced(implementation):
        for result in (rotated.bev_overlap(a, b), rotated.bev_overlap(b, a)):
            assert result.item() == pytest.approx(
                area, rel=1e-7 if "thin" in name else 1e-12, abs=1e-14
            )


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    angle=st.floats(-10, 10),
    implementation=st.sampled_from(IMPLEMENTATIONS),
)
def test_overlap_is_symmetric_bounded_and_moves_with_the_world(seed, angle, implementation):
    a, b = _boxes(12, seed), _boxes(9, seed + 1)
    turn = torch.tensor(
        [[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]],
        dtype=torch.float64,
    )
    moved = [boxes.clone() for boxes in (a, b)]
    for boxes in moved:
        boxes[:, :2] = boxes[:, :2] @ turn + 3
        boxes[:, 6] += angle
    with backend.forced(implementation):
        common = rotated.bev_overlap(a, b)
        torch.testing.assert_close(common, rotated.bev_overlap(b, a).T, rtol=0, atol=1e-12)
        torch.testing.assert_close(common, rotated.bev_overlap(*moved), rtol=0, atol=1e-12)
        iou = rotated.iou3d(a, b)
    smaller = torch.minimum(a[:, 3:5].prod(1)[:, None], b[:, 3:5].prod(1)[None])
    assert (common >= 0).all() and (common <= smaller + 1e-12).all()
    assert (iou >= 0).all() and (iou <= 1 + 1e-12).all()


def test_overlap_agrees_with_counting_points():
    a, b = _boxes(6, 3, spread=3), _boxes(6, 4, spread=3)
    a[:, 2] = b[:, 2] = 0
    steps = torch.linspace(-4, 8, 1201, dtype=torch.float64)
    points = torch.cartesian_prod(steps, steps, torch.zeros(1, dtype=torch.float64))
    inside = [rotated.points_in_boxes(points, boxes).double() for boxes in (a, b)]
    torch.testing.assert_close(
        rotated.bev_overlap(a, b), inside[0] @ inside[1].T * 1e-4, rtol=0.01, atol=0.01
    )


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), threshold=st.floats(0.05, 0.9))
def test_implementations_agree(seed, threshold):
    a, b = _boxes(40, seed), _boxes(30, seed + 1)
    scores = torch.rand(40, generator=torch.Generator().manual_seed(seed)).mul(10).round()
    points = _boxes(500, seed)[:, :3]
    results = []
    for name in IMPLEMENTATIONS:
        with backend.forced(name):
            results.append(
                (
                    rotated.bev_overlap(a, b),
                    rotated.paired_iou3d(a[:30], b),
                    rotated.nms(a, scores, threshold),
                    rotated.points_in_boxes(points, a),
                )
            )
    for reference, native in zip(*results):
        torch.testing.assert_close(native, reference, rtol=1e-13, atol=1e-13)


@each
def test_nms_ranks_ties_by_row_and_compares_strictly(implementation):
    boxes = torch.tensor([[0, 0, 0, 2, 2, 1, 0], [0, 0, 0, 2, 2, 1, 0], [1, 0, 0, 2, 2, 1, 0.0]])
    scores = torch.tensor([0.5, 0.5, 0.9])
    third = 2 / (4 + 4 - 2)
    with backend.forced(implementation):
        assert rotated.nms(boxes, scores, third).tolist() == [2, 0]
        assert rotated.nms(boxes, scores, third - 1e-6).tolist() == [2]
        assert rotated.nms(boxes, scores, 1.0).tolist() == [2, 0, 1]
        assert rotated.nms(boxes, scores, 1.0, pre_max=2).tolist() == [2, 0]
        assert rotated.nms(boxes, scores, 1.0, post_max=1).tolist() == [2]


@each
def test_nothing_is_legal(implementation):
    none, some = torch.zeros(0, 7), _boxes(3, 0).float()
    with backend.forced(implementation):
        assert rotated.bev_iou(none, some).shape == (0, 3)
        assert rotated.iou3d(some, none).shape == (3, 0)
        assert rotated.paired_bev_iou(none, none).shape == (0,)
        assert rotated.nms(none, torch.zeros(0), 0.5).shape == (0,)
        assert rotated.points_in_boxes(torch.zeros(0, 3), some).shape == (3, 0)
        assert rotated.points_in_boxes(torch.zeros(4, 3), none).shape == (0, 4)


@each
def test_threads_and_type(implementation):
    a, b = _boxes(300, 0), _boxes(200, 1)
    with backend.forced(implementation):
        one = rotated.bev_iou(a, b)
        threads = torch.get_num_threads()
        torch.set_num_threads(2)
        two = rotated.bev_iou(a, b)
        torch.set_num_threads(threads)
        assert torch.equal(one, two)
        assert rotated.bev_iou(a.float(), b.float()).dtype == torch.float32


def test_touching_points_are_outside():
    box = torch.tensor([[1.0, 2, 3, 4, 2, 2, 0]])
    points = torch.tensor([[3.0, 2, 3], [2.999, 2, 3], [1, 3, 3], [1, 2, 4], [1, 2, 3.999]])
    for name in IMPLEMENTATIONS:
        with backend.forced(name):
            assert rotated.points_in_boxes(points, box).tolist() == [
                [False, True, False, False, True]
            ]


def test_refusals_name_the_value_and_the_remedy():
    good = _boxes(3, 0)
    bad = good.clone()
    bad[1, 3] = math.nan
    with pytest.raises(ValueError, match="first is row 1"):
        rotated.bev_iou(good, bad)
    with pytest.raises(ValueError, match=r"\(3, 6\)"):
        rotated.iou3d(good, good[:, :6])
    with pytest.raises(ValueError, match="cannot be paired"):
        rotated.paired_iou3d(good, good[:2])
    with pytest.raises(ValueError, match="one number per box"):
        rotated.nms(good, torch.zeros(2), 0.5)
    with pytest.raises(ValueError, match="points have shape"):
        rotated.points_in_boxes(good, good)
