"""Policies: the rules that a student must meet to be promoted, as data that reviewers read and sign off."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, model_validator

from stillhouse.contract import ConfigurationError, canonical_json, sha256_of
from stillhouse.recipe import Config, Name, RecipeError, explain, read_yaml

Suites = Literal["in-domain", "shifted", "every"] | Annotated[str, Field(pattern=r"^only:[a-z0-9-]+$")]
"""Which suites a rule judges, each by itself: by their kind, all of them, or ``only:NAME``."""

Share = Annotated[float, Field(ge=0, le=1)]


class AccuracyFloor(Config):
    """Accuracy, by the lower bound of its interval."""

    kind: Literal["accuracy-floor"]
    name: Name
    suites: Suites = "in-domain"
    floor: Share

    def requirement(self, suite: str) -> str:
        """Say what the rule asks for on ``suite``."""
        return f"accuracy on {suite} is at least {self.floor:g}"


class Retention(Config):
    """The share of the teacher's accuracy that the student keeps, by the lower bound of its interval."""

    kind: Literal["retention"]
    name: Name
    suites: Suites = "in-domain"
    floor: float = Field(gt=0, le=2)

    def requirement(self, suite: str) -> str:
        """Say what the rule asks for on ``suite``."""
        return f"keeps at least {self.floor:g} of the teacher's accuracy on {suite}"


class BeatsStart(Config):
    """The student is better than it was before distillation, by the lower bound of the paired difference."""

    kind: Literal["beats-start"]
    name: Name
    suites: Suites = "in-domain"
    margin: Share = 0.0
    """The difference in accuracy must exceed this."""

    def requirement(self, suite: str) -> str:
        """Say what the rule asks for on ``suite``."""
        more = f"by more than {self.margin:g} " if self.margin else ""
        return f"beats the student before distillation {more}on {suite}"


class OodDrop(Config):
    """Outside its domain the student loses hardly more accuracy than the teacher loses there."""

    kind: Literal["ood-drop"]
    name: Name
    suites: Annotated[str, Field(pattern=r"^(shifted|only:[a-z0-9-]+)$")] = "shifted"
    margin: Share
    """Most accuracy that the student may lose beyond the teacher's own loss."""

    def requirement(self, suite: str) -> str:
        """Say what the rule asks for on ``suite``."""
        return f"from in-domain to {suite} loses at most {self.margin:g} more accuracy than the teacher"


class NotWorseThanChampion(Config):
    """The student is not worse than the model in service by more than a margin, measured today on the same items."""

    kind: Literal["not-worse-than-champion"]
    name: Name
    suites: Suites = "in-domain"
    margin: Share

    def requirement(self, suite: str) -> str:
        """Say what the rule asks for on ``suite``."""
        return f"not worse than the champion on {suite} by more than {self.margin:g}"


class MinimumItems(Config):
    """There are enough items to judge at all; too few are inconclusive, whatever the figures say."""

    kind: Literal["minimum-items"]
    name: Name
    suites: Suites = "every"
    items: int = Field(ge=1)

    def requirement(self, suite: str) -> str:
        """Say what the rule asks for on ``suite``."""
        return f"{suite} has at least {self.items:,} items"


Rule = Annotated[
    AccuracyFloor | Retention | BeatsStart | OodDrop | NotWorseThanChampion | MinimumItems,
    Field(discriminator="kind"),
]


class Policy(Config):
    """All rules must pass for a promotion.

    Since every rule must pass, errors don't add up over the rules: the chance to promote a student that misses one
    requirement is at most that rule's own error (intersection-union test, Berger 1982). So no rule is corrected for
    the number of rules.
    """

    schema_id: Literal["stillhouse/policy/1"] = "stillhouse/policy/1"
    name: Name
    description: str
    """What the policy is for, in a sentence."""
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    """Least level of the intervals: a recipe can't weaken the gate by asking for narrower ones."""
    rules: tuple[Rule, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_are_distinct(self) -> Self:
        names = [rule.name for rule in self.rules]
        if len(set(names)) != len(names):
            raise ValueError("rules need distinct names")
        return self

    @property
    def digest(self) -> str:
        """SHA-256 of the policy's content; how its file is laid out does not count."""
        return sha256_of(canonical_json(self))


def load_policy(path: Path) -> Policy:
    """Read the policy file at ``path``.

    Raises:
        ConfigurationError: The file is missing, is not YAML, or does not describe a valid policy.
    """
    try:
        return Policy.model_validate(read_yaml(path))
    except RecipeError as error:
        raise ConfigurationError(str(error)) from None
    except ValidationError as error:
        raise ConfigurationError(f"{path}: {explain(error)}") from None
