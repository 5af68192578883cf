"""The gate: a pure function from a policy and the evidence to a decision, with every rule's numbers.

An interval that lies wholly on one side of a bound settles a rule; one that straddles it, or too few items, is
``inconclusive``, which never promotes. Missing evidence fails. Worse evidence never leads to a better verdict.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, Literal

from stillhouse.contract import Decision, Estimate, EvaluationSummary, RuleOutcome, SuiteSummary, Verdict
from stillhouse.promotion.policy import (
    AccuracyFloor,
    BeatsStart,
    MinimumItems,
    NotWorseThanChampion,
    OodDrop,
    Policy,
    Retention,
    Rule,
)

Outcome = Literal["pass", "fail", "inconclusive"]
Judgement = tuple[Outcome, str]
"""An outcome and its reason."""


def decide(
    policy: Policy,
    summary: EvaluationSummary,
    *,
    model_sha256: str,
    champion_sha256: str | None,
    evidence_sha256: str,
) -> Decision:
    """Judge the candidate of ``summary`` by ``policy``.

    Args:
        policy: The rules.
        summary: The evidence.
        model_sha256: Digest of the candidate's model folder.
        champion_sha256: Digest of the champion in the evidence; None if no model is in service yet.
        evidence_sha256: Digest of the stored summary.
    """
    rules = [*_confidence(policy, summary)]
    for rule in policy.rules:
        rules += _outcomes(rule, summary, champion_sha256)
    return Decision(
        verdict=_verdict(rules),
        candidate=summary.candidate,
        model_sha256=model_sha256,
        champion_sha256=champion_sha256,
        policy=policy.name,
        policy_sha256=policy.digest,
        evidence_sha256=evidence_sha256,
        rules=tuple(rules),
        notes=tuple(_notes(policy, summary, model_sha256, champion_sha256)),
    )


def _verdict(rules: list[RuleOutcome]) -> Verdict:
    outcomes = {rule.outcome for rule in rules}
    if "fail" in outcomes:
        return "reject"
    return "inconclusive" if "inconclusive" in outcomes else "promote"


def _confidence(policy: Policy, summary: EvaluationSummary) -> Iterator[RuleOutcome]:
    if summary.confidence < policy.confidence:
        yield RuleOutcome(
            rule="confidence",
            requirement=f"intervals hold at {policy.confidence:.3g} or more",
            outcome="fail",
            bound=policy.confidence,
            reason=f"the evidence has intervals at {summary.confidence:.3g}: raise evaluation.confidence",
        )


def _outcomes(rule: Rule, summary: EvaluationSummary, champion_sha256: str | None) -> list[RuleOutcome]:
    """Judge one rule on each suite that it names."""
    suites = _chosen(rule.suites, summary)
    if not suites:
        named = rule.suites.removeprefix("only:")
        return [
            RuleOutcome(
                rule=rule.name,
                requirement=rule.requirement(named),
                outcome="fail",
                reason=f"the evidence has no {named} suite",
            )
        ]
    return [_judge(rule, suite, summary, champion_sha256) for suite in suites]


def _chosen(which: str, summary: EvaluationSummary) -> list[SuiteSummary]:
    if which == "every":
        return list(summary.suites)
    if which.startswith("only:"):
        return [suite for suite in summary.suites if suite.name == which.removeprefix("only:")]
    kind = {"in-domain": "in-domain", "shifted": "shifted-domain"}[which]
    return [suite for suite in summary.suites if suite.kind == kind]


def _judge(rule: Rule, suite: SuiteSummary, summary: EvaluationSummary, champion_sha256: str | None) -> RuleOutcome:
    if isinstance(rule, MinimumItems):
        enough = suite.num_items >= rule.items
        outcome: Outcome = "pass" if enough else "inconclusive"
        reason = f"{suite.num_items:,} items" + ("" if enough else ": too few to judge; add labelled items")
        return _outcome(rule, suite, outcome, None, rule.items, reason)
    if isinstance(rule, NotWorseThanChampion) and champion_sha256 is None:
        if "champion" in summary.models:
            return _outcome(rule, suite, "fail", None, -rule.margin, "the champion in the evidence has no digest")
        return _outcome(rule, suite, "pass", None, -rule.margin, "first model: there is no champion to be worse than")

    estimate, bound, settle = _question(rule, suite, summary)
    if estimate is None:
        return _outcome(rule, suite, "fail", None, bound, "the evidence lacks this figure")
    if not all(map(math.isfinite, (estimate.value, estimate.low, estimate.high))):
        return _outcome(rule, suite, "fail", None, bound, "the figure is not a number")
    outcome, reason = settle(estimate, bound)
    return _outcome(rule, suite, outcome, estimate, bound, reason)


def _question(
    rule: AccuracyFloor | Retention | BeatsStart | OodDrop | NotWorseThanChampion,
    suite: SuiteSummary,
    summary: EvaluationSummary,
) -> tuple[Estimate | None, float, Callable[[Estimate, float], Judgement]]:
    """Return the figure that the rule judges, its bound, and how the one settles the other."""
    match rule:
        case AccuracyFloor():
            scores = suite.models.get(summary.candidate)
            return (scores.accuracy if scores else None), rule.floor, _at_least
        case Retention():
            return summary.retention.get(suite.name), rule.floor, _at_least
        case BeatsStart():
            return _difference(summary, suite, "start"), rule.margin, _above
        case OodDrop():
            return summary.excess_drops.get(suite.name), rule.margin, _at_most
        case NotWorseThanChampion():
            return _difference(summary, suite, "champion"), -rule.margin, _not_below


def _difference(summary: EvaluationSummary, suite: SuiteSummary, baseline: str) -> Estimate | None:
    comparison = summary.comparison(suite.name, baseline)
    return comparison.difference if comparison and comparison.model == summary.candidate else None


def _at_least(estimate: Estimate, bound: float) -> Judgement:
    """A floor: the figure itself below it fails, the interval must clear it to pass."""
    if estimate.value < bound:
        return "fail", f"{_number(estimate.value)} is below {bound:g}"
    if estimate.low >= bound:
        return "pass", f"the interval starts at {_number(estimate.low)}, at or above {bound:g}"
    return "inconclusive", _straddles(estimate, bound)


def _above(estimate: Estimate, bound: float) -> Judgement:
    """Superiority: as a floor, but a tie is not enough."""
    if estimate.value <= bound:
        return "fail", f"{_number(estimate.value)} is not above {bound:g}"
    if estimate.low > bound:
        return "pass", f"the interval starts at {_number(estimate.low)}, above {bound:g}"
    return "inconclusive", _straddles(estimate, bound)


def _not_below(estimate: Estimate, bound: float) -> Judgement:
    """Non-inferiority: only an interval wholly below the bound is worse."""
    if estimate.high < bound:
        return "fail", f"the interval ends at {_number(estimate.high)}, below {bound:g}"
    if estimate.low >= bound:
        return "pass", f"the interval starts at {_number(estimate.low)}, at or above {bound:g}"
    return "inconclusive", _straddles(estimate, bound)


def _at_most(estimate: Estimate, bound: float) -> Judgement:
    """A ceiling, by the interval alone."""
    if estimate.low > bound:
        return "fail", f"the interval starts at {_number(estimate.low)}, above {bound:g}"
    if estimate.high <= bound:
        return "pass", f"the interval ends at {_number(estimate.high)}, at or below {bound:g}"
    return "inconclusive", _straddles(estimate, bound)


def _straddles(estimate: Estimate, bound: float) -> str:
    """Say so, and how many items would settle it if the figure stayed: a width falls with the root of n."""
    text = f"the interval [{_number(estimate.low)}, {_number(estimate.high)}] straddles {bound:g}"
    distance = abs(estimate.value - bound)
    side = estimate.value - estimate.low if estimate.value > bound else estimate.high - estimate.value
    if distance < side / 10:
        return text
    needed = math.ceil(estimate.n * (side / distance) ** 2)
    magnitude = 10 ** max(len(str(needed)) - 2, 0)
    return f"{text}; about {math.ceil(needed / magnitude) * magnitude:,} items would settle it if the figure stayed"


def _number(value: float) -> str:
    return f"{value:.3f}"


def _outcome(
    rule: Rule, suite: SuiteSummary, outcome: Outcome, value: Estimate | None, bound: float, reason: str
) -> RuleOutcome:
    return RuleOutcome(
        rule=rule.name,
        requirement=rule.requirement(suite.name),
        outcome=outcome,
        value=value,
        bound=bound,
        reason=reason,
    )


def _notes(policy: Policy, summary: EvaluationSummary, model_sha256: str, champion_sha256: str | None) -> Iterator[str]:
    for suite in summary.suites:
        difference = _difference(summary, suite, "sft")
        if difference is not None:
            yield from _distillation_note(summary, suite, difference)
    if model_sha256 == champion_sha256:
        yield "the candidate is the champion, byte for byte"
    kinds: dict[Any, str] = {
        BeatsStart: "no rule asks whether the student beats its start",
        NotWorseThanChampion: "no rule compares with the champion",
        MinimumItems: "no rule asks for a minimum of items",
    }
    for kind, sentence in kinds.items():
        if not any(isinstance(rule, kind) for rule in policy.rules):
            yield f"policy {policy.name}: {sentence}"


def _distillation_note(summary: EvaluationSummary, suite: SuiteSummary, difference: Estimate) -> Iterator[str]:
    """In-domain the note is always there; on a shifted suite only a clear difference is worth a line."""
    interval = f"{difference.value:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]".replace("-", "−")
    here = "here" if suite.kind == "in-domain" else f"on {suite.name}"
    if difference.low > 0:
        gain = f"{difference.value:+.3f}"
        yield f"distillation brought {gain} accuracy {here}: {summary.candidate} − sft = {interval}"
    elif suite.kind == "in-domain" or difference.high < 0:
        worse = "; the student trained without the teacher is better" if difference.high < 0 else ""
        yield f"distillation brought nothing {here}: {summary.candidate} − sft = {interval}{worse}"
