"""A recipe's training: its parts, as the stages run them, and the whole of it from Python."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from datasets import Dataset
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from stillhouse.contract import ConfigurationError, HistoryPoint, Progress, StageBug, sha256_of_file
from stillhouse.data import freeze, load_frozen, load_tables, reject_if_critical
from stillhouse.losses import Arm, build_loss
from stillhouse.models import (
    check_model_folder,
    encode,
    load_model,
    load_tokenizer,
    model_shape,
    obtain_model_folder,
    save_model,
)
from stillhouse.recipe import Recipe
from stillhouse.store import describe_tree, fetch_source
from stillhouse.student import Start, add_lora, check_same_tokenizer, initialise, merge_lora, trim_vocabulary
from stillhouse.student.influence import SAMPLE_DOCUMENTS
from stillhouse.training.engine import TrainingJob, TrainingOutcome, fit
from stillhouse.training.knowledge import OpenedCache, open_cache, write_shard

logger = logging.getLogger(__name__)


def prepare_teacher(
    recipe: Recipe,
    rows: Dataset,
    target: Path,
    workspace: Path,
    *,
    on_progress: Callable[[Progress], None] | None = None,
    on_point: Callable[[HistoryPoint], None] | None = None,
) -> tuple[PreTrainedModel, TrainingOutcome | None]:
    """Fetch the teacher, fine-tune it if the recipe asks, and write it to ``target``.

    One that is fine-tuned may come without the head of the recipe's task, and learns it then.

    Raises:
        ConfigurationError: The source is no safetensors model, or a classifier with other labels; or the fine-tuning
            asks for measurements on held-out data, of which a teacher is given none.
        DataRejected: The loss became NaN or infinite.
    """
    if recipe.teacher.finetune and recipe.teacher.finetune.validation_points:
        raise ConfigurationError("teacher.finetune.validation_points: only students are measured; set it to 0")
    folder = obtain_model_folder(fetch_source(recipe.teacher.weights), workspace)
    check_model_folder(folder)
    learns = recipe.teacher.finetune is not None
    model = load_model(folder, task=recipe.task, labels=recipe.data.labels, new_head=learns)
    tokenizer = load_tokenizer(folder)
    trained = None
    if recipe.teacher.finetune:
        trained = fit(
            TrainingJob(
                model=model,
                tokenizer=tokenizer,
                rows=rows,
                task=recipe.task,
                config=recipe.teacher.finetune,
                loss=build_loss(recipe.distillation, "sft"),
                workspace=workspace,
                on_progress=on_progress,
                on_point=on_point,
            )
        )
    save_model(model, tokenizer, target)
    return model, trained


def start_student(
    recipe: Recipe, teacher: PreTrainedModel | None, tokenizer: Tokenizer | None, rows: Dataset, workspace: Path
) -> tuple[Start, Tokenizer]:
    """Build the student that every arm starts from, and its tokenizer: the teacher's, or a trimmed one.

    A checkpoint of another task that the recipe's models can be made from, such as a masked language model where texts
    are to be classified, keeps its body and gets a new head.

    Args:
        recipe: What the student shall be.
        teacher: Of the recipe's task; None where it is a server, and the student starts from its own checkpoint.
        tokenizer: The teacher's; None without one.
        rows: The frozen training set.
        workspace: A model that must be converted to be read goes there.

    Raises:
        ConfigurationError: The layers don't fit, the architecture is refused, or the checkpoint of its own has another
            tokenizer or task.
    """
    source = None
    if recipe.student.source is not None:
        folder = obtain_model_folder(fetch_source(recipe.student.source), workspace)
        source = load_model(folder, task=recipe.task, labels=recipe.data.labels)
        own = load_tokenizer(folder)
        if tokenizer is not None:
            check_same_tokenizer(own, tokenizer)
        tokenizer = tokenizer or own
    if tokenizer is None:
        raise StageBug("a student without a teacher needs a checkpoint of its own")
    sample = rows.select(range(min(SAMPLE_DOCUMENTS, len(rows))))
    ids = encode(tokenizer, list(sample["text"]), recipe.training.max_tokens).ids
    start = initialise(recipe.student, teacher=teacher, source=source, sample=ids)
    size = recipe.student.vocabulary
    if size is None:
        return start, tokenizer
    all_ids = encode(tokenizer, list(rows["text"]), recipe.training.max_tokens).ids
    model, trimmed = trim_vocabulary(start.model, tokenizer, all_ids, size)
    return replace(start, model=model, summary=f"{start.summary}; {size} of {len(tokenizer)} tokens kept"), trimmed


def answering_teacher(recipe: Recipe, teacher: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """Return the teacher in the precision in which it answers: the one at hand, or its folder read anew.

    Raises:
        ConfigurationError: The folder can't be read.
    """
    precision = recipe.teacher.precision
    if precision == "float32":
        return teacher
    return load_model(folder, task=recipe.task, labels=recipe.data.labels, precision=precision)


def train_arm(
    recipe: Recipe,
    arm: Arm,
    *,
    student: PreTrainedModel,
    tokenizer: Tokenizer,
    rows: Dataset,
    teacher: PreTrainedModel | None,
    teacher_tokenizer: Tokenizer | None,
    cache: OpenedCache | None,
    validation: Dataset | None = None,
    workspace: Path,
    on_progress: Callable[[Progress], None] | None = None,
    on_point: Callable[[HistoryPoint], None] | None = None,
) -> TrainingOutcome:
    """Train the student of one arm: the same start, order and steps for every arm that learns from the same rows.

    Args:
        recipe: What to learn, and how.
        arm: ``kd`` needs the teacher, and its cache where the recipe has one, unless it learns from words alone.
        student: Where the arm starts; changed in place.
        tokenizer: The student's.
        rows: The frozen training set.
        teacher: Of the recipe's task.
        teacher_tokenizer: By whose tokens the cache finds a row.
        cache: See `stillhouse.training.knowledge.open_cache`.
        validation: The frozen validation set, on which the loss is measured if the recipe asks.
        workspace: A folder of the arm's own.
        on_progress: Told about once a second.
        on_point: Told each new point of the history.

    Raises:
        DataRejected: The loss became NaN or infinite or exploded.
        ConfigurationError: The teacher's signal can't be compared with the student's.
    """
    shapes = {"student": model_shape(student), "teacher": model_shape(teacher)} if teacher else {}
    lora = recipe.student.lora
    beside = teacher if cache is None or recipe.distillation.needs_teacher_beside else None
    if teacher and not beside:
        teacher.cpu()  # What it took of an accelerator is the student's now.
    outcome = fit(
        TrainingJob(
            model=add_lora(student, lora, seed=recipe.student.seed) if lora else student,
            tokenizer=tokenizer,
            rows=rows,
            task=recipe.task,
            config=recipe.training,
            loss=build_loss(recipe.distillation, arm, **shapes),
            validation=validation,
            cache=cache.scores if cache else None,
            cache_tokenizer=teacher_tokenizer,
            teacher=beside if arm == "kd" else None,
            workspace=workspace,
            on_progress=on_progress,
            on_point=on_point,
        )
    )
    if cache:
        history = outcome.history.model_copy(update={"canary_rows": cache.canary_rows})
        outcome = replace(outcome, history=history)
    return replace(outcome, model=merge_lora(outcome.model)) if lora else outcome


def distill(
    recipe: Recipe,
    workspace: Path,
    *,
    arm: Arm = "kd",
    on_progress: Callable[[Progress], None] | None = None,
) -> TrainingOutcome:
    """Make a student, in one process, without Airflow, MLflow or an object store.

    Reads and checks the data, prepares the teacher, lets it score the training set, builds the student and trains it.
    ``teacher`` and ``student`` in the workspace hold the two models as safetensors folders. Interrupted and called
    again with the same workspace, it trains on from the last checkpoint.

    Args:
        recipe: See `stillhouse.recipe.load_recipe`. Its sections from ``evaluation`` on are not used.
        workspace: A folder of this recipe's own; created if need be.
        arm: ``kd``, or ``sft`` for the control arm.
        on_progress: Told about once a second.

    Raises:
        ConfigurationError: The recipe has a section ``synthesis``.
        StillhouseError: Whatever the stages of a workflow would raise.
    """
    if recipe.synthesis is not None:
        raise ConfigurationError("a recipe with a synthesis has more stages than this function; use: stillhouse run")
    from stillhouse.data.suites import validate  # Great Expectations takes seconds to import

    tables = load_tables(recipe.data, fetch_source)
    reject_if_critical(validate(tables, recipe.data))
    workspace.mkdir(parents=True, exist_ok=True)
    for name in ("train", "validation"):
        freeze(tables[name], workspace / f"{name}.parquet")
    rows = load_frozen(workspace / "train.parquet")
    teacher, _ = prepare_teacher(
        recipe, rows, workspace / "teacher", workspace / "teacher-training", on_progress=on_progress
    )
    teacher_tokenizer = load_tokenizer(workspace / "teacher")
    start, tokenizer = start_student(recipe, teacher, teacher_tokenizer, rows, workspace)
    teacher = answering_teacher(recipe, teacher, workspace / "teacher")
    cache = _cache(recipe, teacher, teacher_tokenizer, rows, workspace, on_progress) if arm == "kd" else None
    outcome = train_arm(
        recipe,
        arm,
        student=start.model,
        tokenizer=tokenizer,
        rows=rows,
        teacher=teacher if arm == "kd" else None,
        teacher_tokenizer=teacher_tokenizer,
        cache=cache,
        validation=load_frozen(workspace / "validation.parquet"),
        workspace=workspace / f"training-{arm}",
        on_progress=on_progress,
    )
    save_model(outcome.model, tokenizer, workspace / "student")
    return outcome


def _cache(
    recipe: Recipe,
    teacher: PreTrainedModel,
    tokenizer: Tokenizer,
    rows: Dataset,
    workspace: Path,
    on_progress: Callable[[Progress], None] | None,
) -> OpenedCache:
    teacher_sha256 = describe_tree(workspace / "teacher").sha256
    data_sha256 = sha256_of_file(workspace / "train.parquet")
    write_shard(
        recipe,
        teacher,
        tokenizer,
        rows,
        workspace / "cache",
        teacher_sha256=teacher_sha256,
        data_sha256=data_sha256,
        on_progress=on_progress,
    )
    return open_cache(
        recipe,
        [workspace / "cache"],
        teacher,
        tokenizer,
        rows,
        teacher_sha256=teacher_sha256,
        data_sha256=data_sha256,
    )
