"""Gradients at the kinks of ReLU.

Where the input of a ReLU is zero up to rounding, two correct implementations fall on either side of
the kink, and the gradients below it jump (a 1e-7 was seen to change them by five percent). A
comparison of gradients may therefore choose the side of such inputs, and of no others.
"""

from collections.abc import Callable
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional

from sparse3d.models.norms import RowBatchNorm

ROUNDING = 1e-4
"""Inputs this near to zero may be on either side: what features may differ by."""
TRIED = 100

Step = Callable[[], dict[str, float]]
Sides = dict[tuple[int, int], bool]
"""Of a ReLU's input, by (number of the call, place in the flat input): counted as positive."""


class _Relu:
    """Stands in for relu: notes inputs near zero, and counts some as positive or not, as told."""

    def __init__(self, sides: Sides):
        self.sides, self.calls = sides, 0
        self.seen: Sides = {}
        self.weight: dict[tuple[int, int], float] = {}

    def __call__(self, x: Tensor, inplace: bool = False) -> Tensor:
        call, self.calls = self.calls, self.calls + 1
        value = x.detach().reshape(-1)
        near = (value.abs() < ROUNDING).nonzero()[:, 0]
        slope = torch.zeros_like(value)
        for place in near.tolist():
            positive = bool(value[place] > 0)
            self.seen[call, place] = self.sides.get((call, place), positive)
            slope[place] = int(self.seen[call, place]) - int(positive)
        out = torch.relu(x) + slope.view_as(x) * (x - x.detach())
        if len(near) and out.requires_grad:
            out.register_hook(lambda grad: self._weigh(call, near, grad, x.detach()))
        return out

    def _weigh(self, call: int, near: Tensor, grad: Tensor, x: Tensor) -> None:
        """Sides to doubt first: nearest to zero, with the largest share of the bias's gradient."""
        axes = [axis for axis in range(x.dim()) if axis != 1]
        whole = (grad * (x > 0)).sum(axes).abs().max().clamp(min=1e-12)
        share = grad.reshape(-1)[near].abs() / whole
        doubt = share / (x.reshape(-1)[near].abs() + ROUNDING / 100)
        self.weight.update({(call, p): d for p, d in zip(near.tolist(), doubt.tolist())})


def errors_up_to_kinks(step: Step, sides: Sides | None = None) -> tuple[dict[str, float], Sides]:
    """The errors of ``step`` with sides chosen so that all are at most 1, if that can be.

    Args:
        step: runs forward and backward from fresh gradients; gives errors over what is allowed.
        sides: known ones to begin with.

    Returns:
        The errors, and the side of every input near zero.
    """
    sides = dict(sides or {})
    errors, relu = _run(step, sides)
    for kink in sorted(relu.weight, key=relu.weight.get, reverse=True)[:TRIED]:
        if max(errors.values()) <= 1:
            break
        other = {**sides, kink: not relu.seen[kink]}
        tried, _ = _run(step, other)
        if sum(tried.values()) < sum(errors.values()):
            errors, sides = tried, other
    return errors, {**relu.seen, **sides}


def _norm_then_relu(norm, rows, counts=None, relu=False):
    """A batch norm and its ReLU one after the other, where they would run as one."""
    out = _NORM(norm, rows, counts)
    return functional.relu(out) if relu else out


_NORM = RowBatchNorm.forward


def _run(step: Step, sides: Sides) -> tuple[dict[str, float], _Relu]:
    relu = _Relu(sides)
    apart = mock.patch.object(RowBatchNorm, "forward", _norm_then_relu)
    with mock.patch.object(functional, "relu", relu), apart:
        return step(), relu
