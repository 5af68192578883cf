"""A last look before training: does the teacher still say what the cache claims it said?"""

import logging

import numpy as np
from datasets import Dataset
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from stillhouse.contract import DataRejected
from stillhouse.models import predict, tokenizer_sha256
from stillhouse.teacher.cache import TeacherCache

logger = logging.getLogger(__name__)

FLOAT16_ROUNDING = 2.0**-10
"""Relative; twice the unit roundoff, since the fresh state is rounded too."""


def check_canary(
    cache: TeacherCache,
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    rows: Dataset,
    *,
    k: int = 8,
    seed: int,
    tolerance: float = 1e-3,
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
        tolerance: Largest absolute difference of a logit or a hidden state. Batches of other sizes add in another
            order, which changes float32 logits by about 1e-5.

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
    largest = 0.0
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
