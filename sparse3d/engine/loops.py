"""The training loop: whole epochs, every one of which can be entered again at any iteration."""

import random
from collections.abc import Iterator
from itertools import islice

import numpy as np
import torch
from mmengine.dist import get_rank
from mmengine.runner import EpochBasedTrainLoop
from torch.utils.data import Sampler

from .optim import NotFiniteError


def seed_generators(seed: int, *counters: int) -> None:
    """Seed torch, numpy and random with one number made of ``seed`` and ``counters``."""
    number = int(np.random.SeedSequence((seed, *counters)).generate_state(1)[0])
    random.seed(number)
    np.random.seed(number)
    seed_torch(number)


def seed_torch(number: int) -> None:
    """``torch.manual_seed``, which where no GPU is in use formats a stack trace at each call."""
    if torch.cuda.is_initialized():
        torch.manual_seed(number)
    else:
        torch.default_generator.manual_seed(number)


class Rest:
    """What a sampler gives after the first ``done`` indices of an epoch; its length is whole."""

    def __init__(self, sampler: Sampler, done: int):
        self.sampler = sampler
        self.done = done

    def __iter__(self) -> Iterator[int]:
        return islice(self.sampler, self.done, None)

    def __len__(self) -> int:
        return len(self.sampler)


class TrainLoop(EpochBasedTrainLoop):
    """Epochs whose every iteration depends on the weights, the seed and its number alone.

    Generators are seeded before each iteration from (seed, iteration, process), so a checkpoint
    needs no generator state and a resumed run, even inside an epoch, repeats the uninterrupted one.
    The order of samples comes from the sampler, which is seeded by (seed, epoch).
    """

    resumed = False

    def run(self) -> torch.nn.Module:
        """Train. A resumed run first makes up for a validation that its end prevented."""
        runner = self.runner
        between_epochs = self._iter == self._epoch * len(self.dataloader)
        if self.resumed and between_epochs and not runner.has_validated(self._epoch):
            self.validate_if_due()
        runner.call_hook("before_train")
        while self._epoch < self._max_epochs and not self.stop_training:
            self.run_epoch()
            self.validate_if_due()
        runner.call_hook("after_train")
        return runner.model

    def validate_if_due(self) -> None:
        """Validate after every ``val_interval`` epochs, from ``val_begin`` on, and at the end."""
        wanted = self._epoch % self.val_interval == 0 or self._epoch == self._max_epochs
        if self.runner.val_loop is not None and self._epoch >= self.val_begin and wanted:
            self.runner.val_loop.run()

    def run_epoch(self) -> None:
        """Train the rest of the present epoch: all of it, unless resumed inside."""
        runner, length = self.runner, len(self.dataloader)
        runner.call_hook("before_train_epoch")
        runner.model.train()
        seed_generators(runner.seed, self._iter, get_rank())  # the loader draws its workers' seeds
        batches = self.dataloader.batch_sampler
        sampler, done = batches.sampler, self._iter - self._epoch * length
        if done:
            batches.sampler = Rest(sampler, done * batches.batch_size)
        try:
            iterator = iter(self.dataloader)
            for index in range(done, length):
                seed_generators(runner.seed, self._iter, get_rank())
                self.run_iter(index, next(iterator))
        finally:
            batches.sampler = sampler
        runner.call_hook("after_train_epoch")
        self._epoch += 1

    def run_iter(self, idx: int, data_batch: dict) -> None:
        """Train one batch.

        Raises:
            NotFiniteError: names iteration and samples; the weights are as before.
        """
        try:
            super().run_iter(idx, data_batch)
        except NotFiniteError as error:
            batch = data_batch.get("batch") if isinstance(data_batch, dict) else None
            names = [sample.sample_id for sample in getattr(batch, "samples", [])]
            raise NotFiniteError(
                f"{error} at iteration {self._iter + 1} (epoch {self._epoch + 1}), samples "
                f"{', '.join(names) or 'unknown'}: training stopped, the weights are unchanged. "
                "Look at these samples (tools/visualize.py) or lower the learning rate"
            ) from None
