"""What a teacher wrote, what was kept of it, and why: the file ``synthesis.json`` of a run."""

from typing import Literal

from pydantic import Field

from stillhouse.contract.evidence import IntegrityCheck
from stillhouse.contract.scores import Estimate
from stillhouse.recipe import Config

FinishReason = Literal["stop", "length", "refusal"]
"""Why an answer ended: by itself, at its bound, or because the server or its filter declined."""


class AnswerCounts(Config):
    """What was asked and what came back. Adds up over shards."""

    prompts: int = Field(default=0, ge=0)
    """Answers that were wanted, reviews included."""
    from_ledger: int = Field(default=0, ge=0)
    """Of them, answered before and not asked again."""
    requests: int = Field(default=0, ge=0)
    """That were sent, failed tries included."""
    refused: int = Field(default=0, ge=0)
    truncated: int = Field(default=0, ge=0)
    empty: int = Field(default=0, ge=0)
    prompt_tokens: int = Field(default=0, ge=0)
    answer_tokens: int = Field(default=0, ge=0)
    cost: float = Field(default=0.0, ge=0)
    """In the currency of the recipe's prices, of all answers, whoever paid for them first."""

    @property
    def of_answers(self) -> "AnswerCounts":
        """The counts that depend on the answers alone, and not on how often and when they were asked for."""
        return self.model_copy(update={"from_ledger": 0, "requests": 0})

    def plus(self, other: "AnswerCounts") -> "AnswerCounts":
        """Return the sum of both."""
        mine, theirs = self.model_dump(), other.model_dump()
        return AnswerCounts(**{name: value + theirs[name] for name, value in mine.items()})


class FilterCount(Config):
    """How many answers one filter took away, of those that came as far as it."""

    name: str
    seen: int = Field(ge=0)
    removed: int = Field(ge=0)


class Diversity(Config):
    """How different a set of texts is from itself."""

    texts: int = Field(ge=1)
    distinct_1: float = Field(ge=0, le=1)
    """Different words among all words (Li et al. 2016), over windows of equal length so that sets compare."""
    distinct_2: float = Field(ge=0, le=1)
    """The same of word pairs."""
    self_bleu: float = Field(ge=0, le=1)
    """Mean BLEU-4 of a text against the others, on a sample (Zhu et al. 2018); less is more diverse."""
    near_duplicates: float = Field(ge=0, le=1)
    """Share of texts that almost equal an earlier one."""


class RatingFacts(Config):
    """How the quality filter came about."""

    rated: int = Field(ge=0)
    unreadable: int = Field(ge=0)
    """Replies without a rating."""
    mean: float
    standard_deviation: float = Field(ge=0)
    rank_correlation: float = Field(ge=-1, le=1)
    """Spearman's, of predicted and given ratings, over folds that the classifier had not seen."""
    mean_kept: float
    """Mean given rating of the rated passages that were kept."""


class LengthBin(Config):
    """Traces of similar length."""

    low: int
    high: int
    """Words, both included."""
    accuracy: Estimate
    """Share with the right answer."""
    step_accuracy: Estimate | None
    """Share of the checked steps that are right; None if none could be checked."""


class TraceAudit(Config):
    """How the teacher's reasoning holds together, over all its answers before any filter."""

    traces: int = Field(ge=1)
    checked: int = Field(ge=0)
    """With at least one step of arithmetic that could be read."""
    steps: int = Field(ge=0)
    wrong_steps: int = Field(ge=0)
    accuracy: Estimate
    """Share of right answers; those of a problem are drawn together."""
    right_with_wrong_steps: Estimate | None
    """Share of the checked right answers that hold a wrong step."""
    first_wrong: tuple[int, ...]
    """Traces whose first wrong step is the first, the second and so on; the last entry counts all later ones."""
    by_length: tuple[LengthBin, ...]
    """Accuracy against length: the compound-error curve."""
    per_step: float | None = Field(default=None, ge=0, le=1)
    """Chance that a step is right."""


class SynthesisReport(Config):
    """Everything about the written set. Equal answers and settings give an equal report."""

    schema_id: Literal["stillhouse/synthesis/1"] = "stillhouse/synthesis/1"
    kind: Literal["answers", "textbook", "traces", "rationales"]
    teacher: str
    counts: AnswerCounts
    filters: tuple[FilterCount, ...]
    """In the order in which they were applied."""
    kept: int = Field(ge=0)
    """Answers that passed all filters."""
    rows: dict[str, int]
    """Rows of each set that was made: ``train``, and ``unfiltered`` if there is one."""
    tokens: dict[str, int]
    """Answer tokens in each of them, by the teacher's count."""
    diversity: dict[str, Diversity]
    """Of each of them."""
    rating: RatingFacts | None = None
    audit: TraceAudit | None = None

    @property
    def integrity(self) -> IntegrityCheck:
        """What the gate makes of it. Too many refusals and the like have stopped the run before."""
        counts, learned = self.counts, self.rows.get("train", 0)
        detail = (
            f"{self.kept:,} of {self.filters[0].seen if self.filters else self.kept:,} answers were kept; of all "
            f"{counts.prompts:,}, {counts.refused:,} were refused, {counts.truncated:,} cut off and {counts.empty:,} "
            f"empty; {learned:,} rows to learn from"
        )
        return IntegrityCheck(name="synthesis", outcome="pass" if learned and self.kept else "fail", detail=detail)
