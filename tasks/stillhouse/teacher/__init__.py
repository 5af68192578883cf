"""The teacher's knowledge, kept so that it can be trusted."""

from stillhouse.teacher.cache import CachedRow, TeacherCache, write_cache
from stillhouse.teacher.canary import check_canary
from stillhouse.teacher.manifest import CacheIdentity, CacheManifest
from stillhouse.teacher.sharding import shard_indices

__all__ = [
    "CacheIdentity",
    "CacheManifest",
    "CachedRow",
    "TeacherCache",
    "check_canary",
    "shard_indices",
    "write_cache",
]
