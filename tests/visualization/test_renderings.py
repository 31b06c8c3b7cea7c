import cv2
import numpy as np
import pytest
import torch

from sparse3d.structures import Boxes, Gaussians, Rendering, Sample
from sparse3d.visualization import renderings, web_view
from sparse3d.visualization.predictions import write_prediction
from sparse3d.visualization.scene import Scene
from tests.models.test_dense_start import camera, views
from tests.photographs import SIZE, poses


def rendering(sample=None) -> Rendering:
    width, height = SIZE
    image = torch.rand(height, width, 3)
    depth = torch.linspace(1, 5, width).expand(height, width)
    alpha = torch.ones(height, width)
    alpha[:9] = 0
    return Rendering(image, depth, alpha, sample)


@pytest.mark.parametrize("sample", [True, False])
def test_a_rendering_stands_beside_its_photograph(tmp_path, sample):
    found = rendering(views(poses(1))[0] if sample else None)
    (path,) = write_prediction(found, tmp_path / "a.png")
    picture = cv2.imread(str(path))[..., ::-1]
    assert picture.shape == (SIZE[1], SIZE[0] * (3 if sample else 2), 3)
    depth = picture[:, -SIZE[0] :].astype(int).sum(2)
    assert depth[4].max() == 0  # nothing is there
    assert depth[30, 5] > depth[30, -5]  # near is bright


def test_a_flight_passes_through_its_cameras():
    cameras = [camera(pose) for pose in poses(5)]
    flight = renderings.camera_path(cameras, 41)
    assert len(flight) == 41
    for one in flight:
        turn = one.world_to_cam[:3, :3].double()
        torch.testing.assert_close(turn @ turn.T, torch.eye(3).double(), atol=1e-5, rtol=0)
    centers = torch.stack([one.center for one in flight])
    for one in cameras:
        assert (centers - one.center).norm(dim=1).min() < 0.03
    steps = (centers[1:] - centers[:-1]).norm(dim=1)
    assert steps.max() < 1.5 * steps.min()
    assert len(renderings.camera_path(cameras[:1], 3)) == 3
    assert len(renderings.camera_path(cameras[:2], 4)) == 4
    with pytest.raises(ValueError, match="is none"):
        renderings.camera_path([], 3)


@pytest.mark.parametrize("ending", ["mp4", "avi"])
def test_a_video_is_written(tmp_path, ending):
    cameras = [camera(pose) for pose in poses(4)]
    path = tmp_path / f"a.{ending}"
    assert renderings.write_video(path, cameras, lambda _: rendering(), depth=True) == 4
    video = cv2.VideoCapture(str(path))
    assert int(video.get(cv2.CAP_PROP_FRAME_COUNT)) == 4
    assert video.read()[1].shape == (SIZE[1], 2 * SIZE[0], 3)
    with pytest.raises(ValueError, match=r"end it in \.mp4"):
        renderings.write_video(tmp_path / "a.gif", cameras, lambda _: rendering())


def test_a_page_holds_boxes_or_gaussians(tmp_path):
    pytest.importorskip("viser")
    sample = Sample(torch.rand(100, 4), Boxes(torch.tensor([[0.0, 0, 0, 4, 2, 1.5, 0.3]])))
    sample.labels = torch.zeros(1, dtype=torch.int64)
    scene = Scene.from_sample(sample, ["car"])
    made = Gaussians.from_points(torch.rand(50, 3), torch.rand(50, 3), torch.full((50,), 0.1))
    cameras = [camera(pose) for pose in poses(2)]
    plain = web_view.write_html(tmp_path / "scene.html", scene)
    splats = web_view.write_html(tmp_path / "splats.html", None, made, cameras)
    for path in (plain, splats):
        text = path.read_text()
        assert text.startswith("<!") and "__VISER_EMBED_DATA__" in text
    assert len(splats.read_bytes()) != len(plain.read_bytes())
    with pytest.raises(ValueError, match=r"end it in \.html"):
        web_view.write_html(tmp_path / "a.png", scene)
    with pytest.raises(ValueError, match="nothing to show"):
        web_view.write_html(tmp_path / "a.html")


def test_without_viser_one_learns_its_name(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "viser", None)
    with pytest.raises(RuntimeError, match="pip install viser"):
        web_view.write_html(tmp_path / "a.html", None, Gaussians.empty())


def test_unknown_predictions_have_no_picture(tmp_path):
    with pytest.raises(ValueError, match="no picture of a int"):
        write_prediction(np.int64(3).item(), tmp_path / "a.png")
