"""Scene flow without learning: what stands apart moves as one, to where it fits the next sweep."""

import numpy as np
import torch
from mmengine.model import BaseModel
from scipy.ndimage import minimum_filter
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree
from torch import Tensor

from sparse3d.ops.neighbors import knn
from sparse3d.ops.voxelize import voxelize
from sparse3d.registry import MODELS
from sparse3d.structures import Batch, Flow, SweepPair
from sparse3d.structures.sweeps import ego_flow, transform

from .delta_flow import complete
from .preprocessor import BatchPreprocessor

NEAR = 0.1
"""Metres: what is so near fits. Two sweeps never hit the same points."""
BESIDE = 0.2
"""Metres: a point of the next sweep so near to where another group was is that group's."""
WELL = 0.04
"""Metres there and back: a group that fits so well where it is stays."""
POOR = 0.3
"""Metres there and back: a motion after which a group fits no better is none (it is hidden now)."""
MIXED = 0.04
"""Metres there and back: a group that fits no better anywhere may be two things that touch."""
ASLEEP, SLOW = 0.3, 0.5
"""m/s: a group whose guess is slower, and one whose motion would be slower, stays."""
SOLID, MANY, SURE = 1.2, 200, 0.7
"""A group moves against its guess only if it is so wide on either side, metres, or goes across
itself (what is flat fits anywhere along itself), has so many points and fits better by this share
of the cost of staying."""
ACROSS = 0.7
"""Share of a motion that goes across the group, if it is said to."""
EVEN = 0.2
"""Metres: groups are looked at with one point for each cell of that size. What is near has most
points in its middle, and its ends, which show how it moves, would count for nothing."""
COARSE, FINE = 60, 150
"""Points of a group that are looked at, to find a motion and to judge it."""
SLACK = 0.01
"""Metres there and back that do not tell two motions apart."""
JUDGED = 3
"""Hypotheses of a group that are judged there and back."""


@MODELS.register_module()
class RigidFlow(BaseModel):
    """Groups of points that each move rigidly; nothing is learnt and no labels are needed.

    Ego motion is taken out and the ground left out, both found where they are not known. Points of
    the source that touch form a group. A group is tried at every shift of a grid in the plane, by
    the mean distance of its points to the next sweep (nearest-neighbour term); the best few are
    made precise by registration and judged there and back, by points spread evenly over it: points
    of the next sweep where the group would lie must have a point of the group near, too (cycle
    term), unless they lie where another group was. It moves only where that is clearly better than
    to stay. A group that fits nowhere is tried in parts, of points nearer to each other: vehicles
    that nearly touch.

    A network's flow, where there is one, says which groups move at all, and roughly where to: a
    smooth wall or a row of like posts fits well at many places.

    Args:
        cell: metres within which points of a group touch, seen in space.
        fastest: m/s.
        largest: metres; a group wider than that (a wall, a hedge) stays.
        fewest: points of a group that may move.
        truncation: metres; a point farther from the next sweep is not worse off.
        gain: a motion must bring the cost below this share of that of staying.
        limit: metres from the origin, seen from above, to which groups may move.
        guided_gain: as ``gain``, of a motion along the guess of another method.
        guided_share: of a motion's length that such a guess must have, along it.
        part: points of the smallest part of a group that is tried by itself.
    """

    def __init__(
        self,
        cell: float = 0.4,
        fastest: float = 25.0,
        largest: float = 16.0,
        fewest: int = 12,
        truncation: float = 0.5,
        gain: float = 0.75,
        limit: float = 75.0,
        guided_gain: float = 0.85,
        guided_share: float = 0.3,
        part: int = 50,
    ):
        super().__init__(data_preprocessor=BatchPreprocessor())
        self.cell = cell
        self.fastest = fastest
        self.largest = largest
        self.fewest = fewest
        self.truncation = truncation
        self.gain = gain
        self.limit = limit
        self.guided_gain = guided_gain
        self.guided_share = guided_share
        self.part = part

    def forward(self, batch: Batch, mode: str = "predict") -> list[Flow]:
        """Flows of each pair.

        Raises:
            ValueError: another mode than 'predict'.
        """
        if mode != "predict":
            raise ValueError(f"mode is {mode!r}; RigidFlow learns nothing and only predicts")
        return self.predict(batch)

    @torch.no_grad()
    def predict(self, batch: Batch) -> list[Flow]:
        """The flow of each pair, ego motion included."""
        return [self.improve(pair) for pair in batch.samples]

    def improve(self, given: SweepPair, found: Tensor | None = None) -> Flow:
        """The flow of a pair.

        Args:
            given: the pair.
            found: [P, 3] flow, ego motion included, that another method found (see ``residual``).
        """
        pair = complete(given)
        ego = ego_flow(pair.source[:, :3], pair.ego_motion)
        moved = transform(pair.source[:, :3], pair.ego_motion).to(pair.source.dtype)
        rows = (~pair.source_ground).nonzero()[:, 0]
        target = pair.target[~pair.target_ground, :3]
        flow = ego.clone()
        if len(rows):
            guess = None if found is None else (found - ego)[rows]
            flow[rows] += self.residual(moved[rows], target, pair.interval, guess)
        return Flow(flow, ego, given, pair.ego_motion, ~pair.source_ground)

    def residual(
        self, source: Tensor, target: Tensor, interval: float, guess: Tensor | None = None
    ) -> Tensor:
        """[S, 3] flow of ``source`` [S, 3] towards ``target`` [T, 3], both in one frame.

        Args:
            source, target: metres, without the ground and the ego motion.
            interval: seconds.
            guess: [S, 3] what another method found. A group moves only if its mean guess goes that
                way, too, or if it is solid and surely moves; that mean is also tried. Groups that
                are too wide to move stay; points of no group keep their guess.
        """
        if source.is_cuda:  # small groups, one after the other: trees and grids of the CPU
            here = None if guess is None else guess.cpu()
            return self.residual(source.cpu(), target.cpu(), interval, here).to(source)
        flow = torch.zeros_like(source) if guess is None else guess.clone()
        if not len(target):
            return flow
        groups, wide = self._groups(source, interval)
        parts = []
        if guess is not None:  # parts of what is wide are smooth: alone they go astray
            parts = [part for rows in wide for part in self._parts(source, rows)]
            parts = [part for part in parts if self._may_move(source[part], interval)]
        for rows in wide:
            flow[rows] = 0
        if not groups and not parts:
            return flow
        space = _Space(source, target, self.fastest * interval, self.truncation, self.limit)
        for rows, shift in self._moved(source, groups, parts, space, interval, guess):
            flow[rows] = torch.as_tensor(shift).to(flow)
        return flow

    def _groups(self, source: Tensor, interval: float) -> tuple[list[Tensor], list[Tensor]]:
        """Rows of each group that may move, and of each that is too wide to."""
        group = components(source, self.cell)
        order = group.argsort(stable=True)
        chosen, wide = [], []
        for rows in order.split(torch.bincount(group).tolist()):
            if len(rows) < self.fewest:
                continue
            if self._may_move(source[rows], interval):
                chosen.append(rows)
            elif self._extent(source[rows]) > self.largest:
                wide.append(rows)
        return chosen, wide

    @staticmethod
    def _extent(points: Tensor) -> float:
        return float((points.amax(0) - points.amin(0))[:2].max())

    def _may_move(self, points: Tensor, interval: float) -> bool:
        inside = points[:, :2].abs().max() < self.limit - self.fastest * interval
        return bool(inside) and self._extent(points) <= self.largest

    def _parts(self, source: Tensor, rows: Tensor) -> list[Tensor]:
        """Rows of each part of a group, by cells of half the size; [] if it has not two.

        Points of parts that are too small go with the nearest point of a larger one.
        """
        part = components(source[rows], self.cell / 2)
        large = (torch.bincount(part) >= self.part).nonzero()[:, 0]
        if len(large) < 2:
            return []
        own = torch.isin(part, large)
        if not own.all():
            near = knn(source[rows[~own]], source[rows[own]], 1)[0][:, 0]
            part[~own] = part[own][near]
        return [rows[part == number] for number in large]

    def _moved(self, source, groups, wide_parts, space, interval, guess):
        """Rows and shift [3] of each group, or of its parts where these fit clearly better."""
        whole, groups = len(groups), groups + wide_parts
        shifts, costs = self._motions(source, groups, space, interval, guess, whole)
        parts = [self._parts(source, g) if cost > MIXED else [] for g, cost in zip(groups, costs)]
        flat = [part for several in parts for part in several]
        own = sum(map(len, parts[:whole]))
        part_shifts, part_costs = self._motions(source, flat, space, interval, guess, own)
        moved, start = [], 0
        for number, several in enumerate(parts):
            mine = slice(start, start + len(several))
            start += len(several)
            weights = [len(part) for part in several]
            limit = self.guided_gain * costs[number]
            if several and np.average(part_costs[mine], weights=weights) < limit:
                moved += zip(several, part_shifts[mine])
            else:
                moved.append((groups[number], shifts[number]))
        return moved

    def _motions(
        self, source, groups, space, interval, guess, whole: int = 0
    ) -> tuple[np.ndarray, np.ndarray]:
        """[G, 3] shift of each group, zero where it stays, and [G] how well it fits there.

        The first ``whole`` of them may move against their guess.
        """
        clouds = [_Cloud(source, rows) for rows in groups]
        costs = np.array([space.fit(cloud, np.zeros(3)) for cloud in clouds])
        shifts, restless = np.zeros((len(clouds), 3)), costs > WELL
        guesses = None
        if guess is not None and len(groups):
            guesses = np.stack([guess[rows].mean(0).double().cpu().numpy() for rows in groups])
            free = np.array([g < whole and cloud.size >= MANY for g, cloud in enumerate(clouds)])
            restless &= free | (np.linalg.norm(guesses, axis=1) >= ASLEEP * interval)
        restless = np.flatnonzero(restless)
        if not len(restless):
            return shifts, costs
        owner, near, refined = self._tried(clouds, restless, space, interval, guesses)
        gain = np.full(len(near), self.gain)
        if guesses is not None:
            length = np.linalg.norm(refined, axis=1)
            along = (refined * guesses[owner]).sum(1) >= self.guided_share * length**2
            gain = np.where(along, self.guided_gain, SURE)
            sure = [free[g] and clouds[g].shows(shift) for g, shift in zip(owner, refined)]
            near[~(along | np.array(sure) | (length <= SLOW * interval))] = np.inf
        for g in restless:
            mine = np.flatnonzero((owner == g) & np.isfinite(near))
            if not len(mine):
                continue
            mine = mine[np.argsort(near[mine], kind="stable")][:JUDGED]
            judged = [space.fit(clouds[g], refined[h]) for h in mine]
            best = int(np.argmin(judged))
            shift, cost = refined[mine[best]], judged[best]
            moves = np.linalg.norm(shift) > SLOW * interval
            if moves and cost < min(gain[mine[best]] * costs[g], POOR):
                shifts[g], costs[g] = space.settle(clouds[g], shift, cost)
        moved = np.flatnonzero(shifts.any(1))
        if len(moved):
            fine = [thinned(clouds[g].even, FINE) for g in moved]
            polished = space.polish(fine, shifts[moved])[1]
            for g, shift in zip(moved, polished):  # it looks there only, not back, and may slide
                if space.fit(clouds[g], shift) <= costs[g] + SLACK:
                    shifts[g] = shift
        return shifts, costs

    def _tried(self, clouds, restless, space, interval, guesses):
        """Hypotheses: [H] group, [H] mean distance (infinite: not to be had) and [H, 3] shift."""
        samples = [thinned(clouds[g].even, COARSE) for g in restless]
        tried = [space.candidates(sample) for sample in samples]
        if guesses is not None:
            tried = [np.concatenate([t, guesses[g, None]]) for g, t in zip(restless, tried)]
        place = np.repeat(np.arange(len(restless)), [len(t) for t in tried])
        near, refined = space.polish([samples[i] for i in place], np.concatenate(tried))
        near[np.linalg.norm(refined, axis=1) > self.fastest * interval] = np.inf
        return restless[place], near, refined


class _Cloud:
    """The points of a group."""

    def __init__(self, source: Tensor, rows: Tensor):
        points = source[rows]
        all_points = points.double().cpu().numpy()
        self.size, self.rows = len(rows), rows.numpy()
        self.tree = cKDTree(all_points)
        self.even = even(points).double().cpu().numpy()
        self.extent = np.ptp(all_points[:, :2], axis=0)
        middle = self.even[:, :2] - self.even[:, :2].mean(0)
        self.across = np.linalg.eigh(middle.T @ middle)[1][:, 0]  # where it is thinnest, from above

    def shows(self, shift: np.ndarray) -> bool:
        """Whether it would fit worse without ``shift`` [3], if it moved so."""
        if self.extent.min() >= SOLID:
            return True
        across = abs(shift[:2] @ self.across) >= ACROSS * np.linalg.norm(shift[:2])
        return bool(self.extent.max() >= SOLID and across)


def components(points: Tensor, cell: float) -> Tensor:
    """[P] int64 number of the group of each point; cells that touch, corners too, are one."""
    batch = torch.zeros(len(points), dtype=torch.int64)
    coords, index = voxelize(points, batch, (cell,) * 3, (0.0,) * 3, None)
    cells = coords[:, 1:].float()
    near, squared = knn(cells, cells, 27)
    there = (near >= 0) & (squared < 3.5)
    rows = torch.arange(len(cells))[:, None].expand_as(near)[there].numpy()
    graph = coo_matrix((np.ones(len(rows)), (rows, near[there].numpy())), (len(cells),) * 2)
    return torch.from_numpy(connected_components(graph, False)[1].astype(np.int64))[index]


def even(points: Tensor, cell: float = EVEN) -> Tensor:
    """The first of ``points`` [P, 3] in each cell."""
    batch = torch.zeros(len(points), dtype=torch.int64)
    index = voxelize(points, batch, (cell,) * 3, (0.0,) * 3, None)[1]
    first = torch.full((int(index.max()) + 1,), len(points)) if len(points) else index
    return points[first.scatter_reduce(0, index, torch.arange(len(points)), "amin")]


def thinned(points: np.ndarray, most: int) -> np.ndarray:
    """At most ``most`` of ``points``, evenly through the list."""
    step = max(-(-len(points) // most), 1)
    return points[::step]


class _Space:
    """The next sweep, as distances on a grid and as a tree."""

    STEP = np.array([0.2, 0.2, 0.4])

    def __init__(
        self, source: Tensor, target: Tensor, reach: float, truncation: float, limit: float
    ):
        self.points = target.double().cpu().numpy()
        self.tree = cKDTree(self.points)
        self.even = even(target).double().cpu().numpy()
        self.even_tree = cKDTree(self.even)
        tree = cKDTree(source.double().cpu().numpy())
        self.before = tree.query(self.even, distance_upper_bound=BESIDE)[1]  # who was there
        self.count = len(source)
        self.reach, self.truncation = reach, truncation
        inside = np.abs(self.points[:, :2]).max(1) < limit
        kept = self.points[inside]
        low, high = (kept.min(0), kept.max(0)) if len(kept) else (np.zeros(3), np.zeros(3))
        self.low = np.array([-limit, -limit, max(low[2], -5.0)]) - self.STEP
        shape = np.array([2 * limit, 2 * limit, min(high[2], 6.0) - self.low[2]]) / self.STEP
        self.shape = np.maximum(shape.astype(int) + 3, 1)
        keys = np.unique(np.ravel_multi_index(tuple(self._cells(kept).T), self.shape))
        self.field = self._distances(np.stack(np.unravel_index(keys, self.shape), 1))

    def _distances(self, cells: np.ndarray) -> np.ndarray:
        """Truncated distance of every cell to the nearest of ``cells`` [N, 3]."""
        field = np.full(self.shape, self.truncation, np.float32)
        most = np.ceil(self.truncation / self.STEP).astype(int)
        grid = np.meshgrid(*(np.arange(-n, n + 1) for n in most), indexing="ij")
        offsets = np.stack(grid, -1).reshape(-1, 3)
        distance = np.linalg.norm(offsets * self.STEP, axis=1)
        for offset in offsets[np.argsort(-distance, kind="stable")]:  # what is nearer comes later
            length = np.linalg.norm(offset * self.STEP)
            if length < self.truncation:
                places = np.clip(cells + offset, 0, self.shape - 1)
                field[tuple(places.T)] = length
        return field

    def _cells(self, points: np.ndarray) -> np.ndarray:
        cells = ((points - self.low) / self.STEP).astype(int)
        return np.clip(cells, 0, self.shape - 1)

    def candidates(self, sample: np.ndarray, count: int = 6) -> np.ndarray[np.ndarray]:
        """Shifts in the plane at which the sample lies best, local minima of a grid of them."""
        steps = int(np.ceil(self.reach / 0.2))
        cells = self._cells(sample)
        offsets = np.arange(-steps, steps + 1)
        cost = np.zeros((len(offsets), len(offsets)))
        x = np.clip(cells[:, 0, None] + offsets, 0, self.shape[0] - 1)
        y = np.clip(cells[:, 1, None] + offsets, 0, self.shape[1] - 1)
        for column, row, height in zip(x, y, cells[:, 2]):
            cost += self.field[column[:, None], row[None], height]
        cost /= len(sample)
        lowest = cost == minimum_filter(cost, 5, mode="nearest")
        places = np.argwhere(lowest)
        order = np.argsort(cost[lowest], kind="stable")[:count]
        return np.pad(offsets[places[order]] * 0.2, ((0, 0), (0, 1)))

    def fit(self, cloud: _Cloud, shift: np.ndarray) -> float:
        """Misfit there, of the shifted cloud, and back, of what lies in it but not in others."""
        moved = cloud.even + shift
        near = self._misfit(self.tree.query(thinned(moved, FINE))[0])
        low, high = moved.min(0) - 0.3, moved.max(0) + 0.3
        middle, radius = (low + high) / 2, np.linalg.norm(high - low) / 2
        there = np.array(self.even_tree.query_ball_point(middle, radius), int)
        there = there[((self.even[there] >= low) & (self.even[there] <= high)).all(1)]
        before = self.before[there]
        others = (before < self.count) & ~np.isin(before, cloud.rows)
        there = self.even[there[~others]]
        if not len(there):
            return near + self.truncation - NEAR
        return near + self._misfit(cloud.tree.query(thinned(there, FINE) - shift)[0])

    def _misfit(self, distances: np.ndarray) -> float:
        return float(np.maximum(np.minimum(distances, self.truncation) - NEAR, 0).mean())

    def settle(self, cloud: _Cloud, shift: np.ndarray, cost: float) -> tuple[np.ndarray, float]:
        """The shift near ``shift``, whose misfit is ``cost``, that fits best, and its misfit."""
        for step in (0.2, 0.1):
            for way in step * np.array([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0]]):
                while (there := self.fit(cloud, shift + way)) < cost - SLACK:
                    shift, cost = shift + way, there
        return shift, cost

    def polish(
        self, samples: list[np.ndarray], shifts: np.ndarray, steps: int = 8
    ) -> tuple[np.ndarray, np.ndarray]:
        """[H] mean truncated distances and [H, 3] shifts, made precise by nearest neighbours.

        Args:
            samples: points [S, 3] of each of H hypotheses.
            shifts: [H, 3] where to begin.
        """
        sizes = [len(sample) for sample in samples]
        owner, points = np.repeat(np.arange(len(sizes)), sizes), np.concatenate(samples)
        starts = np.cumsum([0, *sizes[:-1]])
        shifts, kernel = shifts.copy(), 0.4
        for _ in range(steps):
            moved = points + shifts[owner]
            gap = self._nearest(moved) - moved
            weight = (kernel**2 / (kernel**2 + (gap**2).sum(1))) ** 2
            total = np.add.reduceat(weight, starts)
            shifts[:, :2] += np.add.reduceat(gap[:, :2] * weight[:, None], starts) / total[:, None]
            kernel = max(kernel * 0.8, 0.15)
        moved = points + shifts[owner]
        distance = np.linalg.norm(self._nearest(moved) - moved, axis=1)
        near = np.add.reduceat(np.minimum(distance, self.truncation), starts) / sizes
        return near, shifts

    def _nearest(self, query: np.ndarray) -> np.ndarray:
        """[Q, 3] the nearest point of the next sweep."""
        return self.points[self.tree.query(query)[1]]
