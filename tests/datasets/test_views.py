import json

import cv2
import numpy as np
import pytest
import torch

from sparse3d.datasets.colmap import ColmapViews, read_cameras, read_images
from sparse3d.datasets.spare import SpareViews, decompose
from sparse3d.datasets.transforms_json import TransformsViews
from sparse3d.datasets.views import VIEW
from tests.conftest import real_data
from tests.photographs import (
    FOCAL,
    SIZE,
    K,
    cast,
    poses,
    some_points,
    write_colmap,
    write_transforms,
)


def names(dataset):
    return [view.name for view in dataset.views]


def colors_at(sample, points):
    """Colours of the picture where ``points`` are seen, and which are seen."""
    camera, image = sample.cameras[VIEW], sample.images[VIEW]
    pixel, _ = camera.project(points)
    grid = pixel / (torch.tensor(camera.size) / 2) + 1 / torch.tensor(camera.size) - 1
    planes = image.permute(2, 0, 1)[None].float() / 255
    found = torch.nn.functional.grid_sample(planes, grid[None, None], align_corners=False)
    return found[0, :, 0].T, camera.sees(points)


@pytest.mark.parametrize("text", [False, True])
def test_a_colmap_model_is_read_in_both_forms(tmp_path, text):
    dataset = ColmapViews(write_colmap(tmp_path, 9, text), split="all")
    points, _ = some_points()
    assert len(dataset) == 9 and len(dataset.points) == len(points)
    np.testing.assert_allclose(dataset.points.xyz, points, atol=1e-5)
    assert dataset.points.views[0] == names(dataset)
    for sample, pose in zip(dataset, poses(9)):
        camera = sample.cameras[VIEW]
        np.testing.assert_allclose(camera.world_to_cam, pose, atol=1e-5)
        np.testing.assert_allclose(camera.corner_K, K)
        assert camera.size == SIZE == tuple(sample.images[VIEW].shape[1::-1])
    found, seen = colors_at(dataset[4], dataset.points.xyz)
    assert (found - dataset.points.rgb)[seen].abs().mean() < 0.02


def test_every_eighth_view_is_held_out(tmp_path):
    root = write_colmap(tmp_path, 10)
    train, test = (names(ColmapViews(root, split=s)) for s in ("train", "test"))
    assert test == ["view_00.png", "view_08.png"]
    assert sorted(train + test) == names(ColmapViews(root, split="all"))
    three = ColmapViews(root, split="train", train_views=3)
    assert names(three) == ["view_01.png", "view_05.png", "view_09.png"]
    assert not set(test) & set(names(three))


@pytest.mark.parametrize(
    ("model", "extra", "coefficients"),
    [
        (0, (), ()),
        (2, (0.1,), (0.1, 0, 0, 0)),
        (3, (0.1, -0.05), (0.1, -0.05, 0, 0)),
        (4, (0.1, -0.05, 0.01, -0.01), (0.1, -0.05, 0.01, -0.01)),
        (5, (0.05, 0.01, 0.0, 0.0), "fisheye"),
        (8, (0.05,), "fisheye"),
    ],
)
def test_pictures_are_undistorted(tmp_path, model, extra, coefficients):
    root = write_colmap(tmp_path, 1, model=model, extra=extra)
    if extra:  # bend the picture as the lens would
        u, v = np.meshgrid(np.arange(SIZE[0], dtype="f4"), np.arange(SIZE[1], dtype="f4"))
        middle = K.copy()
        middle[:2, 2] -= 0.5
        bent = np.stack([u, v], 2).reshape(-1, 1, 2)
        if coefficients == "fisheye":
            four = np.array([*extra, 0, 0, 0, 0][:4], float)
            straight = cv2.fisheye.undistortPoints(bent, middle, four, P=middle)
        else:
            straight = cv2.undistortPoints(bent, middle, np.array(coefficients), P=middle)
        maps = straight.reshape(SIZE[1], SIZE[0], 2).astype("f4")
        picture = cast(poses(1)[0])[0]
        bent = cv2.remap(picture, maps[..., 0], maps[..., 1], 1, borderMode=cv2.BORDER_REFLECT)
        cv2.imwrite(str(root / "images" / "view_00.png"), bent[..., ::-1])
    sample = ColmapViews(root, split="all")[0]
    camera = sample.cameras[VIEW]
    truth = cast(poses(1)[0], camera.size, camera.corner_K.double().numpy())[0]
    found = sample.images[VIEW].numpy()
    inner = (slice(8, -8), slice(8, -8))
    error = np.abs(found[inner].astype(float) - truth[inner]).mean()
    assert error < (9 if extra else 0.01)  # two resamplings blur the picture a little
    shifted = np.abs(found[8:-8, 8:-8].astype(float) - truth[8:-8, 6:-10]).mean()
    assert error < 0.6 * shifted


@pytest.mark.parametrize("most", [1000, 96 * 72, 10**6])
def test_reduced_pictures_see_the_same(tmp_path, most):
    sample = ColmapViews(write_colmap(tmp_path, 1), split="all", most_pixels=most)[0]
    assert sample.images[VIEW][..., 0].numel() <= most
    points, colors = (torch.from_numpy(x).float() for x in some_points())
    found, _ = colors_at(sample, points)
    assert (found - colors / 255).abs().mean() < (0.12 if most == 1000 else 0.02)


def spoil_pose(path, row):
    data = bytearray(path.read_bytes())
    start = 8 + row * (64 + len("view_00.png") + 1 + 8 + 24)
    data[start + 4 : start + 12] = np.float64(np.nan).tobytes()
    path.write_bytes(bytes(data))


def test_what_cannot_be_used_is_named_and_left_out(tmp_path):
    root = write_colmap(tmp_path, 6)
    images = root / "images"
    (images / "view_01.png").unlink()
    whole = (images / "view_02.png").read_bytes()
    (images / "view_02.png").write_bytes(whole[: len(whole) // 2])
    spoil_pose(root / "sparse/0/images.bin", 3)
    with pytest.warns(UserWarning, match=r"3 of 6 .*view_01.*there is no.*view_02.*cut off.*NaN"):
        dataset = ColmapViews(root, split="all")
    assert names(dataset) == ["view_00.png", "view_04.png", "view_05.png"]


def test_half_a_jpeg_is_noticed(tmp_path):
    root = write_colmap(tmp_path, 2, ending=".jpg")
    path = root / "images" / "view_00.jpg"
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.warns(UserWarning, match="cut off"):
        assert names(ColmapViews(root, split="all")) == ["view_01.jpg"]


def test_a_model_of_absent_pictures_is_refused(tmp_path):
    root = write_colmap(tmp_path, 2)
    for path in (root / "images").iterdir():
        path.unlink()
    with pytest.raises(FileNotFoundError, match="2 of 2 photographs cannot be used"):
        ColmapViews(root, split="all")


@pytest.mark.parametrize("file", ["cameras.bin", "images.bin", "points3D.bin"])
def test_cut_models_are_refused(tmp_path, file):
    path = write_colmap(tmp_path, 3) / "sparse/0" / file
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match=rf"{file} cannot be read.*it ends"):
        ColmapViews(tmp_path)


def test_other_lenses_are_refused(tmp_path):
    root = write_colmap(tmp_path, 2, model=7, extra=(0.9,))
    with pytest.raises(ValueError, match=r"camera model FOV is not supported.*image_undistorter"):
        ColmapViews(root)
    (root / "sparse/0/cameras.bin").write_bytes(
        np.array([1, 0], "<u8").tobytes()[:8] + b"\7\0\0\0c\0\0\0" + bytes(16)
    )
    with pytest.raises(ValueError, match="unknown model 99"):
        ColmapViews(root)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"data_root": "nowhere"}, FileNotFoundError, "'nowhere' is no folder"),
        ({"split": "best"}, ValueError, "split is 'best'"),
        ({"train_views": 0}, ValueError, "train_views is 0; it must be 1 or more"),
    ],
)
def test_settings_are_checked(tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        ColmapViews(**{"data_root": tmp_path, **options})


def test_a_folder_without_a_model_says_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no COLMAP model.*prepare_data.py poses"):
        ColmapViews(tmp_path)


def test_a_picture_of_another_shape_is_refused(tmp_path):
    root = write_colmap(tmp_path, 1)
    cv2.imwrite(str(root / "images/view_00.png"), np.zeros((96, 72, 3), np.uint8))
    with pytest.raises(ValueError, match="72 x 96 pixels but its camera 96 x 72"):
        ColmapViews(root, split="all")[0]


def test_transforms_are_read(tmp_path):
    dataset = TransformsViews(write_transforms(tmp_path, 9), split="train")
    assert len(dataset) == 7
    camera = dataset[0].cameras[VIEW]
    np.testing.assert_allclose(camera.world_to_cam, poses(9)[1], atol=1e-6)
    np.testing.assert_allclose(camera.corner_K, K, rtol=1e-6)


def test_blenders_files_are_the_split(tmp_path):
    angle = 2 * np.arctan(SIZE[0] / 2 / FOCAL)
    lens = dict.fromkeys(("fl_x", "fl_y", "cx", "cy", "w", "h"))
    for split, count in (("train", 4), ("test", 2)):
        root = write_transforms(
            tmp_path, count, f"transforms_{split}.json", **lens, camera_angle_x=angle
        )
        path = root / f"transforms_{split}.json"
        content = json.loads(path.read_text())
        for frame in content["frames"]:
            frame["file_path"] = "./" + frame["file_path"].removesuffix(".png")
        path.write_text(json.dumps(content))
    train, test = (TransformsViews(tmp_path, split=s) for s in ("train", "test"))
    assert (len(train), len(test)) == (4, 2)
    np.testing.assert_allclose(test[0].cameras[VIEW].corner_K, K, rtol=1e-6)


def test_transparent_pixels_show_the_background(tmp_path):
    root = write_transforms(tmp_path, 1)
    picture = np.full((SIZE[1], SIZE[0], 4), 255, np.uint8)
    picture[:, : SIZE[0] // 2, 3] = 0
    picture[..., :3] = (0, 0, 255)  # red, in OpenCV's order
    cv2.imwrite(str(root / "images/view_00.png"), picture)
    image = TransformsViews(root, split="all", background=(0, 1, 0))[0].images[VIEW]
    assert image[0, 0].tolist() == [0, 255, 0] and image[0, -1].tolist() == [255, 0, 0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"fl_x": None}, r"transforms.json: frame 0 \(images/view_00.png\): there is no focal"),
        ({"fl_x": "wide"}, r"frame 0 \(images/view_00.png\): fl_x is 'wide'; it must be a number"),
        ({"fl_x": [1, 2]}, r"fl_x is \[1, 2\]; it must be a number"),
        ({"w": 0}, r"2 of 2 photographs cannot be used .*its camera has 0 x 72 pixels.*cameras"),
        ({"h": float("inf")}, r"frame 0 \(images/view_00.png\)"),
        ({"frames": ["a"]}, r"frame 0 \(a\)"),
        ({"frames": [{"file_path": "a", "transform_matrix": "b"}]}, r"frame 0 \(a\)"),
        ({"frames": [{"file_path": "a", "transform_matrix": [[1, 2], [3]]}]}, "no 4 x 4 table"),
        ({"frames": []}, "lists no frames"),
        (
            {"frames": [{"file_path": "a"}]},
            r"frame 0 \(a\): it lacks file_path or transform_matrix",
        ),
        ({"camera_model": "EQUIRECTANGULAR"}, "not supported"),
    ],
)
def test_broken_transforms_are_refused(tmp_path, values, message):
    with pytest.raises(ValueError, match=message):
        TransformsViews(write_transforms(tmp_path, 2, **values), split="all")


def test_nan_poses_of_transforms_are_left_out(tmp_path):
    root = write_transforms(tmp_path, 3)
    path = root / "transforms.json"
    content = json.loads(path.read_text())
    content["frames"][1]["transform_matrix"][0][3] = float("nan")
    path.write_text(json.dumps(content))
    with pytest.warns(UserWarning, match="1 of 3 .*NaN"):
        assert len(TransformsViews(root, split="all")) == 2


def test_a_photograph_listed_twice_counts_once(tmp_path):
    root = write_transforms(tmp_path, 9)
    path = root / "transforms.json"
    content = json.loads(path.read_text())
    again = dict(content["frames"][0], file_path="./" + content["frames"][0]["file_path"])
    content["frames"] += [again, content["frames"][3]]
    path.write_text(json.dumps(content))
    with pytest.warns(UserWarning, match=r"2 of 11 views .*listed before \(.*view_0.*view_03"):
        train, test = (TransformsViews(root, split=s) for s in ("train", "test"))
    assert (len(train), len(test)) == (7, 2)
    assert not {v.path.resolve() for v in train.views} & {v.path.resolve() for v in test.views}


def test_points_that_are_not_finite_are_left_out(tmp_path):
    root = write_colmap(tmp_path, 2, text=True)
    path = root / "sparse/0/points3D.txt"
    lines = path.read_text().splitlines()
    row = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    words = lines[row].split()
    lines[row] = " ".join([words[0], "nan", *words[2:]])
    path.write_text("\n".join(lines))
    with pytest.warns(UserWarning, match=r"1 of 60 points of .*points3D.txt are not finite"):
        points = ColmapViews(root, split="all").points
    assert len(points) == 59 == len(points.views) and points.xyz.isfinite().all()


def write_mask(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.zeros((SIZE[1], SIZE[0]), np.uint8)
    mask[:rows] = 255
    cv2.imwrite(str(path), mask)


def test_masks_of_a_colmap_folder_are_found_by_name(tmp_path):
    root = write_colmap(tmp_path, 4, ending=".jpg")
    with pytest.raises(FileNotFoundError, match=r"no mask of any .* would be view_00.jpg.png"):
        ColmapViews(root, masks="masks")
    write_mask(root / "masks/view_00.jpg.png", 10)
    write_mask(root / "masks/view_01.png", 20)
    dataset = ColmapViews(root, split="all", masks="masks")
    assert [int(sample.meta["mask"].sum()) // SIZE[0] for sample in list(dataset)[:2]] == [10, 20]
    assert "mask" not in dataset[2].meta and "mask" not in ColmapViews(root, split="all")[0].meta
    small = ColmapViews(root, split="all", masks="masks", most_pixels=1728)[1]
    assert small.meta["mask"].shape == small.images[VIEW].shape[:2] == (36, 48)
    assert small.meta["mask"][:10].all() and not small.meta["mask"][10:].any()


def test_nerfstudios_masks_are_read(tmp_path):
    root = write_transforms(tmp_path, 3)
    path = root / "transforms.json"
    content = json.loads(path.read_text())
    for row, frame in enumerate(content["frames"][:2]):
        frame["mask_path"] = f"masks/{row}.png"
    path.write_text(json.dumps(content))
    write_mask(root / "masks/0.png", 30)
    with pytest.warns(UserWarning, match=r"1 of 3 .*view_01.*there is no mask .*masks/1.png"):
        dataset = TransformsViews(root, split="all")
    assert int(dataset[0].meta["mask"].sum()) == 30 * SIZE[0] and "mask" not in dataset[1].meta


def test_spares_protocol_names_the_views(tmp_path):
    for i, pose in enumerate(poses(5)):
        folder = tmp_path / "scan1"
        folder.mkdir(exist_ok=True)
        picture = cast(pose)[0][..., ::-1]
        cv2.imwrite(str(folder / f"rect_{i + 1:03d}_3_r5000.png"), picture)
        np.savetxt(folder / f"pos_{i + 1:03d}.txt", -2.5 * K @ pose[:3])
    split = {"scan1": {"input_views": [0, 2, 4], "test_views": [1, 3], "dataset": "DTU"}}
    (tmp_path / "Track1.json").write_text(json.dumps(split))
    train = SpareViews(tmp_path, "Track1.json", split="train")
    test = SpareViews(tmp_path, "Track1.json", "scan1", split="test")
    assert names(train) == ["001", "003", "005"] and names(test) == ["002", "004"]
    camera = test[0].cameras[VIEW]
    np.testing.assert_allclose(camera.world_to_cam, poses(5)[1], atol=1e-5)
    np.testing.assert_allclose(camera.corner_K, K, rtol=1e-4, atol=1e-3)
    assert "mask" not in test[0].meta
    with pytest.raises(FileNotFoundError, match=r"scan1 has no mask 001.png: copy the masks"):
        SpareViews(tmp_path, "Track1.json", split="test", masks="idrmasks")
    for view in (1, 3):
        write_mask(tmp_path / f"idrmasks/scan1/mask/{view:03d}.png", 24 * view)
    masked = SpareViews(tmp_path, "Track1.json", split="test", masks="idrmasks")
    for sample, view in zip(masked, (1, 3)):
        assert sample.meta["mask"].sum() == 24 * view * SIZE[0]
        assert sample.meta["mask"][: 24 * view].all()
    half = SpareViews(tmp_path, "Track1.json", split="test", masks="idrmasks", most_pixels=1728)
    assert half[0].meta["mask"].shape == half[0].images[VIEW].shape[:2] == (36, 48)
    with pytest.raises(ValueError, match="no scene 'scan2'"):
        SpareViews(tmp_path, "Track1.json", "scan2")
    with pytest.raises(ValueError, match="no projection matrix"):
        decompose(np.zeros((3, 4)))


@pytest.mark.real_data
@pytest.mark.parametrize(
    "path", real_data("splat/*/sparse/0/cameras.bin"), ids=lambda p: p.parts[-4]
)
def test_real_points_lie_on_their_colours(path):
    dataset = ColmapViews(path.parents[2], split="all")
    sample = dataset[0]
    rows = [i for i, views in enumerate(dataset.points.views) if sample.sample_id in views]
    found, seen = colors_at(sample, dataset.points.xyz[rows])
    assert seen.float().mean() > 0.99
    assert (found - dataset.points.rgb[rows]).abs().mean() < 0.06
    place = path.parent
    assert len(read_images(place / "images.bin")) == len(dataset)
    assert len(read_cameras(place / "cameras.bin")) == 1
