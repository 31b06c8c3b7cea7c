"""The six registries of the toolkit. A config names a class by its ``type`` in one of them.

Each registry imports its rooms on first use: a config works after ``import sparse3d`` alone.
"""

from mmengine.registry import DATASETS as _DATASETS
from mmengine.registry import HOOKS as _HOOKS
from mmengine.registry import METRICS as _METRICS
from mmengine.registry import MODELS as _MODELS
from mmengine.registry import TRANSFORMS as _TRANSFORMS
from mmengine.registry import VISUALIZERS as _VISUALIZERS
from mmengine.registry import Registry

SCOPE = "sparse3d"


def _registry(name: str, parent: Registry, locations: list[str]) -> Registry:
    return Registry(name, parent=parent, scope=SCOPE, locations=locations)


MODELS = _registry("model", _MODELS, ["sparse3d.models"])
DATASETS = _registry("dataset", _DATASETS, ["sparse3d.datasets"])
TRANSFORMS = _registry("transform", _TRANSFORMS, ["sparse3d.datasets.transforms"])
METRICS = _registry("metric", _METRICS, ["sparse3d.evaluation"])
HOOKS = _registry("hook", _HOOKS, ["sparse3d.engine"])
VISUALIZERS = _registry("visualizer", _VISUALIZERS, ["sparse3d.visualization"])
