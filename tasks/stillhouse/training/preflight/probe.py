"""One probe: a teacher, a student without it and one with it, all measured on validation items."""

import copy
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from datasets import Dataset
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from stillhouse.contract import ProbeModel, Progress
from stillhouse.evaluation import score
from stillhouse.evaluation.language import score_language
from stillhouse.models import (
    Document,
    Likelihoods,
    Predictions,
    likelihoods,
    load_model,
    load_tokenizer,
    model_shape,
    predict,
    vocabulary_size,
)
from stillhouse.recipe import PathSource, Recipe
from stillhouse.store import describe_tree
from stillhouse.training.distill import answering_teacher, prepare_teacher, start_student, train_arm
from stillhouse.training.knowledge import OpenedCache, open_cache, recipe_documents, write_shard
from stillhouse.training.preflight.candidates import Candidate
from stillhouse.training.preflight.meter import Meter

SUITE = "validation"


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What one repeat learns from and is measured on."""

    rows: Dataset
    rows_sha256: str
    items: Dataset
    repeat: int


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a probe found."""

    records: pa.Table
    """Of `stillhouse.evaluation`: one row for each `ProbeModel` and item."""
    teacher_parameters: int
    student_parameters: int
    student_layers: int


def run_probe(recipe: Recipe, candidate: Candidate, sample: Sample, *, workspace: Path, meter: Meter) -> Measured:
    """Train teacher, ``sft`` and ``kd`` with a repeat's rows and seeds, and measure them.

    A killed probe that is run again goes on from the last checkpoint. Probes of one teacher and repeat share the
    fine-tuned teacher, which lies in the workspace too.

    Args:
        recipe: The whole one; the candidate and the repeat change it.
        candidate: Who teaches whom.
        sample: Of the repeat.
        workspace: A folder of this repeat's own.
        meter: Is told how much of the candidate's work is done.

    Raises:
        StillhouseError: Whatever the stages of a workflow would raise.
    """
    own = candidate.recipe_of(recipe, sample.repeat)
    work = candidate.work(own, len(sample.rows), len(sample.items))
    home = workspace / candidate.teacher
    with meter.part(candidate.name("the teacher learns"), work["teacher"]) as on_progress:
        teacher, tokenizer = _teacher(own, candidate, sample.rows, home, on_progress)
    folder = home / f"student-{candidate.student_layers}"
    start, student_tokenizer = start_student(own, teacher, tokenizer, sample.rows, folder)
    teacher = answering_teacher(own, teacher, home / "model")
    with meter.part(candidate.name("the teacher answers"), work["answers"]) as on_progress:
        cache = _answers(own, teacher, tokenizer, sample, home, on_progress)
    with meter.part(candidate.name("measuring the teacher"), work["measuring-teacher"]):
        # By the recipe's own seed, which hides the same tokens of a masked language model in every repeat.
        records = [_guess(recipe, teacher, tokenizer, sample), _judge(recipe, "teacher", teacher, tokenizer, sample)]
    size = _parameters(start.model)
    arms: tuple[Literal["sft", "kd"], ...] = ("sft", "kd")
    for arm in arms:
        with meter.part(candidate.name(f"the student learns, {arm}"), work["arm"]) as on_progress:
            outcome = train_arm(
                own,
                arm,
                student=start.model if arm == arms[-1] else copy.deepcopy(start.model),
                tokenizer=student_tokenizer,
                rows=sample.rows,
                teacher=teacher if arm == "kd" else None,
                teacher_tokenizer=tokenizer,
                cache=cache if arm == "kd" else None,
                workspace=folder / arm,
                on_progress=on_progress,
            )
        with meter.part(candidate.name(f"measuring {arm}"), work["measuring-arm"]):
            records.append(_judge(recipe, arm, outcome.model, student_tokenizer, sample))
    shutil.rmtree(folder, ignore_errors=True)
    return Measured(
        records=pa.concat_tables(records),
        teacher_parameters=_parameters(teacher),
        student_parameters=size,
        student_layers=model_shape(outcome.model).layers,
    )


def _judge(recipe: Recipe, name: ProbeModel, model: PreTrainedModel, tokenizer: Tokenizer, sample: Sample) -> pa.Table:
    """Return the records of a model on the validation items."""
    most = recipe.training.max_tokens
    batch_size = recipe.evaluation.batch_size
    if recipe.task == "text-classification":
        texts = list(sample.items["text"])
        predictions = predict(model, tokenizer, texts, batch_size=batch_size, max_tokens=most)
        return score(name, SUITE, sample.items, predictions, seed=recipe.evaluation.seed)
    documents = recipe_documents(recipe, tokenizer, sample.items)
    found = likelihoods(model, tokenizer, documents, batch_size=batch_size, max_tokens=most)
    return score_language(name, SUITE, sample.items, documents, found, seed=recipe.evaluation.seed)


def _guess(recipe: Recipe, teacher: PreTrainedModel, tokenizer: Tokenizer, sample: Sample) -> pa.Table:
    """Return the records of knowing how frequent labels or tokens are among the training rows, each seen once more."""
    items = sample.items
    if recipe.task == "text-classification":
        counts_C = np.bincount(np.asarray(sample.rows["label"]), minlength=len(recipe.data.labels)) + 1
        logits_NC = np.tile(np.log(counts_C / counts_C.sum()), (len(items), 1)).astype(np.float32)
        nothing_N = np.zeros(len(items), dtype=np.bool_)
        predictions = Predictions(logits_NC=logits_NC, truncated_N=nothing_N, token_ids=[], hidden=None)
        return score("guess", SUITE, items, predictions, seed=recipe.evaluation.seed)
    learned = np.concatenate([_targets(document) for document in recipe_documents(recipe, tokenizer, sample.rows)])
    counts_V = np.bincount(learned, minlength=vocabulary_size(teacher, tokenizer)) + 1
    losses_V = -np.log(counts_V / counts_V.sum())
    documents = recipe_documents(recipe, tokenizer, items)
    found = Likelihoods(
        targets_N=np.asarray([len(_targets(document)) for document in documents], dtype=np.int64),
        hits_N=np.zeros(len(documents), dtype=np.int64),
        losses_N=np.asarray([losses_V[_targets(document)].sum() for document in documents]),
        bytes_N=None,
        truncated_N=np.zeros(len(documents), dtype=np.bool_),
    )
    return score_language("guess", SUITE, items, documents, found, seed=recipe.evaluation.seed)


def _targets(document: Document) -> npt.NDArray[np.int32]:
    return document.labels_L[document.targets_P]


def _answers(
    recipe: Recipe,
    teacher: PreTrainedModel,
    tokenizer: Tokenizer,
    sample: Sample,
    home: Path,
    on_progress: Callable[[Progress], None],
) -> OpenedCache:
    """Let the teacher score the repeat's rows."""
    teacher_sha256, folder = describe_tree(home / "model").sha256, home / "cache"
    write_shard(
        recipe,
        teacher,
        tokenizer,
        sample.rows,
        folder,
        teacher_sha256=teacher_sha256,
        data_sha256=sample.rows_sha256,
        on_progress=on_progress,
    )
    return open_cache(
        recipe,
        [folder],
        teacher,
        tokenizer,
        sample.rows,
        teacher_sha256=teacher_sha256,
        data_sha256=sample.rows_sha256,
    )


def _teacher(
    recipe: Recipe, candidate: Candidate, rows: Dataset, workspace: Path, on_progress: Callable[[Progress], None]
) -> tuple[PreTrainedModel, Tokenizer]:
    """Return the repeat's teacher, fine-tuned on its rows if the recipe asks, from the workspace if it is there."""
    folder = workspace / "model"
    if not folder.exists():
        source = PathSource(path=str(candidate.source_folder(recipe, workspace)))
        changed = recipe.model_copy(update={"teacher": recipe.teacher.model_copy(update={"source": source})})
        unfinished = workspace / "unfinished"
        prepare_teacher(changed, rows, unfinished, workspace, on_progress=on_progress)
        unfinished.rename(folder)
    return load_model(folder, task=recipe.task, labels=recipe.data.labels), load_tokenizer(folder)


def _parameters(model: PreTrainedModel) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
