import torch

from sparse3d.structures import Batch, Boxes, Detections, Sample, collate


def test_batch_joins_points_and_keeps_empty_samples():
    batch = collate(
        [Sample(torch.ones(3, 4)), Sample(torch.zeros(0, 4)), Sample(torch.ones(2, 4))]
    )["batch"]
    assert isinstance(batch, Batch) and len(batch) == 3
    assert batch.points.shape == (5, 4)
    assert batch.batch_index.tolist() == [0, 0, 0, 2, 2]


def test_detections_above_a_score():
    found = Detections(Boxes(torch.zeros(3, 7)), torch.tensor([0.9, 0.5, 0.1]), torch.arange(3))
    assert found.above(0.5).labels.tolist() == [0, 1]
    assert len(found.above(0.95)) == 0


def test_sample_moves_what_it_has():
    sample = Sample(torch.zeros(1, 4), meta={"sample_id": 7}).to("cpu")
    assert sample.boxes is None and sample.sample_id == "7"


def test_samples_that_share_points_share_them_where_they_move():
    points = torch.zeros(2, 4, dtype=torch.float64)
    batch = Batch([Sample(points), Sample(points), Sample(points.clone())]).to(torch.float32)
    first, second, third = (sample.points for sample in batch.samples)
    assert first.dtype == torch.float32  # moved, as to another device
    assert first is second and first is not third
