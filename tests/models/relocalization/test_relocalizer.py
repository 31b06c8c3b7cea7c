"""Maps of a painted corner, and pictures of it that no map has seen."""

import numpy as np
import pytest
import torch

from sparse3d.evaluation.relocalization import pose_errors
from sparse3d.models.relocalization import compression
from sparse3d.models.relocalization import pose as poses
from sparse3d.models.relocalization.builder import BuildSettings, build_map, cover
from sparse3d.models.relocalization.features import Features, RootSIFT, make_extractor
from sparse3d.models.relocalization.lens import Intrinsics
from sparse3d.models.relocalization.map_file import STORAGE, load_map, save_map
from sparse3d.models.relocalization.training import Schedule
from sparse3d.models.relocalizer import QuerySettings, Relocalizer, retrieve

from .corner import K, camera, photograph, pictures, pose

TRUTH = pose(1.5, 1.9, roll=0.2)
SETTINGS = BuildSettings(150, 32, schedule=Schedule(steps=30))


@pytest.fixture(scope="module")
def place():
    stages = []
    found = build_map(
        pictures(), 8, RootSIFT(500), SETTINGS, lambda share, text: stages.append(text.split()[0])
    )
    assert list(dict.fromkeys(stages)) == ["features", "matching", "training"]
    return found


@pytest.fixture(scope="module")
def image():
    return photograph(TRUTH)


def off(answer) -> tuple[float, float]:
    """Centimetres and degrees."""
    assert answer.success, answer.reason
    metres, degrees = pose_errors(answer.pose, TRUTH)
    return metres * 100, degrees


def test_a_new_picture_is_localized_and_the_map_stays(place, image):
    before = [x.clone() for x in (place.positions, place.base, place.voxels.features)]
    answer = Relocalizer(place).localize(image, K)
    centimetres, degrees = off(answer)
    assert centimetres < 1 and degrees < 0.3
    assert answer.inliers == len(answer.matches) > 20 and 0.3 < answer.score <= 1
    assert answer.sigma[0] < 0.02 and answer.covariance.shape == (6, 6)
    after = (place.positions, place.base, place.voxels.features)
    assert all(torch.equal(x, y) for x, y in zip(before, after))


def test_landmarks_lie_on_the_walls(place):
    away = place.positions.abs().amin(1)
    assert away.median() < 0.01 and len(place) == 150


def test_an_answer_repeats_exactly(place, image):
    first, second = (Relocalizer(place).localize(image, K) for _ in range(2))
    assert np.array_equal(first.pose, second.pose)


def test_opencv_takes_poselibs_place(place, image, monkeypatch):
    monkeypatch.setattr(poses, "poselib", None)
    assert off(Relocalizer(place).localize(image, K))[0] < 1


@pytest.mark.parametrize("scale", [0.6, 2.0])
def test_another_resolution(place, scale):
    lens = camera(TRUTH)
    answer = Relocalizer(place).localize(photograph(TRUTH, scale=scale), lens)
    assert off(answer)[0] < 2


def test_radial_distortion(place):
    bent = photograph(TRUTH, radial=-0.25)
    locate = Relocalizer(place)
    assert off(locate.localize(bent, Intrinsics(K, (-0.25,))))[0] < 1.5
    ignored = locate.localize(bent, K)
    assert not ignored.success or off(ignored)[0] > 1.5


def test_a_prior_is_used_and_a_wrong_one_does_no_harm(place, image):
    locate = Relocalizer(place)
    assert off(locate.localize(image, K, pose(1.7, 1.7)))[0] < 1
    assert off(locate.localize(image, K, pose(-3.0, 1.0, roll=2.0)))[0] < 1
    with pytest.raises(ValueError, match="no rotations"):
        locate.localize(image, K, 2 * TRUTH)
    with pytest.raises(ValueError, match=r"shape \(3, 3\)"):
        locate.localize(image, K, np.eye(3))


def test_retrieval_finds_a_picture_of_the_same_side(place, image):
    features = RootSIFT(500).extract(image)
    best = place.frames[retrieve(place, features, 0.75)[0]].numpy()
    distances = [pose_errors(f.numpy(), TRUTH)[0] for f in place.frames]
    assert pose_errors(best, TRUTH)[0] < np.median(distances)
    settings = QuerySettings(retrieval=4)
    assert off(Relocalizer(place, settings=settings).localize(image, K))[0] < 1
    with pytest.raises(ValueError, match="without its pictures"):
        retrieve(compression.drop_frames(place), features, 0.75)


def test_a_map_of_observations(image):
    found = build_map(pictures(), 8, RootSIFT(500), BuildSettings(80, 32, frames=True))
    assert len(found) > 160 and not found.renders
    settings = QuerySettings(retrieval=4, radii=())
    assert off(Relocalizer(found, settings=settings).localize(image, K))[0] < 2


# ---------------------------------------------------------------------- bad input


def test_another_place_is_refused(place):
    answer = Relocalizer(place).localize(photograph(TRUTH, seed=7), K)
    assert not answer.success and answer.pose is None and answer.score < 0.3
    assert answer.pose_set() is None


@pytest.mark.parametrize("value", [0, 255])
def test_a_picture_of_nothing_is_refused(place, value):
    answer = Relocalizer(place).localize(np.full((240, 320), value, np.uint8), K)
    assert not answer.success and answer.score == 0 and "one colour" in answer.reason


@pytest.mark.parametrize(
    "picture, intrinsics, message",
    [
        (np.zeros((4, 4, 3)), K, "uint8"),
        (np.zeros((240, 320, 4), np.uint8), K, "4 channels"),
        (np.zeros((240, 320), np.uint8), None, "intrinsics are missing"),
        (np.zeros((240, 320), np.uint8), -K, "positive focal"),
        (np.zeros((240, 320), np.uint8), Intrinsics(K, size=(320, 320)), "another shape"),
    ],
)
def test_unusable_queries_are_named(place, picture, intrinsics, message):
    with pytest.raises(ValueError, match=message):
        Relocalizer(place).localize(picture, intrinsics)


def test_features_of_another_kind_are_refused(place):
    class Other(RootSIFT):
        name = "other"

    with pytest.raises(ValueError, match="made of rootsift"):
        Relocalizer(place, Other())
    with pytest.raises(ValueError, match="are unknown"):
        make_extractor("nothing")
    with pytest.raises(ValueError, match="needs weights"):
        make_extractor("alike-t")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        make_extractor("alike-t", "/nowhere.pth")


def test_two_pictures_make_a_map_and_one_does_not(image):
    two = [p for i, p in enumerate(pictures()) if i in (2, 4)]
    settings = BuildSettings(100, 16, schedule=Schedule(steps=5))
    assert len(build_map(two, 2, RootSIFT(500), settings)) >= 20
    with pytest.raises(ValueError, match="at least two"):
        build_map(two[:1], 1, RootSIFT(500), settings)
    same = [two[0], two[0]]
    with pytest.raises(ValueError, match="no landmark"):
        build_map(same, 2, RootSIFT(500), settings)


def test_poses_that_are_no_rotations_are_refused():
    bad = camera(np.diag([1.0, 1, 2, 1]))
    with pytest.raises(ValueError, match=r"no rotations, the first is that of bad\.png"):
        build_map([*pictures(2)[:1], ("bad.png", photograph(TRUTH), bad)], 2, RootSIFT(500))


# ---------------------------------------------------------------------- file and size


@pytest.mark.parametrize("storage", STORAGE)
def test_a_map_returns_from_its_file(place, image, storage, tmp_path):
    size = save_map(place, tmp_path / "map.npz", storage)
    assert size == (tmp_path / "map.npz").stat().st_size
    found = load_map(tmp_path / "map.npz")
    assert found.meta == place.meta | {"storage": storage}
    assert torch.equal(found.seen, place.seen)
    tolerance = {"float32": 0, "float16": 2e-3, "int8": 2e-2}[storage]
    for name in ("base", "tangents", "positions", "sizes"):
        mine, other = getattr(found, name), getattr(place, name)
        torch.testing.assert_close(mine, other, rtol=tolerance, atol=tolerance)
    assert torch.equal(found.voxels.coords, place.voxels.coords)
    assert off(Relocalizer(found).localize(image, K))[0] < 1


def test_damaged_files_are_refused_and_never_written(place, tmp_path, monkeypatch):
    path = tmp_path / "map.npz"
    save_map(place, path)
    whole = path.read_bytes()
    for damaged in (whole[:1000], whole[:-100], b"", whole[:5000] + b"\0" * 40 + whole[5040:]):
        (tmp_path / "bad.npz").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"bad\.npz .*cannot be read"):
            load_map(tmp_path / "bad.npz")
    np.savez(tmp_path / "bad.npz", header=np.frombuffer(b"{}", np.uint8))
    with pytest.raises(ValueError, match="no sparse3d landmark map"):
        load_map(tmp_path / "bad.npz")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_map(tmp_path / "none.npz")

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez_compressed", fail)
    with pytest.raises(OSError, match="disk full"):
        save_map(place, path)
    assert path.read_bytes() == whole
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.npz", "map.npz"]


def test_smaller_maps_still_localize(place, image, tmp_path):
    small = compression.shorten(compression.prune(place, 100), 16)
    small = compression.reduce_modes(small, 2)
    bytes_before = save_map(place, tmp_path / "full.npz")
    bytes_after = save_map(compression.drop_frames(small), tmp_path / "small.npz", "int8")
    assert bytes_after < bytes_before / 20
    found = load_map(tmp_path / "small.npz")
    assert found.renders and found.codes.shape == (100, 2, 16)
    assert off(Relocalizer(found).localize(image, K))[0] < 2


def test_modes_are_exact_where_there_are_as_many_as_nodes(place):
    rows, center = torch.arange(len(place)), torch.tensor([1.5, 1.9, 1.2])
    full, same = place, compression.reduce_modes(place, 27)
    torch.testing.assert_close(same.render(rows, center), full.render(rows, center))
    plain = compression.reduce_modes(place, 0)
    assert torch.equal(plain.render(rows, center), place.base)


def test_a_smaller_map_forgets_what_the_larger_one_rendered(place):
    rows, center = torch.arange(len(place)), torch.tensor([1.5, 1.9, 1.2])
    full = place.render(rows, center)
    short = compression.shorten(place, 8)
    torch.testing.assert_close(short.render(rows, center), full[:, :8])
    even = compression.flatten_density(place)
    assert even.dense[0].unique().numel() == 1
    assert (even.render(rows, center) - full).abs().max() > 1e-4


def test_compression_refuses_what_it_cannot_do(place):
    with pytest.raises(ValueError, match="landmarks is 151"):
        compression.prune(place, 151)
    with pytest.raises(ValueError, match="rank is 33"):
        compression.shorten(place, 33)
    with pytest.raises(ValueError, match="modes is -1"):
        compression.reduce_modes(place, -1)


def test_similarity_is_the_cosine_of_descriptors(place):
    descriptors = torch.nn.functional.normalize(torch.rand(20, 128), dim=1)
    found = place.similarity(descriptors, place.base)
    torch.testing.assert_close(found, descriptors @ place.descriptors(place.base).T)


def test_cover_serves_every_picture():
    seen = torch.zeros(3, 30, dtype=torch.bool)
    seen[:2, :20] = True
    seen[2, 20:] = True
    assert seen[:, cover(seen, 4)].any(1).all()


def test_rendering_is_nearer_to_a_view_than_the_mean(place):
    """On the mapping views themselves: what volumes add must be there at all."""
    extractor = RootSIFT(500)
    matched = 0
    for _, image, view in pictures()[::3]:
        features: Features = extractor.extract(image)
        pixels, depth = view.project(place.positions.double())
        distance = torch.cdist(features.points.double(), pixels)
        rows = ((distance.amin(0) < 0.7) & (depth > 0)).nonzero()[:, 0]
        nearest = distance.argmin(0)[rows]
        target = features.descriptors[nearest]
        plain = (place.descriptors(place.base[rows]) * target).sum(1)
        codes = place.render(rows, view.center.float())
        found = (place.descriptors(codes) * target).sum(1)
        same = plain > 0.8  # of the same orientation
        assert found[same].mean() > plain[same].mean()
        matched += int(same.sum())
    assert matched > 50
