"""What the doctor says about one thing."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at."""

    subject: str
    found: str
    remedy: str = ""
    """What to do; empty if all is well."""
    grave: bool = True
    """Whether nothing can run before the remedy. Otherwise it is advice, or the doctor was not allowed to look."""
