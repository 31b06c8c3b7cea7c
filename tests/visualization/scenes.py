import torch

from sparse3d.structures import Boxes, Camera, Detections, Sample

# x forward, y left, z up as seen by a camera at the origin that looks along +x.
LOOK_AHEAD = torch.tensor([[0.0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]])


def street(boxes=((10.0, 0, 0, 4, 2, 1.5, 0.0),), points: int = 200) -> Sample:
    """Points on the ground, boxes of class 0, and a black image of a camera that looks along +x."""
    generator = torch.Generator().manual_seed(0)
    ground = torch.rand(points, 3, generator=generator) * torch.tensor([40.0, 40, 0])
    rows = torch.tensor(boxes).reshape(-1, 7)
    intrinsics = torch.tensor([[100.0, 0, 80], [0, 100, 60], [0, 0, 1]])
    return Sample(
        ground - torch.tensor([20.0, 20, 0]),
        Boxes(rows),
        torch.zeros(len(rows), dtype=torch.int64),
        cameras={"front": Camera(intrinsics, LOOK_AHEAD, (160, 120))},
        images={"front": torch.zeros(120, 160, 3, dtype=torch.uint8)},
        meta={"sample_id": "street", "class_names": ["car", "truck"]},
    )


def found(sample: Sample, scores=(0.9, 0.2)) -> Detections:
    """Two trucks."""
    rows = torch.tensor([[10.0, 0.5, 0, 4, 2, 1.5, 0.1], [-8.0, 3, 0, 4, 2, 1.5, 2.0]])
    labels = torch.ones(2, dtype=torch.int64)
    return Detections(Boxes(rows), torch.tensor(scores), labels, sample)
