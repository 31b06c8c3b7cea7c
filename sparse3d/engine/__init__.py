"""What turns the crank: runner, hooks, checkpoints. Importing it registers hooks and schedules."""

from . import hooks, optim, progress, splatting  # noqa: F401
