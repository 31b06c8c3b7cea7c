"""A scene of Gaussians by the tools: trained, killed and resumed, tested, shown and exported."""

import json
import shutil

import pytest
import torch

from sparse3d.engine.runner import build_runner
from sparse3d.structures import Gaussians
from tests.photographs import write_colmap
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
