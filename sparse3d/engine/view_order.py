"""In what order the photographs of a place are trained on."""

from collections.abc import Iterator

import numpy as np
import torch

MEMORY = 0.6
"""What a view counts for after one more step."""
REACH = 0.5
"""Deviation of the bell curve by which views are near, in root mean squared distances of two."""


def spread_order(poses: np.ndarray, generator: torch.Generator) -> Iterator[int]:
    """Rows of ``poses`` for ever: each once in every pass, the next one far from those just given.

    A step learns from one view, and the optimizer's memory is some steps long: when these show
    different parts of the place, it moves as after a larger batch. With views at random, three in a
    row are often neighbours.

    Args:
        poses: [N, 4, 4] world to camera.
        generator: of the first view of all.

    Source: Welling: Herding dynamical weights to learn, 2009, with a memory that fades.
    """
    places = _places(np.asarray(poses, np.float64))
    # The mean squared distance of two is twice that to the mean.
    width = 2 * REACH**2 * max(2 * places.var(0).sum(), 1e-12)
    crowd = np.zeros(len(places))
    row = int(torch.randint(len(places), (1,), generator=generator))
    while True:
        open_ = np.ones(len(places), bool)
        while open_.any():
            yield row
            open_[row] = False
            crowd = MEMORY * crowd + np.exp(-((places - places[row]) ** 2).sum(1) / width)
            row = int(np.where(open_ if open_.any() else True, crowd, np.inf).argmin())


def _places(poses: np.ndarray) -> np.ndarray:
    """[N, 6]: where a camera stands, in root mean squared distances to the middle of all, and where
    it looks."""
    turn, shift = poses[:, :3, :3], poses[:, :3, 3]
    centers = -np.einsum("nij,ni->nj", turn, shift)
    centers -= centers.mean(0)
    size = max((centers**2).sum(1).mean() ** 0.5, 1e-9)
    return np.concatenate([centers / size, turn[:, 2]], 1)
