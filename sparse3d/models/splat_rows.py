"""Gaussians added to and taken from a model in training, with the optimizer's memory of them."""

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

NAMES = ("means", "scales", "quats", "opacities", "sh0", "shN")
"""Parameters with one row per Gaussian."""


def keep_rows(model: nn.Module, optimizer: Optimizer | None, mask: Tensor) -> None:
    """Leave only the Gaussians where ``mask`` [N] is true."""
    rows = mask.nonzero().squeeze(1)
    # The data of a parameter are exchanged, not the parameter: the optimizer keeps its groups.
    for parameter in parameters(model).values():
        state = _state(optimizer, parameter)
        for key, moment in _moments(state, parameter).items():
            state[key] = moment.index_select(0, rows)
        parameter.data = parameter.data.index_select(0, rows)
        parameter.grad = None


def append_rows(model: nn.Module, optimizer: Optimizer | None, rows: dict[str, Tensor]) -> None:
    """Add Gaussians, by name of the parameter, which the optimizer does not know yet."""
    for name, parameter in parameters(model).items():
        new = rows[name].to(parameter)
        state = _state(optimizer, parameter)
        for key, moment in _moments(state, parameter).items():
            state[key] = torch.cat([moment, torch.zeros_like(new)])
        parameter.data = torch.cat([parameter.data, new])
        parameter.grad = None


def forget_rows(model: nn.Module, optimizer: Optimizer | None, rows: Tensor) -> None:
    """Empty the optimizer's memory of the Gaussians ``rows``, which became others."""
    for parameter in parameters(model).values():
        state = _state(optimizer, parameter)
        for moment in _moments(state, parameter).values():
            moment[rows] = 0


def parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters with one row per Gaussian, by name."""
    return {name: getattr(model, name) for name in NAMES}


def _state(optimizer: Optimizer | None, parameter: nn.Parameter) -> dict:
    return {} if optimizer is None else optimizer.state.get(parameter, {})


def _moments(state: dict, parameter: Tensor) -> dict[str, Tensor]:
    """What the optimizer remembers of each element: exp_avg, exp_avg_sq."""
    return {
        key: value
        for key, value in state.items()
        if isinstance(value, Tensor) and value.shape == parameter.shape and value.dim()
    }
