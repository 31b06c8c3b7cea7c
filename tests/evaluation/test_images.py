import json
import math

import pytest
import torch

from sparse3d.evaluation.images import ImageMetric, psnr, similarity
from sparse3d.evaluation.lpips import STAGES, Lpips
from sparse3d.structures import Rendering, Sample


def rendering(image, truth, name="a", **meta):
    sample = Sample(
        torch.zeros(0, 3),
        images={"view": (truth * 255).round().byte()},
        meta={"sample_id": name, **meta},
    )
    return Rendering(image, image[..., 0], image[..., 0], sample, 7)


def test_psnr_is_that_of_its_definition():
    truth = torch.rand(6, 7, 3)
    assert psnr(truth + 0.1, truth) == pytest.approx(20, abs=1e-4)
    assert psnr(truth, truth) == 100
    mask = torch.zeros(6, 7)
    mask[:2] = 1
    image = truth.clone()
    image[:2] += 0.01
    image[2:] += 0.5
    assert psnr(image, truth, mask) == pytest.approx(40, abs=1e-3)
    with pytest.raises(ValueError, match="cannot be compared"):
        psnr(truth[1:], truth)
    with pytest.raises(ValueError, match="no pixel"):
        psnr(truth, truth, mask * 0)


def test_the_metric_takes_means_over_views(tmp_path):
    truth = (torch.rand(20, 22, 3) * 255).round() / 255
    views = [rendering(truth, truth, "a"), rendering((truth + 0.1).clamp(0, 1), truth, "b")]
    metric = ImageMetric(out=str(tmp_path / "views.json"))
    metric.process(None, views)
    found = metric.compute_metrics(metric.results)
    rows = json.loads((tmp_path / "views.json").read_text())
    assert [row["name"] for row in rows] == ["a", "b"]
    assert found["psnr"] == pytest.approx((rows[0]["psnr"] + rows[1]["psnr"]) / 2)
    assert rows[0]["ssim"] == pytest.approx(1, abs=1e-5) and rows[1]["ssim"] < 1
    assert found["gaussians"] == 7 and "lpips" not in found and "psnr_masked" not in found
    assert similarity(truth, truth) == pytest.approx(1, abs=1e-5)


def test_masks_are_counted_where_given():
    truth = torch.rand(8, 9, 3)
    metric = ImageMetric()
    metric.process(None, [rendering(truth, truth, mask=torch.ones(8, 9))])
    assert metric.compute_metrics(metric.results)["psnr_masked"] > 40


def network(path):
    """A network of LPIPS's form with weights of our own."""
    channels, state = 3, {}
    draw = torch.Generator().manual_seed(0)
    for stage, numbers in enumerate(STAGES):
        width = (64, 128, 256, 512, 512)[stage] // 16
        for n in numbers:
            state[f"features.{n}.weight"] = torch.randn(width, channels, 3, 3, generator=draw) / 6
            state[f"features.{n}.bias"] = torch.zeros(width)
            channels = width
        state[f"lin{stage}.model.1.weight"] = torch.rand(1, width, 1, 1, generator=draw)
    torch.save(state, path)
    return path


def test_lpips_runs_where_its_weights_are(tmp_path):
    distance = Lpips(network(tmp_path / "w.pth"))
    a = torch.rand(40, 36, 3)
    near, far = (a + 0.02).clamp(0, 1), torch.rand(40, 36, 3)
    assert distance(a, a) == 0 < distance(a, near) < distance(a, far)
    assert math.isfinite(distance(a, far))
    metric = ImageMetric(lpips_weights=str(tmp_path / "w.pth"))
    metric.process(None, [rendering(a, a)])
    assert "lpips" in metric.compute_metrics(metric.results)
    assert ImageMetric(lpips_weights="nowhere").lpips is None
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "part.pth")
    with pytest.raises(ValueError, match=r"lacks 30 tensors .* features\.0\.bias"):
        Lpips(tmp_path / "part.pth")
