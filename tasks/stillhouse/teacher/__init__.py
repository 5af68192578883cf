"""The teacher's knowledge, kept so that it can be trusted; and whether it may be learned from.

Names are imported when they are asked for: whether a teacher is permitted must be known before torch is loaded.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stillhouse.teacher.cache import CachedRow, TeacherCache, write_cache
    from stillhouse.teacher.canary import check_canary, check_sparse_canary
    from stillhouse.teacher.manifest import CacheIdentity, CacheManifest, cache_identity, server_cache_identity
    from stillhouse.teacher.scoring import ScoredDocument, score_documents, shard_batches
    from stillhouse.teacher.sharding import shard_indices
    from stillhouse.teacher.sparse import SparseCache, SparseRow, write_sparse_cache

__all__ = [
    "CacheIdentity",
    "CacheManifest",
    "CachedRow",
    "ScoredDocument",
    "SparseCache",
    "SparseRow",
    "TeacherCache",
    "cache_identity",
    "check_canary",
    "check_sparse_canary",
    "score_documents",
    "server_cache_identity",
    "shard_batches",
    "shard_indices",
    "write_cache",
    "write_sparse_cache",
]

_MODULES = {
    "CacheIdentity": "manifest",
    "CacheManifest": "manifest",
    "CachedRow": "cache",
    "ScoredDocument": "scoring",
    "SparseCache": "sparse",
    "SparseRow": "sparse",
    "TeacherCache": "cache",
    "cache_identity": "manifest",
    "check_canary": "canary",
    "check_sparse_canary": "canary",
    "score_documents": "scoring",
    "server_cache_identity": "manifest",
    "shard_batches": "scoring",
    "shard_indices": "sharding",
    "write_cache": "cache",
    "write_sparse_cache": "sparse",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
