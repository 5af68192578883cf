"""Out-of-scope suites: does a classifier notice texts that no label fits?

Two scores are judged: the largest probability (Hendrycks & Gimpel 2017) and the energy (Liu et al. 2020; here the
log-sum-exp of the logits, which is higher in scope). A score is good if it separates these texts from the same model's
in-domain items. The figures are no sums over items, so they have their own resamples: of both sets, the in-domain ones
being those of the in-domain suite.
"""

from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa

from stillhouse.contract import Metric, ModelScores, SuiteSummary
from stillhouse.evaluation.blocks import SuiteInfo, aligned_rows, strings
from stillhouse.evaluation.classification import Scores, read_scores
from stillhouse.evaluation.figures import Measured, Plan, compare
from stillhouse.evaluation.metrics import Floats, Ints
from stillhouse.evaluation.significance import Draws, Figure, bootstrap_p_value, chunk_rows

SCORES: dict[str, Callable[[Scores], Floats]] = {
    "confidence": lambda scores: scores.confidences_N,
    "energy": lambda scores: scores.energies_N,
}
"""Of each item: high where the model thinks that it is in scope."""


def measure_scope(records: pa.Table, suite: SuiteInfo, home: SuiteInfo, plan: Plan) -> Measured:
    """Compute how well each model tells the items of a suite from the in-domain ones.

    Args:
        records: See `stillhouse.evaluation.records.SCHEMA`; labels of the suite are not read.
        suite: Of texts that no label fits.
        home: The in-domain suite.
        plan: What is asked.

    Raises:
        DataRejected: A model lacks items, has some twice, disagrees about groups, or has scores that are NaN.
    """
    inside, outside = (aligned_rows(records, info.name, plan.models) for info in (home, suite))
    teacher = plan.models[0]
    home_draws, home_units_N = plan.draws(strings(inside[teacher]["group"]), suite=home.name, stream=home.name)
    draws, units_L = plan.draws(strings(outside[teacher]["group"]), suite=suite.name, stream=suite.name)
    num_items = len(units_L)
    judges: dict[tuple[str, str], Judge] = {}
    truncated: dict[str, int] = {}
    for model in plan.models:
        ours = read_scores(inside[model], f"model {model} on suite {home.name}")
        theirs = read_scores(outside[model], f"model {model} on suite {suite.name}")
        truncated[model] = theirs.truncated
        judges |= {(model, name): Judge(score(ours), score(theirs)) for name, score in SCORES.items()}

    values: dict[tuple[str, str], list[Floats]] = {key: [] for key in judges}
    for weights_of_home, weights_of_suite in _weights(home_draws, draws):
        weights_SN, weights_SL = weights_of_home[:, home_units_N], weights_of_suite[:, units_L]
        for key, judge in judges.items():
            values[key].append(judge(weights_SN, weights_SL))
    figures: dict[str, dict[Metric, Figure]] = {model: {} for model in plan.models}
    for (model, name), chunks in values.items():
        auroc_S, fpr95_S = np.concatenate(chunks, axis=1)
        figures[model][f"auroc_{name}"] = _figure(auroc_S, home_draws, draws)  # type: ignore[index]
        figures[model][f"fpr95_{name}"] = _figure(fpr95_S, home_draws, draws)  # type: ignore[index]

    summary = SuiteSummary(
        name=suite.name,
        kind=suite.kind,
        metric="auroc_confidence",
        num_items=num_items,
        num_groups=draws.num_units,
        items_sha256=suite.items_sha256,
        models={
            model: ModelScores(
                metrics={metric: plan.estimate(figure, num_items) for metric, figure in figures[model].items()},
                truncated=truncated[model],
            )
            for model in plan.models
        },
    )
    primary = {model: figures[model][summary.metric] for model in plan.models}
    comparisons = tuple(
        compare(summary, primary, plan, baseline, _p_value(primary[plan.candidate], primary[baseline]))
        for baseline in plan.baselines
    )
    return Measured(summary=summary, figures=primary, comparisons=comparisons)


class Judge:
    """AUROC and false-positive rate of one score, under any weights of the N in-domain and L out-of-scope items."""

    def __init__(self, inside_N: Floats, outside_L: Floats) -> None:
        self._inside_order: Ints = np.argsort(inside_N, kind="stable")
        self._outside_order: Ints = np.argsort(outside_L, kind="stable")
        inside, outside = inside_N[self._inside_order], outside_L[self._outside_order]
        self._below: Ints = np.searchsorted(outside, inside, side="left")
        self._up_to: Ints = np.searchsorted(outside, inside, side="right")

    def __call__(self, weights_SN: Floats, weights_SL: Floats) -> Floats:
        """Return both figures, shape (2, S).

        The AUROC is the chance that an in-domain item has the higher score, ties counting half (Mann & Whitney 1947).
        The rate is the share of out-of-scope items at or above the highest threshold that lets in 95 % of the others.
        """
        weights_SN = weights_SN[:, self._inside_order]
        outside_SL = np.zeros((len(weights_SL), weights_SL.shape[1] + 1))
        np.cumsum(weights_SL[:, self._outside_order], axis=1, out=outside_SL[:, 1:])
        inside_S, all_outside_S = weights_SN.sum(axis=1), outside_SL[:, -1]
        wins_S = np.einsum("sn,sn->s", weights_SN, outside_SL[:, self._below] + outside_SL[:, self._up_to])
        refused_SN = 20 * np.cumsum(weights_SN, axis=1) <= inside_S[:, None]
        threshold_S = self._below[refused_SN.sum(axis=1)]
        below_S = outside_SL[np.arange(len(outside_SL)), threshold_S]
        return np.stack([wins_S / (2 * inside_S * all_outside_S), 1 - below_S / all_outside_S])


def _weights(home: Draws, away: Draws) -> Iterator[tuple[Floats, Floats]]:
    """Yield weights of both sets: as observed, resamples of both, then parts of the one and of the other left out."""
    rows = chunk_rows(max(home.num_units, away.num_units))
    yield np.ones((1, home.num_units)), np.ones((1, away.num_units))
    yield from zip(home.resampled(rows), away.resampled(rows), strict=True)
    for weights_SM in home.left_out(rows):
        yield weights_SM, np.ones((len(weights_SM), away.num_units))
    for weights_SM in away.left_out(rows):
        yield np.ones((len(weights_SM), home.num_units)), weights_SM


def _figure(values_S: Floats, home: Draws, away: Draws) -> Figure:
    last = 1 + home.resamples
    home_last = last + home.num_parts
    return Figure(
        value=float(values_S[0]),
        values_R=values_S[1:last],
        left_out={home.stream: values_S[last:home_last], away.stream: values_S[home_last:]},
    )


def _p_value(ours: Figure, theirs: Figure) -> float:
    return bootstrap_p_value(Figure.combine(np.subtract, ours, theirs))
