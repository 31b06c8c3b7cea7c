"""What stands beside a street and is no object to detect: plants, buildings, walls, poles.

Each maker draws another shape and returns its mesh; origin on the ground, metres.
"""

import numpy as np

from .materials import Material as M
from .shapes import Mesh, box, boxes, ellipsoid, leafy_box, leaves, merge, sheet, tube


def tree(rng: np.random.Generator) -> Mesh:
    """A trunk with branches and a crown of leaves."""
    tall = rng.uniform(3.5, 13)
    thick = rng.uniform(0.03, 0.07) + 0.012 * tall
    bare = min(rng.uniform(1.2, 3.2), 0.5 * tall)
    lean = rng.normal(0, 0.25, 2)
    fork = np.array([lean[0], lean[1], 0.6 * tall])
    parts = [tube((0, 0, -0.3), fork, (thick, thick * 0.6), M.BARK, 7)]
    wide = rng.uniform(0.2, 0.42) * tall
    middle = np.array([lean[0], lean[1], (tall + bare) / 2])
    for _ in range(rng.integers(2, 5)):
        end = middle + rng.normal(0, 0.45, 3) * (wide, wide, (tall - bare) / 2)
        parts.append(
            tube(fork * (1, 1, rng.uniform(0.5, 0.9)), end, (thick * 0.35, 0.02), M.BARK, 4)
        )
    lobes = rng.integers(2, 5)
    count = int(min(100 + 16 * wide * (tall - bare), 600) / lobes)
    for _ in range(lobes):
        shift = rng.normal(0, 0.3, 3) * (wide, wide, (tall - bare) / 2)
        radii = np.array([wide, wide, (tall - bare) / 2]) * rng.uniform(0.5, 0.85, 3)
        parts.append(leaves(rng, count, middle + shift, radii, rng.uniform(0.22, 0.42)))
    mesh = merge(parts)
    crown = np.hypot(*mesh.vertices[:, :2].T) > 2 * thick
    mesh.vertices[crown, 2] = np.maximum(mesh.vertices[crown, 2], rng.uniform(0.3, 0.9) * bare)
    return mesh


def conifer(rng: np.random.Generator) -> Mesh:
    """A tree with leaves from the ground to a point."""
    tall, wide = rng.uniform(2, 11), rng.uniform(0.6, 2.0)
    count = int(80 + 40 * tall * wide / 2)
    height = tall * (1 - np.sqrt(rng.random(count)))
    radius = wide * (1 - height / tall) * rng.random(count) ** 0.3
    angle = rng.uniform(0, 2 * np.pi, count)
    where = np.stack([radius * np.cos(angle), radius * np.sin(angle), height + 0.1], 1)
    crown = leaves(rng, count, (0, 0, 0), (1e-3, 1e-3, 1e-3), rng.uniform(0.2, 0.35))
    crown.vertices += np.repeat(where, 3, 0)
    return merge([tube((0, 0, -0.2), (0, 0, 0.8 * tall), (0.12, 0.03), M.BARK, 5), crown])


def bush(rng: np.random.Generator) -> Mesh:
    """A shrub of one to three tufts."""
    parts = []
    for _ in range(rng.integers(1, 4)):
        radii = rng.uniform(0.4, 1.5, 3) * (1, 1, 0.9)
        place = np.append(rng.normal(0, 0.5, 2), 0.7 * radii[2])
        count = int(50 + 90 * radii[0] * radii[1])
        parts.append(leaves(rng, count, place, radii, rng.uniform(0.16, 0.34)))
        parts.append(ellipsoid(place, radii * 0.55, M.LEAVES, 4, 6))
    return merge(parts)


def hedge(rng: np.random.Generator, length: float) -> Mesh:
    """A clipped or overgrown hedge along x."""
    tall, deep = rng.uniform(0.7, 2.6), rng.uniform(0.4, 1.3)
    count = int(min(32 * length * tall, 700))
    size = rng.uniform(0.15, 0.3)
    core = box((0, 0, tall * 0.45), (length, deep * 0.55, tall * 0.9), M.LEAVES)
    return merge([core, leafy_box(rng, count, (0, 0, tall / 2), (length, deep, tall), size)])


def thicket(rng: np.random.Generator, length: float) -> Mesh:
    """Untended growth along x: shrubs, tall grass, saplings."""
    parts = []
    tall = rng.uniform(0.4, 2.8)
    x = -length / 2
    while x < length / 2:
        radii = rng.uniform((0.6, 0.5, 0.5), (1.8, 1.5, 1.0)) * (1, 1, tall)
        place = np.array([x, rng.normal(0, 0.35), radii[2] * 0.75])
        count = int(min(40 + 110 * radii[0] * radii[2], 260))
        parts.append(leaves(rng, count, place, radii, rng.uniform(0.16, 0.36)))
        if rng.random() < 0.5:
            parts.append(ellipsoid(place * (1, 1, 0.6), radii * 0.5, M.LEAVES, 4, 6))
        x += radii[0] * rng.uniform(0.7, 1.6)
    return merge(parts)


def wall(rng: np.random.Generator, length: float) -> Mesh:
    """A garden wall along x, at times with posts."""
    tall, deep = rng.uniform(0.4, 2.3), rng.uniform(0.12, 0.4)
    parts = [box((0, 0, tall / 2 - 0.2), (length, deep, tall + 0.4), M.WALL)]
    if rng.random() < 0.4:
        xs = np.arange(-length / 2, length / 2 + 0.1, rng.uniform(2, 4))
        posts = np.stack([xs, 0 * xs, 0 * xs + tall / 2], 1)
        parts.append(boxes(posts, (0.35, deep + 0.12, tall + 0.25), M.WALL))
    return merge(parts)


def fence(rng: np.random.Generator, length: float) -> Mesh:
    """Pickets, wire or bars along x, on a low wall at times."""
    tall, foot = rng.uniform(0.8, 1.9), rng.uniform(0.2, 0.6) if rng.random() < 0.4 else 0.0
    xs = np.arange(-length / 2, length / 2 + 0.1, rng.uniform(1.8, 3))
    posts = boxes(np.stack([xs, 0 * xs, 0 * xs + tall / 2], 1), (0.09, 0.09, tall), M.METAL)
    net = np.zeros((2, 2, 3))
    net[:, :, 0] = np.array([-length / 2, length / 2])
    net[:, :, 2] = np.array([foot, tall])[:, None]
    solid = rng.random() < 0.25
    parts = [posts, sheet(net, M.BARK if solid else M.LATTICE)]
    if foot:
        parts.append(box((0, 0, foot / 2 - 0.2), (length, 0.25, foot + 0.4), M.WALL))
    return merge(parts)


def guard_rail(rng: np.random.Generator, length: float) -> Mesh:
    """A steel crash barrier along x."""
    tall = rng.uniform(0.55, 0.8)
    xs = np.arange(-length / 2, length / 2 + 0.1, rng.choice([2.0, 4.0]))
    posts = boxes(np.stack([xs, 0 * xs - 0.1, 0 * xs + tall / 2], 1), (0.1, 0.1, tall), M.METAL)
    return merge([posts, box((0, 0, tall - 0.16), (length, 0.08, 0.31), M.METAL)])


def pole(rng: np.random.Generator) -> Mesh:
    """A street lamp, traffic light, sign post or bare mast."""
    kind = rng.choice(4, p=[0.3, 0.15, 0.35, 0.2])
    if kind == 2:
        return _sign(rng)
    tall = rng.uniform(4, 9) if kind == 0 else rng.uniform(2.8, 7)
    radius = rng.uniform(0.05, 0.14)
    parts = [tube((0, 0, -0.2), (0, 0, tall), (radius, radius * 0.7), M.METAL, 7)]
    if kind == 0:
        reach = rng.uniform(0.3, 2.2)
        parts.append(tube((0, 0, tall), (reach, 0, tall + 0.3), (0.05, 0.04), M.METAL, 5))
        parts.append(box((reach + 0.2, 0, tall + 0.3), (0.6, 0.25, 0.15), M.PLASTIC))
    elif kind == 1:
        parts.append(box((0.15, 0, rng.uniform(2.2, 2.8)), (0.25, 0.3, 0.9), M.PLASTIC))
        if rng.random() < 0.4:
            parts.append(tube((0, 0, 5.2), (0, 4, 5.6), (0.07, 0.05), M.METAL, 5))
            parts.append(box((0, 4, 5.3), (0.25, 0.3, 0.9), M.PLASTIC))
    if rng.random() < 0.3:
        parts.append(box((0.12, 0, rng.uniform(0.5, 1.4)), (0.25, 0.35, 0.5), M.PLASTIC))
    return merge(parts)


def _sign(rng: np.random.Generator) -> Mesh:
    tall = rng.uniform(1.9, 3.2)
    post = tube((0, 0, -0.2), (0, 0, tall), (0.035, 0.035), M.METAL, 6)
    plates = []
    z = tall - 0.3
    for _ in range(rng.integers(1, 3)):
        wide, high = rng.uniform(0.35, 0.8), rng.uniform(0.25, 0.75)
        plates.append(box((0.04, 0, z), (0.03, wide, high), M.SIGN))
        z -= high + 0.1
    if rng.random() < 0.1:
        plates.append(
            box((0.04, 0, tall), (0.06, rng.uniform(1.5, 3), rng.uniform(0.8, 1.8)), M.SIGN)
        )
    return merge([post, *plates])


def bollard(rng: np.random.Generator) -> Mesh:
    """A post, hydrant or traffic cone."""
    tall, radius = rng.uniform(0.5, 1.1), rng.uniform(0.04, 0.14)
    tip = radius * (0.2 if rng.random() < 0.25 else 1.0)
    return tube((0, 0, -0.1), (0, 0, tall), (radius, tip), rng.choice([M.METAL, M.PLASTIC]), 7)


def furniture(rng: np.random.Generator) -> Mesh:
    """A bin, switch box, bench, skip, crate, planter or shelter, of a car's or person's size."""
    kind = rng.integers(7)
    if kind == 0:
        size = rng.uniform((0.45, 0.5, 0.9), (0.8, 1.4, 1.35))
        lid = box((0.04, 0, size[2]), (size[0] + 0.06, size[1] + 0.02, 0.07), M.PLASTIC)
        return merge([box((0, 0, size[2] / 2 + 0.05), size, M.PLASTIC), lid])
    if kind == 1:
        size = rng.uniform((0.3, 0.5, 0.7), (0.6, 1.8, 1.9))
        return box((0, 0, size[2] / 2 - 0.05), size, M.METAL)
    if kind == 2:
        back = box((-0.22, 0, 0.65), (0.06, 1.6, 0.45), M.BARK)
        legs = boxes(np.array([(0, 0.65, 0.2), (0, -0.65, 0.2)]), (0.4, 0.08, 0.4), M.METAL)
        return merge([back, legs, box((0, 0, 0.43), (0.45, 1.6, 0.06), M.BARK)])
    if kind == 3:
        size = rng.uniform((1.4, 2.5, 1.0), (2.0, 4.0, 1.7))
        side = boxes(
            np.array([(size[0] / 2, 0, size[2] / 2), (-size[0] / 2, 0, size[2] / 2)]),
            (0.06, size[1], size[2]),
            M.METAL,
        )
        ends = boxes(
            np.array([(0, size[1] / 2, size[2] / 2), (0, -size[1] / 2, size[2] / 2)]),
            (size[0], 0.06, size[2] * rng.uniform(0.5, 1)),
            M.METAL,
        )
        return merge([side, ends, box((0, 0, 0.3), (size[0], size[1], 0.3), M.BARK)])
    if kind == 4:
        size = rng.uniform((0.4, 0.4, 0.4), (1.6, 2.4, 1.6))
        return box((0, 0, size[2] / 2), size, rng.choice([M.BARK, M.PLASTIC, M.WALL]))
    if kind == 5:
        size = rng.uniform((0.6, 0.6, 0.4), (1.2, 2.5, 0.7))
        plant = leafy_box(rng, 50, (0, 0, size[2] + 0.3), (size[0], size[1], 0.6), 0.2)
        return merge([box((0, 0, size[2] / 2), size, M.WALL), plant])
    return _shelter(rng)


def _shelter(rng: np.random.Generator) -> Mesh:
    wide, deep, tall = rng.uniform(2.5, 4.5), rng.uniform(1.1, 1.6), rng.uniform(2.2, 2.6)
    glass = box((-deep / 2, 0, tall / 2 + 0.1), (0.03, wide, tall - 0.3), M.GLASS)
    posts = np.array(
        [(x, y, tall / 2) for x in (-deep / 2, deep / 2) for y in (-wide / 2, wide / 2)]
    )
    roof = box((0, 0, tall), (deep, wide, 0.1), M.METAL)
    return merge([glass, roof, boxes(posts, (0.07, 0.07, tall), M.METAL)])


def trailer(rng: np.random.Generator) -> Mesh:
    """A parked trailer, caravan, container or shed: as big as a car and none."""
    length, width, tall = rng.uniform((1.8, 1.3, 0.9), (5.5, 2.2, 2.5))
    if rng.random() < 0.4:
        return box((0, 0, tall / 2), (length, width, tall), rng.choice([M.METAL, M.BARK, M.WALL]))
    floor = rng.uniform(0.3, 0.6)
    body = box((0, 0, (floor + tall) / 2), (length, width, tall - floor), M.PAINT)
    if tall < 1.4:
        sides = np.array([(0, width / 2, 0), (0, -width / 2, 0)]) + np.array([0, 0, floor + 0.2])
        ends = np.array([(length / 2, 0, 0), (-length / 2, 0, 0)]) + np.array([0, 0, floor + 0.2])
        body = merge(
            [
                box((0, 0, floor), (length, width, 0.08), M.METAL),
                boxes(sides, (length, 0.05, 0.4), M.METAL),
                boxes(ends, (0.05, width, 0.4), M.METAL),
            ]
        )
    radius = 0.3
    wheels = [
        tube(
            (0, s * width / 2, radius),
            (0, s * (width / 2 - 0.2), radius),
            (radius, radius),
            M.RUBBER,
            8,
        )
        for s in (1, -1)
    ]
    bar = tube((length / 2, 0, 0.45), (length / 2 + 1.1, 0, 0.45), (0.05, 0.05), M.METAL, 4)
    return merge([body, bar, *wheels])


def scooter(rng: np.random.Generator) -> Mesh:
    """A parked scooter or motorcycle."""
    tall, wheel = rng.uniform(0.75, 0.95), rng.uniform(0.24, 0.33)
    parts = [
        ellipsoid((-0.25, 0, tall * 0.72), (0.45, 0.17, 0.22), M.PAINT, 4, 7),
        ellipsoid((0.05, 0, tall * 0.5), (0.45, 0.14, 0.2), M.METAL, 4, 7),
        tube((0.62, 0, wheel), (0.42, 0, tall + 0.15), (0.05, 0.05), M.METAL, 5),
        tube((0.42, -0.33, tall + 0.15), (0.42, 0.33, tall + 0.15), (0.025, 0.025), M.METAL, 4),
    ]
    for x in (0.64, -0.6):
        parts.append(tube((x, 0.06, wheel), (x, -0.06, wheel), (wheel, wheel), M.RUBBER, 8))
    return merge(parts)


def heap(rng: np.random.Generator) -> Mesh:
    """A heap of earth, stones or leaves."""
    radii = rng.uniform((0.6, 0.5, 0.3), (2.6, 1.8, 1.5))
    mesh = ellipsoid((0, 0, 0), radii, rng.choice([M.GRASS, M.WALL, M.BARK]), 7, 9)
    mesh.vertices *= rng.uniform(0.8, 1.15, (len(mesh.vertices), 1))
    return mesh


def building(rng: np.random.Generator, length: float, depth: float) -> Mesh:
    """A house ``length`` along x, its front at y = 0 and its back at y = ``depth``.

    The front has windows, at times a porch, balconies and steps; the roof is flat or gabled.
    """
    floors = rng.integers(1, 5) if depth < 14 else rng.integers(2, 8)
    storey = rng.uniform(2.6, 3.4)
    tall = floors * storey + rng.uniform(0.2, 1.2)
    body = box((0, depth / 2 + 0.1, tall / 2 - 0.5), (length, depth - 0.2, tall + 1), M.WALL)
    parts = [body, _facade(rng, length, floors, storey, tall)]
    if rng.random() < 0.6:
        parts.append(_gable(length, depth, tall, rng.uniform(1.5, 4)))
    if rng.random() < 0.3:
        size = rng.uniform((1.5, 0.8, 2.3), (4, 2.5, 3.2))
        x = rng.uniform(-0.5, 0.5) * max(length - size[0], 0)
        parts.append(box((x, -size[1] / 2, size[2] / 2), size, M.WALL))
    if rng.random() < 0.25 and floors > 1:
        count = rng.integers(1, 4)
        xs = np.linspace(-0.35, 0.35, count) * length
        zs = storey * rng.integers(1, floors, count)
        centers = np.stack([xs, 0 * xs - 0.6, zs + 0.5], 1)
        parts.append(boxes(centers, (2.2, 1.2, 1.0), M.WALL))
    if rng.random() < 0.4:
        x = rng.uniform(-0.4, 0.4) * length
        parts.append(boxes(np.array([(x, -0.5, 0.12), (x, -0.3, 0.3)]), (1.6, 1.0, 0.25), M.WALL))
    return merge(parts)


def garage(rng: np.random.Generator, length: float, depth: float) -> Mesh:
    """Low garages or sheds, flat-roofed, with doors set back; placed as ``building``."""
    tall = rng.uniform(2.2, 3.2)
    doors = max(1, int(length / 3))
    pitch, back = length / doors, rng.uniform(0.1, 0.4)
    wide, high = pitch * rng.uniform(0.65, 0.85), tall * rng.uniform(0.7, 0.85)
    centers = (np.arange(doors) + 0.5) * pitch - length / 2
    posts = np.concatenate([[-length / 2], centers + pitch / 2])
    post = np.stack([posts, 0 * posts + back / 2, 0 * posts + tall / 2], 1)
    eave = rng.uniform(0, 0.6)
    return merge(
        [
            box((0, back + (depth - back) / 2, tall / 2), (length, depth - back, tall), M.WALL),
            boxes(post, (pitch - wide, back, tall), M.WALL),
            box((0, back / 2, (high + tall) / 2), (length, back, tall - high), M.WALL),
            box((0, (depth - eave) / 2, tall + 0.1), (length, depth + eave, 0.2), M.WALL),
        ]
    )


def _facade(rng, length: float, floors: int, storey: float, tall: float) -> Mesh:
    """A wall of quads; those of the windows lie deeper and are of glass."""
    columns = max(1, int(length / rng.uniform(1.8, 3.5)))
    pitch = length / columns
    wide, high = pitch * rng.uniform(0.35, 0.6), storey * rng.uniform(0.4, 0.6)
    centers = (np.arange(columns) + 0.5) * pitch - length / 2
    xs = np.sort(
        np.concatenate([[-length / 2, length / 2], centers - wide / 2, centers + wide / 2])
    )
    foots = np.arange(floors) * storey + storey * 0.33
    zs = np.sort(np.concatenate([[-1, tall], foots, foots + high]))
    net = np.zeros((len(zs), len(xs), 3))
    net[..., 0], net[..., 2] = xs, zs[:, None]
    skin = np.full((len(zs) - 1, len(xs) - 1), M.WALL, np.uint8)
    skin[1::2, 1::2] = M.WINDOW
    return sheet(net, skin)


def _gable(length: float, depth: float, tall: float, rise: float) -> Mesh:
    eave = 0.4
    ys = np.array([-eave, depth / 2, depth + eave])
    net = np.zeros((3, 2, 3))
    net[..., 0] = np.array([-length / 2 - 0.2, length / 2 + 0.2])
    net[..., 1] = ys[:, None]
    net[..., 2] = np.array([tall, tall + rise, tall])[:, None]
    return sheet(net, M.WALL)
