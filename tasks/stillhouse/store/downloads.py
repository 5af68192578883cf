"""A cache of downloaded files and folders that processes share and that is verified at each use."""

import logging
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from stillhouse.contract import DataRejected, IntegrityError, canonical_json
from stillhouse.store.atomic import exclusive, make_folder, os_errors_explained
from stillhouse.store.trees import MANIFEST, TreeManifest, check_same_files, describe_tree

logger = logging.getLogger(__name__)


def cached_entry(entry: Path, fill: Callable[[Path], None]) -> Path:
    """Return the folder ``entry`` of a cache, intact; make it first if it is absent or damaged.

    One process makes it while others that want it wait. A killed maker leaves nothing that counts.

    Args:
        entry: A folder whose name stands for its contents.
        fill: Puts the contents into the empty folder that it is given.

    Raises:
        TryAgain: The disk is full.
    """
    with os_errors_explained(entry):
        make_folder(entry.parent)
        with exclusive(entry.parent / f"{entry.name}.lock"):
            if _is_intact(entry):
                return entry
            for leftover in (entry, *entry.parent.glob(f"{entry.name}.unfinished-*")):
                shutil.rmtree(leftover, ignore_errors=True)
            working = entry.parent / f"{entry.name}.unfinished-{uuid.uuid4().hex}"
            try:
                working.mkdir()
                fill(working)
                (working / MANIFEST).write_bytes(canonical_json(describe_tree(working)))
                working.replace(entry)
            finally:
                shutil.rmtree(working, ignore_errors=True)
    return entry


def _is_intact(entry: Path) -> bool:
    try:
        expected = TreeManifest.model_validate_json((entry / MANIFEST).read_bytes())
        found = describe_tree(entry)
        check_same_files(
            {file.path: file.sha256 for file in expected.files},
            {file.path: file.sha256 for file in found.files},
            uri=str(entry),
        )
    except FileNotFoundError:
        return False
    except (ValidationError, DataRejected) as error:
        reason = error if isinstance(error, IntegrityError) else "its manifest is damaged"
        logger.warning("the cache is damaged and downloaded again: %s", reason)
        return False
    return True
