"""Runs under several numbers of threads."""

from collections.abc import Callable, Iterable

import torch


def for_threads(run: Callable, numbers: Iterable[int] = (1, 2, 3)) -> list:
    """What ``run()`` gives under each number of threads; the number that was set is set again."""
    before, results = torch.get_num_threads(), []
    try:
        for number in numbers:
            torch.set_num_threads(number)
            results.append(run())
    finally:
        torch.set_num_threads(before)
    return results
