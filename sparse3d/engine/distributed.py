"""One process or several: start-up of the process group, wrapping of the model, shared buffers."""

import gc
import os
import warnings

import torch
import torch.distributed as dist
from mmengine.model import MMDistributedDataParallel
from torch import nn

LAUNCHERS = ("none", "pytorch")


def start(launcher: str) -> None:
    """Join the process group of ``launcher``: gloo on CPU, NCCL on CUDA. 'none' does nothing.

    mmengine's own start-up calls torch.cuda.set_device, which fails without CUDA; it leaves a group
    that is already there alone.

    Raises:
        ValueError: an unknown launcher, or it is 'pytorch' but this process was not started by
            torchrun, or there are fewer GPUs than processes.
    """
    if launcher not in LAUNCHERS:
        raise ValueError(f"launcher is {launcher!r}; it must be one of {LAUNCHERS}")
    if launcher == "none" or dist.is_initialized():
        return
    if "LOCAL_RANK" not in os.environ:
        raise ValueError(
            "--launcher pytorch needs the environment that torchrun sets: start with "
            "python -m torch.distributed.run --nproc_per_node=2 tools/train.py CONFIG "
            "--launcher pytorch"
        )
    os.environ.setdefault("MKL_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))
    if torch.cuda.is_available():
        processes, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), torch.cuda.device_count()
        if processes > gpus:
            raise ValueError(
                f"{processes} processes were started here, and there are {gpus} GPUs: start one "
                f"for each (--nproc_per_node={gpus}), or set CUDA_VISIBLE_DEVICES= to use the CPU"
            )
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    # Of 1x1 convolutions; costs a copy of a small tensor.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view")
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")


def finish() -> None:
    """Leave the process group, if there is one, together with the others.

    Called when nobody holds the Runner any more: gloo's threads end with the last who knows the
    group, which a wrapped model does, and threads that outlive the interpreter abort the process.
    """
    if dist.is_initialized():
        gc.collect()  # a Runner and its hooks hold each other
        dist.barrier()
        dist.destroy_process_group()


def wrap(model: nn.Module, find_unused_parameters: bool) -> nn.Module:
    """``model``, already on its device, so that gradients are averaged over the processes."""
    on_cuda = next(model.parameters()).is_cuda
    with (
        warnings.catch_warnings()
    ):  # torch 2.13 has a new name for broadcast_buffers, older have not
        warnings.simplefilter("ignore", FutureWarning)
        return MMDistributedDataParallel(
            model,
            device_ids=[torch.cuda.current_device()] if on_cuda else None,
            broadcast_buffers=False,
            find_unused_parameters=find_unused_parameters,
        )


def average_buffers(model: nn.Module) -> None:
    """Give every process the mean of the floating-point buffers (running statistics).

    Called before a checkpoint, which only the first process writes: whoever resumes from it is then
    in the state of the processes that went on.
    """
    if not dist.is_initialized():
        return
    for buffer in model.buffers():
        if buffer.is_floating_point():
            dist.all_reduce(buffer)
            buffer /= dist.get_world_size()
