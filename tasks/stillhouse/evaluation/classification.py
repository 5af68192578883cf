"""Classifiers: from records to the columns and metrics of `stillhouse.evaluation.blocks`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
from scipy.special import kl_div

from stillhouse.contract import DataRejected, Metric
from stillhouse.evaluation.blocks import Block, SuiteBlocks, aligned_rows, strings
from stillhouse.evaluation.calibration import SMALLEST, fit_temperature, scale
from stillhouse.evaluation.metrics import (
    Bools,
    Floats,
    Ints,
    ece,
    ece_columns,
    f1_columns,
    fixed_point,
    macro_f1,
    mean,
    squared_distances,
)
from stillhouse.recipe import EvaluationConfig


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What one model said about N items, in the order of their ids, whether a label fits them or not."""

    predictions_N: Ints
    probabilities_NC: Floats
    energies_N: Floats
    """Log-sum-exp of the logits."""
    truncated: int

    @property
    def confidences_N(self) -> Floats:
        """Probability of the most probable label."""
        confidences_N: Floats = self.probabilities_NC.max(axis=1)
        return confidences_N


@dataclass(frozen=True, kw_only=True)
class Truth:
    """The items' labels, and how far one model is from them."""

    labels_N: Ints
    losses_N: Floats
    """Negative log-likelihood of the labels, in nats."""


def read_blocks(
    records: pa.Table,
    suite: str,
    models: Sequence[str],
    config: EvaluationConfig,
    labels: Sequence[str] = (),
    temperatures: Mapping[str, float] | None = None,
) -> SuiteBlocks:
    """Read a suite of labelled items.

    Args:
        records: See `stillhouse.evaluation.records.SCHEMA`.
        suite: Its name.
        models: The teacher first.
        config: Calibration bins.
        labels: Names of the labels, in the order of the probabilities; by default their numbers.
        temperatures: By model, if any were fitted.

    Raises:
        DataRejected: A model lacks items, has some twice, disagrees about labels or groups, or has scores that are NaN.
    """
    aligned = aligned_rows(records, suite, models)
    blocks: dict[str, Block] = {}
    teacher: Scores | None = None
    labels_N: Ints | None = None
    for model, rows in aligned.items():
        where = f"model {model} on suite {suite}"
        scores = read_scores(rows, where)
        truth = read_truth(rows, where, scores.probabilities_NC.shape[1])
        labels_N = truth.labels_N if labels_N is None else labels_N
        if not np.array_equal(truth.labels_N, labels_N):
            raise DataRejected(f"{where}: some labels differ from the teacher's; score all models on the same items")
        blocks[model] = _block(scores, truth, teacher, config, labels, (temperatures or {}).get(model))
        teacher = teacher or scores
    first = aligned[models[0]]
    return SuiteBlocks(
        metric="accuracy", ids_N=strings(first["item_id"]), groups_N=strings(first["group"]), models=blocks
    )


def fit_temperatures(validation: pa.Table, models: Sequence[str]) -> dict[str, float]:
    """Return each model's temperature, fitted to its records of the validation set.

    Raises:
        DataRejected: As in `read_blocks`.
    """
    temperatures = {}
    for model, rows in aligned_rows(validation, "validation", models).items():
        where = f"model {model} on suite validation"
        scores = read_scores(rows, where)
        truth = read_truth(rows, where, scores.probabilities_NC.shape[1])
        temperatures[model] = fit_temperature(scores.probabilities_NC, truth.labels_N)
    return temperatures


def read_scores(rows: pa.Table, where: str) -> Scores:
    """Read one model's scores on one suite.

    Raises:
        DataRejected: Some are missing, NaN or infinite, or of another number of labels.
    """
    widths = rows["probabilities"].combine_chunks().value_lengths().to_numpy(zero_copy_only=False)
    if any(rows[name].null_count for name in ("prediction", "probabilities", "energy", "truncated")):
        raise DataRejected(f"{where}: some items were not scored; evaluate again")
    if len(np.unique(widths)) != 1:
        raise DataRejected(f"{where}: items have different numbers of labels; evaluate again")
    flat = rows["probabilities"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    probabilities_NC = flat.astype(np.float64).reshape(rows.num_rows, int(widths[0]))
    energies_N = rows["energy"].to_numpy()
    _refuse_bad(~(np.isfinite(energies_N) & np.isfinite(probabilities_NC).all(axis=1)), where)
    return Scores(
        predictions_N=rows["prediction"].to_numpy(),
        probabilities_NC=probabilities_NC,
        energies_N=energies_N,
        truncated=int(rows["truncated"].to_numpy().sum()),
    )


def read_truth(rows: pa.Table, where: str, num_labels: int) -> Truth:
    """Read the labels and one model's losses.

    Raises:
        DataRejected: Some labels are missing or unknown to the model, or losses are missing, NaN or infinite.
    """
    if rows["label"].null_count:
        raise DataRejected(
            f"{where}: {rows['label'].null_count} items have no label; only out-of-scope items may lack it"
        )
    labels_N = rows["label"].to_numpy()
    unknown = int(((labels_N < 0) | (labels_N >= num_labels)).sum())
    if unknown:
        raise DataRejected(f"{where}: {unknown} labels are not among its {num_labels} outputs; evaluate again")
    losses_N = rows["loss"].to_numpy().astype(np.float64)
    _refuse_bad(~np.isfinite(losses_N), where)
    return Truth(labels_N=labels_N, losses_N=losses_N)


def _refuse_bad(bad_N: Bools, where: str) -> None:
    if bad_N.any():
        raise DataRejected(
            f"{where}: scores of {int(bad_N.sum())} of {len(bad_N)} items are NaN or infinite; evaluate again"
        )


def _block(
    scores: Scores,
    truth: Truth,
    teacher: Scores | None,
    config: EvaluationConfig,
    labels: Sequence[str],
    temperature: float | None,
) -> Block:
    """Lay out one model's columns: a column of ones first, then what each metric needs."""
    num_items, num_labels = scores.probabilities_NC.shape
    labels_N = truth.labels_N
    correct_N = scores.predictions_N == labels_N
    columns = [np.ones((num_items, 1))]
    metrics: dict[Metric, Callable[[Floats], Floats]] = {}

    def add(columns_NK: Floats) -> slice:
        first = sum(part.shape[1] for part in columns)
        columns.append(columns_NK)
        return slice(first, first + columns_NK.shape[1])

    def add_mean(metric: Metric, values_N: Floats) -> None:
        metrics[metric] = partial(_mean_of, add(fixed_point(values_N)).start)

    def add_ece(metric: Metric, confidences_N: Floats) -> None:
        metrics[metric] = partial(_of, ece, add(ece_columns(confidences_N, correct_N, config.calibration_bins)))

    f1 = add(f1_columns(labels_N, scores.predictions_N, num_labels))
    proportions: dict[Metric, tuple[int, int]] = {"accuracy": (int(correct_N.sum()), num_items)}
    metrics["accuracy"] = partial(_share_of, slice(f1.start, f1.start + num_labels))
    metrics["macro_f1"] = partial(_of, macro_f1, f1)
    add_ece("ece", scores.confidences_N)
    if temperature is not None:
        add_ece("ece_scaled", scale(scores.probabilities_NC, temperature).max(axis=1))
    add_mean("brier", squared_distances(scores.probabilities_NC, labels_N))
    add_mean("nll", truth.losses_N)
    # The teacher has these columns too, though not the metrics: all models of a suite have one layout.
    reference = teacher or scores
    same_N = scores.predictions_N == reference.predictions_N
    add_share("agreement", same_N)
    add_mean("kl", kl_div(reference.probabilities_NC, np.maximum(scores.probabilities_NC, SMALLEST)).sum(axis=1))
    add_mean("overlap", 1 - np.abs(reference.probabilities_NC - scores.probabilities_NC).sum(axis=1) / 2)
    if teacher is None:
        del metrics["agreement"], metrics["kl"], metrics["overlap"], proportions["agreement"]
    return Block(
        columns_NK=np.hstack(columns),
        metrics=metrics,
        proportions=proportions,
        correct_N=correct_N,
        truncated=scores.truncated,
        per_label={
            labels[number] if labels else str(number): (f1.start + number, f1.start + num_labels + number)
            for number in np.unique(labels_N).tolist()
        },
        temperature=temperature,
    )


def _of(metric: Callable[[Floats], Floats], part: slice, sums_RK: Floats) -> Floats:
    return metric(sums_RK[:, part])


def _share_of(part: slice, sums_RK: Floats) -> Floats:
    shares_R: Floats = sums_RK[:, part].sum(axis=1) / sums_RK[:, 0]
    return shares_R


def _mean_of(column: int, sums_RK: Floats) -> Floats:
    return mean(sums_RK[:, column], sums_RK[:, 0])
