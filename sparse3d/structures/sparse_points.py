"""Points that a structure-from-motion program triangulated."""

import warnings
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class SparsePoints:
    """P points of a place and who saw them.

    Attributes:
        xyz: [P, 3] float32, world units.
        rgb: [P, 3] float32, 0..1.
        views: for each point the names of the photographs that show it; empty: not known.
    """

    xyz: Tensor
    rgb: Tensor
    views: list[list[str]] = field(default_factory=list)

    @classmethod
    def none(cls) -> "SparsePoints":
        return cls(torch.zeros(0, 3), torch.zeros(0, 3))

    def finite(self, source: object) -> "SparsePoints":
        """Those with finite place and colour; a warning names ``source`` where others are lost."""
        good = self.xyz.isfinite().all(1) & self.rgb.isfinite().all(1)
        if good.all():
            return self
        lost = f"{int((~good).sum())} of {len(self)} points of {source} are not finite"
        warnings.warn(f"{lost}; they are left out", stacklevel=3)
        views = [views for views, kept in zip(self.views, good.tolist()) if kept]
        return SparsePoints(self.xyz[good], self.rgb[good], views)

    def __len__(self) -> int:
        return len(self.xyz)
