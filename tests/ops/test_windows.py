"""Window partition and pooling cells, against the published outputs and their laws."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse3d.ops import backend
from sparse3d.ops.windows import pool_cells, window_sets
from tests.conftest import fixture_files

IMPLEMENTATIONS = ("reference", "native")
each = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)


def index_files() -> list:
    """Arrays of window partitions, by their contents."""
    files = fixture_files("detect/*.npz")
    return [f for f in files if not hasattr(f, "suffix") or "c0_set_inds_shift0" in np.load(f)]


def cases(arrays, kind: str) -> list[int]:
    return [i for i in range(len(arrays.files)) if f"{kind}{i}_cfg" in arrays]


def from_zyx(coords) -> torch.Tensor:
    """(batch, z, y, x) rows as (batch, x, y, z)."""
    return torch.from_numpy(coords.astype(np.int32))[:, [0, 3, 2, 1]].contiguous()


def random_voxels(seed: int, count: int, shape=(20, 17, 6), samples=2) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    cells = [torch.randint(0, n, (count,), generator=random) for n in (samples, *shape)]
    return torch.unique(torch.stack(cells, 1), dim=0).int()


@each
@pytest.mark.parity
@pytest.mark.parametrize("path", index_files(), ids=lambda p: p.stem)
def test_sets_are_the_published_ones(path, implementation):
    arrays = np.load(path)
    assert cases(arrays, "c")
    for i in cases(arrays, "c"):
        grid, window, factor, shift = arrays[f"c{i}_cfg"][:12].reshape(4, 3).tolist()
        set_size = int(arrays[f"c{i}_cfg"][12])
        coords = from_zyx(arrays[f"c{i}_coords"])
        for k in range(2):
            size = [w * f for w, f in zip(window, factor)] if k else window
            with backend.forced(implementation):
                sets = window_sets(coords, grid, size, shift if k else (0, 0, 0), set_size)
            found = {
                "win_inds": sets.window_index,
                "coors_in_win": sets.coords_in_window.flip(1),
                "set_inds": sets.set_inds,
                "set_mask": sets.set_mask,
            }
            for name, tensor in found.items():
                expected = arrays[f"c{i}_{name}_shift{k}"]
                np.testing.assert_array_equal(tensor.numpy(), expected, f"case {i} {name} {k}")


@each
@pytest.mark.parity
@pytest.mark.parametrize("path", index_files(), ids=lambda p: p.stem)
def test_pooling_is_the_published_one(path, implementation):
    arrays = np.load(path)
    assert cases(arrays, "p")
    for j in cases(arrays, "p"):
        grid, stride = arrays[f"p{j}_cfg"].reshape(2, 3).tolist()
        with backend.forced(implementation):
            coords, cell, slot = pool_cells(from_zyx(arrays[f"p{j}_coords"]), grid, stride)
        assert torch.equal(coords, from_zyx(arrays[f"p{j}_pooled_coords"]))
        np.testing.assert_array_equal(cell.numpy(), arrays[f"p{j}_mapping"])
        np.testing.assert_array_equal(slot.numpy(), arrays[f"p{j}_index_in_pool"])


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    count=st.integers(0, 300),
    window=st.tuples(*[st.integers(1, 9)] * 3),
    shift=st.tuples(*[st.integers(0, 6)] * 3),
    set_size=st.integers(1, 40),
    shuffled=st.booleans(),
)
def test_partition_laws(seed, count, window, shift, set_size, shuffled):
    coords = random_voxels(seed, count)
    if shuffled:
        coords = coords[torch.randperm(len(coords))]
    found = []
    for name in IMPLEMENTATIONS:
        with backend.forced(name):
            found.append(window_sets(coords, (20, 17, 6), window, shift, set_size))
    sets, other = found
    for field in ("order", "offsets", "window_index", "coords_in_window"):
        assert torch.equal(getattr(sets, field), getattr(other, field)), field

    rows = torch.arange(len(coords))
    sizes = sets.offsets.diff()
    number = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
    assert (sizes >= 1).all() and (sizes <= set_size).all()
    for axis in range(2):
        assert torch.equal(sets.order[axis].sort().values, rows)  # each voxel in exactly one set
        windows = sets.window_index[sets.order[axis]]
        assert (windows.diff() >= 0).all()
        changes = windows.diff() != 0
        assert (number.diff()[changes] == 1).all()  # no set reaches into two windows
        # the slots hold the same voxels as the runs of the order
        slots = sets.set_inds[axis][~sets.set_mask[axis]]
        assert torch.equal(slots, sets.order[axis])


@each
def test_no_voxels(implementation):
    with backend.forced(implementation):
        sets = window_sets(torch.zeros(0, 4).int(), (8, 8, 1), (4, 4, 1), (2, 2, 0), 6)
        pooled, cell, slot = pool_cells(torch.zeros(0, 4).int(), (8, 8, 4), (1, 1, 2))
    assert sets.set_inds.shape == (2, 0, 6) and sets.offsets.tolist() == [0]
    assert pooled.shape == (0, 4) and pooled.dtype == torch.int32
    assert len(cell) == len(slot) == 0


@each
def test_a_window_as_high_as_the_grid_is_not_shifted_in_z(implementation):
    coords = random_voxels(0, 100)
    with backend.forced(implementation):
        plain = window_sets(coords, (20, 17, 6), (5, 5, 6), (2, 2, 0), 9)
        shifted = window_sets(coords, (20, 17, 6), (5, 5, 6), (2, 2, 3), 9)
    assert torch.equal(plain.order, shifted.order)
    assert torch.equal(plain.coords_in_window, shifted.coords_in_window)


@pytest.mark.parametrize(
    "change", [{"window": (4, 0, 1)}, {"set_size": 0}, {"shift": (0, -1, 0)}], ids=str
)
def test_wrong_arguments_are_refused(change):
    options = {"window": (4, 4, 1), "shift": (0, 0, 0), "set_size": 3, **change}
    with pytest.raises(ValueError, match="must be 1 or more"):
        window_sets(random_voxels(0, 5), (20, 17, 6), **options)
    with pytest.raises(ValueError, match="stride is"):
        pool_cells(random_voxels(0, 5), (20, 17, 6), (0, 1, 1))
