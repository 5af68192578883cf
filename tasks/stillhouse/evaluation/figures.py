"""One suite measured: every model's figures, and the candidate compared with the others, from one set of resamples."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from stillhouse.contract import METRICS, Comparison, DataRejected, Estimate, Metric, ModelScores, SuiteSummary
from stillhouse.evaluation.blocks import Block, Strings, SuiteBlocks, SuiteInfo
from stillhouse.evaluation.metrics import Bools, Floats, Ints
from stillhouse.evaluation.significance import Draws, Figure, mcnemar_p_value, proportion_estimate, swap_p_value
from stillhouse.recipe import EvaluationConfig

MIN_SLICE_ITEMS = 10
"""Items of the smallest slice that gets figures."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One suite, summarised, with what comparisons over suites need."""

    summary: SuiteSummary
    figures: Mapping[str, Figure]
    """By model, in the suite's own metric."""
    comparisons: tuple[Comparison, ...]
    """The candidate with each baseline; their p-values are not adjusted yet."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is asked of every suite."""

    config: EvaluationConfig
    models: tuple[str, ...]
    """The teacher first, if there is one."""
    candidate: str
    baselines: tuple[str, ...]
    """Whom the candidate is compared with."""

    def draws(self, groups_N: Strings, *, suite: str, stream: str) -> tuple[Draws, Ints]:
        """Return the resamples of a suite, and to which of their units each item belongs.

        Raises:
            DataRejected: All of several items share one source.
        """
        units_N: Ints = np.unique(groups_N, return_inverse=True)[1].astype(np.int64)
        num_units = int(units_N.max()) + 1
        if num_units == 1 and len(groups_N) > 1:
            raise DataRejected(
                f"suite {suite}: all items share one group, which leaves no uncertainty to compute; check group_column"
            )
        config = self.config
        return Draws(num_units=num_units, resamples=config.resamples, seed=config.seed, stream=stream), units_N

    def estimate(self, figure: Figure, n: int, *, least: float = -np.inf) -> Estimate:
        """Return the figure with its interval at the run's level."""
        return figure.estimate(confidence=self.config.confidence, n=n, least=least)

    def share(self, hits: int, n: int) -> Estimate:
        """Return a share of independent items with its interval at the run's level."""
        return proportion_estimate(hits, n, confidence=self.config.confidence)


def measure_suite(suite: SuiteInfo, blocks: SuiteBlocks, plan: Plan, *, stream: str) -> Measured:
    """Compute a suite's figures from the columns of its models.

    Args:
        suite: What is known of it.
        blocks: Its columns.
        plan: What is asked.
        stream: Name of the draws: suites of the same items share it, and so are paired.

    Raises:
        DataRejected: All items share one group.
    """
    num_items = len(blocks.ids_N)
    draws, units_N = plan.draws(blocks.groups_N, suite=suite.name, stream=stream)
    independent = draws.num_units == num_items
    parts = {model: _by_unit(block.columns_NK, units_N) for model, block in blocks.models.items()}
    sums_SK = draws.sums(np.hstack([*parts.values()]))
    stops = np.cumsum([part.shape[1] for part in parts.values()]).tolist()
    sums = dict(zip(parts, np.split(sums_SK, stops[:-1], axis=1), strict=True))

    figures = {m: draws.figure(block.metrics[blocks.metric](sums[m])) for m, block in blocks.models.items()}
    slices = _slices(blocks, plan, suite=suite.name, stream=stream)
    scores = {
        model: _scores(block, sums[model], plan, draws, num_items, slices[model], independent=independent)
        for model, block in blocks.models.items()
    }
    summary = SuiteSummary(
        name=suite.name,
        kind=suite.kind,
        metric=blocks.metric,
        num_items=num_items,
        num_groups=draws.num_units,
        items_sha256=suite.items_sha256,
        models=scores,
    )
    comparisons = []
    for baseline in plan.baselines:
        ours, theirs = blocks.models[plan.candidate], blocks.models[baseline]
        if independent and ours.correct_N is not None and theirs.correct_N is not None:
            p_value = mcnemar_p_value(ours.correct_N, theirs.correct_N)
        else:
            # The teacher lacks what is relative to the teacher, which comes last.
            shared = min(parts[plan.candidate].shape[1], parts[baseline].shape[1])
            p_value = swap_p_value(
                parts[plan.candidate][:, :shared],
                parts[baseline][:, :shared],
                ours.metrics[blocks.metric],
                permutations=plan.config.resamples,
                seed=plan.config.seed,
                stream=stream,
            )
        lost, won = _flips(ours, theirs, plan, draws, units_N)
        comparisons.append(compare(summary, figures, plan, baseline, p_value, lost=lost, won=won))
    return Measured(summary=summary, figures=figures, comparisons=tuple(comparisons))


def compare(
    summary: SuiteSummary,
    figures: Mapping[str, Figure],
    plan: Plan,
    baseline: str,
    p_value: float,
    *,
    lost: Estimate | None = None,
    won: Estimate | None = None,
) -> Comparison:
    """Compare the candidate with a baseline in the suite's own metric; the p-value is not adjusted."""
    difference = Figure.combine(np.subtract, figures[plan.candidate], figures[baseline])
    return Comparison(
        suite=summary.name,
        metric=summary.metric,
        model=plan.candidate,
        baseline=baseline,
        difference=plan.estimate(difference, summary.num_items),
        p_value=p_value,
        p_adjusted=p_value,
        flips_lost=lost,
        flips_won=won,
    )


def _slices(blocks: SuiteBlocks, plan: Plan, *, suite: str, stream: str) -> dict[str, dict[str, Estimate]]:
    """Return by model and slice the suite's own metric on the slice's items, resampled among themselves."""
    found: dict[str, dict[str, Estimate]] = {model: {} for model in blocks.models}
    for name, mask_N in blocks.slices.items():
        groups_N = blocks.groups_N[mask_N]
        if len(groups_N) >= MIN_SLICE_ITEMS and len(np.unique(groups_N)) > 1:
            draws, units_N = plan.draws(groups_N, suite=suite, stream=f"{stream}/{name}")
            for model, estimate in _slice(blocks, mask_N, plan, draws, units_N).items():
                found[model][name] = estimate
    return found


def _slice(blocks: SuiteBlocks, mask_N: Bools, plan: Plan, draws: Draws, units_N: Ints) -> dict[str, Estimate]:
    num_items = len(units_N)
    right = {m: block.correct_N[mask_N] for m, block in blocks.models.items() if block.correct_N is not None}
    if draws.num_units == num_items and len(right) == len(blocks.models):
        return {model: plan.share(int(right_M.sum()), num_items) for model, right_M in right.items()}
    parts = [_by_unit(block.columns_NK[mask_N], units_N) for block in blocks.models.values()]
    stops = np.cumsum([part.shape[1] for part in parts])[:-1].tolist()
    sums = np.split(draws.sums(np.hstack(parts)), stops, axis=1)
    figures = {
        model: draws.figure(block.metrics[blocks.metric](sums_SK))
        for (model, block), sums_SK in zip(blocks.models.items(), sums, strict=True)
    }
    # Without a token to predict in any of its texts a slice has no loss.
    if not all(np.isfinite(figure.value) for figure in figures.values()):
        return {}
    return {model: plan.estimate(figure, num_items, least=0) for model, figure in figures.items()}


def _scores(
    block: Block,
    sums_SK: Floats,
    plan: Plan,
    draws: Draws,
    num_items: int,
    per_slice: dict[str, Estimate],
    *,
    independent: bool,
) -> ModelScores:
    metrics: dict[Metric, Estimate] = {}
    for metric in (metric for metric in METRICS if metric in block.metrics):
        if independent and metric in block.proportions:
            metrics[metric] = plan.share(*block.proportions[metric])
        else:
            # No metric is below 0, except that the calibration error, less the noise, is before this.
            metrics[metric] = plan.estimate(draws.figure(block.metrics[metric](sums_SK)), num_items, least=0)
    return ModelScores(
        metrics=metrics,
        per_label={
            label: _recall(sums_SK[:, hits], sums_SK[:, items], plan, draws, independent=independent)
            for label, (hits, items) in block.per_label.items()
        },
        per_slice=per_slice,
        temperature=block.temperature,
        truncated=block.truncated,
    )


def _recall(hits_S: Floats, items_S: Floats, plan: Plan, draws: Draws, *, independent: bool) -> Estimate:
    if independent:
        return plan.share(int(hits_S[0]), int(items_S[0]))
    with np.errstate(invalid="ignore"):
        return plan.estimate(draws.figure(hits_S / items_S), int(items_S[0]))


def _flips(
    ours: Block, theirs: Block, plan: Plan, draws: Draws, units_N: Ints
) -> tuple[Estimate, Estimate] | tuple[None, None]:
    """Return the shares of items that only the baseline, and that only the candidate has right."""
    if ours.correct_N is None or theirs.correct_N is None:
        return None, None
    num_items = len(units_N)
    flips_N2 = np.stack([~ours.correct_N & theirs.correct_N, ours.correct_N & ~theirs.correct_N], axis=1)
    if draws.num_units == num_items:
        lost, won = (plan.share(int(count), num_items) for count in flips_N2.sum(axis=0))
    else:
        sums_S3 = draws.sums(_by_unit(np.hstack([flips_N2, np.ones((num_items, 1))]), units_N))
        lost, won = (plan.estimate(draws.figure(sums_S3[:, side] / sums_S3[:, 2]), num_items) for side in (0, 1))
    return lost, won


def _by_unit(columns_NK: Floats, units_N: Ints) -> Floats:
    """Sum columns within each unit, shape (M, K)."""
    order_N = np.argsort(units_N, kind="stable")
    starts_M = np.flatnonzero(np.diff(units_N[order_N], prepend=-1))
    sums_MK: Floats = np.add.reduceat(columns_NK[order_N], starts_M, axis=0)
    return sums_MK
