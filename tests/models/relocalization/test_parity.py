"""Loss, optimizer, triangulation and query step against stored outputs."""

import numpy as np
import pytest
import torch

from sparse3d.models.relocalization.geometry import Tracks, camera_centers, triangulate
from sparse3d.models.relocalization.matching import mutual, visible
from sparse3d.models.relocalization.training import NodeAdam, render_loss
from sparse3d.ops import backend
from sparse3d.ops.volume import RaySettings, ray_weights, render
from tests.conftest import fixture_files

EXACT = dict(rtol=0, atol=1e-6)


def check_loss(data):
    pair, left = (data["pred"], data["target"]), data["alphainv_last"]
    first, full = (render_loss(*pair, left, angle) for angle in (False, True))
    torch.testing.assert_close(first, data["out_loss_first_iters"], **EXACT)
    torch.testing.assert_close(full, data["out_loss"], **EXACT)
    mean = (data["pred"] - data["target"]).square().mean()
    torch.testing.assert_close(mean, data["out_mse"], **EXACT)
    torch.testing.assert_close((first - mean) / 0.1, data["out_entropy"], **EXACT)
    torch.testing.assert_close((full - first) / 0.2, data["out_cos"], **EXACT)


def check_adam(data):
    param = data["param"].clone().requires_grad_()
    share = data["count"] / data["count"].max()
    betas = (float(data["beta1"]), float(data["beta2"]))
    group = {"params": [param], "share": share}
    optimizer = NodeAdam([group], lr=float(data["lr"]), betas=betas, eps=float(data["eps"]))
    for grad in data["grads"]:
        param.grad = grad.clone()
        optimizer.step()
    torch.testing.assert_close(param.detach(), data["out_param"], **EXACT)


def check_triangulation(data):
    poses = torch.linalg.inv(data["cam2world"])
    count, views = poses.shape[:2]
    matrices = (data["K"] @ poses[..., :3, :]).flatten(0, 1)
    numbers = torch.arange(count * views).view(count, views)
    present = torch.ones(count, views, dtype=torch.bool)

    def find(name):
        return triangulate(matrices, Tracks(data[name], numbers, present))

    points, errors = find("uv_exact")
    torch.testing.assert_close(points, data["out_point"], **EXACT)
    assert errors.max() < 1e-6
    focal, centers = data["K"][0, 0], camera_centers(poses)
    distance = (centers - points[:, None]).norm(dim=-1).amin(1)
    torch.testing.assert_close(7 * distance / focal, data["out_voxel_edge_patch7"], **EXACT)
    noisy, _ = find("uv_noise05px")
    bound = 8 * distance / focal  # a point moved by pixels, larger along the rays
    assert ((noisy - data["out_point"]).norm(dim=1) < bound).all()
    robust, errors = find("uv_noise_and_outlier_view3")
    assert ((robust - data["out_point"]).norm(dim=1) < bound).all()
    assert (errors.argmax(1) == 3).all()


def check_query(data):
    poses = torch.linalg.inv(data["cam2world_prior"])
    size, border = tuple(data["image_wh"].tolist()), float(data["border"])
    rows, pixels, _ = visible(data["landmarks"], data["K"] @ poses[:3], size, border)
    assert torch.equal(rows, data["out_visible"].nonzero()[:, 0])
    torch.testing.assert_close(pixels, data["out_pixels"][rows], **EXACT)
    points, half = data["landmarks"][rows], data["half_size"][rows, None]
    center = data["cam2world_prior"][:3, 3]
    settings = RaySettings(
        alpha_init=float(data["alpha_init"]), threshold=float(data["fast_color_thres"])
    )
    rays = (points - center)[:, None]
    weights = ray_weights(
        center.expand_as(rays).contiguous(),
        rays,
        *(points - half, points + half, data["density"][rows, 0]),
        settings=settings,
    )
    found = render(weights, data["k0"][rows].movedim(1, -1))[:, 0]
    found = torch.nn.functional.normalize(found, dim=1)
    torch.testing.assert_close(found, data["out_desc_normalised"][rows], **EXACT)
    landmark, keypoint = mutual(found @ data["query_desc"].T, float(data["match_thr"]))
    pairs = torch.stack([rows[landmark], keypoint], 1)
    assert torch.equal(pairs, data["out_matches_landmark_kpt"])


CHECKS = {
    "out_loss_first_iters": check_loss,
    "out_param": check_adam,
    "uv_exact": check_triangulation,
    "out_matches_landmark_kpt": check_query,
}


@pytest.mark.parity
@pytest.mark.parametrize("implementation", ["reference", "native"])
@pytest.mark.parametrize("path", fixture_files("reloc/*.npz"), ids=lambda p: p.stem)
def test_stored_outputs(path, implementation):
    with np.load(path) as file:
        data = {name: torch.from_numpy(np.array(file[name])) for name in file.files}
    with backend.forced(implementation):
        for key, check in CHECKS.items():
            if key in data:
                check(data)
