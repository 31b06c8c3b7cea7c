"""Learned features with the published weights."""

import cv2
import numpy as np
import pytest
import torch

from sparse3d.models.relocalization.features import make_extractor
from sparse3d.models.relocalization.networks import DenseMap
from tests.conftest import real_data

from .corner import photograph, pose


@pytest.mark.real_data
@pytest.mark.parametrize("weights", real_data("weights/*.p*t*"), ids=lambda p: p.stem)
def test_published_weights_match_what_a_moved_camera_sees(weights):
    extractor = make_extractor(weights.stem, weights, most=200)
    image = cv2.resize(photograph(pose(1.5, 1.9)), (256, 192))
    moved = np.roll(image, 32, axis=1)
    one, two = extractor.extract(image), extractor.extract(moved)
    similar = one.descriptors @ two.descriptors.T
    best = similar.argmax(1)
    mutual = similar.argmax(0)[best] == torch.arange(len(one))
    shift = two.points[best] - one.points - torch.tensor([32.0, 0])
    right = mutual & (shift.norm(dim=1) < 1.5)
    assert len(one) > 30 and right.sum() > 0.4 * mutual.sum()
    length = one.descriptors.norm(dim=1)
    torch.testing.assert_close(length, torch.ones_like(length))


def test_any_dense_map_serves():
    extractor = DenseMap(lambda x: x[..., ::4, ::4] - 0.5, "colours", 3)
    features = extractor.extract(photograph(pose(1.5, 1.9)))
    assert len(features) > 20 and features.descriptors.shape[1] == 3


@pytest.mark.real_data
@pytest.mark.parametrize("weights", real_data("weights/alike-t.pth"), ids=lambda p: p.stem)
def test_weights_of_another_network_are_refused(weights, tmp_path):
    with pytest.raises(ValueError, match="holds no weights of alike-n"):
        make_extractor("alike-n", weights)
    (tmp_path / "cut.pth").write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match="holds no weights"):
        make_extractor("alike-t", tmp_path / "cut.pth")
