"""What training a scene of Gaussians needs beyond other training: its beginning and its views."""

import time
from collections.abc import Iterator
from itertools import islice

import numpy as np
import torch
from mmengine.dist import get_world_size
from mmengine.hooks import Hook
from mmengine.registry import DATA_SAMPLERS
from torch.utils.data import Sampler

from sparse3d.models.dense_start.start import TooFewViews
from sparse3d.registry import HOOKS
from sparse3d.structures import SparsePoints

from .view_order import spread_order

FEW = 8
"""Photographs of which those held out for testing may be what a scene lacks to begin."""


@DATA_SAMPLERS.register_module()
class ViewSampler(Sampler):
    """An epoch of a given number of steps: all views, again and again, in ``spread_order``.

    Args:
        dataset: of the views.
        steps: views per epoch.
        seed: of the first view; each epoch has another.
        shuffle: mmengine's loaders say it; the order is the same in any case.

    Raises:
        ValueError: training in several processes, between which Gaussians would differ.
    """

    def __init__(self, dataset, steps: int = 100, seed: int = 0, shuffle: bool = True):
        if get_world_size() > 1:
            raise ValueError("a scene of Gaussians trains in one process: leave out --launcher")
        if steps < 1:
            raise ValueError(f"an epoch has {steps} steps; one at least is needed")
        self.dataset = dataset
        self.steps = steps
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + self.epoch)
        poses = np.stack([view.world_to_cam for view in self.dataset.views])
        yield from islice(spread_order(poses, generator), self.steps)


def held_out(dataset) -> str:
    """'; of ... is held out' where testing takes views of few; else nothing."""
    holdout, found = getattr(dataset, "holdout", 0), getattr(dataset, "found", 0)
    if not holdout or not len(dataset) < found <= FEW:
        return ""
    return (
        f"; of the {found} photographs every {holdout}-th, the first included, is held out for "
        "testing: to train on all of them say --cfg-options train_dataloader.dataset.holdout=0"
    )


@HOOKS.register_module()
class SplattingHook(Hook):
    """Makes the Gaussians of the training views, unless weights were loaded or resumed."""

    priority = "HIGH"

    def before_train(self, runner) -> None:
        model, dataset = runner.bare_model, runner.train_dataloader.dataset
        names = [view.name for view in dataset.views]
        if len(model):
            model.schedule(runner.max_iters, names)
            return
        started = time.time()
        print(f"making a start of {len(dataset)} photographs ...", flush=True)
        samples = [dataset[index] for index in range(len(dataset))]
        points = getattr(dataset, "points", SparsePoints.none())
        try:
            report = model.begin(samples, points, runner.max_iters)
        except TooFewViews as error:
            raise TooFewViews(f"{error}{held_out(dataset)}") from error
        report["start_seconds"] = round(time.time() - started, 2)
        print(
            f"the scene begins with {len(model)} Gaussians, made in {report['start_seconds']} s",
            flush=True,
        )
        runner.logger.info(f"start: {report}")
