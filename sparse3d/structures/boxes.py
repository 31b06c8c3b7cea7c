"""Oriented boxes: one convention for the whole toolkit.

A box is (x, y, z, dx, dy, dz, yaw[, vx, vy]): the CENTRE in metres, dx along the heading, dy to its
left, dz up, yaw in radians counter-clockwise seen from above with 0 along +x, velocity in m/s.
Adapters of a data set convert at its border; nothing inside sees another convention.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sparse3d.ops import rotated


@dataclass(frozen=True, eq=False)
class Boxes:
    """N oriented boxes.

    Attributes:
        tensor: [N, 7] or, with velocity, [N, 9] float.
    """

    tensor: Tensor

    def __post_init__(self):
        if self.tensor.dim() != 2 or self.tensor.shape[1] not in (7, 9):
            raise ValueError(
                f"boxes have shape {tuple(self.tensor.shape)}; [N, 7] (x, y, z, dx, dy, dz, yaw) "
                "or [N, 9] (with vx, vy) is needed"
            )

    @classmethod
    def empty(cls, columns: int = 7) -> "Boxes":
        return cls(torch.zeros(0, columns))

    def __len__(self) -> int:
        return len(self.tensor)

    def __getitem__(self, index) -> "Boxes":
        """The boxes at ``index``: a mask, rows or a slice."""
        return Boxes(self.tensor[index])

    @property
    def centers(self) -> Tensor:
        """[N, 3] metres."""
        return self.tensor[:, :3]

    @property
    def sizes(self) -> Tensor:
        """[N, 3] dx, dy, dz in metres."""
        return self.tensor[:, 3:6]

    @property
    def yaw(self) -> Tensor:
        """[N] radians."""
        return self.tensor[:, 6]

    @property
    def velocity(self) -> Tensor | None:
        """[N, 2] m/s, or None."""
        return self.tensor[:, 7:9] if self.tensor.shape[1] == 9 else None

    def to(self, device: str | torch.device) -> "Boxes":
        return Boxes(self.tensor.to(device))

    @staticmethod
    def cat(parts: list["Boxes"]) -> "Boxes":
        return Boxes(torch.cat([part.tensor for part in parts])) if parts else Boxes.empty()

    def corners(self) -> Tensor:
        """[N, 8, 3]: bottom face counter-clockwise from front left, then the top face likewise."""
        signs = self.tensor.new_tensor([[1, 1], [-1, 1], [-1, -1], [1, -1]]) / 2
        signs = torch.cat([signs, signs])
        height = self.tensor.new_tensor([-0.5] * 4 + [0.5] * 4)
        local = torch.cat([signs, height[:, None]], 1) * self.sizes[:, None]
        cos, sin = self.yaw.cos()[:, None], self.yaw.sin()[:, None]
        x = local[..., 0] * cos - local[..., 1] * sin
        y = local[..., 0] * sin + local[..., 1] * cos
        return torch.stack([x, y, local[..., 2]], -1) + self.centers[:, None]

    def contains(self, points: Tensor) -> Tensor:
        """Mask [N, P] of the ``points`` [P, >=3] strictly inside each box."""
        return rotated.points_in_boxes(points[:, :3], self.tensor[:, :7])

    def rotate(self, angle: float) -> "Boxes":
        """Turned by ``angle`` radians about the world's z axis, counter-clockwise from above."""
        cos, sin = math.cos(angle), math.sin(angle)
        turn = self.tensor.new_tensor([[cos, sin], [-sin, cos]])
        out = self.tensor.clone()
        out[:, :2] = self.tensor[:, :2] @ turn
        out[:, 6] = self.tensor[:, 6] + angle
        if self.velocity is not None:
            out[:, 7:9] = self.velocity @ turn
        return Boxes(out)

    def flip(self, axis: str) -> "Boxes":
        """Mirrored: 'x' mirrors about the x axis (y changes sign), 'y' about the y axis.

        Raises:
            ValueError: another axis.
        """
        if axis not in ("x", "y"):
            raise ValueError(f"axis is {axis!r}; it must be 'x' or 'y'")
        out = self.tensor.clone()
        column = 1 if axis == "x" else 0
        out[:, column] = -out[:, column]
        out[:, 6] = -out[:, 6] if axis == "x" else math.pi - out[:, 6]
        if self.velocity is not None:
            out[:, 7 + column] = -out[:, 7 + column]
        return Boxes(out)

    def scale(self, factor: float) -> "Boxes":
        """Centres, sizes and velocity times ``factor``."""
        out = self.tensor.clone()
        out[:, :6] = out[:, :6] * factor
        out[:, 7:] = out[:, 7:] * factor
        return Boxes(out)

    def translate(self, shift: Tensor) -> "Boxes":
        """Moved by ``shift`` [3] metres."""
        out = self.tensor.clone()
        out[:, :3] = out[:, :3] + shift
        return Boxes(out)


def wrap_angle(angle: Tensor) -> Tensor:
    """Angles in radians, brought to [-pi, pi)."""
    return torch.remainder(angle + math.pi, 2 * math.pi) - math.pi
