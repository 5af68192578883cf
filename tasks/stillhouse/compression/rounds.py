"""Large cuts in several rounds: a model that loses half of itself at a time learns back more than after one cut."""

import math

ROUNDING = 1e-9
"""Logarithms and roots of whole numbers are off by less."""


def halvings(before: float, after: float) -> int:
    """Return in how many rounds to go from one size to another, so that each leaves at least half; at least one."""
    return max(1, math.ceil(math.log2(before / after) - ROUNDING))


def next_size(now: int, goal: int, left: int) -> int:
    """Return the size after the next of ``left`` rounds, which shrink by the same factor as far as sizes are whole.

    The last one ends at the goal.
    """
    return math.ceil(now * math.pow(goal / now, 1 / left) - ROUNDING)
