"""The metrics of scene flow for the engine: Flows in, numbers by name out."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from mmengine.evaluator import BaseMetric

from sparse3d.registry import METRICS
from sparse3d.structures import Flow

from .flow import (
    MOVING,
    Frame,
    argoverse2_scores,
    bucketed_scores,
    opensceneflow_bucketed,
    opensceneflow_threeway,
    point_scores,
    range_scores,
)

PROTOCOLS = ("points", "argoverse2", "bucketed", "opensceneflow", "ranges")


@METRICS.register_module()
class FlowMetric(BaseMetric):
    """Metrics of ``Flow``s by one or several published protocols.

    Points on the ground, where the pair says which, and points without a valid flow do not count.
    Predicted and true flow both include the ego motion; 'argoverse2' judges them so, 'bucketed',
    'opensceneflow', 'ranges' and 'moving' take it out of both.

    Results, by protocol:
        points: 'EPE3D', 'AccS', 'AccR', 'Outliers', mean over pairs.
        argoverse2: 'EPE 3-Way Average', 'EPE/Foreground/Dynamic', ...; no distance cut but 35 m
            squares in the names that end in Close and Far.
        bucketed: 'bucketed/<class>/static', '.../dynamic', in a square of 35 m.
        opensceneflow: 'opensceneflow/...', in a circle of 35 m.
        ranges: 'ranges/<low>-<high>/Static', ...
    and always 'moving/EPE', 'moving/EPE of ego motion alone' and 'moving/share' (the first over the
    second) of points that move by 0.05 m or more.

    Args:
        protocols: which.
        background_ground: whether points on the ground count after all.
    """

    def __init__(
        self,
        protocols: Sequence[str] = ("points", "argoverse2", "bucketed"),
        background_ground: bool = False,
        collect_device: str = "cpu",
    ):
        super().__init__(collect_device=collect_device)
        unknown = set(protocols) - set(PROTOCOLS)
        if unknown:
            raise ValueError(f"protocols {sorted(unknown)} are none of {PROTOCOLS}")
        self.protocols = tuple(protocols)
        self.background_ground = background_ground

    def process(self, data_batch: Any, data_samples: Sequence[Flow]) -> None:
        for flow in data_samples:
            self.results.append(frame_of(flow, self.background_ground))

    def compute_metrics(self, results: list[Frame]) -> dict[str, float]:
        scores: dict[str, float] = {}
        if "points" in self.protocols:
            rows = [point_scores(frame.found, frame.truth) for frame in results]
            scores |= {name: float(np.nanmean([row[name] for row in rows])) for name in rows[0]}
        if "argoverse2" in self.protocols:
            scores |= argoverse2_scores(results)
        if "bucketed" in self.protocols:
            scores |= _flat("bucketed", bucketed_scores(results))
        if "opensceneflow" in self.protocols:
            three = opensceneflow_threeway(results)
            scores |= {f"opensceneflow/{name}": value for name, value in three.items()}
            scores |= _flat("opensceneflow", opensceneflow_bucketed(results))
        if "ranges" in self.protocols:
            for place, row in range_scores(results).items():
                scores |= {f"ranges/{place}/{name}": value for name, value in row.items()}
        return scores | moving_scores(results)


def _flat(protocol: str, table: dict[str, tuple[float, float]]) -> dict[str, float]:
    return {
        f"{protocol}/{name}/{part}": value
        for name, pair in table.items()
        for part, value in zip(("static", "dynamic"), pair)
    }


def frame_of(flow: Flow, with_ground: bool = False) -> Frame:
    """What the metrics need of a flow: its valid points, those on the ground only if asked for.

    Raises:
        ValueError: the pair has no true flow.
    """
    pair = flow.pair
    if pair.flow is None:
        raise ValueError(f"pair {pair.sample_id!r} has no true flow to compare with")
    kept = np.ones(len(pair.source), bool)
    if pair.valid is not None:
        kept &= pair.valid.cpu().numpy().astype(bool)
    if pair.source_ground is not None and not with_ground:
        kept &= ~pair.source_ground.cpu().numpy().astype(bool)
    category = np.zeros(len(kept), int) if pair.category is None else pair.category.cpu().numpy()
    rows = (pair.source[:, :3], flow.flow, pair.flow, pair.ego_flow)
    return Frame(*(row.cpu().numpy().astype(np.float64)[kept] for row in rows), category[kept])


def moving_scores(frames: Sequence[Frame]) -> dict[str, float]:
    """EPE of the points that move, and what the ego motion alone would give."""
    found, still = [], []
    for frame in frames:
        own = np.linalg.norm(frame.truth - frame.ego_flow, axis=1)
        moves = own >= MOVING
        found.append(np.linalg.norm(frame.found - frame.truth, axis=1)[moves])
        still.append(own[moves])
    found, still = np.concatenate(found), np.concatenate(still)
    if not len(found):
        return {}
    return {
        "moving/EPE": float(found.mean()),
        "moving/EPE of ego motion alone": float(still.mean()),
        "moving/share": float(found.mean() / still.mean()),
    }
