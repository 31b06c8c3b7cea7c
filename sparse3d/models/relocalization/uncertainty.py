"""How far off a pose may be: conformal calibration on queries whose pose is known."""

import math

import numpy as np

FLOOR = (1e-3, 5e-4)
"""Metres and radians added to sigmas: no estimate is surer than that."""


def score(errors: tuple[float, float], sigma: tuple[float, float]) -> float:
    """Errors (metres, radians) in units of what was expected; the larger of both.

    A failure has infinite errors and scores infinity.
    """
    if not all(map(math.isfinite, (*errors, *sigma))):
        return math.inf
    return max(e / (s + floor) for e, s, floor in zip(errors, sigma, FLOOR))


def quantile(scores: list[float], confidence: float) -> float:
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


def pose_set(
    sigma: tuple[float, float], scores: list[float], confidence: float
) -> tuple[float, float] | None:
    """Radii (metres, radians) around an estimate that hold the true pose; None: unknown."""
    factor = quantile(scores, confidence)
    if not math.isfinite(factor):
        return None
    return tuple(factor * (s + floor) for s, floor in zip(sigma, FLOOR))


def coverage(
    errors: list[tuple[float, float]],
    sigmas: list[tuple[float, float] | None],
    scores: list[float],
    confidence: float,
) -> dict[str, float]:
    """Share of queries whose true pose is in the set, and the sets' median radii.

    Args:
        errors: metres and radians, infinite for failures.
        sigmas: of each pose; None for failures, which claim nothing and count as unknown.
        scores: calibration.
        confidence: asked for.
    """
    held, radii, unknown = [], [], 0
    for error, sigma in zip(errors, sigmas):
        radius = None if sigma is None else pose_set(sigma, scores, confidence)
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
