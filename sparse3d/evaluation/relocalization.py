"""Camera poses against known ones: medians, recalls, failures, coverage."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

RECALLS = ((0.01, 1.0), (0.02, 2.0), (0.05, 5.0), (0.25, 2.0))
"""Metres and degrees."""
FAILED = (math.inf, math.inf)


def pose_errors(estimate: np.ndarray | None, truth: np.ndarray) -> tuple[float, float]:
    """Distance of the camera centres in metres and angle of the rotations in degrees.

    Args:
        estimate: [4, 4] world to camera, or None where there is none: infinite errors.
        truth: [4, 4].
    """
    if estimate is None:
        return FAILED
    one, two = np.asarray(estimate, np.float64), np.asarray(truth, np.float64)
    centers = [-m[:3, :3].T @ m[:3, 3] for m in (one, two)]
    turn = one[:3, :3].T @ two[:3, :3]
    axis = np.array([turn[2, 1] - turn[1, 2], turn[0, 2] - turn[2, 0], turn[1, 0] - turn[0, 1]])
    angle = math.atan2(float(np.linalg.norm(axis)), float(np.trace(turn)) - 1)
    return float(np.linalg.norm(centers[0] - centers[1])), math.degrees(angle)


def summarize(
    errors: Sequence[tuple[float, float]],
    ground_truth: str,
    groups: Sequence[str] | None = None,
) -> dict[str, float | str]:
    """Medians, recalls and failures of all queries and of each group.

    Args:
        errors: metres and degrees; infinite for failures, which count in medians and recalls.
        ground_truth: which one it was; results on different ones must not be compared.
        groups: of each query.

    Returns:
        'median_cm', 'median_deg', 'recall_5cm_5deg' and so on in percent, 'failures', 'queries';
        of a group with its name and '/' before.
    """
    table = np.array(errors, np.float64).reshape(-1, 2)
    out: dict[str, float | str] = {"ground_truth": ground_truth, **_numbers(table)}
    for group in sorted(set(groups or ())):
        rows = np.array([g == group for g in groups])
        out |= {f"{group}/{name}": value for name, value in _numbers(table[rows]).items()}
    return out


def _numbers(table: np.ndarray) -> dict[str, float]:
    if not len(table):
        return {"queries": 0}
    numbers = {
        "queries": len(table),
        "median_cm": float(np.median(table[:, 0])) * 100,
        "median_deg": float(np.median(table[:, 1])),
    }
    for metres, degrees in RECALLS:
        within = (table[:, 0] <= metres) & (table[:, 1] <= degrees)
        numbers[f"recall_{metres * 100:g}cm_{degrees:g}deg"] = 100 * float(within.mean())
    return numbers | {"failures": int(np.isinf(table[:, 0]).sum())}


def lines(results: Mapping[str, float | str]) -> list[str]:
    """The summary as a person reads it."""
    groups = ["", *sorted({k.split("/")[0] for k in results if "/" in k})]
    out = [f"ground truth: {results['ground_truth']}"]
    for group in groups:
        get = {
            k.removeprefix(f"{group}/" if group else ""): v
            for k, v in results.items()
            if (k.startswith(f"{group}/") if group else "/" not in k)
        }
        if not get.get("queries"):
            continue
        recalls = "  ".join(
            f"{m * 100:g} cm {d:g} deg {get[f'recall_{m * 100:g}cm_{d:g}deg']:.1f} %"
            for m, d in RECALLS
        )
        out.append(
            f"{group or 'all':6} {get['queries']:4} queries  median {get['median_cm']:.2f} cm "
            f"{get['median_deg']:.2f} deg  {recalls}  failures {get['failures']}"
        )
    return out
