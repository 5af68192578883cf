"""Sizes and speeds of models, measured side by side so that a busy machine treats them alike."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
import pyarrow as pa

from stillhouse.contract import ModelTiming, Timings
from stillhouse.recipe import EvaluationConfig, Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

WARM_UP_ITEMS = 3
THROUGHPUT_BATCHES = 3
THROUGHPUT_ROUNDS = 3


LATENCY_SCHEMA = pa.schema(
    [("model", pa.string()), ("item", pa.int64()), ("milliseconds", pa.float64())],
    metadata={"schema_id": "stillhouse/latencies/1"},
)
"""What every model took for every text that was timed alone, model by model. ``item`` is the number of the text's row
in the frozen in-domain set, from 0; ``milliseconds`` is wall time. Every run gives other ones."""


@dataclass(frozen=True, kw_only=True)
class Timed:
    """A model to be timed."""

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    folder: Path
    """That the model was loaded from."""

    @classmethod
    def read(cls, folder: Path, *, task: Task, labels: Sequence[str]) -> Self:
        """Load the model in a folder, with its tokenizer.

        Raises:
            ConfigurationError: See `stillhouse.models.load_model`.
        """
        from stillhouse.models import load_model, load_tokenizer

        model = load_model(folder, task=task, labels=labels)
        return cls(model=model, tokenizer=load_tokenizer(folder), folder=folder)


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What was timed, in short and item by item."""

    timings: Timings
    latencies: pa.Table
    """See `LATENCY_SCHEMA`."""


def measure(
    models: Mapping[str, Timed],
    texts: Sequence[str],
    *,
    task: Task,
    config: EvaluationConfig,
    max_tokens: int,
    labels: Sequence[str] = (),
) -> Measurement:
    """Time all models on the same texts, alternating between them.

    What is timed is the way from a text to the first thing that the model says about it: a classifier's logits, a
    causal model's next token (the prefill, or time to first token), one hidden token of a masked model. Latency is the
    median and the 95th percentile over single texts, throughput the median of some rounds over a few batches, in texts
    per second; both include tokenization, and what the model says on its way back to the CPU, for which an accelerator
    has to be done. The order within each round rotates, so that no model always goes first.
    Memory is measured apart, in processes of their own.

    Args:
        models: By name.
        texts: At least one; the first ``latency_items`` of them are timed. Prompts, where models answer them.
        task: Of all models.
        config: Number of items and batch size.
        max_tokens: Longer texts are truncated.
        labels: Of classifiers.

    Raises:
        ConfigurationError: A model has fewer positions than ``max_tokens``.
        DataRejected: A model gives logits that are no numbers.
    """
    import torch

    from stillhouse.evaluation.footprint import peak_memory
    from stillhouse.models import count_parameters

    def seconds(name: str, batch: Sequence[str]) -> float:
        started = time.perf_counter()
        _run(models[name], batch, task=task, batch_size=min(config.batch_size, len(batch)), max_tokens=max_tokens)
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
    memory = peak_memory(
        {name: timed.folder for name, timed in models.items()},
        batch,
        task=task,
        labels=labels,
        batch_size=config.batch_size,
        max_tokens=max_tokens,
        threads=torch.get_num_threads(),
    )
    timings = Timings(
        device=models[names[0]].model.device.type,
        threads=torch.get_num_threads(),
        num_items=len(singles),
        models={
            name: ModelTiming(
                parameters=count_parameters(models[name].model),
                num_bytes=weights_bytes(models[name].folder),
                latency_p50_ms=round(1000 * float(np.quantile(latencies[name], 0.5)), 3),
                latency_p95_ms=round(1000 * float(np.quantile(latencies[name], 0.95)), 3),
                throughput=round(float(np.median(rates[name])), 1),
                peak_memory_bytes=memory.get(name),
            )
            for name in names
        },
    )
    return Measurement(timings=timings, latencies=_latency_table(latencies))


def weights_bytes(folder: Path) -> int:
    """Return the bytes of the files of weights that a model is loaded from, in the precision that they are stored in.

    Other weights that may lie in the folder don't count. An ONNX file holds the graph, too, which is small.

    Raises:
        OSError: The folder has none, or they can't be read.
    """
    from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

    from stillhouse.models.onnx_folder import ONNX_FILE, is_onnx_folder

    if is_onnx_folder(folder):
        return (folder / ONNX_FILE).stat().st_size
    names = {SAFE_WEIGHTS_NAME}
    if not (folder / SAFE_WEIGHTS_NAME).is_file():
        index = json.loads((folder / SAFE_WEIGHTS_INDEX_NAME).read_text(encoding="utf-8"))
        names = set(index["weight_map"].values())
    return sum((folder / name).stat().st_size for name in names)


def _latency_table(seconds: Mapping[str, Sequence[float]]) -> pa.Table:
    columns = {
        "model": [name for name, its in seconds.items() for _ in its],
        "item": [item for its in seconds.values() for item in range(len(its))],
        "milliseconds": [round(1000 * taken, 3) for its in seconds.values() for taken in its],
    }
    return pa.table(columns, schema=LATENCY_SCHEMA)


def _run(timed: Timed, texts: Sequence[str], *, task: Task, batch_size: int, max_tokens: int) -> None:
    from stillhouse.models import last_logits, predict

    if task == "text-classification":
        predict(timed.model, timed.tokenizer, texts, batch_size=batch_size, max_tokens=max_tokens)
    else:
        last_logits(timed.model, timed.tokenizer, texts, batch_size=batch_size, max_tokens=max_tokens)


def _rotated(names: Sequence[str], turn: int) -> list[str]:
    first = turn % len(names)
    return [*names[first:], *names[:first]]
