"""From records to the evaluation summary: every figure with its interval, from one shared set of resamples a suite."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from stillhouse.contract import Comparison, DataRejected, Estimate, EvaluationSummary, ModelScores, SuiteSummary
from stillhouse.evaluation.metrics import (
    Answers,
    Floats,
    ece,
    ece_columns,
    f1_columns,
    loss_column,
    macro_f1,
    mean_loss,
)
from stillhouse.evaluation.significance import (
    bootstrap_estimate,
    mcnemar_p_value,
    proportion_estimate,
    resampled_sums,
)
from stillhouse.recipe import EvaluationConfig

MODEL_ORDER = ("teacher", "kd", "sft", "start", "champion")


@dataclass(frozen=True, kw_only=True)
class SuiteInfo:
    """What the records don't say about a suite."""

    name: str
    kind: Literal["in-domain", "shifted-domain"]
    items_sha256: str
    """Digest of the frozen items."""


@dataclass(frozen=True, kw_only=True)
class _Measured:
    """One suite, summarised, with what comparisons over suites need: accuracies in the shared resamples."""

    summary: SuiteSummary
    answers: Mapping[str, Answers]
    accuracies_R: Mapping[str, Floats]


def summarise(
    records: pa.Table, *, config: EvaluationConfig, suites: Sequence[SuiteInfo], candidate: str = "kd"
) -> EvaluationSummary:
    """Compute every figure of the evaluation from its records alone.

    Args:
        records: Of all models on all suites; see `stillhouse.evaluation.records.SCHEMA`. Their order does not count.
        config: Level, resamples, bins and seed.
        suites: The in-domain suite first.
        candidate: Name of the student that asks for promotion.

    Raises:
        DataRejected: A model lacks items, has some twice, disagrees about labels or has scores that are NaN; or the
            teacher or the candidate is missing.
    """
    found = set(records["model"].unique().to_pylist())
    models = (*(m for m in MODEL_ORDER if m in found), *sorted(found - set(MODEL_ORDER)))
    for needed in ("teacher", candidate):
        if needed not in models:
            raise DataRejected(f"the records hold no model {needed}: nothing can be compared; evaluate again with it")
    measured = {suite.name: _measure(records, suite, models, config) for suite in suites}
    shifted = [suite.name for suite in suites if suite.kind == "shifted-domain"]
    home = measured[suites[0].name]
    return EvaluationSummary(
        confidence=config.confidence,
        resamples=config.resamples,
        candidate=candidate,
        models=models,
        suites=tuple(suite.summary for suite in measured.values()),
        comparisons=tuple(
            _compare(suite, candidate, baseline, config)
            for suite in measured.values()
            for baseline in models
            if baseline in ("teacher", "sft", "start", "champion") and baseline != candidate
        ),
        retention={name: kept for name, suite in measured.items() if (kept := _retention(suite, candidate, config))},
        drops={model: {name: _drop(home, measured[name], {model: 1}, config) for name in shifted} for model in models},
        excess_drops={name: _drop(home, measured[name], {candidate: 1, "teacher": -1}, config) for name in shifted},
    )


def _measure(records: pa.Table, suite: SuiteInfo, models: Sequence[str], config: EvaluationConfig) -> _Measured:
    answers = _answers(records.filter(pc.field("suite") == suite.name), suite.name, models)
    num_items = len(answers["teacher"].labels_N)
    num_labels = 1 + max(int(max(a.labels_N.max(), a.predictions_N.max())) for a in answers.values())
    teacher_N = answers["teacher"].predictions_N
    blocks = {
        model: [
            a.correct_N[:, None].astype(np.float64),
            f1_columns(a.labels_N, a.predictions_N, num_labels),
            ece_columns(a.confidences_N, a.correct_N, config.calibration_bins),
            loss_column(a.losses_N),
        ]
        for model, a in answers.items()
    }
    columns_NK = np.hstack([block for parts in blocks.values() for block in parts])
    drawn_RK = resampled_sums(columns_NK, resamples=config.resamples, seed=config.seed, stream=suite.name)
    # The observed figures are the first row, so that they come from the same formula as the resampled ones.
    sums_RK = np.vstack([columns_NK.sum(axis=0), drawn_RK])

    scores: dict[str, ModelScores] = {}
    accuracies_R: dict[str, Floats] = {}
    first = 0
    for model, parts in blocks.items():
        hits_R, f1_RC, ece_RB, loss_R = (
            sums_RK[:, first + start : first + stop] for start, stop in _spans([part.shape[1] for part in parts])
        )
        first += sum(part.shape[1] for part in parts)
        accuracies_R[model] = hits_R[:, 0] / num_items
        same = int((answers[model].predictions_N == teacher_N).sum())
        scores[model] = ModelScores(
            accuracy=proportion_estimate(int(hits_R[0, 0]), num_items, confidence=config.confidence),
            macro_f1=_estimate(macro_f1(f1_RC), num_items, config),
            ece=_estimate(ece(ece_RB, num_items), num_items, config),
            nll=_estimate(mean_loss(loss_R, num_items), num_items, config),
            agreement=None
            if model == "teacher"
            else proportion_estimate(same, num_items, confidence=config.confidence),
            truncated=answers[model].truncated,
        )
    summary = SuiteSummary(
        name=suite.name, kind=suite.kind, num_items=num_items, items_sha256=suite.items_sha256, models=scores
    )
    return _Measured(summary=summary, answers=answers, accuracies_R=accuracies_R)


def _spans(widths: Sequence[int]) -> list[tuple[int, int]]:
    stops = np.cumsum(widths).tolist()
    return list(zip([0, *stops[:-1]], stops, strict=True))


def _answers(records: pa.Table, suite: str, models: Sequence[str]) -> dict[str, Answers]:
    """Read each model's answers in the order of the item ids, and insist that all answered the same questions."""
    answers: dict[str, Answers] = {}
    ids_of_teacher: npt.NDArray[np.str_] | None = None
    for model in models:
        rows = records.filter(pc.field("model") == model).sort_by("item_id")
        where = f"model {model} on suite {suite}"
        if not rows.num_rows:
            raise DataRejected(f"{where}: no records; score it on every suite")
        ids_N = rows["item_id"].to_numpy().astype(str)
        if len(np.unique(ids_N)) != len(ids_N):
            raise DataRejected(f"{where}: {len(ids_N) - len(np.unique(ids_N))} items occur twice; evaluate again")
        if ids_of_teacher is None:
            ids_of_teacher = ids_N
        elif not np.array_equal(ids_N, ids_of_teacher):
            odd = len(np.setxor1d(ids_N, ids_of_teacher))
            raise DataRejected(f"{where}: {odd} items differ from the teacher's; score all models on the same items")
        answers[model] = _read(rows, where)
        if not np.array_equal(answers[model].labels_N, answers["teacher"].labels_N):
            raise DataRejected(f"{where}: some labels differ from the teacher's; score all models on the same items")
    return answers


def _read(rows: pa.Table, where: str) -> Answers:
    losses_N = rows["loss"].to_numpy()
    num_labels = len(rows["probabilities"][0])
    probabilities_NC = rows["probabilities"].combine_chunks().flatten().to_numpy().reshape(len(losses_N), num_labels)
    bad = int((~(np.isfinite(losses_N) & np.isfinite(probabilities_NC).all(axis=1))).sum())
    if bad:
        raise DataRejected(f"{where}: scores of {bad} of {len(losses_N)} items are NaN or infinite; evaluate again")
    return Answers(
        labels_N=rows["label"].to_numpy(),
        predictions_N=rows["prediction"].to_numpy(),
        losses_N=losses_N,
        confidences_N=probabilities_NC.max(axis=1).astype(np.float64),
        truncated=int(rows["truncated"].to_numpy().sum()),
    )


def _estimate(values_R: Floats, n: int, config: EvaluationConfig) -> Estimate:
    """Turn values, the observed one first, into an estimate."""
    return bootstrap_estimate(float(values_R[0]), values_R[1:], confidence=config.confidence, n=n)


def _compare(suite: _Measured, model: str, baseline: str, config: EvaluationConfig) -> Comparison:
    differences_R = suite.accuracies_R[model] - suite.accuracies_R[baseline]
    return Comparison(
        suite=suite.summary.name,
        model=model,
        baseline=baseline,
        difference=_estimate(differences_R, suite.summary.num_items, config),
        p_value=mcnemar_p_value(suite.answers[model].correct_N, suite.answers[baseline].correct_N),
    )


def _retention(suite: _Measured, candidate: str, config: EvaluationConfig) -> Estimate | None:
    """Divide the candidate's accuracy by the teacher's; None if the teacher is never right, which leaves no ratio."""
    teacher_R = suite.accuracies_R["teacher"]
    if teacher_R[0] == 0:
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        return _estimate(suite.accuracies_R[candidate] / teacher_R, suite.summary.num_items, config)


def _drop(home: _Measured, away: _Measured, weights: Mapping[str, int], config: EvaluationConfig) -> Estimate:
    """In-domain accuracy minus the accuracy away, summed over models with weights.

    The items of two suites are independent, and so are their resamples; within a suite the models stay paired.
    """
    drops_R = sum(
        (weight * (home.accuracies_R[model] - away.accuracies_R[model]) for model, weight in weights.items()),
        start=np.zeros(config.resamples + 1),
    )
    return _estimate(drops_R, home.summary.num_items + away.summary.num_items, config)
