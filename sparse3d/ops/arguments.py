"""What public functions ask of their tensors before a kernel reads them: kind, type and shape."""

import torch
from torch import Tensor


def working_dtype(name: str, value: Tensor) -> torch.dtype:
    """What is computed in where ``value`` decides: float64, or float32 for all narrower floats.

    Raises:
        ValueError: ``value`` holds no floating-point numbers.
    """
    check_floats(name, value)
    return torch.float64 if value.dtype == torch.float64 else torch.float32


def as_floats(name: str, value: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """``value`` in ``dtype``; gradients come back in its own. None stays None.

    Raises:
        ValueError: ``value`` holds no floating-point numbers.
    """
    if value is None:
        return None
    check_floats(name, value)
    return value.to(dtype)


def check_floats(name: str, value: Tensor) -> None:
    """Refuses what is no tensor of floating-point numbers."""
    if not isinstance(value, Tensor):
        raise ValueError(
            f"{name} is a {type(value).__name__}; a tensor is needed: torch.as_tensor({name})"
        )
    if not value.is_floating_point():
        raise ValueError(
            f"{name} is {value.dtype} of shape {tuple(value.shape)}; floating-point numbers are "
            f"needed: {name}.float(), or {name}.float() / 255 for colours of 0..255"
        )


def check_type(name: str, value: Tensor | None, dtype: torch.dtype) -> None:
    """Refuses a tensor of another type, where a conversion could change what it says."""
    if value is not None and value.dtype != dtype:
        raise ValueError(
            f"{name} is {value.dtype} of shape {tuple(value.shape)}; {dtype} is needed: "
            f"{name}.to({dtype})"
        )


def check_shape(name: str, value: Tensor | None, shape: tuple[int, ...]) -> None:
    """Refuses a tensor of another shape. None is let pass."""
    if value is not None and tuple(value.shape) != tuple(shape):
        raise ValueError(f"{name} has shape {tuple(value.shape)}; it must be {tuple(shape)}")
