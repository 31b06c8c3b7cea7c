"""tools/prepare_data.py from the command line."""

import numpy as np
import pytest

from sparse3d.datasets.sampling import ObjectDatabase
from tests.conftest import real_data
from tests.datasets.test_kitti import write_frame
from tools.prepare_data import main, parse_args


@pytest.fixture
def config(tmp_path):
    """A config over a KITTI folder of two frames with a car that holds points."""
    draw = np.random.default_rng(0)
    for frame in ("000000", "000001"):
        car = draw.uniform(-0.5, 0.5, (60, 3)) * [3.9, 1.5, 1.4] + [20.27, 0, -0.83]
        ground = draw.uniform([2, -20, -1.7], [60, 20, -1.6], (500, 3))
        points = np.c_[np.r_[car, ground], draw.uniform(0, 1, 560)]
        write_frame(tmp_path / "kitti", frame, points=points)
    path = tmp_path / "config.py"
    path.write_text(
        f"""
sampling = dict(type="GroundTruthSampling", database="{tmp_path}/objects", counts=dict(Car=5))
dataset = dict(
    type="KittiDataset", data_root="{tmp_path}/kitti", class_names=["Car"],
    point_range=[0, -40, -3, 70.4, 40, 1], transforms=[sampling, dict(type="RandomFlip")],
)
train_dataloader = dict(batch_size=1, dataset=dataset)
"""
    )
    return path


def test_database_is_written_where_the_config_reads_it(config, capsys):
    assert main(["database", str(config)]) == 0
    objects = ObjectDatabase.open(config.parent / "objects" / "Car.npz")
    assert len(objects) == 2 and objects.sample_ids == ["000000", "000001"]
    assert (objects.counts >= 55).all() and objects.boxes.shape == (2, 7)
    assert "2 objects" in capsys.readouterr().out


def test_database_takes_a_folder_and_a_limit(config, tmp_path):
    arguments = ["database", str(config), "--out", str(tmp_path / "few"), "--limit", "1"]
    assert main(arguments) == 0
    first = ObjectDatabase.open(tmp_path / "few" / "Car.npz")
    assert len(first) == 1
    assert main(arguments) == 0
    assert ObjectDatabase.open(tmp_path / "few" / "Car.npz").sample_ids == first.sample_ids


def test_check_is_content_with_good_data(config, capsys):
    assert main(["check", str(config)]) == 0
    out = capsys.readouterr().out
    assert "2 frames" in out and "nothing serious found" in out


def test_check_says_what_is_wrong_and_exits_with_1(config, capsys):
    option = "train_dataloader.dataset.class_names=['car']"
    assert main(["check", str(config), "--cfg-options", option]) == 1
    out = capsys.readouterr().out
    assert "no box is a 'car'" in out and "Car (2)" in out and "remedy" in out


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["check", "--subset", "val"], "has no val_dataloader"),
        (["check", "--cfg-options", "train_dataloader.dataset.data_root=/nowhere"], "/nowhere"),
        (["database", "--cfg-options", "train_dataloader.dataset.transforms=[]"], "--out FOLDER"),
    ],
)
def test_mistakes_are_told_without_a_traceback(config, arguments, message):
    with pytest.raises(SystemExit, match=f"^error: .*{message}"):
        main([arguments[0], str(config), *arguments[1:]])


def test_world_makes_frames_of_the_asked_splits(tmp_path, capsys):
    pytest.importorskip("open3d")
    arguments = ["world", "--root", str(tmp_path), "--name", "small", "--sensor", "hdl32"]
    assert main([*arguments, "--train", "1", "--seed", "3"]) == 0
    assert len(list((tmp_path / "small" / "train").glob("*.npz"))) == 1
    assert "1 train" in capsys.readouterr().out


def test_a_command_is_needed():
    with pytest.raises(SystemExit):
        parse_args([])


@pytest.mark.real_data
@pytest.mark.parametrize("root", real_data("kitti"), ids=lambda p: p.name)
def test_real_frames_give_a_database(root, tmp_path, capsys):
    path = tmp_path / "config.py"
    path.write_text(
        f'train_dataloader = dict(dataset=dict(type="KittiDataset", data_root="{root}"))\n'
    )
    assert main(["database", str(path), "--out", str(tmp_path / "objects")]) == 0
    cars = ObjectDatabase.open(tmp_path / "objects" / "Car.npz")
    assert len(cars) > 0 and cars.counts.min() >= 1 and np.isfinite(cars.points).all()


def test_rooms_with_pictures(tmp_path, capsys):
    root = ["--root", str(tmp_path), "--name", "small"]
    assert main(["rooms", *root, "--val", "1", "--points", "2000", "--sentences", "3"]) == 0
    assert (tmp_path / "small" / "val" / "000000.npz").exists()
    views = ["--pictures", "1", "--frames", "2", "--queries", "1", "--size", "48", "36"]
    assert main(["rooms", *root, *views]) == 0
    assert not (tmp_path / "small" / "train").exists()
    folder = tmp_path / "small" / "pictures" / "train-000000"
    assert len(list(folder.glob("seq-0*/*.color.png"))) == 3
    assert "2 pictures and 1 queries" in capsys.readouterr().out


def test_negative_number_of_rooms_is_refused(tmp_path):
    with pytest.raises(SystemExit, match="must be 0 or more"):
        main(["rooms", "--root", str(tmp_path), "--train", "-1"])
