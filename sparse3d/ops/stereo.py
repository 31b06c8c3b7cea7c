"""Depth of a picture from others with known cameras: plane sweep and semi-global matching.

Collins, A Space-Sweep Approach to True Multi-Image Matching, 1996; Hirschmüller, Stereo Processing
by Semiglobal Matching and Mutual Information, 2008.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from . import backend, native
from .arguments import check_floats, check_shape
from .reference import stereo as reference_ops


@dataclass(frozen=True, eq=False)
class View:
    """A picture beside the reference.

    Attributes:
        image: float [h, w], 0..1.
        rotation: [3, 3] float; with ``shift`` it takes pixel (x, y) of the reference at inverse
            depth s to this picture's homogeneous pixel rotation (x, y, 1) + s shift.
        shift: [3] float.
    """

    image: Tensor
    rotation: Tensor
    shift: Tensor


def plane_sweep(
    reference: Tensor,
    views: list[View],
    inverse: Tensor,
    radius: int = 2,
    best: int = 0,
    floor: float = 1e-3,
) -> Tensor:
    """How unlike the reference's windows are to those of other pictures, at every depth.

    A window is compared with what a view shows if everything lies in a plane of that depth before
    the reference, by normalised cross-correlation, in float32.

    Args:
        reference: float [H, W], 0..1.
        views: the others, of any sizes.
        inverse: [P] float, inverse depths.
        radius: of the windows, pixels, 1 to 8.
        best: so many views that fit best count, as something may stand before the place in the
            others; 0: half. Those whose pictures end before it do not count.
        floor: added to the product of the two standard deviations: plain windows resemble none.

    Returns:
        uint8 [H, W, P]: 127.5 (1 - correlation), the mean of the best views; 255 where none sees
        it.

    Raises:
        ValueError: no view, no depth, a wrong size, or integers where floats belong.
    """
    one = reference.dim() == 2 and reference.numel() and inverse.dim() == 1 and inverse.numel()
    if not one or not views or not 1 <= radius <= 8 or best < 0:
        raise ValueError(
            f"a sweep of {inverse.numel()} planes over {len(views)} views, {best} of them best, "
            f"with windows of radius {radius} and a reference of shape {tuple(reference.shape)}: "
            "it needs planes [P] and views, one of each at least, none less than 0 best, a radius "
            "of 1 to 8 and a reference [H, W]"
        )
    check_floats("reference", reference)
    check_floats("inverse", inverse)
    _check_views("views", views)
    best = min(best or (len(views) + 1) // 2, len(views))
    return backend.choose(SWEEP, reference)(reference, views, inverse, radius, best, floor)


def smooth_planes(
    cost: Tensor, guide: Tensor, small: float = 13, large: float = 300, edge: float = 0.05
) -> Tensor:
    """The plane of each pixel by semi-global matching: costs are summed along paths of four sides.

    Args:
        cost: uint8 [H, W, P], of ``plane_sweep``.
        guide: float [H, W], 0..1: depth jumps mostly where this picture does.
        small: price of going to the next plane from one pixel to the next.
        large: price of jumping farther where the guide is even.
        edge: step of the guide that halves the price of a jump, above 0.

    Returns:
        float32 [H, W]: planes 0..P-1, between two by a parabola.

    Raises:
        ValueError: wrong sizes, no plane or pixel, a guide of integers, or prices that 16 bits
            cannot add up.
    """
    fit = cost.dim() == 3 and cost.dtype == torch.uint8 and guide.shape == cost.shape[:2]
    if not fit or not cost.numel():
        raise ValueError(
            f"costs are {cost.dtype} {tuple(cost.shape)} and the guide {tuple(guide.shape)}; uint8 "
            "[H, W, P] and [H, W] are needed, with one pixel and one plane at least"
        )
    check_floats("guide", guide)
    if not edge > 0:
        raise ValueError(f"edge is {edge}; it must be above 0")
    if not 0 <= small <= large <= 4000:
        raise ValueError(f"prices of {small} and {large}: 0 <= small <= large <= 4000 must hold")
    jumps = [_jumps(guide, dim, small, large, edge) for dim in (1, 0)]
    return backend.choose(SMOOTH, cost)(cost, round(small), *jumps)


def confirm_depths(
    depth: Tensor,
    inverse_K: Tensor,
    others: list[View],
    most_miss: float = 1.5,
    most_apart: float = 0.05,
    min_angle: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """How many other pictures confirm a picture's depths with their own.

    One confirms a pixel if its own depth, where the pixel's point lies in it, leads back to the
    pixel.

    Args:
        depth: float [H, W] along the camera's axis, taken as float32; 0: not known.
        inverse_K: [3, 3] float, inverse of the camera's matrix: from pixels (x, y, 1) to rays
            with z = 1.
        others: views whose ``image`` is their depth [h, w], 0 where not known.
        most_miss: pixels between the pixel and where it is led back to.
        most_apart: relative difference of the two depths there.
        min_angle: smallest angle between the two rays to the point, radians.

    Returns:
        int32 [H, W] how many confirm; int32 [H, W] how many would see the point, with nothing
        before it; float32 [H, W] the least (miss + 0.25 pixels) over the sine of the angle of those
        that confirm, infinite where none does.

    Raises:
        ValueError: a depth that is not [H, W], or of no pixel, or other wrong sizes or integers.
    """
    if depth.dim() != 2 or not depth.numel():
        raise ValueError(f"depth has shape {tuple(depth.shape)}; [H, W] is needed")
    check_floats("depth", depth)
    check_floats("inverse_K", inverse_K)
    check_shape("inverse_K", inverse_K, (3, 3))
    _check_views("others", others)
    depth = depth.float()
    if not others:
        nobody = torch.zeros(depth.shape, dtype=torch.int32, device=depth.device)
        return nobody, nobody.clone(), torch.full_like(depth, torch.inf)
    backs = [torch.linalg.inv(other.rotation.double()) for other in others]
    sine = float(np.sin(min(max(min_angle, 0.0), np.pi / 2)))
    return backend.choose(CONFIRM, depth)(
        depth, inverse_K, others, backs, most_miss, most_apart, sine
    )


def _check_views(name: str, views: list[View]) -> None:
    """Refuses views that would lead a kernel astray."""
    for number, view in enumerate(views):
        for part, shape in (("image", view.image.shape), ("rotation", (3, 3)), ("shift", (3,))):
            check_floats(f"{name}[{number}].{part}", getattr(view, part))
            check_shape(f"{name}[{number}].{part}", getattr(view, part), shape)
        if view.image.dim() != 2 or not view.image.numel():
            raise ValueError(
                f"{name}[{number}].image has shape {tuple(view.image.shape)}; [h, w] is needed"
            )


def _in_float32(views: list[View]) -> list[View]:
    return [View(v.image.float(), v.rotation.float(), v.shift.float()) for v in views]


def _reference_sweep(reference, views, inverse, *options) -> Tensor:
    given = (reference.float(), _in_float32(views), inverse.float())
    return reference_ops.plane_sweep(*given, *options)


def _reference_confirm(depth, inverse_K, others, *options):
    return reference_ops.confirm_depths(depth, inverse_K, _in_float32(others), *options)


def _jumps(guide: Tensor, dim: int, small: float, large: float, edge: float) -> Tensor:
    """int16 [H, W]: price of a jump to each pixel from the one before it along ``dim``."""
    step = guide.diff(dim=dim, prepend=guide.narrow(dim, 0, 1)).abs()
    return (large / (1 + step / edge)).clamp(min=small).round().short()


def _native_sweep(reference, views, inverse, radius, best, floor) -> Tensor:
    reference = reference.float().contiguous()
    height, width = reference.shape
    mean, deviation = reference_ops.window_moments(reference[None], radius)
    ones = torch.ones_like(reference)[None]
    side = 2 * radius + 1
    inside = torch.nn.functional.avg_pool2d(ones[:, None], side, 1, radius) * side**2
    cost = native.empty(height, width, len(inverse), dtype=torch.uint8)
    failed = native.call(
        "s3d_plane_sweep",
        *(reference, height, width),
        torch.cat([view.image.float().reshape(-1) for view in views]),
        torch.tensor([view.image.shape for view in views]),
        torch.stack([view.rotation.float() for view in views]).contiguous(),
        torch.stack([view.shift.float() for view in views]).contiguous(),
        *(len(views), inverse.float().contiguous(), len(inverse), radius, best, float(floor)),
        *((1 / inside).contiguous(), mean.contiguous(), deviation.contiguous()),
        *(cost, native.threads()),
    )
    assert not failed
    return cost


def _native_smooth(cost, small, along, across) -> Tensor:
    cost = cost.contiguous()
    height, width, planes = cost.shape
    total = native.empty(height, width, planes, dtype=torch.uint16)
    best = torch.empty(height, width)
    native.call(
        "s3d_smooth_planes",
        *(cost, height, width, planes, small, along.contiguous(), across.contiguous()),
        *(total, best, native.threads()),
    )
    return best


def _native_confirm(depth, inverse_K, others, backs, most_miss, most_apart, sine):
    depth = depth.contiguous()
    voices, asked = torch.empty(2, *depth.shape, dtype=torch.int32)
    doubt = torch.empty_like(depth)
    shifts = torch.stack([other.shift.double() for other in others])
    back_shifts = -(torch.stack(backs) @ shifts[..., None])[..., 0]
    native.call(
        "s3d_confirm_depths",
        *(depth, *depth.shape, inverse_K.float().contiguous()),
        torch.cat([other.image.float().reshape(-1) for other in others]),
        torch.tensor([other.image.shape for other in others]),
        torch.stack([other.rotation.float() for other in others]).contiguous(),
        *(shifts.float(), torch.stack(backs).float(), back_shifts.float()),
        *((back_shifts @ inverse_K.double().T).float(), len(others)),
        *(float(most_miss), float(most_apart), sine, voices, asked, doubt, native.threads()),
    )
    return voices, asked, doubt


SWEEP = {
    "reference": _reference_sweep,
    "native": _native_sweep,
    "cuda": _reference_sweep,
}
CONFIRM = {
    "reference": _reference_confirm,
    "native": _native_confirm,
    "cuda": _reference_confirm,
}
SMOOTH = {
    "reference": reference_ops.smooth_planes,
    "native": _native_smooth,
    "cuda": reference_ops.smooth_planes,
}
