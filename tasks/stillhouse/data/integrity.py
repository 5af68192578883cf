"""What the checks of the data say about the integrity of everything measured on it, for the gate and its readers."""

from collections.abc import Mapping, Sequence
from typing import Literal

from stillhouse.contract import IntegrityCheck
from stillhouse.data.report import CheckResult, CoverageFigure, CoverageName, Dropped
from stillhouse.recipe import ContaminationConfig, DataConfig

LEARNED = ("train", "validation")


def judge_integrity(
    config: DataConfig,
    checks: Sequence[CheckResult],
    dropped: Mapping[str, Dropped],
    coverage: Mapping[CoverageName, CoverageFigure],
) -> tuple[IntegrityCheck, ...]:
    """Sum up the checks on leaks, on near-duplicates if they are looked for, and on coverage if it was measured.

    Args:
        config: Section ``data`` of the recipe.
        checks: The results of all sets.
        dropped: By table of the recipe: what was taken away before the checks.
        coverage: The figures, empty without a reference.
    """
    found = [_leakage(checks, dropped)]
    if config.contamination:
        found.append(_contamination(config.contamination, checks, dropped))
    if coverage:
        figures = ", ".join(f"{name.replace('_', ' ')} {figure.value:.3f}" for name, figure in coverage.items())
        sizes = coverage["auroc"]
        detail = f"{figures}; {sizes.num_train:,} training and {sizes.num_reference:,} reference texts compared"
        found.append(IntegrityCheck(name="coverage", outcome=_outcome(_named("coverage", checks)), detail=detail))
    return tuple(found)


def _leakage(checks: Sequence[CheckResult], dropped: Mapping[str, Dropped]) -> IntegrityCheck:
    leaks = _named("leak-", checks)
    removed = sum(dropped[name].held_out for name in LEARNED if name in dropped)
    detail = f"{_hits(leaks)} share a text with a held-out set; {removed:,} were left out before"
    return IntegrityCheck(name="leakage", outcome=_outcome(leaks), detail=detail)


def _contamination(
    config: ContaminationConfig, checks: Sequence[CheckResult], dropped: Mapping[str, Dropped]
) -> IntegrityCheck:
    near = _named("near-", checks)
    removed = sum(lost.contaminated for lost in dropped.values())
    detail = (
        f"{_hits(near)} have a near-duplicate in a held-out set (Jaccard of {config.ngram}-grams of words >= "
        f"{config.threshold}); {removed:,} were removed before"
    )
    return IntegrityCheck(name="contamination", outcome=_outcome(near), detail=detail)


def _named(start: str, checks: Sequence[CheckResult]) -> list[CheckResult]:
    return [check for check in checks if check.name.startswith(start)]


def _hits(checks: Sequence[CheckResult]) -> str:
    """Say how many rows were found. One that two held-out sets have counts twice."""
    counts = {name: sum(check.unexpected_count for check in checks if check.table == name) for name in LEARNED}
    return " and ".join(f"{count:,} rows of {name}" for name, count in counts.items())


def _outcome(checks: Sequence[CheckResult]) -> Literal["pass", "fail", "warn"]:
    failed = {check.severity for check in checks if not check.success}
    if "critical" in failed:
        return "fail"
    return "warn" if failed else "pass"
