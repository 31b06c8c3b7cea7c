"""Pairs of sweeps, and the flow that is found between them.

Conventions, everywhere in the toolkit:
    flow           of a point of the first sweep (the source): where it is at the time of the second
                   sweep (the target), in the TARGET's frame, minus where it was in the SOURCE's
                   frame. The ego motion is INCLUDED.
    residual flow  flow without the ego motion: flow - ego_flow, in the target's frame.
    ego_motion     [4, 4] rigid: coordinates in the source's frame -> in the target's frame.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

TENSORS = (
    *("source", "target", "flow", "valid", "ego_motion"),
    *("source_ground", "target_ground", "category", "instance"),
)
RIGID_TOLERANCE = 1e-3


@dataclass
class SweepPair:
    """Two sweeps, perhaps with older ones and the truth. What is not known stays None.

    Attributes:
        source: [P, C] float32, x, y, z first, metres, in the frame of its own time.
        target: [Q, C] the next sweep, in its own frame.
        flow: [P, 3] true motion, ego motion included.
        valid: [P] bool, where the flow is known.
        ego_motion: [4, 4] float64, source frame -> target frame; None: unknown.
        source_ground: [P] bool.
        target_ground: [Q] bool.
        history: older sweeps, the latest first: (points [H, C] in their own frame, [4, 4] float64
            from that frame to the target's).
        category: [P] int64, what the data set says; 0: background.
        instance: [P] int64 object, -1: none.
        interval: seconds from the source to the target.
        meta: plain data: 'sample_id', and what evaluation needs.
    """

    source: Tensor
    target: Tensor
    flow: Tensor | None = None
    valid: Tensor | None = None
    ego_motion: Tensor | None = None
    source_ground: Tensor | None = None
    target_ground: Tensor | None = None
    history: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    category: Tensor | None = None
    instance: Tensor | None = None
    interval: float = 0.1
    meta: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        for name in ("source", "target"):
            points = getattr(self, name)
            if points.dim() != 2 or points.shape[1] < 3 or not points.is_floating_point():
                raise ValueError(
                    f"the {name} of pair {self.sample_id!r} is {points.dtype} of shape "
                    f"{tuple(points.shape)}; float [N, 3] or more columns (x, y, z, ...) are needed"
                )
        rows = {"source": ("flow", "valid", "source_ground", "category", "instance")}
        rows["target"] = ("target_ground",)
        for cloud, names in rows.items():
            for name in names:
                value, count = getattr(self, name), len(getattr(self, cloud))
                if value is not None and len(value) != count:
                    raise ValueError(
                        f"{name} of pair {self.sample_id!r} has {len(value)} rows for {count} "
                        f"points of the {cloud}: one per point is needed"
                    )
        if self.ego_motion is not None:
            check_rigid(self.ego_motion, "ego_motion")
        if not self.interval > 0:
            raise ValueError(
                f"interval is {self.interval} s: the target must come after the source; swap them "
                "if their times are reversed"
            )

    @property
    def sample_id(self) -> str:
        return str(self.meta.get("sample_id", "unnamed"))

    @property
    def ego_flow(self) -> Tensor:
        """[P, 3] the flow that the ego motion alone causes; 0 where it is unknown."""
        return ego_flow(self.source[:, :3], self.ego_motion)

    def to(self, device: str | torch.device) -> "SweepPair":
        """The pair with its tensors on ``device``."""
        moved = {
            name: value.to(device) for name in TENSORS if (value := getattr(self, name)) is not None
        }
        history = [(points.to(device), pose.to(device)) for points, pose in self.history]
        return replace(self, **moved, history=history)

    def select(self, source: Tensor, target: Tensor) -> "SweepPair":
        """The pair with the points at ``source`` and ``target`` only: masks or rows."""
        source, target = (
            rows.nonzero()[:, 0] if rows.dtype == torch.bool else rows for rows in (source, target)
        )
        chosen = {
            name: value[target if name.startswith("target") else source]
            for name in TENSORS
            if name != "ego_motion" and (value := getattr(self, name)) is not None
        }
        return replace(self, **chosen)


@dataclass
class Flow:
    """The flow found for one pair.

    Attributes:
        flow: [P, 3] of each point of the source, ego motion INCLUDED (see the module).
        ego_flow: [P, 3] the part that the ego motion causes, as given or estimated; 0 if neither.
        pair: the pair it was found for.
        ego_motion: [4, 4] float64 that was used; None: ego motion was not told apart.
        seen: [P] bool, points that the model looked at; others (outside its range, on the ground)
            have the flow of the ego motion.
    """

    flow: Tensor
    ego_flow: Tensor
    pair: SweepPair
    ego_motion: Tensor | None = None
    seen: Tensor | None = None

    @property
    def residual(self) -> Tensor:
        """[P, 3] the flow without ego motion."""
        return self.flow - self.ego_flow

    def dynamic(self, speed: float = 0.5) -> Tensor:
        """[P] bool: points that move by ``speed`` m/s or more (Argoverse 2: 0.05 m in 0.1 s)."""
        return self.residual.norm(dim=1) >= speed * self.pair.interval

    def to(self, device: str | torch.device) -> "Flow":
        return replace(
            self,
            flow=self.flow.to(device),
            ego_flow=self.ego_flow.to(device),
            pair=self.pair.to(device),
            ego_motion=None if self.ego_motion is None else self.ego_motion.to(device),
            seen=None if self.seen is None else self.seen.to(device),
        )


def ego_flow(points: Tensor, ego_motion: Tensor | None) -> Tensor:
    """[P, 3] motion of resting ``points`` [P, 3] under ``ego_motion`` [4, 4]; 0 if that is None."""
    if ego_motion is None:
        return torch.zeros_like(points)
    return (transform(points, ego_motion) - points.double()).to(points.dtype)


def transform(points: Tensor, matrix: Tensor) -> Tensor:
    """``points`` [P, 3] moved by ``matrix`` [4, 4], in float64."""
    matrix = matrix.double()
    return points.double() @ matrix[:3, :3].T + matrix[:3, 3]


def check_rigid(matrix: Tensor, name: str) -> None:
    """Refuses what is no rigid motion.

    Raises:
        ValueError: not [4, 4], not finite, or no rotation and shift.
    """
    good = tuple(matrix.shape) == (4, 4) and bool(matrix.isfinite().all())
    if good:
        rotation = matrix[:3, :3].double().cpu()
        unit = torch.eye(3, dtype=torch.float64)
        error = float((rotation @ rotation.T - unit).abs().max())
        last = matrix[3].double().cpu() - torch.tensor([0.0, 0, 0, 1], dtype=torch.float64)
        good = error < RIGID_TOLERANCE and float(torch.linalg.det(rotation)) > 0
        good = good and float(last.abs().max()) < RIGID_TOLERANCE
    if not good:
        raise ValueError(
            f"{name} is {matrix.tolist()}: not rigid; a finite [4, 4] of a rotation (R R^T = 1, "
            "determinant 1), a shift in metres and the last row 0 0 0 1 is needed. A scaled or "
            "mirrored pose, or one that is transposed, is refused"
        )
