"""Putting one model to a task of the harness: records, one for each item.

An item counts as one target, hit if the answer is right. The loss is that of the right answer in nats: among the
choices (the softmax of their log-likelihoods), or, where a text is to be continued, of all its tokens together. Answers
that a model writes have none, and are judged after the task's first filter.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from scipy.special import logsumexp

from stillhouse.contract import DataRejected, Progress
from stillhouse.evaluation.harness.building import Benchmark, items_sha256, working_harness
from stillhouse.evaluation.records import LANGUAGE_SCHEMA

if TYPE_CHECKING:
    from stillhouse.evaluation.timing import Timed


def ask_benchmark(
    name: str,
    timed: "Timed",
    benchmark: Benchmark,
    *,
    batch_size: int,
    seed: int,
    on_progress: Callable[[Progress], None],
) -> pa.Table:
    """Return the records of one model on one task, in the order of its items.

    Args:
        name: Of the model, such as ``teacher``.
        timed: The model: a causal one.
        benchmark: The task.
        batch_size: Sequences per forward pass.
        seed: Of the run.
        on_progress: Told after each batch, in sequences; not where the model writes.

    Raises:
        DataRejected: The model gives logits that are NaN or infinite, the items are not those that were built, or
            some have no right answer or a score that is neither right nor wrong.
        ConfigurationError: The model has too few positions.
    """
    from lm_eval.evaluator import evaluate

    from stillhouse.evaluation.harness.model import HarnessModel

    task = benchmark.task
    with working_harness(benchmark.config, benchmark.workspace):
        model = HarnessModel(timed.model, timed.tokenizer, batch_size=batch_size, on_progress=on_progress)
        task.set_fewshot_seed(seed=benchmark.config.seed)
        found = evaluate(
            lm=model,
            task_dict={"tasks": {task.task_name: task}},
            limit=benchmark.config.limit,
            bootstrap_iters=0,
            log_samples=True,
        )
        if items_sha256(task) != benchmark.items_sha256:
            raise DataRejected("the task has other items each time that it is built; choose another")
        samples = found["samples"][task.task_name]
        judged = [sample for sample in samples if sample["filter"] == samples[0]["filter"]]
        losses = _losses(task, judged)
    count = len(judged)
    numbers = [sample["doc_id"] for sample in judged]
    columns = {
        "model": pa.repeat(name, count),
        "suite": pa.repeat(benchmark.suite, count),
        "item_id": pa.array(map(str, numbers), pa.string()),
        "seed": pa.array([seed] * count, pa.int64()),
        "slices": pa.array([[]] * count, pa.list_(pa.string())),
        "group": pa.array(map(str, numbers), pa.string()),
        "targets": np.ones(count, dtype=np.int64),
        "hits": _hits(judged, benchmark.metric),
        "loss": pa.nulls(count) if losses is None else losses,
        "truncated": [number in model.truncated for number in numbers],
    }
    missing = pa.nulls(count)
    return pa.table({field: columns.get(field, missing) for field in LANGUAGE_SCHEMA.names}, schema=LANGUAGE_SCHEMA)


def _hits(samples: Sequence[Mapping[str, Any]], metric: str) -> list[int]:
    values = [float(sample[metric]) for sample in samples]
    if odd := sum(value not in (0.0, 1.0) for value in values):
        raise DataRejected(f"{metric} of {odd} items is neither 0 nor 1; choose another task")
    return [int(value) for value in values]


def _losses(task: Any, samples: Sequence[Mapping[str, Any]]) -> list[float] | None:
    """Return the loss of each item's right answer, or None if the task has none."""
    if task.OUTPUT_TYPE == "loglikelihood":
        # A task of its own class may ask several things about an item, and only it knows which is right.
        plain = all(len(sample["resps"]) == 1 for sample in samples)
        return [-sample["resps"][0][0][0] for sample in samples] if plain else None
    if task.OUTPUT_TYPE != "multiple_choice":
        return None
    losses, without = [], 0
    for sample in samples:
        doc = sample["doc"]
        choices = task.doc_to_choice(doc)
        right = _right_choices(task.doc_to_text(doc) if task.multiple_input else sample["target"], choices)
        likely_C = np.asarray([answers[0][0] for answers in sample["resps"][: len(choices)]])
        without += not right
        losses.append(float(logsumexp(likely_C) - logsumexp(likely_C[right])) if right else 0.0)
    if without:
        raise DataRejected(f"{without} items have no right answer among their choices; correct the task's data")
    return losses


def _right_choices(target: Any, choices: Sequence[str]) -> list[int]:
    """Return the numbers of the right choices: a task may name one or several, by number or by text."""
    named = target if isinstance(target, list) else [target]
    numbers = [choices.index(n) if isinstance(n, str) and n in choices else n for n in named]
    return [n for n in numbers if isinstance(n, int) and 0 <= n < len(choices)]
