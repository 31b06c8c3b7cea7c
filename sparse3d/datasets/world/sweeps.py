"""Sequences of sweeps over a street in motion, with the exact motion of every point.

A sequence is a function of (split, seed, index), the sensor and the number of sweeps. Whatever
moves is rigid: its motion from one sweep to another is one matrix, and so is the ego's.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from .generate import GENERATION, find_sensor, frame_seed, run_jobs, write_info
from .layout import lay_out
from .materials import KINDS
from .sensors import Sensor, beams, scan
from .shapes import turned
from .streets import REACH, Street, Thing

INTERVAL = 0.1
NO_KIND = 255
STILL = 0.25
"""Share of the sequences in which the ego stands."""


@dataclass
class Sweep:
    """One sweep of a sequence, in the scanner's frame of its time; metres.

    Attributes:
        points: [P, 4] float32 x, y, z, intensity in 0..1.
        instance: [P] int16 row of the sequence's things, -1 for the ground.
        ego: [4, 4] float64, this frame -> the last sweep's frame.
        motion: [T, 4, 4] float64 for each thing: where it is in this frame -> where it is at the
            time and in the frame of the last sweep.
    """

    points: np.ndarray
    instance: np.ndarray
    ego: np.ndarray
    motion: np.ndarray


@dataclass
class Sequence:
    """Sweeps, the latest first, and the kind of each thing (row of ``KINDS``, 255: none)."""

    sweeps: list[Sweep]
    kinds: np.ndarray
    interval: float = INTERVAL


@dataclass
class Course:
    """Motion at constant speed and turning rate, in the plane of the road.

    Attributes:
        place: [3] metres, at time 0.
        yaw: heading at time 0, radians.
        speed: m/s.
        turn: rad/s.
    """

    place: np.ndarray
    yaw: float
    speed: float
    turn: float

    def pose(self, time: float) -> np.ndarray:
        """[4, 4] local coordinates -> the plane of the road at ``time`` seconds."""
        bent = self.turn * time
        chord = self.speed * time * np.sinc(bent / (2 * np.pi))
        pose = _turn(self.yaw + bent)
        pose[:3, 3] = self.place
        pose[:2, 3] += chord * np.array([np.cos(self.yaw + bent / 2), np.sin(self.yaw + bent / 2)])
        return pose


def _turn(yaw: float) -> np.ndarray:
    pose = np.eye(4)
    pose[:2, :2] = [[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]]
    return pose


def make_sequence(
    split: str, seed: int, index: int, sensor: str = "hdl64", count: int = 2
) -> Sequence:
    """``count`` sweeps, 0.1 s apart, over the street ``index`` of a split.

    Raises:
        ValueError: an unknown sensor or split, or fewer than two sweeps.
    """
    if count < 2:
        raise ValueError(f"{count} sweeps are asked for; a pair needs 2")
    scanner = find_sensor(sensor)
    rng = np.random.default_rng((frame_seed(split, seed, index), 1))
    street = lay_out(rng, front=scanner.fov < 180)
    courses = [_course(rng, thing) for thing in street.things]
    ego = _ego_course(rng, street, scanner)
    ground = street.road.mesh(rng, -REACH, REACH)[0]
    origin, direction = beams(scanner, rng)
    times = [-INTERVAL * k for k in range(count)]
    sweeps = []
    for time in times:
        phase = np.radians(rng.uniform(0, scanner.azimuth_step))
        rays = (turned(origin, phase), turned(direction, phase))
        meshes = [ground, *(thing.mesh for thing in street.things)]
        placed = [ground.vertices]
        placed += [_moved(thing, course, time) for thing, course in zip(street.things, courses)]
        to_ego = np.linalg.inv(ego.pose(time))
        vertices = np.concatenate(placed) @ to_ego[:3, :3].T + to_ego[:3, 3]
        points, owner = _look(scanner, rng, vertices, meshes, rays)
        last = np.linalg.inv(ego.pose(0.0))
        here = ego.pose(time)
        motion = [last @ _motion(course, time, 0.0) @ here for course in courses]
        sweeps.append(
            Sweep(points, (owner - 1).astype(np.int16), last @ here, np.reshape(motion, (-1, 4, 4)))
        )
    kinds = [NO_KIND if t.kind is None else KINDS.index(t.kind) for t in street.things]
    return Sequence(sweeps, np.array(kinds, np.uint8))


def _course(rng: np.random.Generator, thing: Thing) -> Course:
    turns = thing.speed > 0 and rng.random() < 0.3
    turn = rng.normal(0, 0.25) if turns else 0.0
    return Course(thing.position, thing.yaw, thing.speed, turn)


def _ego_course(rng: np.random.Generator, street: Street, sensor: Sensor) -> Course:
    eye = street.ego_place + np.array([0, 0, rng.uniform(*sensor.height)])
    speed = 0.0 if rng.random() < STILL else rng.uniform(1, 14)
    return Course(eye, street.ego[1], speed, rng.normal(0, 0.1) if speed else 0.0)


def _motion(course: Course, start: float, end: float) -> np.ndarray:
    """[4, 4] in the plane of the road: places on the thing at ``start`` -> at ``end``."""
    return course.pose(end) @ np.linalg.inv(course.pose(start))


def _moved(thing: Thing, course: Course, time: float) -> np.ndarray:
    """[V, 3] vertices of a thing at ``time`` in the plane of the road."""
    motion = _motion(course, 0.0, time)
    return thing.placed() @ motion[:3, :3].T + motion[:3, 3]


def _look(sensor: Sensor, rng, vertices: np.ndarray, meshes: list, rays: tuple):
    """Points [P, 4] of one turn of the scanner, and the mesh that each lies on."""
    starts = np.cumsum([0] + [len(mesh.vertices) for mesh in meshes[:-1]])
    faces = np.concatenate([mesh.faces + start for mesh, start in zip(meshes, starts)])
    owner = np.repeat(np.arange(len(meshes)), [len(mesh.faces) for mesh in meshes])
    material = np.concatenate([mesh.material for mesh in meshes])
    echoes = scan(sensor, rng, vertices, faces, material, owner, rays)
    return echoes.points, owner[echoes.faces]


def write_sequence(path: Path, sequence: Sequence) -> None:
    """One npz file of a sequence."""
    arrays = {"kinds": sequence.kinds, "interval": np.float64(sequence.interval)}
    for number, sweep in enumerate(sequence.sweeps):
        arrays |= {f"{name}{number}": value for name, value in vars(sweep).items()}
    part = path.with_name(f".{path.name}.part.npz")
    np.savez(part, **arrays)
    part.replace(path)


def make_sequences(
    root: Path,
    name: str,
    sensors: tuple[str, ...],
    counts: dict[str, int],
    sweeps: int = 2,
    seed: int = 0,
    workers: int = 1,
) -> Path:
    """Makes (or completes) the folder ``root/name`` of sequences and returns it.

    Args:
        root: where worlds lie, such as data/world.
        name: of this world.
        sensors: names in ``SENSORS``; sequence after sequence takes the next.
        counts: sequences per split.
        sweeps: of a sequence.
        seed: another seed, other streets.
        workers: processes.

    Raises:
        ValueError: an unknown sensor or split, or the folder holds sequences made otherwise.
    """
    for sensor in sensors:
        find_sensor(sensor)
    folder = Path(root) / name
    made = {"sensors": list(sensors), "seed": seed, "sweeps": sweeps, "generation": GENERATION}
    write_info(folder, made, {"kinds": KINDS})
    jobs = []
    for split, count in counts.items():
        (folder / split).mkdir(exist_ok=True)
        jobs += [(split, i) for i in range(count) if not _path(folder, split, i).exists()]
    run_jobs(partial(_work, folder, seed, tuple(sensors), sweeps), jobs, workers)
    return folder


def _path(folder: Path, split: str, index: int) -> Path:
    return folder / split / f"{index:06d}.npz"


def _work(folder: Path, seed: int, sensors: tuple[str, ...], sweeps: int, job: tuple) -> None:
    split, index = job
    sequence = make_sequence(split, seed, index, sensors[index % len(sensors)], sweeps)
    write_sequence(_path(folder, split, index), sequence)
