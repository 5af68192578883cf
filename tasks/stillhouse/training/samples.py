"""From documents to the tensors of a micro-batch, with the teacher's signal beside them."""

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase as Tokenizer

from stillhouse.contract import DataRejected, canonical_json, sha256_of
from stillhouse.losses import SparseTargets, TeacherStates
from stillhouse.models import Captured, Document, encode, pad_batch
from stillhouse.models.documents import IGNORED
from stillhouse.recipe import TrainingConfig
from stillhouse.teacher import SparseCache, TeacherCache

Sequences = Sequence[Sequence[int]]
"""Indices of documents: what each row of a batch holds."""


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """B rows of T tokens, padded, which hold M documents."""

    inputs: dict[str, torch.Tensor]
    """Of the model's forward pass."""
    segments_BT: torch.Tensor
    """Number of each token's document from 0 to M - 1, or -1 at padding."""
    labels: torch.Tensor
    """Class indices (M), or token ids at the N positions that carry loss."""
    positions_N: torch.Tensor | None = None
    """Where those positions are in the B * T tokens; None for a classifier."""
    teacher_logits_MC: torch.Tensor | None = None
    teacher: SparseTargets | TeacherStates | None = None
    """Of a language model."""
    weights_N: torch.Tensor | None = None
    """What each position counts, float32; None: 1."""
    teacher_insides: Captured = field(default_factory=Captured)
    idle: bool = False
    """There for the sake of the other processes: it carries no loss."""

    @property
    def documents(self) -> int:
        """M."""
        return int(self.segments_BT.max()) + 1

    def to(self, device: torch.device) -> "MicroBatch":
        """Return a copy on a device."""
        if device.type == "cpu":
            return self
        return replace(
            self,
            inputs={name: tensor.to(device) for name, tensor in self.inputs.items()},
            segments_BT=self.segments_BT.to(device),
            labels=self.labels.to(device),
            positions_N=None if self.positions_N is None else self.positions_N.to(device),
            teacher_logits_MC=None if self.teacher_logits_MC is None else self.teacher_logits_MC.to(device),
            teacher=self.teacher.to(device) if isinstance(self.teacher, SparseTargets) else self.teacher,
            weights_N=None if self.weights_N is None else self.weights_N.to(device),
            teacher_insides=Captured(
                hidden={layer: states.to(device) for layer, states in self.teacher_insides.hidden.items()}
            ),
        )


class Samples(Protocol):
    """What a training learns from, tokenized once."""

    lengths: list[int]
    """Tokens of each document."""
    targets: Sequence[float]
    """What each document counts in the mean of a step: its number of labels, or its weight."""

    def micro_batch(self, sequences: Sequences) -> MicroBatch:
        """Return the tensors of some sequences."""

    def digest(self) -> str:
        """Return a digest that changes if anything that is learned does."""


class ClassifierSamples:
    """Labelled texts, one document to a row."""

    def __init__(
        self,
        rows: Dataset,
        tokenizer: Tokenizer,
        config: TrainingConfig,
        *,
        num_labels: int,
        cache: TeacherCache | None,
        cache_tokenizer: Tokenizer,
        with_hidden: int | None,
    ) -> None:
        """Tokenize, and find each row in the teacher's cache.

        Args:
            rows: Columns ``id``, ``text`` and ``label``.
            tokenizer: The student's.
            config: Of the training.
            num_labels: Of the classifier.
            cache: The teacher's answers, if they count.
            cache_tokenizer: By whose tokens the cache finds a row.
            with_hidden: Number of the teacher's last layer if its cached hidden states count.

        Raises:
            DataRejected: A label is out of range, or the cache lacks a row.
        """
        document_ids = list(rows["id"])
        self._ids = encode(tokenizer, list(rows["text"]), config.max_tokens).ids
        self._labels_N = torch.tensor(list(rows["label"]), dtype=torch.int64)
        outside = ((self._labels_N < 0) | (self._labels_N >= num_labels)).nonzero()
        if len(outside):
            raise DataRejected(f"row {document_ids[int(outside[0])]} has a label outside 0 to {num_labels - 1}; fix it")
        self.lengths = [len(ids) for ids in self._ids]
        self.targets: Sequence[float] = [1] * len(self._ids)
        self._document_ids = document_ids
        self._pad_token_id = tokenizer.pad_token_id
        self._cache = cache
        self._last_layer = with_hidden
        self._found = []
        if cache:
            known = self._ids
            if cache_tokenizer is not tokenizer:
                known = encode(cache_tokenizer, list(rows["text"]), config.max_tokens).ids
            self._found = [cache.find(id_, ids) for id_, ids in zip(document_ids, known, strict=True)]

    def micro_batch(self, sequences: Sequences) -> MicroBatch:
        """Return the tensors of some texts."""
        chosen = [document for (document,) in sequences]
        ids_BT, mask_BT = pad_batch([self._ids[index] for index in chosen], self._pad_token_id)
        batch = MicroBatch(
            inputs={"input_ids": ids_BT, "attention_mask": mask_BT},
            segments_BT=torch.where(mask_BT == 1, torch.arange(len(chosen))[:, None], -1),
            labels=self._labels_N[chosen],
        )
        if self._cache is None:
            return batch
        found = [self._found[index] for index in chosen]
        insides = Captured()
        if self._last_layer is not None:
            insides = Captured(hidden={self._last_layer: self._cache.hidden(found)})
        return replace(batch, teacher_logits_MC=self._cache.logits(found), teacher_insides=insides)

    def digest(self) -> str:
        """Digest the documents' ids, tokens and labels."""
        return sha256_of(canonical_json([self._document_ids, self._ids, self._labels_N.tolist()]))


class LanguageSamples:
    """Documents of a language model, one or several to a row."""

    def __init__(
        self,
        documents: Sequence[Document],
        pad_token_id: int,
        *,
        causal: bool,
        cache: SparseCache | None,
        with_hidden: int | None,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        """Find each document in the teacher's cache.

        Args:
            documents: See `stillhouse.models.documents_of`.
            pad_token_id: Any id will do: padding is never seen.
            causal: Whether tokens see the past alone. Only such documents can share a row.
            cache: The teacher's answers, if they count.
            with_hidden: Number of the teacher's last layer if its cached hidden states count.
            weights: Of each row by its id, spread evenly over the labels of its documents; None: each label counts 1.

        Raises:
            DataRejected: The cache lacks a document.
        """
        self.documents = documents
        self.lengths = [len(document.ids_L) for document in documents]
        labels = [len(document.targets_P) for document in documents]
        self.targets: Sequence[float] = labels
        self._shares: list[float] | None = None
        if weights is not None:
            self._shares = _label_shares(documents, weights)
            self.targets = [share * count for share, count in zip(self._shares, labels, strict=True)]
        self.pad_token_id = pad_token_id
        self._causal = causal
        self._cache = cache
        self._last_layer = with_hidden
        self._found = [cache.find(document) for document in documents] if cache else []

    def micro_batch(self, sequences: Sequences) -> MicroBatch:
        """Return the tensors of some sequences of documents."""
        batch = language_batch(
            [[self.documents[index] for index in row] for row in sequences], self.pad_token_id, causal=self._causal
        )
        chosen = [index for row in sequences for index in row]
        if self._shares is not None:
            shares = torch.tensor([self._shares[index] for index in chosen], dtype=torch.float32)
            batch = replace(batch, weights_N=shares[batch.segments_BT.flatten()[batch.positions_N]])
        if self._cache is None:
            return batch
        found = [self._found[index] for index in chosen]
        offsets_S, ids_K, probabilities_K = self._cache.targets(found)
        targets = SparseTargets(
            offsets_S=torch.from_numpy(offsets_S),
            ids_K=torch.from_numpy(ids_K),
            probabilities_K=torch.from_numpy(probabilities_K),
        )
        if self._last_layer is None:
            return replace(batch, teacher=targets)
        states = self._place(self._cache.hidden(found), batch.segments_BT)
        return replace(batch, teacher=targets, teacher_insides=Captured(hidden={self._last_layer: states}))

    def digest(self) -> str:
        """Digest the documents' ids, tokens, labels and weights."""
        digest = hashlib.sha256()
        for document in self.documents:
            digest.update(canonical_json([document.id, len(document.ids_L)]))
            digest.update(document.ids_L.data)
            digest.update(document.labels_L.data)
        if self._shares is not None:
            digest.update(canonical_json(self._shares))
        return digest.hexdigest()

    @staticmethod
    def _place(hidden_MLD: torch.Tensor, segments_BT: torch.Tensor) -> torch.Tensor:
        """Move the states of M padded documents to where these are in the batch."""
        placed_BTD = hidden_MLD.new_zeros(*segments_BT.shape, hidden_MLD.shape[-1])
        for document, states_LD in enumerate(hidden_MLD):
            places = segments_BT == document
            placed_BTD[places] = states_LD[: int(places.sum())]
        return placed_BTD


def row_weights(rows: Dataset) -> dict[str, float] | None:
    """Return the weight of each row by its id, or None if the set has no such column.

    Raises:
        DataRejected: One is not above 0, or not finite.
    """
    if "weight" not in rows.column_names:
        return None
    found = dict(zip(rows["id"], rows["weight"], strict=True))
    for row_id, weight in found.items():
        if not 0 < weight < math.inf:
            raise DataRejected(f"row {row_id} has weight {weight}; give a number above 0")
    return found


def _label_shares(documents: Sequence[Document], weights: Mapping[str, float]) -> list[float]:
    """Return what one label of each document counts: a row's weight, spread over the labels of all its pieces."""
    # Pieces of a long row are called by its id with a number behind it.
    owners = [d.id if d.id in weights else d.id.rpartition("#")[0] for d in documents]
    labels: Counter[str] = Counter()
    for owner, document in zip(owners, documents, strict=True):
        labels[owner] += len(document.targets_P)
    return [weights[owner] / labels[owner] for owner in owners]


def language_batch(rows: Sequence[Sequence[Document]], pad_token_id: int, *, causal: bool) -> MicroBatch:
    """Lay documents side by side in rows, without a teacher's signal.

    Documents in one row don't see one another: their positions start anew, from which transformers makes a mask. Nor
    does any token of a causal model see the padding after it, so a batch of one document a row needs no mask at all.
    """
    num_rows, width = len(rows), max(sum(len(document.ids_L) for document in row) for row in rows)
    ids_BT = np.full((num_rows, width), pad_token_id, dtype=np.int64)
    labels_BT = np.full((num_rows, width), IGNORED, dtype=np.int64)
    segments_BT = np.full((num_rows, width), -1, dtype=np.int64)
    positions_BT = np.zeros((num_rows, width), dtype=np.int64)
    number = 0
    for row, documents in enumerate(rows):
        start = 0
        for document in documents:
            stop = start + len(document.ids_L)
            ids_BT[row, start:stop] = document.ids_L
            labels_BT[row, start:stop] = document.labels_L
            segments_BT[row, start:stop] = number
            positions_BT[row, start:stop] = np.arange(stop - start)
            start, number = stop, number + 1
        positions_BT[row, start:] = np.arange(width - start)
    inputs = {"input_ids": torch.from_numpy(ids_BT)}
    if not causal:
        inputs["attention_mask"] = torch.from_numpy((segments_BT >= 0).astype(np.int64))
    elif any(len(documents) > 1 for documents in rows):
        inputs["position_ids"] = torch.from_numpy(positions_BT)
    positions_N = np.flatnonzero(labels_BT != IGNORED)
    return MicroBatch(
        inputs=inputs,
        segments_BT=torch.from_numpy(segments_BT),
        labels=torch.from_numpy(labels_BT.reshape(-1)[positions_N]),
        positions_N=torch.from_numpy(positions_N),
    )
