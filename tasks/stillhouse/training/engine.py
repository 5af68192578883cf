"""The training engine: one function that fine-tunes teachers and trains students."""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

import torch
from datasets import Dataset
from transformers import PreTrainedModel, TrainingArguments, set_seed
from transformers import PreTrainedTokenizerBase as Tokenizer

from stillhouse.contract import (
    ConfigurationError,
    DataRejected,
    HistoryPoint,
    Progress,
    StageBug,
    TrainingHistory,
    canonical_json,
)
from stillhouse.losses import Balancer, DistillationLoss
from stillhouse.models import TapRequest, check_head, check_max_tokens, documents_of, vocabulary_size
from stillhouse.recipe import Task, TrainingConfig
from stillhouse.teacher import SparseCache, TeacherCache
from stillhouse.training import parallel
from stillhouse.training.batches import StepLoader
from stillhouse.training.callbacks import Report, Resume
from stillhouse.training.checkpoints import CheckpointFolder
from stillhouse.training.guards import LossGuard
from stillhouse.training.held_out import HeldOut
from stillhouse.training.history import MEASUREMENTS, HistoryRecorder
from stillhouse.training.module import DistillationModel, LiveTeacher
from stillhouse.training.samples import ClassifierSamples, LanguageSamples, Samples, row_weights
from stillhouse.training.state import model_tensors
from stillhouse.training.trainer import DistillationTrainer
from stillhouse.training.writing import Writer

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """What to train, on what, how."""

    model: PreTrainedModel
    """Where training starts; changed in place."""
    tokenizer: Tokenizer
    rows: Dataset
    """Columns ``id`` and ``text``, and ``label`` for a classifier; maybe ``prompt`` and ``weight`` for a language
    model."""
    validation: Dataset | None = None
    """With the same columns but the weight: measured as often as the configuration says. None: never."""
    task: Task = "text-classification"
    config: TrainingConfig
    loss: DistillationLoss
    cache: TeacherCache | SparseCache | None = None
    """The teacher's answers to the rows."""
    cache_tokenizer: Tokenizer | None = None
    """By whose tokens the cache finds a text; by default the student's, which is the teacher's unless trimmed."""
    teacher: PreTrainedModel | None = None
    """Runs beside the student: needed where the loss compares what a cache can't hold, and without a cache."""
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
    """The job's model, trained and in evaluation mode; of a sharded one, a whole copy in the first process."""
    history: TrainingHistory
    samples_per_second: float
    """Documents, without loading; 0 if nothing was left to do."""
    tokens_per_second: float
    resumed_from: int | None
    """Step of the checkpoint that this process started from."""


def fit(job: TrainingJob) -> TrainingOutcome:
    """Train, going on from the newest checkpoint in the workspace if there is one.

    A training that was killed at any step and run again ends with the same weights, bit for bit, and the same history
    as one that never stopped, given as many threads (see `stillhouse.models.configure_torch`) and processes. Several
    processes, started by ``torchrun``, train together; each must call this, with the same job.

    Raises:
        DataRejected: The loss became NaN or infinite or exploded, a label is out of range, or the teacher's cache
            lacks a row.
        ConfigurationError: The model has too few positions, student and teacher can't be compared, or rows have
            weights for which the loss has no place.
        TryAgain: A checkpoint can't be written.
    """
    config = job.config
    check_max_tokens(job.model, config.max_tokens)
    _check_signals(job)
    samples = _samples(job)
    watches = job.validation is not None and config.validation_points > 0
    held_out = _samples(replace(job, rows=job.validation, cache=None)) if watches else None
    arguments = _arguments(config, job.workspace)
    loader = StepLoader(
        samples,
        config,
        packed=job.task == "causal-lm" and config.packing,
        rank=parallel.rank(),
        num_processes=parallel.num_processes(),
    )
    arguments.max_steps = len(loader)
    arguments.warmup_steps = math.ceil(config.warmup_share * len(loader))
    shard = config.sharding == "shard" and parallel.num_processes() > 1
    # A sharded gradient can't be measured term by term; a control arm of one term needs no comparison.
    measured = not shard and len(job.loss.weights) > 1
    recorder = HistoryRecorder(len(loader), measurements=MEASUREMENTS if measured else 0)
    guard = LossGuard(config.explosion_factor)
    balancer = Balancer(reference="ce") if job.loss.config.balance == "gradient-norm" else None
    module = DistillationModel(
        job.model,
        job.loss,
        precision=_precision(config, arguments.device),
        vocabulary=vocabulary_size(job.model, job.tokenizer),
        last_states=_reads_hidden(job),
    )
    fingerprint = _fingerprint(job, samples, held_out, loader, module)
    folder = CheckpointFolder(job.workspace / "checkpoints", fingerprint=fingerprint)
    checkpoint = folder.newest()
    parallel.wait_for_all()
    report = Report(loader=loader, recorder=recorder, on_point=job.on_point, on_progress=job.on_progress)
    resume = Resume(
        folder=folder,
        checkpoint=checkpoint,
        seconds=config.checkpoint_seconds,
        loader=loader,
        recorder=recorder,
        guard=guard,
        balancer=balancer,
    )
    watch = [HeldOut(held_out, config, loader=loader, recorder=recorder, report=report)] if held_out else []
    trainer = DistillationTrainer(
        module,
        arguments,
        loader=loader,
        recorder=recorder,
        guard=guard,
        balancer=balancer,
        teacher=_live_teacher(job),
        writer=_writer(job),
        shard=shard,
        callbacks=[report, *watch, resume],
    )
    logger.info("training for %d steps, from step %d", len(loader), checkpoint.step if checkpoint else 0)
    set_seed(config.seed + parallel.rank())
    with parallel.lost_peers_explained():
        trainer.train()
    return TrainingOutcome(
        model=parallel.whole_model(job.model).eval(),
        history=recorder.history(),
        samples_per_second=report.samples_per_second,
        tokens_per_second=report.rate,
        resumed_from=checkpoint.step if checkpoint else None,
    )


def _check_signals(job: TrainingJob) -> None:
    loss = job.loss
    on_policy = loss.config.on_policy
    if loss.needs_cache and job.cache is None and job.teacher is None:
        raise StageBug("the loss needs the teacher's answers and the job has neither cache nor teacher")
    if loss.needs_teacher_beside and job.teacher is None:
        raise StageBug("the loss needs the teacher beside the student and the job has none")
    if on_policy and job.config.sharding == "shard":
        raise ConfigurationError("a sharded student can't write; set training.sharding to replicate")
    if loss.config.balance != "off" and job.config.sharding == "shard":
        raise ConfigurationError("gradients of a sharded student can't be balanced; set training.sharding to replicate")
    if job.task != "text-classification":
        check_head(job.model)
        if job.teacher:
            check_head(job.teacher)


def _samples(job: TrainingJob) -> Samples:
    if len(job.rows) == 0:
        raise DataRejected("the training set has no rows; check the data section of the recipe")
    config, cache = job.config, job.cache if job.loss.needs_cache else None
    last = max(job.loss.teacher_taps.hidden) if _reads_hidden(job) else None
    weights = row_weights(job.rows)
    if weights and (job.task == "text-classification" or not job.loss.is_cross_entropy):
        raise ConfigurationError(
            "the rows have weights, which only the cross-entropy of a language model takes; set distillation.alpha to "
            "1 and leave out features"
        )
    if job.task == "text-classification":
        assert cache is None or isinstance(cache, TeacherCache)
        labels = job.model.config.num_labels
        return ClassifierSamples(
            job.rows,
            job.tokenizer,
            config,
            num_labels=labels,
            cache=cache,
            cache_tokenizer=job.cache_tokenizer or job.tokenizer,
            with_hidden=last,
        )
    assert cache is None or isinstance(cache, SparseCache)
    documents = documents_of(
        job.task,
        job.tokenizer,
        job.rows,
        max_tokens=config.max_tokens,
        mask_share=config.mask_share,
        seed=config.seed,
    )
    return LanguageSamples(
        documents,
        job.tokenizer.pad_token_id or 0,
        causal=job.task == "causal-lm",
        cache=cache,
        with_hidden=last,
        weights=weights,
    )


def _reads_hidden(job: TrainingJob) -> bool:
    """Whether the teacher's hidden states come from its cache."""
    return job.loss.needs_cached_hidden and job.cache is not None


def _live_teacher(job: TrainingJob) -> LiveTeacher | None:
    if job.teacher is None:
        return None
    taps = TapRequest() if _reads_hidden(job) else job.loss.teacher_taps
    return LiveTeacher(job.teacher, taps, vocabulary=vocabulary_size(job.model, job.tokenizer))


def _writer(job: TrainingJob) -> Writer | None:
    on_policy = job.loss.config.on_policy
    return Writer(job.model, job.tokenizer, on_policy, seed=job.config.seed) if on_policy else None


def _precision(config: TrainingConfig, device: torch.device) -> torch.dtype:
    wanted = config.precision == "bfloat16"
    automatic = config.precision == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported()
    return torch.bfloat16 if wanted or automatic else torch.float32


def _arguments(config: TrainingConfig, workspace: Path) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(workspace),
        per_device_train_batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_gradient_norm,
        seed=config.seed,
        optim="adamw_torch_fused",
        lr_scheduler_type=config.schedule,
        logging_strategy="no",
        logging_nan_inf_filter=False,
        save_strategy="no",
        eval_strategy="no",
        report_to="none",
        disable_tqdm=True,
        log_level="error",
    )


def _fingerprint(
    job: TrainingJob, samples: Samples, held_out: Samples | None, loader: StepLoader, module: DistillationModel
) -> str:
    """Digest what decides the training's outcome, so that a checkpoint of anything else isn't continued."""
    digest = sha256()
    described = {
        "task": job.task,
        "config": job.config.model_dump(mode="json", exclude={"checkpoint_seconds"}),
        "loss": job.loss.config.model_dump(mode="json", exclude={"control_arm"}),
        "cache": job.cache.identity.model_dump(mode="json") if job.loss.needs_cache and job.cache else None,
        "samples": samples.digest(),
        "held_out": held_out.digest() if held_out else None,
        "plan": loader.plan,
        "processes": parallel.num_processes(),
    }
    digest.update(canonical_json(described))
    for name, tensor in sorted(model_tensors(module).items()):
        digest.update(name.encode())
        # Bytes, since NumPy has no bfloat16.
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
