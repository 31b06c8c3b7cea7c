"""Every config builds its model, and names only what there is."""

from pathlib import Path

import pytest
from mmengine.config import Config

from sparse3d.registry import DATASETS, METRICS, MODELS, TRANSFORMS

FOLDER = Path(__file__).resolve().parent.parent / "configs"
CONFIGS = sorted(path for path in FOLDER.glob("*/*.py") if path.parent.name != "_base_")
DETECTION = [path for path in CONFIGS if path.parent.name == "detection"]

# Millions of parameters as published: encoder, 3-D backbone, 2-D backbone, head.
PUBLISHED = {
    "dsvt_pillar_waymo": (0.038, 2.685, 5.480, 0.450),
    "dsvt_voxel_waymo": (0.038, 3.134, 5.480, 0.450),
    "dsvt_pillar_nuscenes": (0.017, 1.200, 5.004),
}


def millions(module):
    return sum(parameter.numel() for parameter in module.parameters()) / 1e6


def types_in(value):
    if isinstance(value, dict):
        if "type" in value:
            yield value["type"]
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for part in value:
            yield from types_in(part)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_builds_and_names_only_what_there_is(path):
    config = Config.fromfile(path)
    model = MODELS.build(config.model)
    assert millions(model) > 0 or path.parent.name == "splatting"  # its scene is not made yet
    for phase in ("train", "val", "test"):
        loader = config.get(f"{phase}_dataloader")
        if loader is not None:
            dataset = loader["dataset"]
            assert dataset["type"] in DATASETS
            for transform in types_in(dataset.get("transforms", [])):
                assert transform in TRANSFORMS
        evaluator = config.get(f"{phase}_evaluator")
        if evaluator is not None:
            assert all(name in METRICS for name in types_in(evaluator))


@pytest.mark.parametrize("path", DETECTION, ids=lambda p: p.stem)
def test_model_and_data_agree(path):
    config = Config.fromfile(path)
    for phase in ("train", "val", "test"):
        dataset = config.get(f"{phase}_dataloader", {}).get("dataset", {})
        for name in ("class_names", "point_range"):
            assert dataset.get(name, config.model[name]) == config.model[name]


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_as_many_as_published(name):
    model = MODELS.build(Config.fromfile(FOLDER / "detection" / f"{name}.py").model)
    parts = (model.encoder, model.backbone, model.bev_backbone, model.head)
    for part, published in zip(parts, PUBLISHED[name]):
        assert millions(part) == pytest.approx(published, abs=0.0006)
