"""Greedy matching of true and found objects, all frames at once.

Objects of different frames do not touch each other, so that the first taker of every frame can
choose in one step, then the second, and so on; and every threshold [T] is one more column.
"""

import numpy as np


def rank(keys: np.ndarray) -> np.ndarray:
    """[n] place of each entry among the equal ones, for ascending ``keys`` [n]."""
    return np.arange(len(keys)) - np.searchsorted(keys, keys)


def table(keys: np.ndarray, *columns: np.ndarray) -> tuple[np.ndarray, ...]:
    """What belongs to each key, side by side.

    Args:
        keys: [n] ascending.
        columns: [n] each.

    Returns:
        the unique keys [m], then for each column its entries of each key in order [m, most], padded
        by -1 (integers) or inf.
    """
    unique, row = np.unique(keys, return_inverse=True)
    place = rank(keys)
    shape = (len(unique), place.max(initial=-1) + 1)
    tables = []
    for column in columns:
        padding = -1 if column.dtype.kind == "i" else np.inf
        filled = np.full(shape, padding, column.dtype)
        filled[row, place] = column
        tables.append(filled)
    return unique, *tables


def choose_in_turn(frame: np.ndarray, options: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """Lets each taker in turn have the first of its options that is allowed and still free.

    Args:
        frame: [n] frame of each taker; those of one frame choose in their order here.
        options: [n, C] rows that it may take, best first, padded by -1.
        allowed: [n, C, T] bool, or broadcastable: under which thresholds it may.

    Returns:
        [n, T] the row that it takes under each threshold, or -1.
    """
    order = np.argsort(frame, kind="stable")
    turn = np.empty(len(frame), int)
    turn[order] = rank(frame[order])
    free = np.ones((options.max(initial=-1) + 2, allowed.shape[2]), bool)
    free[-1] = False  # what the padding -1 points to
    taken = np.full((len(frame), allowed.shape[2]), -1)
    column = np.arange(allowed.shape[2])
    for step in range(turn.max(initial=-1) + 1):
        now = (turn == step).nonzero()[0]
        usable = free[options[now]] & allowed[now]
        choice = np.take_along_axis(options[now], usable.argmax(1), 1)
        choice = np.where(usable.any(1), choice, -1)
        free[choice, column] = False
        taken[now] = choice
    return taken
