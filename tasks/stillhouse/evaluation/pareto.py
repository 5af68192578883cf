"""What is worth its cost."""

from collections.abc import Mapping
from math import inf


def pareto_front(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """Return the names whose (cost, quality) no other one meets or beats in both, the cheapest first.

    Args:
        points: By name. Of equal points, the first by name stays.
    """
    front: list[str] = []
    best = -inf
    for name in sorted(points, key=lambda name: (points[name][0], -points[name][1], name)):
        if points[name][1] > best:
            front.append(name)
            best = points[name][1]
    return front
