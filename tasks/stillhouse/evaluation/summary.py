"""From records to the evaluation summary: every figure with its interval."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pyarrow as pa

from stillhouse.contract import DISTILLED, METRICS, MODELS, Comparison, DataRejected, Estimate, EvaluationSummary
from stillhouse.evaluation import classification, language
from stillhouse.evaluation.blocks import SuiteBlocks, SuiteInfo
from stillhouse.evaluation.figures import Measured, Plan, measure_suite
from stillhouse.evaluation.records import LANGUAGE_SCHEMA
from stillhouse.evaluation.scope import measure_scope
from stillhouse.evaluation.significance import Figure, holm
from stillhouse.recipe import EvaluationConfig

COMPARABLE = ("in-domain", "shifted-domain", "challenge", "perturbed")
"""Kinds of suites on which a model does the task itself, so that its figures there can be set against each other."""


def summarise(
    records: pa.Table,
    *,
    config: EvaluationConfig,
    suites: Sequence[SuiteInfo],
    candidate: str = DISTILLED,
    steps: Sequence[str] = (),
    labels: Sequence[str] = (),
    has_teacher: bool = True,
    validation: pa.Table | None = None,
) -> EvaluationSummary:
    """Compute every figure of the evaluation from its records alone.

    Args:
        records: Of all models on all suites, of one schema: `stillhouse.evaluation.records.SCHEMA` or
            `stillhouse.evaluation.records.LANGUAGE_SCHEMA`. Their order does not count.
        config: Level, resamples, bins and seed.
        suites: The in-domain suite first. Perturbed ones have its items.
        candidate: Name of the student that asks for promotion.
        steps: Names of the models that compression made, in its order.
        labels: Names of a classifier's labels, in the order of its outputs; by default their numbers.
        has_teacher: Whether the teacher is a model of the run, and no server. Without it there are no shares of its
            figures, no drops beyond its own and no likeness to it.
        validation: Classification records of all models on a suite ``validation``, for the temperatures; needed if and
            only if ``config.temperature_scaling``.

    Raises:
        DataRejected: A model lacks items, has some twice, disagrees about labels or groups or has scores that are NaN;
            the teacher (if it is a model), the candidate or the validation records are missing; or a perturbed suite
            has other items.
    """
    found = set(records["model"].unique().to_pylist())
    models = tuple(model for model in (*MODELS, *steps) if model in found)
    for needed in (*(["teacher"] if has_teacher else []), candidate):
        if needed not in models:
            raise DataRejected(f"the records hold no model {needed}: nothing can be compared; evaluate again with it")
    plan = Plan(
        config=config,
        models=models,
        candidate=candidate,
        baselines=tuple(model for model in models if model != candidate),
    )
    measured = _measure(records, suites, plan, labels, validation)
    home, *others = (m for m in measured if m.summary.kind in COMPARABLE)
    retention = _retention([home, *others], candidate) if "teacher" in models else {}
    drops = {model: {m.summary.name: _drop(home, m, model) for m in others} for model in models}
    excess = {
        name: Figure.combine(np.subtract, drops[candidate][name], drop)
        for name, drop in drops.get("teacher", {}).items()
    }
    num_items = {m.summary.name: m.summary.num_items for m in measured}
    behind = {m.summary.name: _items_behind(home, m) for m in others}
    return EvaluationSummary(
        confidence=config.confidence,
        resamples=config.resamples,
        candidate=candidate,
        models=models,
        suites=tuple(m.summary for m in measured),
        comparisons=_adjusted(comparison for m in measured for comparison in m.comparisons),
        retention={name: plan.estimate(figure, num_items[name]) for name, figure in retention.items()},
        mean_retention=plan.estimate(
            Figure.combine(lambda *kept: sum(kept) / len(kept), *retention.values()),
            sum(num_items[name] for name in retention),
        )
        if retention
        else None,
        drops={model: _estimates(figures, behind, plan) for model, figures in drops.items()},
        excess_drops=_estimates(excess, behind, plan),
    )


def _measure(
    records: pa.Table,
    suites: Sequence[SuiteInfo],
    plan: Plan,
    labels: Sequence[str],
    validation: pa.Table | None,
) -> list[Measured]:
    home = suites[0]
    temperatures: dict[str, float] = {}
    if plan.config.temperature_scaling:
        if validation is None:
            raise DataRejected("temperature scaling needs records of the validation set; evaluate again with them")
        temperatures = classification.fit_temperatures(validation, plan.models)

    def read(suite: SuiteInfo) -> SuiteBlocks:
        if records.schema.equals(LANGUAGE_SCHEMA):
            if suite.kind == "benchmark":
                return language.read_benchmark(records, suite.name, plan.models)
            return language.read_blocks(records, suite.name, plan.models, plan.config)
        return classification.read_blocks(records, suite.name, plan.models, plan.config, labels, temperatures)

    blocks = {suite.name: read(suite) for suite in suites if suite.kind != "out-of-scope"}
    measured = []
    for suite in suites:
        if suite.kind == "out-of-scope":
            measured.append(measure_scope(records, suite, home, plan))
            continue
        stream = suite.name
        if suite.kind == "perturbed":
            _insist_on_the_same_items(suite.name, blocks[suite.name], blocks[home.name])
            stream = home.name
        measured.append(measure_suite(suite, blocks[suite.name], plan, stream=stream))
    return measured


def _insist_on_the_same_items(suite: str, perturbed: SuiteBlocks, home: SuiteBlocks) -> None:
    if not (np.array_equal(perturbed.ids_N, home.ids_N) and np.array_equal(perturbed.groups_N, home.groups_N)):
        raise DataRejected(f"suite {suite}: its items are not those of the in-domain suite; perturb the test set again")


def _adjusted(comparisons: Iterable[Comparison]) -> tuple[Comparison, ...]:
    """Correct the p-values by Holm's method, over the suites of each baseline."""
    comparisons = tuple(comparisons)
    adjusted: dict[tuple[str, str], float] = {}
    for baseline in {c.baseline for c in comparisons}:
        family = [c for c in comparisons if c.baseline == baseline]
        corrected = holm([c.p_value for c in family])
        adjusted |= {(c.suite, baseline): p for c, p in zip(family, corrected, strict=True)}
    return tuple(c.model_copy(update={"p_adjusted": adjusted[c.suite, c.baseline]}) for c in comparisons)


def _retention(measured: Sequence[Measured], candidate: str) -> dict[str, Figure]:
    """Divide the candidate's figures by the teacher's, unless the teacher's is 0, which leaves no ratio."""
    return {
        m.summary.name: Figure.combine(np.divide, m.figures[candidate], m.figures["teacher"])
        for m in measured
        if m.summary.better == "higher" and m.figures["teacher"].value > 0
    }


def _drop(home: Measured, away: Measured, model: str) -> Figure:
    """How much worse a model is away, positive if worse."""
    sign = 1 if METRICS[home.summary.metric].better == "higher" else -1
    return Figure.combine(lambda here, there: sign * (here - there), home.figures[model], away.figures[model])


def _items_behind(home: Measured, away: Measured) -> int:
    """Count the items of both, those of a perturbed suite being the in-domain ones."""
    extra = 0 if away.summary.kind == "perturbed" else away.summary.num_items
    return home.summary.num_items + extra


def _estimates(figures: Mapping[str, Figure], num_items: Mapping[str, int], plan: Plan) -> dict[str, Estimate]:
    return {name: plan.estimate(figure, num_items[name]) for name, figure in figures.items()}
