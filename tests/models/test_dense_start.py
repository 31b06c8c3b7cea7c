import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse3d.models.dense_start.consistency import Depths, contradicted
from sparse3d.models.dense_start.discs import flattened
from sparse3d.models.dense_start.fill import continue_planes, fill_behind, fill_holes
from sparse3d.models.dense_start.matchers import FlowMatcher, RomaMatcher
from sparse3d.models.dense_start.merge import merge_near, merge_to
from sparse3d.models.dense_start.photographs import (
    Photograph,
    choose_neighbours,
    choose_references,
    fundamental,
)
from sparse3d.models.dense_start.sampling import sample_spaced, spacing
from sparse3d.models.dense_start.start import DenseStart, PointStart
from sparse3d.models.dense_start.swept import SweptDepth, depth_range
from sparse3d.models.dense_start.triangulation import lift, triangulate
from sparse3d.ops import backend
from sparse3d.ops.reference.splat import rotation_matrix
from sparse3d.structures import Camera, Gaussians, Sample, SparsePoints
from tests.photographs import SIZE, K, cast, look_at, poses, some_points

implementations = pytest.mark.parametrize("implementation", ["reference", "native"])
START = {"matches": 800}
depths = pytest.mark.parametrize("depth", ["MatchedDepth", "SweptDepth"])


def camera(pose, size=SIZE) -> Camera:
    return Camera.from_corner_K(torch.tensor(K).float(), torch.tensor(pose).float(), size)


def views(list_of_poses) -> list[Sample]:
    return [
        Sample(
            torch.zeros(0, 3),
            cameras={"view": camera(pose)},
            images={"view": torch.from_numpy(cast(pose)[0].copy())},
            meta={"sample_id": f"view {i}"},
        )
        for i, pose in enumerate(list_of_poses)
    ]


def off_surface(points) -> torch.Tensor:
    """Distance of points to the made place: a floor and a wall."""
    return torch.minimum(points[:, 2].abs(), (points[:, 1] - 1.5).abs())


# ---------------------------------------------------------------------- geometry


@given(st.integers(0, 2**31), st.floats(0.2, 30))
@settings(max_examples=30, deadline=None)
def test_true_matches_give_back_their_points(seed, distance):
    rng = np.random.default_rng(seed)
    a, b = (
        camera(look_at([0, -8, 0] - rng.uniform(-3, 3, 3), rng.uniform(-1, 1, 3))) for _ in "ab"
    )
    pixels = torch.from_numpy(rng.uniform(0, 70, (50, 2))).float()
    points = lift(a, pixels, torch.from_numpy(rng.uniform(0.5, 1, 50) * distance).float())
    target, depth = b.project(points)
    seen = depth > 0.05 * distance
    found = triangulate(a, pixels[seen], b, target[seen])
    assert found.in_front.all()
    sure = found.angle > 0.02
    back = lift(a, pixels[seen], found.depth)
    assert ((back - points[seen]).norm(dim=1)[sure] < 0.01 * distance).all()
    assert (found.miss < 0.05).all()
    ends = torch.cat([pixels, torch.ones(50, 1)], 1).double() @ fundamental(a, b).T
    homogeneous = torch.cat([target, torch.ones(50, 1)], 1).double()
    miss = (ends * homogeneous).sum(1) / ends[:, :2].norm(dim=1).clamp(min=1e-9)
    assert (miss.abs()[seen] < 0.1).all()


def test_matches_behind_a_camera_and_off_the_line_are_told():
    a, b = camera(poses(2)[0]), camera(poses(2)[1])
    pixels = torch.tensor([[40.0, 30.0], [40.0, 30.0], [40.0, 30.0]])
    behind, ahead = lift(a, pixels[:2], torch.tensor([-2.0, 3.0]))
    target = torch.stack([b.project(p[None])[0][0] for p in (ahead, ahead)])
    local = b.to_camera(behind[None])[0]
    target[0] = local[:2] / local[2] * b.K[0, 0] + b.K[:2, 2]
    found = triangulate(a, pixels, b, torch.cat([target, target[1:] + 9]))
    assert found.in_front.tolist()[:2] == [False, True]
    assert found.miss[1] < 0.01 and found.miss[2] > 2


def test_the_best_neighbours_share_points_under_a_good_angle():
    spots = [[0, -8, 0], [0.05, -8, 0], [0.8, -8, 0], [7, -5, 0]]
    cameras = [camera(look_at(spot, [0, 0, 0.1])) for spot in spots]
    names = list("abcd")
    points = SparsePoints(torch.rand(50, 3) - 0.5, torch.rand(50, 3), [names] * 50)
    assert choose_neighbours(names, cameras, points, 1)[0] == [2]
    # Without points the nearest that does not stand in the same place.
    twice = [cameras[0], *cameras]
    assert choose_neighbours(list("zabcd"), twice, SparsePoints.none(), 2)[0] == [2, 3]


def test_references_are_spread_over_the_cameras():
    cameras = [camera(pose) for pose in poses(12)]
    chosen = choose_references(cameras, 4)
    assert len(chosen) == 4 and max(np.diff([-1, *chosen, 12])) <= 5
    assert choose_references(cameras, 12) == choose_references(cameras, 99) == list(range(12))


# ---------------------------------------------------------------------- matching


def test_flow_finds_the_made_place_again():
    a, b = (Photograph.from_sample(view) for view in views(poses(5)[1:3]))
    matches = FlowMatcher()(a, b)
    assert matches.certainty.mean() > 0.6
    depth = torch.from_numpy(cast(poses(5)[1])[1]).float().reshape(-1)
    y, x = np.mgrid[: SIZE[1], : SIZE[0]]
    pixels = torch.from_numpy(np.stack([x, y], 2).reshape(-1, 2)).float()
    truth = b.camera.project(lift(a.camera, pixels, depth))[0]
    miss = (torch.from_numpy(matches.target).reshape(-1, 2) - truth).norm(dim=1)
    assert miss[torch.from_numpy(matches.certainty).reshape(-1) > 0].median() < 0.5


def test_pictures_of_two_sizes_are_matched():
    a, b = views(poses(5)[1:3])
    size = (SIZE[0] * 2, SIZE[1] * 2)
    large = b.images["view"].repeat_interleave(2, 0).repeat_interleave(2, 1)
    other = Photograph("b", large.numpy(), b.cameras["view"].resized(size))
    matches = FlowMatcher()(Photograph.from_sample(a), other)
    same = FlowMatcher()(Photograph.from_sample(a), Photograph.from_sample(b))
    both = (matches.certainty > 0) & (same.certainty > 0)
    apart = (matches.target[both] + 0.5) / 2 - 0.5 - same.target[both]
    assert both.mean() > 0.5 and np.median(np.abs(apart)) < 0.3


def test_missing_matchers_say_what_is_missing():
    with pytest.raises(ValueError, match=r"RomaMatcher (needs the package|lacks).*FlowMatcher"):
        RomaMatcher("nowhere.pth", "nowhere.pth")
    with pytest.raises(ValueError, match="preset is 'best'"):
        FlowMatcher(preset="best")


def test_a_swept_depth_is_that_of_the_surface():
    pictures = [Photograph.from_sample(view) for view in views(poses(5))]
    near = [[j for j in range(5) if j != i] for i in range(5)]
    found = SweptDepth()(pictures, [1, 2, 3], near, SparsePoints.none())
    assert sorted(found) == [1, 2, 3]
    for row, one in found.items():
        truth = torch.from_numpy(cast(poses(5)[row])[1]).float()
        known = one.depth > 0
        assert known.float().mean() > 0.7
        assert (one.depth / truth - 1).abs()[known].median() < 0.01
        assert torch.equal(known, one.doubt.isfinite())


def test_plain_walls_have_a_depth_where_others_agree():
    samples = views(poses(5))
    for sample in samples:  # hardly any contrast is left
        sample.images["view"] = (120 + sample.images["view"].float() / 16).byte()
    pictures = [Photograph.from_sample(view) for view in samples]
    near = [[j for j in range(5) if j != i] for i in range(5)]
    points = SparsePoints(*(torch.from_numpy(column).float() for column in some_points()))
    depth = SweptDepth()(pictures, [2], near, points)[2].depth
    truth = torch.from_numpy(cast(poses(5)[2])[1]).float()
    known = depth > 0
    assert known.float().mean() > 0.5
    assert (depth / truth - 1).abs()[known].median() < 0.03


@pytest.mark.parametrize("name", ["views", "apart", "most_pixels", "agree"])
def test_settings_of_a_sweep_that_cannot_be_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} is -1; it must be"):
        SweptDepth(**{name: -1})


def test_where_fewer_see_a_place_fewer_voices_are_enough():
    pictures = [Photograph.from_sample(view) for view in views(poses(5))]
    near = [[j for j in range(5) if j != i] for i in range(5)]
    found = SweptDepth(agree=3)(pictures, [0, 1, 2, 3, 4], near, SparsePoints.none())
    # The rims of the outermost pictures, which hardly three others see.
    first, last = ((found[row].depth > 0).float() for row in (0, 4))
    assert first[:, 78:88].mean() > 0.8 and last[:, 7:17].mean() > 0.7


def test_large_pictures_are_swept_reduced():
    pictures = [Photograph.from_sample(view) for view in views(poses(5))]
    near = [[j for j in range(5) if j != i] for i in range(5)]
    found = SweptDepth(most_pixels=3000)(pictures, [2], near, SparsePoints.none())[2]
    truth = torch.from_numpy(cast(poses(5)[2])[1]).float()
    assert found.depth.numel() <= 3000 and found.camera.size == tuple(found.depth.shape[::-1])
    depth, doubt = found.enlarged(tuple(truth.shape))
    known = depth > 0
    assert torch.equal(known, doubt.isfinite()) and known.float().mean() > 0.5
    assert (depth / truth - 1).abs()[known].median() < 0.02


def test_the_range_of_depths_is_that_of_the_points_a_picture_sees():
    pictures = [Photograph.from_sample(view) for view in views(poses(3))]
    pixels = torch.rand(100, 2) * torch.tensor(SIZE)
    xyz = lift(pictures[0].camera, pixels, torch.linspace(2, 4, 100))
    far = lift(pictures[0].camera, pixels, torch.full((100,), 50.0))
    points = SparsePoints(
        torch.cat([xyz, far]), torch.zeros(200, 3), [["view 0"]] * 100 + [["view 1"]] * 100
    )
    low, high = depth_range(pictures[0], pictures[1:], points)
    assert low == pytest.approx(1.6, rel=0.02) and high == pytest.approx(6, rel=0.02)
    low, high = depth_range(pictures[0], pictures[1:], SparsePoints.none())  # by SIFT
    truth = cast(poses(3)[0])[1]
    assert low < np.quantile(truth, 0.1) and high > np.quantile(truth, 0.9) and low > 0
    plain = [Photograph(p.name, np.full_like(p.image, 90), p.camera) for p in pictures]
    assert depth_range(plain[0], plain[1:], SparsePoints.none()) is None


# ---------------------------------------------------------------------- merging, holes


@implementations
@given(seed=st.integers(0, 2**31))
@settings(max_examples=6, deadline=None)
def test_merging_leaves_the_surest_of_each_voxel(implementation, seed):
    draw = torch.Generator().manual_seed(seed)
    points = torch.randn(200, 3, generator=draw)
    doubt = torch.rand(200, generator=draw)
    sizes = 2.0 ** torch.randint(-2, 2, (200,), generator=draw)
    with backend.forced(implementation):
        rows = merge_near(points, sizes, doubt)
        order = torch.randperm(200, generator=draw)
        shuffled = merge_near(points[order], sizes[order], doubt[order])
    assert sorted(order[shuffled].tolist()) == rows.tolist()
    cells = torch.cat([sizes[:, None], (points / sizes[:, None]).floor()], 1)
    for cell in cells.unique(dim=0):
        inside = (cells == cell).all(1).nonzero()[:, 0]
        assert [r for r in rows.tolist() if r in inside] == [int(inside[doubt[inside].argmin()])]


def test_a_cap_enlarges_the_voxels():
    points = torch.rand(3000, 3)
    rows, factor = merge_to(points, torch.full((3000,), 1e-4), torch.rand(3000), 500)
    assert len(rows) == len(rows.unique()) == 500
    assert factor == pytest.approx(6**0.5)
    assert merge_to(points[:0], points[:0, 0], points[:0, 0], 5)[0].shape == (0,)


def test_a_plane_is_continued():
    y, x = np.mgrid[:30, :40]
    plane = 0.5 + 0.004 * x - 0.006 * y
    holes = plane.copy()
    holes[10:20, 15:25] = 0
    holes[:, 34:] = 0
    filled = continue_planes(holes)
    assert np.abs(filled / plane - 1)[10:20, 15:25].max() < 0.02
    assert np.abs(filled / plane - 1).max() < 0.02
    assert (filled[holes > 0] == plane[holes > 0]).all()


def test_holes_are_filled_where_no_point_is_seen():
    picture = Photograph.from_sample(views(poses(1))[0])
    depth = torch.from_numpy(cast(poses(1)[0])[1]).float()
    y, x = torch.meshgrid(torch.arange(SIZE[1]), torch.arange(SIZE[0]), indexing="ij")
    pixels = torch.stack([x, y], 2).reshape(-1, 2).float()
    points = lift(picture.camera, pixels, depth.reshape(-1))
    known = (pixels[:, 0] < 30) | (pixels[:, 0] > 60)
    filled, colors, edges = fill_holes([picture, picture], points[known], 4.0)
    assert 100 < len(filled) < 180  # once, not for each picture
    spots = picture.camera.project(filled)[0]
    assert ((spots[:, 0] > 26) & (spots[:, 0] < 64)).all()
    assert off_surface(filled).median() < 0.1
    assert (edges > 0).all() and colors.min() >= 0 and colors.max() <= 1
    assert len(fill_holes([picture], points, 4.0)[0]) == 0


def test_what_stands_behind_something_is_continued():
    picture = Photograph.from_sample(views(poses(1))[0])
    wide, high = SIZE
    y, x = torch.meshgrid(torch.arange(0, high, 2), torch.arange(0, wide, 2), indexing="ij")
    pixels = torch.stack([x, y], 2).reshape(-1, 2).float()
    post = (pixels[:, 0] > 40) & (pixels[:, 0] < 52)
    points = lift(picture.camera, pixels, torch.where(post, 1.0, 4.0))
    of_wall, of_post = torch.tensor([0.2, 0.8, 0.4]), torch.tensor([0.9, 0.0, 0.0])
    rgb = torch.where(post[:, None], of_post, of_wall)
    found, colors, edges = fill_behind([picture, picture], points, rgb, 4.0, 5)
    spot, depth = picture.camera.project(found)
    assert len(found) == 36  # two columns of 18 cells, once
    assert ((spot[:, 0] > 43) & (spot[:, 0] < 53)).all()
    torch.testing.assert_close(depth, torch.full_like(depth, 4.0), rtol=0.05, atol=0)
    # A cell at the post's edge holds points of both; nothing of the post's colour shows behind it.
    torch.testing.assert_close(colors, of_wall.expand(len(colors), 3), rtol=0, atol=1e-3)
    assert (edges > 0).all()
    assert not len(fill_behind([picture], points[~post], rgb[~post], 4.0, 5)[0])


def test_what_a_picture_just_misses_is_filled():
    samples = views(poses(3))
    made = [
        len(DenseStart(margin=m, **START)(samples, SparsePoints.none(), 0)[0]) for m in (0, 0.2)
    ]
    assert made[1] > made[0] + 50
    wider = Photograph.from_sample(samples[0]).with_margin(0.1)
    assert wider.image.shape == (SIZE[1] + 20, SIZE[0] + 20, 3)
    one = lift(samples[0].cameras["view"], torch.tensor([[0.0, 0.0]]), torch.tensor([2.0]))
    torch.testing.assert_close(wider.camera.project(one)[0], torch.tensor([[10.0, 10.0]]))


def test_points_in_the_air_are_contradicted():
    cameras = [camera(pose) for pose in poses(3)]
    depths = {i: torch.from_numpy(cast(pose)[1]).float() for i, pose in enumerate(poses(3))}
    known = {i: Depths(cameras[i], depth, torch.ones_like(depth)) for i, depth in depths.items()}
    pixels = torch.tensor([[40.0, 40.0], [48.0, 50.0]])
    depth = depths[1][pixels[:, 1].long(), pixels[:, 0].long()]
    for factor, wrong in ((1.0, False), (0.7, True), (1.4, False)):
        points = lift(cameras[1], pixels, factor * depth)
        assert contradicted(points, 1, [0, 1, 2], known).tolist() == [wrong] * 2


def half_plain() -> np.ndarray:
    """A picture [64, 96, 3] of noise on the left and of one grey on the right."""
    image = np.full((64, 96, 3), 128, np.uint8)
    image[:, :48] = np.random.default_rng(0).integers(0, 256, (64, 48, 3))
    return image


def test_detail_asks_for_closer_points_than_plain_walls():
    apart = spacing(half_plain(), 4.0)
    assert apart.shape == (64, 96)
    assert apart[:, :40].max() < 2.5 and apart[:, 60:].min() > 8
    assert spacing(half_plain(), 1.0).min() == 1  # no point is closer than a pixel
    half_contrast = (128 + (half_plain().astype(int) - 128) // 2).astype(np.uint8)
    assert spacing(half_contrast, 4.0)[:, :40].mean() > apart[:, :40].mean()  # an absolute measure


@given(st.integers(0, 2**31), st.floats(2, 6))
@settings(max_examples=20, deadline=None)
def test_pixels_are_chosen_as_far_apart_as_asked(seed, apart):
    rng = np.random.default_rng(seed)
    good = np.zeros((40, 60), bool)
    good[:, 20:] = True
    distance = np.full(good.shape, apart)
    rows, step = sample_spaced(good, distance, 10**6, rng)
    assert len(rows) == pytest.approx(good.sum() / apart**2, abs=1)
    assert good.reshape(-1)[rows].all() and (rows.diff() > 0).all()
    assert torch.allclose(step, torch.tensor(apart).float())
    counts = np.zeros((5, 8), int)  # of squares of 8 by 8
    np.add.at(counts, (rows.numpy() // 60 // 8, rows.numpy() % 60 // 8), 1)
    assert (np.abs(counts[:, 3:7] - 64 / apart**2) < 1).all()


def test_a_cap_moves_all_points_apart():
    good, distance = np.ones((40, 60), bool), np.full((40, 60), 2.0)
    distance[:, :30] = 1.0
    rows, step = sample_spaced(good, distance, 150, np.random.default_rng(0))
    assert len(rows) == pytest.approx(150, abs=1)
    left = rows % 60 < 30
    assert float(left.float().mean()) == pytest.approx(0.8, abs=0.05)  # four times as dense
    assert (step[~left] / step[left].mean()).mean() == pytest.approx(2)


def test_every_pixel_can_be_a_point_and_none_need_be_good():
    good = np.zeros((5, 7), bool)
    none, _ = sample_spaced(good, np.ones((5, 7)), 100, np.random.default_rng(0))
    every, _ = sample_spaced(~good, np.ones((5, 7)), 100, np.random.default_rng(0))
    assert none.tolist() == [] and every.tolist() == list(range(35))


# ---------------------------------------------------------------------- the whole start


@pytest.mark.parametrize(
    "wrong",
    [{"merge": -1.0}, {"pixels": 0.0}, {"matches": 0}, {"opacity": 1.5}, {"fill": math.nan}],
)
def test_settings_that_cannot_be_are_refused(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        DenseStart(**wrong)


def test_gaussians_lie_flat_in_the_plane_of_their_neighbours():
    generator = torch.Generator().manual_seed(0)
    place = torch.rand(300, 2, generator=generator)
    normal = torch.tensor([1.0, 2.0, 2.0]) / 3
    across = torch.linalg.qr(normal[:, None], mode="complete")[0][:, 1:].T
    round_ones = Gaussians.from_points(place @ across, torch.zeros(300, 3), torch.full((300,), 0.1))
    flat = flattened(round_ones, 0.25)
    turns, widths = rotation_matrix(flat.quats), flat.scales.exp()
    thinnest = turns.gather(2, widths.argmin(1)[:, None, None].expand(-1, 3, 1))[..., 0]
    assert ((thinnest @ normal).abs() > 0.999).all()
    assert torch.allclose(widths.amin(1), torch.tensor(0.025), atol=1e-5)
    assert 0.06 < widths.median(1).values.median() < widths.amax(1).median() < 0.15
    assert flattened(round_ones, 1.0) is round_ones
    assert torch.equal(flattened(round_ones[:3], 0.25).scales, round_ones[:3].scales)


def test_small_pictures_get_fewer_points():
    samples = views(poses(3))
    few, many = (
        len(DenseStart(**{**START, "pixels": pixels}, fill=0)(samples, SparsePoints.none(), 0)[0])
        for pixels in (100, 10)
    )
    assert few < 1.5 * 3 * SIZE[0] * SIZE[1] / 100 < many


@depths
@pytest.mark.parametrize("count", [2, 5])
def test_the_start_lies_on_the_surfaces(count, depth):
    start = DenseStart({"type": depth}, **START)
    made, report = start(views(poses(5)[:count]), SparsePoints.none(), 1)
    assert report["references"] == count and made.sh_degree == 1
    dense = made[: report["merged"]]
    assert len(dense) > 300
    assert off_surface(dense.means).median() < 0.05
    assert (off_surface(dense.means) < 0.25).float().mean() > 0.9
    assert made.finite().all()


@depths
def test_the_start_repeats_itself_and_obeys_its_cap(depth):
    samples, start = views(poses(3)), DenseStart({"type": depth}, **START)
    runs = [start(samples, SparsePoints.none(), 0)[0] for _ in range(2)]
    assert torch.equal(runs[0].means, runs[1].means)
    for most in (200, 5, 1):
        made, _ = start(samples, SparsePoints.none(), 0, most=most)
        assert 0 < len(made) <= most and made.finite().all()


@depths
def test_no_point_is_made_of_a_masked_pixel(depth):
    samples = views(poses(3))
    start = DenseStart({"type": depth}, **{**START, "fill": 0})

    def made_of_the_left() -> int:
        made, _ = start(samples, SparsePoints.none(), 0)
        cameras = [sample.cameras["view"] for sample in samples]
        right = [c.project(made.means)[0][:, 0] > 39.4 for c in cameras]
        return int((~torch.stack(right).any(0)).sum())

    unmasked = made_of_the_left()
    for sample in samples:
        sample.meta["mask"] = torch.arange(SIZE[0]).expand(SIZE[1], -1) >= 40
    assert made_of_the_left() == 0 < unmasked
    for sample in samples:
        sample.meta["mask"] = torch.zeros(SIZE[1], SIZE[0], dtype=torch.bool)
    with pytest.raises(ValueError, match="hidden by masks"):
        start(samples, SparsePoints.none(), 0)


@pytest.mark.parametrize(
    "depth, said",
    [("MatchedDepth", "view 2 with view"), ("SweptDepth", r"wrong poses.*: view 2 \d\.\d %$")],
)
def test_a_wrong_pose_is_named_and_left_out(depth, said):
    samples = views(poses(5))
    wrong = look_at([3, 0.5, 2.0], [0, 0.2, 0])
    samples[2].cameras["view"] = camera(wrong)
    with pytest.warns(UserWarning, match=said):
        made, report = DenseStart({"type": depth}, **START)(samples, SparsePoints.none(), 0)
    dense = made[: report["merged"]]
    assert len(dense) > 300 and (off_surface(dense.means) < 0.2).float().mean() > 0.85


def test_one_photograph_is_no_start():
    with pytest.raises(ValueError, match=r"has 1 photograph; it needs two.*PointStart"):
        DenseStart()(views(poses(1)), SparsePoints.none(), 0)


@depths
@pytest.mark.parametrize("apart", [0.0, 0.005])
def test_views_without_parallax_are_no_start(depth, apart):
    pose = poses(5)[2]
    turned = look_at(-pose[:3, :3].T @ pose[:3, 3] + [apart, 0, 0], [0.3, 0, 0.2])
    points = SparsePoints(*(torch.from_numpy(x).float() for x in some_points()))
    with pytest.raises(ValueError, match="no parallax"):
        DenseStart({"type": depth})(views([pose, turned]), points, 0)


def test_the_sparse_start_is_that_of_3dgs():
    xyz, rgb = (torch.from_numpy(x).float() for x in some_points())
    points = SparsePoints(xyz, rgb / 255)
    made, _ = PointStart()(views(poses(2)), points, 2)
    torch.testing.assert_close(made.means, xyz)
    nearest = torch.cdist(xyz, xyz).topk(4, largest=False).values[:, 1:]
    torch.testing.assert_close(made.scales[:, 0].exp(), (nearest**2).mean(1).sqrt())
    torch.testing.assert_close(made.opacities.sigmoid(), torch.full((len(xyz),), 0.1))
    assert len(PointStart()(views(poses(2)), points, 0, most=10)[0]) == 10
    with pytest.warns(UserWarning, match="no sparse points: 50 random"):
        made, _ = PointStart(random=50)(views(poses(3)), SparsePoints.none(), 0)
    assert len(made) == 50
