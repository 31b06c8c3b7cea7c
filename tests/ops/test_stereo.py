import pytest
import torch
from torch.nn import functional as F

from sparse3d.ops import backend
from sparse3d.ops.stereo import View, plane_sweep, smooth_planes
from tests.threads import for_threads

implementations = pytest.mark.parametrize("implementation", ["reference", "native"])


def texture(height: int, width: int, seed: int = 0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 1, height // 3 + 2, width // 3 + 2, generator=draw)
    return F.interpolate(coarse, (height, width), mode="bicubic")[0, 0].clamp(0, 1).contiguous()


def scene(height: int, width: int, count: int) -> tuple[torch.Tensor, list[View]]:
    """A reference and views of several sizes whose cameras are turned and shifted a little."""
    draw = torch.Generator().manual_seed(height)
    size = torch.tensor([[1, 1, 3.0], [1, 1, 3.0], [1e-3, 1e-3, 0.1]])
    views = []
    for j in range(count):
        turn = torch.eye(3) + 0.02 * size * torch.randn(3, 3, generator=draw)
        shift = torch.tensor([20.0 * (j - 1), 3.0, 0.05])
        views.append(View(texture(height + j, max(width - j, 2), 1), turn, shift))
    return texture(height, width), views


def shifted(image: torch.Tensor, disparity: int) -> View:
    """What a camera to the right sees of a plane whose inverse depth 1 means ``disparity``."""
    return View(image.roll(-disparity, 1), torch.eye(3), torch.tensor([-float(disparity), 0.0, 0]))


@pytest.mark.parametrize("isa", ["", "avx2", "plain"])
@pytest.mark.parametrize(
    "height, width, count, planes, radius, best",
    [(20, 33, 3, 19, 2, 0), (61, 47, 6, 40, 1, 0), (7, 5, 1, 1, 3, 1), (3, 2, 2, 16, 8, 2)],
)
def test_the_sweep_agrees_with_its_definition(
    isa, height, width, count, planes, radius, best, monkeypatch
):
    monkeypatch.setenv("SPARSE3D_ISA", isa)
    image, views = scene(height, width, count)
    inverse = torch.linspace(0, 1, planes)
    found = {}
    for name in ("reference", "native"):
        with backend.forced(name):
            found[name] = plane_sweep(image, views, inverse, radius, best, 5e-4).int()
    assert found["native"].shape == (height, width, planes)
    apart = (found["native"] - found["reference"]).abs()
    # A pixel on the rim of a view is in it or not by the last bit of its place.
    assert (apart > 1).float().mean() < 2e-3
    assert (apart > 0).float().mean() < 0.02
    assert count < 2 or len(found["native"].unique()) > 10


@pytest.mark.parametrize("isa", ["", "avx2", "plain"])
@pytest.mark.parametrize("height, width, planes", [(20, 33, 19), (9, 70, 64), (1, 5, 3), (6, 1, 2)])
def test_smoothing_equals_its_definition(isa, height, width, planes, monkeypatch):
    monkeypatch.setenv("SPARSE3D_ISA", isa)
    draw = torch.Generator().manual_seed(planes)
    cost = torch.randint(0, 256, (height, width, planes), generator=draw).to(torch.uint8)
    guide = torch.rand(height, width, generator=draw)
    found = {}
    for name in ("reference", "native"):
        with backend.forced(name):
            found[name] = smooth_planes(cost, guide)
    assert torch.equal(found["native"], found["reference"])


@implementations
def test_the_true_plane_is_found(implementation):
    image = texture(30, 60)
    views = [shifted(image, 12), shifted(image, -12)]
    with backend.forced(implementation):
        cost = plane_sweep(image, views, torch.linspace(0, 2, 25))
        plane = smooth_planes(cost, image)
    assert (cost[5:-5, 15:-15].argmin(2) == 12).float().mean() > 0.98
    assert (plane[5:-5, 15:-15] - 12).abs().max() < 0.5
    assert cost[:, :, 12].float().mean() < 60 < cost.float().mean()


@implementations
def test_jumps_lie_where_the_guide_has_its_edge(implementation):
    cost = torch.full((12, 40, 8), 200, dtype=torch.uint8)
    cost[:, :15, 1] = 100  # sure on the left
    cost[:, 25:, 6] = 100  # and on the right; between them nothing is known
    guide = torch.zeros(12, 40)
    guide[:, 21:] = 0.8
    with backend.forced(implementation):
        plane = smooth_planes(cost, guide).round()
    assert (plane[:, :21] == 1).all() and (plane[:, 21:] == 6).all()


@implementations
def test_what_no_view_sees_costs_most(implementation):
    image = texture(8, 20)
    away = View(image, torch.eye(3), torch.tensor([1000.0, 0, 0]))
    behind = View(image, -torch.eye(3), torch.zeros(3))
    with backend.forced(implementation):
        assert (plane_sweep(image, [away], torch.ones(3)) == 255).all()
        assert (plane_sweep(image, [behind], torch.ones(3)) == 255).all()
        # One that sees it is enough.
        seen = plane_sweep(image, [away, View(image, torch.eye(3), torch.zeros(3))], torch.ones(1))
    assert seen.float().mean() < 30


def test_threads_change_no_bit():
    image, views = scene(50, 64, 4)

    def run():
        with backend.forced("native"):
            cost = plane_sweep(image, views, torch.linspace(0, 1, 33))
            return cost, smooth_planes(cost, image)

    found = for_threads(run, (1, 2, 5))
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other))


def test_bad_input_is_named():
    image = texture(8, 9)
    view = View(image, torch.eye(3), torch.zeros(3))
    with pytest.raises(ValueError, match="0 views"):
        plane_sweep(image, [], torch.ones(2))
    with pytest.raises(ValueError, match="radius 9"):
        plane_sweep(image, [view], torch.ones(2), radius=9)
    with pytest.raises(ValueError, match="uint8"):
        smooth_planes(torch.zeros(8, 9, 3), image)
    with pytest.raises(ValueError, match="prices of 13 and 9000"):
        smooth_planes(torch.zeros(8, 9, 3, dtype=torch.uint8), image, large=9000)
