import subprocess
import sys

import cv2
import pytest

from sparse3d.visualization import open3d_view

DRAW = """
from sparse3d.visualization.open3d_view import render
from sparse3d.visualization.scene import Scene
from tests.visualization.scenes import found, street
render(Scene.from_detections(found(street(points=5000))), {path!r}, (320, 200))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="EGL")
def test_a_picture_is_drawn_without_a_screen(tmp_path):
    path = str(tmp_path / "3d.png")
    # In its own process: where a driver is broken, it takes the process along.
    done = subprocess.run(
        [sys.executable, "-c", DRAW.format(path=path)], capture_output=True, text=True, check=False
    )
    if "apt install" in done.stderr:
        pytest.skip("no EGL here")
    assert done.returncode == 0, done.stderr
    image = cv2.imread(path)[..., ::-1].astype(int)
    assert image.shape == (200, 320, 3)
    green = (image[..., 1] > image[..., 0] + 60) & (image[..., 1] > image[..., 2] + 60)
    assert green.sum() > 20  # the true box
    assert (image != image[0, 0]).any(-1).sum() > 500  # the ground


def test_a_missing_library_names_the_packages(monkeypatch):
    monkeypatch.setitem(sys.modules, "open3d", None)
    with pytest.raises(RuntimeError, match="apt install libegl1"):
        open3d_view.render(None)
