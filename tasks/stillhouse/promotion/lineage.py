"""Whose output a registered model contains: written on its version as tags, and read from there."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from stillhouse.contract import IntegrityError, TermsFinding, TermsReport, canonical_json
from stillhouse.promotion.registry import Registry
from stillhouse.recipe import Config, ModelSource

TEACHERS_TAG = "stillhouse.teachers"
"""All teachers of a version, as JSON."""
TEACHER_TAG = "stillhouse.teacher."
"""Prefix of one tag for each teacher, by which MLflow's own search finds versions; the value is its name."""
SOURCE_TAG = "stillhouse.teacher"
"""Where the teacher of the version's own run comes from, as JSON."""
LICENCE_TAG = "stillhouse.teacher_licence"
_LONGEST_KEY = 250  # of MLflow


class Teacher(Config):
    """A teacher as a version's tags record it."""

    teacher: str
    licence: str
    provider: str | None = None


@dataclass(frozen=True, kw_only=True)
class TaughtVersion:
    """A registered version, and the teachers whose output it contains."""

    model: str
    version: int
    aliases: tuple[str, ...]
    run_id: str
    """The workflow run that made it; empty if nothing is recorded."""
    teachers: tuple[Teacher, ...]


_TEACHERS: TypeAdapter[tuple[Teacher, ...]] = TypeAdapter(tuple[Teacher, ...])
_SOURCE: TypeAdapter[Any] = TypeAdapter(ModelSource)


def teacher_tags(report: TermsReport) -> dict[str, str]:
    """Return the tags that tell a version's teachers."""
    teachers = {
        finding.teacher: Teacher(teacher=finding.teacher, licence=finding.licence, provider=finding.provider)
        for finding in reversed(report.findings)  # of two about one teacher the first one counts
        if finding.teacher in report.teachers
    }
    ordered = [teachers[name].model_dump() for name in report.teachers]
    tags = {TEACHERS_TAG: canonical_json(ordered).decode()}
    return tags | {_tag_key(name): name for name in report.teachers}


def recorded_teachers(uri: str, registry: Registry) -> tuple[TermsFinding, ...]:
    """Return the teachers of a registered model as findings to be ruled on anew; none if others registered it.

    Args:
        uri: ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION``.
        registry: Where it is registered.

    Raises:
        ConfigurationError: There is no such version.
        IntegrityError: Its record can't be read.
    """
    model, version = registry.resolve(uri)
    return tuple(
        TermsFinding(
            teacher=teacher.teacher,
            role="inherited",
            licence=teacher.licence,
            provider=teacher.provider,
            use="commercial",
            ruling="unknown",
            rule="",
            evidence=f"recorded with models:/{model}/{version}",
        )
        for teacher in _teachers(registry.tags(model, version), f"models:/{model}/{version}")
    )


def taught_by(text: str, registry: Registry) -> Iterator[TaughtVersion]:
    """Yield the registered versions that contain output of a teacher whose name contains ``text``; case doesn't count.

    Model by model, newest versions first.

    Raises:
        IntegrityError: A version's record can't be read.
    """
    aliases: dict[str, dict[str, int]] = {}
    for found in registry.versions():
        teachers = _teachers(found.tags, f"models:/{found.model}/{found.version}")
        if any(text.casefold() in teacher.teacher.casefold() for teacher in teachers):
            if found.model not in aliases:
                aliases[found.model] = registry.aliases(found.model)
            yield TaughtVersion(
                model=found.model,
                version=found.version,
                aliases=tuple(sorted(a for a, to in aliases[found.model].items() if to == found.version)),
                run_id=found.tags.get("stillhouse.run_id", ""),
                teachers=teachers,
            )


def _teachers(tags: Mapping[str, str], where: str) -> tuple[Teacher, ...]:
    try:
        if TEACHERS_TAG in tags:
            return _TEACHERS.validate_json(tags[TEACHERS_TAG])
        if SOURCE_TAG in tags:  # registered before all teachers were recorded
            title = _SOURCE.validate_json(tags[SOURCE_TAG]).title
            return (Teacher(teacher=title, licence=tags.get(LICENCE_TAG, "")),)
    except ValidationError:
        raise IntegrityError(f"the tags of {where} that tell its teachers can't be read; restore them") from None
    return ()


def _tag_key(teacher: str) -> str:
    return (TEACHER_TAG + re.sub(r"[^A-Za-z0-9_. -]", "-", teacher))[:_LONGEST_KEY]
