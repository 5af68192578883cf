"""Policies: the rules that a student must meet to be promoted, as data that reviewers read and sign off."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, ValidationError, model_validator

from stillhouse.contract import ConfigurationError, canonical_json, sha256_of
from stillhouse.promotion.rules import Rule
from stillhouse.recipe import Config, Name, RecipeError, explain, read_yaml


class Policy(Config):
    """All rules must pass for a promotion.

    Since every rule must pass, errors don't add up over the rules: the chance to promote a student that misses one
    requirement is at most that rule's own error (intersection-union test, Berger 1982). So no rule is corrected for
    the number of rules.
    """

    schema_id: Literal["stillhouse/policy/2"] = "stillhouse/policy/2"
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

    @model_validator(mode="after")
    def _somebody_is_asked(self) -> Self:
        """A first model that no rule is asked of would be promoted unseen. So would one that only compares with it."""
        if not any(rule.asked(has_champion=False) and not rule.against_champion for rule in self.rules):
            raise ValueError("a first model needs a rule too, one that does not compare with the champion")
        if not any(rule.asked(has_champion=True) for rule in self.rules):
            raise ValueError("a challenger needs a rule too, one without 'when: first'")
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
