"""tools/train.py, test.py and visualize.py as from the command line, on the toy model."""

import json
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
CONFIG = str(ROOT / "tests/engine/toy_config.py")
WORLD = str(ROOT / "configs/detection/dsvt_pillar_world.py")


def tool(name: str, *arguments) -> None:
    """Run a tool in this process, which saves the imports."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(ROOT / "tools" / f"{name}.py"), run_name="__main__")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """Weights of a training by the command line."""
    folder = tmp_path_factory.mktemp("trained")
    tool("train", CONFIG, "--work-dir", folder, "--cfg-options", "train_cfg.max_epochs=1")
    return folder / "epoch_1.pth"


def test_training_tells_loss_and_time_left(tmp_path, capsys):
    tool("train", CONFIG, "--work-dir", tmp_path, "--cfg-options", "train_cfg.max_epochs=1")
    lines = capsys.readouterr().out.splitlines()
    assert any("epoch 1/1  6/6  loss " in line and "left 0:00:00" in line for line in lines)
    assert "val  mAP 0." in lines[-1]
    assert len(lines) < 8


def test_the_test_writes_metrics_and_pictures(trained, tmp_path):
    out, show = tmp_path / "new" / "metrics.json", tmp_path / "show"
    paths = ("--out", out, "--show-dir", show, "--work-dir", tmp_path)
    tool("test", CONFIG, trained, *paths)
    metrics = json.loads(out.read_text())
    assert metrics["samples"] == metrics["different"] == 7
    assert 0 < metrics["mAP"] < 1
    assert sorted(file.name for file in show.iterdir()) == [f"{i}.png" for i in range(7)]


@pytest.mark.parametrize("weights", [True, False])
def test_a_sample_is_drawn_with_and_without_weights(trained, tmp_path, capsys, weights):
    out = tmp_path / "a.png"
    tool("visualize", CONFIG, *([trained] if weights else []), "--index", 3, "--out", out)
    assert f"3: 1 true boxes, {int(weights)} found" in capsys.readouterr().out
    assert out.is_file()


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("test", (CONFIG, "missing.pth"), "missing.pth"),
        ("train", ("configs/missing.py",), "configs/missing.py"),
        ("train", (CONFIG, "--cfg-options", "train_dataloader=None"), "names no data to train on"),
        (
            "train",
            (WORLD, "--cfg-options", "train_dataloader.dataset.data_root=nowhere"),
            "'nowhere' is no folder.*prepare_data",
        ),
    ],
)
def test_what_is_missing_is_said_in_one_line(tmp_path, monkeypatch, name, arguments, message):
    monkeypatch.chdir(tmp_path)  # where the work folder goes
    with pytest.raises(SystemExit, match=f"^error: .*{message}"):
        tool(name, *arguments)
