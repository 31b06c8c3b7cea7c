import pytest
import torch
from torch.nn import functional as F

from sparse3d.ops import backend
from sparse3d.ops.norm import batch_norm
from tests.threads import for_threads
from tests.voxel_cases import IMPLEMENTATIONS

each = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
either = pytest.mark.parametrize("relu", [False, True])


def leaves(rows, channels, dtype=torch.float32, offset=0.0):
    generator = torch.Generator().manual_seed(rows + channels)
    shapes = [(rows, channels), (channels,), (channels,)]
    values = [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]
    values[0] += offset
    return [value.requires_grad_() for value in values]


def outcome(values, relu, implementation="native", eps=1e-3):
    """Output, statistics and gradients for one random cotangent."""
    with backend.forced(implementation):
        out, mean, variance = batch_norm(*values, eps, relu)
        cotangent = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
        grads = torch.autograd.grad(out, values, cotangent)
    return [out.detach(), mean, variance, *grads]


@each
@either
@pytest.mark.parametrize("rows,channels", [(1, 3), (2, 1), (33, 16), (5000, 5), (3000, 64)])
@pytest.mark.parametrize("offset", [0.0, 300.0])
def test_it_is_the_batch_norm_of_torch_in_float64(rows, channels, offset, relu, implementation):
    values = leaves(rows, channels, offset=offset)
    exact = [value.detach().double().requires_grad_() for value in values]
    mean, variance = exact[0].mean(0), exact[0].var(0, unbiased=False)
    out = F.batch_norm(exact[0], mean.detach(), variance.detach(), None, None, False, 0.0, 1e-3)
    if rows > 1:
        out = F.batch_norm(exact[0], None, None, None, None, True, 0.0, 1e-3)
    out = out * exact[1] + exact[2]
    out = out.relu() if relu else out
    cotangent = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).double()
    grads = list(torch.autograd.grad(out, exact, cotangent))
    if rows == 1:
        grads[0] = torch.zeros_like(grads[0])  # one row is its own mean, whatever its value
    expected = [out.detach(), mean.detach(), variance.detach(), *grads]
    tolerance = 1e-5 if offset == 0 else 1e-3  # float32 rows carry 3e-5 of noise at 300
    for ours, theirs in zip(outcome(values, relu, implementation), expected):
        scale = max(float(theirs.abs().max()), 1.0)
        torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=tolerance * scale)


@each
@either
def test_gradients_are_those_of_finite_differences(relu, implementation):
    values = leaves(7, 3, torch.float64)
    with backend.forced(implementation):
        assert torch.autograd.gradcheck(lambda *v: batch_norm(*v, 1e-3, relu)[0], values)


@either
@pytest.mark.parametrize("channels", [1, 7, 64])
def test_threads_give_equal_bits(channels, relu):
    values = leaves(20000, channels)
    results = for_threads(lambda: outcome(values, relu))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))


@each
def test_not_a_number_stays_visible(implementation):
    values = [value.detach() for value in leaves(4, 2)]
    values[0][2, 1] = float("nan")
    with backend.forced(implementation):
        out = batch_norm(*values, 1e-3, relu=True)[0]
    assert out[:, 1].isnan().all() and not out[:, 0].isnan().any()


@each
@either
def test_the_operator_is_registered_soundly(relu, implementation):
    with backend.forced(implementation):
        torch.library.opcheck(torch.ops.sparse3d.batch_norm.default, (*leaves(9, 4), 1e-3, relu))


def test_no_rows_and_other_channels_are_refused():
    rows, weight, bias = (value.detach() for value in leaves(4, 2))
    with pytest.raises(ValueError, match="N > 0"):
        batch_norm(rows[:0], weight, bias, 1e-3)
    with pytest.raises(ValueError, match=r"weight \(1,\)"):
        batch_norm(rows, weight[:1], bias, 1e-3)
    with pytest.raises(ValueError, match=r"bias \(1,\)"):
        batch_norm(rows, weight, bias[:1], 1e-3)
