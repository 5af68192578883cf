"""Figures and verdicts in words: shared by the page, the approval card and the terminal."""

from stillhouse.contract import Decision, Estimate, EvaluationSummary, ModelScores

MODEL_TITLES = {
    "teacher": "teacher",
    "kd": "student (kd)",
    "sft": "student (sft)",
    "start": "student before distillation",
    "champion": "champion in service",
}

MODEL_MEANINGS = {
    "teacher": "the model whose knowledge is passed on",
    "kd": "distilled from the teacher: the candidate",
    "sft": "control: same student, data and steps without the teacher",
    "start": "some of the teacher's layers, not trained further",
    "champion": "the model in service, scored again today",
}


def headline(decision: Decision) -> str:
    """Put the verdict into one sentence."""
    failed = [rule for rule in decision.rules if rule.outcome == "fail"]
    open_ = [rule for rule in decision.rules if rule.outcome == "inconclusive"]
    total = len(decision.rules)
    if decision.verdict == "promote":
        return f"The student {decision.candidate} meets all {total} requirements of policy {decision.policy}."
    if decision.verdict == "reject":
        return (
            f"The student {decision.candidate} misses {len(failed)} of {total} requirements of policy "
            f"{decision.policy}: {_first(failed[0].requirement, len(failed))}."
        )
    return (
        f"The evidence can't settle {len(open_)} of {total} requirements of policy {decision.policy}: "
        f"{_first(open_[0].requirement, len(open_))}."
    )


def half_width(estimate: Estimate, digits: int = 3) -> str:
    """Write a figure with the wider half of its interval: ``0.857 ±0.017``."""
    width = max(estimate.high - estimate.value, estimate.value - estimate.low)
    return f"{estimate.value:.{digits}f} ±{width:.{digits}f}"


def interval(estimate: Estimate, digits: int = 3) -> str:
    """Write the bounds: ``[0.839, 0.873]``, with a real minus sign."""
    return f"[{estimate.low:.{digits}f}, {estimate.high:.{digits}f}]".replace("-", "−")


def figure(estimate: Estimate, digits: int = 3) -> str:
    """Write the figure alone, with a real minus sign."""
    return f"{estimate.value:.{digits}f}".replace("-", "−")


def scores_of(summary: EvaluationSummary, suite: str, model: str) -> ModelScores | None:
    """Return the scores of one model on one suite, if it was measured."""
    found = summary.suite(suite)
    return found.models.get(model) if found else None


def kept_by(summary: EvaluationSummary, suite: str, model: str) -> str:
    """Write the share of the teacher's accuracy that ``model`` keeps, as a percentage."""
    scores, teacher = scores_of(summary, suite, model), scores_of(summary, suite, "teacher")
    if not scores or not teacher or not teacher.accuracy.value:
        return "—"
    if model == summary.candidate and suite in summary.retention:
        kept = summary.retention[suite]
        width = max(kept.high - kept.value, kept.value - kept.low)
        return f"{100 * kept.value:.1f} ±{100 * width:.1f} %"
    return f"{100 * scores.accuracy.value / teacher.accuracy.value:.1f} %"


def size(num_bytes: int) -> str:
    """Write a size in megabytes of 10^6 bytes."""
    return f"{num_bytes / 1e6:,.1f} MB"


def _first(text: str, num: int) -> str:
    return text if num == 1 else f"{text}, and {num - 1} more"
