"""What a user's mistakes and broken files meet: one line that names them, or a counted drop."""

import re
import sys
import warnings

import numpy as np
import pytest
import torch

from sparse3d.datasets.kitti import KittiDataset
from sparse3d.datasets.nuscenes_tables import read_tables
from sparse3d.datasets.sampling import ObjectDatabase
from sparse3d.datasets.world import WorldStreets
from sparse3d.engine.checkpoints import save_atomic
from sparse3d.engine.hooks import latest_checkpoint
from sparse3d.engine.optim import NotFiniteError
from sparse3d.engine.runner import build_runner, load_config
from sparse3d.models.detector import VoxelDetector
from sparse3d.registry import MODELS
from tests.tools.test_train_and_test import CONFIG as TOY
from tests.tools.test_train_and_test import ROOT, tool

INF, NAN = float("inf"), float("nan")

# ---------------------------------------------------------------------- files

LABEL = "{} 0 0 0 500 150 600 210 1.5 1.6 3.9 1 1.5 {} 0.1\n"
MATRICES = {
    "P2": "700 0 600 0 0 700 180 0 0 0 1 0",
    "R0_rect": "1 0 0 0 1 0 0 0 1",
    "Tr_velo_to_cam": "0 -1 0 0 0 0 -1 0 1 0 0 0",
}
SETTINGS = f"""
_base_ = ["{ROOT}/configs/_base_/runtime.py", "{ROOT}/configs/_base_/schedule_onecycle.py"]
class_names = ["Car", "Pedestrian"]
point_range = [0, -8, -2, 16, 8, 2]
model = dict(
    type="VoxelDetector", point_range=point_range, voxel_size=[1, 1, 4], class_names=class_names,
    encoder=dict(type="DynamicEncoder", channels=[8], pillar=True),
    backbone=dict(type="DSVT", channels=8, blocks=1, window=[8, 8, 1], set_size=8, heads=2),
    bev_backbone=dict(
        type="BEVBackbone", layer_nums=[1], strides=[1], channels=[8], up_strides=[1],
        up_channels=[8],
    ),
    head=dict(type="CenterHead", shared_channels=8),
)
dataset = dict(
    type="KittiDataset", data_root="FOLDER", class_names=class_names, point_range=point_range
)
shuffled, ordered = (dict(type="DefaultSampler", shuffle=shuffle) for shuffle in (True, False))
train_dataloader = dict(batch_size=2, num_workers=0, sampler=shuffled, dataset=dataset)
val_dataloader = dict(batch_size=2, num_workers=0, sampler=ordered, dataset=dataset)
val_evaluator = dict(type="KittiMetric")
train_cfg = dict(max_epochs=1)
"""


@pytest.fixture
def folder(tmp_path):
    """Two frames in KITTI's format, and a config of a small detector on them."""
    draw = np.random.default_rng(0)
    for name in ("velodyne", "calib", "label_2"):
        (tmp_path / name).mkdir()
    for frame in ("000000", "000001"):
        cloud = draw.uniform([4, -2, -2, 0], [16, 2, 2, 1], (120, 4)).astype(np.float32)
        cloud.tofile(tmp_path / f"velodyne/{frame}.bin")
        text = "".join(f"{key}: {row}\n" for key, row in MATRICES.items())
        (tmp_path / f"calib/{frame}.txt").write_text(text)
        rows = LABEL.format("Car", 8) + LABEL.format("Pedestrian", 10)
        (tmp_path / f"label_2/{frame}.txt").write_text(rows)
    (tmp_path / "config.py").write_text(SETTINGS.replace("FOLDER", str(tmp_path)))
    return tmp_path


@pytest.fixture
def weights(folder):
    """Initial weights of the folder's model."""
    torch.manual_seed(0)
    model = MODELS.build(load_config(folder / "config.py").model)
    save_atomic({"state_dict": model.state_dict()}, folder / "weights.pth")
    return folder / "weights.pth"


def cut_points(folder):
    path = folder / "velodyne/000001.bin"
    path.write_bytes(path.read_bytes()[:-7])


def edit_points(change):
    def damage(folder):
        path = folder / "velodyne/000001.bin"
        cloud = np.fromfile(path, np.float32).reshape(-1, 4)
        change(cloud).astype(np.float32).tofile(path)

    return damage


def put(row, column, value):
    def change(cloud):
        cloud[row, column] = value
        return cloud

    return change


def edit(part, old, new):
    def damage(folder):
        path = folder / part / "000001.txt"
        path.write_text(path.read_text().replace(old, new))

    return damage


def remove(name):
    return lambda folder: (folder / name).unlink()


DROPPED = {
    "NaN point": (edit_points(put(3, 0, NAN)), r"000001.bin: 1 of \d+ points are NaN"),
    "infinite intensity": (edit_points(put(3, 3, INF)), r"000001.bin: 1 of \d+ points are NaN"),
    "no point": (edit_points(lambda cloud: cloud[:0]), "000001.bin holds no points"),
    "out of range": (edit_points(lambda cloud: cloud * 10), "none of its .* in point_range"),
    "out of sight": (edit_points(lambda cloud: -cloud), "none of its .* in the picture"),
    "negative size": (edit("label_2", "1.5 1.6 3.9", "1.5 -1.6 3.9"), "2 of 2 boxes .*: dropped"),
    "NaN size": (edit("label_2", "3.9 1 1.5 8 ", "nan 1 1.5 8 "), "1 of 2 boxes .*: dropped"),
    "empty label file": (lambda folder: (folder / "label_2/000001.txt").write_text(""), None),
}


@pytest.mark.parametrize("case", DROPPED)
def test_what_can_be_dropped_is_counted_and_trained_on(folder, case):
    damage, message = DROPPED[case]
    damage(folder)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sample = KittiDataset(folder, ["Car", "Pedestrian"], point_range=[0, -8, -2, 16, 8, 2])[1]
    assert len(caught) == (message is not None)
    assert all(re.search(message, str(warning.message)) for warning in caught)
    assert sample.points.isfinite().all() and (sample.boxes.sizes > 0).all()
    assert len(sample.boxes) == len(sample.labels)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tool("train", folder / "config.py", "--work-dir", folder / "run")  # and it is evaluated
    assert (folder / "run/final.pth").is_file()


TYPO = "did you mean"
DAMAGED = {
    "cut points": (cut_points, r"000001.bin has \d+ bytes, no whole number of rows"),
    "label of words": (edit("label_2", "3.9", "long"), r"label_2/000001.txt cannot be read"),
    "short label": (edit("label_2", " 0.1\n", "\n"), r"label_2/000001.txt, line 1 has 14 values"),
    "binary label": (
        lambda folder: (folder / "label_2/000001.txt").write_bytes(bytes(range(128, 200))),
        r"label_2/000001.txt cannot be read",
    ),
    "missing label": (remove("label_2/000001.txt"), "'000001' has no boxes"),
    "missing calibration": (remove("calib/000001.txt"), "000001 .* no calibration"),
    "other calibration": (edit("calib", "P2", "P9"), r"calib/000001.txt has 0 values for P2"),
    "singular calibration": (edit("calib", "0 -1 0 0", "0 0 0 0"), "no invertible matrix"),
}


@pytest.mark.parametrize(("case", "workers"), [*((case, 0) for case in DAMAGED), ("cut points", 1)])
def test_damaged_files_are_named_in_one_line(folder, case, workers):
    damage, message = DAMAGED[case]
    damage(folder)
    options = ("--cfg-options", f"train_dataloader.num_workers={workers}")
    with pytest.raises(SystemExit, match=f"^error: .*{message}") as error:
        tool("train", folder / "config.py", "--work-dir", folder / "run", *options)
    assert "Traceback" not in str(error.value) and "\n" not in str(error.value)


def test_damaged_archives_and_tables_are_named(tmp_path):
    (tmp_path / "train").mkdir()
    frame, info = tmp_path / "train/000000.npz", tmp_path / "info.json"
    np.savez(frame, points=np.zeros((9, 4), np.float32))
    info.write_text('{"kinds": ["car"]}')
    world = WorldStreets(tmp_path, class_names=["car"])
    cut(0.5)(frame)
    with pytest.raises(ValueError, match=r"000000\.npz cannot be read"):
        world[0]
    with pytest.raises(ValueError, match=r"000000\.npz cannot be read"):
        ObjectDatabase.open(frame)
    cut(0.5)(info)
    with pytest.raises(ValueError, match=r"info\.json cannot be read"):
        WorldStreets(tmp_path, class_names=["car"])
    (tmp_path / "sensor.json").write_text('[{"token":')
    with pytest.raises(ValueError, match=r"sensor\.json cannot be read"):
        read_tables(tmp_path, None, 0)


# ---------------------------------------------------------------------- tools

MISTAKES = {
    "missing data": ("train_dataloader.dataset.data_root=/nowhere", "'/nowhere' is no folder"),
    "unknown model": ("model.type=VoxelDetectr", f"{TYPO} 'VoxelDetector'"),
    "unknown head": ("model.head.type=CenterHed", f"{TYPO} 'CenterHead'"),
    "unknown data set": ("train_dataloader.dataset.type=KitiDataset", f"{TYPO} 'KittiDataset'"),
    "unknown optimizer": ("optim_wrapper.optimizer.type=AdamWW", f"{TYPO} 'AdamW'"),
    "unknown setting": ("model.head.shared_chanels=8", f"{TYPO} 'shared_channels'"),
    "unknown data setting": ("train_dataloader.dataset.splt=a", f"{TYPO} 'split'"),
    "unknown loader setting": ("train_dataloader.batch_sise=1", "has no setting 'batch_sise'"),
    "unknown hook setting": ("default_hooks.checkpoint.intervall=1", f"{TYPO} 'interval'"),
    "unknown part": ("optim_wraper.optimizer.lr=1", "would change nothing"),
    "variable": ("class_names=[Car]", "would change nothing"),
    "data without their loader": (
        "data_root=elsewhere",
        r"did you mean train_dataloader\.dataset\.data_root or val_dataloader\.dataset\.data_root",
    ),
    "class in no label": ("train_dataloader.dataset.class_names=[Cars]", "in no label of .*'Car'"),
    "other classes": ("model.class_names=[Car]", "same class_names"),
    "no epochs": ("train_cfg.max_epochs=0", "max_epochs is 0"),
    "broken range": ("model.voxel_size=[0.3,1,4]", "nearest range that is"),
    "wide points": ("model.point_channels=9", "4 columns; the model takes 9"),
    "number for numbers": (
        "model.voxel_size=0.3",
        r"VoxelDetector's voxel_size is 0\.3; the config must give Sequence\[float\]",
    ),
    "word for a number": ("model.point_channels=many", "point_channels is 'many'; .*give int"),
    "word for a rate": ("optim_wrapper.optimizer.lr=fast", "AdamW's lr is 'fast'"),
    "word for workers": ("train_dataloader.num_workers=x", "num_workers is 'x'; .* whole number"),
    "word for an interval": ("train_cfg.val_interval=x", "val_interval is 'x'; .* whole number"),
    "number for a part": ("train_dataloader=7", "train_dataloader is 7; it must be a dict"),
    "class without its decorator": (
        "train_dataloader.dataset.type=MyData",
        r"needs @DATASETS\.register_module\(\).* its module in custom_imports",
    ),
    "no model": ("model=None", "has no model"),
    "diverging": ("optim_wrapper.optimizer.lr=1e30", "not finite"),
    "missing weights": ("load_from=/nowhere.pth", "/nowhere.pth does not exist"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_in_a_config_are_said_in_one_line(folder, case):
    option, message = MISTAKES[case]
    arguments = ("--work-dir", folder / "run", "--cfg-options", "train_cfg.max_epochs=3", option)
    with pytest.raises(SystemExit, match=f"^error: .*{message}") as error:
        tool("train", folder / "config.py", *arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model = dict(type=\n", "SyntaxError"),
        ("model = dict(type=foo)\n", "NameError: name 'foo'"),
        ('_base_ = ["missing.py"]\n', r"missing\.py"),
        ("train_dataloder = dict()\n", "'train_dataloder', which means nothing; did you mean"),
        ('custom_imports = dict(imports=["no_such_module"])\n', "no_such_module"),
        ("", "has no"),
        (None, "no config"),
    ],
)
@pytest.mark.parametrize("name", ["train", "test", "visualize", "prepare_data", "convert"])
def test_broken_configs_are_said_in_one_line(tmp_path, monkeypatch, name, text, message):
    monkeypatch.chdir(tmp_path)
    config, any_weights = tmp_path / "config.py", tmp_path / "weights.pth"
    if text is not None:
        config.write_text(text)
    save_atomic({"a": torch.zeros(1)}, any_weights)
    arguments = {
        "train": (config,),
        "test": (config, any_weights),
        "visualize": (config, any_weights),
        "prepare_data": ("check", config),
        "convert": (any_weights, "out.pth", "--config", config),
    }[name]
    with pytest.raises(SystemExit, match=f"^error: .*{message}") as error:
        tool("convert_checkpoint" if name == "convert" else name, *arguments)
    assert "Traceback" not in str(error.value)


def spoil(value):
    def damage(path):
        content = torch.load(path, weights_only=True)
        next(iter(content["state_dict"].values())).fill_(value)
        torch.save(content, path)

    return damage


def cut(share):
    return lambda path: path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


WEIGHTS = {
    "cut": (cut(0.5), (), r"weights.pth .*cannot be read: it is cut off"),
    "nearly whole": (cut(0.98), (), r"weights.pth .*cannot be read: it is cut off"),
    "empty": (cut(0), (), r"weights.pth \(0 bytes\) cannot be read"),
    "NaN": (spoil(NAN), (), "hold NaN or infinity"),
    "infinite": (spoil(INF), (), "hold NaN or infinity"),
    "missing": (lambda path: path.unlink(), (), "does not exist"),
    "of another model": (
        lambda path: None,
        ("--cfg-options", "model.head.shared_channels=16"),
        r"does not fit VoxelDetector; nothing was loaded:\n  \d+ of another shape",
    ),
}


@pytest.mark.parametrize("name", ["test", "visualize"])
@pytest.mark.parametrize("case", WEIGHTS)
def test_weights_that_cannot_be_used_are_named(folder, weights, case, name):
    damage, options, message = WEIGHTS[case]
    damage(weights)
    where = ("--work-dir", folder / "run") if name == "test" else ("--out", folder / "a.png")
    with pytest.raises(SystemExit, match=f"(?s)^error: .*{message}") as error:
        tool(name, folder / "config.py", weights, *where, *options)
    assert "Traceback" not in str(error.value)


def test_wrong_arguments_are_said_in_one_line(folder, weights, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    wrong = {
        "index is 99": ("visualize", "config.py", "--index", 99),
        "has no test_dataloader": ("visualize", "config.py", "--split", "test"),
        "torch.distributed.run": ("train", "config.py", "--launcher", "pytorch"),
        "sensor is 'nope'": ("prepare_data", "world", "--sensor", "nope", "--root", folder / "w"),
        "must be 0 or more": ("prepare_data", "world", "--train", -3, "--root", folder / "w"),
    }
    for message, arguments in wrong.items():
        with pytest.raises(SystemExit, match=f"^error: .*({message})"):
            tool(*arguments)
    with pytest.raises(SystemExit):
        tool("train", "config.py", "--cfg-options", "lr")
    assert "takes key.inner=value pairs, not 'lr'" in capsys.readouterr().err


def test_a_detector_is_not_trained_on_with_other_frames(folder, tmp_path):
    train = ("train", folder / "config.py", "--work-dir", folder / "run")
    tool(*train)
    cloud = np.fromfile(folder / "velodyne/000000.bin", np.float32)
    (cloud + 0.01).tofile(folder / "velodyne/000000.bin")
    with pytest.raises(SystemExit, match=f"^error: cannot resume .* other data of {folder} "):
        tool(*train, "--resume", "--cfg-options", "train_cfg.max_epochs=2")


@pytest.mark.parametrize("name", ["test", "visualize"])
def test_classes_in_another_order_are_refused(folder, weights, name):
    order = "[Pedestrian,Car]"
    where = ("--work-dir", folder / "run") if name == "test" else ("--out", folder / "a.png")
    data = f"val_dataloader.dataset.class_names={order}"
    with pytest.raises(SystemExit, match=r"^error: sample .* give model and data the same"):
        tool(name, folder / "config.py", weights, *where, "--cfg-options", data)
    content = torch.load(weights, weights_only=True)
    torch.save({**content, "meta": {"class_names": ["Car", "Pedestrian"]}}, weights)
    both = ("--cfg-options", data, f"model.class_names={order}")
    with pytest.raises(SystemExit, match=r"^error: .*weights.pth was trained for .*'Car', 'Ped"):
        tool(name, folder / "config.py", weights, *where, *both)


def test_what_cannot_be_written_is_said_before_the_work(folder, weights, monkeypatch):
    monkeypatch.setattr(VoxelDetector, "predict", None)  # would be called in the work
    work = ("--work-dir", folder / "run")
    config = folder / "config.py"
    with pytest.raises(SystemExit, match=f"^error: --out {folder} is a folder: name a file"):
        tool("test", config, weights, *work, "--out", folder)
    with pytest.raises(SystemExit, match=r"^error: --show-dir: .*a file is in the way"):
        tool("test", config, weights, *work, "--show-dir", weights)
    with pytest.raises(SystemExit, match=r"^error: --show-score is 30; scores are in 0\.\.1"):
        tool("test", config, weights, *work, "--show-score", 30)
    for option in ("--out", "--web", "--video", "--export"):
        with pytest.raises(SystemExit, match=f"^error: {option} {folder} is a folder"):
            tool("visualize", config, weights, option, folder)
    with pytest.raises(SystemExit, match=r"^error: --score is 30; scores are in 0\.\.1"):
        tool("visualize", config, weights, "--score", 30)
    with pytest.raises(SystemExit, match=f"^error: --out {folder} is a folder"):
        tool("export", config, weights, "--out", folder)


ENDINGS = {
    ("--out", "a.obj"): "--out a.obj: end the name in .png or .jpg or .jpeg",
    ("--video", "a.txt"): "--video a.txt: end the name in .mp4 or .avi",
    ("--export", "a.obj"): "--export a.obj: end the name in .ply or .splat",
    ("--web", "a.png"): "--web a.png: end the name in .html",
    ("--frames", "0"): "--frames is 0; a flight has two at least",
}


@pytest.mark.parametrize("option", ENDINGS, ids=" ".join)
def test_wrong_endings_are_said_before_the_work(folder, weights, monkeypatch, option):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(VoxelDetector, "predict", None)  # would be called in the work
    with pytest.raises(SystemExit, match=f"^error: {ENDINGS[option]}$"):
        tool("visualize", folder / "config.py", weights, *option)


def test_options_without_effect_are_refused(folder, weights):
    options = ("--video", folder / "a.mp4", "--export", folder / "a.ply")
    with pytest.raises(SystemExit, match=r"^error: --video and --export would have no effect: .*G"):
        tool("visualize", folder / "config.py", weights, *options)


def test_a_page_and_a_picture_are_written_together(folder, weights):
    pytest.importorskip("viser")
    page, out = folder / "a.html", folder / "a.png"
    tool("visualize", folder / "config.py", weights, "--web", page, "--out", out)
    assert page.is_file() and out.is_file()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems have a screen")
def test_a_window_without_a_screen_is_refused_at_once(folder, weights, monkeypatch):
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SystemExit, match=r"^error: a window needs a screen, .*--out.*--web"):
        tool("visualize", folder / "config.py", weights, "--window")


PHOTOGRAPHS = ("prepare_data", "poses", "photographs")
MISSING = {
    "viser": (("visualize", "config.py", "weights.pth", "--web", "a.html"), "viser"),
    "open3d": (("visualize", "config.py", "--view", "3d", "--out", "a.png"), "open3d-cpu"),
    "open3d of the world": (("prepare_data", "world", "--train", 1, "--root", "w"), "open3d-cpu"),
    "pycolmap": (PHOTOGRAPHS, "pycolmap"),
    "pyarrow": (("flow", "a.feather", "a.feather"), "pyarrow"),
    "onnxscript": (("export", "config.py", "--out", "m.pt2", "--onnx", "m.onnx"), "onnx "),
}


@pytest.mark.parametrize("case", MISSING)
def test_missing_packages_are_said_in_one_line(folder, weights, monkeypatch, case):
    arguments, package = MISSING[case]
    monkeypatch.chdir(folder)
    monkeypatch.setitem(sys.modules, case.split()[0], None)
    (folder / "a.feather").touch()
    (folder / "photographs").mkdir()
    with pytest.raises(SystemExit, match=f"^error: .*pip install {package}") as error:
        tool(*arguments)
    assert "\n" not in str(error.value)


def test_any_other_missing_module_keeps_its_traceback(folder, monkeypatch):
    def broken(*_):
        import a_module_that_is_not_there  # noqa: F401

    monkeypatch.setattr(VoxelDetector, "raw", broken)
    with pytest.raises(ModuleNotFoundError, match="a_module_that"):
        tool("train", folder / "config.py", "--work-dir", folder / "run")


def test_a_wrong_kind_that_no_setting_has_keeps_its_traceback(folder, monkeypatch):
    def broken(*_):
        return None + 1

    monkeypatch.setattr(VoxelDetector, "raw", broken)
    with pytest.raises(TypeError, match="unsupported operand"):
        tool("train", folder / "config.py", "--work-dir", folder / "run")


def test_models_of_another_task_are_refused(folder, weights):
    cloud = folder / "a.npy"
    np.save(cloud, np.zeros((9, 3)))
    model = ("--config", folder / "config.py", "--checkpoint", weights)
    with pytest.raises(SystemExit, match=r"^error: .*VoxelDetector, which finds no flow"):
        tool("flow", cloud, cloud, *model)
    config = ROOT / "configs/splatting/edgs_colmap.py"
    with pytest.raises(SystemExit, match=r"^error: .*SplattingModel; a program is made of a det"):
        tool("export", config, "--out", folder / "m.pt2")
    with pytest.raises(SystemExit, match=r"^error: no config 'nope\.py'; those delivered"):
        tool("export", "nope.py", "--out", folder / "m.pt2")
    wrong = ("--cfg-options", "model.head.shared_chanels=8")
    with pytest.raises(SystemExit, match=f"^error: .*{TYPO} 'shared_channels'"):
        tool("export", folder / "config.py", "--out", folder / "m.pt2", *wrong)


def test_no_database_is_made_of_classes_in_no_label(folder):
    option = "train_dataloader.dataset.class_names=[Cars]"
    arguments = ("database", folder / "config.py", "--out", folder / "objects")
    with pytest.raises(SystemExit, match=r"^error: .*in no label"):
        tool("prepare_data", *arguments, "--cfg-options", option)


def test_a_fault_of_the_programs_keeps_its_traceback(folder, monkeypatch):
    def broken(*_):
        raise KeyError("a bug")

    monkeypatch.setattr(VoxelDetector, "raw", broken)
    with pytest.raises(KeyError, match="a bug"):
        tool("train", folder / "config.py", "--work-dir", folder / "run")


def test_running_statistics_that_are_not_finite_are_never_saved(tmp_path):
    runner = build_runner(TOY, tmp_path)
    runner.train()
    kept = (tmp_path / "final.pth").read_bytes()
    runner = build_runner(TOY, tmp_path, resume=True, cfg_options={"train_cfg.max_epochs": 4})
    runner.model.layers[1].running_var.fill_(INF)  # as one overflow in a forward pass leaves it
    runner.load_or_resume = lambda: None
    with pytest.raises(NotFiniteError, match=r"running_var: .* is not written"):
        runner.train()
    assert (tmp_path / "final.pth").read_bytes() == kept
    assert latest_checkpoint(tmp_path).name == "epoch_3.pth"
