"""The gate: three outcomes, missing evidence fails, and worse evidence never gives a better verdict."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.contract import Comparison, Decision, Estimate, EvaluationSummary, ModelScores, SuiteSummary
from stillhouse.promotion.gate import decide
from stillhouse.promotion.policy import Policy

RANK = {"reject": 0, "inconclusive": 1, "promote": 2}

ALL_RULES: list[dict[str, Any]] = [
    {"kind": "accuracy-floor", "name": "floor", "suites": "every", "floor": 0.7},
    {"kind": "retention", "name": "kept", "suites": "every", "floor": 0.9},
    {"kind": "beats-start", "name": "learned", "margin": 0.02},
    {"kind": "ood-drop", "name": "no-collapse", "margin": 0.08},
    {"kind": "not-worse-than-champion", "name": "no-regression", "margin": 0.02},
    {"kind": "minimum-items", "name": "enough", "items": 100},
]


def estimate(value: float, half: float = 0.01, n: int = 1500) -> Estimate:
    return Estimate(value=value, low=value - half, high=value + half, standard_error=half / 2, n=n)


def scores(accuracy: Estimate) -> ModelScores:
    other = estimate(0.5)
    return ModelScores(accuracy=accuracy, macro_f1=other, ece=other, nll=other, truncated=0)


def make_summary(
    *,
    accuracy: Estimate = estimate(0.85),  # noqa: B008 - estimates are frozen
    retention: Estimate = estimate(0.98),  # noqa: B008
    start: Estimate = estimate(0.3),  # noqa: B008
    champion: Estimate | None = None,
    sft: Estimate | None = None,
    excess_drop: Estimate = estimate(0.02),  # noqa: B008
    num_items: int = 1500,
    confidence: float = 0.95,
) -> EvaluationSummary:
    """Evidence that meets every rule of `ALL_RULES`, but for what a test changes."""
    names = ("teacher", "kd", "start", *(["sft"] if sft else []), *(["champion"] if champion else []))
    differences = {"start": start, "champion": champion, "sft": sft}
    suites = (("movies", "in-domain"), ("tweets", "shifted-domain"))
    return EvaluationSummary(
        confidence=confidence,
        resamples=2000,
        candidate="kd",
        models=names,
        suites=tuple(
            SuiteSummary.model_validate(
                {
                    "name": name,
                    "kind": kind,
                    "num_items": num_items,
                    "items_sha256": "0" * 64,
                    "models": {model: scores(accuracy) for model in names},
                }
            )
            for name, kind in suites
        ),
        comparisons=tuple(
            Comparison(suite=suite, model="kd", baseline=baseline, difference=difference, p_value=0.5)
            for suite, _ in suites
            for baseline, difference in differences.items()
            if difference
        ),
        retention=dict.fromkeys(("movies", "tweets"), retention),
        drops={},
        excess_drops={"tweets": excess_drop},
    )


def judge(
    summary: EvaluationSummary, rules: Sequence[dict[str, Any]] = ALL_RULES, champion_sha256: str | None = "c" * 64
) -> Decision:
    policy = Policy.model_validate({"name": "tests", "description": "Of tests.", "rules": rules})
    if "champion" not in summary.models:
        champion_sha256 = None
    return decide(policy, summary, model_sha256="a" * 64, champion_sha256=champion_sha256, evidence_sha256="e" * 64)


def test_good_evidence_promotes_and_the_decision_carries_all_digests() -> None:
    decision = judge(make_summary(champion=estimate(0.0)))
    assert decision.verdict == "promote"
    assert all(rule.outcome == "pass" and rule.reason for rule in decision.rules)
    assert (decision.model_sha256, decision.champion_sha256) == ("a" * 64, "c" * 64)
    assert decision.evidence_sha256 == "e" * 64
    assert Decision.model_validate_json(decision.model_dump_json()).digest == decision.digest


OUTCOMES: list[tuple[int, dict[str, Estimate], str]] = [
    (0, {"accuracy": estimate(0.85)}, "promote"),
    (0, {"accuracy": estimate(0.71, 0.01)}, "promote"),
    (0, {"accuracy": estimate(0.705, 0.01)}, "inconclusive"),
    (0, {"accuracy": estimate(0.699, 0.01)}, "reject"),
    (1, {"retention": estimate(0.92, 0.01)}, "promote"),
    (1, {"retention": estimate(0.905, 0.01)}, "inconclusive"),
    (1, {"retention": estimate(0.89, 0.02)}, "reject"),
    (2, {"start": estimate(0.04, 0.01)}, "promote"),
    (2, {"start": estimate(0.03, 0.02)}, "inconclusive"),
    (2, {"start": estimate(0.02, 0.005)}, "reject"),
    (3, {"excess_drop": estimate(0.05, 0.02)}, "promote"),
    (3, {"excess_drop": estimate(0.09, 0.02)}, "inconclusive"),
    (3, {"excess_drop": estimate(0.12, 0.02)}, "reject"),
    (4, {"champion": estimate(-0.005, 0.01)}, "promote"),
    (4, {"champion": estimate(-0.015, 0.01)}, "inconclusive"),
    (4, {"champion": estimate(-0.025, 0.01)}, "inconclusive"),
    (4, {"champion": estimate(-0.04, 0.01)}, "reject"),
]


@pytest.mark.parametrize(("rule", "evidence", "verdict"), OUTCOMES)
def test_each_rule_has_three_outcomes(rule: int, evidence: dict[str, Any], verdict: str) -> None:
    assert judge(make_summary(**evidence), [ALL_RULES[rule]]).verdict == verdict


def test_too_few_items_are_inconclusive_however_good_the_figures() -> None:
    decision = judge(make_summary(num_items=99))
    assert decision.verdict == "inconclusive"
    assert "too few" in decision.rules[-1].reason


def test_a_failure_outweighs_what_is_open() -> None:
    assert judge(make_summary(num_items=99, accuracy=estimate(0.5))).verdict == "reject"


def test_a_first_model_has_no_champion_to_be_worse_than() -> None:
    decision = judge(make_summary(), [ALL_RULES[4]])
    assert decision.verdict == "promote"
    assert "first model" in decision.rules[0].reason
    assert decision.champion_sha256 is None


def test_an_inconclusive_rule_says_how_many_items_would_settle_it() -> None:
    # Half the distance takes four times the items.
    decision = judge(make_summary(accuracy=estimate(0.71, 0.02, n=1000)), [ALL_RULES[0]])
    assert "about 4,000 items" in decision.rules[0].reason


def without_comparisons(baseline: str) -> Callable[[EvaluationSummary], EvaluationSummary]:
    def change(summary: EvaluationSummary) -> EvaluationSummary:
        kept = tuple(c for c in summary.comparisons if c.baseline != baseline)
        return summary.model_copy(update={"comparisons": kept})

    return change


def without_candidate_scores(summary: EvaluationSummary) -> EvaluationSummary:
    suites = tuple(
        suite.model_copy(update={"models": {k: v for k, v in suite.models.items() if k != "kd"}})
        for suite in summary.suites
    )
    return summary.model_copy(update={"suites": suites})


def without(field: str) -> Callable[[EvaluationSummary], EvaluationSummary]:
    return lambda summary: summary.model_copy(update={field: {}})


def in_domain_only(summary: EvaluationSummary) -> EvaluationSummary:
    return summary.model_copy(update={"suites": summary.suites[:1]})


@pytest.mark.parametrize(
    ("rule", "change"),
    [
        (0, without_candidate_scores),
        (1, without("retention")),
        (2, without_comparisons("start")),
        (3, without("excess_drops")),
        (3, in_domain_only),
        (4, without_comparisons("champion")),
    ],
)
def test_missing_evidence_fails(rule: int, change: Callable[[EvaluationSummary], EvaluationSummary]) -> None:
    decision = judge(change(make_summary(champion=estimate(0.0))), [ALL_RULES[rule]])
    assert decision.verdict == "reject"
    assert "the evidence" in decision.rules[0].reason


def test_a_suite_that_was_not_run_fails_its_rule() -> None:
    rule = {"kind": "accuracy-floor", "name": "floor", "suites": "only:reviews", "floor": 0.5}
    decision = judge(make_summary(), [rule])
    assert (decision.verdict, decision.rules[0].reason) == ("reject", "the evidence has no reviews suite")


def test_a_figure_that_is_not_a_number_fails() -> None:
    nan = float("nan")
    broken = Estimate.model_construct(value=nan, low=nan, high=nan, standard_error=0.0, n=1500)
    summary = make_summary().model_copy(update={"retention": {"movies": broken, "tweets": broken}})
    decision = judge(summary, [ALL_RULES[1]])
    assert decision.verdict == "reject"
    assert decision.digest


def test_a_champion_without_a_digest_fails() -> None:
    decision = judge(make_summary(champion=estimate(0.0)), [ALL_RULES[4]], champion_sha256=None)
    assert decision.verdict == "reject"


def test_a_recipe_cannot_weaken_the_gate_with_narrow_intervals() -> None:
    decision = judge(make_summary(confidence=0.8))
    assert decision.verdict == "reject"
    assert decision.rules[0].rule == "confidence"


def test_equal_evidence_gives_an_equal_decision() -> None:
    summary = make_summary(champion=estimate(0.0))
    assert judge(summary) == judge(summary)
    assert judge(summary).digest != judge(make_summary()).digest


@pytest.mark.parametrize(
    ("sft", "note"),
    [
        (estimate(-0.004, 0.015), "distillation brought nothing here: kd − sft = −0.004 [−0.019, +0.011]"),
        (estimate(0.004, 0.015), "distillation brought nothing here: kd − sft = +0.004 [−0.011, +0.019]"),
        (estimate(0.03, 0.015), "distillation brought +0.030 accuracy here: kd − sft = +0.030 [+0.015, +0.045]"),
    ],
)
def test_the_note_says_what_distillation_brought(sft: Estimate, note: str) -> None:
    assert judge(make_summary(sft=sft)).notes[0] == note


def test_the_note_says_when_the_control_is_better() -> None:
    notes = judge(make_summary(sft=estimate(-0.03, 0.01))).notes
    assert notes[0].endswith("the student trained without the teacher is better")
    assert "nothing on tweets" in notes[1]


def test_without_a_control_arm_no_note_is_made_up() -> None:
    assert judge(make_summary()).notes == ()


def test_a_policy_that_forgets_the_champion_is_pointed_out() -> None:
    notes = " ".join(judge(make_summary(), [ALL_RULES[0]]).notes)
    assert "no rule compares with the champion" in notes
    assert "no rule asks whether the student beats its start" in notes


def test_a_candidate_that_is_the_champion_is_pointed_out() -> None:
    decision = judge(make_summary(champion=estimate(0.0, 0.0)), champion_sha256="a" * 64)
    assert decision.verdict == "promote"
    assert "the candidate is the champion, byte for byte" in decision.notes


values = st.floats(0.0, 1.0)
halves = st.floats(0.0, 0.2)
worse_by = st.floats(0.0, 0.5)
evidence = st.fixed_dictionaries(
    {
        "accuracy": st.builds(estimate, values, halves),
        "retention": st.builds(estimate, values, halves),
        "start": st.builds(estimate, st.floats(-0.5, 0.5), halves),
        "champion": st.builds(estimate, st.floats(-0.2, 0.2), halves),
        "excess_drop": st.builds(estimate, st.floats(-0.2, 0.3), halves),
    }
)


def shifted(figure: Estimate, by: float) -> Estimate:
    return figure.model_copy(update={"value": figure.value + by, "low": figure.low + by, "high": figure.high + by})


def widened(figure: Estimate, by: float) -> Estimate:
    return figure.model_copy(update={"low": figure.low - by, "high": figure.high + by})


@given(evidence, st.sampled_from(["accuracy", "retention", "start", "champion", "excess_drop"]), worse_by)
def test_a_worse_figure_never_gives_a_better_verdict(figures: dict[str, Any], name: str, by: float) -> None:
    direction = 1 if name == "excess_drop" else -1
    worse = figures | {name: shifted(figures[name], direction * by)}
    assert RANK[judge(make_summary(**worse)).verdict] <= RANK[judge(make_summary(**figures)).verdict]


@given(evidence, st.sampled_from(["accuracy", "retention", "start", "champion", "excess_drop"]), worse_by)
def test_a_wider_interval_never_leads_to_a_promotion(figures: dict[str, Any], name: str, by: float) -> None:
    vaguer = figures | {name: widened(figures[name], by)}
    if judge(make_summary(**vaguer)).verdict == "promote":
        assert judge(make_summary(**figures)).verdict == "promote"


@given(evidence, st.integers(1, 300), st.integers(0, 300))
def test_fewer_items_never_give_a_better_verdict(figures: dict[str, Any], num_items: int, more: int) -> None:
    few, many = (judge(make_summary(**figures, num_items=n)) for n in (num_items, num_items + more))
    assert RANK[few.verdict] <= RANK[many.verdict]


@given(evidence, st.permutations(ALL_RULES), st.integers(1, len(ALL_RULES)))
def test_a_policy_with_more_rules_never_promotes_more(
    figures: dict[str, Any], rules: list[dict[str, Any]], kept: int
) -> None:
    summary = make_summary(**figures)
    assert RANK[judge(summary, rules).verdict] <= RANK[judge(summary, rules[:kept]).verdict]
