"""What small trainings foretell before a run, and what became of it.

A probe trains a student with and without a teacher on a small sample and compares the two on the validation set. No
probe reads a test item.
"""

from typing import Any, Literal

from pydantic import Field

from stillhouse.contract.keys import content_key
from stillhouse.contract.scores import METRICS, Estimate, EvaluationSummary, Metric
from stillhouse.recipe import Config, Recipe, Sha256

Outlook = Literal["likely", "unlikely", "open"]
"""Whether distillation is going to beat plain fine-tuning: the interval of its gain lies above 0, below 0, or around
it. ``unlikely`` also where the teacher, used as it is, knows no more than how frequent the answers are."""

ProbeModel = Literal["guess", "teacher", "sft", "kd"]
"""``guess`` knows the frequencies of the labels, or of the tokens, in the training sample and nothing else."""

RECIPE_TEACHER = "teacher"
"""Name of the recipe's own teacher among the candidates."""

SUBJECT: tuple[str, ...] = ("task", "data", "teacher", "student", "distillation", "training")


class Probe(Config):
    """One teacher with one size of student, over all repeats.

    A repeat draws its own training rows and its own seeds. Intervals and standard errors count both chances, of the
    items and of the repeats; see `stillhouse.training.preflight.crossed`.
    """

    teacher: str
    """``teacher`` is the recipe's own, ``assistant-N`` its N layers, another name one of ``preflight.teachers``."""
    teacher_layers: int = Field(ge=1)
    teacher_parameters: int = Field(ge=1)
    student_layers: int = Field(ge=1)
    student_parameters: int = Field(ge=1)
    scores: dict[ProbeModel, Estimate]
    """In the metric's own unit."""
    gain: Estimate
    """``kd`` over ``sft``, from the same start; positive is better whatever the metric, and so below."""
    gains: tuple[float, ...]
    """The same in each repeat."""
    probability: float = Field(ge=0, le=1)
    """That the gain is above 0, at the probe's small budget: what a larger one does to it is not in this figure."""
    headroom: Estimate
    """The teacher over ``sft``: what there is to pass on."""
    skill: Estimate
    """The teacher over ``guess``."""
    outlook: Outlook
    problem: str | None = None
    """What stands in the way, and what to do about it."""


class TeacherChoice(Config):
    """The candidates as teachers of the recipe's student."""

    best: str
    """Whose ``kd`` student did best."""
    advantages: dict[str, Estimate]
    """By candidate: its ``kd`` student over that of the recipe's teacher. The intervals hold all at once (Bonferroni).
    """
    resolved: bool
    """Whether they leave no doubt that the best is better than the recipe's teacher or, being the recipe's, better
    than all others."""

    @property
    def recommended(self) -> str:
        """The best, if that is beyond doubt; the recipe's teacher otherwise."""
        return self.best if self.resolved else RECIPE_TEACHER


class Preflight(Config):
    """A prediction, made before the run. Equal recipes give equal bytes."""

    schema_id: Literal["stillhouse/preflight/1"] = "stillhouse/preflight/1"
    recipe: str
    """Its name."""
    subject: Sha256
    """What the prediction is about; see `subject_of`."""
    metric: Metric
    confidence: float
    rows: int = Field(ge=1)
    """Training rows in a repeat."""
    train_rows: int = Field(ge=1)
    """Training rows of the recipe."""
    items: int = Field(ge=1)
    """Validation items."""
    repeats: int = Field(ge=3)
    probes: tuple[Probe, ...] = Field(min_length=1)
    """The recipe's own teacher and student first."""
    choice: TeacherChoice | None = None
    """None where the recipe's teacher is the only candidate."""
    conclusion: str
    """In one line."""

    @property
    def own(self) -> Probe:
        """The probe of the recipe's teacher and student: the prediction that a run can confirm."""
        return self.probes[0]


class PreflightPointer(Config):
    """Which prediction is the latest one of a recipe."""

    schema_id: Literal["stillhouse/preflight-pointer/1"] = "stillhouse/preflight-pointer/1"
    key: Sha256
    """See `preflight_key`."""
    sha256: Sha256
    """Of the prediction's bytes."""


class PreflightOutcome(Config):
    """A prediction beside what a run found on the test set of its own domain."""

    outlook: Outlook
    """What was predicted."""
    predicted: Estimate
    """Gain of ``kd`` over ``sft`` in the probe."""
    probability: float
    observed: Estimate | None
    """The same in the run; None without a control arm, or where the run has another metric."""
    result: Literal["confirmed", "contradicted", "open"]
    """``open`` where the prediction was, or where the run's interval lies around 0."""
    statement: str
    """In one line."""


def compare(prediction: Preflight, summary: EvaluationSummary) -> PreflightOutcome:
    """Say whether a prediction came true: whether ``kd`` beat ``sft`` on the in-domain suite.

    Args:
        prediction: Made for the same recipe; see `subject_of`.
        summary: Of the run.
    """
    own, home = prediction.own, summary.suites[0]
    comparison = summary.comparison(home.name, "sft")
    observed = comparison.gain if comparison and comparison.metric == prediction.metric else None
    found = outlook_of(observed) if observed else "open"
    result: Literal["confirmed", "contradicted", "open"] = "open"
    if "open" not in (found, own.outlook):
        result = "confirmed" if found == own.outlook else "contradicted"
    foretold = {
        "likely": "that distillation would beat plain fine-tuning",
        "unlikely": "that it would not",
        "open": "nothing either way",
    }
    told = {"likely": "it did", "unlikely": "it did worse", "open": "the run can't tell"}[found]
    came = f"{told} ({signed(observed)})" if observed else "the run has no control arm to compare with"
    return PreflightOutcome(
        outlook=own.outlook,
        predicted=own.gain,
        probability=own.probability,
        observed=observed,
        result=result,
        statement=f"{result}: the preflight foretold {foretold[own.outlook]} ({signed(own.gain)} in "
        f"{METRICS[prediction.metric].title}); {came}",
    )


def subject_of(recipe: Recipe) -> str:
    """Digest the sections that a prediction is about. A run of a recipe with another digest is another matter.

    Where files lie doesn't count, and neither do the sections that begin with the evaluation of a finished student.
    """
    plain: dict[str, Any] = recipe.model_dump(mode="json")
    part = {section: plain[section] for section in SUBJECT}
    return content_key(stage="preflight", code="", recipe_part=part, parameters={}, inputs={}, sources={})


def preflight_key(recipe: str, key: str) -> str:
    """Return the object key of a recipe's prediction with the content key ``key``."""
    return f"preflight/{recipe}/{key}.json"


def latest_key(recipe: str) -> str:
    """Return the object key of the `PreflightPointer` to a recipe's latest prediction."""
    return f"preflight/{recipe}/latest.json"


def outlook_of(gain: Estimate) -> Outlook:
    """Say what a gain's interval allows to say."""
    if gain.low > 0:
        return "likely"
    return "unlikely" if gain.high < 0 else "open"


def signed(estimate: Estimate) -> str:
    """Return a difference with its sign and its interval."""
    return f"{estimate.value:+.3f} [{estimate.low:+.3f}, {estimate.high:+.3f}]"
