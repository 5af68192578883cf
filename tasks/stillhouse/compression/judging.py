"""The gate between two models of the chain: is what the step made still good enough?"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from stillhouse.compression.applying import Applied
from stillhouse.contract import METRICS, Estimate, ModelSize, Progress, StageBug, StepReport
from stillhouse.evaluation import SuiteInfo, Timed, ask, proportion_estimate, summarise, weights_bytes
from stillhouse.models import count_parameters
from stillhouse.recipe import CompressionStep, ExportStep, Recipe

VALIDATION = "validation"


@dataclass(frozen=True, kw_only=True)
class Held:
    """The held-out set of the gate. The test set is left to the evaluation, which thus knows nothing of the choice."""

    rows: Dataset
    sha256: str
    """Digest of the frozen set."""


def judge_step(
    recipe: Recipe,
    step: CompressionStep,
    applied: Applied,
    folders: Mapping[str, Path],
    *,
    position: int,
    held: Held,
    on_progress: Callable[[Progress], None],
) -> StepReport:
    """Compare the model that a step made with the one that it began with, on the same items.

    Args:
        recipe: Its task, limits and section ``evaluation``.
        step: With its bound.
        applied: What the step did.
        folders: Of the model before and of the step's own, by name, in this order.
        position: Of the step in the chain, from 1.
        held: What both are asked.
        on_progress: Told after each batch.

    Raises:
        DataRejected: A model gives scores that are NaN or infinite.
    """
    before, own = folders
    models = {name: Timed.read(folder, task=recipe.task, labels=recipe.data.labels) for name, folder in folders.items()}
    records = {
        name: ask(name, model, VALIDATION, held.rows, recipe=recipe, on_progress=on_progress)
        for name, model in models.items()
    }
    summary = summarise(
        pa.concat_tables(records.values()),
        # Temperatures are no part of this question.
        config=recipe.evaluation.model_copy(update={"temperature_scaling": False}),
        suites=[SuiteInfo(name=VALIDATION, kind="in-domain", items_sha256=held.sha256)],
        candidate=own,
        steps=tuple(folders),
        labels=recipe.data.labels,
        has_teacher=False,
    )
    suite, comparison = summary.suites[0], summary.comparison(VALIDATION, before)
    scores = {name: suite.score(name) for name in folders}
    if comparison is None or scores[before] is None or scores[own] is None:
        raise StageBug("two models on one set were not compared")
    drop = comparison.gain.negated()
    agreement = _agreement(recipe, records[before], records[own])
    kept, reason = _verdict(step, drop, agreement, unit=METRICS[suite.metric].title)
    return StepReport(
        name=step.name,
        kind=step.kind,
        position=position,
        form=step.form,
        before=before,
        did=applied.did,
        rounds=applied.rounds,
        metric=suite.metric,
        score_before=scores[before],
        score=scores[own],
        drop=drop,
        max_drop=step.max_drop,
        agreement=agreement,
        size_before=_size(models[before]),
        size=_size(models[own]),
        kept=kept,
        reason=reason,
    )


def _verdict(step: CompressionStep, drop: Estimate, agreement: Estimate | None, *, unit: str) -> tuple[bool, str]:
    """Return whether the step stays, and why. An interval that straddles the bound keeps nothing."""
    loss = f"{drop.value:z.4f} [{drop.low:z.4f}, {drop.high:z.4f}] of {unit} lost"
    if drop.low > step.max_drop:
        return False, f"{loss}, more than {step.max_drop:g}"
    if drop.high > step.max_drop:
        return False, f"{loss}: too uncertain to be within {step.max_drop:g}"
    if isinstance(step, ExportStep) and agreement is not None and agreement.value < step.min_agreement:
        return False, f"predicts the same for {agreement.value:.2%} only, less than {step.min_agreement:g}"
    return True, f"{loss}, within {step.max_drop:g}"


def _agreement(recipe: Recipe, before: pa.Table, own: pa.Table) -> Estimate | None:
    """Return how often both predict the same; None for language models, which say more than one thing of an item."""
    if recipe.task != "text-classification":
        return None
    same = pc.sum(pc.equal(before["prediction"], own["prediction"])).as_py()
    return proportion_estimate(same, len(own), confidence=recipe.evaluation.confidence)


def _size(timed: Timed) -> ModelSize:
    return ModelSize(parameters=count_parameters(timed.model), num_bytes=weights_bytes(timed.folder))
