"""The base of the data sets: classes, seeding, range, and what it does with bad files."""

import subprocess
import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from sparse3d.datasets.base import PointDataset, image_size, read_image, read_points
from sparse3d.structures import Boxes, Sample, collate


class Fixed(PointDataset):
    """Yields one given sample three times."""

    sample = Sample(torch.zeros(0, 4))

    def __len__(self):
        return 3

    def load(self, index, generator):
        return replace(self.sample, meta={"sample_id": str(index), "lidar_path": f"{index}.bin"})


def noise(sample, generator):
    """A transform whose result is its random number."""
    return replace(sample, points=torch.full((1, 4), generator.random()))


@pytest.fixture
def fixed(tmp_path):
    def make(sample=Fixed.sample, class_names=("car", "cyclist"), **options):
        dataset = Fixed(tmp_path, class_names, **options)
        dataset.sample = sample
        return dataset

    return make


def scene(boxes, names):
    return Sample(torch.zeros(1, 4), boxes=Boxes(torch.tensor(boxes).float()), names=names)


def test_empty_cloud_is_legal(fixed):
    sample = fixed(point_range=(0, 0, 0, 1, 1, 1))[0]
    assert sample.points.shape == (0, 4) and sample.boxes is None


def test_labels_follow_the_order_of_classes_and_others_are_dropped(fixed):
    boxes = [[1, 0, 0, 4, 2, 1, 0], [2, 0, 0, 2, 1, 1, 0], [3, 0, 0, 1, 1, 1, 0]]
    sample = scene(boxes, ["Cyclist", "tram", "car"])
    found = fixed(sample, class_map={"Cyclist": "cyclist"})[0]
    assert found.labels.tolist() == [1, 0] and found.names == ["Cyclist", "car"]
    assert found.boxes.centers[:, 0].tolist() == [1, 3]
    assert fixed(sample, keep_ignored=True)[0].labels.tolist() == [-1, -1, 0]
    assert found.meta["class_names"] == ["car", "cyclist"]


def test_range_drops_points_and_box_centres(fixed):
    sample = scene([[9.9, 0, 5, 4, 2, 1, 0], [10.1, 0, 0, 4, 2, 1, 0]], ["car", "car"])
    sample.points = torch.tensor([[0.0, 0, 0, 0], [10, 0, 0, 0], [5, 0, 2, 0], [-0.1, 0, 0, 0]])
    found = fixed(sample, point_range=(0, -1, -1, 10, 1, 1))[0]
    assert found.points[:, 0].tolist() == [0]
    assert found.boxes.centers[0].tolist() == pytest.approx([9.9, 0, 5])


def test_bad_points_are_dropped_with_one_warning(fixed):
    points = torch.arange(20.0).reshape(5, 4)
    points[1, 0], points[3, 3] = torch.nan, torch.inf
    with pytest.warns(UserWarning, match=r"0\.bin: 2 of 5 points") as caught:
        sample = fixed(Sample(points))[0]
    assert len(caught) == 1 and sample.points[:, 0].tolist() == [0, 8, 16]


@pytest.mark.parametrize("column, value", [(3, -1.0), (5, 0.0), (0, torch.nan), (6, torch.inf)])
def test_bad_boxes_are_dropped_with_one_warning(fixed, column, value):
    sample = scene([[1.0, 0, 0, 4, 2, 1, 0]] * 3, ["car"] * 3)
    sample.boxes.tensor[1, column] = value
    with pytest.warns(UserWarning, match="1 of 3 boxes") as caught:
        found = fixed(sample)[0]
    assert len(caught) == 1 and len(found.boxes) == len(found.labels) == len(found.names) == 2


def test_good_data_gives_no_warning(fixed):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(fixed(scene([[1, 0, 0, 4, 2, 1, 0]], ["car"]))[0].boxes) == 1


def test_random_numbers_depend_on_seed_epoch_and_index_alone(fixed):
    dataset = fixed(transforms=[noise], seed=3)
    values = [dataset[i].points[0, 0].item() for i in (0, 1, 2)]
    assert len(set(values)) == 3
    assert [dataset[i].points[0, 0].item() for i in (2, 0, -1)] == [values[i] for i in (2, 0, 2)]
    dataset.set_epoch(1)
    assert dataset[0].points[0, 0].item() not in values
    dataset.set_epoch(0)
    assert dataset[0].points[0, 0].item() == values[0]
    assert fixed(transforms=[noise], seed=4)[0].points[0, 0].item() not in values
    with pytest.raises(IndexError):
        dataset[3]


def test_workers_see_the_same_numbers_and_a_later_epoch(fixed):
    dataset = fixed(transforms=[noise])
    loader = DataLoader(dataset, num_workers=2, persistent_workers=True, collate_fn=collate)
    for epoch in (0, 1):
        dataset.set_epoch(epoch)
        loaded = [item["batch"].points[0, 0].item() for item in loader]
        assert loaded == [dataset[i].points[0, 0].item() for i in range(3)]


def test_a_transform_stops_at_its_epoch(fixed):
    class Once:
        stop_epoch = 2

        def __call__(self, sample, generator):
            return replace(sample, points=torch.ones(1, 4))

    dataset = fixed(transforms=[Once()])
    lengths = []
    for epoch in range(4):
        dataset.set_epoch(epoch)
        lengths.append(len(dataset[0].points))
    assert lengths == [1, 1, 0, 0]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"class_names": ()}, "at least one"),
        ({"class_names": ("car", "car")}, "each once"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_arguments_are_checked(fixed, change, message):
    with pytest.raises(ValueError, match=message):
        fixed(**change)


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Fixed(tmp_path / "nowhere", ["car"])


def test_points_are_read(tmp_path):
    points = np.arange(12, dtype=np.float32).reshape(3, 4)
    points.tofile(tmp_path / "a.bin")
    assert np.array_equal(read_points(tmp_path / "a.bin", 4), points)


def test_a_truncated_file_is_refused(tmp_path):
    path = tmp_path / "cut.bin"
    path.write_bytes(bytes(4 * 4 * 10 - 3))
    with pytest.raises(ValueError, match=r"cut\.bin has 157 bytes.*4 float32 \(16 B\)"):
        read_points(path, 4)


def test_another_point_width_is_refused(tmp_path):
    np.zeros((7, 5), np.float32).tofile(tmp_path / "wide.bin")
    with pytest.raises(ValueError, match="another width"):
        read_points(tmp_path / "wide.bin", 4)


def test_an_empty_file_is_an_empty_cloud(tmp_path):
    (tmp_path / "void.bin").touch()
    with pytest.warns(UserWarning, match=r"void\.bin holds no points"):
        assert read_points(tmp_path / "void.bin", 4).shape == (0, 4)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_pictures_are_rgb_and_their_size_is_width_height(tmp_path, suffix):
    import cv2

    image = np.zeros((6, 10, 3), np.uint8)
    image[..., 2] = 250  # red, in OpenCV's order
    path = tmp_path / f"red.{suffix}"
    cv2.imwrite(str(path), image)
    assert image_size(path) == (10, 6)
    assert read_image(path).shape == (6, 10, 3) and read_image(path)[..., 0].min() > 200


def test_a_damaged_picture_is_named(tmp_path):
    (tmp_path / "torn.jpg").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"torn\.jpg"):
        read_image(tmp_path / "torn.jpg")


def test_the_room_is_imported_without_the_heavy_libraries():
    """Reading points needs no ray caster and no image library."""
    code = (
        "import sys, sparse3d.datasets; from sparse3d.registry import DATASETS;"
        "assert DATASETS.get('KittiDataset') and DATASETS.get('NuScenesDataset');"
        "assert DATASETS.get('WorldStreets'); print('open3d' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == "False"
