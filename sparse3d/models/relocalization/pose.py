"""Camera poses from matches of pixels and points: RANSAC, refinement, covariance."""

from dataclasses import dataclass

import cv2
import numpy as np

try:
    import poselib
except ImportError:  # OpenCV's RANSAC takes its place
    poselib = None

LEAST = 6
"""Inliers without which there is no pose: five fit chance matches too easily."""


@dataclass(frozen=True, eq=False)
class Pose:
    """A camera's pose and how sure it is.

    Attributes:
        world_to_cam: [4, 4] float64, metres.
        inliers: [K] bool, which of the matches agree.
        covariance: [6, 6] of (rotation vector in the camera's frame in radians, position of the
            camera's centre in world metres), from the reprojection errors of the inliers.
    """

    world_to_cam: np.ndarray
    inliers: np.ndarray
    covariance: np.ndarray

    @property
    def center(self) -> np.ndarray:
        """[3] where the camera stands."""
        return -self.world_to_cam[:3, :3].T @ self.world_to_cam[:3, 3]

    @property
    def sigma(self) -> tuple[float, float]:
        """Standard deviation of the position in metres and of the direction in radians."""
        variance = np.diag(self.covariance)
        return float(np.sqrt(variance[3:].sum())), float(np.sqrt(variance[:3].sum()))


def solve_pose(
    pixels: np.ndarray, points: np.ndarray, K: np.ndarray, error: float = 5.0, seed: int = 0
) -> Pose | None:
    """The pose that most matches agree with, refined on them; None where too few do.

    Args:
        pixels: [K, 2] without lens distortion.
        points: [K, 3] world.
        K: [3, 3].
        error: pixels within which a match agrees.
        seed: of the random samples.
    """
    if len(pixels) < LEAST:
        return None
    pixels, points = np.asarray(pixels, np.float64), np.asarray(points, np.float64)
    solve = _by_poselib if poselib is not None else _by_opencv
    found = solve(pixels, points, np.asarray(K, np.float64), error, seed)
    if found is None or found[1].sum() < LEAST:
        return None
    return _with_covariance(pixels, points, K, *found)


def refine_pose(
    pixels: np.ndarray,
    points: np.ndarray,
    K: np.ndarray,
    world_to_cam: np.ndarray,
    error: float = 5.0,
    weights: np.ndarray | None = None,
    rounds: int = 10,
) -> Pose | None:
    """Least squares from a first pose, with a Cauchy loss that ``error`` pixels scale."""
    pose = np.array(world_to_cam, np.float64)
    weights = np.ones(len(pixels)) if weights is None else weights
    for _ in range(rounds):
        residual, jacobian, depth = _linear(pixels, points, K, pose)
        square = (residual**2).sum(1)
        weight = weights * np.where(depth > 1e-6, 1 / (1 + square / error**2) ** 2, 0)
        rows = jacobian.reshape(-1, 6)
        weighted = rows * np.repeat(weight, 2)[:, None]
        normal, slope = weighted.T @ rows, weighted.T @ residual.ravel()
        try:
            step = np.linalg.solve(normal + 1e-9 * np.eye(6) * np.trace(normal), -slope)
        except np.linalg.LinAlgError:
            return None
        pose = _moved(pose, step)
        if np.abs(step).max() < 1e-6:  # a micrometre
            break
    residual, _, depth = _linear(pixels, points, K, pose)
    inliers = (depth > 1e-6) & ((residual**2).sum(1) < error**2)
    if inliers.sum() < LEAST or not np.isfinite(pose).all():
        return None
    return _with_covariance(pixels, points, K, pose, inliers)


def _by_poselib(pixels, points, K, error, seed):
    camera = {
        "model": "PINHOLE",
        "width": int(2 * K[0, 2]) + 1,
        "height": int(2 * K[1, 2]) + 1,
        "params": [K[0, 0], K[1, 1], K[0, 2], K[1, 2]],
    }
    ransac = {"max_reproj_error": error, "min_iterations": 100, "max_iterations": 5000}
    ransac |= {"seed": seed, "success_prob": 0.9999}
    pose, info = poselib.estimate_absolute_pose(
        pixels, points, camera, ransac, {"max_iterations": 30, "loss_type": "CAUCHY"}
    )
    matrix = np.eye(4)
    matrix[:3] = pose.Rt
    return matrix, np.array(info["inliers"], bool)


def _by_opencv(pixels, points, K, error, seed):
    cv2.setRNGSeed(seed)
    done, turn, shift, rows = cv2.solvePnPRansac(
        points,
        pixels,
        K,
        None,
        iterationsCount=2000,
        reprojectionError=error,
        confidence=0.9999,
        flags=cv2.SOLVEPNP_SQPNP,
    )
    if not done or rows is None:
        return None
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = cv2.Rodrigues(turn)[0], shift[:, 0]
    kept = rows[:, 0]
    refined = refine_pose(pixels[kept], points[kept], K, matrix, error)
    matrix = matrix if refined is None else refined.world_to_cam
    residual, _, depth = _linear(pixels, points, K, matrix)
    return matrix, (depth > 0) & ((residual**2).sum(1) < error**2)


def _linear(pixels, points, K, pose):
    """Residuals [K, 2], Jacobians [K, 2, 6] by a turn and a shift in the camera's frame, depths."""
    local = points @ pose[:3, :3].T + pose[:3, 3]
    depth = np.where(np.abs(local[:, 2]) < 1e-9, 1e-9, local[:, 2])
    flat = local[:, :2] / depth[:, None]
    focal = np.array([K[0, 0], K[1, 1]])
    residual = focal * flat + K[:2, 2] - pixels
    x, y = flat.T
    jacobian = np.zeros((len(points), 2, 6))
    # d(flat) / d(turn), and below / d(shift), as d(local) / d(turn) = -[local]x
    jacobian[:, 0, 0], jacobian[:, 0, 1], jacobian[:, 0, 2] = -x * y, 1 + x * x, -y
    jacobian[:, 1, 0], jacobian[:, 1, 1], jacobian[:, 1, 2] = -1 - y * y, x * y, x
    jacobian[:, 0, 3] = jacobian[:, 1, 4] = 1 / depth
    jacobian[:, :, 5] = -flat / depth[:, None]
    jacobian *= focal[:, None]
    return residual, jacobian, depth


def _moved(pose, step):
    change = np.eye(4)
    change[:3, :3] = cv2.Rodrigues(step[:3])[0]
    change[:3, 3] = step[3:]
    return change @ pose


def _with_covariance(pixels, points, K, pose, inliers) -> Pose:
    residual, jacobian, _ = _linear(pixels[inliers], points[inliers], np.asarray(K), pose)
    freedom = max(2 * len(residual) - 6, 1)
    variance = max((residual**2).sum() / freedom, 0.1**2)  # a key point is no surer than 0.1 px
    rows = jacobian.reshape(-1, 6)
    covariance = variance * np.linalg.pinv(rows.T @ rows, hermitian=True)
    # the centre is -R^T t; a turn w and shift s of the camera's frame move it by -R^T s
    change = np.eye(6)
    change[3:, 3:] = -pose[:3, :3].T
    return Pose(pose, inliers, change @ covariance @ change.T)
