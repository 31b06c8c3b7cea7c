import warnings

import numpy as np
import pytest
import torch

from sparse3d.datasets.clouds import read_cloud, read_matrices
from sparse3d.datasets.flow import Argoverse2Pairs, WorldSweeps, pose_of, read_feather
from sparse3d.datasets.flow_benchmarks import FlyingThings3D, KITTISceneFlow
from sparse3d.datasets.world.sweeps import make_sequence, make_sequences
from sparse3d.registry import TRANSFORMS
from sparse3d.structures.ply import write_ply
from tests.conftest import real_data

NAMES = ["PairTurn", "PairFlip", "PairLift", "RemoveGround", "RemoveEgoMotion", "PairThinning"]
NAMES += ["GroundLeak", "PairCrop", "PointSampling"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_sequences(tmp_path_factory.mktemp("world"), "w", ("hdl32",), {"train": 1}, sweeps=3)


def test_world_flow_is_exact_and_includes_ego_motion(world):
    pair = WorldSweeps(world, sweeps=3)[0]
    assert len(pair.history) == 1 and pair.ego_motion.shape == (4, 4)
    static = (pair.flow - pair.ego_flow).norm(dim=1) < 1e-4
    assert 0.5 < static.float().mean() < 1
    again = make_sequence("train", 0, 0, "hdl32", 3)
    assert np.array_equal(again.sweeps[1].points, pair.source.numpy())
    owner, motion = again.sweeps[1].instance, again.sweeps[1].motion
    thing = int(np.bincount(owner[~static.numpy()]).argmax())
    rows = owner == thing
    xyz = pair.source[rows, :3].double()
    moved = xyz @ torch.from_numpy(motion[thing, :3, :3]).T + torch.from_numpy(motion[thing, :3, 3])
    torch.testing.assert_close((moved - xyz).float(), pair.flow[rows], rtol=1e-5, atol=1e-5)


def test_more_sweeps_than_there_are(world):
    with pytest.raises(ValueError, match=r"the sequences in .* have 3"):
        WorldSweeps(world, sweeps=4)
    with pytest.raises(FileNotFoundError, match=r"prepare_data\.py sweeps"):
        WorldSweeps(world, split="test")


@pytest.mark.parametrize("name", NAMES)
def test_transforms_keep_the_flow_true(world, name):
    """A point plus its flow stays where it was, whatever is done to the frames."""
    pair = WorldSweeps(world)[0]
    changed = TRANSFORMS.build({"type": name})(pair, np.random.default_rng(0))
    assert len(changed.source) and len(changed.target)
    assert len(changed.flow) == len(changed.source) == len(changed.source_ground)
    own = (changed.flow - changed.ego_flow).norm(dim=1)
    before = (pair.flow - pair.ego_flow).norm(dim=1)
    assert own.max() <= before.max() + 1e-4
    if len(changed.source) == len(pair.source):
        torch.testing.assert_close(own, before, rtol=1e-3, atol=1e-4)


def test_without_poses_ego_motion_is_not_removed(world):
    pair = WorldSweeps(world)[0]
    pair.ego_motion = None
    with pytest.raises(ValueError, match="give poses"):
        TRANSFORMS.build({"type": "RemoveEgoMotion"})(pair, np.random.default_rng(0))


def test_damaged_sequence_is_named(world, tmp_path):
    for part in ("info.json", "train/000000.npz"):
        path = tmp_path / part
        path.parent.mkdir(exist_ok=True)
        path.write_bytes((world / part).read_bytes()[: 5000 if "npz" in part else None])
    with pytest.raises(ValueError, match=r"000000.npz cannot be read"):
        WorldSweeps(tmp_path)[0]


def save(path, *arrays):
    path.mkdir(parents=True)
    for name, array in zip(("pc1.npy", "pc2.npy"), arrays):
        np.save(path / name, array.astype(np.float32))


def test_prepared_benchmarks(tmp_path):
    rng = np.random.default_rng(0)
    first = rng.uniform(-20, 40, (50, 3))
    save(tmp_path / "ft/train/0000000", first, first + 0.5)
    save(tmp_path / "ft/val/0000000", first, first + 0.5)
    pair = FlyingThings3D(tmp_path / "ft", "test")[0]
    np.testing.assert_allclose(pair.flow, [[-0.5, 0.5, -0.5]] * 50, atol=1e-5)
    np.testing.assert_allclose(pair.source[:, 1], first[:, 1], rtol=1e-6)
    first[0] = (0, -2, 5)
    save(tmp_path / "kitti/000000", first, first)
    save(tmp_path / "kitti/000001", first, first[:5])
    (tmp_path / "kitti/KITTI_mapping.txt").write_text("a\nb\n\n")
    dataset = KITTISceneFlow(tmp_path / "kitti")
    assert len(dataset) == 2
    assert len(dataset[0].source) == ((first[:, 1] >= -1.4) & (first[:, 2] < 35)).sum()
    with pytest.raises(ValueError, match="000001: pc1 has shape"):
        dataset[1]
    mask = np.arange(50) % 2
    np.savez(tmp_path / "TEST_1.npz", points1=first, points2=first, flow=first, valid_mask1=mask)
    occluded = FlyingThings3D(tmp_path, "test", "flownet3d")[0]
    assert occluded.valid.sum() == 25
    with pytest.raises(ValueError, match="must be one of"):
        KITTISceneFlow(tmp_path, "mine")
    with pytest.raises(FileNotFoundError, match=r"holds no \*\.npz"):
        KITTISceneFlow(tmp_path / "kitti", "flownet3d")


def argoverse_log(root, times=(100_000_000, 200_000_000, 300_000_000)):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import feather

    folder = root / "log/sensors/lidar"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for time in times:
        table = {a: rng.uniform(-20, 20, 30).astype(np.float16) for a in "xyz"}
        table["intensity"] = np.full(30, 255, np.uint8)
        feather.write_feather(pyarrow.table(table), str(folder / f"{time}.feather"))
    poses = {"timestamp_ns": list(times), "qw": [1.0] * len(times)}
    poses |= {q: [0.0] * len(times) for q in ("qx", "qy", "qz", "ty_m", "tz_m")}
    poses["tx_m"] = [float(i) for i in range(len(times))]
    feather.write_feather(pyarrow.table(poses), str(root / "log/city_SE3_egovehicle.feather"))
    truth = {f"flow_t{a}_m": np.zeros(30, np.float16) for a in "xyz"} | {"is_valid": [True] * 30}
    (root / "flow/log").mkdir(parents=True)
    path = root / f"flow/log/{times[1]}.feather"
    feather.write_feather(pyarrow.table(truth), str(path))
    return root


def test_argoverse_feather_files(tmp_path):
    root = argoverse_log(tmp_path)
    dataset = Argoverse2Pairs(root, flow_root=root / "flow", history=2)
    assert len(dataset) == 2
    pair = dataset[1]
    assert pair.interval == pytest.approx(0.1) and len(pair.history) == 1
    assert pair.ego_motion[0, 3] == pytest.approx(-1) and pair.history[0][1][0, 3] == -2
    assert pair.valid.all() and pair.flow.abs().max() == 0 and pair.source[0, 3] == 1
    assert dataset[0].flow is None and not dataset[0].history
    path = root / "log/sensors/lidar/100000000.feather"
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ValueError, match=r"100000000.feather cannot be read"):
        dataset[0]
    with pytest.raises(FileNotFoundError):
        read_feather(tmp_path / "none.feather")


@pytest.mark.parametrize("path", real_data("argoverse2/pair.npz"), ids=lambda p: "pair")
def test_real_pair(path):
    pair = Argoverse2Pairs(path)[0]
    with np.load(path) as data:
        np.testing.assert_allclose(pair.ego_flow, data["rigid_flow"], atol=1e-4)
        own = (pair.flow - pair.ego_flow).norm(dim=1) >= 0.05
        assert abs(int(own.sum()) - int(data["is_dynamic"].sum())) < 10


def test_quaternion():
    np.testing.assert_allclose(
        pose_of(np.array([2**0.5, 0, 0, 2**0.5]), np.array([1, 2, 3])),
        [[0, -1, 0, 1], [1, 0, 0, 2], [0, 0, 1, 3], [0, 0, 0, 1]],
        atol=1e-9,
    )


def write_pcd(path, points, kind):
    head = "VERSION .7\nFIELDS x y z i\nSIZE 4 4 4 1\nTYPE F F F U\nCOUNT 1 1 1 1\n"
    head += f"WIDTH {len(points)}\nHEIGHT 1\nPOINTS {len(points)}\nDATA {kind}\n"
    if kind == "ascii":
        body = "\n".join(f"{x} {y} {z} 7" for x, y, z in points).encode()
    else:
        table = np.zeros(len(points), [(a, "<f4") for a in "xyz"] + [("i", "u1")])
        for axis, column in zip("xyz", points.T):
            table[axis] = column
        body = table.tobytes()
    path.write_bytes(head.encode() + body)


def test_every_kind_of_cloud_is_read(tmp_path):
    points = np.random.default_rng(0).uniform(-5, 5, (20, 3)).astype(np.float32)
    np.save(tmp_path / "a.npy", points)
    np.savez(tmp_path / "b.npz", points=points)
    np.pad(points, ((0, 0), (0, 1))).tofile(tmp_path / "c.bin")
    np.pad(points, ((0, 0), (0, 2))).tofile(tmp_path / "d.pcd.bin")
    write_pcd(tmp_path / "e.pcd", points, "ascii")
    write_pcd(tmp_path / "f.pcd", points, "binary")
    records = np.zeros(20, [(a, "<f4") for a in "xyz"])
    for axis, column in zip("xyz", points.T):
        records[axis] = column
    write_ply(tmp_path / "g.ply", {"vertex": records})
    for path in sorted(tmp_path.iterdir()):
        np.testing.assert_allclose(read_cloud(path), points, rtol=1e-5, err_msg=str(path))


def test_clouds_that_are_cut_off_are_named(tmp_path):
    points = np.zeros((20, 3), np.float32)
    write_pcd(tmp_path / "a.pcd", points, "binary")
    np.save(tmp_path / "b.npy", points)
    points.tofile(tmp_path / "c.bin")
    for name in ("a.pcd", "b.npy", "c.bin"):
        path = tmp_path / name
        path.write_bytes(path.read_bytes()[:-9])
        with pytest.raises(ValueError, match=name):
            read_cloud(path)
    (tmp_path / "d.las").touch()
    with pytest.raises(ValueError, match=r"\.las"):
        read_cloud(tmp_path / "d.las")
    with pytest.raises(FileNotFoundError, match="no cloud"):
        read_cloud(tmp_path / "e.ply")


def test_poses_are_read(tmp_path):
    path = tmp_path / "poses.txt"
    path.write_text("1 0 0 5  0 1 0 6  0 0 1 7\n1 0 0 0  0 1 0 0  0 0 1 0\n")
    assert read_matrices(path).shape == (2, 4, 4) and read_matrices(path)[0, 0, 3] == 5
    path.write_text("1 2 3")
    with pytest.raises(ValueError, match="holds 3 numbers"):
        read_matrices(path)


def test_points_that_are_none_are_dropped_and_counted(tmp_path):
    points = np.ones((9, 3), np.float32)
    points[3, 1] = np.nan
    np.savez(tmp_path / "p.npz", pc0=points, pc1=points[:4])
    with pytest.warns(UserWarning, match="1 of 9 points of the source and 1 of 4"):
        pair = Argoverse2Pairs(tmp_path / "p.npz")[0]
    assert len(pair.source) == 8 and len(pair.target) == 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.savez(tmp_path / "q.npz", pc0=points[:3], pc1=points[:3])
        assert len(Argoverse2Pairs(tmp_path / "q.npz")[0].source) == 3
