"""One probe: a teacher, a student without it and one with it, all measured on validation items."""

import copy
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from datasets import Dataset
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from stillhouse.contract import ProbeModel, Progress
from stillhouse.evaluation import score
from stillhouse.evaluation.language import score_language
from stillhouse.models import (
    Likelihoods,
    Predictions,
    documents_of,
    likelihoods,
    load_model,
    load_tokenizer,
    model_shape,
    predict,
    vocabulary_size,
)
from stillhouse.recipe import PathSource, Recipe
from stillhouse.store import describe_tree
from stillhouse.training.distill import prepare_teacher, start_student, train_arm
from stillhouse.training.knowledge import open_cache, recipe_documents, write_shard
from stillhouse.training.preflight.candidates import Candidate
from stillhouse.training.preflight.meter import Meter

SUITE = "validation"

Model = tuple[PreTrainedModel, Tokenizer]


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
    with meter.part(candidate.name("the teacher learns"), work["teacher"]) as on_progress:
        teacher, tokenizer = _teacher(own, candidate, sample.rows, workspace / candidate.teacher, on_progress)
    folder = workspace / f"{candidate.teacher}-{candidate.student_layers}"
    start, student_tokenizer = start_student(own, teacher, tokenizer, sample.rows, folder)
    arms: dict[ProbeModel, Model] = {}
    teacher_sha256 = describe_tree(workspace / candidate.teacher / "model").sha256
    with meter.part(candidate.name("the teacher answers"), work["answers"]) as on_progress:
        write_shard(
            own,
            teacher,
            tokenizer,
            sample.rows,
            folder / "cache",
            teacher_sha256=teacher_sha256,
            data_sha256=sample.rows_sha256,
            on_progress=on_progress,
        )
    cache = open_cache(
        own,
        [folder / "cache"],
        teacher,
        tokenizer,
        sample.rows,
        teacher_sha256=teacher_sha256,
        data_sha256=sample.rows_sha256,
    )
    for arm in ("sft", "kd"):
        with meter.part(candidate.name(f"the student learns, {arm}"), work["arm"]) as on_progress:
            outcome = train_arm(
                own,
                arm,
                student=copy.deepcopy(start.model),
                tokenizer=student_tokenizer,
                rows=sample.rows,
                teacher=teacher if arm == "kd" else None,
                teacher_tokenizer=tokenizer,
                cache=cache if arm == "kd" else None,
                workspace=folder / arm,
                on_progress=on_progress,
            )
        arms[arm] = (outcome.model, student_tokenizer)
    with meter.part(candidate.name("measuring"), work["measuring"]):
        records = measure(own, {"teacher": (teacher, tokenizer), **arms}, sample)
    shutil.rmtree(folder, ignore_errors=True)
    return Measured(
        records=records,
        teacher_parameters=_parameters(teacher),
        student_parameters=_parameters(arms["kd"][0]),
        student_layers=model_shape(arms["kd"][0]).layers,
    )


def measure(recipe: Recipe, models: dict[ProbeModel, Model], sample: Sample) -> pa.Table:
    """Return the records of every model, and of guessing, on the validation items."""
    judge = _classified if recipe.task == "text-classification" else _modelled
    return pa.concat_tables(judge(recipe, models, sample))


def _classified(recipe: Recipe, models: dict[ProbeModel, Model], sample: Sample) -> list[pa.Table]:
    items = sample.items
    records = [
        score(
            name,
            SUITE,
            items,
            predict(
                model,
                tokenizer,
                list(items["text"]),
                batch_size=recipe.evaluation.batch_size,
                max_tokens=recipe.training.max_tokens,
            ),
        )
        for name, (model, tokenizer) in models.items()
    ]
    counts_C = np.bincount(np.asarray(sample.rows["label"]), minlength=len(recipe.data.labels)) + 1
    guess = Predictions(
        logits_NC=np.tile(np.log(counts_C / counts_C.sum()), (len(items), 1)).astype(np.float32),
        truncated_N=np.zeros(len(items), dtype=np.bool_),
        token_ids=[],
        hidden=None,
    )
    return [score("guess", SUITE, items, guess), *records]


def _modelled(recipe: Recipe, models: dict[ProbeModel, Model], sample: Sample) -> list[pa.Table]:
    """All models have one tokenizer, so that they have the same documents."""
    teacher, tokenizer = models["teacher"]
    training = recipe.training
    documents = documents_of(
        recipe.task,
        tokenizer,
        sample.items,
        max_tokens=training.max_tokens,
        mask_share=training.mask_share,
        seed=training.seed,
    )
    answers: dict[ProbeModel, Likelihoods] = {
        name: likelihoods(
            model,
            tokenizer,
            documents,
            batch_size=recipe.evaluation.batch_size,
            max_tokens=training.max_tokens,
        )
        for name, (model, _) in models.items()
    }
    targets = [document.labels_L[document.targets_P] for document in recipe_documents(recipe, tokenizer, sample.rows)]
    counts_V = np.bincount(np.concatenate(targets), minlength=vocabulary_size(teacher, tokenizer)) + 1
    losses_V = -np.log(counts_V / counts_V.sum())
    guess = Likelihoods(
        targets_N=answers["teacher"].targets_N,
        hits_N=np.zeros(len(documents), dtype=np.int64),
        losses_N=np.asarray([losses_V[document.labels_L[document.targets_P]].sum() for document in documents]),
        bytes_N=None,
        truncated_N=answers["teacher"].truncated_N,
    )
    return [
        score_language(name, SUITE, sample.items, documents, found)
        for name, found in {"guess": guess, **answers}.items()
    ]


def _teacher(
    recipe: Recipe, candidate: Candidate, rows: Dataset, workspace: Path, on_progress: Callable[[Progress], None]
) -> Model:
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
