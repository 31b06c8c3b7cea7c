"""Spinning laser scanners over a street: where the beams go, what comes back.

Points are in the scanner's frame: x forward, y left, z up, metres.
"""

from dataclasses import dataclass, replace

import numpy as np

from .materials import Material, table


@dataclass(frozen=True)
class Sensor:
    """A spinning scanner.

    Attributes:
        elevations: degrees of each beam, from the top.
        rise: metres of each beam's origin above the frame's origin.
        azimuth_step: degrees between firings.
        fov: degrees of azimuth about +x that are scanned.
        height: range (low, high) of the height above the ground, metres.
        nearest, farthest: metres.
        noise: range (low, high) of the standard deviation of the range, metres.
        wobble: standard deviation of each beam's elevation from the design, degrees.
        roof: the carrying car's roof, which stops beams: its reach forward, backward and to
            each side, and how deep it lies below the frame's origin, metres.
        gain: range (low, high) of a factor on the intensity.
    """

    elevations: tuple[float, ...]
    rise: tuple[float, ...]
    azimuth_step: float
    fov: float
    height: tuple[float, float]
    nearest: float
    farthest: float
    noise: tuple[float, float]
    wobble: float
    roof: tuple[float, float, float, float]
    gain: tuple[float, float]


# Velodyne HDL-64E: two blocks of 32 lasers, one above the other, 1/3 and 1/2 degree apart.
_HDL64 = Sensor(
    elevations=(*np.linspace(1.95, -8.7, 32).tolist(), *np.linspace(-9.0, -25.0, 32).tolist()),
    rise=(0.203,) * 32 + (0.121,) * 32,
    azimuth_step=0.1728,
    fov=360.0,
    height=(1.60, 1.90),
    nearest=1.5,
    farthest=80.0,
    noise=(0.008, 0.025),
    wobble=0.06,
    roof=(0.8, 1.6, 0.5, 0.21),
    gain=(0.85, 1.15),
)
# Two Velodyne VLP-32C, one above the other and upside down: beams densest about the horizon.
_VLP32 = (15, 10.333, 7, 4.667, 3.333, 2.333, 1.667, 1.333, 1, 0.667, 0.333, 0, -0.333, -0.667)
_VLP32 += (-1, -1.333, -1.667, -2, -2.333, -2.667, -3, -3.333, -3.667, -4, -4.667, -5.333)
_VLP32 += (-6.148, -7.254, -8.843, -11.31, -15.639, -25)
_DOUBLE32 = Sensor(
    elevations=(*_VLP32, *(-angle for angle in _VLP32)),
    rise=(0.0,) * 32 + (0.18,) * 32,
    azimuth_step=0.2,
    fov=360.0,
    height=(1.6, 2.1),
    nearest=1.5,
    farthest=100.0,
    noise=(0.005, 0.03),
    wobble=0.1,
    roof=(0.9, 1.6, 0.6, 0.25),
    gain=(0.3, 1.0),
)
SENSORS = {
    "hdl64": _HDL64,
    "double32": _DOUBLE32,
    "hdl64_front": replace(_HDL64, fov=90.0),
    "hdl32": Sensor(
        elevations=tuple(np.linspace(10.67, -30.67, 32).tolist()),
        rise=(0.0,) * 32,
        azimuth_step=0.3318,
        fov=360.0,
        height=(1.75, 1.95),
        nearest=1.0,
        farthest=100.0,
        noise=(0.01, 0.03),
        wobble=0.03,
        roof=(0.7, 1.4, 0.6, 0.28),
        gain=(0.2, 0.6),
    ),
}
"""hdl64: KITTI's scanner; hdl64_front: the quarter that KITTI's camera sees; hdl32: nuScenes';
double32: two stacked ones as Argoverse 2 has them."""


def beams(sensor: Sensor, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Origins and unit directions [R, 3] of one turn, beam after beam."""
    step = sensor.azimuth_step * rng.uniform(0.97, 1.05)
    columns = int(sensor.fov / step)
    phase = rng.random(len(sensor.elevations))[:, None]
    azimuth = np.radians((np.arange(columns) + phase) * step - sensor.fov / 2)
    elevation = np.asarray(sensor.elevations)
    elevation = np.radians(elevation + rng.normal(0, sensor.wobble, len(elevation)))[:, None]
    elevation = elevation + rng.normal(0, 0.0002, azimuth.shape)
    flat = np.cos(elevation)
    direction = np.stack(
        [flat * np.cos(azimuth), flat * np.sin(azimuth), np.sin(elevation) + 0 * azimuth], -1
    )
    origin = np.zeros_like(direction)
    origin[..., 2] = np.asarray(sensor.rise)[:, None]
    return origin.reshape(-1, 3), direction.reshape(-1, 3)


def meets_roof(sensor: Sensor, origin: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """Mask [R] of the beams that end on the roof of the car that carries the scanner."""
    forward, backward, aside, below = sensor.roof
    down = np.maximum(-direction[:, 2], 1e-6)
    x, y = (direction[:, :2] * ((origin[:, 2] + below) / down)[:, None]).T
    return (x < forward) & (x > -backward) & (np.abs(y) < aside)


@dataclass
class Echoes:
    """What came back: [P, 4] points with intensity, and [P] the face that was hit."""

    points: np.ndarray
    faces: np.ndarray


def scan(
    sensor: Sensor,
    rng: np.random.Generator,
    vertices: np.ndarray,
    faces: np.ndarray,
    material: np.ndarray,
    owner: np.ndarray,
    rays: tuple[np.ndarray, np.ndarray] | None = None,
) -> Echoes:
    """One turn of the scanner over a mesh.

    Args:
        sensor: the scanner, at the origin.
        rng: draws noise, losses and reflectances.
        vertices: [V, 3] in the scanner's frame.
        faces: [F, 3].
        material: [F].
        owner: [F] which thing a face belongs to; a thing has one reflectance per material.
        rays: origins and directions of the beams, as ``beams`` gives them; drawn anew if None.
    """
    origin, direction = beams(sensor, rng) if rays is None else rays
    clear = ~meets_roof(sensor, origin, direction)
    origin, direction = origin[clear], direction[clear]
    passing = table("through")[material] * _by_thing(rng, owner)
    depth, face, cosine = _cast(rng, origin, direction, vertices, faces, passing)
    depth = _veiled(rng, depth)
    hit = face >= 0
    depth, face, cosine = depth[hit], face[hit], cosine[hit]
    origin, direction = origin[hit], direction[hit]
    kind = material[face]
    reflectance = _reflectances(rng, owner)[owner[face], kind]
    lost = table("lost")[kind] * _by_thing(rng, owner)[face]
    kept = _returned(rng, kind, lost, reflectance, cosine, depth / sensor.farthest)
    kept &= (depth > sensor.nearest) & (depth < sensor.farthest)
    depth, face, cosine = depth[kept], face[kept], cosine[kept]
    kind, reflectance = kind[kept], reflectance[kept]
    sigma = rng.uniform(*sensor.noise) + table("rough")[kind]
    depth = depth + rng.normal(0, 1, len(depth)) * sigma
    points = origin[kept] + direction[kept] * depth[:, None]
    intensity = reflectance * (1 - table("gloss")[kind] * (1 - cosine))
    intensity = intensity + rng.normal(0, 1, len(depth)) * table("noise")[kind]
    intensity = np.clip(intensity * rng.uniform(*sensor.gain), 0, 1)
    points = np.concatenate([np.round(points, 3), np.round(intensity, 2)[:, None]], 1)
    return Echoes(points.astype(np.float32), face)


def _cast(rng, origin, direction, vertices, faces, through, passes: int = 4):
    """Depth, face (-1: none) and |cos| of incidence where each ray ends, some surfaces passed."""
    import open3d as o3d

    scene = o3d.t.geometry.RaycastingScene(nthreads=1)
    scene.add_triangles(
        o3d.core.Tensor(np.ascontiguousarray(vertices, np.float32)),
        o3d.core.Tensor(np.ascontiguousarray(faces, np.uint32)),
    )
    depth = np.full(len(origin), np.inf)
    face = np.full(len(origin), -1)
    cosine = np.ones(len(origin))
    travelled = np.zeros(len(origin))
    rows = np.arange(len(origin))
    for _ in range(passes):
        start = origin[rows] + direction[rows] * travelled[rows, None]
        rays = np.concatenate([start, direction[rows]], 1).astype(np.float32)
        answer = scene.cast_rays(o3d.core.Tensor(rays), nthreads=1)
        reached = answer["t_hit"].numpy()
        hit = np.isfinite(reached)
        rows, reached = rows[hit], reached[hit]
        index = answer["primitive_ids"].numpy()[hit].astype(np.int64)
        normal = answer["primitive_normals"].numpy()[hit]
        passing = rng.random(len(rows)) < through[index]
        stop = rows[~passing]
        depth[stop] = travelled[stop] + reached[~passing]
        face[stop] = index[~passing]
        cosine[stop] = np.abs((normal[~passing] * direction[stop]).sum(1))
        rows = rows[passing]
        if not len(rows):
            break
        travelled[rows] += reached[passing] + 0.01
    return depth, face, cosine


def _veiled(rng: np.random.Generator, depth: np.ndarray) -> np.ndarray:
    """Some rays on an edge meet two surfaces, and their range lies in between; few meet dust."""
    step = np.zeros_like(depth)
    with np.errstate(invalid="ignore"):
        step[:-1] = depth[1:] - depth[:-1]
    edge = (np.abs(step) > 0.3) & (np.abs(step) < 4) & (rng.random(len(depth)) < 0.12)
    depth = depth + np.where(edge, np.nan_to_num(step, posinf=0, neginf=0), 0) * rng.random(
        len(depth)
    )
    dust = rng.random(len(depth)) < rng.choice([0, 0.0005])
    return depth * np.where(dust, rng.random(len(depth)), 1)


def _reflectances(rng: np.random.Generator, owner: np.ndarray) -> np.ndarray:
    """[things, materials] each thing's own reflectance of each material."""
    count = int(owner.max(initial=0)) + 1
    values = table("reflectance") + rng.normal(0, 1, (count, len(Material))) * table("spread")
    dark = rng.random(count) < 0.4
    shade = np.where(dark, rng.uniform(0.02, 0.15, count), rng.uniform(0.15, 0.55, count))
    values[:, Material.PAINT] = shade
    values += rng.normal(0, 0.03)
    return np.clip(values, 0.01, 1)


def _returned(rng, kind, lost, reflectance, cosine, depth) -> np.ndarray:
    """Which rays come back: not those mirrored away nor those too weak (``depth`` in ranges)."""
    grazing = np.clip(1 - cosine / 0.35, 0, 1) * table("glancing")[kind]
    lost = np.clip(lost + grazing * np.clip(1.1 - 2 * reflectance, 0, 1), 0, 1)
    signal = reflectance * cosine ** (1 + table("gloss")[kind]) / depth**2
    weak = np.exp(-signal / rng.uniform(0.004, 0.022))
    return rng.random(len(kind)) < (1 - lost) * (1 - weak)


def _by_thing(rng: np.random.Generator, owner: np.ndarray) -> np.ndarray:
    """[F] a factor of one half to one and a half, the same for all faces of a thing."""
    return rng.uniform(0.5, 1.5, int(owner.max(initial=0)) + 1)[owner]
