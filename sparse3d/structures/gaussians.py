"""A scene of Gaussians, as 3-D Gaussian splatting has it: values before their activation."""

import math
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from torch import Tensor

from .sample import Sample

SH0 = 0.28209479177387814
"""The constant spherical harmonic: rgb = 0.5 + SH0 * coefficient."""


@dataclass(frozen=True, eq=False)
class Gaussians:
    """N Gaussians.

    Attributes:
        means: [N, 3] centres, world units.
        scales: [N, 3] logarithm of the standard deviations along the own axes.
        quats: [N, 4] rotation (w, x, y, z), of any length but zero.
        opacities: [N] logit.
        sh0: [N, 1, 3] constant coefficients of the colour, rgb.
        shN: [N, K - 1, 3] the other coefficients; K is 1, 4, 9, 16 or 25.
    """

    means: Tensor
    scales: Tensor
    quats: Tensor
    opacities: Tensor
    sh0: Tensor
    shN: Tensor

    def __post_init__(self):
        rows = len(self.means)
        wanted = {
            "means": (rows, 3),
            "scales": (rows, 3),
            "quats": (rows, 4),
            "opacities": (rows,),
            "sh0": (rows, 1, 3),
            "shN": (rows, self.shN.shape[1] if self.shN.dim() == 3 else -1, 3),
        }
        for name, shape in wanted.items():
            if tuple(getattr(self, name).shape) != shape:
                raise ValueError(
                    f"{name} of {rows} Gaussians has shape {tuple(getattr(self, name).shape)}; "
                    f"{shape} is needed"
                )
        degree = round((1 + self.shN.shape[1]) ** 0.5) - 1
        if (degree + 1) ** 2 != 1 + self.shN.shape[1] or degree > 4:
            raise ValueError(
                f"there are {1 + self.shN.shape[1]} coefficients of a colour; a degree from 0 to 4 "
                "has 1, 4, 9, 16 or 25"
            )

    @classmethod
    def empty(cls, sh_degree: int = 0) -> "Gaussians":
        return cls.from_points(
            torch.zeros(0, 3), torch.zeros(0, 3), torch.zeros(0), sh_degree=sh_degree
        )

    @classmethod
    def from_points(
        cls,
        points: Tensor,
        colors: Tensor,
        sizes: Tensor,
        opacity: float | Tensor = 0.5,
        sh_degree: int = 0,
    ) -> "Gaussians":
        """Round Gaussians.

        Args:
            points: [N, 3] world units.
            colors: [N, 3] rgb in 0..1.
            sizes: [N] standard deviations, world units.
            opacity: of all, or [N], in 0..1.
            sh_degree: of the colours; coefficients beyond the constant are 0.
        """
        rows = len(points)
        opacity = torch.as_tensor(opacity, dtype=points.dtype).expand(rows)
        quats = points.new_zeros(rows, 4)
        quats[:, 0] = 1
        return cls(
            points,
            sizes.clamp(min=1e-12).log()[:, None].repeat(1, 3),
            quats,
            torch.logit(opacity, eps=1e-6),
            ((colors - 0.5) / SH0)[:, None],
            points.new_zeros(rows, (sh_degree + 1) ** 2 - 1, 3),
        )

    @classmethod
    def load(cls, path: str | Path) -> "Gaussians":
        """Read a .ply (3DGS's, or compressed) or .splat file.

        Raises:
            ValueError: the file is damaged or holds no Gaussians.
        """
        from .gaussian_files import read_gaussians

        return read_gaussians(path)

    def save(self, path: str | Path) -> int:
        """Write NAME.ply (3DGS's), NAME.compressed.ply or NAME.splat, without unusable rows.

        Returns:
            The number of Gaussians written: those with a NaN or infinite value are left out.

        Raises:
            ValueError: another ending.
        """
        from .gaussian_files import write_gaussians

        return write_gaussians(self, path)

    def __len__(self) -> int:
        return len(self.means)

    def __getitem__(self, index) -> "Gaussians":
        """Those at ``index``: a mask, rows or a slice."""
        return Gaussians(*(value[index] for value in self.tensors().values()))

    @staticmethod
    def cat(parts: list["Gaussians"]) -> "Gaussians":
        """All of ``parts``, one after the other."""
        names = [field.name for field in fields(Gaussians)]
        return Gaussians(*(torch.cat([getattr(p, name) for p in parts]) for name in names))

    def tensors(self) -> dict[str, Tensor]:
        """The six tensors by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def to(self, device: str | torch.device) -> "Gaussians":
        return Gaussians(*(value.to(device) for value in self.tensors().values()))

    @property
    def sh_degree(self) -> int:
        """Degree of the colours' spherical harmonics."""
        return round((1 + self.shN.shape[1]) ** 0.5) - 1

    @property
    def rgb(self) -> Tensor:
        """[N, 3] constant part of the colour; 0..1 where it can be shown."""
        return self.sh0[:, 0] * SH0 + 0.5

    def finite(self) -> Tensor:
        """Mask [N] of those whose every value is finite and whose rotation has a length."""
        good = torch.stack(
            [value.isfinite().reshape(len(self), size).all(1) for value, size in self._sizes()]
        ).all(0)
        return good & (self.quats.norm(dim=1) > 0)

    def _sizes(self) -> list[tuple[Tensor, int]]:
        """Each tensor, and how many numbers of it a Gaussian has."""
        return [(value, math.prod(value.shape[1:])) for value in self.tensors().values()]


@dataclass(frozen=True, eq=False)
class Rendering:
    """What a camera would see of a scene.

    Attributes:
        image: [H, W, 3] rgb, 0..1.
        depth: [H, W] expected distance along the camera's axis; 0 where nothing is.
        alpha: [H, W] how much of the pixel is covered, 0..1.
        sample: the photograph it is to be compared with, and its camera.
        count: Gaussians of the scene.
    """

    image: Tensor
    depth: Tensor
    alpha: Tensor
    sample: Sample | None = None
    count: int = 0

    def to(self, device: str | torch.device) -> "Rendering":
        moved = {name: getattr(self, name).to(device) for name in ("image", "depth", "alpha")}
        return replace(self, **moved)
