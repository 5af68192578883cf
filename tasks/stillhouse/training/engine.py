"""The training engine: one function that fine-tunes teachers and trains students."""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from datasets import Dataset
from transformers import PreTrainedModel, TrainingArguments, set_seed
from transformers import PreTrainedTokenizerBase as Tokenizer

from stillhouse.contract import HistoryPoint, Progress, TrainingHistory, canonical_json
from stillhouse.losses import DistillationLoss
from stillhouse.models import check_max_tokens
from stillhouse.recipe import TrainingConfig
from stillhouse.teacher import TeacherCache
from stillhouse.training.batches import StepLoader
from stillhouse.training.callbacks import Report, Resume
from stillhouse.training.checkpoints import CheckpointFolder
from stillhouse.training.history import HistoryRecorder
from stillhouse.training.state import model_tensors
from stillhouse.training.trainer import DistillationTrainer

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """What to train, on what, how."""

    model: PreTrainedModel
    """Where training starts; changed in place."""
    tokenizer: Tokenizer
    rows: Dataset
    """Columns ``id``, ``text`` and ``label``."""
    config: TrainingConfig
    loss: DistillationLoss
    teacher: TeacherCache | None = None
    """Needed where the loss needs the teacher's signal."""
    workspace: Path
    """Checkpoints live in ``checkpoints`` below it. The same job with the same workspace goes on where it was."""
    on_progress: Callable[[Progress], None] | None = None
    """Told about once a second."""
    on_point: Callable[[HistoryPoint], None] | None = None
    """Told each new point of the history; a resumed training doesn't repeat those from before."""


@dataclass(frozen=True, kw_only=True)
class TrainingOutcome:
    """What came out."""

    model: PreTrainedModel
    """The job's model, trained and in evaluation mode."""
    history: TrainingHistory
    samples_per_second: float
    """Of this process, without loading; 0 if nothing was left to do."""
    resumed_from: int | None
    """Step of the checkpoint that this process started from."""


def fit(job: TrainingJob) -> TrainingOutcome:
    """Train, going on from the newest checkpoint in the workspace if there is one.

    A training that was killed at any step and run again ends with the same weights, bit for bit, and the same history
    as one that never stopped, given as many threads (see `stillhouse.models.configure_torch`).

    Raises:
        DataRejected: The loss became NaN or infinite, a label is out of range, or the teacher's cache lacks a row.
        ConfigurationError: The model has too few positions, or hidden states differ in width.
        TryAgain: A checkpoint can't be written.
    """
    config = job.config
    check_max_tokens(job.model, config.max_tokens)
    loader = StepLoader(job.rows, job.tokenizer, config, job.loss, job.teacher, job.model.config.num_labels)
    recorder = HistoryRecorder(len(loader))
    folder = CheckpointFolder(job.workspace / "checkpoints", fingerprint=_fingerprint(job, loader))
    checkpoint = folder.newest()
    report = Report(loader=loader, recorder=recorder, on_point=job.on_point, on_progress=job.on_progress)
    resume = Resume(
        folder=folder, checkpoint=checkpoint, seconds=config.checkpoint_seconds, loader=loader, recorder=recorder
    )
    trainer = DistillationTrainer(
        job.model,
        _arguments(config, len(loader), job.workspace),
        loader=loader,
        loss=job.loss,
        recorder=recorder,
        callbacks=[report, resume],
    )
    logger.info("training for %d steps, from step %d", len(loader), checkpoint.step if checkpoint else 0)
    set_seed(config.seed)
    trainer.train()
    return TrainingOutcome(
        model=job.model.eval(),
        history=recorder.history(),
        samples_per_second=report.rate,
        resumed_from=checkpoint.step if checkpoint else None,
    )


def _arguments(config: TrainingConfig, total_steps: int, workspace: Path) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(workspace),
        max_steps=total_steps,
        per_device_train_batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        warmup_steps=math.ceil(config.warmup_share * total_steps),
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_gradient_norm,
        seed=config.seed,
        optim="adamw_torch_fused",
        lr_scheduler_type="linear",
        logging_strategy="no",
        logging_nan_inf_filter=False,
        save_strategy="no",
        eval_strategy="no",
        report_to="none",
        disable_tqdm=True,
        log_level="error",
    )


def _fingerprint(job: TrainingJob, loader: StepLoader) -> str:
    """Digest what decides the training's outcome, so that a checkpoint of anything else isn't continued."""
    digest = sha256()
    described = {
        "config": job.config.model_dump(mode="json", exclude={"checkpoint_seconds"}),
        "loss": [job.loss.logit.weights, job.loss.logit.temperature, job.loss.hidden and job.loss.hidden.weight],
        "teacher": job.teacher.identity.model_dump(mode="json") if job.loss.needs_teacher and job.teacher else None,
        "documents": list(job.rows["id"]),
        "labels": list(job.rows["label"]),
        "plan": loader.plan,
    }
    digest.update(canonical_json(described))
    for name, tensor in sorted(model_tensors(job.model).items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()
