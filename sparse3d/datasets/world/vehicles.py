"""Parametric cars, vans, trucks and buses. Each call of a maker draws another shape.

A maker returns the mesh and its size (length, width, height) in metres as an annotator gives it:
bumper to bumper, body without mirrors, ground to roof.
"""

from dataclasses import dataclass

import numpy as np

from .materials import Material as M
from .shapes import Mesh, box, boxes, disc, fitted, merge, sheet, tube


@dataclass(frozen=True)
class Style:
    """Ranges (low, high) of one body style. Places are shares of the length, from the front.

    Attributes:
        length, width, height: metres.
        cowl: foot of the windscreen. screen: its run. roof_end: where the roof stops.
        rear: run of the rear window. tail: height of the tail end, share of the height.
        nose: height of the bonnet's front edge. belt: that of the window sill; shares too.
        clearance: height of the underside, metres.
    """

    length: tuple[float, float]
    width: tuple[float, float]
    height: tuple[float, float]
    cowl: tuple[float, float]
    screen: tuple[float, float]
    roof_end: tuple[float, float]
    rear: tuple[float, float]
    tail: tuple[float, float]
    nose: tuple[float, float] = (0.42, 0.52)
    belt: tuple[float, float] = (0.58, 0.66)
    clearance: tuple[float, float] = (0.14, 0.22)


STYLES = {
    "small": Style(
        (3.2, 3.8), (1.45, 1.66), (1.36, 1.58), (0.19, 0.25), (0.14, 0.22), (0.84, 0.92),
        (0.06, 0.12), (0.52, 0.66),
    ),
    "hatchback": Style(
        (3.7, 4.4), (1.55, 1.8), (1.38, 1.55), (0.23, 0.29), (0.14, 0.20), (0.80, 0.90),
        (0.07, 0.14), (0.52, 0.66),
    ),
    "sedan": Style(
        (4.1, 5.0), (1.6, 1.88), (1.36, 1.5), (0.25, 0.31), (0.13, 0.18), (0.68, 0.75),
        (0.10, 0.16), (0.56, 0.68),
    ),
    "estate": Style(
        (4.2, 4.95), (1.6, 1.86), (1.40, 1.56), (0.24, 0.30), (0.13, 0.18), (0.88, 0.94),
        (0.04, 0.08), (0.52, 0.64),
    ),
    "mpv": Style(
        (3.8, 4.8), (1.6, 1.86), (1.55, 1.82), (0.15, 0.22), (0.16, 0.24), (0.87, 0.94),
        (0.04, 0.09), (0.50, 0.62), (0.42, 0.52), (0.54, 0.62),
    ),
    "suv": Style(
        (4.0, 4.9), (1.7, 1.95), (1.58, 1.86), (0.23, 0.29), (0.11, 0.17), (0.86, 0.94),
        (0.04, 0.10), (0.50, 0.62), (0.48, 0.58), (0.58, 0.66), (0.2, 0.3),
    ),
    "coupe": Style(
        (3.8, 4.7), (1.6, 1.85), (1.24, 1.40), (0.29, 0.36), (0.13, 0.18), (0.66, 0.74),
        (0.14, 0.22), (0.58, 0.70), (0.42, 0.52), (0.60, 0.68), (0.11, 0.16),
    ),
    "van": Style(
        (4.4, 5.9), (1.75, 2.1), (1.85, 2.6), (0.10, 0.16), (0.10, 0.15), (0.95, 0.975),
        (0.01, 0.02), (0.45, 0.60), (0.38, 0.48), (0.50, 0.58), (0.18, 0.28),
    ),
}  # fmt: skip

CAR_STYLES = ("small", "hatchback", "sedan", "estate", "mpv", "suv", "coupe")
CAR_SHARES = np.array([0.17, 0.30, 0.15, 0.15, 0.10, 0.09, 0.04])


@dataclass(frozen=True)
class Body:
    """One car, drawn from a style; the same names, numbers instead of ranges."""

    length: float
    width: float
    height: float
    cowl: float
    screen: float
    roof_end: float
    rear: float
    tail: float
    nose: float
    belt: float
    clearance: float
    wheel: float
    front_axle: float
    rear_axle: float

    @classmethod
    def draw(cls, rng: np.random.Generator, style: Style) -> "Body":
        values = {name: rng.uniform(*getattr(style, name)) for name in Style.__dataclass_fields__}
        wheel = rng.uniform(0.275, 0.345) * (1.08 if style.clearance[0] >= 0.2 else 1.0)
        overhang = rng.uniform(0.17, 0.21), rng.uniform(0.80, 0.85)
        return cls(**values, wheel=wheel, front_axle=overhang[0], rear_axle=overhang[1])

    def top(self, u: np.ndarray) -> np.ndarray:
        """Height of the silhouette at ``u``, share of the length from the front."""
        end = min(self.roof_end + self.rear, 0.985)
        roof = self.cowl + self.screen
        places = [
            (0.0, self.nose - 0.06),
            (0.012, self.nose),
            (0.05, self.nose + 0.04),
            (self.cowl, self.belt + 0.01),
            (roof, 0.955),
            (0.6 * roof + 0.4 * self.roof_end, 1.0),
            (self.roof_end, 0.965),
            (end, self.belt + 0.05),
            (0.99, max(self.tail, self.belt - 0.02)),
            (1.0, self.tail),
        ]
        xs, zs = np.array(places).T
        return np.interp(u, xs, zs) * self.height

    def stations(self) -> np.ndarray:
        """[S] places along the car where the net has a rib."""
        radius = self.wheel * 1.16 / self.length
        arch = np.array([-1.02, -1.0, -0.72, 0, 0.72, 1.0, 1.02]) * radius
        end = min(self.roof_end + self.rear, 0.985)
        roof = self.cowl + self.screen
        pillar = 0.5 * roof + 0.5 * self.roof_end
        fixed = [0, 0.012, 0.05, self.cowl, (self.cowl + roof) / 2, roof, pillar - 0.012]
        fixed += [pillar + 0.012, self.roof_end, end, 0.99, 1]
        return np.unique(np.concatenate([fixed, self.front_axle + arch, self.rear_axle + arch]))

    def sill(self, u: np.ndarray) -> np.ndarray:
        """Height of the body's lower edge: the underside, raised over the wheels."""
        reach = self.wheel * 1.16
        edge = np.full(len(u), self.clearance)
        for axle in (self.front_axle, self.rear_axle):
            along = (u - axle) * self.length
            inside = np.abs(along) <= reach * 1.001
            arch = self.wheel + np.sqrt(np.maximum(reach**2 - along**2, 0))
            edge = np.where(inside, np.maximum(edge, arch), edge)
        return edge

    def half_width(self, u: np.ndarray) -> np.ndarray:
        """Half the width at the waist: rounded towards front and rear."""
        front = np.clip(1 - u / 0.13, 0, 1) ** 2 * 0.20
        rear = np.clip(1 - (1 - u) / 0.10, 0, 1) ** 2 * 0.12
        return self.width / 2 * (1 - front - rear)


def _shell(body: Body, panel_rear: bool, tumble: float) -> Mesh:
    """The car's skin: ribs across, joined along, painted or glazed quad by quad."""
    u = body.stations()
    top, sill, half = body.top(u), body.sill(u), body.half_width(u)
    belt = np.minimum((body.belt + 0.04 * u) * body.height, top - 0.015)
    rise = np.clip((top - belt) / (body.height * (1 - body.belt)), 0, 1)
    roof_half = half * (0.95 - tumble * rise)
    waist = np.maximum(0.40 * body.height, np.minimum(sill + 0.05, belt - 0.02))
    waist = np.minimum(waist, belt - 0.005)
    low = np.minimum(sill + 0.05, waist - 0.003)
    zero = np.zeros(len(u))
    y = [zero, 0.8 * half, 0.97 * half, half, 0.985 * half, roof_half, 0.6 * roof_half, zero]
    z = [sill, sill, low, waist, belt, top - 0.045 * rise - 0.008, top - 0.01 * rise, top]
    y, z = np.stack(y, 1), np.stack(z, 1)
    x = np.repeat((0.5 - u)[:, None] * body.length, 16, 1)
    net = np.stack([x, np.hstack([y, -y[:, ::-1]]), np.hstack([z, z[:, ::-1]])], -1)
    caps = net[[0, -1]] * (1, 0, 1)
    net = np.concatenate([caps[:1], net, caps[1:]])
    return sheet(net, _skin(body, u, panel_rear))


def _skin(body: Body, u: np.ndarray, panel_rear: bool) -> np.ndarray:
    """[S + 1, 15] material of each quad of the shell, its two caps included."""
    middle = (u[1:] + u[:-1]) / 2
    roof = body.cowl + body.screen
    end = min(body.roof_end + body.rear, 0.985)
    pillar = 0.5 * roof + 0.5 * body.roof_end
    last_window = pillar if panel_rear else body.roof_end + 0.3 * body.rear
    side = (middle > body.cowl + 0.35 * body.screen) & (middle < last_window)
    side &= np.abs(middle - pillar) > 0.01
    screen = (middle > body.cowl) & (middle < roof)
    screen |= (middle > body.roof_end) & (middle < end) & (not panel_rear)
    skin = np.full((len(u) + 1, 15), M.PAINT, np.uint8)
    skin[1:-1, 4] = np.where(side, M.GLASS, M.PAINT)
    skin[1:-1, 5] = np.where(screen, M.GLASS, M.PAINT)
    skin[1:-1, 6] = skin[1:-1, 5]
    skin[:, 0] = M.PLASTIC
    skin[:, 8:] = skin[:, 6::-1]
    return skin


def _unit_wheel() -> Mesh:
    """A wheel of radius 1 and width 1, its outer side at y = 0 and its inner side at y = -1."""
    tyre = tube((0, 0, 0), (0, -1, 0), (1, 1), M.RUBBER, 8)
    return merge([tyre, disc((0, 0.04, 0), 0.62, 1, M.RIM, 8)])


_WHEEL = _unit_wheel()


def _wheels(length_places: list[float], half: float, radius: float, width: float) -> Mesh:
    """A pair of wheels at each of the places along the vehicle."""
    parts = []
    for x in length_places:
        for side in (1, -1):
            vertices = _WHEEL.vertices * (radius, side * width, radius)
            place = np.array([x, side * (half - 0.03), radius])
            parts.append(Mesh(vertices + place, _WHEEL.faces, _WHEEL.material))
    return merge(parts)


def _cabin(rng: np.random.Generator, body: Body, driver: bool) -> Mesh:
    """What a ray meets behind the glass: dashboard, seats, sometimes people."""
    length, floor, sill = body.length, body.clearance + 0.08, body.belt * body.height
    front = (0.5 - body.cowl - body.screen * 0.9) * length - 0.35
    back = max(front - rng.uniform(0.8, 1.0), (0.5 - body.rear_axle) * length - 0.1)
    inner = body.width / 2 - 0.18
    seat = sill + 0.05 - floor
    centers = [
        ((0.5 - body.cowl - 0.05) * length, 0, (floor + sill) / 2),
        (front, inner / 2, floor + seat / 2),
        (front, -inner / 2, floor + seat / 2),
        (back, 0, floor + seat / 2),
        (front - 0.05, inner / 2, floor + seat + 0.12),
        (front - 0.05, -inner / 2, floor + seat + 0.12),
    ]
    sizes = [
        (0.35, 2 * inner, sill - floor),
        (0.16, 0.46, seat),
        (0.16, 0.46, seat),
        (0.16, 2 * inner, seat),
        (0.08, 0.24, 0.2),
        (0.08, 0.24, 0.2),
    ]
    parts = [boxes(np.array(centers), np.array(sizes), M.INTERIOR)]
    if driver:
        head = min(sill + 0.36, body.height - 0.2)
        parts.append(box((front + 0.16, inner / 2, sill), (0.24, 0.42, 0.5), M.CLOTH))
        parts.append(box((front + 0.14, inner / 2, head), (0.19, 0.16, 0.22), M.SKIN))
    return merge(parts)


def _trim(rng: np.random.Generator, body: Body) -> Mesh:
    """Mirrors, number plates and lamps."""
    half, front, rear = body.width / 2, body.length / 2, -body.length / 2
    mirror_x = (0.5 - body.cowl - 0.25 * body.screen) * body.length
    mirror_z = body.belt * body.height + 0.06
    out = rng.uniform(0.05, 0.13)
    plates = rng.uniform(0.32, 0.5), rng.uniform(0.4, 0.85)
    lamp = body.nose * body.height - 0.06
    tail = np.clip(body.tail * body.height - 0.08, 0.5, 1.1)
    return merge(
        [
            boxes(
                np.array([(mirror_x, s * (half + out - 0.04), mirror_z) for s in (1, -1)]),
                (0.12, 0.18, 0.13),
                M.PAINT,
            ),
            boxes(
                np.array([(front - 0.004, 0, plates[0]), (rear + 0.004, 0, plates[1])]),
                (0.02, 0.5, 0.11),
                M.SIGN,
            ),
            boxes(
                np.array([(front - 0.06, s * (half * 0.68), lamp) for s in (1, -1)]),
                (0.10, 0.3, 0.12),
                M.LAMP,
            ),
            boxes(
                np.array([(rear + 0.03, s * (half * 0.76), tail) for s in (1, -1)]),
                (0.06, 0.2, 0.14),
                M.LAMP,
            ),
        ]
    )


def _passenger(rng: np.random.Generator, style: Style, panel_rear: bool) -> tuple[Mesh, np.ndarray]:
    body = Body.draw(rng, style)
    shell = _shell(body, panel_rear, rng.uniform(0.10, 0.22))
    places = [(0.5 - axle) * body.length for axle in (body.front_axle, body.rear_axle)]
    mesh = merge(
        [
            shell,
            _wheels(places, body.width / 2, body.wheel, 0.2),
            _cabin(rng, body, driver=rng.random() < 0.3),
            _trim(rng, body),
        ]
    )
    return mesh, np.array([body.length, body.width, body.height])


def car(rng: np.random.Generator) -> tuple[Mesh, np.ndarray]:
    """A passenger car of any style."""
    name = CAR_STYLES[rng.choice(len(CAR_STYLES), p=CAR_SHARES)]
    return _passenger(rng, STYLES[name], panel_rear=rng.random() < 0.05)


def van(rng: np.random.Generator) -> tuple[Mesh, np.ndarray]:
    """A delivery van or minibus."""
    return _passenger(rng, STYLES["van"], panel_rear=rng.random() < 0.6)


def _slab(x: tuple[float, float], width: float, z: tuple[float, float], skin: np.ndarray) -> Mesh:
    """A box as a net around its z axis' sides: ``skin`` [R, 4] materials by height, per side."""
    heights = np.linspace(z[0], z[1], len(skin) - 1)
    half = width / 2
    around = np.array([(x[1], half), (x[0], half), (x[0], -half), (x[1], -half), (x[1], half)])
    net = np.concatenate([np.tile(around, (len(heights), 1, 1)), np.zeros((len(heights), 5, 1))], 2)
    net[..., 2] = heights[:, None]
    middle = np.array([(x[0] + x[1]) / 2, 0, 0])
    lid = np.broadcast_to(middle, (5, 3)) + np.array([0, 0, 1.0]) * heights[-1]
    floor = np.broadcast_to(middle, (5, 3)) + np.array([0, 0, 1.0]) * heights[0]
    return sheet(np.concatenate([floor[None], net, lid[None]]), skin)


def truck(rng: np.random.Generator) -> tuple[Mesh, np.ndarray]:
    """A lorry: cab and box, tarpaulin, tank or flat bed, sometimes with a trailer's length."""
    length = rng.uniform(5.8, 9.5) if rng.random() < 0.65 else rng.uniform(10, 16)
    width, height = rng.uniform(2.1, 2.6), rng.uniform(2.5, 3.9)
    cab_height = min(height, rng.uniform(2.3, 3.4))
    cab, gap, bed = rng.uniform(1.6, 2.3), rng.uniform(0.1, 0.5), rng.uniform(0.9, 1.25)
    front, wheel = length / 2, rng.uniform(0.42, 0.52)
    skin = np.full((6, 4), M.PAINT, np.uint8)
    skin[3, [0, 1, 3]] = M.GLASS
    skin[3, 2] = M.PAINT
    parts = [_slab((front - cab, front), width * 0.97, (0.45, cab_height), skin)]
    load_end, load = -front, front - cab - gap
    kind = rng.choice(4, p=[0.55, 0.2, 0.1, 0.15])
    if kind <= 1:
        parts.append(
            box(
                ((load + load_end) / 2, 0, (bed + height) / 2),
                (load - load_end, width, height - bed),
                M.PAINT if kind == 0 else M.PLASTIC,
            )
        )
    elif kind == 2:
        radius = min(width, height - bed) / 2
        parts.append(
            tube(
                (load, 0, bed + radius), (load_end, 0, bed + radius), (radius, radius), M.METAL, 12
            )
        )
        parts.append(
            box((front - cab / 2, 0, height - 0.2), (cab * 0.9, width * 0.9, 0.4), M.PAINT)
        )
    else:
        parts.append(
            box(((load + load_end) / 2, 0, bed + 0.2), (load - load_end, width, 0.6), M.METAL)
        )
        parts.append(
            box((front - cab - 0.1, 0, (bed + height) / 2), (0.1, width, height - bed), M.METAL)
        )
    parts.append(box((-gap, 0, bed - 0.25), (length * 0.94, 0.9, 0.3), M.METAL))
    axles = [front - cab * 0.55, load_end + 1.2] + ([load_end + 2.5] if length > 8 else [])
    parts.append(_wheels(axles, width / 2, wheel, 0.3))
    parts.append(box((load_end + 0.05, 0, 0.55), (0.1, width * 0.9, 0.15), M.METAL))
    return fitted(merge(parts))


def bus(rng: np.random.Generator) -> tuple[Mesh, np.ndarray]:
    """A city bus or coach."""
    length, width, height = rng.uniform(8.5, 13.5), rng.uniform(2.3, 2.6), rng.uniform(2.8, 3.5)
    skin = np.full((6, 4), M.PAINT, np.uint8)
    skin[2:4] = M.GLASS
    skin[2, 1:] = M.PAINT
    shell = _slab((-length / 2, length / 2), width, (0.3, height), skin)
    seats = np.arange(-length / 2 + 1.2, length / 2 - 1.5, 1.1)
    centers = np.stack([seats, 0 * seats, 0 * seats + 1.15], 1)
    wheels = _wheels([length / 2 - 2.4, -length / 2 + 2.8], width / 2, 0.48, 0.3)
    inside = boxes(centers, (0.15, width * 0.8, 1.1), M.INTERIOR)
    return fitted(merge([shell, wheels, inside]))
