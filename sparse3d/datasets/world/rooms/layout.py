"""Seeded rooms: four walls, windows, a door, and furniture for what the room is used for.

The floor is z = 0, the walls stand at x = +-width / 2 and y = +-depth / 2; metres. Most rooms hold
several objects of one class, so that a sentence has to say more than the class.
"""

from dataclasses import dataclass, field

import numpy as np

from . import furniture, pieces
from .furniture import MAKERS
from .pieces import Piece
from .textures import Surface, draw_surface

SUPPORTS = ("table", "desk", "cabinet", "nightstand")
HIGHEST_TOP = 1.35  # metres; nobody puts things on higher furniture
TRIES = 30


@dataclass
class Thing:
    """A piece of furniture in its place.

    Attributes:
        piece: what it is.
        position: [3] of its origin, metres.
        yaw: radians.
        support: row of the thing it stands on, -1 for the floor or a wall.
    """

    piece: Piece
    position: np.ndarray
    yaw: float
    support: int = -1

    def vertices(self) -> np.ndarray:
        """[V, 3] of its mesh in the room."""
        return self.piece.mesh.moved(self.position, self.yaw).vertices

    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper corner [3] in the room."""
        vertices = self.vertices()
        return vertices.min(0), vertices.max(0)


@dataclass
class Interior:
    """A furnished room.

    Attributes:
        size: [3] width (x), depth (y), height, metres.
        theme: what it is used for.
        shell: surfaces of the floor, ceiling and the four walls.
        things: what is in it.
        taken: [K, 5] footprints x0, y0, x1, y1 and height of what stands on the floor.
    """

    size: np.ndarray
    theme: str
    shell: list[Surface]
    things: list[Thing] = field(default_factory=list)
    taken: list[np.ndarray] = field(default_factory=list)

    def fits(self, low: np.ndarray, high: np.ndarray, margin: float) -> bool:
        """Whether a footprint lies in the room and touches no other by less than ``margin``."""
        if (low < -self.size[:2] / 2 - 1e-6).any() or (high > self.size[:2] / 2 + 1e-6).any():
            return False
        return all(
            high[0] + margin <= t[0]
            or t[2] + margin <= low[0]
            or high[1] + margin <= t[1]
            or t[3] + margin <= low[1]
            for t in self.taken
        )

    def stand(self, piece: Piece, xy, yaw: float, margin: float = 0.05) -> int | None:
        """Puts the piece on the floor if it fits; its row."""
        thing = Thing(piece, np.array([xy[0], xy[1], 0.0]), yaw)
        low, high = thing.bounds()
        if not self.fits(low[:2], high[:2], margin):
            return None
        self.things.append(thing)
        self.taken.append(np.array([*low[:2], *high[:2], high[2]]))
        return len(self.things) - 1


@dataclass(frozen=True)
class Wall:
    """One of the four: the inward normal's angle and the distance from the room's middle."""

    yaw: float
    reach: float
    length: float

    def place(self, along: float, off: float) -> np.ndarray:
        """[2] at ``along`` from the wall's middle (to its left as seen from it) and ``off`` it."""
        normal = np.array([np.cos(self.yaw), np.sin(self.yaw)])
        left = np.array([-normal[1], normal[0]])
        return -normal * (self.reach - off) + left * along


def walls(interior: Interior) -> list[Wall]:
    """The room's walls."""
    width, depth = interior.size[:2]
    return [
        Wall(0.0, width / 2, depth),
        Wall(np.pi / 2, depth / 2, width),
        Wall(np.pi, width / 2, depth),
        Wall(-np.pi / 2, depth / 2, width),
    ]


def furnish(rng: np.random.Generator) -> Interior:
    """A room drawn from ``rng``."""
    theme = str(rng.choice(list(THEMES)))
    size = rng.uniform((3.4, 3.0, 2.4), (6.5, 5.5, 2.9))
    if rng.random() < 0.5:
        size[:2] = size[1::-1]
    interior = Interior(size, theme, _shell(rng))
    _openings(rng, interior)
    plan = THEMES[theme]
    for kind, (least, most), where in plan:
        count = int(rng.integers(least, most + 1))
        color = str(rng.choice(MAKERS[kind][1])) if rng.random() < 0.35 else None
        alike = int(rng.integers(2**31)) if rng.random() < 0.45 else None
        for _ in range(count):
            # A set: chairs of one form, at times of one colour.
            draw = rng if alike is None else np.random.default_rng(alike)
            piece = furniture.make(draw, kind, color or str(rng.choice(MAKERS[kind][1])))
            _PLACES[where](rng, interior, piece)
    return interior


def _shell(rng: np.random.Generator) -> list[Surface]:
    """Floor, ceiling and four walls; one wall may differ."""
    floors = (
        ("planks", "brown", 0.11, 0.3),
        ("planks", "beige", 0.14, 0.25),
        ("tiles", "beige", 0.4, 0.2),
        ("tiles", "gray", 0.33, 0.25),
        ("carpet", "gray", 0.8, 0.25),
        ("carpet", "beige", 1.1, 0.25),
    )
    pattern, color, scale, contrast = floors[rng.integers(len(floors))]
    other = draw_surface(rng, str(rng.choice(["white", "gray", "beige", "brown"])), "plain").color
    base = draw_surface(rng, color, "plain").color
    floor = Surface(base, pattern, scale, contrast, other, int(rng.integers(2**31)))
    ceiling = draw_surface(rng, "white", "plain", contrast=0.04)
    wall = _wallpaper(rng, str(rng.choice(["white", "beige", "white", "gray", "beige"])))
    accent = _wallpaper(rng, str(rng.choice(["blue", "green", "beige", "gray", "pink"])))
    shell = [wall] * 4
    if rng.random() < 0.5:
        shell[rng.integers(4)] = accent
    return [floor, ceiling, *shell]


def _wallpaper(rng: np.random.Generator, color: str) -> Surface:
    base = np.array(draw_surface(rng, color, "plain").color)
    base = 0.45 * base + 0.55 * base.max() if color not in ("white", "beige") else base
    pattern = str(rng.choice(["plain", "stripes", "bricks"], p=[0.6, 0.25, 0.15]))
    other = tuple(np.clip(base * rng.uniform(0.8, 0.92), 0, 1))
    scale = {"plain": rng.uniform(0.3, 0.9), "stripes": 0.3, "bricks": 0.22}[pattern]
    return Surface(tuple(base), pattern, scale, 0.09, other, int(rng.integers(2**31)))


def _openings(rng: np.random.Generator, interior: Interior) -> None:
    """A door with room before it, and windows in other walls."""
    sides = walls(interior)
    order = rng.permutation(4)
    door = furniture.make(rng, "door")
    _hang(rng, interior, sides[order[0]], door, 0.0, clear=0.9)
    color = str(rng.choice(MAKERS["window"][1]))
    for _ in range(rng.integers(1, 4)):
        window = furniture.make(rng, "window", color)
        _hang(rng, interior, sides[order[1 + int(rng.integers(0, 3))]], window, 0.0, clear=0.0)


def _hang(rng, interior: Interior, wall: Wall, piece: Piece, z: float, clear: float) -> int | None:
    """Puts a flat piece at a wall where no other is; keeps ``clear`` metres before it free."""
    half = piece.size[1] / 2
    if wall.length < 2 * half + 0.2:
        return None
    for _ in range(TRIES):
        along = rng.uniform(-1, 1) * (wall.length / 2 - half - 0.1)
        thing = Thing(piece, np.array([*wall.place(along, 0.0), z]), wall.yaw)
        low, high = thing.bounds()
        if any(_near(low, high, *other.bounds()) for other in interior.things):
            continue
        interior.things.append(thing)
        if clear:
            ends = np.stack([wall.place(along - half, 0), wall.place(along + half, clear)])
            interior.taken.append(np.array([*ends.min(0), *ends.max(0), 0.0]))
        return len(interior.things) - 1
    return None


def _near(low, high, other_low, other_high, margin: float = 0.08) -> bool:
    return bool(((low - margin < other_high) & (other_low < high + margin)).all())


def _at_wall(rng: np.random.Generator, interior: Interior, piece: Piece) -> int | None:
    """Back to a wall, clear of the door, and of windows when it is tall."""
    sides = walls(interior)
    deep, wide = piece.size[:2]
    for _ in range(TRIES):
        wall = sides[rng.integers(4)]
        span = wall.length / 2 - wide / 2 - 0.03
        if span < 0:
            continue
        along = rng.choice([-span, span]) if rng.random() < 0.3 else rng.uniform(-span, span)
        off = deep / 2 + rng.uniform(0.01, 0.05) - _middle(piece)
        xy = wall.place(along, off)
        thing = Thing(piece, np.array([*xy, 0.0]), wall.yaw)
        low, high = thing.bounds()
        if any(_near(low, high, *other.bounds(), 0.02) for other in interior.things):
            continue
        row = interior.stand(piece, xy, wall.yaw)
        if row is not None:
            return row
    return None


def _middle(piece: Piece) -> float:
    low, high = piece.mesh.bounds()
    return (low[0] + high[0]) / 2


def _anywhere(rng: np.random.Generator, interior: Interior, piece: Piece) -> int | None:
    """On the floor, turned as it falls: by quarters when it is long."""
    long = max(piece.size[:2]) > 0.9
    for _ in range(TRIES):
        xy = rng.uniform(-0.5, 0.5, 2) * (interior.size[:2] - 0.5)
        yaw = rng.integers(4) * np.pi / 2 if long else rng.uniform(-np.pi, np.pi)
        row = interior.stand(piece, xy, yaw, 0.12)
        if row is not None:
            return row
    return None


def _center(rng: np.random.Generator, interior: Interior, piece: Piece) -> int | None:
    """Near the middle of the room."""
    for _ in range(TRIES):
        xy = rng.normal(0, 0.12, 2) * interior.size[:2]
        row = interior.stand(piece, xy, rng.integers(2) * np.pi / 2, 0.5)
        if row is not None:
            return row
    return _anywhere(rng, interior, piece)


def _seat(rng: np.random.Generator, interior: Interior, piece: Piece) -> int | None:
    """At a table or before a desk, facing it; anywhere if there is no place."""
    hosts = [
        t for t in interior.things if t.piece.kind in ("desk", "table") and t.piece.size[2] > 0.6
    ]
    for _ in range(TRIES if hosts else 0):
        host = hosts[rng.integers(len(hosts))]
        deep, wide = host.piece.size[:2]
        if host.piece.kind == "desk" or rng.random() < wide / (2 * deep + wide):
            side = 0 if host.piece.kind == "desk" else rng.choice([0, 2])
            reach, along = deep / 2, rng.uniform(-1, 1) * max(wide / 2 - 0.3, 0)
        else:
            side, reach, along = (
                rng.choice([1, 3]),
                wide / 2,
                rng.uniform(-1, 1) * (deep / 2 - 0.25),
            )
        turn = host.yaw + side * np.pi / 2
        out = np.array([np.cos(turn), np.sin(turn)])
        left = np.array([-out[1], out[0]])
        gap = reach + piece.size[0] / 2 + rng.uniform(0.0, 0.2)
        xy = host.position[:2] + out * gap + left * along
        row = interior.stand(piece, xy, turn + np.pi + rng.normal(0, 0.15), 0.0)
        if row is not None:
            return row
    return _anywhere(rng, interior, piece)


def _beside(rng: np.random.Generator, interior: Interior, piece: Piece) -> int | None:
    """Beside a bed's head, a sofa or a desk; else at a wall."""
    hosts = [t for t in interior.things if t.piece.kind in ("bed", "sofa", "desk", "armchair")]
    for _ in range(TRIES if hosts else 0):
        host = hosts[rng.integers(len(hosts))]
        deep, wide = host.piece.size[:2]
        side = rng.choice([-1, 1])
        x = -deep / 2 + piece.size[0] / 2 + rng.uniform(0, 0.1)
        y = side * (wide / 2 + piece.size[1] / 2 + rng.uniform(0.06, 0.25))
        xy = _of_host(host, x, y)
        row = interior.stand(piece, xy, host.yaw, 0.02)
        if row is not None:
            return row
    return _at_wall(rng, interior, piece)


def _of_host(host: Thing, x: float, y: float) -> np.ndarray:
    """[2] in the room of a place in the host's frame."""
    cos, sin = np.cos(host.yaw), np.sin(host.yaw)
    return host.position[:2] + np.array([x * cos - y * sin, x * sin + y * cos])


def _on_top(rng: np.random.Generator, interior: Interior, piece: Piece) -> int | None:
    """On a table, desk, chest or nightstand with space left."""
    rows = [
        row
        for row, thing in enumerate(interior.things)
        if thing.piece.kind in SUPPORTS and thing.piece.size[2] < HIGHEST_TOP
    ]
    if piece.kind == "monitor":
        rows = [r for r in rows if interior.things[r].piece.kind == "desk"] or rows
    for _ in range(TRIES if rows else 0):
        row = int(rng.choice(rows))
        host = interior.things[row]
        slack = (host.piece.size[:2] - piece.size[:2]) / 2 - 0.02
        if host.piece.kind == "table":
            slack = slack - 0.1 * host.piece.size[:2]
        if (slack < 0).any():
            continue
        x, y = rng.uniform(-slack, slack)
        turn = rng.uniform(-0.3, 0.3)
        if piece.kind == "monitor":
            x, turn = -slack[0] * rng.uniform(0.3, 0.9), rng.normal(0, 0.08)
        if _lay(interior, piece, row, (x, y), host.piece.size[2], turn):
            return len(interior.things) - 1
    return None


def _lay(interior: Interior, piece: Piece, row: int, xy, height: float, turn: float) -> bool:
    """Puts the piece on thing ``row`` at ``xy`` of its frame, unless something is there."""
    host = interior.things[row]
    place = _of_host(host, *xy)
    thing = Thing(piece, np.array([*place, host.position[2] + height]), host.yaw + turn, row)
    low, high = thing.bounds()
    if any(_near(low, high, *t.bounds(), 0.03) for t in interior.things if t is not host):
        return False
    interior.things.append(thing)
    return True


def _on_bed(rng: np.random.Generator, interior: Interior, piece: Piece) -> int | None:
    """A pillow at the head of a bed or against the back of a sofa."""
    rows = [r for r, t in enumerate(interior.things) if t.piece.kind in ("bed", "sofa", "armchair")]
    for _ in range(TRIES if rows else 0):
        row = int(rng.choice(rows))
        host = interior.things[row]
        deep, wide = host.piece.size[:2]
        if host.piece.kind == "bed":
            height = float(
                host.piece.mesh.vertices[
                    host.piece.mesh.faces[host.piece.mesh.material == pieces.MAIN]
                ].max((0, 1))[2]
            )
            x = -deep / 2 + piece.size[0] / 2 + 0.1 + rng.uniform(0, 0.05)
        else:
            height, x = 0.43, rng.uniform(0.0, 0.12)
        slack = wide / 2 - piece.size[1] / 2 - (0.05 if host.piece.kind == "bed" else 0.25)
        if slack < 0:
            continue
        spot = (x, rng.uniform(-slack, slack))
        if _lay(interior, piece, row, spot, height - 0.03, rng.normal(0, 0.15)):
            return len(interior.things) - 1
    return None


def _on_wall(rng: np.random.Generator, interior: Interior, piece: Piece) -> int | None:
    """At a wall, at the height of the eyes."""
    order = rng.permutation(4)
    for side in order:
        height = rng.uniform(1.35, 1.65)
        row = _hang(rng, interior, walls(interior)[side], piece, height, clear=0.0)
        if row is not None:
            return row
    return None


_PLACES = {
    "wall": _at_wall,
    "anywhere": _anywhere,
    "center": _center,
    "seat": _seat,
    "beside": _beside,
    "top": _on_top,
    "bed": _on_bed,
    "hang": _on_wall,
}

# What is put in, in this order: kind, least and most number, where.
THEMES = {
    "bedroom": (
        ("bed", (1, 2), "wall"),
        ("nightstand", (1, 3), "beside"),
        ("cabinet", (1, 3), "wall"),
        ("desk", (0, 1), "wall"),
        ("bookshelf", (0, 1), "wall"),
        ("armchair", (0, 1), "wall"),
        ("chair", (1, 3), "seat"),
        ("pillow", (1, 4), "bed"),
        ("table_lamp", (1, 3), "top"),
        ("monitor", (0, 1), "top"),
        ("small_plant", (0, 1), "top"),
        ("floor_lamp", (0, 1), "beside"),
        ("plant", (0, 2), "wall"),
        ("box", (0, 3), "anywhere"),
        ("bin", (0, 2), "wall"),
        ("picture", (1, 3), "hang"),
    ),
    "living room": (
        ("sofa", (1, 2), "wall"),
        ("table", (1, 2), "center"),
        ("cabinet", (1, 3), "wall"),
        ("bookshelf", (0, 2), "wall"),
        ("armchair", (1, 3), "anywhere"),
        ("chair", (0, 3), "seat"),
        ("stool", (0, 2), "anywhere"),
        ("pillow", (1, 4), "bed"),
        ("floor_lamp", (1, 2), "beside"),
        ("table_lamp", (0, 2), "top"),
        ("monitor", (0, 1), "top"),
        ("small_plant", (0, 2), "top"),
        ("small_box", (0, 2), "top"),
        ("plant", (1, 3), "wall"),
        ("picture", (1, 4), "hang"),
    ),
    "office": (
        ("desk", (2, 4), "wall"),
        ("cabinet", (1, 3), "wall"),
        ("bookshelf", (0, 2), "wall"),
        ("chair", (2, 6), "seat"),
        ("monitor", (2, 4), "top"),
        ("table_lamp", (0, 2), "top"),
        ("small_plant", (0, 2), "top"),
        ("small_box", (0, 2), "top"),
        ("bin", (1, 3), "beside"),
        ("box", (0, 4), "anywhere"),
        ("plant", (0, 2), "wall"),
        ("floor_lamp", (0, 1), "wall"),
        ("picture", (0, 3), "hang"),
    ),
    "dining room": (
        ("table", (1, 2), "center"),
        ("cabinet", (1, 3), "wall"),
        ("chair", (3, 8), "seat"),
        ("stool", (0, 3), "anywhere"),
        ("bookshelf", (0, 1), "wall"),
        ("small_plant", (0, 2), "top"),
        ("small_box", (0, 3), "top"),
        ("table_lamp", (0, 2), "top"),
        ("bin", (1, 2), "wall"),
        ("plant", (0, 2), "wall"),
        ("floor_lamp", (0, 1), "wall"),
        ("box", (0, 2), "anywhere"),
        ("picture", (1, 3), "hang"),
    ),
}
"""What rooms are used for, and what stands in them."""
