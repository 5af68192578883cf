"""A last look before training: does the teacher still say what the cache claims it said?"""

import logging
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from datasets import Dataset
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from stillhouse.contract import DataRejected
from stillhouse.models import Document, predict, template_sha256, tokenizer_sha256
from stillhouse.recipe import CacheConfig, Precision
from stillhouse.teacher.cache import TeacherCache
from stillhouse.teacher.sampling import Records
from stillhouse.teacher.scoring import score_documents
from stillhouse.teacher.sparse import SparseCache

logger = logging.getLogger(__name__)

FLOAT16_ROUNDING = 2.0**-10
"""Relative; twice the unit roundoff, since the fresh state is rounded too."""
LARGEST_DIFFERENCE: dict[Precision, float] = {"float32": 1e-3, "bfloat16": 0.25}
"""Of a logit or a hidden state. Batches of other sizes, and other devices, add in another order, which changes float32
logits by about 1e-5 and those of bfloat16, which has 16 bits less, by hundredths."""
LARGEST_SHARE: dict[Precision, float] = {"float32": 0.01, "bfloat16": 0.05}
"""Of a document's probability that may have moved (total variation, mean over positions)."""


def check_canary(
    cache: TeacherCache,
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    rows: Dataset,
    *,
    k: int = 8,
    seed: int,
) -> float:
    """Score a few random rows again and compare with the cache.

    A cache of another teacher, another tokenizer, or one whose rows have slipped, stops the run here.

    Args:
        cache: Opened, so its files are whole.
        model: The teacher.
        tokenizer: The teacher's.
        rows: The training set: columns ``id`` and ``text``.
        k: Rows to score.
        seed: Of the choice.

    Returns:
        The largest difference found.

    Raises:
        DataRejected: A row differs; the message names it and the size of the difference.
    """
    if tokenizer_sha256(tokenizer) != cache.identity.tokenizer_sha256:
        raise DataRejected("the teacher's tokenizer is not the one of its cache; score the training set anew")
    chosen = sorted(np.random.default_rng(seed).choice(len(rows), size=min(k, len(rows)), replace=False).tolist())
    sample = rows.select(chosen)
    ids = list(sample["id"])
    fresh = predict(
        model,
        tokenizer,
        list(sample["text"]),
        batch_size=max(len(ids), 1),
        max_tokens=cache.identity.max_tokens,
        hidden=cache.identity.hidden,
    )
    largest, tolerance = 0.0, LARGEST_DIFFERENCE[cache.identity.dtype]
    for index, document_id in enumerate(ids):
        row = cache.find(document_id, fresh.token_ids[index])
        difference = float(np.abs(cache.logits([row])[0].numpy() - fresh.logits_NC[index]).max())
        if fresh.hidden is not None:
            old_TD = cache.hidden([row])[0].numpy().astype(np.float32)
            new_TD = fresh.hidden[index].astype(np.float32)
            excess_TD = np.abs(old_TD - new_TD) - FLOAT16_ROUNDING * np.abs(new_TD)
            difference = max(difference, float(excess_TD.max()))
        if not difference <= tolerance:
            raise DataRejected(
                f"row {document_id} is off by {difference:.3g} between the teacher and its cache "
                f"(at most {tolerance:g}); score the training set anew"
            )
        largest = max(largest, difference)
    logger.info("canary: %d rows agree with the teacher within %.2g", len(ids), largest)
    return largest


def check_sparse_canary(
    cache: SparseCache,
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    documents: Sequence[Document],
    *,
    k: int = 4,
    seed: int,
) -> float:
    """Score a few random documents again, with the same points, and compare the records.

    The same teacher puts nearly every point on the same token again: batches of other sizes add in another order,
    which moves only points that lie on the very border between two.

    Args:
        cache: Opened, so its files are whole.
        model: The teacher.
        tokenizer: The teacher's.
        documents: The training set.
        k: Documents to score.
        seed: Of the choice.

    Returns:
        The largest share found.

    Raises:
        DataRejected: A document differs, or the tokenizer does; the message names it.
    """
    identity = cache.identity
    for name, digest in (("tokenizer", tokenizer_sha256(tokenizer)), ("template", template_sha256(tokenizer))):
        if digest != getattr(identity, f"{name}_sha256"):
            raise DataRejected(f"the teacher's {name} is not the one of its cache; score the training set anew")
    chosen = np.random.default_rng(seed).choice(len(documents), size=min(k, len(documents)), replace=False).tolist()
    fresh = score_documents(
        model,
        documents,
        [[index] for index in chosen],
        config=CacheConfig(method=identity.method, samples=identity.samples, seed=identity.sampling_seed),
        temperature=identity.temperature or 1.0,
        vocabulary=identity.vocabulary_size or 0,
    )
    largest, tolerance = 0.0, LARGEST_SHARE[identity.dtype]
    for scored in fresh:
        old = cache.records([cache.find(scored.document)])
        moved = _moved_share(old, scored.records, 1.0 if identity.method == "top-k" else identity.samples or 1)
        if not moved <= tolerance:
            raise DataRejected(
                f"row {scored.document.id}: {moved:.1%} of its probability differ between the teacher and its cache "
                f"(at most {tolerance:.1%}); score the training set anew"
            )
        largest = max(largest, moved)
    logger.info("canary: %d documents agree with the teacher within %.2g", len(chosen), largest)
    return largest


def _moved_share(one: Records, other: Records, total: float) -> float:
    """Return half the L1 distance of two records of the same positions, averaged over the positions."""

    def spread(records: Records) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        positions_K = np.repeat(np.arange(len(records.offsets_S) - 1), np.diff(records.offsets_S))
        return positions_K * np.int64(1 << 32) + records.ids_K, records.values_K.astype(np.float64) / total

    (keys, values), (other_keys, other_values) = spread(one), spread(other)
    every, places = np.unique(np.concatenate([keys, other_keys]), return_inverse=True)
    difference = np.bincount(places, weights=np.concatenate([values, -other_values]), minlength=len(every))
    return float(np.abs(difference).sum()) / 2 / max(len(one.offsets_S) - 1, 1)
