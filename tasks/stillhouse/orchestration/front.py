"""Every model of every run on the same test set: which of them does no other one beat in quality and in cost?"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.table import Table

from stillhouse.contract import EvaluationSummary, IntegrityError, SuiteSummary, Timings
from stillhouse.evaluation import phrases
from stillhouse.evaluation.pareto import pareto_front
from stillhouse.orchestration.reading import list_runs, read_results
from stillhouse.stages.records import read_result
from stillhouse.store import ObjectStore, read_artifact

START = "start"
"""No product: what the student was before it learned."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """A model, as one run measured it."""

    run_id: str
    model: str
    quality: float
    interval: str
    num_bytes: int
    latency_ms: float
    """Of one text, median, on the machine of its run: other runs may have had another one."""


def gather(store: ObjectStore, suite: SuiteSummary) -> list[Point]:
    """Return the models of all runs that were measured on the items of ``suite``, in its metric.

    Of models with equal figures and size, that one stays which came first: a run that found everything done shows
    what another run measured.

    Raises:
        TryAgain: The store is away.
    """
    found: dict[tuple[str, float, int], Point] = {}
    for run_id in list_runs(store):
        for point in _of_run(store, run_id, suite):
            found.setdefault((point.model, point.quality, point.num_bytes), point)
    return list(found.values())


def render(points: Sequence[Point], suite: SuiteSummary) -> Table:
    """Return the models as a table, best first; a star marks those on the front of size, and of latency.

    Args:
        points: See `gather`.
        suite: That they were measured on.
    """
    sign = 1 if suite.better == "higher" else -1
    keyed = {f"{place}": point for place, point in enumerate(points)}
    fronts = {
        cost: pareto_front({key: (getattr(point, cost), sign * point.quality) for key, point in keyed.items()})
        for cost in ("num_bytes", "latency_ms")
    }
    table = Table(title=f"Models on {suite.name}; ★: none beats it in both", title_justify="left")
    for column in ("run", "model", phrases.metric_title(suite.metric), "size", "latency p50"):
        table.add_column(column, justify="left" if column in ("run", "model") else "right", overflow="fold")
    for key, point in sorted(keyed.items(), key=lambda item: -sign * item[1].quality):
        star = {cost: " ★" if key in front else "" for cost, front in fronts.items()}
        quality = f"{point.quality:.{phrases.DIGITS.get(suite.metric, 3)}f} {point.interval}"
        size, latency = phrases.size(point.num_bytes), f"{point.latency_ms:.1f} ms"
        is_best = any(star.values())
        table.add_row(
            point.run_id,
            point.model,
            quality,
            size + star["num_bytes"],
            latency + star["latency_ms"],
            style="bold" if is_best else None,
        )
    return table


def _of_run(store: ObjectStore, run_id: str, suite: SuiteSummary) -> Iterator[Point]:
    reference = read_results(store, run_id).get("evaluate")
    if reference is None:
        return
    try:
        outputs = read_result(reference).outputs
        summary = EvaluationSummary.model_validate_json(read_artifact(outputs["summary"]))
        timings = Timings.model_validate_json(read_artifact(outputs["timings"]))
    except (IntegrityError, ValueError):
        return  # removed, or of another version: nothing to compare with
    home = summary.suites[0]
    if (home.items_sha256, home.metric) != (suite.items_sha256, suite.metric):
        return
    for model in summary.models:
        score, timing = home.score(model), timings.models.get(model)
        if score and timing and model != START:
            yield Point(
                run_id=run_id,
                model=model,
                quality=score.value,
                interval=phrases.interval(score, phrases.DIGITS.get(home.metric, 3)),
                num_bytes=timing.num_bytes,
                latency_ms=timing.latency_p50_ms,
            )
