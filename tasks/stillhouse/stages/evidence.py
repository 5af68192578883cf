"""What the stage ``decide`` is given: the reports of earlier stages, and what they say together."""

from dataclasses import dataclass
from typing import Self, TypeVar

from pydantic import BaseModel

from stillhouse.contract import (
    DISTILLED,
    Chain,
    EvaluationSummary,
    IntegrityCheck,
    Preflight,
    SynthesisReport,
    TermsReport,
    Timings,
    TrainingHistory,
    compare,
)
from stillhouse.data.report import CheckResult, ValidationReport
from stillhouse.stages.chain import read_chain
from stillhouse.stages.context import StageContext

Report = TypeVar("Report", bound=BaseModel)

WRITTEN = "train, written"
"""What the report calls the set that the teacher wrote."""


@dataclass(frozen=True, kw_only=True)
class Reports:
    """The reports, as their stages wrote them. None or empty: the workflow has no such stage."""

    summary: EvaluationSummary
    timings: Timings
    validation: ValidationReport
    terms: TermsReport | None
    synthesis: SynthesisReport | None
    curated: ValidationReport | None
    """The checks of the written data."""
    histories: dict[str, TrainingHistory]
    """By arm, the distilled student first."""
    preflight: Preflight | None
    chain: Chain
    """Of compression; without steps where the recipe has none."""

    @classmethod
    def read(cls, context: StageContext) -> Self:
        """Read the inputs of the task.

        Raises:
            ConfigurationError: One that every workflow has is missing.
            IntegrityError: The bytes of one differ from their digest.
        """
        histories = {arm: _optional(context, f"history-{arm}", TrainingHistory) for arm in context.recipe.arms}
        return cls(
            summary=_read(context, "summary", EvaluationSummary),
            timings=_read(context, "timings", Timings),
            validation=_read(context, "validation", ValidationReport),
            terms=_optional(context, "terms", TermsReport),
            synthesis=_optional(context, "synthesis", SynthesisReport),
            curated=_optional(context, "curated", ValidationReport),
            histories={arm: history for arm, history in histories.items() if history},
            preflight=_optional(context, "preflight", Preflight),
            chain=read_chain(context.request.inputs),
        )

    @property
    def integrity(self) -> list[IntegrityCheck]:
        """Everything that must be in order before a figure counts; of one name there may be several."""
        distilled = self.histories.get(DISTILLED)
        canary = distilled.canary_rows if distilled else None
        return [
            *([self.terms.integrity] if self.terms else []),
            *self.validation.integrity,
            *(_of_written(check) for check in (self.curated.integrity if self.curated else ())),
            *([self.synthesis.integrity] if self.synthesis else []),
            *([_canary(canary)] if canary else []),
        ]

    @property
    def checks(self) -> list[CheckResult]:
        """The checks of all sets, and of the written one under a name that says so."""
        written = (check for check in (self.curated.checks if self.curated else ()) if check.table == "train")
        return [*self.validation.checks, *(check.model_copy(update={"table": WRITTEN}) for check in written)]

    @property
    def foretold(self) -> str:
        """What became of the prediction that was made before this run; empty if there was none."""
        return compare(self.preflight, self.summary).statement if self.preflight else ""


def _read(context: StageContext, name: str, kind: type[Report]) -> Report:
    return kind.model_validate_json(context.input(name).read_bytes())


def _optional(context: StageContext, name: str, kind: type[Report]) -> Report | None:
    return _read(context, name, kind) if name in context.request.inputs else None


def _of_written(check: IntegrityCheck) -> IntegrityCheck:
    return check.model_copy(update={"detail": f"of what the teacher wrote: {check.detail}"})


def _canary(rows: int) -> IntegrityCheck:
    """A row that disagrees stops the training, so a history that counts them is the proof that none did."""
    detail = f"{rows:,} rows of the teacher's cache were scored again before the training, and agreed"
    return IntegrityCheck(name="canary", outcome="pass", detail=detail)
