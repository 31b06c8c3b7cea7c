"""How far off a pose may be: conformal calibration on queries whose pose is known."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

FLOOR = (1e-3, 5e-4)
"""Metres and radians added to sigmas: no estimate is surer than that."""
FLOORS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)
"""Shares of the median error, of which one is added to sigmas where calibration can tell."""
UNKNOWN = 1e9
"""What stands for infinity in files."""

HeldOut = Sequence[float]
"""(metres off, radians off, sigma in metres, sigma in radians) of a query; infinite: a failure."""


@dataclass(frozen=True)
class Shape:
    """What errors are measured in: ``scale * (sigma + floor)``, of position and of direction."""

    floor: tuple[float, float] = FLOOR
    scale: tuple[float, float] = (1.0, 1.0)

    def units(self, sigma: Sequence[float]) -> tuple[float, float]:
        """Metres and radians that count alike."""
        return tuple(c * (s + f) for s, f, c in zip(sigma, self.floor, self.scale))

    def score(self, row: HeldOut) -> float:
        """The larger of both errors in these units; infinite for a failure."""
        if not all(map(math.isfinite, row)):
            return math.inf
        return max(e / u for e, u in zip(row, self.units(row[2:])))


def quantile(scores: Sequence[float], confidence: float) -> float:
    """The score that a new query stays under with probability ``confidence``.

    The ceil((n + 1) confidence)-th smallest of n; infinite where n is too small. It holds for
    queries that could have been drawn together with the calibrating ones.

    Raises:
        ValueError: ``confidence`` is not between 0 and 1.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; it must lie between 0 and 1")
    rank = math.ceil((len(scores) + 1) * confidence)
    return math.inf if rank > len(scores) else sorted(scores)[rank - 1]


def fit_shape(rows: Sequence[HeldOut], confidence: float) -> Shape:
    """The shape whose sets of ``rows`` are narrowest, position and direction each by itself.

    Position and direction would otherwise be as wide as the worse of both needs: poses of a ground
    truth are often off in direction by more than matches can tell.
    """
    table = np.array([row for row in rows if all(map(math.isfinite, row))], np.float64)
    floors, scales = [], []
    for number in range(2):
        error, sigma = table[:, number], table[:, 2 + number]
        choices = []
        for share in FLOORS:
            floor = FLOOR[number] + share * float(np.median(error))
            scale = float(np.quantile(error / (sigma + floor), confidence))
            choices.append((scale * float(np.median(sigma + floor)), floor, max(scale, 1e-9)))
        _, floor, scale = min(choices)
        floors.append(floor)
        scales.append(scale)
    return Shape(tuple(floors), tuple(scales))


def fit(rows: Sequence[HeldOut], confidence: float) -> tuple[Shape, float]:
    """Shape and size of pose sets.

    Every other row tells the shape, the rest the size: what tells the size must not have been
    looked at before. Of too few rows all tell the size.

    Raises:
        ValueError: ``confidence`` is not between 0 and 1.
    """
    rows = [[v if v < UNKNOWN else math.inf for v in row] for row in rows]
    first, second = rows[::2], rows[1::2]
    if not math.isfinite(quantile([0.0] * len(second), confidence)):
        first, second = [], rows
    whole = sum(all(map(math.isfinite, row)) for row in first)
    shape = fit_shape(first, confidence) if whole > 1 else Shape()
    return shape, quantile([shape.score(row) for row in second], confidence)


def pose_set(
    sigma: Sequence[float], rows: Sequence[HeldOut], confidence: float
) -> tuple[float, float] | None:
    """Radii (metres, radians) around an estimate that hold the true pose; None: unknown."""
    shape, factor = fit(rows, confidence)
    if not math.isfinite(factor):
        return None
    return tuple(factor * unit for unit in shape.units(sigma))


def coverage(
    errors: list[tuple[float, float]],
    sigmas: list[tuple[float, float] | None],
    rows: Sequence[HeldOut],
    confidence: float,
) -> dict[str, float]:
    """Share of queries whose true pose is in the set, and the sets' median radii.

    Args:
        errors: metres and radians, infinite for failures.
        sigmas: of each pose; None for failures, which claim nothing and count as unknown.
        rows: calibration.
        confidence: asked for.
    """
    held, radii, unknown = [], [], 0
    for error, sigma in zip(errors, sigmas):
        radius = None if sigma is None else pose_set(sigma, rows, confidence)
        if radius is None:
            unknown += 1
            continue
        held.append(all(e <= r for e, r in zip(error, radius)))
        radii.append(radius)
    median = np.median(np.array(radii), 0) if radii else (math.nan, math.nan)
    return {
        "asked": confidence,
        "coverage": float(np.mean(held)) if held else math.nan,
        "unknown": unknown,
        "radius_cm": float(median[0]) * 100,
        "radius_deg": math.degrees(float(median[1])),
    }
