"""Cameras of bare photographs. pycolmap runs in a process of its own, as it does for users: after
it, packages that bring another zlib may end this one while they write PNGs."""

import importlib.util
import subprocess
import sys

import cv2
import numpy as np
import pytest

from sparse3d.datasets.colmap import read_cameras, read_images
from sparse3d.datasets.photographs import FoundPoses
from tests.conftest import ROOT, real_data
from tests.photographs import write_pictures

pycolmap = pytest.mark.skipif(
    importlib.util.find_spec("pycolmap") is None,
    reason="pycolmap is not installed: pip install sparse3d[photos]",
)


DRIFT = 0.05
"""Between the cameras of the data and those found, each of their own points and rules, focal
lengths may differ by a few per cent; one that drifts is 10 % off."""


def photographs(images):
    return sorted(path for path in images.iterdir() if path.suffix.lower() in (".jpg", ".jpeg"))


def true_focal(images, width):
    """That of the data's first camera, in pixels of pictures of ``width``."""
    camera = next(iter(read_cameras(images.parent / "sparse" / "0" / "cameras.bin").values()))
    return camera["parameters"][0] * width / camera["size"][0]


def poses(folder):
    """The exit code of prepare_data.py poses, and what it says but for COLMAP's log."""
    run = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "prepare_data.py"), "poses", str(folder)],
        capture_output=True,
        text=True,
        timeout=500,
    )
    return run.returncode, "\n".join([run.stdout, *run.stderr.splitlines()[-1:]])


@pycolmap
@pytest.mark.slow
@pytest.mark.real_data
@pytest.mark.parametrize("images", real_data("splat/*/images"), ids=lambda p: p.parts[-2])
def test_pictures_of_all_sizes_get_cameras(images, tmp_path):
    files = photographs(images)[:8]
    for i, path in enumerate(files):
        picture = cv2.imread(str(path))
        if i in (2, 5):  # held upright
            picture = cv2.rotate(picture, cv2.ROTATE_90_CLOCKWISE)
        if i == 6:
            picture = cv2.resize(picture, None, fx=0.75, fy=0.75, interpolation=cv2.INTER_AREA)
        cv2.imwrite(str(tmp_path / path.name), picture, [cv2.IMWRITE_JPEG_QUALITY, 95])
    (tmp_path / "no_picture.jpg").write_text("no picture")
    content = files[0].read_bytes()
    (tmp_path / "half.jpg").write_bytes(content[: len(content) // 2])
    code, text = poses(tmp_path)
    assert code == 0
    assert f"{len(files)} of {len(files) + 2} photographs have cameras" in text
    assert "half.jpg, no_picture.jpg cannot be read" in text and "no camera was" not in text

    model = tmp_path / "sparse" / "0"
    cameras, found = read_cameras(model / "cameras.bin"), read_images(model / "images.bin")
    assert {view["name"] for view in found.values()} == {path.name for path in files}
    focal = {camera["size"]: camera["parameters"][0] for camera in cameras.values()}
    height, width = cv2.imread(str(files[0])).shape[:2]
    small = cv2.imread(str(tmp_path / "images" / files[6].name)).shape[1::-1]
    assert set(focal) == {(width, height), (height, width), small} and len(cameras) == 3
    expected = true_focal(images, width)
    assert focal[width, height] == pytest.approx(expected, rel=DRIFT)
    assert focal[height, width] == pytest.approx(expected, rel=DRIFT)
    assert focal[small] == pytest.approx(expected * small[0] / width, rel=DRIFT)


@pycolmap
@pytest.mark.slow
@pytest.mark.real_data
@pytest.mark.parametrize("images", real_data("splat/*/images"), ids=lambda p: p.parts[-2])
def test_the_focal_length_does_not_drift(images, tmp_path):
    files = photographs(images)[:20]
    (tmp_path / "images").mkdir()
    for path in files:
        (tmp_path / "images" / path.name).symlink_to(path.resolve())
    code, text = poses(tmp_path)
    assert code == 0 and f"{len(files)} of {len(files)} photographs have cameras" in text
    (found,) = read_cameras(tmp_path / "sparse/0/cameras.bin").values()
    expected = true_focal(images, found["size"][0])
    assert found["parameters"][0] == pytest.approx(expected, rel=DRIFT)


def flat(folder):
    """Pictures without features, one of them broken."""
    for i in range(2):
        cv2.imwrite(str(folder / f"{i}.png"), np.full((60, 80, 3), 90 * i, np.uint8))
    (folder / "bad.png").write_text("no picture")


def broken(folder):
    write_pictures(folder / "images", 1)
    for i in range(7):
        (folder / "images" / f"bad{i}.jpg").write_text("no picture")


def one_place(folder):
    """One picture with plenty of features, turned."""
    draw = np.random.default_rng(0)
    picture = np.zeros((400, 600, 3), np.uint8)
    for _ in range(900):
        x, y, w, h = draw.integers([0, 0, 5, 5], [600, 400, 60, 60]).tolist()
        color = draw.integers(0, 256, 3).tolist()
        cv2.rectangle(picture, (x, y), (x + w, y + h), color, -1)
    for angle in range(0, 30, 10):
        turn = cv2.getRotationMatrix2D((300, 200), angle, 1)
        cv2.imwrite(str(folder / f"{angle}.png"), cv2.warpAffine(picture, turn, (600, 400)))


NONE = {
    flat: ("for the 2 photographs", "share too few features", "bad.png cannot be read"),
    broken: ("7 of the 8 photographs", "bad0.jpg, bad1.jpg", "bad4.jpg, and 2 more cannot be read"),
    one_place: ("for the 3 photographs", "seen from one place; take a step"),
    lambda folder: write_pictures(folder / "images", 1): ("holds 1 photograph;",),
}


@pycolmap
@pytest.mark.parametrize("make", NONE, ids=("flat", "broken", "one_place", "one"))
def test_why_there_are_no_cameras_is_said(tmp_path, make):
    make(tmp_path)
    code, text = poses(tmp_path)
    assert code != 0 and all(part in text for part in NONE[make]), text
    assert ("too few features" in text) == (make is flat)
    assert not (tmp_path / "sparse").exists()


def test_photographs_without_cameras_are_named():
    without = tuple(f"{i}.jpg" for i in range(7))
    found = FoundPoses(12, without, ("a.jpg", "b.jpg"), 900, 0.5)
    missing, unreadable = found.advice()
    assert found.registered == 3
    assert "for 0.jpg, 1.jpg, 2.jpg, 3.jpg, 4.jpg, and 2 more: take sharper" in missing
    assert unreadable.startswith("a.jpg, b.jpg cannot be read")
    assert FoundPoses(3, (), (), 900, 0.5).advice() == []
