"""Scene flow: the networks on two sweeps, and SCTN as written with dense N x N matrices.

A pair of streets of the procedural world: 8192 points of each sweep for SCTN and FLOT, all points
(about 100,000) for DeltaFlow and the rigid groups. 'dense' sorts the whole distance matrix for its
neighbours and holds softmax and transport plan as N x N matrices.
"""

import argparse
from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor

from sparse3d.datasets.flow_transforms import PointSampling, RemoveGround
from sparse3d.datasets.world.sweeps import make_sequence
from sparse3d.models import point_transformer, scene_flow, set_conv
from sparse3d.models.rigid_flow import RigidFlow
from sparse3d.ops import interpolate
from sparse3d.registry import MODELS
from sparse3d.structures import Batch, SweepPair
from tools.benchmarks.common import Case, measure_all

COLUMNS = ("workload", "points", "implementation", "ms", "peak_mb")
SMALL = {"channels": [16, 32, 64, 64, 64], "up_channels": [64, 64, 32, 16], "blocks": 1}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument("--points", type=int, default=8192, help="of SCTN and FLOT (8192)")
    parser.add_argument("--no-dense", action="store_true", help="leave out the dense form")


def run(args: argparse.Namespace) -> list[dict]:
    """Rows of all cases."""
    torch.set_num_threads(args.threads)
    return measure_all(cases(args), args, COLUMNS)


def cases(args: argparse.Namespace) -> Iterator[Case]:
    """SCTN in both forms, FLOT, DeltaFlow with and without rigid groups, rigid groups alone."""
    full = street_pair()
    count = int(args.points * args.scale)
    rng = np.random.default_rng(0)
    few = PointSampling(count)(RemoveGround()(full, rng), rng)
    torch.manual_seed(0)
    sctn = MODELS.build({"type": "SCTN", "backbone": {"type": "InstanceUNet"}}).eval()
    flot = MODELS.build({"type": "FLOT"}).eval()
    calls = {"blocks": partial(sctn.predict, Batch([few]))}
    if not args.no_dense:
        calls["dense"] = partial(densely, partial(sctn.predict, Batch([few])))
    yield Case({"workload": "SCTN", "points": count}, calls)
    yield Case(
        {"workload": "FLOT", "points": count}, {"blocks": partial(flot.predict, Batch([few]))}
    )
    backbone = {"type": "SparseUNet", **SMALL}
    delta = {
        "network": {"type": "DeltaFlow", "voxel_size": (0.2, 0.2, 0.4), "backbone": backbone},
        "published size": {"type": "DeltaFlow", "backbone": {"type": "SparseUNet"}},
    }
    calls = {
        name: partial(MODELS.build(c).eval().predict, Batch([full])) for name, c in delta.items()
    }
    refined = {**delta["network"], "refine": {"type": "RigidFlow"}}
    calls["network and groups"] = partial(MODELS.build(refined).eval().predict, Batch([full]))
    calls["groups"] = partial(RigidFlow().eval().predict, Batch([full]))
    yield Case({"workload": "DeltaFlow", "points": len(full.source)}, calls)


def street_pair() -> SweepPair:
    """Two sweeps of about 100,000 points with known ego motion and ground."""
    first, second = make_sequence("test", 0, 0, "hdl64").sweeps[1::-1]
    return SweepPair(
        torch.from_numpy(first.points),
        torch.from_numpy(second.points),
        ego_motion=torch.from_numpy(first.ego),
        source_ground=torch.from_numpy(first.instance < 0),
        target_ground=torch.from_numpy(second.instance < 0),
        meta={"sample_id": "street"},
    )


# ---------------------------------------------------------------------- the dense form


def densely(call) -> object:
    """``call`` with neighbours, attention and transport by whole N x N matrices."""
    places = [
        (set_conv, "knn", sorted_neighbors),
        (interpolate, "knn", sorted_neighbors),
        (scene_flow, "transport_flow", dense_transport),
        (point_transformer.F, "scaled_dot_product_attention", dense_attention),
    ]
    before = [getattr(module, name) for module, name, _ in places]
    try:
        for module, name, other in places:
            setattr(module, name, other)
        return call()
    finally:
        for (module, name, _), function in zip(places, before):
            setattr(module, name, function)


def sorted_neighbors(query, points, k, query_batch=None, points_batch=None):
    """``knn`` by sorting all distances."""
    squared = query.square().sum(1)[:, None] - 2 * query @ points.T + points.square().sum(1)[None]
    order = squared.argsort(dim=1)[:, :k]
    return order, squared.gather(1, order).clamp(min=0)


def dense_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention with its matrix."""
    return torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, -1) @ v


def dense_transport(features, points, eps, gamma, iterations, radius=10.0):
    """``transport_flow`` with cost, kernel and plan as matrices."""
    squared = points[0].square().sum(1)[:, None] + points[1].square().sum(1)[None]
    near = squared - 2 * points[0] @ points[1].T < radius**2
    kernel = torch.exp(-(1 - features[0] @ features[1].T) / eps) * near
    power, (rows, columns) = gamma / (gamma + eps), kernel.shape
    a = kernel.new_full((rows, 1), 1 / rows)
    for _ in range(iterations):
        b = ((1 / columns) / (kernel.T @ a + 1e-8)) ** power
        a = ((1 / rows) / (kernel @ b + 1e-8)) ** power
    plan = a * kernel * b.T
    mass = plan.sum(1)
    return plan @ points[1] / (mass[:, None] + 1e-8) - points[0], mass
