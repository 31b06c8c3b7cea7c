"""Best matches among the few pairs that geometry allows.

Two pictures whose cameras are known are matched along epipolar lines; a picture and landmarks whose
places in it are known are matched near these places. Only such pairs' descriptors are compared.
"""

import torch
from torch import Tensor

from . import backend, native
from .arguments import as_floats, check_floats
from .reference import guided as reference


def match_on_lines(
    one: Tensor, two: Tensor, first: Tensor, second: Tensor, F: Tensor, pixels: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The most similar key points of two pictures on each other's epipolar lines.

    Args:
        one: [N, C] float, descriptors of the first picture, unit vectors.
        two: [M, C] of the second; taken in the dtype of ``one``.
        first: [N, 2] their key points in pixels.
        second: [M, 2].
        F: [3, 3] fundamental matrix, x2' F x1 = 0; lines are computed in float64.
        pixels: from the line, in both pictures.

    Returns:
        best: [N] largest similarity of each row, -1 where nothing is on its line.
        column: [N] int64 which row of ``two`` has it, the first of equal ones; -1.
        runner_up: [N] second largest similarity, -1.
        back: [M] int64 the best row of ``one`` of each row of ``two``; -1.

    Raises:
        ValueError: shapes or types that do not fit, or key points that are not finite.
    """
    check_floats("one", one)
    two, F = as_floats("two", two, one.dtype), F.double()
    _check("F", F, (3, 3))
    _check("one", one, (len(one), one.shape[-1]))
    _check("two", two, (len(two), one.shape[-1]))
    _check("first", first, (len(one), 2))
    _check("second", second, (len(two), 2))
    ahead, behind = (torch.nn.functional.pad(p.to(F), (0, 1), value=1.0) for p in (first, second))
    lines = ahead @ F.T
    # x2' F x1 over the length of a line's normal is the distance to it
    reach = pixels * lines[:, :2].norm(dim=1)
    reaches = pixels * (behind @ F)[:, :2].norm(dim=1)
    return backend.choose(MATCH_ON_LINES, one)(one, two, lines, reach, behind[:, :2], reaches)


def match_within(
    points: Tensor,
    places: Tensor,
    flat: tuple[Tensor, Tensor],
    codes: Tensor,
    lengths: Tensor,
    radius: float,
    least: float,
    looks: tuple[Tensor, Tensor] | None = None,
    same: tuple[float, float] = (0.5, 2.5),
) -> tuple[Tensor, Tensor, Tensor]:
    """Mutually most similar key points and landmarks, among those near each other in a picture.

    Everything is taken in the dtype of ``flat[0]``; the native kernel computes in float32. Key
    point n and landmark m are ``(level[n] + flat[n] . codes[m]) / lengths[m]`` similar.

    Args:
        points: [N, 2] key points in pixels.
        places: [M, 2] where landmarks should be, pixels.
        flat: [N, r] and [N] level.
        codes: [M, r].
        lengths: [M] above 0.
        radius: pixels.
        least: similarity of a match.
        looks: [N, 3] and [M, 3] cosine and sine of the direction, and size; None: they have none.
        same: least cosine between the directions, and largest ratio of the sizes, of a match.

    Returns:
        [K] int64 rows of ``points`` ascending, [K] rows of ``places``, [K] similarities. Among
        equally similar ones, the smaller row counts as better.

    Raises:
        ValueError: shapes or types that do not fit, or pixels that are not finite.
    """
    check_floats("flat", flat[0])
    flat = (flat[0], as_floats("level", flat[1], flat[0].dtype))
    codes, lengths = (
        as_floats(name, value, flat[0].dtype)
        for name, value in (("codes", codes), ("lengths", lengths))
    )
    points, places = points.to(flat[0].dtype), places.to(flat[0].dtype)
    looks = looks and tuple(as_floats("looks", table, flat[0].dtype) for table in looks)
    rank = codes.shape[-1]
    _check("points", points, (len(points), 2))
    _check("places", places, (len(places), 2))
    _check("flat", flat[0], (len(points), rank))
    _check("codes", codes, (len(places), rank))
    _check("level", flat[1], (len(points),))
    _check("lengths", lengths, (len(places),))
    for number, table in enumerate(looks or ()):
        _check(f"looks[{number}]", table, (len((points, places)[number]), 3))
    run = backend.choose(MATCH_WITHIN, points)
    return run(points, places, *flat, codes, lengths, looks, radius, least, same)


def _check(name: str, value: Tensor, shape: tuple[int, ...]) -> None:
    """Refuses what would lead a kernel astray."""
    if tuple(value.shape) != shape:
        raise ValueError(f"{name} is {tuple(value.shape)}; with the other tensors, {shape} fits")
    if len(shape) == 2 and shape[1] == 2 and not bool(value.isfinite().all()):
        row = int((~value.isfinite().all(1)).nonzero()[0])
        raise ValueError(f"{name} holds NaN or infinity, first in row {row}; leave such rows out")


# ---------------------------------------------------------------------- implementations


def _lines_native(one, two, lines, reach, points, reaches):
    rows, columns = len(one), len(two)
    best, second = torch.empty(2, rows).unbind(0)
    column, back = (torch.empty(n, dtype=torch.int64) for n in (rows, columns))
    x, y = points.double().T.contiguous()
    given = (one.float(), two.float(), lines.double(), reach.double())
    native.call(
        "s3d_match_on_lines",
        *(value.contiguous() for value in given),
        *(x, y, reaches.double().contiguous(), rows, columns, one.shape[1]),
        *(best, column, second, back, native.threads()),
    )
    return best.to(one.dtype), column, second.to(one.dtype), back


def _within_native(points, places, flat, level, codes, lengths, looks, radius, least, same):
    rows, columns = torch.empty(2, len(points), dtype=torch.int64).unbind(0)
    similarity = torch.empty(len(points))
    given = (points, places, flat, level, codes, lengths, *(looks or ()))
    given = [value.float().contiguous() for value in given]
    count = native.call(
        "s3d_match_within",
        *given[:6],
        *(given[6:] or (None, None)),
        *(len(points), len(places), codes.shape[1], float(radius), float(least)),
        *(*map(float, same), rows, columns, similarity, native.threads()),
    )
    return rows[:count], columns[:count], similarity[:count].to(flat.dtype)


MATCH_ON_LINES = {
    "reference": reference.match_on_lines,
    "native": _lines_native,
    "cuda": reference.match_on_lines,
}
MATCH_WITHIN = {
    "reference": reference.match_within,
    "native": _within_native,
    "cuda": reference.match_within,
}
