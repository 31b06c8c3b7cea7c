"""The step that changes the weights: checked for NaN, in mixed precision on request; one-cycle."""

import math
from contextlib import contextmanager

import torch
from mmengine.optim import OptimWrapper
from mmengine.optim.scheduler.param_scheduler import _ParamScheduler
from mmengine.registry import OPTIM_WRAPPERS, PARAM_SCHEDULERS
from torch import Tensor, nn


class NotFiniteError(FloatingPointError):
    """A loss or gradient is NaN or infinite. The weights have not been touched."""


def has_native_bfloat16() -> bool:
    """Whether the GPU, or where there is none the CPU, multiplies bfloat16 without emulation."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


@OPTIM_WRAPPERS.register_module()
class CheckedOptimWrapper(OptimWrapper):
    """Steps only when loss and gradients are finite; on request the forward pass is autocast.

    Args:
        optimizer, accumulative_counts, clip_grad: as mmengine's OptimWrapper.
        precision: None, 'bfloat16' in the forward pass (weights stay float32), or 'auto': bfloat16
            where the processor multiplies it natively. (mmengine's own wrapper refuses CPU.)
            bfloat16 needs no scaling of the loss, float16 would.
    """

    def __init__(self, *args, precision: str | None = None, **kwargs):
        if precision not in (None, "bfloat16", "auto"):
            raise ValueError(f"precision is {precision!r}; it must be None, 'bfloat16' or 'auto'")
        if precision == "auto":
            precision = "bfloat16" if has_native_bfloat16() else None
        super().__init__(*args, **kwargs)
        self.precision = precision

    @contextmanager
    def optim_context(self, model: nn.Module):
        """Where the forward pass runs."""
        device = next(model.parameters()).device.type
        mixed = self.precision is not None
        with (
            super().optim_context(model),
            torch.autocast(device, torch.bfloat16, enabled=mixed),
        ):
            yield

    def update_params(self, loss: Tensor, *args, **kwargs) -> None:
        """Backward pass and step for ``loss``, a scalar.

        Raises:
            NotFiniteError: the loss, or afterwards a gradient, is NaN or infinite.
        """
        if not torch.isfinite(loss):
            raise NotFiniteError(f"the loss is {loss.item()}")
        super().update_params(loss, *args, **kwargs)

    def step(self, **kwargs) -> None:
        """Clip and step.

        Raises:
            NotFiniteError: a gradient is NaN or infinite; names how many.
        """
        parameters = [p for group in self.param_groups for p in group["params"]]
        grads = [p.grad for p in parameters if p.grad is not None]
        # One number to look at; a finite gradient can overflow its norm, so the alarm is checked.
        norm = torch.nn.utils.get_total_norm(grads)
        if not torch.isfinite(norm):
            bad = sum(not bool(torch.isfinite(grad).all()) for grad in grads)
            raise NotFiniteError(
                f"{bad} of {len(grads)} gradients hold NaN or infinity (norm {norm.item()})"
            )
        super().step(**kwargs)


@PARAM_SCHEDULERS.register_module()
class OneCycle(_ParamScheduler):
    """One rise and one fall of the learning rate, the opposite of momentum; cosine pieces.

    With t the share of the training done: lr goes from peak / div_factor to the peak while
    t < pct_start, then to peak / div_factor / final_div_factor; momentum (Adam's first beta) from
    momenta[0] to momenta[1] and back. The peak is the optimizer's own lr, of each parameter group.

    Args:
        optimizer: the optimizer or its wrapper.
        pct_start: share of the training that rises, in (0, 1).
        div_factor: peak over first lr.
        final_div_factor: first over last lr.
        momenta: (outer, inner) momentum.
        by_epoch: must be False: the schedule moves in iterations.
        begin, end, last_step, verbose: as every mmengine scheduler, in iterations.

    Source: Smith and Topin 2018, as fastai and OpenPCDet's adam_onecycle have it.

    Raises:
        ValueError: by_epoch is True, or pct_start outside (0, 1).
    """

    def __init__(
        self,
        optimizer,
        pct_start: float = 0.1,
        div_factor: float = 100,
        final_div_factor: float = 1e4,
        momenta: tuple[float, float] = (0.95, 0.85),
        by_epoch: bool = False,
        **kwargs,
    ):
        if by_epoch:
            raise ValueError("OneCycle moves every iteration: say by_epoch=False in the config")
        if not 0 < pct_start < 1:
            raise ValueError(f"pct_start is {pct_start}; it must lie between 0 and 1")
        self.pct_start = pct_start
        self.div_factor = div_factor
        self.final_div_factor = final_div_factor
        self.momenta = tuple(momenta)
        super().__init__(optimizer, param_name="lr", by_epoch=False, **kwargs)

    def _between(self, low: float, high: float, last: float) -> float:
        """Cosine from ``low`` to ``high`` and on to ``last`` at the present step."""
        done = self.last_step / (self.end - self.begin)
        if done < self.pct_start:
            start, stop, part = low, high, done / self.pct_start
        else:
            start, stop, part = high, last, (done - self.pct_start) / (1 - self.pct_start)
        return stop + (start - stop) * (1 + math.cos(math.pi * part)) / 2

    def _get_value(self) -> list[float]:
        first = 1 / self.div_factor
        factor = self._between(first, 1.0, first / self.final_div_factor)
        return [peak * factor for peak in self.base_values]

    def state_dict(self) -> dict:
        """How far it is. What it follows comes from the config, so that a run can be prolonged."""
        return {name: getattr(self, name) for name in ("last_step", "_global_step")}

    def step(self) -> None:
        """Set learning rate and momentum of the next iteration."""
        super().step()
        outer, inner = self.momenta
        momentum = self._between(outer, inner, outer)
        for group in self.optimizer.param_groups:
            if "betas" in group:
                group["betas"] = (momentum, group["betas"][1])
            elif "momentum" in group:
                group["momentum"] = momentum
