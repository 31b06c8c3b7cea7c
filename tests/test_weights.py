"""The delivered weights belong to their configs and give sound boxes on real frames."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope

from sparse3d.datasets.base import read_points
from sparse3d.engine.checkpoints import load_weights
from sparse3d.registry import MODELS
from sparse3d.structures import Batch, Sample

from .conftest import real_data

ROOT = Path(__file__).resolve().parent.parent
WEIGHTS = sorted((ROOT / "data" / "weights").glob("*.pth"))


def trained(weights: Path):
    """The model of the config that the weights are named after."""
    init_default_scope("sparse3d")
    (path,) = (ROOT / "configs").glob(f"*/{weights.stem}.py")
    config = Config.fromfile(path)
    model = MODELS.build(config.model).eval()
    load_weights(model, weights)
    return model


@pytest.mark.parametrize("weights", WEIGHTS, ids=lambda p: p.stem)
def test_weights_fit_their_config(weights):
    assert all(torch.isfinite(value).all() for value in trained(weights).state_dict().values())


@pytest.mark.real_data
@pytest.mark.parametrize("path", real_data("kitti/velodyne_fov/*.bin"), ids=lambda p: p.stem)
@pytest.mark.parametrize("weights", [w for w in WEIGHTS if "kitti" in w.stem], ids=lambda p: p.stem)
def test_gives_sound_boxes_on_a_real_frame(weights, path):
    model = trained(weights)
    found = model.predict(Batch([Sample(torch.from_numpy(read_points(path, 4)))]))[0]
    assert torch.isfinite(found.boxes.tensor).all() and (found.boxes.sizes > 0).all()
    assert ((found.scores > 0) & (found.scores <= 1)).all()
    assert (found.scores.diff() <= 0).all()
    assert ((found.labels >= 0) & (found.labels < len(model.class_names))).all()
