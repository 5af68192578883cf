"""Checkpoints that are whole or not there."""

import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from stillhouse.contract import TryAgain, canonical_json, sha256_of_file

logger = logging.getLogger(__name__)

COMPLETE_FILE = "COMPLETE.json"
TENSORS_FILE = "tensors.safetensors"
STATE_FILE = "state.json"
PREFIX = "step-"
UNFINISHED_PREFIX = "unfinished-"
KEEP = 2
"""Newest checkpoints that are kept: one more than needed, should the last turn out damaged."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Everything needed to go on after a step."""

    step: int
    tensors: Mapping[str, torch.Tensor]
    state: Mapping[str, Any]
    """Plain data."""


class CheckpointFolder:
    """The checkpoints of one training: ``step-00000042`` holds tensors, plain data and, written last, the digests.

    A checkpoint is written under another name, synced and renamed. One that fails its digests, or belongs to another
    training, is passed over with a warning.

    Args:
        folder: Created if need be; nothing else lives in it.
        fingerprint: Digest of what the training depends on.
    """

    def __init__(self, folder: Path, *, fingerprint: str) -> None:
        self._folder = folder
        self._fingerprint = fingerprint

    def write(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint, then remove older ones.

        Raises:
            TryAgain: The folder can't be written: the disk is full, or worse.
        """
        unfinished = self._folder / f"{UNFINISHED_PREFIX}{checkpoint.step:08d}"
        final = self._folder / f"{PREFIX}{checkpoint.step:08d}"
        try:
            for path in (unfinished, final):
                shutil.rmtree(path, ignore_errors=True)
            unfinished.mkdir(parents=True)
            save_file(dict(checkpoint.tensors), unfinished / TENSORS_FILE)
            (unfinished / STATE_FILE).write_bytes(canonical_json(checkpoint.state))
            complete = {
                "fingerprint": self._fingerprint,
                "files": {name: sha256_of_file(unfinished / name) for name in (TENSORS_FILE, STATE_FILE)},
            }
            (unfinished / COMPLETE_FILE).write_bytes(canonical_json(complete))
            for name in (TENSORS_FILE, STATE_FILE, COMPLETE_FILE, "."):
                _sync(unfinished / name)
            unfinished.rename(final)
            _sync(self._folder)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise TryAgain(f"can't write a checkpoint in {self._folder} ({error}); free some space") from error
        for path in self._newest_first()[KEEP:]:
            shutil.rmtree(path, ignore_errors=True)

    def newest(self) -> Checkpoint | None:
        """Return the newest checkpoint that is whole and belongs to this training."""
        for path in self._folder.glob(f"{UNFINISHED_PREFIX}*"):
            shutil.rmtree(path, ignore_errors=True)
        for path in self._newest_first():
            try:
                self._verify(path)
                return Checkpoint(
                    step=int(path.name.removeprefix(PREFIX)),
                    tensors=load_file(path / TENSORS_FILE),
                    state=json.loads((path / STATE_FILE).read_bytes()),
                )
            except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
                logger.warning("checkpoint %s is passed over: %s", path, error)
        return None

    def _newest_first(self) -> list[Path]:
        return sorted(self._folder.glob(f"{PREFIX}*"), reverse=True)

    def _verify(self, path: Path) -> None:
        complete = json.loads((path / COMPLETE_FILE).read_bytes())
        if complete["fingerprint"] != self._fingerprint:
            raise ValueError("it belongs to another training")
        for name in (TENSORS_FILE, STATE_FILE):
            if sha256_of_file(path / name) != complete["files"][name]:
                raise ValueError(f"{name} is damaged")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
