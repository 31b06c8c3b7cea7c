"""Pictures against photographs: PSNR, SSIM, and LPIPS where its weights are."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.evaluator import BaseMetric
from torch import Tensor

from sparse3d.ops.ssim import ssim
from sparse3d.registry import METRICS
from sparse3d.structures import Rendering

from .lpips import Lpips


def psnr(image: Tensor, truth: Tensor, mask: Tensor | None = None) -> float:
    """Peak signal to noise ratio, dB.

    Args:
        image: [H, W, 3] float, 0..1.
        truth: as ``image``.
        mask: [H, W]; only its pixels count: -10 log10(sum m |a - b|^2 / (3 sum m)).

    Raises:
        ValueError: the pictures have different sizes, or the mask is empty.
    """
    if image.shape != truth.shape:
        raise ValueError(
            f"a picture of shape {tuple(image.shape)} cannot be compared with one of "
            f"{tuple(truth.shape)}: render it with the photograph's own camera"
        )
    squared = (image.double() - truth.double()) ** 2
    if mask is None:
        error = squared.mean()
    elif not mask.any():
        raise ValueError("the mask has no pixel; leave it out")
    else:
        error = (squared * mask[..., None]).sum() / (3 * mask.double().sum())
    return float(-10 * error.clamp(min=1e-10).log10())


def similarity(image: Tensor, truth: Tensor) -> float:
    """SSIM of [H, W, 3] pictures in 0..1, with 3DGS's window and zero padding."""
    return float(ssim(image.float(), truth.float()))


@METRICS.register_module()
class ImageMetric(BaseMetric):
    """Mean PSNR, SSIM and, with weights, LPIPS over the test views.

    Args:
        lpips_weights: file of LPIPS's network; None or no such file: it is not computed.
        out: a json file for each view's numbers; None: none.
    """

    default_prefix = None

    def __init__(self, lpips_weights: str | None = None, out: str | None = None, **options: Any):
        super().__init__(**options)
        there = lpips_weights is not None and Path(lpips_weights).is_file()
        self.lpips = Lpips(lpips_weights) if there else None
        self.out = out

    def process(self, data_batch: Any, data_samples: Sequence[Rendering]) -> None:
        """Note the numbers of each rendering, which carries its photograph."""
        for found in data_samples:
            truth = next(iter(found.sample.images.values())).to(found.image.device) / 255
            row = {
                "name": found.sample.sample_id,
                "psnr": psnr(found.image, truth),
                "ssim": similarity(found.image, truth),
                "gaussians": found.count,
            }
            mask = found.sample.meta.get("mask")
            if mask is not None:
                row["psnr_masked"] = psnr(found.image, truth, mask.to(found.image.device))
            if self.lpips is not None:
                row["lpips"] = self.lpips(found.image.cpu(), truth.cpu())
            self.results.append(row)

    def compute_metrics(self, results: list[dict]) -> dict[str, float]:
        """Means over views."""
        if self.out is not None:
            Path(self.out).parent.mkdir(parents=True, exist_ok=True)
            Path(self.out).write_text(json.dumps(results, indent=2) + "\n")
        names = ("psnr", "ssim", "psnr_masked", "lpips", "gaussians")
        columns = {n: [row[n] for row in results if n in row] for n in names}
        return {name: sum(c) / len(c) for name, c in columns.items() if c}
