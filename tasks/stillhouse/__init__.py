"""Stillhouse turns large language models into small, fast ones, on a schedule, with proof.

The rooms of the house and the one direction in which they may import each other are drawn in
``ARCHITECTURE.md``.
"""

from importlib.metadata import version

__version__ = version("stillhouse")
