"""Hooks: the epoch for the data set, checkpoints that no sudden end loses, pictures of a test."""

import os
import re
from pathlib import Path

from mmengine.dist import is_main_process
from mmengine.hooks import Hook

from sparse3d.registry import HOOKS
from sparse3d.visualization.predictions import write_prediction

from .checkpoints import read_checkpoint, save_atomic
from .distributed import average_buffers

POINTER = "last_checkpoint"
FINAL = "final.pth"


def latest_checkpoint(work_dir: str | Path) -> Path | None:
    """The newest complete checkpoint of a work folder, or None."""
    pointer = Path(work_dir) / POINTER
    if not pointer.is_file():
        return None
    path = Path(work_dir) / pointer.read_text().strip()
    return path if path.is_file() else None


def check_classes(dataset, training: bool) -> None:
    """``PointDataset.check_classes`` where the data set has it."""
    check = getattr(dataset, "check_classes", None)
    if check is not None:
        check(training)


@HOOKS.register_module()
class DatasetEpochHook(Hook):
    """Tells the training data set the epoch, from which it seeds its random augmentation.

    Before all it has the data sets see whether their labels have the classes.
    """

    priority = "VERY_HIGH"

    def before_train(self, runner) -> None:
        check_classes(runner.train_dataloader.dataset, training=True)

    def before_test(self, runner) -> None:
        check_classes(runner.test_dataloader.dataset, training=False)

    def before_train_epoch(self, runner) -> None:
        for part in (runner.train_dataloader.dataset, runner.bare_model):
            set_epoch = getattr(part, "set_epoch", None)  # a model whose loss changes has it too
            if set_epoch is not None:
                set_epoch(runner.epoch)


@HOOKS.register_module()
class CheckpointHook(Hook):
    """Writes epoch_N.pth, iter_N.pth, best.pth and, when all is done, final.pth (weights alone).

    No moment of death loses the work: a file is complete before the pointer ``last_checkpoint``
    names it, and older ones go only after that.

    Args:
        interval: epochs between checkpoints; the last epoch always has one.
        iterations: also save every so many iterations (a long epoch must not be lost); 0: never.
        max_keep_ckpts: how many epochs' checkpoints stay; -1: all.
        save_best: name of the validation result whose highest value decides best.pth; None: none.
    """

    priority = "VERY_LOW"

    def __init__(
        self,
        interval: int = 1,
        iterations: int = 0,
        max_keep_ckpts: int = 3,
        save_best: str | None = None,
    ):
        if interval < 1 or iterations < 0 or max_keep_ckpts == 0:
            raise ValueError(
                f"interval is {interval}, iterations {iterations}, max_keep_ckpts {max_keep_ckpts}"
                "; at least 1, at least 0, and not 0 (-1 keeps all) are needed"
            )
        self.interval = interval
        self.iterations = iterations
        self.max_keep_ckpts = max_keep_ckpts
        self.save_best = save_best
        self.best: float | None = None

    def after_resume(self, runner, checkpoint: dict) -> None:
        best = Path(runner.work_dir) / "best.pth"
        if self.save_best and best.is_file():
            self.best = read_checkpoint(best)["meta"].get("score")

    def before_train(self, runner) -> None:
        if is_main_process():
            for part in Path(runner.work_dir).glob(".*.part"):  # of a run that died while writing
                part.unlink()

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if self.iterations and (runner.iter + 1) % self.iterations == 0:
            self._save(runner, f"iter_{runner.iter + 1}.pth", by_epoch=False)

    def after_train_epoch(self, runner) -> None:
        done = runner.epoch + 1
        if done % self.interval == 0 or done == runner.max_epochs:
            self._save(runner, f"epoch_{done}.pth", by_epoch=True)

    def after_val_epoch(self, runner, metrics: dict) -> None:
        if self.save_best is None:
            return
        if self.save_best not in metrics:
            raise ValueError(
                f"save_best is {self.save_best!r}, but validation gave {sorted(metrics)}; name one "
                "of these"
            )
        score = float(metrics[self.save_best])
        if self.best is None or score > self.best:
            self.best = score
            meta = {"score": score, "epoch": runner.epoch, "iter": runner.iter}
            runner.save_checkpoint(runner.work_dir, "best.pth", meta=meta)

    def after_train(self, runner) -> None:
        if is_main_process():
            checkpoint = read_checkpoint(latest_checkpoint(runner.work_dir))
            weights = {key: checkpoint[key] for key in ("meta", "state_dict")}
            save_atomic(weights, Path(runner.work_dir) / FINAL)

    def _save(self, runner, name: str, by_epoch: bool) -> None:
        average_buffers(runner.model)
        runner.save_checkpoint(runner.work_dir, name, by_epoch=by_epoch)
        if is_main_process():
            folder = Path(runner.work_dir)
            point_to(folder, name)
            remove_older(folder, name, self.max_keep_ckpts)


def point_to(folder: Path, name: str) -> None:
    """Make ``name`` the checkpoint to resume from, in one step."""
    beside = folder / f"{POINTER}.tmp"
    beside.write_text(name + "\n")
    os.replace(beside, folder / POINTER)


def remove_older(folder: Path, name: str, keep: int) -> None:
    """Delete checkpoints inside epochs other than ``name``, and all but ``keep`` epochs' ones."""
    for path in folder.glob("iter_*.pth"):
        if path.name != name:
            path.unlink()
    epochs = sorted(folder.glob("epoch_*.pth"), key=lambda path: path.stat().st_mtime_ns)
    for path in epochs[:-keep] if keep > 0 else []:
        path.unlink()


class PictureHook(Hook):
    """Writes a picture of what was found in every tested sample.

    Args:
        folder: where to.
        min_score: least score of a box shown.
    """

    def __init__(self, folder: str | Path, min_score: float = 0.3):
        self.folder = Path(folder)
        self.min_score = min_score

    def after_test_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        for found in outputs:
            name = re.sub(r"[^\w.-]+", "_", found.sample.sample_id)
            write_prediction(found, self.folder / f"{name}.png", self.min_score)
