"""The few figures by which runs are compared with one another: the columns of MLflow's run table."""

from stillhouse.contract import EvaluationSummary, Metric, Timings
from stillhouse.evaluation.phrases import gaps, worst_kept

ALSO_SHOWN: tuple[Metric, ...] = ("perplexity", "ece", "agreement")
"""Of the candidate in-domain, where its task has them."""


def headline_figures(summary: EvaluationSummary, timings: Timings) -> dict[str, float]:
    """Return the figures by name. Sorted by name they tell a story, suite by suite.

    ``SUITE/MODEL/METRIC`` is in the suite's own metric: of all models in-domain, of teacher and candidate elsewhere.
    ``SUITE/retention`` is the share of the teacher's figure that is kept, or, where there is none, ``SUITE/gap`` the
    candidate's figure minus the teacher's. ``overall/…`` holds mean and worst retention, the worst loss beyond the
    teacher's own drop, how many times faster than the teacher the candidate is, and its share of the teacher's size.
    """
    home, candidate = summary.suites[0], summary.candidate
    figures: dict[str, float] = {}
    for suite in summary.suites:
        shown = summary.models if suite is home else ("teacher", candidate)
        figures |= {
            f"{suite.name}/{model}/{suite.metric}": score.value for model in shown if (score := suite.score(model))
        }
    mine = home.models[candidate].metrics
    figures |= {f"{home.name}/{candidate}/{metric}": mine[metric].value for metric in ALSO_SHOWN if metric in mine}
    figures |= {f"{suite}/retention": kept.value for suite, kept in summary.retention.items()}
    figures |= {f"{suite}/gap": gap.value for suite, gap in gaps(summary).items()}
    return figures | _overall(summary, timings)


def _overall(summary: EvaluationSummary, timings: Timings) -> dict[str, float]:
    figures: dict[str, float] = {}
    if worst := worst_kept(summary):
        figures["overall/worst_retention"] = worst[1].value
    if summary.mean_retention:
        figures["overall/mean_retention"] = summary.mean_retention.value
    if summary.excess_drops:
        figures["overall/worst_excess_drop"] = max(drop.value for drop in summary.excess_drops.values())
    small, large = timings.models.get(summary.candidate), timings.models.get("teacher")
    if small and large:
        figures["overall/speedup"] = round(large.latency_p50_ms / small.latency_p50_ms, 3)
        figures["overall/size_share"] = round(small.num_bytes / large.num_bytes, 3)
    return figures
