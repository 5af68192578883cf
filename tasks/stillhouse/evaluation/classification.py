"""Classifiers: from records to the columns and metrics of `stillhouse.evaluation.blocks`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from scipy.special import kl_div

from stillhouse.contract import DataRejected, Metric
from stillhouse.evaluation.blocks import Block, SuiteBlocks, aligned_rows, slice_masks, strings
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
        models: Those that share the suite.
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
    expected = 0
    for model, rows in aligned.items():
        where = f"model {model} on suite {suite}"
        scores = read_scores(rows, where)
        num_labels = scores.probabilities_NC.shape[1]
        expected = expected or num_labels
        if num_labels != expected:
            other = f"the {models[0]} {expected}"
            raise DataRejected(f"{where}: it has {num_labels} labels, {other}; they can't be compared")
        truth = read_truth(rows, where, num_labels)
        labels_N = truth.labels_N if labels_N is None else labels_N
        if not np.array_equal(truth.labels_N, labels_N):
            raise DataRejected(f"{where}: some labels differ from the {models[0]}'s; score all models alike")
        blocks[model] = _block(scores, truth, teacher, config, labels, (temperatures or {}).get(model))
        if model == "teacher":
            teacher = scores
    first = aligned[models[0]]
    return SuiteBlocks(
        metric="accuracy",
        ids_N=strings(first["item_id"]),
        groups_N=strings(first["group"]),
        slices=slice_masks(first["slices"]),
        models=blocks,
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


class _Layout:
    """Columns of one model and the metrics that read them; the first column is of ones."""

    def __init__(self, num_items: int) -> None:
        self.columns: list[Floats] = [np.ones((num_items, 1))]
        self.metrics: dict[Metric, Callable[[Floats], Floats]] = {}
        self.proportions: dict[Metric, tuple[int, int]] = {}

    def add(self, columns_NK: Floats) -> slice:
        first = sum(part.shape[1] for part in self.columns)
        self.columns.append(columns_NK)
        return slice(first, first + columns_NK.shape[1])

    def add_mean(self, metric: Metric, values_N: Floats) -> None:
        column = self.add(fixed_point(values_N)).start
        self.metrics[metric] = lambda sums_RK: mean(sums_RK[:, column], sums_RK[:, 0])

    def add_share(self, metric: Metric, hits_N: Bools) -> None:
        column = self.add(hits_N[:, None].astype(np.float64)).start
        self.metrics[metric] = lambda sums_RK: sums_RK[:, column] / sums_RK[:, 0]
        self.proportions[metric] = (int(hits_N.sum()), len(hits_N))

    def add_function(self, metric: Metric, function: Callable[[Floats], Floats], columns_NK: Floats) -> slice:
        part = self.add(columns_NK)
        self.metrics[metric] = lambda sums_RK: function(sums_RK[:, part])
        return part


def _block(
    scores: Scores,
    truth: Truth,
    teacher: Scores | None,
    config: EvaluationConfig,
    labels: Sequence[str],
    temperature: float | None,
) -> Block:
    labels_N, probabilities_NC = truth.labels_N, scores.probabilities_NC
    num_items, num_labels = probabilities_NC.shape
    correct_N = scores.predictions_N == labels_N
    layout = _Layout(num_items)
    layout.add_share("accuracy", correct_N)
    f1 = layout.add_function("macro_f1", macro_f1, f1_columns(labels_N, scores.predictions_N, num_labels))
    layout.add_function("ece", ece, ece_columns(scores.confidences_N, correct_N, config.calibration_bins))
    if temperature is not None:
        confidences_N = scale(probabilities_NC, temperature).max(axis=1)
        layout.add_function("ece_scaled", ece, ece_columns(confidences_N, correct_N, config.calibration_bins))
    layout.add_mean("brier", squared_distances(probabilities_NC, labels_N))
    layout.add_mean("nll", truth.losses_N)
    if teacher is not None:
        layout.add_share("agreement", scores.predictions_N == teacher.predictions_N)
        divergences_NC = kl_div(teacher.probabilities_NC, np.maximum(probabilities_NC, SMALLEST))
        layout.add_mean("kl", divergences_NC.sum(axis=1))
        layout.add_mean("overlap", 1 - np.abs(teacher.probabilities_NC - probabilities_NC).sum(axis=1) / 2)
    return Block(
        columns_NK=np.hstack(layout.columns),
        metrics=layout.metrics,
        proportions=layout.proportions,
        correct_N=correct_N,
        truncated=scores.truncated,
        per_label={
            labels[number] if labels else str(number): (f1.start + number, f1.start + num_labels + number)
            for number in np.unique(labels_N).tolist()
        },
        temperature=temperature,
    )
