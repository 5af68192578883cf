"""The rules of a policy, one by one: pass, fail, inconclusive, and what they say."""

from dataclasses import replace
from typing import Any

import pytest
from gate_evidence import FIRST, GOOD, RULES, Facts, estimate, judge, make_policy
from pydantic import TypeAdapter
from scipy.stats import norm

from stillhouse.contract import Estimate, EvaluationSummary
from stillhouse.promotion.rules import Rule

OUTCOMES: list[tuple[str, dict[str, Any], str]] = [
    ("floor", {"accuracy": estimate(0.71, 0.01)}, "promote"),
    ("floor", {"accuracy": estimate(0.705, 0.01)}, "inconclusive"),
    ("floor", {"accuracy": estimate(0.699, 0.01)}, "reject"),
    ("ceiling", {"ece": estimate(0.09, 0.01)}, "promote"),
    ("ceiling", {"ece": estimate(0.095, 0.01)}, "inconclusive"),
    ("ceiling", {"ece": estimate(0.101, 0.01)}, "reject"),
    ("retention", {"retention": estimate(0.92, 0.01)}, "promote"),
    ("retention", {"retention": estimate(0.905, 0.01)}, "inconclusive"),
    ("retention", {"retention": estimate(0.89, 0.02)}, "reject"),
    ("mean-retention", {"mean_retention": estimate(0.92, 0.01)}, "promote"),
    ("mean-retention", {"mean_retention": estimate(0.905, 0.01)}, "inconclusive"),
    ("mean-retention", {"mean_retention": estimate(0.89, 0.02)}, "reject"),
    ("teacher-gap", {"teacher": estimate(-0.03, 0.02)}, "promote"),
    ("teacher-gap", {"teacher": estimate(-0.06, 0.02)}, "inconclusive"),
    ("teacher-gap", {"teacher": estimate(-0.08, 0.02)}, "reject"),
    ("beats-start", {"start": estimate(0.04, 0.01)}, "promote"),
    ("beats-start", {"start": estimate(0.03, 0.02)}, "inconclusive"),
    ("beats-start", {"start": estimate(0.02, 0.005)}, "reject"),
    ("beats-control", {"sft": estimate(-0.005, 0.01)}, "promote"),
    ("beats-control", {"sft": estimate(-0.015, 0.01)}, "inconclusive"),
    ("beats-control", {"sft": estimate(-0.03, 0.02)}, "reject"),
    ("not-worse-than-champion", {"champion": estimate(-0.005, 0.01)}, "promote"),
    ("not-worse-than-champion", {"champion": estimate(-0.025, 0.01)}, "inconclusive"),
    ("not-worse-than-champion", {"champion": estimate(-0.04, 0.01)}, "reject"),
    ("better-than-champion", {"champion": estimate(0.02, 0.01)}, "promote"),
    ("better-than-champion", {"champion": estimate(0.01, 0.01)}, "inconclusive"),
    ("better-than-champion", {"champion": estimate(0.0, 0.01)}, "reject"),
    ("ood-drop", {"excess_drop": estimate(0.05, 0.02)}, "promote"),
    ("ood-drop", {"excess_drop": estimate(0.09, 0.02)}, "inconclusive"),
    ("ood-drop", {"excess_drop": estimate(0.12, 0.02)}, "reject"),
    ("slices", {"slice": estimate(0.85, 0.02, 200)}, "promote"),
    ("slices", {"slice": estimate(0.83, 0.02, 200)}, "inconclusive"),
    ("slices", {"slice": estimate(0.77, 0.02, 200)}, "reject"),
    ("flips", {"lost": estimate(0.08, 0.02)}, "promote"),
    ("flips", {"lost": estimate(0.09, 0.02)}, "inconclusive"),
    ("flips", {"lost": estimate(0.11, 0.02)}, "reject"),
    ("churn", {"churn": estimate(0.08, 0.02)}, "promote"),
    ("churn", {"churn": estimate(0.09, 0.02)}, "inconclusive"),
    ("churn", {"churn": estimate(0.11, 0.02)}, "reject"),
    ("size", {"num_bytes": 100}, "promote"),
    ("size", {"num_bytes": 101}, "reject"),
    ("latency", {"latency": 11.0}, "promote"),
    ("latency", {"latency": 11.1}, "reject"),
    ("speed", {"throughput": 100.0}, "promote"),
    ("speed", {"throughput": 99.0}, "reject"),
    ("integrity", {"leakage": "pass"}, "promote"),
    ("integrity", {"leakage": "warn"}, "inconclusive"),
    ("integrity", {"leakage": "fail"}, "reject"),
    ("minimum-items", {"num_items": 100}, "promote"),
    ("minimum-items", {"num_items": 99}, "inconclusive"),
    ("minimum-items", {"num_groups": 99}, "inconclusive"),
    ("minimum-power", {"champion": estimate(0.0, 0.01)}, "promote"),
    ("minimum-power", {"champion": estimate(0.3, 0.02)}, "inconclusive"),
]


@pytest.mark.parametrize(("rule", "changes", "verdict"), OUTCOMES)
def test_each_outcome_of_each_rule(rule: str, changes: dict[str, Any], verdict: str) -> None:
    assert judge(replace(GOOD, **changes), rule).verdict == verdict


def test_the_table_holds_every_kind() -> None:
    kinds = {branch["properties"]["kind"]["const"] for branch in TypeAdapter(Rule).json_schema()["$defs"].values()}
    assert {RULES[rule]["kind"] for rule, _, _ in OUTCOMES} == kinds
    for verdict in ("promote", "reject", "inconclusive"):
        told = {RULES[rule]["kind"] for rule, _, outcome in OUTCOMES if outcome == verdict}
        # Sizes and speeds have no interval, and too few items are never a failure.
        assert kinds - told <= {"reject": {"minimum-items", "minimum-power"}, "inconclusive": {"budget"}}.get(
            verdict, set()
        )


MISSING: list[tuple[str, dict[str, Any]]] = [
    ("floor", {"accuracy": None}),
    ("ceiling", {"ece": None}),
    ("retention", {"retention": None}),
    ("mean-retention", {"mean_retention": None}),
    ("mean-retention", {"retention": None}),
    ("teacher-gap", {"teacher": None}),
    ("beats-start", {"start": None}),
    ("beats-control", {"sft": None}),
    ("ood-drop", {"excess_drop": None}),
    ("ood-drop", {"suites": GOOD.suites[:1]}),
    ("slices", {"slice": None}),
    ("slices", {"slice": estimate(0.85, 0.02, 99)}),
    ("flips", {"lost": None}),
    ("churn", {"churn": None}),
    ("integrity", {"leakage": None}),
]


@pytest.mark.parametrize(("rule", "changes"), MISSING)
def test_missing_evidence_fails(rule: str, changes: dict[str, Any]) -> None:
    decision = judge(replace(GOOD, **changes), rule)
    assert decision.verdict == "reject"
    assert "the evidence" in decision.rules[0].reason


TEACHERS = {
    "retention": RULES["retention"],
    "mean-retention": RULES["mean-retention"],
    "teacher-gap": RULES["teacher-gap"],
    "ood-drop": RULES["ood-drop"],
    "slices": RULES["slices"],
    "flips": RULES["flips"],
    "size": RULES["size"],
    "likeness": {"kind": "bound", "metric": "agreement", "at_least": 0.9},
    "power": {"kind": "minimum-power", "margin": 0.02, "against": "teacher"},
}
"""Rules that nothing meets where the teacher is a server."""


@pytest.mark.parametrize("rule", TEACHERS)
def test_a_teacher_that_is_a_server_meets_no_rule_about_it(rule: str) -> None:
    found, *_ = judge(replace(GOOD, has_teacher=False), {"name": rule} | TEACHERS[rule]).rules
    assert found.outcome == "fail"
    assert found.reason.startswith("the teacher is a server and was not measured: compare with")


@pytest.mark.parametrize("rule", sorted(RULES.keys() - TEACHERS.keys()))
def test_rules_about_others_need_no_teacher(rule: str) -> None:
    assert judge(replace(GOOD, has_teacher=False), rule).rules == judge(GOOD, rule).rules


UNFILTERED = {"kind": "beats-control", "against": "unfiltered"}


@pytest.mark.parametrize(
    ("gain", "verdict"),
    [
        (estimate(0.02, 0.01), "promote"),
        (estimate(0.02, 0.03), "inconclusive"),
        (estimate(-0.01, 0.03), "reject"),
        (None, "reject"),
    ],
)
def test_the_control_that_learned_unchosen_answers_can_be_asked_for(gain: Estimate | None, verdict: str) -> None:
    decision = judge(replace(GOOD, sft=estimate(0.5), unfiltered=gain), UNFILTERED)
    assert decision.verdict == verdict
    assert "unfiltered arm" in decision.rules[0].requirement
    assert ("synthesis.controls" in decision.rules[0].reason) == (gain is None)


@pytest.mark.parametrize("rule", ["not-worse-than-champion", "better-than-champion", "churn", "minimum-power"])
def test_a_champion_that_was_not_compared_fails(rule: str) -> None:
    summary = GOOD.summary()
    kept = tuple(c for c in summary.comparisons if c.baseline != "champion")
    decision = judge(GOOD, rule, summary=summary.model_copy(update={"comparisons": kept}))
    assert decision.verdict == "reject"
    assert "the evidence lacks" in decision.rules[0].reason


def test_another_model_compared_in_its_place_fails() -> None:
    summary = GOOD.summary()
    other = tuple(c.model_copy(update={"model": "sft"}) for c in summary.comparisons)
    assert judge(GOOD, "beats-start", summary=summary.model_copy(update={"comparisons": other})).verdict == "reject"


def broken(figure: Estimate, bad: float) -> Estimate:
    return figure.model_copy(update={"low": bad, "standard_error": bad})


def break_figures(summary: EvaluationSummary, bad: float) -> EvaluationSummary:
    """Make one end of every interval, and every standard error, ``bad``."""
    return summary.model_copy(
        update={
            "suites": tuple(
                suite.model_copy(
                    update={
                        "models": {
                            name: scores.model_copy(
                                update={
                                    "metrics": {m: broken(e, bad) for m, e in scores.metrics.items()},
                                    "per_slice": {n: broken(e, bad) for n, e in scores.per_slice.items()},
                                }
                            )
                            for name, scores in suite.models.items()
                        }
                    }
                )
                for suite in summary.suites
            ),
            "comparisons": tuple(
                c.model_copy(
                    update={
                        "difference": broken(c.difference, bad),
                        "flips_lost": broken(c.flips_lost, bad) if c.flips_lost else None,
                    }
                )
                for c in summary.comparisons
            ),
            "retention": {name: broken(e, bad) for name, e in summary.retention.items()},
            "mean_retention": broken(summary.mean_retention, bad) if summary.mean_retention else None,
            "excess_drops": {name: broken(e, bad) for name, e in summary.excess_drops.items()},
        }
    )


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    "rule", [name for name, rule in RULES.items() if rule["kind"] not in ("budget", "integrity", "minimum-items")]
)
def test_a_figure_that_is_not_a_number_fails(rule: str, bad: float) -> None:
    decision = judge(GOOD, rule, summary=break_figures(GOOD.summary(), bad))
    assert decision.verdict == "reject"
    assert "not a number" in decision.rules[0].reason
    assert decision.digest


@pytest.mark.parametrize("metric", ["nll", "accuracy"])
def test_losses_and_accuracies_are_judged_alike_by_their_gain(metric: Any) -> None:
    rules = ("teacher-gap", "beats-start", "beats-control", "not-worse-than-champion", "better-than-champion")
    assert judge(replace(GOOD, metric=metric), *rules).verdict == "promote"
    for rule, baseline in zip(rules, ("teacher", "start", "sft", "champion", "champion"), strict=True):
        assert judge(replace(GOOD, metric=metric, **{baseline: estimate(-0.2)}), rule).verdict == "reject"


def test_requirements_name_the_unit() -> None:
    language = judge(replace(GOOD, metric="nll"), "teacher-gap", "not-worse-than-champion", "ood-drop")
    assert [rule.requirement for rule in language.rules[:3]] == [
        "at most 0.05 nats of loss behind the teacher on movies",
        "not worse than the champion on movies by more than 0.02 nats of loss",
        "from in-domain to tweets loses at most 0.08 nats of loss more than the teacher",
    ]
    assert judge(GOOD, "retention").rules[0].requirement == "keeps at least 0.9 of the teacher's accuracy on movies"


EVERYWHERE = Facts(
    suites=(
        ("home", "in-domain"),
        ("far", "shifted-domain"),
        ("traps", "challenge"),
        ("typos", "perturbed"),
        ("foreign", "out-of-scope"),
        ("quiz", "benchmark"),
    )
)


@pytest.mark.parametrize(
    ("suites", "judged"),
    [
        ("in-domain", "home"),
        ("shifted", "far"),
        ("challenge", "traps"),
        ("perturbed", "typos"),
        ("away", "far traps typos"),
        ("out-of-scope", "foreign"),
        ("benchmark", "quiz"),
        ("only:typos", "typos"),
        ("every", "home far traps typos foreign quiz"),
    ],
)
def test_a_rule_judges_the_suites_that_it_names(suites: str, judged: str) -> None:
    decision = judge(EVERYWHERE, {"kind": "bound", "metric": "accuracy", "at_least": 0.5, "suites": suites})
    assert [rule.requirement for rule in decision.rules if rule.rule == "own"] == [
        f"accuracy on {name} is at least 0.5" for name in judged.split()
    ]


@pytest.mark.parametrize("suites", ["away", "benchmark", "only:reviews"])
def test_a_suite_that_was_not_run_fails_its_rule(suites: str) -> None:
    here = replace(GOOD, suites=GOOD.suites[:1])
    decision = judge(here, {"kind": "bound", "metric": "accuracy", "at_least": 0.5, "suites": suites})
    name = suites.removeprefix("only:")
    assert (decision.verdict, decision.rules[0].reason) == ("reject", f"the evidence has no {name} suite")


def test_every_suite_means_those_with_the_figure_and_fails_where_only_the_candidate_lacks_it() -> None:
    rule = {"kind": "bound", "metric": "macro_f1", "at_least": 0.5, "suites": "every"}
    assert judge(GOOD, rule).rules[0].reason == "the evidence has this figure on no suite"

    def with_f1(summary: EvaluationSummary, models: set[str]) -> EvaluationSummary:
        home = summary.suites[0]
        scores = {
            name: s.model_copy(update={"metrics": s.metrics | {"macro_f1": estimate(0.8)}}) if name in models else s
            for name, s in home.models.items()
        }
        return summary.model_copy(update={"suites": (home.model_copy(update={"models": scores}), *summary.suites[1:])})

    summary = GOOD.summary()
    assert judge(GOOD, rule, summary=with_f1(summary, {"kd", "teacher"})).verdict == "promote"
    assert judge(GOOD, rule, summary=with_f1(summary, {"teacher"})).verdict == "reject"


def with_slices(models: dict[str, dict[str, Estimate]], metric: Any = "accuracy") -> EvaluationSummary:
    """Return good evidence with these slices of the in-domain suite."""
    summary = replace(GOOD, metric=metric).summary()
    home = summary.suites[0]
    scores = {m: s.model_copy(update={"per_slice": models.get(m, {})}) for m, s in home.models.items()}
    return summary.model_copy(update={"suites": (home.model_copy(update={"models": scores}), *summary.suites[1:])})


def test_the_worst_slice_decides_and_small_ones_are_counted_and_not_judged() -> None:
    teacher = {name: estimate(0.9, 0.02, n) for name, n in {"a=1": 200, "a=2": 100, "a=3": 99}.items()}
    mine = teacher | {"a=2": estimate(0.86, 0.02, 100), "a=3": estimate(0.5, 0.02, 99)}
    rule, *_ = judge(GOOD, "slices", summary=with_slices({"kd": mine, "teacher": teacher})).rules
    assert rule.outcome == "inconclusive"
    asked = "at most 0.05 accuracy behind the teacher on every slice of movies with at least 100 items"
    assert rule.requirement == asked
    assert rule.value == mine["a=2"].minus(teacher["a=2"])
    assert rule.reason.startswith("worst: a=2 −0.040 [−0.068, −0.012]: the interval [")
    assert rule.reason.endswith("; of 2 slices 1 open, 1 pass; 1 smaller not judged; intervals are not paired")
    failed = judge(GOOD, "slices", summary=with_slices({"kd": mine | {"a=1": estimate(0.7)}, "teacher": teacher}))
    assert failed.rules[0].reason.startswith("worst: a=1 −0.200")


def test_of_a_loss_less_is_better_on_a_slice_too() -> None:
    low, high = ({"a=1": estimate(loss, 0.01, 200)} for loss in (3.0, 3.2))
    assert judge(GOOD, "slices", summary=with_slices({"kd": low, "teacher": high}, "nll")).verdict == "promote"
    assert judge(GOOD, "slices", summary=with_slices({"kd": high, "teacher": low}, "nll")).verdict == "reject"


def test_a_slice_that_only_one_of_the_two_has_fails() -> None:
    one, two = {"a=1": estimate(0.9)}, {"a=1": estimate(0.9), "a=2": estimate(0.9)}
    for kd, teacher in ((one, two), (two, one)):
        found, *_ = judge(GOOD, "slices", summary=with_slices({"kd": kd, "teacher": teacher})).rules
        assert (found.outcome, found.reason) == ("fail", "the evidence lacks a model on a=2: evaluate again")


def test_a_slice_whose_figure_is_no_number_fails() -> None:
    broken = {"a=1": estimate(0.9), "a=2": estimate(0.9).model_copy(update={"low": float("nan")})}
    summary = with_slices({"kd": broken, "teacher": {name: estimate(0.9) for name in broken}})
    assert judge(GOOD, "slices", summary=summary).rules[0].reason.startswith("worst: a=2: the figure is not a number")


def test_the_mean_names_the_worst_suite_and_needs_all() -> None:
    summary = GOOD.summary()
    uneven = summary.model_copy(update={"retention": {"movies": estimate(0.99), "tweets": estimate(0.91)}})
    decision = judge(GOOD, "mean-retention", summary=uneven)
    assert decision.rules[0].reason.endswith("; worst: tweets 0.910")
    lacking = summary.model_copy(update={"retention": {"movies": estimate(0.99)}})
    assert judge(GOOD, "mean-retention", summary=lacking).verdict == "reject"


def test_items_that_share_a_source_count_as_one() -> None:
    decision = judge(replace(GOOD, num_groups=99), "minimum-items")
    assert decision.rules[0].reason == "1,500 items from 99 sources, which count: too few to judge; add labelled items"


def test_an_inconclusive_rule_says_how_many_items_would_settle_it() -> None:
    # Half the distance takes four times the items.
    decision = judge(replace(GOOD, accuracy=estimate(0.71, 0.02, n=1000)), "floor")
    assert "about 4,000 items" in decision.rules[0].reason


@pytest.mark.parametrize("rule", ["not-worse-than-champion", "minimum-power"])
def test_power_is_that_of_an_equally_good_model(rule: str) -> None:
    for gain in (0.0, 0.01, -0.1):  # It does not look at what was found.
        power = judge(replace(GOOD, champion=estimate(gain, 0.016)), rule).rules[0].power
        assert power == pytest.approx(norm.cdf(0.02 / 0.008 - norm.ppf(0.975)), abs=1e-6)
    assert judge(replace(GOOD, champion=estimate(0.0, 0.0)), rule).rules[0].power == 1.0


def test_a_budget_shows_both_figures_and_has_no_interval() -> None:
    decision = judge(GOOD, "size", "speed")
    assert decision.rules[0].requirement == "bytes of weights: at most 1 x the teacher's"
    assert decision.rules[0].reason == "70, 0.70 x the teacher's 100"
    assert (decision.rules[0].value, decision.rules[0].bound) == (None, 1.0)
    assert decision.rules[1].requirement == "throughput: at least 100.0 texts/s"


WITHOUT_CHAMPION = ["not-worse-than-champion", "better-than-champion", "churn", "latency", "minimum-power"]


@pytest.mark.parametrize("rule", WITHOUT_CHAMPION)
def test_a_first_model_has_no_champion_to_be_compared_with(rule: str) -> None:
    decision = judge(FIRST, rule)
    assert decision.verdict == "promote"
    assert "first model" in decision.rules[0].reason
    assert decision.champion_sha256 is None


@pytest.mark.parametrize("rule", WITHOUT_CHAMPION)
def test_a_rule_about_the_champion_is_not_for_first_models(rule: str) -> None:
    with pytest.raises(ValueError, match="compares with the champion"):
        make_policy(RULES[rule] | {"when": "first"})


@pytest.mark.parametrize(
    ("when", "first", "challenger"),
    [("always", "reject", "reject"), ("first", "reject", "promote"), ("challenger", "promote", "reject")],
)
def test_a_rule_can_be_for_first_models_or_challengers(when: str, first: str, challenger: str) -> None:
    rule = {"kind": "bound", "metric": "accuracy", "at_least": 0.99, "when": when}
    assert judge(FIRST, rule).verdict == first
    assert judge(GOOD, rule).verdict == challenger
