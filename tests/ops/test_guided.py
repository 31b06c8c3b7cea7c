"""Matches on epipolar lines and near known places."""

import pytest
import torch
from torch.nn.functional import normalize

from sparse3d.ops import backend
from sparse3d.ops.guided import match_on_lines, match_within

IMPLEMENTATIONS = ("reference", "native")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def views(rows: int, columns: int, channels: int, seed: int = 0) -> tuple:
    """Descriptors and key points of two pictures, and some fundamental matrix."""
    random = seeded(seed)
    one, two = (normalize(torch.randn(n, channels, generator=random)) for n in (rows, columns))
    first, second = (torch.rand(n, 2, generator=random) * 100 for n in (rows, columns))
    x, y, z = torch.randn(3, generator=random, dtype=torch.float64).tolist()
    F = torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]], dtype=torch.float64)
    return one, two, first, second, F


def near(rows: int, columns: int, rank: int, seed: int = 0) -> dict:
    """Key points and landmarks in a picture."""
    random = seeded(seed)

    def look(count: int) -> torch.Tensor:
        angle = torch.rand(count, generator=random) * 6.28
        size = 1 + torch.rand(count, generator=random) * 4
        return torch.stack([angle.cos(), angle.sin(), size], 1)

    return {
        "points": torch.rand(rows, 2, generator=random) * 50,
        "places": torch.rand(columns, 2, generator=random) * 60 - 5,
        "flat": (
            torch.randn(rows, rank, generator=random),
            torch.rand(rows, generator=random),
        ),
        "codes": torch.randn(columns, rank, generator=random),
        "lengths": 1 + torch.rand(columns, generator=random),
        "radius": 12.0,
        "least": 0.5,
        "looks": (look(rows), look(columns)),
    }


@pytest.mark.parametrize("rows, columns", [(150, 130), (7, 400), (1, 1), (0, 5), (5, 0), (0, 0)])
@pytest.mark.parametrize("channels", [5, 16, 128])
def test_lines_agree_with_the_definition(rows, columns, channels):
    given = views(rows, columns, channels)
    found = []
    for name in IMPLEMENTATIONS:
        with backend.forced(name):
            found.append(match_on_lines(*given, pixels=3.0))
    expected, native = found
    assert torch.equal(native[1], expected[1]) and torch.equal(native[3], expected[3])
    for mine, other in zip(native[::2], expected[::2]):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rows, columns", [(150, 130), (7, 400), (1, 1), (0, 5), (5, 0), (0, 0)])
@pytest.mark.parametrize("looks", [True, False])
def test_places_agree_with_the_definition(rows, columns, looks):
    given = near(rows, columns, 20)
    given["looks"] = given["looks"] if looks else None
    found = []
    for name in IMPLEMENTATIONS:
        with backend.forced(name):
            found.append(match_within(**given))
    expected, native = found
    assert torch.equal(native[0], expected[0]) and torch.equal(native[1], expected[1])
    torch.testing.assert_close(native[2], expected[2], rtol=1e-5, atol=1e-5)
    assert len(native[0]) > 5 or rows * columns < 1000


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_matches_lie_on_their_lines(name):
    one, two, first, second, F = views(200, 200, 8)
    with backend.forced(name):
        best, column, runner_up, back = match_on_lines(one, two, first, second, F, 2.0)
    rows = (column >= 0).nonzero()[:, 0]
    assert len(rows) > 20 and (best[rows] >= runner_up[rows]).all()
    a = torch.cat([first[rows].double(), torch.ones(len(rows), 1)], 1)
    b = torch.cat([second[column[rows]].double(), torch.ones(len(rows), 1)], 1)
    lines, back_lines = a @ F.T, b @ F
    for line, point in ((lines, b), (back_lines, a)):
        assert ((line * point).sum(1).abs() / line[:, :2].norm(dim=1) <= 2.0 + 1e-9).all()
    torch.testing.assert_close(best[rows], (one[rows] * two[column[rows]]).sum(1))
    assert (back[column[rows]] >= 0).all()


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_matches_are_mutual_near_and_alike(name):
    given = near(300, 250, 6)
    with backend.forced(name):
        rows, columns, similarity = match_within(**given)
    assert len(rows) > 20 and (rows.diff() > 0).all() and len(columns.unique()) == len(columns)
    gap = (given["points"][rows] - given["places"][columns]).norm(dim=1)
    assert (gap <= given["radius"] + 1e-4).all() and (similarity >= 0.5).all()
    a, b = given["looks"][0][rows], given["looks"][1][columns]
    assert ((a[:, :2] * b[:, :2]).sum(1) > 0.5 - 1e-6).all()
    assert (torch.maximum(a[:, 2] / b[:, 2], b[:, 2] / a[:, 2]) < 2.5 + 1e-5).all()


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_the_first_of_equal_ones_wins(name):
    points, places = torch.zeros(3, 2), torch.tensor([[1.0, 0], [0, 0], [-1, 0]])
    flat, codes = (torch.ones(3, 4), torch.zeros(3)), torch.ones(3, 4)
    with backend.forced(name):
        rows, columns, _ = match_within(points, places, flat, codes, torch.full((3,), 4.0), 2.0, 0)
        F = torch.zeros(3, 3, dtype=torch.float64)  # every point is on every line
        _, column, runner_up, back = match_on_lines(codes, codes, points, places, F, 1.0)
    assert (rows.tolist(), columns.tolist()) == ([0], [0])
    assert column.tolist() == back.tolist() == [0, 0, 0] and (runner_up == 4).all()


def test_threads_change_nothing():
    given, lines = near(500, 400, 33), views(500, 400, 33)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append((*match_within(**given), *match_on_lines(*lines, pixels=2.0)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found))


def test_what_does_not_fit_is_named():
    one, two, first, second, F = views(5, 6, 8)
    with pytest.raises(ValueError, match="two is"):
        match_on_lines(one, two[:, :4], first, second, F, 2.0)
    with pytest.raises(ValueError, match=r"second holds NaN .* row 3"):
        second[3, 1] = torch.nan
        match_on_lines(one, two, first, second, F, 2.0)
    with pytest.raises(ValueError, match="lengths is"):
        match_within(**near(5, 6, 8) | {"lengths": torch.ones(5)})
