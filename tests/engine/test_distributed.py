import gc
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from sparse3d.engine import distributed

TASKS = Path("/proc/self/task")


def gloo_threads() -> int:
    """Threads of this process that work for gloo."""
    names = [(task / "comm").read_text() for task in TASKS.iterdir()]
    return sum("gloo" in name for name in names)


def test_no_thread_outlives_the_group(tmp_path):
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    held = [distributed.wrap(nn.Linear(2, 2), False)]
    held.append(held)  # as a Runner and its hooks are
    held[0](torch.ones(1, 2)).sum().backward()
    assert gloo_threads() > 0
    gc.disable()
    del held
    distributed.finish()
    gc.enable()
    assert not dist.is_initialized()
    last = time.monotonic() + 10  # a thread that was joined leaves /proc a moment later
    while gloo_threads() and time.monotonic() < last:
        time.sleep(0.01)
    assert gloo_threads() == 0
