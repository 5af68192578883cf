"""The teacher's outputs on disk, found by what they belong to and never by position.

A shard is a folder with ``targets.safetensors`` and, written last, ``manifest.json``. The arrays of its N rows:

- ``documents_N16`` (uint8): the first 16 bytes of the SHA-256 of each document id,
- ``tokens_N16`` (uint8): the same of its token ids,
- ``logits_NC`` (float32),
- ``offsets_N`` (int64, N + 1 entries) and ``hidden_TD`` (float16), where asked for: row i's tokens are those from
  ``offsets_N[i]`` to ``offsets_N[i + 1]``.
"""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import ValidationError
from safetensors import safe_open
from safetensors.numpy import save_file

from stillhouse.contract import DataRejected, StageBug, pretty_json, sha256_of_file
from stillhouse.models import Predictions
from stillhouse.teacher.manifest import CacheIdentity, CacheManifest

logger = logging.getLogger(__name__)

MANIFEST_FILE = "manifest.json"
TARGETS_FILE = "targets.safetensors"
KEY_BYTES = 16


def write_cache(
    folder: Path,
    *,
    ids: Sequence[str],
    token_ids: Sequence[Sequence[int]],
    predictions: Predictions,
    identity: CacheIdentity,
    shard: int,
    num_shards: int,
) -> CacheManifest:
    """Write one shard. Equal rows give equal bytes.

    Args:
        folder: Created if need be.
        ids: Document ids of the N rows.
        token_ids: What the teacher was given, without padding.
        predictions: What it answered.
        identity: What the outputs depend on.
        shard: From 0.
        num_shards: In all.

    Raises:
        StageBug: Hidden states are missing or not asked for.
        OSError: The folder can't be written.
    """
    if identity.hidden != (predictions.hidden is not None):
        raise StageBug("the cache's identity and the predictions disagree about hidden states")
    arrays: dict[str, npt.NDArray[Any]] = {
        "documents_N16": join_keys([document_key(id_) for id_ in ids]),
        "tokens_N16": join_keys([_tokens_key(row) for row in token_ids]),
        "logits_NC": predictions.logits_NC,
    }
    if predictions.hidden is not None:
        arrays["offsets_N"] = np.cumsum([0, *map(len, predictions.hidden)], dtype=np.int64)
        width = predictions.hidden[0].shape[1] if predictions.hidden else 0
        arrays["hidden_TD"] = np.concatenate([np.empty((0, width), dtype=np.float16), *predictions.hidden])
    folder.mkdir(parents=True, exist_ok=True)
    save_file(arrays, folder / TARGETS_FILE)
    manifest = CacheManifest(
        identity=identity,
        shard=shard,
        num_shards=num_shards,
        num_rows=len(ids),
        files={TARGETS_FILE: sha256_of_file(folder / TARGETS_FILE)},
    )
    (folder / MANIFEST_FILE).write_bytes(pretty_json(manifest))
    return manifest


@dataclass(frozen=True, kw_only=True)
class CachedRow:
    """Where the teacher's answer to one document is."""

    shard: int
    position: int
    tokens: bytes


class TeacherCache:
    """The teacher's outputs for a training set, in one or more verified shards.

    Logits are held in memory (4 bytes per row and class). Hidden states stay on disk and are mapped, so a set larger
    than memory can be read.
    """

    def __init__(self, identity: CacheIdentity, shards: Sequence[tuple[str, Any]]) -> None:
        self.identity = identity
        self._files: list[Any] = [file for _, file in shards]
        self._logits = [file.get_tensor("logits_NC") for file in self._files]
        self._offsets = [file.get_tensor("offsets_N").tolist() if identity.hidden else [] for file in self._files]
        self._rows: dict[bytes, CachedRow] = {}
        for shard, (name, file) in enumerate(shards):
            tokens_N16 = file.get_tensor("tokens_N16").numpy()
            for position, document in enumerate(file.get_tensor("documents_N16").numpy()):
                row = CachedRow(shard=shard, position=position, tokens=tokens_N16[position].tobytes())
                if self._rows.setdefault(document.tobytes(), row) is not row:
                    raise DataRejected(f"cache shard {name} repeats a document at position {position}; score anew")

    @classmethod
    def open(cls, folders: Sequence[Path], expected: CacheIdentity) -> "TeacherCache":
        """Verify shards, in any order, and open them as one cache.

        Args:
            folders: One per shard.
            expected: What the outputs must depend on.

        Raises:
            DataRejected: A shard is missing, there twice, truncated, changed, or belongs to something else. The
                message names it.
        """
        found = open_shards(folders, expected)
        logger.info("teacher cache with %d shards opened", len(found))
        return cls(expected, [(str(folder), _open_targets(folder, manifest)) for folder, manifest in found])

    def __len__(self) -> int:
        return len(self._rows)

    def find(self, document_id: str, token_ids: Sequence[int]) -> CachedRow:
        """Return where the teacher's answer to a document is.

        Raises:
            DataRejected: The teacher never saw the document, or saw it as other tokens.
        """
        row = self._rows.get(document_key(document_id))
        if row is None:
            raise DataRejected(f"row {document_id} is not in the teacher's cache; score the training set anew")
        if row.tokens != _tokens_key(token_ids):
            raise DataRejected(f"row {document_id} was scored as other tokens (tokenizer or text differ); score anew")
        return row

    def logits(self, rows: Sequence[CachedRow]) -> torch.Tensor:
        """Return the teacher's logits_BC of B rows, float32."""
        return torch.stack([self._logits[row.shard][row.position] for row in rows])

    def hidden(self, rows: Sequence[CachedRow]) -> torch.Tensor:
        """Return the teacher's last hidden_BTD of B rows, float16, zero at padding, T as long as the longest row.

        Raises:
            StageBug: The cache keeps none.
        """
        if not self.identity.hidden:
            raise StageBug("the teacher's cache keeps no hidden states")
        parts = []
        for row in rows:
            start, stop = self._offsets[row.shard][row.position : row.position + 2]
            parts.append(self._files[row.shard].get_slice("hidden_TD")[start:stop])
        return torch.nn.utils.rnn.pad_sequence(parts, batch_first=True)


def document_key(document_id: str) -> bytes:
    """Return by what a document is found."""
    return hashlib.sha256(document_id.encode()).digest()[:KEY_BYTES]


def join_keys(keys: Sequence[bytes]) -> npt.NDArray[np.uint8]:
    """Return M keys as an array (M, 16)."""
    return np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(-1, KEY_BYTES)


def open_shards(folders: Sequence[Path], expected: CacheIdentity) -> list[tuple[Path, CacheManifest]]:
    """Verify the files of shards, in any order, and return the shards in theirs.

    Raises:
        DataRejected: A shard is missing, there twice, truncated, changed, or belongs to something else. The message
            names it.
    """
    shards: dict[int, tuple[Path, CacheManifest]] = {}
    num_shards = 0
    for folder in folders:
        manifest = _read_manifest(folder)
        _check_identity(folder, manifest.identity, expected)
        if shards and manifest.num_shards != num_shards:
            raise DataRejected(f"cache shard {folder} is one of {manifest.num_shards} and others of {num_shards}")
        if manifest.shard in shards:
            raise DataRejected(f"cache shard {folder} is number {manifest.shard} a second time; give each shard once")
        for name, sha256 in manifest.files.items():
            if not (folder / name).is_file():
                raise DataRejected(f"cache shard {folder} lacks {name}; score it anew")
            if sha256_of_file(folder / name) != sha256:
                raise DataRejected(f"cache shard {folder} differs from its manifest in {name}; score it anew")
        num_shards = manifest.num_shards
        shards[manifest.shard] = (folder, manifest)
    missing = [str(shard) for shard in range(num_shards) if shard not in shards]
    if missing or not shards:
        raise DataRejected(f"cache shard {', '.join(missing) or '0'} of {num_shards} is missing; score it")
    return [shards[shard] for shard in range(num_shards)]


def _tokens_key(token_ids: Sequence[int]) -> bytes:
    return hashlib.sha256(np.asarray(token_ids, dtype="<i8").tobytes()).digest()[:KEY_BYTES]


def _read_manifest(folder: Path) -> CacheManifest:
    try:
        return CacheManifest.model_validate_json((folder / MANIFEST_FILE).read_bytes())
    except FileNotFoundError as error:
        raise DataRejected(f"cache shard {folder} has no {MANIFEST_FILE}: it was never finished; score it") from error
    except ValidationError as error:
        raise DataRejected(f"cache shard {folder} has a {MANIFEST_FILE} of another form; score it anew") from error


def _check_identity(folder: Path, found: CacheIdentity, expected: CacheIdentity) -> None:
    for name in CacheIdentity.model_fields:
        if getattr(found, name) != getattr(expected, name):
            raise DataRejected(f"cache shard {folder} is foreign: its {name} differs from what is expected; score anew")


def _open_targets(folder: Path, manifest: CacheManifest) -> Any:
    file: Any = safe_open(folder / TARGETS_FILE, framework="pt")
    if file.get_slice("documents_N16").get_shape()[0] != manifest.num_rows:
        raise DataRejected(
            f"cache shard {folder} does not hold the {manifest.num_rows} rows of its manifest; score it anew"
        )
    return file
