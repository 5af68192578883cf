"""Asking one model about the items of one suite: records, whatever the task."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pyarrow as pa

from stillhouse.contract import DataRejected, Progress
from stillhouse.evaluation.generation import right_answers
from stillhouse.evaluation.harness import Benchmark, ask_benchmark
from stillhouse.evaluation.language import score_language
from stillhouse.evaluation.records import score
from stillhouse.recipe import Recipe

if TYPE_CHECKING:
    from datasets import Dataset

    from stillhouse.evaluation.timing import Timed


def ask(
    name: str,
    timed: "Timed",
    suite: str,
    rows: "Dataset | Benchmark",
    *,
    recipe: Recipe,
    on_progress: Callable[[Progress], None],
) -> pa.Table:
    """Return the records of one model on one suite, in the order of the rows.

    Args:
        name: Of the model, such as ``teacher``.
        timed: The model.
        suite: Name of the suite.
        rows: Its frozen items, or a task of the harness.
        recipe: Its task, limits and section ``evaluation``.
        on_progress: Told after each batch.

    Raises:
        DataRejected: The model gives scores that are NaN or infinite, or the rows can't be asked.
        ConfigurationError: The model has too few positions.
    """
    from stillhouse.models import documents_of, likelihoods, predict

    config, training = recipe.evaluation, recipe.training
    if isinstance(rows, Benchmark):
        with _named(name, suite):
            return ask_benchmark(
                name, timed, rows, batch_size=config.batch_size, seed=config.seed, on_progress=on_progress
            )
    batch_size, max_tokens = config.batch_size, training.max_tokens
    model, tokenizer = timed.model, timed.tokenizer
    if recipe.task == "text-classification":
        with _named(name, suite):
            predictions = predict(
                model,
                tokenizer,
                list(rows["text"]),
                batch_size=batch_size,
                max_tokens=max_tokens,
                on_progress=on_progress,
            )
        return score(name, suite, rows, predictions, seed=config.seed)
    answers = None
    with _named(name, suite):
        documents = documents_of(
            recipe.task,
            tokenizer,
            rows,
            max_tokens=max_tokens,
            mask_share=training.mask_share,
            seed=config.seed,
        )
        found = likelihoods(
            model, tokenizer, documents, batch_size=batch_size, max_tokens=max_tokens, on_progress=on_progress
        )
        if config.generation:
            answers = right_answers(
                model,
                tokenizer,
                rows,
                documents,
                config=config.generation,
                batch_size=batch_size,
                seed=config.seed,
            )
    return score_language(name, suite, rows, documents, found, answers, seed=config.seed)


@contextmanager
def _named(model: str, suite: str) -> Iterator[None]:
    """Say of what is refused whose it is."""
    try:
        yield
    except DataRejected as error:
        raise DataRejected(f"model {model} on suite {suite}: {error}") from error
