"""What a shard of a teacher's cache says about itself."""

from typing import Literal

from pydantic import Field

from stillhouse.recipe import Config, Sha256


class CacheIdentity(Config):
    """Everything that the teacher's outputs depend on: a cache serves only those who expect exactly this."""

    teacher_sha256: Sha256
    """Digest of the teacher's model folder."""
    tokenizer_sha256: Sha256
    """See `stillhouse.models.tokenizer_sha256`."""
    data_sha256: Sha256
    """Digest of the frozen training set."""
    labels: tuple[str, ...]
    """In the order of the logits."""
    max_tokens: int = Field(ge=1)
    """Longer texts were cut to this many tokens."""
    hidden: bool
    """Whether last hidden states are kept."""
    dtype: Literal["float32"] = "float32"
    """In which the teacher ran. Logits are kept in it, hidden states in float16."""


class CacheManifest(Config):
    """Written last into the folder of a shard."""

    schema_id: Literal["stillhouse/teacher-cache/1"] = "stillhouse/teacher-cache/1"
    identity: CacheIdentity
    shard: int = Field(ge=0)
    num_shards: int = Field(ge=1)
    num_rows: int = Field(ge=0)
    files: dict[str, Sha256]
    """Digest of each file by name."""
