"""The gate as a whole: verdicts, digests, notes, and that worse evidence never gives a better verdict."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from gate_evidence import CHAMPION, EVIDENCE, FIRST, GOOD, MODEL, RULES, TIMINGS, Facts, estimate, judge, make_policy
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.contract import Decision, Estimate, EvaluationSummary
from stillhouse.promotion.gate import decide

RANK = {"reject": 0, "inconclusive": 1, "promote": 2}


def test_good_evidence_promotes_and_the_decision_carries_all_digests() -> None:
    decision = judge(GOOD)
    assert decision.verdict == "promote"
    assert all(rule.outcome == "pass" and rule.reason for rule in decision.rules)
    assert (decision.model_sha256, decision.champion_sha256) == (MODEL, CHAMPION)
    assert (decision.evidence_sha256, decision.timings_sha256) == (EVIDENCE, TIMINGS)
    assert [check.name for check in decision.checks] == ["leakage", "contamination"]
    assert Decision.model_validate_json(decision.model_dump_json()).digest == decision.digest


def test_timings_count_only_where_a_rule_reads_them() -> None:
    rules = [name for name, rule in RULES.items() if rule["kind"] != "budget"]
    one, other = judge(GOOD, *rules), judge(replace(GOOD, latency=99.0), *rules)
    assert one.timings_sha256 is None
    assert one.digest == other.digest
    size = RULES["size"] | {"when": "first"}
    assert judge(GOOD, size).timings_sha256 is None
    assert judge(FIRST, size).timings_sha256 == TIMINGS


@pytest.mark.parametrize("lacking", ["timings", "timings_sha256"])
def test_without_timings_or_their_digest_a_budget_fails(lacking: str) -> None:
    given_evidence: dict[str, Any] = {"timings": GOOD.timings(), "timings_sha256": TIMINGS} | {lacking: None}
    digests = {"model_sha256": MODEL, "champion_sha256": CHAMPION, "evidence_sha256": EVIDENCE}
    decision = decide(make_policy("size"), GOOD.summary(), checks=GOOD.checks(), **digests, **given_evidence)
    assert decision.verdict == "reject"
    assert decision.rules[0].reason == "the evidence has no timings of kd"


def test_a_failure_outweighs_what_is_open() -> None:
    assert judge(replace(GOOD, num_items=99)).verdict == "inconclusive"
    assert judge(replace(GOOD, num_items=99, accuracy=estimate(0.5))).verdict == "reject"


def test_a_recipe_cannot_weaken_the_gate_with_narrow_intervals() -> None:
    decision = judge(replace(GOOD, confidence=0.8))
    assert decision.verdict == "reject"
    assert decision.rules[0].rule == "confidence"


@pytest.mark.parametrize("model", ["teacher", "kd", "champion"])
def test_a_model_that_a_suite_lacks_fails_whatever_the_rules(model: str) -> None:
    summary = GOOD.summary()
    tweets = summary.suites[1]
    without = tweets.model_copy(update={"models": {m: s for m, s in tweets.models.items() if m != model}})
    holed = summary.model_copy(update={"suites": (summary.suites[0], without)})
    decision = judge(GOOD, "minimum-items", summary=holed)
    assert decision.verdict == "reject"
    assert decision.rules[0].requirement == f"{model} was measured on every suite"
    assert "lacks it on tweets" in decision.rules[0].reason


def test_a_champion_without_a_digest_fails() -> None:
    assert judge(FIRST, "minimum-items", summary=GOOD.summary()).verdict == "reject"


def test_equal_evidence_gives_an_equal_decision() -> None:
    assert judge(GOOD) == judge(GOOD)
    assert judge(GOOD).digest != judge(FIRST).digest


@pytest.mark.parametrize(
    ("metric", "gain", "note"),
    [
        ("accuracy", estimate(-0.004, 0.015), "nothing here: kd − sft = −0.004 [−0.019, +0.011] accuracy"),
        ("accuracy", estimate(0.004, 0.015), "nothing here: kd − sft = +0.004 [−0.011, +0.019] accuracy"),
        ("accuracy", estimate(0.03, 0.015), "+0.030 accuracy here: kd − sft = +0.030 [+0.015, +0.045] accuracy"),
        ("nll", estimate(0.03, 0.015), "−0.030 nats of loss here: kd − sft = −0.030 [−0.045, −0.015] nats of loss"),
        ("nll", estimate(-0.004, 0.015), "nothing here: kd − sft = +0.004 [−0.011, +0.019] nats of loss"),
    ],
)
def test_the_note_says_what_distillation_brought(metric: Any, gain: Estimate, note: str) -> None:
    assert judge(replace(GOOD, metric=metric, sft=gain)).notes[0] == f"distillation brought {note}"


@pytest.mark.parametrize("metric", ["accuracy", "nll"])
def test_the_note_says_when_the_control_is_better(metric: Any) -> None:
    notes = judge(replace(GOOD, metric=metric, sft=estimate(-0.03, 0.01))).notes
    assert notes[0].endswith("; the student trained without the teacher is better")
    assert "nothing on tweets" in notes[1]


def test_each_control_has_its_own_note() -> None:
    notes = judge(replace(GOOD, sft=estimate(0.03), unfiltered=estimate(0.005, 0.02))).notes
    assert notes[:2] == (
        "distillation brought +0.030 accuracy here: kd − sft = +0.030 [+0.020, +0.040] accuracy",
        "the filter brought nothing here: kd − unfiltered = +0.005 [−0.015, +0.025] accuracy",
    )
    worse = judge(replace(GOOD, sft=None, unfiltered=estimate(-0.03))).notes
    assert worse[0].startswith("the filter brought nothing")
    assert worse[0].endswith("; the student trained without it is better")
    assert not any("distillation" in note for note in worse)


def test_a_teacher_that_should_have_been_measured_fails() -> None:
    summary = replace(GOOD, has_teacher=False).summary()
    decision = judge(GOOD, "minimum-items", summary=summary)
    assert decision.verdict == "reject"
    assert decision.rules[0].requirement == "teacher was measured on every suite"
    assert judge(replace(GOOD, has_teacher=False), "minimum-items").verdict == "promote"


def test_without_a_control_arm_no_note_is_made_up() -> None:
    assert not any("distillation" in note for note in judge(replace(GOOD, sft=None)).notes)


@pytest.mark.parametrize(
    ("gain", "claim"),
    [
        (estimate(0.02), "kd is better than the champion on movies: a gain of +0.020 [+0.010, +0.030] accuracy"),
        (
            estimate(0.005),
            "kd is not worse, and not shown to be better, than the champion on movies: "
            "a gain of +0.005 [−0.005, +0.015] accuracy",
        ),
    ],
)
def test_after_non_inferiority_a_note_tells_of_superiority(gain: Estimate, claim: str) -> None:
    assert claim in judge(replace(GOOD, champion=gain), "not-worse-than-champion").notes


def test_no_note_tells_of_superiority_where_non_inferiority_is_open() -> None:
    notes = judge(replace(GOOD, champion=estimate(-0.015)), "not-worse-than-champion").notes
    assert not any("champion" in note for note in notes)


def test_the_suite_of_the_worst_retention_is_named() -> None:
    summary = GOOD.summary()
    uneven = summary.model_copy(update={"retention": {"movies": estimate(0.99), "tweets": estimate(0.91)}})
    assert "retention, worst: tweets 0.910 [0.900, 0.920]" in judge(GOOD, summary=uneven).notes


def test_what_a_policy_forgets_is_pointed_out() -> None:
    notes = " ".join(judge(GOOD, "floor").notes)
    assert "no rule compares with the champion" in notes
    assert "no rule asks whether the student beats its start" in notes
    assert "no rule asks whether the data are sound" in notes
    assert "no rule" not in " ".join(judge(GOOD).notes)


def test_what_a_policy_does_not_ask_of_this_candidate_is_pointed_out() -> None:
    integrity = RULES["integrity"] | {"name": "sound", "when": "challenger"}
    notes = judge(replace(FIRST, leakage="fail"), integrity).notes
    assert "policy tests: not asked of a first model: sound" in notes
    assert "the leakage check did not pass, and no rule asks for it: of 9 texts" in notes


def test_a_candidate_that_is_the_champion_is_pointed_out() -> None:
    digests = {"model_sha256": MODEL, "champion_sha256": MODEL, "evidence_sha256": EVIDENCE}
    decision = decide(make_policy("floor"), GOOD.summary(), timings=None, checks=[], **digests)
    assert decision.verdict == "promote"
    assert "the candidate is the champion, byte for byte" in decision.notes


def shifted(figure: Estimate, by: float) -> Estimate:
    return figure.model_copy(update={"value": figure.value + by, "low": figure.low + by, "high": figure.high + by})


def widened(figure: Estimate, by: float) -> Estimate:
    wider = {"low": figure.low - by, "high": figure.high + by, "standard_error": figure.standard_error + by / 2}
    return figure.model_copy(update=wider)


ESTIMATES = {
    "accuracy": -1,
    "ece": 1,
    "retention": -1,
    "mean_retention": -1,
    "teacher": -1,
    "start": -1,
    "sft": -1,
    "champion": -1,
    "excess_drop": 1,
    "lost": 1,
    "churn": 1,
    "slice": -1,
}
"""In which direction each figure gets worse."""

halves = st.floats(0.0, 0.1)
near_bounds = {
    "accuracy": st.floats(0.6, 0.9),
    "ece": st.floats(0.0, 0.2),
    "retention": st.floats(0.8, 1.0),
    "mean_retention": st.floats(0.8, 1.0),
    "slice": st.floats(0.7, 1.0),
}
facts = st.builds(
    Facts,
    **{name: st.builds(estimate, near_bounds.get(name, st.floats(-0.15, 0.15)), halves) for name in ESTIMATES},
    num_bytes=st.integers(50, 150),
    latency=st.floats(5.0, 15.0),
    throughput=st.floats(50.0, 150.0),
    leakage=st.sampled_from(["pass", "warn", "fail"]),
    num_items=st.integers(50, 200),
    metric=st.sampled_from(["accuracy", "nll"]),
)
own_rules = st.sampled_from(list(RULES))
amounts = st.floats(0.0, 0.3)


def worsen(one: Facts, name: str, by: float) -> Facts:
    """Make one thing worse by an amount."""
    match name:
        case "num_bytes":
            return replace(one, num_bytes=one.num_bytes + round(100 * by))
        case "num_items":
            return replace(one, num_items=max(1, one.num_items - round(200 * by)))
        case "latency":
            return replace(one, latency=one.latency * (1 + by))
        case "throughput":
            return replace(one, throughput=one.throughput * (1 - by))
        case "leakage":
            return replace(one, leakage={"pass": "warn", "warn": "fail", "fail": None}[one.leakage or "fail"])
    return replace(one, **{name: shifted(getattr(one, name), ESTIMATES[name] * by)})


WORSENED = [*ESTIMATES, "num_bytes", "num_items", "latency", "throughput", "leakage"]


@given(facts, own_rules, st.sampled_from(WORSENED), amounts)
def test_worse_evidence_never_gives_a_better_outcome(one: Facts, rule: str, name: str, by: float) -> None:
    assert RANK[judge(worsen(one, name, by), rule).verdict] <= RANK[judge(one, rule).verdict]


@given(facts, own_rules, st.sampled_from(list(ESTIMATES)), amounts)
def test_a_wider_interval_never_leads_to_a_promotion(one: Facts, rule: str, name: str, by: float) -> None:
    vaguer = replace(one, **{name: widened(getattr(one, name), by)})
    if judge(vaguer, rule).verdict == "promote":
        assert judge(one, rule).verdict == "promote"


@given(facts, st.permutations(list(RULES)), st.integers(1, len(RULES)))
def test_the_order_of_rules_does_not_count_and_more_of_them_never_promote_more(
    one: Facts, rules: list[str], kept: int
) -> None:
    verdict = judge(one, *rules).verdict
    assert verdict == judge(one, *reversed(rules)).verdict
    assert RANK[verdict] <= RANK[judge(one, *rules[:kept]).verdict]


def without_comparisons(summary: EvaluationSummary) -> EvaluationSummary:
    return summary.model_copy(update={"comparisons": ()})


def without_figures(summary: EvaluationSummary) -> EvaluationSummary:
    suites = tuple(
        suite.model_copy(update={"models": {m: s.model_copy(update={"metrics": {}}) for m, s in suite.models.items()}})
        for suite in summary.suites
    )
    return summary.model_copy(update={"suites": suites})


def without_ratios(summary: EvaluationSummary) -> EvaluationSummary:
    return summary.model_copy(update={"retention": {}, "mean_retention": None, "excess_drops": {}})


def without_slices(summary: EvaluationSummary) -> EvaluationSummary:
    suites = tuple(
        suite.model_copy(
            update={"models": {m: s.model_copy(update={"per_slice": {}}) for m, s in suite.models.items()}}
        )
        for suite in summary.suites
    )
    return summary.model_copy(update={"suites": suites})


def in_domain_only(summary: EvaluationSummary) -> EvaluationSummary:
    return summary.model_copy(update={"suites": summary.suites[:1]})


TAKEN = [without_comparisons, without_figures, without_ratios, without_slices, in_domain_only]


@given(facts, own_rules, st.sampled_from(TAKEN))
def test_evidence_that_is_taken_away_never_promotes(
    one: Facts, rule: str, take: Callable[[EvaluationSummary], EvaluationSummary]
) -> None:
    if judge(one, rule).verdict != "promote":
        assert judge(one, rule, summary=take(one.summary())).verdict != "promote"
