"""Points that a structure-from-motion program triangulated."""

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

    def __len__(self) -> int:
        return len(self.xyz)
