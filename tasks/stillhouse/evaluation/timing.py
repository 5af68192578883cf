"""Sizes and speeds of models, measured side by side so that a busy machine treats them alike."""

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from stillhouse.contract import ModelTiming, Timings
from stillhouse.recipe import EvaluationConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

WARM_UP_ITEMS = 3
THROUGHPUT_BATCHES = 3
THROUGHPUT_ROUNDS = 3


def measure(
    models: "Mapping[str, tuple[PreTrainedModel, PreTrainedTokenizerBase]]",
    texts: Sequence[str],
    *,
    config: EvaluationConfig,
    max_tokens: int,
) -> Timings:
    """Time all models on the same texts, alternating between them.

    Latency is the median and the 95th percentile over single texts, throughput the median of some rounds over a few
    batches; both include tokenization. The order within each round rotates, so that no model always goes first.

    Args:
        models: Model and tokenizer by name.
        texts: At least one; the first `latency_items` of them are timed.
        config: Number of items and batch size.
        max_tokens: Longer texts are truncated.
    """
    import torch

    from stillhouse.models import predict

    def seconds(name: str, batch: Sequence[str]) -> float:
        model, tokenizer = models[name]
        started = time.perf_counter()
        predict(model, tokenizer, batch, batch_size=min(config.batch_size, len(batch)), max_tokens=max_tokens)
        return time.perf_counter() - started

    names = list(models)
    singles = texts[: config.latency_items]
    for text in singles[:WARM_UP_ITEMS]:
        for name in names:
            seconds(name, [text])
    latencies: dict[str, list[float]] = {name: [] for name in names}
    for turn, text in enumerate(singles):
        for name in _rotated(names, turn):
            latencies[name].append(seconds(name, [text]))
    batch = texts[: THROUGHPUT_BATCHES * config.batch_size]
    rates: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(THROUGHPUT_ROUNDS):
        for name in _rotated(names, turn):
            rates[name].append(len(batch) / seconds(name, batch))
    return Timings(
        threads=torch.get_num_threads(),
        num_items=len(singles),
        models={
            name: ModelTiming(
                parameters=sum(p.numel() for p in models[name][0].parameters()),
                num_bytes=sum(p.numel() * p.element_size() for p in models[name][0].parameters()),
                latency_p50_ms=round(1000 * float(np.quantile(latencies[name], 0.5)), 3),
                latency_p95_ms=round(1000 * float(np.quantile(latencies[name], 0.95)), 3),
                throughput=round(float(np.median(rates[name])), 1),
            )
            for name in names
        },
    )


def _rotated(names: Sequence[str], turn: int) -> list[str]:
    first = turn % len(names)
    return [*names[first:], *names[:first]]
