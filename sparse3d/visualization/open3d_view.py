"""The scene in 3-D by Open3D: a picture drawn off the screen, or a window to turn it in."""

import os
import sys
import tempfile
from pathlib import Path
from types import ModuleType

import numpy as np

from .report import BACKGROUND, EDGES, write_image
from .scene import Scene

PACKAGES = "libegl1 libgl1 libusb-1.0-0"


def render(scene: Scene, path: str | Path | None = None, size=(1280, 800)) -> np.ndarray:
    """The scene seen from behind and above, without a screen (EGL).

    Args:
        scene: what to show.
        path: a .png to write as well.
        size: (width, height), pixels.

    Returns:
        uint8 [H, W, 3] RGB.

    Raises:
        RuntimeError: Open3D is missing or has no way to draw; names the packages to install.
    """
    view = _open(scene, size, visible=False)
    view.poll_events()
    view.update_renderer()
    image = (255 * np.asarray(view.capture_screen_float_buffer(True))).round().astype(np.uint8)
    view.destroy_window()
    if path is not None:
        write_image(path, image)
    return image


def check_screen() -> None:
    """Where a window is asked for and no screen is there, GLFW would wait for ever.

    Raises:
        RuntimeError: there is no screen.
    """
    if sys.platform.startswith("linux") and not (
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    ):
        raise RuntimeError(
            "a window needs a screen, and $DISPLAY names none: leave out --window and write a "
            "picture (--out) or a page (--web)"
        )


def show(scene: Scene, size=(1280, 800)) -> None:
    """Open a window and stay until it is closed.

    Raises:
        RuntimeError: Open3D is missing or there is no screen.
    """
    check_screen()
    view = _open(scene, size, visible=True)
    view.run()
    view.destroy_window()


def _import() -> ModuleType:
    try:
        import open3d
    except (ImportError, OSError) as error:
        raise RuntimeError(
            f"Open3D cannot be loaded ({error}): pip install open3d-cpu, and on Debian "
            f"apt install {PACKAGES}; tools/visualize.py --view bev does without"
        ) from error
    return open3d


def _open(scene: Scene, size: tuple[int, int], visible: bool):
    """A visualizer that holds the scene."""
    open3d = _import()
    os.environ.setdefault("XDG_RUNTIME_DIR", tempfile.gettempdir())  # else Mesa complains
    view = open3d.visualization.Visualizer()
    quiet = open3d.utility.VerbosityContextManager(open3d.utility.VerbosityLevel.Error)
    with quiet:
        opened = view.create_window(scene.title, *size, visible=visible)
    if not opened or view.get_render_option() is None:
        remedy = (
            "the screen cannot be used; leave out --window and write a picture (--out) or a page "
            "(--web)"
            if visible
            else (f"off-screen drawing needs EGL: apt install {PACKAGES}")
        )
        raise RuntimeError(f"Open3D cannot open a window: {remedy}")
    options = view.get_render_option()
    options.background_color = np.array(BACKGROUND) / 255
    options.point_size = 1.5
    for geometry in _geometries(open3d, scene):
        view.add_geometry(geometry)
    control = view.get_view_control()
    low, high = scene.extent()
    control.set_lookat([*((low + high) / 2), 0])
    control.set_front([-0.8, 0, 0.6])
    control.set_up([0, 0, 1])
    control.set_zoom(0.35)
    return view


def _geometries(open3d: ModuleType, scene: Scene) -> list:
    """A point cloud and the boxes' lines."""
    cloud = open3d.geometry.PointCloud(open3d.utility.Vector3dVector(scene.points.astype(float)))
    grey = 0.25 + 0.7 * scene.shade[:, None]
    cloud.colors = open3d.utility.Vector3dVector(grey * np.array([[0.8, 0.9, 1.0]]))
    parts = [cloud] if len(scene.points) else []
    if scene.boxes:
        corners = [np.concatenate([box.corners, box.nose]) for box in scene.boxes]
        edges = np.array([*EDGES, (8, 9)])
        pairs = np.concatenate([edges + 10 * i for i in range(len(corners))])
        lines = open3d.geometry.LineSet(
            open3d.utility.Vector3dVector(np.concatenate(corners).astype(float)),
            open3d.utility.Vector2iVector(pairs),
        )
        colors = np.repeat([box.color for box in scene.boxes], len(edges), axis=0) / 255
        lines.colors = open3d.utility.Vector3dVector(colors)
        parts.append(lines)
    return parts
