"""A language model's sampled distributions on disk, found by what they belong to and never by position.

A shard is a folder with files ``targets-0000.safetensors`` and so on, of bounded size, and, written last,
``manifest.json``. The arrays of a file's M documents:

- ``documents_M16`` (uint8): the first 16 bytes of the SHA-256 of each document id,
- ``tokens_M16`` (uint8): the same of its token ids and labels,
- ``positions_M`` (int64): how many positions of it carry loss,
- ``starts_S`` (int64, M + 1 entries) and ``records`` (uint8): document i's records are the bytes from ``starts_S[i]``
  to ``starts_S[i + 1]``, as `stillhouse.teacher.codec` writes them,
- ``offsets_S`` (int64, M + 1 entries) and ``hidden_TD`` (float16), where asked for.
"""

import hashlib
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open
from safetensors.numpy import save_file

from stillhouse.contract import DataRejected, StageBug, pretty_json, sha256_of_file
from stillhouse.models import Document
from stillhouse.teacher.cache import MANIFEST_FILE, document_key, join_keys, open_shards
from stillhouse.teacher.codec import Codec
from stillhouse.teacher.manifest import CacheIdentity, CacheManifest
from stillhouse.teacher.sampling import Records
from stillhouse.teacher.scoring import ScoredDocument

logger = logging.getLogger(__name__)

MAX_FILE_BYTES = 128 << 20


def codec_of(identity: CacheIdentity) -> Codec:
    """Return how a cache of this identity writes its records.

    Raises:
        StageBug: It is a classifier's.
    """
    if identity.method == "dense" or identity.samples is None or identity.vocabulary_size is None:
        raise StageBug("a classifier's cache has no sampled records")
    return Codec(method=identity.method, samples=identity.samples, vocabulary=identity.vocabulary_size)


def write_sparse_cache(
    folder: Path,
    scored: Iterable[ScoredDocument],
    *,
    identity: CacheIdentity,
    shard: int,
    num_shards: int,
    max_file_bytes: int = MAX_FILE_BYTES,
) -> CacheManifest:
    """Write one shard. Equal documents give equal bytes.

    Args:
        folder: Created if need be.
        scored: Of the shard; taken one by one, so they need not fit into memory.
        identity: What the records depend on.
        shard: From 0.
        num_shards: In all.
        max_file_bytes: After which a new file is begun.

    Raises:
        OSError: The folder can't be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    codec, num_rows, targets = codec_of(identity), 0, 0
    files: dict[str, str] = {}
    batch: list[tuple[ScoredDocument, bytes]] = []
    waiting = 0

    def flush() -> None:
        nonlocal waiting
        name = f"targets-{len(files):04d}.safetensors"
        save_file(_arrays(batch, hidden=identity.hidden), folder / name)
        files[name] = sha256_of_file(folder / name)
        batch.clear()
        waiting = 0

    for document in scored:
        blob = codec.encode(document.records)
        batch.append((document, blob))
        num_rows += 1
        targets += len(document.records.offsets_S) - 1
        waiting += len(blob) + (0 if document.hidden_LD is None else document.hidden_LD.nbytes)
        if waiting >= max_file_bytes:
            flush()
    if batch or not files:
        flush()
    manifest = CacheManifest(
        identity=identity, shard=shard, num_shards=num_shards, num_rows=num_rows, num_targets=targets, files=files
    )
    (folder / MANIFEST_FILE).write_bytes(pretty_json(manifest))
    return manifest


@dataclass(frozen=True, kw_only=True)
class SparseRow:
    """Where the teacher's answer to one document is."""

    file: int
    start: int
    stop: int
    """Bytes of its records."""
    positions: int
    tokens: bytes
    first_state: int
    last_state: int
    """Rows of its hidden states; both 0 if there are none."""


class SparseCache:
    """A language model's distributions for a training set, in one or more verified shards.

    The index is held in memory; records and hidden states stay on disk and are mapped.
    """

    def __init__(self, identity: CacheIdentity, files: Sequence[tuple[str, Any]]) -> None:
        self.identity = identity
        self._codec = codec_of(identity)
        self._records = [file.get_slice("records") for _, file in files]
        self._hidden = [file.get_slice("hidden_TD") if identity.hidden else None for _, file in files]
        self._rows: dict[bytes, SparseRow] = {}
        for number, (name, file) in enumerate(files):
            documents_M16, tokens_M16 = (file.get_tensor(key).numpy() for key in ("documents_M16", "tokens_M16"))
            starts, positions = (file.get_tensor(key).tolist() for key in ("starts_S", "positions_M"))
            states = file.get_tensor("offsets_S").tolist() if identity.hidden else [0] * len(starts)
            for place, document in enumerate(documents_M16):
                row = SparseRow(
                    file=number,
                    start=starts[place],
                    stop=starts[place + 1],
                    positions=positions[place],
                    tokens=tokens_M16[place].tobytes(),
                    first_state=states[place],
                    last_state=states[place + 1],
                )
                if self._rows.setdefault(document.tobytes(), row) is not row:
                    raise DataRejected(f"cache shard {name} repeats a document at place {place}; score anew")

    @classmethod
    def open(cls, folders: Sequence[Path], expected: CacheIdentity) -> "SparseCache":
        """Verify shards, in any order, and open them as one cache.

        Args:
            folders: One per shard.
            expected: What the records must depend on.

        Raises:
            DataRejected: A shard is missing, there twice, truncated, changed, or belongs to something else. The
                message names it.
        """
        found = open_shards(folders, expected)
        files: list[tuple[str, Any]] = []
        for folder, manifest in found:
            opened: list[Any] = [safe_open(folder / name, framework="pt") for name in sorted(manifest.files)]
            if sum(file.get_slice("positions_M").get_shape()[0] for file in opened) != manifest.num_rows:
                raise DataRejected(
                    f"cache shard {folder} does not hold the {manifest.num_rows} documents of its manifest; score anew"
                )
            files += [(str(folder), file) for file in opened]
        logger.info("teacher cache with %d shards opened", len(found))
        return cls(expected, files)

    def __len__(self) -> int:
        return len(self._rows)

    def find(self, document: Document) -> SparseRow:
        """Return where the teacher's answer to a document is.

        Raises:
            DataRejected: The teacher never saw the document, or saw other tokens or labels.
        """
        row = self._rows.get(document_key(document.id))
        if row is None:
            raise DataRejected(f"row {document.id} is not in the teacher's cache; score the training set anew")
        if row.tokens != tokens_key(document) or row.positions != len(document.targets_P):
            raise DataRejected(
                f"row {document.id} was scored as other tokens (tokenizer, template or text differ); score anew"
            )
        return row

    def records(self, rows: Sequence[SparseRow]) -> Records:
        """Return the records of documents, one after another.

        Raises:
            DataRejected: They can't be read.
        """
        blobs = [self._records[row.file][row.start : row.stop].numpy() for row in rows]
        return self._codec.decode(blobs, [row.positions for row in rows])

    def targets(
        self, rows: Sequence[SparseRow]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Return the distributions of documents, one after another: ``offsets_S``, ``ids_K`` and probabilities.

        Raises:
            DataRejected: They can't be read.
        """
        records = self.records(rows)
        probabilities_K = records.values_K.astype(np.float32)
        if self.identity.method != "top-k":
            probabilities_K /= np.float32(self._codec.samples)
        return records.offsets_S, records.ids_K, probabilities_K

    def hidden(self, rows: Sequence[SparseRow]) -> torch.Tensor:
        """Return the teacher's last hidden_MLD of M documents, float16, zero at padding.

        Raises:
            StageBug: The cache keeps none.
        """
        if not self.identity.hidden:
            raise StageBug("the teacher's cache keeps no hidden states")
        parts = [self._hidden[row.file][row.first_state : row.last_state] for row in rows]  # type: ignore[index]
        return torch.nn.utils.rnn.pad_sequence(parts, batch_first=True)


def tokens_key(document: Document) -> bytes:
    """Digest a document's tokens and labels."""
    digest = hashlib.sha256(document.ids_L.astype("<i4").tobytes())
    digest.update(document.labels_L.astype("<i4").tobytes())
    return digest.digest()[:16]


def _arrays(batch: Sequence[tuple[ScoredDocument, bytes]], *, hidden: bool) -> dict[str, npt.NDArray[Any]]:
    documents = [scored.document for scored, _ in batch]
    arrays: dict[str, npt.NDArray[Any]] = {
        "documents_M16": join_keys([document_key(document.id) for document in documents]),
        "tokens_M16": join_keys([tokens_key(document) for document in documents]),
        "positions_M": np.asarray([len(document.targets_P) for document in documents], dtype=np.int64),
        "starts_S": np.cumsum([0, *(len(blob) for _, blob in batch)], dtype=np.int64),
        "records": np.frombuffer(b"".join(blob for _, blob in batch), dtype=np.uint8),
    }
    if hidden:
        states = [scored.hidden_LD for scored, _ in batch]
        arrays["offsets_S"] = np.cumsum([0, *(len(part) for part in states if part is not None)], dtype=np.int64)
        width = 0 if not states or states[0] is None else states[0].shape[1]
        arrays["hidden_TD"] = np.concatenate([np.empty((0, width), dtype=np.float16), *states])
    return arrays
