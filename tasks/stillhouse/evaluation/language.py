"""Language models: per-item records of their loss, and what the statistics make of them.

Models are compared by ``nll``, the mean loss per target token, or by their answers. The former is a fair comparison
only while all have the same target tokens, so a champion with another tokenizer is refused. Comparing by
``bits_per_byte`` would be possible, but the margins of policies are in nats per token, and reading them as bits per
byte would make them some three times as wide. Compared by their answers, models of several tokenizers have no figures
per token.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stillhouse.contract import DataRejected, Metric
from stillhouse.evaluation.blocks import Block, SuiteBlocks, aligned_rows, slice_masks, strings
from stillhouse.evaluation.metrics import UNIT, Floats, fixed_point, mean
from stillhouse.evaluation.records import LANGUAGE_SCHEMA, slices_of
from stillhouse.recipe import EvaluationConfig

if TYPE_CHECKING:
    from datasets import Dataset

    from stillhouse.evaluation.generation import RightAnswers
    from stillhouse.models import Document, Likelihoods

ITEMS, TARGETS, HITS, LOSS, BYTES, GREEDY, RIGHT, SAMPLES = range(8)
"""Columns of a block."""

PER_TOKEN = frozenset[Metric](("nll", "perplexity", "accuracy"))
"""Comparable only among models of one tokenizer."""

MAX_LOSS = 700.0
"""Nats per token beyond which a perplexity is no float any more, and the model no model."""


def score_language(
    model_name: str,
    suite_name: str,
    rows: "Dataset",
    documents: "Sequence[Document]",
    likelihoods: "Likelihoods",
    answers: "RightAnswers | None" = None,
    *,
    seed: int,
) -> pa.Table:
    """Turn one model's likelihoods on one suite into records, in the order of the rows.

    A row's pieces are added up. A row too short to have a target has a record of zeros.

    Args:
        model_name: One of `stillhouse.contract.MODELS`.
        suite_name: Name of the suite.
        rows: N rows with a column ``id``, maybe ``group`` and ``slice:COLUMN``.
        documents: Of these rows; see `stillhouse.models.documents_of`.
        likelihoods: Of the documents, in their order.
        answers: Whether the model's answers to the rows' prompts were right, if it was asked.
        seed: Of the run.

    Raises:
        DataRejected: The documents or answers are not those of the rows.
    """
    ids = list(rows["id"])
    places = {row_id: place for place, row_id in enumerate(ids)}
    where = f"model {model_name} on suite {suite_name}"
    if len(documents) != len(likelihoods.losses_N) or (answers and len(answers.greedy_N) != len(ids)):
        raise DataRejected(f"{where}: scores and items differ in number; score again")
    # Further pieces of a long text carry its id and a number.
    names = [d.id if d.id in places else d.id.rpartition("#")[0] for d in documents]
    if foreign := sum(name not in places for name in names):
        raise DataRejected(f"{where}: {foreign} documents belong to none of its items; score again")
    rows_P = np.asarray([places[name] for name in names], dtype=np.int64)

    def added(values_P: np.ndarray) -> np.ndarray:
        return np.bincount(rows_P, weights=values_P, minlength=len(ids))

    columns = {
        "model": pa.repeat(model_name, len(ids)),
        "suite": pa.repeat(suite_name, len(ids)),
        "item_id": pa.array(ids, pa.string()),
        "seed": pa.array([seed] * len(ids), pa.int64()),
        "slices": slices_of(rows),
        "group": pa.array(list(rows["group"]) if "group" in rows.column_names else ids, pa.string()),
        "targets": added(likelihoods.targets_N).astype(np.int64),
        "hits": added(likelihoods.hits_N).astype(np.int64),
        "loss": added(likelihoods.losses_N),
        "num_bytes": None if likelihoods.bytes_N is None else added(likelihoods.bytes_N).astype(np.int64),
        "truncated": added(likelihoods.truncated_N) > 0,
        "greedy_right": answers.greedy_N if answers else None,
        "samples_right": answers.samples_N if answers else None,
        "samples": np.full(len(ids), answers.samples) if answers else None,
    }
    missing = pa.nulls(len(ids))
    return pa.table(
        {name: missing if column is None else column for name, column in columns.items()}, schema=LANGUAGE_SCHEMA
    )


def read_blocks(records: pa.Table, suite: str, models: Sequence[str], config: EvaluationConfig) -> SuiteBlocks:
    """Prepare the records of one suite for the statistics.

    Args:
        records: Of all models, on this suite and maybe others.
        suite: Name of the suite.
        models: Those that share the suite.
        config: By which metric models are compared where they answer.

    Raises:
        DataRejected: A model lacks items, has some twice, has losses that are no numbers or absurd, has no target at
            all; or models are compared by their loss and have different target tokens.
    """
    aligned = aligned_rows(records, suite, models)
    first = aligned[models[0]]
    answered = all(not rows["greedy_right"].null_count for rows in aligned.values())
    metric: Metric = config.generation.metric if config.generation and answered else "nll"
    foreign = [model for model, rows in aligned.items() if not rows["targets"].equals(first["targets"])]
    if foreign and metric == "nll":
        raise DataRejected(
            f"model {foreign[0]} on suite {suite}: it has other target tokens than the {models[0]}, so losses per "
            "token can't be compared; use models of one tokenizer, and another promotion.model for those of a new one"
        )
    blocks = {model: _block(rows, f"model {model} on suite {suite}", metric) for model, rows in aligned.items()}
    if foreign:
        blocks = {model: _without_figures_per_token(block) for model, block in blocks.items()}
    return SuiteBlocks(
        metric=metric,
        ids_N=strings(first["item_id"]),
        groups_N=strings(first["group"]),
        slices=slice_masks(first["slices"]),
        models=blocks,
    )


def read_benchmark(records: pa.Table, suite: str, models: Sequence[str]) -> SuiteBlocks:
    """Prepare the records of a task of the harness for the statistics: models are compared by right and wrong answers.

    Args:
        records: Of all models, on this suite and maybe others; see `stillhouse.evaluation.harness.ask_benchmark`.
        suite: Name of the suite.
        models: Those that share the suite.

    Raises:
        DataRejected: A model lacks items, has some twice, or has losses that are no numbers.
    """
    aligned = aligned_rows(records, suite, models)
    first = aligned[models[0]]
    return SuiteBlocks(
        metric="accuracy",
        ids_N=strings(first["item_id"]),
        groups_N=strings(first["group"]),
        slices=slice_masks(first["slices"]),
        models={m: _benchmark_block(rows, f"model {m} on suite {suite}") for m, rows in aligned.items()},
    )


def _benchmark_block(rows: pa.Table, where: str) -> Block:
    hits_N = rows["hits"].to_numpy()
    columns_NK = np.stack([np.ones(rows.num_rows), hits_N], axis=1)
    metrics: dict[Metric, Callable[[Floats], Floats]] = {"accuracy": lambda sums_RK: _ratio(sums_RK, 1, 0)}
    if rows["loss"].null_count < rows.num_rows:  # written answers have no loss
        columns_NK = np.hstack([columns_NK, fixed_point(_losses(rows, where))])
        metrics["nll"] = lambda sums_RK: mean(sums_RK[:, 2], sums_RK[:, 0])
    return Block(
        columns_NK=columns_NK,
        metrics=metrics,
        proportions={"accuracy": (int(hits_N.sum()), rows.num_rows)},
        correct_N=hits_N == 1,
        truncated=pc.sum(rows["truncated"]).as_py(),
    )


def _losses(rows: pa.Table, where: str) -> Floats:
    losses_N: Floats = rows["loss"].to_numpy()
    if bad := int((~np.isfinite(losses_N)).sum()):
        raise DataRejected(f"{where}: losses of {bad} of {rows.num_rows} items are NaN or infinite; retrain it")
    return losses_N


def _without_figures_per_token(block: Block) -> Block:
    kept = {metric: figure for metric, figure in block.metrics.items() if metric not in PER_TOKEN}
    return replace(block, metrics=kept)


def _block(rows: pa.Table, where: str, metric: Metric) -> Block:
    losses_N = _losses(rows, where)
    columns_NK = np.zeros((rows.num_rows, 8))
    columns_NK[:, ITEMS] = 1
    columns_NK[:, [LOSS]] = fixed_point(losses_N)
    counted = {TARGETS: "targets", HITS: "hits"}
    if coded := not rows["num_bytes"].null_count:
        counted[BYTES] = "num_bytes"
    if answered := not rows["greedy_right"].null_count:
        counted |= {GREEDY: "greedy_right", RIGHT: "samples_right", SAMPLES: "samples"}
    for column, name in counted.items():
        columns_NK[:, column] = rows[name].to_numpy()
    if not columns_NK[:, TARGETS].any() or (coded and not columns_NK[:, BYTES].any()):
        raise DataRejected(f"{where}: no item has a token to predict; give longer texts")
    if (nats := losses_N.sum() / columns_NK[:, TARGETS].sum()) > MAX_LOSS:
        raise DataRejected(f"{where}: {nats:.0f} nats of loss per token; its weights are broken, look at its training")
    metrics: dict[Metric, Callable[[Floats], Floats]] = {
        "nll": _nll,
        "perplexity": _perplexity,
        "accuracy": lambda sums_RK: _ratio(sums_RK, HITS, TARGETS),
    }
    if coded:
        metrics["bits_per_byte"] = lambda sums_RK: _ratio(sums_RK, LOSS, BYTES) / (UNIT * np.log(2))
    if answered:
        metrics["exact_match"] = lambda sums_RK: _ratio(sums_RK, GREEDY, ITEMS)
        if columns_NK[:, SAMPLES].any():
            metrics["pass_at_1"] = lambda sums_RK: _ratio(sums_RK, RIGHT, SAMPLES)
    return Block(
        columns_NK=columns_NK,
        metrics=metrics,
        # Tokens of a text depend on one another, and so do samples of a prompt: neither is a proportion of items.
        proportions={"exact_match": (int(columns_NK[:, GREEDY].sum()), rows.num_rows)} if answered else {},
        correct_N=columns_NK[:, GREEDY] == 1 if metric == "exact_match" else None,
        truncated=pc.sum(rows["truncated"]).as_py(),
    )


def _nll(sums_RK: Floats) -> Floats:
    return _ratio(sums_RK, LOSS, TARGETS) / UNIT


def _perplexity(sums_RK: Floats) -> Floats:
    # Resamples of an extreme item are left out with the undefined ones.
    with np.errstate(over="ignore"):
        return np.exp(_nll(sums_RK))


def _ratio(sums_RK: Floats, top: int, bottom: int) -> Floats:
    """Divide two columns; NaN in a resample of none but empty items."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return sums_RK[:, top] / sums_RK[:, bottom]
