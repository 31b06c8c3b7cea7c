"""Set convolution: native against the definition, gradients, determinism, refusals."""

import pytest
import torch

from sparse3d.ops import backend, native
from sparse3d.ops.neighbors import knn
from sparse3d.ops.reference.set_conv import set_conv as definition
from sparse3d.ops.set_conv import set_conv


def case(points: int, k: int, channels: tuple[int, int], seed: int = 0) -> tuple:
    """Features, index, offsets and layers; norms with weights of either sign."""
    torch.manual_seed(seed)
    places, (width, wider) = torch.rand(points, 3) * 5, channels
    index = knn(places, places, k)[0]
    offsets = places[index.reshape(-1)] - places.repeat_interleave(k, 0)
    layers = [
        (torch.randn(wider, inputs) / inputs**0.5, torch.randn(wider), torch.randn(wider))
        for inputs in (width + 3, wider, wider)
    ]
    return torch.randn(points, width), index, offsets, layers


@pytest.mark.parametrize(
    "points, k, channels", [(6, 2, (3, 16)), (70, 5, (4, 7)), (33, 32, (16, 80))]
)
def test_native_equals_the_definition(points, k, channels):
    given = case(points, k, channels)
    with backend.forced("reference"):
        wanted = set_conv(*given)
    with backend.forced("native"):
        found = set_conv(*given)
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()


def test_gradients_are_those_of_the_definition():
    features, index, offsets, layers = case(40, 6, (5, 9))
    gradients, forms = [], {"reference": definition, "native": set_conv}
    for name in ("reference", "native"):
        mine = features.clone().requires_grad_()
        weights = [tuple(v.clone().requires_grad_() for v in layer) for layer in layers]
        with backend.forced(name):
            out = forms[name](mine, index, offsets, weights, 1e-5, 0.1)
            out.square().sum().backward()
        gradients.append([mine.grad, *(v.grad for layer in weights for v in layer)])
    for found, wanted in zip(*gradients[::-1]):
        assert (found - wanted).abs().max() <= 1e-4 * wanted.abs().max()


def test_the_bits_do_not_depend_on_the_threads(monkeypatch):
    given, results = case(200, 8, (8, 32)), []
    for threads in (1, 3):
        monkeypatch.setattr(native, "threads", lambda threads=threads: threads)
        with backend.forced("native"):
            results.append(set_conv(*given))
    assert torch.equal(*results)


def test_autocast_changes_nothing_where_there_are_no_gradients():
    given = case(50, 4, (5, 8))
    with backend.forced("native"), torch.no_grad():
        wanted = set_conv(*given)
        with torch.autocast("cpu", torch.bfloat16):
            found = set_conv(*given)
    assert torch.equal(found, wanted)


def test_an_empty_cloud_gives_no_rows_and_misfits_are_refused():
    features, index, offsets, layers = case(9, 3, (4, 6))
    assert set_conv(features[:0], index[:0], offsets[:0], layers).shape == (0, 6)
    with pytest.raises(ValueError, match="they must be"):
        set_conv(features, index, offsets[:-1], layers)
    with pytest.raises(ValueError, match="they must be"):
        set_conv(features, index, offsets, layers[:2])
    with pytest.raises(ValueError, match="index"):
        set_conv(features, index + 9, offsets, layers)
