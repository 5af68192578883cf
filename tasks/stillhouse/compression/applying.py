"""One step of the chain: cut, learn again, write."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from datasets import Dataset
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from stillhouse.compression.base import Calibration, Operation, Subject
from stillhouse.compression.depth import DepthPruning
from stillhouse.compression.export import Export
from stillhouse.compression.low_rank import Factorisation
from stillhouse.compression.quantize import Quantization
from stillhouse.compression.sparsity import Sparsification
from stillhouse.compression.vocabulary import VocabularyTrimming
from stillhouse.compression.width import WidthPruning
from stillhouse.contract import HistoryPoint, Progress, TrainingHistory
from stillhouse.models import encode, load_model, load_tokenizer
from stillhouse.recipe import (
    CompressionStep,
    DepthStep,
    ExportStep,
    HealConfig,
    HealedStep,
    LowRankStep,
    QuantizeStep,
    Recipe,
    SparsityStep,
    VocabularyStep,
    WidthStep,
)
from stillhouse.training import OpenedCache, TrainingOutcome, train_arm


@dataclass(frozen=True, kw_only=True)
class Lessons:
    """What a model learns from after a cut."""

    rows: Dataset
    """The frozen training set."""
    teacher: PreTrainedModel | None = None
    teacher_tokenizer: Tokenizer | None = None
    cache: OpenedCache | None = None
    """The teacher's scores of the rows."""


@dataclass(frozen=True, kw_only=True)
class Applied:
    """What a step did."""

    did: str
    """One line for people."""
    rounds: int
    history: TrainingHistory | None
    """Of the healing, all rounds in one; None without."""


def operation_of(step: CompressionStep) -> Operation:
    """Return what carries out a step."""
    match step:
        case DepthStep():
            return DepthPruning(step)
        case WidthStep():
            return WidthPruning(step)
        case VocabularyStep():
            return VocabularyTrimming(step)
        case SparsityStep():
            return Sparsification(step)
        case LowRankStep():
            return Factorisation(step)
        case QuantizeStep():
            return Quantization(step)
        case ExportStep():
            return Export(step)


def apply_step(
    recipe: Recipe,
    step: CompressionStep,
    folder: Path,
    target: Path,
    *,
    lessons: Lessons,
    workspace: Path,
    on_progress: Callable[[Progress], None] | None = None,
    on_point: Callable[[HistoryPoint], None] | None = None,
) -> Applied:
    """Make a smaller model of the one in ``folder``, and write it to ``target``.

    Interrupted and called again with the same workspace, its trainings go on from their last checkpoints.

    Args:
        recipe: Whose distillation the healing repeats.
        step: What to do.
        folder: Of the model to begin with, in a form that the step can begin with.
        target: A new folder.
        lessons: The training set, and the teacher's signal where the step heals by it.
        workspace: A folder of this step's own.
        on_progress: Told about once a second while the model learns.
        on_point: Told each new point of the history.

    Raises:
        ConfigurationError: The step's goal can't be met, or the architecture has no support.
        DataRejected: The loss became NaN or infinite or exploded.
    """
    operation = operation_of(step)
    heal = step.heal if isinstance(step, HealedStep) else None
    subject = Subject(
        model=load_model(folder, task=recipe.task, labels=recipe.data.labels),
        tokenizer=load_tokenizer(folder),
        task=recipe.task,
        labels=recipe.data.labels,
    )
    rounds = operation.rounds(subject)
    ids = encode(subject.tokenizer, list(lessons.rows["text"]), recipe.training.max_tokens).ids
    told: list[str] = []
    histories: list[TrainingHistory] = []
    for turn in range(1, rounds + 1):
        cut = operation.cut(subject, Calibration(ids=ids), turn=turn, rounds=rounds)
        subject = cut.subject
        told.append(cut.did)
        if heal:
            done = sum(history.total_steps for history in histories)
            outcome = _heal(
                recipe,
                heal,
                subject,
                lessons,
                workspace=workspace / f"round-{turn}",
                on_progress=on_progress,
                on_point=_shifted(on_point, done) if on_point else None,
            )
            subject = replace(subject, model=outcome.model)
            histories.append(outcome.history)
    operation.write(subject, target)
    return Applied(did="; then ".join(told), rounds=rounds, history=_joined(histories) if histories else None)


def _heal(
    recipe: Recipe,
    heal: HealConfig,
    subject: Subject,
    lessons: Lessons,
    *,
    workspace: Path,
    on_progress: Callable[[Progress], None] | None,
    on_point: Callable[[HistoryPoint], None] | None,
) -> TrainingOutcome:
    changes = {
        "training": heal.applied_to(recipe.training),
        "student": recipe.student.model_copy(update={"lora": heal.lora}),
    }
    return train_arm(
        recipe.model_copy(update=changes),
        heal.signal,
        student=subject.model,
        tokenizer=subject.tokenizer,
        rows=lessons.rows,
        teacher=lessons.teacher,
        teacher_tokenizer=lessons.teacher_tokenizer,
        cache=lessons.cache,
        workspace=workspace,
        on_progress=on_progress,
        on_point=on_point,
    )


def _shifted(on_point: Callable[[HistoryPoint], None], steps: int) -> Callable[[HistoryPoint], None]:
    """Return what tells a point of a later round, whose steps count on from those before."""
    return lambda point: on_point(_later(point, steps))


def _later(point: HistoryPoint, steps: int) -> HistoryPoint:
    return point.model_copy(update={"step": point.step + steps})


def _joined(histories: list[TrainingHistory]) -> TrainingHistory:
    points: list[HistoryPoint] = []
    done = 0
    for history in histories:
        points += [_later(point, done) for point in history.points]
        done += history.total_steps
    return histories[0].model_copy(update={"total_steps": done, "points": tuple(points)})
