"""Whether a run may learn from its teachers: the terms policy, and what it says about a recipe.

The policy is data (``terms.yaml`` beside this file, or the deployment's own). What it does not know is never permitted.
Light: the answer must come before anything is downloaded or loaded.
"""

import os
import re
import unicodedata
from collections.abc import Iterable
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, ValidationError, model_validator

from stillhouse.contract import (
    ConfigurationError,
    NotPermitted,
    Ruling,
    TermsFinding,
    TermsReport,
    canonical_json,
    sha256_of,
)
from stillhouse.recipe import Config, Name, Recipe, RecipeError, explain, read_yaml

TERMS_FILE = "STILLHOUSE_TERMS"
"""Environment variable with the path of a deployment's own policy."""
SHIPPED = Path(__file__).with_name("terms.yaml")
SELF_HOSTED = "self-hosted"
"""The provider of a server that the deployment runs itself: nobody's terms but the licence's."""

Use = Literal["research", "internal", "commercial"]
_KnownRuling = Literal["allowed", "denied", "needs-sign-off"]
_STRICTEST_FIRST: tuple[Ruling, ...] = ("denied", "unknown", "needs-sign-off", "allowed")
_NAME = re.compile(r"[\w\s.,:/()+'-]*")
_WORD = re.compile(r"[^\W\d_]+|\d+")
_FILLERS = frozenset({"the", "license", "licence", "agreement", "community", "version", "v"})


class UseRulings(Config):
    """A ruling that depends on what the student is for."""

    research: _KnownRuling
    internal: _KnownRuling
    commercial: _KnownRuling


class Terms(Config):
    """What is known about a licence, or about the terms of a service."""

    name: str = Field(min_length=1)
    aliases: tuple[str, ...] = ()
    """Other names. Case, punctuation and words such as licence don't count; see `words_of`."""
    ruling: _KnownRuling | UseRulings
    """Whether another model may be trained on the output."""
    rule: str = Field(min_length=1)
    """What the terms say about it, in the author's own words."""
    citation: str = ""
    """Address of the text."""
    basis: Literal["copy", "excerpt", "memory", "house-rule"]
    """How the author knows: the whole text, a clause that others quote, general knowledge, or no text at all."""
    read_on: date | None = None
    """When the author read the whole text."""

    def for_use(self, use: Use) -> _KnownRuling:
        """Return the ruling for one use."""
        if isinstance(self.ruling, UseRulings):
            found: _KnownRuling = getattr(self.ruling, use)
            return found
        return self.ruling

    @model_validator(mode="after")
    def _only_what_was_read_is_allowed(self) -> Self:
        if (self.read_on is not None) != (self.basis == "copy"):
            raise ValueError(f"{self.name}: read_on belongs to basis copy, and only to it")
        allows = [use for use in UseRulings.model_fields if self.for_use(use) == "allowed"]  # type: ignore[arg-type]
        if allows and self.read_on is None:
            raise ValueError(f"{self.name}: allowed for {allows[0]} use, although nobody has read the whole text")
        return self


class TermsPolicy(Config):
    """All terms that a deployment knows."""

    schema_id: Literal["stillhouse/terms-policy/1"] = "stillhouse/terms-policy/1"
    name: Name
    description: str
    licences: tuple[Terms, ...]
    providers: tuple[Terms, ...] = ()

    @property
    def digest(self) -> str:
        """SHA-256 of the policy's content; how its file is laid out does not count."""
        return sha256_of(canonical_json(self))

    def licence(self, name: str) -> Terms | None:
        """Return what is known about a licence. The name of a provider stands for that service's own terms."""
        return self._licences.get(words_of(name)) or self.provider(name)

    def provider(self, name: str) -> Terms | None:
        """Return what is known about the terms of a service."""
        return self._providers.get(words_of(name))

    @cached_property
    def _licences(self) -> dict[tuple[str, ...], Terms]:
        return _by_words(self.licences)

    @cached_property
    def _providers(self) -> dict[tuple[str, ...], Terms]:
        return _by_words(self.providers)

    @model_validator(mode="after")
    def _names_lead_to_one_entry(self) -> Self:
        for entries in (self.licences, self.providers):
            if words_of(SELF_HOSTED) in _by_words(entries):
                raise ValueError(f"{SELF_HOSTED} is decided by the licence; leave it out")
        return self


def words_of(name: str) -> tuple[str, ...]:
    """Return what counts in a name: its words and numbers without case; ``()`` if nothing or other signs are in it."""
    plain = unicodedata.normalize("NFKC", name).casefold()
    if not _NAME.fullmatch(plain):
        return ()
    return tuple(word for word in _WORD.findall(plain) if word not in _FILLERS)


def load_terms(path: Path | None = None) -> TermsPolicy:
    """Read a terms policy.

    Args:
        path: Its file; by default the one that ``STILLHOUSE_TERMS`` names, else the one that ships.

    Raises:
        ConfigurationError: The file is missing, is not YAML, or does not describe a valid policy.
    """
    path = path or Path(os.environ.get(TERMS_FILE) or SHIPPED)
    try:
        return TermsPolicy.model_validate(read_yaml(path))
    except RecipeError as error:
        raise ConfigurationError(f"terms policy {error}") from None
    except ValidationError as error:
        raise ConfigurationError(f"terms policy {path}: {explain(error)}") from None


def rule_on(policy: TermsPolicy, finding: TermsFinding) -> TermsFinding:
    """Return the finding with the policy's ruling, rule, citation and date.

    The licence must permit, and for a service its provider's terms, too: the strictest ruling counts.

    Args:
        policy: The terms that are known.
        finding: Names a licence, a use and maybe a provider; what it says of a ruling does not count.
    """
    known = [policy.licence(finding.licence)]
    if finding.provider is not None and words_of(finding.provider) != words_of(SELF_HOSTED):
        known.append(policy.provider(finding.provider))
    rulings: list[Ruling] = ["unknown" if terms is None else terms.for_use(finding.use) for terms in known]
    strictest = min(rulings, key=_STRICTEST_FIRST.index)
    decisive = [t for t, ruling in zip(known, rulings, strict=True) if t is not None and ruling == strictest]
    dates = [terms.read_on for terms in decisive]
    return finding.model_copy(
        update={
            "ruling": strictest,
            "rule": " ".join(dict.fromkeys(terms.rule for terms in decisive)),
            "citation": " ".join(dict.fromkeys(terms.citation for terms in decisive if terms.citation)),
            "read_on": min((day for day in dates if day is not None), default=None) if all(dates) else None,
        }
    )


def terms_report(
    recipe: Recipe, *, policy: TermsPolicy, inherited: Iterable[TermsFinding] = (), candidates: bool = False
) -> TermsReport:
    """Return what the policy says about all teachers of a recipe. Equal arguments give equal reports.

    Args:
        recipe: Names the teacher, its licence, and what the student is for.
        policy: The terms that are known.
        inherited: Teachers of registered models that the run starts from. The recipe's use and sign-off count for them.
        candidates: Judge the further teachers of a preflight, too.
    """
    teacher, terms = recipe.teacher, recipe.teacher.terms
    own = TermsFinding(
        teacher=teacher.title,
        role="teacher",
        licence=teacher.licence,
        provider=terms.provider,
        use=terms.use,
        ruling="unknown",
        rule="",
        evidence=terms.evidence,
        sign_off=terms.sign_off,
    )
    further = [
        TermsFinding(
            teacher=other.source.title,
            role="candidate-teacher",
            licence=other.licence,
            use=terms.use,
            ruling="unknown",
            rule="",
        )
        for other in (recipe.preflight.teachers if candidates else ())
    ]
    handed_down = [one.model_copy(update={"use": terms.use, "sign_off": terms.sign_off}) for one in inherited]
    findings = [rule_on(policy, finding) for finding in (own, *further, *handed_down)]
    return TermsReport(policy=policy.name, policy_sha256=policy.digest, findings=tuple(findings))


def insist(report: TermsReport) -> None:
    """Refuse a run whose teachers are not all permitted.

    Raises:
        NotPermitted: The message names the teacher, the ruling, the rule's text and what to do.
    """
    refused = [finding for finding in report.findings if not finding.permitted]
    if refused:
        more = f" ({len(refused) - 1} more are refused)" if len(refused) > 1 else ""
        raise NotPermitted(f"{describe(refused[0])}{more}; {_REMEDIES[refused[0].ruling]}")


def describe(finding: TermsFinding) -> str:
    """Return one line that says what the policy finds about a teacher."""
    under = f"licence '{finding.licence}'" + (f" at {finding.provider}" if finding.provider else "")
    ruling = _WORDING[finding.ruling]
    if finding.sign_off is not None and finding.ruling == "needs-sign-off":
        ruling = f"allowed by the sign-off of {finding.sign_off.by} ({finding.sign_off.reference})"
    if not finding.rule:
        return f"{finding.role} {finding.teacher}: {ruling} for {finding.use} use under {under}"
    read = f"read on {finding.read_on}" if finding.read_on else "not read as a whole by the policy's author"
    source = f" [{finding.citation}; {read}]" if finding.citation else ""
    return f"{finding.role} {finding.teacher}: {ruling} for {finding.use} use under {under}: {finding.rule}{source}"


_WORDING: dict[Ruling, str] = {
    "allowed": "allowed",
    "denied": "denied",
    "needs-sign-off": "needs a sign-off",
    "unknown": "unknown to the terms policy, so not permitted",
}
_REMEDIES: dict[Ruling, str] = {
    "denied": f"take another teacher or use, or write a contract that you have into your own policy ({TERMS_FILE})",
    "needs-sign-off": "let whoever answers for it give teacher.terms.sign_off (by, reference, on)",
    "unknown": f"correct teacher.licence or teacher.terms.provider, or add the terms to your own policy ({TERMS_FILE})",
}


def _by_words(entries: Iterable[Terms]) -> dict[tuple[str, ...], Terms]:
    found: dict[tuple[str, ...], Terms] = {}
    for entry in entries:
        for name in (entry.name, *entry.aliases):
            words = words_of(name)
            if not words or found.setdefault(words, entry) is not entry:
                raise ValueError(f"'{name}' has no word that counts, or leads to two entries")
    return found
