"""What a person sees of a run: one line with the time left, and a log of json lines on disk."""

import json
import sys
import time
from datetime import timedelta
from pathlib import Path

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from torch import Tensor

from sparse3d.registry import HOOKS

LOG = "log.jsonl"


def left(seconds: float) -> str:
    """h:mm:ss."""
    return str(timedelta(seconds=round(seconds)))


@HOOKS.register_module()
class ProgressHook(Hook):
    """One updating line on a terminal; elsewhere a line now and then.

    Args:
        seconds: between two lines where the output is no terminal.
    """

    priority = "LOWEST"

    def __init__(self, seconds: float = 30):
        self.seconds = seconds
        self.bar = sys.stdout.isatty()
        self.shown = 0.0
        self.started = 0.0
        self.done = 0
        self.training = 0.0

    def before_train(self, runner) -> None:
        self.done, self.training = 0, 0.0
        length, rest = len(runner.train_dataloader), runner.max_iters - runner.iter
        self._say(
            f"training {runner.model_name}: {rest} iterations left of {runner.max_epochs} epochs "
            f"of {length}; everything goes to {runner.work_dir}"
        )

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        self.started = self.started or time.time()

    def before_train_epoch(self, runner) -> None:
        self.started = time.time()

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        self.done += 1
        now = time.time()
        self.training, self.started = self.training + now - self.started, now
        pace = self.training / self.done
        length = len(runner.train_dataloader)
        self._update(
            f"epoch {runner.epoch + 1}/{runner.max_epochs}  {batch_idx + 1}/{length}  "
            f"loss {outputs['loss'].item():.4g}  {pace:.2f} s/iteration  "
            f"left {left(pace * (runner.max_iters - runner.iter - 1))}",
            (batch_idx + 1) / length,
        )

    def before_val(self, runner) -> None:
        self.started = time.time()

    before_test = before_val

    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        self._evaluated("val", batch_idx + 1, len(runner.val_dataloader))

    def after_test_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        self._evaluated("test", batch_idx + 1, len(runner.test_dataloader))

    def after_val_epoch(self, runner, metrics: dict | None = None) -> None:
        self._say(f"epoch {runner.epoch}/{runner.max_epochs}  val  {summary(metrics or {})}")

    def after_test_epoch(self, runner, metrics: dict | None = None) -> None:
        self._say(f"test  {summary(metrics or {})}")

    def _evaluated(self, name: str, done: int, length: int) -> None:
        pace = (time.time() - self.started) / done
        self._update(
            f"{name}  {done}/{length}  {pace:.2f} s/iteration  left {left(pace * (length - done))}",
            done / length,
        )

    def _update(self, text: str, share: float) -> None:
        now, last = time.time(), share >= 1
        if not is_main_process() or not (last or now - self.shown >= self._pause):
            return
        self.shown = now
        if self.bar:
            filled = round(20 * share)
            bar = "#" * filled + "." * (20 - filled)
            print(f"\r\033[K[{bar}] {text}", end="\n" if last else "", flush=True)
        else:
            print(text, flush=True)

    @property
    def _pause(self) -> float:
        return 0.1 if self.bar else self.seconds

    def _say(self, text: str) -> None:
        if is_main_process():
            print(("\r\033[K" if self.bar else "") + text, flush=True)


def summary(metrics: dict) -> str:
    """The results at top level (no '/' in the name), short."""
    numbers = {k: v for k, v in metrics.items() if isinstance(v, (int, float)) and "/" not in k}
    return "  ".join(f"{name} {value:.4g}" for name, value in (numbers or metrics).items())


@HOOKS.register_module()
class JsonLogHook(Hook):
    """Appends a line to log.jsonl every so many iterations of an epoch and after each validation.

    A resumed run first cuts what the killed one wrote after its last checkpoint, so that the log of
    both together is the log of a run never killed (but for the seconds).

    Args:
        interval: iterations between lines, whose numbers are means; each epoch ends with a line.
    """

    priority = "BELOW_NORMAL"  # before the checkpoint, which holds the sums of an unfinished line

    def __init__(self, interval: int = 50):
        self.interval = interval
        self.sums: dict[str, float] = {}
        self.count = 0
        self.started = 0.0
        self.metrics: dict = {}

    def before_train_epoch(self, runner) -> None:
        self.started = time.time()

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        for name, value in outputs.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(
                value.detach() if isinstance(value, Tensor) else value
            )
        self.count += 1
        if (batch_idx + 1) % self.interval and batch_idx + 1 < len(runner.train_dataloader):
            return
        now = time.time()
        means = {name: value / self.count for name, value in self.sums.items()}
        self._write(
            runner,
            {
                "mode": "train",
                "epoch": runner.epoch + 1,
                "iter": runner.iter + 1,
                "lr": runner.optim_wrapper.get_lr()["lr"][0],
                **means,
                "seconds": round((now - self.started) / self.count, 4),
            },
        )
        self.sums, self.count, self.started = {}, 0, now

    def after_val_epoch(self, runner, metrics: dict | None = None) -> None:
        self.metrics = metrics or {}

    def after_val(self, runner) -> None:
        # After best.pth is written: a line here says that nothing of this validation is missing.
        plain = {k: v for k, v in self.metrics.items() if isinstance(v, (int, float, str))}
        self._write(runner, {"mode": "val", "epoch": runner.epoch, "iter": runner.iter, **plain})

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        checkpoint["log"] = {"sums": self.sums, "count": self.count}

    def after_resume(self, runner, checkpoint: dict) -> None:
        state = checkpoint.get("log", {})
        self.sums, self.count = dict(state.get("sums", {})), state.get("count", 0)

    def _write(self, runner, entry: dict) -> None:
        if is_main_process():
            with open(Path(runner.work_dir) / LOG, "a") as file:
                file.write(json.dumps(entry) + "\n")


def read_log(work_dir: str | Path) -> list[dict]:
    """The entries of a work folder's log; a line torn by a sudden end is left out."""
    path = Path(work_dir) / LOG
    entries = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return entries


def cut_log(work_dir: str | Path, iteration: int) -> None:
    """Leave only what was logged up to ``iteration``."""
    path = Path(work_dir) / LOG
    kept = [entry for entry in read_log(work_dir) if entry["iter"] <= iteration]
    beside = path.with_suffix(".tmp")
    beside.write_text("".join(json.dumps(entry) + "\n" for entry in kept))
    beside.replace(path)
