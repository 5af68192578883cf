"""Under which terms a run's teachers may be learned from: the file ``terms.json`` of a run."""

from datetime import date
from typing import Literal

from stillhouse.contract.evidence import IntegrityCheck
from stillhouse.recipe import Config, Sha256, SignOff

Ruling = Literal["allowed", "denied", "needs-sign-off", "unknown"]


class TermsFinding(Config):
    """What the terms policy says about one teacher."""

    teacher: str
    """As lineage names it; see `stillhouse.recipe.TeacherConfig.title`."""
    role: Literal["teacher", "candidate-teacher", "inherited"]
    """``inherited``: a teacher of the model that this run's teacher or student was made from."""
    licence: str
    provider: str | None = None
    use: Literal["research", "internal", "commercial"]
    ruling: Ruling
    rule: str
    """The policy's words about it; empty if it knows nothing."""
    citation: str = ""
    """Where the terms are found."""
    read_on: date | None = None
    """When the policy's author read them."""
    evidence: str = ""
    """What the recipe names as its own evidence."""
    sign_off: SignOff | None = None

    @property
    def permitted(self) -> bool:
        """Whether the run may learn from this teacher."""
        return self.ruling == "allowed" or (self.ruling == "needs-sign-off" and self.sign_off is not None)


class TermsReport(Config):
    """All teachers of a run. Equal recipes and policies give equal reports."""

    schema_id: Literal["stillhouse/terms/1"] = "stillhouse/terms/1"
    policy: str
    policy_sha256: Sha256
    findings: tuple[TermsFinding, ...]

    @property
    def teachers(self) -> tuple[str, ...]:
        """Names of all teachers whose output a student of this run contains."""
        return tuple(dict.fromkeys(f.teacher for f in self.findings if f.role != "candidate-teacher"))

    @property
    def integrity(self) -> IntegrityCheck:
        """What the gate makes of it."""
        refused = [finding.teacher for finding in self.findings if not finding.permitted]
        noun = "teacher" if len(self.findings) == 1 else "teachers"
        detail = f"{len(self.findings)} {noun}, {len(refused)} not permitted by policy {self.policy}"
        return IntegrityCheck(name="terms", outcome="fail" if refused else "pass", detail=detail)
