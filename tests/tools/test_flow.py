import numpy as np
import pytest

from sparse3d.datasets.clouds import read_cloud
from sparse3d.engine.flow import predict_flow
from sparse3d.structures.ply import read_ply
from tests.models.test_delta_flow import scene
from tools import flow as tool


@pytest.fixture
def clouds(tmp_path):
    pair = scene(ground=4000)
    paths = [tmp_path / name for name in ("a.npy", "b.npy")]
    for path, points in zip(paths, (pair.source, pair.target)):
        np.save(path, points.numpy())
    return paths


def test_two_bare_clouds_in_flow_out(clouds, tmp_path, capsys):
    source = np.load(clouds[0])
    source[7] = np.nan
    np.save(clouds[0], source)
    with pytest.warns(UserWarning, match="1 of 8400 points of the source"):
        tool.main([str(clouds[0]), str(clouds[1]), "--out", str(tmp_path / "out")])
    said = capsys.readouterr().out
    assert "ego motion found by registration: 0.4" in said and "frame of the flow: B's" in said
    assert "1 and 0 that are no numbers were dropped" in said and "move by themselves" in said
    table = np.load(tmp_path / "out/flow.npy")
    assert table.shape == (8400, 6) and np.isnan(table).all(1).sum() == 1
    np.testing.assert_allclose(table[-400:, 3].mean(), 0.9, atol=0.1)
    assert len(read_ply(tmp_path / "out/flow.ply")["vertex"]) == 8399
    assert (tmp_path / "out/residual.png").stat().st_size > 1000


def test_poses_are_used(clouds, tmp_path, capsys):
    pair = scene(ground=4000)
    poses = np.stack([pair.ego_motion.numpy(), np.eye(4)])
    np.savetxt(tmp_path / "poses.txt", poses.reshape(2, 16))
    arguments = [*map(str, clouds), "--poses", str(tmp_path / "poses.txt")]
    tool.main([*arguments, "--out", str(tmp_path / "out")])
    assert "ego motion given: 0.403 m" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--seconds", "-0.1"], "target must come after the source"),
        (["--scale", "1000"], "in millimetres"),
        (["--poses", "none.txt"], "no file of poses"),
        (["--checkpoint", "x.pth"], "needs the --config"),
        (["--config", "configs/flow/delta_flow_world.py"], "give its weights"),
    ],
)
def test_mistakes_are_said_in_one_line(clouds, arguments, message):
    with pytest.raises(SystemExit, match=message):
        tool.main([*map(str, clouds), *arguments])


def test_poses_and_clouds_that_cannot_be():
    points = np.random.default_rng(0).uniform(-9, 9, (50, 3))
    with pytest.raises(ValueError, match="only one pose"):
        predict_flow(points, points, np.eye(4))
    with pytest.raises(ValueError, match=r"the target's pose .* not rigid"):
        predict_flow(points, points, np.eye(4), np.eye(4) * 2)
    with pytest.raises(ValueError, match="rows of x, y, z"):
        predict_flow(points[:, :2], points)
    for nothing in (points[:0], points * np.nan):
        with pytest.raises(ValueError, match="the target has no points"):
            predict_flow(points, nothing)
        with pytest.raises(ValueError, match="the source has no points"):
            predict_flow(nothing, points)


def test_an_ego_motion_that_cannot_be_is_refused(clouds):
    source, target = (np.load(path) for path in clouds)
    with pytest.raises(ValueError, match=r"ego motion of \d+ m in 0.1 s, which cannot be"):
        predict_flow(source, target + 500)
    with pytest.raises(ValueError, match=r"only \d+% of .*: the clouds are of two places"):
        predict_flow(source, np.random.default_rng(0).uniform(-30, 30, (3000, 3)))
    with pytest.warns(UserWarning, match=r"only \d+% of .*: the flow is doubtful"):
        predict_flow(source, target[target[:, 0] > 0])


def test_both_clouds_of_a_pair_in_one_file_are_read(clouds, tmp_path, capsys):
    source, target = (np.load(path) for path in clouds)
    pair = str(tmp_path / "pair.npz")
    np.savez(pair, pc0=source, pc1=target[:-1])
    tool.main([pair, pair, "--out", str(tmp_path / "out")])
    assert "8400 points of A, 8399 of B" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="holds both clouds of a pair, pc0 and pc1"):
        tool.main([pair, str(clouds[1])])


def test_the_same_cloud_twice_is_warned_of(clouds, tmp_path):
    with pytest.warns(UserWarning, match="hold the same points"):
        tool.main([str(clouds[0])] * 2 + ["--out", str(tmp_path / "out")])


def test_rows_of_another_width_are_noticed(clouds, tmp_path):
    source = np.load(clouds[0])
    ring = np.arange(len(source), dtype=np.float32) % 32
    rows = np.concatenate([source, 255 * np.ones((len(source), 1)), ring[:, None]], 1)
    path = tmp_path / "a.bin"
    rows.astype(np.float32).tofile(path)
    with pytest.raises(SystemExit, match=r"looks like rows of 5 columns.*--columns 5"):
        tool.main([str(path), str(clouds[1])])
    np.testing.assert_array_equal(read_cloud(path, 5), source)
    assert read_cloud(path, 4).shape == (len(source) * 5 // 4, 3)
    rows[:, :4].astype(np.float32).tofile(path)
    np.testing.assert_array_equal(read_cloud(path), source)
