"""The gate: a pure function from a policy and the evidence to a decision, with every rule's numbers.

An interval that lies wholly on one side of a bound settles a rule; one that straddles it, or too few items, never
promotes. Missing evidence fails. Worse evidence never leads to a better verdict.
"""

from collections.abc import Iterator, Sequence

from stillhouse.contract import (
    CONTROLS,
    Comparison,
    Decision,
    Estimate,
    EvaluationSummary,
    IntegrityCheck,
    RuleOutcome,
    SuiteSummary,
    Timings,
    Verdict,
)
from stillhouse.promotion.policy import Policy
from stillhouse.promotion.rules import Evidence
from stillhouse.promotion.rules.base import is_finite, signed, signed_interval, unit_of
from stillhouse.recipe import Control


def decide(
    policy: Policy,
    summary: EvaluationSummary,
    *,
    timings: Timings | None,
    checks: Sequence[IntegrityCheck],
    model_sha256: str,
    champion_sha256: str | None,
    evidence_sha256: str,
    timings_sha256: str | None = None,
    has_teacher: bool = True,
) -> Decision:
    """Judge the candidate of ``summary`` by ``policy``.

    Args:
        policy: The rules.
        summary: The evidence.
        timings: Sizes and speeds, for rules about budgets.
        checks: What was found about the integrity of data and evidence.
        model_sha256: Digest of the candidate's model folder.
        champion_sha256: Digest of the champion in the evidence; None if no model is in service yet.
        evidence_sha256: Digest of the stored summary.
        timings_sha256: Digest of the stored timings; without it they count as missing. The decision carries it only if
            a rule read them, since they differ from machine to machine.
        has_teacher: Whether the teacher is a model, and no server, so that its figures must be there.
    """
    asked = [rule for rule in policy.rules if rule.asked(has_champion=champion_sha256 is not None)]
    evidence = Evidence(
        summary=summary,
        timings=timings if timings_sha256 else None,
        checks=checks,
        has_champion=champion_sha256 is not None,
    )
    outcomes = [*_unsound(policy, evidence, has_teacher=has_teacher)]
    remarks: list[str] = []
    for rule in asked:
        for requirement, finding in rule.findings(evidence):
            found = finding._asdict()
            remark = found.pop("note")
            remarks += [remark] if remark else []
            outcomes.append(RuleOutcome(rule=rule.name, requirement=requirement, **found))
    return Decision(
        verdict=_verdict(outcomes),
        candidate=summary.candidate,
        model_sha256=model_sha256,
        champion_sha256=champion_sha256,
        policy=policy.name,
        policy_sha256=policy.digest,
        evidence_sha256=evidence_sha256,
        timings_sha256=timings_sha256 if any(rule.reads_timings for rule in asked) else None,
        checks=tuple(checks),
        rules=tuple(outcomes),
        notes=(
            *_notes_on_evidence(evidence),
            *remarks,
            *(["the candidate is the champion, byte for byte"] if model_sha256 == champion_sha256 else []),
            *_notes_on_policy(policy, evidence),
        ),
    )


def _verdict(rules: Sequence[RuleOutcome]) -> Verdict:
    outcomes = {rule.outcome for rule in rules}
    if "fail" in outcomes:
        return "reject"
    return "inconclusive" if "inconclusive" in outcomes else "promote"


def _unsound(policy: Policy, evidence: Evidence, *, has_teacher: bool) -> Iterator[RuleOutcome]:
    """Yield why the evidence can't be used, whatever the rules are."""
    summary = evidence.summary
    if not summary.confidence >= policy.confidence:
        yield RuleOutcome(
            rule="confidence",
            requirement=f"intervals hold at {policy.confidence:.3g} or more",
            outcome="fail",
            bound=policy.confidence,
            reason=f"the evidence has intervals at {summary.confidence:.3g}: raise evaluation.confidence",
        )
    needed = {"teacher": has_teacher, summary.candidate: True, "champion": evidence.has_champion}
    for model in (model for model, is_needed in needed.items() if is_needed):
        lacking = [suite.name for suite in summary.suites if model not in suite.models]
        if lacking:
            yield RuleOutcome(
                rule="models",
                requirement=f"{model} was measured on every suite",
                outcome="fail",
                reason=f"the evidence lacks it on {', '.join(lacking)}: evaluate again",
            )
    if "champion" in summary.models and not evidence.has_champion:
        yield RuleOutcome(
            rule="models",
            requirement="the champion that the candidate was compared with is known",
            outcome="fail",
            reason="the champion in the evidence has no digest: evaluate again",
        )


def _notes_on_evidence(evidence: Evidence) -> Iterator[str]:
    for suite in evidence.summary.suites:
        for control in CONTROLS:
            comparison, gain = evidence.comparison(suite, control), evidence.gain(suite, control)
            if comparison and gain and is_finite(gain):
                yield from _what_it_brought(control, suite, comparison, gain)
    retention = evidence.summary.retention
    if len(retention) > 1:
        name, worst = min(retention.items(), key=lambda kept: kept[1].value)
        yield f"retention, worst: {name} {worst.value:.3f} [{worst.low:.3f}, {worst.high:.3f}]"


def _what_it_brought(control: Control, suite: SuiteSummary, comparison: Comparison, gain: Estimate) -> Iterator[str]:
    """In-domain the note is always there; on another suite only a clear difference is worth a line."""
    cause, missed = CONTROLS[control]
    difference, unit = comparison.difference, unit_of(suite.metric)
    here = "here" if suite.kind == "in-domain" else f"on {suite.name}"
    found = f"{here}: {comparison.model} − {comparison.baseline} = {signed_interval(difference)} {unit}"
    if gain.low > 0:
        yield f"{cause} brought {signed(difference.value)} {unit} {found}"
    elif gain.high < 0:
        yield f"{cause} brought nothing {found}; the student trained without {missed} is better"
    elif suite.kind == "in-domain":
        yield f"{cause} brought nothing {found}"


def _notes_on_policy(policy: Policy, evidence: Evidence) -> Iterator[str]:
    """Yield what the policy does not ask, of this candidate or of any."""
    kinds = {rule.kind for rule in policy.rules}
    for asking, sentence in (
        ({"beats-start"}, "no rule asks whether the student beats its start"),
        ({"not-worse-than-champion", "better-than-champion"}, "no rule compares with the champion"),
        ({"minimum-items"}, "no rule asks for a minimum of items"),
        ({"integrity"}, "no rule asks whether the data are sound"),
    ):
        if not kinds & asking:
            yield f"policy {policy.name}: {sentence}"
    asked = [rule for rule in policy.rules if rule.asked(has_champion=evidence.has_champion)]
    skipped = [rule.name for rule in policy.rules if rule not in asked]
    if skipped:
        whom = "a challenger" if evidence.has_champion else "a first model"
        yield f"policy {policy.name}: not asked of {whom}: {', '.join(skipped)}"
    required = {name for rule in asked if rule.kind == "integrity" for name in rule.checks}
    for check in evidence.checks:
        if check.outcome != "pass" and check.name not in required:
            yield f"the {check.name} check did not pass, and no rule asks for it: {check.detail}"
