"""Evidence about imaginary models with known skill, for tests of evaluation, report and gate."""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
from datasets import Dataset

from stillhouse.contract import HistoryPoint, ModelTiming, Timings, TrainingHistory, ValidationPoint
from stillhouse.evaluation import SuiteInfo, score
from stillhouse.models import Predictions

SUITES = (
    SuiteInfo(name="movies", kind="in-domain", items_sha256="1" * 64),
    SuiteInfo(name="tweets", kind="shifted-domain", items_sha256="2" * 64),
)

ACCURACIES = {"teacher": (0.87, 0.74), "kd": (0.855, 0.73), "sft": (0.85, 0.73), "start": (0.55, 0.52)}
"""By model, one for each of `SUITES`."""

TIMINGS = Timings(
    threads=2,
    num_items=100,
    models={
        name: ModelTiming(
            parameters=size, num_bytes=4 * size, latency_p50_ms=ms, latency_p95_ms=1.4 * ms, throughput=3000 / ms
        )
        for name, size, ms in (("teacher", 22_000_000, 8.4), ("kd", 17_000_000, 4.6), ("sft", 17_000_000, 4.7))
    },
)


def as_predictions(logits_NC: np.ndarray) -> Predictions:
    """Wrap logits as if a model had given them; every tenth text was cut."""
    return Predictions(
        logits_NC=logits_NC.astype(np.float32),
        truncated_N=np.arange(len(logits_NC)) % 10 == 9,
        token_ids=[[1]] * len(logits_NC),
        hidden=None,
    )


def as_items(labels_N: Sequence[int] | np.ndarray, prefix: str = "i") -> Dataset:
    """Make a suite with these labels."""
    return Dataset.from_dict(
        {"id": [f"{prefix}{i}" for i in range(len(labels_N))], "label": [int(label) for label in labels_N]}
    )


def make_records(
    accuracies: Mapping[str, Sequence[float]] = ACCURACIES,
    *,
    num_items: int = 600,
    num_labels: int = 2,
    seed: int = 0,
    suites: Sequence[SuiteInfo] = SUITES,
) -> pa.Table:
    """Return records of models with these accuracies on each suite; what is hard for one is hard for all."""
    rng = np.random.default_rng(seed)
    tables = []
    for number, suite in enumerate(suites):
        labels_N = rng.integers(0, num_labels, num_items)
        hardness_N = rng.random(num_items)
        for model, accuracy in accuracies.items():
            rank_N = np.argsort(np.argsort(hardness_N + 0.3 * rng.random(num_items))) / num_items
            answers_N = np.where(rank_N < accuracy[number], labels_N, (labels_N + 1) % num_labels)
            logits_NC = rng.normal(0, 0.1, (num_items, num_labels))
            logits_NC[np.arange(num_items), answers_N] += 1 + 2 * (1 - rank_N)
            items = as_items(labels_N, suite.name)
            tables.append(score(model, suite.name, items, as_predictions(logits_NC), seed=7))
    return pa.concat_tables(tables)


def make_history(*terms: str, steps: int = 40, held_out: bool = False) -> TrainingHistory:
    """Return curves that fall, the loss on held-out data among them if it was measured."""
    points = [
        HistoryPoint(
            step=step,
            epoch=step / 20,
            seen=32 * step,
            learning_rate=1e-4,
            loss=1 / step,
            terms={term: 1 / step + number for number, term in enumerate(terms)},
        )
        for step in range(1, steps + 1)
    ]
    validation = [
        ValidationPoint(step=step, tokens=4096 * step, loss=2.5 + 7.4 / (1 + step), targets=900)
        for step in range(0, steps + 1, 5)
        if held_out
    ]
    return TrainingHistory(total_steps=steps, points=tuple(points), validation=tuple(validation))
