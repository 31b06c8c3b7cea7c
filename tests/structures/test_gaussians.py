import numpy as np
import pytest
import torch

from sparse3d.structures import Gaussians
from sparse3d.structures.gaussian_files import morton_order
from sparse3d.structures.ply import read_ply, write_ply

FORMATS = ("ply", "compressed.ply", "splat")


def scene(count=300, degree=2, seed=0) -> Gaussians:
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=draw)

    return Gaussians(
        normal(count, 3),
        normal(count, 3) - 3,
        normal(count, 4),
        normal(count),
        normal(count, 1, 3).clamp(-1.5, 1.5),  # colours within 0..1
        0.3 * normal(count, (degree + 1) ** 2 - 1, 3),
    )


def matched(a: Gaussians, b: Gaussians) -> Gaussians:
    """``b`` in the order of ``a``: the files are sorted along a curve."""
    return b[torch.cdist(a.means, b.means).argmin(1)]


def unit(quats):
    return torch.nn.functional.normalize(quats, dim=1)


@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize("degree", [0, 1, 3, 4])
def test_files_give_back_what_they_hold(tmp_path, ending, degree):
    before = scene(degree=degree)
    assert before.save(tmp_path / f"a.{ending}") == len(before)
    after = matched(before, Gaussians.load(tmp_path / f"a.{ending}"))
    near = {"ply": 0, "compressed.ply": 0.005, "splat": 1e-6}[ending]
    assert (after.means - before.means).abs().max() <= near
    assert (after.scales - before.scales).abs().max() <= max(near, 1e-5)
    assert (unit(after.quats) * unit(before.quats)).sum(1).abs().min() > 0.999
    byte = 0 if ending == "ply" else 1.01 / 255
    assert (after.opacities.sigmoid() - before.opacities.sigmoid()).abs().max() <= byte
    assert (after.rgb - before.rgb).abs().max() <= byte
    if ending != "splat":
        assert after.sh_degree == degree
        assert not degree or (after.shN - before.shN).abs().max() <= (0.032 if byte else 0)


@pytest.mark.parametrize("ending", FORMATS)
def test_no_gaussians_are_a_file_too(tmp_path, ending):
    assert Gaussians.empty(1).save(tmp_path / f"a.{ending}") == 0
    assert len(Gaussians.load(tmp_path / f"a.{ending}")) == 0


@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize("name", ["means", "scales", "quats", "opacities", "sh0", "shN"])
def test_one_bad_row_is_left_out_alone(tmp_path, ending, name):
    spoilt = scene(20)
    getattr(spoilt, name)[7] = float("nan")
    assert spoilt.save(tmp_path / f"a.{ending}") == 19


def test_the_ply_is_that_of_3dgs(tmp_path):
    before = scene(4, 1)
    before.save(tmp_path / "a.ply")
    table = read_ply(tmp_path / "a.ply")["vertex"]
    harmonics = [f"f_rest_{i}" for i in range(9)]
    assert list(table.dtype.names) == [
        *("x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2", *harmonics, "opacity"),
        *("scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"),
    ]
    # All coefficients of red come first.
    assert np.array_equal(table["f_rest_1"], before.shN[:, 1, 0].numpy())
    assert np.array_equal(table["f_rest_3"], before.shN[:, 0, 1].numpy())


def test_fields_are_read_by_name(tmp_path):
    before = scene(5, 0)
    before.save(tmp_path / "a.ply")
    table = read_ply(tmp_path / "a.ply")["vertex"]
    names = sorted(set(table.dtype.names) - {"nx", "ny", "nz"})
    other = np.zeros(5, [(n, "f8") for n in names])
    for n in names:
        other[n] = table[n]
    write_ply(tmp_path / "b.ply", {"vertex": other})
    after = Gaussians.load(tmp_path / "b.ply")
    assert all(
        torch.equal(x, y) for x, y in zip(before.tensors().values(), after.tensors().values())
    )


@pytest.mark.parametrize("ending", FORMATS)
def test_a_cut_file_is_refused(tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    scene().save(path)
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(ValueError, match="cut off"):
        Gaussians.load(path)


def test_other_files_are_refused(tmp_path):
    (tmp_path / "a.ply").write_bytes(b"hello")
    with pytest.raises(ValueError, match="is no ply file"):
        Gaussians.load(tmp_path / "a.ply")
    write_ply(tmp_path / "b.ply", {"vertex": np.zeros(3, [(n, "f4") for n in "xyz"])})
    with pytest.raises(ValueError, match="lack f_dc_0"):
        Gaussians.load(tmp_path / "b.ply")
    with pytest.raises(ValueError, match=r"end it in \.compressed\.ply, \.splat"):
        scene().save(tmp_path / "a.obj")


def test_shapes_must_fit():
    good = scene(3, 1).tensors()
    with pytest.raises(ValueError, match=r"opacities of 3 .*\(2,\); \(3,\)"):
        Gaussians(**{**good, "opacities": torch.zeros(2)})
    with pytest.raises(ValueError, match="6 coefficients"):
        Gaussians(**{**good, "shN": torch.zeros(3, 5, 3)})


def test_points_become_round_gaussians():
    points, colors = torch.rand(6, 3), torch.rand(6, 3)
    made = Gaussians.from_points(points, colors, torch.full((6,), 0.2), 0.25, sh_degree=2)
    torch.testing.assert_close(made.rgb, colors)
    torch.testing.assert_close(made.scales.exp(), torch.full((6, 3), 0.2))
    torch.testing.assert_close(made.opacities.sigmoid(), torch.full((6,), 0.25))
    assert made.sh_degree == 2 and made.finite().all()


def test_the_curve_keeps_neighbours_together():
    points = np.random.default_rng(0).uniform(size=(2000, 3))
    sorted_ = points[morton_order(points)]
    assert np.linalg.norm(np.diff(sorted_, axis=0), axis=1).mean() < 0.12
