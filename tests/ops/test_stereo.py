import pytest
import torch
from torch.nn import functional as F

from sparse3d.ops import backend
from sparse3d.ops.stereo import View, confirm_depths, plane_sweep, smooth_planes
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
    [
        *((20, 33, 3, 19, 2, 0), (61, 47, 6, 40, 1, 0), (7, 5, 1, 1, 3, 1), (3, 2, 2, 16, 8, 2)),
        (150, 37, 6, 17, 2, 0),  # higher than the band of rows that a thread takes
    ],
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


@implementations
def test_a_view_that_ends_before_a_place_is_not_counted(implementation):
    image = texture(20, 60)
    right = shifted(image, 0)
    beside = View(texture(20, 60, 9)[:, :30].contiguous(), torch.eye(3), torch.zeros(3))
    with backend.forced(implementation):
        alone = plane_sweep(image, [right], torch.ones(1), best=2)
        both = plane_sweep(image, [right, beside], torch.ones(1), best=2)
    assert torch.equal(both[:, 31:], alone[:, 31:])
    assert both[:, :29].float().mean() > alone[:, :29].float().mean() + 20


def slanted(height: int, width: int, count: int) -> tuple[torch.Tensor, torch.Tensor, list[View]]:
    """Depth of a slanted plane, the inverse of its camera's matrix, and views of other cameras with
    theirs; some pixels are wrong, some not known."""
    K = torch.tensor([[width, 0, width / 2], [0, width, height / 2], [0, 0, 1]]).double()
    inverse = torch.linalg.inv(K)
    plane = torch.tensor([0.1, 0.2, 0.5]).double()  # 1 / depth of a ray (x, y, 1), times it
    draw = torch.Generator().manual_seed(width)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    rays = torch.stack([x, y, torch.ones_like(x)], -1).double() @ inverse.T
    views = []
    for j in range(count):
        turn = torch.linalg.matrix_exp(0.05 * torch.tensor([[0, -j, 1], [j, 0, 1], [-1, -1, 0]]))
        turn, shift = turn.double(), torch.tensor([0.3 * (j - 1) + 0.1, 0.05, 0.02]).double()
        # the plane n x = 1 in the other's frame, x' = R x + t
        normal = turn @ plane
        other = (rays @ normal / (1 + normal @ shift)) ** -1
        wrong = torch.rand(height, width, generator=draw)
        other = torch.where(wrong < 0.2, 0.7 * other, torch.where(wrong > 0.9, 0.0, other))
        views.append(View(other.float(), (K @ turn @ inverse).float(), (K @ shift).float()))
    depth = (rays @ plane) ** -1
    unknown = torch.rand(height, width, generator=draw) > 0.9
    return torch.where(unknown, 0.0, depth).float(), inverse, views


@pytest.mark.parametrize("isa", ["", "avx2", "plain"])
@pytest.mark.parametrize("height, width, count", [(30, 45, 4), (7, 33, 1), (1, 2, 2)])
def test_confirming_agrees_with_its_definition(isa, height, width, count, monkeypatch):
    monkeypatch.setenv("SPARSE3D_ISA", isa)
    depth, inverse, views = slanted(height, width, count)
    found = {}
    for name in ("reference", "native"):
        with backend.forced(name):
            found[name] = confirm_depths(depth, inverse, views, min_angle=0.05)
    voices, asked, doubt = found["native"]
    # A pixel that is led to the border between two belongs to either by the last bit.
    for own, other in zip(found["native"][:2], found["reference"][:2]):
        assert (own != other).float().mean() < 0.01
    assert torch.equal(voices > 0, doubt.isfinite())
    both = doubt.isfinite() & found["reference"][2].isfinite()
    assert ((doubt / found["reference"][2] - 1).abs()[both] > 1e-2).float().mean() < 0.01
    assert (voices[depth == 0] == 0).all() and (asked[depth == 0] == 0).all()
    assert (voices <= asked).all()
    if count == 4:
        assert voices.float().mean() > 1 and (asked > voices).any()


@implementations
def test_what_stands_before_a_point_is_not_asked(implementation):
    depth = torch.full((5, 6), 2.0)
    view = View(torch.full((5, 6), 1.0), torch.eye(3), torch.tensor([0.1, 0.0, 0.0]))
    deep = View(torch.full((5, 6), 3.0), torch.eye(3), torch.tensor([0.1, 0.0, 0.0]))
    with backend.forced(implementation):
        voices, asked, doubt = confirm_depths(depth, torch.eye(3), [view])
        assert not voices.any() and not asked.any() and doubt.isinf().all()
        voices, asked, _ = confirm_depths(depth, torch.eye(3), [deep])
        assert not voices.any() and asked.all()
        voices, asked, doubt = confirm_depths(depth, torch.eye(3), [])
        assert not voices.any() and not asked.any() and doubt.isinf().all()


def test_threads_change_no_bit():
    image, views = scene(50, 64, 4)
    depth, inverse, others = slanted(50, 64, 3)

    def run():
        with backend.forced("native"):
            cost = plane_sweep(image, views, torch.linspace(0, 1, 33))
            return cost, smooth_planes(cost, image), *confirm_depths(depth, inverse, others)

    found = for_threads(run, (1, 2, 5))
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other))


def test_bad_input_is_named():
    image = texture(8, 9)
    view = View(image, torch.eye(3), torch.zeros(3))
    with pytest.raises(ValueError, match="0 views"):
        plane_sweep(image, [], torch.ones(2))
    with pytest.raises(ValueError, match="radius 9"):
        plane_sweep(image, [view], torch.ones(2), radius=9)
    with pytest.raises(ValueError, match=r"shape \(3,\); \[H, W\] is needed"):
        confirm_depths(torch.ones(3), torch.eye(3), [view])
    with pytest.raises(ValueError, match="uint8"):
        smooth_planes(torch.zeros(8, 9, 3), image)
    with pytest.raises(ValueError, match="prices of 13 and 9000"):
        smooth_planes(torch.zeros(8, 9, 3, dtype=torch.uint8), image, large=9000)
