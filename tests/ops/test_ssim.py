import pytest
import torch

from sparse3d.ops import backend
from sparse3d.ops.ssim import ssim

implementations = pytest.mark.parametrize("implementation", ["reference", "native"])


def pictures(*shape, dtype=torch.float32):
    generator = torch.Generator().manual_seed(sum(shape))
    a = torch.rand(shape, generator=generator, dtype=dtype)
    return a, (a + 0.2 * torch.randn(shape, generator=generator, dtype=dtype)).clamp(0, 1)


@implementations
def test_equal_pictures_have_similarity_one_and_no_slope(implementation):
    a = pictures(20, 30, 3)[0].requires_grad_()
    with backend.forced(implementation):
        value = ssim(a, a.detach())
        value.backward()
    assert float(value.detach()) == pytest.approx(1, abs=1e-6)
    assert a.grad.abs().max() < 1e-6


@pytest.mark.parametrize("shape", [(40, 57, 3), (3, 4, 1), (1, 30, 2), (100, 9, 1)])
def test_the_kernel_agrees_with_the_definition(shape):
    a, b = pictures(*shape)
    found = {}
    for name in ("reference", "native"):
        x = a.clone().requires_grad_()
        with backend.forced(name):
            value = ssim(x, b)
            (3 * value).backward()
        found[name] = (value.detach(), x.grad)
    torch.testing.assert_close(found["native"][0], found["reference"][0], rtol=0, atol=2e-6)
    scale = found["reference"][1].abs().max()
    assert (found["native"][1] - found["reference"][1]).abs().max() < 2e-4 * scale


def test_the_gradient_is_the_slope():
    a, b = pictures(9, 8, 1, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: ssim(x, b), a.requires_grad_())


def test_threads_change_no_bit():
    a, b = pictures(170, 47, 3)
    found, before = [], torch.get_num_threads()
    for number in (1, 2, 5):
        torch.set_num_threads(number)
        x = a.clone().requires_grad_()
        with backend.forced("native"):
            value = ssim(x, b)
            value.backward()
        found.append((value.detach(), x.grad))
    torch.set_num_threads(before)
    assert all(torch.equal(v, found[0][0]) and torch.equal(g, found[0][1]) for v, g in found)


def test_pictures_of_two_sizes_are_refused():
    with pytest.raises(ValueError, match="cannot be compared"):
        ssim(torch.zeros(4, 5, 3), torch.zeros(5, 4, 3))
