"""The teacher's knowledge, kept so that it can be trusted."""

from stillhouse.teacher.cache import CachedRow, TeacherCache, write_cache
from stillhouse.teacher.canary import check_canary, check_sparse_canary
from stillhouse.teacher.manifest import CacheIdentity, CacheManifest, cache_identity
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
    "shard_batches",
    "shard_indices",
    "write_cache",
    "write_sparse_cache",
]
