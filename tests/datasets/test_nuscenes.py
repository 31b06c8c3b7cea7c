"""nuScenes: tables written here with a known motion, and real frames."""

import json

import numpy as np
import pytest
import torch

from sparse3d.datasets.nuscenes import CLASSES, NuScenesDataset
from sparse3d.datasets.nuscenes_tables import rotation
from sparse3d.registry import DATASETS
from tests.conftest import real_data

KEY_EVERY = 10  # sweeps from one key frame to the next
STEP = 50_000  # microseconds from sweep to sweep
SPEED = np.array([3.0, -1.0, 0.0])  # of the moving car, global, m/s


def quaternion(yaw, pitch=0.0):
    """About z, then about y."""
    first = np.array([np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)])
    c, s = np.cos(pitch / 2), np.sin(pitch / 2)
    w, _, _, z = first
    return [w * c, -z * s, w * s, z * c]


def matrix(record):
    out = np.eye(4)
    out[:3, :3] = rotation(np.array(record["rotation"]))
    out[:3, 3] = record["translation"]
    return out


def ego_pose(number):
    """The vehicle drives a bend on a slope."""
    return {
        "token": f"ego{number}",
        "timestamp": 1_000_000 + number * STEP,
        "translation": [100 + 0.4 * number, 50 + 0.02 * number**2, 1 + 0.01 * number],
        "rotation": quaternion(0.7 + 0.03 * number, 0.01 * number),
    }


RIG = {
    "token": "rig_lidar",
    "sensor_token": "sensor_lidar",
    "translation": [0.94, 0.0, 1.84],
    "rotation": quaternion(-1.57, 0.02),
    "camera_intrinsic": [],
}
CAMERA_RIG = {
    "token": "rig_camera",
    "sensor_token": "sensor_camera",
    "translation": [1.7, 0.0, 1.5],
    "rotation": [0.5, -0.5, 0.5, -0.5],  # camera z ahead, x to the right, y down
    "camera_intrinsic": [[1266.0, 0, 800], [0, 1266.0, 450], [0, 0, 1]],
}
AROUND = np.random.default_rng(0).uniform(-30, 30, (300, 3))
# Never within a metre of the vehicle on its way.
WORLD = AROUND[np.hypot(AROUND[:, 0], AROUND[:, 1]) > 12] + [104, 52, 0]


class World:
    """A folder of tables: one scene, three key frames, sweeps between them, static points."""

    def __init__(self, root, labels=True):
        self.root = root
        self.tables = root / "v1.0-mini"
        self.tables.mkdir(parents=True)
        (root / "samples").mkdir()
        last = 2 * KEY_EVERY
        self.write("sensor", [{"token": "sensor_lidar", "channel": "LIDAR_TOP"}], camera=True)
        self.write("calibrated_sensor", [RIG, CAMERA_RIG])
        self.write("ego_pose", [ego_pose(n) for n in [*range(last + 1), 0.3]])
        self.write("scene", [{"token": "scene", "name": "scene-0061"}])
        self.write("sample_data", [self.sweep(n, last) for n in range(last + 1)] + [self.picture()])
        times = [1_000_000 + k * KEY_EVERY * STEP for k in range(3)]
        self.write(
            "sample",
            [
                {"token": f"sample{k}", "scene_token": "scene", "timestamp": time}
                for k, time in enumerate(times)
            ],
        )
        if labels:
            self.write_labels(times)

    def write(self, table, records, camera=False):
        if camera:
            records = [*records, {"token": "sensor_camera", "channel": "CAM_FRONT"}]
        (self.tables / f"{table}.json").write_text(json.dumps(records))

    def sweep(self, number, last):
        to_global = matrix(ego_pose(number)) @ matrix(RIG)
        local = (np.linalg.inv(to_global) @ np.c_[WORLD, np.ones(len(WORLD))].T).T[:, :3]
        own = [[0.5, -0.9, -1.0], [0.5, 1.5, -1.0]]  # on the vehicle, and just beside it
        points = np.zeros((len(WORLD) + 2, 5), np.float32)
        points[:, :3] = np.r_[local, own]
        points[:, 3], points[:, 4] = number, 7
        name = f"samples/{number}.pcd.bin"
        points.tofile(self.root / name)
        return {
            "token": f"sweep{number}",
            "sample_token": f"sample{(number + KEY_EVERY - 1) // KEY_EVERY}",
            "ego_pose_token": f"ego{number}",
            "calibrated_sensor_token": "rig_lidar",
            "timestamp": ego_pose(number)["timestamp"],
            "is_key_frame": number % KEY_EVERY == 0,
            "filename": name,
            "prev": f"sweep{number - 1}" if number else "",
            "next": f"sweep{number + 1}" if number < last else "",
        }

    def picture(self):
        """The camera fires a little after the LiDAR of sample 0."""
        return {
            "token": "picture",
            "sample_token": "sample0",
            "ego_pose_token": "ego0.3",
            "calibrated_sensor_token": "rig_camera",
            "timestamp": ego_pose(0.3)["timestamp"],
            "is_key_frame": True,
            "filename": "samples/front.jpg",
            "width": 1600,
            "height": 900,
            "prev": "",
            "next": "",
        }

    def write_labels(self, times):
        categories = ["vehicle.car", "human.pedestrian.adult", "animal"]
        self.write("category", [{"token": c, "name": c} for c in categories])
        self.write("attribute", [{"token": "moving", "name": "vehicle.moving"}])
        self.write("instance", [{"token": c, "category_token": c} for c in categories])
        records = []
        for k, time in enumerate(times):
            center = np.array([110, 60, 1]) + SPEED * 1e-6 * (time - times[0])
            records.append(self.label("vehicle.car", k, center, len(times)))
            records.append(self.label("human.pedestrian.adult", k, [90.0, 45, 1], len(times)))
        records.append(self.label("animal", 0, [95.0, 45, 1], 1))
        self.write("sample_annotation", records)

    def label(self, category, k, center, count):
        is_car = category == "vehicle.car"
        return {
            "token": f"{category}{k}",
            "sample_token": f"sample{k}",
            "instance_token": category,
            "attribute_tokens": ["moving"] if is_car else [],
            "translation": list(center),
            "size": [1.9, 4.6, 1.7] if is_car else [0.6, 0.7, 1.8],
            "rotation": quaternion(0.4),
            "prev": f"{category}{k - 1}" if k else "",
            "next": f"{category}{k + 1}" if k < count - 1 else "",
            "num_lidar_pts": 5 if is_car else k,
            "num_radar_pts": 0,
        }


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


# ---------------------------------------------------------------------- sweeps


def test_static_points_come_back_to_the_same_place(world):
    sample = NuScenesDataset(world.root)[2]
    sweeps = sample.points.split([len(WORLD) + 2] + [len(WORLD) + 1] * 9)
    for number, points in enumerate(sweeps):
        assert torch.allclose(points[: len(WORLD), :3], sweeps[0][: len(WORLD), :3], atol=2e-4)
        assert torch.allclose(points[:, 4], torch.tensor(1e-6 * number * STEP))
        assert torch.allclose(points[:, 3], torch.tensor((20 - number) / 255))
    place = matrix(ego_pose(20)) @ matrix(RIG)
    back = sweeps[0][: len(WORLD), :3].double().numpy() @ place[:3, :3].T + place[:3, 3]
    assert np.abs(back - WORLD).max() < 1e-4


def test_returns_of_the_own_car_are_dropped_from_past_sweeps_only(world):
    sample = NuScenesDataset(world.root, sweeps=2)[1]
    assert len(sample.points) == 2 * len(WORLD) + 2 + 1
    assert sample.points[len(WORLD)].tolist() == pytest.approx([0.5, -0.9, -1, 10 / 255, 0])


def test_the_first_frame_has_the_sweeps_that_there_are(world):
    sample = NuScenesDataset(world.root, sweeps=10)[0]
    assert len(sample.points) == len(WORLD) + 2


def test_intensity_as_published_weights_expect_it(world):
    sample = NuScenesDataset(world.root, sweeps=1, intensity="raw")[2]
    assert (sample.points[:, 3] == 20).all() and (sample.points[:, 4] == 0).all()


def test_the_choice_of_sweeps_is_seeded(world):
    def lags(seed, epoch=0):
        dataset = NuScenesDataset(world.root, sweeps=4, history=9, seed=seed)
        dataset.set_epoch(epoch)
        return dataset[2].points[:, 4].unique().tolist()

    assert len(lags(0)) == 4 and lags(0) == lags(0)
    assert len({tuple(lags(0, epoch)) for epoch in range(6)}) > 1
    assert len({tuple(lags(seed)) for seed in range(6)}) > 1


# ---------------------------------------------------------------------- labels


def test_boxes_are_in_the_lidar_frame_with_velocity(world):
    sample = NuScenesDataset(world.root)[1]
    assert [CLASSES[i] for i in sample.labels] == ["car", "pedestrian"]
    place = np.linalg.inv(matrix(ego_pose(KEY_EVERY)) @ matrix(RIG))
    center = np.array([110, 60, 1]) + SPEED * 1e-6 * KEY_EVERY * STEP
    car = sample.boxes.tensor[0].double().numpy()
    assert car[:3] == pytest.approx(place[:3, :3] @ center + place[:3, 3], abs=1e-4)
    assert car[3:6] == pytest.approx([4.6, 1.9, 1.7])
    heading = place[:3, :3] @ [np.cos(0.4), np.sin(0.4), 0]
    assert car[6] == pytest.approx(np.arctan2(heading[1], heading[0]), abs=1e-6)
    assert car[7:] == pytest.approx((place[:3, :3] @ SPEED)[:2], abs=1e-5)
    assert sample.boxes.tensor[1, 7:].abs().max() < 1e-6  # the pedestrian stands


def test_at_the_ends_of_a_track_one_neighbour_gives_the_velocity(world):
    dataset = NuScenesDataset(world.root, class_names=["car"])
    for index in (0, 2):
        velocity = dataset[index].boxes.velocity
        assert velocity.norm() == pytest.approx(np.linalg.norm(SPEED), abs=0.05)


def test_an_unknown_velocity_is_zero_and_nan_in_the_truth(world):
    sample = NuScenesDataset(world.root, class_names=["animal"], min_points=0)[0]
    assert sample.names == ["animal"] and sample.boxes.velocity.tolist() == [[0, 0]]
    truth = sample.meta["nuscenes"]
    assert np.isnan(truth["boxes"][truth["name"] == "animal", 7:]).all()
    assert truth["attribute"].tolist() == ["vehicle.moving", "", ""]


def test_boxes_without_points_are_dropped(world):
    assert NuScenesDataset(world.root)[0].names == ["car"]
    assert NuScenesDataset(world.root, min_points=0)[0].names == ["car", "pedestrian"]
    assert len(NuScenesDataset(world.root)[0].meta["nuscenes"]["boxes"]) == 3


def test_a_version_without_labels_loads(tmp_path):
    sample = NuScenesDataset(World(tmp_path, labels=False).root)[1]
    assert sample.boxes is None and len(sample.points) > 0


def test_the_camera_moves_between_its_picture_and_the_sweep(world):
    camera = NuScenesDataset(world.root)[0].cameras["CAM_FRONT"]
    assert camera.size == (1600, 900)
    lidar, at_picture = matrix(ego_pose(0)) @ matrix(RIG), matrix(ego_pose(0.3))
    point = np.array([130.0, 70, 2])
    local = np.linalg.inv(lidar) @ [*point, 1]
    seen = np.linalg.inv(at_picture @ matrix(CAMERA_RIG)) @ [*point, 1]
    found = camera.to_camera(torch.from_numpy(local[:3]))
    assert found.tolist() == pytest.approx(seen[:3].tolist(), abs=1e-9)


# ---------------------------------------------------------------------- choosing and refusing


def test_splits_choose_scenes(world):
    config = {"type": "NuScenesDataset", "data_root": str(world.root), "version": "v1.0-mini"}
    (world.root / "splits").mkdir()
    (world.root / "splits" / "mine.txt").write_text("scene-0061\n")
    dataset = DATASETS.build({**config, "split": "mine"})
    assert [f.token for f in dataset.frames] == ["sample0", "sample1", "sample2"]
    with pytest.raises(ValueError, match="scene-0103 for one"):
        DATASETS.build({**config, "split": "mini_val"})
    with pytest.raises(ValueError, match=r"split is 'nonsense'.*splits/nonsense\.txt"):
        DATASETS.build({**config, "split": "nonsense"})


@pytest.mark.parametrize(
    "change, message",
    [
        ({"sweeps": 0}, "sweeps is 0"),
        ({"sweeps": 5, "history": 3}, "history 3"),
        ({"intensity": "bright"}, "'unit' or 'raw'"),
        ({"version": "v1.0-trainval"}, r"\['v1.0-mini'\]"),
    ],
)
def test_arguments_are_checked(world, change, message):
    with pytest.raises(ValueError, match=message):
        NuScenesDataset(world.root, **change)


def test_a_missing_table_is_named(world):
    (world.tables / "ego_pose.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"ego_pose\.json"):
        NuScenesDataset(world.root)


def test_a_folder_with_nothing_says_what_to_give(tmp_path):
    with pytest.raises(ValueError, match="give version or ann_file"):
        NuScenesDataset(tmp_path)


def test_a_file_of_another_point_width_is_refused(world):
    np.zeros((7, 4), np.float32).tofile(world.root / "samples" / "20.pcd.bin")
    with pytest.raises(ValueError, match=r"20\.pcd\.bin has 112 bytes.*5 float32"):
        NuScenesDataset(world.root)[2]


def test_an_info_file_with_sweeps_equals_the_tables(world):
    """mmdet3d's info file of the last key frame, with its past sweeps."""
    tables = NuScenesDataset(world.root)
    objects = tables.frames[2].objects
    table = {name: number for number, name in enumerate(CLASSES)}

    def lidar(number):
        return {
            "timestamp": 1e-6 * ego_pose(number)["timestamp"],
            "ego2global": matrix(ego_pose(number)).tolist(),
            "lidar_points": {
                "lidar_path": f"samples/{number}.pcd.bin",
                "lidar2ego": matrix(RIG).tolist(),
            },
        }

    instances = [
        {
            "bbox_3d": box[:7].tolist(),
            "velocity": box[7:].tolist(),
            "bbox_label_3d": table[name],
            "num_lidar_pts": int(points),
            "num_radar_pts": 0,
        }
        for box, name, points in zip(objects["boxes"], objects["name"], objects["num_lidar_points"])
    ]
    entry = {**lidar(20), "token": "sample2", "instances": instances}
    entry["lidar_sweeps"] = [lidar(20 - n) for n in range(1, 10)]
    content = {"metainfo": {"categories": table}, "data_list": [entry]}
    (world.root / "infos.json").write_text(json.dumps(content))
    found, expected = NuScenesDataset(world.root, ann_file="infos.json")[0], tables[2]
    assert torch.allclose(found.points, expected.points, atol=1e-5)
    assert torch.allclose(found.boxes.tensor, expected.boxes.tensor, atol=1e-5)
    assert found.names == expected.names


# ---------------------------------------------------------------------- real frames

NUSCENES = pytest.mark.parametrize("root", real_data("nuscenes"), ids=lambda p: p.name)


@pytest.mark.real_data
@NUSCENES
def test_real_boxes_hold_the_points_that_the_labels_say(root):
    files = [p.name for p in sorted(root.glob("*.json"))] or [None]
    for name in files:
        for sample in NuScenesDataset(root, ann_file=name, sweeps=1):
            truth = sample.meta["nuscenes"]
            usable = (truth["num_lidar_points"] >= 1) & np.isin(truth["name"], CLASSES)
            said = truth["num_lidar_points"][usable]
            inside = sample.boxes.contains(sample.points).sum(1).numpy()
            assert len(said) == len(inside) > 0
            assert np.corrcoef(said, inside)[0, 1] > 0.99
            assert (np.abs(said - inside) <= 0.2 * said + 3).mean() > 0.95


@pytest.mark.real_data
@NUSCENES
def test_real_frames_have_cameras_around_and_unit_intensity(root):
    files = [p.name for p in sorted(root.glob("*.json"))] or [None]
    for sample in (s for name in files for s in NuScenesDataset(root, ann_file=name)):
        assert sample.points.shape[1] == 5 and sample.points[:, 3].min() >= 0
        assert sample.points[:, 3].max() <= 1
        seen = torch.stack([c.sees(sample.points[:, :3]) for c in sample.cameras.values()])
        assert (seen.sum(1) > 100).all()
        assert (seen.sum(0) <= 2).all()  # neighbours overlap a little, three never do
