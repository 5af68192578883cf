"""``python -m stillhouse`` is the command ``stillhouse``."""

from stillhouse.cli import main

main()
