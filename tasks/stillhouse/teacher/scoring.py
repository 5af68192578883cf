"""A language model's distributions at the tokens that carry loss, sampled as they are computed."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel

from stillhouse.contract import DataRejected, Progress
from stillhouse.models import (
    Document,
    check_head,
    head_states,
    is_causal,
    length_buckets,
    output_head,
    pad_batch,
    watch_body,
)
from stillhouse.recipe import CacheConfig
from stillhouse.teacher.sampling import Records, join_records, largest, sample, sample_points

LOGITS_AT_A_TIME = 1 << 23
"""32 MiB in float32, twice that for their sums in float64."""


@dataclass(frozen=True, kw_only=True)
class ScoredDocument:
    """What the teacher says about a document."""

    document: Document
    records: Records
    """At the document's P target positions."""
    hidden_LD: npt.NDArray[np.float16] | None
    """The body's last states, if asked for."""


def shard_batches(lengths: Sequence[int], batch_size: int, *, shard: int, num_shards: int) -> list[list[int]]:
    """Return the batches of a shard: whole batches of a plan over all documents.

    A batch adds up in one order whoever runs it, so every record is the same, bit for bit, for any number of shards.

    Args:
        lengths: Tokens of each document of the whole set.
        batch_size: Documents per forward pass.
        shard: From 0.
        num_shards: In all.

    Raises:
        ValueError: There is no such shard.
    """
    if not 0 <= shard < num_shards:
        raise ValueError(f"shard {shard} of {num_shards} does not exist")
    return length_buckets(lengths, batch_size)[shard::num_shards]


def score_documents(
    model: PreTrainedModel,
    documents: Sequence[Document],
    batches: Sequence[Sequence[int]],
    *,
    config: CacheConfig,
    temperature: float,
    vocabulary: int,
    hidden: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
) -> Iterator[ScoredDocument]:
    """Run the teacher's body once over each batch, and its head over a few positions at a time.

    Args:
        model: Causal or masked; put into evaluation mode.
        documents: The whole set.
        batches: Indices of documents; see `shard_batches`.
        config: How distributions are sampled.
        temperature: T, at which they are taken.
        vocabulary: Real token ids: the head's rows beyond them are padding.
        hidden: Also return the body's last states.
        on_progress: Told after each batch.

    Raises:
        DataRejected: A logit is NaN or infinite.
        ConfigurationError: The model's logits are not what its head makes of its states.
    """
    check_head(model.eval())
    total = sum(len(documents[index].ids_L) for batch in batches for index in batch)
    done, started = 0, time.monotonic()
    for batch in batches:
        chosen = [documents[index] for index in batch]
        ids_BT, mask_BT = pad_batch([document.ids_L.tolist() for document in chosen], 0)
        # A causal model's tokens never see the padding after them, and without a mask it runs its fastest kernel.
        inputs = {"input_ids": ids_BT} if is_causal(model) else {"input_ids": ids_BT, "attention_mask": mask_BT}
        states_BTD, last_BTD = _run(model, inputs, hidden=hidden)
        places = [document.targets_P for document in chosen]
        states_ND = torch.cat([states_BTD[row, targets_P] for row, targets_P in enumerate(places)])
        points = None if config.method == "top-k" else np.concatenate([_points(config, d) for d in chosen])
        records = _sample(model, states_ND, points, config=config, temperature=temperature, vocabulary=vocabulary)
        ends = np.cumsum([len(targets_P) for targets_P in places])
        for row, document in enumerate(chosen):
            yield ScoredDocument(
                document=document,
                records=_slice(records, int(ends[row]) - len(places[row]), int(ends[row])),
                hidden_LD=None if last_BTD is None else last_BTD[row, : len(document.ids_L)].copy(),
            )
        done += sum(len(document.ids_L) for document in chosen)
        if on_progress:
            rate = done / max(time.monotonic() - started, 1e-9)
            left = (total - done) / rate
            on_progress(
                Progress(done=done, total=total, unit="tokens", rate=rate, rate_unit="tokens", seconds_left=left)
            )


def _points(config: CacheConfig, document: Document) -> npt.NDArray[np.float64]:
    assert config.method != "top-k"
    return sample_points(
        config.method,
        samples=config.samples,
        seed=config.seed,
        document_id=document.id,
        positions_N=document.targets_P,
    )


@torch.no_grad()
def _run(
    model: PreTrainedModel, inputs: dict[str, torch.Tensor], *, hidden: bool
) -> tuple[torch.Tensor, npt.NDArray[np.float16] | None]:
    """Return what the head is given, and the body's last states."""
    placed = {name: tensor.to(model.device) for name, tensor in inputs.items()}
    if not hidden:
        return head_states(model, **placed), None
    last: list[torch.Tensor] = []
    handle = watch_body(model, last.append)
    try:
        states_BTD = head_states(model, **placed)
    finally:
        handle.remove()
    return states_BTD, last[0].to(torch.float16).cpu().numpy()


@torch.no_grad()
def _sample(
    model: PreTrainedModel,
    states_ND: torch.Tensor,
    points_NR: npt.NDArray[np.float64] | None,
    *,
    config: CacheConfig,
    temperature: float,
    vocabulary: int,
) -> Records:
    head = output_head(model)
    weight_VD = head.weight_VD[:vocabulary]
    bias_V = None if head.bias_V is None else head.bias_V[:vocabulary]
    rows = max(1, LOGITS_AT_A_TIME // vocabulary)
    parts = []
    for start in range(0, len(states_ND), rows):
        logits_NV = torch.nn.functional.linear(states_ND[start : start + rows], weight_VD, bias_V).float()
        probabilities_NV = (logits_NV / temperature).softmax(-1)
        if not bool(torch.isfinite(probabilities_NV.sum())):
            raise DataRejected("the teacher gives NaN or infinite logits; check its weights")
        if points_NR is None:
            parts.append(largest(probabilities_NV, config.samples))
        else:
            parts.append(sample(probabilities_NV, points_NR[start : start + rows]))
    return join_records(parts)


def _slice(records: Records, first: int, last: int) -> Records:
    start, stop = records.offsets_S[first], records.offsets_S[last]
    return Records(
        offsets_S=records.offsets_S[first : last + 1] - start,
        ids_K=records.ids_K[start:stop],
        values_K=records.values_K[start:stop],
    )
