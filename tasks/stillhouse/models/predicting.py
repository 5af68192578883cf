"""Running a classifier over texts."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from stillhouse.contract import DataRejected, Progress
from stillhouse.models.encoding import check_max_tokens, encode, length_buckets, pad_batch


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """What a classifier says about N texts, in their order."""

    logits_NC: npt.NDArray[np.float32]
    truncated_N: npt.NDArray[np.bool_]
    """Whether the model was given only the start of the text."""
    token_ids: list[list[int]]
    """What the model was given, without padding."""
    hidden: list[npt.NDArray[np.float16]] | None
    """Per text, the last hidden states (T, D) of its tokens; None if not asked for."""


def predict(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    *,
    batch_size: int,
    max_tokens: int,
    hidden: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
) -> Predictions:
    """Score texts in batches of similar length, without dropout and without gradients.

    Args:
        model: Put into evaluation mode.
        tokenizer: The model's.
        texts: N texts; the order of the result is theirs.
        batch_size: Sequences per forward pass.
        max_tokens: Longer texts are cut, special tokens included.
        hidden: Also return the last hidden states, as float16.
        on_progress: Told after each batch.

    Raises:
        DataRejected: A logit is NaN or infinite.
        ConfigurationError: The model has fewer positions than ``max_tokens``.
    """
    check_max_tokens(model, max_tokens)
    encoded = encode(tokenizer, texts, max_tokens)
    model.eval()
    logits_NC = np.empty((len(texts), model.config.num_labels), dtype=np.float32)
    states: list[npt.NDArray[np.float16]] = [np.empty((0, 0), dtype=np.float16)] * len(texts)
    done, started = 0, time.monotonic()
    with torch.inference_mode():
        for batch in length_buckets([len(row) for row in encoded.ids], batch_size):
            ids_BT, mask_BT = pad_batch([encoded.ids[index] for index in batch], tokenizer.pad_token_id)
            output = model(
                input_ids=ids_BT.to(model.device), attention_mask=mask_BT.to(model.device), output_hidden_states=hidden
            )
            logits_NC[batch] = output.logits.float().cpu().numpy()
            if hidden:
                hidden_BTD = output.hidden_states[-1].to(torch.float16).cpu().numpy()
                for row, index in enumerate(batch):
                    states[index] = hidden_BTD[row, : len(encoded.ids[index])].copy()
            done += len(batch)
            if on_progress:
                on_progress(texts_progress(done, len(texts), time.monotonic() - started))
    if not np.isfinite(logits_NC).all():
        count = int((~np.isfinite(logits_NC)).any(axis=1).sum())
        raise DataRejected(
            f"the model gave NaN or infinite logits for {count} of {len(texts)} texts; check its weights"
        )
    return Predictions(
        logits_NC=logits_NC,
        truncated_N=np.asarray(encoded.truncated, dtype=np.bool_),
        token_ids=encoded.ids,
        hidden=states if hidden else None,
    )


def texts_progress(done: int, total: int, seconds: float) -> Progress:
    """Return how far a job is that counts texts, from how long it took so far."""
    rate = done / max(seconds, 1e-9)
    return Progress(
        done=done, total=total, unit="texts", rate=rate, rate_unit="texts", seconds_left=(total - done) / rate
    )
