"""Key points of posed pictures matched into tracks."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from sparse3d.ops.guided import match_on_lines

from .features import Features
from .geometry import Tracks, camera_centers, projections, triangulate, widest_angle

FEW = 40
"""Up to so many pictures, every pair is matched."""


@dataclass(frozen=True, eq=False)
class Posed:
    """Cameras of P pictures.

    Attributes:
        K: [P, 3, 3] pixels.
        world_to_cam: [P, 4, 4] metres.
        sizes: [P, 2] width and height.
    """

    K: Tensor
    world_to_cam: Tensor
    sizes: Tensor

    def __len__(self) -> int:
        return len(self.K)

    @property
    def centers(self) -> Tensor:
        return camera_centers(self.world_to_cam)

    @property
    def matrices(self) -> Tensor:
        """[P, 3, 4] from the world to pixels."""
        return projections(self.K, self.world_to_cam)

    def __getitem__(self, rows) -> "Posed":
        return Posed(self.K[rows], self.world_to_cam[rows], self.sizes[rows])


def check_poses(world_to_cam: Tensor, names: list[str]) -> None:
    """Refuses poses that are no rigid transforms, naming the first.

    Raises:
        ValueError: a matrix holds NaN, or its upper left part is no rotation.
    """
    turn = world_to_cam[:, :3, :3].double()
    wrong = (turn @ turn.mT - torch.eye(3).double()).abs().amax((1, 2)) > 1e-3
    wrong |= torch.linalg.det(turn.nan_to_num()) < 0
    wrong |= ~world_to_cam.isfinite().all(-1).all(-1)
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise ValueError(
            f"{int(wrong.sum())} of {len(wrong)} poses are no rotations, the first is that of "
            f"{names[row]}: {turn[row].tolist()}; correct the poses or leave those pictures out"
        )


def choose_pairs(posed: Posed, most_angle: float = 0.8) -> list[tuple[int, int]]:
    """Pairs of pictures worth matching: all of few; else each with near ones and ever farther ones.

    Args:
        posed: the cameras.
        most_angle: radians between viewing directions, above which a pair is left out.
    """
    axes, centers = posed.world_to_cam[:, 2, :3], posed.centers
    angle = torch.arccos((axes @ axes.T).clamp(-1, 1))
    distance = torch.cdist(centers, centers)
    spread = distance[distance > 0].median() if (distance > 0).any() else distance.new_tensor(1.0)
    near = distance / spread + angle / most_angle
    near = torch.where(angle <= most_angle, near, torch.inf)
    pairs = set()
    for i in range(len(posed)):
        order = near[i].argsort(stable=True)
        order = order[near[i][order].isfinite()].tolist()
        order.remove(i)
        steps = range(len(order)) if len(posed) <= FEW else _ranks(len(order))
        pairs |= {(min(i, order[k]), max(i, order[k])) for k in steps}
    return sorted(pairs)


def _ranks(count: int) -> list[int]:
    """0, 1, 2, 3, then every eighth."""
    return [k for k in range(count) if k < 4 or k % 8 == 0]


def fundamental(posed: Posed, first: int, second: int) -> Tensor:
    """[3, 3] F with x2' F x1 = 0."""
    relative = posed.world_to_cam[second] @ torch.linalg.inv(posed.world_to_cam[first])
    x, y, z = relative[:3, 3].tolist()
    cross = relative.new_tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    inverse = torch.linalg.inv
    return inverse(posed.K[second]).T @ cross @ relative[:3, :3] @ inverse(posed.K[first])


def match_pair(
    one: Features, two: Features, F: Tensor, ratio: float, least: float, pixels: float = 2.0
) -> tuple[Tensor, Tensor]:
    """Mutual nearest neighbours on each other's epipolar lines.

    Args:
        one: features of the first picture.
        two: of the second.
        F: [3, 3] fundamental matrix.
        ratio: of the distance to the best and to the second best candidate on the line; below it.
        least: similarity of a match.
        pixels: half the width of the line.

    Returns:
        [K, 2] int64 rows and [K] similarities.
    """
    if not len(one) or not len(two):
        return torch.zeros(0, 2, dtype=torch.int64), torch.zeros(0)
    best, column, second, back = match_on_lines(
        one.descriptors, two.descriptors, one.points, two.points, F, pixels
    )
    rows = torch.arange(len(one))
    distinct = (2 - 2 * best) < ratio**2 * (2 - 2 * second)
    kept = (back[column] == rows) & (best >= least) & distinct & (column >= 0)
    return torch.stack([rows[kept], column[kept]], 1), best[kept]


def link(
    counts: list[int], matches: Iterable[tuple[int, int, Tensor, Tensor]]
) -> list[list[tuple[int, int]]]:
    """Tracks of (picture, row): matches joined from the most similar down.

    A join that would put two points of one picture into a track is left out.

    Args:
        counts: key points of each picture.
        matches: picture, picture, [K, 2] rows, [K] similarities.
    """
    starts = torch.tensor([0, *counts]).cumsum(0).tolist()
    ends, weights = [], []
    for first, second, rows, similar in matches:
        ends.append(rows + torch.tensor([starts[first], starts[second]]))
        weights.append(similar)
    if not ends:
        return []
    pairs, weight = torch.cat(ends), torch.cat(weights)
    pairs = pairs[weight.argsort(descending=True, stable=True)].tolist()
    parent = list(range(starts[-1]))
    picture = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts)).tolist()
    members: dict[int, dict[int, int]] = {}

    def find(node: int) -> int:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for a, b in pairs:
        a, b = find(a), find(b)
        if a == b:
            continue
        one = members.setdefault(a, {picture[a]: a})
        two = members.setdefault(b, {picture[b]: b})
        if one.keys() & two.keys():
            continue
        if len(one) < len(two):
            a, b, one, two = b, a, two, one
        parent[b] = a
        one.update(members.pop(b))
    tracks = [sorted((p, n - starts[p]) for p, n in m.items()) for m in members.values()]
    return sorted(t for t in tracks if len(t) > 1)


Match = tuple[int, int, Tensor, Tensor]
"""Two pictures, [K, 2] rows of their features, [K] similarities."""


def match_pairs(
    features: list[Features],
    posed: Posed,
    ratio: float,
    least: float,
    report: Callable[[float, str], None] = lambda share, text: None,
) -> list[Match]:
    """Matches of all pairs of pictures that are worth matching."""
    pairs = choose_pairs(posed)
    matches = []
    for done, (i, j) in enumerate(pairs):
        F = fundamental(posed, i, j)
        matches.append((i, j, *match_pair(features[i], features[j], F, ratio, least)))
        report((done + 1) / len(pairs), f"matching pair {done + 1} of {len(pairs)}")
    return matches


def build_tracks(features: list[Features], matches: list[Match]) -> tuple[Tracks, Tensor]:
    """Tracks of two or more observations, and [T, V] rows into their pictures' features."""
    linked = link([len(f) for f in features], matches)
    longest = max((len(track) for track in linked), default=0)
    table = torch.full((len(linked), longest, 2), -1)
    for row, track in enumerate(linked):
        table[row, : len(track)] = torch.tensor(track)
    views, rows = table.clamp(min=0).unbind(-1)
    present = table[..., 0] >= 0
    starts = torch.tensor([0, *(len(f) for f in features)]).cumsum(0)
    every = torch.cat([f.points for f in features]).double()
    points = every[starts[views] + rows] if len(linked) else torch.zeros(0, 0, 2).double()
    return Tracks(points, views, present), rows


def keep_good(
    tracks: Tracks, posed: Posed, least_views: int, pixels: float = 2.5, least_angle: float = 0.026
) -> tuple[Tensor, Tensor, Tracks]:
    """Tracks whose point is certain: their rows, points [T, 3] and the observations that agree.

    Args:
        tracks: of two or more observations.
        posed: the cameras.
        least_views: observations that must agree.
        pixels: largest error of one that does.
        least_angle: radians, the widest angle under which the cameras see the point.
    """
    enough = (tracks.present.sum(1) >= least_views).nonzero()[:, 0]
    tracks = tracks[enough]
    points, errors = triangulate(posed.matrices, tracks, scale=pixels)
    good = Tracks(tracks.points, tracks.views, errors <= pixels)
    kept = good.present.sum(1) >= least_views
    kept &= widest_angle(posed.centers, good, points) >= least_angle
    rows = kept.nonzero()[:, 0]
    return enough[rows], points[rows], good[rows]
