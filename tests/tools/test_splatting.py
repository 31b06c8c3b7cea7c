"""A scene of Gaussians by the tools: trained, killed and resumed, tested, shown and exported."""

import json
import shutil

import cv2
import numpy as np
import pytest
import torch

from sparse3d.engine.runner import build_runner
from sparse3d.structures import Gaussians
from tests.photographs import SIZE, K, cast, poses, write_colmap
from tests.tools.test_train_and_test import ROOT, tool

CONFIG = str(ROOT / "configs/splatting/edgs_colmap.py")
SMALL = {
    "train_dataloader.sampler.steps": 4,
    "train_cfg.max_epochs": 3,
    "train_cfg.val_interval": 3,
    "model.sh_degree": 1,
    "model.start.matches": 300,
    "default_hooks.checkpoint.interval": 1,
    "default_hooks.checkpoint.iterations": 2,
}


def options(root) -> list[str]:
    return ["--cfg-options", f"data_root={root}", *(f"{k}={v}" for k, v in SMALL.items())]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return write_colmap(tmp_path_factory.mktemp("place"), 5)


@pytest.fixture(scope="module")
def trained(place, tmp_path_factory):
    """The work folder of a training by the command line."""
    folder = tmp_path_factory.mktemp("trained")
    tool("train", CONFIG, "--work-dir", folder, *options(place))
    return folder


def state(path):
    return torch.load(path, weights_only=True)["state_dict"]


class Died(Exception):
    """Stands for a sudden end."""


def test_a_killed_run_ends_as_one_never_stopped(place, trained, tmp_path, monkeypatch):
    chosen = {"data_root": str(place), **SMALL}
    runner = build_runner(CONFIG, tmp_path, cfg_options=chosen)
    step = runner.bare_model.train_step

    def dying(*arguments, **named):
        if runner.iter == 7:
            raise Died
        return step(*arguments, **named)

    monkeypatch.setattr(runner.bare_model, "train_step", dying)
    with pytest.raises(Died):
        runner.train()
    build_runner(CONFIG, tmp_path, resume=True, cfg_options=chosen).train()
    whole, again = state(trained / "epoch_3.pth"), state(tmp_path / "epoch_3.pth")
    assert whole.keys() == again.keys()
    if torch.cuda.is_available():  # gsplat adds gradients in any order
        torch.testing.assert_close(again, whole, rtol=1e-2, atol=1e-3)
    else:
        assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_a_training_is_never_resumed_on_another_place(place, trained, tmp_path, capsys):
    run, moved = tmp_path / "run", tmp_path / "moved"
    shutil.copytree(trained, run)
    shutil.copytree(place, moved)
    other = write_colmap(tmp_path / "other", 6)
    resume = ("train", CONFIG, "--resume", "--work-dir", run)
    with pytest.raises(SystemExit, match=f"^error: .*{place}, not of {other}; .*--work-dir") as end:
        tool(*resume, *options(other))
    assert "\n" not in str(end.value)
    capsys.readouterr()
    tool(*resume, *options(moved), "train_cfg.max_epochs=4")  # the same place, elsewhere
    assert f"the data were in {place} and are now in {moved}" in "".join(capsys.readouterr())
    assert (run / "epoch_4.pth").is_file()


def test_the_held_out_views_are_judged_and_drawn(place, trained, tmp_path):
    out, show = tmp_path / "metrics.json", tmp_path / "show"
    weights = trained / "final.pth"
    paths = ("--out", out, "--show-dir", show, "--work-dir", tmp_path)
    tool("test", CONFIG, weights, *paths, *options(place))
    metrics = json.loads(out.read_text())
    assert 10 < metrics["psnr"] < 60 and 0 < metrics["ssim"] < 1
    assert metrics["gaussians"] == len(state(weights)["means"])
    assert [file.name for file in show.iterdir()] == ["view_00.png.png"]


def test_the_scene_is_shown_and_exported(place, trained, tmp_path, capsys):
    pytest.importorskip("viser")
    files = {"--out": "a.png", "--export": "a.ply", "--video": "a.avi", "--web": "a.html"}
    arguments = [x for name, file in files.items() for x in (name, tmp_path / file)]
    tool(
        "visualize",
        *(CONFIG, trained / "final.pth", *arguments, "--frames", 3, "--split", "train"),
        *options(place),
    )
    assert all((tmp_path / file).stat().st_size > 1000 for file in files.values())
    assert len(Gaussians.load(tmp_path / "a.ply")) == len(state(trained / "final.pth")["means"])
    assert "Gaussians to" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: None, "nowhere"),
        (lambda root: [p.unlink() for p in (root / "images").iterdir()], "cannot be used"),
        (lambda root: shutil.rmtree(root / "sparse"), "no COLMAP model"),
    ],
)
def test_what_is_missing_is_said_in_one_line(place, tmp_path, spoil, message):
    root = tmp_path / "nowhere"
    if message != "nowhere":
        shutil.copytree(place, root)
    spoil(root)
    with pytest.raises(SystemExit, match=f"^error: .*{message}"):
        tool("train", CONFIG, "--work-dir", tmp_path, *options(root))


def test_two_photographs_of_which_one_is_held_out(tmp_path):
    root = write_colmap(tmp_path / "two", 2)
    with pytest.raises(SystemExit, match=r"^error: .*has 1 photograph; .*of the 2 .*holdout=0"):
        tool("train", CONFIG, "--work-dir", tmp_path, *options(root))
    chosen = (*options(root), "train_dataloader.dataset.holdout=0", "train_cfg.max_epochs=1")
    tool("train", CONFIG, "--work-dir", tmp_path, *chosen)
    assert (tmp_path / "final.pth").is_file()


def test_what_is_held_out_is_blamed_for_nothing_else(tmp_path):
    root = write_colmap(tmp_path / "few", 5, text=True)
    path = root / "sparse/0/points3D.txt"
    rows = [line.split() for line in path.read_text().splitlines() if line[0] != "#"]
    path.write_text("\n".join(" ".join([*row[:2], "-50", *row[3:]]) for row in rows))
    with pytest.raises(SystemExit, match=r"^error: no camera sees any") as caught:
        tool(
            "train",
            *(CONFIG.replace("edgs", "3dgs"), "--work-dir", tmp_path, *options(root)[:2]),
        )
    assert "held out" not in str(caught.value)


def test_spares_views_are_trained_on_and_judged_by_masks(tmp_path):
    folder = tmp_path / "data" / "scan1"
    (tmp_path / "data/idrmasks/scan1").mkdir(parents=True)
    folder.mkdir()
    for i, pose in enumerate(poses(5)):
        cv2.imwrite(str(folder / f"rect_{i + 1:03d}_3_r5000.png"), cast(pose)[0][..., ::-1])
        np.savetxt(folder / f"pos_{i + 1:03d}.txt", K @ pose[:3])
        mask = np.zeros((SIZE[1], SIZE[0]), np.uint8)
        mask[20:50, 20:70] = 255
        cv2.imwrite(str(tmp_path / f"data/idrmasks/scan1/{i:03d}.png"), mask)
    split = {"scan1": {"input_views": [0, 2, 4], "test_views": [1, 3], "dataset": "DTU"}}
    path = tmp_path / "data/Track1_split_development.json"
    path.write_text(json.dumps(split))
    config = CONFIG.replace("edgs_colmap", "edgs_spare")
    parts = [f"{part}_dataloader.dataset.masks=idrmasks" for part in ("val", "test")]
    chosen = (*options(path.parent), *parts)
    tool("train", config, "--work-dir", tmp_path, *chosen)
    paths = ("--out", tmp_path / "metrics.json", "--work-dir", tmp_path / "test")
    tool("test", config, tmp_path / "final.pth", *paths, *chosen)
    found = json.loads((tmp_path / "metrics.json").read_text())
    assert found["psnr"] != found["psnr_masked"] > 10


def test_a_flight_through_few_views_takes_all(place, trained, tmp_path, capsys):
    video, weights = tmp_path / "a.avi", trained / "final.pth"
    paths = ("--out", tmp_path / "a.png", "--video", video, "--frames", 3)
    tool("visualize", CONFIG, weights, *paths, *options(place))
    assert "the split has 1 views: the flight is through 5" in capsys.readouterr().out
    reader = cv2.VideoCapture(str(video))
    first, *others = (reader.read()[1].astype(int) for _ in range(3))
    assert all(abs(other - first).mean() > 3 for other in others)


def test_without_weights_the_sparse_points_are_drawn(place, tmp_path, capsys):
    tool("visualize", CONFIG, "--out", tmp_path / "a.png", *options(place))
    assert "view_00.png: 60 sparse points of the place" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"^error: --video would have no effect: .*CHECKPOINT"):
        tool("visualize", CONFIG, "--video", tmp_path / "a.avi", *options(place))


@pytest.mark.parametrize("option", [("--window",), ("--view", "3d")])
def test_a_window_of_gaussians_is_refused(place, trained, monkeypatch, option):
    monkeypatch.setenv("DISPLAY", ":0")
    with pytest.raises(SystemExit, match=f"^error: {option[0]} would have no effect: .*--web"):
        tool("visualize", CONFIG, trained / "final.pth", *option, *options(place))
