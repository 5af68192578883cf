"""The rules that a policy is made of. A new one is a class in its family's module, and its name here."""

from typing import Annotated

from pydantic import Field

from stillhouse.promotion.rules.base import Evidence
from stillhouse.promotion.rules.budgets import Budget
from stillhouse.promotion.rules.comparisons import (
    BeatsControl,
    BeatsStart,
    BetterThanChampion,
    Flips,
    NotWorseThanChampion,
    TeacherGap,
)
from stillhouse.promotion.rules.figures import Bound, OodDrop, Retention
from stillhouse.promotion.rules.grounds import Integrity, MinimumItems, MinimumPower
from stillhouse.promotion.rules.slices import Slices

Rule = Annotated[
    Bound
    | Retention
    | OodDrop
    | Slices
    | TeacherGap
    | BeatsStart
    | BeatsControl
    | NotWorseThanChampion
    | BetterThanChampion
    | Flips
    | Budget
    | Integrity
    | MinimumItems
    | MinimumPower,
    Field(discriminator="kind"),
]

__all__ = ["Evidence", "Rule"]
