"""How a query was taken: intrinsics, picture size and lens distortion."""

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from sparse3d.structures import Camera

DISTORTIONS = (0, 4, 5, 8, 12, 14)


@dataclass(frozen=True, eq=False)
class Intrinsics:
    """A pinhole with OpenCV's radial and tangential distortion.

    Attributes:
        K: [3, 3] float64 pixels; (0, 0) is the centre of the top left one.
        distortion: k1, k2, p1, p2, k3 ... as OpenCV orders them; none: a pinhole.
        size: (width, height) of the picture K belongs to; None: of the query.
    """

    K: np.ndarray
    distortion: tuple[float, ...] = ()
    size: tuple[int, int] | None = None

    def __post_init__(self):
        K = np.asarray(self.K, np.float64)
        if K.shape != (3, 3) or not np.isfinite(K).all() or not (K[0, 0] > 0 and K[1, 1] > 0):
            raise ValueError(
                f"K is {K.tolist()}; [[fx, 0, cx], [0, fy, cy], [0, 0, 1]] in pixels with positive "
                "focal lengths is needed"
            )
        known = len(self.distortion)
        if known not in DISTORTIONS and known > 2:
            raise ValueError(
                f"distortion has {known} numbers; give k1 or k1, k2 of a radial lens, or 4, 5, 8, "
                "12 or 14 of OpenCV's"
            )
        object.__setattr__(self, "K", K)
        padded = tuple(map(float, self.distortion)) + (0.0,) * (4 - known if known < 4 else 0)
        object.__setattr__(self, "distortion", padded if known else ())

    @classmethod
    def of(cls, given) -> "Intrinsics":
        """From Intrinsics, a Camera, or a [3, 3] matrix.

        Raises:
            ValueError: none of these.
        """
        if isinstance(given, cls):
            return given
        if isinstance(given, Camera):
            return cls(given.K.double().numpy(), size=given.size)
        if given is None:
            raise ValueError(
                "intrinsics are missing: give K [3, 3] in pixels (fx, fy, cx, cy of the camera), "
                "from its calibration or from the picture's EXIF focal length"
            )
        if isinstance(given, Tensor):
            given = given.detach().cpu().numpy()
        return cls(np.asarray(given, np.float64))

    def for_size(self, size: tuple[int, int]) -> "Intrinsics":
        """Those of the same camera whose picture was resized to ``size``."""
        if self.size is None or tuple(self.size) == tuple(size):
            return Intrinsics(self.K, self.distortion, size)
        stretch = np.array([size[0] / self.size[0], size[1] / self.size[1]])
        if abs(stretch[0] / stretch[1] - 1) > 0.02:
            raise ValueError(
                f"the picture has {size[0]} x {size[1]} pixels, its intrinsics belong to "
                f"{self.size[0]} x {self.size[1]}: another shape; give those of this picture"
            )
        K = self.K.copy()
        K[:2, 2] += 0.5  # pixels counted from the corner grow with the picture
        K[:2] *= stretch[:, None]
        K[:2, 2] -= 0.5
        return Intrinsics(K, self.distortion, size)

    def straighten(self, points: Tensor) -> Tensor:
        """Pixels [N, 2] where a pinhole of the same K would see ``points`` [N, 2]."""
        if not self.distortion or not len(points):
            return points
        target = points.double().numpy()
        found = target.copy()
        for _ in range(60):
            step = target - self.bend(found)
            found = found + step
            if np.abs(step).max() < 1e-6:
                break
        return torch.from_numpy(found).to(points.dtype)

    def bend(self, points: np.ndarray) -> np.ndarray:
        """Pixels [N, 2] where the lens shows what a pinhole sees at ``points`` [N, 2]."""
        ones = np.ones((len(points), 1))
        rays = np.concatenate([points, ones], 1) @ np.linalg.inv(self.K).T
        lens = np.array(self.distortion)
        return cv2.projectPoints(rays, np.zeros(3), np.zeros(3), self.K, lens)[0].reshape(-1, 2)
