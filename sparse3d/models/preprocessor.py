"""What stands between the data loader and a model."""

from mmengine.model import BaseDataPreprocessor

from sparse3d.registry import MODELS
from sparse3d.structures import Batch


@MODELS.register_module()
class BatchPreprocessor(BaseDataPreprocessor):
    """Moves a batch to the model's device."""

    def forward(self, data: dict[str, Batch], training: bool = False) -> dict[str, Batch]:
        """``data`` as ``collate`` gives it, on the model's device."""
        return {**data, "batch": data["batch"].to(self.device)}
