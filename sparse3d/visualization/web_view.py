"""A scene in the browser, by viser: as one file that needs nothing, or served while one looks."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from sparse3d.structures import Camera, Gaussians

from .report import EDGES
from .scene import Scene

MOST_POINTS = 400_000
"""Points and Gaussians shown; a browser needs some seconds for these."""


def write_html(
    path: str | Path,
    scene: Scene | None = None,
    gaussians: Gaussians | None = None,
    cameras: Iterable[Camera] = (),
) -> Path:
    """Write a page that shows points and boxes, or Gaussians and cameras, without a server.

    Raises:
        ValueError: another ending than .html, or nothing to show.
        RuntimeError: viser is not installed.
    """
    path = Path(path)
    if path.suffix.lower() != ".html":
        raise ValueError(f"a page cannot be written to {str(path)!r}: end it in .html")
    server = _server(0)
    try:
        fill(server, scene, gaussians, cameras)
        page = server.scene.as_html(dark_mode=True)
    finally:
        server.stop()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page)
    return path


def serve(
    port: int = 8080,
    scene: Scene | None = None,
    gaussians: Gaussians | None = None,
    cameras: Iterable[Camera] = (),
):
    """A running viser server on this computer's own address; ``stop()`` it, or end the program."""
    server = _server(port)
    fill(server, scene, gaussians, cameras)
    return server


def fill(server, scene: Scene | None, gaussians: Gaussians | None, cameras=()) -> None:
    """Put everything into ``server``'s scene.

    Raises:
        ValueError: there is nothing to show.
    """
    cameras = list(cameras)
    if scene is None and gaussians is None:
        raise ValueError("there is nothing to show: give a scene or Gaussians")
    if scene is not None:
        server.scene.set_up_direction((0.0, 0.0, 1.0))
        _add_scene(server, scene)
    if gaussians is not None:
        _add_gaussians(server, gaussians)
    if cameras:
        _look_from(server, cameras)
        for number, camera in enumerate(cameras):
            _add_camera(server, number, camera, cameras)


def _server(port: int):
    try:
        import viser
    except ImportError:
        raise RuntimeError("the web view needs viser: pip install viser") from None
    return viser.ViserServer(host="127.0.0.1", port=port, verbose=False)


def _add_scene(server, scene: Scene) -> None:
    points, shade = scene.points, scene.shade
    if len(points) > MOST_POINTS:
        rows = np.linspace(0, len(points) - 1, MOST_POINTS).astype(int)
        points, shade = points[rows], shade[rows]
    if len(points):
        colors = (255 * (0.25 + 0.7 * shade[:, None]) * np.array([0.8, 0.9, 1.0])).astype(np.uint8)
        size = 0.002 * float(np.ptp(points[:, :2], axis=0).max() or 1)
        server.scene.add_point_cloud("/points", points, colors, point_size=min(size, 0.06))
    for row, box in enumerate(scene.boxes):
        kind = "truth" if box.score is None else "found"
        corners = np.concatenate([box.corners, box.nose])
        lines = corners[np.array([*EDGES, (8, 9)])]
        width = 0.01 * float(np.linalg.norm(box.corners[6] - box.corners[0]))
        name = f"/{kind}/{row}"
        server.scene.add_line_segments(name, lines, colors=box.color, thickness=width)
        if box.score is not None:
            top = tuple(box.corners[4:].mean(0).tolist())
            server.scene.add_label(f"{name}/label", f"{box.name} {box.score:.2f}", position=top)


def _add_gaussians(server, gaussians: Gaussians) -> None:
    gaussians = gaussians[gaussians.finite()]
    opacity = gaussians.opacities.sigmoid()
    if len(gaussians) > MOST_POINTS:
        rows = (opacity.log() + gaussians.scales.mean(1)).argsort(descending=True)[:MOST_POINTS]
        gaussians, opacity = gaussians[rows], opacity[rows]
    quats = torch.nn.functional.normalize(gaussians.quats, dim=1)
    w, x, y, z = quats.double().unbind(1)
    turn = torch.stack(
        [
            *(1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
            *(2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
            *(2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
        ],
        1,
    ).reshape(-1, 3, 3)
    axes = turn * gaussians.scales.double().exp()[:, None]
    server.scene.add_gaussian_splats(
        "/gaussians",
        gaussians.means.float().numpy(),
        (axes @ axes.transpose(1, 2)).float().numpy(),
        gaussians.rgb.clamp(0, 1).float().numpy(),
        opacity[:, None].float().numpy(),
    )


def _look_from(server, cameras: list[Camera]) -> None:
    """Begin where the middle one of the cameras stands."""
    first, extent = cameras[len(cameras) // 2], _spacing(cameras)
    up = -torch.stack([camera.world_to_cam[1, :3] for camera in cameras]).mean(0)
    server.scene.set_up_direction(tuple(up.tolist()))
    server.initial_camera.position = tuple(first.center.tolist())
    server.initial_camera.look_at = tuple((first.center + 3 * extent * first.axis).tolist())


def _add_camera(server, number: int, camera: Camera, cameras: list[Camera]) -> None:
    import viser.transforms as tf

    width, height = camera.size
    server.scene.add_camera_frustum(
        f"/cameras/{number}",
        fov=float(2 * np.arctan(height / 2 / float(camera.K[1, 1]))),
        aspect=width / height,
        scale=0.1 * _spacing(cameras),
        wxyz=tf.SO3.from_matrix(camera.world_to_cam[:3, :3].T.double().numpy()).wxyz,
        position=camera.center.numpy(),
    )


def _spacing(cameras: list[Camera]) -> float:
    centers = torch.stack([camera.center for camera in cameras])
    return max(float((centers - centers.mean(0)).norm(dim=1).max()), 1e-3)
