"""The teacher's cache for a recipe's training: written in shards, opened after a last look."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from stillhouse.contract import Progress
from stillhouse.models import Document, documents_of, predict, vocabulary_size
from stillhouse.recipe import Recipe
from stillhouse.teacher import (
    CacheIdentity,
    CacheManifest,
    SparseCache,
    TeacherCache,
    cache_identity,
    check_canary,
    check_sparse_canary,
    score_documents,
    server_cache_identity,
    shard_batches,
    shard_indices,
    write_cache,
    write_sparse_cache,
)

CANARY_ROWS = 8
"""Classified texts that are scored again."""
CANARY_DOCUMENTS = 4
"""Documents of a language model that are scored again, each with many positions."""


@dataclass(frozen=True, kw_only=True)
class OpenedCache:
    """A teacher's scores that may be learned from."""

    scores: TeacherCache | SparseCache
    canary_rows: int | None
    """Rows that were scored again and agreed; None where the teacher's weights are not at hand."""


def recipe_documents(recipe: Recipe, tokenizer: Tokenizer, rows: Dataset) -> list[Document]:
    """Return the documents of a language model's training set, as teacher and student see them."""
    training = recipe.training
    return documents_of(
        recipe.task,
        tokenizer,
        rows,
        max_tokens=training.max_tokens,
        mask_share=training.mask_share,
        seed=training.seed,
    )


def write_shard(
    recipe: Recipe,
    teacher: PreTrainedModel,
    tokenizer: Tokenizer,
    rows: Dataset,
    target: Path,
    *,
    teacher_sha256: str,
    data_sha256: str,
    shard: int = 0,
    num_shards: int = 1,
    on_progress: Callable[[Progress], None] | None = None,
) -> CacheManifest:
    """Let the teacher score one shard of the training set.

    Args:
        recipe: What the scores are for.
        teacher: Of the recipe's task.
        tokenizer: The teacher's.
        rows: The whole frozen training set.
        target: Folder of the shard.
        teacher_sha256: Digest of the teacher's model folder.
        data_sha256: Digest of the frozen training set.
        shard: From 0.
        num_shards: In all.
        on_progress: Told after each batch.

    Raises:
        DataRejected: The teacher gives NaN or infinite scores.
    """
    identity = _identity(recipe, teacher, tokenizer, teacher_sha256=teacher_sha256, data_sha256=data_sha256)
    if recipe.task == "text-classification":
        rows = rows.select(shard_indices(len(rows), shard, num_shards))
        predictions = predict(
            teacher,
            tokenizer,
            list(rows["text"]),
            batch_size=recipe.teacher.batch_size,
            max_tokens=identity.max_tokens,
            hidden=identity.hidden,
            on_progress=on_progress,
        )
        return write_cache(
            target,
            ids=list(rows["id"]),
            token_ids=predictions.token_ids,
            predictions=predictions,
            identity=identity,
            shard=shard,
            num_shards=num_shards,
        )
    documents = recipe_documents(recipe, tokenizer, rows)
    lengths = [len(document.ids_L) for document in documents]
    scored = score_documents(
        teacher,
        documents,
        shard_batches(lengths, recipe.teacher.batch_size, shard=shard, num_shards=num_shards),
        config=recipe.teacher.cache,
        temperature=recipe.distillation.temperature,
        vocabulary=vocabulary_size(teacher, tokenizer),
        hidden=identity.hidden,
        on_progress=on_progress,
    )
    return write_sparse_cache(target, scored, identity=identity, shard=shard, num_shards=num_shards)


def open_cache(
    recipe: Recipe,
    folders: Sequence[Path],
    teacher: PreTrainedModel,
    tokenizer: Tokenizer,
    rows: Dataset,
    *,
    teacher_sha256: str,
    data_sha256: str,
) -> OpenedCache:
    """Open the teacher's scores, after scoring a few random rows again to see that they still are the teacher's.

    Raises:
        DataRejected: A shard is damaged or belongs to something else, or a row differs; the message names it.
    """
    identity = _identity(recipe, teacher, tokenizer, teacher_sha256=teacher_sha256, data_sha256=data_sha256)
    seed = recipe.training.seed
    if recipe.task == "text-classification":
        dense = TeacherCache.open(folders, identity)
        check_canary(dense, teacher, tokenizer, rows, k=CANARY_ROWS, seed=seed)
        return OpenedCache(scores=dense, canary_rows=min(CANARY_ROWS, len(rows)))
    sparse, documents = SparseCache.open(folders, identity), recipe_documents(recipe, tokenizer, rows)
    check_sparse_canary(sparse, teacher, tokenizer, documents, k=CANARY_DOCUMENTS, seed=seed)
    return OpenedCache(scores=sparse, canary_rows=min(CANARY_DOCUMENTS, len(documents)))


def open_server_cache(
    recipe: Recipe,
    folders: Sequence[Path],
    student: PreTrainedModel,
    tokenizer: Tokenizer,
    rows: Dataset,
    *,
    data_sha256: str,
) -> OpenedCache:
    """Open what a server said about its own answers. Nothing is scored again: its weights are not at hand.

    Args:
        recipe: With a teacher behind an API.
        folders: Of the shards.
        student: Whose vocabulary the records are in.
        tokenizer: The student's.
        rows: The frozen set of the answers.
        data_sha256: Its digest.

    Raises:
        ConfigurationError: See `stillhouse.teacher.server_cache_identity`.
        DataRejected: A shard is damaged or belongs to something else, or lacks a row.
    """
    size = vocabulary_size(student, tokenizer)
    identity = server_cache_identity(recipe, tokenizer, data_sha256=data_sha256, vocabulary_size=size)
    return OpenedCache(scores=SparseCache.open(folders, identity), canary_rows=None)


def _identity(
    recipe: Recipe, teacher: PreTrainedModel, tokenizer: Tokenizer, *, teacher_sha256: str, data_sha256: str
) -> CacheIdentity:
    return cache_identity(
        recipe,
        tokenizer,
        teacher_sha256=teacher_sha256,
        data_sha256=data_sha256,
        vocabulary_size=vocabulary_size(teacher, tokenizer),
    )
